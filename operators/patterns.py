r"""Sampling patterns: seeded functions that return the masks of a batch.

A pattern returns float masks of zeros and ones to give to an operator: ``(batch, 1, *spatial)``, with axes of size one
where sampling does not depend on them. There are three families:

- lines are chosen along the last axis, the one of phase encoding: ``(batch, 1, 1, width)`` in 2-D;
- points are chosen in the plane of the last two axes: ``(batch, 1, height, width)`` in 2-D, and ``(batch, 1, 1, height,
  width)`` in 3-D, where these are the two phase encodings and the first axis is read out in full;
- pixels, boxes and blocks are chosen along all axes of the image, in all channels at once or in each by itself.

Every scan of a batch gets a pattern of its own, all randomness comes from the generator passed in, and counts are
exact: ``round(size / acceleration)`` of ``size`` lines or points, calibration included. The exceptions are
`poisson_disc`, `bernoulli_pixels`, boxes, and blocks that do not divide the image, whose counts are near the one asked
for; `acceleration` tells what a mask has.

Random patterns of exact count and given density are a weighted draw without replacement: with weights :math:`w_i` and
exponential variates :math:`e_i`, the entries of smallest :math:`e_i / w_i` (Efraimidis and Spirakis 2006, Inf. Process.
Lett. 97:181).

The table `PATTERNS` names them for configuration and command line. Every function in it is called as
``pattern(batch, shape, acceleration, calibration, generator)``:

=========================== =================================================================
``random-lines``            uniformly random lines, all of the centre
``variable-density-lines``  lines that are denser towards the centre, all of the centre
``equispaced-lines``        evenly spaced lines from a random first one, all of the centre
``partial-fourier``         all lines but those at one end, a random one
``random-points``           uniformly random points, all of the centre block
``variable-density-points`` points that are denser towards the centre, all of the centre block
``gaussian-points``         points with a normal density about the centre, all of the centre block
``poisson-disc``            points that keep a distance which grows with that from the centre
``random-pixels``           uniformly random pixels, all of the centre block
``bernoulli-pixels``        every pixel by itself, with equal probability
``boxes``                   one missing box anywhere
``patch``                   one box anywhere, and nothing outside it
``blocks``                  random blocks of a grid, eight along the shortest side
=========================== =================================================================

The last four know no calibration, which must be 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = [
    "PATTERNS",
    "acceleration",
    "bernoulli_pixels",
    "equispaced_lines",
    "gaussian_points",
    "partial_fourier",
    "poisson_disc",
    "random_blocks",
    "random_boxes",
    "random_lines",
    "random_pixels",
    "random_points",
    "variable_density_lines",
    "variable_density_points",
]

Pattern = Callable[[int, Sequence[int], float, int, torch.Generator], Tensor]


def random_lines(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    partial: float = 1.0,
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
    partial
        Part of the lines among which these are chosen, as in `partial_fourier`. The acceleration stays what it is.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, ..., 1, width)``.

    Raises
    ------
    DataError
        If the calibration lines alone are more than the acceleration allows, or if the part is too small for them or
        for the acceleration.
    """
    return variable_density_lines(batch, shape, acceleration, calibration, generator, power=0, partial=partial)


def variable_density_lines(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    power: float = 3.0,
    partial: float = 1.0,
) -> Tensor:
    r"""Calibration lines in the centre and random lines outside, with a density that falls as a polynomial.

    The density at the distance :math:`r` from the centre, in units of half the width, is :math:`(1 - r)^p` (Lustig
    et al. 2007, Magn. Reson. Med. 58:1182).

    Parameters
    ----------
    batch, shape, acceleration, calibration, generator, partial
        As in `random_lines`.
    power
        The power :math:`p`, 0 (uniform) or more.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, ..., 1, width)``.
    """
    width = shape[-1]
    count = _count((width,), acceleration, calibration)
    weight = _polynomial((width,), power) * _acquired(batch, width, partial, calibration, count, generator)
    lines = _draw(batch, weight, _centre((width,), calibration), count, generator)
    return lines.reshape(batch, *[1] * len(shape), width)


def equispaced_lines(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    partial: float = 1.0,
) -> Tensor:
    """Calibration lines in the centre and evenly spaced lines outside, ``round(width / acceleration)`` in all.

    The spacing counts the lines outside the centre alone, and is wider than the acceleration by as much as calibration
    costs. It varies by one line where it is no whole number. The first line is random.

    Parameters
    ----------
    batch, shape, acceleration, calibration, generator, partial
        As in `random_lines`.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, ..., 1, width)``.
    """
    width = shape[-1]
    count = _count((width,), acceleration, calibration)
    centre = _centre((width,), calibration)
    acquired = _acquired(batch, width, partial, calibration, count, generator)
    lines = centre.repeat(batch, 1)
    if count > calibration:
        # whichever end is not acquired, as many lines are left
        outside = (acquired * (1 - centre)).nonzero()[:, 1].reshape(len(acquired), -1).expand(batch, -1)
        first = torch.rand(batch, 1, generator=generator, dtype=torch.float64)
        steps = (first + torch.arange(count - calibration)) * (outside.shape[1] / (count - calibration))
        lines.scatter_(1, outside.gather(1, steps.long().clamp_max(outside.shape[1] - 1)), 1.0)
    return lines.reshape(batch, *[1] * len(shape), width)


def partial_fourier(
    batch: int,
    shape: Sequence[int],
    partial: float,
    generator: torch.Generator,
    calibration: int = 0,
    axis: int = -1,
    side: Literal["low", "high"] | None = None,
) -> Tensor:
    """All lines but those at one end of k-space, ``round(partial * size)`` of them.

    The product with the mask of another pattern is that pattern in partial Fourier. Its count varies; where it should
    be exact, line patterns have an option ``partial`` of their own. Along the axis of readout this is partial echo.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    partial
        Part of the lines that is acquired, more than half and at most 1; scanners offer 5/8, 6/8 and 7/8.
    generator
        Source of the randomness, on the CPU.
    calibration
        Number of lines in the centre that the part must hold; the centre itself at least.
    axis
        Axis of the image along which lines are counted.
    side
        Which end is not acquired, that of low or of high indices; by default a random one for every scan, so that
        scans together see all of k-space.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, 1, ..., size, ..., 1)``.

    Raises
    ------
    DataError
        If the part does not hold the centre.
    """
    if side not in ("low", "high", None):
        raise DataError(f"side must be 'low', 'high' or None (random), got {side!r}")
    if not -len(shape) <= axis < len(shape):
        raise DataError(f"axis must be one of the {len(shape)} of the image, got {axis}")
    size = shape[axis]
    count = _acquired_count(size, partial, calibration)
    high = torch.randint(2, (batch, 1), generator=generator) == 1 if side is None else torch.tensor(side == "high")
    lines = _all_but_one_end(size, count, high).expand(batch, size)
    return lines.reshape(batch, 1, *[size if other == axis % len(shape) else 1 for other in range(len(shape))])


def random_points(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    axes: int = 2,
) -> Tensor:
    """Uniformly random points, ``round(size / acceleration)`` in every scan.

    Parameters
    ----------
    batch, acceleration, generator
        As in `random_lines`.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    calibration
        Width of the centre block that is always measured.
    axes
        How many of the last axes are sampled; the others are read out in full.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, height, width)``, with an axis of size one for each that is read out in full.
    """
    return variable_density_points(batch, shape, acceleration, calibration, generator, power=0, axes=axes)


def variable_density_points(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    power: float = 3.0,
    axes: int = 2,
) -> Tensor:
    r"""Random points with a density that falls as a polynomial, ``round(size / acceleration)`` in every scan.

    The density is that of `variable_density_lines`; the distance :math:`r` is the root mean square of those along the
    axes, which is one in the corners.

    Parameters
    ----------
    batch, shape, acceleration, calibration, generator, axes
        As in `random_points`.
    power
        The power :math:`p`, 0 (uniform) or more.

    Returns
    -------
    Tensor
        Masks, as those of `random_points`.
    """
    weight = _polynomial(_last(shape, axes), power)
    return _in_plane(_points(batch, weight, acceleration, calibration, generator), shape)


def gaussian_points(
    batch: int,
    shape: Sequence[int],
    acceleration: float,
    calibration: int,
    generator: torch.Generator,
    width: float = 0.35,
    axes: int = 2,
) -> Tensor:
    """Random points with a normal density about the centre, ``round(size / acceleration)`` in every scan.

    Parameters
    ----------
    batch, shape, acceleration, calibration, generator, axes
        As in `random_points`.
    width
        Standard deviation of the density along each axis, in units of half its length.

    Returns
    -------
    Tensor
        Masks, as those of `random_points`.
    """
    if not width > 0:
        raise DataError(f"width must be above 0, got {width}")
    weight = torch.ones((), dtype=torch.float64)
    for size in _last(shape, axes):
        weight = weight[..., None] * torch.exp(-0.5 * (_offsets(size) / (width * size / 2)) ** 2)
    return _in_plane(_points(batch, weight, acceleration, calibration, generator), shape)


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
        Spatial shape of the image, ``(height, width)``, or of a volume whose first axis is read out in full.
    calibration
        Width of the centre block that is always measured.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, height, width)``, with an axis of size one for that which is read out in full.

    Raises
    ------
    DataError
        If the image is neither 2-D nor 3-D, or if no such pattern is found for the acceleration.
    """
    if len(shape) not in (2, 3):
        raise DataError(f"a Poisson disc pattern is for 2-D and 3-D, got the shape {tuple(shape)}")
    plane = _last(shape, 2)
    _count(plane, acceleration, calibration)
    masks = torch.stack([_poisson(plane, acceleration, calibration, generator) for _ in range(batch)])
    return _in_plane(masks, shape)


def random_pixels(
    batch: int,
    shape: Sequence[int],
    keep: float,
    generator: torch.Generator,
    calibration: int = 0,
    channels: int = 1,
) -> Tensor:
    """Uniformly random pixels, ``round(keep * size)`` of them in every scan.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    keep
        Part of the pixels that are measured, above 0 and at most 1; one pixel at least.
    generator
        Source of the randomness, on the CPU.
    calibration
        Width of the centre block that is always measured.
    channels
        Channels that each have a pattern of their own; one pattern for all of them by default.

    Returns
    -------
    Tensor
        Masks, ``(batch, channels, *spatial)``.
    """
    count = _kept(keep, math.prod(shape), "pixels")
    _check_calibration(shape, count, calibration, f"keep {keep}")
    masks = _draw(batch * channels, torch.ones(*shape), _centre(shape, calibration), count, generator)
    return masks.reshape(batch, channels, *shape)


def bernoulli_pixels(
    batch: int, shape: Sequence[int], keep: float, generator: torch.Generator, channels: int = 1
) -> Tensor:
    """Every pixel by itself, measured with probability ``keep``.

    This is the random inpainting of Daras et al. (2023, arXiv:2305.19256), there with one pattern for all channels.
    Counts are binomial; those of `random_pixels` are exact.

    Parameters
    ----------
    batch, shape, generator, channels
        As in `random_pixels`.
    keep
        Probability with which a pixel is measured, above 0 and at most 1.

    Returns
    -------
    Tensor
        Masks, ``(batch, channels, *spatial)``.
    """
    if not 0 < keep <= 1:
        raise DataError(f"keep must be above 0 and at most 1, got {keep}")
    return (torch.rand(batch, channels, *shape, generator=generator) < keep).float()


def random_boxes(
    batch: int, shape: Sequence[int], size: int | Sequence[int], generator: torch.Generator, boxes: int = 1
) -> Tensor:
    """Missing boxes in every scan, each anywhere inside the image with equal probability.

    One minus these masks measures the boxes alone.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    size
        Sides of a box in pixels, ``(*spatial,)``, or one number for all of them.
    generator
        Source of the randomness, on the CPU.
    boxes
        Number of boxes, which may overlap.

    Returns
    -------
    Tensor
        Masks, ``(batch, 1, *spatial)``.
    """
    sides = _sides(size, shape, 0, "size")
    if boxes < 0:
        raise DataError(f"boxes must be 0 or more, got {boxes}")
    mask = torch.ones(batch, *shape)
    for _ in range(boxes):
        missing = torch.ones(batch, *[1] * len(shape))
        for axis, (side, full) in enumerate(zip(sides, shape, strict=True)):
            start = torch.randint(full - side + 1, (batch, 1), generator=generator)
            position = torch.arange(full)
            inside = (position >= start) & (position < start + side)
            missing = missing * inside.reshape(batch, *[full if other == axis else 1 for other in range(len(shape))])
        mask = mask * (1 - missing)
    return mask[:, None]


def random_blocks(
    batch: int,
    shape: Sequence[int],
    keep: float,
    block: int | Sequence[int],
    generator: torch.Generator,
    channels: int = 1,
) -> Tensor:
    """Uniformly random blocks of a grid, ``round(keep * blocks)`` of them in every scan.

    An axis that is no multiple of the side has blocks whose sides differ by one pixel, so that all are of about one
    size and none is larger than asked for.

    Parameters
    ----------
    batch, shape, generator, channels
        As in `random_pixels`.
    keep
        Part of the blocks that are measured, above 0 and at most 1; one block at least.
    block
        Sides of a block in pixels, ``(*spatial,)``, or one number for all of them.

    Returns
    -------
    Tensor
        Masks, ``(batch, channels, *spatial)``.
    """
    grid = [math.ceil(full / side) for side, full in zip(_sides(block, shape, 1, "block"), shape, strict=True)]
    count = _kept(keep, math.prod(grid), "blocks")
    mask = _draw(batch * channels, torch.ones(*grid), torch.zeros(*grid), count, generator)
    for axis, (blocks, full) in enumerate(zip(grid, shape, strict=True), start=1):
        mask = mask.index_select(axis, torch.arange(full) * blocks // full)
    return mask.reshape(batch, channels, *shape)


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


def _partial(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    _count(shape[-1:], acceleration, calibration)
    if acceleration >= 2:
        raise DataError(f"partial Fourier acquires more than half: acceleration must be below 2, got {acceleration}")
    return partial_fourier(batch, shape, 1 / acceleration, generator, calibration)


def _pixels(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    return _points(batch, torch.ones(*shape), acceleration, calibration, generator)


def _bernoulli(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    _check_anywhere(shape, acceleration, calibration)
    return bernoulli_pixels(batch, shape, 1 / acceleration, generator)


def _boxes(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    _check_anywhere(shape, acceleration, calibration)
    sides = _box(shape, 1 - 1 / acceleration)
    if sides == list(shape):
        raise DataError(f"acceleration {acceleration} leaves nothing of {tuple(shape)} pixels outside the box")
    return random_boxes(batch, shape, sides, generator)


def _patch(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    _check_anywhere(shape, acceleration, calibration)
    return 1 - random_boxes(batch, shape, _box(shape, 1 / acceleration), generator)


def _blocks(
    batch: int, shape: Sequence[int], acceleration: float, calibration: int, generator: torch.Generator
) -> Tensor:
    _check_anywhere(shape, acceleration, calibration)
    return random_blocks(batch, shape, 1 / acceleration, math.ceil(min(shape) / 8), generator)


PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        "random-lines": random_lines,
        "variable-density-lines": variable_density_lines,
        "equispaced-lines": equispaced_lines,
        "partial-fourier": _partial,
        "random-points": random_points,
        "variable-density-points": variable_density_points,
        "gaussian-points": gaussian_points,
        "poisson-disc": poisson_disc,
        "random-pixels": _pixels,
        "bernoulli-pixels": _bernoulli,
        "boxes": _boxes,
        "patch": _patch,
        "blocks": _blocks,
    }
)
"""Patterns by name, all called as ``pattern(batch, shape, acceleration, calibration, generator)``."""


def _count(shape: Sequence[int], acceleration: float, calibration: int) -> int:
    """How many samples the acceleration leaves, which must hold the calibration block."""
    size = math.prod(shape)
    if not 1 <= acceleration <= size:
        raise DataError(f"acceleration must be between 1 and the number of samples, {size}, got {acceleration}")
    count = round(size / acceleration)
    _check_calibration(shape, count, calibration, f"acceleration {acceleration}")
    return count


def _kept(keep: float, size: int, what: str) -> int:
    """How many of ``size`` are kept, which must be one at least."""
    if not 0 < keep <= 1 or round(keep * size) == 0:
        raise DataError(f"keep must be at most 1 and leave one of {size} {what} at least, got {keep}")
    return round(keep * size)


def _check_calibration(shape: Sequence[int], count: int, calibration: int, because: str) -> None:
    if not 0 <= calibration <= min(shape) or calibration ** len(shape) > count * (calibration > 0):
        raise DataError(
            f"{because} leaves {count} of {math.prod(shape)} samples, which cannot hold a calibration of "
            f"{' x '.join([str(calibration)] * len(shape))}"
        )


def _check_anywhere(shape: Sequence[int], acceleration: float, calibration: int) -> None:
    if calibration:
        raise DataError(f"this pattern may lose any pixel: calibration must be 0, got {calibration}")
    _count(shape, acceleration, 0)


def _sides(size: int | Sequence[int], shape: Sequence[int], least: int, name: str) -> list[int]:
    sides = [size] * len(shape) if isinstance(size, int) else list(size)
    if len(sides) != len(shape) or any(not least <= side <= full for side, full in zip(sides, shape, strict=True)):
        raise DataError(f"{name} must be sides from {least} to those of an image of shape {tuple(shape)}, got {size}")
    return sides


def _box(shape: Sequence[int], part: float) -> list[int]:
    """Sides of a box that covers about this part of the image, one pixel at least unless it is none."""
    sides = [part ** (1 / len(shape)) * full for full in shape]
    return [max(round(side), part > 0) for side in sides]


def _last(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    if axes < 1:
        raise DataError(f"axes must be 1 or more, got {axes}")
    return tuple(shape[-axes:])


def _in_plane(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Add an axis of size one for each that is read out in full."""
    return mask.reshape(len(mask), *[1] * (len(shape) + 2 - mask.ndim), *mask.shape[1:])


def _offsets(size: int) -> Tensor:
    """Distance from the centre, with sign: ``(size,)``."""
    return torch.arange(size, dtype=torch.float64) - size // 2


def _centre(shape: Sequence[int], width: int) -> Tensor:
    """Ones in the centre block."""
    region = torch.zeros(*shape)
    region[tuple(slice(size // 2 - width // 2, size // 2 - width // 2 + width) for size in shape)] = 1
    return region


def _polynomial(shape: Sequence[int], power: float) -> Tensor:
    """Weights that fall from one in the centre to nearly zero in the corners, as a power of the distance."""
    if not 0 <= power < math.inf:
        raise DataError(f"power must be 0 or more, got {power}")
    square = torch.zeros((), dtype=torch.float64)
    for size in shape:  # below one at the edge, so that every point can be drawn
        square = square[..., None] + (_offsets(size) / (size // 2 + 1)) ** 2
    weight: Tensor = (1 - (square / len(shape)).sqrt()) ** power
    return weight


def _acquired(
    batch: int, size: int, partial: float, calibration: int, count: int, generator: torch.Generator
) -> Tensor:
    """Lines of partial Fourier, which must be ``count`` at least: ``(batch, size)``, or ``(1, size)`` for all lines."""
    acquired = _acquired_count(size, partial, calibration)
    if count > acquired:
        raise DataError(f"partial {partial} acquires {acquired} of {size} lines, the acceleration asks for {count}")
    if acquired == size:
        return torch.ones(1, size)
    return _all_but_one_end(size, acquired, torch.randint(2, (batch, 1), generator=generator) == 1)


def _acquired_count(size: int, partial: float, calibration: int) -> int:
    """How many lines partial Fourier acquires, which must hold the centre whichever end they lack."""
    if not 0.5 < partial <= 1:
        raise DataError(f"partial must be above 1/2 and at most 1, got {partial}")
    if not 0 <= calibration <= size:
        raise DataError(f"calibration must be between 0 and {size} lines, got {calibration}")
    count = round(partial * size)
    start = size // 2 - calibration // 2
    if count < max(start + max(calibration, 1), size - start):
        raise DataError(
            f"partial {partial} acquires {count} of {size} lines, which cannot hold a calibration of {calibration}"
        )
    return count


def _all_but_one_end(size: int, count: int, high: Tensor) -> Tensor:
    """Ones for the first ``count`` of ``size`` lines where ``high`` is true, and else for the last ones."""
    position = torch.arange(size)
    return torch.where(high, position < count, position >= size - count).float()


def _draw(batch: int, weight: Tensor, always: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` entries without replacement, those of ``always`` first: ``(batch, *always.shape)``.

    Weights are ``always.shape``, or that for every scan; entries of weight zero are drawn after all others.
    """
    weight = weight.to(torch.float64).reshape(-1, always.numel())
    uniform = torch.rand(batch, always.numel(), generator=generator, dtype=torch.float64)
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
