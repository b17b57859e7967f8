"""The two sides of an audit: scans that a prior has learned from, and scans that it has not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.baselines import cg_sense
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.errors import DataError
from ambient_sci.measurement import Measurement
from ambient_sci.prior import Prior

__all__ = ["CHUNK", "MOST", "Scans", "split", "spread"]

MOST = 512  # held-out scans, and members, that are looked at
LEAST = 8  # held-out scans without which nothing is claimed
CHUNK = 32  # scans in memory at once, and images in the network


@dataclass(frozen=True)
class Scans:
    """Some scans of a store, read a few at a time."""

    store: Store
    scans: NDArray[np.int64]

    def read(self, label: str | None = None) -> Iterator[Measurement]:
        """Give measurements of them, with a progress bar if it has a label."""
        with tqdm(total=len(self.scans), desc=label, unit="scan", disable=label is None) as bar:
            for some, _ in self.store.by_size(self.scans):
                for start in range(0, len(some), CHUNK):
                    m = self.store.read(some[start : start + CHUNK])
                    yield m
                    bar.update(len(m))

    def references(self, m: Measurement) -> Tensor:
        """Images of scans, in normalised units."""
        images = self.store.references(m.index)
        dtype = m.y.real.dtype
        images = images.to(dtype.to_complex() if images.is_complex() else dtype)
        return images / m.scale.reshape(-1, *[1] * (images.ndim - 1))

    def batches(self, known: bool, label: str | None) -> Iterator[tuple[Measurement, Tensor | None]]:
        """Give measurements with images, or with none where these are not to be ``known``."""
        return ((m, self.references(m) if known else None) for m in self.read(label))

    def images(self, scan: int) -> Tensor:
        """Image of one scan: the reference, or regularised least squares."""
        m = self.store.read(scan)
        return self.references(m) if self.store.has_references else cg_sense(m)


def split(prior: Prior, store: Store, against: Store | Path | str | None) -> tuple[Scans, Scans]:
    """Tell scans that a prior has learned from, and scans that it has not."""
    learned_from = prior.trained_on.get("fingerprint")
    if learned_from not in (None, store.fingerprint):
        raise DataError(
            f"the prior learned from another store than {store.path} (fingerprint {learned_from}, not "
            f"{store.fingerprint}): give that of its training"
        )
    learned = min(int(prior.trained_on.get("scans", len(store))), len(store))
    training = Scans(store, np.arange(learned))
    if against is None:
        held = Scans(store, np.arange(learned, len(store))[:MOST])
    else:
        against = against if isinstance(against, Store) else open_store(against)
        if against.fingerprint == store.fingerprint:
            raise DataError(f"against must hold scans that were not trained on, and {against.path} is the same store")
        held = Scans(against, np.arange(min(MOST, len(against))))
    if len(held.scans) < LEAST:
        raise DataError(
            f"needs at least {LEAST} scans that were not trained on to compare with, got {len(held.scans)}: give a "
            "store of them (--against)"
        )
    if learned < 2:
        raise DataError(f"needs at least 2 scans that were trained on, got {learned}")
    for one in (store, held.store):
        if one.image_shape != prior.image_shape or one.is_complex != prior.is_complex:
            raise DataError(
                f"{one.path} holds images of another kind than the prior: {one.image_shape}, "
                f"{'complex' if one.is_complex else 'real'}, not {prior.image_shape}, "
                f"{'complex' if prior.is_complex else 'real'}"
            )
    return training, held


def spread(scans: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the scans, from all of them."""
    chosen: NDArray[np.int64] = scans[np.linspace(0, len(scans) - 1, min(most, len(scans))).round().astype(int)]
    return chosen
