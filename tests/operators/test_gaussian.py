"""Gaussian compressed sensing, against matrices made by numpy and scipy alone."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import circulant
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Gaussian, LinearOperator, OperatorSpec, collate, from_spec
from ambient_sci.testing import OperatorTests

Array = NDArray[np.float64]


class Twister:
    """What torch draws from a seed, from the Mersenne twister of numpy.

    A seed is a matrix only as long as torch draws as it does: if this fails, stored seeds have lost their meaning.
    """

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed % 2**32)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self.state.randint(0, 2**32, count, dtype=np.uint32).astype(np.uint64)

    def uniform(self, count: int) -> Array:
        high, low = self.words(2 * count).reshape(-1, 2).T
        return ((high << np.uint64(32) | low) % np.uint64(2**53)) / 2.0**53

    def normal(self, count: int) -> Array:
        """By Box and Muller, eight pairs at a time; numbers left over share the last sixteen."""
        uniform = self.uniform(count)
        values = np.empty(count)
        for start in [*range(0, count - 15, 16), *([count - 16] if count % 16 else [])]:
            eights = (self.uniform(16) if start % 16 else uniform[start : start + 16]).reshape(2, 8)
            radius, angle = np.sqrt(-2 * np.log(1 - eights[0])), 2 * np.pi * eights[1]
            values[start : start + 16] = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
        return values

    def permutation(self, n: int) -> NDArray[np.int64]:
        """By Fisher and Yates."""
        values = np.arange(n)
        for i, word in enumerate(self.words(n - 1)):
            j = i + int(word) % (n - i)
            values[[i, j]] = values[[j, i]]
        return values


def dense_matrix(seed: int, m: int, n: int) -> Array:
    return Twister(seed).normal(m * n).reshape(m, n) / math.sqrt(m)


def structured_matrix(seed: int, m: int, n: int) -> Array:
    twister = Twister(seed)
    signs = 2.0 * (twister.words(n) % np.uint64(2)) - 1
    turns = twister.uniform(n // 2 + 1)
    half = np.exp(2j * np.pi * turns)
    half[0] = 1 if turns[0] < 0.5 else -1
    if n % 2 == 0:
        half[-1] = 1 if turns[-1] < 0.5 else -1
    spectrum = np.concatenate((half, half[1 : (n + 1) // 2][::-1].conj()))
    filter_ = np.fft.ifft(spectrum)
    assert abs(filter_.imag).max() < 1e-15
    places = twister.permutation(n)[:m]
    return math.sqrt(n / m) * circulant(filter_.real)[places] @ np.diag(signs)


class GaussianTests(OperatorTests):
    m = 10
    structured = False

    def make(self, batch: int, seed: int) -> LinearOperator:
        rows = torch.rand(batch, self.m, generator=torch.Generator().manual_seed(seed)) < 0.8
        seeds = torch.arange(batch) + 1000 * seed
        return Gaussian(self.m, self.image_shape, seeds, rows.to(torch.float64), self.structured)

    def dense(self, operator: LinearOperator) -> Tensor:
        n = math.prod(self.image_shape)
        matrix = structured_matrix if self.structured else dense_matrix
        seeds, rows = operator.parameters["seed"].tolist(), operator.parameters["rows"].numpy()
        matrices = [np.diag(kept) @ matrix(seed, self.m, n) for seed, kept in zip(seeds, rows, strict=True)]
        return torch.from_numpy(np.stack(matrices))


class TestGaussian(GaussianTests):
    image_shape = (2, 3, 4)
    dtype = torch.float64


class TestComplexGaussian(GaussianTests):
    """And more rows than values of the image, whose number times that of rows is no multiple of sixteen."""

    image_shape = (1, 3, 3)
    m = 11
    dtype = torch.complex128


class TestStructured(GaussianTests):
    """An even number of values, in two channels."""

    image_shape = (2, 3, 4)
    dtype = torch.float64
    structured = True


class TestStructuredOdd(TestStructured):
    image_shape = (1, 5, 3)


class TestStructuredComplex(TestStructured):
    image_shape = (3, 5)
    dtype = torch.complex128


class TestStructuredVolume(TestStructured):
    image_shape = (1, 2, 3, 4)
    m = 15
    dtype = torch.complex128


class TestSquareStructured(TestStructured):
    """As many rows as values of the image: orthonormal ones, so that noise can be lifted."""

    image_shape = (1, 2, 5)
    m = 10
    lifts = True


class TestComplexSquareStructured(TestSquareStructured):
    dtype = torch.complex128


# --------------------------------------------------------------------------------------------------- seeds


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 9),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]),
    structured=st.booleans(),
)
def test_a_seed_is_a_matrix(m: int, shape: list[int], seed: int, dtype: torch.dtype, structured: bool) -> None:
    n = math.prod(shape)
    if structured and m > n:
        m = n
    if not structured and m * n < 16:
        m = math.ceil(16 / n)  # below that torch draws in another way
    want = torch.from_numpy((structured_matrix if structured else dense_matrix)(seed, m, n)).to(dtype)
    A = Gaussian(m, shape, seed, structured=structured).to(dtype)
    exact = {"rtol": 1e-14, "atol": 1e-14} if dtype.to_real() == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(A.matrix[0].to(dtype), want, **exact)
    x = torch.randn(3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(A(x), x.flatten(1) @ want.T, **{name: 100 * value for name, value in exact.items()})
    y = A(x)
    torch.testing.assert_close(
        A.H(y).flatten(1), y @ want.conj(), **{name: 100 * value for name, value in exact.items()}
    )


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 4682, 40000])
def test_blocks_are_drawn_as_the_whole(columns: int) -> None:
    for m in (1, 7, 16):
        want = torch.randn(m, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / math.sqrt(m)
        torch.testing.assert_close(Gaussian(m, (1, columns), 3).to(torch.float64).matrix[0], want, rtol=1e-15, atol=0)


def test_no_more_than_a_block_is_drawn_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda size, **how: sizes.append(size) or randn(size, **how))
    assert Gaussian(100, (1, 50, 50), torch.arange(3)).matrix.dtype == torch.float32
    assert max(sizes) < 40_000
    assert sum(sizes) == 3 * 100 * 2500


@pytest.mark.parametrize("structured", [False, True])
def test_precisions_differ_by_rounding_alone(structured: bool) -> None:
    A = Gaussian(40, (1, 12, 12), torch.arange(2), structured=structured)
    double = A.to(torch.float64)
    tolerance = 3e-7 if structured else 0  # what is computed from the numbers, and the numbers themselves
    torch.testing.assert_close(A.matrix, double.matrix.to(torch.float32), rtol=0, atol=tolerance)
    assert not torch.equal(double.matrix, A.matrix.to(torch.float64))
    torch.testing.assert_close(double.to(torch.float32).matrix, A.matrix, rtol=0, atol=0)


def test_another_process_makes_the_same_matrices() -> None:
    code = (
        "import hashlib, torch; from ambient_sci.operators import Gaussian; torch.set_num_threads(2)\n"
        "for structured in (False, True):\n"
        "    matrix = Gaussian(30, (1, 9, 9), torch.arange(4), structured=structured).matrix\n"
        "    print(hashlib.sha256(matrix.contiguous().numpy().tobytes()).hexdigest())\n"
    )
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    there = subprocess.run(
        [sys.executable, "-c", code.replace("(2)", "(1)")], capture_output=True, text=True, check=True
    )
    assert len(set(here)) == 2
    assert here == there.stdout.split()


@pytest.mark.parametrize("structured", [False, True])
def test_scans_have_matrices_of_their_own(structured: bool) -> None:
    one = Gaussian(4, (1, 2, 3), 7, structured=structured)
    other = Gaussian(4, (1, 2, 3), torch.tensor([8, 7]), structured=structured)
    assert len(one) == 1
    assert torch.equal(one.matrix[0], other.matrix[1])
    assert not torch.equal(one.matrix[0], other.matrix[0])


@pytest.mark.parametrize("structured", [False, True])
def test_a_matrix_is_made_once_for_thinned_and_repeated_scans(structured: bool) -> None:
    A = Gaussian(4, (1, 2, 3), torch.tensor([8, 7]), structured=structured)
    thinned = A.thin(0.5, torch.Generator().manual_seed(0))
    assert thinned._map is A._map is A.drop_last()._map
    many = A.repeat(3).thin(0.5, torch.Generator().manual_seed(0))
    assert len(many._map.matrix) == 2
    assert torch.equal(many.matrix, A.matrix.repeat_interleave(3, 0))
    x, y = torch.randn(6, 1, 2, 3), torch.randn(6, 4)
    for i in range(6):  # scans keep rows of their own all the same
        torch.testing.assert_close(many(x)[i : i + 1], many[i](x[i : i + 1]))
        torch.testing.assert_close(many.pinv(y)[i : i + 1], many[i].pinv(y[i : i + 1]), rtol=1e-3, atol=1e-4)
    uneven = A[torch.tensor([0, 0, 1])]
    torch.testing.assert_close(uneven(x[:3]), torch.cat([A[0](x[:2]), A[1](x[2:3])]))


@pytest.mark.parametrize("structured", [False, True])
def test_what_is_made_without_gradients_serves_with_them(structured: bool) -> None:
    A = Gaussian(4, (1, 2, 3), torch.arange(2), structured=structured)
    with torch.inference_mode():
        A.pinv(A(torch.ones(2, 1, 2, 3)))
    x = torch.ones(2, 1, 2, 3, requires_grad=True)
    A.pinv(A(x)).sum().backward()
    assert x.grad is not None


# --------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("structured", [False, True])
def test_entries_are_normal_with_variance_one_over_m(structured: bool) -> None:
    m, n = 160, 1024
    matrix = Gaussian(m, (1, 32, 32), torch.arange(3), structured=structured).to(torch.float64).matrix.numpy()
    values = matrix.ravel() * math.sqrt(m)
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)
    few = values[::97]  # entries of a structured matrix depend on each other a little
    assert scipy.stats.kstest(few, "norm").pvalue > 0.01
    assert abs(np.corrcoef(matrix[0].ravel(), matrix[1].ravel())[0, 1]) < 5 / math.sqrt(m * n)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("n", [9, 12])
def test_the_expected_gram_is_the_identity(structured: bool, n: int) -> None:
    A = Gaussian(5, (1, n), torch.arange(600), structured=structured).to(torch.float64)
    grams = A.matrix.mT @ A.matrix
    error = grams.std(0) / math.sqrt(600)
    assert bool(((grams.mean(0) - torch.eye(n)).abs() <= 5 * error + 1e-12).all())
    assert float(error.max()) < 0.1


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("image", ["pixel", "constant", "wave"])
def test_lengths_are_preserved(structured: bool, image: str) -> None:
    """For any image, also those that a convolution alone would treat badly; variance 2/m as for a dense matrix."""
    n, m, scans = 256, 32, 400
    x = {
        "pixel": torch.eye(n, dtype=torch.float64)[3],
        "constant": torch.ones(n, dtype=torch.float64),
        "wave": torch.cos(2 * math.pi * 5 * torch.arange(n, dtype=torch.float64) / n),
    }[image]
    A = Gaussian(m, (1, n), torch.arange(scans), structured=structured).to(torch.float64)
    ratio = A((x / x.norm()).expand(scans, 1, n)).square().sum(1)
    assert abs(ratio.mean() - 1) < 5 * math.sqrt(2 / m / scans)
    assert 0.6 * 2 / m < ratio.var() < 1.4 * 2 / m


@pytest.mark.parametrize("structured", [False, True])
def test_sparse_images_are_recovered(structured: bool) -> None:
    """By linear programming, exactly, from half as many measurements as pixels."""
    n, m, rng = 64, 32, np.random.default_rng(0)
    for seed in range(5):
        x = np.zeros(n)
        x[rng.choice(n, 5, replace=False)] = rng.standard_normal(5)
        A = Gaussian(m, (1, 8, 8), seed, structured=structured).to(torch.float64)
        y = A(torch.from_numpy(x).reshape(1, 1, 8, 8))[0].numpy()
        matrix = A.matrix[0].numpy()
        found = scipy.optimize.linprog(np.ones(2 * n), A_eq=np.hstack((matrix, -matrix)), b_eq=y).x
        np.testing.assert_allclose(found[:n] - found[n:], x, atol=1e-7)


# --------------------------------------------------------------------------------------------------- structure


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 30), n=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_structured_rows_are_orthogonal(m: int, n: int, seed: int) -> None:
    m = min(m, n)
    matrix = Gaussian(m, (1, n), seed, structured=True).to(torch.float64).matrix[0]
    torch.testing.assert_close(matrix @ matrix.T, n / m * torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-12)


def test_structured_matrices_are_never_made() -> None:
    """A million pixels: a matrix of 500 GB."""
    A = Gaussian(1 << 17, (1, 1 << 20), 3, structured=True)
    x = torch.randn(1, 1, 1 << 20, generator=torch.Generator().manual_seed(0))
    y = A(x)
    torch.testing.assert_close(8 * y, A(A.H(y)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(A(A.pinv(y)), y, rtol=1e-4, atol=1e-4)


def test_pinv_of_structured_and_dense() -> None:
    y = torch.randn(3, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for structured in (False, True):
        for rows in (None, torch.tensor([[1, 1, 0, 1, 1, 0], [1] * 6, [0] * 6])):
            A = Gaussian(6, (1, 3, 3), torch.arange(3), rows, structured).to(torch.float64)
            kept = A.rows[:, :, None] * A.matrix
            want = torch.linalg.pinv(kept).to(y.dtype) @ y[:, :, None]
            torch.testing.assert_close(A.pinv(y).flatten(1), want[..., 0], rtol=1e-9, atol=1e-9)


def test_pinv_in_single_precision() -> None:
    A = Gaussian(300, (1, 30, 30), torch.arange(2))
    y = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    want = A.to(torch.float64).pinv(y.to(torch.float64))
    torch.testing.assert_close(A.pinv(y), want.to(torch.float32), rtol=0, atol=2e-5)


@pytest.mark.parametrize("structured", [False, True])
def test_drop_last_measures_what_its_rows_select(structured: bool) -> None:
    A = Gaussian(6, (2, 3, 3), torch.arange(2), structured=structured)
    x = torch.randn(2, 2, 3, 3)
    fewer = A.thin(0.3, torch.Generator().manual_seed(1)).drop_last(2)
    assert isinstance(fewer, Gaussian)
    assert torch.equal(fewer(x), fewer.rows * A(x))
    assert torch.equal(A.drop_last().rows, torch.tensor([[1.0] * 5 + [0.0]] * 2))


def test_noise_is_lifted_by_square_structured_matrices_alone() -> None:
    n, generator = torch.zeros(1, 1, 9), torch.Generator().manual_seed(0)
    with pytest.raises(DataError, match="only with as many rows as pixels: with 4 of 9"):
        Gaussian(4, (1, 9), 3, structured=True).lift(n, generator)
    with pytest.raises(DataError, match="not orthonormal"):
        Gaussian(9, (1, 9), 3).lift(n, generator)


# --------------------------------------------------------------------------------------------------- specifications


def test_specifications_without_structure_are_dense() -> None:
    spec = OperatorSpec("gaussian", Gaussian(3, (1, 4), 7).parameters, {"n_measurements": 3, "shape": [1, 4]})
    assert torch.equal(from_spec(spec).matrix, Gaussian(3, (1, 4), 7).matrix)


def test_dense_and_structured_do_not_mix() -> None:
    with pytest.raises(DataError, match="other settings"):
        collate([Gaussian(3, (1, 4), 7), Gaussian(3, (1, 4), 7, structured=True)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (1, 2, 2), 7), "n_measurements must be a whole number of at least 1, got 0"),
        ((2.5, (1, 2, 2), 7), "n_measurements must be a whole number of at least 1, got 2.5"),
        ((3, (1, 0), 7), "every size in shape must be a whole number of at least 1, got 0"),
        ((3, (4,), 7), r"shape must be \(channel, \*spatial\), got \(4,\)"),
        ((4, (1, 2, 2), torch.arange(2), torch.ones(1, 4)), r"rows must be .*\(2, 4\), got \(1, 4\)"),
        ((4, (1, 2, 2), 7, torch.full((1, 4), 0.5)), "zeros and ones"),
        ((4, (1, 2, 2), torch.ones(2)), r"seed must be integers \(batch,\), got torch.float32 of shape \(2,\)"),
        (
            (4, (1, 2, 2), torch.ones(2, 1).long()),
            r"seed must be integers \(batch,\), got torch.int64 of shape \(2, 1\)",
        ),
        ((4, (1, 2, 2), 2**70), "seed must be integers of at most 64 bits"),
        ((4, (1, 2, 2), "seven"), "seed must be integers"),
        ((5, (1, 2, 2), 7, None, True), "n_measurements of a structured matrix must be at most the 4 values.*, got 5"),
    ],
)
def test_wrong_arguments(arguments: tuple[int, tuple[int, ...], int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Gaussian(*arguments)
