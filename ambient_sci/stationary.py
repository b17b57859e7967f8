r"""Stationary Gaussian images: a spectrum, fitted to measurements, and what follows from it in closed form.

.. math:: x_0 = \mu + F^H S^{1/2} w, \qquad w \sim \mathcal N(0, 1) \text{ per real component}

with the orthonormal Fourier transform :math:`F` over the spatial axes and the power :math:`S` of each frequency. It is
what is known of images before anything of their structure is: how much power there is at which scale. Expectation-
maximisation finds it from incomplete, noisy measurements (Dempster, Laird and Rubin 1977, J. R. Stat. Soc. B 39:1);
the posterior of a scan under it is Gaussian, and perturbing and solving draws from it exactly,

.. math:: (L^H A^H W A L + 1) \, z = L^H A^H W (y + \sigma_y e - A \mu) + F w, \qquad x = \mu + L z, \; L = F^H S^{1/2},

with :math:`W = 1 / \sigma_y^2` (Papandreou and Yuille 2010, NeurIPS). Power falls by orders of magnitude from coarse to
fine, and the eigenvalues of the system with it. It is solved in :math:`u = (1 + q S)^{1/2} z`, with :math:`q` the mean
eigenvalue of :math:`A^H W A`: conjugate gradients would else come to fine structures last, and stop before.

Shapes: images ``(batch, channel, *spatial)``, real or complex; spectra ``(1, channel, *spatial)``, power per real
component. The mean of complex images is zero, since their phase is arbitrary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ambient_sci.baselines.linear import weights
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators.solve import conjugate_gradient

__all__ = ["StationaryGaussian", "fit_stationary"]

NOISE_FLOOR = 0.01  # of unit range: noiseless measurements would make the system singular
POWER_FLOOR = 1e-8  # of the largest


@dataclass(frozen=True)
class StationaryGaussian:
    """A Gaussian distribution of images.

    Parameters
    ----------
    mean
        One image, ``(1, channel, *spatial)``.
    power
        Power per frequency and real component, ``(1, channel, *spatial)``, real; zero frequency first.
    """

    mean: Tensor
    power: Tensor

    def colour(self, white: Tensor) -> Tensor:
        """Give white images the spectrum: :math:`F^H S^{1/2} F w`."""
        return filtered(white, self.power.sqrt())

    def sample(self, m: Measurement, generator: torch.Generator, iterations: int = 12) -> Tensor:
        """Draw one image of every scan from its posterior, ``(batch, channel, *spatial)``."""
        noise = m.noise.clamp_min(NOISE_FLOOR)
        A, weight = m.operator, m.operator.rows / noise**2
        white = randn_like(self.mean.expand(len(m), *self.mean.shape[1:]).contiguous(), generator)
        residual = m.y + noise * randn_like(m.y, generator) - A(self.mean.expand_as(white))
        flat = noise**-2 if weights(m) is None else None

        def gram(image: Tensor) -> Tensor:
            if flat is None:
                return A.adjoint(weight * A(image))
            return flat.reshape(-1, *[1] * (image.ndim - 1)) * A.gram(image)

        # mean eigenvalue of the gram, as white noise finds it
        share = (white.conj() * gram(white)).real.flatten(1).sum(1) / white.abs().square().flatten(1).sum(1)
        scale = torch.rsqrt(1 + share.reshape(-1, *[1] * (white.ndim - 1)) * self.power)
        colour = scale * self.power.sqrt()

        def normal(u: Tensor) -> Tensor:
            back = forward(gram(backward(colour * u, white)))
            return colour * back + scale**2 * u

        rhs = colour * forward(A.adjoint(weight * residual)) + scale * forward(white)
        # where nothing is measured the solution is the white image itself
        u = conjugate_gradient(normal, rhs, start=forward(white) / scale, iterations=iterations)
        return self.mean + backward(colour * u, white)


def fit_stationary(m: Measurement, iterations: int = 12, seed: int = 0) -> StationaryGaussian:
    """Find mean and spectrum by expectation-maximisation with one posterior sample of every scan a step.

    Parameters
    ----------
    m
        Scans, some tens or more, of operators that differ.
    iterations
        Steps; what is measured in a part :math:`q` of the scans is found at the rate :math:`(1 - q)^k`.
    seed
        Of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    image = m.operator.adjoint(m.y)
    # the spectrum of what was measured has the right slope, which takes many steps to find where noise outweighs power;
    # its level is that of which as much would be measured
    result = StationaryGaussian(torch.zeros_like(image[:1]), spectrum(image))
    again = m.operator(result.colour(randn_like(image, generator)))
    noise = (m.noise**2 * m.operator.rows).expand(m.y.shape).sum() * (2 if m.y.is_complex() else 1)
    level = (m.y.abs().square().sum() - noise).clamp_min(0) / again.abs().square().sum()
    result = replace(result, power=(level * result.power).clamp_min(POWER_FLOOR * float(level * result.power.max())))
    for _ in range(iterations):
        x = result.sample(m, generator)
        mean = torch.zeros_like(result.mean) if x.is_complex() else x.mean(0, keepdim=True)
        result = StationaryGaussian(mean, spectrum(x - mean))
    return result


def spectrum(images: Tensor) -> Tensor:
    """Mean power of each frequency per real component, ``(1, channel, *spatial)``; zero frequency first."""
    power: Tensor = forward(images).abs().square().mean(0, keepdim=True)
    power = power / 2 if images.is_complex() else power
    return power.clamp_min(POWER_FLOOR * float(power.max()))


def filtered(images: Tensor, gain: Tensor) -> Tensor:
    """Multiply each frequency, zero first, with a gain."""
    return backward(gain * forward(images), images)


def forward(images: Tensor) -> Tensor:
    """Fourier transform over the spatial axes, orthonormal, zero frequency first."""
    result: Tensor = torch.fft.fftn(images, dim=tuple(range(2, images.ndim)), norm="ortho")
    return result


def backward(values: Tensor, like: Tensor) -> Tensor:
    """Inverse of `forward`, for images of the type of ``like``."""
    result: Tensor = torch.fft.ifftn(values, dim=tuple(range(2, values.ndim)), norm="ortho")
    return result if like.is_complex() else result.real
