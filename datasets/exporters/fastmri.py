"""HDF5 files as the evaluation of the fastMRI challenge takes them (Zbontar et al. 2018, arXiv:1811.08839).

One file for each input file, by its name, with the array ``reconstruction`` of magnitudes, ``(slice, y, x)``. Further
statistics are further arrays under their own names, which the evaluation does not look at.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.exporting import Volume, plain, warn
from ambient_sci.errors import ConfigError, DataError

__all__ = ["write_fastmri"]


def write_fastmri(
    volumes: Iterable[Volume],
    folder: Path,
    *,
    crop: Annotated[str | int | None, "keep the centre: 320, or 320x264 for height and width"] = None,
) -> None:
    """Write files for the fastMRI evaluation, ``<file>.h5``.

    Parameters
    ----------
    volumes
        What to write.
    folder
        Where to.
    crop
        Size of the centre to keep, ``320`` or ``"320x264"``, where the challenge's targets have their centre.
    """
    import h5py

    size = _size(crop)
    gaps, total = [], 0
    for volume in volumes:
        total += 1
        path = folder / f"{volume.source}.h5"
        if path.exists():
            raise DataError(
                f"{volume.source} has several volumes (contrasts, repetitions, or gaps between its slices), of which a "
                f"fastMRI file holds one"
            )
        order = np.argsort([coords.get("slice", 0) for coords in volume.coords], kind="stable")
        if min(coords.get("slice", 0) for coords in volume.coords) != 0:
            gaps.append(volume.name)
        with h5py.File(path, "w") as file:
            for number, (what, images) in enumerate(volume.images.items()):
                draws, channels = images.values.shape[:2]
                if images.part not in ("magnitude", "real") or channels > 1:
                    raise ConfigError(
                        f"a fastMRI file holds magnitudes of one channel, got the {images.part} of {channels}"
                    )
                if number == 0 and draws > 1:
                    raise ConfigError("sample cannot be the reconstruction of a fastMRI file; name mean before it")
                values = _centre(images.values[:, 0], size)
                values = values[:, order] if len(order) == values.shape[1] else values
                array = file.create_dataset(
                    what if number else "reconstruction", data=values if draws > 1 else values[0]
                )
                array.attrs["about"], array.attrs["units"] = images.about, images.units
            for name, value in {**volume.coords[0], **volume.provenance}.items():
                if name not in ("slice", "scan"):
                    file.attrs[name] = value if isinstance(value, str | int | float) else str(plain(value))
    warn(gaps, total, "their slices are not numbered from 0; the fastMRI evaluation wants all slices of a file")


def _size(crop: str | int | None) -> tuple[int, int] | None:
    if crop is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(crop))
    if found is None or 0 in (size := (int(found[1]), int(found[2] or found[1]))):
        raise ConfigError(f"crop must be a size such as 320 or 320x264, got {crop!r}")
    return size


def _centre(values: NDArray[Any], size: tuple[int, int] | None) -> NDArray[Any]:
    """Centre of the last two axes, as the challenge crops its targets."""
    if size is None:
        return values
    if any(kept > have for kept, have in zip(size, values.shape[-2:], strict=True)):
        raise ConfigError(f"crop must fit into images of {values.shape[-2:]}, got {size}")
    top, left = ((have - kept) // 2 for kept, have in zip(size, values.shape[-2:], strict=True))
    return values[..., top : top + size[0], left : left + size[1]]
