"""Weights of what scans have measured, in the loss of expectation-maximisation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ambient_sci.config import TrainConfig
from ambient_sci.datasets import Store, simulate
from ambient_sci.methods import METHODS
from ambient_sci.methods.clean import CLEAN
from ambient_sci.methods.targets import MOST, TargetWeights, measured_positions, target_weights
from ambient_sci.operators import Fourier, Interferometer, Nufft, Sense

SIZE = 16


def stored(path: Path, operator: str, count: int = 24, **options: object) -> Store:
    images = np.random.default_rng(0).random((count, SIZE, SIZE), np.float32)
    return simulate(images, path, operator=operator, noise=0.1, seed=3, **options)


def test_weights_are_what_the_formula_says(tmp_path: Path) -> None:
    store = stored(tmp_path / "pixels.zarr", "mask", keep=0.4)
    weights = target_weights(store, 0.3)
    assert weights is not None
    mask = store.read(slice(None)).operator.rows.numpy()
    share = mask.mean(0)
    with np.errstate(divide="ignore"):
        wanted = 1 + 0.7 * np.minimum(1 / share, MOST) * (mask - share)
    found = weights.of(torch.arange(len(store))).numpy()
    np.testing.assert_allclose(found, np.where(share > 0, wanted, 1), rtol=1e-5)
    np.testing.assert_allclose(found.mean(0), 1, rtol=1e-5)  # of all scans, at every position, never measured or not
    often = (share > 1 / MOST) & (share < 1)
    np.testing.assert_allclose(found[:, often][mask[:, often] == 0], 0.3, rtol=1e-5)


def test_rare_and_common_positions_and_clean_images() -> None:
    measured = torch.zeros(1000, 1, 1, 3, dtype=torch.bool)
    measured[0, ..., 0] = measured[..., 1] = True  # one scan, all, none
    weights = TargetWeights(measured, 0.0, kspace=False)
    found = weights.of(torch.tensor([0, 1, CLEAN]))
    assert found[0, 0, 0].tolist() == pytest.approx([1 + MOST * 0.999, 1, 1])
    assert found[1, 0, 0].tolist() == pytest.approx([1 - MOST * 0.001, 1, 1])
    assert found[2, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("operator", ["fourier", "sense"])
def test_errors_are_weighed_in_kspace(operator: str, tmp_path: Path) -> None:
    options = {"coils": 4} if operator == "sense" else {}
    store = stored(tmp_path / "scans.zarr", operator, acceleration=3, calibration=2, **options)
    weights = target_weights(store, 0.2)
    assert weights is not None
    scans = torch.tensor([5, 2, 11])
    error = torch.randn(3, 1, SIZE, SIZE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    found = weights.norm(weights.of(scans))(error)
    # by NumPy, with every sum written out
    mask = store.read(slice(None)).operator.rows[:, :1].expand(-1, 1, SIZE, SIZE).numpy()
    share = mask.mean(0)
    factor = 1 + 0.8 / np.maximum(share, 1 / MOST) * (mask - share)
    power = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(error.numpy(), (-2, -1))), (-2, -1))) ** 2 / SIZE**2
    np.testing.assert_allclose(found, (factor[scans] * power).mean((1, 2, 3)), rtol=1e-4)


class Half(nn.Module):
    """A denoiser that is always wrong, by half of what it sees."""

    sigma_data = 0.5

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_em_learns_with_these_weights(tmp_path: Path) -> None:
    store = stored(tmp_path / "scans.zarr", "fourier", acceleration=3, calibration=2)
    options = {"store": store.path, "out": tmp_path, "method": "em", "sigma_data": 0.5, "batch": 8}
    for imputed in (0.2, 1.0):
        learner = METHODS["em"](TrainConfig(**options, em_imputed=imputed), store, False)
        learner.prepare(0, None)  # type: ignore[arg-type]
        batch = learner.draw(torch.Generator().manual_seed(0))
        images, sigma, noise = batch.values[:3]
        error = (images + sigma[:, None, None, None] * noise) / 2 - images
        power = np.abs(np.fft.fftshift(np.fft.fft2(error.numpy(), norm="ortho"), (-2, -1))) ** 2
        mask = store.read(slice(None)).operator.rows[:, :1].numpy()
        factor = 1 + (1 - imputed) * np.minimum(1 / mask.mean(0).clip(1e-9), MOST) * (mask - mask.mean(0))
        mean = (factor[batch.index] * power).mean((1, 2, 3))
        wanted = (1 / sigma**2 + 4) * torch.from_numpy(mean)
        found = learner.loss(Half(), batch)
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(learner.loss(Half(), batch[2:5]), found[2:5])  # shared out, and accumulated


def test_coils_that_are_masked_apart_count_together() -> None:
    mask = torch.zeros(1, 2, 1, 4)
    mask[0, 0, 0, 1] = mask[0, 1, 0, 2] = 1
    maps = torch.full((1, 2, 4, 4), 0.5**0.5, dtype=torch.complex64)
    assert measured_positions(Sense(mask, maps), (1, 4, 4)).tolist() == [[[[False, True, True, False]]]]


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 5, 6)])
def test_a_trajectory_on_the_grid_measures_what_a_mask_measures(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(1)
    mask = (torch.rand(3, 1, *shape, generator=g) < 0.3).float()
    count = int(mask.flatten(1).sum(1).max())
    trajectory, weights = torch.full((3, count, len(shape)), 3.0), torch.zeros(3, count)
    for scan in range(3):
        where = torch.nonzero(mask[scan, 0])
        trajectory[scan, : len(where)] = 2 * math.pi * (where - torch.tensor(shape) // 2) / torch.tensor(shape)
        weights[scan, : len(where)] = 1
    trajectory[1] += 2 * math.pi * torch.tensor(-1)  # a period away
    found = measured_positions(Nufft(trajectory, shape, weights=weights), (1, *shape))
    assert torch.equal(found, measured_positions(Fourier(mask), (1, *shape)))


def test_visibilities_of_real_images_are_known_on_both_sides() -> None:
    pixel = 1e-6
    uv = torch.tensor([[[2.0, -1.0], [0.0, 3.0], [1.0, 1.0]]]) / (8 * pixel)  # cells of an 8 x 8 grid
    weights = torch.tensor([[1.0, 0.5, 0.0]])
    operator = Interferometer(uv, (8, 8), pixel, weights=weights)
    found = measured_positions(operator, (1, 8, 8), directed=False)
    # v is the row, u runs against the columns
    assert torch.nonzero(found[0, 0]).tolist() == [[1, 4], [3, 2], [5, 6], [7, 4]]
    images = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    kspace = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, dim=(-2, -1))), dim=(-2, -1))[0, 0]
    torch.testing.assert_close(operator(images)[0, 0], kspace[3, 2], rtol=1e-3, atol=1e-3)


def test_nothing_is_weighed_where_it_does_not_matter(tmp_path: Path) -> None:
    assert target_weights(stored(tmp_path / "pixels.zarr", "mask", keep=0.5), 1.0) is None  # all alike
    assert target_weights(stored(tmp_path / "rows.zarr", "gaussian", acceleration=4), 0.3) is None  # no positions
    assert target_weights(stored(tmp_path / "whole.zarr", "fourier", acceleration=1), 0.3) is None  # all the same


@pytest.mark.parametrize("imputed", [0.0, 0.3, 1.0])
def test_a_lap_mends_more_of_a_correlation(imputed: float) -> None:
    """Two pixels, measured with chance p each: exact posterior samples of a prior that takes them for independent.

    A lap of all alike brings p^2 of the correlation, one of what was measured alone p (derived in the comment).
    """
    true, p, count = 0.9, 0.4, 400_000
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=g)
    x[:, 1] = true * x[:, 0] + math.sqrt(1 - true**2) * x[:, 1]
    measured = torch.rand(count, 2, generator=g) < p
    samples = torch.where(measured, x, torch.randn(count, 2, generator=g))
    weights = TargetWeights(measured.reshape(count, 1, 1, 2), imputed, kspace=False).of(torch.arange(count))[:, 0, 0]
    # the slope of the first pixel on the second that least weighted squares give
    slope = float((weights[:, 0] * samples[:, 0] * samples[:, 1]).sum() / (weights[:, 0] * samples[:, 1] ** 2).sum())
    # first measured (weight i + (1 - i) / p): correlated if the second is, too, by chance p; else (weight i): never
    wanted = true * p * p * (imputed + (1 - imputed) / p)
    assert slope == pytest.approx(wanted, abs=0.01)


def test_the_truth_is_a_fixed_point_of_any_weights() -> None:
    """Exact posterior samples under the true prior lead back to its denoiser, by weighted as by plain least squares."""
    n, count, level = 6, 300_000, 0.7
    g = torch.Generator().manual_seed(4)
    factor = torch.randn(n, n, generator=g, dtype=torch.float64) / math.sqrt(n) + torch.eye(n)
    covariance = factor @ factor.T
    measured = torch.zeros(count, n, dtype=torch.bool)
    samples = torch.zeros(count, n, dtype=torch.float64)
    masks = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1]]).bool()
    noise = 0.3
    for part, mask in enumerate(masks):
        some = slice(part * count // 4, (part + 1) * count // 4)
        rows = torch.eye(n, dtype=torch.float64)[mask]
        x = torch.randn(count // 4, n, generator=g, dtype=torch.float64) @ factor.T
        y = x @ rows.T + noise * torch.randn(count // 4, len(rows), generator=g, dtype=torch.float64)
        gain = covariance @ rows.T @ torch.linalg.inv(rows @ covariance @ rows.T + noise**2 * torch.eye(len(rows)))
        spread = torch.linalg.cholesky(covariance - gain @ rows @ covariance + 1e-12 * torch.eye(n))
        samples[some] = y @ gain.T + torch.randn(count // 4, n, generator=g, dtype=torch.float64) @ spread.T
        measured[some] = mask
    weights = TargetWeights(measured.reshape(count, 1, 1, n), 0.1, kspace=False).of(torch.arange(count))[:, 0, 0]
    noisy = samples + level * torch.randn(count, n, generator=g, dtype=torch.float64)
    exact = covariance @ torch.linalg.inv(covariance + level**2 * torch.eye(n))
    for k in range(n):
        scaled = noisy * weights[:, k : k + 1]
        row = torch.linalg.solve(scaled.T @ noisy, scaled.T @ samples[:, k])
        torch.testing.assert_close(row, exact[k], atol=0.01, rtol=0)
