"""Chunks that are decompressed outside of HDF5, beside what h5py reads of the same array."""

import struct
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.datasets.hdf5_chunks import ChunkReader
from ambient_sci.datasets.hdf5_container import HDF5Container
from ambient_sci.errors import StoreError

FILTERS = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}


def write(path, length, row, dtype, chunk):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**7, (length, *row)).astype(dtype)
    container = HDF5Container(path, "w")
    container.create("a", row, np.dtype(dtype), ["scan", *"zyx"[: len(row)]], chunk, chunk, {})
    for part in np.split(values, [length // 3, length // 2]):
        container.append("a", part)
    container.commit({"": {}})
    container.close()
    return values


def read(array, rows):
    rows = np.asarray(rows)
    out = np.zeros((len(rows), *array.shape[1:]), array.dtype)
    places = np.random.default_rng(1).permutation(len(rows))
    ChunkReader(array).read(rows, out, places)
    return out[places]


def fletcher32(data):
    """Sums of big-endian words modulo 65535, by the definition."""
    one = two = 0
    for word in np.frombuffer(data + bytes(len(data) % 2), ">u2").tolist():
        one = (one + word) % 65535
        two = (two + one) % 65535
    return struct.pack("<I", two << 16 | one)


def packed(values):
    """A chunk as HDF5 stores it."""
    shuffled = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, values.itemsize).T.tobytes()
    return zlib.compress(shuffled, 1)


@pytest.mark.parametrize("dtype", ["c8", "c16", "f4", "f8", "i8", "u1", "f2"])
@pytest.mark.parametrize("row", [(), (5,), (3, 2, 7)])
def test_as_h5py_reads_it(tmp_path_factory, dtype, row):
    """Last chunks that are not full, too."""

    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(st.integers(1, 23), st.integers(1, 9), st.data())
    def check(length, chunk, data):
        path = tmp_path_factory.mktemp("a") / "a.h5"
        values = write(path, length, row, dtype, chunk)
        rows = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
        with h5py.File(path) as file:
            assert ChunkReader.fits(file["a"])
            np.testing.assert_array_equal(read(file["a"], rows), values[rows])
            np.testing.assert_array_equal(file["a"][:], values)

    check()


def test_what_was_never_written_is_the_fill_value(tmp_path):
    values = write(tmp_path / "a.h5", 8, (4,), np.float32, 2)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["a"].resize(12, axis=0)
        with pytest.raises((ValueError, OSError, RuntimeError)):
            read(file["a"], [6, 9])
    got = HDF5Container(tmp_path / "a.h5").read("a", np.array([9, 1, 6]))
    np.testing.assert_array_equal(got, [[np.nan] * 4, values[1], values[6]])


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.h5"
    values = write(path, 1, (7, 3), np.complex64, 1)
    with h5py.File(path) as file:
        info = file["a"].id.get_chunk_info(0)
    whole = path.read_bytes()
    for place in range(info.byte_offset, info.byte_offset + info.size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with h5py.File(path) as file, pytest.raises((ValueError, OSError, RuntimeError)):
            read(file["a"], [0])
        if place % 10 == 0:  # and told as HDF5 tells it
            with pytest.raises(StoreError, match=r"is damaged: a of scan 0 cannot be read \(Can't .*\)$"):
                HDF5Container(path).read("a", np.array([0]), np.array([0]))
    path.write_bytes(whole)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(read(file["a"], [0]), values)


@pytest.fixture
def made(tmp_path):
    """Values, and a function that makes a file whose only chunk is stored as given."""
    values = np.arange(10, dtype=np.float32).reshape(2, 5)

    def put(stored, skipped=0):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        with h5py.File(path, "w") as file:
            array = file.create_dataset("a", (2, 5), "f4", chunks=(2, 5), **FILTERS)
            array.id.write_direct_chunk((0, 0), stored, skipped)
        return path

    return values, put


def both_reads(path):
    """Whole, and by rows."""
    container = HDF5Container(path)
    yield lambda: container.read("a")
    yield lambda: container.read("a", np.array([0, 1]))


def test_our_own_encoding_is_read(made):
    """Chunks that Deflate would not have made smaller are not deflated, and others may be encoded in other ways."""
    values, put = made
    shuffled = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, 4).T.tobytes()
    for body, skipped, ours in (
        (packed(values), 0, True),
        (shuffled, 0b010, True),
        (zlib.compress(values), 0b001, False),
    ):
        path = put(body + fletcher32(body), skipped)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["a"][:], values)
            if ours:
                np.testing.assert_array_equal(read(file["a"], [0, 1]), values)
        for result in both_reads(path):
            np.testing.assert_array_equal(result(), values)


def test_chunks_of_another_size_are_refused(made):
    """HDF5 itself takes too short a chunk and what lies in the memory behind it."""
    values, put = made
    for body, skipped in (
        (packed(values[:1]), 0),
        (packed(np.concatenate([values, values])), 0),
        (zlib.compress(b""), 0),
        (values[:1].tobytes(), 0b010),
    ):
        for result in both_reads(put(body + fletcher32(body), skipped)):
            with pytest.raises(StoreError, match=r"is damaged: a.* cannot be read \(a chunk does not have its size"):
                result()


def test_a_bomb_is_inflated_no_further_than_a_chunk(made):
    bomb = zlib.compress(bytes(1 << 26))
    for result in both_reads(made[1](bomb + fletcher32(bomb))):
        tracemalloc.start()
        with pytest.raises(StoreError, match="a chunk does not have its size"):
            result()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("body", [b"a", b"no Deflate", packed(np.ones((2, 5), np.float32))[:-1]], ids=len)
def test_chunks_that_are_no_deflate(made, body):
    """What HDF5 finds wrong with them is what is told."""
    for result in both_reads(made[1](body + fletcher32(body))):
        with pytest.raises(StoreError, match=r"is damaged: a.* cannot be read \(Can't .*filter"):
            result()


@pytest.mark.parametrize("length", range(1, 5))
def test_chunks_without_room_for_a_sum(made, length):
    """At which HDF5 2.0.0 crashes."""
    for result in both_reads(made[1](bytes(length))):
        with pytest.raises(StoreError, match=r"is damaged: a.* cannot be read \(a chunk ends before its sum"):
            result()


@pytest.mark.parametrize(
    "other",
    [
        {"fletcher32": False},
        {"shuffle": False},
        {"compression": "lzf"},
        {"compression": None, "shuffle": False, "fletcher32": False},
        {"chunks": (2, 2)},
        {"chunks": None, "compression": None, "shuffle": False, "fletcher32": False},
        {"dtype": ">f4"},
        {"dtype": ">c8"},
        {"dtype": bool},
    ],
)
def test_arrays_of_other_makings_are_left_to_h5py(tmp_path, other):
    values = np.arange(32).reshape(8, 4)
    options = {"dtype": "<f4", "chunks": (2, 4), **FILTERS, **other}
    if options["compression"] != "gzip":
        del options["compression_opts"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=values.astype(options.pop("dtype")), **options)
        assert not ChunkReader.fits(file["a"])
        want = file["a"][:]
    np.testing.assert_array_equal(HDF5Container(tmp_path / "a.h5").read("a", np.array([6, 1, 1])), want[[6, 1, 1]])


def test_numbers_of_other_formats_are_left_to_h5py(tmp_path):
    """A compound of a real and an imaginary part with a gap between them; floats with another bias."""
    gap = h5py.h5t.create(h5py.h5t.COMPOUND, 16)
    gap.insert(b"r", 0, h5py.h5t.NATIVE_FLOAT)
    gap.insert(b"i", 8, h5py.h5t.NATIVE_FLOAT)
    odd = h5py.h5t.NATIVE_FLOAT.copy()
    odd.set_ebias(100)
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((2,))
    made.set_shuffle()
    made.set_deflate(1)
    made.set_fletcher32()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, kind in (("gap", gap), ("odd", odd)):
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((4,)), made)
            assert not ChunkReader.fits(file[name])
