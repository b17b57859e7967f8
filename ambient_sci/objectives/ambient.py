r"""The ambient objective, for noisy measurements.

Given only :math:`y = A x_0 + \sigma_y e`, a network :math:`h` is shown less than was measured and asked for all of it.
Noise is added to the measurement up to the diffusion level :math:`s \ge \sigma_y`, and rows are dropped at random:

.. math:: y_s = y + \sqrt{s^2 - \sigma_y^2}\, e', \qquad \tilde A = B A, \qquad h = h(\tilde A^H y_s, \tilde A, s)

On rows of :math:`A` that are not in :math:`\tilde A` the noise of :math:`y` is independent of the input, and
:math:`\| A h - y \|^2` is unbiased. Rows in :math:`\tilde A` share their noise with the input; there

.. math:: E[y \mid y_s] = (1 - r)\, A\, E[x_0 \mid y_s] + r\, y_s, \qquad r = \sigma_y^2 / s^2

and the unbiased loss is :math:`\| (1 - r) A h + r y_s - y \|^2`. If :math:`E[A^H A \mid \tilde A]` has full rank, the
minimiser is :math:`E[x_0 \mid \tilde A, \tilde A y_s]`. At :math:`\sigma_y = 0` this is Ambient Diffusion (Daras et
al. 2023, arXiv:2305.19256); the correction on shared rows is that of Daras et al. 2024 (arXiv:2404.10177) for fully
measured images.
"""

import torch
from torch import Tensor

from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import LinearOperator
from ambient_sci.posterior.ambient import AmbientDenoiser

__all__ = ["ambient_loss", "corruption"]


def corruption(measurement: Measurement, thinning: float, generator: torch.Generator) -> tuple[Tensor, LinearOperator]:
    r"""Draw what corrupts a batch of scans further: white noise :math:`e'` like ``y``, and :math:`\tilde A`.

    Parameters
    ----------
    measurement
        A batch of scans.
    thinning
        Probability with which each measured row is hidden from the network.
    generator
        Source of both.
    """
    noise = randn_like(measurement.y, generator)
    return noise, measurement.operator.thin(thinning, generator)


def ambient_loss(
    denoiser: AmbientDenoiser, measurement: Measurement, sigma: Tensor, noise: Tensor, thinned: LinearOperator
) -> Tensor:
    """Loss per scan, ``(batch,)``.

    Parameters
    ----------
    denoiser
        The network in training: ``denoiser(y, operator, sigma)`` restores images from noisy measurements. If it takes
        them for exact, so does the loss: that of the paper, whose minimiser then also restores their noise.
    measurement
        A batch of scans, as they were measured.
    sigma
        Diffusion noise level of each scan, ``(batch,)``; raised to the measurement's own noise where it is below it.
    noise, thinned
        See `corruption`.
    """
    y, operator, own = measurement.y, measurement.operator, measurement.noise
    floor = measurement.noise_std.flatten(1).amax(1) if measurement.noise_std.ndim > 1 else measurement.noise_std
    if denoiser.exact:
        own, floor = torch.zeros_like(own), torch.zeros_like(floor)
    sigma = torch.maximum(sigma, floor)
    level = sigma.reshape(-1, *[1] * (y.ndim - 1))
    rows, shown = operator.rows, thinned.rows
    noisy = y + torch.sqrt((level**2 - own**2).clamp_min(0)) * noise * rows

    restored = denoiser(noisy * shown, thinned, sigma)
    shared = shown * own**2 / (level**2).clamp_min(torch.finfo(level.dtype).tiny)
    residual = (1 - shared) * operator(restored) + shared * noisy - y
    measured = rows.expand(y.shape).flatten(1).sum(1).clamp_min(1)
    return residual.abs().square().flatten(1).sum(1) / measured / denoiser.sigma_data**2
