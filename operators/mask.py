r"""Masked pixels.

.. math:: y = m \odot x, \qquad A^H = A = A^2

with a mask :math:`m` of ones and zeros for every scan: missing pixels, boxes, blocks. Images ``(batch, channel,
*spatial)``, real or complex; mask ``(batch, channel or 1, *spatial)``.
"""

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator

__all__ = ["Mask", "as_mask", "as_shape", "drop"]


class Mask(LinearOperator):
    """Keep some pixels of an image and lose the others.

    Parameters
    ----------
    mask
        Ones (measured) and zeros (lost), ``(batch, channel or 1, *spatial)``; bool or real.
    """

    kind = "mask"
    orthonormal = True

    def __init__(self, mask: Tensor) -> None:
        self.mask = as_mask(mask)
        if mask.ndim < 3:
            raise DataError(f"mask must be (batch, channel or 1, *spatial), got shape {tuple(mask.shape)}")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The mask."""
        return {"mask": self.mask}

    @property
    def rows(self) -> Tensor:
        """The mask itself."""
        return self.mask

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of the image."""
        own, *spatial = self.mask.shape[1:]
        return (channels if own == 1 else own, *spatial)

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    _adjoint = _forward
    _gram = _forward

    def _check_image(self, x: Tensor) -> None:
        _, channel, *spatial = self.mask.shape
        if x.ndim != self.mask.ndim or list(x.shape[2:]) != spatial or channel not in (1, x.shape[1]):
            want = f"(batch, {'channel' if channel == 1 else channel}, {', '.join(map(str, spatial))})"
            raise DataError(f"the mask measures images of shape {want}, got {tuple(x.shape)}")

    _check_measurement = _check_image

    def thin(self, fraction: float, generator: torch.Generator) -> "Mask":
        """Lose each measured pixel with probability ``fraction``."""
        return Mask(drop(self.mask, fraction, generator))

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """Masked white noise is white on the measured pixels."""
        return self(n)


def as_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """Check that a mask consists of zeros and ones, and return it as a real tensor."""
    if not isinstance(mask, Tensor):
        raise DataError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.is_complex():
        raise DataError(f"{name} must be bool or real, got complex values")
    if 0 in mask.shape[1:]:
        raise DataError(f"{name} must not be empty, got shape {tuple(mask.shape)}")
    mask = mask if mask.is_floating_point() else mask.to(torch.float32)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise DataError(f"{name} must consist of zeros and ones only (a weight belongs in noise_std)")
    return mask


def as_shape(shape: Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """Check that a shape consists of whole numbers of at least 1."""
    try:
        sizes = tuple(index(size) for size in shape)
    except TypeError as error:
        raise DataError(f"{name} must be whole numbers, one for each axis, got {shape!r}") from error
    if not sizes or min(sizes) < 1:
        raise DataError(f"{name} must be whole numbers of at least 1, got {sizes}")
    return sizes


def drop(mask: Tensor, fraction: float, generator: torch.Generator, keep: Any = 0.0) -> Tensor:
    """Zero each entry of a mask with probability ``fraction``, except where ``keep`` is one."""
    if not isinstance(generator, torch.Generator):
        raise DataError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if not 0 <= fraction <= 1:
        raise DataError(f"fraction must be between 0 and 1, got {fraction}")
    survives = torch.rand(mask.shape, generator=generator) >= fraction
    return mask * torch.maximum(survives.to(mask), torch.as_tensor(keep, dtype=mask.dtype, device=mask.device))
