r"""Samplers: from white noise to an image, through a denoiser.

A sampler walks down the noise levels :math:`s_0 > s_1 > \dots > s_N = 0`. From level ``s`` to ``t`` it moves along the
probability flow, and with :math:`\eta > 0` renews part of the noise:

.. math:: x_t = D + \frac{t_\downarrow}{s} (x_s - D) + t_\uparrow n, \qquad
          t_\uparrow^2 = \eta^2 t^2 (1 - t^2 / s^2), \quad t_\downarrow^2 = t^2 - t_\uparrow^2

:math:`\eta = 0` is Euler's method for the flow (DDIM, Song et al. 2021, arXiv:2010.02502), :math:`\eta = 1` ancestral
sampling. With ``heun`` the step's slope is averaged over both ends (Karras et al. 2022, arXiv:2206.00364), at twice the
evaluations. Posterior methods are denoisers too (`ambient_sci.posterior`): the same samplers run them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.denoise import Denoiser
from ambient_sci.errors import ConfigError

__all__ = ["Noise", "Solver", "sample"]

Solver = Literal["euler", "heun"]
Noise = Callable[[int], Tensor]


def sample(
    denoiser: Denoiser,
    noise: Noise,
    levels: Tensor,
    solver: Solver = "heun",
    eta: float = 0.0,
    start: Tensor | None = None,
    progress: str | None = None,
) -> Tensor:
    """Draw images.

    Parameters
    ----------
    denoiser
        Prior or posterior denoiser.
    noise
        ``noise(k)`` returns white noise ``(batch, channel, *spatial)`` of unit variance per real component for step
        ``k``; step 0 is the initial state. A function of scan and sample numbers makes results independent of batching.
    levels
        Decreasing noise levels ending with zero, ``(steps + 1,)``; see `ambient_sci.schedule.edm_levels`.
    solver
        ``"euler"`` or ``"heun"`` (second order, twice the evaluations).
    eta
        Share of the noise that is renewed at each step, 0 to 1; needs ``solver="euler"``.
    start
        Where to start from instead of nothing: images to which noise of the first level is added.
    progress
        Label of a progress bar; none by default.

    Returns
    -------
    Tensor
        Images ``(batch, channel, *spatial)``.

    References
    ----------
    Karras et al. 2022, Elucidating the design space of diffusion-based generative models, arXiv:2206.00364.
    """
    if solver not in ("euler", "heun"):
        raise ConfigError(f"solver must be 'euler' or 'heun', got {solver!r}")
    if not 0 <= eta <= 1 or (eta > 0 and solver == "heun"):
        raise ConfigError(f"eta must be 0 to 1, and 0 with solver 'heun', got {eta} with {solver!r}")
    steps = [float(level) for level in levels]
    x = steps[0] * noise(0)
    if start is not None:
        x = x + start
    for k, (s, t) in enumerate(tqdm(list(pairwise(steps)), desc=progress, disable=progress is None)):
        denoised = _evaluate(denoiser, x, s)
        up = eta * t * (1 - (t / s) ** 2) ** 0.5
        down = (t**2 - up**2) ** 0.5
        moved = denoised + (down / s) * (x - denoised)
        if solver == "heun" and t > 0:
            slope = (x - denoised) / s + (moved - _evaluate(denoiser, moved, t)) / t
            moved = x + (t - s) * slope / 2
        x = moved + up * noise(k + 1) if up > 0 else moved
    return x


def _evaluate(denoiser: Denoiser, x: Tensor, level: float) -> Tensor:
    sigma = torch.full((x.shape[0],), level, dtype=x.real.dtype, device=x.device)
    with torch.no_grad():
        result: Tensor = denoiser(x, sigma)
    return result
