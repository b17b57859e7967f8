"""Images that a prior draws by itself: kept with the run, and how far they are from the clean ones."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_sci import open_store
from ambient_sci.errors import DataError
from ambient_sci.operators import LinearOperator
from ambient_sci.plot import samples_grid
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.prior import Prior
from benchmarks.learning.distances import sample_scores
from benchmarks.learning.laws import LAWS, law_distances, law_scores
from benchmarks.learning.tasks import Frozen

__all__ = ["can_sample", "clean_images", "draw", "drawn_scores"]

DRAWN, BATCH, STEPS = 512, 64, 16  # images, images at a time, steps of Heun's method


def can_sample(prior: Prior, operator: LinearOperator) -> bool:
    """Whether a prior can be sampled from: an ambient one cannot where image noise is no noise of a measurement."""
    if not isinstance(prior.denoiser, AmbientDenoiser):
        return True
    generator, blank = torch.Generator(), torch.zeros(1, *prior.image_shape, dtype=prior.dtype)
    try:
        operator[:1].thin(prior.config.thinning, generator).lift(blank, generator)
    except DataError:
        return False
    return True


def draw(prior: Prior, store: Path, count: int, steps: int) -> Tensor:
    """Draw images, ``(count, channel, height, width)``; an ambient prior sees them through operators of its store."""
    scans = open_store(store)
    parts = []
    for first in range(0, count, BATCH):
        number = min(BATCH, count - first)
        operator = None
        if isinstance(prior.denoiser, AmbientDenoiser):
            operator = scans.read(np.arange(first, first + number) % len(scans)).operator.to(prior.device)
        parts.append(prior.sample(number, steps, seed=first, operator=operator).cpu())
    return torch.cat(parts)


def clean_images(store: Path) -> Tensor:
    """Read references in the units in which priors are learned, ``(n, channel, height, width)``."""
    scans = open_store(store)
    return scans.references(slice(None)) / torch.from_numpy(scans.scale).float().reshape(-1, 1, 1, 1)


def drawn_scores(prior: Prior, frozen: Frozen, run: Path) -> dict[str, float]:
    """Draw images into ``samples.npz`` and ``samples.png`` of the run, and score them against clean ones or the law."""
    dataset = frozen.task.dataset
    scores = law_scores(prior, frozen.test, LAWS[dataset]) if dataset in LAWS else {}
    if not can_sample(prior, open_store(frozen.train).read([0]).operator):
        return scores
    images = draw(prior, frozen.train, DRAWN, STEPS)
    np.savez_compressed(run / "samples.npz", samples=images)
    samples_grid(images[:48], columns=12).savefig(run / "samples.png")
    if dataset in LAWS:
        return scores | law_distances(images, LAWS[dataset])
    return sample_scores(images, clean_images(frozen.clean), dataset)
