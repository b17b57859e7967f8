"""Scans of several sizes in one store."""

import os

import numpy as np
import pytest
import torch
import xarray

from ambient_sci.datasets import StoreWriter, describe, open_store, schema, writer
from ambient_sci.datasets.containers import container_type
from ambient_sci.datasets.store import validate
from ambient_sci.errors import ConfigError, DataError, StoreError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity, Nufft, Sense

ENGINES = {"zarr": "zarr", "h5": "h5netcdf"}


def images_of(*shape, batch, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, *shape, generator=g)
    m = Measurement(
        y, Identity(shape, batch=batch), torch.rand(batch, generator=g) + 0.1, scale=torch.rand(batch, generator=g) + 1
    )
    return m, torch.randn(batch, *shape, generator=g)


def sense(batch, coils, spatial, calibration, seed):
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, 1, *[1] * (len(spatial) - 1), spatial[-1], generator=g) < 0.5).float()
    maps = torch.randn(batch, coils, *spatial, generator=g, dtype=torch.complex64)
    operator = Sense(mask, maps, calibration=calibration)
    x = torch.randn(batch, 1, *spatial, generator=g, dtype=torch.complex64)
    return Measurement(
        operator(x), operator, torch.rand(batch, generator=g), scale=torch.rand(batch, generator=g) + 1
    ), x


def batches():
    """Matrix, coils, settings and the number of spatial dimensions vary; scans of a size come more than once."""
    return [
        sense(3, 3, (16, 12), 2, 0),
        sense(1, 4, (16, 12), 2, 1),
        sense(2, 3, (10, 15), 2, 2),
        sense(2, 3, (16, 12), 2, 3),
        sense(2, 3, (16, 12), 4, 4),
        sense(1, 2, (5, 6, 7), 2, 5),
        sense(1, 3, (10, 15), 2, 6),
    ]


SIZE_OF = [0, 0, 0, 1, 2, 2, 0, 0, 3, 3, 4, 2]  # by scan


@pytest.fixture
def path(tmp_path, container):
    path = tmp_path / f"a.{container}"
    with StoreWriter(path, {"source": "test"}) as out:
        for number, (m, x) in enumerate(batches()):
            out.append(m, x, {"batch": [number] * len(m), "name": [f"scan of {number}"] * len(m)})
    return path


def test_round_trip_is_bit_exact(path):
    store = open_store(path)
    assert len(store) == 12
    assert [group.name for group in store.groups] == [f"size_{number}" for number in range(5)]
    for number, group in enumerate(store.groups):
        assert group.scans.tolist() == [scan for scan, size in enumerate(SIZE_OF) if size == number]
    assert [group.settings["calibration"] for group in store.groups] == [2, 2, 2, 4, 2]
    first = 0
    for number, (m, x) in enumerate(batches()):
        scans = np.arange(first, first + len(m))[::-1].copy()
        got = store.read(scans, raw=True)
        assert got.index.tolist() == scans.tolist()
        turned = m[torch.arange(len(m) - 1, -1, -1)]
        for name in ("y", "noise_std"):
            assert torch.equal(getattr(got, name), getattr(turned, name))
        assert got.operator.settings == m.operator.settings
        for name, value in turned.operator.parameters.items():
            assert torch.equal(got.operator.parameters[name], value)
        assert torch.equal(store.references(scans), x.flip(0))
        assert (store.coords["batch"][scans] == number).all()
        assert (store.coords["name"][scans] == f"scan of {number}").all()
        first += len(m)
    np.testing.assert_array_equal(store.coords["scan"], np.arange(12))
    assert store.read([0, 6, 2]).index.tolist() == [0, 6, 2]  # of one size, from two batches
    assert validate(path) == []


def test_scans_of_different_sizes_are_no_batch(path):
    store = open_store(path)
    with pytest.raises(
        DataError, match=r"scans 6 and 8 of .* are of different sizes, images 1×16×12 from 3×16×12"
    ) as no:
        store.read([0, 6, 8, 4][1:])
    assert "calibration 2 and images 1×16×12 from 3×16×12, calibration 4" in str(no.value)
    assert "\n" not in str(no.value)
    with pytest.raises(DataError, match="images of different shapes, 1×16×12 and 1×10×15"):
        _ = store.image_shape
    with pytest.raises(DataError, match=r"references of .* are of different shapes"):
        store.references([0, 4])
    assert store.references([8, 0, 3]).shape == (3, 1, 16, 12)  # of one shape, whatever the coils
    assert "images 1×16×12, 1×10×15, 1×5×6×7" in repr(store)
    places = {tuple(scans): tuple(place) for scans, place in store.by_size([5, 0, 4, 10])}
    assert places == {(5, 4): (0, 2), (0,): (1,), (10,): (3,)}


def test_every_size_is_a_store_that_xarray_opens(path, container):
    tree = xarray.open_datatree(path, engine=ENGINES[container])
    assert set(tree.children) == {f"size_{number}" for number in range(5)}
    assert not tree.to_dataset().variables
    m, x = batches()[2]
    data = xarray.open_dataset(path, group="size_2", engine=ENGINES[container])
    assert data.measurement.dims == ("scan", "coil", "y", "x")
    assert data.operator_mask.dims == ("scan", "x")
    assert data.measurement.attrs["units"] == "arbitrary"
    assert set(data.coords) == {"scan", "batch", "name"}
    assert data.scan.values.tolist() == [4, 5, 11]
    assert tuple(data.attrs["image_shape"]) == (1, 10, 15)
    np.testing.assert_array_equal(data.measurement.values[:2], m.y.numpy())
    truth = xarray.open_dataset(path, group="size_2/reference", engine=ENGINES[container])
    np.testing.assert_array_equal(truth.image.values[:2], x.numpy())
    volume = open_store(path).to_xarray(group="size_4")
    assert volume.measurement.dims == ("scan", "coil", "z", "y", "x")
    with pytest.raises(ConfigError, match="group must be one of 'size_0', 'size_1'"):
        open_store(path).to_xarray()
    if container == "zarr":
        alone = open_store(path / "size_2")
        assert torch.equal(alone.read([0, 1], raw=True).y, m.y)
        assert set(os.listdir(path)) == {"zarr.json", *tree.children}


def test_one_size_stays_flat(tmp_path, container):
    path = tmp_path / f"a.{container}"
    with StoreWriter(path) as out:
        for seed in range(3):
            out.append(sense(2, 3, (16, 12), 2, seed)[0])
    found = container_type(path)(path)
    assert found.groups() == []
    assert "measurement" in found.names()
    found.close()
    assert [group.name for group in open_store(path).groups] == [""]
    assert open_store(path).image_shape == (1, 16, 12)


def test_samples_of_different_number(tmp_path, container):
    """Off the grid a size is a number of samples; images of one shape are then of several sizes."""
    path = tmp_path / f"a.{container}"
    g = torch.Generator().manual_seed(0)
    wanted = []
    with StoreWriter(path) as out:
        for samples in (40, 50, 40):
            operator = Nufft(torch.rand(1, samples, 2, generator=g) * 6 - 3, (8, 9))
            y = torch.randn(1, 1, samples, generator=g, dtype=torch.complex64)
            wanted.append(Measurement(y, operator, 0.1))
            out.append(wanted[-1])
    store = open_store(path)
    assert store.image_shape == (1, 8, 9)
    assert [group.scans.tolist() for group in store.groups] == [[0, 2], [1]]
    for scan, m in enumerate(wanted):
        assert torch.equal(store.read(scan, raw=True).y, m.y)
        assert torch.equal(store.read(scan).operator.trajectory, m.operator.trajectory)


def test_describe_and_fingerprint(path, container, tmp_path):
    store = open_store(path)
    text = str(describe(store))
    for part in ("12", "size_3 operator", "sense, calibration 4", "1 × 5 × 6 × 7, complex", "batch (7 different)"):
        assert part in text
    with StoreWriter(tmp_path / "b.zarr", {"source": "test"}) as out:
        for number, (m, x) in enumerate(batches()):
            out.append(m, x, {"batch": [number] * len(m), "name": [f"scan of {number}"] * len(m)})
    assert open_store(tmp_path / "b.zarr").fingerprint == store.fingerprint
    store.close()
    other = container_type(path)(path, "a")
    other.append("size_4/measurement", other.read("size_4/measurement"))
    other.close()
    if container == "zarr":  # not committed
        assert open_store(path).fingerprint == store.fingerprint


def test_what_all_sizes_share(tmp_path, container):
    path = tmp_path / f"a.{container}"
    first, x = images_of(1, 8, 9, batch=2, seed=0)
    other, y = images_of(1, 7, 9, batch=2, seed=0)
    double = Measurement(other.y.double(), Identity((1, 7, 9), batch=2), 1.0)

    def write(*second):
        with StoreWriter(path) as out:
            out.append(first, x, {"slice": [1, 2]})
            out.append(*second)

    for second, message in (
        ((sense(2, 3, (7, 9), 2, 0)[0], y, {"slice": [1, 2]}), "operator of these scans is sense"),
        ((double, y, {"slice": [1, 2]}), "measurement is float64, wanted float32 like the scans before"),
        ((other, None, {"slice": [1, 2]}), "reference/image must be given with all scans"),
        ((other, y), "slice must be given with all scans"),
        ((other, y, {"slice": ["a", "b"]}), "slice is <U1, wanted int64"),
        ((other, x, {"slice": [1, 2]}), r"references have shape \(1, 8, 9\), wanted \(1, 7, 9\) each"),
    ):
        with pytest.raises(DataError, match=message):
            write(*second)
    assert os.listdir(tmp_path) == []


def test_many_sizes_across_blocks(tmp_path, container, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK", 4 * 9 * 8 * 4)
    monkeypatch.setattr(writer, "CHUNK", 2 * 9 * 8 * 4)
    rng = np.random.default_rng(0)
    every = [images_of(1, 8, 7 + int(width), batch=1, seed=n) for n, width in enumerate(rng.integers(0, 3, 40))]
    with StoreWriter(tmp_path / f"a.{container}") as out:
        for m, x in every:
            out.append(m, x)
    store = open_store(tmp_path / f"a.{container}")
    for scan, (m, x) in enumerate(every):
        assert torch.equal(store.read(scan, raw=True).y, m.y)
        assert torch.equal(store.references(scan), x)
        assert store.scale[scan] == m.scale.item()


# ------------------------------------------------------------------------------------------------ version 1


def test_version_1_is_read_and_appended_to(tmp_path, container):
    """Its layout is that of one size, with per-scan numbers in one chunk of their own length."""
    path = tmp_path / f"a.{container}"
    m, x = sense(3, 3, (16, 12), 2, 0)
    made = container_type(path)(path, "w")
    arrays = {
        "measurement": (m.y.numpy(), ["scan", "coil", "y", "x"]),
        "noise_std": (m.noise_std.numpy(), ["scan"]),
        "operator_maps": (m.operator.maps.numpy(), ["scan", "coil", "y", "x"]),
        "operator_mask": (m.operator.mask[:, 0, 0].numpy(), ["scan", "x"]),
        "reference/image": (x.numpy(), ["scan", "channel", "y", "x"]),
        "reference/scan": (np.arange(3), ["scan"]),
        "scale": (m.scale.numpy(), ["scan"]),
        "scan": (np.arange(3), ["scan"]),
        "site": (np.array(["a", "b", "c"]), ["scan"]),
    }
    for name, (values, dims) in arrays.items():
        about = schema.describe_array(name) | ({"layout": "scan 1 1 x"} if name == "operator_mask" else {})
        made.create(name, values.shape[1:], values.dtype, dims, 3, 3, about)
        made.append(name, values)
    attributes = {"schema": "ambient-sci", "schema_version": 1, "operator": "sense", "provenance": '{"seed": 3}'}
    attributes |= {"operator_settings": '{"calibration": 2}', "image_shape": [1, 16, 12], "coordinates": "site"}
    made.commit({"": attributes})
    made.close()

    store = open_store(path)
    assert store.attrs["schema_version"] == 1
    assert torch.equal(store.read([2, 0], raw=True).y, m.y[[2, 0]])
    assert validate(path) == []
    store.close()
    more, y = sense(2, 3, (16, 12), 2, 1)
    other, z = sense(1, 2, (9, 12), 2, 2)
    with StoreWriter(path, append=True) as out:
        out.append(more, y, {"site": ["d", "e"]})
        out.append(other, z, {"site": ["f"]})
    store = open_store(path)
    assert store.attrs["schema_version"] == 2
    assert store.attrs["provenance"]["seed"] == 3
    assert store.attrs["provenance"]["appended"][0]["scans"] == [3, 6]
    assert store.coords["site"].tolist() == list("abcdef")
    assert torch.equal(store.read([4, 1], raw=True).y, torch.stack([more.y[1], m.y[1]]))
    assert torch.equal(store.references([5]), z)
    assert validate(path) == []


def test_a_store_whose_sizes_do_not_count_to_its_scans(path):
    opened = container_type(path)(path, "a")
    attributes = {group: opened.attributes(group) for group in ("", *opened.groups())}
    last = opened.groups()[-1]
    for name in (*opened.names(last), "reference/image", "reference/scan"):
        opened.append(f"{last}/{name}", opened.read(f"{last}/{name}"))  # scan 10 twice, and 12 nowhere
    opened.commit(attributes)
    opened.close()
    with pytest.raises(StoreError, match=r"is damaged: no group holds scan 12"):
        open_store(path)
    assert any("scan must number the scans from 0 without gaps, each once" in line for line in validate(path))
