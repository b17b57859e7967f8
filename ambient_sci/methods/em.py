r"""Expectation-maximisation: an ordinary diffusion prior from measurements alone.

The M-step trains a denoiser on images, one for every scan; the E-step draws these images anew from the posterior of
each scan under the current prior:

.. math:: x_i \sim p_\theta(x \mid y_i), \qquad
          \theta \leftarrow \arg\min \textstyle\sum_i E \| D_\theta(x_i + s n, s) - x_i \|^2

(Rozet et al. 2024, arXiv:2405.13712). It starts here from L1-wavelet reconstructions, whose regularisation is chosen by
predicting held-out measured rows, and the optimiser goes on from lap to lap. Nothing but measurements is read.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ambient_sci.baselines import l1_wavelet_batch, tune_held_out
from ambient_sci.config import TrainConfig
from ambient_sci.datasets.store import Store
from ambient_sci.distributed import share_out
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.methods.base import ImageLearner
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior

__all__ = ["EMLearner", "lap_starts", "posterior_images", "starting_images"]

CHUNK = 64
WAVELET = "haar"  # with shifted grids it leaves the least error of the orthogonal wavelets, close to total variation
REGULARISATIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # for images of unit range


class EMLearner(ImageLearner):
    """Learns from posterior samples that are drawn anew lap by lap."""

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        super().__init__(config, store, progress)
        self.laps = lap_starts(config)
        self.drawn = 0

    def first_images(self) -> Tensor:
        """L1-wavelet reconstructions."""
        return starting_images(self.store, self.progress)

    def prepare(self, seen: int, prior: Prior) -> None:
        """Draw the samples of a lap that is due."""
        super().prepare(seen, prior)
        if self.drawn < len(self.laps) and seen >= self.laps[self.drawn]:
            assert self.images is not None
            self.images = posterior_images(prior, self.store, self.images, self.drawn, self.progress)
            self.drawn += 1

    def state(self) -> dict[str, Tensor]:
        """Keep the samples, and how many laps there were."""
        return super().state() | {"drawn": torch.tensor(self.drawn)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up samples and laps of a checkpoint."""
        super().load(state)
        self.drawn = int(state["drawn"])


def lap_starts(config: TrainConfig) -> list[int]:
    """Numbers of images seen at which the posterior samples are drawn anew."""
    if config.laps == 0:
        return []
    first = config.start_images or config.images // (config.laps + 1)
    if first >= config.images:
        raise ConfigError(f"start_images must be below images, got {first} of {config.images}: no lap would follow")
    rest = (config.images - first) / config.laps
    return [round(first + lap * rest) for lap in range(config.laps)]


def starting_images(store: Store, progress: bool) -> Tensor:
    """L1-wavelet reconstructions of every scan, ``(scan, channel, *spatial)``, in normalised units."""
    some = store.read(store.groups[0].scans[:16])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the best value")  # an end of the grid is good enough to start from
        lam = tune_held_out(lambda m, lam: l1_wavelet_batch(m, lam, wavelet=WAVELET), some, REGULARISATIONS)
    return _every_scan(
        store, lambda m: l1_wavelet_batch(m, lam, wavelet=WAVELET), "L1-wavelet reconstructions to start from", progress
    )


def posterior_images(prior: Prior, store: Store, images: Tensor, lap: int, progress: bool) -> Tensor:
    """Renew the image of every scan by a posterior sample under the current prior, ``(scan, channel, *spatial)``.

    Noise of a moderate level is added to the images that there are, and taken away again given the scan: a step of a
    Markov chain whose stationary law is the posterior, at a fraction of the cost of starting from noise alone.
    """
    config = prior.config

    def draw(m: Measurement) -> Tensor:
        drawn = draw_posterior(
            prior,
            m.to(prior.device),
            steps=config.em_steps,
            iterations=config.em_iterations,
            solver="euler",  # multistep samples, of as few iterations, spread too wide: laps drift towards noise
            seed=config.seed + 1 + lap,
            start=images[m.index],
            level=config.em_level,
        )
        return drawn[:, 0].cpu()

    return _every_scan(store, draw, f"lap {lap + 1} of {config.laps}: posterior samples", progress)


def _every_scan(store: Store, restore: Callable[[Measurement], Tensor], label: str, progress: bool) -> Tensor:
    chunks = [
        group.scans[start : start + CHUNK] for group in store.groups for start in range(0, len(group.scans), CHUNK)
    ]
    first = store.read(chunks[0][:1])
    images = torch.empty(len(store), *store.image_shape, dtype=first.operator.adjoint(first.y).dtype)
    share_out(chunks, lambda scans: restore(store.read(scans)), images, label if progress else None)
    return images
