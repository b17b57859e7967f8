r"""FITS images of the sky: one file for each scan, a further statistic as a further extension.

The images of an `ambient_sci.operators.Interferometer` are the sky as FITS stores it: East is where the column index
falls, North where the row index grows, and the phase centre is the pixel at index ``size // 2``. In the orthographic
projection (``SIN``; Calabretta and Greisen 2002, section 5.1.5) pixels are then equal steps of the direction cosines
:math:`l` and :math:`m`, as they are in the operator.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ambient_sci.datasets.exporting import Images, Volume, plain, warn
from ambient_sci.errors import ConfigError

__all__ = ["write_fits"]

_PLACE = ("right_ascension", "declination", "pixel")


def write_fits(volumes: Iterable[Volume], folder: Path) -> None:
    """Write FITS files, ``<scan>.fits``: real images, with samples and channels as further axes.

    Parameters
    ----------
    volumes
        What to write.
    folder
        Where to.
    """
    try:
        import astropy.io.fits
    except ImportError as error:
        raise ConfigError('writing FITS needs astropy: pip install "ambient-sci[radio]"') from error
    unplaced, total = [], 0
    for volume in volumes:
        for scan in volume.scans():
            total += 1
            placed = all(name in scan.coords[0] for name in _PLACE)
            if not placed:
                unplaced.append(scan.name)
            units: list[Any] = []
            for what, images in scan.images.items():
                if images.part == "complex":
                    raise ConfigError("FITS images are real: leave the part at magnitude, or export the phase")
                kind = astropy.io.fits.ImageHDU if units else astropy.io.fits.PrimaryHDU
                header = astropy.io.fits.Header()
                _describe(header, scan, images)
                if placed:
                    _place(header, scan.coords[0], scan.shape)
                single = tuple(axis for axis in range(3) if images.values.shape[axis] == 1)  # of draw, channel, z
                header["EXTNAME"] = what.upper()
                units.append(kind(images.values.squeeze(single), header))
            astropy.io.fits.HDUList(units).writeto(folder / f"{scan.name}.fits", checksum=True)
    warn(unplaced, total, f"their place in the sky is not known, which takes {', '.join(_PLACE)}; no WCS is written")


def _place(header: Any, coords: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """World coordinates of the first two axes, x and y."""
    step = coords["pixel"] / 3600
    header["WCSAXES"] = 2
    for axis, (kind, sign, centre, size) in enumerate(
        [("RA---SIN", -1, "right_ascension", shape[2]), ("DEC--SIN", 1, "declination", shape[1])], start=1
    ):
        header[f"CTYPE{axis}"] = kind
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = (coords[centre], "phase centre")
        header[f"CDELT{axis}"] = sign * step
        header[f"CRPIX{axis}"] = size // 2 + 1.0
    header["RADESYS"] = "ICRS"


def _describe(header: Any, scan: Volume, images: Images) -> None:
    coords, attrs = scan.coords[0], scan.provenance
    if images.units != "arbitrary":
        header["BUNIT"] = images.units
    header["BTYPE"] = ("Intensity", images.about)
    for keyword, name, comment in (
        ("OBJECT", "field", ""),
        ("TELESCOP", "telescope", ""),
        ("FREQ", "frequency", "[Hz] mean frequency of the visibilities"),
        ("BANDWID", "bandwidth", "[Hz] width of their band"),
    ):
        if name in coords:
            header[keyword] = (_ascii(coords[name]), comment)
    if "time" in coords:
        from astropy.time import Time

        header["MJD-OBS"] = (coords["time"], "[d] time of the measurement")
        header["DATE-OBS"] = Time(coords["time"], format="mjd", scale="utc").isot
        header["TIMESYS"] = "UTC"
    if "created" in attrs:
        header["DATE"] = (datetime.fromisoformat(attrs["created"]).replace(tzinfo=None).isoformat(), "UTC")
    header["CREATOR"] = f"ambient-sci {attrs['export_version']}"
    for keyword, name, comment in (
        ("PRIOR", "prior", "fingerprint of the prior"),
        ("STORE", "store", "fingerprint of the measurements"),
        ("NSAMPLES", "samples", "posterior samples"),
        ("INTERVAL", "interval", "level of the credible interval"),
    ):
        if name in attrs:
            header[keyword] = (_ascii(attrs[name]), comment)
    header.add_comment(f"The values are the {images.about}.")
    for name, value in attrs.items():
        header.add_history(_ascii(f"{name} = {value}"))


def _ascii(value: Any) -> Any:
    """Keep what a card can hold: text of printable ASCII."""
    value = plain(value) if isinstance(value, np.generic) else value
    return re.sub(r"[^ -~]", "?", value) if isinstance(value, str) else value
