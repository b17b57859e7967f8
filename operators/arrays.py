r"""Arrays of radio telescopes, and the uv coverage of an observation with them.

Two stations of an array, at :math:`r_i` and :math:`r_j`, measure one spatial frequency of the sky at a time, the
baseline :math:`r_j - r_i` as the source sees it, in wavelengths (Thompson, Moran and Swenson 2017, *Interferometry and
Synthesis in Radio Astronomy*, eq. 4.1):

.. math::
   \begin{pmatrix} u \\ v \\ w \end{pmatrix} = \frac{\nu}{c}
   \begin{pmatrix} \sin H & \cos H & 0 \\ -\sin\delta \cos H & \sin\delta \sin H & \cos\delta \\
   \cos\delta \cos H & -\cos\delta \sin H & \sin\delta \end{pmatrix} (r_j - r_i)

for a source at the declination :math:`\delta` and the hour angle :math:`H`; :math:`u` points East, :math:`v` North and
:math:`w` towards the source. Station coordinates have their first axis in the meridian that hour angles count from, the
second to the East, the third along the pole: geocentric coordinates turned by the longitude of that meridian. The
correlation :math:`\langle E_i \bar E_j \rangle` is then the visibility
:math:`\int I(l, m) \, e^{-2\pi i (u l + v m)} \, dl \, dm` of `ambient_sci.operators.interferometer`. Data that count
baselines the other way, such as :math:`u = (r_i - r_j) \nu / c` in the UVFITS files of the EHT, hold its conjugate.

A baseline counts while the source stands above the elevation limit for both of its stations, above the horizon of the
ellipsoid WGS84, and no other dish of the array shadows either of them. Precession, refraction and the Earth's rotation
within one integration are left out.

Arrays that come with the package, read by `array`:

=============================== ================================================================
``vla-a`` ... ``vla-d``         the VLA's four configurations, 36.6 km to 1.0 km across
``alma-c1`` ... ``alma-c10``    ALMA's 12 m array, 160 m to 16 km across
``eht-2017``                    the eight stations of the Event Horizon Telescope in April 2017
=============================== ================================================================
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Self

import torch
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = ["ARRAYS", "Array", "Coverage", "array", "random_tracks", "uv_tracks"]

ARRAYS = (
    "alma-c1",
    "alma-c2",
    "alma-c3",
    "alma-c4",
    "alma-c5",
    "alma-c6",
    "alma-c7",
    "alma-c8",
    "alma-c9",
    "alma-c10",
    "eht-2017",
    "vla-a",
    "vla-b",
    "vla-c",
    "vla-d",
)
"""Names that `array` knows."""

LIGHT = 299792458.0  # m/s
EQUATOR, FLATTENING = 6378137.0, 1 / 298.257223563  # of WGS84: radius in metres
ECCENTRICITY_2 = FLATTENING * (2 - FLATTENING)


@dataclass(frozen=True, eq=False)
class Array:
    """Positions and dishes of the stations of an interferometer.

    Parameters
    ----------
    name
        Name of the array.
    stations
        Names of the stations.
    positions
        Geocentric (ITRF) positions in metres, ``(n_stations, 3)``; `from_enu` takes local ones.
    diameters
        Diameters of the dishes in metres, ``(n_stations,)``, or one number for all.
    longitude
        Longitude of the meridian that hour angles count from, in degrees to the East; 0 is Greenwich.
    source
        Where the positions come from.

    Raises
    ------
    DataError
        If the numbers of stations differ or are less than two, or if positions are not geocentric.
    """

    name: str
    stations: tuple[str, ...]
    positions: Tensor
    diameters: Tensor
    longitude: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        stations = tuple(self.stations)
        positions = torch.as_tensor(self.positions, dtype=torch.float64)
        diameters = torch.as_tensor(self.diameters, dtype=torch.float64)
        if len(stations) < 2 or positions.shape != (len(stations), 3):
            raise DataError(
                f"positions must be (n_stations, 3) for 2 stations or more, got {tuple(positions.shape)} "
                f"for {len(stations)} stations"
            )
        if diameters.shape not in ((), (len(stations),)) or not bool((diameters > 0).all()):
            raise DataError(f"diameters must be one or {len(stations)} lengths above 0 m, got {self.diameters}")
        lowest = float(positions.norm(dim=1).min())
        if not 6.3e6 < lowest < math.inf:
            raise DataError(
                f"positions must be geocentric metres, 6.3e6 or more from the Earth's centre, got {lowest:.6g} "
                "(Array.from_enu takes local coordinates)"
            )
        for name, value in (
            ("stations", stations),
            ("positions", positions),
            ("diameters", diameters.expand(len(stations))),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_enu(
        cls,
        name: str,
        stations: Sequence[str],
        positions: Tensor,
        diameters: Tensor | float,
        longitude: float,
        latitude: float,
        height: float = 0.0,
        source: str = "",
    ) -> Self:
        """Make an array of local positions: East, North and up in the tangent plane of a point.

        Parameters
        ----------
        name, stations, diameters, source
            As for the class.
        positions
            Metres to the East, to the North and up, ``(n_stations, 3)``.
        longitude, latitude
            Geodetic coordinates of the origin in degrees (WGS84); hour angles count from its meridian.
        height
            Height of the origin above the ellipsoid in metres.
        """
        positions = torch.as_tensor(positions, dtype=torch.float64)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise DataError(f"positions must be (n_stations, 3), got {tuple(positions.shape)}")
        phi, lam = math.radians(latitude), math.radians(longitude)
        east = [-math.sin(lam), math.cos(lam), 0.0]
        north = [-math.sin(phi) * math.cos(lam), -math.sin(phi) * math.sin(lam), math.cos(phi)]
        up = [math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)]
        curvature = EQUATOR / math.sqrt(1 - ECCENTRICITY_2 * math.sin(phi) ** 2)
        flat = torch.tensor([1, 1, 1 - ECCENTRICITY_2], dtype=torch.float64)
        axes = torch.tensor([east, north, up], dtype=torch.float64)
        geocentric = axes[2] * (curvature * flat + height) + positions @ axes
        return cls(name, tuple(stations), geocentric, torch.as_tensor(diameters), longitude, source)

    def __len__(self) -> int:
        return len(self.stations)

    @property
    def geodetic(self) -> Tensor:
        """Longitude and latitude in degrees and height in metres of every station (WGS84), ``(n_stations, 3)``."""
        # Bowring 1985, Survey Review 28:202, exact to a micrometre for stations on the ground
        x, y, z = self.positions.unbind(1)
        axis, pole = torch.hypot(x, y), EQUATOR * (1 - FLATTENING)
        reduced = torch.atan2(z * EQUATOR, axis * pole)
        latitude = torch.atan2(
            z + ECCENTRICITY_2 / (1 - ECCENTRICITY_2) * pole * reduced.sin() ** 3,
            axis - ECCENTRICITY_2 * EQUATOR * reduced.cos() ** 3,
        )
        sine, cosine = latitude.sin(), latitude.cos()
        height = axis * cosine + z * sine - EQUATOR * torch.sqrt(1 - ECCENTRICITY_2 * sine**2)
        return torch.stack([torch.atan2(y, x).rad2deg(), latitude.rad2deg(), height], dim=1)

    @property
    def longest_baseline(self) -> float:
        """Largest distance between two stations in metres."""
        return float(torch.pdist(self.positions).max())


def array(name: str) -> Array:
    """Read one of the arrays that come with the package.

    Parameters
    ----------
    name
        One of `ARRAYS`.

    Raises
    ------
    DataError
        If there is no array of that name.
    """
    if name not in ARRAYS:
        raise DataError(f"no array {name!r}, there are {', '.join(ARRAYS)}")
    lines = files("ambient_sci.operators").joinpath("data", f"{name}.csv").read_text(encoding="utf-8").splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    stations = tuple(row["station"] for row in table)
    diameters = torch.tensor([float(row["diameter"]) for row in table], dtype=torch.float64)

    def columns(*names: str) -> Tensor:
        return torch.tensor([[float(row[column]) for column in names] for row in table], dtype=torch.float64)

    longitude, source = float(head["longitude"]), head["source"]
    if "east" not in table[0]:
        return Array(name, stations, columns("x", "y", "z"), diameters, longitude, source)
    local, latitude, height = columns("east", "north", "up"), float(head["latitude"]), float(head["height"])
    return Array.from_enu(name, stations, local, diameters, longitude, latitude, height, source)


@dataclass(frozen=True, eq=False)
class Coverage:
    """What a batch of observations measures: spatial frequencies, one after the other.

    They run over channels, then integrations, then pairs of stations, the pairs fastest:
    ``uvw.unflatten(1, (channels, integrations, -1))`` has them apart.

    Attributes
    ----------
    uvw
        Spatial frequencies in wavelengths, ``(batch, n_visibilities, 3)``, float64; zeros where nothing is measured.
    weights
        Ones, and zeros where a station was missing, shadowed, or had the source below its elevation limit,
        ``(batch, n_visibilities)``, float64.
    pairs
        Indices of the two stations, ``(batch, n_visibilities, 2)``.
    """

    uvw: Tensor
    weights: Tensor
    pairs: Tensor

    @property
    def uv(self) -> Tensor:
        """The two frequencies of a narrow field, ``(batch, n_visibilities, 2)``."""
        return self.uvw[..., :2]

    @property
    def baselines(self) -> Tensor:
        """Numbers of the pairs of stations, ``(batch, n_visibilities)``."""
        i, j = self.pairs.unbind(2)
        return j * (j - 1) // 2 + i

    @property
    def resolution(self) -> Tensor:
        """Full width at half maximum of the beam in radians, one over the longest baseline: ``(batch,)``."""
        longest: Tensor = (self.uv.norm(dim=2) * self.weights).amax(1)
        return 1 / longest

    @property
    def largest_scale(self) -> Tensor:
        """Largest angular scale in radians, 0.6 over the shortest baseline: ``(batch,)``.

        Smooth structure of that size has lost most of its flux (Wilner and Welch 1994, ApJ 427:898).
        """
        shortest: Tensor = self.uv.norm(dim=2).where(self.weights == 1, math.inf).amin(1)
        return 0.6 / shortest


def uv_tracks(
    array: Array,
    declination: Tensor | float,
    hour_angles: Tensor | float,
    frequencies: Tensor | float,
    elevation: float = 10.0,
    present: Tensor | None = None,
) -> Coverage:
    """Spatial frequencies that an array measures while the Earth turns.

    Parameters
    ----------
    array
        The stations.
    declination
        Declination of the source in degrees, one number or one for every scan, ``(batch,)``.
    hour_angles
        Hour angles of the integrations at the array's longitude, in hours: one number, ``(n,)``, or ``(batch, n)``.
    frequencies
        Frequencies of the channels in Hz, one number or ``(n_channels,)``.
    elevation
        Lowest elevation that a station observes at, in degrees.
    present
        Ones for stations that take part and zeros for others, ``(batch, n_stations)``; all of them by default.

    Returns
    -------
    Coverage
        Of ``n_channels * n * n_stations * (n_stations - 1) / 2`` visibilities for every scan.

    Raises
    ------
    DataError
        If an angle, a frequency or a shape is none.
    """
    delta = torch.as_tensor(declination, dtype=torch.float64).reshape(-1)
    hour = torch.atleast_2d(torch.as_tensor(hour_angles, dtype=torch.float64))
    channels = torch.as_tensor(frequencies, dtype=torch.float64).reshape(-1)
    there = torch.ones(1, len(array)) if present is None else torch.as_tensor(present)
    if not bool((delta.abs() <= 90).all()):
        raise DataError(f"declination must be between -90 and 90 degrees, got {declination}")
    if not bool(((channels > 0) & channels.isfinite()).all()):
        raise DataError(f"frequencies must be above 0 Hz, got {frequencies}")
    if there.ndim != 2 or there.shape[1] != len(array):
        raise DataError(f"present must be (batch, {len(array)}) for these stations, got {tuple(there.shape)}")
    batches = {len(delta), len(hour), len(there)} - {1}
    if hour.ndim != 2 or len(batches) > 1:
        raise DataError(
            f"hour_angles must be (n,) or (batch, n) with the batch of declination ({len(delta)}) and "
            f"present ({len(there)}), got {tuple(hour.shape)}"
        )
    if not bool(hour.isfinite().all()):
        raise DataError("hour_angles must be finite")
    delta, angle = delta.deg2rad()[:, None], (hour * 15).deg2rad()
    delta, angle = torch.broadcast_tensors(delta, angle)

    x, y, z = _turned(array.positions, array.longitude).unbind(1)
    sin_h, cos_h, sin_d, cos_d = (part[..., None] for part in (angle.sin(), angle.cos(), delta.sin(), delta.cos()))
    u = sin_h * x + cos_h * y
    v = -sin_d * cos_h * x + sin_d * sin_h * y + cos_d * z
    w = cos_d * cos_h * x - cos_d * sin_h * y + sin_d * z
    stations = torch.stack([u, v, w], dim=-1)  # (batch, n, n_stations, 3), metres

    longitude, latitude, _ = array.geodetic.deg2rad().unbind(1)
    local = angle[..., None] + longitude - math.radians(array.longitude)
    sine = latitude.sin() * sin_d + latitude.cos() * cos_d * local.cos()
    up = (sine >= math.sin(math.radians(elevation))) & (there[:, None] != 0)
    up = up & ~_shadowed(stations, array.diameters, up)

    i, j = torch.triu_indices(len(array), len(array), 1)
    seen = up[..., i] & up[..., j]
    metres = (stations[..., j, :] - stations[..., i, :]) * seen[..., None]
    uvw = metres[:, None] * (channels / LIGHT)[:, None, None, None]  # (batch, channels, n, pairs, 3)
    weights = seen[:, None].to(torch.float64).expand(uvw.shape[:-1])
    pairs = torch.stack([i, j], dim=1).expand(*uvw.shape[:-1], 2)
    return Coverage(uvw.flatten(1, 3), weights.flatten(1), pairs.flatten(1, 3))


def random_tracks(
    batch: int,
    array: Array,
    declination: tuple[float, float],
    start: tuple[float, float],
    duration: float,
    integrations: int,
    frequencies: Tensor | float,
    generator: torch.Generator,
    elevation: float = 10.0,
    lost: float = 0.0,
) -> Coverage:
    """Observations of random sources: a seeded pattern of spatial frequencies.

    Parameters
    ----------
    batch
        Number of scans.
    array, frequencies, elevation
        As in `uv_tracks`.
    declination
        Lowest and highest declination in degrees; sources are uniform on the sphere between them.
    start
        Earliest and latest hour angle of the first integration, in hours.
    duration
        Hours from the first integration to the last.
    integrations
        Number of integrations, evenly spaced.
    generator
        Source of the randomness, on the CPU.
    lost
        Probability with which a station misses a whole observation.

    Returns
    -------
    Coverage
        Of ``batch`` scans.
    """
    if integrations < 1 or duration < 0:
        raise DataError(f"there must be 1 integration or more in 0 h or more, got {integrations} in {duration} h")
    if not 0 <= lost <= 1:
        raise DataError(f"lost must be between 0 and 1, got {lost}")
    if not -90 <= declination[0] <= declination[1] <= 90:
        raise DataError(f"declination must be a range between -90 and 90 degrees, got {declination}")
    low, high = (math.sin(math.radians(bound)) for bound in declination)
    where, when = torch.rand(2, batch, generator=generator, dtype=torch.float64)
    delta = torch.asin((low + (high - low) * where).clamp(-1, 1)).rad2deg()
    first = start[0] + (start[1] - start[0]) * when
    hours = first[:, None] + torch.linspace(0, duration, integrations, dtype=torch.float64)
    present = torch.rand(batch, len(array), generator=generator) >= lost
    return uv_tracks(array, delta, hours, frequencies, elevation, present)


def _turned(positions: Tensor, longitude: float) -> Tensor:
    """Geocentric positions about the pole, so that the first axis lies in a meridian."""
    x, y, z = positions.unbind(1)
    sine, cosine = math.sin(math.radians(longitude)), math.cos(math.radians(longitude))
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=1)


def _shadowed(stations: Tensor, diameters: Tensor, up: Tensor) -> Tensor:
    """Which stations another one hides from the source: ``(batch, n, n_stations)``."""
    apart = torch.cdist(stations[..., :2], stations[..., :2], compute_mode="donot_use_mm_for_euclid_dist")
    overlap = apart < (diameters[:, None] + diameters) / 2
    nearer = stations[..., None, :, 2] > stations[..., :, None, 2]
    return (overlap & nearer & up[..., None, :]).any(-1)
