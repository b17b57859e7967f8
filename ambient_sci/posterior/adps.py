r"""Ambient diffusion posterior sampling (A-DPS).

An ambient network denoises the state as seen through a fixed further-corrupted operator (`FixedMask`), and the data
pull the state towards agreement with everything that was measured:

.. math:: D_y = D + \zeta \, \frac{s^2}{s^2 + \sigma_y^2} \, J^T A^H (y - A D), \qquad J = \partial D / \partial x_s

(Aali et al. 2025, arXiv:2403.08728, after diffusion posterior sampling, Chung et al. 2023, arXiv:2209.14687). The
published method takes a gradient step of fixed length at every step of the sampler; here the pull is scaled by the
noise level instead, as for a Gaussian likelihood of variance :math:`s^2 + \sigma_y^2`, so that it does not depend on
how many steps are taken. It ignores the covariance that MMPS solves for: spreads are approximate.
"""

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement

__all__ = ["ADPS"]


class ADPS(Denoiser):
    """Posterior denoiser by guidance with the gradient of the data misfit.

    Parameters
    ----------
    denoiser
        Usually `FixedMask` around an ambient network; any denoiser will do.
    measurement
        The scans; one for each image of the batch.
    guidance
        Strength of the pull; 1 is the likelihood's own.
    """

    def __init__(self, denoiser: Denoiser, measurement: Measurement, guidance: float = 1.0) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.measurement = measurement
        self.guidance = guidance

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise given the measurement; see `Denoiser`."""
        operator, y = self.measurement.operator, self.measurement.y
        level = sigma.reshape(-1, *[1] * (y.ndim - 1)) ** 2
        weight = 1 / (level + self.measurement.noise**2)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser(x, sigma)
            pull = operator.adjoint(weight * (y - operator(mean.detach())) * operator.rows)
            step = torch.autograd.grad(mean, x, pull)[0]
        result: Tensor = mean.detach() + self.guidance * per_image(sigma, x) ** 2 * step
        return result
