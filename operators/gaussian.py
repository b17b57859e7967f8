r"""Random Gaussian compressed sensing.

.. math:: y = R \, G \, \mathrm{vec}(x), \qquad G_{ij} \sim \mathcal N(0, 1/m), \quad E[G^T G] = 1

with a matrix :math:`G` of ``m`` rows for every scan, made again from the scan's seed whenever it is needed, and a 0/1
diagonal :math:`R` of the rows that are kept (Bora et al. 2017, arXiv:1703.03208). Images ``(batch, channel,
*spatial)``, real or complex; measurements ``(batch, m)``.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_mask, drop

__all__ = ["Gaussian"]


class Gaussian(LinearOperator):
    """Dense Gaussian measurement matrices, one for every scan.

    Parameters
    ----------
    n_measurements
        Number of rows ``m``.
    shape
        Shape of one image, ``(channel, *spatial)``.
    seed
        One seed for every scan, ``(batch,)`` int64, or a single integer for a batch of one.
    rows
        Which rows are kept, ``(batch, m)``; all of them by default.
    """

    kind = "gaussian"

    def __init__(
        self, n_measurements: int, shape: Sequence[int], seed: Tensor | int, rows: Tensor | None = None
    ) -> None:
        self.n_measurements = int(n_measurements)
        self.shape = tuple(int(size) for size in shape)
        self.seed = torch.as_tensor(seed, dtype=torch.int64).reshape(-1)
        if self.n_measurements < 1:
            raise DataError(f"n_measurements must be at least 1, got {n_measurements}")
        self._rows = torch.ones(len(self.seed), self.n_measurements) if rows is None else as_mask(rows)
        if tuple(self._rows.shape) != (len(self.seed), self.n_measurements):
            want = (len(self.seed), self.n_measurements)
            raise DataError(f"rows must be (batch, n_measurements) = {want}, got {tuple(self._rows.shape)}")
        self._rows = self._rows.to(self.seed.device)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Seeds and kept rows."""
        return {"seed": self.seed, "rows": self._rows}

    @property
    def settings(self) -> dict[str, Any]:
        """Size of the matrix."""
        return {"n_measurements": self.n_measurements, "shape": list(self.shape)}

    @property
    def rows(self) -> Tensor:
        """Which rows are kept, ``(batch, m)``."""
        return self._rows

    @cached_property
    def matrix(self) -> Tensor:
        """The kept rows of the matrices, ``(batch, m, n)``; zeros where a row is lost."""
        matrices = []
        for seed in self.seed.tolist():
            # drawn in float64 on the CPU, so that a seed means the same matrix on every device and in every precision
            generator = torch.Generator().manual_seed(seed)
            matrices.append(
                torch.randn(self.n_measurements, math.prod(self.shape), generator=generator, dtype=torch.float64)
            )
        matrix = torch.stack(matrices) / math.sqrt(self.n_measurements)
        return matrix.to(self._rows) * self._rows[:, :, None]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "matrix"}

    def _forward(self, x: Tensor) -> Tensor:
        return _multiply(self.matrix, x.flatten(1))

    def _adjoint(self, y: Tensor) -> Tensor:
        return _multiply(self.matrix.mT, y).reshape(-1, *self.shape)

    def _check_image(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise DataError(
                f"the matrix measures images of shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )

    def _check_measurement(self, y: Tensor) -> None:
        if tuple(y.shape[1:]) != (self.n_measurements,):
            raise DataError(
                f"the matrix gives measurements of shape (batch, {self.n_measurements}), got {tuple(y.shape)}"
            )

    def thin(self, fraction: float, generator: torch.Generator) -> "Gaussian":
        """Lose each kept row with probability ``fraction``."""
        return Gaussian(self.n_measurements, self.shape, self.seed, drop(self._rows, fraction, generator))


def _multiply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Real ``(batch, m, n)`` times real or complex ``(batch, n)``; complex vectors as two real columns."""
    if not vector.is_complex():
        return (matrix.to(vector.dtype) @ vector[:, :, None])[:, :, 0]
    columns = torch.view_as_real(vector.resolve_conj())
    return torch.view_as_complex((matrix.to(columns.dtype) @ columns).contiguous())
