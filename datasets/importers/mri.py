r"""What importers of MRI share: finding files, the header of the MRD format, the field of view of the readout.

**The header.** ISMRMRD files, and fastMRI's too, have an XML header (Inati et al. 2017, Magn. Reson. Med. 77:411) that
gives for each encoding the matrix and the field of view that were encoded and those of the image that is wanted. Both
are in the order x (readout), y (phase encoding), z (partitions or slice), those of this package the other way round.

**The readout** is nearly always sampled more densely than the image needs: twice the field of view costs no time. Where
a readout is complete, its outer field of view is taken away without loss: inverse transform, centre, transform. All
three are orthonormal, so that white noise of standard deviation :math:`\sigma` is afterwards white noise of
:math:`\sigma`, and the values of pixels do not change. Receiver filters fall off towards the edge of the band, and what
is kept is the part of it where noise is white.
"""

import hashlib
import math
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.errors import AmbientError, DataError
from ambient_sci.operators.fourier import centred_fft, centred_ifft

__all__ = [
    "Encoding",
    "Header",
    "Space",
    "check_size",
    "crop_readout",
    "find_files",
    "parse_header",
    "pseudonym",
    "readable",
    "stored_text",
]

_FAULTS: tuple[type[Exception], ...] = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, AttributeError,
    struct.error, zlib.error,
)  # fmt: skip
_DEFLATE = 1032  # times that compression can shrink zeros, at best


@dataclass(frozen=True)
class Space:
    """A matrix and its field of view in mm, both ``(x, y, z)``."""

    matrix: tuple[int, int, int]
    fov: tuple[float, float, float]

    @property
    def pixel(self) -> tuple[float, float, float]:
        """Size of a pixel in mm, ``(x, y, z)``."""
        x, y, z = (fov / size for fov, size in zip(self.fov, self.matrix, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Encoding:
    """One encoding: what was encoded, the image that is wanted, and how lines are counted."""

    encoded: Space
    recon: Space
    centre: tuple[int | None, int | None]
    trajectory: str
    calibration: str

    def wanted(self, axis: int, size: int) -> int:
        """How many of ``size`` samples along axis 0 (x), 1 (y), 2 (z) the wanted field of view needs."""
        return max(1, min(size, round(size * self.recon.fov[axis] / self.encoded.fov[axis])))


@dataclass(frozen=True)
class Header:
    """What this package uses of a header; empty where it does not say.

    Names, birth dates and institutions are not read.
    """

    encodings: tuple[Encoding, ...]
    subject: str
    protocol: str
    noise_bandwidth: float


def find_files(paths: Sequence[Path], endings: Sequence[str]) -> list[Path]:
    """Files as they are given, and those of a folder, with one of these endings, sorted.

    Raises
    ------
    DataError
        If a folder has none, or a file has another ending.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix.lower() in endings)
            if not inside:
                raise DataError(f"the folder {path} holds no files that end in {' or '.join(endings)}")
            found += inside
        elif path.suffix.lower() not in endings:
            raise DataError(f"{path} must end in {' or '.join(endings)}")
        else:
            found.append(path)
    return found


@contextmanager
def readable(path: Path, what: str, *faults: type[Exception]) -> Iterator[None]:
    """Turn whatever libraries raise about a damaged file, and their own ``faults``, into one line."""
    try:
        yield
    except AmbientError:
        raise
    except _FAULTS + faults as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a readable {what}: {text}") from error


def check_size(path: Path, dataset: Any, shape: Sequence[int]) -> None:
    """Check that a file can hold an array of this shape of a dataset of HDF5, before memory is asked for."""
    if dataset.dtype.itemsize * math.prod(shape) > _DEFLATE * path.stat().st_size:
        raise DataError(f"{dataset.name} of {path} has shape {dataset.shape}, which is more than the file can hold")


def stored_text(path: Path, dataset: Any) -> bytes:
    """Read the one string that a dataset of HDF5 holds."""
    import h5py

    # HDF5 follows pointers of other types wherever a damaged file says they lead
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.size != 1:
        raise DataError(f"{dataset.name} of {path} must be text, got {dataset.dtype} of shape {dataset.shape}")
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value if isinstance(value, bytes) else str(value).encode()


def crop_readout(kspace: NDArray[np.complexfloating[Any]], size: int, axis: int = -1) -> NDArray[np.complex64]:
    """Keep the centre of the field of view along an axis that is sampled in full; centred k-space in and out."""
    full = kspace.shape[axis]
    start = full // 2 - size // 2
    image = centred_ifft(torch.from_numpy(np.moveaxis(kspace, axis, -1)), 1)
    cropped = centred_fft(image[..., start : start + size], 1)
    return np.ascontiguousarray(np.moveaxis(cropped.numpy(), -1, axis), np.complex64)


def pseudonym(identifier: str) -> str:
    """Replace a patient's identifier by a hash: the same for one patient, invertible with a list of identifiers."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:16]


def parse_header(path: Path, text: str | bytes) -> Header:
    """Read an XML header.

    Parameters
    ----------
    path
        The file that it is from, for errors.
    text
        The XML.

    Raises
    ------
    DataError
        If it is not XML, or has no encoding with matrix and field of view.
    """
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"the header of {path} is not readable XML: {error}") from error
    for element in root.iter():  # some writers leave the namespace out
        element.tag = str(element.tag).rpartition("}")[2]
    encodings = tuple(_encoding(path, element) for element in root.findall("encoding"))
    if not encodings:
        raise DataError(f"the header of {path} has no encoding; it must have matrix sizes and fields of view")
    bandwidth = _number(path, root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth", 1.0)
    return Header(
        encodings,
        _text(root, "subjectInformation/patientID"),
        _text(root, "measurementInformation/protocolName"),
        bandwidth if 0 < bandwidth <= 1 else 1.0,
    )


def _encoding(path: Path, element: ET.Element) -> Encoding:
    centres = []
    for name in ("kspace_encoding_step_1", "kspace_encoding_step_2"):
        value = _number(path, element, f"encodingLimits/{name}/center", math.nan)
        centres.append(None if math.isnan(value) else int(value))
    return Encoding(
        _space(path, element, "encodedSpace"),
        _space(path, element, "reconSpace"),
        (centres[0], centres[1]),
        _text(element, "trajectory").lower(),
        _text(element, "parallelImaging/calibrationMode").lower(),
    )


def _space(path: Path, element: ET.Element, name: str) -> Space:
    numbers = [
        _number(path, element, f"{name}/{what}/{axis}", math.nan)
        for what in ("matrixSize", "fieldOfView_mm")
        for axis in "xyz"
    ]
    matrix, fov = numbers[:3], numbers[3:]
    if not all(1 <= size <= 65535 for size in matrix) or not all(0 < length < math.inf for length in fov):
        raise DataError(
            f"the header of {path} must have {name} with matrixSize and fieldOfView_mm above 0 along x, y and z, "
            f"got {matrix} and {fov}"
        )
    return Space((int(matrix[0]), int(matrix[1]), int(matrix[2])), (fov[0], fov[1], fov[2]))


def _text(element: ET.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _number(path: Path, element: ET.Element, name: str, missing: float) -> float:
    text = _text(element, name)
    try:
        return float(text) if text else missing
    except ValueError:
        raise DataError(f"the header of {path} must have a number for {name}, got {text[:40]!r}") from None
