"""Sharing the scans and coils of a batch among threads.

A loop over coils is a long chain of small operations. If each of them is a parallel loop of its own, all threads wait
for each other at its end, some hundred times per call, and a core that is busy with something else holds up the others
every time. Here each thread takes some scans (or coils, where scans are few) through the whole chain by itself, in
pieces that stay in its cache, and whoever is free takes the next. Nothing is synchronised but the end.
"""

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Streaming", "SumWork", "chunks", "own", "share", "share_sum"]

T = TypeVar("T")
SumWork = Callable[[Tensor, slice, range, Tensor], None]


@runtime_checkable
class Streaming(Protocol):
    """An operator that streams over coils, and whose gram can be had of some scans alone."""

    @property
    def coils(self) -> int:
        """Number of receive coils."""

    def _gram_work(self) -> SumWork:
        """Make what `share_sum` needs for the gram."""


PIECE = 1 << 16  # pixels of a piece: several complex images of this size fit a core's second-level cache
CHUNK = 4 * PIECE  # pixels of a single operation, where there are as many
WORTH = 1 << 20  # pixels of all coils and scans below which waking threads costs more than it gains


def share(
    work: Callable[[Tensor, slice, range], T], values: Tensor, coils: int, pixels: int, piece: int = PIECE
) -> list[list[T]]:
    """Do the work of all scans and coils, a piece at a time.

    Parameters
    ----------
    work
        Called with the values of some scans, with the slice that they are, and with some coils; in any order, on any
        thread, and without gradients.
    values
        Images or measurements, ``(batch, ...)``; anywhere but on the CPU, or if they are small, they are one piece.
    coils
        Number of coils.
    pixels
        Pixels that are worked on for one coil of one scan, by which the size of a piece is chosen.
    piece
        Pixels of a piece at most, where it has more than one scan.

    Returns
    -------
    list
        Results by piece of scans and, within, by block of coils, in order, so that sums do not depend on luck.
    """
    values = values.detach()
    scans = len(values)
    if values.device.type != "cpu" or scans * coils * pixels <= WORTH:
        return [[work(values, slice(0, scans), range(coils))]]
    threads = torch.get_num_threads()
    size = max(1, min(piece // pixels, math.ceil(scans / threads)))
    pieces = [slice(start, min(start + size, scans)) for start in range(0, scans, size)]
    blocks = 1 if threads == 1 else min(coils, math.ceil(2 * threads / len(pieces)))
    edges = [coils * block // blocks for block in range(blocks + 1)]
    tasks = [(some, range(*edges[block : block + 2])) for some in pieces for block in range(blocks)]

    left = iter(tasks)  # one for all threads: whoever is free takes the next
    done: dict[tuple[int, int], T] = {}

    def serve(_: int) -> None:
        with torch.no_grad():  # which every thread has to say for itself
            for some, block in left:
                done[some.start, block.start] = work(values[some], some, block)

    if threads == 1 or len(tasks) == 1:
        serve(0)
    else:
        list(_pool(threads).map(serve, range(threads)))
    return [[done[some.start, start] for start in edges[:-1]] for some in pieces]


def share_sum(work: SumWork, values: Tensor, coils: int, pixels: int, result: Tensor) -> Tensor:
    """Do work that sums over coils, as `share` does any.

    Parameters
    ----------
    work
        Called as in `share`, with a tensor for these scans on top, which it fills with the sum over these coils.
    values, coils, pixels
        As in `share`.
    result
        What to fill, ``(batch, ...)``.

    Returns
    -------
    Tensor
        The result. Threads write to it where they can: joining their parts would be a parallel loop after all.
    """

    def part(values: Tensor, scans: slice, block: range) -> tuple[slice, Tensor]:
        own = result[scans]
        total = own if len(block) == coils else torch.empty_like(own)
        work(values, scans, block, total)
        return scans, total

    for blocks in share(part, values, coils, pixels):
        if len(blocks) > 1:
            scans, first = blocks[0]
            total = result[scans].numpy()  # numpy adds on this thread alone
            np.add(first.numpy(), blocks[1][1].numpy(), out=total)
            for _, other in blocks[2:]:
                total += other.numpy()
    return result


def chunks(count: int, pixels: int) -> int:
    """Into how many chunks to cut so many rows or coils, of so many pixels each, for operations on one at a time.

    Smaller ones would stay in a nearer cache, but threads would ask for Python's lock too often.
    """
    return max(1, round(count * pixels / CHUNK))


def own(parameter: Tensor, scans: slice) -> Tensor:
    """Parameters of some scans, where one may serve all."""
    return parameter if len(parameter) == 1 else parameter[scans]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone: torch's number of threads belongs to the thread that sets it."""

    def alone() -> None:
        torch.get_num_threads()  # a new thread takes over the number set last when it first asks
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, "ambient-sci", initializer=alone)
    started = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)  # which is what other new threads then take over
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
