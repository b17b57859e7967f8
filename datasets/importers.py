"""Importers: measured data of instruments become stores.

`import_array` takes multi-coil Cartesian k-space from an array, the least that a scanner's export has: what is not
given with it is found in the samples (`ambient_sci.datasets.calibration`), and the store's provenance says which it
was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ambient_sci.datasets.calibration import calibration_width, estimate_maps, estimate_noise, sampled
from ambient_sci.datasets.simulate import estimate_scale
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.datasets.writer import StoreWriter
from ambient_sci.errors import ConfigError, DataError, NotFoundError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Sense

__all__ = ["import_array"]

PREWHITENING = "none: there is no noise scan; coils are taken to have independent noise of one level"


def import_array(
    kspace: ArrayLike | str | Path,
    path: str | Path,
    *,
    mask: ArrayLike | str | Path | None = None,
    maps: ArrayLike | str | Path | None = None,
    noise_std: float | None = None,
    calibration: int | None = None,
    matrix: tuple[int, int] | None = None,
    crop: float = 0.95,
    coords: Mapping[str, ArrayLike] | None = None,
    overwrite: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Store:
    """Bring Cartesian multi-coil k-space into a store.

    Parameters
    ----------
    kspace
        Centred k-space, ``(coil, y, x)`` or ``(scan, coil, y, x)``, complex; or the path of an ``.npy`` file of it.
        Samples that were not measured are zeros.
    path
        The store to write.
    mask
        Where it was measured, ``(y, x)`` or ``(scan, y, x)``, an array or an ``.npy`` file; by default where any coil
        is not zero.
    maps
        Coil sensitivity maps, like ``kspace``, or of the size ``matrix`` where that is given; by default estimated by
        ESPIRiT from the calibration block.
    noise_std
        Standard deviation of each real component; by default estimated from the outermost samples.
    calibration
        Width of the fully measured centre block; by default the largest there is.
    matrix
        Keep only the centre of k-space, ``(y, x)`` samples: the same field of view in fewer, larger pixels. A prior of
        small images then meets structures of the size that it knows.
    crop
        Eigenvalue below which ESPIRiT takes a pixel to be outside the image.
    coords
        Coordinates by name, one entry per scan.
    overwrite
        Replace a store that is already there.
    provenance
        Further entries for the store's provenance.

    Returns
    -------
    Store
        The new store, open.

    Raises
    ------
    NotFoundError, ConfigError, DataError
        If a file is missing or of another format, or if arrays do not fit or hold too little to estimate from.
    OutputError
        If the store cannot be written.

    Examples
    --------
    >>> store = import_array("kspace.npy", "scan.zarr")  # doctest: +SKIP
    """
    values = _load(kspace, "kspace")
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.dtype.kind != "c":
        raise DataError(
            f"kspace must be complex (coil, y, x) or (scan, coil, y, x), got {values.dtype} of shape {values.shape}"
        )
    scans, coils, *spatial = values.shape
    masks = None if mask is None else _fit(_load(mask, "mask"), "mask", (scans, *spatial))
    kept = (spatial[0], spatial[1]) if matrix is None else matrix
    if not all(0 < k <= length for k, length in zip(kept, spatial, strict=True)):
        raise ConfigError(f"matrix must be between 1 and what was measured, {(*spatial,)}, got {kept}")
    given = None if maps is None else _fit(_load(maps, "maps"), "maps", (scans, coils, *kept))
    if given is not None and not np.isfinite(given).all():
        raise DataError("maps has NaN or infinite values")
    if noise_std is not None and not (np.isfinite(noise_std) and noise_std >= 0):
        raise ConfigError(f"noise_std must be finite and not negative, got {noise_std}")
    found = [
        _sampling(values[scan], None if masks is None else masks[scan], scan, calibration) for scan in range(scans)
    ]
    # of all samples: near the centre there is signal in every one
    levels = [
        estimate_noise(values[scan], found[scan][0]) if noise_std is None else float(noise_std) for scan in range(scans)
    ]
    masks_kept = [_centre(measured, kept) for measured, _ in found]
    width = min(*(width for _, width in found), *kept)
    varying = _varying(masks_kept)
    how = {
        "mask": "where any coil is not zero" if masks is None else "given",
        "calibration": "largest fully measured centre block" if calibration is None else "given",
        "maps": f"ESPIRiT of the calibration block, eigenvalue above {crop}" if given is None else "given",
        "noise_std": "median absolute deviation of the outermost tenth of samples" if noise_std is None else "given",
        "matrix": "as measured" if matrix is None else f"central {matrix[0]} x {matrix[1]} samples",
        "prewhitening": PREWHITENING,
        "scale": "99th percentile of the zero-filled magnitude",
    }
    origin = {"source": "import array", "kspace": str(kspace) if isinstance(kspace, str | Path) else "array", **how}
    with StoreWriter(path, {**origin, **(provenance or {})}, overwrite) as writer:
        for scan in range(scans):
            measured, level = masks_kept[scan], levels[scan]
            y = np.where(measured, _centre(values[scan], kept), 0).astype(np.complex64)
            sensitivity = estimate_maps(y, width, crop) if given is None else given[scan].astype(np.complex64)
            operator = Sense(_compact(measured, varying), torch.from_numpy(sensitivity)[None], width)
            unscaled = Measurement(torch.from_numpy(y)[None], operator, level)
            measurement = Measurement(unscaled.y, operator, level, scale=estimate_scale(unscaled))
            writer.append(
                measurement, coords={name: np.asarray(value)[scan : scan + 1] for name, value in (coords or {}).items()}
            )
    return open_store(path)


def _load(value: ArrayLike | str | Path, name: str) -> NDArray[Any]:
    if not isinstance(value, str | Path):
        return np.asarray(value)
    path = Path(value)
    if not path.is_file():
        raise NotFoundError(f"no {name} at {path}: there is no such file")
    if path.suffix != ".npy":
        raise ConfigError(f"{name} must be an .npy file, got {path}")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy array of numbers: {error}") from error


def _fit(array: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape not in (shape, shape[1:]):
        raise DataError(f"{name} has shape {array.shape}; with this k-space it must be {shape[1:]} or {shape}")
    return np.broadcast_to(array, shape)


def _centre(array: NDArray[Any], matrix: tuple[int, int]) -> NDArray[Any]:
    """Centre of the two last axes; the sample of frequency zero stays in the centre."""
    first = [length // 2 - kept // 2 for kept, length in zip(matrix, array.shape[-2:], strict=True)]
    rows, columns = (slice(start, start + kept) for start, kept in zip(first, matrix, strict=True))
    return array[..., rows, columns]


def _sampling(
    kspace: NDArray[Any], mask: NDArray[Any] | None, scan: int, calibration: int | None
) -> tuple[NDArray[np.bool_], int]:
    """Where a scan was measured, and the width of its calibration block."""
    finite = np.isfinite(kspace)
    if not finite.all():
        raise DataError(f"kspace of scan {scan} has {int((~finite).sum())} NaN or infinite values")
    if mask is None:
        measured = sampled(kspace)
    elif not np.isin(mask, (0, 1)).all():
        raise DataError(f"mask of scan {scan} must consist of zeros and ones only")
    else:
        measured = np.asarray(mask).astype(bool)
    if not measured.any():
        raise DataError(f"kspace of scan {scan} has no measured samples: all are zero")
    width = calibration_width(measured)
    if calibration is None:
        return measured, width
    if not 0 <= calibration <= width:
        raise DataError(f"calibration is {calibration}, but scan {scan} is fully measured only in the central {width}")
    return measured, calibration


def _varying(masks: list[NDArray[np.bool_]]) -> list[int]:
    """Axes along which sampling varies in any scan; the last where it varies along none."""
    axes = range(masks[0].ndim)
    varying = [axis for axis in axes if any((mask != mask.take([0], axis)).any() for mask in masks)]
    return varying or [axes[-1]]


def _compact(mask: NDArray[np.bool_], varying: list[int]) -> torch.Tensor:
    """Shape a mask for an operator, ``(1, 1, y, x)``, with axes of size one where sampling does not vary."""
    kept = tuple(slice(None) if axis in varying else slice(1) for axis in range(mask.ndim))
    return torch.from_numpy(mask[kept].astype(np.float32))[None, None]
