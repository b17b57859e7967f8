"""Stores from elsewhere: none makes its reader open other files, run code, exhaust the memory or crash."""

import importlib.util
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.datasets import guards, open_store
from ambient_sci.errors import StoreError

_spec = importlib.util.spec_from_file_location("fuzz_store", Path(__file__).parent / "fuzz" / "fuzz_store.py")
fuzz_store = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz_store)
write = fuzz_store.write


@pytest.fixture
def store(tmp_path: Path, container: str) -> Path:
    return write(tmp_path / f"scans.{container}")


# ------------------------------------------------------------------------------------------------- other files


def damage_hdf5(path: Path, kind: str) -> None:
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["values"] = np.zeros((4, 1, 4, 6), np.complex64)
    with h5py.File(path, "r+") as file:
        shape, dtype = file["measurement"].shape, file["measurement"].dtype
        del file["measurement"]
        if kind == "external link":
            file["measurement"] = h5py.ExternalLink(str(other), "values")
        elif kind == "soft link":
            file["measurement"] = h5py.SoftLink("/operator_mask")
        elif kind == "external storage":
            raw = str(path.with_name("passwords"))
            file.create_dataset("measurement", shape, dtype, external=[(raw, 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(other), "values", shape)
            file.create_virtual_dataset("measurement", layout)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_hdf5_that_leads_out_of_its_file(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "scans.h5")
    damage_hdf5(path, kind)
    message = "is a link to" if kind.endswith("link") else "lie in other files"
    with pytest.raises(StoreError, match=rf"scans\.h5 is not read: .*measurement.*{message}"):
        open_store(path)


@pytest.mark.parametrize("what", ["measurement", "measurement/c", "scale/zarr.json"])
def test_zarr_that_leads_out_of_its_folder(tmp_path: Path, what: str) -> None:
    path = write(tmp_path / "scans.zarr")
    shutil.move(path / what, tmp_path / "elsewhere")
    (path / what).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"scans\.zarr is not read: {what} is a link to .*elsewhere"):
        open_store(path)


def test_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "scans.zarr")
    shutil.move(path / "measurement", tmp_path / "measurement")
    metadata = json.loads((path / "zarr.json").read_text())
    arrays = metadata["consolidated_metadata"]["metadata"]
    arrays["../measurement"] = arrays.pop("measurement")
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=r"scans\.zarr"):
        open_store(path)


def test_a_link_to_a_store_is_one(store: Path) -> None:
    link = store.with_name("link" + store.suffix)
    link.symlink_to(store)
    assert len(open_store(link)) == 4


# ------------------------------------------------------------------------------------------------- code and memory


@pytest.mark.parametrize("file", ["zarr.json", "measurement/zarr.json"])
def test_codecs_that_a_store_does_not_use(tmp_path: Path, file: str) -> None:
    """Refused before opening the array would import what announces them."""
    path = write(tmp_path / "scans.zarr")
    text = (path / file).read_text()
    (path / file).write_text(text.replace('"blosc"', '"numcodecs.shuffle"'))
    with pytest.raises(StoreError, match=r"is encoded by numcodecs\.shuffle; a store uses blosc, bytes"):
        open_store(path)


def test_scans_larger_than_the_memory(tmp_path: Path, container: str) -> None:
    path = write(tmp_path / f"scans.{container}")
    shape = (4, 1, 1 << 20, 1 << 20)  # 8 TB a scan, of which nothing is stored
    if container == "h5":
        with h5py.File(path, "r+") as file:
            del file["measurement"]
            chunks = (1, 1, 1 << 10, 1 << 10)
            file.create_dataset("measurement", shape, np.complex64, chunks=chunks, compression="gzip")
    else:
        shutil.rmtree(path / "measurement")
        zarr.open_group(path, mode="r+", use_consolidated=False).create_array(
            "measurement", shape=shape, dtype=np.complex64, chunks=(1, 1, 1024, 1024)
        )
        zarr.consolidate_metadata(path)
    with pytest.raises(StoreError, match=r"is not read: a scan of measurement takes .*GB of memory"):
        open_store(path)


def test_memory_that_could_not_have_come_from_so_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb of a size that fits: zeros compress a thousand times and more, noise does not."""
    monkeypatch.setattr(guards, "_SMALL", 1 << 20)
    monkeypatch.setattr(guards, "_available", lambda: 1 << 40)
    guards.check_memory(tmp_path, "a scan", 1 << 20, lambda: 1)
    guards.check_memory(tmp_path, "a scan", 1 << 22, lambda: 1 << 12)
    with pytest.raises(StoreError, match=r"a scan takes 0\.00419 GB of memory and 0\.1 kB of disk"):
        guards.check_memory(tmp_path, "a scan", 1 << 22, lambda: 100)
    monkeypatch.setattr(guards, "_available", lambda: 1 << 21)
    with pytest.raises(StoreError, match=r"a scan takes 0\.00419 GB of memory, 0\.0021 GB are free"):
        guards.check_memory(tmp_path, "a scan", 1 << 22, lambda: 1 << 22)


# ------------------------------------------------------------------------------------------------- any damage


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(target=st.sampled_from(fuzz_store.TARGETS), edits=edits, kept=st.none() | st.floats(0, 1))
def test_damaged_bytes_are_refused_or_harmless(target: str, edits: list[tuple[float, int]], kept: float | None) -> None:
    values = bytearray(fuzz_store.original(target))
    for where, value in edits:
        values[int(where * len(values))] = value
    fuzz_store.read_damaged(target, bytes(values if kept is None else values[: int(kept * len(values))]))


@pytest.mark.parametrize("found", sorted(fuzz_store.CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_fuzzing_found(found: Path) -> None:
    fuzz_store.test_one_input(found.read_bytes())
