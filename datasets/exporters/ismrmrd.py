"""Images of ISMRM raw data files (MRD), as reconstruction pipelines hand them on: HDF5 through the ``ismrmrd`` package.

One file for each input file. In it ``dataset/image_0`` holds the images of the first statistic, ``image_1`` those of
the second, and so on; each slice, or each scan with an axis z, is an image. The header's position is that of the voxel
at index ``size // 2``, its directions are those in which the indices x, y and z grow; both count towards left, back and
head. Counters are those of the scan, ``user_int[0]`` counts samples. The meta attributes say where images come from.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ambient_sci.datasets.exporting import Images, Volume, plain, warn
from ambient_sci.datasets.geometry import pixel_sizes
from ambient_sci.errors import ConfigError

__all__ = ["write_ismrmrd"]

_COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
_QUANTITATIVE = ("std", "lower", "upper")


def write_ismrmrd(volumes: Iterable[Volume], folder: Path) -> None:
    """Write ISMRMRD images, ``<file>.h5``.

    Parameters
    ----------
    volumes
        What to write.
    folder
        Where to.
    """
    try:
        import ismrmrd
    except ImportError as error:
        raise ConfigError('writing ISMRMRD images needs ismrmrd: pip install "ambient-sci[mri]"') from error
    series: dict[tuple[Any, ...], int] = {}  # images of one series are of one size
    counts: dict[tuple[str, int], int] = {}
    unplaced, total = [], 0
    for volume in volumes:
        total += 1
        if None in volume.geometries:
            unplaced.append(volume.name)
        with ismrmrd.Dataset(folder / f"{volume.source}.h5", "dataset", mode="a") as file:
            for scan in volume.scans():
                for what, images in scan.images.items():
                    before = {number for key, number in series.items() if key[0] == scan.source}
                    number = series.setdefault((scan.source, what, images.values.shape[1:]), len(before))
                    for draw in range(len(images.values)):
                        count = counts[scan.source, number] = counts.get((scan.source, number), 0) + 1
                        image = _image(ismrmrd, scan, what, images, draw)
                        image.image_index, image.image_series_index = count, number
                        file.append_image(f"image_{number}", image)
    warn(unplaced, total, "their place in the patient is not known; the headers have sizes only")


def _image(ismrmrd: Any, scan: Volume, what: str, images: Images, draw: int) -> Any:
    image = ismrmrd.Image(data=images.values[draw])
    coords, geometry = scan.coords[0], scan.geometry
    z, y, x = scan.shape
    directions: Any = np.eye(3)
    if geometry is None:
        sizes: Any = [size or 1.0 for size in pixel_sizes(coords)]
    else:
        sizes, directions = geometry.spacing, (geometry.row, geometry.column, geometry.normal)
        image.position[:] = geometry.place(x // 2, y // 2, z // 2)
    image.version = 1
    image.field_of_view[:] = np.multiply(sizes, (x, y, z))
    image.read_dir[:], image.phase_dir[:], image.slice_dir[:] = directions
    for counter in _COUNTERS:
        number = coords.get(counter)
        if isinstance(number, int) and 0 <= number < 1 << 16:
            setattr(image, counter, number)
    kinds = {"magnitude": "MAGNITUDE", "phase": "PHASE", "complex": "COMPLEX", "real": "REAL"}
    image.image_type = getattr(ismrmrd, f"IMTYPE_{kinds[images.part]}")
    image.user_int[0] = draw
    version = scan.provenance["export_version"]
    meta: dict[str, Any] = {
        "DataRole": "Quantitative" if what in _QUANTITATIVE else "Image",
        "SeriesDescription": images.about,
        "ImageComments": f"for research, not for diagnosis; ambient-sci {version}",
        "Statistic": what,
        "Units": images.units,
    }
    for name, direction in zip(("ImageRowDir", "ImageColumnDir", "ImageSliceDir"), directions, strict=True):
        meta[name] = [f"{value:.9g}" for value in direction]
    if len(images.values) > 1:
        meta["Draw"] = draw
    image.meta = meta | {f"ambient_{name}": plain(value) for name, value in {**coords, **scan.provenance}.items()}
    return image
