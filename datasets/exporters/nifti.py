"""NIfTI volumes, as neuroimaging has them: one file for each volume and statistic.

The axes of the array are (x, y, z), then samples, then channels; millimetres are those of a scanner, towards right,
front and head. Where coordinates do not say where a volume is, the codes of its ``qform`` and ``sform`` are 0: readers
then know the sizes of voxels, nothing else. Where the images come from stands in an extension of the header, as JSON.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ambient_sci.datasets.exporting import Images, Volume, plain, warn
from ambient_sci.datasets.geometry import pixel_sizes
from ambient_sci.errors import ConfigError

__all__ = ["write_nifti"]

_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def write_nifti(
    volumes: Iterable[Volume],
    folder: Path,
    *,
    compress: Annotated[bool, "write .nii.gz rather than .nii"] = True,
) -> None:
    """Write NIfTI files, ``<volume>_<statistic>.nii.gz``.

    Parameters
    ----------
    volumes
        What to write.
    folder
        Where to.
    compress
        Write ``.nii.gz`` rather than ``.nii``.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ConfigError('writing NIfTI needs nibabel: pip install "ambient-sci[mri]"') from error
    unplaced, total = [], 0
    for volume in volumes:
        total += 1
        if volume.geometry is None:
            unplaced.append(volume.name)
        for what, images in volume.images.items():
            path = folder / f"{volume.name}_{what}.nii{'.gz' if compress else ''}"
            nibabel.save(_image(nibabel, volume, images), path)
    warn(unplaced, total, "their place in the patient is not known; the NIfTI files have sizes of voxels only")


def _image(nibabel: Any, volume: Volume, images: Images) -> Any:
    values = images.values.transpose(4, 3, 2, 0, 1)  # to (x, y, z, draw, channel)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    geometry = volume.geometry
    image = nibabel.Nifti1Image(values, None if geometry is None else geometry.ras)
    image.header.set_xyzt_units("mm")
    if geometry is None:
        sizes = [size or 1.0 for size in pixel_sizes(volume.coords[0])]
        image.header.set_zooms((*sizes, *(1.0,) * (values.ndim - 3)))
    else:
        image.set_sform(geometry.ras, _SCANNER)
        # a quaternion knows no shear, as slices have that do not lie straight upon each other
        straight = np.isclose(abs(geometry.normal @ geometry.affine[:3, 2]), geometry.spacing[2], rtol=1e-4)
        image.set_qform(geometry.ras, _SCANNER if straight else 0)
    note = "" if geometry is not None else "place unknown; "
    version = volume.provenance["export_version"]
    image.header["descrip"] = f"{note}{images.about}; ambient-sci {version}".encode("ascii", "replace")[:79]
    about = {"about": images.about, "part": images.part, "units": images.units, **volume.provenance}
    about["scans"] = list(volume.coords)
    extension = json.dumps(about, default=plain).encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", extension))
    shown = np.abs(values) if images.part == "complex" else values
    image.header["cal_min"], image.header["cal_max"] = shown.min(), shown.max()
    return image
