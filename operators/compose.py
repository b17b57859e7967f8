r"""Operators made of operators.

.. math:: (A B)\,x = A(B x), \qquad (A + B)\,x = A x + B x, \qquad (c A)\,x = c\,(A x), \qquad
          \begin{pmatrix} A \\ B \end{pmatrix} x = \begin{pmatrix} A x \\ B x \end{pmatrix}

and the adjoint :math:`A^H`. Every part has its own parameters for every scan and the same number of scans. Parameters
carry the number of their part in front (``"0.mask"``, ``"1.0.maps"``), the settings describe the parts in the same
order, and whatever is done to the batch (slices, collation, devices, stores) is done to each part.

Images and measurements have the shapes that the parts give them, but for the stack: there the measurements of a scan
are flattened and joined, ``(batch, total)``.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator, OperatorSpec, from_spec
from ambient_sci.operators.mask import as_shape

__all__ = ["Adjoint", "Compose", "Composite", "Scale", "Sum", "VStack", "vstack"]


class Composite(LinearOperator):
    """An operator that consists of others.

    Parameters
    ----------
    *operators
        The parts, all with the same number of scans.

    Raises
    ------
    DataError
        If a part is no operator, if their numbers of scans differ, or if there are none.
    """

    def __init__(self, *operators: LinearOperator) -> None:
        if not operators or not all(isinstance(part, LinearOperator) for part in operators):
            got = ", ".join(type(part).__name__ for part in operators) or "nothing"
            raise DataError(f"{type(self).__name__} is made of linear operators, got {got}")
        if len({len(part) for part in operators}) > 1:
            raise DataError(
                f"all parts of {type(self).__name__} must hold the same number of scans, "
                f"got {', '.join(str(len(part)) for part in operators)}; repeat() makes several of one"
            )
        self.operators = operators

    @property
    def numbers(self) -> dict[str, Any]:
        """Settings besides the parts."""
        return {}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of every part, behind the number of the part."""
        return {
            f"{i}.{name}": value for i, part in enumerate(self.operators) for name, value in part.parameters.items()
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Kind and settings of every part."""
        return {
            "operators": [{"kind": part.kind, "settings": part.settings} for part in self.operators],
            **self.numbers,
        }

    @classmethod
    def build(cls, parameters: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Construct the parts, each from its own share, and the composite of them."""
        numbers = {name: value for name, value in settings.items() if name != "operators"}
        parts = []
        for i, part in enumerate(settings["operators"]):
            prefix = f"{i}."
            own = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
            parts.append(from_spec(OperatorSpec(part["kind"], own, part["settings"])))
        return cls(*parts, **numbers)

    def replace(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every parameter of every part by a function."""
        return type(self)(*(part.replace(change) for part in self.operators), **self.numbers)

    def collate(self, others: Sequence[LinearOperator]) -> Self:
        """Collate part by part."""
        alike: list[Composite] = []
        for other in others:
            if not isinstance(other, type(self)) or other.settings != self.settings:
                raise DataError(f"cannot batch {self!r} with {other!r}: other parts or other settings")
            alike.append(other)
        parts = (part.collate([other.operators[i] for other in alike]) for i, part in enumerate(self.operators))
        return type(self)(*parts, **self.numbers)

    def __repr__(self) -> str:
        numbers = (f"{name}={value!r}" for name, value in self.numbers.items())
        return f"{type(self).__name__}({', '.join([*map(repr, self.operators), *numbers])})"


class Adjoint(Composite):
    """The adjoint :math:`A^H`, whose images are the measurements of ``A``."""

    kind = "adjoint"

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator)

    @property
    def rows(self) -> Tensor:
        """One: every value of an image counts as measured."""
        return torch.ones((), device=self.device)

    @property
    def H(self) -> LinearOperator:
        """The operator itself."""
        return self.operators[0]

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Not known: an operator checks the shape of an image, but need not tell it."""
        raise DataError("an adjoint does not tell the shape of what it gives")

    def _forward(self, x: Tensor) -> Tensor:
        return self.H._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.H._forward(y)

    def _check_image(self, x: Tensor) -> None:
        self.H._check_measurement(x)

    def _check_measurement(self, y: Tensor) -> None:
        self.H._check_image(y)


class Compose(Composite):
    """One operator after the other, the last of them first: ``Compose(A, B)(x) = A(B(x))``, written ``A @ B``."""

    kind = "compose"

    @property
    def rows(self) -> Tensor:
        """Those of the leftmost operator."""
        return self.operators[0].rows

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of what the leftmost operator gives."""
        shape: tuple[int, ...] = (channels,)
        for part in reversed(self.operators):
            shape = part.measurement_shape(shape[0])
        return shape

    def _forward(self, x: Tensor) -> Tensor:
        for part in reversed(self.operators):
            part._check_image(x)
            x = part._forward(x)
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for part in self.operators:
            part._check_measurement(y)
            y = part._adjoint(y)
        return y

    def _gram(self, x: Tensor) -> Tensor:
        first, *rest = self.operators
        for part in reversed(rest):
            part._check_image(x)
            x = part._forward(x)
        first._check_image(x)
        x = first._gram(x)
        for part in rest:
            x = part._adjoint(x)
        return x

    def _check_image(self, x: Tensor) -> None:
        self.operators[-1]._check_image(x)

    def _check_measurement(self, y: Tensor) -> None:
        self.operators[0]._check_measurement(y)

    def thin(self, fraction: float, generator: torch.Generator) -> "Compose":
        """Lose rows of the leftmost operator."""
        return Compose(self.operators[0].thin(fraction, generator), *self.operators[1:])


class Sum(Composite):
    """The sum of operators between the same spaces, written ``A + B``."""

    kind = "sum"

    @property
    def rows(self) -> Tensor:
        """The rows that any of the terms measures."""
        return functools.reduce(torch.maximum, (term.rows for term in self.operators))

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of what each of the terms gives."""
        return self.operators[0].measurement_shape(channels)

    def _forward(self, x: Tensor) -> Tensor:
        return self._add([term._forward(x) for term in self.operators])

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._add([term._adjoint(y) for term in self.operators])

    def _add(self, values: list[Tensor]) -> Tensor:
        if len({value.shape for value in values}) > 1:  # adding them would broadcast
            raise DataError(
                f"the terms of a sum give different shapes: {', '.join(str(tuple(v.shape)) for v in values)}"
            )
        return functools.reduce(torch.add, values)

    def _check_image(self, x: Tensor) -> None:
        for term in self.operators:
            term._check_image(x)

    def _check_measurement(self, y: Tensor) -> None:
        for term in self.operators:
            term._check_measurement(y)

    def thin(self, fraction: float, generator: torch.Generator) -> LinearOperator:
        """Refused: a row of the sum is lost only if every term loses the same one."""
        raise DataError(
            "a sum cannot lose rows, since each term would lose others; sum operators that are thinned alike"
        )


class Scale(Composite):
    """A multiple of an operator, written ``factor * A``.

    Parameters
    ----------
    operator
        The operator.
    factor
        A number; complex ones may be given as a pair of real and imaginary part, which is how they are stored.
    """

    kind = "scale"

    def __init__(self, operator: LinearOperator, factor: complex | Sequence[float]) -> None:
        super().__init__(operator)
        try:
            value = complex(*factor) if isinstance(factor, Sequence) else complex(factor)
        except (TypeError, ValueError) as error:
            raise DataError(f"factor must be one number, got {factor!r}") from error
        if not (math.isfinite(value.real) and math.isfinite(value.imag)):
            raise DataError(f"factor must be finite, got {value}")
        self.factor: float | complex = value if value.imag else value.real

    @property
    def numbers(self) -> dict[str, Any]:
        """The factor."""
        return {"factor": [self.factor.real, self.factor.imag] if isinstance(self.factor, complex) else self.factor}

    @property
    def rows(self) -> Tensor:
        """Those of the operator."""
        return self.operators[0].rows

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Shape of what the operator gives."""
        return self.operators[0].measurement_shape(channels)

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operators[0]._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor.conjugate() * self.operators[0]._adjoint(y)

    def _gram(self, x: Tensor) -> Tensor:
        return abs(self.factor) ** 2 * self.operators[0]._gram(x)

    def _check_image(self, x: Tensor) -> None:
        self.operators[0]._check_image(x)

    def _check_measurement(self, y: Tensor) -> None:
        self.operators[0]._check_measurement(y)

    def thin(self, fraction: float, generator: torch.Generator) -> "Scale":
        """Lose rows of the operator."""
        return Scale(self.operators[0].thin(fraction, generator), self.factor)


class VStack(Composite):
    """Several measurements of one image, flattened and joined: ``(batch, total)``.

    Parameters
    ----------
    *operators
        The operators, in the order of their measurements.
    channels
        Channels of the image, where the operators would take any number of them (`Mask`, `Fourier`).
    """

    kind = "vstack"

    def __init__(self, *operators: LinearOperator, channels: int = 1) -> None:
        super().__init__(*operators)
        (self.channels,) = as_shape([channels], "channels")
        self._shapes = [part.measurement_shape(self.channels) for part in operators]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    @property
    def numbers(self) -> dict[str, Any]:
        """Channels of the image."""
        return {"channels": self.channels}

    @property
    def rows(self) -> Tensor:
        """The rows of every operator, ``(batch, total)``."""
        pairs = zip(self.operators, self._shapes, strict=True)
        return torch.cat([part.rows.expand(len(part), *shape).flatten(1) for part, shape in pairs], 1)

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Total of all measurements."""
        return (sum(self._sizes),)

    def _split(self, y: Tensor) -> list[tuple[LinearOperator, Tensor]]:
        values = zip(torch.split(y, self._sizes, 1), self._shapes, strict=True)
        return list(zip(self.operators, (value.reshape(-1, *shape) for value, shape in values), strict=True))

    def _forward(self, x: Tensor) -> Tensor:
        return torch.cat([part._forward(x).flatten(1) for part in self.operators], 1)

    def _adjoint(self, y: Tensor) -> Tensor:
        return functools.reduce(torch.add, (part._adjoint(value) for part, value in self._split(y)))

    def _gram(self, x: Tensor) -> Tensor:
        return functools.reduce(torch.add, (part._gram(x) for part in self.operators))

    def _check_image(self, x: Tensor) -> None:
        for part, shape in zip(self.operators, self._shapes, strict=True):
            part._check_image(x)
            if part.measurement_shape(x.shape[1]) != shape:
                raise DataError(
                    f"the stack measures images of {self.channels} channels, got {tuple(x.shape)}: "
                    f"say VStack(..., channels={x.shape[1]})"
                )

    def _check_measurement(self, y: Tensor) -> None:
        if tuple(y.shape[1:]) != self.measurement_shape():
            parts = " + ".join(map(str, self._sizes))
            raise DataError(f"the stack gives (batch, {sum(self._sizes)}), which is {parts}, got {tuple(y.shape)}")
        for part, value in self._split(y):
            part._check_measurement(value)

    def thin(self, fraction: float, generator: torch.Generator) -> "VStack":
        """Lose rows of every operator."""
        return VStack(*(part.thin(fraction, generator) for part in self.operators), channels=self.channels)


def vstack(*operators: LinearOperator, channels: int = 1) -> VStack:
    """Measure one image by several operators (see `VStack`)."""
    return VStack(*operators, channels=channels)
