r"""Scans that are the same measurement but for noise.

Where rows mean the same in every scan (``fourier``, ``mask``, ``identity``), scans :math:`i, j` are compared on the
rows that both measured, up to a factor :math:`a` (intensity, global phase):

.. math:: d_{ij} = \min_a \frac{\| y_i - a y_j \|^2}{n_{ij} \, (\sigma_i^2 + |a|^2 \sigma_j^2)}

which is about 1 per real component for duplicates, and large for different images if these stand out of the noise. All
pairs come from three matrix products. Otherwise, images are compared: the magnitudes of linear estimates
(`ambient_sci.check.gaussian`) from the lowest frequencies, with the uncertainty of these estimates for noise.

A pair counts where the difference is no larger than noise makes it. Where that holds for every other pair too, noise
hides duplicates, and nothing is claimed.

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
MARGIN = 1.5  # of the noise that still counts as the same
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
    """Pairs of positions that are the same measurement, and whether noise would let one tell."""
    assert features.seen is not None
    z, seen, noise = features.values, features.seen, features.noise
    parts = 2 if z.is_complex() else 1
    power = z.abs().square()
    found, typical = [], []
    for start in range(0, len(z), BLOCK):
        part = slice(start, start + BLOCK)
        inner = (z[part].conj() @ z.T).abs().square()
        own, theirs, common = power[part] @ seen.T, seen[part] @ power.T, seen[part] @ seen.T
        tiny = torch.finfo(power.dtype).tiny
        factor = inner / theirs.clamp_min(tiny) ** 2  # |a|^2
        apart = (own - inner / theirs.clamp_min(tiny)).clamp_min(0) - 1e-5 * own
        expected = parts * common * (noise[part, None] + factor * noise) * MARGIN
        alike = inner >= 0.25 * own * theirs  # or both are noise
        later = torch.arange(len(z)) > torch.arange(start, start + len(own))[:, None]
        enough = (common >= LEAST) & later
        hits = (enough & alike & (apart <= expected)).nonzero() + torch.tensor([start, 0])
        found += [(int(i), int(j)) for i, j in hits]
        ratio = (apart / expected.clamp_min(tiny))[enough]
        typical.append(ratio[:: max(1, len(ratio) // 10_000)])
    every = torch.cat(typical)
    return found, len(every) > 0 and float(every.median()) >= TELLING


def same_images(features: Features, generator: torch.Generator) -> tuple[list[tuple[int, int]], bool]:
    """Pairs of positions that are the same image, and whether noise would let one tell."""
    count = len(features.values)
    if count < 2:
        return [], False
    some = torch.randint(count, (4096, 2), generator=generator)
    typical = _apart(features, some[some[:, 0] != some[:, 1]])
    pairs = torch.combinations(torch.arange(count)) if count <= EXACT else _neighbours(features.values, generator)
    hits = torch.cat([part[_apart(features, part) <= 1] for part in pairs.split(1 << 16)])
    return [(int(i), int(j)) for i, j in hits], float(typical.median()) >= TELLING


def _apart(features: Features, pairs: Tensor) -> Tensor:
    """Squared difference up to a factor, in units of what noise makes it: one number a pair."""
    first, second = features.values[pairs[:, 0]], features.values[pairs[:, 1]]
    own, theirs = first.square().sum(1), second.square().sum(1)
    inner = (first * second).sum(1)
    tiny = torch.finfo(own.dtype).tiny
    factor = inner / theirs.clamp_min(tiny)
    apart = (own - inner * factor).clamp_min(0) - 1e-5 * own
    expected = features.noise[pairs[:, 0]] + factor**2 * features.noise[pairs[:, 1]]
    return apart / (MARGIN * expected).clamp_min(tiny)


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
