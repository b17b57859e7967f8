"""HDF5 containers: a file of arrays with netCDF dimensions, as `ambient_sci.datasets.containers` wants them.

Chunks are compressed by gzip after shuffling bytes, with Fletcher-32 sums. Dimensions are HDF5 dimension scales as
netCDF writes them, in each group its own. A file that others may read is not changed: whoever appends does so to a
copy, which then takes the file's name.

The HDF5 library does not survive a full disk: with its own file driver a failed write makes the process crash when the
file is closed. Files are therefore written through `_CarefulFile`, which keeps the first error to itself until HDF5 is
done with its call.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.containers import FAULTS, Array, ArrayInfo, Container, brief, fill_value
from ambient_sci.datasets.guards import check_hdf5
from ambient_sci.datasets.hdf5_chunks import ChunkReader, WrongSizeError
from ambient_sci.errors import StoreError

__all__ = ["HDF5Container"]

_raw_write = io.FileIO.write
_PROPERTIES = "_NCProperties"  # of the netCDF library, no business of ours
_FORMAT = ("v110", "v110")  # the oldest whose metadata have checksums: damage to older ones makes the library crash
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."


class _CarefulFile(io.FileIO):
    """A file that never fails: the first error is kept in ``error``, what could not be written reads as zeros."""

    error: OSError | None = None
    end = 0  # where the file would end if all had been written

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        start = self.tell()
        done = 0
        try:
            while self.error is None and done < len(view):
                done += _raw_write(self, view[done:])
        except OSError as error:
            self.error = error
        self.end = max(self.end, start + len(view))
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        self.end = self.tell() if size is None else size
        try:
            if self.error is None:
                super().truncate(size)
        except OSError as error:
            self.error = error
        return self.end

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (count := super().readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return super().seek(self.end + offset) if whence == io.SEEK_END else super().seek(offset, whence)

    def flush(self) -> None:
        pass  # nothing is buffered


class HDF5Container(Container):
    """An HDF5 file."""

    is_folder = False
    appends_in_place = False

    def __init__(self, path: Path, mode: str = "r") -> None:
        import h5py

        self.path = path
        self._dims: dict[str, tuple[str, ...]] = {}
        self._checked: set[str] = set()
        self._chunks: dict[str, ChunkReader | None] = {}
        self._output: _CarefulFile | None = None
        if mode == "w":
            self._output = _CarefulFile(path, "w+")
            self._file = h5py.File(self._output, mode, libver=_FORMAT)
            return
        try:
            if mode == "a":
                self._output = _CarefulFile(path, "r+")
                self._output.end = path.stat().st_size
                self._file = h5py.File(self._output, "r+", libver=_FORMAT)
            else:
                self._file = h5py.File(path, mode)
        except FAULTS as error:
            raise StoreError(
                f"{path} is not a store: no readable HDF5 file, or a truncated one ({brief(error)})"
            ) from error

    def _array(self, name: str) -> Any:
        if name not in self._checked:
            check_hdf5(self.path, self._file, name)
            self._checked.add(name)
        return self._file[name]

    def _members(self, group: str, wanted: Callable[[Any], bool]) -> list[str]:
        try:
            start = f"{group}/" if group else ""
            return sorted(name for name in self._file[group or "/"] if wanted(self._array(start + name)))
        except StoreError:
            raise
        except FAULTS as error:
            raise StoreError(f"{self.path} is damaged: its arrays cannot be listed ({brief(error)})") from error

    def names(self, group: str = "") -> list[str]:  # noqa: D102
        import h5py

        def variable(value: Any) -> bool:
            label = value.attrs.get("NAME", b"")
            label = label.decode() if isinstance(label, bytes) else str(label)
            return isinstance(value, h5py.Dataset) and not label.startswith(_NO_VARIABLE)

        return self._members(group, variable)

    def groups(self, group: str = "") -> list[str]:  # noqa: D102
        import h5py

        return self._members(group, lambda value: isinstance(value, h5py.Group))

    def attributes(self, group: str = "") -> dict[str, Any]:  # noqa: D102
        try:
            attributes = self._file[group or "/"].attrs
            return {name: _plain(value) for name, value in attributes.items() if name != _PROPERTIES}
        except FAULTS as error:
            raise StoreError(f"{self.path} is damaged: its attributes cannot be read ({brief(error)})") from error

    def info(self, name: str) -> ArrayInfo:  # noqa: D102
        try:
            array = self._array(name)
            dims = tuple(scales[0].name.rpartition("/")[2] if len(scales) else "" for scales in array.dims)
            if array.is_scale:
                dims = (name.rpartition("/")[2],)
            dtype = np.dtype(np.str_) if array.dtype.kind == "O" else array.dtype
            hidden = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates")
            attributes = {key: _plain(value) for key, value in array.attrs.items() if key not in hidden}
            chunk = array.chunks[0] if array.chunks else 1
            info = ArrayInfo(tuple(array.shape), dtype, dims, attributes, chunk, chunk)
            self._check_memory(name, info, chunk)
            return info
        except StoreError:
            raise
        except FAULTS as error:
            raise StoreError(f"{self.path} is damaged: {name} is no array ({brief(error)})") from error

    def _read(self, name: str, rows: slice) -> Array:
        array = self._array(name)
        if self._reader(name) is None or not len(array):
            return np.asarray(array.asstr()[rows] if array.dtype.kind == "O" else array[rows])
        every = np.arange(len(array))[rows]
        values = np.empty((len(every), *array.shape[1:]), array.dtype)
        self._fill(name, every, values, np.arange(len(every)))
        return values

    def _stored(self, name: str) -> int:
        return int(self._array(name).id.get_storage_size())

    def _fill(self, name: str, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        if chunks := self._reader(name):
            try:
                chunks.read(rows, out, places)
                return
            except WrongSizeError:
                raise
            except FAULTS:  # HDF5 knows what else it can be, and says what is wrong
                pass
        super()._fill(name, rows, out, places)

    def _reader(self, name: str) -> ChunkReader | None:
        if name not in self._chunks:
            array = self._array(name)
            self._chunks[name] = ChunkReader(array) if ChunkReader.fits(array) else None
        return self._chunks[name]

    def _span(self, array: Any, first: int, out: Array) -> None:
        import h5py

        # what array[...] does, without what that costs for complex numbers, about as much as to decompress 32 KiB
        space = array.id.get_space()
        space.select_hyperslab((first, *[0] * (out.ndim - 1)), out.shape)
        array.id.read(h5py.h5s.create_simple(out.shape), space, out)

    def create(  # noqa: D102
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], dims: Sequence[str], chunk: int, block: int,
        attributes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        import h5py

        options: dict[str, Any] = {"dtype": h5py.string_dtype()}
        if dtype.kind != "U":
            options = {
                "dtype": dtype,
                "compression": "gzip",
                "compression_opts": 1,
                "shuffle": True,
                "fletcher32": True,
            }
            options["fillvalue"] = fill_value(dtype)
        array = self._file.create_dataset(
            name, shape=(0, *shape), maxshape=(None, *shape), chunks=(chunk, *shape), **options
        )
        array.attrs.update(attributes)
        self._dims[name] = tuple(dims)

    def append(self, name: str, rows: Array) -> None:  # noqa: D102
        array = self._array(name)
        start = array.shape[0]
        array.resize(start + len(rows), axis=0)
        array[start:] = rows.astype(object) if rows.dtype.kind == "U" else rows
        self._raise_error()

    def _raise_error(self) -> None:
        if self._output is not None and self._output.error is not None:
            raise self._output.error

    def move_into(self, group: str, names: Sequence[str]) -> None:  # noqa: D102
        moved = set(names) | {dim for name in names if name in self._file for dim in self._own_dims(name)}
        self._file.require_group(group)
        for name in moved:
            self._file.move(name, f"{group}/{name}")
        self._dims = {f"{group}/{name}" if name.split("/")[0] in moved else name: d for name, d in self._dims.items()}
        self._raise_error()

    def _own_dims(self, name: str) -> list[str]:
        """Dimensions without values of their own that an array is attached to."""
        array = self._file[name]
        return [scales[0].name.strip("/") for scales in getattr(array, "dims", ()) if len(scales)]

    def commit(self, attributes: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: D102
        for name, dims in self._dims.items():
            array = self._array(name)
            for axis, dim in enumerate(dims):
                scale = self._scale(array.parent, dim, array.shape[axis])
                if scale != array:
                    array.dims[axis].attach_scale(scale)
        self._dims.clear()
        for group, values in attributes.items():
            attached = self._file[group or "/"].attrs
            for old in set(attached) - {*values, _PROPERTIES}:
                del attached[old]
            attached.update(values)
        self._file.flush()
        self._raise_error()

    def _scale(self, group: Any, dim: str, size: int) -> Any:
        # every group has its own dimensions, so that one can be deleted without a trace in the other
        if dim not in group:
            group.create_dataset(dim, shape=(size,), dtype=">f4", fillvalue=0).make_scale(f"{_NO_VARIABLE}{size:10d}")
        elif not group[dim].is_scale:
            group[dim].make_scale(dim)
        return group[dim]

    def close(self) -> None:  # noqa: D102
        self._chunks.clear()
        self._file.close()
        if self._output is not None:
            self._output.close()
            self._raise_error()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
