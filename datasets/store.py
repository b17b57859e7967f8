"""Stores: measured scans on disk, read a few at a time.

`ambient_sci.datasets.schema` has the names and dimensions, `ambient_sci.datasets.writer` writes them. A scan comes back
as a `Measurement` in working units: ``y`` and ``noise_std`` divided by the scan's ``scale``, so that its image is about
one at its brightest. Results are multiplied by ``Measurement.scale`` to return to the instrument's units.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.cards import card
from ambient_sci.datasets import schema
from ambient_sci.datasets.containers import ArrayInfo, Container, container_type
from ambient_sci.datasets.schema import REFERENCE, full_shape
from ambient_sci.errors import ConfigError, DataError, NotFoundError, StoreError
from ambient_sci.measurement import Measurement
from ambient_sci.operators.base import LinearOperator, OperatorSpec, from_spec

if TYPE_CHECKING:
    import xarray

__all__ = ["Indices", "SizeGroup", "Store", "open_store", "validate"]

_SMALL = 32 << 20  # bytes of an array that is read at once and kept
Indices = int | slice | Sequence[int] | NDArray[np.integer[Any]] | Tensor


@dataclass(frozen=True)
class SizeGroup:
    """Scans of one size, which can be in one batch.

    Attributes
    ----------
    scans
        Their numbers in the store, ``(n,)``, in the order in which they lie on the disk.
    image_shape, measurement_shape
        Shapes of one scan.
    chunk
        How many neighbours of ``scans`` are compressed together; reading one of them costs as much as reading all.
    nbytes
        Size of one scan in memory: measurement, noise and operator.
    name
        Name of their group in the store, ``"size_0"``, or nothing where all scans have one size.
    settings
        Settings of the operator.
    """

    scans: NDArray[np.int64]
    image_shape: tuple[int, ...]
    measurement_shape: tuple[int, ...]
    chunk: int
    nbytes: int
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def open_store(path: str | Path) -> "Store":
    """Open a store and check that it is whole; no scan but the first is read.

    Parameters
    ----------
    path
        Zarr folder, or HDF5 file (``.h5``, ``.hdf5``).

    Raises
    ------
    NotFoundError
        If there is nothing at ``path``.
    StoreError
        If it is not a store, has another schema version, lacks arrays, has arrays that do not fit each other, holds no
        scans, or is truncated.

    Examples
    --------
    >>> store = open_store("scans.zarr")  # doctest: +SKIP
    >>> store.read([0, 1]).y.shape  # doctest: +SKIP
    torch.Size([2, 8, 64, 64])
    """
    container = _container(path)
    try:
        return Store(container)
    except BaseException:
        container.close()
        raise


def validate(path: str | Path) -> list[str]:
    """Check everything in a store: names, dimensions, units, counts, checksums, and that values can be measurements.

    Returns
    -------
    list of str
        One line a problem, with the scans that it concerns; nothing if the store is as it should be.

    Raises
    ------
    NotFoundError
        If there is nothing at ``path``.
    StoreError
        If there is no store.
    """
    container = _container(path)
    try:
        found = schema.validate(container)
        try:
            return found + Store(container).damage()
        except (StoreError, DataError, ConfigError) as error:  # too far gone to be opened
            return found if str(error) in found else [*found, str(error)]
    finally:
        container.close()


def _reopen_head(path: Path, count: int) -> "Store":
    return open_store(path).head(count)


def _container(path: str | Path) -> Container:
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"no store at {path}: there is no such file or folder")
    kind = container_type(path)
    if path.is_dir() != kind.is_folder:
        raise StoreError(f"{path} is not a store: a store is a Zarr folder, or a file that ends in .h5 or .hdf5")
    return kind(path)


class Store:
    """Scans on disk; `open_store` makes one.

    Attributes
    ----------
    path
        Where it is.
    kind
        Kind of the operator, such as ``"sense"``.
    is_complex
        Whether images are complex.
    attrs
        Attributes of the root group, JSON decoded.
    coords
        Coordinates of the scans by name: ``scan``, and what else is known of them.
    scale
        Intensity scale of every scan, ``(scan,)``.
    groups
        Scans by size.
    """

    def __init__(self, container: Container) -> None:
        self.path = container.path
        self._container = container
        self._whole = True
        schema.check(container)
        self.attrs = schema.check_attributes(self.path, container.attributes())
        self.kind: str = self.attrs["operator"]
        names = schema.size_groups(container)
        self._sizes = [_Size(container, self.kind, name) for name in names]
        if names == [""]:
            self.attrs |= schema.decode(self.path, container.attributes())
            self._sizes[0].scans = np.arange(self._sizes[0].length)
        self._length = sum(size.length for size in self._sizes)
        self._size_of, self._row_of = self._places()
        self.coords = {name: self._gather(name) for name in self._sizes[0].coordinates}
        self.scale: NDArray[np.floating[Any]] = self._gather("scale")
        _require(self.path, "scale", "finite and above zero", np.isfinite(self.scale) & (self.scale > 0))
        images = [size.check_operator() for size in self._sizes]
        self.is_complex = images[0].is_complex()
        self.groups = [
            SizeGroup(size.scans, size.image_shape, size.measurement_shape, size.chunk, size.nbytes, size.name,
                      size.settings)
            for size in self._sizes
        ]  # fmt: skip

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each scan, which size it has and in which row of its group it stands."""
        size_of = np.full(self._length, -1)
        row_of = np.zeros(self._length, np.int64)
        for number, size in enumerate(self._sizes):
            if ((size.scans < 0) | (size.scans >= self._length)).any():
                raise StoreError(
                    f"{self.path} is damaged: scan in {size.name} must be 0 to {self._length - 1}, "
                    f"got {size.scans.min()} to {size.scans.max()}"
                )
            size_of[size.scans] = number
            row_of[size.scans] = np.arange(size.length)
        if (size_of < 0).any():
            raise StoreError(f"{self.path} is damaged: no group holds scan {np.flatnonzero(size_of < 0)[0]}")
        return size_of, row_of

    def _gather(self, name: str) -> NDArray[Any]:
        """Values of an array ``(scan,)`` for all scans."""
        values = np.concatenate([_text(size.whole(name)) for size in self._sizes])
        gathered: NDArray[Any] = values[np.argsort(np.concatenate([size.scans for size in self._sizes]))]
        return gathered

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        shapes = ", ".join(_times(shape) for shape in self._image_shapes())
        return f"Store({str(self.path)!r}: {len(self)} scans, {self.kind}, images {shapes})"

    def _repr_html_(self) -> str:
        """Show what ``ambient-sci info`` says, and the adjoint of the first scan."""
        from ambient_sci.datasets.describe import describe

        m = self.read(self.groups[0].scans[:1])
        image = m.operator.adjoint(m.y)[0, 0].abs()
        return card("Store", describe(self).facts, image, f"adjoint of scan {int(m.index[0])}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_store, (self.path,)) if self._whole else (_reopen_head, (self.path, len(self)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _image_shapes(self) -> list[tuple[int, ...]]:
        return list(dict.fromkeys(size.image_shape for size in self._sizes))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(channel, *spatial)`` of one image.

        Raises
        ------
        DataError
            If scans are of images of different shapes; `groups` has them all.
        """
        shapes = self._image_shapes()
        if len(shapes) > 1:
            raise DataError(
                f"{self.path} holds images of different shapes, {' and '.join(map(_times, shapes[:2]))}, where one is "
                f"wanted; bring them to one matrix, or take the scans of one size"
            )
        return shapes[0]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the measured values."""
        return self._sizes[0].dtype

    @property
    def nbytes(self) -> int:
        """Size of everything that `read` returns for all scans, in memory."""
        return sum(group.nbytes * len(group.scans) for group in self.groups)

    @property
    def has_references(self) -> bool:
        """Whether the images that were measured are known, as only a simulation's are."""
        return all(size.has_references for size in self._sizes)

    def read(self, indices: Indices, raw: bool = False) -> Measurement:
        """Read scans of one size.

        Parameters
        ----------
        indices
            Numbers of the scans, in any order; a slice; or one number for a batch of one.
        raw
            Leave values in the instrument's units instead of dividing them by ``scale``.

        Returns
        -------
        Measurement
            ``index`` holds the numbers of the scans, ``scale`` what they were divided by (or would be).

        Raises
        ------
        DataError
            If values are NaN or infinite, a number is out of range, or the scans are of different sizes, which cannot
            be in one batch; the message names the scan.
        StoreError
            If the store is damaged.
        """
        scans = self._numbers(indices)
        different = np.flatnonzero(self._size_of[scans] != self._size_of[scans[0]])
        if len(different):
            pair = scans[0], scans[different[0]]
            a, b = (self._sizes[self._size_of[scan]].describe() for scan in pair)
            raise DataError(
                f"scans {pair[0]} and {pair[1]} of {self.path} are of different sizes, {a} and {b}, and cannot be in "
                f"one batch; Store.groups has the scans of each size"
            )
        size = self._sizes[self._size_of[scans[0]]]
        rows = self._row_of[scans]
        y = size.values("measurement", rows)
        noise = size.values("noise_std", rows)
        if bool((noise < 0).any()):
            negative = (noise < 0).flatten(1).any(1) if noise.ndim > 1 else noise < 0
            _require(self.path, "noise_std", "not negative", ~negative.numpy(), scans)
        scale = torch.from_numpy(self.scale[scans].astype(self.scale.dtype.newbyteorder("="))).to(y.real.dtype)
        operator = size.operator(rows)
        if not raw:
            y, noise = _divided(y, scale), _divided(noise, scale)
        return Measurement(y, operator, noise, torch.from_numpy(scans), scale)

    def head(self, count: int) -> "Store":
        """View of the first scans, which have the same numbers in it; the rest of the store is out of its reach.

        Parameters
        ----------
        count
            How many, at least one.
        """
        if not 0 < count <= len(self):
            raise DataError(f"count must be 1 to {len(self)}, the scans in {self.path}, got {count}")
        view = object.__new__(Store)
        vars(view).update(vars(self))
        view._length, view._whole = count, False
        view._size_of, view._row_of, view.scale = self._size_of[:count], self._row_of[:count], self.scale[:count]
        view.coords = {name: values[:count] for name, values in self.coords.items()}
        groups = [replace(group, scans=group.scans[group.scans < count]) for group in self.groups]
        view.groups = [group for group in groups if len(group.scans)]
        return view

    def by_size(self, indices: Indices) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Sort scans by size.

        Yields
        ------
        scans, places
            Numbers of the scans of one size in the order given, and where they stand among ``indices``.
        """
        scans = self._numbers(indices)
        for number in dict.fromkeys(self._size_of[scans].tolist()):
            places = np.flatnonzero(self._size_of[scans] == number)
            yield scans[places], places

    def references(self, indices: Indices) -> Tensor:
        """Images that were measured, ``(n, channel, *spatial)``, in the instrument's units.

        Raises
        ------
        StoreError
            If the store has none.
        DataError
            If the images are of different shapes.
        """
        if not self.has_references:
            raise StoreError(
                f"{self.path} has no references: only a simulation knows what was measured; "
                f"simulate with references to compare with the truth"
            )
        parts, places = [], []
        for scans, place in self.by_size(indices):
            parts.append(self._sizes[self._size_of[scans[0]]].references(self._row_of[scans]))
            places.append(place)
        shapes = list(dict.fromkeys(part.shape[1:] for part in parts))
        if len(shapes) > 1:
            raise DataError(
                f"references of {self.path} are of different shapes, {' and '.join(map(_times, shapes[:2]))}; ask for "
                f"those of one size at a time"
            )
        return torch.from_numpy(np.concatenate(parts)[np.argsort(np.concatenate(places))])

    def to_xarray(self, references: bool = False, group: str = "") -> "xarray.Dataset":
        """Open the store, or its group of references, as a lazy xarray Dataset in the instrument's units.

        Parameters
        ----------
        references
            Open the references.
        group
            Which size, by its name in `groups`; needed where there are several. ``xarray.open_datatree`` opens all.
        """
        import xarray

        known = [size.name for size in self._sizes]
        if group not in known:
            raise ConfigError(f"group must be one of {', '.join(map(repr, known))} in {self.path}, got {group!r}")
        size = self._sizes[known.index(group)]
        if references and not size.has_references:
            raise StoreError(f"{self.path} has no references")
        inner = f"{group}/reference".strip("/") if references else group or None
        if self._container.is_folder:
            data = xarray.open_dataset(self.path, group=inner, engine="zarr", chunks=None)
            return data.isel(scan=slice(size.length))  # it may have grown since
        return xarray.open_dataset(self.path, group=inner, engine="h5netcdf")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shapes, attributes, everything that is small, and three scans: the store's identity in a provenance.

        Stores that hold the same in Zarr and in HDF5, with references and without, have the same fingerprint.
        """
        digest = hashlib.sha256(json.dumps(self.attrs, sort_keys=True, default=str).encode())
        for size in self._sizes:
            if size.name:
                digest.update(json.dumps([size.name, size.settings, size.image_shape], sort_keys=True).encode())
            some = np.unique([0, size.length // 2, size.length - 1])
            for name, info in sorted(size.info.items()):
                digest.update(json.dumps([name, info.shape, info.dtype.kind, info.dims]).encode())
                small = len(info.shape) == 1 or _bytes(info) < 1 << 20
                values = size.whole(name) if small else size.rows(name, some)
                text = values.dtype.kind in "OTU"
                digest.update(json.dumps(_text(values).tolist()).encode() if text else _native(values).tobytes())
        return digest.hexdigest()[:32]

    def damage(self) -> list[str]:
        """Read everything, and list what is damaged or no measurement, with the scans that it concerns."""
        found: list[str] = []
        for size in self._sizes:
            names = [*size.info, *([REFERENCE] if size.has_references else [])]
            for name in names:
                found += size.damage(name)
        return found

    def validate(self) -> list[str]:
        """Check everything; see `ambient_sci.datasets.store.validate`."""
        return schema.validate(self._container) + self.damage()

    def _numbers(self, indices: Indices) -> NDArray[np.int64]:
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        scans = np.atleast_1d(np.asarray(indices)).astype(np.int64)
        wrong = scans[(scans < -len(self)) | (scans >= len(self))]
        if scans.ndim != 1 or len(scans) == 0:
            raise DataError(f"indices must name at least one scan of {self.path}, got {indices!r}")
        if len(wrong):
            raise DataError(f"there is no scan {wrong[0]} in {self.path}: it holds {len(self)}, counted from 0")
        return np.asarray(scans % len(self))


class _Size:
    """Scans of one size in one group of a container; rows are counted in the group, from zero."""

    def __init__(self, container: Container, kind: str, name: str) -> None:
        self.path, self.name, self.kind = container.path, name, kind
        self._container = container
        self._kept: dict[str, NDArray[Any]] = {}
        attributes = container.attributes(name)
        decoded = schema.decode(self.path, attributes)
        self.settings: dict[str, Any] = decoded["operator_settings"]
        self.image_shape = tuple(decoded["image_shape"])
        self.info = {array: container.info(self._full(array)) for array in container.names(name)}
        self.length: int = self.info["measurement"].shape[0]
        self.measurement_shape = tuple(self.info["measurement"].shape[1:])
        self.chunk = self.info["measurement"].chunk
        self.parameters = [array for array in self.info if array.startswith("operator_")]
        self.has_references = container.has(self._full(REFERENCE))
        listed = ["scan", *str(attributes.get("coordinates", "")).split()]
        self.coordinates = [array for array in listed if array in self.info]
        self.scans: NDArray[np.int64] = _native(self.whole("scan")).astype(np.int64)

    def _full(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.info["measurement"].dtype.newbyteorder("="))).dtype

    @property
    def nbytes(self) -> int:
        """Size of one scan in memory."""
        return sum(_bytes(self.info[name]) for name in ("measurement", "noise_std", *self.parameters)) // self.length

    def describe(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.settings.items() if name != "shape")
        return f"images {_times(self.image_shape)} from {_times(self.measurement_shape)}{settings}"

    def check_operator(self) -> Tensor:
        """Apply the first scan's adjoint, and return the image of zeros that it gives."""
        y = torch.zeros(1, *self.measurement_shape, dtype=self.dtype)
        try:
            image = self.operator(np.arange(1)).adjoint(y)
        except (ConfigError, StoreError):
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            shapes = ", ".join(f"{name} {self.info[name].shape}" for name in ("measurement", *self.parameters))
            raise StoreError(f"{self.path}: operator and measurement do not fit ({shapes}): {error}") from error
        if tuple(image.shape[1:]) != self.image_shape:
            raise StoreError(
                f"{self.path}: image_shape is {self.image_shape}, but its operator measures images of shape "
                f"{tuple(image.shape[1:])}"
            )
        return image

    def whole(self, name: str) -> NDArray[Any]:
        return self._container.read(self._full(name))

    def rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self._container.read(self._full(name), rows, self.scans)

    def values(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        """Rows of an array with the axes that the store left out; NaN refused."""
        info = self.info[name]
        if name not in self._kept and _bytes(info) <= _SMALL:
            with suppress(StoreError):  # damaged somewhere: scans that are whole can still be read
                self._kept[name] = _native(self.whole(name))
        kept = self._kept.get(name)
        values = _native(self.rows(name, rows)) if kept is None else kept[rows]
        if values.dtype.kind in "fc":
            with np.errstate(invalid="ignore", over="ignore"):
                total = values.view(values.real.dtype).sum()
            if not np.isfinite(total):  # one pass; which scan it was is looked up only when it matters
                finite = np.isfinite(values).reshape(len(rows), -1).all(1)
                _require(self.path, name, "finite; it has NaN, infinite or lost values", finite, self.scans[rows])
        layout = str(info.attributes.get("layout", "")).split() or list(info.dims)
        return torch.from_numpy(values.reshape(full_shape(layout, values.shape)))

    def operator(self, rows: NDArray[np.int64]) -> LinearOperator:
        parameters = {name.removeprefix("operator_"): self.values(name, rows) for name in self.parameters}
        return from_spec(OperatorSpec(self.kind, parameters, self.settings))

    def references(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return _native(self.rows(REFERENCE, rows))

    def damage(self, name: str) -> Iterator[str]:
        """Read an array, and tell of chunks that are damaged and values that cannot be."""
        info = self.info[name] if name in self.info else self._container.info(self._full(name))
        broken: dict[int, str] = {}
        wrong: list[int] = []
        must = {"scale": "finite and above zero", "noise_std": "finite and not negative"}.get(name, "finite")
        for start in range(0, info.shape[0], info.block):
            block = np.arange(start, min(start + info.block, info.shape[0]))
            for rows, values in self._readable(name, block, broken):
                if values.dtype.kind not in "fc":
                    continue
                good = np.isfinite(values)
                if name == "scale":
                    good &= values > 0
                elif name == "noise_std":
                    good &= values >= 0
                wrong += rows[~good.reshape(len(rows), -1).all(1)].tolist()
        if broken:
            first = next(iter(broken.values()))
            yield f"{self.path} is damaged: {name} of scan {_some(self.scans[[*broken]])} cannot be read ({first})"
        if wrong:
            yield f"{self.path}: {name} of scan {_some(self.scans[wrong])} must be {must}"

    def _readable(
        self, name: str, block: NDArray[np.int64], broken: dict[int, str]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Rows of a block with their values; those that cannot be read are noted by what is wrong with them."""
        try:
            yield block, self.rows(name, block)
        except StoreError as error:
            if len(block) > 1:
                for row in block:
                    yield from self._readable(name, np.array([row]), broken)
            else:
                broken[int(block[0])] = str(error).rpartition("cannot be read (")[2].removesuffix(")")


def _require(path: Path, name: str, what: str, good: NDArray[np.bool_], scans: NDArray[np.int64] | None = None) -> None:
    if not good.all():
        bad = np.flatnonzero(~good) if scans is None else np.unique(scans[~good])
        raise DataError(f"{path}: {name} of scan {_some(bad)} must be {what}")


def _some(scans: NDArray[np.int64]) -> str:
    """First few of several numbers."""
    return ", ".join(map(str, scans[:5])) + (", ..." if len(scans) > 5 else "")


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _bytes(info: ArrayInfo) -> int:
    return int(np.prod(info.shape)) * info.dtype.itemsize


def _divided(values: Tensor, scale: Tensor) -> Tensor:
    """Divide each scan by its scale, in place; real and imaginary parts are, as torch has it, multiplied by 1/scale."""
    if values.is_complex():
        torch.view_as_real(values).mul_(scale.reciprocal().reshape(-1, *[1] * values.ndim))
        return values
    return values.div_(scale.reshape(-1, *[1] * (values.ndim - 1)))


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _text(values: NDArray[Any]) -> NDArray[Any]:
    return np.array(values.tolist(), dtype=np.str_) if values.dtype.kind in "OTU" else values
