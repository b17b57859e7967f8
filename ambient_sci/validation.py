r"""Validation without a known image: rows that were measured and set aside are predicted from the rest.

Of scans that no training sees, a part :math:`H` of the measured rows is hidden; the prior reconstructs the scans from
the other rows alone, and the mean :math:`\hat x` of its posterior samples is compared with what was measured,

.. math:: e = \frac{\sum_{i \in H} w_i |(A \hat x - y)_i|^2}{\sum_{i \in H} w_i |y_i|^2}, \qquad
          \chi^2 = \frac{1}{|H|} \sum_{i \in H} \frac{|(A \hat x - y)_i|^2}{\sigma_i^2},

with :math:`|\cdot|^2` and :math:`|H|` counted over real components (cross-validation as in Yaman et al. 2020, Magn.
Reson. Med. 84:3172). Weights :math:`w` are one unless the noise differs from sample to sample
(`ambient_sci.baselines.linear.weights`). The measured rows are noisy themselves: of an image without error, noise alone
leaves :math:`\chi^2 = 1`, and an :math:`e` above zero. Which rows are hidden and the noise of the samples follow from a
seed, so that what changes from one prior to the next is the prior.

An ambient network restores the scans in one step instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ambient_sci.baselines.tuning import set_rows_aside
from ambient_sci.datasets.store import Store
from ambient_sci.errors import AmbientError, ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.ambient import AmbientDenoiser, restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior

__all__ = ["HeldOut", "held_out_error", "set_scans_aside", "validation_count"]

MOST, SHARE = 8, 50  # scans that are set aside by default: one of so many, and at most so many
CHUNK = 8  # scans whose samples are in the network at once


@dataclass(frozen=True)
class HeldOut:
    """How well rows that were set aside are predicted.

    Parameters
    ----------
    error
        Squared error relative to what was measured.
    chi_square
        Squared error in units of the noise's variance; infinite where there is no noise.
    """

    error: float
    chi_square: float


def held_out_error(
    prior: Prior,
    measurement: Measurement | Sequence[Measurement],
    fraction: float = 0.25,
    seed: int = 0,
    samples: int = 2,
    steps: int = 8,
    iterations: int = 1,
) -> HeldOut:
    """Predict rows that were measured.

    Parameters
    ----------
    prior
        A learned prior.
    measurement
        Scans in normalised units, as a store reads them; of several sizes, one measurement for each.
    fraction
        Part of the measured rows that is hidden.
    seed
        Seed of which they are, and of the samples.
    samples, steps, iterations
        Posterior samples of each scan, sampler steps, conjugate gradient iterations (`draw_posterior`).

    Raises
    ------
    ConfigError
        If no row can be hidden.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    for m in [measurement] if isinstance(measurement, Measurement) else measurement:
        rest, weight = set_rows_aside(m, fraction, seed)
        for start in range(0, len(m), CHUNK):
            some = slice(start, start + CHUNK)
            image = _reconstruct(prior, rest[some].to(prior.device), samples, steps, iterations, seed).to(m.y.device)
            totals += _sums(m[some], weight.expand(m.y.shape)[some], image)
    squared, energy, scaled, count = totals.tolist()
    return HeldOut(squared / energy, scaled / count)


def _reconstruct(prior: Prior, m: Measurement, samples: int, steps: int, iterations: int, seed: int) -> Tensor:
    if isinstance(prior.denoiser, AmbientDenoiser):
        return restore(prior.denoiser, m)
    # steps of first order: those of second order need more iterations, or spread too wide
    return draw_posterior(prior, m, samples, steps=steps, iterations=iterations, solver="euler", seed=seed).mean(1)


def _sums(m: Measurement, weight: Tensor, image: Tensor) -> Tensor:
    """Squared error and energy, weighted; squared error over the noise's variance, and how many real components."""
    squared = (m.operator(image) - m.y).abs().square()
    hidden = (weight > 0).to(squared)
    components = 2 if m.y.is_complex() else 1
    scaled = torch.where(hidden > 0, squared / m.noise**2, 0)
    return torch.stack(
        [(weight * squared).sum(), (weight * m.y.abs().square()).sum(), scaled.sum(), components * hidden.sum()]
    ).double()


# -------------------------------------------------------------------------------------------------- scans of a training


def validation_count(store: Store, wanted: int | None) -> int:
    """How many of a store's last scans to set aside.

    One of 50, and at most 8, if ``wanted`` does not say it; none where rows cannot be hidden.
    """
    if wanted is not None:
        if wanted >= len(store):
            raise ConfigError(f"validation_scans must be below {len(store)}, the scans in {store.path}, got {wanted}")
        return wanted
    count = min(MOST, len(store) // SHARE)
    try:
        for scans, _ in store.by_size(slice(len(store) - count, None)) if count else ():
            set_rows_aside(store.read(scans), 0.25, 0)
    except AmbientError:
        return 0
    return count


def set_scans_aside(store: Store, count: int) -> tuple[Store, list[Measurement]]:
    """Split a store into the scans to learn from, and the last ones, as measurements of one size each."""
    if not count:
        return store, []
    rest = len(store) - count
    return store.head(rest), [store.read(scans) for scans, _ in store.by_size(slice(rest, None))]
