import pickle
import shutil
import warnings

import h5py
import numpy as np
import pytest
import torch
import xarray
import zarr

from ambient_sci.datasets import StoreWriter, describe, open_store, simulate
from ambient_sci.errors import DataError, NotFoundError, StoreError
from ambient_sci.measurement import Measurement

KINDS = ["sense", "fourier", "mask", "gaussian", "structured", "matrix", "identity"]


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a, b)


def same_measurement(a, b):
    for name in ("y", "noise_std", "scale"):
        same(getattr(a, name), getattr(b, name))
    assert a.operator.settings == b.operator.settings
    for name, value in a.operator.parameters.items():
        same(value, b.operator.parameters[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_round_trip_is_bit_exact(tmp_path, container, kind, dtype, draw):
    measurement, x = draw(kind, dtype=dtype)
    path = tmp_path / f"a.{container}"
    with StoreWriter(path) as writer:
        writer.append(measurement[:2], x[:2], {"subject": [1, 1], "site": ["a", "bcd"]})
        writer.append(measurement[2:], x[2:], {"subject": [2, 3, 3], "site": ["é", "", "longer name"]})
    store = open_store(path)
    assert len(store) == 5
    assert store.kind == measurement.operator.kind
    assert store.image_shape == tuple(x.shape[1:])
    assert store.is_complex == x.is_complex()
    assert store.has_references
    same_measurement(store.read(slice(None), raw=True), measurement)
    same(store.references([4, 0]), x[[4, 0]])
    np.testing.assert_array_equal(store.coords["scan"], np.arange(5))
    np.testing.assert_array_equal(store.coords["subject"], [1, 1, 2, 3, 3])
    np.testing.assert_array_equal(store.coords["site"], ["a", "bcd", "é", "", "longer name"])


@pytest.mark.parametrize("kind", KINDS)
def test_read_divides_by_scale_alone(tmp_path, container, kind, draw):
    measurement, _ = draw(kind)
    with StoreWriter(tmp_path / f"a.{container}") as writer:
        writer.append(measurement)
    got = open_store(tmp_path / f"a.{container}").read([3, 1, 3])
    assert got.index.tolist() == [3, 1, 3]
    want = measurement[torch.tensor([3, 1, 3])]
    same(got.scale, want.scale)
    same(got.y, want.y / want.scale.reshape(-1, *[1] * (want.y.ndim - 1)))
    same(got.noise_std, want.noise_std / want.scale)
    for name, value in want.operator.parameters.items():
        same(got.operator.parameters[name], value)


def test_noise_per_sample(tmp_path, container, draw):
    measurement, _ = draw("sense")
    noise = torch.rand(5, 3, 16, 12)
    full = Measurement(measurement.y, measurement.operator, noise, scale=measurement.scale)
    columns = Measurement(measurement.y, measurement.operator, noise[:, :, :1, :1], scale=measurement.scale)
    for name, wanted in (("a", full), ("b", columns)):
        with StoreWriter(tmp_path / f"{name}.{container}") as writer:
            writer.append(wanted)
        same_measurement(open_store(tmp_path / f"{name}.{container}").read(slice(None), raw=True), wanted)


def test_indices(tmp_path, container, draw):
    measurement, _ = draw("mask")
    with StoreWriter(tmp_path / f"a.{container}") as writer:
        writer.append(measurement)
    store = open_store(tmp_path / f"a.{container}")
    assert store.read(-1).index.tolist() == [4]
    assert store.read(slice(1, None, 2)).index.tolist() == [1, 3]
    assert store.read(torch.tensor([2])).index.tolist() == [2]
    assert store.read(range(2)).index.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"there is no scan 5 in .* it holds 5"):
        store.read([0, 5])
    with pytest.raises(DataError, match="at least one scan"):
        store.read([])


@pytest.mark.parametrize("kind", ["sense", "gaussian", "matrix", "identity"])
def test_xarray_opens_it_with_dimensions_and_coordinates(tmp_path, container, kind, draw):
    measurement, x = draw(kind)
    path = tmp_path / f"a.{container}"
    with StoreWriter(path) as writer:
        writer.append(measurement, x, {"subject": [1, 1, 2, 3, 3], "site": list("abcde")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(path) if container == "zarr" else xarray.open_dataset(path, engine="h5netcdf")
        own = open_store(path).to_xarray()
        reference = open_store(path).to_xarray(references=True)
    for found in (data, own):
        dims = {"sense": ("coil", "y", "x"), "identity": ("channel", "y", "x")}.get(kind, ("row",))
        assert found.measurement.dims == ("scan", *dims)
        assert {"scan", "subject", "site"} == set(found.coords)
        np.testing.assert_array_equal(found.measurement.values, measurement.y.numpy())
        np.testing.assert_array_equal(found.subject, [1, 1, 2, 3, 3])
        assert found.site.values.tolist() == list("abcde")
        assert found.measurement.attrs["units"] == "arbitrary"
        assert found.attrs["schema_version"] == 2
    if kind == "sense":
        assert data.operator_mask.dims == ("scan", "x")
        assert data.operator_maps.dims == ("scan", "coil", "y", "x")
        assert data.measurement.dtype == np.complex64
    assert reference.image.dims == ("scan", "channel", "y", "x")
    np.testing.assert_array_equal(reference.image.values, x.numpy())


def delete_references(path):
    if path.suffix == ".zarr":
        shutil.rmtree(path / "reference")
    else:
        with h5py.File(path, "r+") as file:
            del file["reference"]


def test_without_references_all_else_is_the_same(tmp_path, container, images):
    path = tmp_path / f"a.{container}"
    before = simulate(images, path, calibration=2, coils=3)
    whole, fingerprint = before.read(slice(None)), before.fingerprint
    before.close()
    delete_references(path)
    after = open_store(path)
    assert not after.has_references
    assert after.fingerprint == fingerprint
    same_measurement(after.read(slice(None)), whole)
    assert dict(after.to_xarray().sizes)["scan"] == 6
    with pytest.raises(StoreError, match=r"has no references: only a simulation knows .* simulate with references"):
        after.references([0])
    bare = simulate(images, tmp_path / f"b.{container}", calibration=2, coils=3, references=False)
    assert bare.fingerprint == fingerprint


def test_containers_agree_and_convert_bit_exactly(tmp_path, images):
    a = simulate(images, tmp_path / "a.zarr", calibration=2, coils=3, subject=list("aabbcc"))
    b = simulate(images, tmp_path / "b.h5", calibration=2, coils=3, subject=list("aabbcc"))
    assert a.fingerprint == b.fingerprint
    same_measurement(a.read(slice(None)), b.read(slice(None)))
    with StoreWriter(tmp_path / "c.h5", a.attrs["provenance"]) as writer:
        writer.append(a.read(slice(None), raw=True), a.references(slice(None)), {"subject": a.coords["subject"]})
    assert open_store(tmp_path / "c.h5").fingerprint == a.fingerprint
    assert simulate(images, tmp_path / "d.zarr", calibration=2, coils=3, seed=1).fingerprint != a.fingerprint


def test_a_store_travels_to_another_process(tmp_path, container, images):
    store = simulate(images, tmp_path / f"a.{container}", operator="mask")
    again = pickle.loads(pickle.dumps(store))
    assert again.fingerprint == store.fingerprint


def test_the_head_of_a_store(tmp_path, container, images):
    store = simulate(images, tmp_path / f"a.{container}", calibration=2, coils=3, subject=list("aabbcc"))
    head = store.head(4)
    assert len(head) == len(head.scale) == len(head.groups[0].scans) == 4
    assert head.coords["subject"].tolist() == list("aabb")
    assert head.fingerprint == store.fingerprint
    assert head.nbytes * 6 == store.nbytes * 4
    same_measurement(head.read(slice(None)), store.read(slice(0, 4)))
    assert torch.equal(head.references(slice(None)), store.references(slice(0, 4)))
    with pytest.raises(DataError, match=r"there is no scan 4 in .*: it holds 4"):
        head.read(4)
    assert len(pickle.loads(pickle.dumps(head))) == 4
    assert len(store) == 6  # as it was
    for count in (0, 7):
        with pytest.raises(DataError, match=rf"count must be 1 to 6, the scans in .*, got {count}"):
            store.head(count)


def test_the_head_of_a_store_of_several_sizes(tmp_path, container, images):
    with StoreWriter(tmp_path / f"a.{container}", {"source": "a test"}) as writer:
        for number, coils in enumerate((3, 2, 3, 4)):
            part = simulate(images[:3], tmp_path / f"{number}.zarr", calibration=2, coils=coils, seed=number)
            writer.append(part.read(slice(None), raw=True))
    store = open_store(tmp_path / f"a.{container}")
    assert [len(group.scans) for group in store.head(8).groups] == [5, 3]
    assert np.concatenate([group.scans for group in store.head(8).groups]).tolist() == [0, 1, 2, 6, 7, 3, 4, 5]
    assert len(store.head(8).read([7, 6]).y) == 2


def test_describe(tmp_path, container, images):
    store = simulate(images, tmp_path / f"a.{container}", calibration=2, coils=3, subject=[0, 0, 1, 1, 2, 2])
    text = str(describe(store))
    for part in ("6", "1 × 16 × 12, complex", "sense, calibration 2", "25 % (acceleration 4)", "subject (3 different)"):
        assert part in text
    assert describe(simulate(images, tmp_path / "g.zarr", operator="gaussian"))["measured"] == "25 % (acceleration 4)"


# ------------------------------------------------------------------------------------------------------------ faults


@pytest.fixture
def path(tmp_path, container, draw):
    measurement, x = draw("sense")
    with StoreWriter(tmp_path / f"a.{container}") as writer:
        writer.append(measurement, x)
    return tmp_path / f"a.{container}"


def consolidate(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path, zarr_format=3)


class change:
    """The root group of a store, to spoil; arrays are replaced with other shapes and values."""

    def __init__(self, path):
        self.root = zarr.open_group(path, mode="r+", use_consolidated=False) if path.is_dir() else h5py.File(path, "r+")

    def __enter__(self):
        return self.root

    def __exit__(self, *_):
        if isinstance(self.root, h5py.File):
            self.root.close()
        else:
            consolidate(self.root.store.root)

    @staticmethod
    def replace(root, name, values):
        old = root[name]
        if isinstance(root, h5py.File):
            scales = [] if old.is_scale else [dimension[0] for dimension in old.dims]
            attributes = {key: old.attrs[key] for key in ("layout",) if key in old.attrs}
            del root[name]
            root[name] = values
            for axis, scale in enumerate(scales[: values.ndim]):
                root[name].dims[axis].attach_scale(scale)
            root[name].attrs.update(attributes)
        else:
            names = old.metadata.dimension_names[: values.ndim]
            attributes = dict(old.attrs)
            del root[name]
            root.create_array(name, data=values, dimension_names=names, attributes=attributes)


def test_missing_path(tmp_path):
    with pytest.raises(NotFoundError, match=r"no store at .*nothing\.zarr: there is no such file or folder"):
        open_store(tmp_path / "nothing.zarr")


def test_not_a_store(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.h5").write_bytes(b"not HDF5")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "d.h5").mkdir()
    h5py.File(tmp_path / "b.h5", "w").close()
    zarr.open_group(tmp_path / "c.zarr", mode="w", zarr_format=3)
    for name in ("folder", "a.h5", "a.txt", "d.h5", "b.h5", "c.zarr"):
        with pytest.raises(StoreError, match="is not a") as caught:
            open_store(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_other_schema_version(path):
    with change(path) as root:
        root.attrs["schema_version"] = 7
    with pytest.raises(StoreError, match=r"has schema version 7, this version of ambient-sci reads 1 and 2"):
        open_store(path)


def test_missing_array(path):
    with change(path) as root:
        del root["noise_std"]
    with pytest.raises(StoreError, match=r"lacks the array 'noise_std'; it has measurement, operator_maps"):
        open_store(path)


def test_missing_attribute(path):
    with change(path) as root:
        del root.attrs["operator_settings"]
    with pytest.raises(StoreError, match=r"damaged attributes: KeyError 'operator_settings'"):
        open_store(path)


def test_missing_parameter(path):
    with change(path) as root:
        del root["operator_maps"]
    with pytest.raises(StoreError, match=r"operator and measurement do not fit \(measurement \(5, 3, 16, 12\)"):
        open_store(path)


def test_mask_of_the_wrong_size(path):
    with change(path) as root:
        change.replace(root, "operator_mask", np.ones((5, 10), np.float32))
    with pytest.raises(StoreError, match=r"do not fit .*operator_mask \(5, 10\).*mask must be"):
        open_store(path)


def test_mask_of_other_scans(path):
    with change(path) as root:
        change.replace(root, "operator_mask", np.ones((4, 12), np.float32))
    with pytest.raises(StoreError, match=r"operator_mask has shape \(4, 12\), but the measurement has 5 scans"):
        open_store(path)


def test_no_scans(path):
    with change(path) as root:
        for name in ("measurement", "noise_std", "scale", "scan", "operator_mask", "operator_maps"):
            root[name].resize((0, *root[name].shape[1:]))
    with pytest.raises(StoreError, match="holds no scans"):
        open_store(path)


def test_unknown_operator(path):
    with change(path) as root:
        root.attrs["operator"] = "telepathy"
    with pytest.raises(ValueError, match="unknown operator 'telepathy'; installed: "):
        open_store(path)


@pytest.mark.parametrize("name", ["measurement", "noise_std", "operator_maps", "scale"])
def test_nan_is_named_by_scan(path, name):
    with change(path) as root:
        root[name][3] = np.nan if name != "measurement" else np.inf
    with pytest.raises(DataError, match=rf"{name} of scan 3 must be finite"):
        open_store(path).read([1, 3])
    if name != "scale":
        open_store(path).read([1, 4])


def test_negative_noise(path):
    with change(path) as root:
        root["noise_std"][2] = -1
    with pytest.raises(DataError, match="noise_std of scan 2 must be not negative"):
        open_store(path).read([2])


def big_store(path):
    """One chunk per scan, so that damage is one scan's."""
    batch = 12
    g = torch.Generator().manual_seed(0)
    y = torch.randn(batch, 1, 192, 192, generator=g)
    from ambient_sci.operators import Identity

    with StoreWriter(path) as writer:
        writer.append(Measurement(y, Identity((1, 192, 192), batch=batch), 1.0))
    return y


def test_a_flipped_byte_is_found_and_named(tmp_path, container):
    path = tmp_path / f"a.{container}"
    y = big_store(path)
    if container == "zarr":
        file = next(entry for entry in (path / "measurement" / "c").rglob("*") if entry.is_file())
        offset = file.stat().st_size // 2
    else:
        file = path
        with h5py.File(path) as opened:
            chunk = opened["measurement"].id.get_chunk_info(6)
            offset = chunk.byte_offset + chunk.size // 2
    with open(file, "r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 0x40]))
    store = open_store(path)
    bad = [scan for scan in range(12) if not readable(store, scan, y)]
    assert len(bad) == 1
    with pytest.raises(StoreError, match=rf"is damaged: measurement of scan {bad[0]} cannot be read") as caught:
        store.read(slice(None))
    assert "\n" not in str(caught.value)


def readable(store, scan, y):
    try:
        return torch.equal(store.read(scan).y, y[scan : scan + 1])
    except StoreError:
        return False


def test_truncated(tmp_path, container):
    path = tmp_path / f"a.{container}"
    big_store(path)
    file = path
    if container == "zarr":
        file = next(entry for entry in (path / "measurement" / "c").rglob("*") if entry.is_file())
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=r"damaged: measurement|truncated") as caught:
        open_store(path).read(slice(None))
    assert "\n" not in str(caught.value)


def test_a_lost_shard_is_no_measurement(tmp_path):
    big_store(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr" / "measurement" / "c")
    with pytest.raises(DataError, match="measurement of scan 0, 1 must be finite; it has NaN, infinite or lost values"):
        open_store(tmp_path / "a.zarr").read([0, 1])


def test_truncated_metadata(tmp_path):
    big_store(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "zarr.json"
    whole = file.read_bytes()
    for part in (0, 0.1, 0.5, 0.99):
        file.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path / "a.zarr")
        assert "\n" not in str(caught.value)
