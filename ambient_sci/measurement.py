r"""What was measured, how, and how noisily.

.. math:: y = A x_0 + \sigma_y e, \qquad e \sim \mathcal N(0, 1) \text{ on the measured rows}

``noise_std`` is the standard deviation of each real component after prewhitening: a complex sample has noise of
``noise_std`` in its real part and as much in its imaginary part. Rows that were not measured are zeros in ``y``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ambient_sci.cards import card
from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator, Scans, collate, scans_of

__all__ = ["Measurement", "collate_measurements", "randn_like"]


@dataclass(frozen=True)
class Measurement:
    """A batch of scans.

    Parameters
    ----------
    y
        Measured values, ``(batch, *measurement)``; zeros where nothing was measured.
    operator
        How each scan was measured; one operator batch of the same length.
    noise_std
        Standard deviation per real component: a number, one per scan ``(batch,)``, or one per sample, broadcastable to
        ``y`` with the batch axis first.
    index
        Number of each scan in its store, ``(batch,)``; counted from zero when not given.
    scale
        By what each scan was divided to bring images to about unit range, ``(batch,)``; results are multiplied by it.
    """

    y: Tensor
    operator: LinearOperator
    noise_std: Tensor
    index: Tensor
    scale: Tensor

    def __init__(
        self,
        y: Tensor,
        operator: LinearOperator,
        noise_std: Tensor | float,
        index: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        batch = y.shape[0]
        if len(operator) != batch:
            raise DataError(f"y holds {batch} scans, the operator {len(operator)}")
        operator._check_measurement(y)
        noise = torch.as_tensor(noise_std, dtype=y.real.dtype, device=y.device)
        noise = noise.expand(batch) if noise.ndim == 0 else noise
        if noise.shape[0] != batch or (noise.ndim > 1 and noise.ndim != y.ndim):
            raise DataError(
                f"noise_std must be one number, (batch,) or like y {tuple(y.shape)}, got {tuple(noise.shape)}"
            )
        if not bool(torch.isfinite(noise).all()) or bool((noise < 0).any()):
            raise DataError("noise_std must be finite and not negative")
        index = torch.arange(batch) if index is None else index
        if not bool(torch.isfinite(y.sum().abs())):  # one pass; which scan it was is looked up only when it matters
            finite = torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).flatten(1).all(1)
            bad = index[(~finite).to(index.device)].tolist()
            raise DataError(
                f"y has NaN or infinite values in scan {', '.join(map(str, bad[:5]))}; every value must be finite"
            )
        set_ = object.__setattr__
        set_(self, "y", y)
        set_(self, "operator", operator)
        set_(self, "noise_std", noise)
        set_(self, "index", index)
        set_(self, "scale", torch.ones(batch, device=y.device) if scale is None else scale)

    def __len__(self) -> int:
        return int(self.y.shape[0])

    def __getitem__(self, index: Scans) -> "Measurement":
        """Take scans of the batch, by number, slice, or an array of numbers or booleans; one keeps a batch of one."""
        some = scans_of(index, len(self))
        return Measurement(self.y[some], self.operator[some], self.noise_std[some], self.index[some], self.scale[some])

    @property
    def noise(self) -> Tensor:
        """``noise_std`` with as many axes as ``y``, to multiply with it."""
        if self.noise_std.ndim > 1:
            return self.noise_std
        return self.noise_std.reshape(-1, *[1] * (self.y.ndim - 1))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Measurement":
        """On another device, or in another precision (named by its real or its complex type)."""
        wanted = None if dtype is None else (dtype.to_complex() if self.y.is_complex() else dtype.to_real())
        real = None if dtype is None else dtype.to_real()
        return Measurement(
            self.y.to(device=device, dtype=wanted),
            self.operator.to(device, dtype),
            self.noise_std.to(device=device, dtype=real),
            self.index,
            self.scale.to(device=device, dtype=real),
        )

    def repeat(self, times: int) -> "Measurement":
        """Every scan ``times`` times in a row, for several samples of each."""
        fields = (self.noise_std, self.index, self.scale)
        noise, index, scale = (value.repeat_interleave(times, 0) for value in fields)
        return Measurement(self.y.repeat_interleave(times, 0), self.operator.repeat(times), noise, index, scale)

    def _repr_html_(self) -> str:
        """Show what was measured, and the adjoint of the first scan."""
        facts: dict[str, Any] = {
            "scans": len(self),
            "values": f"{list(self.y.shape)}, {self.y.dtype}",
            "noise": f"{float(self.noise_std.min()):.3g} to {float(self.noise_std.max()):.3g}",
            "operator": self.operator,
        }
        if len(self) == 0:
            return card("Measurement", facts)
        image = self.operator[0].adjoint(self.y[:1])[0, 0].abs()
        return card("Measurement", facts, image, "adjoint of the first scan")

    def thin(self, fraction: float, generator: torch.Generator) -> "Measurement":
        """Lose further rows, as `ambient_sci.operators.LinearOperator.thin` draws them."""
        operator = self.operator.thin(fraction, generator)
        return Measurement(self.y * operator.rows, operator, self.noise_std, self.index, self.scale)


def collate_measurements(measurements: Sequence[Measurement]) -> Measurement:
    """One batch of several, which must be of the same kind and size."""
    fields: dict[str, Any] = {
        name: torch.cat([getattr(m, name) for m in measurements]) for name in ("y", "noise_std", "index", "scale")
    }
    return Measurement(operator=collate([m.operator for m in measurements]), **fields)


def randn_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of unit variance per real component, drawn on the CPU so that devices agree."""
    real = torch.view_as_real(x) if x.is_complex() else x
    noise = torch.randn(real.shape, generator=generator, dtype=real.dtype).to(x.device)
    return torch.view_as_complex(noise) if x.is_complex() else noise
