r"""Linear reconstructions.

Zero-filled: :math:`\hat x = A^H y`. Regularised least squares, which is CG-SENSE for multi-coil k-space (Pruessmann et
al. 2001, Magn. Reson. Med. 46:638):

.. math:: \hat x = \arg\min_x \tfrac12 \| A x - y \|_W^2 + \tfrac{\lambda}{2} \| x \|^2
          \quad\Leftrightarrow\quad (A^H W A + \lambda) \, \hat x = A^H W y

where the weights :math:`W` are one unless the noise differs from sample to sample; then they are
:math:`\min \sigma^2 / \sigma^2` within a scan. Measurements ``(batch, *measurement)``, images ``(batch, channel,
*spatial)`` in the measurement's own units (not multiplied by its ``scale``).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators.solve import conjugate_gradient

__all__ = ["cg_sense", "normal_equations", "weights", "zero_filled"]


def zero_filled(m: Measurement) -> Tensor:
    """Back-project: :math:`A^H y`, ``(batch, channel, *spatial)``."""
    return m.operator.adjoint(m.y)


def cg_sense(m: Measurement, iterations: int = 50, regularisation: float = 1e-2) -> Tensor:
    r"""Regularised least squares by conjugate gradients.

    Parameters
    ----------
    m
        Scans, with any linear operator.
    iterations
        At most so many steps; a scan stops earlier when its residual is a millionth of the right-hand side.
    regularisation
        :math:`\lambda`; the condition number is at most :math:`1 + \|A\|^2 / \lambda`.

    Returns
    -------
    Tensor
        Images, ``(batch, channel, *spatial)``.
    """
    if regularisation < 0:
        raise ConfigError(f"regularisation must not be negative, got {regularisation}")
    normal, rhs = normal_equations(m)
    return conjugate_gradient(lambda x: normal(x) + regularisation * x, rhs, iterations=iterations, tolerance=1e-6)


def weights(m: Measurement) -> Tensor | None:
    """Weights of the samples' squared residuals, as ``y`` is shaped; nothing where the noise is the same for all."""
    if m.noise_std.ndim == 1:
        return None
    measured = m.operator.rows.expand_as(m.y).real > 0
    noise = m.noise_std.expand_as(m.y.real)
    if bool((noise[measured] <= 0).any()):
        raise DataError("noise_std must be positive on every measured sample when it differs from sample to sample")
    least = torch.where(measured, noise, torch.inf).flatten(1).amin(1).reshape(-1, *[1] * (m.y.ndim - 1))
    return torch.where(measured, (least / noise) ** 2, 0.0)


def normal_equations(m: Measurement) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the map :math:`A^H W A` and the right-hand side :math:`A^H W y`."""
    weight = weights(m)
    if weight is None:
        return m.operator.gram, m.operator.adjoint(m.y)
    return lambda x: m.operator.adjoint(weight * m.operator(x)), m.operator.adjoint(weight * m.y)
