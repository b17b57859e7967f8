r"""Everything is measured: :math:`y = x`, for denoising.

Images ``(batch, channel, *spatial)``, real or complex.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import Mask, as_shape, drop

__all__ = ["Identity"]


class Identity(LinearOperator):
    """Measure every pixel.

    Parameters
    ----------
    shape
        Shape of one image, ``(channel, *spatial)``.
    scans
        Placeholder for the batch axis, ``(batch, 1)``; made when ``batch`` is given.
    batch
        Number of scans.

    Raises
    ------
    DataError
        If shape or batch are no whole numbers of at least 1, or the placeholder is none.
    """

    kind = "identity"
    orthonormal = True

    def __init__(self, shape: Sequence[int], scans: Tensor | None = None, batch: int = 1) -> None:
        self.shape = as_shape(shape)
        self.scans = torch.ones(*as_shape([batch], "batch"), 1) if scans is None else scans
        if self.scans.shape[1:] != (1,) or not self.scans.is_floating_point():
            got = f"{self.scans.dtype} of shape {tuple(self.scans.shape)}"
            raise DataError(f"scans must be real numbers (batch, 1), got {got}")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Nothing but the number of scans."""
        return {"scans": self.scans}

    @property
    def settings(self) -> dict[str, Any]:
        """The shape of an image."""
        return {"shape": list(self.shape)}

    @property
    def rows(self) -> Tensor:
        """Ones."""
        return torch.ones(self.batch, *self.shape, device=self.device, dtype=self.scans.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return x.clone()

    _adjoint = _forward
    _gram = _forward

    def _check_image(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise DataError(
                f"the identity expects images of shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )

    _check_measurement = _check_image

    def thin(self, fraction: float, generator: torch.Generator) -> Mask:
        """Lose each pixel with probability ``fraction``: what is left is a mask."""
        return Mask(drop(self.rows, fraction, generator))

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """Image noise is measurement noise."""
        return self(n)
