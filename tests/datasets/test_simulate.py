import numpy as np
import pytest
import torch
import xarray

from ambient_sci.datasets import describe, estimate_scale, simulate
from ambient_sci.datasets.coils import coil_maps, smooth_phase
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Identity, Interferometer


def centred_fft(x):
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))


def test_sense_against_numpy(tmp_path, images):
    store = simulate(images, tmp_path / "a.zarr", calibration=2, coils=3, noise=0)
    got = store.read(slice(None), raw=True)
    x = store.references(slice(None)).numpy().astype(complex)
    np.testing.assert_allclose(np.abs(x[:, 0]), images, atol=1e-6)
    maps, mask = got.operator.maps.numpy(), got.operator.mask.numpy()
    np.testing.assert_allclose(got.y.numpy(), mask * centred_fft(maps * x), atol=1e-6)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(1), 1, atol=1e-5)
    assert set(mask.sum(-1).ravel()) == {3}
    assert (got.y.numpy()[np.broadcast_to(mask, got.y.shape) == 0] == 0).all()
    filled = np.abs((maps.conj() * np.conj(centred_fft(np.conj(got.y.numpy())))).sum(1)).reshape(6, -1)
    np.testing.assert_allclose(got.scale, np.quantile(filled, 0.99, axis=1), rtol=1e-4)


def test_every_scan_is_measured_in_its_own_way(tmp_path, images):
    same = np.repeat(images[:1], 6, axis=0)
    store = simulate(same, tmp_path / "a.zarr", calibration=2, coils=3)
    got, x = store.read(slice(None)), store.references(slice(None))
    assert len({tuple(mask.ravel().tolist()) for mask in got.operator.mask}) > 1
    for other in range(1, 6):
        assert not torch.allclose(got.operator.maps[0], got.operator.maps[other], atol=0.05)
        assert not torch.allclose(x[0], x[other], atol=0.05)


@pytest.mark.parametrize("operator", ["sense", "fourier", "nufft", "mask", "gaussian", "identity"])
def test_a_scan_does_not_depend_on_the_others(tmp_path, images, operator):
    options = {"operator": operator, "calibration": 2, "coils": 3, "seed": 5}
    all_ = simulate(np.concatenate([images] * 4), tmp_path / "a.zarr", **options).read([1, 20, 23])
    few = simulate(np.concatenate([images[:2]] * 11), tmp_path / "b.zarr", **options).read([1])
    assert torch.equal(few.y[0], all_.y[0])
    for name, value in few.operator.parameters.items():
        assert torch.equal(value[0], all_.operator.parameters[name][0])
    other = simulate(images, tmp_path / "c.zarr", **{**options, "seed": 6}).read([1])
    assert not torch.equal(other.y[0], all_.y[0])


@pytest.mark.parametrize("operator", ["sense", "fourier", "nufft", "mask", "gaussian", "identity"])
def test_noise_is_what_it_says(tmp_path, operator):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (12, 32, 32))
    store = simulate(images, tmp_path / "a.zarr", operator=operator, noise=0.2)
    got = store.read(slice(None), raw=True)
    residual = got.y - got.operator(store.references(slice(None)))
    values = residual[got.operator.rows.expand_as(residual) > 0]
    parts = (values.real, values.imag) if values.is_complex() else (values,)
    for part in parts:
        assert abs(part.std().item() / 0.2 - 1) < 5 / np.sqrt(2 * part.numel())
        assert abs(part.mean().item()) < 5 * 0.2 / np.sqrt(part.numel())
    assert torch.equal(got.noise_std, torch.full((12,), 0.2))
    assert (residual[got.operator.rows.expand_as(residual) == 0] == 0).all()


def test_pixels_kept(tmp_path, images):
    store = simulate(images, tmp_path / "a.zarr", operator="mask", keep=0.75)
    assert store.read(slice(None)).operator.mask.mean((1, 2, 3)).tolist() == [0.75] * 6
    assert not store.is_complex
    np.testing.assert_array_equal(store.references(slice(None))[:, 0], images.astype(np.float32))


def test_projections(tmp_path, images):
    assert simulate(images, tmp_path / "a.zarr", operator="gaussian").read(0).y.shape == (1, 48)
    assert simulate(images, tmp_path / "b.zarr", operator="gaussian", n_measurements=9).read(0).y.shape == (1, 9)
    assert simulate(images, tmp_path / "c.zarr", operator="gaussian", structured=True).read(0).operator.structured


def test_complex_images_keep_their_phase(tmp_path, images):
    x = images * np.exp(1j * images)
    for operator in ("fourier", "mask"):
        store = simulate(x, tmp_path / operator, operator=operator, calibration=2)
        np.testing.assert_array_equal(store.references(slice(None))[:, 0], x.astype(np.complex64))
    plain = simulate(images, tmp_path / "c", operator="fourier", calibration=2, phase=False)
    assert not plain.references(slice(None)).imag.any()


def test_volumes_and_lines(tmp_path):
    volumes = np.random.default_rng(0).random((2, 6, 8, 12))
    store = simulate(volumes, tmp_path / "a.h5", calibration=2, coils=4)
    assert store.image_shape == (1, 6, 8, 12)
    assert store.to_xarray().measurement.dims == ("scan", "coil", "z", "y", "x")
    lines = simulate(volumes[:, 0, 0], tmp_path / "b.h5", calibration=2, coils=2)
    assert lines.to_xarray().measurement.dims == ("scan", "coil", "x")


def test_coordinates_and_provenance(tmp_path, images):
    store = simulate(
        images, tmp_path / "a.h5", calibration=2, subject=list("aabbcc"), coords={"slice": range(6)}, seed=9,
        provenance={"images": "blobs"},
    )  # fmt: skip
    assert store.coords["subject"].tolist() == list("aabbcc")
    assert store.coords["slice"].tolist() == list(range(6))
    provenance = store.attrs["provenance"]
    assert provenance["arguments"]["seed"] == 9
    assert provenance["images"] == "blobs"


def test_an_empty_image_has_a_scale(tmp_path, images):
    store = simulate(0 * images, tmp_path / "a.h5", calibration=2, noise=0)
    assert store.scale.tolist() == [1.0] * 6


def test_scale_of_kinds_in_image_units(images, draw):
    assert estimate_scale(draw("mask")[0]).tolist() == [1.0] * 5
    assert isinstance(draw("identity")[0].operator, Identity)


@pytest.mark.parametrize("pattern", ["radial", "golden-angle", "spiral"])
def test_off_the_grid(tmp_path, images, pattern):
    """A Cartesian number of readouts divided by the acceleration, and the scale of the image whatever the density."""
    store = simulate(images, tmp_path / "a.zarr", operator="nufft", pattern=pattern, acceleration=2, noise=0)
    got = store.read(slice(None), raw=True)
    assert got.operator.readout == 32
    assert got.y.shape == (6, 8, 6 * 32)
    assert describe(store)["measured"] == "50 % (acceleration 2)"
    assert describe(store)["coils"] == 8
    bright = torch.quantile(store.references(slice(None)).abs().flatten(1), 0.99, dim=1)
    np.testing.assert_allclose(got.scale, bright, rtol=0.15)
    with xarray.open_zarr(tmp_path / "a.zarr") as data:
        assert data.measurement.dims == ("scan", "coil", "sample")
        assert data.operator_weights.dims == ("scan", "sample")
        assert data.operator_trajectory.dims[:2] == ("scan", "sample")
    with pytest.raises(ConfigError, match="pattern must be one of epi, golden-angle"):
        simulate(images, tmp_path / "b.zarr", operator="nufft", pattern="random-lines")


def test_scale_of_visibilities():
    """That of the image in Jy per pixel, though visibilities are sums over all of it."""
    g = torch.Generator().manual_seed(0)
    uv = (torch.rand(2, 400, 2, generator=g) - 0.5) / 1e-5
    A = Interferometer(uv, (12, 12), 1e-5)
    x = torch.rand(2, 1, 12, 12, generator=g) * torch.tensor([1.0, 7.0]).reshape(2, 1, 1, 1)
    scale = estimate_scale(Measurement(A(x), A, 1e-3))
    np.testing.assert_allclose(scale, x.flatten(1).quantile(0.99, dim=1), rtol=0.15)


def test_coils_and_phases_are_smooth():
    g = torch.Generator().manual_seed(0)
    for field in (coil_maps(8, (64, 64), g), smooth_phase((64, 64), g)):
        steps = [field.diff(dim=axis).abs().max().item() for axis in (-1, -2)]
        assert max(steps) < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "mri"}, "operator must be one of sense, fourier, nufft, mask, gaussian, identity, got 'mri'"),
        ({"pattern": "spiral"}, "pattern must be one of .*boxes, .* got 'spiral'"),
        ({"noise": -1}, "noise cannot be -1"),
        ({"keep": 0, "operator": "mask"}, "keep cannot be 0"),
        ({"acceleration": 0.5}, "acceleration cannot be 0.5"),
        ({"coils": 0}, "coils cannot be 0"),
        ({"seed": -1}, "seed cannot be -1"),
    ],
)
def test_options_that_cannot_be(tmp_path, images, options, message):
    with pytest.raises(ConfigError, match=message):
        simulate(images, tmp_path / "a.zarr", **options)
    assert not (tmp_path / "a.zarr").exists()


def test_images_that_are_none(tmp_path, images):
    bad = images.copy()
    bad[4, 0, 0] = np.inf
    for values, message in (
        (bad, "image 4 has NaN or infinite"),
        (images[0, 0], r"got float64 \(12,\)"),
        (np.array(["a"]), "must be numbers"),
        (images[:0], "must be numbers"),
    ):
        with pytest.raises(DataError, match=message):
            simulate(values, tmp_path / "a.zarr")
    with pytest.raises(DataError, match=r"subject must have one entry per image, \(6,\), got shape \(2,\)"):
        simulate(images, tmp_path / "a.zarr", subject=[1, 2])
    with pytest.raises(DataError, match="calibration"):
        simulate(images, tmp_path / "a.zarr", calibration=9)
    assert list(tmp_path.iterdir()) == []
