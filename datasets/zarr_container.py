"""Zarr containers: a folder of arrays in Zarr format 3, as `ambient_sci.datasets.containers` wants them.

A shard (one file) holds a block of scans, and each chunk in it is compressed by itself and ends with a CRC32C. The
metadata of all arrays stand once more in the root's ``zarr.json``, which is the only file that a reader looks at before
it reads values, xarray's included. Appending writes values first, into files that take their names when they are whole,
and this one file last: what stands beyond the lengths that it names does not exist. A writer that was killed leaves no
more than that, which the next one cuts off. So does a power cut: a file that was committed is replaced by one that is
on the disk already, and all others are before the commit is.

A shard that is not full is written again, with the chunks that it had at the places that they had, so that a reader who
found a place in the old file finds the same bytes there in the new one. Only a chunk that grew meanwhile can be caught
between the two; its CRC32C then does not fit, and it is read again.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from ambient_sci.datasets.containers import FAULTS, Array, ArrayInfo, Container, brief, fill_value
from ambient_sci.datasets.durable import replace, sync
from ambient_sci.datasets.guards import check_zarr
from ambient_sci.datasets.shards import ShardReader
from ambient_sci.errors import StoreError

__all__ = ["ZarrContainer"]

_TRIES = 3
_SYNCED = 8  # files that are written out at once
_OWN_GROUP = re.compile(r"size_\d+")  # what a killed writer may have left


class _Folder(LocalStore):
    """A folder whose files are on the disk once `sync` returns; those of the `sync` before stay whole until then."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.new: set[Path] = set()  # files that there were not at the last `sync`
        self.changed: set[Path] = set()  # folders of files that were written since

    async def set(self, key: str, value: Buffer) -> None:
        path = self.root / key
        self.changed.add(path.parent)
        if path in self.new or not path.exists():
            self.new.add(path)
            await super().set(key, value)
        else:
            await asyncio.to_thread(replace, path, value.as_numpy_array())

    def take_in(self, folder: Path) -> None:
        """Count what somebody else has put there as new."""
        for place, _, files in os.walk(folder):
            self.changed.add(Path(place))
            self.new |= {Path(place, name) for name in files}

    def sync(self) -> None:
        above = {folder for place in self.changed for folder in (place, *place.parents)}
        with ThreadPoolExecutor(_SYNCED) as threads:  # several at once cost little more than one
            for paths in (self.new, {folder for folder in above if folder.is_relative_to(self.root.parent)}):
                list(threads.map(sync, filter(Path.exists, paths)))
        self.new, self.changed = set(), set()


class ZarrContainer(Container):
    """A folder in Zarr format 3."""

    is_folder = True
    appends_in_place = True

    def __init__(self, path: Path, mode: str = "r") -> None:
        import zarr

        self.path = path
        self._arrays: dict[str, Any] = {}
        self._shards: dict[str, ShardReader | None] = {}
        self._left: list[Path] = []
        self._outdated: list[Path] = []
        if mode != "w":
            check_zarr(path)
        try:
            if mode == "w":
                self._folder = _Folder(path)
                self._group = zarr.open_group(self._folder, mode="w", zarr_format=3)
            else:
                self._group = zarr.open_group(str(path), mode="r", zarr_format=3)
            self._nodes = self._members()
        except FAULTS as error:
            if mode == "w":
                raise
            raise StoreError(f"{path} is not a store: it has no readable zarr.json ({brief(error)})") from error
        if mode == "a":
            self._go_on()

    def _members(self) -> dict[str, bool]:
        """Arrays (True) and groups (False) by name; what was deleted since the last commit does not count."""
        together = self._group.metadata.consolidated_metadata
        if together is not None:
            every: dict[str, Any] = together.flattened_metadata
            found = {name: node.node_type == "array" for name, node in every.items()}
        else:
            found = {name: json.loads(self._file(name).read_text())["node_type"] == "array" for name in self._listed()}
        return {name: array for name, array in found.items() if self._file(name).is_file()}

    def _listed(self) -> Iterable[str]:
        for pattern in ("*/zarr.json", "*/*/zarr.json", "*/*/*/zarr.json"):
            yield from (str(file.parent.relative_to(self.path)) for file in sorted(self.path.glob(pattern)))

    def _file(self, name: str) -> Path:
        return self.path / name / "zarr.json"

    def _go_on(self) -> None:
        """Cut off what stands beyond the last commit."""
        import zarr

        lengths = {name: self.info(name).shape[0] for name, array in self._nodes.items() if array}
        self._folder = _Folder(self.path)
        self._group = zarr.open_group(self._folder, mode="r+", zarr_format=3, use_consolidated=False)
        self._arrays.clear()
        for name, length in lengths.items():
            array = self._array(name)
            if array.shape[0] > length:
                array.resize((length, *array.shape[1:]))
            elif array.shape[0] < length:
                raise StoreError(f"{self.path} is damaged: {name} holds {array.shape[0]} of {length} scans")
        parts = [name.split("/") for name in self._nodes]
        moved = {inner[0] for group, *inner in parts if inner and _OWN_GROUP.fullmatch(group)}
        for entry in list(self.path.iterdir()):
            ours = entry.name in moved or _OWN_GROUP.fullmatch(entry.name)
            if ours and entry.name not in self._nodes:
                shutil.rmtree(entry)

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            try:
                self._arrays[name] = self._group[name]
            except FAULTS as error:
                raise StoreError(f"{self.path} is damaged: {name} cannot be opened ({brief(error)})") from error
        return self._arrays[name]

    def _inside(self, group: str, arrays: bool) -> list[str]:
        start = f"{group}/" if group else ""
        kind = (name for name, array in self._nodes.items() if array == arrays and name.startswith(start))
        return sorted(name for name in (name.removeprefix(start) for name in kind) if "/" not in name)

    def names(self, group: str = "") -> list[str]:  # noqa: D102
        return self._inside(group, arrays=True)

    def groups(self, group: str = "") -> list[str]:  # noqa: D102
        return self._inside(group, arrays=False)

    def attributes(self, group: str = "") -> dict[str, Any]:  # noqa: D102
        return dict((self._group[group] if group else self._group).attrs)

    def info(self, name: str) -> ArrayInfo:  # noqa: D102
        array = self._array(name)
        try:
            dtype = np.dtype(np.str_) if array.dtype.kind in "OT" else np.dtype(array.dtype)
            dims = tuple(array.metadata.dimension_names or ())
            chunk = array.chunks[0] if array.chunks else 1
            block = array.shards[0] if array.shards else chunk
            info = ArrayInfo(tuple(array.shape), dtype, dims, dict(array.attrs), chunk, block)
            self._check_memory(name, info, chunk)
            return info
        except StoreError:
            raise
        except FAULTS as error:
            raise StoreError(f"{self.path} is damaged: {name} is no array ({brief(error)})") from error

    def _read(self, name: str, rows: slice) -> Array:
        return _again(lambda: np.asarray(self._array(name)[rows]))

    def _fill(self, name: str, rows: NDArray[np.int64], out: Array, places: NDArray[np.int64]) -> None:
        if name not in self._shards:
            folder, array = self.path / name, self._array(name)
            self._shards[name] = ShardReader(folder, array) if ShardReader.fits(folder, array) else None
        shards = self._shards[name]
        if shards is None:
            super()._fill(name, rows, out, places)
            return
        try:
            shards.read(rows, out, places)
        except FAULTS:  # it may know places from before a writer replaced the file
            self._shards[name] = ShardReader(self.path / name, self._array(name))
            super()._fill(name, rows, out, places)

    def _stored(self, name: str) -> int:
        return sum(file.stat().st_size for file in (self.path / name / "c").rglob("*") if file.is_file())

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
        for group in _above(name):
            self._group.require_group(group)
            self._nodes[group] = False
        self._arrays[name] = self._group.create_array(
            name,
            shape=(0, *shape),
            dtype=str if text else dtype,
            chunks=(chunk, *shape),
            shards=(block, *shape) if shape else None,
            compressors=[codec, Crc32cCodec()],
            fill_value="" if text else fill_value(dtype),
            dimension_names=list(dims),
            attributes=dict(attributes),
        )
        self._nodes[name] = True

    def append(self, name: str, rows: Array) -> None:  # noqa: D102
        array = self._array(name)
        start = array.shape[0]
        array.resize((start + len(rows), *array.shape[1:]))
        array[start:] = rows

    def move_into(self, group: str, names: Sequence[str]) -> None:
        """Move arrays and groups of the root group into a new group.

        What is there keeps its old place as well until the container is closed, for those who have it open: both names
        are links to the same files, which are replaced and never changed.
        """
        self._group.require_group(group)
        for name in names:
            shutil.copytree(self.path / name, self.path / group / name, copy_function=_link)
            self._left.append(self.path / name)
        self._folder.take_in(self.path / group)
        kept = {name: array for name, array in self._nodes.items() if name.split("/")[0] not in names}
        moved = {f"{group}/{name}": array for name, array in self._nodes.items() if name not in kept}
        self._nodes = kept | {group: False} | moved
        self._arrays.clear()

    def commit(self, attributes: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: D102
        together: dict[str, Any] = {}
        for name in sorted(self._nodes, key=lambda name: (name.count("/"), name)):  # groups first, as Zarr has it
            if not self._nodes[name]:
                own = json.loads(self._file(name).read_text())["attributes"] if name not in attributes else {}
                node = _group_node(attributes.get(name, own))
                self._folder.changed.add(self.path / name)
                _replace(self._file(name), node)
                node["consolidated_metadata"] = _together({})
            else:
                node = json.loads(self._file(name).read_text())
            together[name] = node
        self._folder.sync()
        _replace(self.path / "zarr.json", _group_node(attributes[""]) | {"consolidated_metadata": _together(together)})
        sync(self.path)
        self._outdated += self._left
        self._left = []

    def close(self) -> None:  # noqa: D102
        self._arrays.clear()
        self._shards.clear()
        for path in self._outdated:
            shutil.rmtree(path, ignore_errors=True)
        self._outdated = []


def _again(read: Callable[[], Array]) -> Array:
    """Read once more what a writer may have replaced between two looks at it."""
    for _ in range(_TRIES - 1):
        with suppress(*FAULTS):
            return read()
    return read()


def _above(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _group_node(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}


def _together(nodes: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": nodes}


def _replace(path: Path, node: Mapping[str, Any]) -> None:
    replace(path, json.dumps(node, indent=2).encode())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
