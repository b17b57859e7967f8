r"""What a scanner adds to a magnitude image in a simulation: receive coils and a smooth phase.

Each coil is a small loop of radius :math:`w` on a ring around the field of view. At distance :math:`d` its sensitivity
falls as the field on the axis of a loop does, and its phase turns with the coil's place on the ring,

.. math:: S_c(r) \propto \bigl(1 + d_c(r)^2 / w^2\bigr)^{-3/2} \, e^{i (\theta_c + k_c \cdot r)},
          \qquad \sum_c |S_c(r)|^2 = 1.

Rotation of the ring, distances and phase slopes vary from scan to scan, as they do from patient to patient. The phase
of the image is a polynomial of second order and a few long waves. Coordinates run from -1 to 1 over the image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["coil_maps", "smooth_phase"]


def coil_maps(coils: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Sensitivity maps of one scan.

    Parameters
    ----------
    coils
        Number of coils.
    shape
        Spatial shape of the image; coils lie around its last two axes, in planes along the others.
    generator
        Source of the randomness.

    Returns
    -------
    Tensor
        ``(coil, *shape)``, complex64, of unit root sum of squares everywhere.
    """
    grid = _grid(shape)
    turn = 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    jitter = torch.randn(coils, generator=generator, dtype=torch.float64)
    angle = turn + 2 * math.pi * (torch.arange(coils) + 0.15 * jitter) / coils
    distance = 1.35 + 0.1 * torch.randn(coils, generator=generator, dtype=torch.float64)
    radius = 1.1 + 0.2 * torch.rand(coils, generator=generator, dtype=torch.float64)
    slope = 0.3 * torch.randn(coils, len(shape), generator=generator, dtype=torch.float64)
    place = torch.zeros(coils, len(shape), dtype=torch.float64)
    place[:, -1] = distance * angle.cos()
    if len(shape) > 1:
        place[:, -2] = distance * angle.sin()
    for axis in range(len(shape) - 2):
        place[:, axis] = 0.6 * (1 - 2 * ((torch.arange(coils) >> axis) % 2).to(torch.float64))
    apart = sum((grid[axis] - _column(place[:, axis], len(shape))) ** 2 for axis in range(len(shape)))
    phase = _column(angle, len(shape)) + sum(
        _column(slope[:, axis], len(shape)) * grid[axis] for axis in range(len(shape))
    )
    maps = torch.polar((1 + apart / _column(radius, len(shape)) ** 2) ** -1.5, phase)
    return (maps / maps.abs().square().sum(0, keepdim=True).sqrt()).to(torch.complex64)


def smooth_phase(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Phase factor of one scan's image, ``shape``, complex64 of unit modulus."""
    grid = _grid(shape)
    count = len(shape)
    draw = torch.randn(1 + count + count * count, generator=generator, dtype=torch.float64)
    phase = math.pi * draw[0] * torch.ones(tuple(shape), dtype=torch.float64)
    for axis in range(count):
        phase = phase + 0.6 * draw[1 + axis] * grid[axis]
        for other in range(count):
            phase = phase + 0.4 * draw[1 + count + axis * count + other] * grid[axis] * grid[other]
    for _ in range(3):
        wave = torch.randn(count + 2, generator=generator, dtype=torch.float64)
        along = sum(wave[axis] * grid[axis] for axis in range(count))
        phase = phase + 0.3 * wave[-2] * torch.cos(2.0 * along + math.pi * wave[-1])
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)


def _grid(shape: Sequence[int]) -> list[Tensor]:
    """Coordinates along each axis, shaped to broadcast with ``shape``."""
    lines = [(torch.arange(size, dtype=torch.float64) - size // 2) / max(size / 2, 1) for size in shape]
    return [_column(line, len(shape) - 1 - axis) for axis, line in enumerate(lines)]


def _column(values: Tensor, axes: int) -> Tensor:
    return values.reshape(-1, *[1] * axes)
