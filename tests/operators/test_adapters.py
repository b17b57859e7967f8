"""Operators of other libraries, in both directions, against our own and against what those libraries solve."""

import functools

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import sigpy
import sigpy.mri
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Blur, Fourier, LinearOperator, Mask, Sense, conjugate_gradient, operator_norm
from ambient_sci.operators.adapters import (
    Functions,
    from_deepinv,
    from_functions,
    from_scipy,
    from_sigpy,
    to_deepinv,
    to_scipy,
    to_sigpy,
)
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


# ---------------------------------------------------------------------------------------------- scipy


@functools.cache
def sparse_operator() -> Functions:
    return from_scipy(sparse_matrix(), SHAPE)


def sparse_matrix() -> scipy.sparse.csr_array:
    return scipy.sparse.random_array((7, 20), density=0.3, rng=np.random.default_rng(0), format="csr")


class TestScipy(OperatorTests):
    """A sparse matrix under the whole kit; all scans are measured alike."""

    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        made = sparse_operator()
        keep = torch.rand(batch, 7, generator=torch.Generator().manual_seed(seed)) < 0.7
        return Functions(keep.double(), made.forward, made.back, made.image_shape)

    def dense(self, operator: LinearOperator) -> Tensor:
        return operator.rows[:, :, None] * torch.from_numpy(sparse_matrix().toarray())

    def test_store(self) -> None:
        with pytest.raises(DataError, match="cannot be stored"):
            self.make(2, 0).spec()


def test_scipy_there_and_back() -> None:
    """A complex ``LinearOperator``, with measurements of several axes; real images have complex measurements."""
    A = sense()
    linear = to_scipy(A, (1, 8, 6), 1, dtype="complex128")
    B = from_scipy(linear, (1, 8, 6), (3, 8, 6), batch=2)
    x = torch.randn(2, 1, 8, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(B(x), A[1](x))
    torch.testing.assert_close(B.H(A(x)), A[1].H(A(x)))
    C = from_scipy(1j * np.eye(3), (1, 3, 1))
    x = torch.ones(2, 1, 3, 1, requires_grad=True)
    assert torch.equal(C(x), 1j * torch.ones(2, 3))
    assert torch.equal(torch.autograd.grad(C(x).imag.square().sum(), x)[0], 2 * torch.ones_like(x))


def test_scipy_sizes_must_fit() -> None:
    for shapes in (((1, 4, 4),), (SHAPE, (2, 3))):
        with pytest.raises(DataError, match=r"a matrix 7 x 20 does not map images \(1, 4, .\) to measurements"):
            from_scipy(sparse_matrix(), *shapes)


def test_sigpy_takes_the_fast_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    A = sense()
    linop = to_sigpy(A, (1, 8, 6))
    x = np.random.default_rng(0).standard_normal((1, 8, 6)) + 0j
    want = linop.H(linop(x))
    monkeypatch.setattr(Sense, "_forward", None)
    np.testing.assert_allclose(linop.N(x), want, atol=1e-12)
    monkeypatch.undo()
    np.testing.assert_allclose(linop.H.N(linop(x)), linop(want), atol=1e-12)


# ---------------------------------------------------------------------------------------------- deepinv


class Protocol:
    """What of a deepinv physics is needed: circular differences, and noise that is none of an operator's business."""

    def A(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.roll(1, -1) - 2 * x], 1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        first, second = y.chunk(2, 1)
        return first + second.roll(-1, -1) - 2 * second

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(x) + 1


class TwoChannels:
    """Multiplication by ``2 - i`` of images whose real and imaginary parts are two channels, seen by coils."""

    def __init__(self, coils: int = 0) -> None:
        self.coils = coils

    def A(self, x: Tensor) -> Tensor:
        real, imaginary = x.unbind(1)
        y = torch.stack([2 * real + imaginary, 2 * imaginary - real], 1)
        return y[:, :, None].expand(-1, -1, self.coils, -1, -1) if self.coils else y

    def A_adjoint(self, y: Tensor) -> Tensor:
        real, imaginary = (y.sum(2) if self.coils else y).unbind(1)
        return torch.stack([2 * real - imaginary, 2 * imaginary + real], 1)


@functools.cache
def differences() -> Functions:
    return from_deepinv(Protocol(), (2, 3, 5))


@functools.cache
def blurred() -> Functions:
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    physics = pytest.importorskip("deepinv").physics.Blur(filter=kernel, padding="circular")
    return from_deepinv(physics, (1, 6, 5), dtype=torch.float64)


class TestPhysics(OperatorTests):
    """The protocol under the whole kit."""

    image_shape = (2, 3, 5)
    dtype = torch.float64

    def make(self, batch: int, seed: int) -> LinearOperator:
        made = differences()
        keep = torch.rand(batch, 4, 3, 5, generator=torch.Generator().manual_seed(seed)) < 0.8
        return Functions(keep.double(), made.forward, made.back, made.image_shape)

    def test_store(self) -> None:
        with pytest.raises(DataError, match="cannot be stored"):
            self.make(2, 0).spec()


@pytest.mark.parametrize("coils", [0, 1, 3])
def test_two_channels_are_complex_numbers(coils: int) -> None:
    A = from_deepinv(TwoChannels(coils), (1, 3, 4), batch=2, two_channels=True)
    x = torch.randn(2, 1, 3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    y = A(x)
    assert y.shape == (2, coils or 1, 3, 4)
    torch.testing.assert_close(y, (2 - 1j) * x.expand_as(y))
    torch.testing.assert_close(A.H(y), 5 * (coils or 1) * x)
    assert A.measurement_shape() == tuple(y.shape[1:])


def test_physics_that_has_no_operator() -> None:
    with pytest.raises(DataError, match=r"two_channels are those of images \(1, \*spatial\), got \(2, 3, 4\)"):
        from_deepinv(TwoChannels(), (2, 3, 4), two_channels=True)
    stacked = Protocol()
    stacked.A = lambda x: [x, x]  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(DataError, match=r"physics must give one tensor, got list; adapt its parts and vstack\(\)"):
        from_deepinv(stacked, SHAPE)


def test_deepinv_has_the_same_coils_and_transform() -> None:
    """Its multi-coil physics against ours, and there and back."""
    physics = pytest.importorskip("deepinv").physics
    generator = torch.Generator().manual_seed(0)
    A = Sense(random_lines(2, (8, 6), 2, 2, generator), sense().maps.to(torch.complex64))
    x = torch.randn(2, 1, 8, 6, dtype=torch.complex64, generator=generator)
    theirs = physics.MultiCoilMRI(mask=A.mask.expand(2, 1, 8, 6), coil_maps=A.maps, img_size=(2, 8, 6))
    B = from_deepinv(theirs, (1, 8, 6), batch=2, two_channels=True)
    torch.testing.assert_close(B(x), A(x))
    torch.testing.assert_close(B.H(A(x)), A.H(A(x)))
    ours = to_deepinv(A, two_channels=True)
    parts = torch.cat([x.real, x.imag], 1)
    for given in (ours.A(parts), ours(parts)):
        torch.testing.assert_close(given, theirs.A(parts))
    torch.testing.assert_close(ours.A_adjoint(ours.A(parts)), theirs.A_adjoint(theirs.A(parts)))
    torch.testing.assert_close(ours.A_adjoint_A(parts), theirs.A_adjoint_A(parts))
    single = physics.MRI(mask=A.mask.expand(2, 1, 8, 6), img_size=(2, 8, 6))
    C = from_deepinv(single, (1, 8, 6), batch=2, two_channels=True)
    F = Fourier(A.mask, (8, 6))
    torch.testing.assert_close(C(x), F(x))
    torch.testing.assert_close(to_deepinv(F, two_channels=True).A(parts), single.A(parts))


def test_deepinv_solves_with_our_operators() -> None:
    """Real and complex images, as they are: its tests, its solvers, its noise, in two precisions."""
    deepinv = pytest.importorskip("deepinv")
    generator = torch.Generator().manual_seed(0)
    A = Blur(torch.rand(2, 3, 3, generator=generator), (8, 6)) @ Mask(
        (torch.rand(2, 1, 8, 6, generator=generator) < 0.8).float()
    )
    x = torch.randn(2, 1, 8, 6, generator=generator)
    for operator, image, dtype in ((A, x, torch.float64), (sense().to(torch.float32), x + 0j, torch.complex128)):
        physics = to_deepinv(operator)
        y = physics(image)
        torch.testing.assert_close(y, operator(image))
        assert physics.adjointness_test(image[:1].expand(2, -1, -1, -1), num_samples=2) < 1e-4
        want = operator_norm(operator, (1, 8, 6), 200, generator, image.dtype).max() ** 2
        single = to_deepinv(operator[int(operator_norm(operator, (1, 8, 6), 200, generator, image.dtype).argmax())])
        got = single.compute_sqnorm(image[:1], max_iter=500, tol=1e-7, verbose=False)
        torch.testing.assert_close(got.real.reshape(()), want, rtol=1e-3, atol=0)
        prox = physics.prox_l2(torch.zeros_like(image), y, 3.0, max_iter=200, tol=1e-7)
        regularised = conjugate_gradient(lambda v, a=operator: a.gram(v) + v / 3, operator.adjoint(y), iterations=100)
        torch.testing.assert_close(prox, regularised, rtol=1e-3, atol=1e-4)
        double = physics.to(torch.float64)
        torch.testing.assert_close(double.A(image.to(dtype)).to(y.dtype), y)
    noisy = to_deepinv(A, noise_model=deepinv.physics.GaussianNoise(0.1))
    assert 0.05 < (noisy(x) - A(x)).std() < 0.2
    v = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(noisy.A(v).square().sum(), v)[0], 2 * A.gram(x))


class TestDeepinv(OperatorTests):
    """A physics of deepinv under the whole kit; all scans are measured alike."""

    image_shape = (1, 6, 5)
    dtype = torch.float64
    tolerance = 1e-9

    def make(self, batch: int, seed: int) -> LinearOperator:
        made = blurred()
        keep = torch.rand(batch, 1, 6, 5, generator=torch.Generator().manual_seed(seed)) < 0.8
        return Functions(keep.double(), made.forward, made.back, made.image_shape)

    def test_store(self) -> None:
        with pytest.raises(DataError, match="cannot be stored"):
            self.make(2, 0).spec()

    def test_precision(self) -> None:
        """The filter stays in double precision, whatever becomes of the rows."""

    def test_pickle(self) -> None:
        """The noise model of a physics holds a function without a name, which cannot be pickled."""
