r"""Errors of reconstructions and coverage of their intervals, inside a mask :math:`M`.

.. math:: \mathrm{NRMSE} = \frac{\| \hat x - x \|_M}{\| x \|_M}, \qquad
          \mathrm{PSNR} = 20 \log_{10} \frac{\max_M |x|}{\mathrm{RMS}_M(|\hat x| - |x|)}

and SSIM (Wang et al. 2004, IEEE Trans. Image Process. 13:600; Gaussian window of 1.5 pixels, dynamic range
:math:`\max_M |x|`) of the magnitudes, computed on whole images and averaged over the mask. **NRMSE compares complex
values**, so that a wrong phase is an error; PSNR and SSIM compare magnitudes, which is what a reader of the images
sees. Real images are compared as they are. None of them fits a scale or a phase to the reference first.

Images are tensors or arrays, ``(n, height, width)`` or ``(n, channel, height, width)``; every metric is one number per
scan, ``(n,)``.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = ["coverage", "coverage_interval", "coverage_normal", "head_mask", "nrmse", "psnr", "score", "ssim", "table"]

Images: TypeAlias = Tensor | NDArray[Any]
Scores: TypeAlias = NDArray[np.float64]

LEVELS = (0.5, 0.9, 0.95)
METRICS = {"nrmse": ("NRMSE", "{:.4f}"), "psnr": ("PSNR / dB", "{:.2f}"), "ssim": ("SSIM", "{:.4f}")}


def nrmse(images: Images, reference: Images, mask: Images | None = None) -> Scores:
    """Root of the summed squared error over that of the reference; complex values, every pixel without a mask."""
    x, ref, inside = _prepare(images, reference, mask)
    error = np.array([np.linalg.norm((a - b)[m]) for a, b, m in zip(x, ref, inside, strict=True)])
    size = np.array([np.linalg.norm(b[m]) for b, m in zip(ref, inside, strict=True)])
    ratio: Scores = error / size
    return ratio


def psnr(images: Images, reference: Images, mask: Images | None = None) -> Scores:
    """Peak signal-to-noise ratio of magnitudes in decibels; the peak is the reference's largest value in the mask."""
    x, ref, inside = _prepare(images, reference, mask)
    values = []
    for a, b, m in zip(_visible(x), _visible(ref), inside, strict=True):
        rms = np.sqrt(np.mean((a - b)[m] ** 2))
        values.append(np.inf if rms == 0 else 20 * np.log10(b[m].max() / rms))
    return np.array(values)


def ssim(images: Images, reference: Images, mask: Images | None = None) -> Scores:
    """Structural similarity of magnitudes, averaged over the mask."""
    from skimage.metrics import structural_similarity

    x, ref, inside = _prepare(images, reference, mask)
    values = []
    for a, b, m in zip(_visible(x), _visible(ref), inside, strict=True):
        size = b.shape[-2:]
        maps = [
            structural_similarity(  # type: ignore[no-untyped-call]
                one, other, data_range=b[m].max(), gaussian_weights=True, use_sample_covariance=False, full=True
            )[1]
            for one, other in zip(a.reshape(-1, *size), b.reshape(-1, *size), strict=True)
        ]
        values.append(np.stack(maps).reshape(b.shape)[m].mean())
    return np.array(values)


def score(images: Images, reference: Images, mask: Images | None = None) -> dict[str, Scores]:
    """All three metrics by name, inside `head_mask` of the reference when no mask is given."""
    mask = head_mask(reference) if mask is None else mask
    metrics = {"nrmse": nrmse, "psnr": psnr, "ssim": ssim}
    return {name: metric(images, reference, mask) for name, metric in metrics.items()}


def head_mask(reference: Images, threshold: float = 0.1) -> NDArray[np.bool_]:
    """Where the head is, for scoring: a reference's bright pixels, gaps closed and holes filled.

    Parameters
    ----------
    reference
        Known images.
    threshold
        Part of a scan's 99th percentile of magnitude above which a pixel is bright.

    Returns
    -------
    ndarray
        Boolean, shaped like ``reference``; the largest connected region of each scan.
    """
    from scipy import ndimage

    ref = _array(reference)
    magnitude = np.abs(ref).reshape(len(ref), -1, *ref.shape[-2:]).max(1)
    disc = np.hypot(*np.ogrid[-2:3, -2:3]) <= 2
    masks = np.zeros(magnitude.shape, bool)
    for scan, image in enumerate(magnitude):
        bright = np.pad(image > threshold * np.percentile(image, 99), 4)  # closing must not see the border
        closed = ndimage.binary_fill_holes(ndimage.binary_closing(bright, disc))
        labels, regions = ndimage.label(closed)
        if regions:
            sizes = np.bincount(labels.ravel())
            closed = labels == 1 + sizes[1:].argmax()
        masks[scan] = closed[4:-4, 4:-4]
    return np.broadcast_to(masks if ref.ndim == 3 else masks[:, None], ref.shape)


def coverage(
    samples: Images, reference: Images, levels: Sequence[float] = LEVELS, mask: Images | None = None
) -> dict[float, float]:
    """How often the central interval of posterior samples holds the known value, pixel by pixel.

    The ends of an interval are order statistics, interpolated where they fall between two: among ``S`` samples the
    ``k``-th leaves an honest value below it with probability ``k / (S + 1)``. So ``S`` samples can state levels up to
    ``(S - 1) / (S + 1)``, and a warning names those beyond.

    Parameters
    ----------
    samples
        ``(n, samples, *image)``; of complex ones the real and imaginary parts count as two pixels. Take magnitudes
        first (of the reference too) to judge intervals of the magnitude.
    reference
        Known images, ``(n, *image)``.
    levels
        Probabilities that the intervals claim.
    mask
        Pixels that count, ``(n, *image)``; all by default.

    Returns
    -------
    dict
        Level to the fraction of pixels inside; the same number when the intervals are honest.
    """
    draws, ref = _array(samples), _array(reference)
    if draws.ndim != ref.ndim + 1 or draws.shape[0] != ref.shape[0] or draws.shape[2:] != ref.shape[1:]:
        raise DataError(f"samples must be (n, samples, *{ref.shape[1:]}) of {len(ref)} scans, got {draws.shape}")
    number = draws.shape[1]
    beyond = [level for level in levels if level > (number - 1) / (number + 1)]
    if beyond:
        warnings.warn(f"{number} samples cannot state intervals of level {beyond}; see coverage_normal", stacklevel=2)
    inside = np.ones(ref.shape, bool) if mask is None else _prepare(ref, ref, mask)[2]
    if np.iscomplexobj(draws) != np.iscomplexobj(ref):
        raise DataError(f"samples ({draws.dtype}) and reference ({ref.dtype}) must both be real or both complex")
    draws, ref, inside = _parts(draws), _parts(ref), _parts(inside, like=ref)
    result = {}
    for level in levels:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=1, method="weibull")
        result[float(level)] = float(((low <= ref) & (ref <= high))[inside].mean())
    return result


def coverage_normal(
    mean: Images,
    std: Images,
    reference: Images,
    levels: Sequence[float] = LEVELS,
    mask: Images | None = None,
    samples: int | None = None,
) -> dict[float, float]:
    """Coverage of ``mean ± z std``, for few samples or stored results.

    Parameters
    ----------
    mean, std, reference
        ``(n, *image)``. Of complex images the real and imaginary parts count as two pixels, and ``std`` is that of
        one part (or complex: that of either part); divide one of both parts together by the square root of two.
    levels, mask
        As in `coverage`.
    samples
        Number of samples from which mean and std were estimated; the interval is then Student's, for a value drawn
        like the samples. Taken as infinite when not given.

    Returns
    -------
    dict
        Level to the fraction of pixels inside.
    """
    from scipy import stats

    centre, ref, inside = _prepare(mean, reference, mask)
    spread = _array(std)
    if spread.shape != ref.shape:
        raise DataError(f"std must be {ref.shape} like the reference, got {spread.shape}")
    if np.iscomplexobj(ref) and not np.iscomplexobj(spread):
        spread = spread + 1j * spread
    error, spread, inside = np.abs(_parts(centre - ref)), _parts(spread), _parts(inside, like=ref)
    if samples is not None:
        spread = spread * np.sqrt(1 + 1 / samples)
    result = {}
    for level in levels:
        tail = (1 + level) / 2
        z = stats.norm.ppf(tail) if samples is None else stats.t.ppf(tail, samples - 1)
        result[float(level)] = float((error <= z * spread)[inside].mean())
    return result


def coverage_interval(lower: Images, upper: Images, reference: Images, mask: Images | None = None) -> float:
    """Fraction of pixels whose known value lies in stored intervals; the magnitude of a complex reference."""
    low, ref, inside = _prepare(lower, _visible(_array(reference)), mask)
    high = _prepare(upper, ref, None)[0]
    return float(((low <= ref) & (ref <= high))[inside].mean())


def table(methods: Mapping[str, Mapping[str, Scores]]) -> tuple[str, dict[str, Any]]:
    """Mean metrics of several methods.

    Parameters
    ----------
    methods
        Name of each method to its scores, as `score` gives them.

    Returns
    -------
    text
        A table to print: mean ± standard deviation over scans.
    metrics
        ``{"methods": {name: {"nrmse": mean, "psnr": mean, "ssim": mean}}, "scans": n}``, plain numbers.
    """
    width = max(map(len, methods), default=0)
    lines = [" " * width + "".join(f"{title:>20}" for title, _ in METRICS.values())]
    means: dict[str, dict[str, float]] = {}
    for name, scores in methods.items():
        cells = []
        for metric, (_, form) in METRICS.items():
            values = np.asarray(scores[metric], float)
            means.setdefault(name, {})[metric] = float(values.mean())
            spread = values.std() if np.isfinite(values).all() else np.nan
            cells.append(f"{form.format(values.mean())} ± {form.format(spread)}")
        lines.append(name.ljust(width) + "".join(f"{cell:>20}" for cell in cells))
    scans = {len(np.atleast_1d(scores["nrmse"])) for scores in methods.values()}
    if len(scans) > 1:
        raise DataError(f"every method must be scored on the same scans, got numbers of scans {sorted(scans)}")
    return "\n".join(lines), {"methods": means, "scans": scans.pop() if scans else 0}


def _array(images: Images) -> NDArray[Any]:
    return images.numpy(force=True) if isinstance(images, Tensor) else np.asarray(images)


def _prepare(images: Images, reference: Images, mask: Images | None) -> tuple[NDArray[Any], ...]:
    x, ref = _array(images), _array(reference)
    if x.shape != ref.shape or ref.ndim not in (3, 4):
        raise DataError(
            f"images {x.shape} and reference {ref.shape} must both be (n, height, width) or (n, channel, height, width)"
        )
    precise = np.complex128 if np.iscomplexobj(x) or np.iscomplexobj(ref) else np.float64
    inside = np.ones(ref.shape, bool) if mask is None else _array(mask).astype(bool)
    if inside.shape != ref.shape:
        raise DataError(f"mask must be {ref.shape} like the reference, got {inside.shape}")
    empty = ~inside.reshape(len(ref), -1).any(1)
    if empty.any():
        raise DataError(f"the mask of scan {int(empty.argmax())} is empty: there is nothing to score")
    return x.astype(precise), ref.astype(precise), inside


def _visible(images: NDArray[Any]) -> NDArray[Any]:
    return np.abs(images) if np.iscomplexobj(images) else images


def _parts(values: NDArray[Any], like: NDArray[Any] | None = None) -> NDArray[Any]:
    """Real and imaginary parts on a last axis; a mask repeated for as many."""
    if like is not None:
        number = 2 if np.iscomplexobj(like) else 1
        return np.repeat(values[..., None], number, -1)
    return np.stack([values.real, values.imag], -1) if np.iscomplexobj(values) else values[..., None]
