"""Made-up images: what photographs have in common, and what expectation-maximisation starts from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci.config import TrainConfig
from ambient_sci.datasets import Store, open_store, simulate
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.methods.base import Batch
from ambient_sci.methods.clean import CLEAN
from ambient_sci.methods.em import EMLearner, lap_starts
from ambient_sci.methods.leaves import dead_leaves, leaves_like, mirrored, smooth_phases
from ambient_sci.prior import Prior, build_denoiser
from ambient_sci.steps import check_step
from ambient_sci.training import train


def test_an_image_depends_on_seed_and_number_alone() -> None:
    images = dead_leaves(6, (24, 40), seed=3)
    assert images.shape == (6, 24, 40)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images[:2], dead_leaves(2, (24, 40), seed=3))
    assert not torch.equal(images, dead_leaves(6, (24, 40), seed=4))
    assert len(torch.unique(images.flatten(1), dim=0)) == 6


def test_power_falls_as_that_of_photographs() -> None:
    """As about the second power of the frequency (Field 1987, J. Opt. Soc. Am. A 4:2379), as far as photographs do."""
    images = dead_leaves(96, (64, 64)).double()
    window = torch.hann_window(64, periodic=True, dtype=torch.float64)
    images = (images - images.mean((1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(images).abs().square().mean(0)
    cycles = 64 * torch.fft.fftfreq(64, dtype=torch.float64)
    radius = torch.hypot(cycles, cycles[:, None])
    rings = torch.tensor([3.0, 5, 8, 12, 18])
    level = torch.stack([power[(radius - ring).abs() < 1].mean() for ring in rings])
    slope = np.polyfit(rings.log(), level.log(), 1)[0]
    assert -3.2 < slope < -1.6


def test_edges_are_sharp() -> None:
    """Most pixels are as their neighbours, some are very different: kurtosis of differences far above Gaussian 3."""
    step = dead_leaves(64, (48, 48)).diff(dim=-1).flatten()
    assert step.pow(4).mean() / step.square().mean() ** 2 > 10
    assert (step.abs() < 0.02).float().mean() > 0.6


def test_phases_are_smooth() -> None:
    phases = smooth_phases(32, (48, 64), seed=1)
    assert phases.shape == (32, 48, 64)
    assert torch.allclose(phases.abs(), torch.ones(()))
    turns = (phases[..., 1:] * phases[..., :-1].conj()).angle().abs()
    assert turns.median() < 0.1
    assert turns.max() < 2
    assert torch.view_as_real(phases.mean((1, 2))).std(0).min() > 0.2  # no direction is preferred
    assert torch.equal(phases[:3], smooth_phases(3, (48, 64), seed=1))


def test_mirrored_moves_pixels_and_no_more() -> None:
    images = torch.arange(32.0).reshape(1, 2, 4, 4).repeat(200, 1, 1, 1)
    turned = mirrored(images, torch.Generator().manual_seed(0))
    kinds = torch.unique(turned.flatten(1), dim=0)
    assert len(kinds) == 8  # of a square
    assert torch.equal(kinds.reshape(8, 2, 16).sort(-1).values, images[:8].reshape(8, 2, 16))
    wide = torch.arange(8.0).reshape(1, 1, 2, 4).repeat(100, 1, 1, 1)
    assert len(torch.unique(mirrored(wide, torch.Generator().manual_seed(0)).flatten(1), dim=0)) == 4


@pytest.mark.parametrize("operator", ["sense", "mask"])
def test_they_are_like_the_images_of_a_store(tmp_path: Path, operator: str) -> None:
    images = np.random.default_rng(0).random((4, 16, 12))
    store = simulate(images, tmp_path / "scans.zarr", operator=operator, coils=4, acceleration=2, calibration=2)
    made = leaves_like(store, 24)
    assert made.shape == (24, *store.image_shape)
    assert made.is_complex() == store.is_complex
    parts = torch.view_as_real(made) if made.is_complex() else made
    assert float(parts.std()) == pytest.approx(1)
    bright = made.abs().flatten(1).quantile(0.99, dim=1)
    assert torch.allclose(bright, bright[0].expand(24), rtol=1e-4)


def test_volumes_are_refused(tmp_path: Path) -> None:
    store = simulate(np.random.default_rng(0).random((2, 6, 8, 8)), tmp_path / "scans.zarr", operator="mask")
    with pytest.raises(ConfigError, match=r"2-D images.*\(6, 8, 8\)"):
        leaves_like(store, 24)


def _learner(store: Store, out: Path, small: dict[str, Any]) -> tuple[EMLearner, Prior]:
    options = {**small, "em_start": "leaves", "laps": 2, "sigma_data": 0.3}
    config = TrainConfig(store=store.path, out=out, **options)
    denoiser = build_denoiser(config, store.image_shape, store.is_complex).eval().requires_grad_(False)
    return EMLearner(config, store, False), Prior(denoiser, store.image_shape, store.is_complex, config, {}, 0)


def test_a_training_starts_from_them_and_goes_on_with_samples(
    store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    store, generator = open_store(store_path), torch.Generator().manual_seed(0)
    learner, prior = _learner(store, tmp_path, small)

    def brightest(images: Tensor) -> Tensor:  # whichever way they are turned and mirrored
        return images.abs().flatten(1).max(1).values

    learner.prepare(0, prior)
    made = brightest(leaves_like(store, lap_starts(learner.config)[0], learner.config.seed) * 0.3)
    batch = learner.draw(generator)
    assert (batch.index == CLEAN).all()  # of no scan
    assert torch.isclose(brightest(batch.values[0])[:, None], made, rtol=1e-5).any(1).all()
    learner.prepare(lap_starts(learner.config)[0], prior)
    assert learner.images is not None
    batch = learner.draw(generator)
    assert torch.allclose(brightest(batch.values[0]), brightest(learner.images[batch.index]))


@pytest.mark.parametrize("lap", [False, True])
def test_a_run_that_was_interrupted_goes_on_with_the_same_images(
    store_path: Path, tmp_path: Path, small: dict[str, Any], lap: bool
) -> None:
    store = open_store(store_path)
    first, prior = _learner(store, tmp_path, small)
    seen = lap_starts(first.config)[0] if lap else 16
    first.prepare(0, prior)
    first.prepare(seen, prior)
    again = _learner(store, tmp_path, small)[0]
    again.load(first.state())
    again.prepare(seen, prior)
    first.order(seen)
    values = [learner.draw(torch.Generator().manual_seed(1)).values[0] for learner in (first, again)]
    assert torch.equal(*values)


@pytest.mark.parametrize("laps", [0, 1])
def test_without_a_lap_nothing_is_learned_from_scans(
    tmp_path: Path, small: dict[str, Any], blobs: Any, laps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if laps == 0:  # nor are they reconstructed for nothing
        monkeypatch.delattr("ambient_sci.methods.em.starting_images")
    priors = []
    for seed in (0, 1):
        store = simulate(blobs(16, seed=seed), tmp_path / f"{seed}.zarr", acceleration=2, calibration=4, coils=3)
        options = {**small, "em_start": "leaves", "laps": laps, "sigma_data": 0.3}
        priors.append(train(TrainConfig(store=store.path, out=tmp_path / f"run-{seed}", **options), progress=False))
    first, second = (prior.denoiser.state_dict() for prior in priors)
    assert all(torch.equal(first[name], second[name]) for name in first) == (laps == 0)


def test_they_are_for_a_new_network(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    options = {**small, "store": store_path, "out": tmp_path / "run", "em_start": "leaves"}
    for earlier in ({"start_from": tmp_path / "earlier"}, {"pretrained": "owner/name"}):
        with pytest.raises(ConfigError, match="'leaves' is for a new network"):
            train(TrainConfig(**options, **earlier), progress=False)


def test_a_diverging_step_names_no_scan(tmp_path: Path, small: dict[str, Any]) -> None:
    config = TrainConfig(store=tmp_path, out=tmp_path / "run", **small)
    state: Any = SimpleNamespace(seen=16, saved=0)
    losses = torch.tensor([1.0, torch.nan])
    for index, said in (([CLEAN, CLEAN], "on images of no scan;"), ([4, 7], "on scans 7;")):
        with pytest.raises(DataError, match=said):
            check_step(losses, float("nan"), Batch(torch.tensor(index), ()), state, config)
