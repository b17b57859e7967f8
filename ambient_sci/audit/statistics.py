r"""How well one sample of numbers is told from another: areas under curves and rates, with intervals.

The area under the receiver operating characteristic is the chance that a number of the first sample is above one of the
second (ties count half), which is Mann and Whitney's U over the number of pairs (Hanley and McNeil 1982, Radiology
143:29). Its interval is that of Newcombe 2006, Statist. Med. 25:559 (method 5): all :math:`\theta` with

.. math:: (\theta - \hat\theta)^2 \le z^2 \, \frac{\theta (1 - \theta)}{m n}
          \left( 2 N - 1 - \frac{3 N - 3}{(2 - \theta)(1 + \theta)} \right), \qquad N = \frac{m + n}{2},

which has a width where all of one sample are above all of the other, too. Intervals of rates are those of Clopper and
Pearson 1934, Biometrika 26:404.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import DataError

__all__ = ["Interval", "Separation", "auc_interval", "rate_interval", "separate"]

Float = NDArray[np.float64]
Interval = tuple[float, float]
FALSE_POSITIVES = 0.01
SURE = 0.95


@dataclass(frozen=True)
class Separation:
    """By how much numbers of one sample (positives) are above those of another (negatives).

    Attributes
    ----------
    auc, auc_interval
        Area under the receiver operating characteristic, and its 95% interval; 1/2 where they are alike.
    p_value
        Chance of as large an area if both samples are of one distribution (Mann and Whitney, one-sided).
    rate, rate_interval
        Part of the positives above a threshold that at most 1% of the negatives pass, and its 95% interval given that
        threshold.
    false_rate_interval
        95% interval of the part of all negatives above that threshold: what few negatives leave unknown.
    """

    auc: float
    auc_interval: Interval
    p_value: float
    rate: float
    rate_interval: Interval
    false_rate_interval: Interval


def separate(positives: Float, negatives: Float) -> Separation:
    """Compare two samples, ``(m,)`` and ``(n,)``.

    Raises
    ------
    DataError
        If one of them is empty or not finite.
    """
    from scipy.stats import mannwhitneyu

    m, n = len(positives), len(negatives)
    if not m or not n or not (np.isfinite(positives).all() and np.isfinite(negatives).all()):
        raise DataError(f"needs finite numbers of both kinds to compare, got {m} and {n} of them")
    u, p = mannwhitneyu(positives, negatives, alternative="greater")
    auc = float(u) / (m * n)
    threshold = np.sort(negatives)[::-1][int(FALSE_POSITIVES * n)]
    above, wrongly = int((positives > threshold).sum()), int((negatives > threshold).sum())
    return Separation(
        auc, auc_interval(auc, m, n), float(p), above / m, rate_interval(above, m), rate_interval(wrongly, n)
    )


def auc_interval(auc: float, m: int, n: int) -> Interval:
    """95% interval of an area that was found with ``m`` positives and ``n`` negatives (see the module)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, size = norm.ppf((1 + SURE) / 2), (m + n) / 2

    def beyond(theta: float) -> float:
        variance = theta * (1 - theta) / (m * n) * (2 * size - 1 - 3 * (size - 1) / ((2 - theta) * (1 + theta)))
        return float((theta - auc) ** 2 - z**2 * variance)

    inside = min(max(auc, 1e-12), 1 - 1e-12)  # at the ends themselves the variance is zero
    low = brentq(beyond, 0.0, inside) if auc > 0 else 0.0
    high = brentq(beyond, inside, 1.0) if auc < 1 else 1.0
    return float(low), float(high)


def rate_interval(successes: int, trials: int) -> Interval:
    """95% interval of a rate, of Clopper and Pearson."""
    from scipy.stats import beta

    low = beta.ppf((1 - SURE) / 2, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf((1 + SURE) / 2, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)
