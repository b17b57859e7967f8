"""Twisted particles against a posterior that is known, and the noise levels of all samplers."""

import math

import pytest
import torch
from torch import Tensor

from ambient_sci.denoise import GaussianMixtureDenoiser
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Matrix
from ambient_sci.posterior.particles import twisted_sample
from ambient_sci.sample import sample
from ambient_sci.schedule import edm_levels, log_linear_levels, quantile_levels, spread_levels, training_levels

REAL = torch.float64


def test_particles_mend_the_weights_of_a_mixture() -> None:
    """One particle is guidance, which gets the share of a mode wrong; many bring it near the exact one."""
    means = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=REAL).reshape(2, 1, 1, 2)
    covariances = torch.stack([torch.diag(torch.tensor(v, dtype=REAL)) for v in ([0.02, 0.05], [0.02, 1.0])])
    prior = GaussianMixtureDenoiser(torch.tensor([0.5, 0.5], dtype=REAL), means, covariances)
    row, y, noise = torch.tensor([[1.0, 2.0]], dtype=REAL), torch.tensor([[1.6]], dtype=REAL), 0.3

    # evidence of each mode
    variance = torch.stack([row[0] @ c @ row[0] for c in covariances]) + noise**2
    centre = means.flatten(1) @ row[0]
    log = -((y[0] - centre) ** 2) / variance / 2 - variance.log() / 2
    exact = float(torch.softmax(log, 0)[0])

    def share(particles: int) -> float:
        count, g = 600, torch.Generator().manual_seed(0)
        like = torch.zeros(count * particles, 1, 1, 2, dtype=REAL)
        m = Measurement(y, Matrix(row[None], (1, 1, 2)), noise).repeat(count)
        streams = [torch.Generator().manual_seed(seed) for seed in range(count)]
        levels = edm_levels(24, 0.03, 10.0)
        drawn = twisted_sample(prior, m, particles, lambda k: randn_like(like, g), levels, streams)
        assert drawn.shape == (count, 1, 1, 2)
        return float((drawn[:, 0, 0, 0] > 0).double().mean())

    few, many = share(1), share(16)
    assert abs(few - exact) > 0.2
    assert abs(many - exact) < 0.05  # of which chance is 0.014


def test_ancestral_steps_are_those_of_ddpm() -> None:
    """Euler with eta = 1, against the mean and variance of x_t given x_s and x_0 (Ho et al. 2020, eq. 7)."""
    levels = torch.tensor([2.0, 0.8, 0.0], dtype=REAL)
    s, t = 2.0, 0.8
    white = torch.randn(2, 1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=REAL)
    seen = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return torch.tanh(x)

    sample(denoiser, lambda k: white[k], levels, "euler", 1.0)  # type: ignore[arg-type]
    x0, x = torch.tanh(s * white[0]), s * white[0]
    # variances of x_t given x_0, of x_s given x_t
    first, second = t**2, s**2 - t**2
    mean, variance = (second * x0 + first * x) / (first + second), first * second / (first + second)
    torch.testing.assert_close(seen[1], mean + variance**0.5 * white[1])


@pytest.mark.parametrize("make", [edm_levels, log_linear_levels, lambda n, a, b: quantile_levels(n, a, b, 0.5)])
def test_levels_go_from_the_highest_to_the_lowest_and_nothing(make) -> None:  # type: ignore[no-untyped-def]
    levels = make(20, 0.01, 5.0)
    assert levels.shape == (21,)
    assert bool((levels.diff() < 0).all())
    assert levels[[0, -2, -1]].tolist() == pytest.approx([5.0, 0.01, 0.0])
    assert make(1, 0.01, 5.0).tolist() == pytest.approx([5.0, 0.0])
    with pytest.raises(ConfigError, match="needs steps >= 1 and 0 < sigma_min < sigma_max, got steps 0"):
        make(0, 0.01, 5.0)


def test_log_linear_levels_have_one_ratio() -> None:
    levels = log_linear_levels(5, 0.01, 100.0)[:-1]
    torch.testing.assert_close(levels[1:] / levels[:-1], torch.full((4,), 0.1, dtype=REAL))


def test_training_draws_equally_many_levels_between_quantiles() -> None:
    levels = quantile_levels(9, 0.02, 3.0, 0.5)[:-1]
    drawn = training_levels(200_000, 0.5, torch.Generator().manual_seed(0)).double()
    counts = torch.histogram(drawn, levels.flip(0))[0]
    assert float((counts / counts.mean() - 1).abs().max()) < 0.03


def test_levels_far_above_all_training_levels_fall_to_them() -> None:
    levels = quantile_levels(16, 0.01, 1e8, 0.5)
    assert math.isfinite(float(levels.sum()))
    assert bool((levels.diff() < 0).all())


def test_schedules_by_name() -> None:
    assert torch.equal(spread_levels("edm", 4, 0.1, 2.0, 0.5), edm_levels(4, 0.1, 2.0))
    with pytest.raises(ConfigError, match="schedule must be 'edm', 'log-linear', 'quantile', got 'karras'"):
        spread_levels("karras", 4, 0.1, 2.0, 0.5)  # type: ignore[arg-type]
