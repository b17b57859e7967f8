"""Station positions and uv coverage, against published numbers and observed coordinates."""

import math
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.arrays import ARRAYS, Array, array, random_tracks, uv_tracks

ROOT = Path(__file__).parents[2]
LIGHT = 299792458.0
ARCSEC = math.pi / 648000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- stations

# Longest baseline in metres, number and diameter of the dishes: VLA Observational Status Summary, section Resolution;
# ALMA Configuration Schedule, Cycles 10-11; EHT Collaboration 2019, ApJL 875 L1 (from Spain to the South Pole).
PUBLISHED = {
    "vla-a": (36.4e3, 27, 25),
    "vla-b": (11.1e3, 27, 25),
    "vla-c": (3.4e3, 27, 25),
    "vla-d": (1.03e3, 27, 25),
    "alma-c1": (0.16e3, 43, 12),
    "alma-c2": (0.31e3, 43, 12),
    "alma-c3": (0.50e3, 43, 12),
    "alma-c4": (0.78e3, 43, 12),
    "alma-c5": (1.4e3, 43, 12),
    "alma-c6": (2.5e3, 43, 12),
    "alma-c7": (3.6e3, 43, 12),
    "alma-c8": (8.5e3, 43, 12),
    "alma-c9": (13.9e3, 43, 12),
    "alma-c10": (16.2e3, 43, 12),
    "eht-2017": (11.4e6, 8, None),
}

# Longitude, latitude and height of positions by astropy 8.0.2, EarthLocation.to_geodetic
GEODETIC = {
    "ALMA": (-67.75474878, -23.02921227, 5072.1482),
    "APEX": (-67.75913986, -23.00577879, 5104.4706),
    "SMT": (-109.89124471, 32.70161116, 3158.7042),
    "SMA": (-155.47754768, 19.82422831, 4115.0621),
    "JCMT": (-155.47702810, 19.82283798, 4120.0529),
    "LMT": (-97.31477988, 18.98577410, 4593.3008),
    "PV": (-3.39260415, 37.06613881, 2919.4106),
    "SPT": (45.00000000, -89.99999987, 2857.3858),
}


def test_arrays_are_the_files_that_are_installed() -> None:
    assert {path.stem for path in (ROOT / "operators" / "data").iterdir()} == set(ARRAYS) == set(PUBLISHED)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["ambient_sci.operators"] == ["data/*.csv"]


@pytest.mark.parametrize("name", ARRAYS)
def test_published_sizes(name: str) -> None:
    longest, count, diameter = PUBLISHED[name]
    one = array(name)
    assert one.name == name
    assert one.source
    assert len(one) == len(set(one.stations)) == count
    assert one.longest_baseline == pytest.approx(longest, rel=0.016)
    if diameter:
        assert one.diameters.tolist() == [diameter] * count
        # everything within the array, and its meridian in the middle
        assert bool((one.geodetic[:, 0] - one.longitude).abs().lt(0.25).all())


def test_geodetic_coordinates() -> None:
    eht = array("eht-2017")
    want = torch.tensor([GEODETIC[name] for name in eht.stations], dtype=torch.float64)
    torch.testing.assert_close(eht.geodetic, want, rtol=0, atol=1e-4)
    torch.testing.assert_close(eht.geodetic[:, 1], want[:, 1], rtol=0, atol=1e-8)


def test_alma_pads_surround_the_phase_centre_of_vlbi() -> None:
    """Two sources of positions: the EHT correlated ALMA at a point in the middle of the compact configuration."""
    alma, eht = array("alma-c1"), array("eht-2017")
    distance = (alma.positions.mean(0) - eht.positions[eht.stations.index("ALMA")]).norm()
    assert float(distance) < 80  # of which 17 m are height


@settings(max_examples=30, deadline=None)
@given(
    longitude=st.floats(-180, 180),
    latitude=st.floats(-89, 89),
    height=st.floats(-400, 6000),
    east=st.floats(-2e3, 2e3),
    north=st.floats(-2e3, 2e3),
    up=st.floats(-50, 50),
)
def test_local_positions(
    longitude: float, latitude: float, height: float, east: float, north: float, up: float
) -> None:
    """East, North and up are what they say by the coordinates that come out."""
    local = double(0, 0, 0, east, north, up, 0, 0, 100).reshape(3, 3)
    one = Array.from_enu("mine", ["a", "b", "c"], local, 25.0, longitude, latitude, height)
    torch.testing.assert_close(torch.pdist(one.positions), torch.pdist(local), rtol=1e-6, atol=1e-6)
    origin, other, above = one.geodetic
    for got, rise in ((origin, 0.0), (above, 100.0)):
        assert math.remainder(float(got[0]) - longitude, 360) == pytest.approx(0, abs=1e-9)
        assert float(got[1]) == pytest.approx(latitude, abs=1e-9)
        assert float(got[2]) == pytest.approx(height + rise, abs=1e-5)
    metre = 1 / 6.37e6
    turn = math.radians(math.remainder(float(other[0]) - longitude, 360))
    # a radian of longitude and latitude is a radius of the Earth to within 1 %, and the tangent plane falls away
    bend = (east**2 + north**2) * metre**2 * (1 + abs(math.tan(math.radians(latitude))))
    assert turn * math.cos(math.radians(latitude)) == pytest.approx(east * metre, rel=0.012, abs=2 * bend + 1e-12)
    assert math.radians(float(other[1]) - latitude) == pytest.approx(north * metre, rel=0.012, abs=2 * bend + 1e-12)
    assert float(other[2]) - height == pytest.approx(up, abs=1.0)


def test_arrays_of_a_user() -> None:
    positions = array("vla-d").positions[:3]
    one = Array("mine", ("a", "b", "c"), positions.float(), 12.0)  # type: ignore[arg-type]
    assert one.positions.dtype == torch.float64
    assert one.diameters.tolist() == [12.0, 12.0, 12.0]
    with pytest.raises(DataError, match=r"2 stations or more.* 1 stations"):
        Array("mine", ("a",), positions[:1], double(12))
    with pytest.raises(DataError, match=r"\(n_stations, 3\).*\(3, 2\)"):
        Array("mine", ("a", "b", "c"), positions[:, :2], double(12))
    with pytest.raises(DataError, match=r"geocentric.*from_enu"):
        Array("mine", ("a", "b", "c"), positions - positions[0], double(12, 12, 12))
    with pytest.raises(DataError, match="diameters must be one or 3"):
        Array("mine", ("a", "b", "c"), positions, double(12, 12))
    with pytest.raises(DataError, match=r"diameters must be .* above 0 m"):
        Array("mine", ("a", "b", "c"), positions, double(0))
    with pytest.raises(DataError, match=r"\(n_stations, 3\), got \(6,\)"):
        Array.from_enu("mine", ["a", "b"], torch.zeros(6), 12.0, 0.0, 0.0)
    with pytest.raises(DataError, match=r"no array 'vla', there are .*vla-a"):
        array("vla")


# ------------------------------------------------------------------------------------------- coordinates

# Baselines of the observation of M87 on 11 April 2017: stations, UTC in days, u and v in seconds, from the file
# SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits of doi:10.25739/g85n-f134 (EHT Collaboration 2019, ApJL 875 L3).
# Its u and v are those of station 1 less station 2, at the mean equinox of J2000, and it gives UT1 - UTC.
M87_RA, M87_DEC, UT1_UTC, JULIAN_DATE = 187.7059307575226, 12.39112323919932, 0.455424, 2457854.5
M87 = [
    ("ALMA", "JCMT", 0.198784724, 0.0243626307, -0.0178147556),
    ("LMT", "PV", 0.182002321, -0.0232070548, -0.0087970322),
    ("SMT", "LMT", 0.183391199, -0.00280432408, 0.0052583023),
    ("ALMA", "PV", 0.053877316, -0.0196100962, -0.0206947834),
    ("LMT", "SMA", 0.302025467, 0.0194222214, -0.000718444422),
    ("SMT", "JCMT", 0.177256942, 0.00963862777, 0.00174115918),
    ("ALMA", "APEX", 0.085011572, 2.85169219e-06, -7.20882572e-06),
    ("APEX", "LMT", 0.175983801, 0.0101214795, -0.0149673831),
    ("APEX", "PV", 0.127025470, -0.0172598055, -0.0225435921),
    ("PV", "SMA", 0.203993052, 0.0356804518, 0.00640363297),
    ("JCMT", "SMA", 0.281539351, 7.28475114e-09, -5.22888142e-07),
    ("SMT", "PV", 0.150520831, -0.027525465, -0.00239103987),
]


@pytest.mark.parametrize(("first", "second", "day", "u", "v"), M87)
def test_observed_coordinates(first: str, second: str, day: float, u: float, v: float) -> None:
    """What the EHT observed: the stations, the signs, the Earth's rotation.

    The file means accumulations of 0.4 s of which some are flagged, so that its times are up to 0.6 s off: an angle of
    4.4e-5. Mean sidereal time as of the IAU in 1982.
    """
    eht = array("eht-2017")
    days = JULIAN_DATE - 2451545 + day + UT1_UTC / 86400
    sidereal = 280.46061837 + 360.98564736629 * days + 0.000387933 * (days / 36525) ** 2
    hour = double(math.remainder(sidereal - M87_RA, 360) / 15)
    coverage = uv_tracks(eht, M87_DEC, hour, 1.0, elevation=0.0)
    pair = [eht.stations.index(second), eht.stations.index(first)]  # u_ij is j less i
    sign = 1 if pair[0] < pair[1] else -1
    (index,) = (coverage.pairs[0] == torch.tensor(sorted(pair))).all(1).nonzero()[0].tolist()
    assert coverage.weights[0, index] == 1
    torch.testing.assert_close(
        sign * coverage.uv[0, index], double(u, v), rtol=0, atol=4.5e-5 * math.hypot(u, v) + 1e-12
    )


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["vla-b", "alma-c6", "eht-2017"]),
    hour=st.floats(-12, 12),
    declination=st.floats(-89.9, 89.9),
    frequency=st.floats(1e8, 1e12),
)
def test_projection(name: str, hour: float, declination: float, frequency: float) -> None:
    """Baselines projected on East, North and the direction of the source, made by cross products."""
    one = array(name)
    coverage = uv_tracks(one, declination, double(hour), frequency, elevation=-90.0)
    meridian = math.radians(one.longitude - 15 * hour)  # where the source culminates
    delta = math.radians(declination)
    source = double(math.cos(delta) * math.cos(meridian), math.cos(delta) * math.sin(meridian), math.sin(delta))
    east = torch.linalg.cross(double(0, 0, 1), source)
    east = east / east.norm()
    axes = torch.stack([east, torch.linalg.cross(source, east), source], dim=1)
    i, j = coverage.pairs[0].unbind(1)
    want = (one.positions[j] - one.positions[i]) @ axes * frequency / LIGHT
    seen = coverage.weights[0] == 1
    assert int(seen.sum()) > 0
    nanometre = 1e-9 * frequency / LIGHT  # the rounding of positions in double precision
    torch.testing.assert_close(coverage.uvw[0][seen], want[seen], rtol=0, atol=10 * nanometre)
    assert not bool(coverage.uvw[0][~seen].any())


def test_order_of_visibilities() -> None:
    """Channels, integrations, pairs; the spatial frequency grows with the frequency."""
    one = array("eht-2017")
    hours, channels = double(-1, 0, 1, 2), double(2e11, 2.3e11)
    coverage = uv_tracks(one, double(-20, -40, -60), hours, channels, elevation=-90.0)
    assert coverage.uvw.shape == (3, 2 * 4 * 28, 3)
    assert coverage.weights.shape == coverage.uvw.shape[:2]
    uvw = coverage.uvw.unflatten(1, (2, 4, 28))
    torch.testing.assert_close(uvw[:, 1], uvw[:, 0] * 1.15)
    single = uv_tracks(one, -40.0, hours[2:3], channels[:1], elevation=-90.0)
    torch.testing.assert_close(uvw[1, 0, 2], single.uvw[0])
    pairs = coverage.pairs.unflatten(1, (2, 4, 28))
    assert bool((pairs == pairs[:1, :1, :1]).all())
    assert bool((pairs[..., 0] < pairs[..., 1]).all())
    assert len({tuple(pair) for pair in pairs[0, 0, 0].tolist()}) == 28


def test_hour_angles_of_every_scan() -> None:
    one, hours = array("vla-d"), double(-2, -1, 0, 1).reshape(2, 2)
    both = uv_tracks(one, double(40, 50), hours, 1.4e9)
    for scan, declination in enumerate((40.0, 50.0)):
        alone = uv_tracks(one, declination, hours[scan], 1.4e9)
        torch.testing.assert_close(both.uvw[scan], alone.uvw[0])
        assert torch.equal(both.weights[scan], alone.weights[0])


# ------------------------------------------------------------------------------------------- what is seen


def dishes(*east: float, diameter: float = 25.0) -> Array:
    """Dishes on the equator, in a row from West to East."""
    local = torch.tensor([[metres, 0, 0] for metres in east], dtype=torch.float64)
    names = [str(index) for index in range(len(east))]
    return Array.from_enu("row", names, local, diameter, longitude=30.0, latitude=0.0)


@pytest.mark.parametrize(("declination", "limit"), [(0.0, 10.0), (34.0, 25.0), (-20.0, 0.0), (60.0, 40.0)])
def test_elevation_limit(declination: float, limit: float) -> None:
    """The source rises when the textbook says so: cos H = (sin el - sin phi sin delta) / (cos phi cos delta)."""
    longitude, latitude = -107.6, 34.08
    local = torch.tensor([[0, 0, 0], [1.0, 0, 0]])  # at one place, of a size that casts no shadow
    one = Array.from_enu("two", ["a", "b"], local, 0.1, longitude, latitude)
    phi, delta, height = (math.radians(angle) for angle in (latitude, declination, limit))
    cosine = (math.sin(height) - math.sin(phi) * math.sin(delta)) / (math.cos(phi) * math.cos(delta))
    hour = math.degrees(math.acos(cosine)) / 15
    hours = double(-hour - 1e-4, -hour + 1e-4, 0, hour - 1e-4, hour + 1e-4)
    assert uv_tracks(one, declination, hours, 1e9, elevation=limit).weights.tolist() == [[0, 1, 1, 1, 0]]


def test_every_station_has_its_own_horizon() -> None:
    eht = array("eht-2017")
    day = torch.arange(0, 24, 0.1, dtype=torch.float64)
    m87 = uv_tracks(eht, 12.39, day, 230e9)
    pole = eht.stations.index("SPT")
    assert not bool(m87.weights[(m87.pairs == pole).any(2)].any())  # M87 is a northern source
    assert not bool(m87.uvw[m87.weights == 0].any())
    other = {eht.stations[index] for index in m87.pairs[m87.weights == 1].unique().tolist()}
    assert other == set(eht.stations) - {"SPT"}
    spain, hawaii = eht.stations.index("PV"), eht.stations.index("SMA")
    share = m87.weights[(m87.pairs == torch.tensor([hawaii, spain])).all(2)].mean()
    assert 0 < float(share) < 0.1  # half the world apart: an hour in common, as published
    always = uv_tracks(eht, -60.0, day, 230e9)
    assert bool(always.weights[(always.pairs == pole).any(2)].any())
    # a source at the southern pole stands at 90 degrees there, and at 23 in Chile, all day
    still = uv_tracks(eht, -90.0, day, 230e9).weights.unflatten(1, (len(day), -1))
    chile = [eht.stations.index(name) for name in ("ALMA", "APEX", "SPT")]
    pairs = m87.pairs[0, : still.shape[2]]
    assert still.amin(1).tolist() == still.amax(1).tolist()
    assert {tuple(pair) for pair in pairs[still[0, 0] == 1].tolist()} == {(a, b) for a in chile for b in chile if a < b}


def test_shadows() -> None:
    """On the equator dishes 40 m apart overlap once the source is lower than asin(25 / 40); only the rear one loses."""
    one = dishes(0.0, 40.0, 1000.0)
    critical = math.degrees(math.acos(25 / 40)) / 15
    hours = double(-critical - 1e-3, -critical + 1e-3, critical - 1e-3, critical + 1e-3)
    weights = uv_tracks(one, 0.0, hours, 1e9).weights.reshape(4, 3)  # pairs 0-1, 0-2, 1-2
    # before culmination the source is in the East, and the dish in the West stands behind
    assert weights.tolist() == [[0, 0, 1], [1, 1, 1], [1, 1, 1], [0, 1, 0]]
    # a dish that takes no part is stowed out of the way
    there = torch.tensor([[1, 0, 1]])
    assert uv_tracks(one, 0.0, hours, 1e9, present=there).weights.reshape(4, 3).tolist() == [[0, 1, 0]] * 4


# ------------------------------------------------------------------------------------------- numbers for users


@pytest.mark.parametrize(
    ("name", "declination", "frequency", "resolution"),
    [
        # VLA Observational Status Summary, section Resolution: 1.5 GHz, near the zenith
        ("vla-a", 34.0, 1.5e9, 1.3),
        ("vla-b", 34.0, 1.5e9, 4.3),
        ("vla-c", 34.0, 1.5e9, 14.0),
        ("vla-d", 34.0, 1.5e9, 46.0),
        ("eht-2017", 12.39, 229e9, 25e-6),  # EHT Collaboration 2019, ApJL 875 L1
    ],
)
def test_published_resolution(name: str, declination: float, frequency: float, resolution: float) -> None:
    hours = torch.arange(-12, 12, 0.1, dtype=torch.float64)
    coverage = uv_tracks(array(name), declination, hours, frequency)
    assert float(coverage.resolution[0]) / ARCSEC == pytest.approx(resolution, rel=0.15)


@pytest.mark.parametrize(("name", "scale"), [("vla-a", 36.0), ("vla-b", 120.0)])
def test_published_largest_scale(name: str, scale: float) -> None:
    """From the same table, which counts the shortest distance of dishes at its full length."""
    coverage = uv_tracks(array(name), 34.0, double(0), 1.5e9)
    assert float(coverage.largest_scale[0]) / ARCSEC == pytest.approx(scale, rel=0.2)


def test_scales_are_of_what_is_measured() -> None:
    one = dishes(0.0, 100.0, 1100.0)
    wavelength = 0.2
    coverage = uv_tracks(
        one, 0.0, double(0), LIGHT / wavelength, present=torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 1]])
    )
    torch.testing.assert_close(coverage.resolution, double(wavelength / 1100, wavelength / 100, math.inf))
    torch.testing.assert_close(coverage.largest_scale, double(0.6 * wavelength / 100, 0.6 * wavelength / 100, 0))


# ------------------------------------------------------------------------------------------- random observations


def test_random_tracks() -> None:
    one = array("vla-d")
    arguments = (500, one, (-10.0, 70.0), (-4.0, 3.0), 1.5, 4, 1.4e9)
    coverage = random_tracks(*arguments, seeded())
    assert coverage.uvw.shape == (500, 4 * 351, 3)
    again, other = random_tracks(*arguments, seeded()), random_tracks(*arguments, seeded(1))
    assert torch.equal(coverage.uvw, again.uvw)
    assert not torch.equal(coverage.uvw, other.uvw)
    # what the scans were: for w = X cos d cos H - Y cos d sin H + Z sin d, solved from three baselines
    every = random_tracks(*arguments, seeded(), elevation=-90.0).uvw.unflatten(1, (4, 351))[..., 2] * LIGHT / 1.4e9
    pairs = coverage.pairs[0, :351]
    baselines = one.positions[pairs[:, 1]] - one.positions[pairs[:, 0]]
    seen = every.abs().amin((1, 2)) > 0  # scans without shadows
    assert float(seen.double().mean()) > 0.5
    source = torch.linalg.lstsq(baselines, every[seen].movedim(2, 0).flatten(1)).solution.unflatten(1, (-1, 4))
    declination = source[2].asin().rad2deg()
    torch.testing.assert_close(declination, declination[:, :1].expand(-1, 4))
    assert -10 < float(declination.min()) < -5
    assert 65 < float(declination.max()) < 70
    hour = (one.longitude - torch.atan2(source[1], source[0]).rad2deg()) / 15
    hour = (hour + 12) % 24 - 12
    torch.testing.assert_close(hour.diff(dim=1), torch.full_like(hour[:, 1:], 0.5))
    assert -4 < float(hour[:, 0].min()) < -3.5
    assert 2.5 < float(hour[:, 0].max()) < 3


def test_random_sources_are_uniform_on_the_sphere() -> None:
    """A baseline along the pole has w = b sin(declination), and equal areas are equal ranges of the sine."""
    from scipy.stats import kstest

    local = torch.tensor([[0, 0, 0], [0, 1000.0, 0]])
    one = Array.from_enu("two", ["south", "north"], local, 1.0, longitude=0.0, latitude=0.0)
    coverage = random_tracks(4000, one, (-30.0, 80.0), (-2.0, 1.0), 0.0, 1, LIGHT, seeded(), elevation=-90.0)
    low, high = math.sin(math.radians(-30)), math.sin(math.radians(80))
    part = (coverage.uvw[:, 0, 2] / 1000 - low) / (high - low)
    assert kstest(part.numpy(), "uniform").pvalue > 0.01


def test_lost_stations() -> None:
    one = array("alma-c8")
    arguments = (400, one, (-60.0, 0.0), (-1.0, 1.0), 0.5, 2, 1e11)
    full = random_tracks(*arguments, seeded())
    some = random_tracks(*arguments, seeded(), lost=0.3)
    assert bool((some.weights <= full.weights).all())
    there = torch.stack([((some.pairs == k).any(2) * some.weights).amax(1) for k in range(len(one))], dim=1)
    assert float(there.mean()) == pytest.approx(0.7, abs=0.02)
    # those that are there are so for the whole observation
    expected = full.weights * there.gather(1, some.pairs[..., 0]) * there.gather(1, some.pairs[..., 1])
    assert torch.equal(some.weights, expected)


def test_wrong_observations_are_refused() -> None:
    one, hours = array("vla-d"), double(-1, 0, 1)
    with pytest.raises(DataError, match="declination must be between -90 and 90 degrees, got 91"):
        uv_tracks(one, 91.0, hours, 1e9)
    with pytest.raises(DataError, match="frequencies must be above 0 Hz, got 0"):
        uv_tracks(one, 0.0, hours, 0.0)
    with pytest.raises(DataError, match=r"present must be \(batch, 27\).*\(1, 3\)"):
        uv_tracks(one, 0.0, hours, 1e9, present=torch.ones(1, 3))
    with pytest.raises(DataError, match=r"hour_angles must be \(n,\) or \(batch, n\).* \(2\).*\(3, 1\)"):
        uv_tracks(one, double(0, 1), hours[:, None], 1e9)
    with pytest.raises(DataError, match="hour_angles must be finite"):
        uv_tracks(one, 0.0, double(math.nan), 1e9)
    draw = (2, one, (0.0, 10.0), (0.0, 1.0))
    with pytest.raises(DataError, match="1 integration or more"):
        random_tracks(*draw, 1.0, 0, 1e9, seeded())
    with pytest.raises(DataError, match="lost must be between 0 and 1, got 2"):
        random_tracks(*draw, 1.0, 3, 1e9, seeded(), lost=2.0)
    with pytest.raises(DataError, match="declination must be a range"):
        random_tracks(2, one, (10.0, 0.0), (0.0, 1.0), 1.0, 3, 1e9, seeded())
