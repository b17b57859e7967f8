"""Intensity of a scan's image, found from what was measured of it."""

import torch
from torch import Tensor

from ambient_sci.measurement import Measurement
from ambient_sci.operators import quick_inverse

__all__ = ["estimate_scale", "normalise"]


def estimate_scale(measurement: Measurement) -> Tensor:
    """Intensity of each scan's image, from the measurement alone.

    Parameters
    ----------
    measurement
        Scans, in the instrument's units.

    Returns
    -------
    Tensor
        ``(batch,)``. For k-space (``"fourier"``, ``"sense"``, ``"nufft"``, ``"interferometer"``) the 99th percentile
        of the magnitude of a `quick_inverse`, which the few brightest pixels do not move. One for kinds whose
        measurements are pixels or projections in the units of the image already. Measurements that are multiplied with
        a number have that many times the scale.
    """
    A = measurement.operator
    if A.kind not in ("fourier", "sense", "nufft", "interferometer"):
        return torch.ones(len(measurement))
    image = quick_inverse(A, measurement.y).abs()
    if image.shape[1] > 1 and getattr(A, "maps", None) is not None:  # sets of one image
        image = torch.linalg.vector_norm(image, dim=1)
    image = image.flatten(1)
    scale = (
        image.quantile(0.99, dim=1) if image.shape[1] < 1 << 24 else image.kthvalue(image.shape[1] * 99 // 100).values
    )
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def normalise(measurement: Measurement) -> Measurement:
    """Bring scans to the units that priors know, as `Store.read` does.

    Parameters
    ----------
    measurement
        Scans, in the instrument's units; a ``scale`` that they have already is replaced.

    Returns
    -------
    Measurement
        ``y`` and ``noise_std`` divided by `estimate_scale`, which is its ``scale``: results of
        `ambient_sci.reconstruct` are then in the instrument's units.

    Examples
    --------
    >>> posterior = reconstruct(prior, normalise(Measurement(y, operator, noise_std)))  # doctest: +SKIP
    """
    m, scale = measurement, estimate_scale(measurement)
    y, noise = (values / scale.reshape(-1, *[1] * (values.ndim - 1)) for values in (m.y, m.noise_std))
    return Measurement(y, m.operator, noise, m.index, scale)
