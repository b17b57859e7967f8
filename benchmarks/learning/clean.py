r"""CLEAN (Högbom 1974, Astron. Astrophys. Suppl. 15:417): what radio astronomers reconstruct with.

With visibilities :math:`V = A x + \sigma e` and weights :math:`W = 1 / \sigma^2`, the dirty image and the point-spread
function, the dirty image of a point source of 1 Jy, are

.. math:: d = A^H W V / Z, \qquad p = A^H W w / Z, \qquad Z = \sum_j W_j w_j^2,

:math:`w` being the weights of the `Interferometer`. Where the residual is largest, a tenth of it becomes a component
and its point-spread function is subtracted, until nothing stands out of the noise :math:`Z^{-1/2}` of the residual. The
components are convolved with a Gaussian :math:`g` as wide as the main lobe of :math:`p`, and the residual is
added:

.. math:: \hat x = c * g / {\textstyle\sum g} + (d - p * c) / {\textstyle\sum g}

in Jy per pixel, as images are here. The Gaussian may be narrower than the main lobe, by a factor to be tuned: the
images to be found have been convolved already.
"""

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Interferometer

__all__ = ["clean", "main_lobe"]

GAIN, ITERATIONS = 0.1, 1000


def clean(m: Measurement, threshold: float = 3.0, width: float = 1.0) -> Tensor:
    """Reconstruct real images ``(batch, 1, height, width)`` from visibilities.

    Parameters
    ----------
    m
        Scans by an `Interferometer`.
    threshold
        Residual at which to stop, in standard deviations of its noise.
    width
        Of the restoring Gaussian, as a fraction of the main lobe's.

    Raises
    ------
    DataError
        If the operator is of another kind.
    """
    A = m.operator
    if not isinstance(A, Interferometer):
        raise DataError(f"CLEAN needs visibilities, got measurements of kind {A.kind!r}")
    weight = A.rows / m.noise**2
    total = (weight * A.weights**2).sum(1)[:, None, None]
    height, columns = A.shape
    # twice as large, so that it reaches from every pixel to every other
    larger = A.build(A.parameters, {**A.settings, "shape": [2 * height, 2 * columns]})
    psf = larger.adjoint((weight * A.weights).to(m.y.dtype))[:, 0] / total
    residual = A.adjoint(weight * m.y)[:, 0] / total
    components = torch.zeros_like(residual)
    stop = threshold / total[:, 0, 0].sqrt()
    scans = torch.arange(len(m))
    rows, cols = torch.arange(height), torch.arange(columns)
    for _ in range(ITERATIONS):
        place = residual.abs().flatten(1).argmax(1)
        peak = residual.flatten(1)[scans, place]
        active = peak.abs() > stop
        if not bool(active.any()):
            break
        step = GAIN * peak * active
        row, col = place // columns, place % columns
        components[scans, row, col] += step
        # the point-spread function has its peak at (height, columns): shift it to the component
        shifted = psf[
            scans[:, None, None],
            (height + rows - row[:, None])[:, :, None],
            (columns + cols - col[:, None])[:, None, :],
        ]
        residual = residual - step[:, None, None] * shifted
    beam = _gaussian(main_lobe(psf) / width**2, psf.shape[1:])
    area = beam.sum((1, 2), keepdim=True)
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(beam, dim=(1, 2)))
    smooth = torch.fft.irfft2(torch.fft.rfft2(components, beam.shape[1:]) * spectrum, beam.shape[1:])
    restored: Tensor = (smooth[:, :height, :columns] + residual) / area
    return restored[:, None]


def main_lobe(psf: Tensor) -> Tensor:
    r"""Fit a Gaussian :math:`e^{-z^T K z / 2}` to the main lobe; :math:`K` per squared pixel, ``(batch, 2, 2)``."""
    height, width = psf.shape[1:]
    offset = torch.arange(-3, 4)
    lobe = psf[:, height // 2 - 3 : height // 2 + 4, width // 2 - 3 : width // 2 + 4].flatten(1)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    near = (torch.hypot(y.float(), x.float()) <= 3).flatten() & (lobe > 0.35)
    # the logarithm is linear in K; pixels below a third of the peak may be of a sidelobe
    terms = -torch.stack([y**2 / 2, y * x, x**2 / 2], -1).reshape(1, -1, 3).to(psf) * near[..., None]
    target = torch.where(near, lobe, 1).log()[..., None]
    a, b, c = torch.linalg.lstsq(terms.expand(len(psf), -1, -1), target).solution[..., 0].unbind(1)
    return torch.stack([torch.stack([a, b], -1), torch.stack([b, c], -1)], -2)


def _gaussian(K: Tensor, shape: torch.Size) -> Tensor:
    axes = [torch.arange(size).to(K) - size // 2 for size in shape]
    z = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return torch.exp(-torch.einsum("hwi,bij,hwj->bhw", z, K, z) / 2)
