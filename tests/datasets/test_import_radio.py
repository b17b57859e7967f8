"""Files that pyuvdata writes, of skies in closed form, against what comes out of them."""

import contextlib
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.datasets import import_files
from ambient_sci.datasets.importers.radio import read_visibilities
from ambient_sci.datasets.padding import padded_length
from ambient_sci.errors import AmbientError, ConfigError, DataError, NotFoundError
from ambient_sci.operators.arrays import array
from ambient_sci.operators.interferometer import ARCSEC

LIGHT = 299792458.0
pytestmark = pytest.mark.filterwarnings("ignore:.*the noise that its weights say")  # of skies without any

FORMATS = ("uvfits", "uvh5", "ms")
PIXEL = 0.4  # arcsec
SOURCES = ((1.5, 3, -2), (0.7, -5, 6))  # Jy, pixels to the East and to the North
FIELDS = {"3C1": (1.0, 0.6), "3C2": (1.2, 0.3)}  # right ascension and declination in radians, ICRS
STATIONS = (0, 3, 9, 12, 20, 26)
AIPS = {"I": 1, "RR": -1, "LL": -2, "RL": -3, "LR": -4, "XX": -5, "YY": -6, "XY": -7, "YX": -8}


@pytest.fixture(autouse=True)
def _no_network():
    from astropy.utils import iers

    with iers.conf.set_temp("auto_download", False):
        yield


def observe(
    *,
    sources=SOURCES,
    hands=("RR", "LL"),
    fields=("3C1",),
    times=4,
    exposure=10.0,
    frequencies=((1.40e9, 1.41e9, 1.42e9), (1.6e9, 1.61e9, 1.62e9)),
    stations=STATIONS,
    noise=0.0,
    seed=0,
):
    """Six antennas of the VLA on point sources, as pyuvdata has it: V of antennas 1 and 2 is the mean of E1* E2."""
    from astropy.coordinates import EarthLocation
    from pyuvdata import Telescope, UVData

    rng = np.random.default_rng(seed)
    vla = array("vla-a")
    positions = vla.positions.numpy()[list(stations)]
    centre = positions.mean(0)
    telescope = Telescope.new(
        name="VLA",
        location=EarthLocation.from_geocentric(*centre, unit="m"),
        antenna_positions=positions - centre,
        antenna_numbers=np.array(stations) + 1,
        antenna_names=[f"ea{station:02}" for station in stations],
        instrument="VLA",
        mount_type="alt-az",
        feeds=["x", "y"] if hands[0][0] in "XY" else ["r", "l"],
        feed_angle=[0.0, math.pi / 2],
    )
    numbers = np.array(stations) + 1
    pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[i:]]  # autocorrelations too
    start = 2457848.8
    moments = [[start + 0.02 * k + exposure * (t + 0.5) / 86400 for t in range(times)] for k in range(len(fields))]
    channels = np.concatenate(frequencies)
    windows = np.repeat(np.arange(len(frequencies)), [len(one) for one in frequencies])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uv = UVData.new(
            freq_array=channels,
            channel_width=np.full(len(channels), frequencies[0][1] - frequencies[0][0] if len(channels) > 1 else 1e7),
            flex_spw_id_array=windows,
            polarization_array=np.array([AIPS[hand] for hand in hands]),
            times=np.concatenate(moments),
            integration_time=exposure,
            telescope=telescope,
            antpairs=pairs,
            do_blt_outer=True,
            phase_center_catalog={
                k: {
                    "cat_name": name, "cat_type": "sidereal", "cat_lon": FIELDS[name][0], "cat_lat": FIELDS[name][1],
                    "cat_frame": "icrs", "cat_epoch": 2000.0,
                } for k, name in enumerate(fields)
            },
            phase_center_id_array=np.repeat(np.arange(len(fields)), times * len(pairs)),
            vis_units="Jy",
            empty=True,
        )  # fmt: skip
        uv.set_uvws_from_antenna_positions()
    waves = uv.uvw_array[:, None] * uv.freq_array[:, None] / LIGHT
    sky = sum(
        flux * np.exp(2j * np.pi * PIXEL * ARCSEC * (waves[..., 0] * east + waves[..., 1] * north))
        for flux, east, north in sources
    )
    uv.data_array = np.repeat(sky[..., None], len(hands), axis=2).astype(np.complex64)
    uv.nsample_array = rng.uniform(1, 9, uv.data_array.shape).astype(np.float32)
    uv.flag_array = np.zeros(uv.data_array.shape, bool)
    cross = (uv.ant_1_array != uv.ant_2_array)[:, None, None]
    error = rng.standard_normal((2, *uv.data_array.shape)) * noise * cross / np.sqrt(uv.nsample_array)
    uv.data_array += (error[0] + 1j * error[1]).astype(np.complex64)
    return uv


def write(uv, path, kind, **options):
    """Write a file of one of the formats."""
    target = path / f"file.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "uvfits":
            uv.write_uvfits(str(target), **options)
        elif kind == "uvh5":
            uv.write_uvh5(str(target), clobber=True, **options)
        else:
            uv.write_ms(str(target), clobber=True, **options)
    return target


def read(path, **options):
    """Import with the weights for the noise, whatever the format, unless told otherwise."""
    return list(read_visibilities([path], **{"size": 32, "pixel": PIXEL, "noise": "weights", "pad": 0, **options}))


def closed_form(measurement, sources=SOURCES):
    """The convention of the operator, written out in double precision at imported frequencies."""
    u, v = np.moveaxis(measurement.operator.uv[0].numpy().astype(float), 1, 0)
    return sum(flux * np.exp(-2j * np.pi * PIXEL * ARCSEC * (u * east + v * north)) for flux, east, north in sources)


def gridded(size=32, sources=SOURCES):
    """The sky in pixels: East where columns fall, North where rows grow."""
    image = torch.zeros(1, 1, size, size)
    for flux, east, north in sources:
        image[0, 0, size // 2 + north, size // 2 - east] = flux
    return image


# ------------------------------------------------------------------------------------------------- the sky comes out


@pytest.mark.parametrize("kind", FORMATS)
def test_point_sources(tmp_path, kind):
    """Values, frequencies, noise and coordinates; fields one after the other, flagged samples left out."""
    uv = observe(fields=("3C1", "3C2"))
    rng = np.random.default_rng(1)
    uv.flag_array = rng.random(uv.flag_array.shape) < 0.2
    uv.data_array[uv.flag_array] = 1e6  # must not be seen
    scans = read(write(uv, tmp_path, kind))
    assert [scan.coords["field"] for scan in scans] == ["3C1", "3C2"]
    for number, scan in enumerate(scans):
        m = scan.measurement
        mine = (uv.phase_center_id_array == number) & (uv.ant_1_array != uv.ant_2_array)
        flags = uv.flag_array[mine]
        assert m.y.shape == (1, int((~flags.all(2)).sum()))
        np.testing.assert_allclose(m.y[0].numpy(), closed_form(m), atol=3e-5)
        np.testing.assert_allclose(m.operator(gridded())[0].numpy(), m.y[0].numpy(), atol=2e-3)

        # the file's own rows, in whatever order: frequencies and noise by their visibilities' places
        waves = (uv.uvw_array[mine, None, :2] * uv.freq_array[:, None] / LIGHT)[~flags.all(2)]
        weights = (uv.nsample_array[mine] * ~flags)[~flags.all(2)]
        unit = 1.0
        if kind == "uvh5":
            unit = 10.0 * 1e7
        both = (weights > 0).all(1)
        variance = np.where(weights > 0, 1 / np.where(weights > 0, weights * unit, 1), 0).sum(1) / np.where(both, 4, 1)
        want = np.column_stack([waves, np.sqrt(variance)])
        got = np.column_stack([m.operator.uv[0].numpy(), m.noise_std[0].numpy()]).astype(float)
        if kind == "ms":  # pyuvdata writes the other member of each pair of conjugates
            got[:, :2] *= -1
        np.testing.assert_allclose(sort(got), sort(want), rtol=2e-5, atol=0.02 if kind == "uvfits" else 1e-3)
        right_ascension, declination = FIELDS[str(scan.coords["field"])]
        assert scan.coords["right_ascension"] == pytest.approx(math.degrees(right_ascension), abs=1e-6)
        assert scan.coords["declination"] == pytest.approx(math.degrees(declination), abs=1e-6)
        assert scan.coords["telescope"] == "VLA"
        assert scan.coords["file"] == "file"
        assert scan.coords["pixel"] == pytest.approx(PIXEL)
        assert scan.coords["bandwidth"] == pytest.approx(1.625e9 - 1.395e9)
        assert scan.coords["frequency"] == pytest.approx(1.51e9, abs=5e6)
        assert scan.coords["time"] == pytest.approx(2457848.3 - 2400000 + 0.02 * number + 20 / 86400, abs=1e-6)


def sort(table):
    """Rows in an order that rounding does not change."""
    return table[np.lexsort(np.round(table[:, :2], -2).T)]


@pytest.mark.parametrize("kind", ["uvfits", "uvh5"])
def test_orientation_is_that_of_the_sky(tmp_path, kind):
    """A source in the phase centre, which pyuvdata then moves to the North-East: the source is to the South-West."""
    east, north = 6, 4  # pixels that the phase centre moves by
    uv = observe(sources=((2.0, 0, 0),), times=3)
    lon, lat = FIELDS["3C1"]
    step = PIXEL * ARCSEC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uv.phase(lon=lon + east * step / math.cos(lat), lat=lat + north * step, cat_name="moved", phase_frame="icrs")
    (scan,) = read(write(uv, tmp_path, kind))
    m = scan.measurement
    np.testing.assert_allclose(
        m.operator(gridded(sources=((2.0, -east, -north),)))[0].numpy(), m.y[0].numpy(), atol=6e-3
    )
    (other,) = read(tmp_path / f"file.{kind}", conjugate=True)
    turned = other.measurement.operator(gridded(sources=((2.0, east, north),)))
    np.testing.assert_allclose(turned[0].numpy(), other.measurement.y[0].numpy(), atol=6e-3)


def test_frequencies_are_those_of_the_array(tmp_path):
    """Baselines of the file agree with those that the package makes of the same stations, up to precession."""
    from astropy.time import Time

    from ambient_sci.operators.arrays import Array, uv_tracks

    uv = observe(times=1)
    m = read(write(uv, tmp_path, "uvh5"))[0].measurement
    vla = array("vla-a")
    some = list(STATIONS)
    own = Array("six", tuple(map(str, some)), vla.positions[some], 25.0)
    moment = Time(uv.time_array[0], format="jd", scale="utc")
    moment.delta_ut1_utc = 0.0
    sidereal = moment.sidereal_time("apparent", longitude=0.0).hour
    lon, lat = uv.phase_center_app_ra[0], uv.phase_center_app_dec[0]  # of the day
    coverage = uv_tracks(own, math.degrees(lat), sidereal - math.degrees(lon) / 15, uv.freq_array, elevation=-90.0)
    lengths = coverage.uvw.norm(dim=2).amax()
    ours = m.operator.uv[0].double().numpy()
    ours, theirs = (sort(table) for table in (ours, coverage.uv[0].numpy()))
    assert np.abs(np.sort(np.hypot(*ours.T)) - np.sort(np.hypot(*theirs.T))).max() < 2e-4 * float(lengths)


# ------------------------------------------------------------------------------------------------------ Stokes I


def test_hands(tmp_path):
    """Half the sum of the hands is free of V; one hand alone has it; a file may say that they are summed."""
    uv = observe(hands=("RR", "LL", "RL", "LR"), times=2)
    uv.data_array[..., 0] *= 1.1
    uv.data_array[..., 1] *= 0.9
    uv.data_array[..., 2:] = 1e5
    lost = np.zeros(uv.flag_array.shape, bool)
    lost[::5, :, 0] = True
    uv.flag_array = lost
    path = write(uv, tmp_path, "uvfits")
    m = read(path)[0].measurement
    ratio = np.abs(m.y[0].numpy() / closed_form(m))
    assert set(np.round(ratio, 3)) == {np.float64(1.0), np.float64(0.9)}
    both = read(path, stokes="I")[0].measurement
    np.testing.assert_allclose(both.y[0].numpy(), closed_form(both), atol=3e-5)
    assert both.y.shape[1] == int((ratio > 0.95).sum())

    uv = observe(hands=("XX", "YY"), times=1)
    uv.pol_convention = "sum"
    uv.data_array *= 0.5
    uv.flag_array[::3, :, 1] = True
    m = read(write(uv, tmp_path, "uvh5"))[0].measurement
    np.testing.assert_allclose(m.y[0].numpy(), closed_form(m), atol=3e-5)
    one, two = m.noise_std.amin(), m.noise_std.amax()
    assert float(one) >= math.sqrt(2 / 9) * math.sqrt(1 / 1e8)
    assert float(two) <= 2 * math.sqrt(1 / 1e8)


@pytest.mark.parametrize("hands", [("I",), ("LL",), ("YY", "XX"), ("I", "Q")])
def test_other_polarisations(tmp_path, hands):
    AIPS["Q"] = 2
    uv = observe(hands=hands, times=1)
    if "Q" in hands:
        uv.data_array[..., 1] = 1e5
    m = read(write(uv, tmp_path, "uvh5"))[0].measurement
    np.testing.assert_allclose(m.y[0].numpy(), closed_form(m), atol=3e-5)
    if hands == ("LL",):
        with pytest.raises(DataError, match="has only LL, and Stokes I takes both hands"):
            read(tmp_path / "file.uvh5", stokes="I")


@pytest.mark.parametrize("kind", FORMATS)
def test_no_stokes_i(tmp_path, kind):
    path = write(observe(hands=("RL", "LR"), times=1), tmp_path, kind)
    with pytest.raises(DataError, match="has no Stokes I: I, RR, LL, XX or YY is needed, and it has"):
        read(path)


# ------------------------------------------------------------------------------------------- means, scans and groups


@pytest.mark.parametrize("kind", FORMATS)
def test_averages(tmp_path, kind):
    """Loops over baselines, intervals and channels, with inverse variances."""
    uv = observe(times=5, noise=0.3)
    uv.flag_array = np.random.default_rng(2).random(uv.flag_array.shape) < 0.3
    path = write(uv, tmp_path, kind)
    m = read(path, average_time=20.0, average_channels=2)[0].measurement
    unit = 1e8 if kind == "uvh5" else 1.0
    cells = {}
    first = uv.time_array.min() - 5 / 86400
    for row, (a, b) in enumerate(zip(uv.ant_1_array, uv.ant_2_array, strict=True)):
        if a == b:
            continue
        when = math.floor((uv.time_array[row] - first) * 86400 / 20)
        for channel in range(6):
            good = ~uv.flag_array[row, channel]
            if not good.any():
                continue
            value = uv.data_array[row, channel, good].mean().conj()
            weight = good.sum() ** 2 / (1 / (uv.nsample_array[row, channel, good] * unit)).sum()
            wave = uv.uvw_array[row, :2] * uv.freq_array[channel] / LIGHT
            group = (channel // 3, channel % 3 // 2)
            cells.setdefault((a, b, when, *group), []).append((weight, value, *wave))
    rows = []
    for cell in cells.values():
        weight, value, u, v = map(np.array, zip(*cell, strict=True))
        total = weight.sum()
        mean = [(weight * one).sum() / total for one in (u, v, value.real, value.imag)]
        rows.append([*mean, 1 / math.sqrt(total)])
    want = sort(np.array(rows))
    y = m.y[0].numpy()
    sign = -1 if kind == "ms" else 1  # pyuvdata writes the other member of each pair of conjugates
    got = np.column_stack([sign * m.operator.uv[0].numpy(), y.real, sign * y.imag, m.noise_std[0].numpy()])
    assert got.shape == want.shape
    np.testing.assert_allclose(sort(got.astype(float)), want, rtol=2e-5, atol=2e-4)


def test_scans_of_intervals_and_frequencies(tmp_path):
    path = write(observe(times=5, fields=("3C1", "3C2")), tmp_path, "uvfits")
    pairs = 15
    scans = read(path, interval=20.0)
    assert [scan.measurement.y.shape[1] for scan in scans] == 2 * [2 * 6 * pairs, 2 * 6 * pairs, 6 * pairs]
    times = [scan.coords["time"] for scan in scans]
    assert times == sorted(times)
    windows = read(path, spectrum="windows", field="3C2")
    assert [scan.coords["frequency"] for scan in windows] == pytest.approx([1.41e9, 1.61e9])
    assert [scan.coords["field"] for scan in windows] == ["3C2", "3C2"]
    assert [scan.coords["bandwidth"] for scan in windows] == pytest.approx([30e6, 30e6])
    channels = read(path, spectrum="channels", field="3C1", average_channels=2)
    assert [scan.coords["frequency"] for scan in channels] == pytest.approx(
        [1.405e9, 1.42e9, 1.605e9, 1.62e9], rel=1e-3
    )
    with pytest.raises(DataError, match="there is no field '3C9'; there are 3C1, 3C2"):
        read(path, field="3C9")
    for scan in channels:
        assert scan.measurement.y.shape == (1, 5 * pairs)


def test_one_pixel_for_all(tmp_path):
    """By default a fifth of the resolution of the longest baseline of any file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    near = observe(times=1, stations=STATIONS[:3])
    far = observe(times=1)
    paths = [write(near, tmp_path / "a", "uvfits"), write(far, tmp_path / "b", "uvh5")]
    scans = list(read_visibilities([tmp_path / "a", paths[1]], noise="weights"))
    longest = np.hypot(*far.uvw_array[:, :2].T).max() * 1.62e9 / LIGHT
    assert len(scans) == 2
    for scan in scans:
        assert scan.measurement.operator.pixel_size == pytest.approx(0.2 / longest, rel=1e-6)
        assert scan.measurement.operator.shape == (64, 64)


def test_groups(tmp_path):
    path = write(observe(times=2), tmp_path, "uvh5")
    g = torch.Generator().manual_seed(0)
    by = {name: read(path, groups=name)[0].measurement.operator for name in ("baseline", "station", "visibility")}
    pairs = by["station"].groups[0]
    assert sorted(pairs.unique().tolist()) == list(range(6))
    assert bool((pairs[:, 0] < pairs[:, 1]).all())
    numbers = by["baseline"].groups[0, :, 0]
    assert sorted(numbers.unique().tolist()) == list(range(15))
    for one in numbers.unique():
        assert len(pairs[numbers == one].unique(dim=0)) == 1
        assert int((numbers == one).sum()) == 12
    kept = by["baseline"].thin(0.5, g).rows[0]
    for one in numbers.unique():
        assert len(kept[numbers == one].unique()) == 1
    assert 0 < float(kept.mean()) < 1
    assert len(by["visibility"].groups.unique()) == 180


# ------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("kind", FORMATS)
def test_noise_from_scatter(tmp_path, kind):
    """Of samples whose weights are right up to a factor; a source in the phase centre does not change."""
    uv = observe(sources=((1.0, 0, 0),), times=40, noise=0.2)
    m = read(write(uv, tmp_path, kind), noise="scatter")[0].measurement
    cross = uv.ant_1_array != uv.ant_2_array
    want = 0.2 * np.sqrt((1 / uv.nsample_array[cross]).sum(-1)).ravel() / 2
    got = np.sort(m.noise_std[0].numpy()) / np.sort(want)
    assert abs(got / 1 - 1).max() < 0.15
    residual = (m.y[0].numpy() - 1) / m.noise_std[0].numpy()
    assert residual.real.std() == pytest.approx(1, abs=0.03)
    if kind == "uvh5":  # its default
        auto = read(tmp_path / "file.uvh5", noise="auto")[0]
        torch.testing.assert_close(auto.measurement.noise_std, m.noise_std)
        assert "median absolute deviation" in auto.how["noise_std"]


def test_noise_of_each_baseline(tmp_path):
    uv = observe(sources=((1.0, 0, 0),), times=40, noise=0.2)
    noisy = (uv.ant_2_array == STATIONS[5] + 1) & (uv.ant_1_array != uv.ant_2_array)
    uv.data_array[noisy] = 1 + 5 * (uv.data_array[noisy] - 1)
    m = read(write(uv, tmp_path, "uvh5"), noise="scatter", groups="station")[0].measurement
    last = (m.operator.groups[0] == 5).any(1)
    residual = (m.y - 1) / m.noise_std
    for some in (last, ~last):
        assert float(residual[0, some].real.std()) == pytest.approx(1, abs=0.05)
    assert float(m.noise_std[0, last].mean() / m.noise_std[0, ~last].mean()) == pytest.approx(5, rel=0.05)
    uv = observe(times=1)
    with pytest.raises(DataError, match=r"has 0 pairs of successive visibilities .* take noise='weights'"):
        read(write(uv, tmp_path, "uvh5"), noise="scatter")


def test_hands_that_are_copies(tmp_path):
    """The scatter is that of Stokes I, which two copies of one visibility do not make less noisy."""
    uv = observe(sources=((1.0, 0, 0),), times=40, noise=0.2)
    uv.data_array = 1 + (uv.data_array - 1) * np.sqrt(uv.nsample_array)
    uv.nsample_array[:] = 1
    uv.data_array[..., 1] = uv.data_array[..., 0]
    m = read(write(uv, tmp_path, "uvh5"), noise="scatter")[0].measurement
    assert float((m.y[0] - 1).real.std()) == pytest.approx(0.2, rel=0.05)
    assert float(m.noise_std.mean()) == pytest.approx(0.2, rel=0.05)


def test_weights_that_count_samples(tmp_path):
    path = write(observe(sources=((1.0, 0, 0),), times=9, noise=0.01), tmp_path, "uvfits")
    with pytest.warns(
        UserWarning, match=r"the noise that its weights say is \d+ times .* take noise='scatter'"
    ) as caught:
        list(read_visibilities([path], size=8, pixel=PIXEL))
    (text,) = (str(one.message) for one in caught)
    assert float(text.split("say is ")[1].split(" times")[0]) == pytest.approx(100, rel=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(read_visibilities([path], size=8, pixel=PIXEL, noise="scatter"))


def test_samples_that_are_none(tmp_path):
    """Not a number, weights of zero and of infinity, and scans where all is flagged."""
    uv = observe(times=2, fields=("3C1", "3C2"), hands=("I",))
    rows = np.flatnonzero(uv.ant_1_array != uv.ant_2_array)
    uv.data_array[rows[0], 0] = np.nan
    uv.nsample_array[rows[1], 1] = 0
    uv.nsample_array[rows[2], 2] = np.inf
    uv.flag_array[uv.phase_center_id_array == 1] = True
    scans = read(write(uv, tmp_path, "uvh5"))
    assert len(scans) == 1
    assert scans[0].measurement.y.shape == (1, 2 * 15 * 6 - 3)


# --------------------------------------------------------------------------------------------------------- padding


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 10**9), steps=st.integers(1, 16))
def test_padded_lengths(length, steps):
    padded = padded_length(length, steps)
    assert length <= padded <= length + length / steps + 1
    assert padded_length(padded, steps) == padded
    assert length.bit_length() == padded.bit_length() or padded.bit_count() == 1
    assert len({padded_length(k, steps) for k in range(64, 128)}) <= steps + 1
    assert padded_length(length, 0) == length


def test_known_lengths():
    assert [padded_length(n) for n in (1, 7, 8, 9, 16, 17, 2367, 9081, 1024, 1025)] == [
        1, 7, 8, 9, 16, 18, 2560, 9216, 1024, 1152
    ]  # fmt: skip
    with pytest.raises(DataError, match="length of 1 or more"):
        padded_length(0)


def test_padding_is_not_measured(tmp_path):
    uv = observe(times=3)
    uv.flag_array[3] = True
    path = write(uv, tmp_path, "uvh5")
    plain, padded = (read(path, pad=pad)[0].measurement for pad in (0, 8))
    count = plain.y.shape[1]
    assert padded.y.shape[1] == padded_length(count) > count
    assert padded.operator.rows.sum() == count
    assert not padded.y[:, count:].any()
    assert bool((padded.noise_std > 0).all())
    assert padded.noise_std.amax() == plain.noise_std.amax()
    assert padded.noise_std.amin() == plain.noise_std.amin()
    torch.testing.assert_close(padded.y[:, :count], plain.y)
    torch.testing.assert_close(padded.scale, plain.scale)
    image = gridded()
    torch.testing.assert_close(padded.operator.gram(image), plain.operator.gram(image))
    fewer = padded.operator.thin(0.5, torch.Generator().manual_seed(0))
    assert not fewer.rows[:, count:].any()
    assert 0 < fewer.rows.sum() < count


# --------------------------------------------------------------------------------------------------- what is warned of


def test_smearing(tmp_path):
    """The warning's loss is what the mean over channels does to a source at the edge, on the worst baseline."""
    channels = tuple(1.4e9 + 2e6 * np.arange(20))
    uv = observe(sources=((1.0, 64, 0),), times=1, frequencies=(channels,), exposure=0.01)
    uv.nsample_array[:] = 1
    path = write(uv, tmp_path, "uvh5")
    with pytest.warns(UserWarning, match=r"lose up to (\d+) % of their amplitude") as caught:
        m = read(path, size=128, average_channels=20)[0].measurement
    (text,) = (str(one.message) for one in caught)
    loss = int(text.split("lose up to ")[1].split(" %")[0])
    # the bound is for a source along the baseline, the one here is to the East
    lengths = m.operator.uv[0].norm(dim=1).numpy()
    along = np.abs(m.operator.uv[0, :, 0].numpy()) / lengths
    amplitude = np.abs(m.y[0].numpy())
    edge = 64 * PIXEL * ARCSEC
    np.testing.assert_allclose(amplitude, np.sinc(lengths * along * edge * 40e6 / 1.419e9), atol=2e-3)
    assert 100 * (1 - amplitude.min()) <= loss + 0.5
    assert loss == pytest.approx(100 * (1 - np.sinc(lengths.max() * edge * 40e6 / 1.419e9)), abs=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path, size=8, average_channels=20)
    with pytest.warns(UserWarning, match="over 600 s"):
        read(path, average_time=600.0, size=128)


def test_wide_fields(tmp_path):
    """The third coordinate adds pi w r^2 at the distance r."""
    uv = observe(times=1, exposure=0.01, stations=(0, 1, 2), frequencies=((1e8, 1.001e8),))
    waves = np.abs(uv.uvw_array).max(0) * 1.001e8 / LIGHT
    pixel = 0.2 / waves[:2].max() / ARCSEC
    size = 2 * math.ceil(math.sqrt(0.6 / math.pi / waves[2]) / (pixel * ARCSEC))
    turn = math.pi * waves[2] * (size / 2 * pixel * ARCSEC) ** 2
    assert turn > 0.6
    path = write(uv, tmp_path, "uvh5")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "over .* lose up to")
        with pytest.warns(UserWarning, match=f"the field is not narrow: .* adds up to {turn:.2g} rad of phase"):
            read(path, size=size, pixel=pixel)


def test_units(tmp_path):
    uv = observe(times=1)
    uv.vis_units = "uncalib"
    with pytest.warns(UserWarning, match="not calibrated; they are taken to be in Jy"):
        read(write(uv, tmp_path, "uvh5"))
    uv.vis_units = "K str"
    with pytest.raises(DataError, match=r"visibilities must be in Jy, those of .* are in 'K str'"):
        read(write(uv, tmp_path, "uvh5"))


# --------------------------------------------------------------------------------------------------- measurement sets


def test_measurement_sets_of_either_direction(tmp_path):
    """Baselines from antenna 2 to 1 with conjugate data are the same visibilities; pyuvdata agrees on them."""
    from pyuvdata import UVData

    uv = observe(times=2, fields=("3C1", "3C2"))
    path = write(uv, tmp_path, "ms", flip_conj=True)
    m = read(path, field="3C2")[0].measurement
    np.testing.assert_allclose(m.operator(gridded())[0].numpy(), m.y[0].numpy(), atol=2e-3)
    again = UVData()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.read_ms(str(path), ignore_single_chan=False)
    assert sorted(again.uvw_array[:, 0]) == pytest.approx(sorted(uv.uvw_array[:, 0]))


def test_columns(tmp_path):
    from casacore import tables

    path = write(observe(times=1), tmp_path, "ms")
    with tables.table(str(path), readonly=False, ack=False) as table:
        about = table.getcoldesc("DATA")
        about["name"] = "CORRECTED_DATA"
        table.addcols(tables.maketabdesc(tables.makecoldesc("CORRECTED_DATA", about)))
        table.putcol("CORRECTED_DATA", 2 * table.getcol("DATA"))
    corrected, data = (read(path, column=column)[0].measurement.y for column in (None, "DATA"))
    torch.testing.assert_close(corrected, 2 * data)
    with pytest.raises(ConfigError, match=r"has no column 'MODEL_DATA'; it has CORRECTED_DATA, DATA"):
        read(path, column="MODEL_DATA")


# ------------------------------------------------------------------------------------------------------- to a store


@pytest.mark.parametrize(("kind", "container"), [("uvfits", "zarr"), ("uvfits", "h5"), ("uvh5", "h5"), ("ms", "zarr")])
def test_into_a_store(tmp_path, container, kind):
    path = write(observe(times=4, fields=("3C1", "3C2")), tmp_path, kind)
    options = {"size": 32, "pixel": PIXEL, "noise": "weights"}
    store = import_files(kind, path, tmp_path / f"a.{container}", progress=False, **options)
    assert len(store) == 2
    assert store.image_shape == (1, 32, 32)
    got = store.read(slice(None), raw=True)
    want = list(read_visibilities([path], **options))
    for k, scan in enumerate(want):
        torch.testing.assert_close(got[k].y, scan.measurement.y)
        torch.testing.assert_close(got[k].noise_std, scan.measurement.noise_std)
        torch.testing.assert_close(got[k].operator.uv, scan.measurement.operator.uv)
        torch.testing.assert_close(got[k].operator.groups, scan.measurement.operator.groups)
        torch.testing.assert_close(got[k].scale, scan.measurement.scale)
    assert store.coords["field"].tolist() == ["3C1", "3C2"]
    assert store.to_xarray().pixel.attrs["units"] == "arcsec"
    assert "exp(-2 pi i" in store.attrs["provenance"]["phase"]
    assert store.attrs["provenance"]["noise_std"] == "weights are inverse variances"
    measured = got.operator.rows.bool()
    torch.testing.assert_close(
        got.operator(gridded().expand(2, -1, -1, -1))[measured], got.y[measured], atol=2e-3, rtol=0
    )


def test_beam(tmp_path):
    from ambient_sci.operators import primary_beam

    m = read(write(observe(times=1), tmp_path, "uvh5"), diameter=25.0)[0].measurement
    want = primary_beam((32, 32), PIXEL * ARCSEC, 25.0, 1.51e9).float()
    torch.testing.assert_close(m.operator.beam, want)


# ------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size must be 2 pixels or more, got 1"),
        ({"pixel": 0.0}, "pixel must be above 0 arcsec, got 0"),
        ({"interval": -1.0}, "interval must be above 0 s, got -1"),
        ({"average_time": math.nan}, "average_time must be 0 s or more, got nan"),
        ({"average_channels": 0}, "average_channels must be 1 channel or more, got 0"),
        ({"diameter": 0.0}, "diameter must be above 0 m, got 0"),
        ({"pad": -1}, "pad must be 0 lengths per octave or more, got -1"),
        ({"spectrum": "all"}, "spectrum must be one of together, windows, channels, got 'all'"),
        ({"stokes": "Q"}, "stokes must be one of pseudo-I, I, got 'Q'"),
        ({"noise": "0.1"}, "noise must be one of auto, weights, scatter"),
        ({"groups": "antenna"}, "groups must be one of baseline, station, visibility"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **options)


def test_pixels_that_are_too_large(tmp_path):
    path = write(observe(times=1), tmp_path, "uvh5")
    with pytest.raises(DataError, match="pixel_size must be above 0 and at most half a period"):
        read(path, pixel=10.0, size=2)


def test_files_that_are_none(tmp_path):
    with pytest.raises(NotFoundError, match="there is no such file"):
        read(tmp_path / "none.uvfits")
    with pytest.raises(NotFoundError, match=r"no visibilities in the folder .* ends in \.uvfits"):
        read(tmp_path)
    (tmp_path / "a.uvfits").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"a\.uvfits is neither a UVFITS nor a UVH5 file nor a measurement set"):
        read(tmp_path)
    (tmp_path / "a.uvfits").write_bytes(b"SIMPLE  =")
    with pytest.raises(DataError, match=r"a\.uvfits cannot be read: "):
        read(tmp_path / "a.uvfits")


def test_fields_without_a_phase_centre(tmp_path):
    uv = observe(times=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uv.unproject_phase()
    with pytest.raises(DataError, match="is unprojected: its visibilities are not phased to a point of the sky"):
        read(write(uv, tmp_path, "uvh5"))


def test_missing_libraries(tmp_path, monkeypatch):
    path = write(observe(times=1), tmp_path, "uvh5")
    monkeypatch.setitem(sys.modules, "pyuvdata", None)
    with pytest.raises(ConfigError, match=r"needs pyuvdata: pip install 'ambient-sci\[radio\]'"):
        read(path)
    monkeypatch.setitem(sys.modules, "casacore", None)
    (tmp_path / "a.ms").mkdir()
    (tmp_path / "a.ms" / "table.dat").touch()
    with pytest.raises(ConfigError, match=r"needs python-casacore: pip install 'ambient-sci\[radio\]'"):
        read(tmp_path / "a.ms")


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files(tmp_path, kind):
    """One line of ours, or else scans that are whole, whatever bytes are lost or changed."""
    path = write(observe(times=1, frequencies=((1.4e9,),)), tmp_path, kind)
    rng = np.random.default_rng(0)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if kind == "ms" else [path]
    for trial in range(20):
        victim = files[rng.integers(len(files))]
        original = victim.read_bytes()
        damaged = bytearray(original)
        if kind == "ms" or trial % 2:  # casacore itself aborts on some changes
            del damaged[rng.integers(len(damaged) + 1) :]
        else:
            for place in rng.integers(min(len(damaged), 6000), size=4):
                damaged[place] ^= 1 << int(rng.integers(8))
        victim.write_bytes(damaged)
        with warnings.catch_warnings(), contextlib.suppress(AmbientError):
            warnings.simplefilter("ignore")
            for scan in read(path):
                assert bool(torch.isfinite(scan.measurement.noise_std).all())
        victim.write_bytes(original)
    assert len(read(path)) == 1
