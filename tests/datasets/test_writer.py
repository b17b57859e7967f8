import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ambient_sci.datasets import StoreWriter, hdf5_container, open_store, writer
from ambient_sci.errors import DataError, OutputError
from ambient_sci.measurement import Measurement


def write(path, measurement, **options):
    with StoreWriter(path, **options) as out:
        out.append(measurement)
    return open_store(path).fingerprint


def append_all(path, *batches):
    with StoreWriter(path) as out:
        for batch in batches:
            out.append(*batch)


def test_many_batches_across_blocks(tmp_path, container, draw, monkeypatch):
    measurement, x = draw("sense", batch=23)
    monkeypatch.setattr(writer, "BLOCK", 4 * 16 * 12 * 3 * 8)  # four scans
    monkeypatch.setattr(writer, "CHUNK", 2 * 16 * 12 * 3 * 8)
    with StoreWriter(tmp_path / f"a.{container}") as out:
        for start, stop in ((0, 1), (1, 7), (7, 8), (8, 20), (20, 23)):
            out.append(measurement[start:stop], x[start:stop])
        assert len(out) == 23
    store = open_store(tmp_path / f"a.{container}")
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    got = store.read(order, raw=True)
    assert torch.equal(got.y, measurement.y[order])
    assert torch.equal(got.operator.maps, measurement.operator.maps[order])
    assert torch.equal(got.operator.mask, measurement.operator.mask[order])
    assert torch.equal(store.references(order), x[order])


def test_the_callers_memory_is_its_own(tmp_path, container, draw):
    measurement, _ = draw("sense")
    wanted = measurement.y.clone()
    with StoreWriter(tmp_path / f"a.{container}") as out:
        out.append(measurement)
        measurement.y.zero_()
    assert torch.equal(open_store(tmp_path / f"a.{container}").read(slice(None), raw=True).y, wanted)


def test_provenance_of_numpy_and_paths(tmp_path, container, draw):
    provenance = {"seed": np.int64(3), "from": tmp_path, "sizes": np.arange(2)}
    write(tmp_path / f"a.{container}", draw("mask")[0], provenance=provenance)
    got = open_store(tmp_path / f"a.{container}").attrs["provenance"]
    assert (got["seed"], got["from"], got["sizes"]) == (3, str(tmp_path), [0, 1])
    assert "ambient_sci_version" in got


def test_folders_above_are_made(tmp_path, container, draw):
    write(tmp_path / "new" / "folders" / f"a.{container}", draw("mask")[0])


def test_never_replaces_unless_told(tmp_path, container, draw):
    path = tmp_path / f"a.{container}"
    old, other = draw("mask")[0], draw("mask", seed=1)[0]
    first = write(path, old)
    with pytest.raises(OutputError, match=r"already exists; choose another path or pass --overwrite"):
        StoreWriter(path)
    assert open_store(path).fingerprint == first
    assert write(path, other, overwrite=True) != first
    assert os.listdir(tmp_path) == [path.name]


def test_overwrite_replaces_nothing_but_stores(tmp_path, container, draw):
    path = tmp_path / f"a.{container}"
    if container == "zarr":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    else:
        path.write_text("years of work")
    with pytest.raises(OutputError, match="is not an ambient-sci store and is not replaced"):
        StoreWriter(path, overwrite=True)
    assert path.exists()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_store(tmp_path, container, draw, error):
    path = tmp_path / f"a.{container}"
    first = write(path, draw("sense")[0])

    def interrupted():
        with StoreWriter(path, overwrite=True) as out:
            out.append(draw("sense", seed=1)[0])
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert open_store(path).fingerprint == first
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_full_disk_leaves_the_old_store(tmp_path, container, draw, monkeypatch, at):
    path = tmp_path / f"a.{container}"
    first = write(path, draw("sense")[0])
    calls = []

    def full(self, *args, **kwargs):
        calls.append(args)
        if len(calls) > at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, *args, **kwargs)

    if container == "zarr":
        from ambient_sci.datasets.zarr_container import _Folder

        original = _Folder.set

        async def full_set(self, *args, **kwargs):
            calls.append(args)
            if len(calls) > at + 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            await original(self, *args, **kwargs)

        monkeypatch.setattr(_Folder, "set", full_set)
    else:
        import io

        original = io.FileIO.write
        monkeypatch.setattr(hdf5_container, "_raw_write", full)
    with pytest.raises(OutputError, match=r"cannot write .*: the disk is full; free space or choose another path"):
        write(path, draw("sense", batch=40, seed=1)[0], overwrite=True)
    monkeypatch.undo()
    assert len(calls) > at
    assert open_store(path).fingerprint == first
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_size_limit_is_a_full_disk(tmp_path, container):
    """The real thing, in another process: the system refuses to write, and the process survives it."""
    script = f"""
import resource, signal, sys, torch
from ambient_sci.datasets import StoreWriter
from ambient_sci.errors import OutputError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with StoreWriter({str(tmp_path / f"a.{container}")!r}) as out:
        out.append(Measurement(torch.randn(10, 1, 200, 200), Identity((1, 200, 200), batch=10), 1.0))
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the disk is full" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_store(tmp_path, container, draw):
    path = tmp_path / f"a.{container}"
    first = write(path, draw("mask")[0])
    script = f"""
import time, torch
from ambient_sci.datasets import StoreWriter
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity
with StoreWriter({str(path)!r}, overwrite=True) as out:
    out.append(Measurement(torch.randn(9, 1, 9, 9), Identity((1, 9, 9), batch=9), 1.0))
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert open_store(path).fingerprint == first
    write(path, draw("mask", seed=1)[0], overwrite=True)  # what it left does not stand in the way


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path, container, draw):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission; choose another path"):
        write(tmp_path / f"a.{container}", draw("mask")[0])


def test_a_file_in_the_way(tmp_path, container, draw):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "file" / f"a.{container}", draw("mask")[0])


def test_scans_that_do_not_go_together(tmp_path, container, draw):
    sense, x = draw("sense")
    path = tmp_path / f"a.{container}"
    cases = [
        ((draw("fourier")[0],), "operator of these scans is fourier, that of the scans before sense"),
        ((draw("sense", dtype=torch.complex128)[0],), "complex128"),
        ((sense, x), r"reference/image must be given with all scans of a store or with none"),
        ((sense, None, {"subject": [1] * 5}), "subject must be given with all scans"),
        ((sense, None, {"subject": [1] * 4}), r"'subject' must be \(5,\) integers"),
        ((sense, None, {"scale": [1] * 5}), "'scale' cannot be the name of a coordinate"),
        ((sense, None, {"../up": [1] * 5}), "cannot be the name of a coordinate"),
    ]
    for arguments, message in cases:
        with pytest.raises(DataError, match=message):
            append_all(path, (sense,), arguments)
        assert os.listdir(tmp_path) == []


def test_values_that_are_no_measurement(tmp_path, container, draw):
    sense, x = draw("sense")
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="reference/image of scan 8 has NaN"):
        append_all(tmp_path / "a", (sense, draw("sense")[1]), (sense, x))
    flat = Measurement(sense.y, sense.operator, 1.0, scale=torch.tensor([1, 1, 0, 1, 1.0]))
    with pytest.raises(DataError, match="scale must be above zero"):
        append_all(tmp_path / "a", (flat,))
    with pytest.raises(DataError, match="no scans were given"), StoreWriter(tmp_path / f"a.{container}"):
        pass
    assert os.listdir(tmp_path) == []
