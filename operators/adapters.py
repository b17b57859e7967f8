r"""Between these operators and those of other libraries.

`from_functions` makes an operator of a pair of functions, `from_sigpy` one of a ``sigpy.linop.Linop``. In the other
direction `to_sigpy` and `to_scipy` give one scan of an operator to sigpy's and scipy's solvers. All of them apply the
map where it is defined: numpy libraries compute on the CPU, and gradients pass through the adjoint.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator, OperatorSpec
from ambient_sci.operators.mask import as_mask, drop

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator
    from sigpy.linop import Linop

__all__ = ["Functions", "from_functions", "from_sigpy", "to_scipy", "to_sigpy"]

Map = Callable[[Tensor], Tensor]


class Functions(LinearOperator):
    """An operator of a pair of functions, the same for every scan but for the rows; see `from_functions`.

    Functions cannot be written to a store: this kind is for computing with, not for keeping.
    """

    kind = "functions"

    def __init__(self, rows: Tensor, forward: Map, adjoint: Map, image_shape: Sequence[int]) -> None:
        self._rows = as_mask(rows)
        self.forward, self.back = forward, adjoint
        self.image_shape = tuple(int(size) for size in image_shape)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The rows that were measured."""
        return {"rows": self._rows}

    @property
    def settings(self) -> dict[str, Any]:
        """The two functions, and the shape of what they take."""
        return {"forward": self.forward, "adjoint": self.back, "image_shape": self.image_shape}

    @property
    def rows(self) -> Tensor:
        """The rows that were measured, ``(batch, *measurement)``."""
        return self._rows

    def spec(self) -> OperatorSpec:
        """Refuse: a store holds tensors and numbers."""
        raise DataError("an operator of Python functions cannot be stored; write a kind of operator instead")

    def _forward(self, x: Tensor) -> Tensor:
        y = self.forward(x)
        if tuple(y.shape[1:]) != tuple(self._rows.shape[1:]):
            raise DataError(f"forward must give (batch, {_text(self._rows.shape[1:])}), got {tuple(y.shape)}")
        return y * self._rows

    def _adjoint(self, y: Tensor) -> Tensor:
        x = self.back(y * self._rows)
        if tuple(x.shape[1:]) != self.image_shape:
            raise DataError(f"adjoint must give (batch, {_text(self.image_shape)}), got {tuple(x.shape)}")
        return x

    def _check_image(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.image_shape:
            raise DataError(f"the functions take images (batch, {_text(self.image_shape)}), got {tuple(x.shape)}")

    def _check_measurement(self, y: Tensor) -> None:
        if y.shape[1:] != self._rows.shape[1:]:
            raise DataError(f"measurements must be (batch, {_text(self._rows.shape[1:])}), got {tuple(y.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> "Functions":
        """Lose each measured row with probability ``fraction``."""
        return Functions(drop(self._rows, fraction, generator), self.forward, self.back, self.image_shape)


def from_functions(
    forward: Map, adjoint: Map, image_shape: Sequence[int], measurement_shape: Sequence[int], batch: int = 1
) -> Functions:
    """Make an operator of a linear function and its adjoint.

    Parameters
    ----------
    forward
        ``(batch, *image_shape) -> (batch, *measurement_shape)``, linear, for any batch.
    adjoint
        Its adjoint. Gradients are computed with it: `ambient_sci.testing.OperatorTests` tells whether it is one.
    image_shape
        ``(channel, *spatial)``.
    measurement_shape
        Shape of one scan's measurement.
    batch
        Number of scans.

    Returns
    -------
    Functions
        The operator; thinning drops single values of the measurement.
    """
    return Functions(torch.ones(batch, *measurement_shape), forward, adjoint, image_shape)


def from_sigpy(linop: "Linop", batch: int = 1) -> Functions:
    """Make an operator of a sigpy ``Linop``.

    Parameters
    ----------
    linop
        From arrays of shape ``ishape`` to arrays of shape ``oshape``.
    batch
        Number of scans, all of which it measures.

    Returns
    -------
    Functions
        From images ``(batch, 1, *ishape)`` to measurements ``(batch, *oshape)``.
    """
    ishape, oshape = tuple(linop.ishape), tuple(linop.oshape)
    return from_functions(
        _Numpy(linop, ishape, oshape), _Numpy(linop.H, oshape, (1, *ishape)), (1, *ishape), oshape, batch
    )


def to_sigpy(operator: LinearOperator, image_shape: Sequence[int], scan: int = 0) -> "Linop":
    """One scan of an operator as a sigpy ``Linop``.

    Parameters
    ----------
    operator
        The operator.
    image_shape
        ``(channel, *spatial)``.
    scan
        Which scan.

    Returns
    -------
    sigpy.linop.Linop
        From ``image_shape`` to the shape of a measurement.
    """
    from sigpy.linop import Linop

    class Scan(Linop):  # type: ignore[misc]
        def __init__(self, apply: Map, back: Map, oshape: Sequence[int], ishape: Sequence[int]) -> None:
            self.maps = apply, back
            super().__init__(oshape, ishape)

        def _apply(self, input: Any) -> Any:
            return _of_numpy(self.maps[0], input)

        def _adjoint_linop(self) -> "Scan":
            return Scan(*self.maps[::-1], self.ishape, self.oshape)

    one = operator[scan]
    return Scan(one, one.adjoint, one.measurement_shape(image_shape[0]), image_shape)


def to_scipy(
    operator: LinearOperator, image_shape: Sequence[int], scan: int = 0, dtype: Any = "complex64"
) -> "ScipyOperator":
    """One scan of an operator as a scipy ``LinearOperator`` between flattened arrays.

    Parameters
    ----------
    operator, image_shape, scan
        As in `to_sigpy`.
    dtype
        Type of the arrays, numpy's name of it.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Of shape ``(values of a measurement, values of an image)``.
    """
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    one = operator[scan]
    oshape = one.measurement_shape(image_shape[0])
    return ScipyOperator(
        (math.prod(oshape), math.prod(image_shape)),
        matvec=lambda x: _of_numpy(one, x.reshape(*image_shape)).ravel(),
        rmatvec=lambda y: _of_numpy(one.adjoint, y.reshape(*oshape)).ravel(),
        dtype=dtype,
    )


class _Numpy:
    """A map of arrays, scan by scan, as a map of batches of tensors. A class, so that it can be pickled."""

    def __init__(self, apply: Callable[[Any], Any], shape: tuple[int, ...], result: tuple[int, ...]) -> None:
        self.apply, self.shape, self.result = apply, shape, result

    def __call__(self, batch: Tensor) -> Tensor:
        arrays = batch.detach().cpu().resolve_conj().reshape(-1, *self.shape).numpy()
        every = torch.stack([torch.as_tensor(self.apply(one)) for one in arrays])
        return every.reshape(-1, *self.result).to(batch.device)


def _of_numpy(apply: Map, array: Any) -> Any:
    import numpy as np

    with torch.no_grad():
        return apply(torch.from_numpy(np.ascontiguousarray(array))[None])[0].resolve_conj().numpy()


def _text(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
