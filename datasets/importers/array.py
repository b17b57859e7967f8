"""Multi-coil Cartesian k-space from arrays, the least that a scanner's export has.

What is not given with it is found in the samples (`ambient_sci.datasets.prepare`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ambient_sci.datasets.importing import import_scans
from ambient_sci.datasets.prepare import Preparation
from ambient_sci.datasets.raw import RawScan
from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError, DataError, NotFoundError

__all__ = ["import_array", "read_arrays"]


def read_arrays(
    paths: list[Path],
    *,
    mask: Annotated[Path | None, "npy of what was measured; where k-space is not zero"] = None,
    maps: Annotated[Path | None, "npy of coil maps; ESPIRiT otherwise"] = None,
) -> Iterator[RawScan]:
    """Read centred multi-coil k-space, (coil, y, x) or (scan, coil, y, x), from npy files.

    Parameters
    ----------
    paths
        ``.npy`` files of complex numbers; with four axes the first is the scan.
    mask, maps
        ``.npy`` files that go with each of them.

    Examples
    --------
    Commands of the importer::

        ambient-sci import array kspace.npy scan.zarr
        ambient-sci import array kspace.npy scan.zarr --maps maps.npy --noise-std 0.002
        ambient-sci import array kspace.npy coarse.zarr --matrix 128x100
    """
    for path in paths:
        for number, scan in enumerate(_scans(_load(path, "kspace"), mask, maps, None)):
            yield RawScan(scan.kspace, scan.mask, maps=scan.maps, coords={"file": path.stem, "slice": number})


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
    origin = {"source": "import array", "kspace": str(kspace) if isinstance(kspace, str | Path) else "array"}
    return import_scans(
        _scans(_load(kspace, "kspace"), mask, maps, coords),
        path,
        preparation=Preparation(matrix, crop, noise_std, calibration),
        overwrite=overwrite,
        progress=False,
        provenance={**origin, **(provenance or {})},
    )


def _scans(
    values: NDArray[Any],
    mask: ArrayLike | str | Path | None,
    maps: ArrayLike | str | Path | None,
    coords: Mapping[str, ArrayLike] | None,
) -> Iterator[RawScan]:
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.dtype.kind != "c":
        raise DataError(
            f"kspace must be complex (coil, y, x) or (scan, coil, y, x), got {values.dtype} of shape {values.shape}"
        )
    count = len(values)
    masks = None if mask is None else _per_scan(_load(mask, "mask"), "mask", count, 2)
    sensitivities = None if maps is None else _per_scan(_load(maps, "maps"), "maps", count, 3)
    every = {name: np.asarray(value) for name, value in (coords or {}).items()}
    for scan in range(count):
        yield RawScan(
            values[scan],
            None if masks is None else masks[scan],
            maps=None if sensitivities is None else sensitivities[scan],
            coords={name: value[scan] for name, value in every.items()},
        )


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


def _per_scan(array: NDArray[Any], name: str, count: int, axes: int) -> NDArray[Any]:
    """Arrays that all scans share, or one for each."""
    if array.ndim == axes:
        return np.broadcast_to(array, (count, *array.shape))
    if array.ndim != axes + 1 or len(array) != count:
        raise DataError(f"{name} has shape {array.shape}; it must have {axes} axes, or {axes + 1} with {count} scans")
    return array
