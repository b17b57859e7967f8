r"""Dead leaves: images that are made up, of which a network learns what edges are before it has seen a scan.

Opaque shapes of many sizes fall on each other until they cover the image. What is seen of them has much of what
photographs and scans have in common, and needs no data: sharp edges, flat regions, occlusion, and a spectrum that falls
as a power of the frequency. Radii :math:`r` follow

.. math:: p(r) \propto r^{-(1 + e)}, \qquad r_\text{min} \le r \le r_\text{max},

which for :math:`e = 2` looks the same at all scales (Lee, Mumford and Huang 2001, Int. J. Comput. Vis. 41:35). Networks
that have seen nothing else denoise photographs nearly as well as those that have seen photographs (Achddou, Gousseau
and Ladjal 2021, arXiv:2103.16303).

Here :math:`e`, the number of leaves, their grey levels and their contrast differ from image to image; a leaf is an
ellipse, a rectangle or a bent band, with a slight shading. Most images show an object before an empty background, some
with a rim. Complex images have a smooth phase of their own.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from ambient_sci.datasets.store import Store
from ambient_sci.denoise import per_image
from ambient_sci.errors import ConfigError
from ambient_sci.seeding import rng_for

__all__ = ["dead_leaves", "leaves_like", "mirrored", "smooth_phases"]

FINER = 2  # grid on which edges are drawn, before it is averaged to pixels
LEAVES = 20, 200  # of an image
EXPONENTS = 0.7, 2.0
OBJECTS = 0.75  # of the images show an object before a background
_IMAGE, _PHASE = 0x71, 0x72  # purposes of an image's streams
Grid = NDArray[np.float32]


def dead_leaves(count: int, shape: tuple[int, int], seed: int = 0, progress: bool = False) -> Tensor:
    """Draw images.

    Parameters
    ----------
    count
        How many.
    shape
        Height and width.
    seed
        Image ``i`` depends on it and on ``i`` alone.
    progress
        Show a progress bar.

    Returns
    -------
    Tensor
        ``(count, height, width)``, float32, from 0 to 1.

    Examples
    --------
    >>> dead_leaves(2, (32, 48)).shape
    torch.Size([2, 32, 48])
    """
    numbers = tqdm(range(count), desc="dead leaves", unit="image", disable=not progress)
    return torch.from_numpy(np.stack([_draw(shape, rng_for(seed, _IMAGE, number)) for number in numbers]))


def smooth_phases(count: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Draw phase factors ``(count, height, width)``, complex64 of unit modulus, from random values on 2 to 6 nodes."""
    phases = []
    for number in range(count):
        rng = rng_for(seed, _PHASE, number)
        nodes = rng.integers(2, 7)
        values = rng.uniform(0, 2) * rng.standard_normal((1, 1, nodes, nodes))
        smooth = functional.interpolate(torch.from_numpy(values), shape, mode="bicubic", align_corners=True)[0, 0]
        phases.append(smooth + 2 * math.pi * rng.random())
    phase = torch.stack(phases).float()
    return torch.polar(torch.ones_like(phase), phase)


def leaves_like(store: Store, count: int, seed: int = 0, progress: bool = False) -> Tensor:
    """Draw images like those of a store in shape and kind.

    Returns
    -------
    Tensor
        ``(count, channel, height, width)`` of unit standard deviation (of each part, if complex), and all of the same
        99th percentile, as scans are in normalised units.

    Raises
    ------
    ConfigError
        If images of the store are not 2-D.
    """
    if len(store.image_shape) != 3:
        raise ConfigError(f"em_start 'leaves' makes up 2-D images; those of {store.path} are {store.image_shape[1:]}")
    channels, height, width = store.image_shape
    images = dead_leaves(count * channels, (height, width), seed, progress).reshape(count, channels, height, width)
    bright = images.flatten(1).quantile(0.99, dim=1)
    images = images / torch.where(bright > 0, bright, 1.0)[:, None, None, None]
    if store.is_complex:
        images = images * smooth_phases(count, (height, width), seed)[:, None]
    return images / (torch.view_as_real(images) if images.is_complex() else images).std()


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror images ``(batch, channel, height, width)`` at random along each axis, and in the diagonal if square."""
    for axis in (-1, -2):
        images = torch.where(_half(images, generator), images.flip(axis), images)
    return images if images.shape[-1] != images.shape[-2] else torch.where(_half(images, generator), images.mT, images)


def _half(images: Tensor, generator: torch.Generator) -> Tensor:
    return per_image(torch.rand(len(images), generator=generator) < 0.5, images)


def _draw(shape: tuple[int, int], rng: np.random.Generator) -> Grid:
    """Draw one image ``(height, width)``: what has fallen last is drawn first, where nothing is yet."""
    size = FINER * shape[0], FINER * shape[1]
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    extent = min(size)
    count, exponent = rng.integers(*LEAVES), rng.uniform(*EXPONENTS)
    level, contrast = rng.random(), math.exp(rng.uniform(math.log(0.08), 0))

    def grey() -> float:
        return float(level + contrast * (rng.random() - 0.5))

    least, most = FINER**-exponent, (0.4 * extent) ** -exponent
    radii = (least - rng.random(count) * (least - most)) ** (-1 / exponent)
    centres = rng.random((count, 2)) * size
    image, free = np.full(size, grey(), np.float32), np.ones(size, bool)
    for radius, (top, left) in zip(radii, centres, strict=True):
        box = _around(top, radius), _around(left, radius)
        along, across = _turned(rows[box] - top, columns[box] - left, rng.uniform(0, math.pi), radius)
        inside = _leaf(along, across, FINER / radius, rng) & free[box]
        shading = 1 + rng.normal(0, 0.25) * along + rng.normal(0, 0.25) * across
        image[box] = np.where(inside, grey() * shading, image[box])
        free[box] &= ~inside
    if rng.random() < OBJECTS:
        image = _before_nothing(image, rows, columns, rng)
    pixels = image.clip(0, 1).reshape(shape[0], FINER, shape[1], FINER).mean((1, 3))
    drawn: Grid = pixels.astype(np.float32)
    return drawn


def _around(place: float, radius: float) -> slice:
    return slice(max(int(place - radius), 0), max(int(place + radius) + 2, 0))


def _turned(rows: Grid, columns: Grid, angle: float, radius: float) -> tuple[Grid, Grid]:
    """Coordinates along a leaf and across it, in units of its radius."""
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    return cos * columns + sin * rows, cos * rows - sin * columns


def _leaf(along: Grid, across: Grid, pixel: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Shape of a leaf: an ellipse, a rectangle or a bent band, at least a pixel wide."""
    kind, flat = rng.integers(3), rng.uniform(0.35, 1)
    if kind == 0:
        inside: NDArray[np.bool_] = along**2 + (across / flat) ** 2 < 1
    elif kind == 1:
        inside = (np.abs(along) < 0.7) & (np.abs(across) < 0.7 * flat)
    else:
        width, bend = max(0.5 * pixel, rng.uniform(0.03, 0.3)), rng.uniform(-1, 1)
        inside = (np.abs(along) < 0.9) & (np.abs(across - bend * (along**2 - 1 / 3)) < width)
    return inside


def _before_nothing(image: Grid, rows: Grid, columns: Grid, rng: np.random.Generator) -> Grid:
    """Cut an image out along a distorted ellipse, half of the times with a rim."""
    middle = (0.5 + 0.04 * rng.standard_normal(2)) * image.shape
    radius, flat = rng.uniform(0.3, 0.5) * min(image.shape), rng.uniform(0.6, 1)
    along, across = _turned(rows - middle[0], columns - middle[1], rng.uniform(0, math.pi), radius)
    angle = np.arctan2(across, along)
    edge = 1 + sum(rng.normal(0, 0.05 / k) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in range(2, 7))
    distance = np.hypot(along, across / flat) / edge
    if rng.random() < 0.5:
        width, grey = rng.uniform(0.03, 0.12), rng.random() * rng.random()
        image = np.where(distance > 1 - width, np.float32(grey), image)
    return np.where(distance < 1, image, np.float32(0))
