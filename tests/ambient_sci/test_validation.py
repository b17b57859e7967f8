"""Held-out rows against closed forms; scans that are set aside; what a run tells of itself."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ambient_sci import validation
from ambient_sci.checkpoint import load_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store, simulate
from ambient_sci.denoise import GaussianDenoiser
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.methods.base import ImageLearner
from ambient_sci.operators import Mask, Matrix
from ambient_sci.plot import training_curve
from ambient_sci.prior import Prior, load_prior
from ambient_sci.steps import Average
from ambient_sci.training import train
from ambient_sci.validation import HeldOut, held_out_error, validation_count

SHAPE, N, NOISE = (1, 4, 4), 16, 0.2


class Exact(GaussianDenoiser):
    """A Gaussian prior that passes for a learned one."""

    sigma_data = 1.0

    def __init__(self, covariance: Tensor) -> None:
        super().__init__(torch.zeros(SHAPE), covariance)
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)


def smooth_covariance() -> Tensor:
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    return torch.exp(-(torch.cdist(place, place) ** 2) / 4) + 0.02 * torch.eye(N)


def test_an_exact_prior_is_as_wrong_as_its_posterior_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Gaussian the mean squared error of each hidden pixel is its posterior variance, plus the noise."""
    monkeypatch.setattr(validation, "CHUNK", 1000)
    covariance, count = smooth_covariance(), 1000
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(count, N, generator=generator) @ torch.linalg.cholesky(covariance).T).reshape(-1, *SHAPE)
    mask = (torch.rand(count, *SHAPE, generator=generator) < 0.7).float()
    y = (x + NOISE * randn_like(x, generator)) * mask
    m = Measurement(y, Mask(mask), NOISE)
    prior = Prior(Exact(covariance), SHAPE, False, TrainConfig(store="a", out="b"), {}, 0)  # type: ignore[arg-type]
    found = held_out_error(prior, m, fraction=0.3, seed=5, samples=2, steps=40, iterations=12)

    shown = m.thin(0.3, torch.Generator().manual_seed(5)).operator.rows.flatten(1)
    hidden = mask.flatten(1) - shown
    precision = torch.linalg.inv(covariance) + torch.diag_embed(shown) / NOISE**2
    wide = torch.linalg.inv(precision).diagonal(dim1=1, dim2=2)
    expected = ((wide + NOISE**2) * hidden).sum()
    assert found.chi_square == pytest.approx(float(expected / hidden.sum()) / NOISE**2, rel=0.05)
    energy = (hidden * (covariance.diagonal() + NOISE**2)).sum()
    assert found.error == pytest.approx(float(expected / energy), rel=0.05)
    nothing = Prior(Exact(1e-6 * torch.eye(N)), SHAPE, False, prior.config, {}, 0)  # type: ignore[arg-type]
    assert held_out_error(nothing, m, fraction=0.3, seed=5).error == pytest.approx(1, abs=1e-3)


def test_sums_over_scans_of_several_sizes_and_unequal_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops over every sample, against what is returned; complex samples count twice."""
    generator = torch.Generator().manual_seed(1)

    def scans(rows: int, batch: int) -> Measurement:
        matrix = torch.randn(batch, rows, 6, generator=generator, dtype=torch.complex64)
        noise = 0.1 + torch.rand(batch, rows, generator=generator)
        return Measurement(torch.randn(batch, rows, generator=generator, dtype=torch.complex64),
                           Matrix(matrix, (1, 2, 3)), noise)  # fmt: skip

    several = [scans(9, 11), scans(5, 3)]
    images = [torch.randn(len(m), 1, 2, 3, generator=generator, dtype=torch.complex64) for m in several]
    given = iter([images[0][:8], images[0][8:], images[1]])
    monkeypatch.setattr(validation, "_reconstruct", lambda *arguments: next(given))
    prior: Any = type("Prior", (), {"device": "cpu"})
    found = held_out_error(prior, several, fraction=0.4, seed=2)

    squared = energy = scaled = count = 0.0
    for m, image in zip(several, images, strict=True):
        shown = m.thin(0.4, torch.Generator().manual_seed(2)).operator.rows.expand(m.y.shape)
        for scan in range(len(m)):
            predicted = m.operator[scan](image[scan : scan + 1])[0]
            for row in range(m.y.shape[1]):
                if not shown[scan, row]:
                    weight = float(m.noise_std[scan].min() / m.noise_std[scan, row]) ** 2
                    error = abs(complex(predicted[row] - m.y[scan, row])) ** 2
                    squared += weight * error
                    energy += weight * abs(complex(m.y[scan, row])) ** 2
                    scaled += error / float(m.noise_std[scan, row]) ** 2
                    count += 2
    assert found.error == pytest.approx(squared / energy, rel=1e-4)
    assert found.chi_square == pytest.approx(scaled / count, rel=1e-4)


def test_rows_that_cannot_be_hidden() -> None:
    x = torch.ones(2, *SHAPE)
    prior: Any = type("Prior", (), {"device": "cpu"})
    with pytest.raises(ConfigError, match=r"fraction 0.0 of the measured rows sets nothing aside"):
        held_out_error(prior, Measurement(x, Mask(x), 0.1), fraction=0.0)


def test_a_learned_prior_predicts_better_than_an_untrained_one(run_path: Path, store_path: Path) -> None:
    prior, m = load_prior(run_path, device="cpu"), open_store(store_path).read(slice(0, 12))
    found = held_out_error(prior, m)
    again = held_out_error(prior, m)
    assert (found.error, found.chi_square) == (again.error, again.chi_square)
    assert 0 < found.error < 0.9
    assert found.chi_square > 1
    assert held_out_error(prior, m, seed=1).error != found.error


# ------------------------------------------------------------------------------------------------ scans set aside


def test_how_many_scans_are_set_aside(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    counts = {}
    for scans in (24, 120, 420):
        store = simulate(blobs(6).repeat(scans // 6, 0), tmp_path / f"{scans}.zarr", operator="mask")
        counts[scans] = validation_count(store, None)
        assert validation_count(store, 5) == 5
    assert counts == {24: 0, 120: 2, 420: 8}
    with pytest.raises(ConfigError, match=r"validation_scans must be below 420, the scans in .*, got 420"):
        validation_count(store, 420)
    whole = simulate(blobs(6).repeat(20, 0), tmp_path / "whole.zarr", coils=2, acceleration=1, calibration=16)
    assert validation_count(whole, None) == 0  # of a calibration region no line is lost


@pytest.mark.parametrize("method", ["em", "ambient", "oracle"])
def test_scans_set_aside_are_not_learned_from(
    method: str, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    import zarr

    other = tmp_path / "other.zarr"
    shutil.copytree(store_path, other)
    group: Any = zarr.open_group(str(other))
    group["measurement"][34:] = 1.0
    group["reference/image"][34:] = 1.0
    options = {**small, "images": 96, "method": method, "validation_scans": 6}
    for store, run in ((store_path, "as-is"), (other, "changed")):
        prior = train(TrainConfig(store=store, out=tmp_path / run, **options), progress=False)
        assert prior.trained_on["scans"] == 34
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors")[0] for run in ("as-is", "changed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    if method == "em":
        assert len(first["learner.images"]) == 34


def test_every_scan_that_is_left_is_seen_once_an_epoch(
    store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    draw = ImageLearner.draw

    def noted(learner: Any, generator: torch.Generator) -> Any:
        batch = draw(learner, generator)
        seen.extend(batch.index.tolist())
        return batch

    monkeypatch.setattr(ImageLearner, "draw", noted)
    options = {**small, "images": 68, "batch": 17, "method": "oracle", "validation_scans": 6}
    train(TrainConfig(store=store_path, out=tmp_path / "run", **options), progress=False)
    assert sorted(seen[:34]) == sorted(seen[34:]) == list(range(34))


# ------------------------------------------------------------------------------------------------ what a run tells


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["oracle", "ambient"])
def test_previews_change_nothing_and_are_the_same_after_a_stop(
    method: str, store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    options = {**small, "images": 128, "checkpoint": 64, "method": method, "validation_scans": 3}
    config = TrainConfig(store=store_path, out=tmp_path / "watched", **{**options, "preview": 32})
    prior = train(config, progress=False)
    train(TrainConfig(store=store_path, out=tmp_path / "alone", **options), progress=False)
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors")[0] for run in ("watched", "alone"))
    weights = [name for name in first if not name.startswith("log.")]
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert not (tmp_path / "alone" / "samples.png").exists()
    assert not any("held_out" in record for record in log(tmp_path / "alone"))

    records = log(tmp_path / "watched")
    assert [record["images"] for record in records if "held_out" in record] == [32, 64, 96, 128]
    found = held_out_error(prior, open_store(store_path).read(slice(37, 40)))
    assert HeldOut(records[-1]["held_out"], records[-1]["chi_square"]) == found
    assert Image.open(tmp_path / "watched" / "samples.png").size == (8 * 16, 16)

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    half = config.model_copy(update={"out": tmp_path / "stopped"})
    with pytest.MonkeyPatch.context() as patch:
        steps = iter(range(100))
        update = Average.update
        patch.setattr(
            Average, "update", lambda *arguments, **last: stopped() if next(steps) == 6 else update(*arguments, **last)
        )
        with pytest.raises(KeyboardInterrupt):
            train(half, progress=False)
    train(half, progress=False)
    told = [[{**record, "seconds": 0} for record in log(tmp_path / run)] for run in ("watched", "stopped")]
    assert told[0] == told[1]
    pictures = [(tmp_path / run / "samples.png").read_bytes() for run in ("watched", "stopped")]
    assert pictures[0] == pictures[1]


def test_a_training_ends_when_held_out_rows_are_predicted_no_better(
    store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [0.9, 0.5, 0.6, 0.4, 0.45, 0.41, 0.5]
    given = iter(errors)
    monkeypatch.setattr("ambient_sci.logs.held_out_error", lambda *_: HeldOut(next(given), 1.0))
    options = {**small, "images": 192, "preview": 16, "checkpoint": 64, "validation_scans": 4, "patience": 2}
    config = TrainConfig(store=store_path, out=tmp_path, **options)
    prior = train(config, progress=False)
    assert [line["held_out"] for line in log(tmp_path) if "held_out" in line] == errors[:6]
    assert prior.images == load_prior(tmp_path).images == 96
    again = train(config, progress=False)
    assert again.images == 96
    assert again.fingerprint() == prior.fingerprint()
    assert train(config.model_copy(update={"patience": 3}), progress=False).images == 112  # more patience goes on


def test_patience_needs_rows_that_are_held_out(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    config = TrainConfig(store=store_path, out=tmp_path, **small, patience=2)
    with pytest.raises(ConfigError, match=r"patience .* needs validation_scans, and previews"):
        train(config, progress=False)


def test_the_bar_has_loss_and_rate(
    store_path: Path, tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**small, "images": 64, "method": "oracle", "validation_scans": 3, "preview": 32}
    train(TrainConfig(store=store_path, out=tmp_path / "run", **options))
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("training (oracle): 100%")
    assert "64/64" in last
    assert "image/s, loss=" in last
    assert "held_out=" in last


def test_tensorboard_has_the_log_and_the_samples(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {**small, "images": 96, "method": "oracle", "validation_scans": 3, "preview": 48, "tensorboard": True}
    config = TrainConfig(store=store_path, out=tmp_path / "run", **options)
    train(config, progress=False)
    records = log(tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "gradient", "rate", "held_out", "chi_square"):
        told = {record["images"]: record[name] for record in records if name in record}
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx(told, rel=1e-6), name
    assert [image.step for image in events.Images("samples")] == [48, 96]
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (128, 16)


def test_tensorboard_that_is_not_there(
    store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="oracle", tensorboard=True, **small)
    with pytest.raises(ConfigError, match="tensorboard needs the package of that name: pip install tensorboard"):
        train(config, progress=False)


def test_the_curve_of_held_out_rows_is_beside_the_loss() -> None:
    records: list[dict[str, Any]] = [{"images": 64 * k, "loss": 1 / (1 + k)} for k in range(100)]
    for k in range(0, 100, 20):
        records[k]["held_out"] = 0.5 - k / 1000
    figure = training_curve(records)
    figure.canvas.draw()
    loss, looks = figure.axes
    assert len(loss.lines[0].get_xdata()) == 100
    assert list(looks.lines[0].get_xdata()) == [64 * k for k in range(0, 100, 20)]
    assert list(looks.lines[0].get_ydata()) == [0.5 - k / 1000 for k in range(0, 100, 20)]
    assert len(training_curve([{"images": 1, "loss": 1.0}]).axes) == 1
