r"""Iterative solvers, batched: conjugate gradients, least squares, and the norm of an operator.

.. math:: Q_b x_b = r_b, \qquad
          \min_{x_b} \|A_b x_b - y_b\|^2 + \delta^2 \|x_b\|^2, \qquad
          \|A_b\| = \max_{\|x\| = 1} \|A_b x\|

for every scan of a batch: `conjugate_gradient` (Hestenes and Stiefel 1952, J. Res. NBS 49:409) with a Hermitian
positive definite :math:`Q` given as a function, `least_squares` (LSQR; Paige and Saunders 1982, ACM TOMS 8:43) with any
operator, well or badly conditioned, and `operator_norm` by power iteration. Each scan has its own step sizes and stops
by itself, and no iteration waits for the device: a scan that has stopped takes steps of zero.

All inner products are real parts, :math:`\mathrm{Re}\,\langle a, b \rangle`. A Hermitian system is a real symmetric one
of twice the size, so that this changes nothing for complex images; and it is right for operators that measure real
images in complex numbers.

Solutions have derivatives. Those of `conjugate_gradient` go through the iterations or, with ``implicit=True``, are
those of the solution itself: from :math:`Q x = r` follows

.. math:: \mathrm d x = Q^{-1} (\mathrm d r - \mathrm d Q \, x),

one more solve whatever the number of iterations, and no memory of them. The solution of least squares is linear in
``y``, and its adjoint is the solution of least squares with :math:`A^H`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator, _apply, transformed
from ambient_sci.operators.parallel import Streaming, own, share

__all__ = ["Normal", "conjugate_gradient", "dot", "least_squares", "operator_norm", "quick_inverse"]

Map = Callable[[Tensor], Tensor]

ROUNDING = 8  # units of it; an iteration leaves about three


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product per scan, shaped ``(batch, 1, ...)`` to scale the batch with."""
    product: Tensor = torch.linalg.vecdot(_as_real(a).flatten(1), _as_real(b).flatten(1))
    return product.reshape(-1, *[1] * (a.ndim - 1))


@dataclass(frozen=True)
class Normal:
    r"""The map :math:`A^H A + \lambda` of the normal equations.

    A function of images like any other, but one of which `conjugate_gradient` can have some scans alone. Where there
    are several for each thread and the operator streams over coils (`Sense`, `Nufft`), a thread takes one scan through
    all iterations, whose maps then stay in the cache, and waits for no other.

    Parameters
    ----------
    operator
        :math:`A`.
    weight
        :math:`\lambda`, a number or a tensor that multiplies images, ``(1 or batch, ...)``.
    """

    operator: LinearOperator
    weight: float | Tensor = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to images, ``(batch, channel, *spatial)``."""
        return self._regularise(self.operator.gram(x), x)

    def _regularise(self, image: Tensor, x: Tensor, scans: slice = slice(None)) -> Tensor:
        weight = self.weight
        if isinstance(weight, Tensor):
            return image + (own(weight, scans) if weight.ndim else weight) * x
        return image + weight * x if weight else image


def conjugate_gradient(
    apply: Map,
    rhs: Tensor,
    start: Tensor | None = None,
    iterations: int = 10,
    tolerance: float = 0.0,
    implicit: bool = False,
) -> Tensor:
    """Solve ``apply(x) = rhs``.

    Parameters
    ----------
    apply
        Hermitian positive definite map, the same shape in and out. A `Normal` is the fastest.
    rhs
        Right-hand sides, ``(batch, ...)``, real or complex.
    start
        First guess; zeros by default.
    iterations
        Number of iterations.
    tolerance
        A scan whose residual norm has fallen below this part of its right-hand side's, or to what rounding leaves, is
        left as it is. So is one along whose direction the map turns out not to be positive: what rounding leaves in the
        null space of a singular map would be blown up.
    implicit
        Whether derivatives are those of the exact solution, in ``rhs`` and in whatever ``apply`` depends on (in
        ``start`` there are none). They take one more solve, as accurate as ``iterations`` and ``tolerance`` make it,
        and the memory of one application. Otherwise, derivatives go through the iterations, which are all kept.

    Returns
    -------
    Tensor
        The solutions, ``(batch, ...)``, differentiable in every mode.

    Raises
    ------
    DataError
        For second derivatives in what ``apply`` depends on when ``implicit``: those go through the iterations only.
    """
    if not implicit:
        return _solve(apply, rhs, start, iterations, tolerance)
    with torch.no_grad():
        start = None if start is None else start.detach()
        x = _solve(apply, rhs.detach(), start, iterations, tolerance).detach()

    def solve(r: Tensor) -> Tensor:
        return conjugate_gradient(apply, r, None, iterations, tolerance, implicit=True)

    return _solution(rhs, apply(x), x, solve)


def _solve(apply: Map, rhs: Tensor, start: Tensor | None, iterations: int, tolerance: float) -> Tensor:
    operator = apply.operator if isinstance(apply, Normal) else None
    if not isinstance(apply, Normal) or not isinstance(operator, Streaming) or not _apart(apply, rhs, start):
        return _iterate(apply, rhs, start, iterations, tolerance)
    gram, coils, solution = operator._gram_work(), operator.coils, torch.empty_like(rhs)

    def work(rhs: Tensor, scans: slice, _: range) -> None:
        def part(x: Tensor) -> Tensor:
            image = torch.empty_like(x)
            gram(x, scans, range(coils), image)
            return apply._regularise(image, x, scans)

        solution[scans] = _iterate(part, rhs, None if start is None else start[scans], iterations, tolerance)

    share(work, rhs, 1, coils * rhs[0].numel())
    return solution


def _apart(normal: Normal, rhs: Tensor, start: Tensor | None) -> bool:
    """Whether there are scans enough to give every thread its own, and no derivatives that threads would lose."""
    tensors = [t for t in (rhs, start, normal.weight, *normal.operator.parameters.values()) if isinstance(t, Tensor)]
    derived = _watched(*tensors) or any(unpack_dual(t).tangent is not None for t in tensors)
    if derived or rhs.device.type != "cpu" or not len(rhs) >= 2 * torch.get_num_threads() > 2:
        return False
    normal.operator._check_image(rhs)
    normal.operator._check_batch(rhs)
    return True


def _iterate(apply: Map, rhs: Tensor, start: Tensor | None, iterations: int, tolerance: float) -> Tensor:
    if rhs.is_complex():  # real numbers are quicker to scale by
        real_start = None if start is None else _as_real(start)
        solution = _iterate(
            lambda v: _as_real(apply(torch.view_as_complex(v))), _as_real(rhs), real_start, iterations, tolerance
        )
        return torch.view_as_complex(solution)
    if start is None:
        x, residual = torch.zeros_like(rhs), rhs
    else:
        x, residual = start, rhs - apply(start)
    direction = residual
    energy = length = dot(residual, residual)
    tiny, rounding = torch.finfo(energy.dtype).tiny, ROUNDING * torch.finfo(energy.dtype).eps
    target = max(tolerance, rounding) ** 2 * dot(rhs, rhs)
    steepest = torch.zeros_like(energy)
    for left in reversed(range(iterations)):
        image = apply(direction)
        curvature = dot(direction, image)
        steepest = torch.maximum(steepest, curvature / length.clamp_min(tiny))
        active = ((energy > target) & (curvature > rounding * steepest * length)).to(energy.dtype)
        alpha = active * energy / curvature.clamp_min(tiny)
        # what came in is not ours to write on
        ours = direction is not residual and not _watched(x, image)
        add = Tensor.addcmul_ if ours else torch.addcmul
        x = add(x, alpha, direction)
        if not left:
            break
        residual = add(residual, -alpha, image)
        renewed = dot(residual, residual)
        beta = active * renewed / energy.clamp_min(tiny)
        direction = direction.mul_(beta).add_(residual) if ours else torch.addcmul(residual, beta, direction)
        energy, length = renewed, renewed + beta**2 * length  # the residual is orthogonal to the last direction
    return x


def _watched(*tensors: Tensor) -> bool:
    """Whether derivatives, a transform of ``torch.func`` or the compiler may need the values that tensors have now."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return True
    return any(map(transformed, tensors))


class _Solution(torch.autograd.Function):
    """The solution ``x``, as it changes with the right-hand side and with the image ``apply(x)`` of the same ``x``."""

    @staticmethod
    def forward(rhs: Tensor, image: Tensor, x: Tensor, solve: Map) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *_, ctx.solve = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if not ctx.needs_input_grad[1]:
            return ctx.solve(grad), None, None, None
        dual = ctx.solve(_first_order(grad, *ctx.saved_tensors))
        return dual, -dual, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        solution: Tensor = ctx.solve(tangents[0] - tangents[1])
        return solution

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, solve = inputs
        batched = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=False)
        ]
        return _solution(*batched, torch.func.vmap(solve)), 0


class _FirstOrder(torch.autograd.Function):
    """A cotangent of ``apply(x)``, whose own derivative would miss that ``x`` changes too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, x: Tensor) -> Tensor:
        return cotangent.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise DataError("implicit=True has first derivatives in what apply depends on; for others set implicit=False")

    jvp = backward


# typed, as torch's are not
_solution: Callable[..., Tensor] = _Solution.apply
_first_order: Callable[..., Tensor] = _FirstOrder.apply


def quick_inverse(operator: LinearOperator, y: Tensor, weight: float | Tensor = 0.0, iterations: int = 5) -> Tensor:
    r"""Reconstruct plainly and in the units of the image, ``(batch, channel, *spatial)``.

    The adjoint of operators whose rows are about orthonormal (pixels, Cartesian k-space). A few conjugate gradient
    iterations with :math:`A^H A + \lambda` elsewhere: samples off the grid are not equally dense, and rows may have any
    norm, so that the adjoint has neither the image's units nor its spectrum.

    Parameters
    ----------
    operator
        :math:`A`.
    y
        Measurements, ``(batch, *measurement)``.
    weight
        :math:`\lambda`, as `Normal` has it.
    iterations
        Number of iterations.
    """
    adjoint = operator.adjoint(y)
    if operator.orthonormal:
        return adjoint
    return conjugate_gradient(Normal(operator, weight), adjoint, iterations=iterations)


def least_squares(
    operator: LinearOperator,
    y: Tensor,
    damp: float | Tensor = 0.0,
    iterations: int = 50,
    tolerance: float = 0.0,
    real: bool = False,
) -> Tensor:
    r"""Minimise :math:`\|A x - y\|^2 + \delta^2 \|x\|^2`.

    The condition number that counts is that of :math:`A`, not its square as in the normal equations: more digits where
    the problem is badly conditioned. Without damping, the solution of smallest norm.

    Parameters
    ----------
    operator
        Any linear operator.
    y
        Measurements, ``(batch, *measurement)``.
    damp
        :math:`\delta`, not squared, at least 0: one for all scans, or ``(batch,)``.
    iterations
        At most so many steps.
    tolerance
        A scan is left as it is when its residual has fallen to this part of its measurement (a consistent system is
        solved), or the gradient to this part of :math:`\|A\|` times the residual (the least squares are found). Below
        the precision of the numbers, the precision is meant.
    real
        Whether images are real though measurements are complex, where the operator would take both.

    Returns
    -------
    Tensor
        Images, ``(batch, channel, *spatial)``, differentiable in ``y``: the derivative is one more such problem, that
        of :math:`A^H`, whatever the number of iterations.

    Raises
    ------
    DataError
        If ``damp`` is negative, no number, or of another batch.
    """
    delta = torch.as_tensor(damp)
    if delta.shape not in ((), (1,), (y.shape[0],)) or not bool(((delta >= 0) & (delta < math.inf)).all()):
        raise DataError(f"damp must be one number or ({y.shape[0]},), at least 0 and finite, got {damp}")
    operator._check_measurement(y)
    operator._check_batch(y)
    solver: Any = _LeastSquares(operator, damp, iterations, tolerance, real)
    return _apply(y, solver, "_forward", "_adjoint")


@dataclass(frozen=True)
class _LeastSquares:
    """The linear map from measurements to images that are least squares, and its adjoint."""

    operator: LinearOperator
    damp: float | Tensor
    iterations: int
    tolerance: float
    real: bool

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {**self.operator.parameters, **({"damp": self.damp} if isinstance(self.damp, Tensor) else {})}

    @property
    def batch(self) -> int:
        return max(self.operator.batch, torch.as_tensor(self.damp).numel())

    def _back(self, y: Tensor) -> Tensor:
        x = self.operator.adjoint(y)
        return x.real if self.real and x.is_complex() else x

    def _forward(self, y: Tensor) -> Tensor:
        return _lsqr(self.operator, self._back, y, self.damp, self.iterations, self.tolerance)

    def _adjoint(self, x: Tensor) -> Tensor:
        return _lsqr(self._back, self.operator, x, self.damp, self.iterations, self.tolerance)


def _lsqr(forward: Map, back: Map, rhs: Tensor, damp: float | Tensor, iterations: int, tolerance: float) -> Tensor:
    """LSQR in the notation of its paper; Greek and Latin letters of numbers are ``(batch,)``."""
    delta = torch.as_tensor(damp, dtype=rhs.real.dtype, device=rhs.device)
    beta, u = _normalised(rhs.clone())
    alpha, v = _normalised(back(u))
    x, w = torch.zeros_like(v), v.clone()
    rho_bar, phi_bar, size, rest = alpha, beta, alpha**2, torch.zeros_like(beta)
    tiny, tolerance = torch.finfo(beta.dtype).tiny, max(tolerance, torch.finfo(beta.dtype).eps)
    enough, active = tolerance * beta, alpha * beta > 0
    for _ in range(iterations):
        beta, u = _normalised(forward(v).sub_(u.mul_(_per_scan(alpha, u))))
        size = size + beta**2 + delta**2
        alpha, v = _normalised(back(u).sub_(v.mul_(_per_scan(beta, v))))
        # one rotation takes the damping away, the next one beta
        rho_hat = torch.hypot(rho_bar, delta).clamp_min(tiny)
        rest = torch.hypot(rest, delta / rho_hat * phi_bar)
        phi_bar = rho_bar / rho_hat * phi_bar
        rho = torch.hypot(rho_hat, beta).clamp_min(tiny)
        c, s = rho_hat / rho, beta / rho
        phi, phi_bar = c * phi_bar, s * phi_bar
        x.addcmul_(w, _per_scan(torch.where(active, phi / rho, 0), w))
        w.mul_(_per_scan(-s * alpha / rho, w)).add_(v)
        rho_bar = -c * alpha
        residual, gradient = torch.hypot(phi_bar, rest), alpha * (s * phi).abs()
        active = active & (residual > enough) & (gradient > tolerance * size.sqrt() * residual)
        size = size + alpha**2
    return x


def operator_norm(
    operator: LinearOperator,
    image_shape: Sequence[int],
    iterations: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Largest singular value of every scan's operator, by power iteration.

    Parameters
    ----------
    operator
        The operator.
    image_shape
        Shape of one image, ``(channel, *spatial)``.
    iterations
        Applications of the gram operator. The norm comes out too small, by a part that shrinks with the fourth power
        of the ratio of the two largest singular values in each of them.
    generator
        Source of the first image, on the CPU.
    dtype
        Type of the images.

    Returns
    -------
    Tensor
        ``(batch,)``.
    """
    with torch.no_grad():
        # one start for every scan, so that a scan's norm does not depend on the others of its batch
        x = torch.randn(1, *image_shape, generator=generator, dtype=dtype).to(operator.device)
        x = x.repeat(len(operator), *[1] * len(image_shape))
        for _ in range(iterations):
            image = operator.gram(x)
            _, x = _normalised(image if dtype.is_complex else image.real)
        y = operator(x)
        return (dot(y, y).flatten() / dot(x, x).flatten().clamp_min(torch.finfo(x.real.dtype).tiny)).sqrt()


def _normalised(t: Tensor) -> tuple[Tensor, Tensor]:
    """Norms per scan, and the vectors, divided by them in place; zeros stay."""
    norm = dot(t, t).sqrt()
    return norm.flatten(), t.mul_(torch.where(norm > 0, 1 / norm, 0))


def _per_scan(factor: Tensor, t: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (t.ndim - 1))


def _as_real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
