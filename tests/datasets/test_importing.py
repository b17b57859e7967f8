"""Imports that stop and go on, that add to a store, and that join scans of nearly one size."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from ambient_sci.datasets import Preparation, RawScan, ReadyScan, import_scans, importing, open_store
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.datasets.importing import import_files
from ambient_sci.datasets.store import validate
from ambient_sci.errors import DataError, OutputError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity

STOP = os.environ.get("TEST_STOP")


def read_numbers(paths, *, count=40, stop=None, error="the file ends here"):
    """An importer whose scans say which they are, and that stops where it is told."""
    for number in range(count):
        if number == stop or str(number) == STOP:
            if STOP:
                print("ready", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if error is None else DataError(error)
        width = 9 if number % 7 else 8
        y = torch.full((1, 1, 8, width), float(number))
        yield ReadyScan(Measurement(y, Identity((1, 8, width)), 0.1), {"slice": number})


@pytest.fixture
def importer(monkeypatch):
    """`read_numbers` under a name, without installing it; the scans that were asked for are counted."""
    asked = []

    def read(paths, **options):
        options.pop("name", None)
        for scan in read_numbers(paths, **options):
            asked.append(scan)
            yield scan

    monkeypatch.setattr(importing, "load", lambda group, name: read)
    return asked


@pytest.fixture
def files(tmp_path):
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_text("")
    return tmp_path / "a.raw", tmp_path / "b.raw"


def bring(files, out, **options):
    return import_files("numbers", files[0], out, progress=False, **options)


def check(store, count=40):
    assert len(store) == count
    for group in store.groups:
        got = store.read(group.scans, raw=True)
        assert torch.equal(got.y[:, 0, 0, 0], torch.from_numpy(group.scans).float())
    np.testing.assert_array_equal(store.coords["slice"], np.arange(count))
    assert validate(store.path) == []


def hidden(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


@pytest.mark.parametrize("error", ["the file ends here", None])
def test_the_same_import_goes_on(tmp_path, importer, files, error, capsys, monkeypatch):
    out = tmp_path / "out.zarr"
    whole = bring(files, tmp_path / "whole.zarr")
    safe = r"30 scans are safe in .*\.out\.zarr\.partial, and the same import goes on after them"
    real = importing.islice
    stop = {"stop": 30, "error": error}
    monkeypatch.setattr(importing, "load", lambda group, name: lambda paths: read_numbers(paths, **stop))
    if error is None:
        with pytest.raises(KeyboardInterrupt):
            import_files("numbers", files[0], out, progress=True)
        assert "30 scans are safe in" in capsys.readouterr().err
    else:
        with pytest.raises(DataError, match=rf"the file ends here; {safe}"):
            bring(files, out)
    assert not out.exists()
    assert hidden(tmp_path) == [".out.zarr.partial"]
    assert len(open_store(tmp_path / ".out.zarr.partial")) == 30
    stop.clear()
    taken = []
    monkeypatch.setattr(importing, "islice", lambda scans, start, end: taken.append(start) or real(scans, start, end))
    store = bring(files, out)
    assert taken == [30]
    check(store)
    assert store.fingerprint == whole.fingerprint
    assert hidden(tmp_path) == []


def test_killed_imports_go_on(tmp_path, importer, files):
    """With a commit after every scan, a SIGKILL loses none."""
    out = tmp_path / "out.zarr"
    text = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_importing import *
importing.COMMIT = -1
importing.load = lambda group, name: read_numbers
bring(({str(files[0])!r},), {str(out)!r})
"""
    environment = {**os.environ, "TEST_STOP": "23"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert len(open_store(tmp_path / ".out.zarr.partial")) == 23
    check(bring(files, out))
    assert hidden(tmp_path) == []


def test_a_full_disk_keeps_what_was_committed(tmp_path, importer, files, monkeypatch):
    from ambient_sci.datasets.zarr_container import _Folder

    monkeypatch.setattr(importing, "COMMIT", -1)
    original, calls = _Folder.set, []

    async def full_set(self, *args, **kwargs):
        calls.append(None)
        if len(calls) > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        await original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_Folder, "set", full_set)
        with pytest.raises(OutputError, match=r"the disk is full; .*; \d+ scans are safe in .*partial"):
            bring(files, tmp_path / "out.zarr")
    safe = len(open_store(tmp_path / ".out.zarr.partial"))
    assert 0 < safe < 40
    check(open_store(tmp_path / ".out.zarr.partial"), safe)
    check(bring(files, tmp_path / "out.zarr"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_to_append(tmp_path, container, importer, files):
    folder = tmp_path / "locked"
    bring(files, folder / f"out.{container}")
    folder.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission; choose another path"):
            import_files("numbers", files[0], folder / f"out.{container}", append=True, progress=False)
    finally:
        folder.chmod(0o700)
    check(open_store(folder / f"out.{container}"))


def test_another_import_does_not_go_on(tmp_path, importer, files):
    out = tmp_path / "out.zarr"
    with pytest.raises(DataError, match="12 scans are safe"):
        bring(files, out, stop=12)
    before = open_store(tmp_path / ".out.zarr.partial").fingerprint
    for options, what in (
        ({"stop": 12, "count": 30}, "options"),
        ({"stop": 12, "preparation": Preparation(crop=0.5)}, "preparation"),
    ):
        with pytest.raises(
            OutputError,
            match=rf"was interrupted after 12 scans, and {what} was another then; remove .*partial to start",
        ) as refused:
            bring(files, out, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(OutputError, match="files was another then"):
        bring(files[1:], out, stop=12)
    assert open_store(tmp_path / ".out.zarr.partial").fingerprint == before
    check(import_scans(read_numbers([]), tmp_path / "other.zarr", progress=False))
    check(bring(files, out, resume=False))
    assert hidden(tmp_path) == [".out.zarr.partial"]  # not asked to resume, and not to throw it away


def test_nothing_is_left_of_an_import_without_scans(tmp_path, importer, files):
    with pytest.raises(DataError, match="the file ends here") as stopped:
        bring(files, tmp_path / "out.zarr", stop=0)
    assert "safe" not in str(stopped.value)
    with pytest.raises(DataError, match="there are no scans to import"):
        bring(files, tmp_path / "out.zarr", count=0)
    assert hidden(tmp_path) == []


def test_hdf5_is_written_in_one_go(tmp_path, importer, files):
    with pytest.raises(DataError, match="the file ends here") as stopped:
        bring(files, tmp_path / "out.h5", stop=30)
    assert "safe" not in str(stopped.value)
    assert hidden(tmp_path) == []
    check(bring(files, tmp_path / "out.h5"))


def test_appending_is_all_or_nothing(tmp_path, container, importer, files):
    out = tmp_path / f"out.{container}"
    bring(files, out)
    fingerprint = open_store(out).fingerprint
    with pytest.raises(DataError, match="the file ends here"):
        import_files("numbers", files[1], out, append=True, progress=False, stop=30)
    assert open_store(out).fingerprint == fingerprint
    store = import_files("numbers", files[1], out, append=True, progress=False, count=5)
    assert len(store) == 45
    assert store.read([41, 44], raw=True).y[:, 0, 0, 0].tolist() == [1, 4]
    assert store.attrs["provenance"]["files"] == [str(files[0])]
    assert store.attrs["provenance"]["appended"][0]["files"] == [str(files[1])]
    assert store.attrs["provenance"]["appended"][0]["scans"] == [40, 45]
    with pytest.raises(DataError, match="no scans to import"):
        import_files("numbers", files[1], out, append=True, progress=False, count=0)
    assert hidden(tmp_path) == []


def test_centres_of_nearly_one_width_are_one_size(tmp_path):
    """Random neighbours make some centres wider; a width that is true of all is kept, one of less than half is not."""
    g = torch.Generator().manual_seed(0)
    maps = coil_maps(3, (20, 24), g).numpy()

    def scans(widths):
        for width in widths:
            mask = np.zeros((20, 24), bool)
            mask[:, 12 - width // 2 : 12 - width // 2 + width] = True
            kspace = torch.view_as_complex(torch.randn(3, 20, 24, 2, generator=g)).numpy() * mask
            yield RawScan(kspace, mask, maps=maps, noise_std=1.0)

    store = import_scans(scans([8, 9, 10, 8, 16, 17, 7, 20]), tmp_path / "a.zarr", progress=False)
    sizes = {group.settings["calibration"]: group.scans.tolist() for group in store.groups}
    assert sizes == {8: [0, 1, 2, 3, 4], 17: [5, 7], 7: [6]}
    for group in store.groups:
        m = store.read(group.scans)
        block = m.operator.mask[..., 12 - group.settings["calibration"] // 2 :][..., : group.settings["calibration"]]
        assert (block == 1).all()
    more = import_scans(scans([18, 9]), tmp_path / "a.zarr", append=True, progress=False)
    assert {group.settings["calibration"]: len(group.scans) for group in more.groups} == {8: 6, 17: 3, 7: 1}
