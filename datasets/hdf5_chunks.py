"""Reading single chunks out of an HDF5 file, decompressed outside of the library.

HDF5 lets one thread in at a time and decompresses inside, so that threads which read ahead wait for each other. Here a
chunk leaves the file as it is stored, under the library's lock, and is decompressed without it. What is read is bytes
that `ambient_sci.datasets.hdf5_container` wrote: the first bytes of all values, then their second ones and so on,
Deflate, and a Fletcher-32 sum. `ChunkReader.fits` says of an array whether it is that.
"""

import math
import zlib
from typing import Any

import numpy as np
from numcodecs.fletcher32 import Fletcher32
from numcodecs.shuffle import Shuffle
from numpy.typing import NDArray

__all__ = ["ChunkReader", "WrongSizeError"]

_SUM = 4  # bytes of a Fletcher-32 sum
_DEFLATE = 0b010  # what HDF5 notes of a chunk that Deflate, the second filter, would not make smaller


class WrongSizeError(ValueError):
    """A chunk too short or too long; HDF5 goes on with what lies behind it in the memory, or crashes."""


class ChunkReader:
    """Rows of one array.

    Parameters
    ----------
    array
        The array as h5py opened it; `fits` must hold for it.
    """

    def __init__(self, array: Any) -> None:
        self._array = array.id
        self.dtype = array.dtype
        self.chunk, *self.row = array.chunks
        self.nbytes = math.prod(array.chunks) * array.dtype.itemsize
        self._checked, self._shuffle = Fletcher32(), Shuffle(array.dtype.itemsize)

    @staticmethod
    def fits(array: Any) -> bool:
        """Whether chunks of an array span whole rows, encoded as above, of numbers as this machine has them."""
        from h5py import h5t, h5z

        if array.chunks is None or array.chunks[1:] != array.shape[1:] or array.dtype.kind not in "fciu":
            return False
        made = array.id.get_create_plist()
        match [made.get_filter(number) for number in range(made.get_nfilters())]:
            case [(h5z.FILTER_SHUFFLE, _, (size,), _), (h5z.FILTER_DEFLATE, *_), (h5z.FILTER_FLETCHER32, *_)]:
                same: bool = array.id.get_type() == h5t.py_create(array.dtype)
                return same and array.dtype.isnative and size == array.dtype.itemsize
        return False

    def read(self, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Read ascending ``rows`` to ``out[places]``, every chunk once.

        Raises
        ------
        WrongSizeError
            If a chunk does not have the size that it must have.
        OSError, ValueError, RuntimeError
            If a chunk was never written, its sum is wrong, or it cannot be decompressed.
        """
        chunks, starts = np.unique(rows // self.chunk, return_index=True)
        parts = np.split(rows, starts)[1:], np.split(places, starts)[1:]
        for chunk, some, where in zip(chunks.tolist(), *parts, strict=True):
            if self.chunk == 1:
                self._decode(chunk, out[where[0] : where[0] + 1])
                continue
            whole = np.empty((self.chunk, *self.row), self.dtype)
            self._decode(chunk, whole)
            out[where] = whole[some - chunk * self.chunk]

    def _decode(self, chunk: int, out: NDArray[Any]) -> None:
        skipped, stored = self._array.read_direct_chunk((chunk * self.chunk, *[0] * len(self.row)))
        if skipped not in (0, _DEFLATE):
            raise ValueError("it is encoded in another way")
        if len(stored) <= _SUM:
            raise WrongSizeError("a chunk ends before its sum")
        body = self._checked.decode(stored)
        shuffled = body if skipped else self._inflate(body)
        if len(shuffled) != self.nbytes:
            raise WrongSizeError("a chunk does not have its size")
        self._shuffle.decode(shuffled, out)

    def _inflate(self, body: Any) -> bytes:
        inflate = zlib.decompressobj()
        try:
            found = inflate.decompress(body, self.nbytes + 1)  # a bomb gets no further
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if not inflate.eof and len(found) <= self.nbytes:
            raise ValueError("it ends early")
        return found
