r"""Where the voxels of a scan are: from an index to millimetres in the patient.

The index :math:`(i, j, k)` counts columns, rows and slices of an image, that is the axes x, y and z from the last one
back. Its place is

.. math:: p(i, j, k) = o + i \, \Delta_x r + j \, \Delta_y c + k \, s

with the directions :math:`r` and :math:`c` in which the indices x and y grow (``row_*`` and ``column_*`` among the
coordinates of a store), sizes of pixels :math:`\Delta`, and the step :math:`s` from slice to slice. Millimetres count
towards the patient's left, back and head (LPS, as in DICOM and ISMRMRD; NIfTI counts towards right, front and head).

The position of a scan is that of the voxel at index ``size // 2``, where images here have the middle of their field of
view. The axis z of a three-dimensional scan grows along :math:`r \times c`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Geometry", "pixel_sizes", "scan_geometry", "stack"]

Vector = NDArray[np.float64]

_AXES = ("x", "y", "z")
_SKEW = 0.01  # directions that differ from orthonormal ones by more than rounding are not directions
_UNEVEN = 0.02  # of the step between slices


@dataclass(frozen=True)
class Geometry:
    """Places of voxels.

    Parameters
    ----------
    affine
        From the index ``(x, y, z, 1)`` to millimetres towards left, back and head, ``(4, 4)``.
    """

    affine: NDArray[np.float64]

    @property
    def row(self) -> Vector:
        """Direction in which the index x grows, of length one."""
        return _unit(self.affine[:3, 0])

    @property
    def column(self) -> Vector:
        """Direction in which the index y grows, of length one."""
        return _unit(self.affine[:3, 1])

    @property
    def normal(self) -> Vector:
        """Cross product of the two."""
        return np.asarray(np.cross(self.row, self.column), np.float64)

    @property
    def spacing(self) -> Vector:
        """Millimetres from voxel to voxel, ``(x, y, z)``."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def ras(self) -> NDArray[np.float64]:
        """The same affine to millimetres towards right, front and head."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine

    def place(self, *index: float) -> Vector:
        """Millimetres of a voxel, ``(x, y, z)``."""
        return np.asarray((self.affine @ (*index, 1.0))[:3])

    def plane(self, slice_: int) -> Self:
        """Geometry of one slice by itself."""
        affine = self.affine.copy()
        affine[:3, 3] = self.place(0, 0, slice_)
        return type(self)(affine)


def pixel_sizes(coords: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Size of a pixel along x, y and z in mm; None where it is not known."""
    sizes = [coords.get(f"pixel_{axis}") for axis in _AXES]
    return tuple(float(size) if size is not None and np.isfinite(size) and size > 0 else None for size in sizes)


def scan_geometry(coords: Mapping[str, Any], shape: Sequence[int]) -> Geometry | None:
    """Geometry of one scan, or None where its coordinates do not say it.

    Parameters
    ----------
    coords
        Coordinates of the scan, named as in `ambient_sci.datasets.schema.COORDINATES`. A slice without ``pixel_z`` is
        taken to be 1 mm thick.
    shape
        Size of the image, ``(y, x)`` or ``(z, y, x)``.
    """
    x, y, z = pixel_sizes(coords)
    position, row, column = (_vector(coords, name) for name in ("position", "row", "column"))
    if x is None or y is None or position is None or row is None or column is None or (z is None and len(shape) > 2):
        return None
    lengths = np.array([row @ row, column @ column, row @ column])
    if np.abs(lengths - [1, 1, 0]).max() > _SKEW:
        return None
    row = _unit(row)
    column = _unit(column - (column @ row) * row)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([x * row, y * column, (z or 1.0) * np.cross(row, column)], axis=1)
    middle = [size // 2 for size in reversed(shape)] + [0] * (3 - len(shape))
    affine[:3, 3] = position - affine[:3, :3] @ middle
    return Geometry(affine)


def stack(slices: Sequence[Geometry | None]) -> Geometry | None:
    """Geometry of slices that lie one upon the other in that order, or None where their places do not say so."""
    known = [one for one in slices if one is not None]
    if not known or len(known) < len(slices):
        return None
    first = known[0]
    if len(known) == 1:
        return first
    if max(np.abs(one.affine[:3, :2] - first.affine[:3, :2]).max() for one in known) > _SKEW * first.spacing[:2].min():
        return None
    steps = np.diff([one.affine[:3, 3] for one in known], axis=0)
    step = steps.mean(0)
    if not np.linalg.norm(steps - step, axis=1).max() < _UNEVEN * abs(step @ first.normal):
        return None
    affine = first.affine.copy()
    affine[:3, 2] = step
    return Geometry(affine)


def _vector(coords: Mapping[str, Any], name: str) -> Vector | None:
    values = [coords.get(f"{name}_{axis}") for axis in _AXES]
    if any(value is None for value in values):
        return None
    vector = np.array(values, float)
    return vector if np.isfinite(vector).all() else None


def _unit(vector: Vector) -> Vector:
    return np.asarray(vector / np.linalg.norm(vector))
