"""Units of trajectories: closed forms, the order of columns, and what a wrong unit is told."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.errors import DataError
from ambient_sci.operators import units

PI = math.pi


def close(got: torch.Tensor, want: list) -> None:
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=0)


def test_cycles() -> None:
    close(units.from_cycles(np.array([[0.5, -0.25], [0.0, 0.125]])), [[PI, -PI / 2], [0.0, PI / 4]])


def test_wavenumber() -> None:
    """A field of view of 0.256 m in 128 pixels: 250/m is half a cycle per pixel of 2 mm."""
    k = np.array([[250.0, -125.0]])
    close(units.from_wavenumber(k, 0.256 / 128), [[PI, -PI / 2]])
    close(units.from_wavenumber(k, [0.002, 0.001]), [[PI, -PI / 4]])


def test_wavenumber_is_the_phase_of_a_plane_wave() -> None:
    """``exp(-2 pi i f x)`` at the positions of the pixels in metres is ``exp(-i k n)``."""
    f, size = np.array([37.0, -210.0, 88.0]), np.array([2e-3, 1.5e-3, 4e-3])
    k = units.from_wavenumber(f, size.tolist()).numpy()
    n = np.array([3, -7, 5])
    np.testing.assert_allclose(np.exp(-1j * k @ n), np.exp(-2j * np.pi * f @ (size * n)), rtol=0, atol=1e-13)


def test_inverse_fov() -> None:
    """In cycles per field of view, the grid of the discrete Fourier transform is whole numbers."""
    k = np.array([[-32.0, -24.0], [16.0, 0.0], [32.0, 24.0]])
    close(units.from_inverse_fov(k, (64, 48)), [[-PI, -PI], [PI / 2, 0.0], [PI, PI]])
    frequencies = np.fft.fftfreq(7) * 2 * PI  # an independent grid, of an odd size
    close(units.from_inverse_fov(np.fft.fftfreq(7, 1 / 7)[:, None], (7,)), frequencies[:, None].tolist())


def test_bart() -> None:
    """BART has x before y before z, samples before readouts, and complex numbers; images have x last."""
    samples, readouts = 4, 2
    bart = np.zeros((3, samples, readouts), dtype=np.complex64)
    for readout in range(readouts):
        for sample in range(samples):
            bart[:, sample, readout] = [sample - 2, 10 * readout, 0]  # x, y, z
    k = units.from_bart(bart, (40, 8))  # 40 high, 8 wide
    assert k.shape == (1, 8, 2)
    assert k.dtype == torch.float32
    torch.testing.assert_close(k[0, :, 1], 2 * PI / 8 * torch.tensor([-2.0, -1, 0, 1] * 2))
    torch.testing.assert_close(k[0, :, 0], 2 * PI / 40 * torch.tensor([0.0] * 4 + [10.0] * 4))
    bart[2] = 3
    k = units.from_bart(bart, (16, 40, 8))
    torch.testing.assert_close(k[0, :, 0], torch.full((8,), 2 * PI / 16 * 3))
    assert k.shape == (1, 8, 3)
    frames = np.stack([bart, bart], -1)
    frames[0, :, :, 1] += 1
    k = units.from_bart(frames, (16, 40, 8))  # a later dimension varies more slowly
    torch.testing.assert_close(k[0, 8:, 2], k[0, :8, 2] + 2 * PI / 8)


def test_ismrmrd() -> None:
    traj = np.array([[[-0.5, 0.25], [0.0, 0.125]], [[0.5, 0.0], [0.25, -0.25]]], dtype=np.float32)  # x, y
    k = units.from_ismrmrd(traj)
    want = torch.tensor([[[PI / 2, -PI], [PI / 4, 0], [0, PI], [-PI / 2, PI / 2]]])
    torch.testing.assert_close(k, want)
    torch.testing.assert_close(units.from_ismrmrd(traj * np.array([32, 64], dtype=np.float32), (64, 32)), want)


def test_wavelengths() -> None:
    """u belongs to the last axis; right ascension falls as its index rises."""
    arcsec = PI / 180 / 3600
    longest = 1 / (2 * 0.5 * arcsec)  # half a cycle for pixels of half an arcsecond
    uv = np.array([[longest, 0.0], [0.0, longest / 2]])
    close(units.from_wavelengths(uv, 0.5 * arcsec), [[0.0, PI], [PI / 2, 0.0]])
    close(units.from_wavelengths(uv, [0.5 * arcsec, -0.5 * arcsec]), [[0.0, -PI], [PI / 2, 0.0]])
    u, v, lm = 31000.0, -52000.0, np.array([4e-6, 3e-6])  # the phase of a source, as the measurement defines it
    k = units.from_wavelengths([[u, v]], [2e-6, 1e-6]).numpy()[0]
    pixel = lm[::-1] / np.array([2e-6, 1e-6])  # (m, l)
    np.testing.assert_allclose(np.exp(-1j * k @ pixel), np.exp(-2j * np.pi * (u * lm[0] + v * lm[1])), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 300), st.floats(1e-4, 1e-2), st.integers(0, 99))
def test_units_agree(ndim: int, size: int, pixel: float, seed: int) -> None:
    """One trajectory in several units is one trajectory."""
    cycles = torch.rand(5, ndim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    want = units.from_cycles(cycles)
    assert float(want.abs().max()) <= PI
    torch.testing.assert_close(units.from_wavenumber(cycles / pixel, pixel), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(units.from_inverse_fov(cycles * size, [size] * ndim), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(units.from_ismrmrd(cycles.flip(1))[0], want, rtol=0, atol=0)
    if ndim == 2:
        torch.testing.assert_close(units.from_wavelengths(cycles.flip(1) / pixel, pixel), want, rtol=1e-12, atol=1e-12)


def test_precision_is_kept_and_rounding_is_forgiven() -> None:
    assert units.from_cycles(torch.tensor([[0.25]])).dtype == torch.float32
    assert units.from_cycles(torch.tensor([[0.25]], dtype=torch.float64)).dtype == torch.float64
    assert units.from_inverse_fov(torch.tensor([[1]]), (4,)).dtype == torch.float32
    assert float(units.from_cycles(torch.tensor([[0.5 + 1e-7]], dtype=torch.float64))) == PI
    assert units.from_cycles(torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: units.from_cycles([[0.6]]), r"k reaches 3\.77 radians per pixel.*cycles per pixel"),
        (lambda: units.from_cycles([[math.nan]]), "k must be finite"),
        (lambda: units.from_cycles(3.0), r"k must be real \(\.\.\., ndim\)"),
        (lambda: units.from_cycles(torch.ones(2, 2) + 0j), "k must be real"),
        (lambda: units.from_wavenumber([[250.0]], 2.0), r"k reaches 3142 .*is pixel_size 2\.0 in m"),
        (lambda: units.from_wavenumber([[250.0]], 0.0), "pixel_size must be finite and above 0"),
        (lambda: units.from_wavenumber([[250.0]], -0.002), "pixel_size must be finite and above 0"),
        (lambda: units.from_wavenumber([[250.0]], [0.002, math.inf]), "pixel_size must be finite and above 0"),
        (lambda: units.from_wavenumber([[250.0]], [0.002, 0.002]), r"k must be real \(\.\.\., 2\), got .*\(1, 1\)"),
        (
            lambda: units.from_inverse_fov([[0.0, 65.0]], (64, 64)),
            r"does the field of view have only \(64, 64\) pixels",
        ),
        (lambda: units.from_inverse_fov([[0.0, 1.0]], (64,)), r"k must be real \(\.\.\., 1\)"),
        (lambda: units.from_inverse_fov([[0.0]], (0,)), "shape must be pixels"),
        (
            lambda: units.from_bart(np.zeros((2, 8, 4)), (8, 8)),
            r"a BART trajectory is \(3, samples, readouts, \.\.\.\)",
        ),
        (lambda: units.from_bart(np.zeros((3, 8, 4)), (8,)), "for a 2-D or 3-D image"),
        (lambda: units.from_bart(np.ones((3, 8, 4)), (8, 8)), "a third coordinate that is not zero"),
        (lambda: units.from_ismrmrd(np.full((4, 2), 32.0)), "give its shape in pixels"),
        (lambda: units.from_ismrmrd(np.zeros(4)), r"an ISMRMRD trajectory is \(\.\.\., samples, ndim\)"),
        (lambda: units.from_ismrmrd(np.zeros((4, 3)), (8, 8)), r"k must be real \(\.\.\., 2\)"),
        (lambda: units.from_wavelengths(np.zeros((4, 3)), 1e-6), r"uv must be \(\.\.\., 2\), got shape \(4, 3\)"),
        (lambda: units.from_wavelengths(np.full((4, 2), 1e6), 1e-6), "in wavelengths .*pixel_size 1e-06 in radians"),
        (lambda: units.from_wavelengths(np.zeros((4, 2)), 0), "pixel_size must be finite and other than 0"),
    ],
)
def test_wrong_units(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
