r"""DICOM secondary captures, for viewers and archives: derived images that claim nothing of a scanner.

A series for each volume, statistic and sample, with a file for each slice (Secondary Capture Image Storage, DICOM PS3.3
A.8.1). Values :math:`v` become unsigned 16-bit numbers :math:`n` of one slope and intercept for the series,
:math:`v = \text{slope} \cdot n + \text{intercept}`, to within half a slope. Where coordinates say where a slice is, its
place in the patient is written (Standard Extended SOP Class). Identifiers follow from the fingerprints and the values,
so that the same images exported again are the same objects.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.exporting import Images, Volume, plain, warn
from ambient_sci.datasets.geometry import Geometry, pixel_sizes
from ambient_sci.errors import ConfigError

__all__ = ["write_dicom"]

_TOP = 65534  # one less than there is: a slope with few digits may be rounded down
_MJD = datetime(1858, 11, 17)


def write_dicom(volumes: Iterable[Volume], folder: Path) -> None:
    """Write DICOM secondary captures, ``<volume>_<statistic>/<slice>.dcm``.

    Parameters
    ----------
    volumes
        What to write.
    folder
        Where to.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ConfigError('writing DICOM needs pydicom: pip install "ambient-sci[mri]"') from error
    unplaced, total = [], 0
    series = 0
    for volume in volumes:
        total += 1
        if None in volume.geometries:
            unplaced.append(volume.name)
        for what, images in volume.images.items():
            if images.part == "complex" or images.values.shape[1] > 1:
                raise ConfigError("a DICOM image is real and of one channel: leave the part at magnitude, or the phase")
            for draw, values in enumerate(images.values[:, 0]):
                series += 1
                name = f"{volume.name}_{what}" + (f"_{draw}" if len(images.values) > 1 else "")
                (folder / name).mkdir()
                _write_series(pydicom, volume, what, images, draw, values, series, folder / name)
    warn(unplaced, total, "their place in the patient is not known; the DICOM files have sizes of pixels only")


def _write_series(
    pydicom: Any,
    volume: Volume,
    what: str,
    images: Images,
    draw: int,
    values: NDArray[Any],
    series: int,
    folder: Path,
) -> None:
    stored, slope, intercept = _sixteen_bits(pydicom, values)
    # what the images are, and the images: the date alone tells two runs of one sampler apart
    attrs = {name: value for name, value in volume.provenance.items() if name != "created"}
    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    origin = json.dumps(attrs, sort_keys=True, default=plain)
    study = [str(attrs.get("store", digest)), volume.source]
    one = [*study, volume.name, what, str(draw), images.part, origin, digest]
    place = pydicom.Dataset()
    _patient(place, volume.coords[0])
    _common(place, volume, what, images, draw)
    place.StudyInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["study", *study])
    place.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["series", *one])
    place.SeriesNumber = series
    place.RescaleSlope, place.RescaleIntercept, place.RescaleType = slope, intercept, "US"
    low, high = float(values.min()), float(values.max())
    place.WindowCenter = _decimal(pydicom, (low + high) / 2)
    place.WindowWidth = _decimal(pydicom, max(high - low, float(slope)))
    for k, geometry in enumerate(volume.planes()):
        image = pydicom.Dataset()
        image.update(place)
        image.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
        image.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["instance", str(k), *one])
        image.InstanceNumber = k + 1
        if geometry is not None:
            image.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=["frame", *study])
            image.PositionReferenceIndicator = ""
        _place(pydicom, image, geometry, volume.coords[min(k, len(volume.coords) - 1)])
        image.Rows, image.Columns = stored.shape[1:]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = stored[k].tobytes()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{k + 1:04}.dcm", image, enforce_file_format=True)


def _sixteen_bits(pydicom: Any, values: NDArray[Any]) -> tuple[NDArray[np.uint16], Any, Any]:
    """Whole numbers of a slope and an intercept that are written with sixteen characters."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    intercept = _decimal(pydicom, low)
    slope = _decimal(pydicom, (high - low) / _TOP if high > low else 1.0)
    numbers = np.rint((values.astype(np.float64) - float(intercept)) / float(slope))
    return numbers.clip(0, 65535).astype("<u2"), slope, intercept


def _decimal(pydicom: Any, value: float) -> Any:
    """Round a number to what sixteen characters hold."""
    return pydicom.valuerep.DSfloat(pydicom.valuerep.format_number_as_ds(float(value)))


def _patient(image: Any, coords: Mapping[str, Any]) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    subject = str(coords.get("subject", "anonymous")).replace("\\", "_")[:64]
    image.PatientID = image.PatientName = subject
    image.PatientBirthDate = image.PatientSex = ""
    image.StudyDate = image.StudyTime = image.StudyID = image.AccessionNumber = image.ReferringPhysicianName = ""
    if "time" in coords:
        measured = _MJD + timedelta(days=float(coords["time"]))
        image.StudyDate, image.StudyTime = measured.strftime("%Y%m%d"), measured.strftime("%H%M%S")


def _common(image: Any, volume: Volume, what: str, images: Images, draw: int) -> None:
    attrs = volume.provenance
    image.Modality, image.ConversionType = "OT", "WSD"
    image.ImageType = ["DERIVED", "SECONDARY", "POSTERIOR", what.upper()]
    image.Manufacturer = "ambient-sci"
    image.SoftwareVersions = f"ambient-sci {attrs['export_version']}"
    number = f" {draw + 1} of {len(images.values)}" if len(images.values) > 1 else ""
    image.SeriesDescription = f"{images.about}{number}"[:64]
    image.PatientOrientation = ""
    image.BurnedInAnnotation = "NO"
    image.ImageComments = f"for research, not for diagnosis; units: {images.units}"
    facts = "; ".join(f"{name} {plain(value)}" for name, value in attrs.items())
    image.DerivationDescription = f"{images.about}{number}; {facts}"[:1024]
    if "created" in attrs:
        created = datetime.fromisoformat(attrs["created"])
        image.DateOfSecondaryCapture = image.ContentDate = created.strftime("%Y%m%d")
        image.TimeOfSecondaryCapture = image.ContentTime = created.strftime("%H%M%S")


def _place(pydicom: Any, image: Any, geometry: Geometry | None, coords: Mapping[str, Any]) -> None:
    x, y, z = pixel_sizes(coords)
    if geometry is not None:
        image.ImagePositionPatient = [_decimal(pydicom, value) for value in geometry.place(0, 0, 0)]
        directions = (*geometry.row, *geometry.column)
        image.ImageOrientationPatient = [_decimal(pydicom, value) for value in directions]
    if x is not None and y is not None:
        image.PixelSpacing = [_decimal(pydicom, y), _decimal(pydicom, x)]  # from row to row, then in a row
    if z is not None:
        image.SliceThickness = _decimal(pydicom, z)
