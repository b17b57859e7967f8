"""Sampling patterns: seeded functions that return the masks of a batch.

Every pattern takes the number of scans, the spatial shape, its own numbers and a generator, and returns a float mask of
zeros and ones to give to an operator: ``(batch, 1, *spatial)``, with axes of size one where sampling does not depend on
them. Lines run along the last axis (phase encoding), so that line patterns are ``(batch, 1, 1, width)`` in 2-D.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = ["random_lines"]


def random_lines(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    """Calibration lines in the centre and uniformly random lines outside, ``round(width / acceleration)`` in all.

    Raises
    ------
    DataError
        If the calibration lines alone are more than the acceleration allows.
    """
    width = shape[-1]
    lines = round(width / acceleration)
    if not 0 <= calibration <= lines <= width:
        raise DataError(
            f"acceleration {acceleration} of {width} lines leaves {lines}, which must hold {calibration} calibration lines"
        )
    start = width // 2 - calibration // 2
    score = torch.rand(batch, width, generator=generator)
    score[:, start : start + calibration] = 2.0
    chosen = score.argsort(1, descending=True)[:, :lines]
    mask = torch.zeros(batch, width).scatter_(1, chosen, 1.0)
    return mask.reshape(batch, *[1] * len(shape), width)
