import gc
import itertools
import pickle
import subprocess
import sys
import threading
import weakref
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ambient_sci.datasets import StoreWriter, batches, open_store, simulate, writer
from ambient_sci.datasets.loader import StoreDataset, batch_indices, epoch_order
from ambient_sci.errors import ConfigError, DataError, StoreError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity


@pytest.fixture
def store(tmp_path, container, images):
    return simulate(images, tmp_path / f"a.{container}", calibration=2, coils=2)


def numbered(first, scans, size):
    """Scans that hold their own numbers."""
    values = torch.arange(first, first + scans, dtype=torch.float32)
    y = values.reshape(-1, 1, 1, 1).expand(scans, 1, size, size)
    return Measurement(y, Identity((1, size, size), batch=scans), 1 + values)


def write(path, scans, size):
    """A store of scans of one size."""
    with StoreWriter(path) as opened:
        opened.append(numbered(0, scans, size))
    return open_store(path)


def write_sizes(path):
    """Write 60 scans of 16 pixels, 21 of 64 and 3 of 36, in any order."""
    with StoreWriter(path) as opened:
        for size in np.random.default_rng(0).permutation(np.repeat([4, 8, 6], [60, 21, 3])).tolist():
            opened.append(numbered(len(opened), 1, size))
    return open_store(path)


@pytest.fixture
def chunked(tmp_path, container, monkeypatch):
    """37 scans of 64 values, 4 in a chunk."""
    monkeypatch.setattr(writer, "CHUNK", 4 * 256)
    monkeypatch.setattr(writer, "BLOCK", 16 * 256)
    store = write(tmp_path / f"a.{container}", 37, 8)
    assert store.groups[0].chunk == 4
    return store


class Spy:
    """A store that knows what was read of it and how much of that is alive."""

    def __init__(self, store):
        self.store, self.groups, self.nbytes = store, store.groups, store.nbytes
        self.readings, self.alive, self.most = [], 0, 0
        self.lock = threading.Lock()

    def read(self, scans):
        found = self.store.read(scans)
        (group,) = (group for group in self.groups if scans[0] in group.scans)
        size = len(scans) * group.nbytes
        with self.lock:
            self.readings.append(scans)
            self.alive += size
            self.most = max(self.most, self.alive)
        weakref.finalize(found, self.free, size)
        return found

    def free(self, size):
        with self.lock:
            self.alive -= size


@pytest.fixture
def sizes(tmp_path, container, monkeypatch):
    """A store of three sizes in chunks of 4, 1 and 1, none of whose arrays is kept."""
    monkeypatch.setattr(writer, "CHUNK", 4 * 4 * 4 * 4)
    monkeypatch.setattr("ambient_sci.datasets.store._SMALL", 0)
    store = write_sizes(tmp_path / f"a.{container}")
    assert {(len(group.scans), group.chunk) for group in store.groups} == {(60, 4), (21, 1), (3, 1)}
    return store


def take(iterator, count):
    return [batch.index.tolist() for batch in islice(iterator, count)]


def same(a, b):
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.noise_std, b.noise_std)
    for name, value in a.operator.parameters.items():
        assert torch.equal(value, b.operator.parameters[name])


# ---------------------------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_every_scan_once_in_each_epoch(store, memory):
    drawn = np.concatenate(take(batches(store, 4, seed=3, memory=memory), 9)).reshape(6, 6)
    for epoch, order in enumerate(drawn):
        assert sorted(order) == list(range(6))
        np.testing.assert_array_equal(order, epoch_order(6, 3, epoch))
    assert len({tuple(order) for order in drawn}) > 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 3), st.integers(1, 9), st.integers(0, 60))
def test_pools_are_whole_chunks_and_bounded(scans, seed, epoch, chunk, pool):
    order = epoch_order(scans, seed, epoch, chunk, pool)
    assert sorted(order) == list(range(scans))
    spread = [np.flatnonzero(order // chunk == number) for number in range(-(-scans // chunk))]
    if chunk > 1:
        assert max(np.ptp(places) for places in spread) < max(pool, chunk)


def test_an_order_of_pools_is_as_well_mixed_as_the_documentation_says():
    scans, chunk, pool, size = 1024, 8, 128, 16
    counts, places = [], []
    for epoch in range(300):
        order = epoch_order(scans, 0, epoch, chunk, pool)
        of = np.sort(order.reshape(-1, size) // chunk, axis=1)
        counts.append(sum(n * (n - 1) / 2 for n in _runs(of)) / len(of))
        places.append(np.argsort(order))
    assert np.mean(counts) == pytest.approx(size * (size - 1) / 2 * (chunk - 1) / (pool - 1), rel=0.02)
    # every scan comes at any time of the epoch alike: the mean of 300 uniform places, for the worst of 1024 scans
    assert np.abs(np.mean(places, 0) - (scans - 1) / 2).max() < 4.5 * scans / np.sqrt(12 * 300)
    # and meets those of any other chunk alike: the chunks of a first and of a last scan of the epoch, independent
    first, last = zip(*((np.argmin(p) // chunk, np.argmax(p) // chunk) for p in places), strict=True)
    assert abs(np.corrcoef(first, last)[0, 1]) < 4 / np.sqrt(300)


def _runs(rows):
    """How often each value occurs in each row."""
    return itertools.chain.from_iterable(np.unique(row, return_counts=True)[1].tolist() for row in rows)


def test_a_pool_that_holds_everything_is_a_uniform_permutation():
    np.testing.assert_array_equal(epoch_order(50, 1, 2, chunk=8, pool=50), epoch_order(50, 1, 2))
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), epoch_order(6, 0, epoch)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 5 / 6)


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("done", [1, 4, 7])
def test_resumes_with_the_same_batches(store, memory, done):
    whole = list(islice(batches(store, 4, seed=3), done + 5))
    resumed = list(islice(batches(store, 4, seed=3, start=4 * done, memory=memory), 5))
    for a, b in zip(whole[done:], resumed, strict=True):
        same(a, b)
        assert len(b) == 4


@pytest.mark.parametrize("pool", [0, 3000, 1 << 20])
def test_chunks_in_pools(chunked, pool):
    """Memory does not matter to what is drawn, wherever one starts, and scans are those that they claim to be."""
    kept = list(islice(batches(chunked, 5, seed=1, pool=pool), 30))
    wanted = np.concatenate(list(islice(batch_indices(chunked.groups, 5, 1, pool=pool), 30)))
    np.testing.assert_array_equal(np.concatenate([m.index for m in kept]), wanted)
    for epoch in range(4):
        assert sorted(wanted[37 * epoch : 37 * (epoch + 1)]) == list(range(37))
    for start in (0, 7, 8, 29):
        for a, b in zip(kept[start:], batches(chunked, 5, 1, start=5 * start, memory=0, pool=pool), strict=False):
            same(a, b)
            assert a.y[:, 0, 3, 5].tolist() == a.index.tolist()


def test_the_pool_is_part_of_the_sequence(chunked):
    assert take(batches(chunked, 5, seed=1, pool=3000), 7) != take(batches(chunked, 5, seed=1), 7)


def test_each_chunk_is_read_once_an_epoch(chunked, monkeypatch):
    monkeypatch.setattr("ambient_sci.datasets.loader._READERS", 1)  # so that readings end in the order of their begin
    spy = Spy(chunked)
    nbytes = chunked.groups[0].nbytes
    for _ in islice(batches(spy, 5, seed=1, memory=0, pool=12 * nbytes), 37):  # five epochs
        pass
    read = [set(scans // 4) for scans in spy.readings]
    assert all(len(scans) <= 12 for scans in spy.readings)
    for epoch in range(5):
        chunks = list(itertools.chain(*read[4 * epoch : 4 * epoch + 4]))  # ten chunks, three at most in a pool
        assert sorted(chunks) == list(range(10))


def test_the_seed_decides(store):
    assert take(batches(store, 6, seed=0), 3) == take(batches(store, 6, seed=0), 3)
    assert take(batches(store, 6, seed=0), 3) != take(batches(store, 6, seed=1), 3)


def test_batches_larger_than_the_store(store):
    first = next(batches(store, 15, seed=0))
    assert len(first) == 15
    assert first.index.bincount().tolist() == [3 if scan in epoch_order(6, 0, 2)[:3] else 2 for scan in range(6)]
    assert next(batch_indices(6, 15, 0, 0)).tolist() == first.index.tolist()


# ------------------------------------------------------------------------------------------------------ several sizes


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_batches_of_several_sizes(sizes, memory):
    drawn = list(islice(batches(sizes, 4, seed=2, memory=memory), 21 * 8))
    assert {m.y.shape[1:] for m in drawn} == {(1, 4, 4), (1, 8, 8), (1, 6, 6)}
    for group in sizes.groups:
        mine = [m for m in drawn if m.y.shape[1:] == group.measurement_shape]
        assert len(mine) == 8 * len(group.scans) // 4  # 84 scans, 21 batches an epoch
        order = torch.cat([m.index for m in mine]).tolist()
        for epoch in range(8):
            assert sorted(order[epoch * len(group.scans) :][: len(group.scans)]) == group.scans.tolist()
        for m in mine:
            assert torch.equal(m.y[:, 0, 1, 2], m.index.float())


def test_sizes_are_mixed_in_proportion(sizes):
    """After any number of batches, of each size as many as its share, but for one epoch's shuffle."""
    labels = np.array([(m.y.shape[-1]) for m in islice(batches(sizes, 4, seed=2), 21 * 20)])
    for size, scans in ((4, 60), (8, 21), (6, 3)):
        came = np.cumsum(labels == size) - np.arange(1, len(labels) + 1) * scans / 84
        assert np.abs(came).max() < 5
        assert abs(came[-1]) <= 1
    first = [tuple(labels[21 * epoch :][:21]) for epoch in range(20)]
    assert len(set(first)) == 20


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_several_sizes_resume_anywhere(sizes, batch_size):
    whole = take(batches(sizes, batch_size, seed=2), 90)
    for done in (1, 20, 21, 50, 83):
        for memory in (0, 1 << 30):
            again = take(batches(sizes, batch_size, seed=2, start=done * batch_size, memory=memory), 5)
            assert again == whole[done : done + 5]


# -------------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_workers_and_ranks_share_an_epoch(chunked, monkeypatch, ranks, workers, memory):
    """All of 37 scans once, by ones, and what the loader makes of it is the sequence of the rank."""
    seen = []
    for rank in range(ranks):
        data = StoreDataset(chunked, 1, seed=5, memory=memory, pool=3000, rank=rank, ranks=ranks)
        parts = []
        for worker in range(workers):
            info = SimpleNamespace(id=worker, num_workers=workers)
            monkeypatch.setattr("ambient_sci.datasets.loader.get_worker_info", lambda info=info: info)
            own = rank + ranks * worker
            parts.append(take(iter(data), len(range(own, 37, ranks * workers))))
        turns = itertools.chain.from_iterable(itertools.zip_longest(*parts))
        mine = [numbers for numbers in turns if numbers is not None]
        whole = batches(chunked, 1, seed=5, pool=3000, rank=rank, ranks=ranks)
        assert mine == take(whole, len(range(rank, 37, ranks)))
        seen += itertools.chain.from_iterable(mine)
    assert sorted(seen) == list(range(37))


def test_ranks_resume_together(sizes):
    whole = take(batches(sizes, 4, seed=5), 40)
    for rank in range(3):
        assert take(batches(sizes, 4, 5, start=28, memory=0, rank=rank, ranks=3), 8) == whole[7 + rank :: 3][:8]


def test_spawned_workers(tmp_path):
    """A real loader, with processes that import everything anew, from the middle of the sequence."""
    store = write_sizes(tmp_path / "a.h5")
    whole = list(islice(batches(store, 3, seed=5), 20))
    data = StoreDataset(store.path, 3, seed=5, start=6, rank=1, ranks=2)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for a, b in zip(whole[3::2], islice(loader, 6), strict=False):
        same(a, b)


def test_a_dataset_travels(store):
    data = pickle.loads(pickle.dumps(StoreDataset(store, 2, seed=1)))
    assert take(iter(data), 5) == take(batches(store, 2, seed=1), 5)


# ------------------------------------------------------------------------------------------------------ reading ahead


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_what_is_held_is_bounded(sizes):
    budget = 40 * 4 * 4 * 4
    spy = Spy(sizes)
    drawn = batches(spy, 4, seed=2, memory=0, pool=budget // 2)
    for _ in range(300):
        next(drawn)
    drawn.close()
    # beside the budget, a batch of the largest size in the hands of the caller, and one that is due
    assert spy.most <= budget + 2 * 4 * max(group.nbytes for group in sizes.groups)
    gc.collect()
    assert spy.alive == 0


def test_reads_ahead_while_a_batch_is_used(sizes):
    spy = Spy(sizes)
    drawn = batches(spy, 4, seed=2, memory=0)
    next(drawn)
    wait_until(lambda: len(spy.readings) >= 4)
    drawn.close()
    assert not readers()


def wait_until(true, seconds=10.0):
    event = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        event.wait(0.01)
    raise AssertionError("it did not happen")


def test_threads_end_with_the_iterator(store):
    drawn = batches(store, 2, seed=0, memory=0)
    next(drawn)
    assert readers()
    del drawn
    gc.collect()
    assert not readers()


def test_damage_arrives_where_the_scan_is_due(tmp_path, container, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK", 256)
    store = write(tmp_path / f"a.{container}", 12, 40)
    store.close()
    damage(tmp_path / f"a.{container}", "measurement", 5)
    store = open_store(tmp_path / f"a.{container}")
    order = epoch_order(12, 1, 0)
    good = int(np.flatnonzero(order == 5)[0]) // 2
    drawn = batches(store, 2, seed=1, memory=0)
    assert take(drawn, good) == order[: 2 * good].reshape(-1, 2).tolist()
    with pytest.raises(StoreError, match="is damaged: measurement of scan 5 cannot be read"):
        next(drawn)
    assert not readers()
    assert list(drawn) == []


def damage(path, name, chunk):
    """Flip a bit of a chunk."""
    import h5py

    if path.suffix == ".h5":
        with h5py.File(path) as file:
            found = file[name].id.get_chunk_info(chunk)
        position = found.byte_offset + found.size // 2
    else:
        path = next(entry for entry in (path / name / "c").rglob("*") if entry.is_file())
        index = np.frombuffer(path.read_bytes()[:-4][-16 * 256 :], "<u8").reshape(-1, 2)  # of a shard of 256 chunks
        position = int(index[chunk].sum()) - 8
    with open(path, "r+b") as raw:
        raw.seek(position)
        byte = raw.read(1)[0]
        raw.seek(position)
        raw.write(bytes([byte ^ 1]))


def test_values_that_are_not_finite_arrive_too(tmp_path):
    write(tmp_path / "a.zarr", 6, 4)
    import zarr

    zarr.open_group(tmp_path / "a.zarr", mode="r+", use_consolidated=False)["measurement"][3] = np.nan
    with pytest.raises(DataError, match="measurement of scan 3 must be finite"):
        take(batches(open_store(tmp_path / "a.zarr"), 2, seed=0, memory=0), 3)


def test_a_program_that_ends_in_the_middle(tmp_path, container):
    """The iterator is alive at the exit of the interpreter, with readings under way."""
    write(tmp_path / f"a.{container}", 64, 64)
    code = (
        "import sys; from ambient_sci.datasets import batches, open_store\n"
        "drawn = batches(open_store(sys.argv[1]), 8, seed=0, memory=0)\n"
        "print(len(next(drawn)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / f"a.{container}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("make", [batches, StoreDataset])
def test_wrong_numbers(store, make):
    with pytest.raises(ConfigError, match="batch_size must be at least 1 and start at least 0, got 0 and 0"):
        make(store, 0, seed=0)
    with pytest.raises(ConfigError, match="got 1 and -1"):
        make(store, 1, seed=0, start=-1)
    with pytest.raises(ConfigError, match="start must be a multiple of batch_size, 4, got 6"):
        make(store, 4, seed=0, start=6)
    with pytest.raises(ConfigError, match="rank must be between 0 and ranks - 1, got rank 2 of 2"):
        make(store, 4, seed=0, rank=2, ranks=2)
    with pytest.raises(ConfigError, match="pool must be at least 0 bytes, got -1"):
        make(store, 4, seed=0, pool=-1)
