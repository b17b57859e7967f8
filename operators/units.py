r"""Units of spatial frequency: from those of scanners, files and arrays to radians per pixel.

Trajectories are held in radians per pixel, :math:`k` with the phase :math:`e^{-i k \cdot n}` of pixel :math:`n`, one
column for each spatial axis in the order of the image's axes, ``(..., ndim)``. They lie in :math:`[-\pi, \pi]`: pixels
carry no higher frequencies. In other units, with :math:`N` pixels of size :math:`\Delta` along an axis,

============================ ================================== ======================
unit                         radians per pixel                  function
============================ ================================== ======================
cycles per pixel             :math:`2 \pi f`                    `from_cycles`
cycles per metre             :math:`2 \pi f \Delta`             `from_wavenumber`
cycles per field of view     :math:`2 \pi f / N`                `from_inverse_fov`
BART's, cycles per FOV       the same, columns reversed         `from_bart`
an ISMRMRD file's            one of the above, columns reversed `from_ismrmrd`
baselines in wavelengths     :math:`2 \pi u \Delta`, reversed   `from_wavelengths`
============================ ================================== ======================

Values beyond :math:`\pi` are refused, since nearly always a unit is wrong; those that exceed it by rounding are set to
:math:`\pi`. All functions take arrays or tensors, compute in double precision, and return tensors of the precision that
came in.
"""

import math
from collections.abc import Callable, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = [
    "from_bart",
    "from_cycles",
    "from_inverse_fov",
    "from_ismrmrd",
    "from_wavelengths",
    "from_wavenumber",
]

_ROUNDING = 1e-5


def from_cycles(k: ArrayLike | Tensor) -> Tensor:
    """Cycles per pixel, in [-0.5, 0.5].

    Parameters
    ----------
    k
        Frequencies, ``(..., ndim)``, columns in the order of the image's axes.

    Returns
    -------
    Tensor
        The same in radians per pixel, ``(..., ndim)``.

    Raises
    ------
    DataError
        If values are not finite, or larger than half a cycle.
    """
    return _radians(k, 1.0, "are k in cycles per pixel, not per field of view?")


def from_wavenumber(k: ArrayLike | Tensor, pixel_size: float | Sequence[float]) -> Tensor:
    """Cycles per metre, with the size of a pixel in metres.

    Parameters
    ----------
    k
        Frequencies in 1/m, ``(..., ndim)``, columns in the order of the image's axes.
    pixel_size
        Size of a pixel in m, ``(ndim,)`` or one number for all axes: the field of view divided by the matrix.

    Returns
    -------
    Tensor
        The same in radians per pixel, ``(..., ndim)``.

    Raises
    ------
    DataError
        If values are not finite, or beyond what pixels of this size carry.
    """
    hint = f"are k in 1/m (not 1/mm or rad/m) and is pixel_size {pixel_size} in m?"
    return _radians(k, _sizes(pixel_size, "above 0", lambda size: size > 0), hint)


def from_inverse_fov(k: ArrayLike | Tensor, shape: Sequence[int]) -> Tensor:
    """Cycles per field of view, in [-N/2, N/2].

    Parameters
    ----------
    k
        Frequencies, ``(..., ndim)``, columns in the order of the image's axes.
    shape
        Pixels across the field of view, ``(ndim,)``.

    Returns
    -------
    Tensor
        The same in radians per pixel, ``(..., ndim)``.

    Raises
    ------
    DataError
        If values are not finite, or larger than half the number of pixels.
    """
    if any(size < 1 for size in shape):
        raise DataError(f"shape must be pixels along each axis, got {tuple(shape)}")
    return _radians(k, [1 / size for size in shape], f"does the field of view have only {tuple(shape)} pixels?")


def from_bart(k: ArrayLike | Tensor, shape: Sequence[int]) -> Tensor:
    """Trajectory of BART, in cycles per field of view.

    BART has the coordinates x, y, z first, z being zero for an image in the plane, and x is the last axis of the image.

    Parameters
    ----------
    k
        The array as BART's own reader gives it, ``(3, samples, readouts, ...)``.
    shape
        Spatial shape of the image, ``(height, width)`` or ``(depth, height, width)``: BART's dimensions reversed.

    Returns
    -------
    Tensor
        In radians per pixel, ``(1, readouts * samples, ndim)``, readout after readout; later dimensions vary more
        slowly still.

    Raises
    ------
    DataError
        If the array is not of this shape, if z is not zero for a 2-D image, or if values are beyond the pixels.
    """
    values = torch.as_tensor(k)
    ndim = len(shape)
    if ndim not in (2, 3) or values.ndim < 2 or values.shape[0] != 3:
        raise DataError(
            f"a BART trajectory is (3, samples, readouts, ...) for a 2-D or 3-D image, got {tuple(values.shape)} for "
            f"an image of shape {tuple(shape)}"
        )
    if values.is_complex():  # as all of BART's arrays are
        values = values.real
    if ndim == 2 and bool((values[2] != 0).any()):
        raise DataError(f"the trajectory has a third coordinate that is not zero, the image has shape {tuple(shape)}")
    columns = values[:ndim].flip(0).permute(*reversed(range(values.ndim))).reshape(1, -1, ndim)
    return from_inverse_fov(columns, shape)


def from_ismrmrd(k: ArrayLike | Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Trajectory of an ISMRMRD file, in cycles per field of view or per pixel.

    The format leaves the unit open. Where the largest value is 0.5 it is cycles per pixel; where it is half the matrix,
    cycles per field of view. Its columns are x, y, z, and x is the last axis of the image.

    Parameters
    ----------
    k
        The ``traj`` of acquisitions, ``(..., samples, ndim)``; drop any column that is no coordinate, as weights.
    shape
        Pixels across the field of view of the trajectory, ``(height, width)`` or ``(depth, height, width)``, if that
        is its unit; by default it is cycles per pixel.

    Returns
    -------
    Tensor
        In radians per pixel, ``(1, n, ndim)``, readout after readout.

    Raises
    ------
    DataError
        If values are not finite, or beyond the pixels.
    """
    values = torch.as_tensor(k)
    if values.ndim < 2:
        raise DataError(f"an ISMRMRD trajectory is (..., samples, ndim), got shape {tuple(values.shape)}")
    columns = values.flip(-1).reshape(1, -1, values.shape[-1])
    if shape is None:
        return _radians(columns, 1.0, "if k are cycles per field of view, give its shape in pixels")
    return from_inverse_fov(columns, shape)


def from_wavelengths(uv: ArrayLike | Tensor, pixel_size: float | Sequence[float]) -> Tensor:
    r"""Baselines in wavelengths, with the size of a pixel in radians.

    The baseline :math:`(u, v)` measures :math:`\int I(l, m) \, e^{-2 \pi i (u l + v m)} \, dl \, dm`; :math:`l` is the
    last axis of the image and :math:`m` the one before it.

    Parameters
    ----------
    uv
        Baselines, ``(..., 2)``, columns u and v.
    pixel_size
        Step of ``(m, l)`` from one pixel to the next in radians on the sky, or one number for both. It is negative
        where the coordinate falls as the index rises, as :math:`l` does where east is to the left.

    Returns
    -------
    Tensor
        In radians per pixel, ``(..., 2)``, columns in the order of the image's axes.

    Raises
    ------
    DataError
        If values are not finite, or beyond what pixels of this size carry.
    """
    values = torch.as_tensor(uv)
    if not values.ndim or values.shape[-1] != 2:
        raise DataError(f"uv must be (..., 2), got shape {tuple(values.shape)}")
    hint = f"are uv in wavelengths (not m or kilowavelengths) and is pixel_size {pixel_size} in radians?"
    return _radians(values.flip(-1), _sizes(pixel_size, "other than 0", lambda size: size != 0), hint)


def _radians(k: ArrayLike | Tensor, pixel: float | Sequence[float], hint: str) -> Tensor:
    """Multiply columns by 2 pi and the size of a pixel in the inverse of their unit."""
    values = torch.as_tensor(k)
    columns = "ndim" if isinstance(pixel, float) else str(len(pixel))
    if values.is_complex() or not values.ndim or columns not in ("ndim", str(values.shape[-1])):
        raise DataError(f"k must be real (..., {columns}), got {values.dtype} of shape {tuple(values.shape)}")
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    size = torch.as_tensor(pixel, dtype=torch.float64, device=values.device)
    result = values.to(torch.float64) * (2 * math.pi * size)
    if not bool(result.isfinite().all()):
        raise DataError("k must be finite, got NaN or infinite values")
    largest = float(result.abs().max()) if result.numel() else 0.0
    if largest > math.pi * (1 + _ROUNDING):
        raise DataError(f"k reaches {largest:.4g} radians per pixel, and pixels carry pi at most: {hint}")
    return result.clamp(-math.pi, math.pi).to(dtype)


def _sizes(value: float | Sequence[float], want: str, good: Callable[[float], bool]) -> float | list[float]:
    """Check the size of a pixel along each axis, or along all of them."""
    sizes = [float(value)] if isinstance(value, int | float) else [float(size) for size in value]
    if not all(math.isfinite(size) and good(size) for size in sizes):
        raise DataError(f"pixel_size must be finite and {want}, got {value}")
    return sizes[0] if isinstance(value, int | float) else sizes
