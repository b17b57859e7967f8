"""Blur and block averages, against matrices written out, against scipy."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Average, Blur, LinearOperator, gaussian_kernel, motion_kernel
from ambient_sci.testing import OperatorTests


def pixels(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return (torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed)) < 0.6).to(torch.float64)


def kernels(batch: int, size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def written_out(kernel: Tensor, shape: tuple[int, ...], boundary: str) -> Tensor:
    """Matrix of one convolution by its definition, one entry after the other."""
    size = tuple(kernel.shape)
    first = [k - 1 - k // 2 if boundary == "valid" else 0 for k in size]
    count = [n - k + 1 if boundary == "valid" else n for n, k in zip(shape, size, strict=True)]
    matrix = torch.zeros(math.prod(count), math.prod(shape), dtype=kernel.dtype)
    for row, place in enumerate(itertools.product(*map(range, count))):
        for j in itertools.product(*map(range, size)):
            source = [
                (p + a + k // 2 - step) % n for p, a, k, step, n in zip(place, first, size, j, shape, strict=True)
            ]
            matrix[row, int(np.ravel_multi_index(source, shape))] += kernel[j]
    return matrix


class TestBlur(OperatorTests):
    image_shape = (2, 5, 6)
    dtype = torch.float64
    size = (3, 4)
    kernel_dtype = torch.float64
    boundary = "circular"

    def make(self, batch: int, seed: int) -> LinearOperator:
        kernel = kernels(batch, self.size, self.kernel_dtype, seed)
        spatial = self.image_shape[1:]
        plain = Blur(kernel, spatial, self.boundary)  # type: ignore[arg-type]
        return Blur(kernel, spatial, self.boundary, pixels(batch, (1, *plain.pixels), seed))  # type: ignore[arg-type]

    def dense(self, operator: LinearOperator) -> Tensor:
        channels, *spatial = self.image_shape
        every = []
        for kernel, mask in zip(*operator.parameters.values(), strict=True):
            one = mask.flatten()[:, None] * written_out(kernel, tuple(spatial), self.boundary)
            every.append(torch.block_diag(*[one] * channels))
        return torch.stack(every)


class TestValidBlur(TestBlur):
    boundary = "valid"


class TestComplexBlur(TestBlur):
    dtype = torch.complex128
    kernel_dtype = torch.complex128


class TestVolumeBlur(TestBlur):
    image_shape = (1, 3, 4, 3)
    size = (2, 3, 1)
    dtype = torch.complex128
    boundary = "valid"


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (7, 3)])
def test_blur_against_scipy(size: tuple[int, int]) -> None:
    kernel = kernels(2, size, torch.float64, 0)
    x = torch.randn(2, 1, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    around, inside = Blur(kernel, (9, 8))(x), Blur(kernel, (9, 8), "valid")(x)
    for scan in range(2):
        image, k = x[scan, 0].numpy(), kernel[scan].numpy()
        np.testing.assert_allclose(around[scan, 0], scipy.ndimage.convolve(image, k, mode="wrap"), atol=1e-12)
        np.testing.assert_allclose(inside[scan, 0], scipy.signal.convolve2d(image, k, mode="valid"), atol=1e-12)


def test_gaussian_kernels() -> None:
    kernel = gaussian_kernel(torch.tensor([1.0, 2.0], dtype=torch.float64), (13, 13))
    impulse = np.zeros((13, 13))
    impulse[6, 6] = 1
    np.testing.assert_allclose(kernel[0], scipy.ndimage.gaussian_filter(impulse, 1.0, truncate=6), atol=1e-7)
    assert kernel.flatten(1).sum(1).tolist() == pytest.approx([1, 1])
    long = gaussian_kernel(torch.tensor([[1.0, 3.0]]), (9, 21))[0]
    place = torch.arange(21) - 10
    assert float((long.sum(0) * place**2).sum()) == pytest.approx(9, rel=0.02)
    for width in (torch.tensor([0.0]), torch.tensor([[1.0, 2.0, 3.0]])):
        with pytest.raises(DataError, match="width must be positive"):
            gaussian_kernel(width, (5, 5))


def test_motion_kernels() -> None:
    length = torch.tensor([0.0, 6.0, 6.0, 6.0], dtype=torch.float64)
    angle = torch.tensor([1.0, 0.0, math.pi / 2, math.pi / 4], dtype=torch.float64)
    kernel = motion_kernel(length, angle, 9)
    assert kernel.flatten(1).sum(1).tolist() == pytest.approx([1] * 4)
    assert float(kernel[0, 4, 4]) == pytest.approx(1)
    along, across = kernel[1, 4], kernel[1].clone()
    across[4] = 0
    assert across.abs().max() < 1e-12
    assert torch.allclose(along[2:7], along[4], rtol=0.05)
    torch.testing.assert_close(kernel[2], kernel[1].mT)
    place = torch.arange(9.0, dtype=torch.float64) - 4
    moments = torch.stack([(kernel[3] * place[:, None] ** 2).sum(), (kernel[3] * place[:, None] * place).sum()])
    assert (moments / (6**2 / 24)).tolist() == pytest.approx([1, 1], rel=0.15)
    with pytest.raises(DataError, match=r"length must be between 0 and 8 for kernels of 9 pixels, got \[8.5\]"):
        motion_kernel(torch.tensor([8.5]), torch.tensor([0.0]), 9)


def test_blur_refuses() -> None:
    kernel = torch.ones(2, 3, 3)
    with pytest.raises(DataError, match="boundary must be 'circular' or 'valid', got 'same'"):
        Blur(kernel, (8, 8), "same")  # type: ignore[arg-type]
    for shape in ((2, 8), (8,)):
        with pytest.raises(DataError, match="no larger than the image"):
            Blur(kernel, shape)
    with pytest.raises(DataError, match=r"mask must be \(batch, 1, \*pixels\) = \(2, 1, 6, 6\), got \(2, 1, 8, 8\)"):
        Blur(kernel, (8, 8), "valid", torch.ones(2, 1, 8, 8))


class TestAverage(OperatorTests):
    image_shape = (2, 6, 6)
    dtype = torch.float64
    lifts = True
    block = (3, 2)
    mask_channels = 1

    def make(self, batch: int, seed: int) -> LinearOperator:
        blocks = [n // side for n, side in zip(self.image_shape[1:], self.block, strict=True)]
        return Average(pixels(batch, (self.mask_channels, *blocks), seed), self.block)

    def dense(self, operator: LinearOperator) -> Tensor:
        one = torch.ones(1, 1, dtype=torch.float64)
        for n, side in zip(self.image_shape[1:], self.block, strict=True):
            one = torch.kron(
                one, torch.block_diag(*[torch.full((1, side), 1 / side, dtype=torch.float64)] * (n // side))
            )
        channels = self.image_shape[0]
        mask = operator.parameters["mask"].repeat(1, channels // self.mask_channels, *[1] * len(self.block))
        return mask.flatten(1)[:, :, None] * torch.block_diag(*[one] * channels)


class TestComplexAverage(TestAverage):
    dtype = torch.complex128
    mask_channels = 2


class TestVolumeAverage(TestAverage):
    image_shape = (1, 4, 3, 2)
    dtype = torch.complex128
    block = (2, 1, 2)


def test_average_refuses() -> None:
    with pytest.raises(DataError, match="block must be 2 positive numbers, one for each axis"):
        Average(torch.ones(1, 1, 4, 4), (2,))
    with pytest.raises(DataError, match=r"block must be whole numbers of at least 1, got \(2, 0\)"):
        Average(torch.ones(1, 1, 4, 4), (2, 0))
    with pytest.raises(DataError, match=r"the images of these averages have the shape \(batch, channel, 8, 12\)"):
        Average(torch.ones(1, 1, 4, 4), (2, 3))(torch.ones(1, 1, 8, 8))
