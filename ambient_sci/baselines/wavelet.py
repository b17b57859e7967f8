r"""Orthonormal wavelet transforms, batched.

A level of the periodic discrete wavelet transform of a signal of even length :math:`n` is an orthogonal matrix: its
upper half holds the low-pass filter shifted by two samples from row to row, its lower half the high-pass filter (Mallat
1989, IEEE Trans. PAMI 11:674; Daubechies 1988). It is applied along every spatial axis, then again to the low-pass
corner. At the sizes of images a small dense matrix on a large batch is the fastest way to do it.

Images ``(..., *spatial)``, real or complex; coefficients have the same shape, the coarse ones in the low corner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_sci.errors import ConfigError

__all__ = ["OrthonormalWavelet", "multiple"]


@dataclass(frozen=True)
class OrthonormalWavelet:
    """A periodic orthonormal wavelet transform.

    Parameters
    ----------
    shape
        Spatial shape; every size must be divisible by ``2**levels``.
    name
        An orthogonal wavelet by its PyWavelets name: ``db4``, ``sym8``, ``haar``.
    levels
        Number of levels.
    """

    shape: tuple[int, ...]
    name: str = "db4"
    levels: int = 3

    def __post_init__(self) -> None:
        if self.levels < 1 or any(size % 2**self.levels for size in self.shape):
            raise ConfigError(f"every size must be divisible by 2**levels = {2**self.levels}, got {self.shape}")

    def forward(self, x: Tensor) -> Tensor:
        """Coefficients of images; `inverse` is the inverse and the adjoint."""
        result = x.clone()
        for level in range(self.levels):
            corner = self._corner(level)
            result[corner] = self._along_axes(result[corner], level, inverse=False)
        return result

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Images from their coefficients."""
        result = coefficients.clone()
        for level in reversed(range(self.levels)):
            corner = self._corner(level)
            result[corner] = self._along_axes(result[corner], level, inverse=True)
        return result

    def _corner(self, level: int) -> tuple[Any, ...]:
        return (..., *(slice(size >> level) for size in self.shape))

    def _along_axes(self, x: Tensor, level: int, inverse: bool) -> Tensor:
        for axis in range(-len(self.shape), 0):
            matrix = _matrix(x.shape[axis], self.name, x.device, x.dtype)
            matrix = matrix.mT if inverse else matrix
            x = matrix @ x if axis == -2 else (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
        return x


def multiple(shape: Sequence[int], levels: int) -> tuple[int, ...]:
    """Return the next larger shape that so many levels can transform."""
    return tuple(-(-size // 2**levels) * 2**levels for size in shape)


@cache
def _matrix(size: int, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One level as an orthogonal matrix, ``(size, size)``."""
    low, high = _filters(name)
    matrix = np.zeros((size, size))
    for row in range(size // 2):
        for tap, (a, b) in enumerate(zip(low, high, strict=True)):
            column = (2 * row + tap - len(low) // 2 + 1) % size
            matrix[row, column] += a
            matrix[row + size // 2, column] += b
    return torch.from_numpy(matrix).to(device=device, dtype=dtype)


def _filters(name: str) -> tuple[Sequence[float], Sequence[float]]:
    import pywt  # type: ignore[import-untyped]

    try:
        wavelet = pywt.Wavelet(name)
    except ValueError as error:
        raise ConfigError(f"wavelet must be one that PyWavelets knows, such as 'db4', got {name!r}") from error
    if not wavelet.orthogonal:
        raise ConfigError(f"wavelet must be orthogonal, such as 'db4', got {name!r}")
    return wavelet.rec_lo, wavelet.rec_hi  # rows correlate with the signal
