r"""Networks trained with the ambient objective, and what can be drawn from them.

An ambient network is not a denoiser of images but a family of restorations, one for every way of measuring:

.. math:: h(\tilde A, y_s, s) \approx E[x_0 \mid \tilde A x_0 + s e = y_s]

`AmbientDenoiser` is that network, `restore` its direct use on a scan (one-step restoration), and `FixedMask` turns it
into a `Denoiser` by measuring the state of a sampler with one operator that is kept for the whole run: the prior
sampler of Daras et al. 2023 (arXiv:2305.19256), and what A-DPS guides. `ReconstructionGuidance`, the other sampler of
that paper, has several such views of the state agree.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.measurement import Measurement
from ambient_sci.network import as_complex, as_real
from ambient_sci.operators import LinearOperator, collate, conjugate_gradient, quick_inverse

__all__ = ["AmbientDenoiser", "FixedMask", "ReconstructionGuidance", "restore"]


class AmbientDenoiser(nn.Module):
    r"""A network conditioned on the operator, alternating with data consistency.

    Starting from :math:`x = \tilde A^H y_s`, or where its rows are not orthonormal from a few conjugate gradient
    iterations that give it an image's units and spectrum, each of a few steps applies the network and then solves

    .. math:: (\tilde A^H \tilde A + \lambda) x = \tilde A^H y_s + \lambda z, \qquad \lambda = s^2 e^a / \sigma_d^2

    with a learned :math:`a`: what was measured enters through the operator, of which a convolutional network sees
    little, and the network :math:`z` fills in the rest (Aggarwal et al. 2019, MoDL, arXiv:1712.02862).

    Parameters
    ----------
    network
        ``network(x, label)`` on real channels: the current image, what the steps start from, and the operator's
        response to a constant image, at most one, one after the other.
    sigma_data
        Standard deviation of the images per real component.
    steps
        How often network and data consistency alternate; the network's weights are shared.
    iterations
        Conjugate gradient iterations of each solve.
    exact
        Measurements are taken for exact: noise levels are those of what is added to them.
    """

    def __init__(
        self, network: nn.Module, sigma_data: float, steps: int = 1, iterations: int = 6, exact: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.exact = exact
        self.sigma_data = float(sigma_data)
        self.steps = steps
        self.iterations = iterations
        self.log_weight = nn.Parameter(torch.zeros(steps))

    def forward(self, y: Tensor, operator: LinearOperator, sigma: Tensor) -> Tensor:
        """Restore images ``(batch, channel, *spatial)`` from measurements with noise ``sigma`` ``(batch,)``."""
        adjoint = operator.adjoint(y)
        response = operator.gram(torch.ones_like(adjoint))
        s, d = per_image(sigma, adjoint), self.sigma_data
        x = first = adjoint
        if not operator.orthonormal:
            x = first = quick_inverse(operator, y, (s / d) ** 2, self.iterations)
            response = response / per_image(response.abs().flatten(1).amax(1).clamp_min(1), response)
        for step in range(self.steps):
            z = self.fill_in(x, first, response, sigma)
            weight = (s.clamp_min(1e-2 * d) / d) ** 2 * self.log_weight[step].exp()
            x = conjugate_gradient(
                lambda v, weight=weight: operator.gram(v) + weight * v,  # type: ignore[misc]
                adjoint + weight * z,
                start=z,
                iterations=self.iterations,
            )
        return x

    def fill_in(self, x: Tensor, first: Tensor, response: Tensor, sigma: Tensor) -> Tensor:
        """Apply the network to the current image, seen beside the first one and the operator's response."""
        s, d = per_image(sigma, first), self.sigma_data
        scale = torch.rsqrt(s**2 + d**2)
        label = torch.log(sigma.clamp_min(1e-3 * d) / d) / 4
        seen = torch.cat([as_real(x * scale), as_real(first * scale), as_real(response)], 1)
        return (d * scale) ** 2 * x + d * as_complex(self.network(seen, label), first)


class FixedMask(Denoiser):
    """An ambient network as a denoiser of images: the state is measured with one operator, kept throughout.

    Parameters
    ----------
    ambient
        The trained network.
    operator
        How states are measured, one operator for each image of the batch, with fewer rows than the scans have.
    missing
        Noise that the measurements have and image noise lacks (`LinearOperator.lift` of nothing), of unit variance.
    """

    def __init__(self, ambient: AmbientDenoiser, operator: LinearOperator, missing: Tensor) -> None:
        super().__init__()
        self.ambient = ambient
        self.operator = operator
        self.missing = missing

    @classmethod
    def thinned(
        cls,
        ambient: AmbientDenoiser,
        operator: LinearOperator,
        blank: Tensor,
        fraction: float,
        generators: Sequence[torch.Generator],
    ) -> "FixedMask":
        """Thin each scan's operator as training did.

        ``blank`` is an image of zeros ``(1, channel, *spatial)``. Each scan has a generator of its own, so that
        results do not depend on what else is in the batch.
        """
        thin = [operator[i].thin(fraction, generator) for i, generator in enumerate(generators)]
        missing = [one.lift(blank, generator) for one, generator in zip(thin, generators, strict=True)]
        return cls(ambient, collate(thin), torch.cat(missing))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        y = self.operator(x) + sigma.reshape(-1, *[1] * (self.missing.ndim - 1)) * self.missing
        restored: Tensor = self.ambient(y, self.operator, sigma)
        return restored


class ReconstructionGuidance(Denoiser):
    r"""Views of the state through several operators, pulled to where they agree.

    .. math:: D(x_s) = D_0 - \tfrac w2 \nabla_{x_s} \tfrac1K \sum_{k=1}^K \| D_0(x_s) - D_k(x_s) \|^2

    with :math:`D_0, \dots, D_K` the fixed-mask denoisers (Daras et al. 2023, sec. 3.3). What one operator leaves out
    another sees, so that parts of the image that no view has seen, and each makes up for itself, do not stay apart. As
    in `ambient_sci.posterior.guidance` the pull goes with the length of the sampler's steps.

    Parameters
    ----------
    views
        The denoisers, at least two; the first one is that which is followed.
    weight
        Strength of the pull, :math:`w`.
    """

    def __init__(self, views: Sequence[FixedMask], weight: float = 1.0) -> None:
        super().__init__()
        self.first, *others = views
        self.others = nn.ModuleList(others)
        self.weight = weight

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean: Tensor = self.first(x, sigma)
            apart = sum((mean - view(x, sigma)).abs().square().sum() for view in self.others) / len(self.others)
        pull = torch.autograd.grad(apart, x)[0]
        return mean.detach() - self.weight / 2 * pull


def restore(ambient: AmbientDenoiser, measurement: Measurement) -> Tensor:
    """One-step restoration, ``(batch, channel, *spatial)``: the network's posterior mean given the scan."""
    noise = measurement.noise_std.flatten(1).amax(1) if measurement.noise_std.ndim > 1 else measurement.noise_std
    noise = torch.zeros_like(noise) if ambient.exact else noise
    with torch.no_grad():
        restored: Tensor = ambient(measurement.y, measurement.operator, noise)
    return restored
