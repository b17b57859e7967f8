"""Stores: measured scans on disk, read a few at a time.

`ambient_sci.datasets.schema` has the names and dimensions, `ambient_sci.datasets.writer` writes them. A scan comes back
as a `Measurement` in working units: ``y`` and ``noise_std`` divided by the scan's ``scale``, so that its image is about
one at its brightest. Results are multiplied by ``Measurement.scale`` to return to the instrument's units.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.datasets.containers import Container, container_type
from ambient_sci.datasets.schema import REFERENCE, check_attributes, full_shape
from ambient_sci.errors import ConfigError, DataError, NotFoundError, StoreError
from ambient_sci.measurement import Measurement
from ambient_sci.operators.base import LinearOperator, OperatorSpec, from_spec

if TYPE_CHECKING:
    import xarray

__all__ = ["Indices", "SizeGroup", "Store", "open_store"]

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
    """

    scans: NDArray[np.int64]
    image_shape: tuple[int, ...]
    measurement_shape: tuple[int, ...]
    chunk: int
    nbytes: int


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
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"no store at {path}: there is no such file or folder")
    kind = container_type(path)
    if path.is_dir() != kind.is_folder:
        raise StoreError(f"{path} is not a store: a store is a Zarr folder, or a file that ends in .h5 or .hdf5")
    container = kind(path)
    try:
        return Store(container)
    except BaseException:
        container.close()
        raise


class Store:
    """Scans on disk; `open_store` makes one.

    Attributes
    ----------
    path
        Where it is.
    kind
        Kind of the operator, such as ``"sense"``.
    image_shape
        ``(channel, *spatial)`` of one image.
    is_complex
        Whether images are complex.
    attrs
        Attributes of the root group, JSON decoded.
    coords
        Coordinates of the scans by name: ``scan``, and what else is known of them.
    scale
        Intensity scale of every scan, ``(scan,)``.
    """

    def __init__(self, container: Container) -> None:
        self.path = container.path
        self._container = container
        names = container.names()
        self.attrs = check_attributes(self.path, container.attributes(), names)
        self.kind: str = self.attrs["operator"]
        self.image_shape: tuple[int, ...] = tuple(self.attrs["image_shape"])
        self._info = {name: container.info(name) for name in names}
        self._length = self._info["measurement"].shape[0] if self._info["measurement"].shape else 0
        self._kept: dict[str, NDArray[Any]] = {}
        self._parameters = [name for name in names if name.startswith("operator_")]
        self._check()
        listed = ["scan", *str(self.attrs.get("coordinates", "")).split()]
        self.coords = {name: _text(container.read(name)) for name in listed if name in self._info}
        self.scale: NDArray[np.floating[Any]] = container.read("scale")
        _require(self.path, "scale", "finite and above zero", np.isfinite(self.scale) & (self.scale > 0))
        self.is_complex = self._check_operator().is_complex()

    def _check(self) -> None:
        if self._length == 0:
            raise StoreError(f"{self.path} holds no scans; a store needs at least one")
        for name, info in self._info.items():
            if info.shape[:1] != (self._length,):
                raise StoreError(
                    f"{self.path}: {name} has shape {info.shape}, but the measurement has {self._length} scans; "
                    f"the first axis of every array is the scan"
                )
        if self._info["measurement"].dtype.kind not in "fc":
            raise StoreError(
                f"{self.path}: measurement must be float or complex, got {self._info['measurement'].dtype}"
            )

    def _check_operator(self) -> Tensor:
        """Apply the first scan's adjoint, and return the image of zeros that it gives."""
        first = np.arange(1)
        y = torch.zeros(1, *self._info["measurement"].shape[1:], dtype=self.dtype)
        try:
            operator = self._operator(first)
            image = operator.adjoint(y)
        except (ConfigError, StoreError):
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            shapes = ", ".join(f"{name} {self._info[name].shape}" for name in ("measurement", *self._parameters))
            raise StoreError(f"{self.path}: operator and measurement do not fit ({shapes}): {error}") from error
        if tuple(image.shape[1:]) != self.image_shape:
            raise StoreError(
                f"{self.path}: image_shape is {self.image_shape}, but its operator measures images of shape "
                f"{tuple(image.shape[1:])}"
            )
        return image

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        size = "×".join(map(str, self.image_shape))
        return f"Store({str(self.path)!r}: {len(self)} scans, {self.kind}, images {size})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the measured values."""
        return torch.from_numpy(np.empty(0, self._info["measurement"].dtype.newbyteorder("="))).dtype

    @property
    def nbytes(self) -> int:
        """Size of everything that `read` returns for all scans, in memory."""
        arrays = (self._info[name] for name in ("measurement", "noise_std", *self._parameters))
        return sum(int(np.prod(info.shape)) * info.dtype.itemsize for info in arrays)

    @property
    def groups(self) -> list[SizeGroup]:
        """Scans by size."""
        info = self._info["measurement"]
        scans = np.arange(len(self))
        return [SizeGroup(scans, self.image_shape, tuple(info.shape[1:]), info.chunk, self.nbytes // len(self))]

    @property
    def has_references(self) -> bool:
        """Whether the images that were measured are known, as only a simulation's are."""
        return self._container.has(REFERENCE)

    def read(self, indices: Indices, raw: bool = False) -> Measurement:
        """Read scans.

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
            If values are NaN or infinite, or a number is out of range; the message names the scan.
        StoreError
            If the store is damaged.
        """
        rows = self._rows(indices)
        y = self._values("measurement", rows)
        noise = self._values("noise_std", rows)
        if bool((noise < 0).any()):
            negative = (noise < 0).flatten(1).any(1) if noise.ndim > 1 else noise < 0
            _require(self.path, "noise_std", "not negative", ~negative.numpy(), rows)
        scale = torch.from_numpy(self.scale[rows].astype(self.scale.dtype.newbyteorder("="))).to(y.real.dtype)
        operator = self._operator(rows)
        if not raw:
            y, noise = _divided(y, scale), _divided(noise, scale)
        return Measurement(y, operator, noise, torch.from_numpy(rows), scale)

    def references(self, indices: Indices) -> Tensor:
        """Images that were measured, ``(n, channel, *spatial)``, in the instrument's units.

        Raises
        ------
        StoreError
            If the store has none.
        """
        if not self.has_references:
            raise StoreError(
                f"{self.path} has no references: only a simulation knows what was measured; "
                f"simulate with references to compare with the truth"
            )
        return torch.from_numpy(_native(self._container.read(REFERENCE, self._rows(indices))))

    def to_xarray(self, references: bool = False) -> "xarray.Dataset":
        """Open the store, or its group of references, as a lazy xarray Dataset in the instrument's units."""
        import xarray

        group = "reference" if references else None
        if references and not self.has_references:
            raise StoreError(f"{self.path} has no references")
        if self._container.is_folder:
            return xarray.open_dataset(self.path, group=group, engine="zarr", consolidated=False, chunks=None)
        return xarray.open_dataset(self.path, group=group, engine="h5netcdf")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shapes, attributes, everything that is small, and three scans: the store's identity in a provenance.

        Stores that hold the same in Zarr and in HDF5, with references and without, have the same fingerprint.
        """
        digest = hashlib.sha256(json.dumps(self.attrs, sort_keys=True, default=str).encode())
        some = np.unique([0, len(self) // 2, len(self) - 1])
        for name, info in sorted(self._info.items()):
            digest.update(json.dumps([name, info.shape, info.dtype.kind, info.dims]).encode())
            small = len(info.shape) == 1 or int(np.prod(info.shape)) * info.dtype.itemsize < 1 << 20
            values = self._container.read(name, None if small else some)
            text = values.dtype.kind in "OTU"
            digest.update(json.dumps(_text(values).tolist()).encode() if text else _native(values).tobytes())
        return digest.hexdigest()[:32]

    def _rows(self, indices: Indices) -> NDArray[np.int64]:
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        rows = np.atleast_1d(np.asarray(indices)).astype(np.int64)
        wrong = rows[(rows < -len(self)) | (rows >= len(self))]
        if rows.ndim != 1 or len(rows) == 0:
            raise DataError(f"indices must name at least one scan of {self.path}, got {indices!r}")
        if len(wrong):
            raise DataError(f"there is no scan {wrong[0]} in {self.path}: it holds {len(self)}, counted from 0")
        return np.asarray(rows % len(self))

    def _values(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        """Rows of an array with the axes that the store left out; NaN refused."""
        info = self._info[name]
        if name not in self._kept and int(np.prod(info.shape)) * info.dtype.itemsize <= _SMALL:
            with suppress(StoreError):  # damaged somewhere: scans that are whole can still be read
                self._kept[name] = _native(self._container.read(name))
        kept = self._kept.get(name)
        values = _native(self._container.read(name, rows)) if kept is None else kept[rows]
        if values.dtype.kind in "fc":
            with np.errstate(invalid="ignore", over="ignore"):
                total = values.view(values.real.dtype).sum()
            if not np.isfinite(total):  # one pass; which scan it was is looked up only when it matters
                finite = np.isfinite(values).reshape(len(rows), -1).all(1)
                _require(self.path, name, "finite; it has NaN, infinite or lost values", finite, rows)
        layout = str(info.attributes.get("layout", "")).split() or list(info.dims)
        return torch.from_numpy(values.reshape(full_shape(layout, values.shape)))

    def _operator(self, rows: NDArray[np.int64]) -> LinearOperator:
        parameters = {name.removeprefix("operator_"): self._values(name, rows) for name in self._parameters}
        return from_spec(OperatorSpec(self.kind, parameters, self.attrs["operator_settings"]))


def _require(path: Path, name: str, what: str, good: NDArray[np.bool_], rows: NDArray[np.int64] | None = None) -> None:
    if not good.all():
        bad = np.flatnonzero(~good) if rows is None else np.unique(rows[~good])
        more = ", ..." if len(bad) > 5 else ""
        raise DataError(f"{path}: {name} of scan {', '.join(map(str, bad[:5]))}{more} must be {what}")


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
