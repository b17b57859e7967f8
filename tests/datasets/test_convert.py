"""Zarr to HDF5 and back, and what is found by reading all of a store."""

import os
import shutil
import sys
import warnings

import h5py
import numpy as np
import pytest
import torch
import zarr

from ambient_sci import cli
from ambient_sci.datasets import StoreWriter, open_store, simulate, writer
from ambient_sci.datasets.containers import container_type
from ambient_sci.datasets.convert import convert
from ambient_sci.datasets.store import validate
from ambient_sci.errors import NotFoundError, OutputError, StoreError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity

OTHER = {"zarr": "h5", "h5": "zarr"}


@pytest.fixture(params=["one size", "three sizes"])
def path(request, tmp_path, container, images, draw):
    path = tmp_path / f"a.{container}"
    if request.param == "one size":
        simulate(images, path, calibration=2, coils=3, subject=list("aabbcc"))
    else:
        with StoreWriter(path, {"seed": 3, "files": ["ä.h5"]}) as out:
            for width in (12, 12, 9, 7, 9):
                y = torch.randn(2, 1, 16, width, dtype=torch.complex128)
                m = Measurement(y, Identity((1, 16, width), batch=2), torch.rand(2, 1, 16, width).double() + 0.1)
                out.append(m, y, {"site": ["é", "longer"], "time": [60000.25, 1e-300], "slice": [-1, 2**40]})
    return path


def same(a, b):
    """Array by array, attribute by attribute, bit by bit."""
    first, second = (container_type(path)(path) for path in (a, b))
    assert first.all_groups() == second.all_groups()
    for group in ("", *first.all_groups()):
        assert first.names(group) == second.names(group)
        assert first.attributes(group) == second.attributes(group)
        for name in (f"{group}/{name}".strip("/") for name in first.names(group)):
            one, two = first.info(name), second.info(name)
            assert (one.shape, one.dims, one.attributes) == (two.shape, two.dims, two.attributes)
            assert one.dtype == two.dtype
            values = [
                np.asarray(c.read(name).tolist()) if one.dtype.kind == "U" else c.read(name) for c in (first, second)
            ]
            assert values[0].tobytes() == values[1].tobytes()
    first.close()
    second.close()


def test_there_and_back(path, container, tmp_path):
    there, back = tmp_path / f"b.{OTHER[container]}", tmp_path / f"c.{container}"
    fingerprint = open_store(path).fingerprint
    assert convert(path, there, progress=False).fingerprint == fingerprint
    assert convert(there, back, progress=False).fingerprint == fingerprint
    same(path, there)
    same(path, back)
    assert validate(there) == validate(back) == []
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, there.name, back.name])


def test_block_by_block(tmp_path, container, draw, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK", 4 * 16 * 12 * 3 * 8)
    monkeypatch.setattr(writer, "CHUNK", 2 * 16 * 12 * 3 * 8)
    measurement, x = draw("sense", batch=23)
    path = tmp_path / f"a.{container}"
    with StoreWriter(path) as out:
        out.append(measurement, x)
    convert(path, tmp_path / f"b.{OTHER[container]}", progress=False)
    same(path, tmp_path / f"b.{OTHER[container]}")


def test_scans_can_be_added_to_what_was_converted(path, container, tmp_path):
    there = tmp_path / f"b.{OTHER[container]}"
    store = convert(path, there, progress=False)
    m, x = store.read(0, raw=True), store.references(0)
    coords = {name: values[:1] for name, values in store.coords.items() if name != "scan"}
    store.close()
    with StoreWriter(there, append=True) as out:
        out.append(m, x, coords)
    grown = open_store(there)
    assert torch.equal(grown.read(-1, raw=True).y, m.y)
    assert torch.equal(grown.references(-1), x)
    assert validate(there) == []


def test_what_is_there_is_kept(path, container, tmp_path):
    there = tmp_path / f"b.{OTHER[container]}"
    with pytest.raises(NotFoundError, match="no store at"):
        convert(tmp_path / "none.zarr", there)
    convert(path, there, progress=False)
    with pytest.raises(OutputError, match="already exists"):
        convert(path, there, progress=False)
    convert(path, there, overwrite=True, progress=False)
    same(path, there)


def test_a_damaged_store_becomes_no_other(tmp_path, images):
    path = tmp_path / "a.zarr"
    simulate(images, path, calibration=2, coils=3)
    for file in (path / "operator_maps" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StoreError, match="is damaged: operator_maps"):
        convert(path, tmp_path / "b.h5", progress=False)
    assert os.listdir(tmp_path) == ["a.zarr"]


# ------------------------------------------------------------------------------------------------ validation


def change(path, what):
    """Spoil a store: ``what(root)`` on its root group, of either library."""
    if path.is_dir():
        what(zarr.open_group(path, mode="r+", use_consolidated=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(path, zarr_format=3)
    else:
        with h5py.File(path, "r+") as root:
            what(root)


def assign(name, where, value):
    def what(root):
        values = root[name][:]
        values[where] = value
        root[name][:] = values

    return what


def attribute(name, key, value):
    def what(root):
        if value is None:
            del root[name].attrs[key]
        else:
            root[name].attrs[key] = value

    return what


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (assign("measurement", (4, 1, 2, 3), np.nan), "measurement of scan 4 must be finite"),
        (assign("reference/image", 2, np.inf), "reference/image of scan 2 must be finite"),
        (assign("noise_std", 5, -1), "noise_std of scan 5 must be finite and not negative"),
        (assign("scale", 3, 0), "scale of scan 3 must be finite and above zero"),
        (assign("scan", 3, 2), "scan must number the scans from 0 without gaps, each once"),
        (attribute("scale", "units", None), "scale has no attribute 'units'"),
        (attribute("slice", "units", "mm"), "slice is in mm, wanted 1"),
        (attribute("/", "coordinates", "slice time"), "the attribute 'coordinates' lists time, but there is no such"),
        (attribute("/", "coordinates", "scan"), "slice is no array of this schema, and the attribute 'coordinates'"),
        (attribute("/", "image_shape", [1, 8, 8]), "image_shape is (1, 8, 8), but its operator measures"),
        (attribute("operator_mask", "layout", "scan 1 x"), "operator and measurement do not fit"),
        (attribute("/", "schema_version", 9), "has schema version 9"),
    ],
)
def test_problems_are_named(tmp_path, container, images, what, said):
    path = tmp_path / f"a.{container}"
    simulate(images, path, calibration=2, coils=3, coords={"slice": list(range(6))}).close()
    assert validate(path) == []
    change(path, what)
    problems = validate(path)
    assert any(said in line for line in problems), problems
    assert all(str(path) in line and "\n" not in line for line in problems)


def test_all_problems_are_listed(tmp_path, container, images):
    path = tmp_path / f"a.{container}"
    simulate(images, path, calibration=2, coils=3).close()
    for spoil in (
        assign("measurement", [1, 4], np.nan),
        assign("noise_std", 0, -2),
        attribute("measurement", "long_name", None),
    ):
        change(path, spoil)
    problems = open_store(path).validate()
    assert [line.removeprefix(str(path)) for line in problems] == [
        ": measurement has no attribute 'long_name'",
        ": measurement of scan 1, 4 must be finite",
        ": noise_std of scan 0 must be finite and not negative",
    ]


def test_every_damaged_scan_is_named(tmp_path, container):
    path = tmp_path / f"a.{container}"
    with StoreWriter(path) as out:
        out.append(Measurement(torch.randn(12, 1, 192, 192), Identity((1, 192, 192), batch=12), 1.0))
    if container == "zarr":
        file = next(entry for entry in (path / "measurement" / "c").rglob("*") if entry.is_file())
        places = [file.stat().st_size * part // 12 - 6000 for part in (3, 9)]
    else:
        file = path
        with h5py.File(path) as opened:
            chunks = [opened["measurement"].id.get_chunk_info(scan) for scan in (2, 8)]
            places = [chunk.byte_offset + chunk.size // 2 for chunk in chunks]
    with open(file, "r+b") as raw:
        for place in places:
            raw.seek(place)
            byte = raw.read(1)[0]
            raw.seek(place)
            raw.write(bytes([byte ^ 0x40]))
    (said,) = validate(path)
    assert "is damaged: measurement of scan 2, 8 cannot be read (" in said


def test_commands(tmp_path, images, monkeypatch, capsys):
    path = tmp_path / "a.zarr"
    simulate(images, path, calibration=2, coils=3)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capsys.readouterr()

    status, said = run("convert", path, tmp_path / "b.h5", "--quiet")
    assert (status, said.err) == (0, "")
    assert open_store(path).fingerprint in said.out
    same(path, tmp_path / "b.h5")
    assert run("validate", tmp_path / "b.h5")[0] == 0
    change(path, assign("noise_std", 4, np.nan))
    status, said = run("validate", path)
    assert (status, said.err) == (1, "")
    assert said.out == f"{path}: noise_std of scan 4 must be finite and not negative\n"
    shutil.rmtree(path)
    assert run("validate", path)[0] == 2
