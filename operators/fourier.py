r"""Cartesian k-space: the centred orthonormal discrete Fourier transform, subsampled.

.. math:: y = M F x, \qquad (F x)_k = N^{-1/2} \sum_n x_n e^{-2\pi i (k - c)(n - c) / N}, \quad c = \lfloor N/2 \rfloor

along each spatial axis, with a mask :math:`M` of ones and zeros. Images ``(batch, channel, *spatial)``, complex;
k-space of the same shape; masks ``(batch, 1, *spatial)`` whose axes may have size one where sampling does not depend
on them (phase-encoding columns: ``(batch, 1, 1, width)``).

The centring needs no copy: with :math:`p_n = e^{2\pi i c n / N}` it is
:math:`F = e^{-2\pi i c^2/N} \, \mathrm{diag}(p) \, \mathrm{FFT} \, \mathrm{diag}(p)`, for odd and even sizes alike, and
the factors fold into what is multiplied anyway.
"""

import math
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_mask, as_shape, drop

__all__ = ["Fourier", "calibration_region", "centred_fft", "centred_ifft", "centring", "filtered", "gram_filter"]


class Fourier(LinearOperator):
    """Subsampled centred Fourier transform (single-coil Cartesian MRI).

    Parameters
    ----------
    mask
        Ones (measured) and zeros, ``(batch, 1, *spatial)``; an axis of size one is sampled in full.
    shape
        Spatial shape of the image; needed when an axis of the mask has size one, otherwise the mask's.
    calibration
        Width of the centre block along every sampled axis that is always measured; `thin` leaves it alone.
    """

    kind = "fourier"
    orthonormal = True

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None, calibration: int = 0) -> None:
        self.mask = as_mask(mask)
        self.shape = as_shape(self.mask.shape[2:] or (1,) if shape is None else shape)
        self.calibration = _check_mask(self.mask, self.shape, 1, calibration)
        self._axes = tuple(range(-len(self.shape), 0))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The sampling mask."""
        return {"mask": self.mask}

    @property
    def settings(self) -> dict[str, Any]:
        """Image shape and calibration width."""
        return {"shape": list(self.shape), "calibration": self.calibration}

    @property
    def rows(self) -> Tensor:
        """The mask itself."""
        return self.mask

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of the image."""
        return (channels, *self.shape)

    # made when first needed: for a mask of columns they are as large as the measurements

    @cached_property
    def _pre(self) -> Tensor:
        return centring(self.shape, self.mask.device, self.mask.dtype)

    @cached_property
    def _post(self) -> Tensor:
        return self.mask * (self._pre * _constant(self.shape))

    @cached_property
    def _filter(self) -> Tensor:
        return gram_filter(self.mask)

    def __getstate__(self) -> dict[str, Any]:
        made = ("_pre", "_post", "_filter")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def _forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.fft.fftn(x * self._pre, dim=self._axes, norm="ortho").mul_(self._post)
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = torch.fft.ifftn(y * self._post.conj(), dim=self._axes, norm="ortho").mul_(self._pre.conj())
        return x

    def _gram(self, x: Tensor) -> Tensor:
        return filtered(x, self._filter).conj_physical_()

    def _check_image(self, x: Tensor) -> None:
        if x.ndim != 2 + len(self.shape) or tuple(x.shape[2:]) != self.shape or not x.is_complex():
            want = f"complex (batch, channel, {', '.join(map(str, self.shape))})"
            raise DataError(f"the Fourier transform expects {want}, got {x.dtype} of shape {tuple(x.shape)}")

    _check_measurement = _check_image

    def thin(self, fraction: float, generator: torch.Generator) -> "Fourier":
        """Lose each measured line or point outside the calibration region with probability ``fraction``."""
        keep = calibration_region(self.mask, self.shape, self.calibration)
        return Fourier(drop(self.mask, fraction, generator, keep), **self.settings)

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """Transform the noise: the transform is unitary, and white noise stays white on the measured samples."""
        return self(n)


def centring(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    r"""Phase factors :math:`p_n = e^{2\pi i c n / N}`, multiplied over the axes: ``shape``, complex.

    Real (a checkerboard of signs) when all sizes are even; kept complex all the same, so that one code serves both.
    """
    return _centring(tuple(shape)).to(device=device, dtype=dtype.to_complex())


@cache
def _centring(shape: tuple[int, ...]) -> Tensor:
    phase = torch.ones(shape, dtype=torch.complex128)
    for axis, size in enumerate(shape):
        # (c n mod N) / N keeps the angle small, so that a checkerboard comes out as exact signs
        angle = (torch.arange(size) * (size // 2) % size).to(torch.float64) / size
        ramp = torch.exp(2j * math.pi * angle)
        ramp = torch.where(angle == 0.5, -1.0, ramp)
        phase = phase * ramp.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return phase


def _constant(shape: Sequence[int]) -> complex:
    angle = sum(((size // 2) ** 2 % size) / size for size in shape)
    return complex(torch.exp(torch.tensor(-2j * math.pi * angle, dtype=torch.complex128)).item())


def centred_fft(x: Tensor, axes: int = 2) -> Tensor:
    """Centred orthonormal FFT over the last ``axes`` axes."""
    shape = x.shape[-axes:]
    phase = centring(shape, x.device, x.dtype)
    y: Tensor = torch.fft.fftn(x * phase, dim=tuple(range(-axes, 0)), norm="ortho") * (phase * _constant(shape))
    return y


def centred_ifft(y: Tensor, axes: int = 2) -> Tensor:
    """Inverse of `centred_fft`."""
    shape = y.shape[-axes:]
    phase = centring(shape, y.device, y.dtype).conj()
    kspace = y * (phase * _constant(shape).conjugate())
    x: Tensor = torch.fft.ifftn(kspace, dim=tuple(range(-axes, 0)), norm="ortho") * phase
    return x


def gram_filter(mask: Tensor) -> Tensor:
    r"""Turn a mask into what `filtered` multiplies real and imaginary parts with, :math:`(M, -M) / N`: ``(*mask, 2)``.

    In the order of a transform that is not centred; :math:`N` is the number of samples along the sampled axes.
    """
    sampled = math.prod(size for size in mask.shape[2:] if size > 1)
    scaled = torch.fft.ifftshift(mask / sampled, dim=tuple(range(2, mask.ndim)))
    return torch.stack([scaled, -scaled], -1)


def filtered(x: Tensor, filter: Tensor) -> Tensor:
    r"""Apply :math:`F^H M F` with the `gram_filter` of a mask, and give the complex conjugate.

    The phases of the centring cancel, and so does the whole transform along axes on which the mask does not depend.
    By :math:`\overline{F^H M k} = F M \bar k / N` a second forward transform does it, with the conjugation and the
    scale in the filter.
    """
    axes = tuple(axis for axis in range(3 - filter.ndim, 0) if filter.shape[axis - 1] > 1)
    # under the name of the image, which is then freed if it was the caller's last use of it
    x = torch.fft.fftn(x, dim=axes) if axes else x.clone(memory_format=torch.contiguous_format)
    torch.view_as_real(x).mul_(filter)
    return torch.fft.fftn(x, dim=axes) if axes else x


def calibration_region(mask: Tensor, shape: Sequence[int], width: int) -> Tensor:
    """Ones in the centre block of ``width`` samples along each sampled axis; shaped to broadcast with the mask."""
    region = torch.ones((), dtype=mask.dtype, device=mask.device)
    for axis, size in enumerate(shape):
        if mask.shape[2 + axis] == 1:
            continue
        line = torch.zeros(size, dtype=mask.dtype, device=mask.device)
        start = size // 2 - width // 2
        line[start : start + width] = 1
        region = region * line.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return region if region.ndim else region.expand(mask.shape)


def _check_mask(mask: Tensor, shape: Sequence[int], channels: int, calibration: int) -> int:
    """Check that a mask fits images, and return the calibration width, a whole number that fits the mask."""
    fits = mask.ndim == 2 + len(shape) and mask.shape[1] in (1, channels)
    if not fits or any(got not in (1, want) for got, want in zip(mask.shape[2:], shape, strict=True)):
        axes = ", ".join(f"{size} or 1" for size in shape) if mask.ndim > 2 else "*spatial"
        channel = "1" if channels == 1 else f"1 or {channels}"
        raise DataError(f"mask must be (batch, {channel}, {axes}), got {tuple(mask.shape)}")
    narrowest = min((size for size in mask.shape[2:] if size > 1), default=None)
    if calibration != int(calibration) or not 0 <= calibration <= (calibration if narrowest is None else narrowest):
        most = "" if narrowest is None else f" and the {narrowest} samples of the mask"
        raise DataError(f"calibration must be a whole number between 0{most}, got {calibration}")
    return int(calibration)
