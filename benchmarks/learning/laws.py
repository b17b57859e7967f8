r"""Images of a known law: what an optimal method would reach is known exactly.

.. math:: x &\sim \sum_k w_k \, \mathcal N(\mu_k, \Sigma_k), \\
          E[x \mid y] &= \sum_k r_k ( \mu_k + \Sigma_k A^H (A \Sigma_k A^H + \sigma^2)^{-1} (y - A \mu_k) ), \\
          r_k &\propto w_k \, \mathcal N(y; A \mu_k, A \Sigma_k A^H + \sigma^2)

for images of 8 x 8 pixels: one Gaussian, or a mixture of three whose textures run along rows, along columns, and
neither. Complex images are circular, so that their phase is arbitrary: real and imaginary part are independent, the
means zero.

Scores of a prior, beside those that all tasks have:

- ``excess``: how far its denoiser is from the exact one, over how far that is from the image,
  :math:`E \| D_\theta - D \|^2 / E \| D - x \|^2`, averaged over noise levels from a twentieth of ``sigma_data`` to
  five times as much. What a network that restores measurements gives is compared with the exact posterior mean of the
  measurements with as much noise.
- ``nrmse_exact``, and ``nrmse_ratio``: the error of the exact posterior mean, and that of the mean of posterior samples
  divided by it.
- ``frechet``: Fréchet distance of the pixels of drawn images, and ``frechet_floor``, that of as many of the law itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci import Measurement, open_store
from ambient_sci.datasets import Store, StoreWriter
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.denoise import GaussianMixtureDenoiser
from ambient_sci.evaluate.metrics import nrmse
from ambient_sci.measurement import randn_like
from ambient_sci.operators import Sense, collate, patterns
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.prior import Prior
from ambient_sci.seeding import stream
from benchmarks.learning.distances import frechet_distance

__all__ = ["LAWS", "Law", "law_distances", "law_images", "law_scores", "sense_scans"]

SIZE = 8
TRAINING, TUNING, TEST = 4096, 64, 128
COILS, ACCELERATION, CALIBRATION = 4, 2.0, 2
LEVELS = np.geomspace(0.05, 5, 8)
NOISELESS = 1e-5  # standard deviation that stands for none, where a matrix is inverted


@dataclass(frozen=True)
class Law:
    """A mixture of Gaussians.

    Parameters
    ----------
    weights
        ``(k,)``, of sum one.
    means
        ``(k, n)``, real or complex.
    covariances
        Of each real component, ``(k, n, n)``.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def denoiser(self) -> GaussianMixtureDenoiser:
        """The exact one, in double precision."""
        return GaussianMixtureDenoiser(self.weights, self.means.reshape(-1, 1, SIZE, SIZE), self.covariances)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Images, ``(count, 1, height, width)``."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = randn_like(self.means.new_zeros(count, len(self.covariances[0])), generator)
        images = self.means[which]
        for k, root in enumerate(torch.linalg.cholesky(self.covariances).to(white.dtype)):
            images[which == k] += white[which == k] @ root.mT
        return images.reshape(count, 1, SIZE, SIZE)

    def posterior_mean(self, matrix: Tensor, y: Tensor, noise: float) -> Tensor:
        """Of one scan, ``(1, height, width)``.

        Parameters
        ----------
        matrix, y
            How it was measured, ``(m, n)``, and what, ``(m,)``.
        noise
            Standard deviation per real component.
        """
        covariances = self.covariances.to(matrix.dtype)
        cross = covariances @ matrix.mH  # (k, n, m)
        inner = matrix @ cross + max(noise, NOISELESS) ** 2 * torch.eye(len(y), dtype=matrix.dtype)
        residual = (y - self.means @ matrix.mT)[..., None]  # (k, m, 1)
        solved = torch.linalg.solve(inner, residual)
        components = 2 if matrix.is_complex() else 1
        exponent = (residual.mH @ solved).real[:, 0, 0]
        log_share = self.weights.log() - (exponent + components * torch.linalg.slogdet(inner)[1]) / 2
        share = torch.softmax(log_share, 0)[:, None]
        mean: Tensor = (share * (self.means + (cross @ solved)[..., 0])).sum(0)
        return mean.reshape(1, SIZE, SIZE)


def _law(components: list[tuple[float, float, float, float, float]], is_complex: bool) -> Law:
    """Mix components: weight, level of the mean, standard deviation, lengths of correlation along rows and columns."""
    row, column = (axis.flatten().double() for axis in torch.meshgrid(*[torch.arange(SIZE)] * 2, indexing="ij"))
    centre = (SIZE - 1) / 2
    bump = torch.exp(-((row - centre) ** 2 + (column - centre) ** 2) / 8)
    means, covariances = [], []
    for _, level, spread, along, across in components:
        distance = ((row[:, None] - row) / across) ** 2 + ((column[:, None] - column) / along) ** 2
        covariances.append(spread**2 * (torch.exp(-distance / 2) + 1e-3 * torch.eye(SIZE**2)))
        means.append(level * bump)
    mean = torch.stack(means)
    weights = torch.tensor([component[0] for component in components], dtype=torch.float64)
    return Law(weights, torch.zeros_like(mean).to(torch.complex128) if is_complex else mean, torch.stack(covariances))


_GAUSSIAN = [(1.0, 0.8, 0.25, 2.0, 2.0)]
_MIXTURE = [(0.4, 0.8, 0.2, 4.0, 0.7), (0.4, 0.0, 0.2, 0.7, 4.0), (0.2, -0.8, 0.4, 1.5, 1.5)]
LAWS = {
    f"{name}{suffix}": _law(components, bool(suffix))
    for name, components in (("gaussian", _GAUSSIAN), ("mixture", _MIXTURE))
    for suffix in ("", "-complex")
}
"""Laws by the names of their data sets."""


def law_images(name: str) -> list[NDArray[Any]]:
    """Images to learn from, to tune on and to score."""
    images = LAWS[name].draw(TRAINING + TUNING + TEST, stream(0))[:, 0]
    images = images.to(torch.complex64 if images.is_complex() else torch.float32)
    return [part.numpy() for part in images.split([TRAINING, TUNING, TEST])]


def sense_scans(images: NDArray[np.complex64], path: Path, references: bool, seed: int, noise: float) -> Store:
    """Multi-coil scans that are not normalised by estimates of their brightness, so that their law stays known."""
    x = torch.from_numpy(images)[:, None]
    spatial = tuple(x.shape[2:])
    scans, values = [], []
    for scan, image in enumerate(x):
        generator = stream(seed, scan)
        mask = patterns.random_lines(1, spatial, ACCELERATION, CALIBRATION, generator=generator)
        A = Sense(mask, coil_maps(COILS, spatial, generator)[None], CALIBRATION)
        y = A(image[None])
        scans.append(A)
        values.append(y + noise * randn_like(y, generator) * A.rows)
    origin = {"source": "simulation", "arguments": {"operator": "sense", "noise": noise, "seed": seed}}
    with StoreWriter(path, origin) as writer:
        writer.append(Measurement(torch.cat(values), collate(scans), noise), x if references else None)
    return open_store(path)


# -------------------------------------------------------------------------------------------------------------- scores


def law_scores(prior: Prior, store: Store, law: Law) -> dict[str, float]:
    """Compute ``excess`` and ``nrmse_exact``.

    Parameters
    ----------
    prior
        What was learned.
    store
        Scans to score, with references.
    law
        That of their images.
    """
    m, truth = store.read(slice(None)), store.references(slice(None))
    matrices = dense(m)
    exact = posterior_means(law, matrices, m.y, float(m.noise_std.max()))
    if isinstance(prior.denoiser, AmbientDenoiser):
        excess = restored_excess(prior.denoiser, law, m, matrices, truth)
    else:
        excess = denoised_excess(prior, law)
    return {"nrmse_exact": float(nrmse(exact.to(truth.dtype), truth).mean()), "excess": excess}


def law_distances(drawn: Tensor, law: Law) -> dict[str, float]:
    """Compute ``frechet`` and ``frechet_floor`` of drawn images ``(n, 1, height, width)``."""
    few, many = law.draw(len(drawn), stream(1)), law.draw(8192, stream(2))
    return {
        "frechet": frechet_distance(_components(drawn), _components(many)),
        "frechet_floor": frechet_distance(_components(few), _components(many)),
    }


def denoised_excess(prior: Prior, law: Law, count: int = 512) -> float:
    """``excess`` of an ordinary denoiser."""
    x = law.draw(count, stream(3)).to(prior.dtype)
    exact, ratios = law.denoiser, []
    for k, level in enumerate(LEVELS * prior.sigma_data):
        noisy = x + level * randn_like(x, stream(4, k))
        sigma = torch.full((count,), level)
        with torch.no_grad():
            got, best = prior.denoiser(noisy, sigma.float()), exact(noisy.to(law.means.dtype), sigma.double())
        ratios.append(_square(got - best) / _square(best - x))
    return float(np.mean(ratios))


def restored_excess(ambient: AmbientDenoiser, law: Law, m: Measurement, matrices: list[Tensor], truth: Tensor) -> float:
    """``excess`` of a network that restores measurements, at noise levels not below the measurements' own."""
    ratios = []
    for k, level in enumerate(LEVELS * ambient.sigma_data):
        level = max(level, float(m.noise_std.max()))
        y = m.operator(truth)
        y = y + level * randn_like(y, stream(5, k)) * m.operator.rows
        with torch.no_grad():
            got = ambient(y, m.operator, torch.full((len(m),), level))
        best = posterior_means(law, matrices, y, level)
        ratios.append(_square(got - best) / _square(best - truth))
    return float(np.mean(ratios))


def dense(m: Measurement) -> list[Tensor]:
    """Matrices of the scans, ``(measured values, n)`` each, in double precision."""
    image = m.operator.adjoint(m.y)
    basis = torch.eye(SIZE**2, dtype=image.dtype).reshape(-1, 1, SIZE, SIZE)
    columns = [m.operator[scan : scan + 1].repeat(len(basis))(basis).flatten(1) for scan in range(len(m))]
    return [each.mT.to(torch.complex128 if image.is_complex() else torch.float64) for each in columns]


def posterior_means(law: Law, matrices: list[Tensor], y: Tensor, noise: float) -> Tensor:
    """Of all scans, ``(batch, 1, height, width)``."""
    every = zip(matrices, y.flatten(1), strict=True)
    return torch.stack([law.posterior_mean(matrix, values.to(matrix.dtype), noise) for matrix, values in every])


def _square(x: Tensor) -> float:
    return float(x.abs().square().sum())


def _components(images: Tensor) -> NDArray[np.float64]:
    flat = images.flatten(1)
    return (torch.cat([flat.real, flat.imag], 1) if flat.is_complex() else flat).double().numpy()
