"""Operators made of operators, against the algebra of the matrices of their parts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import (
    Compose,
    Fourier,
    Gaussian,
    Identity,
    LinearOperator,
    Mask,
    Scale,
    Sense,
    Sum,
    VStack,
    collate,
    from_spec,
    vstack,
)
from ambient_sci.operators.compose import Adjoint
from ambient_sci.testing import OperatorTests

SHAPE = (1, 4, 3)


def mask(batch: int, seed: int) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask((torch.rand(batch, *SHAPE, generator=generator) < 0.7).to(torch.float64))


def fourier(batch: int, seed: int) -> Fourier:
    generator = torch.Generator().manual_seed(seed + 50)
    return Fourier((torch.rand(batch, 1, 1, 3, generator=generator) < 0.8).to(torch.float64), SHAPE[1:])


def sense(batch: int, seed: int) -> Sense:
    generator = torch.Generator().manual_seed(seed + 70)
    maps = torch.randn(batch, 2, *SHAPE[1:], generator=generator, dtype=torch.complex128)
    return Sense((torch.rand(batch, 1, 4, 3, generator=generator) < 0.8).to(torch.float64), maps)


def gaussian(batch: int, seed: int) -> Gaussian:
    return Gaussian(5, SHAPE, torch.arange(batch) + seed).to(torch.float64)


def matrix(A: LinearOperator) -> Tensor:
    """Matrices of the parts from numpy's FFT and diagonals; no method of the operators is used."""
    p = A.parameters
    basis = np.eye(12, dtype=complex).reshape(12, 4, 3)  # column by column
    if isinstance(A, Mask):
        columns = p["mask"][:, :1].numpy() * basis
    elif isinstance(A, Fourier):
        columns = p["mask"].numpy() * centred(basis)
    elif isinstance(A, Sense):
        columns = p["mask"].numpy()[:, None] * centred(basis[:, None] * p["maps"].numpy()[:, None])
    else:
        rows = []
        for seed in p["seed"].tolist():
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.randn(5, 12, generator=generator, dtype=torch.float64) / 5**0.5)
        return torch.stack(rows).to(torch.complex128)
    return torch.from_numpy(np.moveaxis(columns.reshape(len(A), 12, -1), 1, 2).astype(complex))


def centred(x: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


class TestCompose(OperatorTests):
    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        return fourier(batch, seed) @ mask(batch, seed)

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Compose)
        left, right = (matrix(part) for part in operator.operators)
        return left @ right


class TestComposeThree(OperatorTests):
    """Another shape on the left, an adjoint in the middle."""

    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        return Compose(gaussian(batch, seed), fourier(batch, seed).H, mask(batch, seed))

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Compose)
        left, middle, right = operator.operators
        return matrix(left) @ matrix(middle.H).mH @ matrix(right)

    def test_measurement_shape(self) -> None:
        """An adjoint does not know how many channels it gives, and the product refuses to guess."""
        with pytest.raises(DataError, match="adjoint"):
            self.make(2, 0).measurement_shape()


class TestSum(OperatorTests):
    image_shape = SHAPE
    thins = False

    def make(self, batch: int, seed: int) -> LinearOperator:
        return mask(batch, seed) - 2.0 * fourier(batch, seed)

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Sum)
        first, second = operator.operators
        assert isinstance(second, Scale)
        assert isinstance(second.operators[0], Scale)
        return matrix(first) - 2 * matrix(second.operators[0].operators[0])


class TestScale(OperatorTests):
    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        return (0.6 - 1.1j) * sense(batch, seed)

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Scale)
        return (0.6 - 1.1j) * matrix(operator.operators[0])


class TestComplexScaleOfRealImages(OperatorTests):
    """Real images with complex measurements: gradients are the real part of the adjoint."""

    image_shape = SHAPE
    dtype = torch.float64

    def make(self, batch: int, seed: int) -> LinearOperator:
        return (0.6 - 1.1j) * mask(batch, seed)

    def test_adjoint(self) -> None:
        """On real images the inner product is that of real vectors."""
        A = self.make(2, 3)
        x, y = self.image(2), self.measurement(A)
        torch.testing.assert_close((A(x).conj() * y).sum(), (x * A.H(y)).sum())


class TestVStack(OperatorTests):
    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        return vstack(sense(batch, seed), 2j * mask(batch, seed), gaussian(batch, seed))

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, VStack)
        first, second, third = operator.operators
        assert isinstance(second, Scale)
        return torch.cat([matrix(first), 2j * matrix(second.operators[0]), matrix(third)], 1)


class TestVStackOfColours(OperatorTests):
    """Kinds that measure any number of channels are told how many."""

    image_shape = (3, 4, 3)
    dtype = torch.float64

    def make(self, batch: int, seed: int) -> LinearOperator:
        return vstack(mask(batch, seed), Identity(self.image_shape, batch=batch).to(torch.float64), channels=3)


class TestNested(OperatorTests):
    """Composites of composites keep their parts apart in a store."""

    image_shape = SHAPE

    def make(self, batch: int, seed: int) -> LinearOperator:
        inner = (1 + 1j) * (fourier(batch, seed) @ mask(batch, seed + 1))
        return vstack(0.5 * inner @ mask(batch, seed + 2), fourier(batch, seed + 3))


def test_parameters_are_numbered_by_part() -> None:
    A = vstack(2.0 * sense(2, 0), fourier(2, 0) @ mask(2, 0))
    assert list(A.parameters) == ["0.0.mask", "0.0.maps", "1.0.mask", "1.1.mask"]
    assert repr(A) == (
        "VStack(Scale(Sense(mask[2, 1, 4, 3], maps[2, 2, 4, 3], calibration=0), factor=2.0), "
        "Compose(Fourier(mask[2, 1, 1, 3], shape=[4, 3], calibration=0), Mask(mask[2, 1, 4, 3])), channels=1)"
    )


def test_eleven_parts_do_not_mix_up() -> None:
    A = Compose(*(mask(2, seed) for seed in range(11)))
    B = from_spec(A.spec())
    for name, value in A.parameters.items():
        assert torch.equal(B.parameters[name], value)


def test_adjoint_is_stored_too() -> None:
    A = sense(2, 0)
    B = from_spec(A.H.spec())
    y = A(torch.ones(2, *SHAPE, dtype=torch.complex128))
    assert isinstance(B, Adjoint)
    assert torch.equal(B(y), A.H(y))
    with pytest.raises(DataError, match="adjoint"):
        vstack(A.H)


def test_numbers_from_either_side() -> None:
    x = torch.ones(2, *SHAPE, dtype=torch.complex128)
    A = mask(2, 0)
    for scaled in (3 * A, A * 3, np.float64(3) * A, torch.tensor(3.0) * A, -(-3 * A)):
        assert isinstance(scaled, Scale)
        assert torch.equal(scaled(x), 3 * A(x))
    for factor in (float("nan"), float("inf"), None, A, "two", [1, 2, 3]):
        with pytest.raises(DataError, match="factor"):
            Scale(A, factor)  # type: ignore[arg-type]


def test_parts_must_fit() -> None:
    with pytest.raises(DataError, match=r"same number of scans, got 2, 3; repeat\(\)"):
        mask(2, 0) @ mask(3, 0)
    with pytest.raises(DataError, match="made of linear operators, got Mask, Tensor"):
        mask(2, 0) @ torch.ones(2, *SHAPE)  # type: ignore[operator]
    with pytest.raises(DataError, match="got nothing"):
        VStack()
    x = torch.ones(2, *SHAPE, dtype=torch.complex128)
    with pytest.raises(DataError, match=r"\(batch, 1, 4, 3\), got .*\(2, 2, 4, 3\)"):
        (sense(2, 0) @ sense(2, 0))(x)
    with pytest.raises(DataError, match=r"different shapes: \(2, 2, 4, 3\), \(2, 1, 4, 3\)"):
        (sense(2, 0) + mask(2, 0))(x)
    with pytest.raises(DataError, match="channels=3"):
        vstack(mask(2, 0), mask(2, 1))(torch.ones(2, 3, 4, 3))


def test_only_like_composites_are_batched() -> None:
    A = 2.0 * mask(2, 0)
    for other in (3.0 * mask(2, 0), mask(2, 0), 2.0 * fourier(2, 0), mask(2, 0) @ mask(2, 1)):
        with pytest.raises(DataError, match="cannot batch"):
            collate([A, other])
    with pytest.raises(DataError, match="cannot batch"):
        collate([mask(2, 0), A])


def test_thinning_reaches_the_parts() -> None:
    """The left operator of a product, every operator of a stack."""
    product = sense(2, 0) @ mask(2, 0)
    thinned = product.thin(1.0, torch.Generator().manual_seed(0))
    assert isinstance(thinned, Compose)
    assert thinned.operators[0].rows.sum() == 0
    assert torch.equal(thinned.operators[1].rows, product.operators[1].rows)
    stack = vstack(sense(2, 0), mask(2, 0))
    assert stack.rows.shape == (2, 36)
    assert stack.thin(1.0, torch.Generator().manual_seed(0)).rows.sum() == 0
