"""Where sources are: FITS files, read by astropy, against visibilities and spherical trigonometry."""

import json
import math

import numpy as np
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient_sci.datasets.exporting import export
from ambient_sci.errors import ConfigError
from ambient_sci.operators.interferometer import ARCSEC, Interferometer

fits = pytest.importorskip("astropy.io.fits")
SkyCoord = pytest.importorskip("astropy.coordinates").SkyCoord
WCS = pytest.importorskip("astropy.wcs").WCS

ATTRS = {"operator": "interferometer", "samples": 3, "interval": 0.9, "prior": "0123", "store": "4567"}
PLACE = {"right_ascension": 187.7059308, "declination": 12.3911233, "pixel": 0.5}


def dataset(images, samples=3, attrs=ATTRS, **coords):
    """Reconstruction whose mean is given, ``(scan, y, x)``."""
    images = np.asarray(images, np.float32)[:, None]
    drawn = np.stack([images + k for k in range(samples)], 1)
    axes = ("scan", "channel", "y", "x")
    variables = {"mean": (axes, images), "std": (axes, 0 * images + 0.5)}
    variables["sample"] = (("scan", "draw", "channel", "y", "x"), drawn)
    named = {name: ("scan", np.asarray(value)) for name, value in coords.items()}
    return xarray.Dataset(variables, {"scan": np.arange(len(images)), **named}, attrs)


def sky(centre, l, m):  # noqa: E741
    """Right ascension and declination of direction cosines, in degrees (Thompson, Moran and Swenson 2017, eq. 3.8)."""
    a, d = np.radians(centre)
    n = math.sqrt(1 - l**2 - m**2)
    east = math.atan2(l, n * math.cos(d) - m * math.sin(d))
    return math.degrees(a + east), math.degrees(math.asin(m * math.cos(d) + n * math.sin(d)))


@given(
    size=st.tuples(st.integers(11, 20), st.integers(11, 20)),
    source=st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
    centre=st.tuples(st.floats(0, 359), st.floats(-88, 88)),
    pixel=st.floats(0.01, 60),
)
@settings(max_examples=15, deadline=None)
def test_a_point_source_stays_where_it_is(size, source, centre, pixel, tmp_path_factory):
    """From visibilities, written down for a direction, through the dirty image to a place in the sky."""
    east, north = (steps * pixel * ARCSEC for steps in source)
    rng = np.random.default_rng(0)
    uv = rng.uniform(-0.45, 0.45, (400, 2)) / (pixel * ARCSEC)
    visibilities = np.exp(-2j * np.pi * (uv[:, 0] * east + uv[:, 1] * north))
    operator = Interferometer(torch.from_numpy(uv)[None], size, pixel * ARCSEC)
    dirty = operator.H(torch.from_numpy(visibilities)[None])[:, 0].numpy() / len(uv)
    images = dataset(dirty, right_ascension=[centre[0]], declination=[centre[1]], pixel=[pixel])
    (path,) = export(images, tmp_path_factory.mktemp("out") / "sky", "fits", progress=False)
    with fits.open(path) as file:
        data, wcs = file[0].data, WCS(file[0].header)
    row, column = np.unravel_index(data.argmax(), data.shape)
    assert data[row, column] == pytest.approx(1, rel=1e-3)
    found = wcs.pixel_to_world(column, row)
    expected = SkyCoord(*sky(centre, east, north), unit="deg", frame="icrs")
    assert found.separation(expected).arcsec < 1e-3 * pixel
    # away from the source it is another place: the one that the pixels say
    assert found.separation(wcs.pixel_to_world(column + 1, row)).arcsec == pytest.approx(pixel, rel=1e-2)


def test_east_is_left_and_north_is_up(tmp_path):
    image = np.zeros((1, 8, 9))
    (path,) = export(dataset(image, **{k: [v] for k, v in PLACE.items()}), tmp_path / "sky", "fits", progress=False)
    wcs = WCS(fits.getheader(path))
    middle = wcs.pixel_to_world(4, 4)
    assert middle.ra.deg == pytest.approx(PLACE["right_ascension"], abs=1e-12)
    assert middle.dec.deg == pytest.approx(PLACE["declination"], abs=1e-12)
    assert middle.frame.name == "icrs"
    left, above = wcs.pixel_to_world(3, 4), wcs.pixel_to_world(4, 5)
    assert left.ra > middle.ra
    assert (left.ra - middle.ra).arcsec * math.cos(middle.dec.rad) == pytest.approx(0.5, rel=1e-6)
    assert (above.dec - middle.dec).arcsec == pytest.approx(0.5, rel=1e-6)


def test_header_says_what_is_known(tmp_path):
    known = {
        "field": ["M 87 ä", "3C 279"],
        "telescope": ["EHT", "EHT"],
        "frequency": [2.3e11, 2.3e11],
        "bandwidth": [2e9, np.nan],
        "time": [57854.25, 57854.5],
    }
    values = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    images = dataset(
        values,
        **known,
        **{k: [v, v] for k, v in PLACE.items()},
        attrs={**ATTRS, "created": "2026-01-02T03:04:05+00:00"},
    )
    files = export(images, tmp_path / "sky", "fits", what=["mean", "std", "sample"], progress=False)
    assert [path.name for path in files] == ["3C_279.fits", "M_87_ä.fits"]
    with fits.open(files[1], checksum=True) as file:
        file.verify("exception")
        assert [unit.name for unit in file] == ["MEAN", "STD", "SAMPLE"]
        assert [unit.data.shape for unit in file] == [(6, 5), (6, 5), (3, 6, 5)]
        assert all(unit.data.dtype.newbyteorder("=") == np.float32 for unit in file)
        np.testing.assert_array_equal(file["MEAN"].data, values[0])
        np.testing.assert_array_equal(file["SAMPLE"].data, images["sample"].to_numpy()[0, :, 0])
        header = file[0].header
        for unit in file:
            place = WCS(unit.header).celestial.pixel_to_world(2, 3)
            assert place.ra.deg == pytest.approx(PLACE["right_ascension"])
    expected = {
        "OBJECT": "M 87 ?",
        "TELESCOP": "EHT",
        "FREQ": 2.3e11,
        "BANDWID": 2e9,
        "DATE-OBS": "2017-04-11T06:00:00.000",
        "MJD-OBS": 57854.25,
        "DATE": "2026-01-02T03:04:05",
        "BUNIT": "Jy/pixel",
        "PRIOR": "0123",
        "STORE": "4567",
        "NSAMPLES": 3,
        "INTERVAL": 0.9,
        "RADESYS": "ICRS",
        "CTYPE1": "RA---SIN",
        "CRPIX1": 3,
        "CRPIX2": 4,
    }
    assert {name: header[name] for name in expected} == expected
    assert header["CDELT1"] == pytest.approx(-0.5 / 3600, rel=1e-12)  # a card has 20 characters
    assert header["CREATOR"].startswith("ambient-sci ")
    assert "posterior mean of 3 samples" in str(header["COMMENT"])
    assert "operator = interferometer" in str(header["HISTORY"])
    assert "BANDWID" not in fits.getheader(files[0])
    manifest = json.loads((tmp_path / "sky" / "export.json").read_text())
    assert manifest["images"]["std"]["about"] == "posterior standard deviation of 3 samples"


def test_without_a_place_there_is_one_warning(tmp_path):
    images = dataset(np.zeros((3, 4, 5)), right_ascension=[1.0, np.nan, 2.0], declination=[1.0] * 3, pixel=[1.0] * 3)
    with pytest.warns(UserWarning, match=r"^1 of 3 volumes \(scans_scan1, ...\): their place in the sky") as said:
        files = export(images, tmp_path / "sky", "fits", progress=False)
    assert len(said) == 1
    assert [WCS(fits.getheader(path)).has_celestial for path in files] == [True, False, True]


@pytest.mark.filterwarnings("ignore:all volumes")
def test_slices_and_volumes(tmp_path):
    """Of a stack each slice is a file; a scan with an axis z is a cube."""
    images = dataset(np.zeros((3, 4, 5)), slice=[4, 5, 6], file=["knee"] * 3)
    files = export(images, tmp_path / "a", "fits", progress=False)
    assert [path.name for path in files] == ["knee_slice4.fits", "knee_slice5.fits", "knee_slice6.fits"]
    cube = np.random.default_rng(0).normal(size=(1, 1, 3, 4, 5)).astype(np.float32)
    images = xarray.Dataset({"mean": (("scan", "channel", "z", "y", "x"), cube)})
    (path,) = export(images, tmp_path / "b", "fits", progress=False)
    np.testing.assert_array_equal(fits.getdata(path), cube[0, 0])
    assert "BUNIT" not in fits.getheader(path)
    with pytest.raises(ConfigError, match="FITS images are real"):
        export(xarray.Dataset({"mean": images["mean"] + 0j}), tmp_path / "c", "fits", part="complex", progress=False)
