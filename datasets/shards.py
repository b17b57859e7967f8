"""Reading single chunks out of Zarr shards.

A shard is a file with many chunks, each compressed by itself, and ends with an index: position and length of every
chunk as little-endian 64-bit integers, both all ones for a chunk that was never written, and a CRC32C of the index
(Zarr enhancement proposal 2). zarr-python passes every chunk through an event loop, which takes longer than to
decompress a small one; scans in random order, one chunk each, are read several times faster here. What is read is
bytes that `ambient_sci.datasets.zarr_container` wrote: Blosc, then a CRC32C. `ShardReader.fits` says of an array
whether it is that.
"""

import json
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

__all__ = ["ShardReader"]

_SUM = 4  # bytes of a CRC32C
_INDEXES = 4096  # of shards, kept: a few KiB each
_NEVER = np.iinfo(np.uint64).max


class ShardReader:
    """Rows of one sharded array.

    Parameters
    ----------
    folder
        The array's folder.
    array
        The array as zarr opened it; `fits` must hold for it.
    """

    def __init__(self, folder: Path, array: Any) -> None:
        self.folder = folder
        self.length, *row = array.shape
        self.row = tuple(row)
        self.dtype = np.dtype(array.dtype)
        self.fill_value = array.fill_value
        self.chunk, self.shard = array.chunks[0], array.shards[0]
        self.nbytes = math.prod(array.chunks) * self.dtype.itemsize
        self._index = lru_cache(_INDEXES)(self._read_index)

    @staticmethod
    def fits(folder: Path, array: Any) -> bool:
        """Whether chunks and shards of an array span whole rows and are encoded as above."""
        if array.shards is None or array.chunks[1:] != array.shape[1:] or array.shards[1:] != array.shape[1:]:
            return False
        match json.loads((folder / "zarr.json").read_text()):
            case {
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "codecs": [
                    {
                        "name": "sharding_indexed",
                        "configuration": {
                            "codecs": [
                                {"name": "bytes", "configuration": {"endian": "little"}},
                                {"name": "blosc"},
                                {"name": "crc32c"},
                            ],
                            "index_codecs": [
                                {"name": "bytes", "configuration": {"endian": "little"}},
                                {"name": "crc32c"},
                            ],
                            "index_location": "end",
                        },
                    }
                ],
            }:
                return bool(array.dtype.isnative)
        return False

    def read(self, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Read ascending ``rows`` to ``out[places]``, every chunk once.

        Raises
        ------
        OSError, ValueError, RuntimeError
            If a file ends early, a sum is wrong, or bytes cannot be decompressed to the size of a chunk.
        """
        shards, starts = np.unique(rows // self.shard, return_index=True)
        for number, some, where in zip(
            shards.tolist(), np.split(rows, starts[1:]), np.split(places, starts[1:]), strict=True
        ):
            self._read_shard(number, some - number * self.shard, out, where)

    def _path(self, number: int) -> str:
        return os.path.join(self.folder, "c", str(number), *["0"] * len(self.row))

    def _read_index(self, number: int) -> NDArray[np.uint64]:
        count = self.shard // self.chunk
        with open(self._path(number), "rb", buffering=0) as file:
            file.seek(-16 * count - _SUM, os.SEEK_END)
            return np.frombuffer(_checked(file.read(), 16 * count), "<u8").reshape(count, 2)

    def _read_shard(self, number: int, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.int64]) -> None:
        path = self._path(number)
        if not os.path.exists(path):  # never written, or lost
            out[places] = self.fill_value
            return
        index = self._index(number)
        chunks, starts = np.unique(rows // self.chunk, return_index=True)
        ends = [*starts[1:].tolist(), len(rows)]
        with open(path, "rb", buffering=0) as file:
            for chunk, start, end in zip(chunks.tolist(), starts.tolist(), ends, strict=True):
                position, length = index[chunk].tolist()
                if position == length == _NEVER:
                    out[places[start:end]] = self.fill_value
                    continue
                file.seek(position)
                packed = _checked(file.read(length), length - _SUM)
                if int.from_bytes(packed[4:8], "little") != self.nbytes:  # Blosc's own word; it would not mind
                    raise ValueError("it is not of its size")
                if self.chunk == 1:
                    blosc.decompress(packed, out[places[start] : places[start] + 1])
                    continue
                whole = np.frombuffer(blosc.decompress(packed), self.dtype).reshape(self.chunk, *self.row)
                out[places[start:end]] = whole[rows[start:end] - chunk * self.chunk]


def _checked(data: bytes, length: int) -> bytes:
    """Bytes without the sum at their end, once it has been found right."""
    body = data[:-_SUM]
    if len(body) != length or google_crc32c.value(body) != int.from_bytes(data[-_SUM:], "little"):
        raise ValueError("its checksum is wrong")
    return body
