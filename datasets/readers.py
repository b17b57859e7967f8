"""Readers of image files, for simulation: arrays, pictures, DICOM series and NIfTI volumes become ``(n, *spatial)``.

Magnitudes come back as float32 in [0, 1]: bytes divided by 255, wider integers by the largest value there is, floats by
the largest value where that is above one; what is negative is set to zero. Complex arrays come back as complex64,
divided by the largest magnitude. One factor serves the whole file, so that its images stay comparable.

DICOM and NIfTI say where images lie in the patient; coordinates are those of the images that are returned, towards
left, back and head.

A new format is a function ``path, options -> (images, coords)`` and a line in `READERS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.dicom import is_dicom, read_series
from ambient_sci.errors import ConfigError, DataError, NotFoundError

__all__ = ["READERS", "read_images"]

Images = tuple[NDArray[Any], dict[str, NDArray[Any]]]
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_EMPTY = 0.02  # a slice with no more than this part of its pixels above a tenth of the volume's range shows nothing


@dataclass(frozen=True)
class Options:
    """What to take out of a file."""

    name: str | None
    axis: int
    slices: slice


def read_images(
    path: str | Path,
    *,
    name: str | None = None,
    axis: int = 2,
    slices: slice | tuple[int, int] | None = None,
    size: int | tuple[int, ...] | None = None,
) -> Images:
    """Read images to simulate scans of.

    Parameters
    ----------
    path
        ``.npy`` or ``.npz`` with an array ``(n, *spatial)`` (or one 2-D image); a picture (PNG, JPEG, TIFF of one or
        more pages) or a folder of pictures of one size; with the ``mri`` extra DICOM (``.dcm``, ``.ima``, or a folder
        of a series) or NIfTI (``.nii``, ``.nii.gz``). Colours of
        pictures become grey.
    name
        Which array of an ``.npz``, the first that holds images by default; or which series of a DICOM folder, by its
        number.
    axis
        Axis of a NIfTI volume along which to take slices: 0 sagittal, 1 coronal, 2 axial, however it is stored.
    slices
        Which images or slices, as ``(start, stop)`` or a slice with a step; all by default. Slices of a volume that
        show next to nothing are left out.
    size
        Spatial size to bring images to: centre-cropped or padded with zeros to the proportions wanted, then resampled.

    Returns
    -------
    images, coords
        ``(n, *spatial)``, float32 or complex64, and coordinates of the scans: ``slice``, ``file`` for folders, and the
        place in the patient where it is known (`ambient_sci.datasets.schema.COORDINATES`).

    Raises
    ------
    NotFoundError
        If there is nothing at ``path``.
    ConfigError
        If the format is not known, or needs an extra that is not installed.
    DataError
        If the file is damaged or does not hold images.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"no images at {path}: there is no such file or folder")
    ending = "folder" if path.is_dir() else _ending(path)
    if ending not in READERS:
        raise ConfigError(f"cannot read {path}: supported are {', '.join(READERS)}; got {ending or 'no file ending'}")
    if isinstance(slices, tuple):
        slices = slice(*slices)
    images, coords = READERS[ending](path, Options(name, axis, slices or slice(None)))
    images = _unit_range(path, images)
    if size is not None:
        before = images.shape[1:]
        images = _resize(images, (size,) * (images.ndim - 1) if isinstance(size, int) else size)
        coords = _moved(coords, before, images.shape[1:])
    return images, coords


def _ending(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _stack(path: Path, array: NDArray[Any], options: Options) -> Images:
    if array.ndim == 2:
        array = array[None]
    if array.ndim not in (3, 4) or array.dtype.kind not in "fciub":
        raise DataError(
            f"{path} must hold numbers (n, height, width) or (n, z, y, x), got {array.dtype} of shape {array.shape}"
        )
    numbers = np.arange(len(array))[options.slices]
    if len(numbers) == 0:
        raise DataError(f"{path} holds {len(array)} images, none of which is in slices {options.slices}")
    return np.asarray(array[options.slices]), {"slice": numbers}


def _read_npy(path: Path, options: Options) -> Images:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy array of numbers: {error}") from error
    return _stack(path, array, options)


def _read_npz(path: Path, options: Options) -> Images:
    import zipfile
    import zlib

    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            if options.name is not None and options.name not in names:
                raise ConfigError(f"{path} has no array {options.name!r}; it has {', '.join(names)}")
            for candidate in [options.name] if options.name else names:
                array = archive[candidate]
                if options.name or array.ndim >= 2:
                    return _stack(path, array, options)
    except ConfigError:
        raise
    except DataError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz archive of numbers: {error}") from error
    raise DataError(f"{path} holds no images: {', '.join(names) or 'no arrays'}")


def _read_picture(path: Path, options: Options) -> Images:
    return _stack(path, _picture(path), options)


def _read_dicom(path: Path, options: Options) -> Images:
    return read_series(path, [path], options.name, options.slices)


def _read_folder(path: Path, options: Options) -> Images:
    entries = sorted(path.iterdir())
    files = [entry for entry in entries if entry.suffix.lower() in _PICTURES]
    if not files:
        series = [entry for entry in entries if is_dicom(entry)]
        if not series:
            raise DataError(f"the folder {path} holds no pictures ({', '.join(_PICTURES)}) and no DICOM files")
        return read_series(path, series, options.name, options.slices)
    numbers = np.arange(len(files))[options.slices]
    if len(numbers) == 0:
        raise DataError(f"the folder {path} holds {len(files)} pictures, none of which is in slices {options.slices}")
    images = [_picture(files[number]) for number in numbers]
    for number, image in zip(numbers, images, strict=True):
        if len(image) != 1:
            raise DataError(f"{files[number]} has {len(image)} pages; pictures of a folder must have one")
        if image.shape != images[0].shape:
            raise DataError(
                f"{files[number]} has shape {image.shape[1:]}, {files[numbers[0]].name} has {images[0].shape[1:]}; "
                f"images of a folder must be of one size"
            )
    return np.concatenate(images), {"slice": numbers, "file": np.array([files[number].stem for number in numbers])}


def _picture(path: Path) -> NDArray[Any]:
    """Read the pages of a picture, ``(n, height, width)``."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    pages = []
    try:
        with Image.open(path) as image:
            for page in ImageSequence.Iterator(image):
                deep = page.mode.startswith(("I", "F"))  # more than 8 bit
                pages.append(np.array(page if deep else page.convert("L")))
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        kind = path.suffix[1:].upper()
        raise DataError(f"{path} is not a readable {kind} image: {error}") from error
    if any(page.shape != pages[0].shape for page in pages):
        raise DataError(f"{path} must have pages of one size, got {sorted({page.shape for page in pages})}")
    return np.stack(pages)


def _read_nifti(path: Path, options: Options) -> Images:
    import zlib

    try:
        import nibabel
    except ImportError as error:
        raise ConfigError(f'reading {path} needs nibabel: pip install "ambient-sci[mri]"') from error
    try:
        canonical: Any = nibabel.as_closest_canonical  # axes from left to right, back to front, bottom to top
        loaded = canonical(nibabel.load(path))
        volume = np.asarray(loaded.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise DataError(f"{path} is not a readable NIfTI volume: {error}") from error
    volume = volume[..., 0] if volume.ndim == 4 and volume.shape[-1] == 1 else volume
    if volume.ndim != 3 or not -3 <= options.axis < 3:
        raise DataError(
            f"{path} must be a volume of three axes, sliced along 0, 1 or 2; got {volume.shape}, {options.axis=}"
        )
    volume = np.moveaxis(volume, options.axis, 0)
    if volume.dtype.kind in "iub":
        volume = volume.astype(np.float32)  # integers of a NIfTI rarely use the range of their type
    kept = np.arange(len(volume))[options.slices]
    bright = np.abs(volume) > 0.1 * np.nanquantile(np.abs(volume), 0.999)
    kept = kept[bright[kept].mean((1, 2)) > _EMPTY]
    if len(kept) == 0:
        raise DataError(f"{path} has no slice that shows anything along axis {options.axis} in {options.slices}")
    # turned so that the front of an axial slice and the top of the others come first
    turned = volume[kept].swapaxes(1, 2)[:, ::-1]
    return turned, {"slice": kept, **_nifti_places(loaded.affine, options.axis % 3, kept, turned.shape[1:])}


def _nifti_places(
    affine: NDArray[Any], axis: int, kept: NDArray[np.intp], shape: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """Coordinates of slices of a volume whose axes go to the right, the front and the head."""
    across, up = (other for other in range(3) if other != axis)
    left_back_head = np.array([-1.0, -1.0, 1.0])
    steps = affine[:3, :3] * left_back_head[:, None]  # column by column, what a voxel more along an axis is in mm
    pixel = np.linalg.norm(steps, axis=0)
    if not np.isfinite(affine).all() or not (pixel > 0).all():
        return {}
    middle = np.zeros((len(kept), 3))
    middle[:, axis] = kept
    middle[:, across] = shape[1] // 2
    middle[:, up] = shape[0] - 1 - shape[0] // 2  # rows are counted from the top
    position = affine[:3, 3] * left_back_head + middle @ steps.T
    count = len(kept)
    coords = {f"pixel_{name}": np.full(count, pixel[of]) for name, of in (("x", across), ("y", up), ("z", axis))}
    row, column = steps[:, across] / pixel[across], -steps[:, up] / pixel[up]
    for number, name in enumerate("xyz"):
        coords[f"position_{name}"] = position[:, number]
        coords[f"row_{name}"] = np.full(count, row[number])
        coords[f"column_{name}"] = np.full(count, column[number])
    return coords


READERS: dict[str, Callable[[Path, Options], Images]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    **dict.fromkeys(_PICTURES, _read_picture),
    ".dcm": _read_dicom,
    ".ima": _read_dicom,
    "folder": _read_folder,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
}
"""Readers by file ending; ``"folder"`` is a folder of pictures or of a DICOM series."""


def _unit_range(path: Path, images: NDArray[Any]) -> NDArray[Any]:
    finite = np.isfinite(images).reshape(len(images), -1).all(1)
    if not finite.all():
        bad = ", ".join(map(str, np.flatnonzero(~finite)[:5]))
        raise DataError(f"{path} has NaN or infinite values in image {bad}")
    if images.dtype.kind == "c":
        return np.asarray(images / max(float(np.abs(images).max()), 1e-30), dtype=np.complex64)
    if images.dtype.kind == "b":
        return images.astype(np.float32)
    if images.dtype.kind in "iu":
        top = float(np.iinfo(images.dtype).max) if images.dtype.itemsize == 1 else float(images.max())
    else:
        top = float(images.max()) if images.max() > 1 else 1.0
    if images.min() < 0:
        images = np.maximum(images, 0)  # interpolation undershoots; a magnitude does not
    return np.asarray(images / max(top, 1e-30), dtype=np.float32)


def _box(have: Sequence[int], size: Sequence[int]) -> list[int]:
    """Smallest box of the proportions of ``size`` that holds an image."""
    factor = max(h / want for h, want in zip(have, size, strict=True))
    return [max(1, round(want * factor)) for want in size]


def _moved(coords: dict[str, NDArray[Any]], before: Sequence[int], after: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Coordinates of images that `_resize` has brought to another size."""
    if "pixel_x" not in coords or "row_x" not in coords:
        return coords
    coords = dict(coords)
    moves = {}
    for axis, have, box, new in zip(("column", "row"), before, _box(before, after), after, strict=True):
        step = box / new
        # index in the old image of the new image's pixel ``new // 2``
        index = (new // 2 + 0.5) * step - 0.5 - (box - min(have, box)) // 2 + (have - min(have, box)) // 2
        name = "pixel_y" if axis == "column" else "pixel_x"
        moves[axis] = (index - have // 2) * coords[name]
        coords[name] = coords[name] * step
    for name in "xyz":
        shift = sum(moves[axis] * coords[f"{axis}_{name}"] for axis in moves)
        coords[f"position_{name}"] = coords[f"position_{name}"] + shift
    return coords


def _resize(images: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    if len(size) != images.ndim - 1 or min(size) < 1:
        raise ConfigError(f"size must be one number, or one per spatial axis of {images.shape[1:]}, got {size}")
    import torch

    # proportions first: the smallest box of the wanted proportions that holds the image, then resampling
    box = _box(images.shape[1:], size)
    padded = np.zeros((len(images), *box), images.dtype)
    into, out_of = [slice(None)], [slice(None)]
    for have, want in zip(images.shape[1:], box, strict=True):
        common = min(have, want)
        into.append(slice((want - common) // 2, (want - common) // 2 + common))
        out_of.append(slice((have - common) // 2, (have - common) // 2 + common))
    padded[tuple(into)] = images[tuple(out_of)]
    if tuple(box) == tuple(size):
        return padded
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]

    def resample(part: NDArray[Any]) -> NDArray[Any]:
        values = torch.from_numpy(np.ascontiguousarray(part))[:, None]
        if len(size) == 3 or len(size) == 1:
            values = torch.nn.functional.interpolate(values, size, mode=mode, align_corners=False)
        else:
            values = torch.nn.functional.interpolate(values, size, mode=mode, align_corners=False, antialias=True)
        return np.asarray(values[:, 0].numpy())

    if images.dtype.kind == "c":
        return np.asarray(resample(padded.real) + 1j * resample(padded.imag), dtype=images.dtype)
    return resample(padded)
