"""Distances between sets of images: against closed forms, and that they grow as images get worse."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
Blobs = Callable[..., np.ndarray]


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT))
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.learning.{name}") for name in NAMES})


NAMES = ("distances", "features")


def _whitened(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Points whose mean is zero and whose covariance is one, exactly."""
    x = np.random.default_rng(seed).standard_normal((count, dimensions))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_of_gaussians(learning: SimpleNamespace) -> None:
    """Covariances that commute: the squared distance of means and of roots of variances; and ones that do not."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    frechet = learning.distances.frechet_distance
    x, y = _whitened(40, 5, 1), _whitened(60, 5, 2)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    s, t, shift = rng.uniform(0, 2, 5), rng.uniform(0, 2, 5), rng.standard_normal(5)
    s[0] = 0  # a direction without variance
    a, b = (x * s) @ turn.T, (y * t) @ turn.T + shift
    assert frechet(a, b) == pytest.approx((shift**2).sum() + ((s - t) ** 2).sum(), rel=1e-6)

    mix = rng.standard_normal((2, 5, 5))
    a, b = x @ mix[0].T, y @ mix[1].T + shift
    ca, cb = (m @ m.T for m in mix)
    want = (shift**2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet(a, b) == pytest.approx(want, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_sliced_wasserstein_of_contrast(learning: SimpleNamespace) -> None:
    """White images, brighter by a factor: mean modulus of a normal variable, times what the factor is above one."""
    sliced = learning.distances.sliced_wasserstein
    x = np.random.default_rng(0).standard_normal((100, 20, 20))  # too small for a pyramid of two levels
    assert sliced(x, x) == 0
    assert sliced(1.5 * x, x) == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.02)
    other = np.random.default_rng(1).standard_normal((150, 20, 20))
    assert sliced(other, x) < 0.03
    large = np.random.default_rng(2).standard_normal((20, 56, 56))
    assert sliced(2 * large, large) == pytest.approx(2 * sliced(1.5 * large, large), rel=1e-3)


def test_pyramid_adds_up(learning: SimpleNamespace) -> None:
    """Levels added up from the coarsest on are the images; where an image is a ramp, the fine levels are empty."""
    from scipy import ndimage

    row, column = np.meshgrid(np.arange(56), np.arange(56), indexing="ij")
    images = np.stack([0.1 * row + 0.2 * column, np.random.default_rng(0).random((56, 56))])
    fine, middle, coarse = learning.distances._pyramid(images)
    assert [level.shape[1] for level in (fine, middle, coarse)] == [56, 28, 14]
    assert np.abs(fine[0, 6:-6, 6:-6]).max() < 1e-12
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 64
    whole = coarse[1]
    for level in (middle[1], fine[1]):
        sparse = np.zeros_like(level)
        sparse[::2, ::2] = whole
        whole = level + ndimage.convolve(sparse, kernel, mode="mirror")
    np.testing.assert_allclose(whole, images[1], atol=1e-12)


def test_spectrum(learning: SimpleNamespace) -> None:
    """Waves have their power at their frequency, and what multiplies the images squares in the power."""
    distances = learning.distances
    row, column = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    wave = np.cos(2 * np.pi * (3 * row + 4 * column) / 32)  # of frequency 5
    power = distances.spectrum(7 + wave[None])
    assert power.shape == (16,)
    assert power.argmax() + 1 == 5
    assert np.delete(power, 4) == pytest.approx(0, abs=1e-20)
    noise = np.random.default_rng(0).standard_normal((50, 32, 24))
    assert distances.spectrum(noise) == pytest.approx(np.ones(12), rel=0.1)
    assert distances.spectrum_error(noise, noise) == 0
    assert distances.spectrum_error(3 * noise, noise) == pytest.approx(np.log10(9))


def _discs(blobs: Blobs, count: int, size: int, seed: int = 0) -> np.ndarray:
    """Images of a few discs with edges that can be blurred."""
    return np.round(3 * blobs(count, size=size, seed=seed)) / 3


def test_distance_grows(learning: SimpleNamespace, blobs: Blobs) -> None:
    """With everything that can be wrong with images, and with the share of classes that are missing."""
    images = _discs(blobs, 800, 28)
    classes = np.digitize(images.mean((1, 2)), np.quantile(images.mean((1, 2)), [0.25, 0.5, 0.75]))
    network = learning.features.train_features(images, classes, (8, 16, 24, 32), shown=8_000)
    rows = learning.features.growth(network, images, classes)
    assert set(rows) == {*learning.features.DEGRADATIONS, "classes dropped"}
    for name, values in rows.items():
        assert (np.diff(values) > 0).all(), f"{name}: {values}"
        assert values[-1] > 3 * values[0], f"{name}: {values}"


def test_training_is_deterministic(learning: SimpleNamespace, blobs: Blobs) -> None:
    images, classes = blobs(40, size=28), np.arange(40) % 2
    one, other = (learning.features.train_features(images, classes, (8, 8, 8), shown=256) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(("dataset", "size"), [("brain", 64), ("digits", 28), ("galaxies", 64)])
def test_sample_scores(dataset: str, size: int, learning: SimpleNamespace, blobs: Blobs) -> None:
    """Of the stored networks: near the floor for as good images, above it for worse ones; phases do not matter."""
    scores, degraded = learning.distances.sample_scores, learning.features.degraded
    clean, others = _discs(blobs, 150, size), _discs(blobs, 75, size, seed=1)
    good = scores(torch.from_numpy(others)[:, None], clean, dataset)
    phase = torch.polar(torch.ones(75, 1, 1), torch.rand(75, 1, 1))
    assert scores(torch.from_numpy(others) * phase, clean, dataset) == pytest.approx(good, rel=1e-3)
    for name in ("blurred", "noisy", "missing pixels"):
        bad = scores(degraded(others, name, 1.0), clean, dataset)
        for score in ("frechet", "sliced_wasserstein", "spectrum_error"):
            assert good[score] < 2 * good[f"{score}_floor"], score
            assert bad[score] > 1.5 * good[score], f"{name}, {score}"
            assert bad[f"{score}_floor"] == good[f"{score}_floor"]
