r"""Proximal methods: the denoised image is brought to agree with the data, as if its error were white.

.. math:: D_y = \arg\min_x \tfrac{1}{2 v} \|x - D\|^2 + \tfrac{1}{2 \sigma^2} \|y - A x\|^2

is `condition` with the covariance :math:`V = v`, whatever the denoiser says about its own errors. No derivative of the
denoiser is needed, which makes these the cheapest methods; means and spreads are approximate, since errors along
directions that the denoiser knows well count as much as those along others.

- `DiffPIR`, :math:`v = s^2 / \lambda` and the noise of the measurement (Zhu et al. 2023, arXiv:2305.08995).
- `DDS`, :math:`v = \gamma` and noise of unit variance at all levels, by few conjugate gradient iterations (decomposed
  diffusion sampling, Chung et al. 2024, arXiv:2303.05754, eq. 22): what was measured is believed.
"""

from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.condition import condition

__all__ = ["DDS", "DiffPIR"]


class DiffPIR(Denoiser):
    r"""Posterior denoiser by a proximal step with the level's own variance.

    Parameters
    ----------
    denoiser
        Prior denoiser.
    measurement
        The scans; one for each image of the batch.
    regularisation
        How many times better than the noisy one the denoised image is believed to be, :math:`\lambda`.
    iterations, tolerance
        See `ambient_sci.posterior.condition.condition`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        regularisation: float = 7.0,
        iterations: int = 20,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.measurement = measurement
        self.regularisation = regularisation
        self.iterations = iterations
        self.tolerance = tolerance

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise given the measurement; see `Denoiser`."""
        m, spread = self.measurement, per_image(sigma, x) ** 2 / self.regularisation
        mean = self.denoiser(x, sigma)
        return condition(mean, lambda v: spread * v, m.operator, m.y, m.noise**2, self.iterations, self.tolerance)


class DDS(Denoiser):
    r"""Posterior denoiser by conjugate gradients on the data term.

    Parameters
    ----------
    denoiser
        Prior denoiser.
    measurement
        The scans; one for each image of the batch.
    strength
        Weight of the data against the denoised image, :math:`\gamma`.
    iterations
        Conjugate gradient iterations.
    """

    def __init__(
        self, denoiser: Denoiser, measurement: Measurement, strength: float = 5.0, iterations: int = 5
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.measurement = measurement
        self.strength = strength
        self.iterations = iterations

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise given the measurement; see `Denoiser`."""
        m = self.measurement
        mean, unit = self.denoiser(x, sigma), m.noise.new_ones(())
        return condition(mean, lambda v: self.strength * v, m.operator, m.y, unit, self.iterations, 0.0)
