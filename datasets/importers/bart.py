r"""BART's ``.cfl`` and ``.hdr`` files (Uecker et al. 2015, Proc. ISMRM 23:2486; the format is in BART's README).

An array is two files: ``name.hdr``, text whose line after ``# Dimensions`` holds up to 16 sizes, and ``name.cfl``,
complex numbers of two little-endian floats, of which the first dimension varies fastest. Dimensions have a meaning:

=== ============= ============================================== ======================================
#   BART          here, k-space                                  here, trajectory
=== ============= ============================================== ======================================
0   readout       x; 1 off the grid                              coordinates x, y, z
1   phase 1       y; samples of a readout off the grid           samples of a readout
2   phase 2       z; readouts off the grid                       readouts
3   coil          coil                                           1
4   maps          1; the set of maps in sensitivities            1
5   echo          a scan each, coordinate ``contrast``           1 or the same
10  time          a scan each, coordinate ``repetition``         1 or the same
11  time 2        a scan each, coordinate ``phase``              1 or the same
13  slice         a scan each, coordinate ``slice``              1 or the same
14  average       a scan each, coordinate ``average``            1 or the same
15  batch         a scan each, coordinate ``batch``              1 or the same
=== ============= ============================================== ======================================

and all others must have size 1. Axes x, y and z of size 1 are no axes: what is left must be two or three. K-space is
centred as it is here (``bart fft -u`` and ``bart phantom -k`` are), without fftshift; samples that are exactly zero
were not measured, unless a ``pattern`` tells. Trajectories are in units of 1 / field of view. Files are mapped into
memory, and one scan is read at a time.
"""

from collections.abc import Iterator
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.datasets.importers.mri import find_files, readable
from ambient_sci.datasets.raw import RawScan
from ambient_sci.errors import ConfigError, DataError, NotFoundError
from ambient_sci.operators.units import from_bart

__all__ = ["read_bart", "read_cfl"]

_DIMENSIONS = 16
_SCANS = {5: "contrast", 10: "repetition", 11: "phase", 13: "slice", 14: "average", 15: "batch"}
_COIL, _MAPS = 3, 4


def read_cfl(path: str | Path) -> NDArray[np.complex64]:
    """Map an array of BART into memory.

    Parameters
    ----------
    path
        The name, or either of its files.

    Returns
    -------
    ndarray
        16 dimensions in BART's order, read-only.

    Raises
    ------
    NotFoundError
        If one of the two files is missing.
    DataError
        If the header is damaged, or tells of another size than the file has.
    """
    base = _base(Path(path))
    header, data = (base.parent / f"{base.name}{ending}" for ending in (".hdr", ".cfl"))
    for one in (header, data):
        if not one.is_file():
            raise NotFoundError(f"no BART array at {base}: there is no file {one}")
    with readable(header, "header of BART"):
        lines = header.read_text("utf-8", "replace").splitlines()
        sizes = _sizes(header, lines)
    have, want = data.stat().st_size, 8 * prod(sizes)
    if have != want:
        shown = " x ".join(map(str, sizes))
        raise DataError(f"{data} must have {want} bytes for the {shown} numbers of its header, it has {have}")
    with readable(data, "array of BART"):
        mapped = np.memmap(data, np.dtype("<c8"), "r", shape=tuple(reversed(sizes)))
    return np.asarray(mapped).transpose()


def _base(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path


def _sizes(path: Path, lines: list[str]) -> list[int]:
    names = [line.strip().lower() for line in lines]
    if "# dimensions" not in names[:-1]:
        raise DataError(f"{path} is not a header of BART: it has no line '# Dimensions' with sizes after it")
    words = lines[names.index("# dimensions") + 1].split()
    if not words or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise DataError(f"{path} must give sizes above 0 after '# Dimensions', got {' '.join(words)[:60]!r}")
    sizes = [int(word) for word in words]
    if any(size > 1 for size in sizes[_DIMENSIONS:]):
        raise DataError(f"{path} must have at most {_DIMENSIONS} dimensions, got {len(sizes)}")
    return [*sizes, *[1] * _DIMENSIONS][:_DIMENSIONS]


def read_bart(
    paths: list[Path],
    *,
    maps: Annotated[Path | None, "cfl of coil maps, as ecalib writes them; ESPIRiT otherwise"] = None,
    trajectory: Annotated[Path | None, "cfl of the trajectory, as traj writes it"] = None,
    pattern: Annotated[Path | None, "cfl of what was measured; where k-space is not zero"] = None,
    shape: Annotated[tuple[int, ...] | None, "size of the image of a trajectory, [z] y x; from its extent"] = None,
) -> Iterator[RawScan]:
    """Read k-space from files of BART.

    Parameters
    ----------
    paths
        K-space: ``.cfl`` (or ``.hdr``) files, or folders of them.
    maps, trajectory, pattern
        Arrays that go with each of them; where a folder holds these too, they are not taken for k-space.
    shape
        With a trajectory: spatial size of the image, ``([z,] y, x)``. By default the smallest even size that has the
        trajectory's frequencies, the same along x and y.

    Yields
    ------
    RawScan
        One image, ``(coil, [z,] y, x)``, or ``(coil, sample)`` with a trajectory.

    Raises
    ------
    DataError
        If a file is damaged, or dimensions do not fit.
    NotFoundError
        If one of two files is missing.
    ConfigError
        If options do not go together.

    Examples
    --------
    ::

        ambient-sci import bart kspace.cfl scan.zarr
        ambient-sci import bart kspace.cfl radial.zarr --trajectory traj.cfl --shape 256x256
    """
    if trajectory is not None and pattern is not None:
        raise ConfigError("a pattern is for k-space on the grid; leave it out where there is a trajectory")
    if trajectory is None and shape is not None:
        raise ConfigError("shape is for k-space with a trajectory; on the grid it is that of k-space")
    beside = {name: Path(one) for name, one in _given(maps=maps, trajectory=trajectory, pattern=pattern).items()}
    others = {name: read_cfl(one) for name, one in beside.items()}
    seen = {_base(one).resolve() for one in beside.values()}
    for path in find_files(paths, (".cfl", ".hdr")):
        base = _base(path)
        if base.resolve() not in seen:  # an array has two files
            seen.add(base.resolve())
            yield from _scans(base, read_cfl(base), others, shape)


def _given(**options: Path | None) -> dict[str, Path]:
    return {name: value for name, value in options.items() if value is not None}


def _scans(
    path: Path, kspace: NDArray[np.complex64], others: dict[str, NDArray[np.complex64]], shape: tuple[int, ...] | None
) -> Iterator[RawScan]:
    free = [axis for axis in range(_MAPS, _DIMENSIONS) if kspace.shape[axis] > 1]
    unknown = [axis for axis in free if axis not in _SCANS]
    if unknown:
        raise DataError(
            f"{path} has size {kspace.shape[unknown[0]]} along dimension {unknown[0]}; only 0 to 3 and "
            f"{', '.join(map(str, _SCANS))} may be above 1"
        )
    for name, array in others.items():
        for axis in range(_MAPS + (name == "maps"), _DIMENSIONS):
            if array.shape[axis] not in (1, kspace.shape[axis]):
                raise DataError(
                    f"{name} has size {array.shape[axis]} along dimension {axis}, {path} has {kspace.shape[axis]}"
                )
    for index in product(*(range(kspace.shape[axis]) for axis in free)):
        place = dict(zip(free, index, strict=True))
        coords: dict[str, Any] = {"file": path.name, "subject": path.name, "slice": 0}
        coords |= {_SCANS[axis]: number for axis, number in place.items()}
        chosen = {name: _one(array, place) for name, array in others.items()}
        make = _off_grid if "trajectory" in others else _on_grid
        yield make(path, _one(kspace, place)[..., 0], chosen, shape, coords)


def _one(array: NDArray[np.complex64], place: dict[int, int]) -> NDArray[np.complex64]:
    """First five dimensions of an array at one place of the others."""
    at: tuple[Any, ...] = tuple(
        place.get(axis, 0) if array.shape[axis] > 1 else 0 for axis in range(_MAPS + 1, _DIMENSIONS)
    )
    return np.asarray(array[(Ellipsis, *at)])


def _on_grid(
    path: Path, kspace: NDArray[Any], chosen: dict[str, NDArray[Any]], shape: tuple[int, ...] | None, coords: Any
) -> RawScan:
    sizes = kspace.shape[:_COIL]
    axes = tuple(axis for axis in reversed(range(_COIL)) if sizes[axis] > 1)
    if len(axes) < 2:
        raise DataError(f"{path} must have two or three sizes above 1 along dimensions 0 to 2, got {sizes}")
    single = tuple(axis for axis in range(_COIL) if axis not in axes)
    values = np.array(kspace.transpose(_COIL, 2, 1, 0).squeeze(tuple(3 - axis for axis in single)), order="C")
    mask = None
    if "pattern" in chosen:
        pattern = chosen["pattern"][..., 0, 0].real
        if pattern.shape != sizes or chosen["pattern"].shape[_COIL] != 1 or not np.isin(pattern, (0, 1)).all():
            raise DataError(f"pattern must be zeros and ones of the sizes {sizes} of {path}, got {pattern.shape}")
        mask = pattern.transpose().squeeze(tuple(2 - axis for axis in single)).astype(bool)
    return RawScan(values, mask, maps=_maps(path, chosen, sizes, len(values), single), coords=coords)


def _off_grid(
    path: Path, kspace: NDArray[Any], chosen: dict[str, NDArray[Any]], shape: tuple[int, ...] | None, coords: Any
) -> RawScan:
    k = chosen["trajectory"][..., 0, 0].real
    if kspace.shape[0] != 1 or k.shape != (3, *kspace.shape[1:_COIL]):
        raise DataError(
            f"with a trajectory {path} must be 1 x samples x readouts x coils, and the trajectory 3 x samples x "
            f"readouts; they are {kspace.shape} and {k.shape}"
        )
    if not np.isfinite(k).all():
        raise DataError(f"the trajectory that goes with {path} must be finite, got NaN or infinite values")
    if shape is None:
        plane, partition = (max(2, 2 * ceil(float(part.max()))) for part in (np.abs(k[:2]), np.abs(k[2])))
        shape = (plane, plane) if not k[2].any() else (partition, plane, plane)
    try:
        radians = from_bart(torch.from_numpy(np.ascontiguousarray(k)), shape)[0].numpy()
    except DataError as error:
        raise DataError(f"the trajectory that goes with {path} cannot be used: {error}") from None
    samples = kspace.shape[1]
    values = np.array(kspace[0].transpose(2, 1, 0), order="C").reshape(kspace.shape[_COIL], -1)
    sizes = (*reversed(shape), 1)[:_COIL]
    single = tuple(range(len(shape), _COIL))
    maps = _maps(path, chosen, sizes, len(values), single)
    return RawScan(values, trajectory=radians, shape=tuple(shape), readout=samples, maps=maps, coords=coords)


def _maps(
    path: Path, chosen: dict[str, NDArray[Any]], sizes: tuple[int, ...], coils: int, single: tuple[int, ...]
) -> NDArray[np.complex64] | None:
    """Coil maps, ``(coil, *spatial)``, or ``(set, coil, *spatial)`` where there are several."""
    if "maps" not in chosen:
        return None
    maps = chosen["maps"]
    if maps.shape[: _COIL + 1] != (*sizes, coils):
        raise DataError(f"maps must have the sizes {(*sizes, coils)} to go with {path}, got {maps.shape[: _COIL + 1]}")
    values = np.array(maps.transpose().squeeze(tuple(4 - axis for axis in single)), order="C")
    return values[0] if len(values) == 1 else values
