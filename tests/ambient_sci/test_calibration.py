"""Samples against known images: what is exact passes, what is too narrow, too wide or biased does not."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from ambient_sci import TrainConfig, cli, open_store, reconstruct
from ambient_sci.denoise import GaussianDenoiser
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.evaluate import SampleJudge, contrast, flux, judge_samples, region_means, temper
from ambient_sci.evaluate.calibration import CURVE, PIXELS, TARP
from ambient_sci.evaluate.compare import evaluate
from ambient_sci.evaluate.predictive import excess, predictive
from ambient_sci.prior import Prior

SIDE = 10
PLACES = np.stack(np.mgrid[:SIDE, :SIDE], -1).reshape(-1, 2)
ROOT = np.linalg.cholesky(np.exp(-((PLACES[:, None] - PLACES[None]) ** 2).sum(-1) / 8) + 0.05 * np.eye(SIDE**2))


def posterior(
    scans: int, samples: int = 8, pairs: bool = True, spread: float = 1.0, shift: float = 0.0, seed: int = 0,
    is_complex: bool = False,
) -> tuple[NDArray[Any], NDArray[Any]]:  # fmt: skip
    """Samples of an exact Gaussian posterior of correlated pixels around known images, made wrong as told."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[Any]:
        white = rng.standard_normal((*shape, SIDE**2))
        if is_complex:
            white = white + 1j * rng.standard_normal(white.shape)
        return white @ ROOT.T

    mean = 2 + 2 * draw(scans)
    known = mean + draw(scans)
    noise = draw(scans, samples // 2 if pairs else samples)
    noise = np.stack([noise, -noise], 2).reshape(scans, samples, -1) if pairs else noise
    drawn = mean[:, None] + spread * noise + shift
    return drawn.reshape(scans, samples, 1, SIDE, SIDE), known.reshape(scans, 1, SIDE, SIDE)


# --------------------------------------------------------------------------------------------------- what passes


@pytest.mark.parametrize("options", [{}, {"pairs": False}, {"is_complex": True}, {"samples": 16}])
def test_an_exact_posterior_is_calibrated(options: dict[str, Any]) -> None:
    found = judge_samples(*posterior(100, **options), pairs=options.get("pairs", True))
    assert found.passed
    assert "find no significant deviation" in found.verdict
    for name in (PIXELS, "regions"):
        one = found.quantities[name]
        assert one.ratio == pytest.approx(1, abs=0.07)
        np.testing.assert_allclose(one.coverage, CURVE, atol=0.05)
        np.testing.assert_allclose(one.ranks * (found.draws + 1), 1, atol=0.25)
    assert found.to_dict()["quantities"][PIXELS]["coverage"]["0.9"] == pytest.approx(0.9, abs=0.03)


def test_tests_have_the_level_that_they_state() -> None:
    """Over many exact posteriors p-values are uniform: of few scans, whose pixels hang together."""
    chances: list[float] = []
    alarms = 0
    for seed in range(60):
        found = judge_samples(*posterior(12, 6, seed=seed), {"flux": flux()}, seed=seed)
        alarms += not found.passed
        chances += [found.quantities[name].p_ratio for name in (PIXELS, "flux")]
        chances += [found.quantities[name].p_position for name in (PIXELS, TARP)]
    assert alarms <= 3  # of 60 at level 0.01, once in 300 of such tests there are more
    assert np.mean(np.array(chances) < 0.2) == pytest.approx(0.2, abs=0.06)
    assert np.mean(np.array(chances) < 0.02) < 0.05


def test_ranks_of_both_samples_of_a_pair_would_not_be_uniform() -> None:
    """The known value is between two samples of a pair more often than between independent ones."""
    drawn, known = posterior(200, 4)
    as_pairs = judge_samples(drawn, known).quantities[PIXELS]
    assert as_pairs.p_ratio > 0.001
    naive = judge_samples(drawn, known, pairs=False).quantities[PIXELS]
    assert naive.p_ratio < 1e-6


# ---------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("wrong", "fault", "ratio"),
    [
        ({"spread": 0.7}, "samples of pixels too narrow", 1 / 0.7),
        ({"spread": 1.4}, "samples of pixels too wide", 1 / 1.4),
        ({"shift": 0.5}, "samples of pixels too large", None),
    ],
)
def test_wrong_samples_are_found(wrong: dict[str, float], fault: str, ratio: float | None) -> None:
    found = judge_samples(*posterior(60, 16, is_complex="shift" not in wrong, **wrong))
    assert not found.passed
    assert found.verdict.startswith(f"NOT calibrated: {fault}")
    if ratio is not None:
        assert found.quantities[PIXELS].ratio == pytest.approx(ratio, rel=0.07)


def test_tarp_and_quantities_see_what_pixels_do_not() -> None:
    """Samples with the right spread in every pixel, but none of the correlations."""
    drawn, known = posterior(100)
    mean = drawn.mean(1, keepdims=True)
    noise = np.random.default_rng(1).standard_normal((100, 4, *drawn.shape[2:])) * np.sqrt(1.05)
    white = mean + np.stack([noise, -noise], 2).reshape(drawn.shape)
    found = judge_samples(white, known)
    assert found.quantities[PIXELS].ratio == pytest.approx(1, abs=0.1)
    assert found.quantities["flux"].ratio > 1.5
    assert found.quantities[TARP].p_ratio < 1e-4
    assert not found.passed


# -------------------------------------------------------------------------------------------------- what is told


def test_quantities_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 1, 8, 8)) + 1j * rng.standard_normal((3, 1, 8, 8))
    mask = np.zeros((1, 8, 8))
    mask[:, :5] = 1
    seen = np.abs(images)
    np.testing.assert_allclose(flux(mask)(images, 0), seen[:, :, :5].sum((1, 2, 3)))
    means = region_means(mask, tiles=2)(images, 0)
    np.testing.assert_allclose(means[:, 0], seen[:, 0, :4, :4].mean((1, 2)))
    assert np.isnan(means[:, 2:]).all()  # a quarter of these tiles counts
    lesion = np.zeros((2, 1, 8, 8))
    lesion[1, :, 2:4, 2:4] = 1
    difference = contrast(lesion, np.broadcast_to(mask, lesion.shape))(images, 1)
    np.testing.assert_allclose(difference, seen[:, 0, 2:4, 2:4].mean((1, 2)) - seen[:, 0, :5].mean((1, 2)))
    real = images.real
    np.testing.assert_allclose(flux()(real, 0), real.sum((1, 2, 3)))


def test_a_lesion_of_ones_own_is_judged() -> None:
    drawn, known = posterior(60, spread=0.5)
    lesion, around = np.zeros((1, SIDE, SIDE)), np.zeros((1, SIDE, SIDE))
    lesion[:, 4:6, 4:6], around[:, 1:9, 1:9] = 1, 1
    found = judge_samples(drawn, known, {"contrast": contrast(lesion, around)})
    assert set(found.quantities) == {PIXELS, TARP, "contrast"}
    assert found.quantities["contrast"].ratio > 1.4


def test_batches_are_judged_like_all_at_once() -> None:
    drawn, known = posterior(10)
    judge = SampleJudge()
    judge.add(torch.from_numpy(drawn[:4]), torch.from_numpy(known[:4]))
    judge.add(drawn[4:, :, :, :6], known[4:, :, :6], np.ones_like(known[4:, :, :6]))  # of another size
    assert judge.result().scans == 10
    judge = SampleJudge()
    for scan in range(10):
        judge.add(drawn[scan : scan + 1], known[scan : scan + 1])
    assert str(judge.result()) == str(judge_samples(drawn, known))


def test_what_cannot_be_judged() -> None:
    drawn, known = posterior(3)
    with pytest.raises(DataError, match=r"samples must be \(n, samples, \*\(1, 10, 10\)\) of 3 scans"):
        judge_samples(drawn[:2], known)
    with pytest.raises(DataError, match="must both be real or both complex"):
        judge_samples(drawn + 0j, known)
    with pytest.raises(DataError, match="at least 2 are needed, got 1"):
        judge_samples(drawn[:1], known[:1])
    with pytest.raises(DataError, match="samples must be of at least 2 pairs, got 1"):
        judge_samples(drawn[:, :3], known)
    with pytest.raises(DataError, match="quantity 'bad' must give real values"):
        judge_samples(drawn, known, {"bad": lambda images, scan: images})
    with pytest.raises(DataError, match=r"mask must be \(1, 10, 10\)"):
        judge_samples(drawn, known, {"flux": flux(np.ones((4, 4)))})


def test_the_figure_has_all_panels() -> None:
    figure = judge_samples(*posterior(20)).plot()
    figure.canvas.draw()
    coverage, ranks, tarp = figure.axes
    assert len(coverage.get_legend().get_texts()) == 3
    assert len(ranks.lines) == 4  # uniform, and all but TARP
    np.testing.assert_allclose(tarp.lines[0].get_xdata(), np.linspace(0, 1, 6))
    assert tarp.lines[0].get_ydata()[-1] == pytest.approx(1)


def test_a_reconstruction_is_judged_with_its_scores(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(store_path)
    denoiser = GaussianDenoiser(torch.zeros(1, 16, 16, dtype=torch.complex64), 0.1 * torch.eye(256))
    denoiser.sigma_data = 0.3  # type: ignore[assignment]
    denoiser.register_parameter("somewhere", nn.Parameter(torch.zeros(1)))
    prior = Prior(denoiser, (1, 16, 16), True, TrainConfig(store="a", out="b"), {}, 0)
    made = reconstruct(prior, store, tmp_path / "recon.zarr", scans=slice(0, 3), samples=4, steps=3, progress=False)
    found = evaluate(made, store)
    assert found.calibration is not None
    expected = judge_samples(made["sample"].to_numpy(), store.references(slice(0, 3)))
    assert str(found.calibration) == str(expected)
    assert found.metrics["calibration"] == expected.to_dict()
    assert expected.verdict in str(found)
    few = reconstruct(prior, store, tmp_path / "few.zarr", scans=slice(0, 3), samples=3, steps=2, progress=False)
    assert evaluate(few, store).calibration is None

    for name, status in (("recon.zarr", 0), ("few.zarr", 2)):
        line = ["evaluate", tmp_path / name, "--reference", store_path, "--figure", tmp_path / f"{name}.png"]
        monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, line)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == status
        assert (tmp_path / f"{name}.png").exists() == (status == 0)
    assert "--figure needs at least 2 scans of at least 4 samples each" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("noise", [0.0, 1.5])
@pytest.mark.parametrize("pairs", [True, False])
def test_predictive_probabilities_are_uniform(pairs: bool, noise: float) -> None:
    rng = np.random.default_rng(2)
    white = rng.standard_normal((3 if pairs else 6, 40_000))
    draws = np.stack([white, -white], 1).reshape(6, -1) if pairs else white
    value = np.sqrt(1 + noise**2) * rng.standard_normal(40_000)
    expected = predictive(draws, noise, pairs)
    assert stats.kstest(expected.below(value), "uniform").pvalue > 1e-3 or noise > 0
    for level in (0.5, 0.9, 0.95):
        inside = np.abs(expected.below(value) - 0.5) <= level / 2
        assert inside.mean() == pytest.approx(level, abs=0.012)
    frozen = stats.t(expected.dof, expected.mean, np.sqrt(expected.variance))
    np.testing.assert_allclose(expected.log_density(value), frozen.logpdf(value), rtol=1e-6, atol=1e-6)


def test_predictive_of_pairs_that_are_not_antithetic() -> None:
    """Independent samples, taken for pairs: nearly all of their degrees of freedom are found."""
    draws = np.random.default_rng(3).standard_normal((8, 20_000))
    expected = predictive(draws)
    value = np.random.default_rng(4).standard_normal(20_000)
    assert np.mean(np.abs(expected.below(value) - 0.5) <= 0.45) == pytest.approx(0.9, abs=0.012)
    assert np.median(expected.dof) > 5


def test_excess_is_the_size_of_normal_errors() -> None:
    z = np.random.default_rng(5).standard_normal(200_000)
    for size in (0.5, 1.0, 2.0):
        assert excess(np.abs(stats.norm.cdf(size * z) - 0.5).mean()) == pytest.approx(size, rel=0.02)


def test_samples_that_predict_nothing() -> None:
    with pytest.raises(DataError, match="an even number of samples, at least 4, got 5"):
        predictive(np.zeros((5, 2)))
    with pytest.raises(DataError, match="at least 2 samples, got 1"):
        predictive(np.zeros((1, 2)), pairs=False)


def test_tempered_samples_keep_their_mean() -> None:
    drawn = torch.randn(3, 6, 1, 4, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    wide = temper(drawn, 1.7)
    torch.testing.assert_close(wide.mean(1), drawn.mean(1))
    torch.testing.assert_close(wide.std(1), 1.7 * drawn.std(1))
    torch.testing.assert_close(torch.from_numpy(temper(drawn.numpy(), 1.7)), wide)
    assert temper(drawn, 1.0) is drawn
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="temperature must be above 0"):
            temper(drawn, wrong)
