"""Adding scans to a store: in place or to a copy, beside readers, and whatever happens to the writer."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray

from ambient_sci.datasets import StoreWriter, hdf5_container, open_store
from ambient_sci.datasets.store import validate
from ambient_sci.datasets.zarr_container import ZarrContainer
from ambient_sci.errors import ConfigError, DataError, NotFoundError, OutputError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity


def scans(first, count, width=9):
    """Scans whose values say which they are."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    y = numbers.reshape(-1, 1, 1, 1) + torch.linspace(0, 0.5, 8 * width).reshape(1, 1, 8, width)
    return Measurement(y, Identity((1, 8, width), batch=count), 1.0 + numbers, scale=1.0 + numbers)


def coords(first, count):
    return {"site": [f"site {number}" for number in range(first, first + count)]}


def write(path, count):
    with StoreWriter(path, {"source": "first"}) as out:
        out.append(scans(0, count), coords=coords(0, count))


def check(store, width_of=lambda scan: 9):
    """All values of a store are those of `scans`."""
    for group in store.groups:
        got = store.read(group.scans, raw=True)
        for row, scan in enumerate(group.scans.tolist()):
            want = scans(scan, 1, width_of(scan))
            assert torch.equal(got.y[row : row + 1], want.y)
            assert got.noise_std[row] == got.scale[row] == 1 + scan
    assert store.coords["site"].tolist() == coords(0, len(store))["site"]


def test_appended_scans_follow(tmp_path, container):
    path = tmp_path / f"a.{container}"
    write(path, 5)
    first = open_store(path)
    fingerprint = first.fingerprint
    for start, count in ((5, 1), (6, 300), (306, 4)):
        with StoreWriter(path, {"source": f"from {start}"}, append=True) as out:
            assert len(out) == start
            out.append(scans(start, count), coords=coords(start, count))
    store = open_store(path)
    assert len(store) == 310
    check(store)
    assert store.groups[0].name == ""
    provenance = store.attrs["provenance"]
    assert provenance["source"] == "first"
    assert [entry["scans"] for entry in provenance["appended"]] == [[5, 6], [6, 306], [306, 310]]
    assert [entry["source"] for entry in provenance["appended"]] == ["from 5", "from 6", "from 306"]
    assert store.fingerprint != fingerprint
    assert validate(path) == []
    assert os.listdir(tmp_path) == [path.name]
    assert len(first) == 5  # who had it open sees what there was
    check(first)
    data = xarray.open_dataset(path, engine="zarr" if container == "zarr" else "h5netcdf")
    np.testing.assert_array_equal(data.scan, np.arange(310))
    np.testing.assert_array_equal(data.measurement, store.read(slice(None), raw=True).y)


def test_a_second_size_moves_the_first_into_a_group(tmp_path, container):
    path = tmp_path / f"a.{container}"
    write(path, 5)
    before = open_store(path)
    width_of = {5: 7, 6: 7, 7: 7, 10: 6}
    with StoreWriter(path, append=True) as out:
        out.append(scans(5, 3, 7), coords=coords(5, 3))
        out.append(scans(8, 2), coords=coords(8, 2))
        out.append(scans(10, 1, 6), coords=coords(10, 1))
        if container == "zarr":
            out.commit()
            check(open_store(path), lambda scan: width_of.get(scan, 9))
        check(before)
    store = open_store(path)
    check(store, lambda scan: width_of.get(scan, 9))
    assert [group.scans.tolist() for group in store.groups] == [[0, 1, 2, 3, 4, 8, 9], [5, 6, 7], [10]]
    assert validate(path) == []
    if container == "zarr":
        assert sorted(os.listdir(path)) == ["size_0", "size_1", "size_2", "zarr.json"]
    with StoreWriter(path, append=True) as out:
        out.append(scans(11, 2, 7), coords=coords(11, 2))
    check(open_store(path), lambda scan: 7 if scan > 10 else width_of.get(scan, 9))


def test_nothing_is_visible_before_the_commit(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, 5)
    with StoreWriter(path, append=True) as out:
        out.append(scans(5, 300), coords=coords(5, 300))  # more than a block
        assert len(open_store(path)) == 5
        assert xarray.open_zarr(path).sizes["scan"] == 5
        out.commit()
        assert len(open_store(path)) == 305
        assert xarray.open_zarr(path).sizes["scan"] == 305
        out.append(scans(305, 2), coords=coords(305, 2))
        assert len(open_store(path)) == 305
    check(open_store(path))
    assert len(open_store(path)) == 307


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_adds_nothing(tmp_path, container, error):
    path = tmp_path / f"a.{container}"
    write(path, 5)
    fingerprint = open_store(path).fingerprint

    def interrupted():
        with StoreWriter(path, append=True) as out:
            out.append(scans(5, 300), coords=coords(5, 300))
            out.append(scans(305, 3, 7), coords=coords(305, 3))
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert open_store(path).fingerprint == fingerprint
    assert validate(path) == []
    assert os.listdir(tmp_path) == [path.name]
    if container == "zarr":
        import zarr

        whole = zarr.open_group(path, mode="r", use_consolidated=False)
        assert whole["measurement"].shape[0] == 5
        assert not (path / "size_0").exists()
        assert not (path / "size_1").exists()


def test_what_cannot_be_appended(tmp_path, container):
    path = tmp_path / f"a.{container}"
    with pytest.raises(NotFoundError, match=r"no store at .* to append to"):
        StoreWriter(path, append=True)
    write(path, 5)
    other = Measurement(torch.ones(1, 1, 8, 9, dtype=torch.complex64), Identity((1, 8, 9)), 1.0)

    def add(*arguments):
        with StoreWriter(path, append=True) as out:
            out.append(*arguments)

    for arguments, message in (
        ((other, None, coords(5, 1)), "measurement is complex64, wanted float32 like the scans before"),
        ((scans(5, 1),), "site must be given with all scans"),
        ((scans(5, 1), torch.ones(1, 1, 8, 9), coords(5, 1)), "reference/image must be given with all scans"),
    ):
        with pytest.raises(DataError, match=message):
            add(*arguments)
        check(open_store(path))
    with pytest.raises(ConfigError, match="append goes with neither overwrite nor resume"):
        StoreWriter(path, append=True, overwrite=True)
    with StoreWriter(tmp_path / f"b.{container}") as out:
        out.append(scans(0, 1))
        with pytest.raises(ConfigError, match="commit goes with append or resume to a Zarr folder"):
            out.commit()
    before = open_store(path).fingerprint
    with StoreWriter(path, append=True):
        pass
    assert open_store(path).fingerprint == before
    thesis = tmp_path / f"thesis.{container}"
    thesis.mkdir() if container == "zarr" else thesis.write_text("years of work")
    with pytest.raises(OutputError, match="is not an ambient-sci store; nothing can be appended to it"):
        StoreWriter(thesis, append=True)


@pytest.mark.parametrize("at", [0, 3, 20])
def test_a_full_disk_adds_nothing(tmp_path, container, monkeypatch, at):
    path = tmp_path / f"a.{container}"
    write(path, 5)
    fingerprint = open_store(path).fingerprint
    calls = []

    def count():
        calls.append(None)
        if len(calls) > at:
            raise OSError(errno.ENOSPC, "No space left on device")

    if container == "zarr":
        from ambient_sci.datasets.zarr_container import _Folder

        original = _Folder.set

        async def full_set(self, *args, **kwargs):
            count()
            await original(self, *args, **kwargs)

        monkeypatch.setattr(_Folder, "set", full_set)
    else:
        write_ = io.FileIO.write

        def full_write(self, data):
            count()
            return write_(self, data)

        monkeypatch.setattr(hdf5_container, "_raw_write", full_write)

    def fill():
        with StoreWriter(path, append=True) as out:
            for start in range(5, 1005, 200):
                out.append(scans(start, 200), coords=coords(start, 200))

    with pytest.raises(OutputError, match="the disk is full"):
        fill()
    monkeypatch.undo()
    assert open_store(path).fingerprint == fingerprint
    fill()
    check(open_store(path))
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_that_is_passed_over_is_not_forgotten(tmp_path, container, monkeypatch):
    path = tmp_path / f"a.{container}"
    write(path, 5)

    def broken(self, name, rows):
        raise OSError(errno.EIO, "input/output error")

    def add():
        with StoreWriter(path, append=True) as out:
            with monkeypatch.context() as patch, contextlib.suppress(OutputError):
                patch.setattr(out._type, "append", broken)
                out.append(scans(5, 300), coords=coords(5, 300))
            out.append(scans(305, 3), coords=coords(305, 3))

    with pytest.raises(OutputError, match="is not written: an error came in between"):
        add()
    assert len(open_store(path)) == 5
    assert validate(path) == []


def test_a_commit_that_fails_shows_the_old(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    write(path, 5)

    def broken(source, target):
        raise OSError(errno.EIO, "input/output error")

    def add():
        with StoreWriter(path, append=True) as out:
            out.append(scans(5, 4), coords=coords(5, 4))
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", broken)
                out.commit()

    with pytest.raises(OutputError, match="input/output error"):
        add()
    check(open_store(path))
    assert len(open_store(path)) == 5


# ------------------------------------------------------------------------------------------------ other processes


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_append import *
path = {path!r}
"""


def start(path, text):
    head = SCRIPT.format(tests=os.path.dirname(__file__), path=str(path))
    return subprocess.Popen([sys.executable, "-c", head + text], stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_adds_nothing_and_is_in_nobodys_way(tmp_path, container):
    path = tmp_path / f"a.{container}"
    write(path, 5)
    fingerprint = open_store(path).fingerprint
    text = """
with StoreWriter(path, append=True) as out:
    out.append(scans(5, 300), coords=coords(5, 300))
    out.append(scans(305, 300, 7), coords=coords(305, 300))
    print("ready", flush=True)
    time.sleep(60)
"""
    with start(path, text) as process:
        assert process.stdout.readline() == "ready\n"
        with (
            pytest.raises(OutputError, match=r"a\.\w+ is being written by another process") as refused,
            StoreWriter(path, append=True),
        ):
            pass
        assert "\n" not in str(refused.value)
        with pytest.raises(OutputError, match="is being written by another process"), StoreWriter(path, overwrite=True):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert open_store(path).fingerprint == fingerprint
    assert validate(path) == []
    with StoreWriter(path, append=True) as out:
        out.append(scans(5, 2), coords=coords(5, 2))
    check(open_store(path))
    assert len(open_store(path)) == 7
    assert os.listdir(tmp_path) == [path.name]
    if container == "zarr":
        assert not any(entry.name.startswith("size_") for entry in path.iterdir())


def test_killed_at_any_moment(tmp_path):
    """Whenever it happens, the store is what some commit made it, and goes on from there."""
    path = tmp_path / "a.zarr"
    write(path, 3)
    text = """
with StoreWriter(path, append=True) as out:
    print("ready", flush=True)
    while True:
        first = len(out)
        out.append(scans(first, 7), coords=coords(first, 7))
        out.commit()
"""
    lengths = [3]
    for wait in (0.05, 0.2):
        with start(path, text) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.wait()
        store = open_store(path)
        check(store)
        assert validate(path) == []
        lengths.append(len(store))
        assert (lengths[-1] - lengths[-2]) % 7 == 0
    assert lengths[-1] > 3
    with StoreWriter(path, append=True) as out:
        out.append(scans(lengths[-1], 1), coords=coords(lengths[-1], 1))
    check(open_store(path))
    leftovers = [entry for entry in tmp_path.iterdir() if entry != path]
    assert not leftovers


def test_readers_beside_a_writer_see_whole_commits(tmp_path):
    """Chunks here hold many scans, so that nearly every commit grows one that is read at that moment."""
    path = tmp_path / "a.zarr"
    write(path, 1)
    text = """
with StoreWriter(path, append=True) as out:
    print("ready", flush=True)
    for _ in range(60):
        first = len(out)
        count = first % 5 + 1
        out.append(scans(first, count), coords=coords(first, count))
        out.commit()
"""
    seen = set()
    with start(path, text) as process:
        assert process.stdout.readline() == "ready\n"
        old = open_store(path)
        while process.poll() is None:
            store = open_store(path)
            seen.add(len(store))
            check(store)
            check(old)
            data = xarray.open_zarr(path)
            assert len(data.scan) >= len(store)
            np.testing.assert_array_equal(data.scan, np.arange(len(data.scan)))
        assert process.returncode == 0
    assert len(seen) > 3
    store = open_store(path)
    check(store)
    assert len(store) > 100
    assert validate(path) == []


def test_a_chunk_that_grew_since_its_place_was_looked_up(tmp_path):
    """Its old length in the new file does not fit its sum; it is looked up again."""
    path = tmp_path / "a.zarr"
    write(path, 5)
    reader = ZarrContainer(path)
    assert reader.info("measurement").chunk > 9
    rows = np.array([4, 0, 2])
    before = reader.read("measurement", rows)
    with StoreWriter(path, append=True) as out:
        out.append(scans(5, 4), coords=coords(5, 4))
    np.testing.assert_array_equal(reader.read("measurement", rows), before)


def test_a_file_that_is_replaced_between_two_looks_at_it(tmp_path, monkeypatch):
    """The same through zarr's own reader, which finds the index in one file and the chunk in another."""
    from zarr.storage import _local

    path = tmp_path / "a.zarr"
    write(path, 5)
    reader = ZarrContainer(path)
    old = {file: file.read_bytes() for file in (path / "measurement" / "c").rglob("*") if file.is_file()}
    with StoreWriter(path, append=True) as out:
        out.append(scans(5, 4), coords=coords(5, 4))
    looks = []

    def look(file, prototype, byte_range):
        new = original(file, prototype, byte_range)
        if file in old and not looks:
            looks.append(file)
            now = file.read_bytes()
            file.write_bytes(old[file])
            new = original(file, prototype, byte_range)
            file.write_bytes(now)
        return new

    original = _local._get
    monkeypatch.setattr(_local, "_get", look)
    np.testing.assert_array_equal(reader.read("measurement"), scans(0, 5).y.numpy())
    assert looks


def test_two_writers_of_a_new_store(tmp_path, container):
    path = tmp_path / f"a.{container}"
    with StoreWriter(path) as out:
        with pytest.raises(OutputError, match="is being written by another process"), StoreWriter(path):
            pass
        out.append(scans(0, 2), coords=coords(0, 2))
    check(open_store(path))
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(OutputError, match="already exists"):
        StoreWriter(path)


def test_killed_between_two_names(tmp_path, container):
    """A store that stepped aside for one that never came takes its name back."""
    path = tmp_path / f"a.{container}"
    write(path, 2)
    os.rename(path, tmp_path / f".{path.name}.replaced-12345")
    with pytest.raises(OutputError, match="already exists"), StoreWriter(path):
        pass
    check(open_store(path))
    assert os.listdir(tmp_path) == [path.name]
