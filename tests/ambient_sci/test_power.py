"""Images brought to the power that was measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci.datasets import Store, open_store, simulate
from ambient_sci.methods.clean import normalised_references
from ambient_sci.methods.power import BANDS, match_power

SIZE, COUNT = 32, 240


def fields(seed: int) -> np.ndarray:
    """Random images of a falling spectrum, isotropic, above zero."""
    g = np.random.default_rng(seed)
    away = np.fft.fftfreq(SIZE) * SIZE
    spectrum = 1 / (1 + (away[:, None] ** 2 + away**2) / 4) ** 0.5
    images = np.fft.ifft2(spectrum * np.fft.fft2(g.normal(size=(COUNT, SIZE, SIZE)))).real
    return (images - images.min()).astype(np.float32)


def stored(path: Path, operator: str, noise: float) -> Store:
    options = {"coils": 4, "calibration": 4} if operator == "sense" else {"calibration": 4}
    return simulate(fields(1), path, operator=operator, acceleration=3, noise=noise, seed=3, **options)


def rings(images: Tensor, where: Tensor) -> Tensor:
    """Mean power in rings of k-space, by NumPy."""
    power = np.abs(np.fft.fftshift(np.fft.fft2(images.numpy()), axes=(-2, -1))) ** 2 / SIZE**2
    away = (np.arange(SIZE) - SIZE // 2) / (SIZE / 2)
    ring = np.minimum(BANDS * np.hypot(away[:, None], away), BANDS - 1).astype(int)
    kept = np.broadcast_to(where.numpy(), power.shape)
    sums = [(power * kept)[..., ring == band].sum() / kept[..., ring == band].sum() for band in range(2, BANDS)]
    return torch.tensor(np.array(sums))


@pytest.fixture(scope="module", params=["fourier", "sense"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored(tmp_path_factory.mktemp("power") / "scans.zarr", request.param, 0.05)


def test_what_smoothing_took_comes_back_and_the_truth_stays(store: Store) -> None:
    truth = normalised_references(store)
    rows = store.read(slice(None)).operator.rows[:, :1].expand(COUNT, 1, SIZE, SIZE)
    everything, every = np.arange(COUNT), torch.ones(1)
    kept = match_power(store, truth, everything)
    assert float((kept - truth).norm() / truth.norm()) < 0.03
    # a fifth of the amplitude is gone where a scan has measured, and a third elsewhere
    centred = torch.fft.fftshift(torch.fft.fft2(truth), dim=(-2, -1))
    smooth = torch.fft.ifft2(torch.fft.ifftshift(centred * torch.where(rows > 0, 0.8, 0.67), dim=(-2, -1)))
    wanted = rings(truth, every)
    assert (rings(smooth, every) < 0.65 * wanted).all()
    again = match_power(store, smooth, everything)
    torch.testing.assert_close(rings(again, every), wanted, rtol=0.15, atol=0)
    torch.testing.assert_close(rings(again, 1 - rows), rings(truth, 1 - rows), rtol=0.2, atol=0)


def test_scans_that_are_not_asked_for_are_left_alone(store: Store) -> None:
    images = 0.7 * normalised_references(store)
    some = np.arange(0, COUNT, 2)
    matched = match_power(store, images, some)
    assert torch.equal(matched[1::2], images[1::2])
    assert not torch.equal(matched[::2], images[::2])


def test_what_noise_hides_is_left_alone(tmp_path: Path) -> None:
    store = stored(tmp_path / "noisy.zarr", "fourier", 3000.0)
    images = 0.5 * normalised_references(store)
    torch.testing.assert_close(match_power(store, images, np.arange(COUNT)), images)


def test_other_measurements_are_left_alone(tmp_path: Path) -> None:
    simulate(fields(2)[:8], tmp_path / "pixels.zarr", operator="mask", keep=0.5)
    store = open_store(tmp_path / "pixels.zarr")
    images = torch.rand(8, 1, SIZE, SIZE)
    assert match_power(store, images, np.arange(8)) is images
