r"""Noise levels: which a sampler visits, and which training draws.

`edm_levels` is Karras et al. 2022 (arXiv:2206.00364), eq. 5,

.. math:: s_i = \bigl(s_\max^{1/\rho} + \tfrac{i}{N-1} (s_\min^{1/\rho} - s_\max^{1/\rho})\bigr)^\rho, \quad s_N = 0,

and training levels are log-normal around the data's own scale, as theirs are around ``sigma_data = 0.5``.
"""

import torch
from torch import Tensor

from ambient_sci.errors import ConfigError

__all__ = ["edm_levels", "training_levels"]


def edm_levels(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Decreasing noise levels, ``(steps + 1,)`` float64, of which the last is zero."""
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ConfigError(
            f"needs steps >= 1 and 0 < sigma_min < sigma_max, got steps {steps}, sigma {sigma_min} to {sigma_max}"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def training_levels(
    batch: int, sigma_data: float, generator: torch.Generator, mean: float = -0.5, spread: float = 1.4
) -> Tensor:
    """Noise levels for a batch, ``(batch,)``: ``ln(s / sigma_data)`` is normal with ``mean`` and ``spread``."""
    return sigma_data * torch.exp(mean + spread * torch.randn(batch, generator=generator))
