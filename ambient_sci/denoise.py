r"""Denoisers: posterior means under white noise.

.. math:: D(x, s) = E[x_0 \mid x_0 + s n = x], \qquad n \sim \mathcal N(0, 1) \text{ per real component}

with images ``x`` of shape ``(batch, channel, *spatial)``, real or complex, and one noise level per image,
``(batch,)``. The score of the noisy density is :math:`(D(x, s) - x) / s^2` (Tweedie), so a denoiser is all that
samplers and posterior methods need to know of a prior.

`EDMDenoiser` wraps a network with the preconditioning of Karras et al. 2022 (arXiv:2206.00364),

.. math:: D(x, s) = c_\text{skip} x + c_\text{out} F(c_\text{in} x, \tfrac14 \ln (s / \sigma_d)),

`GaussianDenoiser` and `GaussianMixtureDenoiser` are exact for such priors, and are what everything else is tested
against.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ambient_sci.network import as_complex, as_real

__all__ = ["Denoiser", "EDMDenoiser", "GaussianDenoiser", "GaussianMixtureDenoiser", "per_image"]


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """``(batch,)`` shaped to scale a batch of images."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


class Denoiser(nn.Module, ABC):
    """Posterior mean of an image given a noisy one."""

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise ``x``, ``(batch, channel, *spatial)``, at noise levels ``sigma``, ``(batch,)``."""


class EDMDenoiser(Denoiser):
    """A network with the preconditioning of Karras et al. 2022.

    Parameters
    ----------
    network
        ``network(x, label)`` on real channels (twice as many as the image's when it is complex).
    sigma_data
        Standard deviation of the images per real component.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = float(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        s, d = per_image(sigma, x), self.sigma_data
        norm = torch.sqrt(s**2 + d**2)
        residual = self.network(as_real(x / norm), torch.log(sigma / d) / 4)
        return (d / norm) ** 2 * x + (s * d / norm) * as_complex(residual, x)


class GaussianDenoiser(Denoiser):
    r"""Exact denoiser of :math:`x_0 \sim \mathcal N(\mu, \Sigma)`.

    .. math:: D(x, s) = \mu + \Sigma (\Sigma + s^2)^{-1} (x - \mu)

    Parameters
    ----------
    mean
        One image, ``(channel, *spatial)``, real or complex.
    covariance
        Covariance of each real component of the flattened image, ``(n, n)``, positive semi-definite. A complex image is
        circular: real and imaginary part are independent when the matrix is real.
    """

    mean: Tensor
    basis: Tensor
    spectrum: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        spectrum, basis = torch.linalg.eigh(covariance)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("spectrum", spectrum.clamp_min(0))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        shrink = self.spectrum / (self.spectrum + sigma[:, None] ** 2)
        basis = self.basis.to(x.dtype)
        centred = (x - self.mean).flatten(1)
        return self.mean + (((centred @ basis.conj()) * shrink) @ basis.mT).reshape(x.shape)


class GaussianMixtureDenoiser(Denoiser):
    r"""Exact denoiser of :math:`x_0 \sim \sum_k w_k \mathcal N(\mu_k, \Sigma_k)`.

    .. math:: D(x, s) = \sum_k r_k D_k(x, s), \qquad r_k \propto w_k \, \mathcal N(x; \mu_k, \Sigma_k + s^2)

    with :math:`D_k` the denoiser of each Gaussian (see `GaussianDenoiser`).

    Parameters
    ----------
    weights
        :math:`w_k`, above zero, of any sum: ``(k,)``.
    means
        ``(k, channel, *spatial)``, real or complex.
    covariances
        Of each real component of the flattened image, ``(k, n, n)``, positive semi-definite.
    """

    log_weights: Tensor
    means: Tensor
    basis: Tensor
    spectrum: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()
        spectrum, basis = torch.linalg.eigh(covariances)
        self.register_buffer("log_weights", torch.log(weights / weights.sum()))
        self.register_buffer("means", means)
        self.register_buffer("basis", basis)
        self.register_buffer("spectrum", spectrum.clamp_min(0))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        basis = self.basis.to(x.dtype)
        variance = self.spectrum + sigma[:, None, None] ** 2  # (batch, k, n)
        centred = (x[:, None] - self.means).flatten(2)
        modes = torch.einsum("bkn,knm->bkm", centred, basis.conj())
        # a complex mode has two real components of that variance each
        components = 2 if x.is_complex() else 1
        log_density = -(modes.abs() ** 2 / variance + components * variance.log()).sum(2) / 2
        share = torch.softmax(self.log_weights + log_density, 1)[..., None]  # (batch, k, 1)
        shrunk = torch.einsum("bkm,knm->bkn", modes * (self.spectrum / variance), basis)
        return (share * (self.means.flatten(1) + shrunk)).sum(1).reshape(x.shape)
