r"""Moment-matching posterior sampling (MMPS).

The density of the image given a sampler's state is approximated by a Gaussian with the denoiser's mean and covariance,

.. math:: p(x_0 \mid x_s) \approx \mathcal N(D(x_s), V), \qquad V = s^2 \, \partial D / \partial x_s,

and conditioned on the measurement:

.. math:: E[x_0 \mid x_s, y] \approx D + V A^H v, \qquad (\sigma_y^2 + A V A^H) v = y - A D.

The solve takes a few conjugate gradient iterations in measurement space, each of them one product with the Jacobian.
Exact for Gaussian priors; any operator, any diagonal noise (Rozet et al. 2024, arXiv:2405.13712).
"""

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.operators import conjugate_gradient

__all__ = ["MMPS"]


class MMPS(Denoiser):
    """Posterior denoiser by moment matching.

    Parameters
    ----------
    denoiser
        Prior denoiser.
    measurement
        The scans; one for each image of the batch.
    iterations
        Conjugate gradient iterations for each evaluation.
    """

    def __init__(self, denoiser: Denoiser, measurement: Measurement, iterations: int = 3) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.measurement = measurement
        self.iterations = iterations

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise given the measurement; see `Denoiser`."""
        operator, y = self.measurement.operator, self.measurement.y
        variance = self.measurement.noise**2
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser(x, sigma)
        scale = per_image(sigma, x) ** 2

        def covariance(w: Tensor) -> Tensor:
            # the Jacobian of an exact denoiser is symmetric, so that its transpose, which autograd gives, is as good
            return scale * torch.autograd.grad(mean, x, w, retain_graph=True)[0]

        denoised: Tensor = mean.detach()
        with torch.no_grad():
            v = conjugate_gradient(
                lambda v: variance * v + operator(covariance(operator.adjoint(v))),
                (y - operator(denoised)) * operator.rows,
                iterations=self.iterations,
            )
            return denoised + covariance(operator.adjoint(v))
