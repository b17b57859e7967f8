r"""The operator contract.

An operator holds one linear map for every scan of a batch,

.. math:: y_b = A_b x_b, \qquad b = 1 \ldots B,

with images ``x`` of shape ``(batch, channel, *spatial)`` and measurements ``y`` of shape ``(batch, *measurement)``.
Rows of :math:`A_b` that were not measured are kept as zeros, so that all scans of a batch have one shape; ``rows`` says
which were measured. A further corruption :math:`\tilde A = B A` is then an operator with fewer rows, and
:math:`B y` is ``A_tilde.rows * y``.

An operator has two kinds of arguments, and nothing else: *parameters*, tensors with the batch axis first that differ
from scan to scan, and *settings*, a few numbers that all scans share. Slicing, collating, moving and storing
follow from that. It is a value: no method changes it, and it knows neither noise nor solvers.

A new kind writes ``_forward`` and ``_adjoint`` (each becomes the gradient of the other), ``rows``, and, where it can
be done faster than one after the other, ``_gram``; `ambient_sci.testing.OperatorTests` checks the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index as as_number
from typing import Any, ClassVar, Self, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.forward_ad import unpack_dual

from ambient_sci import registry
from ambient_sci.cards import card
from ambient_sci.errors import DataError

__all__ = ["GROUP", "LinearOperator", "OperatorSpec", "Scans", "collate", "from_spec", "scans_of"]

GROUP = "ambient_sci.operators"
Scans = SupportsIndex | slice | Sequence[int] | NDArray[np.integer | np.bool_] | Tensor


@dataclass(frozen=True)
class OperatorSpec:
    """What a store writes of an operator: its kind, its tensors and its numbers."""

    kind: str
    parameters: dict[str, Tensor]
    settings: dict[str, Any]


class LinearOperator(ABC):
    """A batch of linear maps, one for every scan."""

    kind: ClassVar[str]
    orthonormal: ClassVar[bool] = False  # rows nearly are: the adjoint undoes the operator where it measures
    __array_ufunc__ = None  # numpy's numbers leave ``c * A`` to __rmul__ instead of taking A for a sequence

    # ---------------------------------------------------------------------------------- what a kind has to write

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Constructor arguments that differ from scan to scan, batch axis first."""

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments that all scans share, as JSON can hold them."""
        return {}

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """Which rows were measured: ones and zeros, real, broadcastable to ``(batch, *measurement)``."""

    @abstractmethod
    def _forward(self, x: Tensor, /) -> Tensor:
        """``(batch, channel, *spatial) -> (batch, *measurement)``."""

    @abstractmethod
    def _adjoint(self, y: Tensor, /) -> Tensor:
        """``(batch, *measurement) -> (batch, channel, *spatial)``."""

    def _gram(self, x: Tensor, /) -> Tensor:
        return self._adjoint(self._forward(x))

    @abstractmethod
    def _check_image(self, x: Tensor, /) -> None:
        """Raise `DataError` unless ``x`` is an image that this operator can measure."""

    @abstractmethod
    def _check_measurement(self, y: Tensor, /) -> None:
        """Raise `DataError` unless ``y`` has the shape of a measurement by this operator."""

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of one scan's measurement.

        Parameters
        ----------
        channels
            Channels of the image, for kinds that measure any number of them (`Mask`, `Fourier`); others know theirs.
        """
        return tuple(self.rows.shape[1:])  # kinds whose rows broadcast say it themselves

    def thin(self, fraction: float, generator: torch.Generator) -> "LinearOperator":
        r"""Further corruption: this operator with fewer rows.

        Parameters
        ----------
        fraction
            Probability with which a measured row (pixel, line, matrix row) is dropped, between 0 and 1.
        generator
            Source of the randomness, on the CPU.

        Returns
        -------
        LinearOperator
            The operator :math:`\tilde A = B A`, of the same shape; ``A_tilde.rows * y`` are its measurements.
        """
        raise DataError(f"the operator {self.kind!r} does not say how to lose rows: it has no thin()")

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """White measurement noise that agrees with image noise ``n``.

        A sampler's state lives in image space, ``x_s = x_0 + s n``, while a network trained on measurements expects
        ``A x_0 + s e`` with white ``e``. Where ``A A^H`` is the projection on the measured rows, ``e = A n`` is that
        noise; kinds where it is not (several coils) add what is missing, drawn from ``generator``.

        Parameters
        ----------
        n
            White image noise of unit variance per real component, ``(batch, channel, *spatial)``.
        generator
            Source of the added noise.

        Returns
        -------
        Tensor
            ``e``, ``(batch, *measurement)``, white with unit variance per real component on the measured rows.
        """
        raise DataError(f"the operator {self.kind!r} has rows that are not orthonormal: image noise cannot be lifted")

    # ---------------------------------------------------------------------------------- what every kind then has

    def __call__(self, x: Tensor) -> Tensor:
        """Measure an image."""
        self._check_image(x)
        self._check_batch(x)
        return _apply(x, self, "_forward", "_adjoint")

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply :math:`A^H` to a measurement."""
        self._check_measurement(y)
        self._check_batch(y)
        return _apply(y, self, "_adjoint", "_forward")

    def gram(self, x: Tensor) -> Tensor:
        """Apply :math:`A^H A` to an image."""
        self._check_image(x)
        self._check_batch(x)
        return _apply(x, self, "_gram", "_gram")

    @property
    def H(self) -> "LinearOperator":
        """The adjoint operator."""
        from ambient_sci.operators.compose import Adjoint

        return Adjoint(self)

    @property
    def batch(self) -> int:
        """Number of scans."""
        return next(iter(self.parameters.values())).shape[0]

    def __len__(self) -> int:
        return self.batch

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def _check_batch(self, t: Tensor) -> None:
        if self.batch not in (1, t.shape[0]):
            raise DataError(f"the operator holds {self.batch} scans, the tensor {t.shape[0]} (shape {tuple(t.shape)})")

    def replace(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every parameter by a function and keep the rest."""
        return self.build({name: change(value) for name, value in self.parameters.items()}, self.settings)

    def __getitem__(self, index: Scans) -> Self:
        """Select scans of the batch, by number, slice, or an array of numbers or booleans; one keeps a batch of one."""
        some = scans_of(index, self.batch)
        return self.replace(lambda value: value[some])

    def __iter__(self) -> Iterator[Self]:
        return (self[scan] for scan in range(self.batch))

    def repeat(self, times: int) -> Self:
        """Every scan ``times`` times in a row, for several samples of each."""
        return self.replace(lambda value: value.repeat_interleave(times, 0))

    def to(self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """On another device, or in another precision.

        ``dtype``, which may stand alone as it may in torch, names the precision by its real or complex type
        (``torch.float64`` and ``torch.complex128`` are the same request); integers stay what they are.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        def move(value: Tensor) -> Tensor:
            if dtype is None or not (value.is_floating_point() or value.is_complex()):
                return value.to(device=device)
            wanted = dtype.to_complex() if value.is_complex() else dtype.to_real()
            return value.to(device=device, dtype=wanted)

        return self.replace(move)

    @classmethod
    def build(cls, parameters: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Construct this kind of operator from `parameters` and `settings`."""
        return cls(**parameters, **settings)

    def spec(self) -> OperatorSpec:
        """Tell what a store writes; `from_spec` is the inverse."""
        return OperatorSpec(self.kind, self.parameters, self.settings)

    def collate(self, others: Sequence["LinearOperator"]) -> "LinearOperator":
        """Append the scans of others of this kind (see the function `collate`)."""
        for other in others:
            if type(other) is not type(self) or other.settings != self.settings:
                raise DataError(f"cannot batch {self!r} with {other!r}: another kind or other settings")
        every = [self.parameters, *(other.parameters for other in others)]
        for name in self.parameters:
            shapes = {tuple(parameters[name].shape[1:]) for parameters in every}
            if len(shapes) > 1:
                raise DataError(f"cannot batch {self.kind!r} operators: {name} has shapes {sorted(shapes)} per scan")
        merged = {name: torch.cat([parameters[name] for parameters in every]) for name in self.parameters}
        return self.build(merged, self.settings)

    def __matmul__(self, other: "LinearOperator") -> "LinearOperator":
        """Composition: ``(A @ B)(x) = A(B(x))``."""
        from ambient_sci.operators.compose import Compose

        return Compose(self, other)

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        from ambient_sci.operators.compose import Sum

        return Sum(self, other)

    def __rmul__(self, scale: float | complex) -> "LinearOperator":
        from ambient_sci.operators.compose import Scale

        return Scale(self, scale)

    __mul__ = __rmul__

    def __neg__(self) -> "LinearOperator":
        return -1.0 * self

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return self + (-other)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(value.shape)}" for name, value in self.parameters.items())
        rest = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({shapes}{rest})"

    def _repr_html_(self) -> str:
        """Show parameters, and which rows the first scan measures."""
        rows = self.rows.flatten(0, -3)[0] if self.rows.ndim > 2 else None
        facts: dict[str, Any] = {"scans": len(self), "measured": f"{float(self.rows.mean()):.1%} of the rows"}
        facts |= {name: f"{list(value.shape)}, {value.dtype}" for name, value in self.parameters.items()}
        seen = rows if rows is not None and rows.numel() > 1 else None
        return card(type(self).__name__, facts | self.settings, seen, "measured rows of the first scan")


class _Apply(torch.autograd.Function):
    """A linear map whose derivative in either direction is the map itself or its adjoint."""

    @staticmethod
    def forward(x: Tensor, operator: LinearOperator, apply: str, adjoint: str) -> Tensor:
        result: Tensor = getattr(operator, apply)(x)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # not ctx.apply: autograd itself calls a method of that name
        x, ctx.operator, ctx.map, ctx.transpose = inputs
        ctx.real = not x.is_complex()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        grad = _apply(grads[0], ctx.operator, ctx.transpose, ctx.map)
        return (grad.real if ctx.real and grad.is_complex() else grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _apply(tangents[0], ctx.operator, ctx.map, ctx.transpose)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, operator: LinearOperator, apply: str, adjoint: str) -> Any:
        x = x.movedim(in_dims[0], 0)
        if operator.batch == 1:
            return _apply(x.flatten(0, 1), operator, apply, adjoint).unflatten(0, x.shape[:2]), 0
        # not one batch of scans repeated, which would hold (and, for a seed, make) every parameter that many times
        return torch.stack([_apply(one, operator, apply, adjoint) for one in x]), 0


def _apply(x: Tensor, operator: LinearOperator, apply: str, adjoint: str) -> Tensor:
    for name, value in operator.parameters.items():
        tracked = value.requires_grad and torch.is_grad_enabled()
        if tracked or transformed(value) or unpack_dual(value).tangent is not None:  # whose derivatives would be zeros
            raise DataError(
                f"{name} of the operator is being differentiated or transformed, which only images and measurements "
                "can be: detach it, make operators and slices of them outside of what torch.func transforms, "
                "and a batch of scans in place of a vmap"
            )
    function: Callable[..., Tensor] = _Apply.apply  # typed, as torch's is not
    return function(x, operator, apply, adjoint)


def transformed(t: Tensor) -> bool:
    """Whether a tensor is one that a transform of ``torch.func`` works on; the compiler cannot tell."""
    return not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(t)


def collate(operators: Sequence[LinearOperator]) -> LinearOperator:
    """One operator that holds the scans of several of the same kind and size.

    Raises
    ------
    DataError
        If kinds, settings or shapes differ, or if there are none.
    """
    if not operators:
        raise DataError("collate needs at least one operator")
    return operators[0].collate(operators[1:])


def from_spec(spec: OperatorSpec) -> LinearOperator:
    """Build an operator from what a store wrote of it."""
    operator: LinearOperator = registry.load(GROUP, spec.kind).build(spec.parameters, spec.settings)
    return operator


def scans_of(index: Scans, count: int) -> slice | Tensor:
    """Index that takes the wanted of ``count`` scans out of every tensor of a batch; one scan stays a batch of one."""
    if isinstance(index, slice):
        return index
    if isinstance(index, Sequence) or (isinstance(index, Tensor | np.ndarray) and index.ndim):
        some = torch.as_tensor(index)
        return some.long() if len(some) == 0 else some
    scan = as_number(index)
    if not -count <= scan < count:
        raise IndexError(f"scan {scan} of a batch that holds {count}")
    return slice(scan % count, scan % count + 1)
