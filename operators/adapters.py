r"""Between these operators and those of other libraries.

`from_functions` makes an operator of a pair of functions; `from_sigpy`, `from_scipy` and `from_deepinv` one of a
``sigpy.linop.Linop``, of a scipy ``LinearOperator`` or matrix, of a deepinv ``LinearPhysics``. In the other direction
`to_sigpy` and `to_scipy` give one scan of an operator to sigpy's and scipy's solvers, and `to_deepinv` a whole batch to
deepinv's. All of them apply the map where it is defined: numpy libraries compute on the CPU, and gradients pass through
the adjoint.

deepinv has images ``(batch, channel, *spatial)`` as here. Complex ones go to it as they are or, with
``two_channels=True``, as its classes for magnetic resonance have them, real and imaginary part on axis 1: images
``(batch, 1, *spatial)`` are ``(batch, 2, *spatial)`` there, coils ``(batch, coil, *spatial)`` are
``(batch, 2, coil, *spatial)``.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator, OperatorSpec
from ambient_sci.operators.mask import as_mask, as_shape, drop

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics
    from scipy.sparse.linalg import LinearOperator as ScipyOperator
    from sigpy.linop import Linop

__all__ = [
    "Functions",
    "from_deepinv",
    "from_functions",
    "from_scipy",
    "from_sigpy",
    "to_deepinv",
    "to_scipy",
    "to_sigpy",
]

Map = Callable[[Tensor], Tensor]


class Functions(LinearOperator):
    """An operator of a pair of functions, the same for every scan but for the rows; see `from_functions`.

    Functions cannot be written to a store: this kind is for computing with, not for keeping.
    """

    kind = "functions"

    def __init__(self, rows: Tensor, forward: Map, adjoint: Map, image_shape: Sequence[int]) -> None:
        self._rows = as_mask(rows, "rows")
        self.forward, self.back = forward, adjoint
        self.image_shape = as_shape(image_shape, "image_shape")

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
    rows = torch.ones(*as_shape([batch], "batch"), *as_shape(measurement_shape, "measurement_shape"))
    return Functions(rows, forward, adjoint, image_shape)


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


def from_scipy(
    matrix: Any, image_shape: Sequence[int], measurement_shape: Sequence[int] | None = None, batch: int = 1
) -> Functions:
    """Make an operator of a scipy ``LinearOperator``, a sparse matrix or an array of two axes.

    Parameters
    ----------
    matrix
        From flattened images to flattened measurements; a ``LinearOperator`` needs its ``rmatvec``.
    image_shape
        ``(channel, *spatial)``.
    measurement_shape
        Shape of one scan's measurement; flat by default.
    batch
        Number of scans, all of which it measures.

    Returns
    -------
    Functions
        From images ``(batch, *image_shape)`` to measurements ``(batch, *measurement_shape)``.

    Raises
    ------
    DataError
        If the matrix has another size than the shapes.
    """
    from scipy.sparse.linalg import aslinearoperator

    linear = aslinearoperator(matrix)
    m, n = linear.shape
    oshape = (m,) if measurement_shape is None else tuple(measurement_shape)
    if (math.prod(oshape), math.prod(image_shape)) != (m, n):
        raise DataError(f"a matrix {m} x {n} does not map images {tuple(image_shape)} to measurements {oshape}")
    forward, adjoint = _Numpy(linear.matvec, (n,), oshape), _Numpy(linear.rmatvec, (m,), tuple(image_shape))
    return from_functions(forward, adjoint, image_shape, oshape, batch)


def from_deepinv(
    physics: Any,
    image_shape: Sequence[int],
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    two_channels: bool = False,
) -> Functions:
    """Make an operator of a deepinv ``LinearPhysics``; its noise is left behind.

    Parameters
    ----------
    physics
        What has ``A(x)`` and ``A_adjoint(y)``, of tensors. Parameters that it holds for every scan stay with it: such
        an operator measures all of its scans at once, in their order, and has no single ones.
    image_shape
        ``(channel, *spatial)``.
    batch
        Number of scans.
    dtype
        Type of the images that ``A`` takes, to find out what it gives.
    two_channels
        Whether its images and measurements are real and imaginary part of complex ones, on axis 1. Images of the
        operator are complex then, ``(batch, 1, *spatial)``.

    Returns
    -------
    Functions
        From images ``(batch, *image_shape)`` to measurements of the shape that ``A`` gives them.

    Raises
    ------
    DataError
        If measurements are no tensor, or have no two channels.
    """
    shape = tuple(image_shape)
    place = next(iter(physics.buffers()), None) if isinstance(physics, torch.nn.Module) else None
    device = "cpu" if place is None else place.device
    with torch.no_grad():
        y = physics.A(torch.zeros(batch, *((2, *shape[1:]) if two_channels else shape), dtype=dtype, device=device))
    if not isinstance(y, Tensor):
        raise DataError(f"physics must give one tensor, got {type(y).__name__}; adapt its parts and vstack() them")
    if not two_channels:
        return from_functions(physics.A, physics.A_adjoint, shape, y.shape[1:], batch).to(device)
    if shape[0] != 1 or y.shape[1:2] != (2,):
        raise DataError(
            f"two_channels are those of images (1, *spatial), got {shape} and measurements {tuple(y.shape)}"
        )
    like_image = y.ndim == 1 + len(shape)  # measurements that have a channel, as images do, and no coils
    oshape = (1, *y.shape[2:]) if like_image else tuple(y.shape[2:])
    forward = _Parts(physics.A, (2, *shape[1:]), oshape)
    adjoint = _Parts(physics.A_adjoint, tuple(y.shape[1:]), shape)
    return from_functions(forward, adjoint, shape, oshape, batch).to(device)


def to_deepinv(operator: LinearOperator, two_channels: bool = False, **options: Any) -> "LinearPhysics":
    """Give a batch of scans to deepinv.

    Parameters
    ----------
    operator
        The operator.
    two_channels
        Whether complex images of one channel, and measurements, go as real and imaginary part on axis 1.
    **options
        Other arguments of ``deepinv.physics.LinearPhysics``, such as ``noise_model``.

    Returns
    -------
    deepinv.physics.LinearPhysics
        With ``A``, ``A_adjoint`` and ``A_adjoint_A`` of the operator, and what deepinv makes of them. ``to()`` moves
        the operator too.
    """
    from deepinv.physics import LinearPhysics

    class Scans(LinearPhysics):  # type: ignore[misc]
        def __init__(self) -> None:
            self.operator = operator
            super().__init__(device=operator.device, **options)

        def A(self, x: Tensor) -> Tensor:
            return self._view(self.operator, x, (1, *x.shape[2:]))

        def A_adjoint(self, y: Tensor) -> Tensor:
            return self._view(self.operator.adjoint, y, self.operator.measurement_shape())

        def A_adjoint_A(self, x: Tensor) -> Tensor:
            return self._view(self.operator.gram, x, (1, *x.shape[2:]))

        @staticmethod
        def _view(apply: Map, t: Tensor, shape: Sequence[int]) -> Tensor:
            if not two_channels:
                return apply(t)
            whole = apply(_whole(t, shape))
            return _parts(whole, (2, *whole.shape[2 if whole.shape[1] == 1 else 1 :]))

        def _apply(self, fn: Map, recurse: bool = True) -> "Scans":
            like = fn(torch.zeros((), device=self.operator.device, dtype=self.operator.rows.dtype))
            self.operator = self.operator.to(like.device, like.dtype)
            moved: Scans = super()._apply(fn, recurse)
            return moved

    return Scans()


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

        def _normal_linop(self) -> Linop:
            measures = self.maps[0] is one
            return Scan(one.gram, one.gram, self.ishape, self.ishape) if measures else super()._normal_linop()

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
        every = torch.stack([torch.as_tensor(self.apply(one)) for one in arrays]).reshape(-1, *self.result)
        precision = batch.dtype.to_real()  # of the images, also where the library holds numbers in another
        return every.to(batch.device, precision.to_complex() if every.is_complex() else precision)


class _Parts:
    """A map of real and imaginary parts as a map of complex tensors. A class, so that it can be pickled."""

    def __init__(self, apply: Map, parts: Sequence[int], result: Sequence[int]) -> None:
        self.apply, self.parts, self.result = apply, parts, result

    def __call__(self, t: Tensor) -> Tensor:
        return _whole(self.apply(_parts(t, self.parts)), self.result)


def _parts(t: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.stack([t.real, t.imag], 1).reshape(-1, *shape)


def _whole(parts: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.complex(*parts.unbind(1)).reshape(-1, *shape)


def _of_numpy(apply: Map, array: Any) -> Any:
    import numpy as np

    with torch.no_grad():
        return apply(torch.from_numpy(np.ascontiguousarray(array))[None])[0].resolve_conj().numpy()


def _text(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
