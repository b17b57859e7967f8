"""Operators of other libraries, in both directions, against our own and against what those libraries solve."""

import functools

import numpy as np
import pytest
import scipy.sparse.linalg
import sigpy
import sigpy.mri
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Blur, LinearOperator, Mask, Sense
from ambient_sci.operators.adapters import Functions, from_functions, from_sigpy, to_scipy, to_sigpy
from ambient_sci.operators.patterns import random_lines
from ambient_sci.testing import OperatorTests

SHAPE = (1, 4, 5)


def weights(seed: int) -> Tensor:
    return torch.randn(7, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def project(x: Tensor) -> Tensor:
    return x.flatten(1) @ weights(0).mT.to(x.dtype)


def back(y: Tensor) -> Tensor:
    return (y @ weights(0).to(y.dtype)).reshape(-1, *SHAPE)


class TestFunctions(OperatorTests):
    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        keep = torch.rand(batch, 7, generator=torch.Generator().manual_seed(seed)) < 0.7
        return Functions(keep.double(), project, back, SHAPE)

    def dense(self, operator: LinearOperator) -> Tensor:
        return operator.rows[:, :, None] * weights(0)

    def test_store(self) -> None:
        with pytest.raises(DataError, match="cannot be stored"):
            self.make(2, 0).spec()


def sense() -> Sense:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.complex128)
    return Sense(random_lines(2, (8, 6), 2, 2, generator).double(), maps)


@functools.cache
def sampled_fourier() -> Functions:
    mask = np.random.default_rng(1).random((6, 5)) < 0.6
    return from_sigpy(sigpy.linop.Multiply((6, 5), mask) * sigpy.linop.FFT((6, 5)))


class TestSigpy(OperatorTests):
    """A Linop under the whole kit; all scans are measured alike."""

    image_shape = (1, 6, 5)

    def make(self, batch: int, seed: int) -> LinearOperator:
        made = sampled_fourier()
        keep = torch.rand(batch, 6, 5, generator=torch.Generator().manual_seed(seed)) < 0.8
        return Functions(keep.double(), made.forward, made.back, made.image_shape)

    def test_store(self) -> None:
        with pytest.raises(DataError, match="cannot be stored"):
            self.make(2, 0).spec()


def test_sense_of_sigpy_is_ours() -> None:
    A = sense()
    x = torch.randn(1, 1, 8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.complex128)
    for scan in range(2):
        mask = A.parameters["mask"][scan, 0].expand(8, 6).numpy()
        theirs = from_sigpy(sigpy.mri.linop.Sense(A.parameters["maps"][scan].numpy(), weights=mask))
        y = theirs(x)
        torch.testing.assert_close(y, A[scan](x))
        torch.testing.assert_close(theirs.H(y), A[scan].H(y))
        # and back again
        ours = to_sigpy(A, (1, 8, 6), scan)
        np.testing.assert_allclose(ours(x[0].numpy()), y[0], atol=1e-12)
        np.testing.assert_allclose(ours.H(y[0].numpy()), A[scan].H(y)[0], atol=1e-12)
        assert ours.H.H.oshape == [3, 8, 6]


def test_solvers_of_scipy_and_sigpy() -> None:
    """Least squares by their iterations is least squares by the dense matrix."""
    kernel = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = Blur(kernel, (6, 7), "valid")
    y = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for scan in range(2):
        matrix = A[scan].repeat(42)(torch.eye(42, dtype=torch.float64).reshape(42, 1, 6, 7)).flatten(1).mT.numpy()
        linear = to_scipy(A, (1, 6, 7), scan, dtype="float64")
        assert linear.shape == (20, 42)
        np.testing.assert_allclose(linear @ np.eye(42), matrix, atol=1e-12)
        want = np.linalg.pinv(matrix) @ y[scan].numpy().ravel()
        found = scipy.sparse.linalg.lsqr(linear, y[scan].numpy().ravel(), atol=1e-12, btol=1e-12, iter_lim=500)[0]
        np.testing.assert_allclose(found, want, atol=1e-6)

    small = to_sigpy(Mask(torch.tensor([[[[1.0, 0.0, 1.0]]]])), (1, 1, 3))
    data = np.array([[[2.0, 0.0, 3.0]]], np.float32)
    solved = sigpy.app.LinearLeastSquares(small, data, lamda=1.0, max_iter=20, show_pbar=False).run()
    np.testing.assert_allclose(solved, [[[1.0, 0.0, 1.5]]], atol=1e-5)


def test_functions_of_wrong_shape() -> None:
    wrong = from_functions(lambda x: x.flatten(1), lambda y: y, SHAPE, (7,))
    with pytest.raises(DataError, match=r"forward must give \(batch, 7\), got \(1, 20\)"):
        wrong(torch.zeros(1, *SHAPE))
    with pytest.raises(DataError, match=r"adjoint must give \(batch, 1, 4, 5\), got \(1, 7\)"):
        wrong.H(torch.zeros(1, 7))
