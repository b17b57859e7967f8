"""Posterior methods, one evaluation at a time, against their formulas; and draws that do not depend on company."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ambient_sci import Measurement, load_prior, open_store
from ambient_sci.config import TrainConfig
from ambient_sci.denoise import Denoiser, GaussianDenoiser
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import randn_like
from ambient_sci.operators import (
    Fourier,
    Gaussian,
    LinearOperator,
    Mask,
    Nufft,
    Sense,
    conjugate_gradient,
    trajectories,
)
from ambient_sci.operators.patterns import random_lines
from ambient_sci.posterior import ADPS, DDS, DPS, MMPS, DiffPIR, FixedMask, ReconstructionGuidance, restore
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior

SHAPE = (1, 4, 4)
N = 16
REAL, COMPLEX = torch.float64, torch.complex128


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tanh(Denoiser):
    r"""Not an exact denoiser, but nonlinear and with a symmetric Jacobian that is known: :math:`W^H \tanh(W x) / s`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = randn_like(torch.zeros(N, N, dtype=dtype), generator(1)) / (2 * N**0.5)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight.mT
        bent = torch.complex(z.real.tanh(), z.imag.tanh()) if z.is_complex() else z.tanh()
        return ((bent @ self.weight.conj()) / sigma[:, None]).reshape(x.shape)


def normalised_maps(count: int) -> Tensor:
    maps = randn_like(torch.zeros(count, 3, 4, 4, dtype=COMPLEX), generator(2))
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt()


OPERATORS = {
    "mask": lambda: Mask((torch.rand(2, *SHAPE, generator=generator(3)) < 0.6).to(REAL)),
    "gaussian": lambda: Gaussian(6, SHAPE, torch.tensor([3, 4])).to(dtype=REAL),
    "fourier": lambda: Fourier(random_lines(2, (4, 4), 2, 1, generator(3)), (4, 4)).to(dtype=REAL),
    "sense": lambda: Sense(random_lines(2, (4, 4), 2, 1, generator(3)), normalised_maps(2)),
}


def parts(values: Tensor) -> Tensor:
    """Real vectors of a batch, real and imaginary parts one after the other."""
    flat = values.flatten(1)
    return torch.cat([flat.real, flat.imag], 1) if values.is_complex() else flat


def unparts(values: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        values = torch.complex(*values.chunk(2, 1))
    return values.reshape(len(values), *like.shape[1:])


def matrix(function: Any, like: Tensor) -> Tensor:
    """Jacobian of a function of one image, on real vectors."""
    return torch.autograd.functional.jacobian(lambda v: parts(function(unparts(v[None], like)))[0], parts(like)[0])


def problem(kind: str) -> tuple[Measurement, Tensor, Tensor]:
    """Two scans with noise of their own, a state and its levels."""
    operator: LinearOperator = OPERATORS[kind]()
    blank = torch.zeros(2, *SHAPE, dtype=COMPLEX if kind in ("fourier", "sense") else REAL)
    y = operator(randn_like(blank, generator(4)))
    y = y + 0.3 * randn_like(y, generator(5)) * operator.rows
    noise = torch.tensor([0.3, 0.5], dtype=REAL)
    return Measurement(y, operator, noise), randn_like(blank, generator(6)), torch.tensor([0.7, 1.3], dtype=REAL)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
@pytest.mark.parametrize("per_sample", [False, True])
def test_mmps_against_a_dense_solve(kind: str, per_sample: bool) -> None:
    m, x, sigma = problem(kind)
    if per_sample:
        noise = 0.2 + torch.rand(m.y.shape, generator=generator(7), dtype=REAL)
        m = Measurement(m.y, m.operator, noise)
    denoiser = Tanh(x.dtype)
    got = MMPS(denoiser, m, iterations=60)(x, sigma)

    for scan in range(2):
        one, state, level = m[scan], x[scan : scan + 1], sigma[scan : scan + 1]
        J = matrix(lambda v, level=level: denoiser(v, level), state)
        torch.testing.assert_close(J, J.mT)
        A = matrix(one.operator, state)
        rows = parts((one.operator.rows.expand(one.y.shape) * torch.ones_like(one.y)).to(one.y.dtype))
        rows = (torch.cat([rows.chunk(2, 1)[0]] * 2, 1) if one.y.is_complex() else rows)[0] > 0
        variance = one.noise.expand(one.y.shape).flatten() ** 2
        variance = torch.cat([variance, variance]) if one.y.is_complex() else variance
        V = level**2 * J
        D = parts(denoiser(state, level))[0]
        A, residual = A[rows], (parts(one.y)[0] - A @ D)[rows]
        v = torch.linalg.solve(torch.diag(variance[rows]) + A @ V @ A.mT, residual)
        torch.testing.assert_close(parts(got[scan : scan + 1])[0], D + V @ A.mT @ v, rtol=1e-6, atol=1e-8)


def test_mmps_with_few_iterations_stays_between() -> None:
    """More iterations come closer to the solution; none at all is the denoiser."""
    m, x, sigma = problem("mask")
    exact = MMPS(Tanh(x.dtype), m, 40)(x, sigma)
    errors = [float((MMPS(Tanh(x.dtype), m, count)(x, sigma) - exact).norm()) for count in (0, 1, 3, 8)]
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(MMPS(Tanh(x.dtype), m, 0)(x, sigma), Tanh(x.dtype)(x, sigma))


def test_mmps_ends_where_the_system_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below the noise of the data one iteration does it; a scan does not wait for another, nor end with it."""
    m, x, _ = problem("mask")
    denoiser, products, grad = Tanh(x.dtype), [0], torch.autograd.grad

    def counted(*arguments: Any, **options: Any) -> Any:
        products[0] += 1
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for level, most in ((1e-3, 1), (1.0, 6)):
        sigma = torch.full((len(x),), level, dtype=REAL)
        exact = MMPS(denoiser, m, 20)(x, sigma)
        products[0] = 0
        rough = MMPS(denoiser, m, 20, 0.05)(x, sigma)
        assert 1 <= products[0] <= most
        assert (rough - exact).norm() <= 0.1 * (exact - denoiser(x, sigma)).norm()
    low_and_high = torch.tensor([1e-3, 1.0], dtype=REAL)
    together = MMPS(denoiser, m[:2], 20, 0.05)(x[:2], low_and_high)
    for scan in range(2):
        alone = MMPS(denoiser, m[scan], 20, 0.05)(x[scan : scan + 1], low_and_high[scan : scan + 1])
        torch.testing.assert_close(together[scan : scan + 1], alone)


class Rough(Denoiser):
    """A linear denoiser whose Jacobian is neither symmetric nor positive, like that of a barely trained network."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        a, b = torch.randn(2, N, N, generator=generator(seed), dtype=REAL) / N**0.5
        self.jacobian = a @ a.mT / 2 + 0.3 * b

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) @ self.jacobian.mT).reshape(x.shape)


def test_mmps_does_not_run_away_with_a_rough_denoiser() -> None:
    """Where conjugate gradients alone do, on many of these problems."""
    runaways = 0
    for seed in range(20):
        denoiser, g = Rough(seed), generator(100 + seed)
        operator = Mask((torch.rand(2, *SHAPE, generator=g) < 0.7).to(REAL))
        x, truth = torch.randn(2, 2, *SHAPE, generator=g, dtype=REAL)
        m, sigma = Measurement(operator(truth), operator, 0.1), torch.ones(2, dtype=REAL)
        got, start = MMPS(denoiser, m, 8)(x, sigma), denoiser(x, sigma)

        def covariance(v: Tensor, jacobian: Tensor = denoiser.jacobian) -> Tensor:
            return (v.flatten(1) @ jacobian).reshape(v.shape)

        v = conjugate_gradient(
            lambda v, A=operator, V=covariance: 0.01 * v + A(V(A.adjoint(v))),  # type: ignore[misc]
            (m.y - operator(start)) * operator.rows,
            iterations=8,
        )
        plain = start + covariance(operator.adjoint(v))
        bound = 30 * (start.norm() + m.y.norm())
        runaways += bool(plain.norm() > bound)
        assert got.norm() < bound
    assert runaways > 5


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_adps_against_the_gradient_of_the_misfit(kind: str) -> None:
    m, x, sigma = problem(kind)
    denoiser, guidance = Tanh(x.dtype), 0.8
    got = ADPS(denoiser, m, guidance)(x, sigma)

    state = x.clone().requires_grad_()
    residual = (m.y - m.operator(denoiser(state, sigma))).abs().square().flatten(1).sum(1)
    strength = guidance * sigma**2 / (sigma**2 + m.noise_std**2)
    (strength * residual / 2).sum().backward()
    assert state.grad is not None
    torch.testing.assert_close(got, denoiser(x, sigma) - state.grad)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_dps_against_the_gradient_of_the_misfit_itself(kind: str) -> None:
    m, x, sigma = problem(kind)
    denoiser, guidance = Tanh(x.dtype), 0.8
    state = x.clone().requires_grad_()
    residual = (m.y - m.operator(denoiser(state, sigma))).flatten(1)
    measured = m.operator.rows.expand(m.y.shape).flatten(1).sum(1) * (2 if m.y.is_complex() else 1)
    (guidance * sigma * measured.sqrt() * residual.abs().square().sum(1).sqrt()).sum().backward()
    assert state.grad is not None
    torch.testing.assert_close(DPS(denoiser, m, guidance)(x, sigma), denoiser(x, sigma) - state.grad)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_proximal_methods_against_their_minimum(kind: str) -> None:
    """The gradient of what they minimise is zero: with the data's noise, or with a fixed weight."""
    m, x, sigma = problem(kind)
    denoiser = Tanh(x.dtype)
    mean = denoiser(x, sigma)
    level, noise = (value.reshape(-1, 1, 1, 1) for value in (sigma, m.noise_std))
    for method, spread, variance in (
        (DiffPIR(denoiser, m, 3.0, 40), level**2 / 3, noise**2),
        (DDS(denoiser, m, 5.0, 40), torch.full_like(level, 5.0), torch.ones_like(noise)),
    ):
        found = method(x, sigma)
        pull = m.operator.adjoint(m.y - m.operator(found)) / variance
        torch.testing.assert_close((found - mean) / spread, pull)
        assert pull.norm() > 1e-2


def test_mmps_corrections_stay_as_short_as_the_approximation_has_them() -> None:
    """Without noise, data that the Jacobian hardly reaches would move the image without bound."""

    class Thin(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            mixed = torch.eye(N, dtype=REAL) * 1e-4
            mixed[:, 0] += 1.0  # the first pixel, which is measured, moves all others with it
            return (x.flatten(1) @ (mixed @ mixed.T)).reshape(x.shape) / N

    g = generator(1)
    mask = torch.zeros(2, *SHAPE, dtype=REAL)
    mask.flatten(1)[:, :6] = 1
    operator, sigma = Mask(mask), torch.tensor([0.1, 0.2], dtype=REAL)
    x, truth = torch.randn(2, 2, *SHAPE, generator=g, dtype=REAL)
    m = Measurement(operator(truth), operator, 0.0)
    moved = (MMPS(Thin(), m, 6)(x, sigma) - Thin()(x, sigma)).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, 3 * sigma * 6**0.5)
    # a denoiser whose data come from where it says is not held back
    exact = GaussianDenoiser(torch.zeros(SHAPE, dtype=REAL), torch.eye(N, dtype=REAL))
    noisy = truth + sigma.reshape(-1, 1, 1, 1) * x
    torch.testing.assert_close(operator(MMPS(exact, m, 6)(noisy, sigma)), m.y)


def test_posterior_denoisers_leave_no_graph() -> None:
    m, x, sigma = problem("mask")
    methods: list[type[Any]] = [MMPS, ADPS, DPS, DiffPIR, DDS]
    for method in (kind(Tanh(x.dtype), m) for kind in methods):
        with torch.no_grad():  # as a sampler calls them
            assert not method(x, sigma).requires_grad


# ------------------------------------------------------------------------------------------------ ambient networks


class Remembers(AmbientDenoiser):
    """Keeps what it was asked."""

    def forward(self, y: Tensor, operator: LinearOperator, sigma: Tensor) -> Tensor:
        self.asked = (y, operator, sigma)
        return operator.adjoint(y) / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def ambient_network() -> Remembers:
    return Remembers(nn.Identity(), 1.0)


def test_ambient_networks_see_images_of_spokes() -> None:
    """In the units of images, though the centre of k-space is measured many times, and a response of one at most."""

    class Watches(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            self.seen = x
            return torch.zeros_like(x[:, :2])

    truth = torch.nn.functional.avg_pool2d(torch.randn(2, 1, 20, 20, generator=generator()), 5, 1).to(torch.complex64)
    operator = Nufft(trajectories.golden_angle(2, (16, 16), 30, 32, generator()), (16, 16))
    watches = Watches()
    restored = AmbientDenoiser(watches, 0.2)(operator(truth), operator, torch.full((2,), 1e-3))
    now, first, response = (torch.complex(*part.unbind(1))[:, None] for part in watches.seen.split(2, 1))
    for image in (0.2 * now, 0.2 * first, restored.detach()):
        assert float((image - truth).norm()) < 0.1 * float(truth.norm())
    assert 0.9 < float(response.abs().max()) < 1 + 1e-5


def test_fixed_mask_with_everything_measured_is_the_network_on_the_state() -> None:
    x, sigma = torch.randn(2, *SHAPE, generator=generator(), dtype=REAL), torch.tensor([0.5, 2.0], dtype=REAL)
    operator = Mask(torch.ones(2, *SHAPE, dtype=REAL))
    blank = torch.zeros(1, *SHAPE, dtype=REAL)
    network = ambient_network()
    seen = FixedMask.thinned(network, operator, blank, 0.0, [generator(1), generator(2)])
    torch.testing.assert_close(seen(x, sigma), x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2))
    assert torch.equal(network.asked[0], x)


def test_fixed_mask_sees_less_than_the_scan() -> None:
    operator = OPERATORS["mask"]()
    blank = torch.zeros(1, *SHAPE, dtype=REAL)
    network = ambient_network()
    seen = FixedMask.thinned(network, operator, blank, 0.5, [generator(1), generator(2)])
    x = torch.randn(2, *SHAPE, generator=generator(), dtype=REAL)
    seen(x, torch.ones(2, dtype=REAL))
    y, thinned, _ = network.asked
    assert bool((thinned.rows <= operator.rows).all())
    assert 0 < float(thinned.rows.sum()) < float(operator.rows.sum())
    assert torch.equal(y, x * thinned.rows)
    # the same mask at the next level, and for a scan by itself
    seen(x, 0.1 * torch.ones(2, dtype=REAL))
    assert torch.equal(network.asked[1].rows, thinned.rows)
    alone = FixedMask.thinned(network, operator[1], blank, 0.5, [generator(2)])
    assert torch.equal(alone.operator.rows, thinned.rows[1:])


def test_fixed_mask_lifts_noise_to_white_coil_noise() -> None:
    """The state x0 + s n is seen as A x0 + s e, with e white over the coils and n what is left of it in the image."""
    count, level = 4000, 0.7
    maps = normalised_maps(1)
    operator = Sense(torch.ones(1, 1, 1, 4, dtype=REAL), maps).repeat(count)
    blank = torch.zeros(1, *SHAPE, dtype=COMPLEX)
    network = ambient_network()
    seen = FixedMask.thinned(network, operator, blank, 0.0, [generator(seed) for seed in range(count)])
    x0 = randn_like(blank, generator(1))
    n = randn_like(blank.expand(count, *SHAPE), generator(2))
    seen(x0 + level * n, torch.full((count,), level, dtype=REAL))
    e = (network.asked[0] - operator[0](x0)) / level
    torch.testing.assert_close(operator.adjoint(e), n)
    flat = e.flatten(1)
    covariance = flat.mT @ flat.conj() / count / 2  # of each real component
    error = covariance - torch.eye(48, dtype=COMPLEX)
    assert error.diagonal().abs().max() < 0.1
    assert error.abs().max() < 5 / count**0.5


def test_reconstruction_guidance_follows_the_gradient_of_disagreement() -> None:
    """It is known for ``D_k(x) = m_k x / (1 + s^2)``: ``D_0 - w / K sum_k (m_0 - m_k)^2 x / (1 + s^2)^2``."""
    x, sigma = torch.randn(2, *SHAPE, generator=generator(), dtype=COMPLEX), torch.tensor([0.5, 2.0], dtype=REAL)
    rows = (torch.rand(3, 2, *SHAPE, generator=generator(3), dtype=REAL) < 0.5).to(REAL)
    views = [FixedMask(ambient_network(), Mask(kept), torch.zeros(2, *SHAPE, dtype=COMPLEX)) for kept in rows]
    shrink = 1 / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
    apart = ((rows[0] - rows[1]) ** 2 + (rows[0] - rows[2]) ** 2) / 2
    expected = shrink * rows[0] * x - 0.3 * apart * shrink**2 * x
    found = ReconstructionGuidance(views, 0.3)(x, sigma)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 2, 3, padding=1, dtype=REAL)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        result: Tensor = self.layer(x) * (1 + label.reshape(-1, 1, 1, 1))
        return result


def test_restore_is_one_call_of_the_network() -> None:
    m, x, _ = problem("sense")
    network = AmbientDenoiser(Convolution(), 1.0)
    restored = restore(network, m)
    assert restored.shape == x.shape
    assert not restored.requires_grad
    torch.testing.assert_close(restored, network(m.y, m.operator, m.noise_std).detach())
    # of noise that differs from sample to sample, the largest
    every = m.noise * torch.linspace(0.1, 1, m.y.shape[-1], dtype=REAL).expand(m.y.shape)
    torch.testing.assert_close(restore(network, Measurement(m.y, m.operator, every)), restored)


# ------------------------------------------------------------------------------------------------ draws


@pytest.fixture(scope="module")
def prior(run_path: Path) -> Prior:
    prior = load_prior(run_path, "cpu")
    prior.denoiser.network.precision = "fp32"  # type: ignore[union-attr,assignment]
    return prior


@pytest.fixture(scope="module")
def scans(store_path: Path) -> Measurement:
    m = open_store(store_path).read(slice(0, 6))
    assert float(m.noise_std.std()) > 0  # what a batch has in common must not matter
    return m


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_draws_do_not_depend_on_company(prior: Prior, scans: Measurement) -> None:
    together = draw_posterior(prior, scans, samples=2, steps=5, seed=3)
    assert together.shape == (6, 2, 1, 16, 16)
    assert torch.isfinite(torch.view_as_real(together)).all()
    for scan in (0, 5):
        assert_close(draw_posterior(prior, scans[scan], samples=2, steps=5, seed=3)[0], together[scan])
    turned = scans[torch.tensor([4, 1])]
    assert_close(draw_posterior(prior, turned, samples=2, steps=5, seed=3), together[torch.tensor([4, 1])])
    assert_close(draw_posterior(prior, scans[:2], samples=1, steps=5, seed=3), together[:2, :1])
    assert (together[:, 0] - together[:, 1]).abs().mean() > 0.01
    assert (draw_posterior(prior, scans[:1], steps=5, seed=4) - together[:1, :1]).abs().mean() > 0.01


@pytest.mark.parametrize("method", ["dps", "diffpir", "dds", "tds"])
def test_draws_of_every_method_do_not_depend_on_company(prior: Prior, scans: Measurement, method: Any) -> None:
    if prior.config.method == "ambient":
        pytest.skip("another test has the method that goes with it")
    options: dict[str, Any] = {"method": method, "steps": 4, "seed": 3, "particles": 3, "guidance": 0.3}
    together = draw_posterior(prior, scans[:3], samples=2, **options)
    assert together.shape == (3, 2, 1, 16, 16)
    assert torch.isfinite(torch.view_as_real(together)).all()
    assert (together[:, 0] - together[:, 1]).abs().mean() > 0.01
    assert_close(draw_posterior(prior, scans[2], samples=2, **options)[0], together[2])
    assert_close(draw_posterior(prior, scans[torch.tensor([1, 0])], samples=1, **options), together[[1, 0], :1])
    assert (draw_posterior(prior, scans[:1], steps=4, seed=3) - together[:1, :1]).abs().mean() > 1e-3


def test_options_of_draws(prior: Prior, scans: Measurement) -> None:
    with pytest.raises(ConfigError, match="schedule must be 'edm', 'log-linear', 'quantile', got 'cosine'"):
        draw_posterior(prior, scans[:1], schedule="cosine")  # type: ignore[arg-type]
    drawn = [draw_posterior(prior, scans[:1], steps=4, schedule=name) for name in ("edm", "log-linear", "quantile")]  # type: ignore[arg-type]
    assert (drawn[0] - drawn[1]).abs().mean() > 1e-3
    assert (drawn[0] - drawn[2]).abs().mean() > 1e-3
    if prior.config.method != "ambient":
        with pytest.raises(ConfigError, match="tds needs particles of at least 1 and no start, got particles 0"):
            draw_posterior(prior, scans[:1], method="tds", particles=0)


def test_a_pair_has_the_exact_mean_of_a_gaussian_posterior() -> None:
    """Chance leaves nothing in the mean of an antithetic pair: any seed gives the exact mean."""
    spectrum = torch.diag(torch.linspace(0.2, 1.5, N, dtype=REAL))
    denoiser = GaussianDenoiser(torch.full(SHAPE, 0.5, dtype=torch.complex64), spectrum.float())
    denoiser.sigma_data = 1.0  # type: ignore[assignment]
    denoiser.register_parameter("somewhere", nn.Parameter(torch.zeros(1)))
    prior = Prior(denoiser, SHAPE, True, TrainConfig(store="a", out="b"), {}, 0)
    m, _, _ = problem("sense")
    single = Measurement(
        m.y.to(torch.complex64), m.operator.to(dtype=torch.float32), m.noise_std.float(), torch.tensor([3, 8])
    )
    pairs = [
        draw_posterior(prior, single, 2, steps=40, iterations=N, tolerance=0, seed=seed, level=40.0).to(COMPLEX)
        for seed in range(2)
    ]
    assert (pairs[0][:, 0] - pairs[1][:, 0]).abs().mean() > 0.1
    for scan in range(2):
        A = m[scan].operator.repeat(N)(torch.eye(N, dtype=COMPLEX).reshape(N, *SHAPE)).flatten(1).mT
        noise = float(m.noise_std[scan])
        posterior = torch.linalg.inv(torch.linalg.inv(spectrum).to(COMPLEX) + A.mH @ A / noise**2)
        offset = torch.full((N,), 0.5, dtype=COMPLEX)
        mean = offset + posterior @ A.mH @ (m.y[scan].flatten() - A @ offset) / noise**2
        for pair in pairs:
            torch.testing.assert_close(pair[scan].mean(0).flatten(), mean, rtol=0.01, atol=0.01)


def test_draws_agree_with_the_data(prior: Prior, scans: Measurement) -> None:
    """A method that forgot the measurement would leave a residual as large as the measurement."""
    drawn = draw_posterior(prior, scans, steps=12)[:, 0]
    left = (scans.operator(drawn) - scans.y).norm() / scans.y.norm()
    assert left < 0.5
    unguided = (scans.operator(drawn[torch.tensor([1, 2, 3, 4, 5, 0])]) - scans.y).norm() / scans.y.norm()
    assert left < 0.7 * unguided


def test_methods_and_priors_that_do_not_go_together(prior: Prior, scans: Measurement) -> None:
    ambient = prior.config.method == "ambient"
    fitting, other = ("adps", "mmps") if ambient else ("mmps", "adps")
    named = draw_posterior(prior, scans[:1], method=fitting, steps=3)  # type: ignore[arg-type]
    assert torch.equal(named, draw_posterior(prior, scans[:1], steps=3))
    for method in (other, "magic"):
        with pytest.raises(ConfigError, match=f"method '{method}' does not go with .*; use 'auto' or '{fitting}'"):
            draw_posterior(prior, scans[:1], method=method, steps=3)  # type: ignore[arg-type]


def test_scans_of_other_images(prior: Prior) -> None:
    real = Measurement(torch.zeros(1, 1, 16, 16), Mask(torch.ones(1, 1, 16, 16)), 0.1)
    wanted = r"the prior is one of complex images of shape \(1, 16, 16\), the scans are of real images"
    with pytest.raises(ConfigError, match=wanted):
        draw_posterior(prior, real)
    operator = Fourier(torch.ones(1, 1, 1, 12), (12, 12))
    other = Measurement(torch.zeros(1, 1, 12, 12, dtype=torch.complex64), operator, 0.1)
    with pytest.raises(ConfigError, match=r"the scans are of complex images of shape \(1, 12, 12\)"):
        draw_posterior(prior, other)
