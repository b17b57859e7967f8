"""Operators under the transforms of ``torch.func``, against the matrices of the operators."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ambient_sci.errors import DataError
from ambient_sci.operators import Blur, Fourier, Gaussian, LinearOperator, Mask, Sense, vstack
from ambient_sci.operators.compose import Adjoint

SHAPE = (1, 3, 4)
func = torch.func


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mask(batch: int) -> Mask:
    return Mask((uniform(0, batch, *SHAPE) < 0.6).to(torch.float64))


def sense(batch: int) -> Sense:
    lines = (uniform(1, batch, 1, 1, 4) < 0.7).to(torch.float64)
    return Sense(lines, normal(1, batch, 2, 3, 4))


def gaussian(batch: int) -> Gaussian:
    return Gaussian(5, SHAPE, torch.arange(batch)).to(torch.float64)


KINDS: dict[str, Callable[[int], LinearOperator]] = {
    "mask": mask,
    "sense": sense,
    "gaussian": gaussian,
    "blur": lambda batch: Blur(normal(2, batch, 2, 3), SHAPE[1:], "valid"),
    "product": lambda batch: gaussian(batch) @ mask(batch),
    "adjoint": lambda batch: sense(batch).H,
    "stack": lambda batch: vstack(sense(batch), (1 - 2j) * mask(batch)),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[int], LinearOperator]:
    return KINDS[request.param]


def image(A: LinearOperator, batch: int, seed: int = 3) -> Tensor:
    return normal(seed, batch, *((2, 3, 4) if isinstance(A, Adjoint) else SHAPE))


def matrix(A: LinearOperator) -> Tensor:
    """Matrices of every scan ``(batch, m, n)``, column by column, without any transform."""
    shape = image(A, 1).shape[1:]
    basis = torch.eye(shape.numel(), dtype=torch.complex128).reshape(-1, 1, *shape)
    return torch.stack([A(one.expand(len(A), *shape)).flatten(1) for one in basis], -1)


def parts(t: Tensor) -> Tensor:
    """Real and imaginary parts one after the other, ``(batch, 2 n)``."""
    t = t.flatten(1)
    return torch.cat([t.real, t.imag], 1)


def in_parts(A: LinearOperator, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The operator as a map of the parts of images like ``x``."""

    def apply(p: Tensor) -> Tensor:
        real, imaginary = p.chunk(2, 1)
        return parts(A(torch.complex(real, imaginary).reshape(x.shape)))

    return apply


def real_matrix(A: LinearOperator) -> Tensor:
    M = matrix(A)
    return torch.cat([torch.cat([M.real, -M.imag], 2), torch.cat([M.imag, M.real], 2)], 1)


def by_scan(jacobian: Tensor) -> Tensor:
    """``(batch, m, batch, n)`` to ``(batch, m, n)``; no scan depends on another."""
    blocks = jacobian.movedim(2, 1)
    assert all(not blocks[i, j].any() for i in range(len(blocks)) for j in range(len(blocks)) if i != j)
    return torch.stack([blocks[i, i] for i in range(len(blocks))])


@pytest.mark.parametrize("scans", [1, 2])
def test_vmap_is_a_loop(make: Callable[[int], LinearOperator], scans: int) -> None:
    """Several samples of every scan, stacked along any axis; one operator for all scans too."""
    A = make(scans)
    x = torch.stack([image(A, 2, seed) for seed in range(3)])
    M = matrix(A)
    want = (M @ x.flatten(2)[..., None])[..., 0]
    torch.testing.assert_close(func.vmap(A)(x).flatten(2), want)
    y = func.vmap(A, in_dims=2, out_dims=1)(x.movedim(0, 2))
    torch.testing.assert_close(y.movedim(1, 0).flatten(2), want)
    torch.testing.assert_close(func.vmap(A.gram)(x).flatten(2), (M.mH @ want[..., None])[..., 0])
    twice = func.vmap(func.vmap(A))(x[:, None])
    torch.testing.assert_close(twice[:, 0].flatten(2), want)


def test_jacobians_are_the_matrix(make: Callable[[int], LinearOperator]) -> None:
    """Of the map, vmap over jvp and over vjp; a first use inside a transform leaves nothing of it behind."""
    A = make(2)
    x = image(A, 2)
    apply, want = in_parts(A, x), real_matrix(make(2))
    for jacobian in (func.jacrev, func.jacfwd):
        torch.testing.assert_close(by_scan(jacobian(apply)(parts(x))), want)
    torch.testing.assert_close(A(x), make(2)(x))
    gradient, tangents = func.jacrev(apply), func.jacfwd(apply)
    two = torch.stack([parts(x), 2 * parts(x)])
    for both in (func.vmap(gradient)(two), func.vmap(tangents)(two)):
        torch.testing.assert_close(by_scan(both[1]), want)


def test_derivatives_of_functions_of_the_map(make: Callable[[int], LinearOperator]) -> None:
    """Gradient and curvature of least squares, and of something that is not quadratic."""
    A = make(2)
    x = image(A, 2)
    p, apply, M = parts(x), in_parts(A, x), real_matrix(A)
    y = parts(normal(9, *A(x).shape))
    misfit = lambda q: 0.5 * (apply(q) - y).square().sum()  # noqa: E731
    residual = (M @ p[..., None])[..., 0] - y
    torch.testing.assert_close(func.grad(misfit)(p), (M.mT @ residual[..., None])[..., 0])
    for curvature in (func.hessian(misfit), func.jacrev(func.jacrev(misfit)), func.jacfwd(func.jacfwd(misfit))):
        torch.testing.assert_close(by_scan(curvature(p)), M.mT @ M)
    quartic = lambda q: (apply(q) - y).pow(4).sum()  # noqa: E731
    want = M.mT @ (12 * residual.square()[..., None] * M)
    torch.testing.assert_close(by_scan(func.hessian(quartic)(p)), want)


def test_vjp_jvp_and_linearize(make: Callable[[int], LinearOperator]) -> None:
    A = make(2)
    x, tangent = image(A, 2), image(A, 2, 4)
    y, pull = func.vjp(A, x)
    torch.testing.assert_close(pull(y)[0], A.gram(x))
    torch.testing.assert_close(func.jvp(A, (x,), (tangent,)), (y, A(tangent)))
    value, push = func.linearize(in_parts(A, x), parts(x))
    torch.testing.assert_close(value, parts(y))
    torch.testing.assert_close(push(parts(tangent)), parts(A(tangent)))
    total = lambda v: func.vmap(A)(v).abs().pow(2).sum()  # noqa: E731
    every = torch.stack([x, tangent])
    torch.testing.assert_close(func.grad(total)(every), 2 * torch.stack([A.gram(x), A.gram(tangent)]))


def test_real_images_of_complex_measurements() -> None:
    """Tangents and gradients stay real."""
    A = (1 - 2j) * mask(2)
    x = normal(0, 2, *SHAPE, dtype=torch.float64)
    gradient = func.vmap(func.grad(lambda v: A(v).abs().square().sum()))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(gradient, 10 * torch.stack([mask(2)(x), 2 * mask(2)(x)]))


def test_functional_call() -> None:
    """A module that holds an operator: what it learns is differentiated, the operator is not."""

    class Step(nn.Module):
        def __init__(self, A: LinearOperator) -> None:
            super().__init__()
            self.A, self.size = A, nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.size * self.A.gram(x)

    A = sense(2)
    module, x = Step(A), normal(5, 2, *SHAPE)
    loss = lambda values, v: func.functional_call(module, values, (v,)).abs().square().sum()  # noqa: E731
    values = {"size": module.size.detach()}
    got = func.grad(loss)(values, x)["size"]
    want = -2 * ((x - 0.1 * A.gram(x)).conj() * A.gram(x)).sum().real
    torch.testing.assert_close(got, want)
    each = func.vmap(func.grad(loss), (None, 0))(values, torch.stack([x, 2 * x]))["size"]
    torch.testing.assert_close(each, torch.stack([want, 4 * want]))


class Unchecked(Mask):
    """Weights that nothing was asked about, which ``torch.func.vmap`` does not allow."""

    def __init__(self, maps: Tensor) -> None:
        self.mask = maps

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"maps": self.mask}

    def _check_image(self, x: Tensor) -> None:
        pass


def test_parameters_are_not_differentiated() -> None:
    """In no mode and at no depth, and with a message: the gradients would be zeros."""
    lines, maps, x = torch.ones(2, 1, 1, 4, dtype=torch.float64), normal(1, 2, 2, 3, 4), normal(5, 2, *SHAPE)
    refused = pytest.raises(
        DataError, match=r"^ma(ps|sk) of the operator is being differentiated .*: detach it, .* vmap$"
    )

    def measure(m: Tensor, v: Tensor = x) -> Tensor:
        return Sense(lines, m)(v)

    def energy(m: Tensor, v: Tensor = x) -> Tensor:
        return measure(m, v).abs().square().sum()

    with refused:
        measure(maps.clone().requires_grad_())
    with refused, torch.autograd.forward_ad.dual_level():
        measure(torch.autograd.forward_ad.make_dual(maps, maps))
    for transform in (
        lambda: func.grad(energy)(maps),
        lambda: func.jvp(measure, (maps,), (maps,)),
        lambda: func.vmap(lambda m: Unchecked(m)(x))(maps),
        lambda: func.grad(lambda m: func.grad(energy, 1)(m, x).abs().sum())(maps),
        lambda: func.jvp(lambda m: func.grad(energy, 1)(2 * m, x), (maps,), (maps,)),
        lambda: func.jvp(lambda m: func.jvp(lambda v: measure(m, v), (x,), (x,)), (maps,), (maps,)),
        lambda: func.vmap(lambda m: func.grad(lambda v: Unchecked(m)(v).abs().sum())(x))(maps),
        lambda: func.grad(lambda v: Fourier(lines, (3, 4))[0](v[:1]).abs().square().sum())(x),  # not varying, but made
    ):
        with refused:
            transform()
    with torch.no_grad():
        want = measure(maps.clone().requires_grad_())
    torch.testing.assert_close(measure(maps), want)
