r"""DICOM images, files of their own or a series in a folder, as magnitudes with their place in the patient.

Stored numbers become values by each frame's rescale slope and intercept (PS3.3, C.11.1); where the smallest is white
(``MONOCHROME1``) they are turned round first. Frames are sorted along the normal of the first, and where there are
several at one place by their instance number. With the position :math:`p` of the first pixel, directions :math:`r` of
rows and :math:`c` of columns, and the spacings of pixels, the pixel ``size // 2`` lies at

.. math:: p + r \, \Delta_x \lfloor N_x/2 \rfloor + c \, \Delta_y \lfloor N_y/2 \rfloor

in the patient's coordinates (left, back, head), mm (PS3.3, C.7.6.2.1.1). Enhanced files, which keep all of this by
frame or once for all, are read in the same way. Names and dates are not read; the subject is a hash of the patient's
identifier.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.importers.mri import pseudonym, readable
from ambient_sci.errors import ConfigError, DataError

__all__ = ["is_dicom", "read_series"]

_ENDINGS = (".dcm", ".ima")


@dataclass(frozen=True)
class _Frame:
    """One image of a file, and what its header says of it."""

    path: Path
    header: Any
    number: int

    def get(self, sequence: str, name: str) -> Any:
        """Find an attribute of this frame: its own, that of all frames, or that of the file; None if there is none."""
        places = [self.header]
        for group in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            items = self.header.get(group) or []
            number = self.number if group.startswith("Per") else 0
            if number < len(items):
                places += items[number].get(sequence) or []
        found = [place.get(name) for place in places]
        return next((value for value in reversed(found) if value is not None), None)

    @property
    def place(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
        """Position of the first pixel, directions of rows and columns, spacing along y and x, if all are known."""
        values = (
            self.get("PlanePositionSequence", "ImagePositionPatient"),
            self.get("PlaneOrientationSequence", "ImageOrientationPatient"),
            self.get("PixelMeasuresSequence", "PixelSpacing"),
        )
        if any(value is None for value in values):
            return None
        position, directions, spacing = (np.array([float(number) for number in value]) for value in values)
        if (position.size, directions.size, spacing.size) != (3, 6, 2):
            raise DataError(f"{self.path} must have a position of 3 numbers, directions of 6 and a spacing of 2")
        return position, directions.reshape(2, 3), spacing


def is_dicom(path: Path) -> bool:
    """Tell by its ending, or its first bytes, whether a file is DICOM."""
    if path.suffix.lower() in _ENDINGS:
        return True
    if path.suffix or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_series(
    path: Path, files: Iterable[Path], series: str | None, slices: slice
) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    """Read the images of one series.

    Parameters
    ----------
    path
        What to call the series in errors.
    files
        Its files; those without images are left out.
    series
        Number of the series, where files are of several.
    slices
        Which of the sorted frames.

    Returns
    -------
    images, coords
        ``(n, y, x)``, and coordinates as in `ambient_sci.datasets.schema.COORDINATES`.

    Raises
    ------
    ConfigError
        If pydicom or a decoder is missing, or if it is not clear which series is meant.
    DataError
        If files are damaged, or not grey images of one size.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ConfigError(f'reading {path} needs pydicom: pip install "ambient-sci[mri]"') from error
    with readable(path, "DICOM series", pydicom.errors.BytesLengthException):
        frames = _sorted(_frames(path, files, series))
        kept = np.arange(len(frames))[slices]
        if len(kept) == 0:
            raise DataError(f"{path} holds {len(frames)} images, none of which is in slices {slices}")
        chosen = [frames[number] for number in kept]
        return _images(chosen), {"slice": kept, **_coords(chosen)}


def _frames(path: Path, files: Iterable[Path], series: str | None) -> list[_Frame]:
    """Read the headers of one series, and count its frames."""
    headers = [(one, header) for one in files if "Rows" in (header := _header(one)) and "BitsStored" in header]
    if not headers:
        raise DataError(f"{path} holds no DICOM images")
    numbers = sorted({str(header.get("SeriesNumber", "")) for _, header in headers})
    if series is None and len({header.get("SeriesInstanceUID") for _, header in headers}) > 1:
        raise ConfigError(f"{path} holds several series; name one by its number: {', '.join(numbers)}")
    if series is not None:
        headers = [pair for pair in headers if str(pair[1].get("SeriesNumber", "")) == series]
        if not headers:
            raise ConfigError(f"{path} has no series {series}; it has {', '.join(numbers)}")
    return [
        _Frame(one, header, number)
        for one, header in headers
        for number in range(int(header.get("NumberOfFrames") or 1))
    ]


def _header(path: Path) -> Any:
    import pydicom

    with readable(path, "DICOM file", pydicom.errors.InvalidDicomError):
        return pydicom.dcmread(path, stop_before_pixels=True)


def _sorted(frames: list[_Frame]) -> list[_Frame]:
    places = [frame.place for frame in frames]
    first = places[0]
    normal = np.zeros(3) if first is None or any(place is None for place in places) else np.cross(*first[1])

    def key(pair: tuple[_Frame, Any]) -> tuple[float, int, int, str]:
        frame, place = pair
        along = 0.0 if place is None else round(float(normal @ place[0]), 3)
        return along, int(frame.header.get("InstanceNumber") or 0), frame.number, frame.path.name

    return [frame for frame, _ in sorted(zip(frames, places, strict=True), key=key)]


def _coords(frames: list[_Frame]) -> dict[str, NDArray[Any]]:
    coords: dict[str, NDArray[Any]] = {
        "file": np.array([frame.path.stem for frame in frames]),
        "subject": np.array([_subject(frame) for frame in frames]),
        "acquisition": np.array([str(frame.header.get("SeriesDescription") or "") for frame in frames]),
    }
    thickness = [frame.get("PixelMeasuresSequence", "SliceThickness") for frame in frames]
    if all(value is not None for value in thickness):
        coords["pixel_z"] = np.array([float(value) for value in thickness])
    places = [place for frame in frames if (place := frame.place) is not None]
    if len(places) == len(frames):
        position, directions, spacing = (np.stack(values) for values in zip(*places, strict=True))
        middle = np.array([[int(frame.header.Rows) // 2, int(frame.header.Columns) // 2] for frame in frames])
        row, column = directions[:, 0], directions[:, 1]
        centre = position + row * (spacing[:, 1] * middle[:, 1])[:, None] + column * (spacing[:, :1] * middle[:, :1])
        coords |= {"pixel_x": spacing[:, 1], "pixel_y": spacing[:, 0]}
        for name, values in {"position": centre, "row": row, "column": column}.items():
            coords |= {f"{name}_{axis}": values[:, number] for number, axis in enumerate("xyz")}
    return coords


def _subject(frame: _Frame) -> str:
    known = str(frame.header.get("PatientID") or "")
    return pseudonym(known) if known else str(frame.header.get("StudyInstanceUID") or frame.path.parent.name)


def _images(frames: list[_Frame]) -> NDArray[np.float32]:
    images: list[NDArray[np.float32]] = []
    opened: tuple[Path, NDArray[Any]] | None = None
    for frame in frames:
        if opened is None or opened[0] != frame.path:
            opened = frame.path, _pixels(frame)
        stored = opened[1][frame.number]
        if str(frame.header.PhotometricInterpretation) == "MONOCHROME1":
            bits, signed = int(frame.header.BitsStored), int(frame.header.get("PixelRepresentation") or 0)
            stored = (-1 if signed else (1 << bits) - 1) - stored.astype(np.int64)
        slope, intercept = (
            frame.get("PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept")
        )
        values = stored.astype(np.float32) * np.float32(1 if slope is None else slope)
        images.append(values + np.float32(0 if intercept is None else intercept))
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{frame.path} has shape {images[-1].shape}, {frames[0].path.name} has {images[0].shape}; "
                f"images of a series must be of one size"
            )
    return np.stack(images)


def _pixels(frame: _Frame) -> NDArray[Any]:
    """Read all frames of a file, ``(n, y, x)``, as they are stored."""
    import pydicom

    path = frame.path
    if int(frame.header.get("SamplesPerPixel") or 1) != 1 or "PALETTE" in str(frame.header.PhotometricInterpretation):
        raise DataError(f"{path} must be a grey image, got {frame.header.PhotometricInterpretation}")
    with readable(path, "DICOM image"):
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        try:
            values = np.asarray(dataset.pixel_array)
        except RuntimeError as error:  # no decoder, or none that manages
            if not syntax.is_compressed:
                raise
            raise ConfigError(
                f"{path} cannot be decompressed from {syntax.name}: if the file is sound, decompress it, or "
                f"pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            ) from error
    return values[None] if values.ndim == 2 else values
