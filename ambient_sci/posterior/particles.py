r"""Twisted diffusion sampling (TDS): guided particles, weighted and resampled, as an expensive reference.

A-DPS's guess of the likelihood, :math:`\tilde p(y | x_s) = \mathcal N(y; A D(x_s), s^2 + \sigma_y^2)`, twists the
prior's ancestral sampler: particles move by the kernel :math:`q` that it guides, and are weighted by what the guess got
wrong,

.. math:: w = \frac{p(x_t | x_s)}{q(x_t | x_s)} \frac{\tilde p(y | x_t)}{\tilde p(y | x_s)}, \qquad
          p, q = \mathcal N \bigl( D + \tfrac{t^2}{s^2} (x_s - D), \; t^2 (1 - t^2 / s^2) \bigr)
          \text{ with } D, D_y,

so that infinitely many draw from the posterior of the sampler's own prior, whatever was guessed (Wu et al. 2023,
arXiv:2306.17775). Finitely many do approximately; their number must grow with how much the data say. Steps are of first
order: few of them leave too little spread, as `ambient_sci.sample` has it of ancestral sampling. The lowest level
should lie below the noise of the data, since the guess takes its place.

A swarm of particles gives one sample. Shapes: ``(swarms, particles, channel, *spatial)``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.operators.solve import dot
from ambient_sci.posterior.guidance import ADPS

__all__ = ["twisted_sample"]


def twisted_sample(
    denoiser: Denoiser,
    measurement: Measurement,
    particles: int,
    noise: Callable[[int], Tensor],
    levels: Tensor,
    generators: Sequence[torch.Generator],
    progress: str | None = None,
) -> Tensor:
    """Draw one posterior sample for each scan of a batch, ``(swarms, channel, *spatial)``.

    Parameters
    ----------
    denoiser
        Prior denoiser.
    measurement
        The scans, one for each swarm.
    particles
        Size of a swarm.
    noise
        ``noise(k)`` returns white noise ``(swarms * particles, channel, *spatial)`` for step ``k``, particles of a
        swarm in a row.
    levels
        Decreasing noise levels ending with zero; see `ambient_sci.schedule`.
    generators
        Source of each swarm's resampling.
    progress
        Label of a progress bar; none by default.
    """
    guided = ADPS(denoiser, measurement.repeat(particles))
    steps = [float(level) for level in levels]
    x = steps[0] * noise(0)
    offset = torch.arange(len(generators), device=x.device)[:, None] * particles
    log_weight, guess = torch.zeros(len(generators), particles, dtype=x.real.dtype, device=x.device), None
    for k, (s, t) in enumerate(tqdm(list(pairwise(steps)), desc=progress, disable=progress is None)):
        sigma = torch.full((len(x),), s, dtype=x.real.dtype, device=x.device)
        mean, pull, residual = guided.parts(x, sigma)
        renewed = _log_density(residual, guided.weight(residual, per_image(sigma, residual))).reshape(log_weight.shape)
        log_weight = log_weight + renewed - (0 if guess is None else guess)
        share = torch.softmax(log_weight, 1)
        if t == 0:
            last = torch.cat(
                [torch.multinomial(w.cpu(), 1, generator=g) for w, g in zip(share, generators, strict=True)]
            )
            return (mean + pull)[last.to(x.device) + offset[:, 0]]
        starved = share.square().sum(1) * particles > 2  # fewer than half of the particles count
        chosen = torch.stack([_systematic(w, g) for w, g in zip(share, generators, strict=True)])
        chosen = torch.where(starved[:, None], chosen, torch.arange(particles, device=x.device))
        log_weight = torch.where(starved[:, None], 0, log_weight)
        guess = renewed.gather(1, chosen)
        index = (chosen + offset).flatten()
        x, mean, pull = x[index], mean[index], pull[index]

        up, n = t * math.sqrt(1 - (t / s) ** 2), noise(k + 1)
        moved = (1 - (t / s) ** 2) * pull
        log_weight = log_weight + _log_ratio(moved, up, n).reshape(log_weight.shape)
        x = mean + (t / s) ** 2 * (x - mean) + moved + up * n
    raise AssertionError("levels end with zero")


def _log_density(residual: Tensor, weight: Tensor) -> Tensor:
    """Of the guess, up to what all particles of a swarm share."""
    return -dot(residual, weight * residual).flatten() / 2


def _log_ratio(moved: Tensor, up: float, n: Tensor) -> Tensor:
    """Logarithm of prior over guided kernel where noise ``up n`` was added to what guidance moved."""
    return -(dot(moved, moved) / (2 * up**2) + dot(moved, n) / up).flatten()


def _systematic(share: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of the particles to keep, each about as often as its share says, ``(particles,)``."""
    count = len(share)
    places = (torch.arange(count) + torch.rand(1, generator=generator)) / count
    kept = torch.searchsorted(share.cumsum(0).cpu().double(), places.double())
    return kept.clamp_max(count - 1).to(share.device)
