r"""How similar images are to scans, and which scans are nearest.

**In pixels**, where the images :math:`x_i` of the scans are known: the normalised correlation of images from which
their means were taken,

.. math:: c_i(x) = \frac{|\langle x_i, x \rangle|}{\|x_i\| \, \|x\|},

whose modulus makes it blind to a global phase; of real images the sign is kept. Features of a network are compared in
the same way, without taking means.

**In what was measured**, where nothing else is known. With residuals in units of the noise, and a factor :math:`a`
(global phase, intensity) to fit,

.. math:: y_i = a A_i x + \sigma_i e, \qquad
          c_i^2(x) = \frac{|\langle A_i x, y_i \rangle|^2 / \|A_i x\|^2 - q}{\|y_i\|^2 - n_i}, \qquad
          r_i^2(x) = \min_a \frac{\| y_i - a A_i x \|^2}{n_i - q}

for :math:`n_i` measured real components and :math:`q` components of the factor (2 for complex images, of which it is
any complex number; 1 for real ones, of which it is not negative). What noise adds on average is taken off, so that
:math:`c_i` estimates the correlation of :math:`A_i x` with the noiseless :math:`A_i x_i` for an :math:`x` that knows
nothing of the noise. It is 0 where a scan does not stand out of its noise, and at most
:math:`1 - \sqrt{n_i / 2} / (\|y_i\|^2 - n_i)`, one standard deviation of its error for a copy below 1. For a copy of
:math:`x_i` the residual :math:`r_i` is 1: one standard deviation of the noise apart.

**Relative distance.** Images without detail resemble every scan, and copy none. What tells a copy is one scan that is
much nearer than the others: with the distances :math:`d_i = \sqrt{2 - 2 c_i}` of images of unit norm in ascending
order,

.. math:: \rho = \frac{d_1}{\frac1K \sum_{k \le K} d_k}

over the ``K`` nearest scans, 0 for a copy and near 1 for what is like none (as Carlini et al. 2023, arXiv:2301.13188,
with 50 neighbours). Scans that are in the training data several times do not hide a copy unless they are most of these.
"""

import torch
from torch import Tensor

from ambient_sci.check.gaussian import noise_of
from ambient_sci.measurement import Measurement

__all__ = ["Nearest", "agreement", "correlation"]

CHUNK = 64  # images that an operator is applied to at once
DETECTED = 4.0  # standard deviations by which the energy of a scan must exceed that of its noise


class Nearest:
    """Collects the nearest of a stream of scans to each image.

    Parameters
    ----------
    images
        How many images.
    keep
        How many neighbours to keep of each.
    """

    def __init__(self, images: int, keep: int) -> None:
        self.similarity = torch.full((images, keep), -torch.inf)
        self.scan = torch.full((images, keep), -1)

    def add(self, similarity: Tensor, scans: Tensor) -> None:
        """Take up scans ``(n,)`` and how similar they are to each image, ``(images, n)``."""
        every = torch.cat([self.similarity, similarity.cpu().float()], 1)
        numbers = torch.cat([self.scan, scans.expand(len(every), -1)], 1)
        self.similarity, best = every.topk(self.similarity.shape[1])
        self.scan = numbers.gather(1, best)

    @property
    def relative_distance(self) -> Tensor:
        """Distance of the nearest scan over the mean of all that were kept, ``(images,)``."""
        apart = (2 - 2 * self.similarity.double()).clamp_min(0).sqrt()
        relative: Tensor = apart[:, 0] / apart.mean(1).clamp_min(torch.finfo(torch.float32).tiny)
        return relative


def correlation(images: Tensor, others: Tensor, centred: bool = True) -> Tensor:
    """Normalised correlation of each image with each of others, ``(images, others)``.

    Parameters
    ----------
    images, others
        ``(n, channel, *spatial)`` and ``(m, channel, *spatial)``, or features ``(n, d)`` and ``(m, d)``.
    centred
        Take the mean of each image (over its channels, too) off first.
    """
    found: Tensor = _unit(images, centred) @ _unit(others, centred).mH
    return found.abs() if found.is_complex() else found


def _unit(images: Tensor, centred: bool) -> Tensor:
    flat = images.flatten(1)
    flat = flat - flat.mean(1, keepdim=True) if centred else flat
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit: Tensor = flat / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return unit


def agreement(images: Tensor, scan: Measurement) -> tuple[Tensor, Tensor]:
    """Compare images with one scan on what it measured.

    Parameters
    ----------
    images
        ``(n, channel, *spatial)``.
    scan
        A measurement of one scan, with any operator.

    Returns
    -------
    similarity, residual
        :math:`c` and :math:`r`, ``(n,)`` (see the module).
    """
    rows, noise = scan.operator.rows.expand(scan.y.shape), noise_of(scan)
    weight = (rows / noise).flatten(1)
    y = scan.y.flatten() * weight[0]
    measured = (2 if y.is_complex() else 1) * float(rows.sum())
    free = 2 if images.is_complex() else 1
    explained = []
    for some in images.split(CHUNK):
        z = scan.operator(some).flatten(1) * weight
        inner = z.conj() @ y.to(z.dtype)
        size = inner.abs() if images.is_complex() else inner.real.clamp_min(0)
        norm = torch.linalg.vector_norm(z, dim=1)
        explained.append((size / norm.clamp_min(torch.finfo(norm.dtype).tiny)) ** 2)
    energy, fitted = float(y.abs().square().sum()), torch.cat(explained)
    residual = ((energy - fitted).clamp_min(0) / max(measured - free, 1)).sqrt()
    signal = energy - measured
    if signal <= DETECTED * (2 * measured) ** 0.5:
        return torch.zeros_like(fitted), residual
    told = 1 - (measured / 2) ** 0.5 / signal
    return ((fitted - free) / signal).clamp_min(0).sqrt().clamp_max(told), residual
