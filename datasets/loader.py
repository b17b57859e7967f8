r"""Batches for training, endless and reproducible.

Scans of one size (`ambient_sci.datasets.store.SizeGroup`) are visited epoch by epoch, every scan once in each; batches
of ``batch_size`` are cut from these orders laid end to end, so that all are full and some straddle two epochs. A group
of :math:`n_g` scans has given :math:`\lfloor n_g e / b \rfloor` batches when :math:`e` epochs are over; within each
epoch the batches of all groups are shuffled among each other. A position in this sequence is one number, the count of
scans consumed: an iterator that starts there gives the batches that an undisturbed one would have given.

**Order.** Where chunks hold one scan, an epoch's order is a uniform permutation. Where several neighbours are
compressed together, to read one of them costs as much as to read all, and the order is one of pools: chunks are
permuted uniformly, as many of them as fit in ``pool`` bytes are read, and their scans permuted uniformly before the
next pool begins. Each chunk is then read once an epoch. A batch of :math:`b` scans from pools of :math:`P` in chunks
of :math:`c` holds

.. math:: \frac{b (b - 1)}{2} \, \frac{c - 1}{P - 1}

pairs from one chunk on average, where a uniform permutation of all :math:`n` would have the same with :math:`n` for
:math:`P`. Which chunks meet is uniform; what differs beyond that is that the scans of a chunk are all visited within
:math:`P` scans of each other, whereas in a uniform permutation they are strewn over the epoch. Where a group's share
of ``pool`` holds all of its scans there is one pool, and the permutation is uniform again.

The order depends on the store, ``batch_size``, ``seed`` and ``pool``, and not on the machine: neither ``memory`` nor
the number of threads, workers or ranks changes the sequence.

**Several processes.** Of ``ranks`` processes, each takes every ``ranks``-th batch of the one sequence; the workers of a
``torch.utils.data.DataLoader`` share their rank's batches in the same way (`StoreDataset`). No scan is then read twice
or missed between them, but a chunk of several scans is read by each process that has one of its scans to deliver.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from ambient_sci.datasets.store import SizeGroup, Store, open_store
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement, collate_measurements

__all__ = ["MEMORY", "POOL", "StoreDataset", "batch_indices", "batches", "epoch_order"]

MEMORY = 512 << 20
POOL = 256 << 20
_READERS = 2  # threads that read ahead
_AHEAD = 4  # readings that are under way or done before the batches that need them are due
_ORDER, _MIX = 0x0DE2, 0x0DE3  # keep the streams of epochs apart from those that others derive from the same seed


def batches(
    store: Store,
    batch_size: int,
    seed: int,
    start: int = 0,
    memory: int = MEMORY,
    pool: int = POOL,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Measurement]:
    """Draw batches of scans, for ever.

    Parameters
    ----------
    store
        Where from. One of at most ``memory`` bytes is read once and kept. A larger one is read ahead by threads, which
        end with the iterator; at most twice ``pool`` bytes are held, or what one batch needs where that is more.
    batch_size
        Scans in a batch, all of one size; it may be more than the store holds.
    seed
        Which sequence.
    start
        Scans already consumed, by all ranks together; a multiple of ``batch_size``.
    memory
        Largest store to keep in memory, in bytes; it does not change what is drawn.
    pool
        Bytes of scans that are shuffled together where chunks hold several scans (see the module); part of the
        sequence's identity, as ``seed`` is.
    rank, ranks
        This process and their number: it gets every ``ranks``-th batch, beginning with batch ``rank`` after ``start``.

    Yields
    ------
    Measurement
        Always ``batch_size`` scans.

    Raises
    ------
    ConfigError
        If a number is out of range.
    StoreError, DataError
        When the batch is due whose scans are damaged or not finite.

    Examples
    --------
    >>> for batch in batches(store, 8, seed=0):  # doctest: +SKIP
    ...     step(batch)
    """
    _check(batch_size, start, pool, rank, ranks)
    groups = store.groups
    orders = _orders(groups, seed, pool)
    numbers = _strided(_numbers([len(order) for order in orders], batch_size, seed, start // batch_size), rank, ranks)
    if store.nbytes <= memory:
        return _kept(store, groups, orders, numbers, batch_size)
    return _read_ahead(store, groups, orders, numbers, batch_size, 2 * pool)


def batch_indices(
    scans: int | Sequence[SizeGroup], batch_size: int, seed: int, start: int = 0, pool: int = POOL
) -> Iterator[NDArray[np.int64]]:
    """Numbers of the scans in each batch that `batches` draws.

    Parameters
    ----------
    scans
        The groups of a store; or how many scans there are, all of one size and each in a chunk of its own.
    batch_size, seed, start, pool
        As in `batches`.
    """
    _check(batch_size, start, pool)
    groups = [SizeGroup(np.arange(scans), (), (), 1, 1)] if isinstance(scans, int) else scans
    orders = _orders(groups, seed, pool)
    for group, number in _numbers([len(order) for order in orders], batch_size, seed, start // batch_size):
        yield groups[group].scans[orders[group].take(number * batch_size, (number + 1) * batch_size)]


def epoch_order(
    scans: int, seed: int, epoch: int, chunk: int = 1, pool: int | None = None, group: int = 0
) -> NDArray[np.int64]:
    """Order in which an epoch visits the scans of a group.

    Parameters
    ----------
    scans
        How many there are.
    seed, epoch, group
        Name the random stream.
    chunk
        How many neighbours are compressed together.
    pool
        How many scans are shuffled together where ``chunk`` is more than one; all by default.
    """
    return _epoch(scans, seed, epoch, chunk, scans if pool is None else pool, group)[0]


class StoreDataset(IterableDataset[Measurement]):
    """What `batches` draws, for a ``torch.utils.data.DataLoader`` with any number of workers.

    Every process opens the store by its path. The loader gives the very sequence of ``batches(store, ...)``, whatever
    the number of its workers.

    Parameters
    ----------
    store
        A store, or its path.
    batch_size, seed, start, memory, pool, rank, ranks
        As in `batches`; workers share ``memory`` evenly.

    Examples
    --------
    >>> data = StoreDataset("scans.zarr", batch_size=8, seed=0)  # doctest: +SKIP
    >>> loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        store: Store | str | Path,
        batch_size: int,
        seed: int,
        start: int = 0,
        memory: int = MEMORY,
        pool: int = POOL,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        _check(batch_size, start, pool, rank, ranks)
        self.path = store.path if isinstance(store, Store) else Path(store)
        self.batch_size, self.seed, self.start = batch_size, seed, start
        self.memory, self.pool, self.rank, self.ranks = memory, pool, rank, ranks

    def __iter__(self) -> Iterator[Measurement]:
        """Draw the batches of this worker; the loader takes one from each worker in turn."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        with open_store(self.path) as store:
            yield from batches(
                store,
                self.batch_size,
                self.seed,
                self.start,
                self.memory // workers,
                self.pool,
                self.rank + worker * self.ranks,
                self.ranks * workers,
            )


def _check(batch_size: int, start: int, pool: int, rank: int = 0, ranks: int = 1) -> None:
    if batch_size < 1 or start < 0:
        raise ConfigError(f"batch_size must be at least 1 and start at least 0, got {batch_size} and {start}")
    if start % batch_size:
        raise ConfigError(f"start must be a multiple of batch_size, {batch_size}, got {start}")
    if pool < 0:
        raise ConfigError(f"pool must be at least 0 bytes, got {pool}")
    if not 0 <= rank < ranks:
        raise ConfigError(f"rank must be between 0 and ranks - 1, got rank {rank} of {ranks}")


# ------------------------------------------------------------------------------------------------------ the sequence


def _numbers(sizes: Sequence[int], batch_size: int, seed: int, first: int) -> Iterator[tuple[int, int]]:
    """Group of each batch, and which of that group's batches it is, from the batch ``first`` of the sequence."""
    epoch = first * batch_size // sum(sizes)  # not later than the epoch in which it is
    while True:
        done = [size * epoch // batch_size for size in sizes]
        due = [size * (epoch + 1) // batch_size for size in sizes]
        if sum(due) > first:
            mix = np.repeat(np.arange(len(sizes)), np.subtract(due, done))
            np.random.default_rng([seed, _MIX, epoch]).shuffle(mix)
            for place, group in enumerate(mix.tolist(), start=sum(done)):
                if place >= first:
                    yield group, done[group]
                done[group] += 1
        epoch += 1


def _strided(numbers: Iterator[tuple[int, int]], rank: int, ranks: int) -> Iterator[tuple[int, int]]:
    for place, number in enumerate(numbers):
        if place % ranks == rank:
            yield number


class _Order:
    """The endless order of a group's scans: a position is an epoch times their number, plus a place in the epoch."""

    def __init__(self, group: SizeGroup, seed: int, number: int, pool: int) -> None:
        self.scans, self.chunk, self.nbytes = len(group.scans), group.chunk, group.nbytes
        in_pool = max(group.chunk, pool // max(1, group.nbytes))
        # two epochs: batches may straddle them
        self.epoch = lru_cache(2)(lambda epoch: _epoch(self.scans, seed, epoch, group.chunk, in_pool, number))

    def __len__(self) -> int:
        return self.scans

    def take(self, start: int, end: int) -> NDArray[np.int64]:
        """Places in the group of the scans at positions from ``start`` to ``end``."""
        parts = []
        for epoch in range(start // self.scans, -(-end // self.scans)):
            first = epoch * self.scans
            parts.append(self.epoch(epoch)[0][max(0, start - first) : end - first])
        return np.concatenate(parts)

    def readings(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Positions, from and to, that are read together for the scans from ``start`` to ``end``."""
        if self.chunk == 1:
            yield start, end
            return
        for epoch in range(start // self.scans, -(-end // self.scans)):
            bounds = self.epoch(epoch)[1] + epoch * self.scans
            low, high = np.searchsorted(bounds, start, "right") - 1, np.searchsorted(bounds, end)
            yield from pairwise(bounds[max(0, low) : high + 1].tolist())


def _orders(groups: Sequence[SizeGroup], seed: int, pool: int) -> list[_Order]:
    total = max(1, sum(len(group.scans) * group.nbytes for group in groups))
    shares = [pool * len(group.scans) * group.nbytes // total for group in groups]
    return [_Order(group, seed, number, shares[number]) for number, group in enumerate(groups)]


def _epoch(
    scans: int, seed: int, epoch: int, chunk: int, pool: int, group: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of an epoch, and where its pools begin and end: whole chunks, at most ``pool`` scans if one fits."""
    rng = np.random.default_rng([seed, _ORDER, epoch, group])
    if chunk == 1 or scans <= pool:
        return rng.permutation(scans), np.array([0, scans])
    chunks = rng.permutation(-(-scans // chunk))
    parts = []
    for some in np.array_split(chunks, -(-len(chunks) // max(1, pool // chunk))):
        members = (some[:, None] * chunk + np.arange(chunk)).ravel()
        parts.append(rng.permutation(members[members < scans]))
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


# ------------------------------------------------------------------------------------------------------------ reading


def _kept(
    store: Store,
    groups: Sequence[SizeGroup],
    orders: Sequence[_Order],
    numbers: Iterator[tuple[int, int]],
    batch_size: int,
) -> Iterator[Measurement]:
    everything = [store.read(group.scans) for group in groups]
    for group, number in numbers:
        places = orders[group].take(number * batch_size, (number + 1) * batch_size)
        yield everything[group][torch.from_numpy(places)]


def _read_ahead(
    store: Store,
    groups: Sequence[SizeGroup],
    orders: Sequence[_Order],
    numbers: Iterator[tuple[int, int]],
    batch_size: int,
    budget: int,
) -> Iterator[Measurement]:
    threads = ThreadPoolExecutor(_READERS, thread_name_prefix="batches")
    held: dict[tuple[int, int, int], Future[Measurement]] = {}  # by group, and positions from and to
    unused: set[tuple[int, int, int]] = set()
    due: deque[tuple[int, int, int]] = deque()  # batches whose readings are held
    following = next(numbers)

    def size(readings: Sequence[tuple[int, int, int]]) -> int:
        return sum(orders[group].nbytes * (end - start) for group, start, end in readings)

    def look_ahead() -> None:
        nonlocal following
        while True:
            group, number = following
            start, end = number * batch_size, (number + 1) * batch_size
            wanted = [(group, *reading) for reading in orders[group].readings(start, end)]
            new = [reading for reading in wanted if reading not in held]
            # a batch that is due is read whatever it takes
            if due and new and (len(unused) >= _AHEAD or size([*held, *new]) > budget):
                return
            for reading in new:
                scans = groups[group].scans[orders[group].take(*reading[1:])]
                held[reading] = threads.submit(store.read, scans)
            unused.update(new)
            due.append((group, start, end))
            following = next(numbers)

    try:
        while True:
            look_ahead()
            group, start, end = due.popleft()
            parts = []
            for reading in [(group, *reading) for reading in orders[group].readings(start, end)]:
                found, (_, first, last) = held[reading].result(), reading
                unused.discard(reading)
                if (start, end) != (first, last):  # a copy, so that a batch does not keep a pool in memory
                    found = found[torch.arange(max(start, first) - first, min(end, last) - first)]
                parts.append(found)
            for reading in [reading for reading in held if reading[0] == group and reading[2] <= end]:
                del held[reading]
            batch = parts[0] if len(parts) == 1 else collate_measurements(parts)
            del parts, found
            look_ahead()
            yield batch
            del batch
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
