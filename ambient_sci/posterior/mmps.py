r"""Moment-matching posterior sampling (MMPS).

The density of the image given a sampler's state is approximated by a Gaussian with the denoiser's mean and covariance,

.. math:: p(x_0 \mid x_s) \approx \mathcal N(D(x_s), V), \qquad V = s^2 \, \partial D / \partial x_s,

and conditioned on the measurement (`ambient_sci.posterior.condition`). Each conjugate gradient iteration takes one
product with the Jacobian. At levels below the noise of the data the first iteration solves the system. Exact for
Gaussian priors; any operator, any diagonal noise (Rozet et al. 2024, arXiv:2405.13712).

Where data have no noise, nothing but the Jacobian says how far they may move the denoised image, and that of a learned
denoiser is at times wrong enough for the sampler to end far from any image. The approximation itself has a limit: the
covariance of :math:`\delta = V A^H v` is :math:`V A^H (\sigma_y^2 + A V A^H)^{-1} A V`, whose trace is at most
:math:`s^2 \min(m, n)` with :math:`V \le s^2`, for ``m`` measured numbers and ``n`` of the image. A correction three
times as long as that contradicts it, and is shortened to that. A denoiser that is exact hardly ever gets there.
"""

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.condition import condition

__all__ = ["MMPS"]

LONGEST = 3.0  # correction, in units of the longest root mean square that the approximation has


class MMPS(Denoiser):
    """Posterior denoiser by moment matching.

    Parameters
    ----------
    denoiser
        Prior denoiser.
    measurement
        The scans; one for each image of the batch.
    iterations
        Conjugate gradient iterations for each evaluation, at most.
    tolerance
        Residual, relative to the first one, that ends them for a scan.
    """

    def __init__(
        self, denoiser: Denoiser, measurement: Measurement, iterations: int = 3, tolerance: float = 0.0
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.measurement = measurement
        self.iterations = iterations
        self.tolerance = tolerance

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise given the measurement; see `Denoiser`."""
        m, scale = self.measurement, per_image(sigma, x) ** 2
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser(x, sigma)

        def covariance(v: Tensor) -> Tensor:
            # the Jacobian of an exact denoiser is symmetric, so that its transpose, which autograd gives, is as good
            return scale * torch.autograd.grad(mean, x, v, retain_graph=True)[0]

        rows = m.operator.rows.expand(m.y.shape).flatten(1).sum(1)
        measured = (rows * (2 if m.y.is_complex() else 1)).clamp_max(x[0].numel() * (2 if x.is_complex() else 1))
        radius = LONGEST * sigma * measured.sqrt()
        return condition(
            mean.detach(), covariance, m.operator, m.y, m.noise**2, self.iterations, self.tolerance, radius
        )
