"""Writing stores: scans appended in batches, and either a whole store in the end or nothing.

Scans go to a hidden neighbour of the path, ``.<name>.partial-<pid>``, which takes the path's name when all of them are
written. Whatever happens before that (an error, a full disk, a key press), the neighbour is removed and a store that
was there stays as it is; after a SIGKILL the neighbour remains, and the store as well.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ambient_sci import __version__
from ambient_sci.datasets import schema
from ambient_sci.datasets.containers import Container, container_type
from ambient_sci.errors import AmbientError, DataError, OutputError
from ambient_sci.measurement import Measurement

__all__ = ["StoreWriter"]

CHUNK = 64 << 10  # bytes compressed together, at least one scan
BLOCK = 32 << 20  # bytes written together, at least one scan


class StoreWriter:
    """Write a store.

    Parameters
    ----------
    path
        A Zarr folder, or an HDF5 file where the name ends in ``.h5`` or ``.hdf5``.
    provenance
        How the scans came about, as JSON can hold it; the package's version is added.
    overwrite
        Replace a store that is already there. Anything else that is there is never replaced.

    Raises
    ------
    OutputError
        If something is already there, if there is no permission, or if the disk is full.

    Examples
    --------
    >>> with StoreWriter("scans.zarr") as writer:  # doctest: +SKIP
    ...     for measurement in measurements:
    ...         writer.append(measurement, coords={"subject": [7, 7, 8]})
    """

    def __init__(self, path: str | Path, provenance: Mapping[str, Any] | None = None, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.provenance = {"ambient_sci_version": __version__, **(provenance or {})}
        self._check_path()
        self._partial = self.path.parent / f".{self.path.name}.partial-{os.getpid()}"
        self._pending: dict[str, list[NDArray[Any]]] = {}
        self._small: dict[str, list[NDArray[Any]]] = {}
        self._layouts: dict[str, list[str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._attributes: dict[str, Any] = {}
        self._coords: list[str] = []
        self._length = 0
        self._waiting = 0
        self._block = 1
        self._container: Container | None = None

    def __enter__(self) -> Self:
        with self._faults():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove(self._partial)
            self._container = container_type(self.path)(self._partial, "w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            with suppress(OSError, RuntimeError):
                if self._container is not None:
                    self._container.close()
            self._remove(self._partial)

    def __len__(self) -> int:
        return self._length

    def append(
        self,
        measurement: Measurement,
        references: Tensor | None = None,
        coords: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add scans.

        Parameters
        ----------
        measurement
            In the instrument's units, that is before division by ``measurement.scale``. Kind, settings, sizes and types
            must be those of the first scans; ``measurement.index`` is not written, scans are numbered as they come.
        references
            The images that were measured, ``(batch, channel, *spatial)``, in the same units.
        coords
            What else is known of each scan, ``(batch,)`` each: integers, floats or strings.

        Raises
        ------
        DataError
            If the scans do not go with those before.
        OutputError
            If the disk is full.
        """
        if self._container is None:
            raise RuntimeError("StoreWriter is a context manager: use it in a with statement")
        batch = len(measurement)
        spec = measurement.operator.spec()
        large = {"measurement": measurement.y, "noise_std": measurement.noise_std}
        large |= {f"operator_{name}": value for name, value in spec.parameters.items()}
        if references is not None:
            large[schema.REFERENCE] = references
        arrays = {name: value.detach().cpu().resolve_conj().numpy() for name, value in large.items()}
        arrays["scale"] = measurement.scale.detach().cpu().numpy()
        arrays |= self._coordinates(coords or {}, batch)
        attributes = {"operator": spec.kind, "operator_settings": json.dumps(spec.settings, sort_keys=True)}
        if not self._attributes:
            image = measurement.operator[:1].adjoint(measurement.y[:1])
            self._attributes = {**attributes, "image_shape": list(image.shape[1:])}
            self._plan(arrays, spec.kind)
        self._check(arrays, attributes, batch)
        for name, values in arrays.items():
            home = self._pending if name in self._pending else self._small
            home[name].append(values.reshape(batch, *self._stored(name)).copy())  # the caller may use its memory again
        self._length += batch
        self._waiting += batch
        if self._waiting >= self._block:
            self._flush(self._waiting - self._waiting % self._block)

    # -------------------------------------------------------------------------------------------- what goes where

    def _coordinates(self, coords: Mapping[str, ArrayLike], batch: int) -> dict[str, NDArray[Any]]:
        result: dict[str, NDArray[Any]] = {}
        for name, values in coords.items():
            if not name.isidentifier() or name in schema.RESERVED or name.startswith("operator_"):
                raise DataError(
                    f"coords: {name!r} cannot be the name of a coordinate; it is reserved or not a plain word"
                )
            array = np.asarray(values)
            if array.shape != (batch,) or array.dtype.kind not in "iufUb":
                raise DataError(
                    f"coords: {name!r} must be ({batch},) integers, floats or strings, got {array.dtype} {array.shape}"
                )
            wide = {"i": np.int64, "u": np.int64, "b": np.int64, "f": np.float64, "U": np.str_}[array.dtype.kind]
            result[name] = array.astype(wide)
        return result

    def _plan(self, arrays: dict[str, NDArray[Any]], kind: str) -> None:
        """Fix dimensions, chunks and blocks from the first scans."""
        y = arrays["measurement"]
        dims = schema.measurement_dims(kind, y.ndim)
        for name, values in arrays.items():
            if name == "measurement":
                self._layouts[name] = dims
            elif name == schema.REFERENCE:
                self._layouts[name] = schema.image_dims(values.ndim)
            else:
                self._layouts[name] = schema.layout(name, values.shape, dims, y.shape)
            self._shapes[name] = values.shape[1:]
            self._types[name] = values.dtype
        self._coords = [name for name in arrays if name in _others(arrays)]
        streamed = [name for name in arrays if len(self._stored(name)) > 0]
        row_bytes = {name: max(1, arrays[name][0].nbytes) for name in streamed}
        self._block = _power_of_two(BLOCK // max(row_bytes.values()))
        for name in arrays:
            if name in streamed:
                self._pending[name] = []
                chunk = min(_power_of_two(CHUNK // row_bytes[name]), self._block)
                self._create(name, arrays[name].dtype, chunk)
            else:
                self._small[name] = []

    def _create(self, name: str, dtype: np.dtype[Any], chunk: int) -> None:
        assert self._container is not None
        with self._faults():
            dims = schema.stored_dims(self._layouts[name])
            self._container.create(name, self._stored(name), dtype, dims, chunk, self._block, self._about(name))

    def _about(self, name: str) -> dict[str, str]:
        about = schema.describe_array(name)
        if "1" in self._layouts.get(name, []):
            about["layout"] = " ".join(self._layouts[name])
        return about

    def _stored(self, name: str) -> tuple[int, ...]:
        every = zip(self._layouts[name][1:], self._shapes[name], strict=True)
        return tuple(size for dim, size in every if dim != "1")

    def _check(self, arrays: dict[str, NDArray[Any]], attributes: dict[str, Any], batch: int) -> None:
        for name, wanted in self._attributes.items():
            if name in attributes and attributes[name] != wanted:
                raise DataError(f"{name} of these scans is {attributes[name]}, that of the scans before {wanted}")
        if set(arrays) != set(self._shapes):
            odd = sorted(set(arrays) ^ set(self._shapes))
            raise DataError(f"{', '.join(odd)} must be given with all scans of a store or with none")
        if not (arrays["scale"] > 0).all():
            raise DataError(f"scale must be above zero, got {arrays['scale'].min()}")
        for name, values in arrays.items():
            if values.shape != (batch, *self._shapes[name]):
                raise DataError(
                    f"{name} has shape {values.shape}, wanted {(batch, *self._shapes[name])} like the scans before: "
                    f"one store holds scans of one size"
                )
            if values.dtype != self._types[name] and values.dtype.kind != "U":
                raise DataError(f"{name} is {values.dtype}, wanted {self._types[name]} like the scans before")
            if values.dtype.kind in "fc" and not np.isfinite(values).all():
                bad = self._length + np.flatnonzero(~np.isfinite(values).reshape(batch, -1).all(1))
                raise DataError(f"{name} of scan {', '.join(map(str, bad[:5]))} has NaN or infinite values")

    # -------------------------------------------------------------------------------------------- to the disk

    def _flush(self, count: int) -> None:
        assert self._container is not None
        for name, batches in self._pending.items():
            values = np.concatenate(batches)
            with self._faults():
                self._container.append(name, values[:count])
            self._pending[name] = [values[count:]]
        self._waiting -= count

    def _finish(self) -> None:
        if self._length == 0:
            raise DataError(f"no scans were given for {self.path}; a store needs at least one")
        assert self._container is not None
        if self._waiting:
            self._flush(self._waiting)
        self._small["scan"] = [np.arange(self._length)]
        if schema.REFERENCE in self._pending:
            self._small["reference/scan"] = [np.arange(self._length)]
        for name, batches in self._small.items():
            values = np.concatenate(batches)
            with self._faults():
                about = self._about(name)
                self._container.create(name, (), values.dtype, ["scan"], self._length, self._length, about)
                self._container.append(name, values)
        attributes: dict[str, Any] = {
            "schema": schema.SCHEMA,
            "schema_version": schema.SCHEMA_VERSION,
            **self._attributes,
        }
        attributes["provenance"] = json.dumps(self.provenance, sort_keys=True, default=_plain)
        if self._coords:
            attributes["coordinates"] = " ".join(self._coords)
        with self._faults():
            self._container.finish(attributes)
            self._container.close()
            self._container = None
            self._publish()

    def _publish(self) -> None:
        """Give the finished store its name; a folder that is there steps aside first, and back if that fails."""
        self._check_path()
        if not (self.overwrite and self.path.is_dir()):
            os.replace(self._partial, self.path)
            return
        old = self.path.parent / f".{self.path.name}.replaced-{os.getpid()}"
        self._remove(old)
        os.rename(self.path, old)
        try:
            os.rename(self._partial, self.path)
        except OSError:
            os.rename(old, self.path)
            raise
        self._remove(old)

    def _check_path(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise OutputError(f"{self.path} already exists; choose another path or pass --overwrite (overwrite=True)")
        if not _is_store(self.path):
            raise OutputError(f"{self.path} is not an ambient-sci store and is not replaced; choose another path")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what a file system raises into one line."""
        try:
            yield
        except AmbientError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            number = getattr(error, "errno", None)
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
                raise OutputError(
                    f"the disk is full: {self.path} is not written; free space or choose another path"
                ) from error
            if number in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise OutputError(f"no permission to write {self.path}; choose another path") from error
            raise OutputError(f"{self.path} cannot be written: {text}") from error

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _others(arrays: Mapping[str, Any]) -> list[str]:
    known = (*schema.RESERVED, schema.REFERENCE)
    return [name for name in arrays if name not in known and not name.startswith("operator_")]


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does: NumPy numbers and arrays, paths."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _power_of_two(scans: int) -> int:
    """Round down to 1, 2, 4, ... 256, so that blocks are whole numbers of chunks."""
    return 1 << min(max(scans, 1), 256).bit_length() - 1


def _is_store(path: Path) -> bool:
    try:
        container = container_type(path)(path)
        found = container.attributes().get("schema") == schema.SCHEMA
        container.close()
    except AmbientError:
        return False
    return found
