r"""Density compensation: which part of k-space each sample stands for.

A sum over samples is an integral over k-space, :math:`\int f(k)\,dk \approx \sum_j a_j f(k_j)`, if every sample counts
for the area :math:`a_j` around it. Here areas are in cells of the image's own grid,
:math:`d_j = a_j N / (2\pi)^d`, so that samples on the points of that grid have one each, and gridding with them,
:math:`A^H D\,y`, has about the scale of the image whatever the trajectory.

They speed up reconstruction as a preconditioner, and make quick looks. They do not belong into a likelihood: noise is
what weights measurements there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial import QhullError, Voronoi
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.backends import torchkbnufft

__all__ = ["density_compensation"]


def density_compensation(
    trajectory: Tensor, shape: Sequence[int], method: str = "pipe", iterations: int = 20
) -> Tensor:
    r"""Areas of k-space samples.

    Parameters
    ----------
    trajectory
        Radians per pixel, ``(batch, samples, ndim)``.
    shape
        Spatial shape of the image.
    method
        ``"pipe"`` for the iteration of Pipe and Menon (1999, Magn. Reson. Med. 41:179) by torchkbnufft, in which no
        sample counts for more than the reach of an interpolation kernel, about a cell; ``"voronoi"`` for
        areas of Voronoi cells by scipy (Rasche et al. 1999, IEEE Trans. Med. Imaging 18:385), which tile k-space in
        undersampled regions, too. Samples at the rim, whose cells have no outer edge, get the largest area
        of those inside.
    iterations
        Iterations of ``"pipe"``.

    Returns
    -------
    Tensor
        Areas in cells of the image's grid, ``(batch, samples)``. ``Nufft(..., weights=areas.sqrt())`` has the
        compensated gram.
    """
    methods: dict[str, Callable[[], Tensor]] = {
        "pipe": lambda: _pipe(trajectory, shape, iterations),
        "voronoi": lambda: torch.stack([_voronoi(points, shape) for points in trajectory]),
    }
    if trajectory.ndim != 3 or trajectory.shape[2] != len(shape):
        raise DataError(f"trajectory must be (batch, samples, {len(shape)}), got {tuple(trajectory.shape)}")
    if method not in methods:
        raise DataError(f"method must be one of {', '.join(methods)}, got {method!r}")
    if iterations < 1:
        raise DataError(f"iterations must be at least 1, got {iterations}")
    return methods[method]().to(trajectory)


def _pipe(trajectory: Tensor, shape: Sequence[int], iterations: int) -> Tensor:
    def areas(points: Tensor, size: Sequence[int]) -> Tensor:
        found = torchkbnufft().calc_density_compensation_function(points.mT, size, num_iterations=iterations)
        flat: Tensor = found.real.reshape(len(points), -1)
        return flat

    # the library leaves the scale to its kernel: a full grid tells it (an odd one, which has no sample at the edge)
    axis = 2 * math.pi * torch.arange(-2, 3) / 5
    grid = torch.stack(torch.meshgrid(*[axis] * len(shape), indexing="ij"), -1).reshape(1, -1, len(shape))
    return areas(trajectory, shape) / areas(grid.to(trajectory), [5] * len(shape)).mean()


def _voronoi(points: Tensor, shape: Sequence[int]) -> Tensor:
    """Areas of one scan's cells, ``(samples,)``, float64."""
    # samples at one place, as the centre of every spoke, share its cell
    places, inverse, counts = np.unique(
        points.double().cpu().numpy().round(9), axis=0, return_inverse=True, return_counts=True
    )
    try:
        areas = _cells(places)
    except QhullError as error:
        raise DataError(f"samples must span all {len(shape)} axes of k-space to have Voronoi cells") from error
    rim = np.isinf(areas) | (areas == 0)  # corners of a box have no ridge at all
    if rim.all():
        raise DataError(f"none of {len(areas)} different samples has a closed Voronoi cell: there are too few")
    areas[rim] = areas[~rim].max()
    cell = (2 * math.pi) ** len(shape) / math.prod(shape)
    return torch.from_numpy((areas / counts / cell)[inverse.reshape(-1)])


def _cells(places: Any) -> Any:
    """Areas of Voronoi cells, infinite where they are open or reach beyond all samples: ``(places,)``."""
    ndim = places.shape[1]
    if ndim == 1:  # sorted already
        edges = (places[1:, 0] + places[:-1, 0]) / 2
        return np.concatenate([[np.inf], np.diff(edges), [np.inf]])
    cells = Voronoi(places)
    areas = np.zeros(len(places))
    beyond = (np.abs(cells.vertices) > np.abs(places).max() * (1 + 1e-6)).any(1)
    open_ridge = np.array([min(ridge) < 0 or bool(beyond[ridge].any()) for ridge in cells.ridge_vertices])
    # a cell is made of pyramids, whose bases are its ridges and whose tip is its sample; bases fall into simplices
    bases = [
        (number, [ridge[0], *ridge[first : first + ndim - 1]])
        for number, ridge in enumerate(cells.ridge_vertices)
        if not open_ridge[number]
        for first in range(1, len(ridge) - ndim + 2)
    ]
    ridges = np.array([number for number, _ in bases], dtype=int)
    corners = cells.vertices[np.array([simplex for _, simplex in bases], dtype=int).reshape(-1, ndim)]
    sides = corners[:, 1:] - corners[:, :1]
    base = np.sqrt(np.linalg.det(sides @ sides.transpose(0, 2, 1)).clip(0)) / math.factorial(ndim - 1)
    pairs = cells.ridge_points[ridges]
    height = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1) / 2
    for side in (0, 1):
        np.add.at(areas, pairs[:, side], base * height / ndim)
        areas[cells.ridge_points[open_ridge][:, side]] = np.inf
    return areas
