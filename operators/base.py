r"""The operator contract.

An operator holds one linear map for every scan of a batch,

.. math:: y_b = A_b x_b, \qquad b = 1 \ldots B,

with images ``x`` of shape ``(batch, channel, *spatial)`` and measurements ``y`` of shape ``(batch, *measurement)``.
Rows of :math:`A_b` that were not measured are kept as zeros, so that all scans of a batch have one shape; `rows` says
which were measured. A further corruption :math:`\tilde A = B A` is then an operator with fewer rows, and
:math:`B y` is ``A_tilde.rows * y``.

An operator has two kinds of arguments, and nothing else: *parameters*, tensors with the batch axis first that differ
from scan to scan, and *settings*, a few numbers that all scans share. Slicing, collating, moving and storing
follow from that. It is a value: no method changes it, and it knows neither noise nor solvers.

A new kind writes `_forward` and `_adjoint` (each becomes the gradient of the other), `rows`, and, where it can be
done faster than one after the other, `_gram`; `ambient_sci.testing.OperatorTests` checks the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ambient_sci import registry
from ambient_sci.errors import DataError

__all__ = ["GROUP", "LinearOperator", "OperatorSpec", "collate", "from_spec"]

GROUP = "ambient_sci.operators"


@dataclass(frozen=True)
class OperatorSpec:
    """What a store writes of an operator: its kind, its tensors and its numbers."""

    kind: str
    parameters: dict[str, Tensor]
    settings: dict[str, Any]


class LinearOperator(ABC):
    """A batch of linear maps, one for every scan."""

    kind: ClassVar[str]

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
    def _forward(self, x: Tensor) -> Tensor:
        """``(batch, channel, *spatial) -> (batch, *measurement)``."""

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor:
        """``(batch, *measurement) -> (batch, channel, *spatial)``."""

    def _gram(self, x: Tensor) -> Tensor:
        return self._adjoint(self._forward(x))

    @abstractmethod
    def _check_image(self, x: Tensor) -> None:
        """Raise `DataError` unless ``x`` is an image that this operator can measure."""

    @abstractmethod
    def _check_measurement(self, y: Tensor) -> None:
        """Raise `DataError` unless ``y`` has the shape of a measurement by this operator."""

    def thin(self, fraction: float, generator: torch.Generator) -> "LinearOperator":
        """Further corruption: this operator with fewer rows.

        Parameters
        ----------
        fraction
            Probability with which a measured row (pixel, line, matrix row) is dropped, between 0 and 1.
        generator
            Source of the randomness, on the CPU.

        Returns
        -------
        LinearOperator
            The operator :math:`\\tilde A = B A`, of the same shape; ``A_tilde.rows * y`` are its measurements.
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
        result: Tensor = _Apply.apply(x, self, "_forward", "_adjoint")
        return result

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply :math:`A^H` to a measurement."""
        self._check_measurement(y)
        self._check_batch(y)
        result: Tensor = _Apply.apply(y, self, "_adjoint", "_forward")
        return result

    def gram(self, x: Tensor) -> Tensor:
        """Apply :math:`A^H A` to an image."""
        self._check_image(x)
        self._check_batch(x)
        result: Tensor = _Apply.apply(x, self, "_gram", "_gram")
        return result

    @property
    def H(self) -> "LinearOperator":
        """The adjoint operator."""
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
        """The same kind of operator with every parameter changed by a function."""
        return type(self)(**{name: change(value) for name, value in self.parameters.items()}, **self.settings)

    def __getitem__(self, index: int | slice | Tensor) -> Self:
        """Scans of the batch; a single index keeps a batch of one."""
        if isinstance(index, int):
            if not -self.batch <= index < self.batch:
                raise IndexError(f"scan {index} of an operator that holds {self.batch}")
            index = slice(index % self.batch, index % self.batch + 1)
        return self.replace(lambda value: value[index])

    def repeat(self, times: int) -> Self:
        """Every scan ``times`` times in a row, for several samples of each."""
        return self.replace(lambda value: value.repeat_interleave(times, 0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """On another device, or in another precision.

        ``dtype`` names the precision by its real or complex type (``torch.float64`` and ``torch.complex128`` are the
        same request); integers stay what they are.
        """

        def move(value: Tensor) -> Tensor:
            if dtype is None or not (value.is_floating_point() or value.is_complex()):
                return value.to(device=device)
            wanted = dtype.to_complex() if value.is_complex() else dtype.to_real()
            return value.to(device=device, dtype=wanted)

        return self.replace(move)

    def spec(self) -> OperatorSpec:
        """What a store writes; `from_spec` is the inverse."""
        return OperatorSpec(self.kind, self.parameters, self.settings)

    def collate(self, others: Sequence["LinearOperator"]) -> "LinearOperator":
        """This operator's scans followed by those of others of its kind (see the function `collate`)."""
        for other in others:
            if type(other) is not type(self) or other.settings != self.settings:
                raise DataError(f"cannot batch {self!r} with {other!r}: another kind or other settings")
        every = [self.parameters, *(other.parameters for other in others)]
        for name, value in self.parameters.items():
            shapes = {tuple(parameters[name].shape[1:]) for parameters in every}
            if len(shapes) > 1:
                raise DataError(f"cannot batch {self.kind!r} operators: {name} has shapes {sorted(shapes)} ({value.dtype})")
        merged = {name: torch.cat([parameters[name] for parameters in every]) for name in self.parameters}
        return type(self)(**merged, **self.settings)

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


class Adjoint(LinearOperator):
    """The adjoint of an operator, as an operator."""

    kind = "adjoint"

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator

    @property
    def parameters(self) -> dict[str, Tensor]:  # noqa: D102
        return self.operator.parameters

    @property
    def rows(self) -> Tensor:  # noqa: D102
        return torch.ones((), device=self.device)

    def replace(self, change: Callable[[Tensor], Tensor]) -> "Adjoint":  # noqa: D102
        return Adjoint(self.operator.replace(change))

    def collate(self, others: Sequence[LinearOperator]) -> LinearOperator:  # noqa: D102
        if not all(isinstance(other, Adjoint) for other in others):
            raise DataError("cannot batch an adjoint with operators that are none")
        return Adjoint(self.operator.collate([other.operator for other in others if isinstance(other, Adjoint)]))

    def spec(self) -> OperatorSpec:  # noqa: D102
        raise DataError("an adjoint is not stored: store the operator and take its .H")

    @property
    def H(self) -> LinearOperator:  # noqa: D102
        return self.operator

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._forward(y)

    def _check_image(self, x: Tensor) -> None:
        self.operator._check_measurement(x)

    def _check_measurement(self, y: Tensor) -> None:
        self.operator._check_image(y)


class _Apply(torch.autograd.Function):
    """A linear map whose derivative in either direction is the map itself or its adjoint."""

    @staticmethod
    def forward(x: Tensor, operator: LinearOperator, apply: str, adjoint: str) -> Tensor:
        result: Tensor = getattr(operator, apply)(x)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.operator, ctx.apply, ctx.adjoint = inputs
        ctx.real = not x.is_complex()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        grad = _Apply.apply(grads[0], ctx.operator, ctx.adjoint, ctx.apply)
        return (grad.real if ctx.real and grad.is_complex() else grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Apply.apply(tangents[0], ctx.operator, ctx.apply, ctx.adjoint)
        return result


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
    operator: LinearOperator = registry.load(GROUP, spec.kind)(**spec.parameters, **spec.settings)
    return operator
