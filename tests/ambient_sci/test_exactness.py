"""Objectives and samplers against closed forms: Gaussian priors, for which every posterior is known."""

import pytest
import torch
from torch import Tensor, nn

from ambient_sci.denoise import Denoiser, GaussianDenoiser
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.objectives import ambient_loss, corruption, denoising_loss
from ambient_sci.operators import Fourier, Gaussian, LinearOperator, Mask, Matrix, Nufft, Sense
from ambient_sci.operators.patterns import random_lines
from ambient_sci.operators.trajectories import radial
from ambient_sci.posterior import MMPS
from ambient_sci.sample import sample
from ambient_sci.schedule import edm_levels

N = 16
SHAPE = (1, 4, 4)
NOISE = 0.3
LEVEL = 0.5


def smooth_covariance(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(N, N, generator=generator, dtype=torch.float64)
    return factor @ factor.T / N + 0.1 * torch.eye(N, dtype=torch.float64)


class FixedThinning(Mask):
    """A mask whose further corruption is always the same, so that one linear map is the whole answer."""

    shown: Tensor

    def thin(self, fraction: float, generator: torch.Generator) -> Mask:
        return Mask(self.shown.expand_as(self.mask))


class LinearRestoration(nn.Module):
    sigma_data = 1.0

    def __init__(self, map_: Tensor) -> None:
        super().__init__()
        self.exact = False
        self.map = nn.Parameter(map_)

    def forward(self, y: Tensor, operator: LinearOperator, sigma: Tensor) -> Tensor:
        return (operator.adjoint(y).flatten(1) @ self.map.T).reshape(y.shape)


def scans(count: int, covariance: Tensor, mask: Tensor, generator: torch.Generator, kind: type[Mask]) -> Measurement:
    x = torch.randn(count, N, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    operator = kind(mask.reshape(count, *SHAPE))
    clean = operator(x.reshape(count, *SHAPE))
    return Measurement(clean + NOISE * randn_like(clean, generator) * operator.rows, operator, NOISE)


def minimiser(loss, count: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Minimise a loss that is quadratic in the linear map."""
    model = LinearRestoration(torch.zeros(N, N, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return model.map.detach()


@pytest.fixture(scope="module")
def problem() -> tuple[Measurement, Tensor, Tensor]:
    """Scans that share their shown pixels and differ in the others, and the exact restoration from what is shown."""
    generator = torch.Generator().manual_seed(1)
    count = 50_000
    covariance = smooth_covariance()
    shown = (torch.arange(N) % 3 != 0).to(torch.float64)
    others = (torch.rand(count, N, generator=generator) < 0.6).to(torch.float64)
    FixedThinning.shown = shown.reshape(1, *SHAPE)
    measurement = scans(count, covariance, torch.maximum(shown.expand(count, N), others), generator, FixedThinning)
    rows = torch.diag(shown)
    exact = (
        covariance
        @ rows
        @ torch.linalg.inv(rows @ covariance @ rows + LEVEL**2 * torch.eye(N, dtype=torch.float64))
        @ rows
    )
    return measurement, exact, shown


def test_ambient_objective_learns_the_posterior_mean(problem: tuple[Measurement, Tensor, Tensor]) -> None:
    measurement, exact, shown = problem
    sigma = torch.full((len(measurement),), LEVEL, dtype=torch.float64)

    def loss(model: nn.Module) -> Tensor:
        return ambient_loss(model, measurement, sigma, *corruption(measurement, 0.5, torch.Generator().manual_seed(2)))  # type: ignore[arg-type]

    found = minimiser(loss, len(measurement)) * shown
    assert (found - exact).norm() / exact.norm() < 0.03


def test_naive_objective_does_not(problem: tuple[Measurement, Tensor, Tensor]) -> None:
    """Predicting the measurement itself, without the correction for shared noise, learns to keep the noise."""
    measurement, exact, shown = problem
    y, operator = measurement.y, measurement.operator
    noisy = y + (LEVEL**2 - NOISE**2) ** 0.5 * randn_like(y, torch.Generator().manual_seed(2)) * operator.rows
    seen = Mask(FixedThinning.shown.expand_as(y))

    def loss(model: nn.Module) -> Tensor:
        restored = model(noisy * seen.rows, seen, torch.full((len(y),), LEVEL))
        return (operator(restored) - y).square().flatten(1).sum(1)

    found = minimiser(loss, len(measurement)) * shown
    assert (found - exact).norm() / exact.norm() > 0.15


def test_ambient_objective_is_stationary_at_the_posterior_mean_for_random_masks() -> None:
    """With thinning as the package draws it: no direction in which the expected loss falls, linear or not."""
    generator = torch.Generator().manual_seed(3)
    count = 40_000
    covariance = smooth_covariance(1)
    mask = (torch.rand(count, N, generator=generator) < 0.6).to(torch.float64)
    measurement = scans(count, covariance, mask, generator, Mask)
    directions = 0.1 * torch.randn(6, N, N, generator=generator, dtype=torch.float64)
    directions[0] = torch.eye(N, dtype=torch.float64)  # keeping the noise, which is where ignoring it leads

    class Perturbed(nn.Module):
        sigma_data = 1.0

        def __init__(self, exact: bool) -> None:
            super().__init__()
            self.exact = exact
            # one step per scan and direction, so that the gradient comes out scan by scan
            self.step = nn.Parameter(torch.zeros(count, 6, dtype=torch.float64))

        def forward(self, y: Tensor, operator: LinearOperator, sigma: Tensor) -> Tensor:
            rows = operator.rows.flatten(1)
            system = rows[:, :, None] * covariance * rows[:, None, :] + LEVEL**2 * torch.eye(N, dtype=torch.float64)
            solved = torch.linalg.solve(system, (y.flatten(1) * rows)[..., None])[..., 0]
            restored = (rows * solved) @ covariance
            moves = torch.einsum("kij,bj->bki", directions, y.flatten(1))
            moves = torch.cat([moves[:, :3], torch.tanh(moves[:, 3:]) + rows[:, None, :]], 1)
            return (restored + torch.einsum("bk,bki->bi", self.step, moves)).reshape(y.shape)

    def slopes(thinning: float, corrected: bool) -> Tensor:
        model, m = Perturbed(not corrected), measurement
        level = LEVEL if corrected else (LEVEL**2 - NOISE**2) ** 0.5
        sigma = torch.full((count,), level, dtype=torch.float64)
        ambient_loss(model, m, sigma, *corruption(m, thinning, torch.Generator().manual_seed(4))).sum().backward()  # type: ignore[arg-type]
        gradient = model.step.grad
        assert gradient is not None
        return gradient.mean(0) / (gradient.std(0) / count**0.5)

    assert slopes(0.4, corrected=True).abs().max() < 4
    assert slopes(0.4, corrected=False).abs().max() > 20  # noise ignored, as the paper has it
    assert slopes(0.0, corrected=False).abs().max() > 20  # nothing hidden


def test_noiseless_ambient_objective_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    operator = Mask((torch.rand(3, *SHAPE, generator=generator) < 0.7).to(torch.float64))
    model = LinearRestoration(torch.randn(N, N, generator=generator, dtype=torch.float64))
    sigma = torch.tensor([0.2, 0.7, 2.0], dtype=torch.float64)
    m = Measurement(operator(x), operator, 0.0)
    got = ambient_loss(model, m, sigma, *corruption(m, 0.3, torch.Generator().manual_seed(6)))  # type: ignore[arg-type]

    same = torch.Generator().manual_seed(6)
    noisy = operator(x + sigma.reshape(3, 1, 1, 1) * randn_like(x, same))
    thinned = operator.thin(0.3, same)
    residual = operator(model(thinned(noisy), thinned, sigma) - x)
    want = residual.square().flatten(1).sum(1) / operator.rows.flatten(1).sum(1)
    torch.testing.assert_close(got, want)


def test_denoising_objective_is_least_at_the_posterior_mean() -> None:
    covariance = smooth_covariance()
    exact = GaussianDenoiser(torch.zeros(SHAPE, dtype=torch.float64), covariance)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, N, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    x = x.reshape(-1, *SHAPE)
    sigma = torch.full((len(x),), 0.5, dtype=torch.float64)
    weight = 1 / 0.5**2 + 1
    # at the minimum the weighted loss is the posterior variance
    posterior = torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(N, dtype=torch.float64) / 0.5**2)
    least = denoising_loss(exact, x, sigma, 1.0, randn_like(x, torch.Generator().manual_seed(1))).mean()
    torch.testing.assert_close(least, weight * posterior.diagonal().mean(), rtol=0.01, atol=0)


def spread_matches(images: Tensor, mean: Tensor, covariance: Tensor, tolerance: float) -> None:
    flat = images.flatten(1)
    count = len(flat)
    deviation = covariance.diagonal().real.sqrt()
    assert ((flat.mean(0) - mean).abs() / deviation).max() < tolerance + 5 / count**0.5
    centred = flat - flat.mean(0)
    found = centred.mT @ centred.conj() / count
    found = found / 2 if images.is_complex() else found
    want = covariance.to(found.dtype)
    assert (found - want).norm() / want.norm() < tolerance + 2 * (N / count) ** 0.5


@pytest.mark.parametrize(
    ("solver", "eta", "steps"),
    [
        ("heun", 0.0, 32),
        ("euler", 0.0, 200),
        ("euler", 1.0, 200),
        ("multistep", 0.0, 40),
        ("multistep", 1.0, 60),
    ],
)
def test_samplers_reproduce_a_gaussian_prior(solver: str, eta: float, steps: int) -> None:
    covariance = smooth_covariance()
    mean = torch.linspace(-1, 1, N, dtype=torch.float64)
    denoiser = GaussianDenoiser(mean.reshape(SHAPE), covariance)
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(20_000, *SHAPE, dtype=torch.float64)
    levels = edm_levels(steps, 0.01, 80.0)
    images = sample(denoiser, lambda k: randn_like(like, generator), levels, solver, eta)  # type: ignore[arg-type]
    spread_matches(images, mean, covariance, 0.03)


def sense_operator(generator: torch.Generator) -> LinearOperator:
    maps = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.complex128)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    return Sense(random_lines(1, (4, 4), 2, 1, generator), maps)


OPERATORS = {
    "mask": lambda g: Mask((torch.rand(1, *SHAPE, generator=g) < 0.5).to(torch.float64)),
    "gaussian": lambda g: Gaussian(6, SHAPE, 3).to(dtype=torch.float64),
    "fourier": lambda g: Fourier(random_lines(1, (4, 4), 2, 1, g), (4, 4)).to(dtype=torch.float64),
    "sense": sense_operator,
}


@pytest.mark.parametrize(
    ("kind", "solver", "eta", "steps"),
    [
        *((kind, "heun", 0.0, 24) for kind in sorted(OPERATORS)),
        ("mask", "euler", 1.0, 200),
        ("mask", "multistep", 1.0, 60),
    ],
)
def test_mmps_reproduces_a_gaussian_posterior(kind: str, solver: str, eta: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(11)
    operator = OPERATORS[kind](generator)
    is_complex = kind in ("fourier", "sense")
    dtype = torch.complex128 if is_complex else torch.float64
    covariance = smooth_covariance()
    prior = GaussianDenoiser(torch.full(SHAPE, 0.5, dtype=dtype), covariance)

    basis = torch.eye(N, dtype=dtype).reshape(N, *SHAPE)
    matrix = operator.repeat(N)(basis).flatten(1).mT
    truth = (torch.linalg.cholesky(covariance).to(dtype) @ randn_like(torch.zeros(N, dtype=dtype), generator)).reshape(
        1, *SHAPE
    )
    y = operator(truth)
    y = y + NOISE * randn_like(y, generator) * operator.rows
    # measured rows only; the dense posterior in image space
    precision = torch.linalg.inv(covariance).to(dtype) + matrix.mH @ matrix / NOISE**2
    posterior = torch.linalg.inv(precision)
    offset = torch.full((N,), 0.5, dtype=dtype)
    mean = offset + posterior @ matrix.mH @ (y.flatten() - matrix @ offset) / NOISE**2

    count = 2000
    measurement = Measurement(y, operator, NOISE).repeat(count)
    like = torch.zeros(count, *SHAPE, dtype=dtype)
    levels = edm_levels(steps, 0.01, 80.0)
    method = MMPS(prior, measurement, iterations=N)
    images = sample(method, lambda k: randn_like(like, generator), levels, solver, eta)  # type: ignore[arg-type]
    spread_matches(images, mean, posterior, 0.03)


def affine_moments(method: Denoiser, levels: Tensor, eta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what the multistep sampler makes of a Gaussian, without chance.

    Every step is affine in the noise: the first of the batch sees none, the others orthogonal draws for all steps.
    """
    size, generator = stages(levels, eta) * N, torch.Generator().manual_seed(5)
    turned = torch.linalg.qr(randn_like(torch.zeros(size, size, dtype=dtype), generator))[0]
    noises = torch.cat([torch.zeros_like(turned[:1]), size**0.5 * turned]).reshape(1 + size, -1, *SHAPE)
    out = sample(method, lambda k: noises[:, k], levels, "multistep", eta).flatten(1)
    response = (out[1:] - out[0]).mT / size**0.5
    return out[0], response @ response.mH


def stages(levels: Tensor, eta: float) -> int:
    return len(levels) - 1 if eta > 0 else 1


@pytest.mark.parametrize(
    ("kind", "noise", "eta"),
    [
        *((kind, noise, 1.0) for kind in ("mask", "gaussian", "sense") for noise in (1.0, 0.003)),
        ("fourier", 0.1, 1.0),
        ("nufft", 0.1, 1.0),
        # a hundredth of the prior's spread is left in some directions
        ("nufft", 0.003, 1.0),
        ("nufft", 0.003, 0.0),
    ],
)
def test_mmps_is_within_percents_of_exact_at_32_steps(kind: str, noise: float, eta: float) -> None:
    """Mean within 1%, standard deviations within 2%, where the solves are accurate."""
    generator = torch.Generator().manual_seed(12)
    operator = OPERATORS[kind](generator) if kind in OPERATORS else spokes()
    dtype = torch.complex128 if kind in ("fourier", "sense", "nufft") else torch.float64
    covariance, offset = smooth_covariance(), torch.full((N,), 0.5, dtype=dtype)
    prior = GaussianDenoiser(offset.reshape(SHAPE), covariance)
    matrix = operator.repeat(N)(torch.eye(N, dtype=dtype).reshape(N, *SHAPE)).flatten(1).mT
    matrix = matrix[matrix.abs().sum(1) > 0]
    truth = offset + torch.linalg.cholesky(covariance).to(dtype) @ randn_like(offset, generator)
    y = matrix @ truth + noise * randn_like(matrix[:, 0], generator)
    posterior = torch.linalg.inv(torch.linalg.inv(covariance).to(dtype) + matrix.mH @ matrix / noise**2)
    exact = offset + posterior @ matrix.mH @ (y - matrix @ offset) / noise**2

    m = Measurement(y[None], Matrix(matrix[None], SHAPE), noise)
    levels = edm_levels(32, min(0.01, noise / 4), 20.0)
    method = MMPS(prior, m.repeat(1 + stages(levels, eta) * N), iterations=40, tolerance=1e-5)
    mean, spread = affine_moments(method, levels, eta, dtype)
    assert (mean - exact).norm() < 0.01 * exact.norm()
    found, wanted = spread.diagonal().real.sqrt(), posterior.diagonal().real.sqrt()
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    # the comparison tells: without the data all of it is far off
    assert (offset - exact).norm() > 0.1 * exact.norm()
    assert (covariance.diagonal().sqrt() - wanted).norm() > 0.06 * wanted.norm()


def spokes() -> LinearOperator:
    return Nufft(radial(1, (4, 4), 3, 8, torch.Generator().manual_seed(0)).double(), (4, 4))


def test_multistep_samples_keep_the_spread_of_any_scan() -> None:
    """The factor of extrapolation: without it, renewed noise widens spreads by 6% in 16 steps."""
    spreads = torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    shape = (1, 1, len(spreads))
    prior = GaussianDenoiser(torch.zeros(shape, dtype=torch.float64), torch.diag(spreads**2))
    for steps, off in ((16, 0.03), (32, 0.012)):
        levels = edm_levels(steps, 0.01, 20.0)
        noises = torch.eye(steps, dtype=torch.float64)[..., None, None, None].expand(-1, -1, *shape)
        out = sample(prior, lambda k, noises=noises: noises[k], levels, "multistep", 1.0)
        ratio = out.square().sum(0).sqrt().flatten() / spreads
        assert (ratio - 1).abs().max() < off


def test_first_order_steps_narrow_the_spread() -> None:
    """What the multistep solver is for: Euler's ancestral steps forget how uncertain the denoised image is."""
    covariance = smooth_covariance()
    prior = GaussianDenoiser(torch.zeros(SHAPE, dtype=torch.float64), covariance)
    levels, count = edm_levels(32, 0.02, 20.0), 1 + 32 * N
    noises = torch.zeros(32, count, N, dtype=torch.float64)
    for k in range(32):
        noises[k, 1 + k * N : 1 + (k + 1) * N] = torch.eye(N, dtype=torch.float64)
    total = {}
    for solver in ("euler", "multistep"):
        out = sample(prior, lambda k: noises[k].reshape(-1, *SHAPE), levels, solver, 1.0).flatten(1)  # type: ignore[arg-type]
        total[solver] = float(out.square().sum() / covariance.trace())
    assert total["euler"] < 0.85
    assert abs(total["multistep"] - 1) < 0.015
