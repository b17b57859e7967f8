"""Random streams that depend on what they are for, not on what was drawn before.

A stream is named by the run's seed and a few counters (the purpose, the step, the scan), so that a resumed run, another
batch size or another number of workers draws the same numbers. All streams are drawn on the CPU.
"""

import numpy as np
import torch
from torch import Tensor

from ambient_sci.errors import ConfigError

__all__ = ["rng_for", "scan_noise", "stream"]


def rng_for(seed: int, *counters: int) -> np.random.Generator:
    """NumPy generator for a seed and counters (non-negative integers)."""
    return np.random.default_rng(_sequence(seed, counters))


def stream(seed: int, *counters: int) -> torch.Generator:
    """Torch generator for a seed and counters (non-negative integers)."""
    state = _sequence(seed, counters).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _sequence(seed: int, counters: tuple[int, ...]) -> np.random.SeedSequence:
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")
    # as one list of numbers, [seed, 3] and [seed, 3, 0] would be the same
    return np.random.SeedSequence(seed, spawn_key=counters)


def scan_noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int, labels: Tensor) -> Tensor:
    """White noise per scan, ``(len(labels), *shape)``: each row has a stream of its own, named by its label(s).

    Parameters
    ----------
    shape
        Shape of one scan's noise.
    dtype
        Real or complex; complex noise has unit variance in each part.
    seed
        The run's seed.
    labels
        One row of counters per scan, ``(batch,)`` or ``(batch, k)`` int64.
    """
    rows = [
        torch.randn((*shape, 2) if dtype.is_complex else shape, generator=stream(seed, *row), dtype=dtype.to_real())
        for row in labels.reshape(len(labels), -1).tolist()
    ]
    noise = torch.stack(rows)
    return torch.view_as_complex(noise) if dtype.is_complex else noise
