import warnings

import numpy as np
import pytest
import torch

from ambient_sci.baselines import cg_sense, l1_wavelet, l1_wavelet_batch, tune, tune_held_out, zero_filled
from ambient_sci.baselines.l1_wavelet import largest_eigenvalue
from ambient_sci.baselines.wavelet import OrthonormalWavelet
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.evaluate import head_mask, nrmse
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Fourier, Gaussian, Mask, Sense, patterns


def phantom(batch, size, dtype=torch.complex64):
    """Discs in discs, a different one for every scan, with a phase ramp."""
    ticks = torch.linspace(-1, 1, size, dtype=dtype.to_real())
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    images = torch.zeros(batch, 1, size, size, dtype=dtype)
    for b in range(batch):
        for radius, value, shift in ((0.7, 0.6, 0.0), (0.3, 0.4, 0.1 * b - 0.1), (0.15, -0.5, -0.2)):
            images[b, 0] += value * ((rows - shift) ** 2 + (columns + shift / 2) ** 2 < radius**2)
        images[b, 0] *= torch.exp(1j * (0.5 * rows + 0.3 * b * columns))
    return images


def coil_maps(batch, coils, size, dtype=torch.complex64):
    ticks = torch.linspace(-1, 1, size, dtype=dtype.to_real())
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    angles = torch.arange(coils) * (2 * torch.pi / coils)
    maps = torch.stack([torch.exp(-((rows - a.cos()) ** 2) - (columns - a.sin()) ** 2 + 1j * a) for a in angles]).to(
        dtype
    )
    return (maps / maps.abs().square().sum(0).sqrt()).repeat(batch, 1, 1, 1)


def sense_scans(batch=3, size=32, coils=4, noise=0.02, dtype=torch.complex64, acceleration=3):
    generator = torch.Generator().manual_seed(0)
    mask = patterns.random_lines(batch, (size, size), acceleration, 4, generator).to(dtype.to_real())
    operator = Sense(mask, coil_maps(batch, coils, size, dtype), calibration=4)
    x = phantom(batch, size, dtype)
    y = operator(x)
    return x, Measurement(y + noise * randn_like(y, generator) * operator.rows, operator, noise)


def error(images, references):
    return ((images - references).flatten(1).norm(dim=1) / references.flatten(1).norm(dim=1)).mean()


def dense_gram(operator, shape):
    n = int(np.prod(shape))
    unit = torch.eye(n, dtype=torch.complex128).reshape(n, *shape)
    return torch.stack([operator.gram(column[None])[0].flatten() for column in unit], 1)


def test_cg_sense_equals_a_dense_solve():
    _, m = sense_scans(batch=2, size=8, dtype=torch.complex128, acceleration=1.5)
    images = cg_sense(m, iterations=200, regularisation=0.05)
    for b in range(2):
        gram = dense_gram(m.operator[b], (1, 8, 8))
        rhs = zero_filled(m[b]).flatten()
        expected = torch.linalg.solve(gram + 0.05 * torch.eye(64), rhs)
        torch.testing.assert_close(images[b].flatten(), expected, rtol=1e-4, atol=1e-5)


def test_cg_sense_weights_samples_by_their_noise():
    generator = torch.Generator().manual_seed(1)
    operator = Mask(torch.ones(1, 1, 4, 4, dtype=torch.float64))
    y = torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.full_like(y, 0.1)
    noise[..., 0] = 0.2
    images = cg_sense(Measurement(y, operator, noise), regularisation=0.5)
    weight = (0.1 / noise) ** 2
    torch.testing.assert_close(images, weight * y / (weight + 0.5), rtol=1e-6, atol=1e-8)
    with pytest.raises(DataError, match="noise_std must be positive"):
        cg_sense(Measurement(y, operator, noise * (noise > 0.1)))


@pytest.mark.parametrize("name", ["haar", "db4", "sym8"])
@pytest.mark.parametrize("shape", [(16,), (16, 24), (8, 8, 16)])
def test_wavelets_are_orthonormal(name, shape):
    psi = OrthonormalWavelet(shape, name, 3)
    x = torch.randn(2, *shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    coefficients = psi.forward(x)
    torch.testing.assert_close(psi.inverse(coefficients), x)
    torch.testing.assert_close(coefficients.norm(), x.norm())


def test_wavelets_agree_with_pywavelets():
    import pywt

    x = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    coefficients = OrthonormalWavelet((16, 16), "db4", 1).forward(x)
    low, (rows, columns, both) = pywt.dwt2(x.numpy(), "db4", mode="periodization")
    blocks = {(0, 0): low, (8, 0): rows, (0, 8): columns, (8, 8): both}
    for (row, column), expected in blocks.items():
        block = coefficients[row : row + 8, column : column + 8]
        # the two number the periods of the grid from different places
        np.testing.assert_allclose(np.sort(block.abs().flatten()), np.sort(np.abs(expected).ravel()), atol=1e-11)


def test_l1_wavelet_is_better_than_linear_methods():
    x, m = sense_scans()
    linear = min(error(cg_sense(m, regularisation=value), x) for value in (0.003, 0.01, 0.03, 0.1))
    sparse = error(l1_wavelet_batch(m, 0.01), x)
    assert sparse < 0.9 * min(linear, error(zero_filled(m), x))
    assert sparse < error(l1_wavelet_batch(m, 0.01, shifts=False), x)


def test_both_solvers_find_the_same_minimum():
    # with Haar and every level neither transform has a border, and the two problems are one
    _, m = sense_scans(batch=2, size=16, acceleration=2)
    ours = l1_wavelet_batch(m, 0.02, 200, "haar", levels=4, shifts=False)
    theirs = l1_wavelet(m, 0.02, 200, "haar")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["mask", "fourier", "gaussian"])
def test_every_operator_and_both_solvers(kind):
    generator = torch.Generator().manual_seed(0)
    x = phantom(1, 16)
    if kind == "gaussian":
        x, operator = x.real.contiguous(), Gaussian(160, (1, 16, 16), 3)
    else:
        mask = (torch.rand(1, 1, 16, 16, generator=generator) < 0.6).float()
        mask[..., 6:10, 6:10] = 1
        operator = Mask(mask) if kind == "mask" else Fourier(mask)
    m = Measurement(operator(x), operator, 0.0)
    ours = l1_wavelet_batch(m, 0.01, 300, "haar", shifts=False)
    torch.testing.assert_close(ours, l1_wavelet(m, 0.01, 300, "haar"), rtol=1e-2, atol=3e-3)
    assert error(ours, x) < error(zero_filled(m), x)


def test_a_scan_does_not_depend_on_its_batch():
    _, m = sense_scans(batch=2, size=16, acceleration=2)
    torch.testing.assert_close(l1_wavelet_batch(m, 0.02, 20)[1:], l1_wavelet_batch(m[1], 0.02, 20))


def test_l1_wavelet_extends_sizes_that_do_not_divide():
    generator = torch.Generator().manual_seed(0)
    x = phantom(1, 24)[..., :21, :19]
    mask = (torch.rand(1, 1, 21, 19, generator=generator) < 0.7).float()
    m = Measurement(Mask(mask)(x), Mask(mask), 0.0)
    images = l1_wavelet_batch(m, 0.005, 100)
    assert images.shape == x.shape
    assert error(images, x) < error(zero_filled(m), x)


def test_largest_eigenvalue_against_dense():
    _, m = sense_scans(batch=2, size=8, dtype=torch.complex128, acceleration=1.5)
    for b, value in enumerate(largest_eigenvalue(m).flatten()):
        expected = torch.linalg.eigvalsh(dense_gram(m.operator[b], (1, 8, 8)))[-1]
        assert float(value) == pytest.approx(float(expected), rel=0.01)  # from below


def test_tuning_finds_the_best_of_the_grid():
    x, m = sense_scans()
    grid = [0.0003, 0.003, 0.03, 0.3]
    errors = [nrmse(l1_wavelet_batch(m, value), x, head_mask(x)).mean() for value in grid]
    assert tune(l1_wavelet_batch, m, x, grid) == grid[int(np.argmin(errors))]


def test_tuning_counts_the_pixels_of_a_mask():
    x, m = sense_scans(batch=1, size=16)
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask[..., 8, 8] = True
    images = {"right inside": torch.where(mask, x, 0), "right outside": torch.where(mask, 0, x)}
    assert tune(lambda m, name: images[name], m, x, list(images)) == "right outside"
    assert tune(lambda m, name: images[name], m, x, list(images), mask) == "right inside"


def test_tuning_without_references_comes_close():
    x, m = sense_scans()
    grid = [0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = tune_held_out(l1_wavelet_batch, m, grid)
    best = min(error(l1_wavelet_batch(m, value), x) for value in grid)
    assert error(l1_wavelet_batch(m, chosen), x) < 1.15 * best


def test_tuning_warns_at_the_end_of_the_grid_and_names_mistakes():
    x, m = sense_scans(batch=1, size=16)
    with pytest.warns(UserWarning, match="end of the grid"):
        tune(lambda m, value: cg_sense(m, regularisation=value), m, x, [10.0, 20.0, 30.0])
    with pytest.raises(ConfigError, match="at least one value"):
        tune(l1_wavelet_batch, m, x, [])
    with pytest.raises(DataError, match="references must be"):
        tune(l1_wavelet_batch, m, x[..., :8], [0.1])
    with pytest.raises(ConfigError, match="sets nothing aside"):
        tune_held_out(l1_wavelet_batch, m, [0.1], fraction=0.0)
    with pytest.raises(ConfigError, match="must be orthogonal"):
        l1_wavelet_batch(m, 0.1, wavelet="bior2.2")
    with pytest.raises(ConfigError, match="lam must not be negative"):
        l1_wavelet(m, -1.0)
