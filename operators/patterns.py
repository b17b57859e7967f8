r"""Sampling patterns: seeded functions that return the masks of a batch.

A pattern returns float masks of zeros and ones to give to an operator: ``(batch, 1, *spatial)``, with axes of size one
where sampling does not depend on them. Lines run along the last axis (phase encoding), so that line patterns are
``(batch, 1, 1, width)`` in 2-D. Every scan of a batch gets a pattern of its own, all randomness comes from the
generator passed in, and counts are exact: ``round(size / acceleration)`` of ``size`` lines or points, calibration
included. The exceptions are `poisson_disc` and boxes, whose counts are near the one asked for; `acceleration` tells
what a mask has.

Random patterns of exact count and given density are a weighted draw without replacement: with weights :math:`w_i` and
exponential variates :math:`e_i`, the entries of smallest :math:`e_i / w_i` (Efraimidis and Spirakis 2006, Inf. Process.
Lett. 97:181).

The table `PATTERNS` names them for configuration and command line. Every function in it is called as
``pattern(batch, shape, acceleration, calibration, generator)``:

========================== ==================================================================
``random-lines``           uniformly random lines, all of the centre
``variable-density-lines`` lines that are denser towards the centre, all of the centre
``equispaced-lines``       evenly spaced lines from a random first one, all of the centre
``random-pixels``          uniformly random points or pixels, all of the centre block
``gaussian-points``        points with a normal density about the centre, all of the centre block
``poisson-disc``           points that keep a distance which grows with that from the centre
``boxes``                  one missing box anywhere; it knows no calibration, which must be 0
========================== ==================================================================
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = [
    "PATTERNS",
    "acceleration",
    "equispaced_lines",
    "gaussian_points",
    "poisson_disc",
    "random_boxes",
    "random_lines",
    "random_pixels",
    "variable_density_lines",
]

Pattern = Callable[[int, Sequence[int], float, int, torch.Generator], Tensor]


def random_lines(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    """Calibration lines in the centre and uniformly random lines outside, ``round(width / acceleration)`` in all.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(*spatial,)``; lines are chosen along its last axis.
    acceleration
        All lines divided by measured lines.
    calibration
        Number of lines in the centre that are always measured.
    generator
        Source of the randomness, on the CPU.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, ..., 1, width)``.

    Raises
    ------
    DataError
        If the calibration lines alone are more than the acceleration allows.
    """
    return variable_density_lines(batch, shape, acceleration, calibration, generator, power=0)


def variable_density_lines(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    power: float = 3.0,
) -> Tensor:
    r"""Calibration lines in the centre and random lines outside, with a density that falls as a polynomial.

    The density at the distance :math:`r` from the centre, in units of half the width, is :math:`(1 - r)^p` (Lustig
    et al. 2007, Magn. Reson. Med. 58:1182).

    Parameters
    ----------
    batch, shape, acceleration, calibration, generator
        As in `random_lines`.
    power
        The power :math:`p`, 0 (uniform) or more.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, ..., 1, width)``.
    """
    if not 0 <= power < math.inf:
        raise DataError(f"power must be 0 or more, got {power}")
    width = shape[-1]
    count = _count(shape[-1:], acceleration, calibration)
    distance = _offsets(width).abs() / (width // 2 + 1)  # below one at the edge, so that every line can be drawn
    lines = _draw(batch, (1 - distance) ** power, _centre((width,), calibration), count, generator)
    return lines.reshape(batch, *[1] * len(shape), width)


def equispaced_lines(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    """Calibration lines in the centre and evenly spaced lines outside, ``round(width / acceleration)`` in all.

    The spacing counts the lines outside the centre alone, and is wider than the acceleration by as much as calibration
    costs. It varies by one line where it is no whole number. The first line is random.

    Parameters
    ----------
    batch, shape, acceleration, calibration, generator
        As in `random_lines`.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, ..., 1, width)``.
    """
    width = shape[-1]
    count = _count(shape[-1:], acceleration, calibration) - calibration
    lines = _centre((width,), calibration).repeat(batch, 1)
    outside = (lines[0] == 0).nonzero()[:, 0]
    if count:
        first = torch.rand(batch, 1, generator=generator, dtype=torch.float64)
        steps = (first + torch.arange(count)) * (len(outside) / count)
        lines.scatter_(1, outside[steps.long().clamp_max(len(outside) - 1)], 1.0)
    return lines.reshape(batch, *[1] * len(shape), width)


def random_pixels(
    batch: int, shape: Sequence[int], keep: float, generator: torch.Generator, calibration: int = 0
) -> Tensor:
    """Uniformly random pixels, ``round(keep * size)`` of them in every scan.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    keep
        Part of the pixels that are measured, above 0 and at most 1.
    generator
        Source of the randomness, on the CPU.
    calibration
        Width of the centre block that is always measured.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, *spatial)``.
    """
    if not 0 < keep <= 1:
        raise DataError(f"keep must be above 0 and at most 1, got {keep}")
    return _points(batch, torch.ones(*shape), 1 / keep, calibration, generator)


def gaussian_points(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    width: float = 0.35,
) -> Tensor:
    """Random points with a normal density about the centre, ``round(size / acceleration)`` in every scan.

    Parameters
    ----------
    batch, shape, acceleration, generator
        As in `random_lines`; every spatial axis is sampled.
    calibration
        Width of the centre block that is always measured.
    width
        Standard deviation of the density along each axis, in units of half its length.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, *spatial)``.
    """
    if not width > 0:
        raise DataError(f"width must be above 0, got {width}")
    axes = [torch.exp(-0.5 * (_offsets(size) / (width * size / 2)) ** 2) for size in shape]
    weight = torch.ones((), dtype=torch.float64)
    for axis in axes:
        weight = weight[..., None] * axis
    return _points(batch, weight, acceleration, calibration, generator)


def poisson_disc(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    """Points that keep a distance from each other which grows towards the edge (`sigpy.mri.poisson`).

    Corners are not sampled, and the acceleration is met to within a tenth of it.

    Parameters
    ----------
    batch, acceleration, generator
        As in `random_lines`; the acceleration must be above 1.
    shape
        Spatial shape of the image, ``(height, width)``.
    calibration
        Width of the centre block that is always measured.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, height, width)``.

    Raises
    ------
    DataError
        If the image is not 2-D, or if no such pattern is found for the acceleration.
    """
    if len(shape) != 2:
        raise DataError(f"a Poisson disc pattern is 2-D, got the shape {tuple(shape)}")
    _count(shape, acceleration, calibration)
    return torch.stack([_poisson(shape, acceleration, calibration, generator) for _ in range(batch)])


def random_boxes(batch: int, shape: Sequence[int], size: int | Sequence[int], generator: torch.Generator) -> Tensor:
    """One missing box in every scan, anywhere inside the image with equal probability.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    size
        Sides of the box in pixels, ``(*spatial,)``, or one number for all of them.
    generator
        Source of the randomness, on the CPU.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, *spatial)``.
    """
    sides = [size] * len(shape) if isinstance(size, int) else list(size)
    if len(sides) != len(shape) or any(not 0 <= side <= full for side, full in zip(sides, shape, strict=True)):
        raise DataError(f"size must be sides of a box inside an image of shape {tuple(shape)}, got {size}")
    missing = torch.ones(batch, *[1] * len(shape))
    for axis, (side, full) in enumerate(zip(sides, shape, strict=True)):
        start = torch.randint(full - side + 1, (batch, 1), generator=generator)
        position = torch.arange(full)
        inside = (position >= start) & (position < start + side)
        missing = missing * inside.reshape(batch, *[full if other == axis else 1 for other in range(len(shape))])
    return (1 - missing)[:, None]


def acceleration(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """By how much fewer samples a mask takes than there are: all divided by measured, for every scan.

    Parameters
    ----------
    mask
        Ones (measured) and zeros, ``(batch, channel, *spatial)``; an axis of size one is sampled in full.
    shape
        Spatial shape of the image, ``(*spatial,)``.

    Returns
    -------
    Tensor
        Accelerations, ``(batch,)``, float64; infinite where nothing is measured.
    """
    axes = mask.shape[2:]
    if len(axes) != len(shape) or any(got not in (1, want) for got, want in zip(axes, shape, strict=True)):
        want = ", ".join(f"{size} or 1" for size in shape)
        raise DataError(f"mask must be (batch, channel, {want}), got {tuple(mask.shape)}")
    return 1 / mask.to(torch.float64).flatten(1).mean(1)


def _pixels(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    return _points(batch, torch.ones(*shape), acceleration, calibration, generator)


def _boxes(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    if calibration:
        raise DataError(f"a missing box may lie anywhere: calibration must be 0, got {calibration}")
    _count(shape, acceleration, 0)
    part = (1 - 1 / acceleration) ** (1 / len(shape))
    return random_boxes(batch, shape, [round(part * full) for full in shape], generator)


PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        "random-lines": random_lines,
        "variable-density-lines": variable_density_lines,
        "equispaced-lines": equispaced_lines,
        "random-pixels": _pixels,
        "gaussian-points": gaussian_points,
        "poisson-disc": poisson_disc,
        "boxes": _boxes,
    }
)
"""Patterns by name, all called as ``pattern(batch, shape, acceleration, calibration, generator)``."""


def _count(shape: Sequence[int], acceleration: float, calibration: int) -> int:
    """How many samples the acceleration leaves, which must hold the calibration block."""
    size = math.prod(shape)
    if not 1 <= acceleration <= size:
        raise DataError(f"acceleration must be between 1 and the number of samples, {size}, got {acceleration}")
    count = round(size / acceleration)
    if not 0 <= calibration <= min(shape) or calibration ** len(shape) > count * (calibration > 0):
        raise DataError(
            f"acceleration {acceleration} leaves {count} of {size} samples, which cannot hold a calibration of "
            f"{' x '.join([str(calibration)] * len(shape))}"
        )
    return count


def _offsets(size: int) -> Tensor:
    """Distance from the centre, with sign: ``(size,)``."""
    return torch.arange(size, dtype=torch.float64) - size // 2


def _centre(shape: Sequence[int], width: int) -> Tensor:
    """Ones in the centre block."""
    region = torch.zeros(*shape)
    region[tuple(slice(size // 2 - width // 2, size // 2 - width // 2 + width) for size in shape)] = 1
    return region


def _draw(batch: int, weight: Tensor, always: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` entries without replacement by weight, those of ``always`` first: ``(batch, *weight.shape)``."""
    weight = weight.to(torch.float64).flatten()
    uniform = torch.rand(batch, len(weight), generator=generator, dtype=torch.float64)
    # in logarithms, so that weights of a far tail neither underflow nor tie
    key = (-uniform.log()).log() - weight.log()
    key[:, always.flatten() == 1] = -math.inf
    chosen = key.argsort(1)[:, :count]
    return torch.zeros(key.shape).scatter_(1, chosen, 1.0).reshape(batch, *always.shape)


def _points(batch: int, weight: Tensor, acceleration: float, calibration: int, generator: torch.Generator) -> Tensor:
    count = _count(weight.shape, acceleration, calibration)
    return _draw(batch, weight, _centre(weight.shape, calibration), count, generator)[:, None]


def _poisson(shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator) -> Tensor:
    """One Poisson disc pattern, ``(1, height, width)``."""
    from sigpy.mri import poisson  # compiles, which is slow

    for _ in range(10):  # a small grid may have no such pattern for one seed and have it for the next
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        try:
            mask = poisson(shape, acceleration, calib=(calibration, calibration), seed=seed, tol=0.1 * acceleration)
        except ValueError:
            continue
        return torch.maximum(torch.from_numpy(mask.real).float(), _centre(shape, calibration))[None]
    wanted = f"acceleration {acceleration} and calibration {calibration}"
    raise DataError(f"no Poisson disc pattern of {wanted} on {tuple(shape)} samples")
