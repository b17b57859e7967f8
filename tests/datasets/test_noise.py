import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.datasets.coils import coil_maps
from ambient_sci.datasets.noise import (
    NoiseLevel,
    disagree,
    estimate_noise,
    outer_noise,
    residual_noise,
    whitening,
)
from ambient_sci.errors import DataError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Sense
from ambient_sci.operators.fourier import centred_fft


def noise(rng, *shape):
    """White, of unit standard deviation in each real component."""
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def mixing(rng, coils):
    """How noise of a scanner's coils comes about: neighbours see each other, and every coil has a gain of its own."""
    return np.diag(rng.uniform(0.5, 2, coils)) @ (np.eye(coils) + 0.3 * noise(rng, coils, coils) / math.sqrt(coils))


def test_whitened_noise_is_white_of_the_level_that_is_said():
    rng = np.random.default_rng(0)
    root = mixing(rng, 6)
    matrix, level = whitening(root @ noise(rng, 6, 3000))
    fresh = matrix @ root @ noise(rng, 6, 200_000)
    covariance = fresh @ fresh.conj().T / (2 * 200_000)
    np.testing.assert_allclose(covariance / level.value**2, np.eye(6), atol=0.08)
    assert np.linalg.det(matrix) == pytest.approx(1)
    # units stay the instrument's: the geometric mean of the coils, of what is their own
    assert level.value == pytest.approx(abs(np.linalg.det(root)) ** (1 / 6), rel=0.01)


def test_level_of_a_short_noise_scan_is_right_on_average():
    """The inverse of an estimated covariance is too large: with few samples it shows."""
    rng = np.random.default_rng(1)
    coils, count, ratios = 8, 80, []
    for _ in range(300):
        matrix, level = whitening(noise(rng, coils, count))
        power = np.trace(matrix @ matrix.conj().T).real / coils  # of whitened unit noise
        ratios.append(power / level.value**2)
    spread = np.std(ratios) / math.sqrt(300)
    assert abs(np.mean(ratios) - 1) < 4 * spread
    assert abs(np.mean(ratios) * count / (count - coils) - 1) > 8 * spread
    # and its standard error is what it scatters by
    assert np.std(np.sqrt(ratios)) == pytest.approx(level.error / level.value, rel=0.25)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_whitened_coils_do_not_depend_on_how_they_were_mixed(coils, seed):
    """Inner products of whitened samples are the same for any invertible combinations of the coils, but for units."""
    rng = np.random.default_rng(seed)
    samples, y, root = noise(rng, coils, 200), noise(rng, coils, 5), mixing(rng, coils)
    plain, mixed = (whitening(matrix @ samples) for matrix in (np.eye(coils), root))
    unit = mixed[1].value / plain[1].value
    assert unit == pytest.approx(abs(np.linalg.det(root)) ** (1 / coils))
    one, other = plain[0] @ y, mixed[0] @ root @ y
    np.testing.assert_allclose(other.conj().T @ other, unit**2 * one.conj().T @ one, rtol=1e-6, atol=1e-9)


def test_whitening_scales_with_the_noise():
    rng = np.random.default_rng(2)
    samples = mixing(rng, 4) @ noise(rng, 4, 500)
    matrix, level = whitening(samples)
    again, larger = whitening(1e-9 * samples)
    np.testing.assert_allclose(again, matrix, rtol=1e-9)
    assert larger.value == pytest.approx(1e-9 * level.value)


def test_noise_scans_that_cannot_be():
    rng = np.random.default_rng(3)
    samples = noise(rng, 4, 100)
    double = samples.copy()
    double[3] = double[0] - 2j * double[1]
    silent = samples.copy()
    silent[2] = 0
    for bad, message in (
        (samples[:, :39], "noise must have at least 40 samples for 4 coils, got 39"),
        (samples[0], r"noise must be finite, complex \(coil, n\), got complex128 of shape \(100,\)"),
        (np.full((4, 100), np.nan + 0j), "noise must be finite"),
        (double, "noise of one coil is a combination of that of others"),
        (silent, "noise of coil 2 is zero throughout"),
    ):
        with pytest.raises(DataError, match=message):
            whitening(bad)


def signal(shape, coils=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    radii = 0.55 + 0.3 * torch.rand(2, generator=g)
    inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True))
    image = torch.sigmoid(15 * (1 - inside)) * (1 + 0.3 * torch.cos(9 * axes[0] + 5 * axes[1]))
    maps = coil_maps(coils, shape, g)
    return image.to(torch.complex64), maps, g


@pytest.mark.parametrize("level", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("sampling", ["points", "lines", "all"])
def test_stated_uncertainty_covers_the_truth(level, sampling):
    """Two standard errors cover it in nineteen scans out of twenty, give or take chance, and they are not vast."""
    shape, covered, errors = (64, 60), 0, []
    for seed in range(60):
        image, maps, g = signal(shape, seed=seed)
        kspace = centred_fft(maps * image)
        kspace = kspace + level * randn_like(kspace, g)
        measured = torch.rand(shape, generator=g) < {"points": 0.4, "lines": 0.5, "all": 2}[sampling]
        if sampling == "lines":
            measured = measured[:1].expand(shape)
        found = estimate_noise((kspace * measured).numpy(), measured.numpy())
        covered += abs(found.value - level) <= 2 * found.error
        errors.append(found.error / level)
        assert abs(found.value / level - 1) < 0.25
    assert covered >= 53  # 57 are expected; 52 or fewer are one in a hundred
    assert np.median(errors) < 0.1


def test_median_error_is_that_of_normal_noise():
    rng = np.random.default_rng(4)
    found = [outer_noise(noise(rng, 20, 4000), np.arange(4000), 2) for _ in range(200)]  # of 20 x 200 samples
    values, errors = np.array([one.value for one in found]), np.array([one.error for one in found])
    assert values.mean() == pytest.approx(1, abs=0.006)
    assert values.std() == pytest.approx(1.166 / math.sqrt(8000), rel=0.15)
    assert values.std() < np.median(errors) < 2 * values.std()  # with an allowance for signal


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("left", [0.1, 0.3, 1, 3])
def test_uncertainty_allows_for_signal_that_is_left(axes, left):
    """Spectra that fall off like those of edges, with a power at the border of so many times that of the noise."""
    rng = np.random.default_rng(6)
    radius = rng.uniform(size=8000) ** (1 / axes)
    covered, values = 0, []
    for _ in range(40):
        samples = math.sqrt(left) * radius ** (-(axes + 1) / 2) * noise(rng, 4, 8000) + noise(rng, 4, 8000)
        found = outer_noise(samples, radius, axes)
        covered += abs(found.value - 1) <= 2 * found.error
        values.append(found.value)
    assert covered >= 36
    assert np.mean(values) == pytest.approx(math.sqrt(1 + left), rel=0.1)  # there is signal left


def test_noise_ignores_zeros_spikes_and_signal_inside():
    rng = np.random.default_rng(5)
    kspace = noise(rng, 4, 40, 44)
    kspace[:, 12:28, 12:32] *= 100
    every = np.ones((40, 44), bool)
    assert estimate_noise(kspace, every).value == pytest.approx(1, abs=0.1)
    holes = kspace.copy()
    holes[:, ::2] = 0
    assert estimate_noise(holes, every).value == pytest.approx(1, abs=0.15)
    spikes = kspace.copy()
    spikes[0, 0, :3] = 1e6
    assert estimate_noise(spikes, every).value == pytest.approx(1, abs=0.1)
    unmeasured = every.copy()
    unmeasured[:, ::3] = False
    garbage = np.where(unmeasured, kspace, 1e9)
    assert estimate_noise(garbage, unmeasured) == estimate_noise(np.where(unmeasured, kspace, 0), unmeasured)
    with pytest.raises(DataError, match=r"only \d+ samples to estimate the noise from; give noise_std"):
        estimate_noise(kspace[:1, :8, :8], every[:8, :8])


def test_rim_of_the_field_of_view_counts_where_it_is_quieter():
    """Structure as fine as a pixel: there is signal everywhere in k-space, and none in the air around the object."""
    g = torch.Generator().manual_seed(0)
    image = torch.zeros(64, 64, dtype=torch.complex64)
    image[20:44, 20:44] = torch.randn(24, 24, generator=g, dtype=torch.complex64)
    kspace = centred_fft(coil_maps(4, (64, 64), g) * image)
    kspace = (kspace + 0.05 * randn_like(kspace, g)).numpy()
    every = np.ones((64, 64), bool)
    found = estimate_noise(kspace, every)
    assert found.source == "rim of the field of view"
    assert found.value == pytest.approx(0.05, rel=0.1)
    scattered = np.random.default_rng(0).random((64, 64)) < 0.6
    assert estimate_noise(kspace, scattered).value > 0.1


def scan(level, seed=0, accelerated=True):
    image, maps, g = signal((48, 44), 6, seed)
    mask = (torch.rand(1, 1, 1, 44, generator=g) < (0.5 if accelerated else 2)).float()
    A = Sense(mask, maps[None])
    y = A(image[None, None])
    return Measurement(y + level * randn_like(y, g) * mask, A, level)


@pytest.mark.parametrize("level", [0.01, 0.1, 1])
def test_residual_has_the_level_of_the_noise(level):
    """Whatever part of the noise the fit takes up; where noise is what is left, the scatter is the standard error."""
    found = [residual_noise(scan(level, seed)) for seed in range(25)]
    values = np.array([one.value for one in found]) / level
    assert values.mean() == pytest.approx(1, abs=0.03)
    if level > 0.05:
        assert values.std() == pytest.approx(np.mean([one.error / one.value for one in found]), rel=0.5)


def test_residual_does_not_know_the_stated_level():
    true = scan(0.05)
    other = Measurement(true.y, true.operator, 7.0)
    assert residual_noise(other) == residual_noise(true)
    tenfold = Measurement(10 * true.y, true.operator, 1)
    assert residual_noise(tenfold).value == pytest.approx(10 * residual_noise(true).value, rel=1e-4)


def test_wrong_maps_show_in_the_residual():
    true = scan(0.02)
    turned = Sense(true.operator.mask, true.operator.maps.roll(1, 1))
    assert residual_noise(Measurement(true.y, turned, 0.02)).value > 5 * 0.02


def test_one_coil_has_no_residual():
    image, _, g = signal((24, 20), 1)
    A = Sense(torch.ones(1, 1, 1, 20), torch.ones(1, 1, 24, 20, dtype=torch.complex64))
    y = A(image[None, None])
    assert residual_noise(Measurement(y + randn_like(y, g), A, 1)) is None


def test_levels_disagree_beyond_their_errors():
    level = NoiseLevel
    assert not disagree(level(1, 0, ""), level(1.49, 0, ""))
    assert disagree(level(1, 0, ""), level(1.51, 0, ""))
    assert disagree(level(1.51, 0, ""), level(1, 0, ""))
    assert not disagree(level(1, 0.1, ""), level(1.7, 0, ""))
    assert not disagree(level(1, 0, ""), level(1.7, 0.15, ""))
    assert disagree(level(0, 0, ""), level(1, 0.1, ""))
    assert str(level(0.012345, 0.00042, "noise scan")) == "0.0123 ± 0.0004 (noise scan)"
