r"""Choosing a baseline's regularisation.

With references of *other* scans, by the error of their reconstructions (`tune`); without any reference, by prediction
(`tune_held_out`): some measured rows are set aside, :math:`A = [\tilde A; A_h]`, every value reconstructs
:math:`\hat x` from :math:`\tilde A` alone, and the best one predicts what was set aside,

.. math:: \min_\lambda \; \frac{\sum \| A_h \hat x_\lambda - y_h \|_W^2}{\sum \| y_h \|_W^2}

(cross-validation as in Yaman et al. 2020, Magn. Reson. Med. 84:3172). A value that is best for fewer rows is a little
large for all of them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ambient_sci.baselines.linear import weights
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.evaluate.metrics import Images, head_mask, nrmse
from ambient_sci.measurement import Measurement

__all__ = ["set_rows_aside", "tune", "tune_held_out"]

Value = TypeVar("Value")
Method = Callable[[Measurement, Value], Tensor]


def tune(
    method: Method[Value], m: Measurement, references: Tensor, grid: Sequence[Value], mask: Images | None = None
) -> Value:
    """Choose the value with the smallest mean NRMSE on scans whose images are known.

    Parameters
    ----------
    method
        ``method(measurement, value)`` gives images, such as `ambient_sci.baselines.l1_wavelet_batch`.
    m
        Scans that will not be judged later.
    references
        Their images, ``(batch, channel, *spatial)``, in the measurement's units.
    grid
        Values to try, in order; anything the method takes. A warning says when the first or the last number is best.
    mask
        Pixels that count, shaped like ``references``; those inside the head by default.

    Returns
    -------
    value
        The best of ``grid``.
    """
    mask = head_mask(references) if mask is None else mask

    def score(value: Value) -> float:
        images = method(m, value)
        if images.shape != references.shape:
            raise DataError(f"references must be {tuple(images.shape)} like the images, got {tuple(references.shape)}")
        return float(nrmse(images, references, mask).mean())

    return _best(score, grid)


def tune_held_out(
    method: Method[Value], m: Measurement, grid: Sequence[Value], fraction: float = 0.25, seed: int = 0
) -> Value:
    """Choose the value that predicts rows it has not seen, without any reference.

    Parameters
    ----------
    method, grid
        As in `tune`.
    m
        Scans; their operator must know how to lose rows.
    fraction
        Part of the measured rows (lines, pixels) that is set aside.
    seed
        Which rows are set aside; the same for every value.

    Returns
    -------
    value
        The best of ``grid``.
    """
    thinned, weight = set_rows_aside(m, fraction, seed)
    total = float((weight * m.y.abs() ** 2).sum())

    def score(value: Value) -> float:
        residual = m.operator(method(thinned, value)) - m.y
        return float((weight * residual.abs() ** 2).sum()) / total

    return _best(score, grid)


def set_rows_aside(m: Measurement, fraction: float, seed: int) -> tuple[Measurement, Tensor]:
    """Take some measured rows away from scans.

    Parameters
    ----------
    m
        Scans; their operator must know how to lose rows.
    fraction
        Part of the measured rows (lines, pixels) that is set aside.
    seed
        Which rows.

    Returns
    -------
    rest, weight
        The scans without these rows, and weights of the squared residuals on these rows, broadcastable to ``y``: zero
        on all others, and one where the noise is the same for all.

    Raises
    ------
    ConfigError
        If nothing is set aside that was not zero.
    """
    rest = m.thin(fraction, torch.Generator().manual_seed(seed))
    aside = m.operator.rows - rest.operator.rows
    weight = weights(m)
    weight = aside if weight is None else aside * weight
    if not bool((weight * m.y.abs()).any()):
        raise ConfigError(f"fraction {fraction} of the measured rows sets nothing aside")
    return rest, weight


def _best(score: Callable[[Value], float], grid: Sequence[Value]) -> Value:
    if not grid:
        raise ConfigError("grid must hold at least one value")
    scores = torch.tensor([score(value) for value in grid])
    if not bool(torch.isfinite(scores).any()):
        raise DataError(f"no value of the grid gives finite images: {list(grid)}")
    best = int(scores.nan_to_num(torch.inf, posinf=torch.inf).argmin())
    if isinstance(grid[best], int | float) and len(grid) > 2 and best in (0, len(grid) - 1):
        warnings.warn(f"the best value, {grid[best]}, is at the end of the grid: extend it", stacklevel=3)
    return grid[best]
