r"""Noise levels: which a sampler visits, and which training draws.

`edm_levels` is Karras et al. 2022 (arXiv:2206.00364), eq. 5,

.. math:: s_i = \bigl(s_\max^{1/\rho} + \tfrac{i}{N-1} (s_\min^{1/\rho} - s_\max^{1/\rho})\bigr)^\rho, \quad s_N = 0,

`log_linear_levels` its limit :math:`\rho \to \infty`, in which all steps have one ratio, and `quantile_levels` are
where training was: at equal steps of the distribution of its levels, cut off at both ends. Training levels are
log-normal around the data's own scale, as those of Karras et al. are around ``sigma_data = 0.5``.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ambient_sci.errors import ConfigError

__all__ = ["Schedule", "edm_levels", "log_linear_levels", "quantile_levels", "spread_levels", "training_levels"]

Schedule = Literal["edm", "log-linear", "quantile"]
MEAN, SPREAD = -0.5, 1.4  # of the logarithm of training levels in units of sigma_data


def spread_levels(schedule: Schedule, steps: int, sigma_min: float, sigma_max: float, sigma_data: float) -> Tensor:
    """Levels by the name of their schedule, ``(steps + 1,)``."""
    if schedule == "edm":
        return edm_levels(steps, sigma_min, sigma_max)
    if schedule == "log-linear":
        return log_linear_levels(steps, sigma_min, sigma_max)
    if schedule == "quantile":
        return quantile_levels(steps, sigma_min, sigma_max, sigma_data)
    raise ConfigError(f"schedule must be {', '.join(map(repr, get_args(Schedule)))}, got {schedule!r}")


def edm_levels(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Decreasing noise levels, ``(steps + 1,)`` float64, of which the last is zero."""
    ramp = _ramp(steps, sigma_min, sigma_max)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def log_linear_levels(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels of which each is the same part of the one before, ``(steps + 1,)`` float64; the last is zero."""
    levels = sigma_max * (sigma_min / sigma_max) ** _ramp(steps, sigma_min, sigma_max)
    return torch.cat([levels, levels.new_zeros(1)])


def quantile_levels(steps: int, sigma_min: float, sigma_max: float, sigma_data: float) -> Tensor:
    """Levels between which training drew equally many, ``(steps + 1,)`` float64; the last is zero."""
    ramp = _ramp(steps, sigma_min, sigma_max)
    high, low = ((math.log(s / sigma_data) - MEAN) / SPREAD for s in (sigma_max, sigma_min))
    top, bottom = (torch.special.ndtr(torch.tensor(z, dtype=torch.float64)) for z in (high, low))
    # far above the data training hardly was, and the quantile of one is infinite
    z = torch.special.ndtri(top + ramp * (bottom - top)).clamp(low, high)
    z[0], z[-1] = high, low if steps > 1 else high
    levels = sigma_data * torch.exp(MEAN + SPREAD * z)
    return torch.cat([levels, levels.new_zeros(1)])


def _ramp(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ConfigError(
            f"needs steps >= 1 and 0 < sigma_min < sigma_max, got steps {steps}, sigma {sigma_min} to {sigma_max}"
        )
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def training_levels(
    batch: int, sigma_data: float, generator: torch.Generator, mean: float = MEAN, spread: float = SPREAD
) -> Tensor:
    """Noise levels for a batch, ``(batch,)``: ``ln(s / sigma_data)`` is normal with ``mean`` and ``spread``."""
    return sigma_data * torch.exp(mean + spread * torch.randn(batch, generator=generator))
