import dataclasses
import re
import warnings

import numpy as np
import pytest
import torch

from ambient_sci.datasets import Preparation, RawScan, import_scans
from ambient_sci.datasets.coils import coil_maps, smooth_phase
from ambient_sci.datasets.noise import whitening
from ambient_sci.datasets.prepare import examine, prepare, summarise
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import randn_like
from ambient_sci.operators import Nufft, Sense, conjugate_gradient
from ambient_sci.operators.fourier import centred_fft
from ambient_sci.operators.trajectories import TRAJECTORIES

SHAPE = (48, 44)
NOISE = 0.01


def phantom(shape=SHAPE, coils=6, seed=0):
    """Structure in an ellipsoid, maps of coils around it, and where it well is."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, (0.8, 0.7, 0.75), strict=False))
    image = (
        torch.sigmoid(12 * (1 - inside)) * (1 + 0.3 * torch.cos(7 * axes[-1] + 4 * axes[0])) * smooth_phase(shape, g)
    )
    return image, coil_maps(coils, shape, g), (inside < 0.7).numpy(), g


def mixing(coils, g):
    """Coils with gains of their own that see each other: the root of a noise covariance, of determinant one."""
    root = torch.eye(coils, dtype=torch.complex64) + 0.25 * torch.randn(
        coils, coils, generator=g, dtype=torch.complex64
    )
    root = root * torch.linspace(0.6, 1.6, coils)[:, None]
    return root / torch.linalg.det(root).abs() ** (1 / coils)


def cartesian_scan(seed=0, level=NOISE, root=None, shape=SHAPE, coils=6, accelerate=True, **fields):
    """Lines of k-space: a third of them beside the central sixteen."""
    image, maps, _, g = phantom(shape, coils, seed)
    lines = torch.rand(shape[-1], generator=g) < (0.35 if accelerate else 2)
    lines[shape[-1] // 2 - 8 : shape[-1] // 2 + 8] = True
    kspace = centred_fft(maps * image, len(shape))
    noise = level * randn_like(kspace, g)
    kspace = kspace + (noise if root is None else torch.tensordot(root, noise, 1))
    return RawScan((kspace * lines).numpy(), **fields)


def off_grid_scan(pattern, seed=0, level=NOISE, shape=SHAPE, **fields):
    image, maps, _, g = phantom(shape, 5, seed)
    readouts, samples = {"spiral": (16, 600), "kooshball": (700, 32)}.get(pattern, (50, 96))
    points = TRAJECTORIES[pattern](1, shape, readouts, samples, g)
    y = Nufft(points, shape, maps[None])(image[None, None])
    y = (y + level * randn_like(y, g))[0]
    return RawScan(y.numpy(), trajectory=points[0].numpy(), shape=shape, readout=samples, **fields)


def agreement(maps, true):
    """How alike two maps are in every pixel, up to a phase: at most one."""
    norms = np.linalg.norm(maps, axis=0) * np.linalg.norm(true, axis=0)
    return np.abs((maps.conj() * true).sum(0)) / np.where(norms > 0, norms, 1)


def solve(measurement, iterations=40):
    A = measurement.operator
    return conjugate_gradient(lambda v: A.gram(v) + 1e-3 * v, A.adjoint(measurement.y), iterations=iterations)


# ---------------------------------------------------------------------------------------------- prewhitening


def whitened_scan(seed=0):
    g = torch.Generator().manual_seed(1000 + seed)
    root = mixing(6, g)
    samples = NOISE * root @ randn_like(torch.zeros(6, 3000, dtype=torch.complex64), g)
    return cartesian_scan(seed, root=root, noise=samples.numpy()), root


def test_whitened_scan_has_white_noise_and_its_level():
    scan, _ = whitened_scan()
    ready = examine(scan, Preparation())
    measurement, findings = ready.measurement, ready.findings
    image, maps, inside, _ = phantom()
    assert findings.noise.source == "noise scan"
    assert measurement.noise_std.item() == pytest.approx(NOISE, rel=0.02)
    assert findings.chi2 == pytest.approx(1, abs=0.06)
    assert not findings.doubt
    # what the samples have beyond the coils' true view of the image is noise, and white now
    seen = torch.tensordot(torch.from_numpy(whitening(scan.noise)[0]).to(torch.complex64), maps, 1)
    assert agreement(measurement.operator.maps[0].numpy(), seen.numpy())[inside].min() > 0.995
    rest = (measurement.y[0] - centred_fft(seen * image))[:, :, measurement.operator.mask[0, 0, 0] > 0]
    rest = rest.reshape(6, -1).numpy()
    covariance = rest @ rest.conj().T / (2 * rest.shape[1] * NOISE**2)
    np.testing.assert_allclose(covariance, np.eye(6), atol=0.15)
    assert findings.how["prewhitening"].startswith("covariance of the noise scan")


def test_residual_is_right_only_with_whitening():
    scan, _ = whitened_scan()
    plain = examine(dataclasses.replace(scan, noise=None), Preparation()).findings
    assert examine(scan, Preparation()).findings.chi2 < 1.06
    assert plain.chi2 > 1.1
    assert plain.how["prewhitening"].startswith("none")


def test_given_maps_are_whitened_too():
    """The same image comes out, up to the smooth intensity that normalised maps move to it."""
    scan, root = whitened_scan()
    image, maps, inside, _ = phantom()
    got = examine(dataclasses.replace(scan, maps=maps.numpy()), Preparation())
    norm = torch.tensordot(torch.linalg.inv(root), maps, 1).norm(dim=0).numpy()
    np.testing.assert_allclose(got.measurement.operator.maps[0].norm(dim=0), 1, atol=1e-5)
    x = solve(got.measurement)[0, 0].numpy()
    want = image.numpy() * norm
    assert np.linalg.norm((x - want)[inside]) < 0.06 * np.linalg.norm(want[inside])
    assert got.findings.chi2 == pytest.approx(1, abs=0.06)
    assert got.findings.how["maps"] == "given, mixed as coils are, normalised"


def test_noise_that_does_not_fit():
    scan = cartesian_scan()
    noise = randn_like(torch.zeros(6, 59, dtype=torch.complex64), torch.Generator().manual_seed(0)).numpy()
    with pytest.raises(DataError, match="noise must have at least 60 samples for 6 coils, got 59"):
        prepare(dataclasses.replace(scan, noise=noise), Preparation())
    with pytest.raises(DataError, match="noise of scan 3 has 5 coils, its k-space 6"):
        prepare(dataclasses.replace(scan, noise=noise[:5]), Preparation(), "scan 3")


# --------------------------------------------------------------------------------------------------- compression


def test_compressed_coils_keep_noise_and_image():
    scan, _ = whitened_scan()
    every, few = (examine(scan, Preparation(coils=coils)) for coils in (None, 5))
    assert few.measurement.y.shape == (1, 5, *SHAPE)
    assert few.measurement.noise_std == every.measurement.noise_std
    assert few.findings.chi2 == pytest.approx(1, abs=0.15)
    assert 0.95 < few.findings.energy < 1
    energies = [one.measurement.y.abs().square().sum().item() for one in (few, every)]
    assert energies[0] / energies[1] == pytest.approx(few.findings.energy, rel=1e-4)
    inside = phantom()[2]
    images = [np.abs(solve(one.measurement)[0, 0].numpy())[inside] for one in (few, every)]
    assert np.linalg.norm(images[0] - images[1]) < 0.1 * np.linalg.norm(images[1])
    assert few.measurement.scale.item() == pytest.approx(every.measurement.scale.item(), rel=0.05)
    assert "5 principal components of 6, with 9" in summarise([few.findings])["coils"]


def test_as_many_coils_as_there_are_stay_what_they_are():
    scan = cartesian_scan()
    for coils in (6, 32):
        got = examine(scan, Preparation(coils=coils))
        np.testing.assert_array_equal(got.measurement.y[0].numpy(), scan.kspace)
        assert got.findings.how["coils"] == "as measured"


def test_given_maps_are_compressed_too():
    image, maps, inside, _ = phantom()
    got = prepare(cartesian_scan(maps=maps.numpy()), Preparation(coils=4))
    A = got.operator
    np.testing.assert_allclose(A.maps[0].norm(dim=0)[torch.from_numpy(inside)], 1, atol=1e-4)
    x = solve(got)[0, 0].abs().numpy()
    assert np.linalg.norm((x - image.abs().numpy())[inside]) < 0.1 * np.linalg.norm(image.abs().numpy()[inside])


# ------------------------------------------------------------------------------------------------------ coil maps


def test_separate_calibration_scan():
    """K-space without a fully measured centre, and a small scan of the same coils, of another contrast and scale."""
    image, maps, inside, _ = phantom()
    other = 50 * (image.abs() ** 2 + 0.2) * (image.abs() > 0.2)
    calibration = centred_fft(maps * other)[:, 24 - 10 : 24 + 10, 22 - 9 : 22 + 9].numpy()
    kspace = cartesian_scan(accelerate=False).kspace.copy()
    kspace[:, :, ::2] = 0
    with pytest.raises(DataError, match="coil maps need a fully measured centre"):
        prepare(RawScan(kspace), Preparation())
    got = examine(RawScan(kspace, calibration=calibration), Preparation())
    assert agreement(got.measurement.operator.maps[0].numpy(), maps.numpy())[inside].min() > 0.995
    assert got.findings.chi2 == pytest.approx(1, abs=0.1)
    assert got.findings.how["maps"].startswith("ESPIRiT of a separate calibration scan")
    small = prepare(RawScan(kspace, calibration=calibration), Preparation(matrix=(24, 16), check=False))
    assert small.operator.maps.shape == (1, 6, 24, 16)
    # a noise scan whitens it like the others
    whitened, _ = whitened_scan()
    own, separate = (
        prepare(one, Preparation(check=False)).operator.maps[0].numpy()
        for one in (whitened, dataclasses.replace(whitened, calibration=calibration))
    )
    assert agreement(own, separate)[inside].min() > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda block: block[:5], r"calibration of this scan must be complex \(6, \*width\)"),
        (lambda block: block.real, "calibration of this scan must be complex .* got float32"),
        (lambda block: block * np.nan, "calibration of this scan must be finite and fully measured"),
        (lambda block: block * (np.arange(16) > 0), "calibration of this scan must be finite and fully measured"),
        (lambda block: block[:, :, 5:], "at least 8 samples along every axis, got 7"),
    ],
)
def test_calibration_scans_that_cannot_be(change, message):
    scan = cartesian_scan()
    block = scan.kspace[:, 18:30, 14:30]
    block = block[:, :, 4:] if "got 7" in message else block
    with pytest.raises(DataError, match=message):
        prepare(dataclasses.replace(scan, calibration=change(block)), Preparation())


def test_volumes():
    shape = (20, 22, 24)
    got = examine(cartesian_scan(shape=shape, coils=4), Preparation())
    _, maps, inside, _ = phantom(shape, 4)
    assert agreement(got.measurement.operator.maps[0].numpy(), maps.numpy())[inside].min() > 0.99
    assert got.findings.chi2 == pytest.approx(1, abs=0.15)
    assert got.measurement.operator.mask.shape == (1, 1, 1, 1, 24)


def test_thin_slabs():
    """Along an axis that is shorter than a calibration block, all that there is has to do."""
    shape = (5, 40, 44)
    got = examine(cartesian_scan(shape=shape, coils=4), Preparation())
    _, maps, inside, _ = phantom(shape, 4)
    assert agreement(got.measurement.operator.maps[0].numpy(), maps.numpy())[inside].min() > 0.99
    assert not got.findings.doubt


def test_two_sets_and_soft_maps():
    scan = cartesian_scan()
    two = prepare(scan, Preparation(sets=2, check=False))
    assert two.operator.maps.shape == (1, 2, 6, *SHAPE)
    assert two.operator(torch.zeros(1, 2, *SHAPE, dtype=torch.complex64)).shape == two.y.shape
    one = prepare(scan, Preparation(check=False))
    assert two.scale.item() == pytest.approx(one.scale.item(), rel=0.05)
    soft = examine(scan, Preparation(soft=True))
    norm = soft.measurement.operator.maps[0].norm(dim=0)
    assert ((norm > 0.05) & (norm < 0.95)).any()
    assert soft.findings.chi2 == pytest.approx(1, abs=0.15)
    assert "soft around 0.95" in soft.findings.how["maps"]


def test_nothing_comes_from_what_was_not_measured():
    """Garbage where the mask says that nothing was measured changes no bit of anything."""
    scan, _ = whitened_scan()
    mask = (scan.kspace != 0).any(0)
    garbage = np.where(mask, scan.kspace, np.complex64(1e6 - 3e6j))
    garbage[:, :24][:, ~mask[:24]] = np.nan
    for options in ({}, {"coils": 4}, {"matrix": (30, 28)}, {"sets": 2}):
        for noise in (scan.noise, None):
            clean, dirty = (
                examine(RawScan(kspace, mask, noise=noise), Preparation(**options)) for kspace in (scan.kspace, garbage)
            )
            assert torch.equal(clean.measurement.y, dirty.measurement.y)
            assert torch.equal(clean.measurement.operator.maps, dirty.measurement.operator.maps)
            assert torch.equal(clean.measurement.scale, dirty.measurement.scale)
            assert clean.findings == dirty.findings


# -------------------------------------------------------------------------------------------------- off the grid


@pytest.mark.parametrize("pattern", ["radial", "golden-angle", "spiral"])
def test_off_the_grid(pattern):
    scan = off_grid_scan(pattern)
    got = examine(scan, Preparation())
    A = got.measurement.operator
    assert isinstance(A, Nufft)
    assert A.readout == scan.readout
    image, maps, inside, _ = phantom(coils=5)
    assert agreement(A.maps[0].numpy(), maps.numpy())[inside].min() > 0.99
    assert got.measurement.noise_std.item() == pytest.approx(NOISE, rel=0.2)
    assert got.findings.residual.value == pytest.approx(NOISE, rel=0.03)
    assert not got.findings.doubt
    # the solution has the image's magnitude, whatever phase maps and image share
    x = solve(got.measurement, 60)[0, 0].abs().numpy()
    truth = image.abs().numpy()
    assert np.linalg.norm((x - truth)[inside]) < 0.1 * np.linalg.norm(truth[inside])
    assert got.measurement.scale.item() == pytest.approx(np.quantile(truth, 0.99), rel=0.15)
    assert "by least squares from the samples" in got.findings.how["maps"]


def test_noise_off_the_grid_is_averaged_in_the_calibration_block():
    """Of much noise, the threshold takes out no more than is left where samples are dense."""
    findings = examine(off_grid_scan("radial", level=0.2), Preparation(noise_std=0.2)).findings
    assert findings.residual.value == pytest.approx(0.2, rel=0.03)


def test_off_the_grid_in_3d():
    shape = (16, 17, 18)
    got = examine(off_grid_scan("kooshball", shape=shape, level=0.002), Preparation())
    _, maps, inside, _ = phantom(shape, 5)
    assert agreement(got.measurement.operator.maps[0].numpy(), maps.numpy())[inside].min() > 0.97


def test_off_the_grid_with_noise_scan_compression_and_weights():
    g = torch.Generator().manual_seed(3)
    root = mixing(5, g).numpy()
    scan = off_grid_scan("radial", level=0)
    noise = NOISE * root @ randn_like(torch.zeros(5, 2000, dtype=torch.complex64), g).numpy()
    added = NOISE * root @ randn_like(torch.zeros(scan.kspace.shape, dtype=torch.complex64), g).numpy()
    weights = np.linalg.norm(scan.trajectory, axis=1) + 0.01
    full = dataclasses.replace(scan, kspace=scan.kspace + added.astype(np.complex64), noise=noise, weights=weights)
    got = examine(full, Preparation(coils=4))
    assert got.measurement.y.shape[1] == 4
    assert got.measurement.noise_std.item() == pytest.approx(NOISE, rel=0.03)
    assert got.findings.chi2 == pytest.approx(1, abs=0.1)


def test_matrix_off_the_grid_is_that_on_it():
    """Samples on the points of the grid, once as such and once as a trajectory, of a smaller matrix."""
    scan = cartesian_scan(accelerate=False, coords={"pixel_y": 1.0, "pixel_x": 2.0, "pixel_z": 5.0})
    maps = coil_maps(6, (24, 22), torch.Generator().manual_seed(0)).numpy()
    grid = np.stack(np.meshgrid(*[(np.arange(n) - n // 2) * 2 * np.pi / n for n in SHAPE], indexing="ij"), -1)
    flat = RawScan(
        scan.kspace.reshape(6, -1),
        trajectory=grid.reshape(-1, 2),
        shape=SHAPE,
        readout=44,
        maps=maps,
        coords=scan.coords,
    )
    preparation = Preparation(matrix=(24, 22), noise_std=NOISE, check=False)
    on = examine(dataclasses.replace(scan, maps=maps), preparation)
    off = examine(flat, preparation)
    x = torch.randn(1, 1, 24, 22, generator=torch.Generator().manual_seed(1), dtype=torch.complex64)
    A, B = on.measurement.operator, off.measurement.operator
    measured = B.weights[0] > 0
    assert measured.sum() == 24 * 22
    assert B.readout == 22
    assert off.measurement.y[0][:, ~measured].abs().sum() == 0
    torch.testing.assert_close(off.measurement.y[0][:, measured], on.measurement.y[0].reshape(6, -1))
    torch.testing.assert_close(B(x)[0][:, measured], A(x)[0].reshape(6, -1), atol=1e-3, rtol=1e-3)
    assert on.coords == off.coords == {"pixel_y": 2.0, "pixel_x": 4.0, "pixel_z": 5.0}


def test_smaller_matrix_of_spokes():
    got = examine(off_grid_scan("golden-angle"), Preparation(matrix=(24, 22)))
    A = got.measurement.operator
    assert A.readout < 96
    assert A.trajectory.shape[1] == 50 * A.readout
    assert A.trajectory.abs().max() <= np.pi
    assert got.findings.chi2 < 1.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trajectory": np.zeros((100, 2))}, r"\(sample, axis\), .* got \(100, 2\) for \(5, 4800\)"),
        ({"trajectory": np.full((4800, 2), np.nan)}, "a trajectory must be finite"),
        ({"shape": (48, 44, 3)}, "a trajectory must be finite"),
        ({"shape": None}, "must be given together"),
        ({"readout": 97}, "readout must divide the 4800 samples, got 97"),
        ({"weights": np.ones(3)}, r"weights must be \(4800,\), 0 or more, got \(3,\)"),
        ({"mask": np.ones(4800, bool)}, "a mask is for k-space on the grid"),
    ],
)
def test_trajectories_that_cannot_be(fields, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(off_grid_scan("radial"), **fields)


def test_too_few_spokes():
    scan = off_grid_scan("radial")
    ring = np.linalg.norm(scan.trajectory, axis=1) > 1
    hollow = dataclasses.replace(scan, kspace=scan.kspace[:, ring], trajectory=scan.trajectory[ring], readout=1)
    with pytest.raises(DataError, match=r"coil maps need .* got 0; give maps"):
        prepare(hollow, Preparation())
    few = dataclasses.replace(scan, kspace=scan.kspace[:, : 5 * 96], trajectory=scan.trajectory[: 5 * 96])
    with pytest.raises(DataError, match=r"coil maps need a fully measured centre of at least 8 samples .* got [0-7];"):
        prepare(few, Preparation())


# ---------------------------------------------------------------------------------------- noise level and doubts


@pytest.mark.parametrize("factor", [0.3, 3])
@pytest.mark.parametrize("kind", ["lines", "noise scan", "radial", "one coil"])
def test_wrong_noise_levels_are_noticed(kind, factor):
    scan = {
        "lines": cartesian_scan,
        "noise scan": lambda: whitened_scan()[0],
        "radial": lambda: off_grid_scan("radial"),
        "one coil": lambda: cartesian_scan(coils=1, shape=(96, 88)),
    }[kind]()
    preparation = Preparation(noise_std=factor * NOISE)
    with pytest.warns(UserWarning, match=rf"noise_std of scan 7 is {factor * NOISE:.3g} \(given\), but .* have 0\.0"):
        got = prepare(scan, preparation, "scan 7")
    assert got.noise_std.item() == pytest.approx(factor * NOISE)  # as it was asked for
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(scan, Preparation(noise_std=NOISE))
        prepare(scan, Preparation())
        prepare(scan, dataclasses.replace(preparation, check=False))


def test_noise_scan_of_another_bandwidth_is_noticed():
    scan, _ = whitened_scan()
    with pytest.warns(UserWarning, match=r"is 0\.0\d+ ± \S+ \(noise scan\), but its samples have 0\.0"):
        prepare(dataclasses.replace(scan, noise=3 * scan.noise), Preparation())


def test_no_false_alarms():
    """Fifty scans of all sorts, with the true level and some with an estimate."""
    rng = np.random.default_rng(0)
    for seed in range(50):
        level = 10 ** rng.uniform(-2.3, -0.7)
        accelerate = bool(seed % 3)
        scan = (
            cartesian_scan(seed, level, None, (40, 36), int(rng.integers(1, 9)), accelerate)
            if seed % 5
            else off_grid_scan(("radial", "spiral")[seed % 2], seed, level, (40, 36))
        )
        for given in (level,) if seed % 4 else (level, None):
            findings = examine(scan, Preparation(noise_std=given)).findings
            assert findings.doubt == ""


def test_store_says_what_was_found(tmp_path):
    scans = [whitened_scan(seed)[0] for seed in range(2)] + [cartesian_scan(2)]
    origin = import_scans(scans, tmp_path / "a.h5", preparation=Preparation(calibration=16), progress=False).attrs[
        "provenance"
    ]
    assert origin["prewhitening"].startswith("covariance of the noise scan; ")
    assert "(2 scans); none: there is no noise scan" in origin["prewhitening"]
    assert origin["noise_std"].startswith("noise scan (2 scans); median absolute deviation")
    assert " over 3 scans, residual chi2 " in origin["noise"]
    assert "doubt" not in origin
    one = import_scans(scans[:1], tmp_path / "b.h5", progress=False).attrs["provenance"]["noise"]
    assert re.fullmatch(r"0\.0\d+ ± \de-05 \(noise scan\), residual chi2 (1|0\.9)\S*", one)
    wrong = Preparation(noise_std=0.1, calibration=16)
    with pytest.warns(UserWarning, match=r"noise_std of scan 0 is 0\.1") as caught:
        doubted = import_scans(scans, tmp_path / "c.h5", preparation=wrong, progress=False)
    assert len(caught) == 1  # not one for every scan
    assert doubted.attrs["provenance"]["doubt"].startswith("3 of 3 scans, such as: noise_std of scan 0 is 0.1 (given)")


# ------------------------------------------------------------------------------------------------------- intensity


@pytest.mark.parametrize("kind", ["lines", "whitened", "radial"])
def test_scale_follows_the_units(kind):
    scan = {"lines": cartesian_scan, "whitened": lambda: whitened_scan()[0], "radial": lambda: off_grid_scan("radial")}
    raw = scan[kind]()
    got = prepare(raw, Preparation(check=False))
    for factor in (2.0**-30, 2.0**20):
        noise = None if raw.noise is None else factor * raw.noise
        other = prepare(dataclasses.replace(raw, kspace=factor * raw.kspace, noise=noise), Preparation(check=False))
        assert other.scale.item() == pytest.approx(factor * got.scale.item(), rel=1e-4)
        assert other.noise_std.item() == pytest.approx(factor * got.noise_std.item(), rel=1e-6)


def test_scale_is_that_of_the_image():
    image, maps, _, _ = phantom()
    got = prepare(cartesian_scan(accelerate=False, maps=maps.numpy()), Preparation())
    assert isinstance(got.operator, Sense)
    assert got.scale.item() == pytest.approx(image.abs().quantile(0.99).item(), rel=0.02)


def test_options_that_cannot_be():
    for options, message in (
        ({"coils": 0}, "coils must be at least 1, got 0"),
        ({"sets": 0}, "sets must be at least 1, got 0"),
        ({"crop": 1.0}, "crop must be at least 0 and below 1, got 1.0"),
        ({"noise_std": float("nan")}, "noise_std must be finite and not negative, got nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            Preparation(**options)
    with pytest.raises(
        ConfigError, match=r"matrix must be between 1 and what was measured, \(48, 44\), got \(48, 45\)"
    ):
        prepare(off_grid_scan("radial"), Preparation(matrix=(48, 45)))
