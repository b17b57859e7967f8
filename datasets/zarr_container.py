"""Zarr containers: a folder of arrays in Zarr format 3, as `ambient_sci.datasets.containers` wants them.

A shard (one file) holds a block of scans, and each chunk in it is compressed by itself and ends with a CRC32C. The
metadata are written once more together, so that xarray opens a folder by reading one file.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.containers import FAULTS, Array, ArrayInfo, Container, brief, fill_value
from ambient_sci.datasets.shards import ShardReader
from ambient_sci.errors import StoreError

__all__ = ["ZarrContainer"]


class ZarrContainer(Container):
    """A folder in Zarr format 3."""

    is_folder = True

    def __init__(self, path: Path, mode: str = "r") -> None:
        import zarr

        self.path = path
        try:
            self._group = zarr.open_group(str(path), mode=mode, zarr_format=3, use_consolidated=False)  # type: ignore[arg-type]
        except FAULTS as error:
            if mode != "r":
                raise
            raise StoreError(f"{path} is not a store: it has no readable zarr.json ({brief(error)})") from error
        self._arrays: dict[str, Any] = {}
        self._shards: dict[str, ShardReader | None] = {}

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            try:
                self._arrays[name] = self._group[name]
            except FAULTS as error:
                raise StoreError(f"{self.path} is damaged: {name} cannot be opened ({brief(error)})") from error
        return self._arrays[name]

    def names(self) -> list[str]:  # noqa: D102
        folders = (entry for entry in self.path.iterdir() if (entry / "zarr.json").is_file())
        return sorted(entry.name for entry in folders if entry.name != "reference")

    def has(self, name: str) -> bool:  # noqa: D102
        return (self.path / name / "zarr.json").is_file()

    def attributes(self) -> dict[str, Any]:  # noqa: D102
        return dict(self._group.attrs)

    def info(self, name: str) -> ArrayInfo:  # noqa: D102
        array = self._array(name)
        try:
            dtype = np.dtype(np.str_) if array.dtype.kind in "OT" else np.dtype(array.dtype)
            dims = tuple(array.metadata.dimension_names or ())
            chunk = array.chunks[0] if array.chunks else 1
            return ArrayInfo(tuple(array.shape), dtype, dims, dict(array.attrs), chunk)
        except FAULTS as error:
            raise StoreError(f"{self.path} is damaged: {name} is no array ({brief(error)})") from error

    def _read(self, name: str, rows: slice) -> Array:
        return np.asarray(self._array(name)[rows])

    def _fill(self, name: str, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        if name not in self._shards:
            folder, array = self.path / name, self._array(name)
            self._shards[name] = ShardReader(folder, array) if ShardReader.fits(folder, array) else None
        shards = self._shards[name]
        if shards is None:
            super()._fill(name, rows, out, places)
        else:
            shards.read(rows, out, places)

    def create(  # noqa: D102
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], dims: Sequence[str], chunk: int, block: int,
        attributes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec

        text = dtype.kind == "U"
        codec: Any = ZstdCodec(level=3)
        if not text:
            real = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
            codec = BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle, typesize=real)
        self._arrays[name] = self._group.create_array(
            name,
            shape=(0, *shape),
            dtype=str if text else dtype,
            chunks=(chunk, *shape),
            shards=None if text else (block, *shape),
            compressors=[codec, Crc32cCodec()],
            fill_value="" if text else fill_value(dtype),
            dimension_names=list(dims),
            attributes=dict(attributes),
        )

    def append(self, name: str, rows: Array) -> None:  # noqa: D102
        array = self._array(name)
        start = array.shape[0]
        array.resize((start + len(rows), *array.shape[1:]))
        array[start:] = rows

    def finish(self, attributes: Mapping[str, Any]) -> None:  # noqa: D102
        import zarr

        self._group.attrs.update(attributes)
        with warnings.catch_warnings():  # one file of metadata, which xarray looks for, is young in format 3
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(self.path), zarr_format=3)

    def close(self) -> None:  # noqa: D102
        self._arrays.clear()
        self._shards.clear()
