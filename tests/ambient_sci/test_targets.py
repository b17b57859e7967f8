"""Weights of what scans have measured, and targets towards it, in the loss of expectation-maximisation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ambient_sci.config import TrainConfig
from ambient_sci.datasets import Store, StoreWriter, open_store, simulate
from ambient_sci.measurement import Measurement
from ambient_sci.methods import METHODS, starts
from ambient_sci.methods.clean import CLEAN
from ambient_sci.methods.em import EMLearner
from ambient_sci.methods.targets import MOST, DataSteps, TargetWeights, measured_positions, target_weights
from ambient_sci.operators import Fourier, Interferometer, LinearOperator, Mask, Matrix, Nufft, Sense

SIZE = 16


def kspace(images: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, (-2, -1)), norm="ortho"), (-2, -1))


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
    power = np.abs(kspace(error.numpy())) ** 2
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
        assert isinstance(learner, EMLearner)
        assert learner.images is not None
        batch = learner.draw(torch.Generator().manual_seed(0))
        images, sigma, noise = (value.numpy() for value in batch.values[:3])
        level = sigma[:, None, None, None]
        m = store.read(batch.index.numpy())
        mask = store.read(slice(None)).operator.rows[:, :1].numpy()
        factor = 1 + (1 - imputed) * np.minimum(1 / mask.mean(0).clip(1e-9), MOST) * (mask - mask.mean(0))

        turned = images / learner.images[batch.index].numpy()  # images have a phase of their own in each batch
        measured = mask[batch.index] * (turned * m.y.numpy() - kspace(images))
        share = level**2 / (level**2 + m.noise_std.numpy()[:, None, None, None] ** 2)
        error = kspace((images + level * noise) / 2 - images) - share * measured
        wanted = (1 / sigma**2 + 4) * (factor[batch.index] * np.abs(error) ** 2).mean((1, 2, 3))
        found = learner.loss(Half(), batch)
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
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


def test_steps_are_what_the_formula_says(tmp_path: Path) -> None:
    """By dense matrices; scans of unequal noise, with rows of any norm."""
    g = torch.Generator().manual_seed(1)
    matrix = 3 * torch.rand(3, 6, 16, generator=g)
    rows = (torch.rand(3, 6, generator=g) < 0.7).float()
    operator = Matrix(matrix, (1, 4, 4), rows)
    noise = rows * (0.1 + torch.rand(3, 6, generator=g))
    truth, start = torch.rand(2, 3, 1, 4, 4, generator=g)
    m = Measurement(operator(truth) + noise, operator, noise)
    with StoreWriter(tmp_path / "scans.zarr", {}) as out:
        out.append(m)
    towards = DataSteps(open_store(tmp_path / "scans.zarr"), start)
    scans, sigma = torch.tensor([2, CLEAN, 1]), torch.tensor([0.1, 0.5, 1.0])
    found = towards.of(scans, sigma)
    assert bool((found[1] == 0).all())
    for place in (0, 2):
        scan = scans[place]
        kept = rows[scan] > 0
        A, spread = matrix[scan, kept].double(), noise[scan, kept].double()
        square = torch.linalg.matrix_norm(A, 2) ** 2
        step = A.T @ (m.y[scan, kept].double() - A @ start[scan].flatten().double()) / square
        share = sigma[place] ** 2 / (sigma[place] ** 2 + spread.square().mean() / square)
        torch.testing.assert_close(found[place].flatten().double(), share * step, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["interferometer", "nufft", "sense"])
def test_steps_lead_towards_the_data(kind: str, tmp_path: Path) -> None:
    """A step of gradient descent of the inverse of the largest curvature never leads away."""
    g = torch.Generator().manual_seed(5)
    truth, start = torch.rand(2, 3, 1, SIZE, SIZE, generator=g)
    maps = torch.randn(3, 4, SIZE, SIZE, generator=g, dtype=torch.complex64)
    operator: LinearOperator = Sense((torch.rand(3, 1, SIZE, 1, generator=g) < 0.5).float(), maps)
    if kind == "nufft":
        operator = Nufft(6 * torch.rand(3, 200, 2, generator=g) - 3, (SIZE, SIZE), maps=maps)
    if kind == "interferometer":
        operator = Interferometer((torch.rand(3, 50, 2, generator=g) - 0.5) / 1e-6, (SIZE, SIZE), 1e-6)
    else:
        truth, start = truth.to(torch.complex64), start.to(torch.complex64)
    y = operator(truth)
    with StoreWriter(tmp_path / "scans.zarr", {}) as out:
        out.append(Measurement(y, operator, 0.01))
    towards = DataSteps(open_store(tmp_path / "scans.zarr"), start)
    step = towards.of(torch.arange(3), torch.full((3,), 1e3))
    assert step.is_complex() == start.is_complex()
    before, after = ((y - operator(images)).abs().square().flatten(1).sum(1) for images in (start, start + step))
    assert bool((after < 0.9 * before).all())


def test_steps_do_not_depend_on_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path / "scans.zarr", "sense", acceleration=3, calibration=2, coils=4)
    start = torch.zeros(len(store), 1, SIZE, SIZE, dtype=torch.complex64)
    scans, sigma = torch.arange(len(store)), torch.ones(len(store))
    together = DataSteps(store, start).of(scans, sigma)
    monkeypatch.setattr(starts, "CHUNK", 5)
    torch.testing.assert_close(DataSteps(store, start).of(scans, sigma), together, rtol=1e-5, atol=1e-6)


def test_targets_agree_with_noiseless_pixels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((8, SIZE, SIZE), np.float32)
    store = simulate(images, tmp_path / "pixels.zarr", operator="mask", keep=0.4, noise=0.0)
    start, m = torch.rand(8, 1, SIZE, SIZE), store.read(slice(None))
    towards = DataSteps(store, start)
    target = start + towards.of(torch.arange(8), torch.full((8,), 0.1))
    torch.testing.assert_close(m.operator(target), m.y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((1 - m.operator.rows) * target, (1 - m.operator.rows) * start, atol=1e-5, rtol=0)
    towards.renew(target, np.arange(3))  # only of those whose images have changed
    again = towards.of(torch.arange(8), torch.ones(8))
    assert float(again[:3].abs().max()) < 1e-5
    torch.testing.assert_close(start[3:] + again[3:], target[3:], atol=1e-5, rtol=0)


def test_a_lap_mends_all_of_a_correlation_with_what_noise_hides(tmp_path: Path) -> None:
    """Two pixels, the first with noise: exact posterior samples of a prior that takes them for independent.

    The second is known. A lap brings g = S / (S + v) of the slope of the first on it without steps (samples are a
    shrunk copy of what was measured), and g + (1 - g) b with a part b of them, so all of it where levels are high.
    """
    true, v, count = 0.8, 2.0, 60_000
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=g)
    x[:, 1] = true * x[:, 0] + math.sqrt(1 - true**2) * x[:, 1]
    spread = torch.tensor([math.sqrt(v), 1e-3])
    y = x + spread * torch.randn(count, 2, generator=g)
    gain = 1 / (1 + spread**2)
    samples = gain * y + (spread * gain.sqrt()) * torch.randn(count, 2, generator=g)

    def slope(targets: torch.Tensor) -> float:
        return float((targets[:, 0] * samples[:, 1]).sum() / samples[:, 1].square().sum())

    assert slope(samples) == pytest.approx(true / (1 + v), abs=0.02)
    m = Measurement(y.reshape(count, 1, 1, 2), Mask(torch.ones(count, 1, 1, 2)), spread.expand(count, 1, 1, 2))
    with StoreWriter(tmp_path / "scans.zarr", {}) as out:
        out.append(m)
    towards = DataSteps(open_store(tmp_path / "scans.zarr"), samples.reshape(count, 1, 1, 2))
    for level, part in ((100.0, 1.0), (1.0, 0.5)):  # the mean variance is 1
        step = towards.of(torch.arange(count), torch.full((count,), level)).reshape(count, 2)
        assert slope(samples + step) == pytest.approx(true * (1 + part * v) / (1 + v), abs=0.02)


def test_under_the_truth_steps_are_noise(tmp_path: Path) -> None:
    """Exact posterior samples of a correlated Gaussian: nothing of the samples predicts what they leave of the data."""
    n, rows, count, noise = 6, 4, 50_000, 0.5
    g = torch.Generator().manual_seed(4)
    factor = torch.randn(n, n, generator=g, dtype=torch.float64)
    covariance = factor @ factor.T
    matrix = torch.randn(rows, n, generator=g, dtype=torch.float64)
    y = torch.randn(count, n, generator=g, dtype=torch.float64) @ factor.T @ matrix.T
    y += noise * torch.randn(count, rows, generator=g, dtype=torch.float64)
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + noise**2 * torch.eye(rows))
    spread = torch.linalg.cholesky(covariance - gain @ matrix @ covariance)
    samples = y @ gain.T + torch.randn(count, n, generator=g, dtype=torch.float64) @ spread.T
    operator = Matrix(matrix.float().expand(count, rows, n), (1, 1, n))
    with StoreWriter(tmp_path / "scans.zarr", {}) as out:
        out.append(Measurement(y.float(), operator, noise))
    towards = DataSteps(open_store(tmp_path / "scans.zarr"), samples.float().reshape(count, 1, 1, n))
    step = towards.of(torch.arange(count), torch.full((count,), 100.0)).reshape(count, n).double()
    slopes = torch.linalg.lstsq(samples, step).solution
    assert float(slopes.abs().max()) < 0.02
    assert float(torch.linalg.lstsq(samples, step + samples - y @ gain.T).solution.abs().max()) > 0.1  # of another rest


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
