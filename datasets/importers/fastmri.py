"""FastMRI's HDF5 files, one a volume (Zbontar et al. 2018, arXiv:1811.08839; Knoll et al. 2020, Radiol. AI 2:e190007).

=========================  =================================  ==========================================================
``kspace``                 (slice, coil, y, x), complex       centred; without the coil axis in single-coil files. Rows
                           or (slice, y, x)                   y are the readout, columns x the phase encoding
``mask``                   (x,) or (y, x)                     what was measured, in files for testing
``ismrmrd_header``         text                               matrix and field of view, see `parse_header`
attribute ``patient_id``   text                               a hash already; the ``subject``, or else the file
attribute ``acquisition``  text                               name of the sequence
=========================  =================================  ==========================================================

K-space of slices that vary in width was padded with columns of zeros; these count as not measured, as do those that the
mask leaves out. The readout has twice the field of view of the image. What is beyond is removed
(`ambient_sci.datasets.importers.mri`), unless the header is missing.

``reconstruction_rss`` and ``reconstruction_esc`` are images of fully sampled data, and ``max`` and ``norm`` are
computed from them. **None of them is ever read**: a store for ambient training holds measurements alone, and a scale
taken from an image would tell what was not measured.

**Undersampling.** Files for training and validation are fully sampled, and stay so. With ``pattern`` they are
undersampled once and for all: a pattern of `ambient_sci.operators.patterns` is drawn for each volume, by the name of
its file and the seed, and the samples that it leaves out do not enter the store.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.datasets.importers.mri import (
    Header,
    check_size,
    crop_readout,
    find_files,
    parse_header,
    readable,
    stored_text,
)
from ambient_sci.datasets.raw import RawScan
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.operators.patterns import PATTERNS

__all__ = ["read_fastmri"]

_ENDINGS = (".h5", ".hdf5")
_FORMAT = "fastMRI file (HDF5)"


def read_fastmri(
    paths: list[Path],
    *,
    slices: Annotated[
        tuple[int, int] | None, "first slice and the one to stop before; from the end where below 0"
    ] = None,
    size: Annotated[tuple[int, int] | None, "leave out files whose k-space is not of this size, y x"] = None,
    oversampled: Annotated[bool, "keep the twofold field of view of the readout"] = False,
    pattern: Annotated[str | None, "undersample fully sampled files by this pattern"] = None,
    acceleration: Annotated[float, "all lines or points divided by those that the pattern keeps"] = 4.0,
    calibration: Annotated[int, "width of the centre that the pattern keeps in full"] = 24,
    seed: Annotated[int, "seed of the pattern, with the name of the file"] = 0,
) -> Iterator[RawScan]:
    """Read slices of fastMRI volumes.

    Parameters
    ----------
    paths
        Files, or folders of files that end in ``.h5``.
    slices
        Which slices of every volume; a volume that has none of them is left out.
    size
        Which files, by ``(y, x)`` of what would be yielded: a store holds scans of one size. A
        `Preparation` with a ``matrix`` brings all files to one size instead.
    oversampled
        Keep the readout's field of view as it is.
    pattern, acceleration, calibration, seed
        Retrospective undersampling: name of a pattern in `ambient_sci.operators.patterns.PATTERNS`, and its arguments.

    Yields
    ------
    RawScan
        One slice, ``(coil, y, x)``.

    Raises
    ------
    DataError
        If a file is damaged or not of this format, or cannot be cropped or undersampled.
    ConfigError
        If the pattern is not known.

    Examples
    --------
    ::

        ambient-sci import fastmri multicoil_train/ knees.zarr --pattern random-lines --acceleration 4
        ambient-sci import fastmri multicoil_test/ knees.zarr --coils 8
    """
    if pattern is not None and pattern not in PATTERNS:
        raise ConfigError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    for path in find_files(paths, _ENDINGS):
        with readable(path, _FORMAT), h5py.File(path, "r") as file:
            kspace, mask, header, coords = _open(path, file)
            rows = kspace.shape[-2]
            wanted = rows if oversampled or header is None else header.encodings[0].wanted(0, rows)
            if size is not None and (wanted, kspace.shape[-1]) != tuple(size):
                continue
            drawn = None
            if pattern is not None:
                if mask is not None:
                    raise DataError(f"{path} is undersampled already: it has a mask; leave pattern out")
                shape = (wanted, kspace.shape[-1])
                drawn = _draw(path, pattern, shape, acceleration, calibration, seed)
            for number in range(len(kspace))[slice(*(slices or (None,)))]:
                values, measured = _slice(path, kspace[number], mask, wanted)
                if drawn is not None:
                    measured = measured & drawn
                yield RawScan(
                    values * measured,
                    measured,
                    calibration_width=calibration if drawn is not None and calibration > 0 else None,
                    coords={**coords, "slice": number},
                )


def _open(path: Path, file: Any) -> tuple[Any, NDArray[np.bool_] | None, Header | None, dict[str, Any]]:
    kspace = file.get("kspace")
    if not isinstance(kspace, h5py.Dataset):
        raise DataError(f"{path} has no dataset 'kspace'; it has {', '.join(file) or 'nothing'}")
    if kspace.ndim not in (3, 4) or kspace.dtype.kind != "c" or 0 in kspace.shape:
        raise DataError(
            f"kspace of {path} must be complex (slice, coil, y, x) or (slice, y, x), "
            f"got {kspace.dtype} of shape {kspace.shape}"
        )
    check_size(path, kspace, kspace.shape[1:])
    mask = None
    if "mask" in file:
        found = file["mask"]
        fits = found.shape in (kspace.shape[-1:], kspace.shape[-2:]) and found.dtype.kind in "biuf"
        values = found[()] if fits else None
        if values is None or not np.isin(values, (0, 1)).all():
            raise DataError(
                f"mask of {path} must be zeros and ones of shape {kspace.shape[-1:]} or {kspace.shape[-2:]}, "
                f"got {found.dtype} of shape {found.shape}"
            )
        mask = np.broadcast_to(values.astype(bool), kspace.shape[-2:])
    subject, acquisition = (_attribute(path, file, name) for name in ("patient_id", "acquisition"))
    coords: dict[str, Any] = {"file": path.stem, "subject": subject or path.stem, "acquisition": acquisition}
    header = None
    if "ismrmrd_header" in file:
        header = parse_header(path, stored_text(path, file["ismrmrd_header"]))
        fov = header.encodings[0].encoded.fov
        coords["pixel_y"] = fov[0] / kspace.shape[-2]  # x of the header is the readout
        coords["pixel_x"] = fov[1] / kspace.shape[-1]
        coords["pixel_z"] = header.encodings[0].recon.fov[2]
    return kspace, mask, header, coords


def _slice(
    path: Path, values: NDArray[Any], mask: NDArray[np.bool_] | None, wanted: int
) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """K-space ``(coil, y, x)`` of one slice and what of it was measured, with so many rows."""
    kspace = np.asarray(values if values.ndim == 3 else values[None], np.complex64)
    measured = (kspace != 0).any(0)
    if mask is not None:
        measured &= mask
    if wanted == len(measured):
        return kspace, measured
    lines = measured.any(0)
    if (measured != lines).any():
        raise DataError(
            f"{path} has columns that are not measured in full, so that the readout's field of view cannot be cropped "
            f"without loss; pass oversampled to keep it"
        )
    return crop_readout(kspace, wanted, 1), np.broadcast_to(lines, (wanted, len(lines)))


def _draw(
    path: Path, pattern: str, shape: tuple[int, int], acceleration: float, calibration: int, seed: int
) -> NDArray[np.bool_]:
    digest = hashlib.sha256(f"{seed}/{path.stem}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    try:
        mask = PATTERNS[pattern](1, shape, acceleration, calibration, generator)
    except DataError as error:
        raise DataError(f"{path} cannot be undersampled: {error}") from None
    return np.broadcast_to(mask[0, 0].numpy().astype(bool), shape)


def _attribute(path: Path, file: Any, name: str) -> str:
    if name not in file.attrs:
        return ""
    kind = file.attrs.get_id(name)
    if h5py.check_string_dtype(kind.dtype) is None or kind.shape != ():
        raise DataError(f"attribute {name} of {path} must be text, got {kind.dtype} of shape {kind.shape}")
    value = file.attrs[name]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
