r"""Time and memory of several functions side by side.

What the machine does beside the measurement hits all contestants alike: they take turns, in each of several rounds,
and a ratio is the median over the rounds of the ratio within one round. Before every timed call stands one that is not
timed, so that each is timed with its own data in the caches, as in an iteration.

Memory is the most that one call takes beyond what was there before it, its result included: the resident set on the
CPU (Linux only), which sees torch, numpy and compiled libraries alike, and what torch allocates on a CUDA device.
"""

import contextlib
import ctypes
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

__all__ = ["Timing", "busy_core", "peak_memory", "take_turns"]

Function = Callable[[], Any]

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, one value a round."""

    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Median over the rounds."""
        return median(self.rounds)

    def relative_to(self, other: "Timing") -> float:
        """How many times the other's time this one takes: median of the ratios within a round."""
        return median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))


def take_turns(functions: Sequence[Function], rounds: int, device: str) -> list[Timing]:
    """Time functions in turn, each once a round; the one to start with changes from round to round."""
    # glibc keeps freed blocks for the next call up to the size of the largest that was ever freed, at most 32 MiB.
    # Be that as it is in a process that has computed for a while, whatever happened to be freed here before.
    torch.empty(31 * MEBIBYTE, dtype=torch.uint8)
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds):
        for place in range(len(functions)):
            index = (place + turn) % len(functions)
            functions[index]()
            seconds[index].append(_timed(functions[index], device))
    return [Timing(tuple(values)) for values in seconds]


def _timed(function: Function, device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(function: Function, device: str) -> float:
    """MiB that a call takes at most beyond what is there, its result included; nan where it cannot be told."""
    if device == "cpu" and not _return_freed_memory():
        return math.nan
    function()  # what a library keeps from its first call (plans, tables) is not counted
    if device == "cuda":
        _synchronise(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        _synchronise(device)
        return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present size (man 5 proc)
        before = _resident("VmRSS")
        function()
        return (_resident("VmHWM") - before) / MEBIBYTE
    except OSError:
        return math.nan


def _return_freed_memory() -> bool:
    """Have glibc give blocks back to the system as soon as they are freed, from now on.

    It otherwise keeps them, up to 32 MiB each, and does not always find them again for the next block of that size:
    what is seen would depend on what was there before. Calls take longer then, so times are measured first.
    """
    try:
        threshold = -3  # M_MMAP_THRESHOLD in malloc.h
        return bool(ctypes.CDLL(None).mallopt(threshold, 128 * 1024))
    except AttributeError:
        return False


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with another process."""
    # it ends with this process, however that ends: left behind, it would slow down whatever is measured next
    spin = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
    process = subprocess.Popen([sys.executable, "-c", spin, str(os.getpid())])
    try:
        time.sleep(0.5)  # it has started
        yield
    finally:
        process.terminate()
        process.wait()
