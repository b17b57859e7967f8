r"""What is said of the samples of a scan.

With few samples an interval between empirical quantiles is too narrow; the interval here is the predictive one of a
normal sample of that size, :math:`m \pm t_{S-1} \, \mathrm{std} \, \sqrt{1 + 1/S}`. It fits antithetic pairs
(`ambient_sci.posterior.draw`), too: what their mean knows better, half as many independent deviations know worse.

Quantiles assume nothing about the distribution. The ``p``-quantile is the order statistic of rank :math:`p (S + 1)`,
below which another draw lies with probability ``p`` (Weibull 1939; type 6 of Hyndman and Fan 1996, Am. Stat. 50:361);
where there is none, because ``S`` is too small, there is no such quantile.

A posterior sample of the right posterior explains the data as well as the truth does, for both are draws from it. The
residual of each,

.. math:: r^2 = \frac{1}{M} \sum_{m = 1}^{M} \frac{|A x - y|_m^2}{\sigma_m^2},

over the ``M`` real components that were measured, is therefore one on average, up to chance of about
:math:`1 / \sqrt{2 M}`. Samples far above one contradict the data, those far below explain the noise.

The mean of the samples has an error of its own, of variance :math:`v`, which pairs show since they are independent of
each other. The mean is worth :math:`\sum \mathrm{std}^2 / \sum v` independent samples, sums over pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement

__all__ = ["INTERVAL", "check_quantiles", "misfit", "quantiles_of", "summarise"]

#: Part of the posterior between ``lower`` and ``upper``.
INTERVAL = 0.9


def summarise(drawn: Tensor) -> dict[str, Tensor]:
    """Mean, standard deviation, 90% interval and effective number of samples ``(scan, draw, channel, *spatial)``."""
    from scipy.stats import t

    count = drawn.shape[1]
    mean = drawn.mean(1)
    variance = (drawn - mean[:, None]).abs().square().sum(1) / count
    effective = torch.full((len(drawn),), float(count))
    if count % 2 == 0 and count > 2:
        # what the mean takes from the spread depends on how the samples of a pair hang together; pairs are independent
        pairs = drawn.unflatten(1, (count // 2, 2)).mean(2)
        error = (pairs - mean[:, None]).abs().square().sum(1) / (count // 2 * (count // 2 - 1))
        variance = variance + error
        effective = variance.flatten(1).sum(1) / error.flatten(1).sum(1)
    else:
        variance = variance * count / (count - 1)
    std = variance.sqrt()
    value = drawn.abs() if drawn.is_complex() else drawn
    centre, spread = value.mean(1), value.std(1)
    half = float(t.ppf(0.5 + INTERVAL / 2, count - 1)) * spread * (1 + 1 / count) ** 0.5
    lower = (centre - half).clamp_min(0) if drawn.is_complex() else centre - half
    return {"mean": mean, "std": std, "lower": lower, "upper": centre + half, "effective_samples": effective}


def check_quantiles(probabilities: Sequence[float], samples: int) -> None:
    """Refuse probabilities whose quantiles so many samples do not have."""
    for probability in probabilities:
        if not 0 < probability < 1:
            raise ConfigError(f"quantiles must be probabilities above 0 and below 1, got {probability}")
        needed = round(1 / min(probability, 1 - probability), 6) - 1
        if samples < needed:
            raise ConfigError(
                f"a quantile of {probability} needs at least {int(np.ceil(needed))} samples, got {samples}; "
                "lower and upper are known from fewer"
            )
    if len(set(probabilities)) < len(probabilities):
        raise ConfigError(f"quantiles must be different probabilities, got {tuple(probabilities)}")


def quantiles_of(drawn: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Quantiles of samples ``(scan, draw, ...)``, of the magnitude of complex ones: ``(scan, probability, ...)``."""
    value = drawn.abs() if drawn.is_complex() else drawn
    found = np.quantile(value.numpy(), probabilities, axis=1, method="weibull").astype(np.float32)
    return torch.from_numpy(np.moveaxis(found, 0, 1).copy())


def misfit(images: Tensor, measurement: Measurement) -> Tensor:
    """Residual of images ``(batch, channel, *spatial)`` in units of the noise, ``(batch,)``; NaN without noise."""
    operator, y = measurement.operator, measurement.y
    rows = operator.rows.to(torch.bool).expand(y.shape)
    square = (operator(images) - y).abs().square() / measurement.noise.square()
    square = torch.where(rows, square, 0).flatten(1).sum(1)
    count = rows.flatten(1).sum(1) * (2 if y.is_complex() else 1)
    found: Tensor = torch.where(torch.isfinite(square) & (count > 0), square / count, torch.nan).sqrt()
    return found
