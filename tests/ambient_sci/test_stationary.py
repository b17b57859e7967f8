"""Stationary Gaussian images: their posterior against dense matrices, their spectrum against the true one.

And what a lap of expectation-maximisation does to samples that are right already: nothing, in distribution.
"""

import numpy as np
import pytest
import torch

from ambient_sci.denoise import GaussianDenoiser
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Fourier, LinearOperator, Mask, Sense
from ambient_sci.operators.patterns import random_lines
from ambient_sci.posterior import MMPS
from ambient_sci.sample import Solver, sample
from ambient_sci.schedule import edm_levels
from ambient_sci.stationary import StationaryGaussian, filtered, fit_stationary, spectrum

SHAPE = (8, 8)


def power(size: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Falling with the fourth power of the frequency."""
    k = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in size), indexing="ij")
    return (0.002 / (0.01 + k[0] ** 2 + k[1] ** 2) ** 2)[None, None]


def dense(function, size: int, dtype: torch.dtype) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Matrix of a linear map of images of 64 pixels."""
    columns = torch.eye(size, dtype=dtype).reshape(size, 1, *SHAPE)
    return torch.stack([function(column[None]).flatten() for column in columns], 1)


@pytest.mark.parametrize("kind", ["mask", "fourier"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_posterior_is_the_gaussian_one(kind: str, per_sample: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float64 if kind == "mask" else torch.complex128
    count, noise = 600, 0.2
    model = StationaryGaussian(0.3 * randn_like(torch.empty(1, 1, *SHAPE, dtype=dtype), generator), power())
    operator: LinearOperator
    if kind == "mask":
        operator = Mask((torch.rand(1, 1, *SHAPE, generator=generator) < 0.5).double())
    else:
        operator = Fourier(random_lines(1, SHAPE, 2, 2, generator).double(), SHAPE)
    x = model.mean + model.colour(randn_like(torch.empty(1, 1, *SHAPE, dtype=dtype), generator))
    clean = operator(x)
    level = noise * (1 + torch.rand(clean.shape, generator=generator, dtype=torch.float64)) if per_sample else noise
    y = clean + level * randn_like(clean, generator) * operator.rows
    m = Measurement(y, operator, level)

    matrix = dense(operator, 64, dtype)
    covariance = dense(lambda v: filtered(v, power()), 64, dtype)
    weight = (operator.rows.expand(y.shape) / torch.as_tensor(level, dtype=torch.float64) ** 2).flatten()
    precision = torch.linalg.inv(covariance) + matrix.mH @ (weight[:, None] * matrix)
    mean = model.mean.flatten() + torch.linalg.solve(
        precision, matrix.mH @ (weight * (y.flatten() - matrix @ model.mean.flatten()))
    )
    draws = model.sample(m.repeat(count), generator, iterations=70).flatten(1)
    expected = torch.linalg.inv(precision)
    error = draws.mean(0) - mean
    spread = expected.diagonal().real.sqrt()
    assert float((error.abs() / spread).max()) < 6 / np.sqrt(count)
    centred = draws - draws.mean(0)
    found = centred.mT @ centred.conj() / (count - 1) / (1 if kind == "mask" else 2)
    scaled = (found - expected).abs() / (spread[:, None] * spread)
    assert float(scaled.max()) < 6 / np.sqrt(count)


@pytest.mark.parametrize("complex_", [False, True])
def test_spectrum_is_found_from_half_of_the_samples(complex_: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    dtype, size, count = (torch.complex64 if complex_ else torch.float32), (16, 16), 100
    true = power(size).float()
    mean = torch.zeros(1, 1, *size, dtype=dtype) if complex_ else torch.linspace(-1, 1, 16).expand(1, 1, *size)
    model = StationaryGaussian(mean, true)
    x = mean + model.colour(randn_like(torch.empty(count, 1, *size, dtype=dtype), generator))
    operator: LinearOperator
    if complex_:
        operator = Fourier(random_lines(count, size, 2, 2, generator), size)
    else:
        operator = Mask((torch.rand(count, 1, *size, generator=generator) < 0.5).float())
    clean = operator(x)
    m = Measurement(clean + 0.05 * randn_like(clean, generator) * operator.rows, operator, 0.05)
    found = fit_stationary(m, iterations=12)
    assert float((found.power / true).log10().abs().mean()) < 0.12
    assert float((found.mean - mean).abs().max()) < (1e-6 if complex_ else 6 * float(true.mean()) ** 0.5 / 10)


def renewed_spread(solver: Solver, times: int, extrapolation: float = 1.0) -> float:
    """Variance of exact posterior samples after so many renewals, as a part of what it was."""
    generator, count, noise = torch.Generator().manual_seed(4), 300, 0.03
    scale = 0.3 / float(power().mean().sqrt())
    covariance = scale**2 * dense(lambda v: filtered(v, power()), 64, torch.complex128)
    operator = Fourier(random_lines(1, SHAPE, 4, 2, generator).double(), SHAPE)
    matrix = dense(operator, 64, torch.complex128)
    clean = operator(
        scale * filtered(randn_like(torch.empty(1, 1, *SHAPE, dtype=torch.complex128), generator), power().sqrt())
    )
    y = clean + noise * randn_like(clean, generator) * operator.rows
    expected = torch.linalg.inv(torch.linalg.inv(covariance) + matrix.mH @ matrix / noise**2)
    mean = expected @ (matrix.mH @ y.flatten()) / noise**2
    white = randn_like(torch.empty(count, 64, dtype=torch.complex128), generator)
    x = (mean + white @ torch.linalg.cholesky(expected).mT).reshape(count, 1, *SHAPE)
    prior = GaussianDenoiser(torch.zeros(1, *SHAPE, dtype=torch.complex128), covariance.real)
    m = Measurement(y, operator, noise).repeat(count)
    levels = edm_levels(6, 0.02 * 0.3, 0.3)
    before = float((x.flatten(1) - mean).abs().square().sum())
    posterior, like = MMPS(prior, m, 2), x
    for _ in range(times):
        x = sample(
            posterior, lambda k: randn_like(like, generator), levels, solver, start=x, extrapolation=extrapolation
        )
    return float((x.flatten(1) - mean).abs().square().sum()) / before


def test_multistep_laps_neither_narrow_nor_widen() -> None:
    assert abs(renewed_spread("multistep", 4) - 1) < 0.1
    narrow, between = renewed_spread("euler", 4), renewed_spread("multistep", 4, 0.5)
    assert narrow < 0.9
    assert narrow + 0.05 < between < renewed_spread("multistep", 4) - 0.05


def test_few_iterations_reach_fine_structures() -> None:
    """What is drawn given data of the model has the model's spectrum, though it falls by five orders of magnitude."""
    generator = torch.Generator().manual_seed(3)
    size, count = (32, 32), 64
    k = torch.meshgrid(*(torch.fft.fftfreq(n) for n in size), indexing="ij")
    falling = (1e-4 / (0.002 + k[0] ** 2 + k[1] ** 2) ** 2)[None, None]
    assert float(falling.max() / falling.min()) > 5e4
    model = StationaryGaussian(torch.zeros(1, 1, *size, dtype=torch.complex64), falling)
    ramps = torch.stack(torch.meshgrid(*(torch.linspace(-3, 3, n) for n in size), indexing="ij"))
    slopes = torch.randn(count, 4, 2, 1, 1, generator=generator)
    maps = torch.polar(torch.tensor(0.5), (slopes * ramps).sum(2))  # of four coils: they mix neighbouring frequencies
    operator = Sense(random_lines(count, size, 4, 4, generator), maps)
    clean = operator(model.colour(randn_like(torch.empty(count, 1, *size, dtype=torch.complex64), generator)))
    m = Measurement((clean + 0.05 * randn_like(clean, generator)) * operator.rows, operator, 0.05)
    ratio = (spectrum(model.sample(m, generator)) / falling).flatten()
    ring = torch.hypot(32 * k[0], 32 * k[1]).flatten()
    for low, high in ((2, 4), (4, 8), (8, 12), (12, 16), (16, 24)):
        some = ratio[(ring >= low) & (ring < high)]
        assert abs(float(some.mean()) - 1) < 4 / (count * len(some)) ** 0.5


def test_power_is_per_real_component() -> None:
    generator = torch.Generator().manual_seed(3)
    for dtype in (torch.float64, torch.complex128):
        white = 2 * randn_like(torch.empty(2000, 1, *SHAPE, dtype=dtype), generator)
        assert float((spectrum(white) / 4 - 1).abs().max()) < 0.2
