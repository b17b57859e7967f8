"""Chunks that are read out of shards, beside what zarr-python reads of the same array."""

import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.datasets.shards import ShardReader
from ambient_sci.datasets.zarr_container import ZarrContainer
from ambient_sci.errors import StoreError


def write(path, length, row, dtype, chunk, block):
    rng = np.random.default_rng(0)
    values = rng.integers(-(2**7), 2**7, (length, *row)).astype(dtype)
    container = ZarrContainer(path, "w")
    container.create("a", row, np.dtype(dtype), ["scan", *"zyx"[: len(row)]], chunk, block, {})
    container.append("a", values[: length // 2])
    container.append("a", values[length // 2 :])
    container.commit({"": {}})
    return zarr.open_array(path / "a", mode="r")


def read(path, array, rows):
    rows = np.asarray(rows)
    out = np.zeros((len(rows), *array.shape[1:]), array.dtype)
    places = np.random.default_rng(1).permutation(len(rows))
    ShardReader(path / "a", array).read(rows, out, places)
    return out[places]


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, np.float32, np.float64, np.int64])
@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (1, 4), (4, 4), (2, 8)])
def test_as_zarr_reads_it(tmp_path, dtype, chunk, block):
    array = write(tmp_path / "s.zarr", 21, (3, 5), dtype, chunk, block)
    assert ShardReader.fits(tmp_path / "s.zarr" / "a", array)

    @settings(max_examples=10, deadline=None)
    @given(st.sets(st.integers(0, 20), min_size=1))
    def check(rows):
        rows = sorted(rows)
        np.testing.assert_array_equal(read(tmp_path / "s.zarr", array, rows), array.oindex[rows])

    check()


def foreign(path, shape, chunks, shards):
    """An array of numbers that another program has made as we do."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    codecs = [zarr.codecs.BloscCodec(typesize=4), zarr.codecs.Crc32cCodec()]
    array = group.create_array("a", shape=shape, dtype="<f4", chunks=chunks, shards=shards, compressors=codecs)
    array[:] = values
    assert ShardReader.fits(path / "a", array)
    return array, values


def test_single_numbers(tmp_path):
    array, values = foreign(tmp_path / "s.zarr", (8,), (1,), (4,))
    np.testing.assert_array_equal(read(tmp_path / "s.zarr", array, [1, 3, 6]), values[[1, 3, 6]])


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_of_another_size(tmp_path, chunk):
    """Their bytes are whole, but those of an array of other chunks."""
    path = tmp_path / "s.zarr"
    array, _ = foreign(path, (8, 4), (chunk, 4), (4, 4))
    for columns in (3, 5):
        foreign(tmp_path / "other.zarr", (8, columns), (chunk, columns), (4, columns))
        shutil.copy(tmp_path / "other.zarr/a/c/0/0", path / "a/c/0/0")
        with pytest.raises(ValueError, match="size"):
            read(path, array, [2])
        with pytest.raises(StoreError, match=r"is damaged: a of scan 2 cannot be read"):
            ZarrContainer(path).read("a", np.array([2]))


def test_what_was_never_written_is_the_fill_value(tmp_path):
    path = tmp_path / "s.zarr"
    write(path, 16, (4,), np.float32, 2, 8)
    array = zarr.open_array(path / "a", mode="r+")
    array[2:4] = np.nan  # a chunk of fill values alone is left out of its shard
    shutil.rmtree(path / "a" / "c" / "1")
    want = array[:]
    assert np.isnan(want[[2, 3, *range(8, 16)]]).all()
    assert np.isfinite(want[:2]).all()
    np.testing.assert_array_equal(read(path, array, range(16)), want)


def test_every_flipped_bit_is_noticed(tmp_path):
    """Anywhere in a shard: in a chunk, in its sum, in the index, in the sum of the index."""
    path = tmp_path / "s.zarr"
    array = write(path, 4, (3,), np.float32, 1, 4)
    file = path / "a" / "c" / "0" / "0"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises((ValueError, RuntimeError, OSError)):
            read(path, array, range(4))
    file.write_bytes(whole)
    np.testing.assert_array_equal(read(path, array, range(4)), array[:])


@pytest.mark.parametrize("end", [0, 3, 20, -70, -1])
def test_a_file_that_ends_early(tmp_path, end):
    path = tmp_path / "s.zarr"
    array = write(path, 4, (3,), np.float32, 1, 4)
    file = path / "a" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises((ValueError, OSError)):
        read(path, array, range(4))


@pytest.mark.parametrize(
    "other",
    [
        {"shards": None},
        {"compressors": zarr.codecs.ZstdCodec()},
        {"chunks": (2, 2)},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    ],
)
def test_arrays_of_other_makings_are_left_to_zarr(tmp_path, other):
    values = np.arange(32, dtype=np.float32).reshape(8, 4)
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    codecs = [zarr.codecs.BloscCodec(typesize=4), zarr.codecs.Crc32cCodec()]
    options = {"dtype": "<f4", "chunks": (2, 4), "shards": (4, 4), "compressors": codecs, **other}
    group.create_array("a", shape=values.shape, **options)[:] = values
    assert not ShardReader.fits(tmp_path / "s.zarr" / "a", group["a"])
    np.testing.assert_array_equal(ZarrContainer(tmp_path / "s.zarr").read("a", np.array([6, 1, 1])), values[[6, 1, 1]])
