"""Files of visibilities: UVFITS and UVH5 by pyuvdata, CASA measurement sets by casacore.

All become a `Source`: times, baselines and antennas of its rows are in memory, and correlations are read when they are
wanted, as `Block` of the same units and signs whatever the format (`ambient_sci.datasets.importers.radio` says which).
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import AmbientError, ConfigError, DataError, NotFoundError
from ambient_sci.operators.interferometer import LIGHT

__all__ = ["DAY", "Block", "Source", "find_files", "longest_baseline", "open_file", "scan_rows", "time_bins"]

SUFFIXES = (".uvfits", ".uvf", ".uvh5", ".ms")
DAY = 86400.0  # in seconds

_AIPS = {1: "I", -1: "RR", -2: "LL", -5: "XX", -6: "YY"}
_CASA = {1: "I", 5: "RR", 8: "LL", 9: "XX", 12: "YY"}
_MJD = 2400000.5  # Julian date of day zero


@dataclass(frozen=True)
class Block:
    """Some rows of a file: correlations of two antennas at one time, in some channels.

    ``data`` and ``weights`` are ``(row, channel, hand)``, weights zero where flagged; ``baselines`` metres, ``(row,
    3)``; ``times`` modified Julian dates and ``antennas`` ``(row, 2)``; ``frequencies``, ``widths`` in Hz and numbers
    of spectral ``windows``, ``(channel,)``. Correlations and baselines are from antenna 1 to antenna 2. ``total`` says
    that Stokes I is the sum of the hands.
    """

    data: NDArray[np.complexfloating[Any]]
    weights: NDArray[np.floating[Any]]
    baselines: NDArray[np.float64]
    times: NDArray[np.float64]
    exposures: NDArray[np.float64]
    antennas: NDArray[np.int64]
    frequencies: NDArray[np.float64]
    widths: NDArray[np.float64]
    windows: NDArray[np.int64]
    hands: tuple[str, ...]
    total: bool = False


class Source(Protocol):
    """A file that is open: rows are numbered, and read when they are wanted."""

    telescope: str
    scatter: bool
    times: NDArray[np.float64]
    exposures: NDArray[np.float64]
    fields: NDArray[np.int64]
    antennas: NDArray[np.int64]
    baselines: NDArray[np.float64]
    highest: float

    def field(self, number: int) -> tuple[str, float, float]:
        """Name, and right ascension and declination in degrees, ICRS."""

    def name(self, number: int) -> str:
        """Name of a field."""

    def read(self, rows: NDArray[np.int64]) -> list[Block]:
        """Read rows, ascending."""


class _UVData:
    """UVFITS and UVH5 files, by pyuvdata."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind, self.scatter = path, kind, kind == "uvh5"
        with _reading(path, kind):
            uv = self._load(read_data=False)
            self.telescope = str(uv.telescope.name)
            self.times = np.asarray(uv.time_array, float) - _MJD
            self.exposures = np.asarray(uv.integration_time, float)
            self.fields = np.asarray(uv.phase_center_id_array, np.int64)
            self.antennas = np.stack([uv.ant_1_array, uv.ant_2_array], 1).astype(np.int64)
            self.baselines = np.asarray(uv.uvw_array, float)
            self.highest = float(uv.freq_array.max())
            self._catalog = {int(number): dict(entry) for number, entry in uv.phase_center_catalog.items()}
            units = str(uv.vis_units)
        _check_units(path, units)

    def _load(self, **options: Any) -> Any:
        from pyuvdata import UVData

        uv = UVData()
        read = uv.read_uvh5 if self.kind == "uvh5" else uv.read_uvfits
        if self.kind == "uvh5":
            options["data_array_dtype"] = np.complex64
        # the checks of shapes only: those of positions and times would refuse or comment on what is not used here
        read(str(self.path), background_lsts=False, run_check_acceptability=False, check_extra=False,
             check_autos=False, fix_autos=False, **options)  # fmt: skip
        return uv

    @cached_property
    def _whole(self) -> Any:
        return self._load()  # pyuvdata reads all of a UVFITS file, whatever part of it is wanted

    def name(self, number: int) -> str:
        return str(self._catalog[number]["cat_name"])

    def field(self, number: int) -> tuple[str, float, float]:
        entry, name = self._catalog[number], self.name(number)
        if entry["cat_type"] not in ("sidereal", "ephem"):
            raise DataError(
                f"{self.path}: the field {name!r} is {entry['cat_type']}: its visibilities are not phased to a point "
                "of the sky; phase them first (pyuvdata's UVData.phase)"
            )
        with _reading(self.path, self.kind):
            middle = np.size(entry["cat_lon"]) // 2  # of a body that moves
            longitude, latitude = (float(np.atleast_1d(entry[f"cat_{angle}"])[middle]) for angle in ("lon", "lat"))
            return (name, *_icrs(longitude, latitude, str(entry["cat_frame"]), entry["cat_epoch"]))

    def read(self, rows: NDArray[np.int64]) -> list[Block]:
        with _reading(self.path, self.kind):
            if self.kind == "uvh5":
                uv, part = self._load(blt_inds=rows), np.arange(len(rows))
            else:
                uv, part = self._whole, rows
            if uv.flex_spw_polarization_array is not None:
                raise DataError(f"{self.path} has another polarisation in each of its spectral windows")
            codes = [int(code) for code in uv.polarization_array]
            hands = [hand for hand, code in enumerate(codes) if code in _AIPS]
            names = tuple(_AIPS[codes[hand]] for hand in hands)
            _check_hands(self.path, names, [f"AIPS's number {code}" for code in codes])
            data = uv.data_array[part][..., hands]
            widths = np.broadcast_to(np.abs(uv.channel_width), uv.freq_array.shape).astype(float)
            weights = np.where(uv.flag_array[part][..., hands], 0, uv.nsample_array[part][..., hands])
            if self.kind == "uvh5":
                weights = weights * self.exposures[rows, None, None] * widths[:, None]
            windows = uv.flex_spw_id_array
            if windows is None:
                windows = np.full(len(uv.freq_array), uv.spw_array[0])
            return [
                Block(
                    data, _usable(data, weights), self.baselines[rows], self.times[rows], self.exposures[rows],
                    self.antennas[rows], np.asarray(uv.freq_array, float), widths, np.asarray(windows, np.int64),
                    names, uv.pol_convention == "sum",
                )
            ]  # fmt: skip


class _MeasurementSet:
    """Measurement sets, by casacore: pyuvdata would read all of one at once."""

    def __init__(self, path: Path, column: str | None) -> None:
        self.path, self.scatter = path, False
        with _reading(path, "ms"):
            table = self._table()
            there = set(table.colnames())
            self.column = column or ("CORRECTED_DATA" if "CORRECTED_DATA" in there else "DATA")
            if self.column not in there:
                data = sorted(name for name in there if name.endswith("DATA"))
                raise ConfigError(
                    f"{path} has no column {self.column!r}; it has {', '.join(data) or 'no visibilities'}"
                )
            units = table.getcolkeywords(self.column).get("QuantumUnits", "Jy")
            self.times = table.getcol("TIME") / DAY
            self.exposures = np.asarray(table.getcol("EXPOSURE"), float)
            self.fields = np.asarray(table.getcol("FIELD_ID"), np.int64)
            self.antennas = np.stack([table.getcol("ANTENNA1"), table.getcol("ANTENNA2")], 1).astype(np.int64)
            self.baselines = np.asarray(table.getcol("UVW"), float)
            self._descriptions = np.asarray(table.getcol("DATA_DESC_ID"), np.int64)
            windows = self._table("SPECTRAL_WINDOW")
            self._frequencies = [np.asarray(windows.getcell("CHAN_FREQ", k), float) for k in range(windows.nrows())]
            self._widths = [np.abs(np.asarray(windows.getcell("CHAN_WIDTH", k), float)) for k in range(windows.nrows())]
            description = self._table("DATA_DESCRIPTION")
            self._window_of = description.getcol("SPECTRAL_WINDOW_ID")
            # not of windows that no baseline has, such as those of water vapour radiometers
            used = np.unique(self._descriptions[self.antennas[:, 0] != self.antennas[:, 1]])
            self.highest = max((float(self._frequencies[self._window_of[k]].max()) for k in used), default=0.0)
            polarisations, number = self._table("POLARIZATION"), description.getcol("POLARIZATION_ID")
            self._codes = [[int(code) for code in polarisations.getcell("CORR_TYPE", k)] for k in number]
            self.telescope = str(self._table("OBSERVATION").getcell("TELESCOPE_NAME", 0))
        _check_units(path, units if isinstance(units, str) else str(units[0]))

    def _table(self, name: str = "") -> Any:
        from casacore import tables

        return tables.table(f"{self.path}/{name}" if name else str(self.path), ack=False)

    def name(self, number: int) -> str:
        with _reading(self.path, "ms"):
            return str(self._table("FIELD").getcell("NAME", number))

    def field(self, number: int) -> tuple[str, float, float]:
        with _reading(self.path, "ms"):
            table = self._table("FIELD")
            lon, lat = np.asarray(table.getcell("PHASE_DIR", number), float).reshape(-1, 2)[0]
            about = table.getcolkeyword("PHASE_DIR", "MEASINFO")
            frame = about.get("Ref", "J2000")
            if "VarRefCol" in about:
                codes = [int(code) for code in about["TabRefCodes"]]
                frame = about["TabRefTypes"][codes.index(int(table.getcell(about["VarRefCol"], number)))]
            known = {"J2000": ("fk5", 2000.0), "ICRS": ("icrs", None), "B1950": ("fk4", 1950.0)}
            if frame not in known:
                raise DataError(f"{self.path}: a phase centre in the frame {frame} is no point of the sky")
            return (self.name(number), *_icrs(lon, lat, *known[frame]))

    def read(self, rows: NDArray[np.int64]) -> list[Block]:
        with _reading(self.path, "ms"):
            number = self._descriptions[rows]
            return [self._block(rows[number == one], int(one)) for one in np.unique(number)]

    def _block(self, rows: NDArray[np.int64], description: int) -> Block:
        table = self._table().selectrows([int(row) for row in rows])
        codes, window = self._codes[description], int(self._window_of[description])
        hands = [hand for hand, code in enumerate(codes) if code in _CASA]
        names = tuple(_CASA[codes[hand]] for hand in hands)
        _check_hands(self.path, names, [f"CASA's number {code}" for code in codes])
        data = np.asarray(table.getcol(self.column)[..., hands])
        flags = table.getcol("FLAG")[..., hands] | table.getcol("FLAG_ROW")[:, None, None]
        try:
            weights = table.getcol("WEIGHT_SPECTRUM")[..., hands]
        except RuntimeError:  # it is not there, or was never written
            weights = table.getcol("WEIGHT")[:, None, hands]
        weights = np.where(flags, 0, np.broadcast_to(weights, data.shape))
        return Block(
            data, _usable(data, weights), self.baselines[rows], self.times[rows], self.exposures[rows],
            self.antennas[rows], self._frequencies[window], self._widths[window],
            np.full(len(self._frequencies[window]), window), names,
        )  # fmt: skip


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Make one line of whatever a library says of a file that it cannot read, and nothing of what it comments."""
    library = "casacore" if kind == "ms" else "pyuvdata"
    try:
        __import__(library)
        from astropy.utils import iers
    except ImportError as error:
        distribution = "python-casacore" if kind == "ms" else "pyuvdata"
        raise ConfigError(f"reading {path} needs {distribution}: pip install 'ambient-sci[radio]'") from error
    try:
        # the Earth's orientation of the day, which would be fetched, does not enter: baselines are those of the file
        with warnings.catch_warnings(), iers.conf.set_temp("auto_download", False):
            warnings.simplefilter("ignore")
            with iers.conf.set_temp("iers_degraded_accuracy", "ignore"):
                yield
    except AmbientError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read: {type(error).__name__} {said}") from error


def open_file(path: Path, column: str | None) -> Source:
    """Open a file or a measurement set, by what it is and not by its name; ``column`` is one of a measurement set."""
    if path.is_dir():
        return _MeasurementSet(path, column)
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return _UVData(path, "uvh5")
    if start == b"SIMPLE  ":
        return _UVData(path, "uvfits")
    raise DataError(f"{path} is neither a UVFITS nor a UVH5 file nor a measurement set")


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Find what there is to read in folders that are no measurement set."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"nothing to import at {path}: there is no such file or folder")
        if path.is_dir() and not (path / "table.dat").exists():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
            if not inside:
                raise NotFoundError(f"no visibilities in the folder {path}: nothing ends in {', '.join(SUFFIXES)}")
            files += inside
        else:
            files.append(path)
    return files


def _icrs(longitude: float, latitude: float, frame: str, epoch: float | None) -> tuple[float, float]:
    """Right ascension and declination in degrees, of radians in a frame that files name."""
    from astropy import coordinates
    from astropy.time import Time

    frames = {
        "icrs": lambda: coordinates.ICRS(),
        "fk5": lambda: coordinates.FK5(equinox=Time(epoch or 2000.0, format="jyear")),
        "fk4": lambda: coordinates.FK4(equinox=Time(epoch or 1950.0, format="byear")),
    }
    if frame not in frames:
        raise DataError(f"a phase centre must be in one of the frames {', '.join(frames)}, got {frame!r}")
    place = coordinates.SkyCoord(longitude, latitude, unit="rad", frame=frames[frame]()).icrs
    return float(place.ra.deg), float(place.dec.deg)


def _check_hands(path: Path, names: Sequence[str], every: Sequence[str]) -> None:
    if not names:
        raise DataError(f"{path} has no Stokes I: I, RR, LL, XX or YY is needed, and it has {', '.join(every)}")


def _check_units(path: Path, units: str) -> None:
    if units.lower() == "uncalib":
        warnings.warn(f"{path} says that its visibilities are not calibrated; they are taken to be in Jy", stacklevel=2)
    elif units.lower() != "jy":
        raise DataError(f"visibilities must be in Jy, those of {path} are in {units!r}")


def _usable(data: NDArray[np.complexfloating[Any]], weights: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Weights that are zero where nothing can be made of a sample."""
    return np.where(np.isfinite(data) & np.isfinite(weights) & (weights > 0), weights, 0)


def _selected(source: Source, field: str | None) -> NDArray[np.bool_]:
    """Rows that are wanted: no autocorrelations, of one field or of all."""
    cross = source.antennas[:, 0] != source.antennas[:, 1]
    if field is None:
        return np.asarray(cross)
    numbers = [number for number in np.unique(source.fields) if source.name(int(number)) == field]
    return np.asarray(cross & np.isin(source.fields, numbers))


def longest_baseline(source: Source, field: str | None) -> float:
    """Longest baseline in wavelengths of the highest frequency."""
    lengths = np.hypot(source.baselines[:, 0], source.baselines[:, 1])[_selected(source, field)]
    return float(lengths.max(initial=0)) * source.highest / LIGHT


def scan_rows(source: Source, field: str | None, interval: float | None) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Give the number of the field and the ascending rows of every scan."""
    selected = _selected(source, field)
    for number in np.unique(source.fields[selected]):
        rows = np.flatnonzero(selected & (source.fields == number))
        part = time_bins(source.times[rows], source.exposures[rows], None, interval or math.inf)
        for one in np.unique(part):
            yield int(number), rows[part == one]


def time_bins(
    times: NDArray[np.float64], exposures: NDArray[np.float64], start: float | None, seconds: float
) -> NDArray[np.int64]:
    """Which interval each time falls in, counted from where the first integration begins.

    Middles of integrations are then never on an edge where the interval is a whole number of integrations.
    """
    first = (times - exposures / 2 / DAY).min() if start is None else start
    return np.floor((times - first) * DAY / seconds).astype(np.int64)
