r"""Batches for training, endless and reproducible.

Epoch :math:`e` visits every scan once, in an order that depends on ``(seed, e)`` alone. Batches are cut from these
orders laid end to end, so that all have one size and some straddle two epochs. A position in that sequence is one
number, the count of scans consumed: an iterator that starts there gives the batches that an undisturbed one would have
given.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement

__all__ = ["MEMORY", "batch_indices", "batches", "epoch_order"]

MEMORY = 1 << 30
_ORDER = 0x0DE2  # keeps the streams of epochs apart from those that others derive from the same seed


def epoch_order(scans: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order in which an epoch visits the scans."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(scans)


def batches(store: Store, batch_size: int, seed: int, start: int = 0, memory: int = MEMORY) -> Iterator[Measurement]:
    """Draw batches of scans, for ever.

    Parameters
    ----------
    store
        Where from. One of at most ``memory`` bytes is read once and kept; of a larger one, the next batch is read
        while the last is used.
    batch_size
        Scans in a batch; it may be more than the store holds.
    seed
        Which sequence.
    start
        Scans already consumed.
    memory
        Largest store to keep in memory, in bytes; it does not change what is drawn.

    Yields
    ------
    Measurement
        Always ``batch_size`` scans.
    """
    if batch_size < 1 or start < 0:
        raise ConfigError(f"batch_size must be at least 1 and start at least 0, got {batch_size} and {start}")
    positions = batch_indices(len(store), batch_size, seed, start)
    if store.nbytes <= memory:
        return _kept(store, positions)
    return _prefetched(store, positions)


def batch_indices(scans: int, batch_size: int, seed: int, start: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the scans in each batch that `batches` draws."""
    epoch, skip = divmod(start, scans)
    ahead = epoch_order(scans, seed, epoch)[skip:]
    while True:
        while len(ahead) < batch_size:
            epoch += 1
            ahead = np.concatenate([ahead, epoch_order(scans, seed, epoch)])
        yield ahead[:batch_size]
        ahead = ahead[batch_size:]


def _kept(store: Store, positions: Iterator[NDArray[np.int64]]) -> Iterator[Measurement]:
    import torch

    everything = store.read(slice(None))
    for rows in positions:
        yield everything[torch.from_numpy(rows)]


def _prefetched(store: Store, positions: Iterator[NDArray[np.int64]]) -> Iterator[Measurement]:
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        following = reader.submit(store.read, next(positions))
        for rows in positions:
            current = following.result()
            following = reader.submit(store.read, rows)
            yield current
