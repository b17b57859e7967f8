"""A prior on held-out rows: the exact one passes, and what is wrong is found without any known image."""

import html
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from torch import Tensor, nn

import ambient_sci
from ambient_sci import cli, validate_prior
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store, simulate
from ambient_sci.denoise import GaussianDenoiser, GaussianMixtureDenoiser
from ambient_sci.errors import ConfigError, DataError, OutputError
from ambient_sci.evaluate import held_out
from ambient_sci.evaluate.held_out import TEMPERATURES, PriorValidation, best_temperature, frequencies
from ambient_sci.measurement import Measurement, collate_measurements, randn_like
from ambient_sci.operators import Fourier, Interferometer, Mask, Nufft, Sense
from ambient_sci.prior import Prior

SIDE, NOISE = 8, 0.3
SHAPE, N = (1, SIDE, SIDE), SIDE**2
QUICK: dict[str, Any] = {"samples": 8, "steps": 12, "iterations": 6, "progress": False}


def covariance(width: float) -> Tensor:
    place = torch.cartesian_prod(torch.arange(float(SIDE)), torch.arange(float(SIDE)))
    return torch.exp(-(torch.cdist(place, place) ** 2) / (2 * width**2)) + 0.02 * torch.eye(N)


def as_prior(denoiser: Any, is_complex: bool = True) -> Prior:
    denoiser.sigma_data = 1.0
    denoiser.register_parameter("somewhere", nn.Parameter(torch.zeros(1)))
    return Prior(denoiser, SHAPE, is_complex, TrainConfig(store="a", out="b"), {}, 0)


def gaussian(width: float = 1.2) -> Prior:
    return as_prior(GaussianDenoiser(torch.zeros(SHAPE, dtype=torch.complex64), covariance(width)))


def images(count: int, width: float, generator: torch.Generator) -> Tensor:
    white = randn_like(torch.zeros(count, N, dtype=torch.complex64), generator)
    return (white @ torch.linalg.cholesky(covariance(width)).mT.to(white.dtype)).reshape(-1, *SHAPE)


def lines(count: int, width: float = 1.2, seed: int = 1) -> Measurement:
    """Undersampled scans of images of a Gaussian prior."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(count, 1, 1, SIDE, generator=generator) < 0.8).float()
    operator = Fourier(mask, (SIDE, SIDE), calibration=2)
    y = operator(images(count, width, generator))
    return Measurement((y + NOISE * randn_like(y, generator)) * mask, operator, NOISE)


def stated(m: Measurement, noise: float) -> Measurement:
    return Measurement(m.y, m.operator, noise, m.index)


@pytest.fixture(scope="module")
def scans() -> Measurement:
    return lines(40)


# --------------------------------------------------------------------------------------------------- what passes


def test_the_exact_prior_passes(scans: Measurement) -> None:
    found = validate_prior(gaussian(), scans[:28], **{**QUICK, "steps": 24})
    assert found.passed
    assert found.verdict.startswith("predicts what was hidden: errors ")
    data = found.dataset
    assert float(data["band_ratio"].sel(band="all")) == pytest.approx(1, abs=0.1)
    assert found.temperature == pytest.approx(1, abs=0.15)
    assert 0.02 < found.temperature_error < 0.1
    for name in ("coverage", "own_coverage"):
        inside = (data[name] * data["values"]).sum("scan") / data["values"].sum("scan")
        np.testing.assert_allclose(inside.sel(band="all"), [0.5, 0.9, 0.95], atol=0.04)
    assert float((data["residual"] / data["expected"]).sel(band="all").mean()) == pytest.approx(1, abs=0.1)


def test_a_mixture_passes_where_values_are_far_from_normal() -> None:
    """Missing pixels of two kinds of images: bimodal, real, correlated, with nothing to separate bands by."""
    generator = torch.Generator().manual_seed(2)
    mean = 2 * torch.sign(torch.linspace(-1, 1, SIDE)).reshape(1, 1, SIDE).expand(SHAPE)
    means, spread = torch.stack([mean, -mean]), 0.3 * covariance(1.5)
    kind = torch.randint(2, (40,), generator=generator)
    white = torch.randn(40, N, generator=generator)
    x = means[kind] + (white @ torch.linalg.cholesky(spread).mT).reshape(-1, *SHAPE)
    mask = torch.zeros(40, *SHAPE)
    mask[..., 3:5] = (torch.rand(40, 1, SIDE, 2, generator=generator) < 0.25).float()  # often it is not known which
    m = Measurement((x + 0.5 * randn_like(x, generator)) * mask, Mask(mask), 0.5)
    prior = as_prior(GaussianMixtureDenoiser(torch.ones(2), means, spread.expand(2, N, N)), is_complex=False)
    found = validate_prior(prior, m, fraction=0.5, **QUICK)
    assert found.passed
    assert list(found.dataset["band"]) == ["all"]
    assert not validate_prior(prior, m, fraction=0.5, temperature=0.4, **QUICK).passed


ROOT = np.linalg.cholesky(np.exp(-np.abs(np.subtract.outer(np.arange(30), np.arange(30))) / 5.0))


def exact(scans: int, seed: int, spread: float = 1.0) -> PriorValidation:
    """Judge exact samples of correlated values, their spread made wrong as told."""
    rng = np.random.default_rng(seed)
    bands = np.stack([np.ones(30, bool), np.arange(30) < 10])
    judged = []
    for scan in range(scans):
        y = ROOT @ rng.standard_normal(30) + 0.2 * rng.standard_normal(30)
        half = spread * rng.standard_normal((6, 30)) @ ROOT.T
        draws = np.stack([half, -half], 1).reshape(12, 30)
        judged.append(held_out._scan(scan, y, draws, np.full(30, 0.2), bands, rng))
    return held_out._result(judged, {})


def test_tests_have_the_level_that_they_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "TEMPERATURES", TEMPERATURES[30:35])  # not what this is about
    every = [exact(6, seed) for seed in range(60)]
    assert sum(not found.passed for found in every) <= 3  # at level 0.02: bands, and scans
    bands = np.concatenate([found.dataset["band_p_value"].to_numpy() for found in every])
    scans = np.concatenate([found.dataset["p_value"].to_numpy() for found in every])
    for chances in (bands, scans):
        assert np.mean(chances < 0.2) == pytest.approx(0.2, abs=0.1)
        assert np.mean(chances < 0.01) < 0.04


@pytest.mark.parametrize("spread", [0.6, 1.0, 1.5])
def test_the_temperature_mends_the_spread(spread: float) -> None:
    found = exact(80, 1, spread)
    assert found.temperature == pytest.approx(1 / spread, abs=3 * found.temperature_error)
    assert found.temperature_error < 0.06 / spread
    assert found.passed == (spread == 1)


# ---------------------------------------------------------------------------------------------------- what fails


def test_a_prior_of_other_images_fails(scans: Measurement) -> None:
    smoother = validate_prior(gaussian(2.0), scans, **QUICK)
    assert smoother.faults["all"] == "too narrow"
    assert smoother.flagged
    rougher = validate_prior(gaussian(0.5), scans, **QUICK)
    assert rougher.faults["all"] == "too wide"
    assert not rougher.flagged
    assert "predictions too wide in all, " in rougher.verdict


@pytest.mark.parametrize(("factor", "fault"), [(1 / 3, "too narrow"), (3, "too wide")])
def test_a_wrong_noise_level_fails(factor: float, fault: str, scans: Measurement) -> None:
    assert validate_prior(gaussian(), stated(scans, factor * NOISE), **QUICK).faults["all"] == fault


def test_overconfident_sampling_fails(scans: Measurement) -> None:
    narrow = validate_prior(gaussian(), scans, temperature=0.5, **QUICK)
    assert narrow.faults["all"] == "too narrow"
    plain = validate_prior(gaussian(), scans, **QUICK).temperature
    assert narrow.temperature == pytest.approx(2 * plain, rel=1e-3)  # of the same samples


def test_single_scans_of_another_kind_are_flagged(scans: Measurement) -> None:
    odd = lines(3, width=0.4, seed=2)
    odd = Measurement(2 * odd.y, odd.operator, NOISE, torch.arange(90, 93))
    found = validate_prior(gaussian(), collate_measurements([scans[:24], odd]), **QUICK)
    assert found.flagged
    assert set(found.flagged) <= {90, 91, 92}
    assert f"{len(found.flagged)} of {found.dataset.sizes['scan']} scans not explained (9" in found.verdict


# -------------------------------------------------------------------------------------------------- what is told


def test_frequencies_are_in_cycles_per_pixel() -> None:
    mask = torch.ones(1, 1, 1, 6)
    grid = frequencies(Fourier(mask, (4, 6)))
    assert grid is not None
    assert grid.shape == (1, 1, 4, 6)
    assert float(grid[0, 0, 2, 3]) == 0
    assert float(grid[0, 0, 0, 3]) == 0.5
    assert float(grid[0, 0, 2, 4]) == pytest.approx(1 / 6)
    coils = frequencies(Sense(mask, torch.ones(1, 2, 4, 6, dtype=torch.complex64)))
    assert coils is not None
    torch.testing.assert_close(coils, grid)
    points = frequencies(Nufft(torch.tensor([[[torch.pi, 0.0], [0.3, 0.4]]]), (4, 6)))
    assert points is not None
    torch.testing.assert_close(points, torch.tensor([[[0.5, 0.5 / (2 * torch.pi)]]]))
    sky = frequencies(Interferometer(torch.tensor([[[300.0, 400.0]]]), (8, 8), 1e-3))
    assert sky is not None
    torch.testing.assert_close(sky, torch.tensor([[0.5]]))
    assert frequencies(Mask(torch.ones(1, 1, 4, 4))) is None


def test_bands_share_out_the_values(scans: Measurement) -> None:
    data = validate_prior(gaussian(), scans[:6], **QUICK).dataset
    assert next(iter(data["band"])) == "all"
    counts = data["values"].to_numpy()
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1:].sum(1))
    rest = scans[:6].thin(0.25, torch.Generator().manual_seed(0)).operator.rows
    hidden = (scans.operator.rows[:6] - rest).expand(6, 1, SIDE, SIDE).sum((1, 2, 3)) * 2  # real and imaginary
    np.testing.assert_array_equal(counts[:, 0], hidden[hidden > 0])


def test_the_best_temperature_is_at_the_top_of_the_log_score() -> None:
    """Normal errors of known size: the likelihood's own maximum and the standard error of a standard deviation."""
    z = 1.5 * np.random.default_rng(0).standard_normal((400, 25))
    curves = [np.array([-np.log(t) * 25 - (row**2).sum() / (2 * t**2) for t in TEMPERATURES]) for row in z]
    found, error = best_temperature(curves)
    assert found == pytest.approx(np.sqrt(np.mean(z**2)), rel=2e-3)
    assert error == pytest.approx(found / np.sqrt(2 * z.size), rel=0.15)
    assert np.isnan(best_temperature(curves[:1])[1])


def test_what_is_written(scans: Measurement, tmp_path: Path) -> None:
    found = validate_prior(gaussian(), [scans[:3], scans[3:6]], **QUICK)
    found.save(tmp_path / "out")
    assert (tmp_path / "out" / "validation.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert told["verdict"] == found.verdict
    assert told["numbers"]["scan"] == found.dataset["scan"].to_numpy().tolist()
    assert len(told["numbers"]["ratio"]) == found.dataset.sizes["scan"]
    assert told["options"]["steps"] == QUICK["steps"]
    assert "NaN" not in json.dumps(told)
    with pytest.raises(OutputError, match="already holds a validation"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", overwrite=True)
    assert found.verdict in str(found)
    again = PriorValidation.load(tmp_path / "out")
    xarray.testing.assert_identical(again.dataset, found.dataset)
    assert again.to_dict() == found.to_dict()
    assert found.verdict in html.unescape(found._repr_html_())


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.pop("temperature"),
        lambda told: told["numbers"].pop("ratio"),
        lambda told: told["numbers"].update(ratio=[["a"]]),
        lambda told: told["numbers"].update(ratio=[[1.0], [1.0, 2.0]]),
        lambda told: told["numbers"].update(p_value=[]),
        lambda told: told["numbers"].update(scan=[1]),
        lambda told: told.update(numbers=[]),
    ],
)
def test_damaged_findings_are_named(change: Callable[[Any], Any], tmp_path: Path) -> None:
    file = tmp_path / "validation.json"
    kept = {name: np.ones((2, 1, 3)[: len(axes)]).tolist() for name, axes in PriorValidation.axes.items()}
    kept |= {"coverage": np.ones((2, 1, 3)).tolist(), "scan": [0, 1], "band": ["all"], "level": [0.5, 0.9, 0.95]}
    kept |= {"band_ratio": [1.0], "band_p_value": [1.0]}
    told = {"temperature": 1.0, "temperature_error": None, "options": {}, "numbers": kept}
    file.write_text(json.dumps(told))
    assert np.isnan(PriorValidation.load(file).temperature_error)
    change(told)
    file.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"validation\.json is damaged, or of another release"):
        PriorValidation.load(tmp_path)


def test_what_cannot_be_validated(scans: Measurement) -> None:
    for samples in (4, 9):
        with pytest.raises(ConfigError, match=f"samples must be an even number, at least 6, got {samples}"):
            validate_prior(gaussian(), scans, samples=samples)
    with pytest.raises(ConfigError, match="sets nothing aside"):
        validate_prior(gaussian(), scans, fraction=0.0, progress=False)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    store = simulate(
        generator.standard_normal((6, SIDE, SIDE)), tmp_path / "scans.zarr", coils=2, acceleration=1.25, calibration=2
    )
    monkeypatch.setattr("ambient_sci.prior.load_prior", lambda run, device: gaussian(0.1))
    out = tmp_path / "out"

    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ambient-sci", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    options = ("--steps", 4, "--samples", 6, "--fraction", 0.5, "--quiet", "--out", out)
    status, said, wrong = command("run", store.path, "--stop", 4, *options)
    assert not wrong
    told = json.loads((out / "validation.json").read_text())
    assert status == (0 if told["passed"] else 1)
    assert said.splitlines()[-1] == told["verdict"]
    assert set(told["numbers"]["scan"]) <= {0, 1, 2, 3}
    assert told["options"]["store"] == store.fingerprint
    again = validate_prior(
        gaussian(0.1), open_store(store.path), scans=slice(0, 4), steps=4, samples=6, fraction=0.5, progress=False
    )
    assert again.verdict == told["verdict"]
    status, _, said = command("run", store.path, *options)
    assert (status, "already holds a validation" in said) == (2, True)
    assert command(store.path)[:2] == (0, f"{store.path} is as it should be\n")
    status, _, said = command(store.path, "--out", out)
    assert (status, "validating a run on a store" in said) == (2, True)
    status, said, _ = command("--help")
    assert "ambient-sci validate run scans.zarr --out validation" in said


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.calibration")
    values = np.random.default_rng(0).random((4, SIDE, SIDE))
    store = simulate(values, tmp_path / "scans.zarr", coils=2, acceleration=1.25, calibration=2)
    monkeypatch.setattr(benchmark, "load_prior", lambda run: gaussian(0.1))
    few = ("--scans", 4, "--samples", 6, "--steps", 3, "--fraction", 0.5, "--out", tmp_path / "out")
    only = ("--only", "noise stated 0.6 times", "vessels in the last 1", "references")
    monkeypatch.setattr(sys, "argv", ["calibration", *map(str, ("run", store.path, *few, *only))])
    benchmark.main()
    said = capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert list(numbers["held_out"]) == ["vessels in the last 1", "noise stated 0.6 times"]
    assert said.splitlines()[-1] == numbers["with_references"]["verdict"]
    assert (tmp_path / "out" / "with-references.png").exists()
    assert (tmp_path / "out" / "vessels-in-the-last-1" / "validation.json").exists()

    m = store.read(slice(None))
    again = benchmark.measured(m, torch.from_numpy(values[:, None]).to(torch.complex64))
    level = ((again.y - m.operator(torch.from_numpy(values[:, None]).to(torch.complex64))).abs() / m.noise)[
        m.operator.rows.expand(m.y.shape) > 0
    ]
    assert float(level.square().mean() / 2) == pytest.approx(1, abs=0.2)


def test_it_is_a_name_of_the_package() -> None:
    assert ambient_sci.validate_prior is validate_prior
