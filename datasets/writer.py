"""Writing stores: scans appended in batches, and either a whole store in the end or nothing.

Scans of a new store go to a hidden neighbour of the path, ``.<name>.partial-<pid>``, which takes the path's name when
all of them are written. Whatever happens before that (an error, a full disk, a key press, a SIGKILL), a store that was
there stays as it is; what a killed writer left is removed by the next one.

Two options change where scans go:

- ``append`` adds them to a store. A Zarr store grows in place: others may read it meanwhile and see what
  `StoreWriter.commit` or the end made visible, all of it or nothing. An HDF5 file is copied, and the copy takes its
  place at the end; who has the old one open keeps it.
- ``resume`` keeps what was committed of an interrupted store in ``.<name>.partial``, and goes on from there. Zarr only.

Scans of a size that there was not yet open a new group (`ambient_sci.datasets.schema`). A second process that wants to
write to the same path is refused (`ambient_sci.datasets.publishing`).
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ambient_sci import __version__
from ambient_sci.datasets import schema
from ambient_sci.datasets.containers import Container, container_type
from ambient_sci.datasets.publishing import Output, is_store, remove
from ambient_sci.errors import ConfigError, DataError, OutputError, StoreError
from ambient_sci.measurement import Measurement

__all__ = ["StoreWriter", "block_of", "chunking"]

CHUNK = 64 << 10  # bytes compressed together, at least one scan
BLOCK = 32 << 20  # bytes written together, at least one scan
ROWS = 4096  # numbers compressed together where a scan has only one

_SIZE_ATTRIBUTES = ("operator_settings", "image_shape", "coordinates")
_REFERENCE_SCAN = "reference/scan"
Arrays = dict[str, NDArray[Any]]


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
    append
        Add scans to the store that is there. Their provenance joins its own under ``appended``.
    resume
        Keep what was committed when writing is interrupted, and go on after it if a writer of the same provenance was
        interrupted before; ``len(writer)`` says how many scans there are already. Zarr only.

    Raises
    ------
    OutputError
        If something is already there, if another process writes there, if there is no permission, or if the disk is
        full.
    NotFoundError, StoreError
        If there is no store to append to.

    Examples
    --------
    >>> with StoreWriter("scans.zarr") as writer:  # doctest: +SKIP
    ...     for measurement in measurements:
    ...         writer.append(measurement, coords={"subject": [7, 7, 8]})
    >>> with StoreWriter("scans.zarr", append=True) as writer:  # doctest: +SKIP
    ...     writer.append(further)
    """

    def __init__(
        self,
        path: str | Path,
        provenance: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        *,
        append: bool = False,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.provenance = _as_json({"ambient_sci_version": __version__, **(provenance or {})})
        self._type = container_type(self.path)
        if append and (overwrite or resume):
            raise ConfigError("append goes with neither overwrite nor resume: what is there stays, whatever happens")
        if resume and not self._type.appends_in_place:
            raise ConfigError(f"an HDF5 file cannot be resumed: write {self.path} in one go, or a Zarr folder")
        self._append, self._resume = append, resume
        self._output = Output(self.path, overwrite, append)
        self._in_place = append and self._type.appends_in_place
        self._partial = self.path if self._in_place else self._output.partial
        if resume:
            self._partial = self._output.neighbour("partial")
        self._sizes: list[_Size] = []
        self._kind: str | None = None
        self._types: dict[str, np.dtype[Any]] = {}
        self._shared: set[str] = set()  # coordinates and references, which all scans have or none
        self._others: dict[str, Any] = {}
        self._before: dict[str, Any] | None = None  # provenance of the store that is appended to
        self._length = self._committed = self._first = 0
        self._whole = True
        self._container: Container | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._output.locked())
            if not (self._in_place or self._resume):
                stack.callback(remove, self._partial)
            stack.callback(self._abandon)
            with self._output.faults():
                there = self._append or (self._resume and is_store(self._partial))
                if not there:
                    remove(self._partial)
                elif not (self._in_place or self._resume):
                    shutil.copyfile(self.path, self._partial)
                self._container = self._type(self._partial, "a" if there else "w")
                if there:
                    self._take_up()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if error is None:
                self._finish()
            elif self._resume and self._whole and self._length:
                with suppress(OSError):  # what was committed before is safe anyway
                    self._commit()

    def _abandon(self) -> None:
        """Close the container, and cut off what was not committed of a store that stays."""
        if self._container is None:
            return
        with suppress(OSError, RuntimeError):
            self._container.close()
        self._container = None
        if self._in_place and self._length > self._committed:
            with suppress(OSError, StoreError):
                self._type(self.path, "a").close()
        elif self._resume and not self._committed:
            remove(self._partial)

    def __len__(self) -> int:
        return self._length

    @property
    def kept(self) -> tuple[Path, int] | None:
        """Where the next writer finds how many scans, if this one is or was interrupted."""
        return (self._partial, self._committed) if self._resume and self._committed else None

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
            In the instrument's units, that is before division by ``measurement.scale``. Kind and types must be those of
            the first scans, sizes and settings need not; ``measurement.index`` is not written, scans are numbered as
            they come.
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
        self._opened()
        batch = len(measurement)
        arrays = _large(measurement)
        if references is not None:
            arrays[schema.REFERENCE] = references.detach().cpu().resolve_conj().numpy()
            arrays[_REFERENCE_SCAN] = np.arange(self._length, self._length + batch)
        real = arrays["measurement"].real.dtype  # as it is read
        arrays["scale"] = measurement.scale.detach().cpu().numpy().astype(self._types.get("scale", real))
        arrays["scan"] = np.arange(self._length, self._length + batch)
        arrays |= _coordinates(coords or {}, batch)
        spec = measurement.operator.spec()
        self._check(arrays, spec.kind, batch)
        size = self._size(arrays, spec.settings)
        if size is None:
            image = measurement.operator[:1].adjoint(measurement.y[:1])
            size = self._new_size(arrays, spec.settings, list(image.shape[1:]))
        for name, values in arrays.items():  # copied: the caller may use its memory again
            size.pending[name].append(values.reshape(batch, *size.stored(name)).copy())
        size.waiting += batch
        self._length += batch
        ready = (size.written + size.waiting) // size.block * size.block - size.written
        if ready > 0:
            self._flush(size, ready)

    def commit(self) -> None:
        """Make what was appended so far visible to readers, or safe from an interruption.

        Raises
        ------
        ConfigError
            If the store is a new one, or an HDF5 file: it appears as a whole, at the end.
        """
        self._opened()
        if not (self._in_place or self._resume):
            raise ConfigError("commit goes with append or resume to a Zarr folder; any other store appears at the end")
        self._commit()

    def settings_like(self, measurement: Measurement) -> list[dict[str, Any]]:
        """Operator settings of the sizes of which these scans are, settings apart."""
        shapes = {name: values.shape[1:] for name, values in _large(measurement).items()}
        fitting = [size for size in self._sizes if size.measured() == shapes]
        return [json.loads(size.attributes["operator_settings"]) for size in fitting]

    def _opened(self) -> Container:
        if self._container is None:
            raise RuntimeError("StoreWriter is a context manager: use it in a with statement")
        if not self._whole:  # whoever passes over an error does not get half of what failed
            raise OutputError(f"{self.path} is not written: an error came in between")
        return self._container

    # -------------------------------------------------------------------------------------------- what goes where

    def _check(self, arrays: Arrays, kind: str, batch: int) -> None:
        if self._kind is None:
            self._kind, self._shared = kind, _shared(arrays)
        if kind != self._kind:
            raise DataError(f"operator of these scans is {kind}, that of the scans before {self._kind}")
        if odd := sorted(_shared(arrays) ^ self._shared):
            raise DataError(f"{', '.join(odd)} must be given with all scans of a store or with none")
        if not (arrays["scale"] > 0).all():
            raise DataError(f"scale must be above zero, got {arrays['scale'].min()}")
        for name, values in arrays.items():
            if values.shape[:1] != (batch,):
                raise DataError(f"{name} has shape {values.shape}; its first axis must be the {batch} scans")
            wanted = self._types.setdefault(name, values.dtype)
            if values.dtype != wanted and not values.dtype.kind == wanted.kind == "U":
                raise DataError(f"{name} is {values.dtype}, wanted {wanted} like the scans before")
            if values.dtype.kind in "fc" and not np.isfinite(values).all():
                bad = self._length + np.flatnonzero(~np.isfinite(values).reshape(batch, -1).all(1))
                raise DataError(f"{name} of scan {', '.join(map(str, bad[:5]))} has NaN or infinite values")

    def _size(self, arrays: Arrays, settings: Mapping[str, Any]) -> "_Size | None":
        shapes = {name: values.shape[1:] for name, values in arrays.items()}
        told = json.dumps(settings, sort_keys=True)
        for size in self._sizes:
            if size.shapes == shapes and size.attributes["operator_settings"] == told:
                return size
        return None

    def _new_size(self, arrays: Arrays, settings: Mapping[str, Any], image_shape: list[int]) -> "_Size":
        """Fix dimensions, chunks and blocks from the first scans of a size, and make its arrays."""
        container = self._opened()
        y = arrays["measurement"]
        dims = schema.measurement_dims(str(self._kind), y.ndim)
        layouts = {}
        for name, values in arrays.items():
            if name == "measurement":
                layouts[name] = dims
            elif name == schema.REFERENCE:
                layouts[name] = schema.image_dims(values.ndim)
            else:
                layouts[name] = schema.layout(name, values.shape, dims, y.shape)
        shapes = {name: values.shape[1:] for name, values in arrays.items()}
        attributes: dict[str, Any] = {"operator_settings": json.dumps(settings, sort_keys=True)}
        attributes["image_shape"] = image_shape
        if listed := [name for name in arrays if _is_coordinate(name)]:
            attributes["coordinates"] = " ".join(listed)
        if shapes.get(schema.REFERENCE, tuple(image_shape)) != tuple(image_shape):
            raise DataError(f"references have shape {shapes[schema.REFERENCE]}, wanted {tuple(image_shape)} each")
        size = _Size(self._group(), attributes, layouts, shapes)
        per_scan = {name: values[0].nbytes for name, values in arrays.items()}
        size.block = block_of(per_scan.values())
        self._whole = False
        with self._output.faults():
            for name, values in arrays.items():
                chunk, block = chunking(size.stored(name), per_scan[name], size.block)
                about = schema.describe_array(name)
                if "1" in layouts[name]:
                    about["layout"] = " ".join(layouts[name])
                stored = schema.stored_dims(layouts[name])
                container.create(size.name(name), size.stored(name), values.dtype, stored, chunk, block, about)
        self._whole = True
        self._sizes.append(size)
        return size

    def _group(self) -> str:
        """Name of the group of a further size; the first one stands in the root until there is a second."""
        if len(self._sizes) == 1 and not self._sizes[0].group:
            first, container = self._sizes[0], self._opened()
            tops = dict.fromkeys(name.split("/")[0] for name in first.shapes)
            self._whole = False
            with self._output.faults():
                container.move_into(f"{schema.SIZE}0", list(tops))
            self._whole = True
            first.group = f"{schema.SIZE}0"
        return f"{schema.SIZE}{len(self._sizes)}" if self._sizes else ""

    def _take_up(self) -> None:
        """Learn from a store that is there what a writer knows when it has written it."""
        container = self._opened()
        schema.check(container)
        attributes = container.attributes()
        decoded = schema.check_attributes(self.path, attributes)
        self._kind = decoded["operator"]
        ours = ("schema", "schema_version", "operator", "provenance", *_SIZE_ATTRIBUTES)
        self._others = {name: value for name, value in attributes.items() if name not in ours}
        for group in schema.size_groups(container):
            self._sizes.append(self._known_size(container, group))
        self._shared = _shared(self._sizes[0].shapes)
        self._length = self._committed = self._first = sum(size.written for size in self._sizes)
        before: dict[str, Any] = decoded["provenance"]
        if self._append:
            self._before = before
        elif changed := [name for name, value in self.provenance.items() if before.get(name) != value]:
            raise OutputError(
                f"writing {self.path} was interrupted after {self._length} scans, and {', '.join(changed)} was another "
                f"then; remove {self._partial} to start afresh"
            )
        else:
            self.provenance = before

    def _known_size(self, container: Container, group: str) -> "_Size":
        attributes = {name: value for name, value in container.attributes(group).items() if name in _SIZE_ATTRIBUTES}
        attributes["operator_settings"] = json.dumps(json.loads(attributes["operator_settings"]), sort_keys=True)
        names = container.names(group)
        if f"{group}/reference".strip("/") in container.all_groups():
            names += [f"reference/{name}" for name in container.names(f"{group}/reference".strip("/"))]
        size = _Size(group, attributes, {}, {})
        for name in names:
            info = container.info(size.name(name))
            size.layouts[name] = str(info.attributes.get("layout", "")).split() or list(info.dims)
            size.shapes[name] = schema.full_shape(size.layouts[name], info.shape)[1:]
            size.block = info.block if name == "measurement" else size.block
            self._types.setdefault(name, info.dtype.newbyteorder("="))
        size.written = container.info(size.name("measurement")).shape[0]
        return size

    # -------------------------------------------------------------------------------------------- to the disk

    def _flush(self, size: "_Size", count: int) -> None:
        container = self._opened()
        self._whole = False
        for name, batches in size.pending.items():
            values = np.concatenate(batches)
            with self._output.faults():
                container.append(size.name(name), values[:count])
            size.pending[name] = [values[count:]]
        size.written += count
        size.waiting -= count
        self._whole = True

    def _commit(self) -> None:
        container = self._opened()
        for size in self._sizes:
            if size.waiting:
                self._flush(size, size.waiting)
        provenance = self.provenance
        if self._before is not None:
            added = {**self.provenance, "scans": [self._first, self._length]}
            provenance = {**self._before, "appended": [*self._before.get("appended", []), added]}
        told = json.dumps(provenance, sort_keys=True, default=_plain)
        common = {"schema": schema.SCHEMA, "schema_version": schema.SCHEMA_VERSION, "operator": self._kind}
        attributes = {size.group: {**common, **size.attributes} for size in self._sizes}
        attributes[""] = {**self._others, **attributes.get("", common), "provenance": told}
        with self._output.faults():
            container.commit(attributes)
        self._committed = self._length

    def _finish(self) -> None:
        if self._length == 0:
            raise DataError(f"no scans were given for {self.path}; a store needs at least one")
        if self._append and self._length == self._committed:
            return
        self._commit()
        container, self._container = self._opened(), None
        with self._output.faults():
            container.close()
            if not self._in_place:
                self._output.publish(self._partial)


@dataclass
class _Size:
    """What is known of the scans of one size, and those that wait to be written."""

    group: str
    attributes: dict[str, Any]
    layouts: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]]  # of one scan, with the axes that the store leaves out
    block: int = 1
    written: int = 0
    waiting: int = 0
    pending: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))

    def name(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name

    def stored(self, name: str) -> tuple[int, ...]:
        every = zip(self.layouts[name][1:], self.shapes[name], strict=True)
        return tuple(size for dim, size in every if dim != "1")

    def measured(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what belongs to a measurement."""
        return {name: shape for name, shape in self.shapes.items() if _is_measured(name)}


def chunking(shape: Sequence[int], nbytes: int, block: int) -> tuple[int, int]:
    """How many scans of an array are compressed and written together.

    Parameters
    ----------
    shape, nbytes
        Shape and size of one scan's part of it.
    block
        Scans that the arrays of a store have in a block.
    """
    if not shape:
        return ROWS, ROWS
    return min(_power_of_two(CHUNK // max(1, nbytes)), block), block


def block_of(per_scan: Iterable[int]) -> int:
    """Return how many scans are in a block, from the bytes that each array has for one."""
    return _power_of_two(BLOCK // max(1, *per_scan))


def _large(measurement: Measurement) -> Arrays:
    spec = measurement.operator.spec()
    values = {"measurement": measurement.y, "noise_std": measurement.noise_std}
    values |= {f"operator_{name}": value for name, value in spec.parameters.items()}
    return {name: value.detach().cpu().resolve_conj().numpy() for name, value in values.items()}


def _coordinates(coords: Mapping[str, ArrayLike], batch: int) -> Arrays:
    result: Arrays = {}
    for name, values in coords.items():
        if not name.isidentifier() or name in schema.RESERVED or name.startswith(("operator_", schema.SIZE)):
            raise DataError(f"coords: {name!r} cannot be the name of a coordinate; it is reserved or not a plain word")
        array = np.asarray(values)
        if array.shape != (batch,) or array.dtype.kind not in "iufUb":
            raise DataError(
                f"coords: {name!r} must be ({batch},) integers, floats or strings, got {array.dtype} {array.shape}"
            )
        wide = {"i": np.int64, "u": np.int64, "b": np.int64, "f": np.float64, "U": np.str_}[array.dtype.kind]
        result[name] = array.astype(wide)
    return result


def _is_measured(name: str) -> bool:
    return name in ("measurement", "noise_std") or name.startswith("operator_")


def _is_coordinate(name: str) -> bool:
    return not (_is_measured(name) or name in schema.RESERVED or "/" in name)


def _shared(names: Iterable[str]) -> set[str]:
    """Coordinates and references."""
    return {name for name in names if _is_coordinate(name) or name == schema.REFERENCE}


def _as_json(value: Any) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(value, default=_plain))
    return result


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does: NumPy numbers and arrays, paths."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _power_of_two(scans: int) -> int:
    """Round down to 1, 2, 4, ... 256, so that blocks are whole numbers of chunks."""
    return 1 << min(max(scans, 1), 256).bit_length() - 1
