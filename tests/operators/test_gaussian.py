"""Gaussian compressed sensing, against matrices drawn by hand."""

import math

import pytest
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Gaussian, LinearOperator
from ambient_sci.testing import OperatorTests


class TestGaussian(OperatorTests):
    image_shape = (2, 3, 4)
    dtype = torch.float64

    def make(self, batch: int, seed: int) -> LinearOperator:
        seeds = torch.arange(batch) + 1000 * seed
        rows = (torch.rand(batch, 10, generator=torch.Generator().manual_seed(seed)) < 0.8).to(torch.float64)
        return Gaussian(10, self.image_shape, seeds, rows)

    def dense(self, operator: LinearOperator) -> Tensor:
        matrices = []
        for seed, rows in zip(*operator.parameters.values(), strict=True):
            generator = torch.Generator().manual_seed(int(seed))
            full = torch.randn(10, 24, generator=generator, dtype=torch.float64) / math.sqrt(10)
            matrices.append(torch.diag(rows) @ full)
        return torch.stack(matrices)


class TestComplexGaussian(TestGaussian):
    dtype = torch.complex128


def test_columns_have_unit_norm_on_average() -> None:
    A = Gaussian(200, (1, 5, 5), torch.arange(20))
    torch.testing.assert_close((A.matrix.mT @ A.matrix).mean(0), torch.eye(25), rtol=0, atol=6 / math.sqrt(20 * 200))


def test_seed_is_the_matrix() -> None:
    one, other = Gaussian(4, (1, 2, 2), 7), Gaussian(4, (1, 2, 2), torch.tensor([8, 7]))
    assert len(one) == 1
    assert torch.equal(one.matrix[0], other.matrix[1])
    assert not torch.equal(one.matrix[0], other.matrix[0])


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="n_measurements must be at least 1, got 0"):
        Gaussian(0, (1, 2, 2), 7)
    with pytest.raises(DataError, match=r"\(2, 4\), got \(1, 4\)"):
        Gaussian(4, (1, 2, 2), torch.arange(2), torch.ones(1, 4))
