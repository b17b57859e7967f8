r"""Moment-matching posterior sampling (MMPS).

The density of the image given a sampler's state is approximated by a Gaussian with the denoiser's mean and covariance,

.. math:: p(x_0 \mid x_s) \approx \mathcal N(D(x_s), V), \qquad V = s^2 \, \partial D / \partial x_s,

and conditioned on the measurement:

.. math:: E[x_0 \mid x_s, y] \approx D + V A^H v, \qquad (\sigma_y^2 + A V A^H) v = y - A D.

The solve takes a few conjugate gradient iterations in measurement space, each of them one product with the Jacobian;
the image :math:`V A^H v` is carried along, so that it costs no product more. The Jacobian of a learned denoiser is
nearly, not exactly, symmetric and positive, and conjugate gradients can run away on what it is not: a scan is left as
it is from the iteration on at which :math:`V` turns out negative or the residual has grown to three times what it
was, or has shrunk enough. At levels below the noise of the data the first iteration does that. Exact for Gaussian
priors; any operator, any diagonal noise (Rozet et al. 2024, arXiv:2405.13712).
"""

import torch
from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.operators.solve import dot

__all__ = ["MMPS"]

GROWTH = 3.0  # of the residual's norm


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
        operator, y = self.measurement.operator, self.measurement.y
        variance = self.measurement.noise**2
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.denoiser(x, sigma)
        scale = per_image(sigma, x) ** 2

        denoised: Tensor = mean.detach()
        residual = (y - operator(denoised)) * operator.rows
        direction, energy = residual, dot(residual, residual)
        limit, enough = GROWTH**2 * energy, self.tolerance**2 * energy
        active = energy > 0
        tiny = torch.finfo(energy.dtype).tiny
        for left in reversed(range(self.iterations)):
            # the Jacobian of an exact denoiser is symmetric, so that its transpose, which autograd gives, is as good
            back = operator.adjoint(direction)
            spread = scale * torch.autograd.grad(mean, x, back, retain_graph=left > 0)[0]
            image = operator(spread) + variance * direction
            alpha = energy / dot(direction, image).clamp_min(tiny)
            ahead = residual - alpha * image
            renewed = dot(ahead, ahead)
            active = active & (dot(back, spread).reshape(energy.shape) > 0) & (renewed <= limit)
            step = torch.where(active, alpha, 0)
            denoised = denoised + per_image(step, x) * spread
            active = active & (renewed > enough)
            if left == 0 or not bool(active.any()):
                break
            residual = residual - step * image
            direction = residual + torch.where(active, renewed / energy.clamp_min(tiny), 0) * direction
            energy = renewed
        return denoised
