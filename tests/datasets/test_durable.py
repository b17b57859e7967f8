"""What a power cut would leave: files and names count as on the disk when ``fsync`` has seen them, not before."""

import errno
import os
from pathlib import Path

import pytest
import torch

from ambient_sci.datasets import StoreWriter, convert, durable, open_store
from ambient_sci.errors import OutputError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity


def scans(count, width=9):
    return Measurement(torch.randn(count, 1, 8, width), Identity((1, 8, width), batch=count), 1.0)


def stamp(path):
    """Changes with the contents of a file, or with the names in a folder."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns


class Disk:
    """Watches renamings: nothing must take a place on which others rely before it is on the disk."""

    def __init__(self, store, monkeypatch):
        self.store, self.commits, self.wrong, self.last = store, 0, [], None
        self.safe = {stamp(path) for path in (store, *store.rglob("*")) if path.exists()}
        self.relied_on = set(self.safe)
        self.fsync, self.replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.see)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self.rename)

    def see(self, descriptor):
        self.fsync(descriptor)
        found = os.fstat(descriptor)
        self.safe.add((found.st_ino, found.st_mtime_ns))
        self.last = found.st_ino

    def unsafe(self, folder):
        """What is in a folder and not on the disk."""
        inside = [Path(folder)] if Path(folder).is_file() else Path(folder).rglob("*")
        return [str(path) for path in inside if stamp(path) not in self.safe]

    def rename(self, source, target):
        source, target = Path(source), Path(target)
        root = source.name == ".zarr.json.partial" and target.parent.parent == self.store.parent
        if root or target == self.store:
            self.commits += 1
            self.wrong += self.unsafe(target.parent if root else source)
        elif target.exists() and stamp(target) in self.relied_on and stamp(source) not in self.safe:
            self.wrong.append(f"{target}, too early")
        self.replace(source, target)
        if root:
            self.relied_on = {stamp(path) for path in target.parent.rglob("*")}


@pytest.fixture
def path(tmp_path, container):
    return tmp_path / f"a.{container}"


def test_a_new_store(path, monkeypatch):
    for overwrite in (False, True):
        disk = Disk(path, monkeypatch)
        with StoreWriter(path, overwrite=overwrite) as writer:
            for count, width in ((300, 9), (3, 7), (2, 9)):
                writer.append(scans(count, width))
        assert disk.commits >= 1
        assert disk.wrong == []
        assert disk.last == path.parent.stat().st_ino
        monkeypatch.undo()
    assert len(open_store(path)) == 305


def test_a_store_that_grows(path, container, monkeypatch):
    with StoreWriter(path) as writer:
        writer.append(scans(5))
    disk = Disk(path, monkeypatch)
    with StoreWriter(path, append=True) as writer:
        for count, width in ((3, 9), (300, 9), (2, 7), (1, 9)):
            writer.append(scans(count, width))
            if container == "zarr":
                writer.commit()
                assert disk.last == path.stat().st_ino
    assert disk.commits == (4 if container == "zarr" else 1)
    assert disk.wrong == []
    assert len(open_store(path)) == 311


def test_a_converted_store(path, container, tmp_path, monkeypatch):
    with StoreWriter(tmp_path / f"other.{container}") as writer:
        writer.append(scans(5))
    other = tmp_path / ("b.h5" if container == "zarr" else "b.zarr")
    disk = Disk(other, monkeypatch)
    convert(tmp_path / f"other.{container}", other, progress=False)
    assert disk.commits >= 1
    assert disk.wrong == []


def test_an_error_while_writing_out(path, monkeypatch):
    """Where a disk is found full only then, the store that was there stays."""
    with StoreWriter(path) as writer:
        writer.append(scans(5))
    before = open_store(path).fingerprint

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(**options):
        with StoreWriter(path, **options) as writer:
            writer.append(scans(3))

    for options in ({"append": True}, {"overwrite": True}):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="the disk is full"):
            write(**options)
        monkeypatch.undo()
        assert open_store(path).fingerprint == before
        assert os.listdir(path.parent) == [path.name]


def test_folders_of_file_systems_that_cannot_write_them_out(tmp_path, monkeypatch):
    def no(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", no)
    durable.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        durable.sync(tmp_path / "file")
