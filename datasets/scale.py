"""Intensity of a scan's image, found from what was measured of it."""

import torch
from torch import Tensor

from ambient_sci.measurement import Measurement
from ambient_sci.operators import conjugate_gradient

__all__ = ["estimate_scale"]


def estimate_scale(measurement: Measurement) -> Tensor:
    """Intensity of each scan's image, from the measurement alone.

    Parameters
    ----------
    measurement
        Scans, in the instrument's units.

    Returns
    -------
    Tensor
        ``(batch,)``. For k-space the 99th percentile of the magnitude of a plain reconstruction, which the few
        brightest pixels do not move: zero-filled on the grid (``"fourier"``, ``"sense"``), and five conjugate
        gradient iterations off it (``"nufft"``, ``"interferometer"``), where samples are not equally dense. One for
        kinds whose measurements are pixels or projections in the units of the image already. Measurements that are
        multiplied with a number have that many times the scale.
    """
    A = measurement.operator
    if A.kind in ("nufft", "interferometer"):
        image = conjugate_gradient(A.gram, A.adjoint(measurement.y), iterations=5).abs()
    elif A.kind in ("fourier", "sense"):
        image = A.adjoint(measurement.y).abs()
    else:
        return torch.ones(len(measurement))
    if image.shape[1] > 1 and getattr(A, "maps", None) is not None:  # sets of one image
        image = torch.linalg.vector_norm(image, dim=1)
    image = image.flatten(1)
    scale = (
        image.quantile(0.99, dim=1) if image.shape[1] < 1 << 24 else image.kthvalue(image.shape[1] * 99 // 100).values
    )
    return torch.where(scale > 0, scale, torch.ones_like(scale))
