r"""Posterior samples of a batch of scans: the one place where prior, posterior method and sampler meet.

Samples come in antithetic pairs: the second of a pair sees all noise of the first with the sign turned (Hammersley and
Morton 1956, Math. Proc. Camb. Phil. Soc. 52:449). Each is a sample like any other, but what chance does to one it
undoes in the other, as far as the posterior is symmetric: the mean of a few pairs is as near to the posterior mean as
that of many more independent samples.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.ambient import AmbientDenoiser, FixedMask
from ambient_sci.posterior.guidance import ADPS, DPS
from ambient_sci.posterior.mmps import MMPS
from ambient_sci.posterior.particles import twisted_sample
from ambient_sci.posterior.proximal import DDS, DiffPIR
from ambient_sci.prior import Prior
from ambient_sci.sample import Solver, sample
from ambient_sci.schedule import Schedule
from ambient_sci.seeding import scan_noise, stream

__all__ = ["PosteriorMethod", "draw_posterior"]

PosteriorMethod = Literal["auto", "mmps", "dps", "diffpir", "dds", "tds", "adps"]


def draw_posterior(
    prior: Prior,
    measurement: Measurement,
    samples: int = 1,
    method: PosteriorMethod = "auto",
    steps: int = 32,
    iterations: int = 3,
    tolerance: float = 0.05,
    guidance: float = 1.0,
    solver: Solver = "multistep",
    eta: float = 1.0,
    seed: int = 0,
    first: int = 0,
    extrapolation: float = 1.0,
    start: Tensor | None = None,
    level: float = 10.0,
    finest: float = 0.02,
    any_size: bool = False,
    schedule: Schedule = "edm",
    particles: int = 16,
    progress: str | None = None,
) -> Tensor:
    """Draw posterior samples, ``(batch, samples, channel, *spatial)``, in normalised units.

    Sample ``j`` of a scan depends on the seed, the scan's number and ``j`` alone, not on what else is in the batch.
    Samples ``2 k`` and ``2 k + 1`` are an antithetic pair.

    Parameters
    ----------
    prior
        A learned prior.
    measurement
        Scans in normalised units, as a store reads them.
    samples
        Samples of each scan.
    method
        ``mmps``, ``dps``, ``diffpir``, ``dds`` or ``tds`` (see the modules of `ambient_sci.posterior`) for ordinary
        denoisers, ``adps`` for ambient networks; ``auto`` takes the first that fits the prior.
    steps, solver, eta, extrapolation
        See `ambient_sci.sample.sample`.
    iterations
        MMPS, DiffPIR, DDS: conjugate gradient iterations for each evaluation, at most.
    tolerance
        MMPS, DiffPIR: relative residual that ends them. It is small soon at levels below the noise of the data.
    guidance
        DPS, A-DPS: strength of the pull towards the data.
    seed
        Seed of the samples.
    first
        Number of the first sample: ``first`` 4 and two samples are the fifth and sixth of eight.
    level
        Noise that sampling starts from, in units of the prior's ``sigma_data``. It need not drown the coarsest
        structures, as it must without data: they are measured.
    finest
        Lowest noise level, in the same units: what is finer is the denoiser's mean.
    start
        Images ``(batch, channel, *spatial)`` to renew instead of starting from noise alone: noise of a lower level is
        added to them. Where they are posterior samples already, so are the results; what is coarser than the level
        stays as it was.
    any_size
        Apply the prior to images of another 2-D size than it was learned from. The network is convolutional, so it
        can; it has learned structures of a certain size in pixels, so it should only where they are about as large.
    schedule
        How noise levels are spread, see `ambient_sci.schedule.spread_levels`.
    particles
        TDS: particles for each sample, which takes as many times longer. It has a sampler of its own, to which solver,
        eta and extrapolation say nothing, and no antithetic pairs.
    progress
        Label of a progress bar.
    """
    one = measurement[0]
    image = one.operator.adjoint(one.y)
    shape = tuple(image.shape[1:])
    fits = shape == prior.image_shape or (any_size and len(shape) == 3 and shape[0] == prior.image_shape[0])
    if not fits or image.is_complex() != prior.is_complex:
        raise ConfigError(
            f"the prior is one of {'complex' if prior.is_complex else 'real'} images of shape {prior.image_shape}, "
            f"the scans are of {'complex' if image.is_complex() else 'real'} images of shape {shape}; "
            "a 2-D size can differ with any_size (--any-size), where what is seen is about as large in pixels"
        )
    ambient = isinstance(prior.denoiser, AmbientDenoiser)
    fitting = ("adps",) if ambient else get_args(PosteriorMethod)[1:-1]
    if method not in ("auto", *fitting):
        raise ConfigError(
            f"method {method!r} does not go with a prior of method {prior.config.method!r}; use 'auto' or "
            + ", ".join(map(repr, fitting))
        )
    if method == "tds" and (particles < 1 or start is not None):
        raise ConfigError(f"tds needs particles of at least 1 and no start, got particles {particles}")
    numbers = torch.arange(first, first + samples).repeat(len(measurement))
    labels = torch.stack([measurement.index.repeat_interleave(samples), numbers], 1)
    levels = prior.levels(steps, level * prior.sigma_data, finest, schedule)

    blank = torch.zeros(1, *shape, dtype=prior.dtype, device=prior.device)
    if method == "tds":
        assert not isinstance(prior.denoiser, AmbientDenoiser)
        swarms = [labels[j::samples] for j in range(samples)]
        drawn = [_tds(prior.denoiser, measurement, each, particles, blank, levels, seed, progress) for each in swarms]
        return torch.stack(drawn, 1)
    repeated = measurement.repeat(samples)
    if isinstance(prior.denoiser, AmbientDenoiser):
        streams = [stream(seed, *row) for row in labels.tolist()]
        seen = FixedMask.thinned(prior.denoiser, repeated.operator, blank, prior.config.hidden, streams)
        posterior: Denoiser = ADPS(seen, repeated, guidance)
    elif method == "dps":
        posterior = DPS(prior.denoiser, repeated, guidance)
    elif method == "diffpir":
        posterior = DiffPIR(prior.denoiser, repeated, iterations=iterations, tolerance=tolerance)
    elif method == "dds":
        posterior = DDS(prior.denoiser, repeated, iterations=iterations)
    else:
        posterior = MMPS(prior.denoiser, repeated, iterations, tolerance)

    pairs = torch.stack([labels[:, 0], labels[:, 1] // 2], 1)
    sign = per_image(1.0 - 2.0 * (labels[:, 1] % 2), blank)

    def noise(k: int) -> Tensor:
        step = torch.full((len(pairs), 1), k)
        return (sign * scan_noise(shape, prior.dtype, seed, torch.cat([step, pairs], 1))).to(prior.device)

    begin = None if start is None else start.to(prior.device).repeat_interleave(samples, 0)
    images = sample(posterior, noise, levels, solver, eta, begin, extrapolation, progress)
    return images.reshape(len(measurement), samples, *shape)


def _tds(
    denoiser: Denoiser,
    measurement: Measurement,
    labels: Tensor,
    particles: int,
    blank: Tensor,
    levels: Tensor,
    seed: int,
    progress: str | None,
) -> Tensor:
    """Draw one sample of every scan, ``labels`` (scan and sample), by a swarm for each."""
    numbers = torch.arange(particles).repeat(len(labels))[:, None]
    swarm = torch.cat([labels.repeat_interleave(particles, 0), numbers], 1)

    def noise(k: int) -> Tensor:
        step = torch.full((len(swarm), 1), k)
        return scan_noise(tuple(blank.shape[1:]), blank.dtype, seed, torch.cat([step, swarm], 1)).to(blank.device)

    streams = [stream(seed, *row) for row in labels.tolist()]
    return twisted_sample(denoiser, measurement, particles, noise, levels, streams, progress)
