r"""Block averages: images as a coarser instrument sees them.

.. math:: y_i = m_i \, \frac{1}{b} \sum_{j \in B_i} x_j, \qquad A A^H = \frac{1}{b} \, \mathrm{diag}(m)

over blocks :math:`B_i` of :math:`b` pixels that tile the image, with a mask :math:`m` of the blocks that were measured.
Images ``(batch, channel, *spatial)``, real or complex; mask and measurement ``(batch, channel or 1, *blocks)``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_mask, as_shape, drop

__all__ = ["Average"]


class Average(LinearOperator):
    """Average an image over blocks of pixels.

    Parameters
    ----------
    mask
        Ones where a block was measured, ``(batch, channel or 1, *blocks)``.
    block
        Pixels of a block along each axis; images are that many times larger than the mask.

    Raises
    ------
    DataError
        If the mask is no mask, or if blocks have another number of axes.
    """

    kind = "average"

    def __init__(self, mask: Tensor, block: Sequence[int]) -> None:
        self.mask = as_mask(mask)
        if mask.ndim < 3:
            raise DataError(f"mask must be (batch, channel or 1, *blocks), got shape {tuple(mask.shape)}")
        self.block = as_shape(block, "block")
        if len(self.block) != mask.ndim - 2:
            raise DataError(f"block must be {mask.ndim - 2} positive numbers, one for each axis, got {self.block}")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The mask."""
        return {"mask": self.mask}

    @property
    def settings(self) -> dict[str, Any]:
        """Size of the blocks."""
        return {"block": list(self.block)}

    @property
    def rows(self) -> Tensor:
        """The mask."""
        return self.mask

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of the averages."""
        own, *blocks = self.mask.shape[1:]
        return (channels if own == 1 else own, *blocks)

    def _forward(self, x: Tensor) -> Tensor:
        split = [size for pair in zip(self.mask.shape[2:], self.block, strict=True) for size in pair]
        within = tuple(range(3, 3 + 2 * len(self.block), 2))
        return x.reshape(*x.shape[:2], *split).mean(within) * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        spread = y * self.mask / math.prod(self.block)
        for axis, side in enumerate(self.block, 2):
            spread = spread.repeat_interleave(side, axis)
        return spread

    def _check_image(self, x: Tensor) -> None:
        size = [n * side for n, side in zip(self.mask.shape[2:], self.block, strict=True)]
        self._check(x, size, "images")

    def _check_measurement(self, y: Tensor) -> None:
        self._check(y, list(self.mask.shape[2:]), "measurements")

    def _check(self, t: Tensor, spatial: list[int], what: str) -> None:
        channel = self.mask.shape[1]
        if t.ndim != self.mask.ndim or list(t.shape[2:]) != spatial or channel not in (1, t.shape[1]):
            want = f"(batch, {'channel' if channel == 1 else channel}, {', '.join(map(str, spatial))})"
            raise DataError(f"the {what} of these averages have the shape {want}, got {tuple(t.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> "Average":
        """Lose each measured block with probability ``fraction``."""
        return Average(drop(self.mask, fraction, generator), self.block)

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """Averages of the noise, and white noise that makes up for what averaging took from them."""
        averages = self(n)
        parts = (*averages.shape, 2) if n.is_complex() else averages.shape
        z = torch.randn(parts, generator=generator, dtype=n.real.dtype).to(n.device)
        fresh = torch.view_as_complex(z) if n.is_complex() else z
        return averages + math.sqrt(1 - 1 / math.prod(self.block)) * fresh * self.mask
