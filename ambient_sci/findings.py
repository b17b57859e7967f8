"""What a test of a prior found: numbers with names, a verdict, and a folder that keeps them.

A folder holds ``<kind>.json`` (everything that is a number, with verdict and options) and what else a kind of test has
to show. Several kinds can lie in one folder.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ambient_sci.cards import card
from ambient_sci.checkpoint import replacing
from ambient_sci.errors import DataError, NotFoundError, OutputError

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Findings"]

_DAMAGED = (AttributeError, BadZipFile, EOFError, KeyError, OSError, TypeError, ValueError)


@dataclass(frozen=True)
class Findings(ABC):
    """Base of what tests find.

    A kind of test states ``kind``, its name; ``files``, what it writes beside the numbers; and ``axes``, the variables
    of its dataset with their dimensions, each of which has coordinates.

    Attributes
    ----------
    dataset
        All numbers; its attributes are the options of the test.
    """

    kind: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    axes: ClassVar[Mapping[str, tuple[str, ...]]]
    dataset: "xarray.Dataset"

    @property
    @abstractmethod
    def passed(self) -> bool:
        """Whether nothing wrong was found."""

    @property
    @abstractmethod
    def verdict(self) -> str:
        """One line: what was found, and by which test."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """Give what is said beside verdict, options and the dataset's numbers, as JSON can hold it."""

    @abstractmethod
    def _contents(self) -> "list[Figure | bytes]":
        """Give what is written to ``files``."""

    @classmethod
    @abstractmethod
    def _of(cls, dataset: "xarray.Dataset", told: dict[str, Any], folder: Path) -> Self:
        """Put together what `save` wrote."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; NaN is None."""
        every = {**self.dataset, **self.dataset.coords}
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            **self._facts(),
            "options": self.dataset.attrs,
            "numbers": {str(name): _plain(variable.to_numpy()) for name, variable in every.items()},
        }

    @classmethod
    def refuse_to_replace(cls, out: Path | str, overwrite: bool) -> None:
        """Raise `OutputError` if a folder holds findings of this kind that are not to be replaced."""
        if not overwrite and any((Path(out) / name).exists() for name in (f"{cls.kind}.json", *cls.files)):
            raise OutputError(f"{out} already holds {_a(cls.kind)}; choose another folder or pass --overwrite")

    def save(self, out: Path | str, overwrite: bool = False) -> None:
        """Write numbers and figures into a folder.

        Raises
        ------
        OutputError
            If they are there, unless ``overwrite``, or cannot be written.
        """
        self.refuse_to_replace(out, overwrite)
        numbers = (json.dumps(self.to_dict(), indent=2) + "\n").encode()
        for name, content in zip((f"{self.kind}.json", *self.files), (numbers, *self._contents()), strict=True):
            with replacing(Path(out) / name) as partial:
                partial.write_bytes(content if isinstance(content, bytes) else _png(content))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote, given the folder or its file of numbers.

        Raises
        ------
        NotFoundError, DataError
            If there is none, or it is damaged.
        """
        path = Path(path)
        file = path if path.is_file() else path / f"{cls.kind}.json"
        if not file.exists():
            raise NotFoundError(f"no {cls.kind} at {path}: `save` writes one")
        try:
            told = json.loads(file.read_text("utf-8"))
            return cls._of(_dataset(told["numbers"], cls.axes, told["options"]), told, file.parent)
        except _DAMAGED as error:
            said = f"{type(error).__name__}: {error}"
            raise DataError(f"{file} is damaged, or of another release: {said}") from error

    def _repr_html_(self) -> str:
        """Show the verdict and the options."""
        facts = {"passed": "yes" if self.passed else "no", "verdict": self.verdict}
        return card(f"{self.kind.capitalize()} of a prior", facts | self.dataset.attrs)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plain(values: NDArray[Any]) -> Any:
    if values.dtype.kind == "f":
        return np.where(np.isfinite(values), values.astype(object), np.array(None)).tolist()
    return values.tolist()


def _dataset(
    numbers: Mapping[str, Any], axes: Mapping[str, tuple[str, ...]], attrs: Mapping[str, Any]
) -> "xarray.Dataset":
    import xarray

    variables = {}
    for name, dims in axes.items():
        values = np.asarray(numbers[name])
        values = values.astype(float) if values.dtype == object else values
        if values.dtype.kind not in "biuf" or 0 in values.shape:
            raise ValueError(f"{name} must hold numbers")
        variables[name] = (dims, values)
    coords = {dim: numbers[dim] for dims in axes.values() for dim in dims}
    return xarray.Dataset(variables, coords, dict(attrs))
