r"""How far the images that a prior draws are from the clean ones: three distances, for scoring alone.

Fréchet distance of features :math:`\phi` (Heusel et al. 2017, arXiv:1706.08500), those of
`benchmarks.learning.features` in place of Inception's:

.. math:: d = \| \mu_1 - \mu_2 \|^2
          + \operatorname{tr} \left( C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2} \right)

It is zero for infinitely many samples of the same law, and above for few: the floor, beside it, is the distance of as
many clean images from the others.

Sliced Wasserstein distance of patches (Karras et al. 2018, arXiv:1710.10196): patches of 7 x 7 pixels from each level
of a Laplacian pyramid, in units of the clean patches' standard deviation, projected on random directions; mean absolute
difference of their sorted projections.

Error of the spectrum: with :math:`P(k)` the mean over images and over a ring of frequencies of the squared modulus of
the Fourier transform, :math:`\sqrt{\langle (\log_{10} P_1(k) / P_2(k))^2 \rangle_k}` from the first frequency to the
Nyquist frequency. Each image's mean is taken off before, and no window is applied.

Images ``(n, height, width)``; of complex ones the magnitude is compared. Computed in double precision.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.seeding import rng_for
from benchmarks.learning.features import load_features

__all__ = ["frechet_distance", "sample_scores", "sliced_wasserstein", "spectrum", "spectrum_error"]

Images = NDArray[Any]
PATCH, PATCHES, PROJECTIONS = 7, 64, 256


def sample_scores(samples: Tensor | Images, clean: Tensor | Images, dataset: str) -> dict[str, float]:
    """All three distances of drawn images from clean ones.

    Parameters
    ----------
    samples, clean
        ``(n, height, width)`` or ``(n, 1, height, width)``, in the same units, of about unit range.
    dataset
        Whose features to take: ``"brain"``, ``"digits"`` or ``"galaxies"``.

    Returns
    -------
    dict
        ``frechet``, ``sliced_wasserstein`` and ``spectrum_error``, and what as many clean images have under the
        same names with ``_floor``.
    """
    drawn, known = _magnitudes(samples), _magnitudes(clean)
    order = rng_for(0).permutation(len(known))
    count = min(len(drawn), len(known) // 2)
    few, others = known[order[:count]], known[order[count:]]
    network = load_features(dataset)
    features = {name: network.of(x) for name, x in (("drawn", drawn), ("few", few), ("others", others))}
    every = np.concatenate([features["few"], features["others"]])
    return {
        "frechet": frechet_distance(features["drawn"], every),
        "frechet_floor": frechet_distance(features["few"], features["others"]),
        "sliced_wasserstein": sliced_wasserstein(drawn, known),
        "sliced_wasserstein_floor": sliced_wasserstein(few, others),
        "spectrum_error": spectrum_error(drawn, known),
        "spectrum_error_floor": spectrum_error(few, others),
    }


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Squared Fréchet distance of Gaussians with the moments of two sets of features, ``(n, features)`` each."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False).reshape(2 * x.shape[1:])) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # the spectrum of a symmetric product, which that of the plain product is only up to rounding
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap)


def sliced_wasserstein(a: Images, b: Images) -> float:
    """Distance of patches of two sets of images, averaged over the levels of a Laplacian pyramid."""
    count = min(len(a), len(b))
    rng = rng_for(1)
    a, b = (x if len(x) == count else x[rng.permutation(len(x))[:count]] for x in (a, b))
    total, levels = 0.0, list(zip(_pyramid(a), _pyramid(b), strict=True))
    for one, other in levels:
        # the same places in both sets, so that nothing but the images differs
        rows, columns = (rng.integers(0, size - PATCH + 1, (count, PATCHES)) for size in one.shape[1:])
        left, right = (_patches(x, rows, columns) for x in (one, other))
        left, right = ((x - right.mean()) / right.std() for x in (left, right))
        directions = rng.standard_normal((PATCH**2, PROJECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        total += float(np.abs(np.sort(left @ directions, 0) - np.sort(right @ directions, 0)).mean())
    return total / len(levels)


def spectrum(images: Images) -> NDArray[np.float64]:
    """Mean power at radial frequencies 1, 2, ... up to Nyquist's, in cycles per image, ``(side // 2,)``."""
    x = np.asarray(images, np.float64)
    power = (np.abs(np.fft.fft2(x - x.mean((1, 2), keepdims=True), norm="ortho")) ** 2).mean(0)
    side = min(x.shape[1:])
    row, column = (np.fft.fftfreq(size) * side for size in x.shape[1:])
    ring = np.rint(np.hypot(row[:, None], column)).astype(int).ravel()
    sums, counts = np.bincount(ring, power.ravel()), np.bincount(ring)
    return (sums / counts)[1 : side // 2 + 1]


def spectrum_error(a: Images, b: Images) -> float:
    """Root mean square over radial frequencies of the decimal logarithm of the ratio of powers."""
    tiny = np.finfo(np.float64).tiny
    ratio = np.log10(np.maximum(spectrum(a), tiny) / np.maximum(spectrum(b), tiny))
    return float(np.sqrt((ratio**2).mean()))


def _magnitudes(images: Tensor | Images) -> Images:
    x = images.numpy(force=True) if isinstance(images, Tensor) else np.asarray(images)
    x = x[:, 0] if x.ndim == 4 else x
    return (np.abs(x) if np.iscomplexobj(x) else x).astype(np.float32)


def _pyramid(images: Images) -> list[Images]:
    """Laplacian pyramid, down to a side of 14 or more; the last level is a low-pass one."""
    from scipy import ndimage

    kernel = np.array([1, 4, 6, 4, 1]) / 16

    def smooth(x: Images) -> Images:
        once = ndimage.correlate1d(x, kernel, axis=1, mode="mirror")
        result: Images = ndimage.correlate1d(once, kernel, axis=2, mode="mirror")
        return result

    levels, x = [], np.asarray(images, np.float64)
    while min(x.shape[1:]) >= 28:
        low = smooth(x)[:, ::2, ::2]
        up = np.zeros_like(x)
        up[:, ::2, ::2] = low
        levels.append(x - 4 * smooth(up))
        x = low
    return [*levels, x]


def _patches(images: Images, rows: Images, columns: Images) -> Images:
    """Patches whose corners are given, ``(n * patches, 49)``."""
    inside = np.arange(PATCH)
    scan = np.arange(len(images))[:, None, None, None]
    values: Images = images[scan, rows[..., None, None] + inside[:, None], columns[..., None, None] + inside]
    return values.reshape(-1, PATCH**2)
