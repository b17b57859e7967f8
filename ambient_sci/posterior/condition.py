r"""Conditioning a Gaussian image on a measurement.

.. math:: x_0 \sim \mathcal N(D, V), \quad y = A x_0 + \sigma_y e \quad\Rightarrow\quad
          E[x_0 \mid y] = D + V A^H v, \qquad (\sigma_y^2 + A V A^H) \, v = y - A D

with a covariance :math:`V` that is known as a function alone. The solve takes conjugate gradient iterations in
measurement space, one product with :math:`V` each; the image :math:`V A^H v` is carried along, so that it costs no
product more. Images ``(batch, channel, *spatial)``, measurements ``(batch, *measurement)``, each scan with step sizes
of its own.

Covariances of learned denoisers are nearly, not exactly, symmetric and positive, and conjugate gradients can run away
on what they are not. A scan is left as it is from the iteration on at which :math:`V` turns out negative, the residual
has grown to three times what it was, or has shrunk enough; and its correction :math:`\delta = V A^H v` ends at the edge
of a ball, as in a trust region (Steihaug 1983, SIAM J. Numer. Anal. 20:626), if its caller gives one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ambient_sci.denoise import per_image
from ambient_sci.operators import LinearOperator
from ambient_sci.operators.solve import dot

__all__ = ["condition"]

GROWTH = 3.0  # of the residual's norm


def condition(
    mean: Tensor,
    covariance: Callable[[Tensor], Tensor],
    operator: LinearOperator,
    y: Tensor,
    variance: Tensor,
    iterations: int,
    tolerance: float,
    radius: Tensor | None = None,
) -> Tensor:
    """Find the mean of the image given the measurement.

    Parameters
    ----------
    mean
        :math:`D`, ``(batch, channel, *spatial)``.
    covariance
        Product with :math:`V`, the same shape in and out.
    operator, y
        How the image was measured, and what, ``(batch, *measurement)``.
    variance
        Of the noise, broadcastable to ``y``.
    iterations
        Conjugate gradient iterations at most; none leaves the mean as it is.
    tolerance
        Residual, relative to the first one, that ends them for a scan.
    radius
        Norm of the longest correction to allow, ``(batch,)``; any by default.

    Returns
    -------
    Tensor
        ``(batch, channel, *spatial)``.
    """
    residual = (y - operator(mean)) * operator.rows
    direction, energy = residual, dot(residual, residual)
    limit, enough = GROWTH**2 * energy, tolerance**2 * energy
    active, change = energy > 0, torch.zeros_like(mean)
    tiny = torch.finfo(energy.dtype).tiny
    for left in reversed(range(iterations)):
        back = operator.adjoint(direction)
        spread = covariance(back)
        image = operator(spread) + variance * direction
        alpha = energy / dot(direction, image).clamp_min(tiny)
        ahead = residual - alpha * image
        renewed = dot(ahead, ahead)
        active = active & (dot(back, spread).reshape(energy.shape) > 0) & (renewed <= limit)
        step = torch.where(active, alpha, 0)
        change = change + per_image(step, mean) * spread
        active = active & (renewed > enough)
        if radius is not None:
            length = dot(change, change).sqrt().flatten()
            change = per_image((radius / length.clamp_min(tiny)).clamp_max(1), mean) * change
            active = active & (length <= radius).reshape(energy.shape)
        if left == 0 or not bool(active.any()):
            break
        residual = residual - step * image
        direction = residual + torch.where(active, renewed / energy.clamp_min(tiny), 0) * direction
        energy = renewed
    return mean + change
