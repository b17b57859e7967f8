r"""Blurred images.

.. math:: y = m \odot (k * x), \qquad (k * x)_i = \sum_j k_j \, x_{i + c - j}, \qquad c = \lfloor \text{size}/2 \rfloor

with a kernel :math:`k` for every scan and a mask :math:`m` of the pixels that were measured. At the border the image
goes on periodically (``"circular"``), or what would need pixels from outside is left away (``"valid"``: the measurement
is smaller than the image by the kernel's size less one). Both are products in Fourier space; the second is the first on
fewer pixels.

Images ``(batch, channel, *spatial)``, real or complex; kernels ``(batch, *size)``; mask ``(batch, 1, *pixels)`` and
measurement ``(batch, channel, *pixels)``.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_mask, as_shape, drop

__all__ = ["Blur", "gaussian_kernel", "motion_kernel"]

Boundary = Literal["circular", "valid"]


class Blur(LinearOperator):
    """Convolve images with a kernel of their own.

    Parameters
    ----------
    kernel
        Real or complex kernels, ``(batch, *size)``, none larger than the image.
    shape
        Spatial shape of the images.
    boundary
        ``"circular"`` or ``"valid"``.
    mask
        Ones where the blurred image was measured, ``(batch, 1, *pixels)``; everywhere by default.

    Raises
    ------
    DataError
        If kernels are no finite numbers, or if kernel, shape and mask do not go together.
    """

    kind = "blur"

    def __init__(
        self, kernel: Tensor, shape: Sequence[int], boundary: Boundary = "circular", mask: Tensor | None = None
    ) -> None:
        self.kernel = kernel
        self.shape = as_shape(shape)
        self.boundary: Boundary = boundary
        if boundary not in ("circular", "valid"):
            raise DataError(f"boundary must be 'circular' or 'valid', got {boundary!r}")
        if not isinstance(kernel, Tensor) or not (kernel.is_floating_point() or kernel.is_complex()):
            raise DataError(f"kernel must be a real or complex tensor, got {getattr(kernel, 'dtype', type(kernel))}")
        if not bool(torch.isfinite(kernel).all()):
            raise DataError("kernel must be finite, got NaN or infinite values")
        size = tuple(kernel.shape[1:])
        if 0 in size or len(size) != len(self.shape) or any(k > n for k, n in zip(size, self.shape, strict=True)):
            raise DataError(f"kernel must be (batch, *size) and no larger than the image {self.shape}, got {size}")
        less = [k - 1 if boundary == "valid" else 0 for k in size]
        self.pixels = tuple(n - k for n, k in zip(self.shape, less, strict=True))
        wanted = (len(kernel), 1, *self.pixels)
        mask = torch.ones(wanted, device=kernel.device) if mask is None else as_mask(mask)
        self.mask = mask.to(kernel.dtype.to_real())
        if tuple(self.mask.shape) != wanted:
            raise DataError(f"mask must be (batch, 1, *pixels) = {wanted}, got {tuple(self.mask.shape)}")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Kernels and masks."""
        return {"kernel": self.kernel, "mask": self.mask}

    @property
    def settings(self) -> dict[str, Any]:
        """Shape of the images, and what happens at their border."""
        return {"shape": list(self.shape), "boundary": self.boundary}

    @property
    def rows(self) -> Tensor:
        """The mask."""
        return self.mask

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of the blurred image."""
        return (channels, *self.pixels)

    @cached_property
    def transfer(self) -> Tensor:
        """Fourier transform of the kernels, ``(batch, 1, *shape)``."""
        size = self.kernel.shape[1:]
        padded = self.kernel.new_zeros(len(self.kernel), *self.shape)
        padded[(slice(None), *(slice(k) for k in size))] = self.kernel
        axes = tuple(range(1, padded.ndim))
        centred = torch.roll(padded, [-(k // 2) for k in size], axes)
        transfer: Tensor = torch.fft.fftn(centred, dim=axes)[:, None]
        return transfer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "transfer"}

    @property
    def _inside(self) -> tuple[Any, ...]:
        """Pixels of the periodic convolution that are measured at all."""
        size = self.kernel.shape[1:]
        first = [k - 1 - k // 2 if self.boundary == "valid" else 0 for k in size]
        return (..., *(slice(a, a + n) for a, n in zip(first, self.pixels, strict=True)))

    def _multiply(self, x: Tensor, transfer: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        blurred: Tensor = torch.fft.ifftn(torch.fft.fftn(x, dim=axes) * transfer, dim=axes)
        return blurred if x.is_complex() or self.kernel.is_complex() else blurred.real

    def _forward(self, x: Tensor) -> Tensor:
        blurred: Tensor = self._multiply(x, self.transfer)[self._inside]
        return blurred * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        y = y * self.mask
        if self.boundary == "valid":
            whole = y.new_zeros(*y.shape[:2], *self.shape)
            whole[self._inside] = y
            y = whole
        return self._multiply(y, self.transfer.conj())

    def _check_image(self, x: Tensor) -> None:
        self._check(x, self.shape, "images")

    def _check_measurement(self, y: Tensor) -> None:
        self._check(y, self.pixels, "measurements")

    def _check(self, x: Tensor, spatial: tuple[int, ...], what: str) -> None:
        if x.ndim != len(spatial) + 2 or tuple(x.shape[2:]) != spatial:
            want = f"(batch, channel, {', '.join(map(str, spatial))})"
            raise DataError(f"the {what} of this blur have the shape {want}, got {tuple(x.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> "Blur":
        """Lose each measured pixel with probability ``fraction``."""
        return Blur(self.kernel, self.shape, self.boundary, drop(self.mask, fraction, generator))


def gaussian_kernel(width: Tensor, size: Sequence[int]) -> Tensor:
    """Gaussian kernels that sum to one.

    Parameters
    ----------
    width
        Standard deviations in pixels, ``(batch,)`` for round kernels or ``(batch, axes)``.
    size
        Size of the kernels in pixels; six times the width loses some thousandths.

    Returns
    -------
    Tensor
        ``(batch, *size)``.
    """
    size = as_shape(size, "size")
    width = width[:, None].expand(-1, len(size)) if width.ndim == 1 else width
    fits = width.ndim == 2 and width.shape[1] == len(size) and width.is_floating_point()
    if not fits or not bool(((width > 0) & (width < math.inf)).all()):
        raise DataError(f"width must be positive and finite, (batch,) or (batch, {len(size)}), got {width.tolist()}")
    kernel = torch.ones(len(width), *size, dtype=width.dtype, device=width.device)
    for axis, length in enumerate(size):
        place = torch.arange(length, dtype=width.dtype, device=width.device) - length // 2
        profile = torch.exp(-0.5 * (place / width[:, axis, None]) ** 2)
        kernel = kernel * profile.reshape(-1, *(length if other == axis else 1 for other in range(len(size))))
    return kernel / kernel.flatten(1).sum(1).reshape(-1, *[1] * len(size))


def motion_kernel(length: Tensor, angle: Tensor, size: int) -> Tensor:
    """Kernels of a straight motion at constant speed, two-dimensional, that sum to one.

    Parameters
    ----------
    length
        Lengths of the way in pixels, ``(batch,)``; the way has to fit into the kernel.
    angle
        Directions in radians from the axis of columns towards that of rows, ``(batch,)``.
    size
        Side of the kernels in pixels.

    Returns
    -------
    Tensor
        ``(batch, size, size)``: the way in fine steps, each shared by the four pixels around it.
    """
    (size,) = as_shape([size], "size")
    if (
        length.ndim != 1
        or angle.shape != length.shape
        or not (length.is_floating_point() and angle.dtype == length.dtype)
    ):
        got = " and ".join(f"{t.dtype} of shape {tuple(t.shape)}" for t in (length, angle))
        raise DataError(f"length and angle must be real numbers of the same type, (batch,) each, got {got}")
    if not bool(torch.isfinite(angle).all()):
        raise DataError(f"angle must be finite, got {angle.tolist()}")
    longest = 2 * (size - 1 - size // 2)
    if not bool(((length >= 0) & (length <= longest)).all()):
        raise DataError(f"length must be between 0 and {longest} for kernels of {size} pixels, got {length.tolist()}")
    steps = torch.linspace(-0.5, 0.5, 8 * size + 1, dtype=length.dtype, device=length.device)
    way = length[:, None] * steps
    row, column = (way * direction[:, None] + size // 2 for direction in (angle.sin(), angle.cos()))
    kernel = length.new_zeros(len(length), size * size)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = row.floor() + down, column.floor() + right
        share = (1 - (row - y).abs()).clamp_min(0) * (1 - (column - x).abs()).clamp_min(0)
        inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
        place = (y * size + x).long().clamp(0, size * size - 1)
        kernel.scatter_add_(1, place, share * inside)
    return (kernel / kernel.sum(1, keepdim=True)).reshape(-1, size, size)
