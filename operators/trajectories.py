r"""Trajectories: seeded functions that return where k-space is sampled, off the grid.

A trajectory is a tensor ``(batch, readouts * samples, ndim)`` in radians per pixel: column :math:`a` belongs to the
image's spatial axis :math:`a`, values lie in :math:`[-\pi, \pi]`, and zero is the centre of k-space. The ``samples``
of one readout stand one after the other. The last axis is x and the one before it y: the angle :math:`\theta` of a
readout in the plane points to :math:`(k_y, k_x) = (\sin \theta, \cos \theta)`.

Every scan of a batch gets a trajectory of its own, by a random rotation or a random start, and all randomness comes
from the generator passed in. Shapes are computed in double precision and returned in single. Limits of gradients and
delays are not part of it; `ambient_sci.operators.units` brings measured trajectories into these units.

**How much is enough.** For an image of :math:`N` pixels along each axis, neighbouring samples must be :math:`2\pi/N`
apart or less. Along a spoke through all of k-space that takes :math:`N` samples. Across spokes it is their ends that
are far apart, :math:`\pi \cdot \pi / M` for :math:`M` spokes, so that :math:`M = \pi N / 2` spokes are full sampling,
and :math:`\pi N^2 / 2` in 3-D, where each of the :math:`2 M` ends has an equal part of the sphere :math:`4 \pi^3`
(`nyquist_spokes`; Bernstein, King and Zhou 2004, Handbook of MRI Pulse Sequences, section 17.6). A Cartesian scan has
:math:`N` readouts and :math:`N^2` in 3-D. Acceleration is in the literature of radial scans either of
``nyquist_spokes(shape) / readouts`` or of Cartesian readouts divided by readouts, `acceleration`, which is smaller by
:math:`\pi / 2`.

The table `TRAJECTORIES` names them for configuration and command line. Every function in it is called as
``trajectory(batch, shape, readouts, samples, generator)``:

=========================== ===== =====================================================================
``radial``                  2-D   full spokes at even angles
``golden-angle``            2-D   full spokes, each turned by the golden angle from the one before
``spiral``                  2-D   Archimedean spirals, interleaved, at the Nyquist distance
``variable-density-spiral`` 2-D   as many turns, twice as far apart at the edge and dense in the centre
``rosette``                 2-D   petals through the centre
``epi``                     2-D   evenly spaced Cartesian lines to and fro
``kooshball``               3-D   full spokes in directions of the golden means
``stack-of-stars``          3-D   ``radial`` for each Cartesian partition along the first axis
``stack-of-spirals``        3-D   ``spiral`` for each Cartesian partition along the first axis
=========================== ===== =====================================================================
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.mask import as_mask
from ambient_sci.operators.patterns import equispaced_lines

__all__ = [
    "TRAJECTORIES",
    "acceleration",
    "cartesian",
    "epi",
    "golden_angle",
    "kooshball",
    "nyquist_spokes",
    "radial",
    "ramp",
    "rosette",
    "spiral",
    "stack",
    "stack_of_spirals",
    "stack_of_stars",
]

Trajectory = Callable[[int, Sequence[int], int, int, torch.Generator], Tensor]


def radial(batch: int, shape: Sequence[int], readouts: int, samples: int, generator: torch.Generator) -> Tensor:
    r"""Full spokes at even angles, :math:`\pi / M` apart, from a random first one.

    Parameters
    ----------
    batch
        Number of scans.
    shape
        Spatial shape of the image, ``(height, width)``.
    readouts
        Number of spokes :math:`M` in every scan.
    samples
        Samples :math:`S` along a spoke, at :math:`k = 2 \pi (j - \lfloor S/2 \rfloor) / S`, so that each passes
        through the centre; as many as pixels, or more.
    generator
        Source of the randomness, on the CPU.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, readouts * samples, 2)``.
    """
    _check(shape, 2, readouts, samples)
    angles = _angles(batch, readouts, math.pi / readouts, generator)
    return _spokes(_directions(angles), samples)


def golden_angle(
    batch: int,
    shape: Sequence[int],
    readouts: int,
    samples: int,
    generator: torch.Generator,
    tiny: int = 1,
    continuing: bool = False,
) -> Tensor:
    r"""Full spokes, each turned by a golden angle from the one before, from a random first one.

    The angle is :math:`\pi / (\tau + n - 1)` with :math:`\tau = (1 + \sqrt 5) / 2`: for :math:`n = 1` the golden angle
    of 111.25 degrees (Winkelmann et al. 2007, IEEE Trans. Med. Imaging 26:68), for more the tiny golden angles of
    68.75, 49.75, 38.98, ... degrees, which change the gradient less (Wundrak et al. 2015, IEEE Trans. Med. Imaging
    34:1262). Any number of spokes that follow each other is spread about evenly, with a tiny angle once they go round.

    Parameters
    ----------
    batch, shape, readouts, samples, generator
        As in `radial`.
    tiny
        Which golden angle, :math:`n`.
    continuing
        Scans are the frames of one series: each goes on from the angle at which the one before it ended, and only the
        first angle of all is random.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, readouts * samples, 2)``.
    """
    _check(shape, 2, readouts, samples)
    if tiny < 1:
        raise DataError(f"tiny must be 1 (the golden angle) or more, got {tiny}")
    increment = math.pi / ((1 + math.sqrt(5)) / 2 + tiny - 1)
    return _spokes(_directions(_angles(batch, readouts, increment, generator, continuing)), samples)


def kooshball(
    batch: int,
    shape: Sequence[int],
    readouts: int,
    samples: int,
    generator: torch.Generator,
    continuing: bool = False,
) -> Tensor:
    r"""Full spokes of a ball, in directions of the golden means.

    Spoke :math:`n` has the polar coordinate :math:`\cos \beta = \{u + n \phi_1\}` and the azimuth
    :math:`2 \pi \{v + n \phi_2\}`, where :math:`\{\,\}` is the fractional part, :math:`\phi_2 = 0.6823` the real root
    of :math:`\phi^3 + \phi = 1` and :math:`\phi_1 = \phi_2^2 = 0.4656` (Chan et al. 2009, Magn. Reson. Med. 61:354).
    Any number of spokes that follow each other is spread about evenly. The start :math:`(u, v)` is random.

    Parameters
    ----------
    batch, readouts, samples, generator, continuing
        As in `golden_angle`.
    shape
        Spatial shape of the image, ``(depth, height, width)``.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, readouts * samples, 3)``.
    """
    _check(shape, 3, readouts, samples)
    second = _golden_mean()
    number = _numbers(batch, readouts, continuing)
    start = torch.rand(1 if continuing else batch, 2, 1, generator=generator, dtype=torch.float64)
    polar = (start[:, 0] + number * second**2) % 1
    azimuth = 2 * math.pi * (start[:, 1] + number * second)
    in_plane = _directions(azimuth) * (1 - polar**2).sqrt()[..., None]
    return _spokes(torch.cat([polar[..., None], in_plane], -1), samples)


def spiral(
    batch: int,
    shape: Sequence[int],
    readouts: int,
    samples: int,
    generator: torch.Generator,
    acceleration: float = 1.0,
    density: float = 1.0,
) -> Tensor:
    r"""Interleaved spirals from the centre outwards, from a random first angle.

    .. math:: k(\tau) = \pi \tau^\alpha e^{2 \pi i n \tau}, \qquad n = [1 - (1 - 2 M R / N)^{1/\alpha}]^{-1}

    with :math:`M` interleaves at even angles and :math:`N` the longer side of the image, so that neighbouring turns are
    :math:`R` times the Nyquist distance apart at the edge, and closer towards the centre for :math:`\alpha > 1` (Kim
    et al. 2003, Magn. Reson. Med. 50:214). With :math:`\tau = t^{1/(\alpha + 1)}` for even times :math:`t` the speed
    is constant but for the first turn; of :math:`\pi N^2 / (4 M R)` samples, those of an Archimedean spiral
    (:math:`\alpha = 1`) are the Nyquist distance apart along the curve, too.

    Parameters
    ----------
    batch, shape, generator
        As in `radial`.
    readouts
        Number of interleaves :math:`M`.
    samples
        Samples along an interleaf, from the centre to the edge.
    acceleration
        How much farther apart than Nyquist's distance turns are at the edge, :math:`R`.
    density
        The power :math:`\alpha`: 1 for Archimedean spirals, above 1 for a centre that is sampled more densely.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, readouts * samples, 2)``.

    Raises
    ------
    DataError
        If the interleaves, so far apart, have less than one turn.
    """
    _check(shape, 2, readouts, samples)
    if not 0 < acceleration < math.inf:
        raise DataError(f"acceleration must be above 0, got {acceleration}")
    if not 1 <= density < math.inf:
        raise DataError(f"density must be 1 (Archimedean) or more, got {density}")
    step = 2 * readouts * acceleration / max(shape)  # from turn to turn, as part of the radius
    if step > 1:
        raise DataError(
            f"{readouts} readouts at acceleration {acceleration} are no spirals for {max(shape)} pixels: their product "
            f"must be {max(shape) / 2:g} at most"
        )
    turns = 1 / (1 - (1 - step) ** (1 / density))
    time = torch.linspace(0, 1, samples, dtype=torch.float64) ** (1 / (density + 1))
    angles = _angles(batch, readouts, 2 * math.pi / readouts, generator)
    curve = _directions(angles[..., None] + 2 * math.pi * turns * time) * (math.pi * time**density)[:, None]
    return curve.reshape(batch, -1, 2).float()


def rosette(
    batch: int,
    shape: Sequence[int],
    readouts: int,
    samples: int,
    generator: torch.Generator,
    petals: int = 5,
) -> Tensor:
    r"""Petals that leave the centre and come back to it, at even angles, from a random first one.

    .. math:: k(t) = \pi \sin(\omega_1 t) \, e^{i \omega_2 t}, \qquad \omega_1 = \pi p, \quad
        \omega_2 = \omega_1 - 2 \pi, \quad 0 \le t < 1

    with :math:`p` petals in a readout, which turn once around the centre (Noll 1997, IEEE Trans. Med. Imaging 16:372).
    Readouts are turned by a part of the angle between petals.

    Parameters
    ----------
    batch, shape, generator
        As in `radial`.
    readouts
        Number of readouts, each of ``petals`` petals.
    samples
        Samples along a readout, at even times, from the centre.
    petals
        Petals :math:`p` of one readout.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, readouts * samples, 2)``.
    """
    _check(shape, 2, readouts, samples)
    if petals < 1:
        raise DataError(f"petals must be 1 or more, got {petals}")
    time = torch.arange(samples, dtype=torch.float64) / samples
    angles = _angles(batch, readouts, 2 * math.pi / (readouts * petals), generator)
    curve = _directions(angles[..., None] + math.pi * (petals - 2) * time)
    return (curve * (math.pi * torch.sin(math.pi * petals * time))[:, None]).reshape(batch, -1, 2).float()


def epi(batch: int, shape: Sequence[int], readouts: int, samples: int, generator: torch.Generator) -> Tensor:
    """Evenly spaced Cartesian lines, every second one backwards, from a random first one.

    Parameters
    ----------
    batch, shape, generator
        As in `radial`.
    readouts
        Number of lines, at most the height of the image; spaced as those of
        `ambient_sci.operators.patterns.equispaced_lines`.
    samples
        Samples along a line, as along a spoke of `radial`.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, readouts * samples, 2)``.
    """
    _check(shape, 2, readouts, samples)
    height = shape[0]
    if readouts > height:
        raise DataError(f"readouts must be at most the {height} lines of the image, got {readouts}")
    lines = cartesian(equispaced_lines(batch, (height,), height / readouts, 0, generator), (height,)).double()
    along = _readout(samples).expand(batch, readouts, samples).clone()
    along[:, 1::2] = along[:, 1::2].flip(-1)
    return torch.stack([lines.expand_as(along), along], -1).reshape(batch, -1, 2).float()


def cartesian(mask: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Give the points that a Cartesian mask samples, at :math:`2 \pi (j - \lfloor N/2 \rfloor) / N` along each axis.

    There an image has the values that `ambient_sci.operators.Fourier` measures with the mask. Axes on which the mask
    does not depend are those of readout, and their samples stand one after the other.

    Parameters
    ----------
    mask
        Ones (measured) and zeros, ``(batch, 1, *spatial)``, as many ones in every scan; an axis of size one is sampled
        in full.
    shape
        Spatial shape of the image, ``(*spatial,)``.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, n, ndim)``.

    Raises
    ------
    DataError
        If the mask does not fit the image, or if scans have different numbers of samples.
    """
    axes = mask.shape[2:]
    fits = mask.ndim > 1 and mask.shape[1] == 1 and len(axes) == len(shape)
    if not fits or any(got not in (1, want) for got, want in zip(axes, shape, strict=True)):
        want = ", ".join(f"{size} or 1" for size in shape)
        raise DataError(f"mask must be (batch, 1, {want}), got {tuple(mask.shape)}")
    full = as_mask(mask)[:, 0].expand(-1, *shape)
    counts = full.flatten(1).sum(1)
    if bool((counts != counts[0]).any()):
        few, many = int(counts.min()), int(counts.max())
        raise DataError(f"scans must have as many samples each to be one trajectory, got {few} to {many}")
    order = sorted(range(len(shape)), key=lambda axis: axes[axis] == 1)  # stable: readout last
    index = full.permute(0, *[1 + axis for axis in order]).nonzero()[:, 1:]
    points = torch.empty(index.shape, dtype=torch.float64)
    for column, axis in zip(index.unbind(1), order, strict=True):
        points[:, axis] = _readout(shape[axis])[column]
    return points.reshape(len(mask), -1, len(shape)).float()


def stack(plane: Tensor, partitions: int) -> Tensor:
    r"""One trajectory in the plane for each of the Cartesian partitions along a further, first axis.

    Parameters
    ----------
    plane
        Points in radians per pixel, ``(batch, n, ndim)``.
    partitions
        Number of partitions :math:`P`, the size of the first axis; at :math:`2 \pi (j - \lfloor P/2 \rfloor) / P`.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, partitions * n, 1 + ndim)``, partition after partition.
    """
    if partitions < 1:
        raise DataError(f"partitions must be 1 or more, got {partitions}")
    batch, n, ndim = plane.shape
    first = _readout(partitions).to(plane)[:, None, None].expand(batch, partitions, n, 1)
    points = torch.cat([first, plane[:, None].expand(batch, partitions, n, ndim)], -1)
    return points.reshape(batch, -1, 1 + ndim)


def stack_of_stars(
    batch: int, shape: Sequence[int], readouts: int, samples: int, generator: torch.Generator, golden: bool = False
) -> Tensor:
    """Spokes in the plane of the last two axes, the same ones in every Cartesian partition.

    Parameters
    ----------
    batch, samples, generator
        As in `radial`.
    shape
        Spatial shape of the image, ``(partitions, height, width)``.
    readouts
        Number of spokes in every partition.
    golden
        Turn them by the golden angle, as in `golden_angle`, rather than evenly.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, partitions * readouts * samples, 3)``.
    """
    _check(shape, 3, readouts, samples)
    plane = (golden_angle if golden else radial)(batch, shape[1:], readouts, samples, generator)
    return stack(plane, shape[0])


def stack_of_spirals(
    batch: int,
    shape: Sequence[int],
    readouts: int,
    samples: int,
    generator: torch.Generator,
    acceleration: float = 1.0,
    density: float = 1.0,
) -> Tensor:
    """Spirals in the plane of the last two axes, the same ones in every Cartesian partition.

    Parameters
    ----------
    batch, samples, generator, acceleration, density
        As in `spiral`.
    shape
        Spatial shape of the image, ``(partitions, height, width)``.
    readouts
        Number of interleaves in every partition.

    Returns
    -------
    Tensor
        Points in radians per pixel, ``(batch, partitions * readouts * samples, 3)``.
    """
    _check(shape, 3, readouts, samples)
    return stack(spiral(batch, shape[1:], readouts, samples, generator, acceleration, density), shape[0])


def ramp(batch: int, shape: Sequence[int], readouts: int, samples: int) -> Tensor:
    r"""Weigh samples of evenly turned spokes by the density of k-space that they have, in samples of the grid.

    This is the trapezoidal rule along each spoke, with weights :math:`\propto |k|` in 2-D and :math:`\propto |k|^2` in
    3-D. In 2-D the centre has :math:`\Delta / 6` for the distance :math:`\Delta` of samples, which is what Euler and
    Maclaurin's formula gives for the kink of :math:`|k|` there; with zero the image would lose its slowest variations.
    On a grid, weights would all be one; `ambient_sci.operators.density` finds them for any trajectory.

    Parameters
    ----------
    batch
        Number of scans, whose weights are the same.
    shape
        Spatial shape of the image, for `radial` and `golden_angle` 2-D, for `kooshball` 3-D.
    readouts, samples
        Number of spokes, and of samples along each.

    Returns
    -------
    Tensor
        Weights, ``(batch, readouts * samples)``; their roots are those of `ambient_sci.operators.Nufft`.
    """
    if len(shape) not in (2, 3):
        raise DataError(f"spokes are 2-D or 3-D, got the shape {tuple(shape)}")
    _check(shape, len(shape), readouts, samples)
    radius, step = _readout(samples).abs(), 2 * math.pi / samples
    density = math.pi * radius.clamp_min(step / 6) if len(shape) == 2 else 2 * math.pi * radius**2
    weights = density * step / readouts * (math.prod(shape) / (2 * math.pi) ** len(shape))
    return weights.repeat(batch, readouts).float()


def nyquist_spokes(shape: Sequence[int]) -> int:
    r"""How many full spokes sample an image in full: :math:`\pi N / 2` in 2-D, :math:`\pi N^2 / 2` in 3-D, rounded up.

    Parameters
    ----------
    shape
        Spatial shape of the image; :math:`N` is its longest side.

    Returns
    -------
    int
        Number of spokes for `radial` and `golden_angle`, or `kooshball`.
    """
    if len(shape) not in (2, 3):
        raise DataError(f"spokes are 2-D or 3-D, got the shape {tuple(shape)}")
    return math.ceil(math.pi / 2 * math.pow(max(shape), len(shape) - 1))


def acceleration(points: Tensor, shape: Sequence[int], samples: int | None = None) -> float:
    """By how much less a trajectory takes than a full Cartesian scan: in time, or in samples.

    A scan takes as long as it has readouts, and a Cartesian one has as many as there are pixels in all axes but one;
    samples that are closer along a readout cost nothing. What is full sampling for spokes, `nyquist_spokes`, is more
    readouts than that.

    Parameters
    ----------
    points
        A trajectory, ``(batch, n, ndim)``.
    shape
        Spatial shape of the image, ``(*spatial,)``.
    samples
        Samples of one readout: Cartesian readouts along the longest axis divided by readouts. By default, pixels
        divided by samples.

    Returns
    -------
    float
        The acceleration, the same for every scan; below one for a scan that takes more.
    """
    if points.ndim != 3 or points.shape[2] != len(shape) or not points.shape[1]:
        raise DataError(f"points must be (batch, n, {len(shape)}), got {tuple(points.shape)}")
    if samples is None:
        return math.prod(shape) / points.shape[1]
    if samples < 1 or points.shape[1] % samples:
        raise DataError(f"samples must divide the {points.shape[1]} of the trajectory, got {samples}")
    return math.prod(shape) / max(shape) / (points.shape[1] // samples)


def _variable_density(
    batch: int, shape: Sequence[int], readouts: int, samples: int, generator: torch.Generator
) -> Tensor:
    return spiral(batch, shape, readouts, samples, generator, acceleration=2, density=2)


TRAJECTORIES: Mapping[str, Trajectory] = MappingProxyType(
    {
        "radial": radial,
        "golden-angle": golden_angle,
        "spiral": spiral,
        "variable-density-spiral": _variable_density,
        "rosette": rosette,
        "epi": epi,
        "kooshball": kooshball,
        "stack-of-stars": stack_of_stars,
        "stack-of-spirals": stack_of_spirals,
    }
)
"""Trajectories by name, all called as ``trajectory(batch, shape, readouts, samples, generator)``."""


def _check(shape: Sequence[int], ndim: int, readouts: int, samples: int) -> None:
    if len(shape) != ndim or any(size < 1 for size in shape):
        raise DataError(f"the trajectory is for {ndim}-D images, got the shape {tuple(shape)}")
    if readouts < 1:
        raise DataError(f"readouts must be 1 or more, got {readouts}")
    if samples < 2:
        raise DataError(f"samples must be 2 or more along a readout, got {samples}")


def _readout(samples: int) -> Tensor:
    """Place samples along a line through the centre, in radians per pixel: ``(samples,)``, float64."""
    return 2 * math.pi * (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples


def _numbers(batch: int, readouts: int, continuing: bool) -> Tensor:
    """Count the readouts of every scan, or of the series of all scans: ``(batch, readouts)``, float64."""
    number = torch.arange(batch * readouts, dtype=torch.float64).reshape(batch, readouts)
    return number if continuing else number[:1].expand(batch, -1)


def _angles(
    batch: int, readouts: int, increment: float, generator: torch.Generator, continuing: bool = False
) -> Tensor:
    """Angles that grow by the increment from a random first one: ``(batch, readouts)``, float64."""
    start = torch.rand(1 if continuing else batch, 1, generator=generator, dtype=torch.float64)
    return 2 * math.pi * start + increment * _numbers(batch, readouts, continuing)


def _directions(angles: Tensor) -> Tensor:
    """Turn angles into unit vectors in the plane, y before x: ``(*angles, 2)``."""
    return torch.stack([angles.sin(), angles.cos()], -1)


def _spokes(directions: Tensor, samples: int) -> Tensor:
    """Full spokes along unit vectors: ``(batch, readouts, ndim) -> (batch, readouts * samples, ndim)``."""
    batch, _, ndim = directions.shape
    return (directions[:, :, None] * _readout(samples)[:, None]).reshape(batch, -1, ndim).float()


def _golden_mean() -> float:
    """Solve ``x^3 + x = 1`` by Cardano's formula."""
    root = math.sqrt(31 / 108)
    return math.cbrt(root + 0.5) - math.cbrt(root - 0.5)
