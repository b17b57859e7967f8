r"""The ordinary denoising objective, on images.

.. math:: L = \lambda(s) \, \| D(x_0 + s n, s) - x_0 \|^2 / n_\text{pixels}, \qquad \lambda(s) = 1/s^2 + 1/\sigma_d^2

(Karras et al. 2022, arXiv:2206.00364). Its images come from references (simulation only) or from reconstructions:
posterior samples of the measurements make it the M-step of expectation-maximisation.
"""

from collections.abc import Callable

from torch import Tensor

from ambient_sci.denoise import Denoiser, per_image

__all__ = ["denoising_loss", "mean_square"]


def mean_square(error: Tensor) -> Tensor:
    """Mean square of the errors of each image, ``(batch,)``."""
    return error.abs().square().flatten(1).mean(1)


def denoising_loss(
    denoiser: Denoiser,
    images: Tensor,
    sigma: Tensor,
    sigma_data: float,
    noise: Tensor,
    target: Tensor | None = None,
    norm: Callable[[Tensor], Tensor] = mean_square,
) -> Tensor:
    """Loss per image, ``(batch,)``.

    Parameters
    ----------
    denoiser
        The denoiser in training.
    images
        Clean images or posterior samples, ``(batch, channel, *spatial)``.
    sigma
        Noise level of each image, ``(batch,)``.
    sigma_data
        Standard deviation of the images per real component.
    noise
        White noise of unit variance per real component, like ``images``.
    target
        What the denoiser should make of them, like ``images``; by default the images.
    norm
        Takes errors, like ``images``, to the square of their norm over the number of pixels, ``(batch,)``.
    """
    error: Tensor = denoiser(images + per_image(sigma, images) * noise, sigma) - (images if target is None else target)
    weight = 1 / sigma**2 + 1 / sigma_data**2
    return weight * norm(error)
