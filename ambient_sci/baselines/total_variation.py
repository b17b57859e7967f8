r"""Reconstruction with total variation.

.. math:: \hat x = \arg\min_x \tfrac12 \| A x - y \|_W^2 + \lambda \sum_p \Bigl( \sum_a |(D_a x)_p|^2 \Bigr)^{1/2}

with the forward difference :math:`D_a` along each spatial axis, zero at the last pixel: no border is joined to the
opposite one. The variation is isotropic, that of a complex image is one of complex differences, and channels are added
up (Rudin, Osher and Fatemi 1992, Physica D 60:259; Block, Uecker and Frahm 2007, Magn. Reson. Med. 57:1086). The
weights :math:`W` are those of `ambient_sci.baselines.linear`. Measurements ``(batch, *measurement)`` by any linear
operator, images ``(batch, channel, *spatial)``, differences ``(axis, batch, channel, *spatial)``.

It is solved by the alternating direction method of multipliers with over-relaxation (Boyd et al. 2011, Found. Trends
Mach. Learn. 3:1), on all scans at once. With :math:`z = D x`, a scaled dual variable :math:`u` and
:math:`\rho = \lambda / t`,

.. math:: (A^H W A + \rho D^T D) \, x = A^H W y + \rho D^T (z - u), \qquad
          z = \operatorname{shrink}_t(D x + u), \qquad u \leftarrow u + D x - z.

The first takes a few conjugate gradient iterations from the last image, and needs no bound of the operator's norm. The
second shortens each difference by :math:`t`: at first half the scan's root mean square, whatever its units, then what
keeps the relative residuals of both conditions alike (Wohlberg 2017, arXiv:1704.06209).
"""

import torch
from torch import Tensor

from ambient_sci.baselines.linear import normal_equations
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.operators.solve import conjugate_gradient, dot

__all__ = ["total_variation", "total_variation_batch"]

SOLVE = 4  # conjugate gradient iterations of each step
RELAXATION = 1.6
THRESHOLD = 0.5  # at first, in units of the scan's root mean square
BALANCED = 40  # steps after which the threshold stays


def total_variation_batch(m: Measurement, lam: float, iterations: int = 20, progress: bool = False) -> Tensor:
    r"""Total variation reconstructions of all scans of a batch at once.

    Parameters
    ----------
    m
        Scans.
    lam
        :math:`\lambda`, in the images' units: a tenth to one noise standard deviation, to be chosen by
        `ambient_sci.baselines.tuning`.
    iterations
        Number of steps, each of five applications of :math:`A^H A`. With twenty the objective of undersampled k-space
        and of missing pixels is within 1% of its minimum; few random projections need forty or more.
    progress
        Show a progress bar.

    Returns
    -------
    Tensor
        Images, ``(batch, channel, *spatial)``.
    """
    if lam < 0:
        raise ConfigError(f"lam must not be negative, got {lam}")
    from tqdm.auto import trange

    normal, rhs = normal_equations(m)
    # steepest descent from nothing gets the size of the image about right
    size = dot(rhs, rhs)
    tiny = torch.finfo(size.dtype).tiny
    x = size / dot(rhs, normal(rhs)).clamp_min(tiny) * rhs
    threshold = THRESHOLD * (dot(x, x) / x[0].numel()).sqrt().clamp_min(tiny)
    z = differences(x)
    u = torch.zeros_like(z)
    for step in trange(iterations, desc="total variation", disable=not progress, leave=False):
        rho = lam / threshold
        x = conjugate_gradient(
            lambda v, rho=rho: normal(v) + rho * differences_adjoint(differences(v)),  # type: ignore[misc]
            rhs + rho * differences_adjoint(z - u),
            start=x,
            iterations=SOLVE,
        )
        found, last = differences(x), z
        moved = RELAXATION * found + (1 - RELAXATION) * z + u
        z = _shrink(moved, threshold)
        u = moved - z
        if step < BALANCED:
            factor = _imbalance(found, z, last, u).reshape(threshold.shape)
            threshold, u = threshold / factor, u / factor
    return x


def total_variation(x: Tensor) -> Tensor:
    """Isotropic total variation of each image, ``(batch,)``."""
    return _magnitude(differences(x)).flatten(1).sum(1)


def differences(x: Tensor) -> Tensor:
    """Forward differences along every spatial axis, ``(axis, *x.shape)``; zero at the last pixel."""
    result = x.new_zeros(x.ndim - 2, *x.shape)
    for axis, out in enumerate(result, start=2):
        inner = x.shape[axis] - 1
        torch.sub(x.narrow(axis, 1, inner), x.narrow(axis, 0, inner), out=out.narrow(axis, 0, inner))
    return result


def differences_adjoint(z: Tensor) -> Tensor:
    """Adjoint of `differences`."""
    result = torch.zeros_like(z[0])
    for axis, values in enumerate(z, start=2):
        inner = values.shape[axis] - 1
        values = values.narrow(axis, 0, inner)
        result.narrow(axis, 0, inner).sub_(values)
        result.narrow(axis, 1, inner).add_(values)
    return result


def _magnitude(z: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(z, dim=0)
    return length


def _shrink(z: Tensor, threshold: Tensor) -> Tensor:
    """Shorten the vector of differences at every pixel by ``threshold``, down to nothing."""
    return z * (1 - threshold / _magnitude(z).clamp_min(torch.finfo(threshold.dtype).tiny)).clamp_min(0)


def _imbalance(found: Tensor, z: Tensor, last: Tensor, u: Tensor) -> Tensor:
    r"""By how much to raise :math:`\rho`, ``(batch,)``: root of the ratio of primal to dual residual, 1/2 to 2."""

    def norm(values: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(values.movedim(1, 0).flatten(1), dim=1)
        return length

    tiny = torch.finfo(found.real.dtype).tiny
    primal = norm(found - z) / torch.maximum(norm(found), norm(z)).clamp_min(tiny)
    dual = norm(differences_adjoint(z - last)[None]) / norm(differences_adjoint(u)[None]).clamp_min(tiny)
    return torch.where((primal > 0) & (dual > 0), primal / dual.clamp_min(tiny), 1).sqrt().clamp(0.5, 2)
