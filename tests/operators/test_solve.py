"""Conjugate gradients against direct solvers."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ambient_sci.operators import conjugate_gradient
from ambient_sci.operators.solve import dot


def system(batch: int, size: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(batch, size, size, dtype=dtype, generator=generator)
    return root.mH @ root / size + torch.eye(size, dtype=dtype), torch.randn(
        batch, size, dtype=dtype, generator=generator
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("guess", [False, True])
def test_direct_solution(dtype: torch.dtype, guess: bool) -> None:
    Q, rhs = system(3, 12, dtype)
    start = torch.ones_like(rhs) if guess else None
    x = conjugate_gradient(lambda v: (Q @ v[..., None])[..., 0], rhs, start, iterations=14)
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
        return conjugate_gradient(lambda v: (matrix @ v[..., None])[..., 0], b, iterations=iterations, tolerance=1e-3)

    few, many = solve(Q, rhs, 1), solve(Q, rhs, 20)
    assert torch.equal(few[0], many[0])
    assert not torch.equal(few[1], many[1])
    torch.testing.assert_close(many, torch.cat([solve(Q[i : i + 1], rhs[i : i + 1], 20) for i in range(2)]))
    residual = (Q @ many[..., None])[..., 0] - rhs
    assert bool((residual.norm(dim=1) <= 1e-3 * rhs.norm(dim=1) * (1 + 1e-9)).all())
    exact = conjugate_gradient(lambda v: (Q @ v[..., None])[..., 0], rhs, iterations=20)
    assert not torch.equal(exact[1], many[1])  # the tolerance did stop it


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_far_beyond_convergence(dtype: torch.dtype) -> None:
    """Neither zero right-hand sides nor needless iterations give NaN, in the value or in the gradient."""
    Q, rhs = system(3, 6, dtype)
    rhs[1] = 0
    rhs.requires_grad_()
    x = conjugate_gradient(lambda v: (Q @ v[..., None])[..., 0], rhs, iterations=100)
    torch.testing.assert_close(x, torch.linalg.solve(Q, rhs), rtol=1e-3, atol=1e-4)
    assert bool((x[1] == 0).all())
    (gradient,) = torch.autograd.grad(1000 * x.abs().square().sum(), rhs)
    assert bool(torch.isfinite(torch.view_as_real(gradient) if dtype.is_complex else gradient).all())


def test_right_start_stays() -> None:
    Q, rhs = system(2, 6, torch.float64)
    want = torch.linalg.solve(Q, rhs)
    x = conjugate_gradient(lambda v: (Q @ v[..., None])[..., 0], rhs, start=want, iterations=3, tolerance=1e-8)
    assert torch.equal(x, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivative_is_that_of_the_solution(dtype: torch.dtype) -> None:
    Q, rhs = system(2, 5, dtype)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rhs.requires_grad_()

    def solve(b: Tensor, lam: Tensor) -> Tensor:
        return conjugate_gradient(lambda v: (Q @ v[..., None])[..., 0] + lam * v, b, iterations=5)

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
