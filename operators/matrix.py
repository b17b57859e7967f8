r"""Measurement matrices.

.. math:: y = R \, M \, \mathrm{vec}(x)

with a matrix :math:`M` of ``m`` rows for every scan and a 0/1 diagonal :math:`R` of the rows that are kept. Images
``(batch, channel, *spatial)``, real or complex, are vectors of ``n`` values; measurements are ``(batch, m)``.

`Matrix` is told its matrices, `ambient_sci.operators.Gaussian` draws them from seeds. What they share is
`MatrixOperator`: the rows, two ways to lose some, and the pseudo-inverse of what is kept, :math:`A = R M`,

.. math:: A^+ = A^H (A A^H)^{-1}, \qquad \text{or} \qquad A^+ = (A^H A)^{-1} A^H

where more rows are kept than there are pixels, by Cholesky factors. A row that is lost is one of the identity in
:math:`A A^H`, so that the factors of a batch have one shape. Squaring the matrix squares its condition number: the
relative error is about the precision times :math:`\mathrm{cond}(A)^2`.
"""

import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_mask, drop

__all__ = ["Dense", "Map", "Matrix", "MatrixOperator"]


class Map(Protocol):
    """Matrices ``(scans, m, n)`` as their products with vectors ``(scans * times, values)``.

    Each matrix serves ``times`` vectors in a row, however many there are.
    """

    @property
    def matrix(self) -> Tensor:
        """The matrices themselves, ``(scans, m, n)``."""

    def forward(self, x: Tensor, /) -> Tensor:
        """Multiply by the matrices, ``(scans * times, n) -> (scans * times, m)``."""

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Multiply by the conjugate transposes, ``(scans * times, m) -> (scans * times, n)``."""

    def inverse(self, rows: Tensor, /) -> Callable[[Tensor], Tensor]:
        """Make the pseudo-inverse of rows ``(scans * times, m)``; it takes vectors that are zero elsewhere."""


class MatrixOperator(LinearOperator):
    """Measure images by the rows of matrices, one for every scan.

    A kind adds its own parameters to those here, and makes its matrices in `_make`.

    Parameters
    ----------
    batch
        Number of scans.
    n_measurements
        Number of rows ``m``.
    shape
        Shape of one image, ``(channel, *spatial)``.
    rows
        Which rows are kept, ``(batch, m)``; all of them by default.
    """

    def __init__(self, batch: int, n_measurements: int, shape: Sequence[int], rows: Tensor | None) -> None:
        self.n_measurements = _whole("n_measurements", n_measurements)
        self.shape = tuple(_whole("every size in shape", size) for size in shape)
        if len(self.shape) < 2:
            raise DataError(f"shape must be (channel, *spatial), got {self.shape}")
        self._rows = torch.ones(batch, self.n_measurements) if rows is None else as_mask(rows)
        if tuple(self._rows.shape) != (batch, self.n_measurements):
            want = (batch, self.n_measurements)
            raise DataError(f"rows must be (batch, n_measurements) = {want}, got {tuple(self._rows.shape)}")

    @abstractmethod
    def _make(self) -> Map:
        """Make the matrices, with all of their rows."""

    @cached_property
    def _map(self) -> Map:
        with torch.inference_mode(False):  # made once, and perhaps needed again where gradients are
            return self._make()

    @cached_property
    def _inverse(self) -> Callable[[Tensor], Tensor]:
        with torch.inference_mode(False):
            return self._map.inverse(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_map", "_inverse")}

    @property
    def rows(self) -> Tensor:
        """Which rows are kept, ``(batch, m)``."""
        return self._rows

    @property
    def matrix(self) -> Tensor:
        """The matrices, ``(batch, m, n)``, with all rows, kept or not."""
        matrix = self._map.matrix
        return matrix if len(matrix) == self.batch else matrix.repeat_interleave(self.batch // len(matrix), 0)

    def _keep(self, y: Tensor) -> Tensor:
        return y * self._rows.to(y.real.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return self._keep(self._map.forward(x.flatten(1)))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._map.adjoint(self._keep(y)).reshape(-1, *self.shape)

    def pinv(self, y: Tensor) -> Tensor:
        r"""Apply the pseudo-inverse :math:`A^+` of the kept rows.

        Of all images with the least :math:`\| A x - y \|`, the smallest; among complex images where the matrix is
        complex. The factors are made at the first call and kept.

        Parameters
        ----------
        y
            Measurements, ``(batch, m)``; values on rows that are lost don't count.

        Returns
        -------
        Tensor
            Images, ``(batch, channel, *spatial)``.

        Raises
        ------
        DataError
            If the kept rows of a scan are linearly dependent to the matrix' precision, or its columns where more rows
            are kept than there are pixels.
        """
        self._check_measurement(y)
        self._check_batch(y)
        return self._inverse(self._keep(y)).reshape(-1, *self.shape)

    def _check_image(self, x: Tensor) -> None:
        self._check(x, self.shape, "measures images")

    def _check_measurement(self, y: Tensor) -> None:
        self._check(y, (self.n_measurements,), "gives measurements")

    def _check(self, t: Tensor, shape: tuple[int, ...], what: str) -> None:
        if tuple(t.shape[1:]) != shape or not (t.is_floating_point() or t.is_complex()):
            want = f"real or complex numbers (batch, {', '.join(map(str, shape))})"
            raise DataError(f"the matrix {what} of {want}, got {t.dtype} of shape {tuple(t.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> Self:
        """Lose each kept row with probability ``fraction``."""
        return self._with_rows(drop(self._rows, fraction, generator))

    def drop_last(self, count: int = 1) -> Self:
        r"""Further corruption without chance: lose the last rows that are kept.

        The rows of a random matrix are all alike, so that the last one is as good as any; this is how Ambient Diffusion
        corrupts random projections (Daras et al. 2023, arXiv:2305.19256).

        Parameters
        ----------
        count
            How many rows every scan loses; a scan that keeps no more than that loses all.

        Returns
        -------
        Self
            The operator :math:`\tilde A = B A`, as from `thin`.
        """
        count = _whole("count", count, least=0)
        kept_from_here = self._rows.flip(1).cumsum(1).flip(1)
        return self._with_rows(self._rows * (kept_from_here > count))

    def _with_rows(self, rows: Tensor) -> Self:
        """Keep other rows of the same matrices, which are not made again."""
        other = object.__new__(type(self))
        other.__dict__ = {**self.__dict__, "_map": self._map, "_rows": rows}
        other.__dict__.pop("_inverse", None)
        return other


class Matrix(MatrixOperator):
    """Matrices that are known, such as the codes of a compressed-sensing instrument.

    Parameters
    ----------
    matrix
        One for every scan, ``(batch, m, n)``, real or complex; columns in the order of the flattened image.
    shape
        Shape of one image, ``(channel, *spatial)``, of ``n`` values.
    rows
        Which rows are kept, ``(batch, m)``; all of them by default.

    Raises
    ------
    DataError
        If matrix, shape and rows do not go together, or if the matrix has NaN or infinite values.
    """

    kind = "matrix"

    def __init__(self, matrix: Tensor, shape: Sequence[int], rows: Tensor | None = None) -> None:
        if matrix.ndim != 3:
            raise DataError(f"matrix must be (batch, n_measurements, pixels), got shape {tuple(matrix.shape)}")
        super().__init__(len(matrix), matrix.shape[1], shape, rows)
        pixels = math.prod(self.shape)
        if matrix.shape[2] != pixels:
            raise DataError(
                f"matrix must have {pixels} columns, one for each value of shape {self.shape}, got {matrix.shape[2]}"
            )
        self._matrix = matrix if matrix.is_floating_point() or matrix.is_complex() else matrix.to(torch.float32)
        # one pass without a copy; a sum that overflows says nothing yet
        if not bool(self._matrix.sum().isfinite()) and not bool(self._matrix.isfinite().all()):
            raise DataError("matrix must be finite, got NaN or infinite values")
        self._rows = self._rows.to(device=matrix.device, dtype=self._matrix.real.dtype)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Matrices and kept rows."""
        return {"matrix": self._matrix, "rows": self._rows}

    @property
    def settings(self) -> dict[str, Any]:
        """Shape of an image."""
        return {"shape": list(self.shape)}

    def _make(self) -> Map:
        return Dense(self._matrix)


@dataclass(frozen=True)
class Dense:
    """Matrices that are held in memory; see `Map`."""

    matrix: Tensor

    # Vectors stand to the left of the matrix: torch then multiplies in the order of memory, at its full speed.

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the matrices."""
        return _multiply(x, self.matrix.mT)

    def adjoint(self, y: Tensor) -> Tensor:
        """Multiply by the conjugate transposes."""
        return _multiply(y.conj(), self.matrix).conj().resolve_conj()  # rather than a conjugate copy of the matrix

    def inverse(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Factorise, one way or the other for each scan."""
        tall = rows.sum(1) > self.matrix.shape[2]
        scans = torch.arange(len(rows), device=rows.device)
        if bool((tall == tall[0]).all()):
            return self._factorise(rows, bool(tall[0]), scans)
        matrix = self.matrix.repeat_interleave(len(rows) // len(self.matrix), 0)
        sorts = [scans[tall], scans[~tall]]
        inverses = [
            Dense(matrix[sort])._factorise(rows[sort], which, sort)
            for sort, which in zip(sorts, (True, False), strict=True)
        ]
        order = torch.cat(sorts).argsort()

        def inverse(y: Tensor) -> Tensor:
            parts = [part(y[sort]) for sort, part in zip(sorts, inverses, strict=True)]
            return torch.cat(parts)[order]

        return inverse

    def _factorise(self, rows: Tensor, tall: bool, scans: Tensor) -> Callable[[Tensor], Tensor]:
        times = len(rows) // len(self.matrix)
        rows = rows.to(self.matrix.real.dtype)
        if tall:
            gram = torch.stack(
                [(row[:, None] * self.matrix[i // times]).mH @ self.matrix[i // times] for i, row in enumerate(rows)]
            )
        else:
            gram = self.matrix @ self.matrix.mH
            gram = gram if times == 1 else gram.repeat_interleave(times, 0)
            gram.mul_(rows[:, :, None]).mul_(rows[:, None]).diagonal(dim1=1, dim2=2).add_(1 - rows)
        factor, failed = torch.linalg.cholesky_ex(gram)
        # a squared pivot is what a row has that those before it have not; below the error of sums it is nothing
        rounding = 16 * math.sqrt(max(self.matrix.shape[1:])) * torch.finfo(rows.dtype).eps
        pivots, squares = (t.diagonal(dim1=1, dim2=2).real for t in (factor, gram))
        dependent = (failed > 0) | (pivots**2 <= rounding * squares).any(1)
        if bool(dependent.any()):
            which = ", ".join(map(str, scans[dependent].tolist()[:5]))
            raise DataError(
                f"pinv needs linearly independent {'columns' if tall else 'rows'}, got dependent ones (to "
                f"{rows.dtype} precision) in scan {which}"
            )

        def solve(v: Tensor) -> Tensor:
            return _rowwise(
                lambda part: torch.cholesky_solve(part.mT, factor.to(part.dtype)).mT,
                v,
                len(factor),
                factor.is_complex(),
            )

        return (lambda y: solve(self.adjoint(y))) if tall else (lambda y: self.adjoint(solve(y)))


def _rowwise(apply: Callable[[Tensor], Tensor], vectors: Tensor, scans: int, is_complex: bool) -> Tensor:
    """Apply matrices, real or complex, to the rows of ``(scans * times, p)``, as ``(scans, times, p)``."""
    batches = vectors.reshape(scans, -1, vectors.shape[1])
    if is_complex:
        return apply(batches.to(batches.dtype.to_complex())).flatten(0, 1)
    if not batches.is_complex():
        return apply(batches).flatten(0, 1)
    # both parts at once, so that the matrix is read once
    real, imag = apply(torch.cat((batches.real, batches.imag), 1)).chunk(2, 1)
    return torch.complex(real, imag).flatten(0, 1)


def _multiply(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``(scans * times, p)`` by ``(scans, p, q)``, in the precision of the vectors."""
    return _rowwise(lambda part: part @ matrix.to(part.dtype), vectors, len(matrix), matrix.is_complex())


def _whole(name: str, value: int, least: int = 1) -> int:
    """Check a count, and return it as an integer."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        raise DataError(f"{name} must be a whole number of at least {least}, got {value}")
    return count
