"""Methods that learning from measurements is compared with, and what any training can be mixed with or begin from."""

import dataclasses
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ambient_sci.baselines import l1_wavelet_batch, total_variation_batch, tune_held_out
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store, simulate
from ambient_sci.errors import ConfigError, NotFoundError
from ambient_sci.measurement import Measurement
from ambient_sci.methods import METHODS
from ambient_sci.methods.base import ImageLearner
from ambient_sci.methods.em import EMLearner
from ambient_sci.methods.gan import AmbientGANLearner
from ambient_sci.methods.starts import REGULARISATIONS, regularisation
from ambient_sci.posterior.ambient import restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import build_denoiser, load_prior
from ambient_sci.training import train
from ambient_sci.warm_start import earlier_options, warm_start

EXACT = "donot_use_mm_for_euclid_dist"


class Gated(nn.Module):
    """A network of 4 x 4 images with other weights for pixels that are missing than for those that are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.seen, self.missing = nn.Linear(64, 16), nn.Linear(64, 16)
        for values in (*self.seen.parameters(), *self.missing.parameters()):
            nn.init.zeros_(values)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        image, _, mask = x.flatten(2).unbind(1)
        hidden = self.hidden(image)
        return (mask * self.seen(hidden) + (1 - mask) * self.missing(hidden)).reshape(-1, 1, 4, 4)


def test_naive_learns_nothing_of_what_a_scan_has_not_measured(tmp_path: Path, small: dict[str, Any]) -> None:
    """Every image is a multiple of one: what is missing follows from the rest, if the loss ever asks for it."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (100, 1, 1)) * rng.choice([-1, 1], (4, 4))
    store = simulate(images, tmp_path / "scans.zarr", operator="mask", keep=0.5, noise=0.0)
    m, truth = store.read(slice(None)), store.references(slice(None))
    options = {**small, "images": 3200, "warmup": 100, "checkpoint": 3200}
    errors = {}
    for method in ("naive", "ambient"):
        config = TrainConfig(store=store.path, out=tmp_path / method, method=method, **options)
        prior = train(config, network=Gated(), progress=False)
        missing = m.operator.rows == 0
        errors[method] = float((restore(prior.denoiser, m) - truth)[missing].norm() / truth[missing].norm())  # type: ignore[arg-type]
    assert errors["naive"] > 0.999  # that of zeros, which is where the network begins
    assert errors["ambient"] < 0.6


@pytest.mark.parametrize("method", ["l1-edm", "tv-edm"])
def test_learned_images_are_the_classical_reconstructions(method: str, store_path: Path, tmp_path: Path) -> None:
    store = open_store(store_path)
    config = TrainConfig(store=store_path, out=tmp_path, method=method, sigma_data=0.3)
    learner = METHODS[config.method](config, store, False)
    assert isinstance(learner, ImageLearner)
    images = learner.first_images()
    assert images.shape == (40, 1, 16, 16)
    restore_: Any = total_variation_batch if method == "tv-edm" else partial(l1_wavelet_batch, wavelet="haar")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the best value")
        chosen = tune_held_out(restore_, store.read(range(16)), (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1))
    torch.testing.assert_close(images[30:34], restore_(store.read(range(30, 34)), chosen), rtol=1e-3, atol=1e-4)


def gan(store: Path, out: Path, images: int) -> AmbientGANLearner:
    config = TrainConfig(
        store=store, out=out, method="ambient-gan", images=images, widths=(32, 32), sigma_data=0.3, precision="fp32"
    )
    return AmbientGANLearner(config, open_store(store), False)


def advance(learner: AmbientGANLearner, start: int, end: int) -> None:
    for seen in range(start, end, 8):
        learner.prepare(seen, None)  # type: ignore[arg-type]


def test_rows_of_large_norm_want_more_regularisation(store_path: Path) -> None:
    """The objective of ``c A`` and ``c y`` with ``c^2`` times the regularisation is the same but for a factor."""
    scans = open_store(store_path).read(slice(0, 4))
    some = Measurement(scans.y, scans.operator, scans.noise_std)
    least = regularisation(total_variation_batch, some)
    assert least == tune_held_out(total_variation_batch, some, REGULARISATIONS)
    c = 2500**0.5
    large = Measurement(c * some.y, c * some.operator, c * some.noise_std)
    assert regularisation(total_variation_batch, large) == pytest.approx(2500 * least)


def test_a_gan_that_was_stopped_goes_on_as_if_it_had_not_been(store_path: Path, tmp_path: Path) -> None:
    """Stopped in the middle of its training, and between two of its steps, which are rarer than the denoiser's."""
    whole, first, second = (gan(store_path, tmp_path, 400) for _ in range(3))
    advance(whole, 0, 296)
    advance(first, 0, 104)
    second.load({name: value.clone() for name, value in first.state().items()})
    advance(second, 104, 296)
    assert whole.steps == second.steps == 10
    state, other = whole.state(), second.state()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    images = whole.pick(torch.arange(5), torch.Generator().manual_seed(0))
    assert torch.equal(images, second.pick(torch.arange(5), torch.Generator().manual_seed(0)))
    assert images.dtype == torch.complex64
    assert images.shape == (5, 1, 16, 16)


def test_a_gan_learns_pixels_that_scans_miss(tmp_path: Path) -> None:
    """Every scan lacks half of a fixed pattern of random brightness; what is generated has all of it."""
    rng = np.random.default_rng(0)
    pattern = rng.choice([0.0, 1.0], (8, 8))
    images = pattern * rng.uniform(0.5, 1, (200, 1, 1))
    store = simulate(images, tmp_path / "scans.zarr", operator="mask", keep=0.5, noise=0.05)
    learner = gan(store.path, tmp_path, 6400)

    def error() -> float:
        drawn = learner.pick(torch.arange(200), torch.Generator().manual_seed(0))[:, 0]
        return float(np.linalg.norm(drawn.mean(0).numpy() - images.mean(0)) / np.linalg.norm(images.mean(0)))

    before = error()
    advance(learner, 0, 6400)
    assert error() < 0.25 < before


# ---------------------------------------------------------------------------------------------- a few clean images


def test_a_share_of_what_is_learned_from_is_clean(store_path: Path, tmp_path: Path) -> None:
    store = open_store(store_path)
    options: dict[str, Any] = {"store": store_path, "out": tmp_path, "method": "l1-edm", "sigma_data": 0.3}
    learner, without = (
        METHODS["l1-edm"](TrainConfig(**options, **more), store, False)
        for more in ({"clean": store_path, "clean_share": 0.25, "batch": 40}, {"batch": 40})
    )
    assert isinstance(learner, ImageLearner)
    references = store.references(slice(None)) / torch.from_numpy(store.scale).float().reshape(-1, 1, 1, 1)
    for one in (learner, without):
        one.prepare(0, None)  # type: ignore[arg-type]
    count = 0
    for k in range(50):
        batch = learner.draw(torch.Generator().manual_seed(k))
        images, chosen = batch.values[0].abs(), batch.index < 0
        count += int(chosen.sum())
        known = learner.images[batch.index[~chosen]].abs()  # type: ignore[index]
        torch.testing.assert_close(images[~chosen], known)
        nearest = torch.cdist(images[chosen].flatten(1), references.abs().flatten(1), compute_mode=EXACT).amin(1)
        assert float(nearest.max() if len(nearest) else 0) < 1e-3
    assert count / 2000 == pytest.approx(0.25, abs=0.04)  # 4 standard deviations
    assert bool((without.draw(torch.Generator().manual_seed(0)).index >= 0).all())


def test_clean_images_have_to_be_like_those_of_the_scans(
    store_path: Path, tmp_path: Path, small: dict[str, Any], blobs: Any
) -> None:
    other = simulate(blobs(4), tmp_path / "real.zarr", operator="mask", keep=0.5)
    for options, message in (
        ({"method": "em", "clean": other.path}, r"complex of shape \(1, 16, 16\): .* are real"),
        ({"method": "ambient", "clean": store_path}, "measurements alone"),
    ):
        config = TrainConfig(store=store_path, out=tmp_path / "run", **{**small, **options})
        with pytest.raises(ConfigError, match=message):
            train(config, progress=False)


# ---------------------------------------------------------------------------------- beginning with an earlier run


def test_learning_begins_with_the_weights_of_an_earlier_run(
    run_path: Path, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    earlier = load_prior(run_path, device="cpu")
    method = earlier.config.method
    options = {**small, "method": method, "start_from": run_path, "images": 16, "warmup": 100_000, "laps": 0}
    config = TrainConfig(store=store_path, out=tmp_path / "run", **options, learning_rate=1e-9)
    prior = train(config, progress=False)
    assert prior.sigma_data == earlier.sigma_data == earlier_options(run_path).sigma_data
    for ours, theirs in zip(prior.denoiser.parameters(), earlier.denoiser.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_em_begins_with_what_an_earlier_prior_makes_of_the_scans(
    run_path: Path, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    """Posterior samples, or the restorations of a network that restores."""
    earlier = load_prior(run_path, device="cpu")
    store = open_store(store_path)
    config = TrainConfig(
        store=store_path, out=tmp_path, start_from=run_path, em_power=False, **{**small, "device": "cpu"}
    )
    learner = EMLearner(config, store, False)
    learner.prepare(0, dataclasses.replace(earlier, config=config))  # training has taken over the weights
    images = learner.images
    assert images is not None
    m = store.read(slice(None))
    if earlier.config.method == "ambient":
        expected = restore(earlier.denoiser, m)  # type: ignore[arg-type]
    else:
        expected = draw_posterior(earlier, m, steps=6, iterations=config.em_iterations, seed=config.seed)[:, 0]
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-4)


def test_an_earlier_run_has_to_fit(run_path: Path, store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    kind = load_prior(run_path, device="cpu").config.method
    other = {"em": "ambient", "ambient": "l1-edm"}[kind]

    def start(**options: Any) -> None:
        config = TrainConfig(store=store_path, out=tmp_path / "run", **{**small, "start_from": run_path, **options})
        train(config, progress=False)

    with pytest.raises(ConfigError, match=f"{other!r} cannot start from a run of method {kind!r}.*em can"):
        start(method=other)
    with pytest.raises(ConfigError, match=r"the same widths, blocks and patch as there \(\(32, 32\), 1, 4\)"):
        start(method=kind, widths=(64, 64))
    with pytest.raises(NotFoundError, match="no run at"):
        start(start_from=tmp_path / "nowhere")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_em_after_a_run_that_restores_has_weights_of_its_own(
    run_path: Path, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path, start_from=run_path, **{**small, "sigma_data": 0.3})
    new = build_denoiser(config, (1, 16, 16), True)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    warm_start(new, config)
    same = all(torch.equal(value, before[name]) for name, value in new.state_dict().items())
    assert same == (load_prior(run_path, device="cpu").config.method == "ambient")
