r"""What has to be known of measured k-space before it can be used: mask, calibration block, coil maps, noise.

All of it is found in the samples themselves. Coil sensitivity maps by ESPIRiT (Uecker et al. 2014, Magn. Reson. Med.
71:990) from the fully sampled centre alone, as eigenvectors of eigenvalue one, normalised to

.. math:: \sum_c |S_c|^2 = 1 \text{ where there is an image, } 0 \text{ elsewhere.}

The noise level from the outermost samples, where an image has next to no energy left, by the median absolute deviation,

.. math:: \hat\sigma = \mathrm{median}\bigl(|\mathrm{Re}\, y|, |\mathrm{Im}\, y|\bigr) / 0.6745

which is unbiased for normal noise about zero and does not see a few large values. K-space is ``(coil, y, x)``, centred.
"""

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import DataError

__all__ = ["calibration_width", "estimate_maps", "estimate_noise", "sampled"]

_MAD = 0.6744897501960817  # median of |N(0, 1)|
_SMALLEST = 8  # calibration samples along each axis that ESPIRiT needs with its kernels of 6


def sampled(kspace: NDArray[np.complexfloating]) -> NDArray[np.bool_]:
    """Where any coil has a sample that is not exactly zero, ``(coil, *spatial) -> spatial``."""
    return np.asarray((kspace != 0).any(0))


def calibration_width(mask: NDArray[np.bool_]) -> int:
    """Width of the largest fully measured centred block, counted as an operator's ``calibration``.

    Axes along which sampling does not vary do not limit it, unless it varies along none.
    """
    varying = [axis for axis in range(mask.ndim) if (mask != mask.take([0], axis)).any()]
    most = min(mask.shape[axis] for axis in varying or range(mask.ndim))
    width = 0
    while width < most and mask[_centre(mask.shape, width + 1)].all():
        width += 1
    return width


def _centre(shape: tuple[int, ...], width: int) -> tuple[slice, ...]:
    """Block of ``width`` about the centre ``size // 2``, cut off at the edges."""
    starts = [size // 2 - width // 2 for size in shape]
    return tuple(slice(max(0, start), start + width) for start in starts)


def estimate_maps(kspace: NDArray[np.complexfloating], calibration: int, crop: float = 0.95) -> NDArray[np.complex64]:
    """Coil sensitivity maps by ESPIRiT.

    Parameters
    ----------
    kspace
        ``(coil, *spatial)``.
    calibration
        Width of the fully measured centre block.
    crop
        Pixels whose eigenvalue is below this are taken to be outside the image; their maps are zero.

    Returns
    -------
    ndarray
        ``(coil, *spatial)``, complex64, of unit root sum of squares or zero. Their phase is relative to the combination
        of coils that holds most of the calibration block's energy, which unlike a single coil has signal everywhere.

    Raises
    ------
    DataError
        If the block is too small, or no pixel has an eigenvalue above ``crop``.
    """
    from sigpy.mri.app import EspiritCalib

    width = min(calibration, *kspace.shape[1:])
    if width < _SMALLEST:
        raise DataError(
            f"coil maps need a fully measured centre of at least {_SMALLEST} samples along every axis, got {width}; "
            f"give maps, or the width of the calibration block if it is known to be larger"
        )
    if len(kspace) == 1:
        return np.ones(kspace.shape, np.complex64)
    peak = float(np.abs(kspace).max())
    with np.errstate(divide="ignore", invalid="ignore"):
        maps = EspiritCalib((kspace / peak).astype(np.complex64), calib_width=width, crop=crop, show_pbar=False).run()
    maps = np.nan_to_num(np.asarray(maps), nan=0.0)
    norm = np.sqrt((np.abs(maps) ** 2).sum(0, keepdims=True))
    if not norm.any():
        raise DataError(
            "ESPIRiT found no coil maps in the calibration block: its samples are inconsistent or all noise"
        )
    inside = norm > 0.5
    common = (_principal_coil(kspace, width).conj() @ maps.reshape(len(maps), -1)).reshape(maps.shape[1:])
    turned = maps * np.exp(-1j * np.angle(common))
    return np.asarray(np.where(inside, turned / np.where(inside, norm, 1), 0), dtype=np.complex64)


def _principal_coil(kspace: NDArray[np.complexfloating], width: int) -> NDArray[np.complexfloating]:
    block = _centre(kspace.shape[1:], width)
    samples = kspace[(slice(None), *block)].reshape(len(kspace), -1)
    return np.asarray(np.linalg.svd(samples, full_matrices=False)[0][:, 0])


def estimate_noise(kspace: NDArray[np.complexfloating], mask: NDArray[np.bool_], part: float = 0.1) -> float:
    r"""Noise level of k-space, per real component.

    Parameters
    ----------
    kspace
        ``(coil, *spatial)``.
    mask
        Where it was measured, ``spatial``.
    part
        Which part of the measured samples to use, the outermost, counted by their distance from the centre relative to
        the size of each axis.

    Returns
    -------
    float
        :math:`\hat\sigma`, over all coils. Exact zeros do not count: they were not measured. Signal that is left at
        the edge makes it too large rather than too small.

    Raises
    ------
    DataError
        If fewer than a hundred values are left to estimate from.
    """
    grid = np.meshgrid(*[(np.arange(size) - size // 2) / (size / 2) for size in mask.shape], indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in grid))
    outer = mask & (distance >= np.quantile(distance[mask], 1 - part))
    values = kspace[:, outer]
    values = values[values != 0]
    if values.size < 50:
        raise DataError(f"only {values.size} samples to estimate the noise from; give noise_std")
    return float(np.median(np.abs(np.concatenate([values.real, values.imag]))) / _MAD)
