r"""Expectation-maximisation: an ordinary diffusion prior from measurements alone.

The M-step trains a denoiser on images, one for every scan; the E-step draws these images anew from the posterior of
each scan under the current prior:

.. math:: x_i \sim p_\theta(x \mid y_i), \qquad
          \theta \leftarrow \arg\min \textstyle\sum_i E \| D_\theta(x_i + s n, s) - x_i \|^2

(Rozet et al. 2024, arXiv:2405.13712). It starts here from total variation reconstructions, whose regularisation is
chosen by predicting held-out measured rows, and the optimiser goes on from lap to lap. A pretrained model's posterior
samples are what it starts from if these predict such rows better. Nothing but measurements is read. What the network
learns before the first lap are these reconstructions, or made-up images (`ambient_sci.methods.leaves`).

What a lap can change is what the prior can tell better than the images that it was learned from. So the network first
takes its time on the reconstructions; samples of one that has hardly learned are noise, which the next lap learns.
Samples cost several times as much as steps, and the prior is poor at first: the first lap draws few, and each further
one more by the same factor, up to those of all scans, or as many as a lap has time to learn from. The time that
samples of fewer scans leave goes into more laps and more images.

A lap renews images down from a noise level (`posterior_images`). What is coarser than the level stays as it was, and
the reconstructions are wrong in coarse things too: the level is above what most unmeasured structures have.

A lap should leave samples that are right already as they are, in distribution. Few Euler steps take away a fifth of
their variance and more, lap after lap, and multistep ones nothing, with an exact denoiser. With a network that is
still poor it is the other way round that helps: what its noise leaves in the samples, Euler steps take away. So laps
of the first half take Euler steps, and those of the second half multistep ones. A part of their extrapolation
(``em_extrapolation``) is between the two: single samples are better then, and intervals too narrow.

Few steps, and a prior that has learned from images with too little power, leave too little in the fine half of k-space,
where the data hardly pull against it. What was measured says how much there is, and images are brought to it
(`ambient_sci.methods.power`).
"""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.baselines import total_variation_batch, tune_held_out
from ambient_sci.baselines.tuning import set_rows_aside
from ambient_sci.config import EMStart, TrainConfig
from ambient_sci.datasets.store import Store
from ambient_sci.distributed import agree, share_out
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.methods.base import Batch, ImageLearner
from ambient_sci.methods.clean import CLEAN
from ambient_sci.methods.leaves import leaves_like, mirrored
from ambient_sci.methods.power import match_power
from ambient_sci.methods.starts import TUNED, chunks_of, every_scan, regularisation, starting_images
from ambient_sci.methods.targets import DataSteps, TargetWeights, target_weights
from ambient_sci.objectives.denoising import denoising_loss, mean_square
from ambient_sci.posterior.ambient import AmbientDenoiser, restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior, load_prior
from ambient_sci.sample import Solver
from ambient_sci.seeding import rng_for
from ambient_sci.warm_start import earlier_options

__all__ = ["EMLearner", "lap_count", "lap_scans", "lap_starts", "posterior_images", "predicts_better"]

LAP = 6000  # images: a network takes so many to follow samples that have changed
START = 8000  # images before the first lap, at most: reconstructions have little to teach beyond
FEWEST = 32  # scans of a lap
TIMES = 12  # that a lap of a large store learns from each of its images
LEAVES = 1024  # made-up images; with their mirror images eight times as many
COMPARED = 4  # samples of a scan whose mean is compared with total variation
FINEST = 0.03  # level of noise below which few steps are better not spent


class EMLearner(ImageLearner):
    """Learns from posterior samples, of more scans lap by lap."""

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        super().__init__(config, store, progress)
        self.starts = lap_starts(config)
        self.drawn = 0
        self.leaves: Tensor | None = None
        self.weights: TargetWeights | None = None
        self.towards: DataSteps | None = None

    def first_images(self) -> Tensor:
        """Reconstructions to start from."""
        kind = self.config.em_start or "tv"
        if kind == "leaves" and not self.starts:
            return torch.zeros(0, *self.store.image_shape)  # nothing is learned but leaves
        images = starting_images(self.store, "tv" if kind == "leaves" else kind, self.config.seed, self.progress)
        return self._matched(images, super().scans())

    def pick(self, scans: Tensor, generator: torch.Generator) -> Tensor:
        """Images of some scans; before the first lap made-up ones instead, if training starts from these."""
        if self.leaves is None:
            return super().pick(scans, generator)
        return mirrored(self.leaves[torch.randint(len(self.leaves), scans.shape, generator=generator)], generator)

    def _batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        return super()._batch(index if self.leaves is None else torch.full_like(index, CLEAN), generator)

    def beside(self, index: Tensor, factor: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Look up the steps of targets towards the data, and the weights of errors."""
        assert self.towards is not None
        step = factor * self.towards.of(index, sigma)
        return (step,) if self.weights is None else (step, self.weights.of(index))

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Denoising loss of images, ``(batch,)``; what was measured counts more than what was filled in."""
        images, sigma, noise, step, *weights = batch.values
        norm = self.weights.norm(*weights) if self.weights is not None else mean_square
        return denoising_loss(denoiser, images, sigma, denoiser.sigma_data, noise, images + step, norm)

    def scans(self) -> NDArray[np.int64]:
        """Those that have posterior samples; before the first lap all, which have reconstructions."""
        return lap_scans(self.config, len(self.store), self.drawn - 1) if self.drawn else super().scans()

    def prepare(self, seen: int, prior: Prior) -> None:
        """Draw the samples of a lap that is due."""
        if self.images is None and self._starts_from(prior):
            self.images = self._matched(_earlier_images(prior, self.store, self.progress), super().scans())
        begins = self._order is None
        super().prepare(seen, prior)
        if begins:
            assert self.images is not None
            directed = self.images.is_complex()
            self.weights = target_weights(self.store, self.config.em_imputed, directed, self.progress)
            self.towards = DataSteps(self.store, self.images, self.progress)
        if self.config.em_start == "leaves" and self.leaves is None and not self.drawn:
            shown = self.starts[0] if self.starts else self.config.images
            made = leaves_like(self.store, min(LEAVES, shown), self.config.seed, self.progress)
            self.leaves = made * self.sigma_data
        while self.drawn < len(self.starts) and seen >= self.starts[self.drawn]:
            assert self.images is not None
            assert self.towards is not None
            drawn = posterior_images(prior, self.store, self.images, self.drawn, self.progress)
            self.drawn += 1
            self.leaves = None
            self.images = self._matched(drawn, self.scans())
            self.towards.renew(self.images, self.scans())
            self.order(seen)

    def _starts_from(self, prior: Prior) -> bool:
        """Whether the first images are those that an earlier model gives."""
        config = self.config
        if config.start_from is not None or config.em_start is not None or config.pretrained is None:
            return config.start_from is not None or config.em_start == "prior"
        better = bool(agree(int(predicts_better(prior, self.store))))
        if self.progress:
            kinds = "posterior samples of the pretrained model", "total variation reconstructions"
            first, second = kinds if better else kinds[::-1]
            tqdm.write(f"em begins with {first}: they predict held-out rows better than {second}", file=sys.stderr)
        return better

    def _matched(self, images: Tensor, scans: NDArray[np.int64]) -> Tensor:
        """Bring images of some scans to the power that was measured, unless that is not wanted."""
        return match_power(self.store, images, scans, self.progress) if self.config.em_power else images

    def state(self) -> dict[str, Tensor]:
        """Keep the samples, and the number of laps."""
        return super().state() | {"drawn": torch.tensor(self.drawn)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up samples and laps of a checkpoint."""
        super().load(state)
        self.drawn = int(state["drawn"])


def lap_starts(config: TrainConfig) -> list[int]:
    """Numbers of images seen at which laps begin."""
    count = lap_count(config)
    if count == 0:
        return []
    first = _start(config, count)
    if first >= config.images:
        raise ConfigError(f"start_images must be below images, got {first} of {config.images}: no lap would follow")
    rest = (config.images - first) / count
    return [round(first + lap * rest) for lap in range(count)]


def lap_count(config: TrainConfig) -> int:
    """Tell how many laps there are."""
    if config.laps is not None:
        return config.laps
    return max(1, round((config.images - _start(config, 1)) / LAP))


def _start(config: TrainConfig, laps: int) -> int:
    """Images before the first lap."""
    share = max(min(config.images // 4, START), min(LAP, config.images // (laps + 1)))
    return share if config.start_images is None else config.start_images


def lap_scans(config: TrainConfig, count: int, lap: int) -> NDArray[np.int64]:
    """Choose the scans that a lap draws samples of.

    A share that grows lap by lap, and all in the last lap; but of large stores only so many that a lap learns from each
    of its images `TIMES` times, and other scans from lap to lap.
    """
    laps = lap_count(config)
    share = config.em_first ** (1 - lap / (laps - 1)) if laps > 1 else 1.0
    wanted, most = round(share * count), (config.images - _start(config, laps)) // laps // TIMES
    some = min(count, max(FEWEST, config.batch, min(wanted, most)))
    first = lap * some if wanted > most else 0
    order = rng_for(config.seed, 0x6B).permutation(count)
    return np.sort(order.take(range(first, first + some), mode="wrap"))


def lap_solver(config: TrainConfig, lap: int) -> Solver:
    """Tell by which sampler the samples of a lap are drawn."""
    if config.em_solver != "mixed":
        return config.em_solver
    return "multistep" if 2 * (lap + 1) > lap_count(config) else "euler"


def posterior_images(prior: Prior, store: Store, images: Tensor, lap: int, progress: bool) -> Tensor:
    """Renew the images of a lap's scans by posterior samples under the current prior, ``(scan, channel, *spatial)``.

    Noise of a moderate level is added to the images that there are, and taken away again given the scan: a step of a
    Markov chain whose stationary law is the posterior, at a fraction of the cost of starting from noise alone.
    """
    config, solver = prior.config, lap_solver(prior.config, lap)

    def draw(m: Measurement) -> Tensor:
        drawn = draw_posterior(
            prior,
            m.to(prior.device),
            steps=config.em_steps,
            iterations=config.em_iterations,
            solver=solver,
            eta=0.0 if solver == "multistep" else 1.0,
            extrapolation=config.em_extrapolation,
            seed=config.seed + 1 + lap,
            start=images[m.index],
            level=config.em_level,
            finest=FINEST,
        )
        return drawn[:, 0].cpu()

    label = f"lap {lap + 1} of {lap_count(config)}: posterior samples"
    chunks = list(chunks_of(store, lap_scans(config, len(store), lap)))
    renewed = images.clone()  # a lap that is interrupted has not begun
    share_out(chunks, lambda scans: draw(store.read(scans)), renewed, label if progress else None)
    return renewed


def predicts_better(prior: Prior, store: Store) -> bool:
    """Whether posterior samples of a model predict rows that they have not seen better than total variation does.

    A model of other images than those that were measured gives samples that are wrong, and certain of it; networks
    learn these. The mean of a few samples of some scans is compared. Where rows cannot be set aside, the model is
    believed.
    """
    config, some = prior.config, store.read(store.groups[0].scans[:TUNED])
    try:
        set_rows_aside(some, 0.25, 0)
    except (ConfigError, DataError):
        return True
    strength = regularisation(total_variation_batch, some)

    def images(m: Measurement, kind: EMStart) -> Tensor:
        if kind == "tv":
            return total_variation_batch(m, strength)
        device = prior.device
        drawn = draw_posterior(
            prior, m.to(device), COMPARED, steps=2 * config.em_steps, iterations=config.em_iterations
        )
        return drawn.mean(1).cpu()

    kinds: tuple[EMStart, ...] = ("tv", "prior")
    return tune_held_out(images, some, kinds) == "prior"


def _earlier_images(prior: Prior, store: Store, progress: bool) -> Tensor:
    """Restore every scan by an earlier model: its restorations, or posterior samples under its weights."""
    config = prior.config
    run = config.start_from
    if run is not None and earlier_options(run).restores:
        prior = load_prior(run, str(prior.device))

    def restored(m: Measurement) -> Tensor:
        m = m.to(prior.device)
        if isinstance(prior.denoiser, AmbientDenoiser):
            return restore(prior.denoiser, m).cpu()
        drawn = draw_posterior(prior, m, steps=2 * config.em_steps, iterations=config.em_iterations, seed=config.seed)
        return drawn[:, 0].cpu()

    label = f"images by the prior of {run or config.pretrained}"
    return every_scan(store, restored, label, progress)
