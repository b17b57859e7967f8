import numpy as np
import pytest
import torch

from ambient_sci.datasets.calibration import (
    calibration_width,
    centre,
    compression,
    gridded_centre,
    nyquist_width,
    sampled,
)
from ambient_sci.operators import Nufft
from ambient_sci.operators.fourier import centred_fft
from ambient_sci.operators.trajectories import TRAJECTORIES, cartesian, golden_angle, radial


def test_sampled():
    kspace = np.zeros((2, 3, 3), np.complex64)
    kspace[0, 0, 1], kspace[1, 2, 2] = 1e-30, 1j
    assert np.argwhere(sampled(kspace)).tolist() == [[0, 1], [2, 2]]


def test_calibration_width():
    mask = np.zeros((20, 21), bool)
    assert calibration_width(mask) == 0
    mask[10 - 3 : 10 + 4, 10 - 3 : 10 + 4] = True
    assert calibration_width(mask) == 7
    lines = np.zeros((20, 24), bool)
    lines[:, 12 - 4 : 12 + 4] = True
    lines[:, 0] = True
    assert calibration_width(lines) == 8
    assert calibration_width(np.ones((20, 24), bool)) == 20
    wide = np.zeros((6, 24), bool)
    wide[:, 12 - 5 : 12 + 5] = True
    assert calibration_width(wide) == 10  # along y, which is narrower, everything was measured


def test_centre_keeps_frequency_zero():
    for size in (7, 8):
        line = np.arange(size) - size // 2
        for kept in range(1, size + 1):
            assert centre(line, [kept])[kept // 2] == 0
            assert len(centre(line, [kept])) == kept


def test_samples_on_the_grid_are_as_dense_as_it():
    """Any block of grid points counts as what it is, in 2-D and 3-D, for odd and even widths."""
    for shape in ((20, 23), (12, 11, 14)):
        for width in (5, 8):
            mask = np.zeros(shape)
            mask[tuple(slice(size // 2 - width // 2, size // 2 - width // 2 + width) for size in shape)] = 1
            points = cartesian(torch.from_numpy(mask)[None, None], shape)[0].numpy()
            found = nyquist_width(points, shape, 32)
            assert width <= found <= width + 1  # the next row is one cell from a sample: less than that in 3-D


def test_sparser_spokes_have_a_smaller_centre():
    g = torch.Generator().manual_seed(0)
    widths = [nyquist_width(radial(1, (64, 64), spokes, 64, g)[0].numpy(), (64, 64), 64) for spokes in (101, 51, 26, 2)]
    # spokes are dense as the grid up to a radius of about spokes / pi cells
    assert widths[0] > 40
    assert widths == sorted(widths, reverse=True)
    for width, spokes in zip(widths[:3], (101, 51, 26), strict=True):
        assert 0.5 < width / (2 * spokes / np.pi) < 1.6
    assert widths[3] < 4


@pytest.mark.parametrize("pattern", ["radial", "golden-angle", "spiral", "kooshball"])
def test_centre_off_the_grid_is_that_on_it(pattern):
    """Samples of the centre alone give the grid's values, whatever lies outside."""
    shape = (40, 36) if pattern != "kooshball" else (16, 18, 17)
    g = torch.Generator().manual_seed(1)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    inside = torch.sigmoid(15 * (1 - sum((axis / 0.75) ** 2 for axis in axes)))
    images = inside * torch.stack([1 + 0.5 * axes[0] + 0.2j * axes[1], 1 - 0.7j * axes[1]]).to(torch.complex64)
    readouts, samples = (400, 40) if len(shape) == 3 else (20, 300) if pattern == "spiral" else (64, 80)
    points = TRAJECTORIES[pattern](1, shape, readouts, samples, g)
    y = Nufft(points, shape)(images[None])[0].numpy()
    trajectory, width = points[0].numpy(), 10
    assert nyquist_width(trajectory, shape, 32) >= width
    want = centre(centred_fft(images, len(shape)).numpy(), [width] * len(shape))
    got = gridded_centre(y, trajectory, shape, width)
    assert np.linalg.norm(got - want) < 0.04 * np.linalg.norm(want)
    weights = np.linalg.norm(trajectory, axis=1) ** (len(shape) - 1) + 0.01
    got = gridded_centre(y, trajectory, shape, width, weights)
    assert np.linalg.norm(got - want) < 0.04 * np.linalg.norm(want)
    far = (np.abs(trajectory) * np.array(shape) / (2 * np.pi)).max(1) > width / 2 + 6
    if pattern == "golden-angle":
        y[:, far] = np.nan
        assert np.isfinite(gridded_centre(y, trajectory, shape, width)).all()


def test_compression_against_svd():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(7, 200)) + 1j * rng.normal(size=(7, 200))
    samples *= np.arange(1, 8)[:, None]
    left, sizes, _ = np.linalg.svd(samples, full_matrices=False)
    matrix, energy = compression(samples, 3)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix.conj().T @ matrix, left[:, :3] @ left[:, :3].conj().T, atol=1e-12)
    assert energy == pytest.approx((sizes[:3] ** 2).sum() / (sizes**2).sum())
    assert compression(samples, 7)[1] == pytest.approx(1)


def test_golden_angles_are_no_denser_than_even_ones():
    g = torch.Generator().manual_seed(0)
    even, golden = (pattern(1, (64, 64), 40, 128, g)[0].numpy() for pattern in (radial, golden_angle))
    assert nyquist_width(golden, (64, 64), 64) <= nyquist_width(even, (64, 64), 64)
