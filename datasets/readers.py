"""Readers of image files, for simulation: arrays, PNG folders and NIfTI volumes become ``(n, *spatial)`` images.

Magnitudes come back as float32 in [0, 1]: bytes divided by 255, wider integers by the largest value there is, floats by
the largest value where that is above one; what is negative is set to zero. Complex arrays come back as complex64,
divided by the largest magnitude. One factor serves the whole file, so that its images stay comparable.

A new format is a function ``path, options -> (images, coords)`` and a line in `READERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import ConfigError, DataError, NotFoundError

__all__ = ["READERS", "read_images"]

Images = tuple[NDArray[Any], dict[str, NDArray[Any]]]
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
        ``.npy`` or ``.npz`` with an array ``(n, *spatial)`` (or one 2-D image), a PNG file, a folder of PNG files of
        one size, or NIfTI (``.nii``, ``.nii.gz``; needs the ``mri`` extra).
    name
        Which array of an ``.npz``; the first that holds images by default.
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
        ``(n, *spatial)``, float32 or complex64, and coordinates of the scans: ``slice``, and ``file`` for folders.

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
        images = _resize(images, (size,) * (images.ndim - 1) if isinstance(size, int) else size)
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


def _read_png(path: Path, options: Options) -> Images:
    return _stack(path, _png(path), options)


def _read_folder(path: Path, options: Options) -> Images:
    files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".png")
    if not files:
        raise DataError(f"the folder {path} holds no .png files")
    numbers = np.arange(len(files))[options.slices]
    if len(numbers) == 0:
        raise DataError(f"the folder {path} holds {len(files)} .png files, none of which is in slices {options.slices}")
    images = [_png(files[number]) for number in numbers]
    for number, image in zip(numbers, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{files[number]} has shape {image.shape}, {files[numbers[0]].name} has {images[0].shape}; "
                f"images of a folder must be of one size"
            )
    return np.stack(images), {"slice": numbers, "file": np.array([files[number].stem for number in numbers])}


def _png(path: Path) -> NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I")  # 16 bit
            return np.asarray(image, dtype=np.uint16) if deep else np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{path} is not a readable PNG image: {error}") from error


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
    return volume[kept].swapaxes(1, 2)[:, ::-1], {"slice": kept}


READERS: dict[str, Callable[[Path, Options], Images]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".png": _read_png,
    "folder": _read_folder,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
}
"""Readers by file ending; ``"folder"`` is a folder of PNG files."""


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


def _resize(images: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    if len(size) != images.ndim - 1 or min(size) < 1:
        raise ConfigError(f"size must be one number, or one per spatial axis of {images.shape[1:]}, got {size}")
    import torch

    # proportions first: the smallest box of the wanted proportions that holds the image, then resampling
    factor = max(have / want for have, want in zip(images.shape[1:], size, strict=True))
    box = [max(1, round(want * factor)) for want in size]
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
