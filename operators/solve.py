r"""Conjugate gradients, batched.

Solves :math:`Q_b x_b = r_b` for every scan of a batch with a Hermitian positive definite :math:`Q` given as a function
(Hestenes and Stiefel 1952). Each scan has its own step sizes and stops by itself; nothing is copied to the host.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradient", "dot"]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product per scan, shaped ``(batch, 1, ...)`` to scale the batch with."""
    axes = tuple(range(1, a.ndim))
    product = a.real * b.real + a.imag * b.imag if a.is_complex() else a * b
    return product.sum(axes, keepdim=True)


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    start: Tensor | None = None,
    iterations: int = 10,
    tolerance: float = 0.0,
) -> Tensor:
    """Solve ``apply(x) = rhs``.

    Parameters
    ----------
    apply
        Hermitian positive definite map, the same shape in and out.
    rhs
        Right-hand sides, ``(batch, ...)``, real or complex.
    start
        First guess; zeros by default.
    iterations
        Number of iterations.
    tolerance
        A scan whose residual norm has fallen below this part of its right-hand side's is left as it is. So is one along
        whose direction the map turns out not to be positive.

    Returns
    -------
    Tensor
        The solutions, ``(batch, ...)``; differentiable through the iterations.
    """
    if start is None:
        x, residual = torch.zeros_like(rhs), rhs
    else:
        x, residual = start, rhs - apply(start)
    direction = residual
    energy = dot(residual, residual)
    target = tolerance**2 * dot(rhs, rhs)
    tiny = torch.finfo(energy.dtype).tiny
    for _ in range(iterations):
        image = apply(direction)
        curvature = dot(direction, image)
        active = ((energy > target) & (curvature > 0)).to(energy.dtype)
        alpha = active * energy / curvature.clamp_min(tiny)
        x = x + alpha * direction
        residual = residual - alpha * image
        renewed = dot(residual, residual)
        direction = residual + active * renewed / energy.clamp_min(tiny) * direction
        energy = renewed
    return x
