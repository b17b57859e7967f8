"""Containers: named, chunked, checksummed arrays in a Zarr v3 folder or in an HDF5 file.

`ambient_sci.datasets.zarr_container` and `ambient_sci.datasets.hdf5_container` have the same few verbs, and know
nothing of what the arrays mean. Arrays grow along their first axis, the scans; ``block`` scans are written together and
``chunk`` scans are compressed together. Damage is found when a scan is read: Zarr chunks end with a CRC32C, HDF5 chunks
with a Fletcher-32 sum, and what was never written or is lost reads as NaN (an integer as the least of its type), which
no measurement is.

Whoever reads a container sees it as it was at the last `Container.commit` before it was opened. In a Zarr folder the
commit is the replacement of one file, so that one process may append while others read; an HDF5 file must not be
appended to in place.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import StoreError

__all__ = ["FAULTS", "Array", "ArrayInfo", "Container", "brief", "container_type", "fill_value"]

Array = NDArray[Any]
FAULTS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
)  # what decoders raise on damaged bytes
_PIECE = 8 << 20  # bytes read in one call, at least one chunk


@dataclass(frozen=True)
class ArrayInfo:
    """Shape, type, dimensions and attributes of an array that has not been read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    chunk: int  # rows that are compressed together
    block: int  # rows that are best written together


class Container(ABC):
    """Named arrays in a file or folder; a name may have groups, as in ``"reference/image"``.

    Parameters
    ----------
    path
        Of the file or folder.
    mode
        ``"r"`` to read, ``"w"`` to make a new one, ``"a"`` to go on after what was committed last.
    """

    is_folder: ClassVar[bool]
    appends_in_place: ClassVar[bool]
    path: Path

    @abstractmethod
    def __init__(self, path: Path, mode: str = "r") -> None: ...

    @abstractmethod
    def names(self, group: str = "") -> list[str]:
        """Names of the arrays of a group, without the group's."""

    @abstractmethod
    def groups(self, group: str = "") -> list[str]:
        """Names of the groups in a group, without the group's."""

    @abstractmethod
    def attributes(self, group: str = "") -> dict[str, Any]:
        """Attributes of a group."""

    @abstractmethod
    def info(self, name: str) -> ArrayInfo:
        """Describe an array."""

    @abstractmethod
    def _array(self, name: str) -> Any:
        """Return the library's own array."""

    @abstractmethod
    def _read(self, name: str, rows: slice) -> Array: ...

    @abstractmethod
    def create(
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], dims: Sequence[str], chunk: int, block: int,
        attributes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Make an array without rows; ``shape`` is that of one row."""

    @abstractmethod
    def append(self, name: str, rows: Array) -> None:
        """Write further rows of an array."""

    @abstractmethod
    def move_into(self, group: str, names: Sequence[str]) -> None:
        """Move arrays and groups of the root group into a new group."""

    @abstractmethod
    def commit(self, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        """Make what was written what is read, with these attributes of the groups (``""`` is the root)."""

    @abstractmethod
    def close(self) -> None:
        """Close files; the container is not used any more."""

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""
        group, _, last = name.rpartition("/")
        return (not group or group in self.all_groups()) and last in self.names(group)

    def all_groups(self, group: str = "") -> list[str]:
        """Names of all groups below a group."""
        inner = [f"{group}/{name}" if group else name for name in self.groups(group)]
        return [found for name in inner for found in (name, *self.all_groups(name))]

    def read(self, name: str, rows: NDArray[np.int64] | None = None, scans: NDArray[np.int64] | None = None) -> Array:
        """Read rows of an array in the order given, or all of it.

        Parameters
        ----------
        name
            Of the array.
        rows
            Which.
        scans
            What to call each row of the array in an error, if not by its number.

        Raises
        ------
        StoreError
            If chunks are damaged, naming the rows.
        """
        if rows is None:
            try:
                values = self._read(name, slice(None))
                _refuse_lost(values)
            except FAULTS as error:
                raise self._damage(name, error) from error
            return values
        try:
            return self._pick(name, rows)
        except FAULTS as error:
            row = self._first_damaged(name, rows)
            scan = row if scans is None else int(scans[row])
            raise self._damage(f"{name.rpartition('/')[2]} of scan {scan}", error) from error

    def _pick(self, name: str, rows: NDArray[np.int64]) -> Array:
        array = self._array(name)
        ordered, inverse = np.unique(rows, return_inverse=True)
        once = len(ordered) == len(rows)
        text = array.dtype.kind in "OTU"
        dtype = np.dtype(object) if text else np.dtype(array.dtype).newbyteorder("=")
        out = np.empty((len(ordered), *array.shape[1:]), dtype)
        self._fill(name, ordered, out, np.argsort(inverse) if once else np.arange(len(ordered)))
        _refuse_lost(out)
        return out if once else out[inverse]

    def _fill(self, name: str, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        """Read ascending rows to ``out[places]``: every chunk once, neighbours in one call of a few MiB."""
        array = self._array(name)
        chunk = array.chunks[0] if array.chunks else 1
        piece = chunk * max(1, _PIECE // (chunk * max(1, out[:1].nbytes)))
        apart = (np.diff(rows) != 1) & (np.diff(rows // chunk) != 0) | (np.diff(rows // piece) != 0)
        breaks = np.flatnonzero(apart) + 1
        for some, where in zip(np.split(rows, breaks), np.split(places, breaks), strict=True):
            first, count = int(some[0]), int(some[-1] - some[0]) + 1
            place = int(where[0])
            if len(some) == count and (count == 1 or (np.diff(where) == 1).all()):
                self._span(array, first, out[place : place + count])
                continue
            values = np.empty((count, *out.shape[1:]), out.dtype)
            self._span(array, first, values)
            out[where] = values[some - first]

    def _span(self, array: Any, first: int, out: Array) -> None:
        """Read as many rows as ``out`` has."""
        out[...] = array[first : first + len(out)]

    def _first_damaged(self, name: str, rows: NDArray[np.int64]) -> int:
        for row in np.unique(rows):
            try:
                self._pick(name, np.array([row]))
            except FAULTS:
                return int(row)
        return int(rows.min())

    def _damage(self, what: str, error: BaseException) -> StoreError:
        return StoreError(f"{self.path} is damaged: {what} cannot be read ({brief(error)})")


def _refuse_lost(values: Array) -> None:
    if values.dtype.kind == "i" and (values == fill_value(values.dtype)).any():
        raise ValueError("its chunk is lost")


def brief(error: BaseException) -> str:
    """First line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def fill_value(dtype: np.dtype[Any]) -> Any:
    """Return what an array holds where its chunk is lost: a value that is never written."""
    if dtype.kind in "fc":
        return dtype.type(np.nan)
    return dtype.type(np.iinfo(dtype).min if dtype.kind == "i" else 0)


def container_type(path: Path) -> type[Container]:
    """Return the container that a path means: HDF5 for the endings .h5 and .hdf5, a Zarr folder for any other."""
    if path.suffix.lower() in (".h5", ".hdf5"):
        from ambient_sci.datasets.hdf5_container import HDF5Container

        return HDF5Container
    from ambient_sci.datasets.zarr_container import ZarrContainer

    return ZarrContainer
