r"""What posterior samples of a value predict of it, and how far what it is lies from that.

Samples come as antithetic pairs (`ambient_sci.posterior.draw`): of pair :math:`j` of ``k``, let :math:`p_j` be the mean
and :math:`d_j` half the difference. Pairs are independent of each other, but what the two samples of a pair have in
common is unknown: it is nothing for a Gaussian posterior, where :math:`p_j` does not vary, and it may be much for
others. The error of the mean :math:`m` of all samples has the variance

.. math:: v = \underbrace{(1 + 1/k) \operatorname{var}_j p_j}_{a} + \underbrace{\operatorname{mean}_j d_j^2}_{b}
              + \sigma^2

with noise of known :math:`\sigma` where the value is measured, and :math:`(x - m) / \sqrt v` is Student's t with

.. math:: \nu = v^2 / \bigl(a^2 / (k - 1) + b^2 / k\bigr)

degrees of freedom: exactly so for Gaussian posteriors where :math:`a` or :math:`b` is all of :math:`v`, and to second
order between (Satterthwaite 1946, Biometrics Bull. 2:110). Samples that are independent have :math:`b = 0`.

Where :math:`u` is the probability of what is below the value, :math:`u` is uniform if the prediction is honest, and if
errors are :math:`c` times as large as predicted then :math:`E|u - 1/2| = \arctan(c) / \pi` (for normal errors), so that

.. math:: c = \tan(\pi \operatorname{mean} |u - 1/2|)

says how far they are, however heavy the tails (`excess`).
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ambient_sci.errors import ConfigError, DataError

__all__ = ["LEVEL", "TOLERANCE", "Predictive", "check_temperature", "components", "excess", "predictive", "temper"]

Float = NDArray[np.float64]
Samples = TypeVar("Samples", Tensor, NDArray[Any])
LEVEL = 0.01
"""Of all tests of a verdict together."""
TOLERANCE = 0.1
"""Deviation of the size of errors from the predicted spread that is none to speak of, however significant."""
MOST_DOF = 1e6  # a normal distribution, to all digits that matter


@dataclass(frozen=True)
class Predictive:
    """Student's t distributions of values.

    Attributes
    ----------
    mean, variance, dof
        Where they are, squared scale, degrees of freedom; one each for every value.
    """

    mean: Float
    variance: Float
    dof: Float

    def below(self, values: ArrayLike) -> Float:
        """Probability of what is below some values."""
        from scipy.special import stdtr

        result: Float = stdtr(self.dof, (np.asarray(values) - self.mean) / np.sqrt(self.variance))
        return result

    def deviance(self, values: ArrayLike) -> Float:
        """By how much the log density at some values falls short of that at the mean, in nats."""
        squared = (np.asarray(values) - self.mean) ** 2 / self.variance
        result: Float = (self.dof + 1) / 2 * np.log1p(squared / self.dof)
        return result

    def log_density(self, values: ArrayLike) -> Float:
        """Logarithm of the density at some values, in nats."""
        from scipy.special import gammaln

        constant = gammaln((self.dof + 1) / 2) - gammaln(self.dof / 2) - np.log(np.pi * self.dof * self.variance) / 2
        result: Float = constant - self.deviance(values)
        return result


def predictive(draws: ArrayLike, noise: ArrayLike = 0.0, pairs: bool = True) -> Predictive:
    """Turn samples of some values into what they predict.

    Parameters
    ----------
    draws
        ``(samples, *values)``, real: at least 4, an even number, for pairs; at least 2 otherwise.
    noise
        Standard deviation of the noise of the values, where these are measured; broadcast to ``values``.
    pairs
        Whether samples ``2 k`` and ``2 k + 1`` are an antithetic pair.

    Raises
    ------
    DataError
        If there are too few samples.
    """
    drawn = np.asarray(draws, np.float64)
    if len(drawn) < (4 if pairs else 2) or (pairs and len(drawn) % 2):
        want = "an even number of samples, at least 4" if pairs else "at least 2 samples"
        raise DataError(f"draws must hold {want}, got {len(drawn)}")
    if pairs:
        means = (drawn[::2] + drawn[1::2]) / 2
        within = (((drawn[::2] - drawn[1::2]) / 2) ** 2).mean(0)
    else:
        means, within = drawn, np.zeros(drawn.shape[1:])
    count = len(means)
    between = means.var(0, ddof=1) * (1 + 1 / count)
    variance = np.maximum(between + within + np.square(noise), np.finfo(np.float64).tiny)
    uncertain = between**2 / (count - 1) + within**2 / count
    dof = np.minimum(variance**2 / np.maximum(uncertain, variance**2 / MOST_DOF), MOST_DOF)
    return Predictive(means.mean(0), variance, dof)


def excess(distance: ArrayLike) -> Float:
    """How many times as large as predicted errors are, given the mean distance ``|u - 1/2|``: 1 if as predicted."""
    result: Float = np.tan(np.pi * np.asarray(distance, np.float64).clip(1e-6, 0.4999))
    return result


def components(values: NDArray[Any]) -> NDArray[Any]:
    """Real and imaginary parts as values of their own, on a last axis; real values are one part."""
    return np.stack([values.real, values.imag], -1) if np.iscomplexobj(values) else values[..., None]


def temper(samples: Samples, temperature: float) -> Samples:
    r"""Recalibrate posterior samples: :math:`m + t (x - m)` around the mean of each scan's samples.

    Parameters
    ----------
    samples
        ``(scan, samples, *image)``, real or complex.
    temperature
        By what the spread is multiplied, above zero; 1 leaves samples as they are, to the last bit.

    Returns
    -------
    samples
        Of the same mean. Antithetic pairs stay pairs.
    """
    check_temperature(temperature)
    if temperature == 1:
        return samples
    mean: Any = samples.mean(1)[:, None]
    tempered: Samples = mean + temperature * (samples - mean)
    return tempered


def check_temperature(temperature: float) -> None:
    """Raise `ConfigError` for what is no temperature."""
    if not 0 < temperature < np.inf:
        raise ConfigError(f"temperature must be above 0, got {temperature}")
