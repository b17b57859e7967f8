"""Posterior samples of a batch of scans: the one place where prior, posterior method and sampler meet."""

from typing import Literal

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.adps import ADPS
from ambient_sci.posterior.ambient import AmbientDenoiser, FixedMask
from ambient_sci.posterior.mmps import MMPS
from ambient_sci.prior import Prior
from ambient_sci.sample import Solver, sample
from ambient_sci.seeding import scan_noise, stream

__all__ = ["PosteriorMethod", "draw_posterior"]

PosteriorMethod = Literal["auto", "mmps", "adps"]


def draw_posterior(
    prior: Prior,
    measurement: Measurement,
    samples: int = 1,
    method: PosteriorMethod = "auto",
    steps: int = 32,
    iterations: int = 3,
    guidance: float = 1.0,
    solver: Solver = "euler",
    eta: float = 1.0,
    seed: int = 0,
    progress: str | None = None,
) -> Tensor:
    """Draw posterior samples, ``(batch, samples, channel, *spatial)``, in normalised units.

    Sample ``j`` of a scan depends on the seed, the scan's number and ``j`` alone, not on what else is in the batch.

    Parameters
    ----------
    prior
        A learned prior.
    measurement
        Scans in normalised units, as a store reads them.
    samples
        Samples of each scan.
    method
        ``mmps`` for ordinary denoisers, ``adps`` for ambient networks; ``auto`` takes what fits the prior.
    steps, solver, eta
        See `ambient_sci.sample.sample`.
    iterations
        MMPS: conjugate gradient iterations for each evaluation.
    guidance
        A-DPS: strength of the pull towards the data.
    seed
        Seed of the samples.
    progress
        Label of a progress bar.
    """
    shape = tuple(
        measurement.operator.adjoint(measurement.y[:1] if len(measurement.operator) == 1 else measurement.y).shape[1:]
    )
    if shape != prior.image_shape or measurement.y.is_complex() != prior.is_complex:
        raise ConfigError(
            f"the prior is one of {'complex' if prior.is_complex else 'real'} images of shape {prior.image_shape}, "
            f"the scans are of {'complex' if measurement.y.is_complex() else 'real'} images of shape {shape}"
        )
    ambient = isinstance(prior.denoiser, AmbientDenoiser)
    method = ("adps" if ambient else "mmps") if method == "auto" else method
    if ambient != (method == "adps"):
        raise ConfigError(f"method {method!r} does not go with a prior of method {prior.config.method!r}; use 'auto'")
    repeated = measurement.repeat(samples)
    labels = torch.stack([repeated.index, torch.arange(samples).repeat(len(measurement))], 1)

    if isinstance(prior.denoiser, AmbientDenoiser):
        blank = torch.zeros(1, *shape, dtype=prior.dtype, device=prior.device)
        streams = [stream(seed, *row) for row in labels.tolist()]
        seen = FixedMask.thinned(prior.denoiser, repeated.operator, blank, prior.config.thinning, streams)
        posterior: Denoiser = ADPS(seen, repeated, guidance)
        # below the measurement's own noise the network was never trained
        levels = prior.levels(steps, max(0.02 * prior.sigma_data, float(measurement.noise_std.max())))
    else:
        posterior = MMPS(prior.denoiser, repeated, iterations)
        levels = prior.levels(steps)

    def noise(k: int) -> Tensor:
        step = torch.full((len(labels), 1), k)
        return scan_noise(prior.image_shape, prior.dtype, seed, torch.cat([step, labels], 1)).to(prior.device)

    images = sample(posterior, noise, levels, solver, eta, progress=progress)
    return images.reshape(len(measurement), samples, *prior.image_shape)
