"""Measurement matrices, against einsum and numpy's pseudo-inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Gaussian, LinearOperator, Matrix, collate
from ambient_sci.testing import OperatorTests

EXAMPLES = settings(max_examples=40, deadline=None)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_rows(batch: int, m: int, seed: int, share: float = 0.8) -> Tensor:
    return (torch.rand(batch, m, generator=torch.Generator().manual_seed(seed)) < share).to(torch.float64)


class TestMatrix(OperatorTests):
    image_shape = (2, 3, 3)
    dtype = torch.float64
    matrix_dtype = torch.float64

    def make(self, batch: int, seed: int) -> LinearOperator:
        n = int(np.prod(self.image_shape))
        matrix = draw(batch, 10, n, dtype=self.matrix_dtype, seed=seed)
        return Matrix(matrix, self.image_shape, some_rows(batch, 10, seed))

    def dense(self, operator: LinearOperator) -> Tensor:
        matrix, rows = operator.parameters["matrix"], operator.parameters["rows"]
        return torch.einsum("bi,bij->bij", rows.to(matrix.dtype), matrix)


class TestRealMatrixOfComplexImages(TestMatrix):
    dtype = torch.complex128


class TestComplexMatrix(TestMatrix):
    image_shape = (1, 2, 3, 2)
    dtype = torch.complex128
    matrix_dtype = torch.complex128


class TestComplexMatrixOfRealImages(TestMatrix):
    image_shape = (1, 7)
    matrix_dtype = torch.complex128


def test_codes_of_an_instrument() -> None:
    codes = torch.tensor([[[1, 0, 1, 0], [0, 1, 1, 0]]])  # which mirrors are open
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert Matrix(codes, (1, 2, 2))(x).tolist() == [[4.0, 5.0]]
    assert Matrix(codes.bool(), (1, 2, 2)).matrix.dtype == torch.float32
    assert torch.equal(Matrix(codes, (1, 2, 2)).rows, torch.ones(1, 2))


def test_precision_is_that_of_the_values() -> None:
    for matrix_dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        A = Matrix(draw(2, 3, 4, dtype=matrix_dtype), (1, 4), torch.ones(2, 3).bool())
        for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
            y = A(torch.ones(2, 1, 4, dtype=dtype))
            back, inverse = A.H(y), A.pinv(y)
            assert {t.real.dtype for t in (y, back, inverse)} == {dtype.to_real()}
            assert y.is_complex() == (dtype.is_complex or matrix_dtype.is_complex)


# ------------------------------------------------------------------------------------------------------- fewer rows


def test_thinned_operators_share_the_matrix() -> None:
    A = Matrix(draw(2, 6, 4), (1, 2, 2))
    thinned = A.thin(0.5, torch.Generator().manual_seed(0))
    assert thinned.matrix.data_ptr() == A.drop_last().matrix.data_ptr() == A.matrix.data_ptr()
    assert torch.equal(A.rows, torch.ones(2, 6))


def test_drop_last_loses_the_last_rows_that_are_kept() -> None:
    rows = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    A = Matrix(draw(4, 5, 3), (1, 3), rows)
    assert A.drop_last().rows.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0] * 5, [0] * 5]
    assert A.drop_last(2).rows.tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0] * 5, [0] * 5]
    assert torch.equal(A.drop_last(0).rows, A.rows)
    assert A.drop_last(9).rows.sum() == 0
    x = draw(4, 1, 3)
    fewer = A.drop_last()
    torch.testing.assert_close(fewer(x), fewer.rows * A(x), rtol=0, atol=0)
    assert torch.equal(A.drop_last().drop_last().rows, A.drop_last(2).rows)
    for count in (-1, 1.0, "1"):
        with pytest.raises(DataError, match=f"count must be a whole number of at least 0, got {count}"):
            A.drop_last(count)


# --------------------------------------------------------------------------------------------------- pseudo-inverse


def check_pinv(A: Matrix | Gaussian, y: Tensor, eps: float = 2.3e-16) -> None:
    """Compare with numpy, up to what the condition number allows."""
    kept = (A.rows.to(A.matrix.dtype)[:, :, None] * A.matrix).numpy()
    got = A.pinv(y)
    assert got.shape == (len(y), *A.shape)
    for i in range(len(y)):
        matrix = kept[i % len(kept)]
        singular = np.linalg.svd(matrix, compute_uv=False)
        measured = singular[singular > 1e-12 * singular[0]]
        condition = measured[0] / measured[-1] if len(measured) else 1.0
        want = np.linalg.pinv(matrix) @ y[i].numpy()
        error = np.linalg.norm(got[i].flatten().numpy() - want)
        assert error <= 100 * eps * condition**2 * (np.linalg.norm(want) + 1e-300)


@EXAMPLES
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.3, 0.7, 1.0]),
    dtypes=st.tuples(*[st.sampled_from([torch.float64, torch.complex128])] * 2),
)
def test_pinv_is_the_pseudo_inverse(
    m: int, n: int, batch: int, seed: int, share: float, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    A = Matrix(draw(batch, m, n, dtype=dtypes[0], seed=seed), (1, n), some_rows(batch, m, seed, share))
    y = draw(batch, m, dtype=dtypes[1], seed=seed + 1)
    check_pinv(A, y)
    many = draw(4, m, dtype=dtypes[1], seed=seed + 2)
    check_pinv(A[0], many)  # one matrix, many measurements


def test_pinv_of_scans_of_both_sorts() -> None:
    rows = torch.ones(4, 8)
    rows[0, 3:] = rows[2, 5:] = 0  # fewer rows than the five pixels, or as many; more in the other scans
    for dtype in (torch.float64, torch.complex128):
        check_pinv(Matrix(draw(4, 8, 5, dtype=dtype), (1, 5), rows), draw(4, 8, dtype=dtype, seed=1))


def test_pinv_is_differentiable() -> None:
    A = Matrix(draw(2, 3, 5), (1, 5))
    y = draw(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(A.pinv, (y,))


def test_factors_are_made_once_and_follow_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda gram: made.append(gram.shape) or cholesky(gram))
    monkeypatch.setattr(torch.linalg, "svd", None)
    A = Matrix(draw(2, 4, 6), (1, 2, 3))
    assert made == []
    y = draw(2, 4, seed=1)
    A.pinv(y)
    A.pinv(2 * y)
    assert made == [(2, 4, 4)]
    monkeypatch.undo()
    check_pinv(A.drop_last(), y)
    check_pinv(collate([A[1], A.drop_last()[0]]), y)


@EXAMPLES
@given(
    m=st.integers(2, 10),
    n=st.integers(2, 12),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128]),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_dependent_rows_are_refused(m: int, n: int, seed: int, dtype: torch.dtype, scale: float) -> None:
    matrix = scale * draw(3, m, n, dtype=dtype, seed=seed)
    if m <= n:
        matrix[1, -1] = 3 * matrix[1, 0]
    else:
        matrix[1, :, -1] = 3 * matrix[1, :, 0]
    A = Matrix(matrix, (1, n))
    sort = "rows" if m <= n else "columns"
    with pytest.raises(DataError, match=f"pinv needs linearly independent {sort}, .* in scan 1$"):
        A.pinv(matrix[:, :, 0])
    if m <= n:
        A.drop_last().pinv(matrix[:, :, 0])  # without the row that was too many


def test_zero_rows_and_the_scan_are_named() -> None:
    matrix = draw(4, 6, 5)
    matrix[2, :, 1] = 0
    rows = torch.ones(4, 6)
    rows[0, 4:] = 0  # another sort than the others
    with pytest.raises(DataError, match=r"independent columns, got dependent ones .*float64 precision.* in scan 2$"):
        Matrix(matrix, (1, 5), rows).pinv(matrix[:, :, 0])
    with pytest.raises(DataError, match=r"independent rows, .* in scan 0, 1$"):
        Matrix(torch.zeros(2, 1, 3), (1, 3)).pinv(torch.zeros(2, 1))


def test_pinv_refuses_what_is_no_measurement() -> None:
    A = Matrix(draw(2, 3, 4), (1, 4))
    with pytest.raises(DataError, match=r"measurements of real or complex numbers \(batch, 3\), got .*\(2, 4\)"):
        A.pinv(draw(2, 4))
    with pytest.raises(DataError, match="2 scans, the tensor 3"):
        A.pinv(draw(3, 3))


# --------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 4), (1, 2, 2)), r"matrix must be \(batch, n_measurements, pixels\), got shape \(2, 4\)"),
        ((torch.ones(2, 3, 4), (1, 5)), r"matrix must have 5 columns, one for each value of shape \(1, 5\), got 4"),
        ((torch.ones(2, 0, 4), (1, 4)), "n_measurements must be a whole number of at least 1, got 0"),
        ((torch.ones(2, 3, 4), (4,)), r"shape must be \(channel, \*spatial\), got \(4,\)"),
        ((torch.ones(2, 3, 4), (1, 2.0, 2)), "every size in shape must be a whole number of at least 1, got 2.0"),
        ((torch.ones(2, 3, 4), (1, 4), torch.ones(1, 3)), r"rows must be .* = \(2, 3\), got \(1, 3\)"),
        ((torch.ones(2, 3, 4), (1, 4), 0.5 * torch.ones(2, 3)), "zeros and ones"),
        ((torch.tensor([[[1.0, torch.nan]]]), (1, 2)), "matrix must be finite"),
        ((torch.tensor([[[1j, torch.inf]]]), (1, 2)), "matrix must be finite"),
    ],
)
def test_wrong_arguments(arguments: tuple[Tensor, tuple[int, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Matrix(*arguments)


def test_large_values_are_finite() -> None:
    Matrix(torch.full((1, 2, 2), 3e38), (1, 2))  # though their sum is not


def test_integer_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"images of real or complex numbers \(batch, 1, 2\), got torch.int64"):
        Matrix(torch.ones(1, 2, 2), (1, 2))(torch.ones(1, 1, 2, dtype=torch.int64))
