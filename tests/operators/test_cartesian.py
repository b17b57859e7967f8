"""Fourier and SENSE, against matrices that numpy makes from the formula, and against sigpy."""

import math

import numpy as np
import pytest
import sigpy.mri.linop
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Fourier, LinearOperator, Sense, collate
from ambient_sci.operators.fourier import centred_fft, centred_ifft
from ambient_sci.testing import OperatorTests


def dft(shape: tuple[int, ...]) -> np.ndarray:
    """The centred orthonormal transform as a matrix, straight from its formula."""
    matrix = np.ones((1, 1), complex)
    for size in shape:
        n = np.arange(size) - size // 2
        matrix = np.kron(matrix, np.exp(-2j * np.pi * np.outer(n, n) / size) / np.sqrt(size))
    return matrix


def draw_mask(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, *shape, generator=generator) < 0.6
    mask.flatten(1)[:, 0] = True  # something to lose
    return mask.to(torch.float64)


def draw_maps(batch: int, shape: tuple[int, ...], seed: int, normalised: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    maps = torch.randn(batch, *shape, generator=generator, dtype=torch.complex128)
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt() if normalised else maps


def full(mask: Tensor, channels: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(mask.numpy(), (len(mask), channels, *shape)).reshape(len(mask), channels, -1)


# ---------------------------------------------------------------------------------------------- Fourier


class TestFourier(OperatorTests):
    """Two channels, one size odd, points."""

    image_shape: tuple[int, ...] = (2, 4, 3)
    mask_shape: tuple[int, ...] = (1, 4, 3)
    calibration = 0
    lifts = True

    def make(self, batch: int, seed: int) -> LinearOperator:
        mask = draw_mask(batch, self.mask_shape, seed)
        return Fourier(mask, self.image_shape[1:], self.calibration)

    def dense(self, operator: LinearOperator) -> Tensor:
        channels, *shape = self.image_shape
        F = dft(tuple(shape))
        masks = full(operator.parameters["mask"], channels, tuple(shape))
        return torch.from_numpy(np.stack([np.diag(mask.ravel()) @ np.kron(np.eye(channels), F) for mask in masks]))


class TestFourierEvenColumns(TestFourier):
    image_shape = (1, 4, 6)
    mask_shape = (1, 1, 6)
    calibration = 2


class TestFourierOddColumns(TestFourier):
    image_shape = (1, 3, 5)
    mask_shape = (1, 1, 5)
    calibration = 1


class TestFourierLine(TestFourier):
    image_shape = (1, 7)
    mask_shape = (1, 7)


class TestFourierVolume(TestFourier):
    image_shape = (1, 3, 4, 3)
    mask_shape = (1, 1, 4, 3)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (5, 8), (4, 3, 6)])
def test_centred_fft_is_numpys_with_shifts(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    axes = tuple(range(2, x.ndim))
    want = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(x.numpy(), axes), axes=axes, norm="ortho"), axes)
    y = centred_fft(x, len(shape))
    np.testing.assert_allclose(y.numpy(), want, atol=1e-12)
    torch.testing.assert_close(centred_ifft(y, len(shape)), x)


# ------------------------------------------------------------------------------------------------ SENSE


class TestSense(OperatorTests):
    """Points of an image with one odd size, maps that are not normalised."""

    image_shape: tuple[int, ...] = (1, 4, 5)
    coils = 3
    mask_shape: tuple[int, ...] = (1, 4, 5)
    calibration = 0
    normalised = False

    def make(self, batch: int, seed: int) -> LinearOperator:
        maps = draw_maps(batch, (self.coils, *self.image_shape[1:]), seed, self.normalised)
        return Sense(draw_mask(batch, self.mask_shape, seed), maps, self.calibration)

    def dense(self, operator: LinearOperator) -> Tensor:
        return sense_matrices(operator.parameters["mask"], operator.parameters["maps"])


def sense_matrices(mask: Tensor, maps: Tensor) -> Tensor:
    """Matrices ``(batch, coil * pixels, pixels)`` of maps ``(batch, coil, *spatial)``."""
    shape = tuple(maps.shape[2:])
    F = dft(shape)
    scans = []
    for masks, sensitivities in zip(full(mask, maps.shape[1], shape), maps.flatten(2).numpy(), strict=True):
        pairs = zip(masks, sensitivities, strict=True)
        scans.append(np.concatenate([m[:, None] * F * s[None, :] for m, s in pairs]))
    return torch.from_numpy(np.stack(scans))


class TestSenseColumns(TestSense):
    image_shape = (1, 4, 6)
    mask_shape = (1, 1, 6)
    calibration = 2
    normalised = True
    lifts = True


class TestSenseOddColumns(TestSense):
    image_shape = (1, 3, 5)
    mask_shape = (1, 1, 5)
    calibration = 1
    normalised = True
    lifts = True


class TestSenseRows(TestSense):
    image_shape = (1, 5, 4)
    mask_shape = (1, 5, 1)
    normalised = True
    lifts = True


class TestSenseMaskOfEveryCoil(TestSense):
    image_shape = (1, 4, 3)
    mask_shape = (3, 4, 3)
    normalised = True
    lifts = True


class TestSenseOneCoil(TestSense):
    image_shape = (1, 4, 3)
    mask_shape = (1, 4, 3)
    coils = 1


class TestSenseVolume(TestSense):
    """Two phase-encoded axes, one read out."""

    image_shape = (1, 3, 4, 3)
    mask_shape = (1, 1, 4, 3)
    coils = 2
    normalised = True
    lifts = True


class TestSenseVolumeMiddle(TestSense):
    image_shape = (1, 2, 5, 2)
    mask_shape = (1, 1, 5, 1)
    coils = 2


class TestSoftSense(OperatorTests):
    """Two sets of maps, columns of a volume."""

    image_shape = (2, 2, 3, 5)
    coils = 3

    def make(self, batch: int, seed: int) -> LinearOperator:
        maps = draw_maps(batch, (2 * self.coils, *self.image_shape[1:]), seed, normalised=False)
        mask = draw_mask(batch, (1, 1, 1, 5), seed)
        return Sense(mask, maps.unflatten(1, (2, self.coils)), calibration=1)

    def dense(self, operator: LinearOperator) -> Tensor:
        mask, maps = operator.parameters["mask"], operator.parameters["maps"]
        return torch.cat([sense_matrices(mask, maps[:, number]) for number in range(2)], 2)


def test_soft_sense_lift_is_refused() -> None:
    A = Sense(torch.ones(1, 1, 4, 5), torch.ones(1, 2, 3, 4, 5, dtype=torch.complex64))
    with pytest.raises(DataError, match="one set of maps"):
        A.lift(torch.ones(1, 2, 4, 5, dtype=torch.complex64), torch.Generator())


def test_sampled_in_full_along_all_axes() -> None:
    """A mask without any axis leaves no transform in the gram at all."""
    maps = draw_maps(2, (3, 4, 5), 0, normalised=False)
    A = Sense(torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(2, 1, 1, 1), maps)
    x = torch.randn(2, 1, 4, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A.gram(x), A.H(A(x)))
    assert bool((A.gram(x)[1] == 0).all())


@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (5, 7)])
def test_sense_is_sigpys(shape: tuple[int, int]) -> None:
    """Another implementation as the reference, scan by scan."""
    generator = torch.Generator().manual_seed(0)
    mask, maps = draw_mask(2, (1, 1, shape[1]), 0), draw_maps(2, (4, *shape), 0, normalised=False)
    A = Sense(mask, maps)
    x = torch.randn(2, 1, *shape, dtype=torch.complex128, generator=generator)
    y = torch.randn(2, 4, *shape, dtype=torch.complex128, generator=generator)
    for i in range(2):
        weights = np.broadcast_to(mask[i, 0].numpy(), shape)
        reference = sigpy.mri.linop.Sense(maps[i].numpy(), weights=weights)
        np.testing.assert_allclose(A(x)[i].numpy(), reference(x[i, 0].numpy()), atol=1e-12)
        np.testing.assert_allclose(A.H(y)[i, 0].numpy(), reference.H(y[i].numpy()), atol=1e-12)


def test_lift_refuses_maps_that_are_not_normalised() -> None:
    A = Sense(draw_mask(1, (1, 4, 4), 0), draw_maps(1, (3, 4, 4), 0, normalised=False))
    with pytest.raises(DataError, match="root sum of squares"):
        A.lift(torch.zeros(1, 1, 4, 4, dtype=torch.complex128), torch.Generator())


def test_lift_where_no_coil_sees() -> None:
    """Outside the body maps are zero, and the noise is white all the same."""
    maps = draw_maps(1, (2, 4, 4), 0)
    maps[..., :2] = 0
    A = Sense(torch.ones(1, 1, 1, 1, dtype=torch.float64), maps)
    n = math.sqrt(2) * torch.randn(4000, 1, 4, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    e = A.lift(n, torch.Generator().manual_seed(1)).flatten(1)
    covariance = e.mT @ e.conj() / len(e) / 2
    torch.testing.assert_close(covariance, torch.eye(32, dtype=e.dtype), rtol=0, atol=0.1)


def test_fully_sampled_lift_projects_back_to_the_image_noise() -> None:
    A = Sense(torch.ones(1, 1, 1, 1, dtype=torch.float64), draw_maps(1, (3, 4, 5), 0))
    n = torch.randn(2, 1, 4, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A.H(A.lift(n, torch.Generator().manual_seed(1))), n)


# ---------------------------------------------------------------------------------------------- both kinds


@pytest.mark.parametrize("coils", [0, 2])
@pytest.mark.parametrize(("mask_shape", "width"), [((1, 1, 9), 3), ((1, 1, 8), 4), ((1, 8, 8), 2)])
def test_thinning_leaves_the_calibration_alone(coils: int, mask_shape: tuple[int, ...], width: int) -> None:
    mask = torch.ones(2, *mask_shape)
    shape = (8, mask_shape[-1])
    maps = torch.ones(2, coils, *shape, dtype=torch.complex64)
    A: LinearOperator = Sense(mask, maps, width) if coils else Fourier(mask, shape, width)
    rows = A.thin(1.0, torch.Generator().manual_seed(0)).rows
    kept = {tuple(place) for place in rows[0, 0].nonzero().tolist()}
    axes = [
        range(size // 2 - width // 2, size // 2 - width // 2 + width) if size > 1 else [0] for size in mask_shape[1:]
    ]
    assert kept == {(i, j) for i in axes[0] for j in axes[1]}
    assert A.thin(0.5, torch.Generator().manual_seed(0)).settings == A.settings


def test_wrong_arguments() -> None:
    maps = torch.ones(2, 3, 4, 5, dtype=torch.complex64)
    with pytest.raises(DataError, match=r"mask must be \(batch, 1, 4 or 1, 5 or 1\), got \(2, 1, 4, 4\)"):
        Fourier(torch.ones(2, 1, 4, 4), (4, 5))
    with pytest.raises(DataError, match=r"mask must be \(batch, 1, 4 or 1, 4 or 1\), got \(2, 3, 4, 4\)"):
        Fourier(torch.ones(2, 3, 4, 4))
    with pytest.raises(DataError, match=r"mask must be \(batch, 1, \*spatial\), got \(2, 1\)"):
        Fourier(torch.ones(2, 1))
    with pytest.raises(DataError, match=r"mask must be \(batch, 1 or 3, 4 or 1, 5 or 1\), got \(2, 2, 4, 5\)"):
        Sense(torch.ones(2, 2, 4, 5), maps)
    with pytest.raises(DataError, match="batch of 1"):
        Sense(torch.ones(1, 1, 4, 5), maps)
    with pytest.raises(DataError, match="complex"):
        Sense(torch.ones(2, 1, 4, 5), maps.real)
    for width in (6, -1, 1.5):
        with pytest.raises(
            DataError, match=f"calibration must be .* between 0 and the 5 samples of the mask, got {width}"
        ):
            Sense(torch.ones(2, 1, 1, 5), maps, calibration=width)
    with pytest.raises(DataError, match="maps must be finite"):
        Sense(torch.ones(2, 1, 4, 5), maps * math.nan)
    with pytest.raises(DataError, match="maps must be a tensor, got ndarray"):
        Sense(torch.ones(2, 1, 4, 5), maps.numpy())
    for shape in ((4, 5.5), (4, 0), (4, -5)):
        with pytest.raises(DataError, match="shape must be whole numbers"):
            Fourier(torch.ones(2, 1, 1, 1), shape)
    with pytest.raises(DataError, match=r"expects complex .* got torch.float32"):
        Sense(torch.ones(2, 1, 1, 5), maps)(torch.ones(2, 1, 4, 5))
    with pytest.raises(DataError, match=r"expects complex .* got torch.float32"):
        Fourier(torch.ones(2, 1, 4, 5))(torch.ones(2, 1, 4, 5))


def test_collating_other_sizes_names_what_differs() -> None:
    one, other = (Fourier(torch.ones(1, 1, 1, 6), (rows, 6)) for rows in (4, 5))
    with pytest.raises(DataError, match="settings"):
        collate([one, other])
    coils = [Sense(torch.ones(1, 1, 1, 6), torch.ones(1, count, 4, 6, dtype=torch.complex64)) for count in (2, 3)]
    with pytest.raises(DataError, match=r"maps has shapes \[\(2, 4, 6\), \(3, 4, 6\)\]"):
        collate(coils)
    with pytest.raises(DataError, match="at least one"):
        collate([])
