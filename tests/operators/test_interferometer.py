"""Visibilities against sums written out, closed forms, electric fields and sigpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Interferometer, LinearOperator, primary_beam
from ambient_sci.operators.arrays import array, uv_tracks
from ambient_sci.operators.interferometer import ARCSEC, MAS
from ambient_sci.testing import OperatorTests

LIGHT = 299792458.0
PIXEL = 0.5 * ARCSEC
NYQUIST = 0.5 / PIXEL


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def frequencies(batch: int, visibilities: int, seed: int = 0) -> Tensor:
    return (2 * uniform(batch, visibilities, 2, seed=seed) - 1) * NYQUIST


def directions(shape: tuple[int, int], pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """East and North offsets of every pixel as a FITS header has it: CRPIX counts from 1, CDELT1 is negative."""
    height, width = shape
    crpix1, crpix2 = width // 2 + 1, height // 2 + 1
    i, j = np.meshgrid(np.arange(1, width + 1), np.arange(1, height + 1))
    return -pixel * (i - crpix1), pixel * (j - crpix2)


def sums(A: Interferometer) -> Tensor:
    """The definition, ``(batch, n_visibilities, pixels)``."""
    east, north = directions((A.shape[0], A.shape[1]), A.pixel_size)
    u, v = np.moveaxis(A.uv.numpy()[..., None], 2, 0)
    waves = np.exp(-2j * np.pi * (u * east.ravel() + v * north.ravel()))
    beam = A.beam.expand(-1, -1, *A.shape).flatten(1)[:, None]
    return A.weights[..., None] * torch.from_numpy(waves) * beam


# ------------------------------------------------------------------------------------------- the kit


class InterferometerTests(OperatorTests):
    image_shape = (1, 6, 5)
    dtype = torch.float64
    visibilities = 12

    def make(self, batch: int, seed: int) -> LinearOperator:
        weights = uniform(batch, self.visibilities, seed=seed + 1)
        weights[:, 1::4] = 0
        uv = frequencies(batch, self.visibilities, seed)
        uv[:, 1] = 30 * NYQUIST  # where nothing is measured, anything goes
        return Interferometer(
            uv,
            self.image_shape[1:],
            PIXEL,
            uniform(batch, 1, *self.image_shape[1:], seed=seed + 2),
            weights,
            self.groups(batch, seed),
        )

    def groups(self, batch: int, seed: int) -> Tensor | None:
        return None

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Interferometer)
        return sums(operator)


class TestVisibilities(InterferometerTests):
    pass


class TestStations(InterferometerTests):
    """Visibilities that are lost with either of their stations."""

    image_shape = (1, 5, 8)

    def groups(self, batch: int, seed: int) -> Tensor:
        first = torch.randint(4, (batch, self.visibilities), generator=seeded(seed))
        return torch.stack([first, first + 1], dim=2)


class TestPlain(OperatorTests):
    """Neither beam nor weights."""

    image_shape = (1, 7, 6)
    dtype = torch.float64

    def make(self, batch: int, seed: int) -> LinearOperator:
        return Interferometer(frequencies(batch, 9, seed), self.image_shape[1:], PIXEL)

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Interferometer)
        return sums(operator)


# ------------------------------------------------------------------------------------------- the physics


def test_point_source_of_the_sky() -> None:
    """What two stations receive from a source beside the phase centre, from electric fields and their delays."""
    one, frequency, hour, declination = array("alma-c6"), 230e9, 1.5, -35.0
    coverage = uv_tracks(one, declination, torch.tensor([hour]), frequency)
    pixel, shape = 0.02 * ARCSEC, (64, 48)
    image = torch.zeros(1, 1, *shape, dtype=torch.float64)
    image[0, 0, 50, 10] = 2.5  # Jy, to the North (rows up) and to the East (columns down)
    east, north = (24 - 10) * pixel, (50 - 32) * pixel

    meridian, delta = math.radians(one.longitude - 15 * hour), math.radians(declination)

    def towards(right_ascension: float, declination: float) -> np.ndarray:
        """Direction on the turned Earth; right ascension from that of the phase centre."""
        angle = meridian + right_ascension
        return np.array(
            [
                math.cos(declination) * math.cos(angle),
                math.cos(declination) * math.sin(angle),
                math.sin(declination),
            ]
        )

    # right ascension grows to the East; the narrow field is left with second orders of the offset
    step = towards(east / math.cos(delta), delta + north) - towards(0, delta)
    fields = np.exp(2j * np.pi * frequency / LIGHT * (one.positions.numpy() @ step))  # nearer stations hear it earlier
    i, j = coverage.pairs[0].numpy().T
    want = torch.from_numpy(2.5 * fields[i] * fields[j].conj())
    got = Interferometer(coverage.uv, shape, pixel)(image)[0]
    assert bool((coverage.weights == 1).all())
    torch.testing.assert_close(got, want, rtol=0, atol=3e-4)


def test_gaussian_source() -> None:
    """A Gaussian of full width t has the visibility S exp(-(pi t q)^2 / (4 ln 2)) at the frequency q."""
    shape, pixel, width, flux = (90, 101), 0.1 * ARCSEC, 0.6 * ARCSEC, 3.0
    east, north = directions(shape, pixel)
    offset = (0.7 * ARCSEC, -0.4 * ARCSEC)
    radius = np.hypot(east - offset[0], north - offset[1])
    image = np.exp(-4 * math.log(2) * (radius / width) ** 2)
    image *= flux * pixel**2 * 4 * math.log(2) / (math.pi * width**2)  # Jy per pixel
    uv = frequencies(2, 40, 1)  # of a coarser pixel: where the Gaussian is still seen
    got = Interferometer(uv, shape, pixel)(torch.from_numpy(image).expand(2, 1, *shape))
    u, v = uv.unbind(2)
    size = torch.exp(-((math.pi * width) ** 2) * (u**2 + v**2) / (4 * math.log(2)))
    want = flux * size * torch.exp(-2j * math.pi * (u * offset[0] + v * offset[1]))
    assert float(want.abs().max()) > 1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


def test_units() -> None:
    """Zero spacing is the flux in the beam; the adjoint of a point's visibilities peaks at its flux, times a sum."""
    image, beam, weights = uniform(1, 1, 9, 8), uniform(1, 1, 9, 8, seed=1), uniform(1, 30, seed=2)
    uv = frequencies(1, 30)
    uv[:, 0] = 0
    A = Interferometer(uv, (9, 8), PIXEL, beam, weights)
    torch.testing.assert_close(A(image)[:, 0].real, (image * beam).sum((1, 2, 3)) * weights[:, 0])
    point = torch.zeros_like(image)
    point[0, 0, 2, 6] = 0.7
    dirty = Interferometer(uv, (9, 8), PIXEL, weights=weights).gram(point)
    assert float(dirty[0, 0, 2, 6]) == pytest.approx(0.7 * float((weights**2).sum()))
    assert dirty.argmax() == point.argmax()


def test_sigpy() -> None:
    """Another library, in single precision; its frequencies are cycles per field, its transform is orthonormal."""
    import sigpy

    shape = (33, 40)
    image, uv = uniform(1, 1, *shape), frequencies(1, 200)
    k = torch.stack([uv[0, :, 1] * shape[0], -uv[0, :, 0] * shape[1]], dim=1) * PIXEL
    want = sigpy.nufft(image[0, 0].numpy().astype(complex), k.numpy(), oversamp=2, width=8) * math.sqrt(
        math.prod(shape)
    )
    got = Interferometer(uv.float(), shape, PIXEL)(image.float())[0]
    assert got.dtype == torch.complex64
    assert np.linalg.norm(got.numpy() - want) / np.linalg.norm(want) < 3e-4


def test_backends_agree() -> None:
    image, y, uv = (
        uniform(2, 1, 9, 8),
        torch.complex(uniform(2, 30, seed=1), uniform(2, 30, seed=2)),
        frequencies(2, 30),
    )
    A, B = (Interferometer(uv, (9, 8), PIXEL, backend=backend) for backend in ("finufft", "torchkbnufft"))
    for got, want in ((B(image), A(image)), (B.H(y), A.H(y)), (B.gram(image), A.gram(image))):
        assert float((got - want).norm() / want.norm()) < 2e-4


def test_precision_is_that_of_the_frequencies() -> None:
    image, uv = uniform(1, 1, 6, 6), frequencies(1, 10)
    A = Interferometer(uv, (6, 6), PIXEL, torch.ones(1, 1, 6, 6), torch.ones(1, 10))
    want = A(image.float().double())
    torch.testing.assert_close(A(image.float()), want)
    single = want.to(torch.complex64)
    torch.testing.assert_close(A.H(single), A.H(single.to(torch.complex128)))


# ------------------------------------------------------------------------------------------- fewer rows


def test_stations_are_lost_together() -> None:
    one = array("vla-d")
    coverage = uv_tracks(one, 40.0, torch.linspace(-1, 1, 3), 1.4e9)
    A = Interferometer(coverage.uv, (16, 16), 10 * ARCSEC, weights=coverage.weights, groups=coverage.pairs)
    kept = A.thin(0.4, seeded(1)).rows[0] == 1
    there = set(coverage.pairs[0][kept].flatten().tolist())
    assert 10 < len(there) < 27
    whole = torch.tensor([[station in there for station in pair] for pair in coverage.pairs[0].tolist()]).all(1)
    assert torch.equal(kept, whole & (coverage.weights[0] == 1))


def test_baselines_are_lost_together() -> None:
    one = array("eht-2017")
    coverage = uv_tracks(one, -29.0, torch.linspace(-4, 4, 30), 230e9)
    assert len(coverage.baselines.unique()) == 28
    assert bool((coverage.baselines.unflatten(1, (30, 28)) == coverage.baselines[0, :28]).all())
    A = Interferometer(coverage.uv, (16, 16), 2e-3 * MAS, weights=coverage.weights, groups=coverage.baselines)
    rows = A.thin(0.5, seeded()).rows.unflatten(1, (30, 28))[0]
    before = A.rows.unflatten(1, (30, 28))[0]
    for pair in range(28):
        assert torch.equal(rows[:, pair], before[:, pair]) or not bool(rows[:, pair].any())
    assert 0 < float(rows.sum()) < float(before.sum())


# ------------------------------------------------------------------------------------------- beams


@pytest.mark.parametrize(
    ("form", "diameter", "frequency", "width"),
    [
        ("gaussian", 12.0, 300e9, 19.4 * ARCSEC),  # ALMA Technical Handbook
        ("gaussian", 12.0, 100e9, 58.0 * ARCSEC),
        ("airy", 25.0, 1.5e9, 28.3 * 60 * ARCSEC),  # uniform illumination: 1.029 lambda / D
        ("airy", 25.0, 1e9, 42.0 * 60 * ARCSEC),  # VLA Observational Status Summary, section Field of View
    ],
)
def test_widths_of_beams(form: str, diameter: float, frequency: float, width: float) -> None:
    pixel = width / 200
    beam = primary_beam((301, 300), pixel, diameter, frequency, form)
    assert beam.shape == (1, 1, 301, 300)
    assert float(beam[0, 0, 150, 150]) == float(beam.max()) == 1
    for cut in (beam[0, 0, 150], beam[0, 0, :, 150]):
        assert int((cut >= 0.5).sum()) / 200 == pytest.approx(1, rel=0.015)


def test_airy_beam() -> None:
    from scipy.special import j1

    wavelength, diameter, pixel = 0.2, 25.0, 1e-4
    beam = primary_beam((1, 401), pixel, diameter, LIGHT / wavelength, "airy")[0, 0, 0].numpy()
    x = math.pi * diameter / wavelength * pixel * (np.arange(401) - 200)
    x[200] = 1e-9
    np.testing.assert_allclose(beam, (2 * j1(x) / x) ** 2, rtol=0, atol=1e-6)
    first = 200 + int(np.argmax(np.diff(beam[200:]) > 0))  # the first zero, at 1.22 lambda / D
    assert (first - 200) * pixel == pytest.approx(1.22 * wavelength / diameter, rel=0.02)


def test_one_beam_for_all_scans() -> None:
    beam = uniform(1, 1, 6, 5, seed=4)
    A = Interferometer(frequencies(3, 8), (6, 5), PIXEL, beam)
    B = Interferometer(frequencies(3, 8), (6, 5), PIXEL)
    image = uniform(3, 1, 6, 5)
    torch.testing.assert_close(A(image), B(beam * image))
    torch.testing.assert_close(A[2](image[2:]), A(image)[2:])


# ------------------------------------------------------------------------------------------- wrong input


def test_pixels_that_are_too_large() -> None:
    """The largest one is told, and fits, in single precision too."""
    uv, limit = frequencies(2, 10), 0.5 / float(frequencies(2, 10).abs().max())
    with pytest.raises(DataError, match=rf"pixel_size .* at most .* {limit:.6g} rad or {limit / ARCSEC:.4g} arcsec"):
        Interferometer(uv, (6, 5), limit * 1.01)
    Interferometer(uv, (6, 5), limit).to(torch.float32)
    with pytest.raises(DataError, match="pixel_size must be above 0"):
        Interferometer(uv, (6, 5), 0.0)
    with pytest.raises(DataError, match="pixel_size"):
        Interferometer(uv, (6, 5), math.nan)
    with pytest.raises(DataError, match=r"at most .* inf rad"):
        Interferometer(torch.zeros(1, 3, 2), (6, 5), -1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uv": torch.zeros(2, 10, 3)}, r"uv must be .*\(batch, n_visibilities, 2\).*\(2, 10, 3\)"),
        ({"uv": torch.zeros(2, 10, 2, dtype=torch.int64)}, "uv must be finite real .*int64"),
        ({"uv": torch.full((2, 10, 2), math.nan)}, "uv must be finite"),
        ({"shape": (6,)}, r"shape must be \(height, width\), got \(6,\)"),
        ({"beam": torch.ones(2, 6, 5)}, r"beam must be \(2 or 1, 1, 6, 5\), got shape \(2, 6, 5\)"),
        ({"weights": torch.ones(2, 9)}, r"weights must be 0 or more, of shape \(2, 10\), got shape \(2, 9\)"),
        ({"weights": -torch.ones(2, 10)}, "weights must be 0 or more"),
        ({"groups": torch.ones(2, 10)}, "groups must be integers.*float32"),
        ({"groups": -torch.ones(2, 10, dtype=torch.int64)}, "groups must be integers from 0"),
        ({"groups": torch.ones(10, dtype=torch.int64)}, r"groups must be .*\(2, 10, k\).*\(10,\)"),
        ({"backend": "fft"}, "backend must be one of"),
    ],
)
def test_bad_parameters_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"uv": frequencies(2, 10), "shape": (6, 5), "pixel_size": PIXEL, **change}
    with pytest.raises(DataError, match=message):
        Interferometer(**arguments)  # type: ignore[arg-type]


def test_images_are_real() -> None:
    A = Interferometer(frequencies(1, 10), (6, 5), PIXEL)
    with pytest.raises(DataError, match=r"real images of shape \(batch, 1, 6, 5\), got torch.complex128"):
        A(torch.zeros(1, 1, 6, 5, dtype=torch.complex128))
    with pytest.raises(DataError, match=r"complex visibilities of shape \(batch, 10\), got torch.float64"):
        A.H(torch.zeros(1, 10, dtype=torch.float64))


def test_bad_beams_are_refused() -> None:
    with pytest.raises(DataError, match="form must be one of gaussian, airy, got 'square'"):
        primary_beam((6, 5), PIXEL, 12.0, 1e11, "square")
    with pytest.raises(DataError, match="above 0"):
        primary_beam((6, 5), PIXEL, -12.0, 1e11)
