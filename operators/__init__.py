"""Linear operators: what was measured, and how to measure less of it.

Each operator is an immutable value with its own parameters for every scan of a batch; `ambient_sci.operators.base`
has the contract, `ambient_sci.operators.patterns` the sampling patterns, `ambient_sci.operators.trajectories` those off
the grid, `ambient_sci.testing` the conformance kit.
"""

if __name__ != "ambient_sci.operators":  # found as a top-level name from the repository root
    raise ImportError("import this package as ambient_sci.operators")

from ambient_sci.operators import arrays, patterns, trajectories, units
from ambient_sci.operators.average import Average
from ambient_sci.operators.base import LinearOperator, OperatorSpec, collate, from_spec
from ambient_sci.operators.blur import Blur, gaussian_kernel, motion_kernel
from ambient_sci.operators.compose import Compose, Scale, Sum, VStack, vstack
from ambient_sci.operators.fourier import Fourier
from ambient_sci.operators.gaussian import Gaussian
from ambient_sci.operators.identity import Identity
from ambient_sci.operators.interferometer import Interferometer, primary_beam
from ambient_sci.operators.mask import Mask
from ambient_sci.operators.matrix import Matrix
from ambient_sci.operators.nufft import Nufft
from ambient_sci.operators.sense import Sense
from ambient_sci.operators.solve import Normal, conjugate_gradient, least_squares, operator_norm, quick_inverse

__all__ = [
    "Average",
    "Blur",
    "Compose",
    "Fourier",
    "Gaussian",
    "Identity",
    "Interferometer",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Normal",
    "Nufft",
    "OperatorSpec",
    "Scale",
    "Sense",
    "Sum",
    "VStack",
    "arrays",
    "collate",
    "conjugate_gradient",
    "from_spec",
    "gaussian_kernel",
    "least_squares",
    "motion_kernel",
    "operator_norm",
    "patterns",
    "primary_beam",
    "quick_inverse",
    "trajectories",
    "units",
    "vstack",
]
