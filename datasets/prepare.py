"""From raw data to a usable operator: what a scan's own samples say of its mask, coil maps, noise and intensity.

Every importer yields `RawScan`; `prepare` makes a `Measurement` of one, in this order: where it was measured, noise
level, the centre of k-space where only that is wanted, coil maps, intensity scale. Nothing is taken from samples that
the mask did not measure; what is estimated rather than given is said by `Preparation.how`, for the store's provenance.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.datasets.calibration import calibration_width, estimate_maps, estimate_noise, sampled
from ambient_sci.datasets.raw import RawScan
from ambient_sci.datasets.simulate import estimate_scale
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Sense

__all__ = ["Preparation", "prepare"]


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared.

    Parameters
    ----------
    matrix
        Keep only the centre of k-space, as many samples per spatial axis: the same field of view in fewer, larger
        pixels. A prior of small images then meets structures of the size that it knows.
    crop
        Eigenvalue below which ESPIRiT takes a pixel to be outside the image.
    noise_std
        Standard deviation of each real component, instead of the scan's own or an estimate.
    calibration
        Width of the fully measured centre block, instead of the scan's own or the largest there is.
    """

    matrix: tuple[int, ...] | None = None
    crop: float = 0.95
    noise_std: float | None = None
    calibration: int | None = None

    def __post_init__(self) -> None:
        if self.noise_std is not None and not (np.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ConfigError(f"noise_std must be finite and not negative, got {self.noise_std}")

    def how(self, scan: RawScan) -> dict[str, str]:
        """Say how a scan's properties are found, for provenance."""
        known_width = self.calibration is not None or scan.calibration_width is not None
        known_noise = self.noise_std is not None or scan.noise_std is not None
        espirit = f"ESPIRiT of the calibration block, eigenvalue above {self.crop}"
        return {
            "mask": "where any coil is not zero" if scan.mask is None else "given",
            "calibration": "given" if known_width else "largest fully measured centre block",
            "maps": espirit if scan.maps is None else "given",
            "noise_std": "given" if known_noise else "median absolute deviation of the outermost tenth of samples",
            "matrix": "as measured" if self.matrix is None else f"central {' x '.join(map(str, self.matrix))} samples",
            "prewhitening": "none: there is no noise scan; coils are taken to have independent noise of one level",
            "scale": "99th percentile of the zero-filled magnitude",
        }


def prepare(scan: RawScan, preparation: Preparation, name: str = "this scan") -> Measurement:
    """Make a measurement of a raw scan.

    Parameters
    ----------
    scan
        On the grid.
    preparation
        How.
    name
        What to call the scan in errors.

    Returns
    -------
    Measurement
        A batch of one, in the instrument's units.

    Raises
    ------
    DataError
        If values are not finite, arrays do not fit, or there is too little to estimate from.
    """
    measured = _measured(scan, name)
    width = _width(scan, preparation, measured, name)
    given = preparation.noise_std if preparation.noise_std is not None else scan.noise_std
    # of all samples: near the centre there is signal in every one
    level = estimate_noise(scan.kspace, measured) if given is None else float(given)
    kept = preparation.matrix or measured.shape
    if len(kept) != measured.ndim or not all(0 < k <= n for k, n in zip(kept, measured.shape, strict=True)):
        raise ConfigError(f"matrix must be between 1 and what was measured, {measured.shape}, got {kept}")
    measured, width = _centre(measured, kept), min(width, *kept)
    y = np.where(measured, _centre(scan.kspace, kept), 0).astype(np.complex64)
    maps = estimate_maps(y, width, preparation.crop) if scan.maps is None else _given_maps(scan.maps, y.shape)
    operator = Sense(_compact(measured), torch.from_numpy(maps)[None], width)
    unscaled = Measurement(torch.from_numpy(y)[None], operator, level)
    return Measurement(unscaled.y, operator, level, scale=estimate_scale(unscaled))


def _measured(scan: RawScan, name: str) -> NDArray[np.bool_]:
    finite = np.isfinite(scan.kspace)
    if not finite.all():
        raise DataError(f"kspace of {name} has {int((~finite).sum())} NaN or infinite values")
    if scan.mask is None:
        measured = sampled(scan.kspace)
    elif scan.mask.shape != scan.kspace.shape[1:]:
        raise DataError(f"mask of {name} has shape {scan.mask.shape}; its k-space wants {scan.kspace.shape[1:]}")
    elif not np.isin(scan.mask, (0, 1)).all():
        raise DataError(f"mask of {name} must consist of zeros and ones only")
    else:
        measured = scan.mask.astype(bool)
    if not measured.any():
        raise DataError(f"kspace of {name} has no measured samples: all are zero")
    return measured


def _width(scan: RawScan, preparation: Preparation, measured: NDArray[np.bool_], name: str) -> int:
    largest = calibration_width(measured)
    wanted = preparation.calibration if preparation.calibration is not None else scan.calibration_width
    if wanted is None:
        return largest
    if not 0 <= wanted <= largest:
        raise DataError(f"calibration is {wanted}, but {name} is fully measured only in the central {largest}")
    return wanted


def _given_maps(maps: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.complex64]:
    if maps.shape[-len(shape) :] != shape or maps.ndim > len(shape) + 1:
        raise DataError(f"maps has shape {maps.shape}; with this k-space it must be {shape} or (set, *{shape})")
    if not np.isfinite(maps).all():
        raise DataError("maps has NaN or infinite values")
    return maps.astype(np.complex64)


def _centre(array: NDArray[Any], matrix: tuple[int, ...]) -> NDArray[Any]:
    """Centre of the last axes; the sample of frequency zero stays in the centre."""
    lengths = array.shape[-len(matrix) :]
    starts = [length // 2 - kept // 2 for kept, length in zip(matrix, lengths, strict=True)]
    block: tuple[Any, ...] = tuple(slice(start, start + kept) for start, kept in zip(starts, matrix, strict=True))
    return np.asarray(array[(..., *block)])


def _compact(mask: NDArray[np.bool_]) -> torch.Tensor:
    """Shape a mask for an operator, ``(1, 1, *spatial)``, with axes of size one where sampling does not vary."""
    varying = [axis for axis in range(mask.ndim) if (mask != mask.take([0], axis)).any()] or [mask.ndim - 1]
    kept = tuple(slice(None) if axis in varying else slice(1) for axis in range(mask.ndim))
    return torch.from_numpy(mask[kept].astype(np.float32))[None, None]
