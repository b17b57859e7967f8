r"""Scans that are the same measurement but for noise.

Where rows mean the same in every scan (``fourier``, ``mask``, ``identity``), scans :math:`i, j` are compared on the
rows that both measured, up to a factor :math:`a` (intensity, global phase):

.. math:: d_{ij} = \min_a \frac{\| y_i - a y_j \|^2}{n_{ij} \, (\sigma_i^2 + |a|^2 \sigma_j^2)}

which is about 1 per real component for duplicates, and large for different images if these stand out of the noise. All
pairs come from three matrix products. Otherwise, images are compared: the magnitudes of linear estimates
(`ambient_sci.check.gaussian`) from the lowest frequencies, with the uncertainty of these estimates for noise.

A pair is near where the difference is no larger than noise makes it, :math:`v_{ij} \le 1` with
:math:`v = (d - 1) / (l - 1)` and the limit :math:`l` of the mean of so many squares. Where that holds for most other
pairs too, noise hides duplicates, and nothing is claimed.

Images of few degrees of freedom are near each other by chance. Of chance pairs, the number :math:`C(v)` within a
squared distance ``v`` grows as :math:`v^{m/2}`, ``m`` the dimension of images of this kind (Levina and Bickel 2004,
NIPS 17), which makes the number within the limit

.. math:: C(1) = \frac{C(2) - C(1)}{r - 1}, \qquad r = \frac{C(4) - C(2)}{C(2) - C(1)} = 2^{m/2},

two shells outside of it, where duplicates are not. Pairs are claimed within the limit, or else within half of it, if
of these no more than a part `CHANCE` is expected to be chance.

With more than `EXACT` scans not all pairs of images are compared: after a random projection duplicates are neighbours
(Indyk and Motwani 1998, STOC), so in each of several random orders every scan is compared with the next few.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Features", "same_images", "same_rows"]

EXACT = 4096
BLOCK = 512
MARGIN = 1.5  # of the noise that still counts as the same image
SLACK, DEVIATIONS = 0.1, 2.5  # the same of rows: error of the noise level, and chance of the mean of squares
CHANCE = 0.2  # of the pairs claimed, at most
TELLING = 4.0  # how far above that limit a typical pair must be
LEAST = 16  # rows in common
PROJECTIONS, WINDOW = 12, 12


@dataclass(frozen=True)
class Features:
    """What scans are compared by.

    Attributes
    ----------
    values
        ``(scan, feature)``: measured rows, or pixels of small images.
    seen
        Which rows were measured, ``(scan, feature)``; none for images.
    noise
        Variance of each real component of the rows, ``(scan,)``; of images, expected squared error.
    scans
        Number of each scan, ``(scan,)``.
    """

    values: Tensor
    seen: Tensor | None
    noise: Tensor
    scans: NDArray[np.int64]

    def joined(self, other: "Features") -> "Features":
        """Append the scans of another store, numbered on."""
        seen = None if self.seen is None or other.seen is None else torch.cat([self.seen, other.seen])
        after = int(self.scans.max()) + 1
        return Features(
            torch.cat([self.values, other.values]),
            seen,
            torch.cat([self.noise, other.noise]),
            np.concatenate([self.scans, after + other.scans]),
        )


def same_rows(features: Features) -> tuple[list[tuple[int, int]], bool]:
    """Pairs of positions that are the same measurement, and whether noise and look-alikes would let one tell."""
    assert features.seen is not None
    z, seen, noise = features.values, features.seen, features.noise
    parts = 2 if z.is_complex() else 1
    power = z.abs().square()
    pairs, apart, typical = [], [], []
    for start in range(0, len(z), BLOCK):
        part = slice(start, start + BLOCK)
        inner = (z[part].conj() @ z.T).abs().square()
        own, theirs, common = power[part] @ seen.T, seen[part] @ power.T, seen[part] @ seen.T
        tiny = torch.finfo(power.dtype).tiny
        factor = inner / theirs.clamp_min(tiny) ** 2  # |a|^2
        difference = (own - inner / theirs.clamp_min(tiny)).clamp_min(0) - 1e-5 * own
        squares = (parts * common).clamp_min(1)
        d = difference / (squares * (noise[part, None] + factor * noise)).clamp_min(tiny)
        limit = 1 + SLACK + DEVIATIONS * (2 / squares).sqrt()
        alike = inner >= 0.25 * own * theirs  # or both are noise
        later = torch.arange(len(z)) > torch.arange(start, start + len(own))[:, None]
        enough = (common >= LEAST) & later
        v = (d - 1) / (limit - 1)
        near = enough & alike & (v <= 4)
        pairs.append(near.nonzero() + torch.tensor([start, 0]))
        apart.append(v[near])
        ratio = (d / limit)[enough]
        typical.append(ratio[:: max(1, len(ratio) // 10_000)])
    every = torch.cat(typical)
    if len(every) == 0 or float(every.median()) < TELLING:
        return [], False
    return _claimed(torch.cat(pairs), torch.cat(apart))


def same_images(features: Features, generator: torch.Generator) -> tuple[list[tuple[int, int]], bool]:
    """Pairs of positions that are the same image, and whether noise and look-alikes would let one tell."""
    count = len(features.values)
    if count < 2:
        return [], False
    some = torch.randint(count, (4096, 2), generator=generator)
    typical = _apart(features, some[some[:, 0] != some[:, 1]])
    if float(typical.median()) < TELLING * MARGIN:
        return [], False
    pairs = torch.combinations(torch.arange(count)) if count <= EXACT else _neighbours(features.values, generator)
    d = torch.cat([_apart(features, part) for part in pairs.split(1 << 16)])
    return _claimed(pairs, (d - 1) / (MARGIN - 1))


def _claimed(pairs: Tensor, v: Tensor) -> tuple[list[tuple[int, int]], bool]:
    """Choose the pairs that are not expected to be near by chance, and tell whether chance would hide such pairs."""
    close, wide = (int(((v > low) & (v <= 2 * low)).sum()) for low in (1, 2))
    growth = max(2.0, wide / max(close, 1))  # images have two degrees of freedom at least
    chance = close / (growth - 1)
    for limit, expected in ((1.0, chance), (0.5, chance / growth)):
        near = pairs[v <= limit]
        if expected <= CHANCE * len(near) and len(near):
            return [(int(i), int(j)) for i, j in near], True
    return [], chance / growth < 1 and not bool((v <= 0.5).any())


def _apart(features: Features, pairs: Tensor) -> Tensor:
    """Squared difference up to a factor, in units of what noise makes it: one number a pair."""
    first, second = features.values[pairs[:, 0]], features.values[pairs[:, 1]]
    own, theirs = first.square().sum(1), second.square().sum(1)
    inner = (first * second).sum(1)
    tiny = torch.finfo(own.dtype).tiny
    factor = inner / theirs.clamp_min(tiny)
    apart = (own - inner * factor).clamp_min(0) - 1e-5 * own
    expected = features.noise[pairs[:, 0]] + factor**2 * features.noise[pairs[:, 1]]
    return apart / expected.clamp_min(tiny)


def _neighbours(values: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs that are close in one of several random projections, ``(pair, 2)`` in ascending order."""
    centred = values / torch.linalg.vector_norm(values, dim=1, keepdim=True).clamp_min(1e-30)
    centred = centred - centred.mean(0)
    found = []
    for _ in range(PROJECTIONS):
        order = (centred @ torch.randn(values.shape[1], generator=generator)).argsort()
        found += [torch.stack([order[:-step], order[step:]], 1) for step in range(1, WINDOW + 1)]
    pairs: Tensor = torch.unique(torch.cat(found).sort(1).values, dim=0)
    return pairs
