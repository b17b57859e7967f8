r"""Scans as they left the instrument, which importers yield and `ambient_sci.datasets.prepare` turns into measurements.

Conventions, whatever those of the format: k-space and images are centred (frequency zero and the middle of the field of
view at index ``size // 2``), axes are ``[z,] y, x``, trajectories are in radians per pixel, :math:`[-\pi, \pi)`, with
one column per spatial axis in the same order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import DataError
from ambient_sci.measurement import Measurement

__all__ = ["RawScan", "ReadyScan"]

Coords = Mapping[str, int | float | str]


@dataclass(frozen=True)
class RawScan:
    """Multi-coil k-space of one image, and what the file knows of it.

    Parameters
    ----------
    kspace
        Complex, ``(coil, *spatial)`` on the grid with zeros where nothing was measured, or ``(coil, sample)`` with a
        ``trajectory``, all of it measured.
    mask
        Where it was measured, ``spatial``; by default where any coil is not zero. Only on the grid.
    trajectory, shape, readout
        Off the grid: radians per pixel, ``(sample, axis)``; the size of the image; samples of one readout, of which
        whole ones are lost when a scan is thinned.
    weights
        Off the grid: density compensation, ``(sample,)``, for the coil maps' calibration images only.
    noise
        Samples of noise alone, ``(coil, n)``, ten or more for each coil, by which coils are prewhitened. With the same
        receiver settings and bandwidth as ``kspace``, or scaled to it.
    maps
        Coil sensitivity maps, ``(coil, *spatial)`` or ``(set, coil, *spatial)``; estimated where they are not known.
    calibration
        Separate scan for the coil maps: fully measured, centred k-space ``(coil, *width)`` of the same coils and field
        of view, of any contrast and noise.
    calibration_width
        Width of the fully measured centre; found where it is not known.
    noise_std
        Standard deviation of each real component, of all coils; estimated where it is not known.
    coords
        What else is known of the scan; see `ambient_sci.datasets.schema.COORDINATES` for names and units.
    """

    kspace: NDArray[np.complexfloating[Any]]
    mask: NDArray[np.bool_] | None = None
    trajectory: NDArray[np.floating[Any]] | None = None
    shape: tuple[int, ...] | None = None
    readout: int = 1
    weights: NDArray[np.floating[Any]] | None = None
    noise: NDArray[np.complexfloating[Any]] | None = None
    maps: NDArray[np.complexfloating[Any]] | None = None
    calibration: NDArray[np.complexfloating[Any]] | None = None
    calibration_width: int | None = None
    noise_std: float | None = None
    coords: Coords = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kspace.dtype.kind != "c" or self.kspace.ndim < 2 or 0 in self.kspace.shape:
            raise DataError(
                f"k-space must be complex (coil, ...), got {self.kspace.dtype} of shape {self.kspace.shape}"
            )
        if (self.trajectory is None) != (self.shape is None):
            raise DataError("a trajectory and the shape of the image must be given together")
        if self.trajectory is None or self.shape is None:
            return
        want = (*self.kspace.shape[1:], len(self.shape))
        if self.kspace.ndim != 2 or self.trajectory.shape != want or not np.isfinite(self.trajectory).all():
            raise DataError(
                f"a trajectory must be finite, (sample, axis), for k-space (coil, sample) of images of shape "
                f"{self.shape}: got {self.trajectory.shape} for {self.kspace.shape}"
            )
        if self.readout < 1 or want[0] % self.readout:
            raise DataError(f"readout must divide the {want[0]} samples, got {self.readout}")
        if self.weights is not None and (self.weights.shape != want[:1] or not (self.weights >= 0).all()):
            raise DataError(f"weights must be ({want[0]},), 0 or more, got {self.weights.shape}")
        if self.mask is not None:
            raise DataError("a mask is for k-space on the grid: leave out samples that were not measured")


@dataclass(frozen=True)
class ReadyScan:
    """A measurement that needs no preparation, such as visibilities: a batch of one, in the instrument's units.

    What ``how`` says of the conventions of a file and of what was estimated goes to the store's provenance.
    """

    measurement: Measurement
    coords: Coords = field(default_factory=dict)
    how: Mapping[str, str] = field(default_factory=dict)
