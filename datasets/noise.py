r"""Noise of k-space: its covariance between coils, its level, and whether data and operator agree on it.

**Whitening.** Noise of receive coils is correlated and of different levels. With :math:`n` samples of noise alone,
:math:`\eta_j`, and the covariance per real component

.. math:: \Psi = \frac{1}{2 n} \sum_j \eta_j \eta_j^H = L L^H, \qquad W = \bar\sigma L^{-1},
          \qquad \bar\sigma = (\det \Psi)^{1 / 2 C},

:math:`W y` has white noise (Pruessmann et al. 2001, Magn. Reson. Med. 46:638). Its level is the geometric mean
:math:`\bar\sigma` of the coils, so that :math:`\det W = 1` and units stay the instrument's. Since :math:`\Psi` is an
estimate, its inverse is too large by :math:`n / (n - C)` on average (the mean of an inverse Wishart matrix), and so is
the power of the whitened noise.

**Level, without a noise scan.** From samples in which an image has next to no energy left, by the median absolute
deviation

.. math:: \hat\sigma = \mathrm{median}\bigl(|\mathrm{Re}\, y|, |\mathrm{Im}\, y|\bigr) / 0.6745,

which is unbiased for normal noise about zero, does not see a few large values, and has a standard error of
:math:`1.17\, \sigma / \sqrt{n}` for :math:`n` numbers. Such samples are the outermost ones of k-space; and, where
whole axes are fully measured, the rim of the field of view along them. What signal there is makes the estimate too
large, so that the smaller one counts, and how much it may be is a part of the standard error. In k-space, images with
edges have a power of :math:`a\, k^{-(d + 1)}` in :math:`d` dimensions, so that from the powers :math:`P_1 > P_2` at two
distances

.. math:: P_i = \sigma^2 + a\, k_i^{-(d + 1)} \quad\Rightarrow\quad
          P_2 - \sigma^2 = \frac{P_1 - P_2}{(k_2 / k_1)^{d + 1} - 1},

and smoother images have less. In the rim it is what the inner half of it has more than the outer one.

**Residual.** A fit of the image, :math:`\hat x = (A^H A + \delta^2)^{-1} A^H y`, leaves of the noise what it leaves of
any noise, so that with white noise :math:`e` of unit level

.. math:: \hat\sigma_r = \|y - A \hat x(y)\| \,/\, \|e - A \hat x(e)\|, \qquad
          \chi^2 = \hat\sigma_r^2 / \sigma^2,

whatever the number of degrees of freedom. It takes samples that are redundant: several coils, or more samples than
pixels. :math:`\chi^2` is one if the level is right and the operator explains the samples.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.errors import DataError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import conjugate_gradient
from ambient_sci.operators.fourier import centred_ifft
from ambient_sci.operators.solve import dot

__all__ = ["NoiseLevel", "disagree", "estimate_noise", "outer_noise", "residual_noise", "whitening"]

Samples = NDArray[np.complexfloating[Any]]

_MAD = 0.6744897501960817  # median of |N(0, 1)|
_MAD_ERROR = 1.1664  # standard error of that estimate of a standard deviation of one, for one number
_FEWEST = 50  # complex samples
_PER_COIL = 10  # noise samples: eigenvalues of the estimated covariance are then within a factor of about two
_PART = 0.1  # of k-space or the field of view: the outermost
_EDGE = 1 / 32  # of the field of view: left out, where a receiver's filter falls off


@dataclass(frozen=True)
class NoiseLevel:
    """Standard deviation of each real component, its standard error, and where it is known from."""

    value: float
    error: float
    source: str

    def __str__(self) -> str:
        size = f"{self.value:.3g}" if self.error == 0 else f"{self.value:.3g} ± {self.error:.1g}"
        return f"{size} ({self.source})"


def disagree(one: NoiseLevel, other: NoiseLevel, factor: float = 1.5) -> bool:
    """Whether two levels differ by more than a factor, beyond two standard errors of each."""
    low, high = sorted((one, other), key=lambda level: level.value)
    return high.value - 2 * high.error > factor * (low.value + 2 * low.error)


def whitening(noise: Samples) -> tuple[NDArray[np.complex128], NoiseLevel]:
    r"""Matrix that makes the noise of coils white.

    Parameters
    ----------
    noise
        Samples of noise alone, ``(coil, n)``.

    Returns
    -------
    matrix : ndarray
        :math:`W`, ``(coil, coil)``, of determinant one.
    level : NoiseLevel
        That of every whitened coil, :math:`\bar\sigma \sqrt{n / (n - C)}`, on average over the coils.

    Raises
    ------
    DataError
        If there are too few samples, or the covariance is singular.
    """
    if noise.ndim != 2 or noise.dtype.kind != "c" or not np.isfinite(noise).all():
        raise DataError(f"noise must be finite, complex (coil, n), got {noise.dtype} of shape {noise.shape}")
    coils, count = noise.shape
    if count < _PER_COIL * coils:
        raise DataError(f"noise must have at least {_PER_COIL * coils} samples for {coils} coils, got {count}")
    samples = noise.astype(np.complex128)
    covariance = samples @ samples.conj().T / (2 * count)
    levels = np.sqrt(covariance.diagonal().real)
    silent = np.flatnonzero(levels == 0)
    if silent.size:
        raise DataError(f"noise of coil {silent[0]} is zero throughout; leave such coils out")
    correlation = covariance / np.outer(levels, levels)
    if np.linalg.eigvalsh(correlation)[0] < 1e-10:
        raise DataError("noise of one coil is a combination of that of others; leave such coils out")
    factor = levels[:, None] * np.linalg.cholesky(correlation)
    mean = float(np.exp(np.log(factor.diagonal().real).mean()))
    value = mean * math.sqrt(count / (count - coils))
    level = NoiseLevel(value, value / (2 * math.sqrt(coils * count)), "noise scan")
    return np.asarray(mean * np.linalg.inv(factor), np.complex128), level


def estimate_noise(kspace: Samples, measured: NDArray[np.bool_]) -> NoiseLevel:
    """Noise level of k-space on the grid, over all coils.

    Parameters
    ----------
    kspace
        ``(coil, *spatial)``.
    measured
        Where it was measured, ``spatial``.

    Returns
    -------
    NoiseLevel
        The smaller one of what the outermost samples of k-space and, along axes that are fully measured, the rim of the
        field of view say. Exact zeros do not count: they were not measured.

    Raises
    ------
    DataError
        If there are fewer than fifty samples to estimate from.
    """
    every = tuple(range(measured.ndim))
    found = [outer_noise(kspace[:, measured], _distance(measured.shape, every)[measured], measured.ndim)]
    full = tuple(axis for axis in every if measured.shape[axis] > 1 and (measured == measured.take([0], axis)).all())
    if full and (kspace[:, measured] != 0).all():
        last, own = list(range(-len(full), 0)), [1 + axis for axis in full]
        seen = torch.from_numpy(np.where(measured, kspace, 0)).movedim(own, last)
        image = centred_ifft(seen, len(full)).movedim(last, own).numpy()
        shape = measured.shape
        inside = measured & np.all([_distance(shape, (axis,)) <= 1 - 2 * _EDGE for axis in full], axis=0)
        if inside.sum() * _PART >= _FEWEST:
            found.append(_rim_noise(image[:, inside], _distance(shape, full)[inside]))
    return min(found, key=lambda level: level.value)


def outer_noise(samples: Samples, distance: NDArray[np.floating[Any]], axes: int) -> NoiseLevel:
    """Noise level of the outermost twentieth of k-space, on the grid or off it.

    Parameters
    ----------
    samples
        ``(coil, n)``; exact zeros do not count.
    distance
        Of each from the centre, ``(n,)``, in any unit.
    axes
        Number of axes of the image, by which its spectrum falls off.

    Returns
    -------
    NoiseLevel
        Its error allows for the signal that the spectrum farther inside makes likely.
    """
    near, far, edge = np.quantile(distance, [1 - 5 * _PART, 1 - 3 * _PART, 1 - _PART / 2])
    inner, outer = (distance >= near) & (distance <= far), distance >= edge
    power, error = _power(samples[:, outer])
    more, inner_error = _power(samples[:, inner])
    ratio = float(np.median(distance[outer]) / max(np.median(distance[inner]), 1e-9))
    excess = max(more - power + math.hypot(error, inner_error), 0.0)  # a standard error more than it looks like
    signal = excess / (ratio ** (axes + 1) - 1) if ratio > 1 + 1e-6 else 0.0
    return _level(power, error, min(signal, power), "outermost samples")


def _rim_noise(samples: Samples, distance: NDArray[np.floating[Any]]) -> NoiseLevel:
    """Noise level of the rim of the field of view, the outer half of which is farther from what is in it."""
    near, far = np.quantile(distance, [1 - _PART, 1 - _PART / 2])
    power, error = _power(samples[:, distance >= far])
    more, inner_error = _power(samples[:, (distance >= near) & (distance < far)])
    excess = max(more - power - 2 * math.hypot(error, inner_error), 0.0)
    return _level(power, error, min(excess, power), "rim of the field of view")


def _level(power: float, error: float, signal: float, source: str) -> NoiseLevel:
    value = math.sqrt(power)
    statistical = error / (2 * value) if value > 0 else 0.0
    return NoiseLevel(value, math.hypot(statistical, value - math.sqrt(power - signal)), source)


def _power(samples: Samples) -> tuple[float, float]:
    """Square of the median absolute deviation, as that of normal noise, and its standard error."""
    values = samples[samples != 0]
    if values.size < _FEWEST // 2:
        raise DataError(f"only {values.size} samples to estimate the noise from; give noise_std")
    numbers = np.abs(np.concatenate([values.real, values.imag]))
    power = (float(np.median(numbers)) / _MAD) ** 2
    return power, 2 * _MAD_ERROR * power / math.sqrt(numbers.size)


def _distance(shape: tuple[int, ...], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance from the centre along some axes, relative to the size of each, of every point of a grid."""
    lines = [
        ((np.arange(size) - size // 2) / (size / 2) if axis in axes else np.zeros(size))
        for axis, size in enumerate(shape)
    ]
    return np.asarray(np.sqrt(sum(line**2 for line in np.meshgrid(*lines, indexing="ij"))))


def residual_noise(measurement: Measurement, iterations: int = 20, damping: float = 1e-3) -> NoiseLevel | None:
    r"""Noise level that the samples of one scan have by their misfit.

    Parameters
    ----------
    measurement
        A batch of one; its ``noise_std`` plays no part.
    iterations
        Of conjugate gradients, for the samples and for the noise they are compared with.
    damping
        :math:`\delta^2`, relative to the gram operator.

    Returns
    -------
    NoiseLevel or None
        None where samples are hardly redundant: less than a twentieth of white noise is left.
    """
    A, y = measurement.operator, measurement.y
    noise = randn_like(y, torch.Generator().manual_seed(0)) * A.rows
    back = A.adjoint(noise)
    size = dot(back, A.gram(back)) / dot(back, back)

    def left(z: torch.Tensor) -> float:
        x = conjugate_gradient(lambda v: A.gram(v) + damping * size * v, A.adjoint(z), iterations=iterations)
        return float((z - A(x)).abs().square().sum(dtype=torch.float64))

    kept, total = left(noise), float(noise.abs().square().sum(dtype=torch.float64))
    if not kept > 0.05 * total:
        return None
    value = math.sqrt(left(y) / kept)
    # two energies of so many degrees of freedom, each with a relative variance of 2 / kept
    return NoiseLevel(value, value / math.sqrt(kept), "residual")
