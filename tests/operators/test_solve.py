"""Iterative solvers against direct ones and scipy's, and their derivatives against those of the direct solution."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ambient_sci.errors import DataError
from ambient_sci.operators import (
    Fourier,
    Gaussian,
    Identity,
    LinearOperator,
    Mask,
    Nufft,
    Scale,
    Sense,
    conjugate_gradient,
    least_squares,
    operator_norm,
    quick_inverse,
    trajectories,
    vstack,
)
from ambient_sci.operators.solve import dot


def system(batch: int, size: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(batch, size, size, dtype=dtype, generator=generator)
    return root.mH @ root / size + torch.eye(size, dtype=dtype), torch.randn(
        batch, size, dtype=dtype, generator=generator
    )


def times(Q: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: (Q @ v[..., None])[..., 0]


class Watch(TorchDispatchMode):
    """Count the copies of values to the host, and the new tensors of some size."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.size, self.copies, self.tensors = size, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.copies += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        result = func(*args, **(kwargs or {}))
        fresh = all(returned.alias_info is None for returned in func._schema.returns)
        self.tensors += fresh and isinstance(result, Tensor) and result.numel() == self.size
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("guess", [False, True])
def test_direct_solution(dtype: torch.dtype, guess: bool) -> None:
    Q, rhs = system(3, 12, dtype)
    start = torch.ones_like(rhs) if guess else None
    x = conjugate_gradient(times(Q), rhs, start, iterations=14)
    torch.testing.assert_close(x, torch.linalg.solve(Q, rhs), rtol=1e-9, atol=1e-9)


def test_exact_after_as_many_iterations_as_eigenvalues() -> None:
    eigenvalues = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(4)
    rhs = system(1, 12, torch.float64)[1]
    want = rhs / eigenvalues
    assert (conjugate_gradient(lambda v: eigenvalues * v, rhs, iterations=2) - want).norm() > 1e-3
    torch.testing.assert_close(conjugate_gradient(lambda v: eigenvalues * v, rhs, iterations=3), want)


def test_scans_stop_by_themselves() -> None:
    """A scan that has converged is left as it is, whatever the others need, and none leaks into another."""
    Q, rhs = system(2, 12, torch.float64)
    Q[0] = torch.diag(2 + 1e-5 * torch.arange(12))  # solved to the tolerance by the first iteration

    def solve(matrix: Tensor, b: Tensor, iterations: int) -> Tensor:
        return conjugate_gradient(times(matrix), b, iterations=iterations, tolerance=1e-3)

    few, many = solve(Q, rhs, 1), solve(Q, rhs, 20)
    assert torch.equal(few[0], many[0])
    assert not torch.equal(few[1], many[1])
    torch.testing.assert_close(many, torch.cat([solve(Q[i : i + 1], rhs[i : i + 1], 20) for i in range(2)]))
    residual = (Q @ many[..., None])[..., 0] - rhs
    assert bool((residual.norm(dim=1) <= 1e-3 * rhs.norm(dim=1) * (1 + 1e-9)).all())
    exact = conjugate_gradient(times(Q), rhs, iterations=20)
    assert not torch.equal(exact[1], many[1])  # the tolerance did stop it


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_far_beyond_convergence(dtype: torch.dtype) -> None:
    """Neither zero right-hand sides nor needless iterations give NaN, in the value or in the gradient."""
    Q, rhs = system(3, 6, dtype)
    rhs[1] = 0
    rhs.requires_grad_()
    x = conjugate_gradient(times(Q), rhs, iterations=100)
    torch.testing.assert_close(x, torch.linalg.solve(Q, rhs), rtol=1e-3, atol=1e-4)
    assert bool((x[1] == 0).all())
    (gradient,) = torch.autograd.grad(1000 * x.abs().square().sum(), rhs)
    assert bool(torch.isfinite(torch.view_as_real(gradient) if dtype.is_complex else gradient).all())


@pytest.mark.parametrize("condition", [1.0, 30.0])
@pytest.mark.parametrize("iterations", [2, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64])
def test_rounding_in_the_null_space_stays_small(dtype: torch.dtype, iterations: int, condition: float) -> None:
    """Of a map without inverse, with a right-hand side in its range: nothing is to come of directions that it ends."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 100, 30, generator=g, dtype=torch.complex128))[0]
    basis = basis if dtype.is_complex else torch.linalg.qr(basis.real)[0]
    exact = torch.randn(8, 30, 1, generator=g, dtype=torch.float64).to(basis.dtype)
    values = torch.linspace(1, condition, 30)[:, None]
    rhs = (basis @ (values * exact))[..., 0].to(dtype)
    Q = (basis @ (values * basis.mH)).to(dtype)
    want = (basis @ exact)[..., 0].to(dtype)
    error = (conjugate_gradient(times(Q), rhs, iterations=iterations) - want).norm(dim=1) / want.norm(dim=1)
    reached = iterations == 100 or condition == 1
    assert float(error.max()) < (30 * condition * torch.finfo(dtype).eps if reached else 1)


def test_right_start_stays() -> None:
    Q, rhs = system(2, 6, torch.float64)
    want = torch.linalg.solve(Q, rhs)
    x = conjugate_gradient(times(Q), rhs, start=want, iterations=3, tolerance=1e-8)
    assert torch.equal(x, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivative_is_that_of_the_solution(dtype: torch.dtype) -> None:
    Q, rhs = system(2, 5, dtype)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rhs.requires_grad_()

    def solve(b: Tensor, lam: Tensor) -> Tensor:
        return conjugate_gradient(lambda v: times(Q)(v) + lam * v, b, iterations=5)

    assert gradcheck(solve, (rhs, weight), fast_mode=True)
    regularised = Q + weight * torch.eye(5, dtype=dtype)
    got = torch.autograd.grad(solve(rhs, weight).abs().square().sum(), (rhs, weight))
    want = torch.autograd.grad(torch.linalg.solve(regularised, rhs).abs().square().sum(), (rhs, weight))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_dot_is_per_scan_and_real() -> None:
    a, b = (system(2, 6, torch.complex128, seed)[1] for seed in (0, 1))
    product = dot(a, b)
    assert product.shape == (2, 1)
    torch.testing.assert_close(product[:, 0], torch.stack([torch.vdot(u, v).real for u, v in zip(a, b, strict=True)]))


# ---------------------------------------------------------------------------------------------- what it costs


def test_watch_sees_what_it_should() -> None:
    with Watch(6) as watch:
        x = torch.ones(2, 3) + 1
        assert bool((x > 0).all())
        x.mul_(2).reshape(6)
    assert watch.copies == 1
    assert watch.tensors == 3  # the ones, the sum and the comparison


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("implicit", [False, True])
def test_no_iteration_waits_for_the_device(dtype: torch.dtype, implicit: bool) -> None:
    Q, rhs = system(3, 12, dtype)
    rhs.requires_grad_()
    with Watch() as watch:
        x = conjugate_gradient(times(Q), rhs, iterations=10, tolerance=1e-3, implicit=implicit)
        torch.autograd.grad(x.abs().sum(), rhs)
    assert watch.copies == 0
    A, y = Gaussian(9, (1, 3, 4), torch.arange(3)), torch.ones(3, 9)
    A(torch.ones(3, 1, 3, 4))  # the seeds are read, and the matrices made, once
    counts = []
    for iterations in (2, 12):
        with Watch() as watch:
            least_squares(A, y, damp=0.1, iterations=iterations, tolerance=1e-3)
            operator_norm(A, (1, 3, 4), iterations, torch.Generator().manual_seed(0), torch.float32)
        counts.append(watch.copies)
    assert counts[0] == counts[1] <= 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_iterations_make_few_tensors(dtype: torch.dtype) -> None:
    """The image of the direction and two products to sum; everything else is written over."""
    rhs = system(3, 12, dtype)[1]
    made = []
    for iterations in (5, 15):
        with torch.no_grad(), Watch(rhs.numel() * (1 + dtype.is_complex)) as watch:
            conjugate_gradient(lambda v: 2 * v, rhs, iterations=iterations)
        made.append(watch.tensors)
    # complex images have half as many values as their real and imaginary parts, and are not counted
    assert made[1] - made[0] == 10 * (2 if dtype.is_complex else 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_what_comes_in_is_not_written_on(dtype: torch.dtype) -> None:
    Q, rhs = system(3, 12, dtype)
    start, y = torch.ones_like(rhs), rhs[:, None, None].mT.contiguous()
    before = rhs.clone()
    conjugate_gradient(times(Q), rhs, start, iterations=5)
    conjugate_gradient(lambda v: v, rhs, iterations=5)
    conjugate_gradient(times(Q), rhs.conj(), iterations=5)
    keep = y.clone()
    least_squares(Mask(torch.ones(1, *y.shape[1:])), y, iterations=4)
    assert torch.equal(rhs, before)
    assert torch.equal(start, torch.ones_like(start))
    assert torch.equal(y, keep)


def test_conjugate_view_and_expanded_right_hand_sides() -> None:
    Q, rhs = system(3, 8, torch.complex128)
    for b in (rhs.conj(), rhs[:1].expand(3, 8), rhs.mT.contiguous().mT):
        x = conjugate_gradient(times(Q), b, iterations=10)
        torch.testing.assert_close(x, torch.linalg.solve(Q, b.resolve_conj()), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------- implicit derivatives


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("guess", [False, True])
def test_implicit_derivatives(dtype: torch.dtype, guess: bool) -> None:
    """In both modes, and of second order in the right-hand side, as finite differences have them."""
    Q, rhs = system(2, 5, dtype)
    weight = torch.tensor([[0.3], [1.2]], dtype=torch.float64, requires_grad=True)
    rhs.requires_grad_()
    start = torch.ones_like(rhs) if guess else None

    def solve(b: Tensor, lam: Tensor) -> Tensor:
        return conjugate_gradient(lambda v: times(Q)(v) + lam * v, b, start, iterations=8, implicit=True)

    fixed = weight.detach()
    assert gradcheck(solve, (rhs, weight), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(lambda b: solve(b, fixed).abs().pow(4).sum(), (rhs,), fast_mode=True)
    assert gradgradcheck(lambda b: solve(b, fixed), (rhs,), fast_mode=True, check_fwd_over_rev=True)
    regularised = Q + weight[..., None] * torch.eye(5, dtype=dtype)
    got = torch.autograd.grad(solve(rhs, weight).abs().square().sum(), (rhs, weight))
    want = torch.autograd.grad(torch.linalg.solve(regularised, rhs).abs().square().sum(), (rhs, weight))
    unrolled = conjugate_gradient(lambda v: times(Q)(v) + weight * v, rhs, iterations=8)
    through = torch.autograd.grad(unrolled.abs().square().sum(), (rhs, weight))
    for ours, theirs, iterated in zip(got, want, through, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours, iterated, rtol=1e-7, atol=1e-7)


def test_implicit_derivatives_of_what_a_network_learned() -> None:
    """Everything that the map depends on, with nothing said about it: the weights of a module, behind an operator."""
    torch.manual_seed(0)
    regulariser = nn.Linear(12, 7, bias=False, dtype=torch.float64)
    A = Gaussian(9, (1, 3, 4), torch.arange(2)).to(torch.float64)
    y = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def apply(v: Tensor) -> Tensor:
        return A.gram(v) + (regulariser(v.flatten(1)) @ regulariser.weight).reshape(v.shape) + 0.1 * v

    x = conjugate_gradient(apply, A.adjoint(y), iterations=40, implicit=True)
    (got,) = torch.autograd.grad(x.square().sum(), regulariser.weight)
    Q = A.matrix.mT @ A.matrix + regulariser.weight.mT @ regulariser.weight + 0.1 * torch.eye(12, dtype=torch.float64)
    exact = torch.linalg.solve(Q, A.adjoint(y).flatten(1))
    (want,) = torch.autograd.grad(exact.square().sum(), regulariser.weight)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_implicit_derivative_keeps_no_iterations() -> None:
    Q, rhs = system(2, 12, torch.float64)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def kept(iterations: int, implicit: bool) -> int:
        count = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal count
            count += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            conjugate_gradient(lambda v: times(Q)(v) + weight * v, rhs, iterations=iterations, implicit=implicit)
        return count

    assert kept(40, implicit=True) == kept(4, implicit=True) <= 3 * rhs.numel()
    assert kept(40, implicit=False) > 9 * kept(4, implicit=False)


def test_second_implicit_derivatives_are_refused_where_they_would_be_wrong() -> None:
    """In the weight: they miss that the solution changes too. Also where the first gradient depends on nothing else."""
    Q, rhs = system(2, 5, torch.float64)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def gradient(lam: Tensor, b: Tensor) -> Tensor:
        x = conjugate_gradient(lambda v: times(Q)(v) + lam * v, b, iterations=6, implicit=True)
        return torch.autograd.grad(x.sum(), lam, create_graph=True)[0]

    with pytest.raises(DataError, match="first derivatives in what apply depends on; for others set implicit=False"):
        torch.autograd.grad(gradient(weight, rhs), weight)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(DataError, match="set implicit=False"):
        gradient(weight, torch.autograd.forward_ad.make_dual(rhs, rhs))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_transforms(implicit: bool, dtype: torch.dtype) -> None:
    """Those of ``torch.func``, over the right-hand side and over what the map closes over, as of a direct solver."""
    Q, rhs = system(2, 5, dtype)
    weight = torch.tensor([0.3], dtype=torch.float64)
    parts = torch.view_as_real(rhs) if dtype.is_complex else rhs
    eye = torch.eye(5, dtype=dtype)

    def as_real(x: Tensor) -> Tensor:
        return torch.view_as_real(x) if dtype.is_complex else x

    def as_given(x: Tensor) -> Tensor:
        return torch.view_as_complex(x) if dtype.is_complex else x

    def ours(b: Tensor, lam: Tensor) -> Tensor:
        apply = lambda v: times(Q)(v) + lam * v  # noqa: E731
        return as_real(conjugate_gradient(apply, as_given(b), iterations=7, implicit=implicit))

    def direct(b: Tensor, lam: Tensor) -> Tensor:
        return as_real(torch.linalg.solve(Q + lam * eye, as_given(b)))

    func = torch.func
    transforms: list[Callable[[Callable[[Tensor, Tensor], Tensor]], Tensor]] = [
        lambda f: func.jacrev(f, 0)(parts, weight),
        lambda f: func.jacfwd(f, 0)(parts, weight),
        lambda f: func.jacrev(f, 1)(parts, weight),
        lambda f: func.jacfwd(f, 1)(parts, weight),
        lambda f: func.vmap(f, (None, 0))(parts, torch.stack([weight, 2 * weight])),
        lambda f: func.vmap(f, (2, None), 1)(torch.stack([parts, 2 * parts], 2), weight),
        lambda f: func.grad(lambda lam: func.vmap(f, (None, 0))(parts, torch.stack([lam, 2 * lam])).sum())(weight),
        lambda f: func.hessian(lambda b: f(b, weight).pow(4).sum())(parts),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(ours), transform(direct), rtol=1e-7, atol=1e-7)


# ---------------------------------------------------------------------------------------------- least squares


class Matrix(LinearOperator):
    """Matrices ``(batch, m, n)``; real ones measure complex images too, and complex ones real images."""

    kind = "matrix"

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    @property
    def rows(self) -> Tensor:
        return torch.ones(self.matrix.shape[:2])

    def _forward(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.to(self.matrix.dtype)[..., None])[..., 0]

    def _adjoint(self, y: Tensor) -> Tensor:
        return (self.matrix.mH @ y[..., None])[..., 0]

    def _check_image(self, x: Tensor) -> None:
        if x.shape[1:] != self.matrix.shape[2:]:
            raise DataError(f"images have {self.matrix.shape[2]} values, got {tuple(x.shape)}")

    def _check_measurement(self, y: Tensor) -> None:
        if y.shape[1:] != self.matrix.shape[1:2]:
            raise DataError(f"measurements have {self.matrix.shape[1]} values, got {tuple(y.shape)}")


def conditioned(m: int, n: int, conditions: list[float], dtype: torch.dtype) -> tuple[Matrix, Tensor]:
    """Matrices of given condition numbers, and measurements that they cannot explain if ``m > n``."""
    generator = torch.Generator().manual_seed(m + n)
    u, _, v = torch.linalg.svd(
        torch.randn(len(conditions), m, n, dtype=dtype, generator=generator), full_matrices=False
    )
    values = torch.stack([torch.logspace(0, -math.log10(c), min(m, n), dtype=torch.float64) for c in conditions])
    return Matrix((u * values.to(dtype)[:, None]) @ v), torch.randn(
        len(conditions), m, dtype=dtype, generator=generator
    )


def error(x: Tensor, want: Tensor) -> Tensor:
    return (x - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("m", "n"), [(20, 12), (9, 12), (12, 12)])
def test_least_squares_against_direct_solvers_and_scipy(dtype: torch.dtype, m: int, n: int) -> None:
    """Tall, wide and square; a batch from well to badly conditioned, where the normal equations have no digits left."""
    A, y = conditioned(m, n, [1, 10, 1e4, 1e7], dtype)
    for damp in (0.0, 0.03):
        x = least_squares(A, y, damp, iterations=300, tolerance=1e-14)
        stacked = torch.cat([A.matrix, damp * torch.eye(n, dtype=dtype).expand(4, n, n)], 1)
        measured = torch.cat([y, y.new_zeros(4, n)], 1)
        want = (torch.linalg.pinv(stacked, rtol=1e-12) @ measured[..., None])[..., 0]
        theirs = [
            scipy.sparse.linalg.lsqr(a.numpy(), b.numpy(), damp, atol=1e-14, btol=1e-14, conlim=0, iter_lim=300)[0]
            for a, b in zip(A.matrix, y, strict=True)
        ]
        ours, scipys = error(x, want), error(torch.from_numpy(np.stack(theirs)), want)
        assert bool((ours <= 10 * scipys + 1e-12).all()), (damp, ours, scipys)
        assert bool((ours < 1e-6).all())


def test_least_squares_takes_the_steps_of_scipy() -> None:
    """Iterate by iterate, damped and not."""
    A, y = conditioned(20, 12, [50.0, 3.0], torch.complex128)
    for damp in (0.0, 0.2):
        for iterations in (1, 2, 5):
            x = least_squares(A, y, damp, iterations)
            for i in range(2):
                theirs = scipy.sparse.linalg.lsqr(
                    A.matrix[i].numpy(), y[i].numpy(), damp, atol=0, btol=0, conlim=0, iter_lim=iterations
                )
                np.testing.assert_allclose(x[i], theirs[0], rtol=1e-9, atol=1e-9)


def test_least_squares_stop_by_scan() -> None:
    """Each scan stops at its own iteration, as it does alone, and nothing changes it afterwards."""
    A, y = conditioned(20, 12, [1.0, 5.0, 100.0], torch.float64)
    every = torch.stack([least_squares(A, y, iterations=k, tolerance=1e-4) for k in range(1, 60)])
    moves = [int((every[1:, i] != every[:-1, i]).any(1).sum()) for i in range(3)]
    assert moves[0] < moves[1] < moves[2] < 50
    alone = torch.cat([least_squares(A[i], y[i : i + 1], iterations=59, tolerance=1e-4) for i in range(3)])
    torch.testing.assert_close(every[-1], alone, rtol=1e-10, atol=1e-10)
    for i in range(3):
        theirs = scipy.sparse.linalg.lsqr(A.matrix[i].numpy(), y[i].numpy(), atol=1e-4, btol=1e-4, conlim=0)
        assert abs(moves[i] + 1 - theirs[2]) <= 1
        # the gradient is what had to become small
        gradient = A.matrix[i].mT @ (A.matrix[i] @ every[-1, i] - y[i])
        assert gradient.norm() <= 1e-4 * A.matrix[i].norm() * (A.matrix[i] @ every[-1, i] - y[i]).norm()


def test_least_squares_of_measurements_without_information() -> None:
    """Zeros, and rows that no image reaches, are solved by zeros, after any number of iterations."""
    A, y = conditioned(20, 12, [5.0, 5.0, 5.0], torch.float32)
    y[1] = 0
    A.matrix[2] = 0
    x = least_squares(A, y, iterations=100)
    assert bool((x[1:] == 0).all())
    torch.testing.assert_close(x[0], torch.linalg.lstsq(A.matrix[0], y[0]).solution, rtol=1e-4, atol=1e-4)


def test_least_squares_with_a_weight_for_every_scan_and_one_operator() -> None:
    A, y = conditioned(20, 12, [5.0], torch.float64)
    y, damp = torch.cat([y, 2 * y, -y]), torch.tensor([0.0, 0.1, 1.0])
    x = least_squares(A, y, damp, 100)
    for i in range(3):
        torch.testing.assert_close(x[i : i + 1], least_squares(A, y[i : i + 1], float(damp[i]), 100))


def test_least_squares_in_real_images_of_complex_measurements() -> None:
    """Inner products are real parts: the minimum is over real images, which is not the real part of the other."""
    A, y = conditioned(20, 12, [5.0, 50.0], torch.complex128)
    x = least_squares(A, y, 0.1, 200, real=True)
    assert not x.is_complex()
    parts = [torch.cat([t.real, t.imag], 1) for t in (A.matrix, y)]
    normal = parts[0].mT @ parts[0] + 0.01 * torch.eye(12, dtype=torch.float64)
    want = torch.linalg.solve(normal, (parts[0].mT @ parts[1][..., None])[..., 0])
    torch.testing.assert_close(x, want, rtol=1e-9, atol=1e-9)
    assert (least_squares(A, y, 0.1, 200).real - want).norm() > 0.1


@pytest.mark.parametrize("real", [False, True])
def test_least_squares_derivatives(real: bool) -> None:
    A, y = conditioned(7, 3, [5.0, 50.0], torch.complex128)
    y.requires_grad_()

    def solve(measured: Tensor) -> Tensor:
        return least_squares(A, measured, torch.tensor([0.0, 0.1]), 20, real=real)

    assert gradcheck(solve, (y,), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(lambda measured: solve(measured).abs().pow(4).sum(), (y,), fast_mode=True)
    mapped = torch.func.vmap(solve)(torch.stack([y.detach(), 1j * y.detach()]))
    torch.testing.assert_close(mapped[1], solve(1j * y.detach()), rtol=1e-9, atol=1e-9)
    gradient = torch.func.grad(lambda v: least_squares(A, v, 0.1, 20, real=real).abs().square().sum())(y.detach())
    (want,) = torch.autograd.grad(least_squares(A, y, 0.1, 20, real=real).abs().square().sum(), y)
    torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_least_squares_of_a_stack(dtype: torch.dtype) -> None:
    """Single precision, images of an operator's own shape, and rows that are not measured."""
    generator = torch.Generator().manual_seed(0)
    keep = (torch.rand(3, 1, 4, 3, generator=generator) < 0.7).float()
    A = vstack(Gaussian(5, (1, 4, 3), torch.arange(3)), Mask(keep))
    x = torch.randn(3, 1, 4, 3, dtype=dtype, generator=generator)
    found = least_squares(A, A(x), iterations=60)
    assert found.dtype == dtype
    torch.testing.assert_close(A(found), A(x), rtol=1e-4, atol=1e-4)
    assert (found.abs().square().sum() <= (1 + 1e-6) * x.abs().square().sum()).item()


def test_damping_is_checked() -> None:
    A, y = conditioned(8, 5, [5.0, 50.0], torch.float64)
    for damp in (-0.1, math.nan, math.inf, torch.ones(3)):
        with pytest.raises(DataError, match=r"damp must be one number or \(2,\), at least 0 and finite, got"):
            least_squares(A, y, damp)
    with pytest.raises(DataError, match="8 values"):
        least_squares(A, y[:, :5])
    with pytest.raises(DataError, match="damp of the operator is being differentiated"):
        least_squares(A, y, torch.tensor(0.1, requires_grad=True))


# ---------------------------------------------------------------------------------------------- the norm


def test_operator_norm_is_the_largest_singular_value() -> None:
    A, _ = conditioned(20, 12, [1.0, 100.0, 1e6], torch.complex128)
    A = Matrix(A.matrix * torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)[:, None, None])
    got = operator_norm(A, (12,), 200, torch.Generator().manual_seed(0), torch.complex128)
    torch.testing.assert_close(got, torch.linalg.matrix_norm(A.matrix, ord=2), rtol=1e-10, atol=0)
    few = operator_norm(A, (12,), 2, torch.Generator().manual_seed(0), torch.complex128)
    assert bool((few <= got * (1 + 1e-12)).all())
    assert few[1] < got[1] * (1 - 1e-6)
    assert torch.equal(few, operator_norm(A, (12,), 2, torch.Generator().manual_seed(0), torch.complex128))


def test_operator_norm_of_kinds() -> None:
    """A unitary transform, matrices on real images, complex measurements of real images, and no rows at all."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 1, 1, 6)
    torch.testing.assert_close(operator_norm(Fourier(mask, (5, 6)), (1, 5, 6), 3, generator), torch.ones(2))
    A = Gaussian(30, (1, 3, 4), torch.arange(2)).to(torch.float64)
    norms = operator_norm(A, (1, 3, 4), 300, generator, torch.float64)
    torch.testing.assert_close(norms, torch.linalg.matrix_norm(A.matrix, ord=2), rtol=1e-6, atol=0)
    scaled = operator_norm(Scale(A, 1 - 2j), (1, 3, 4), 300, generator, torch.float64)
    torch.testing.assert_close(scaled, 5**0.5 * norms, rtol=1e-6, atol=0)
    none = Sense(torch.zeros(2, 1, 5, 6), torch.ones(2, 3, 5, 6, dtype=torch.complex64))
    assert torch.equal(operator_norm(none, (1, 5, 6), 3, generator), torch.zeros(2))


def test_quick_inverse_has_the_units_of_images() -> None:
    """Whatever the rows' norms and the density of samples: images come back that a scan measures completely."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.randn(2, 1, 20, 20, generator=g), 5, 1).to(torch.complex64)
    shape = tuple(x.shape[2:])
    whole = torch.ones(2, 1, *shape)
    maps = torch.randn(2, 3, *shape, dtype=x.dtype, generator=g)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    spokes = Nufft(trajectories.golden_angle(2, shape, 30, 32, g), shape)
    bright = Scale(Identity((1, *shape), batch=2), 40.0)
    for A in (Mask(whole), Fourier(whole, shape), Sense(whole, maps), Identity((1, *shape), batch=2)):
        assert A.orthonormal
        torch.testing.assert_close(quick_inverse(A, A(x)), x, rtol=1e-4, atol=1e-5)
    for A, error in ((spokes, 0.15), (bright, 1e-5)):
        y = A(x)
        assert float((A.adjoint(y) - x).norm()) > float(x.norm())  # what an adjoint alone would be
        assert float((quick_inverse(A, y) - x).norm()) < error * float(x.norm())
    shrunk = quick_inverse(bright, bright(x), torch.tensor([1600.0, 0.0]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(shrunk, x * torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1))
