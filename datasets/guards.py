"""What a file from elsewhere must not do to its reader: reach for other files, run code, or exhaust the memory.

An HDF5 file can name other files (external and soft links, external storage, virtual datasets); a Zarr folder can hold
symbolic links and name any codec that is installed. A store needs none of them, and one that has them is refused before
anything is read. What is compressed well may be far larger in memory than on the disk: a read that would not fit is
refused before it begins.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ambient_sci.errors import StoreError

__all__ = ["check_hdf5", "check_memory", "check_zarr"]

CODECS = {"sharding_indexed", "bytes", "vlen-utf8", "blosc", "zstd", "gzip", "crc32c", "transpose"}
_INFLATION = 5000  # more than Deflate (1032) or measured noise under any codec; what is left unmeasured is zeros
_SMALL = 1 << 28  # bytes of one read that are never refused for how well they are compressed


def check_hdf5(path: Path, file: Any, name: str) -> None:
    """Refuse a name of an HDF5 file that leads out of it.

    Raises
    ------
    StoreError
        If a link on the way is not a plain one, or if values lie in other files.
    """
    import h5py

    parts = name.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        way = "/".join(parts[:depth])
        link = file.get(way, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            other = getattr(link, "filename", None) or getattr(link, "path", "elsewhere")
            raise StoreError(f"{path} is not read: {way} is a link to {other}; a store has its values in itself")
    array = file[name]
    if isinstance(array, h5py.Dataset) and (array.external or array.is_virtual):
        raise StoreError(f"{path} is not read: the values of {name} lie in other files; a store has them in itself")


def check_zarr(path: Path) -> None:
    """Refuse a Zarr folder that leads out of itself, or that needs other codecs than a store's.

    Codecs are looked at before anything is opened: opening an array imports the package that announces its codec.

    Raises
    ------
    StoreError
        If something in it is a symbolic link out of it, or if its metadata name another codec.
    """
    root = os.path.realpath(path)
    for folder, folders, files in os.walk(path):
        for entry in (os.path.join(folder, one) for one in (*folders, *files)):
            if os.path.islink(entry) and os.path.commonpath([root, os.path.realpath(entry)]) != root:
                raise StoreError(
                    f"{path} is not read: {os.path.relpath(entry, path)} is a link to {os.readlink(entry)}; "
                    f"a store has its values in itself"
                )
        if "zarr.json" in files:
            strange = set(_codecs_of(Path(folder, "zarr.json"))) - CODECS
            if strange:
                raise StoreError(
                    f"{path} is not read: it is encoded by {', '.join(sorted(strange))}; "
                    f"a store uses {', '.join(sorted(CODECS))}"
                )


def _codecs_of(file: Path) -> list[str]:
    """Names of all codecs in a file of metadata; nothing if it is damaged, which opening it will find."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        metadata = json.loads(file.read_bytes())
        together = (metadata.get("consolidated_metadata") or {}).get("metadata", {})
        return [str(name) for node in (metadata, *together.values()) for name in _codecs(node.get("codecs", ()))]
    return []


def _codecs(chain: Any) -> list[Any]:
    """Names of codecs, those inside shards included."""
    names = []
    for codec in chain:
        names.append(codec.get("name"))
        inside = codec.get("configuration") or {}
        names += _codecs(inside.get("codecs", ())) + _codecs(inside.get("index_codecs", ()))
    return names


def check_memory(path: Path, what: str, nbytes: int, stored: Callable[[], int]) -> None:
    """Refuse a read that would exhaust the memory.

    Parameters
    ----------
    path, what
        Of the container and of what is read, for the error.
    nbytes
        Bytes that it takes in memory.
    stored
        Tells how many bytes it takes on the disk.

    Raises
    ------
    StoreError
        If there is less memory, or if so much could not have come from so little.
    """
    if nbytes <= _SMALL:
        return
    free = _available()
    if nbytes > free:
        raise StoreError(
            f"{path} is not read: {what} takes {nbytes / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are free"
        )
    held = stored()
    if nbytes > _INFLATION * held:
        raise StoreError(
            f"{path} is not read: {what} takes {nbytes / 1e9:.3g} GB of memory and {held / 1e3:.3g} kB of disk; "
            f"measurements are never compressed so well"
        )


def _available() -> int:
    """Bytes of memory that are free or can be made so."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 1 << 62  # unknown: nothing is refused
