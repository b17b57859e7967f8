r"""Guidance: posterior methods that follow the gradient of the data misfit of the denoised image.

.. math:: D_y = D + s^2 \, J^T A^H w \, (y - A D), \qquad J = \partial D / \partial x_s

is what Tweedie's formula makes of the likelihood :math:`\log p(y | x_s) \approx -\tfrac w2 \|y - A D(x_s)\|^2`. The
methods differ in the weight :math:`w`, which says how far the data of the true image may be from those of the denoised
one:

- `ADPS`, :math:`w = \zeta / (s^2 + \sigma_y^2)`: the denoised image is off by about :math:`s` (ambient diffusion
  posterior sampling, Aali et al. 2025, arXiv:2403.08728, whose network sees the state through a fixed
  further-corrupted operator, `ambient_sci.posterior.ambient.FixedMask`).
- `DPS`, :math:`w = \zeta \sqrt m / (s \, \|y - A D\|)` with :math:`m` measured real numbers: the gradient of the misfit
  itself, not of its square, as published (diffusion posterior sampling, Chung et al. 2023, arXiv:2209.14687).

The published methods take a gradient step of fixed length at each of about a thousand steps of the sampler; here the
pull is in proportion to the noise level, so that it does not depend on how many steps are taken. Both ignore how
uncertain the denoised image is along which direction, which MMPS solves for: spreads are approximate.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.operators.solve import dot

__all__ = ["ADPS", "DPS", "Guided"]


class Guided(Denoiser):
    """Posterior denoiser by guidance with the gradient of the data misfit.

    Parameters
    ----------
    denoiser
        Prior denoiser; for `ADPS` usually `FixedMask` around an ambient network.
    measurement
        The scans; one for each image of the batch.
    guidance
        Strength of the pull, zeta; 1 is what the weights above say by themselves.
    """

    def __init__(self, denoiser: Denoiser, measurement: Measurement, guidance: float = 1.0) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.measurement = measurement
        self.guidance = guidance

    @abstractmethod
    def weight(self, residual: Tensor, level: Tensor) -> Tensor:
        """Tell the weight of residuals ``(batch, *measurement)`` at noise levels ``(batch, 1, ...)``, shaped alike."""

    def parts(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Denoised image, pull towards the data and residual, each for itself."""
        operator, y = self.measurement.operator, self.measurement.y
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser(x, sigma)
        residual = (y - operator(mean.detach())) * operator.rows
        weight = self.weight(residual, per_image(sigma, y))
        pull = torch.autograd.grad(mean, x, operator.adjoint(weight * residual))[0]
        return mean.detach(), self.guidance * per_image(sigma, x) ** 2 * pull, residual

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise given the measurement; see `Denoiser`."""
        mean, pull, _ = self.parts(x, sigma)
        return mean + pull


class ADPS(Guided):
    """Guidance with the variance of noise and level together (A-DPS); see `Guided` for its arguments."""

    def weight(self, residual: Tensor, level: Tensor) -> Tensor:
        """See `Guided.weight`."""
        return 1 / (level**2 + self.measurement.noise**2)


class DPS(Guided):
    """Guidance in units of the misfit (DPS); see `Guided` for its arguments."""

    def weight(self, residual: Tensor, level: Tensor) -> Tensor:
        """See `Guided.weight`."""
        rows = self.measurement.operator.rows.expand(residual.shape).flatten(1).sum(1)
        count = per_image(rows, residual) * (2 if residual.is_complex() else 1)
        tiny = torch.finfo(level.dtype).tiny
        return (count / dot(residual, residual).clamp_min(tiny)).sqrt() / level
