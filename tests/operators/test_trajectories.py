"""Trajectories: closed forms, sigpy's, even coverage, seeds, and agreement with the Fourier transform."""

import math

import numpy as np
import pytest
import sigpy.mri
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Fourier, Nufft, patterns, trajectories, units
from ambient_sci.operators.density import density_compensation
from ambient_sci.operators.trajectories import TRAJECTORIES

PI = math.pi
VOLUMES = ["kooshball", "stack-of-stars", "stack-of-spirals"]
SPOKES = ["radial", "golden-angle", "kooshball"]
GOLDEN = PI * (math.sqrt(5) - 1) / 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape_of(name: str, size: int = 24) -> tuple[int, ...]:
    return (6, size, size) if name in VOLUMES else (size, size)


def in_plane(points: Tensor) -> Tensor:
    """Points of the last two axes as complex numbers x + iy."""
    return torch.complex(points[..., -1].double(), points[..., -2].double())


def turned(angle: Tensor, full: float) -> Tensor:
    """An angle as the smallest one that differs by whole turns."""
    return (angle + full / 2) % full - full / 2


def transform(points: Tensor, x: Tensor) -> Tensor:
    """The orthonormal Fourier transform of one image at any points, as a dense sum over pixels about the centre."""
    axes = [torch.arange(size, dtype=torch.float64) - size // 2 for size in x.shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, x.ndim)
    return torch.exp(-1j * (points.double() @ grid.T)) @ x.flatten() / math.sqrt(x.numel())


# -------------------------------------------------------------------------------------------------- all of them


def test_names() -> None:
    assert list(TRAJECTORIES) == [
        "radial",
        "golden-angle",
        "spiral",
        "variable-density-spiral",
        "rosette",
        "epi",
        *VOLUMES,
    ]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_uniform_call(name: str) -> None:
    """What all trajectories share: shape, range, seeds, and scans that differ."""
    shape = shape_of(name)
    points = TRAJECTORIES[name](3, shape, 4, 30, seeded())
    assert points.dtype == torch.float32
    assert points.shape == (3, 4 * 30 * (6 if name.startswith("stack") else 1), len(shape))
    assert float(points.abs().max()) <= torch.tensor(PI)
    assert torch.equal(points, TRAJECTORIES[name](3, shape, 4, 30, seeded()))
    assert not torch.equal(points, TRAJECTORIES[name](3, shape, 4, 30, seeded(1)))
    assert all(not torch.equal(points[i], points[j]) for i in range(3) for j in range(i))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TRAJECTORIES)), st.integers(1, 3), st.integers(1, 12), st.integers(2, 40), st.integers(0, 99)
)
def test_any_size(name: str, batch: int, readouts: int, samples: int, seed: int) -> None:
    """In range and finite for any number of readouts and samples, odd and even."""
    shape = shape_of(name, 51)
    points = TRAJECTORIES[name](batch, shape, readouts, samples, seeded(seed))
    assert points.shape[0] == batch
    assert points.shape[1] % (readouts * samples) == 0
    assert bool(points.isfinite().all())
    assert float(points.abs().max()) <= torch.tensor(PI)
    assert float(in_plane(points).abs().max()) <= PI * (1 + 1e-6) or name == "epi"


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_wrong_numbers_are_refused(name: str) -> None:
    shape = shape_of(name)
    for bad, message in (
        ((1, shape[1:], 4, 30), "trajectory is for .-D images"),
        ((1, (0, *shape[1:]), 4, 30), "trajectory is for .-D images"),
        ((1, shape, 0, 30), "readouts must be 1 or more, got 0"),
        ((1, shape, 4, 1), "samples must be 2 or more along a readout, got 1"),
    ):
        with pytest.raises(DataError, match=message):
            TRAJECTORIES[name](*bad, seeded())


# -------------------------------------------------------------------------------------------------- spokes


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SPOKES), st.integers(1, 9), st.integers(2, 33), st.integers(0, 99))
def test_spokes(name: str, readouts: int, samples: int, seed: int) -> None:
    """Every spoke is straight, evenly sampled, as long as k-space, and passes through the centre."""
    spokes = TRAJECTORIES[name](2, shape_of(name), readouts, samples, seeded(seed)).double()
    spokes = spokes.reshape(2, readouts, samples, -1)
    assert bool((spokes[:, :, samples // 2] == 0).all())
    steps = spokes.diff(dim=2)
    torch.testing.assert_close(steps, steps[:, :, :1].expand_as(steps), rtol=0, atol=1e-6)
    torch.testing.assert_close(steps.norm(dim=-1), torch.full_like(steps[..., 0], 2 * PI / samples), rtol=1e-5, atol=0)


def test_radial_angles_are_even() -> None:
    spokes = in_plane(trajectories.radial(4, (16, 16), 7, 16, seeded())).reshape(4, 7, 16)
    angles = spokes[:, :, -1].angle()
    torch.testing.assert_close(
        turned(angles.diff(dim=1), 2 * PI), torch.full((4, 6), PI / 7, dtype=torch.float64), rtol=0, atol=1e-6
    )
    starts = in_plane(trajectories.radial(2000, (16, 16), 1, 2, seeded()))[:, 0].angle()
    assert torch.histc(starts, 8, -PI, PI).min() > 190  # of 250: scans start anywhere


def test_radial_is_that_of_sigpy() -> None:
    """sigpy has half spokes over the whole circle, from angle zero."""
    readouts, samples = 6, 10
    spokes = in_plane(trajectories.radial(1, (32, 32), readouts, samples, seeded()))[0].reshape(readouts, samples)
    spokes = spokes * torch.exp(-1j * spokes[0, -1].angle())  # turn the first one to angle zero
    theirs = sigpy.mri.radial((2 * readouts, samples // 2, 2), (32, 32), golden=False) * 2 * PI / 32
    half = torch.complex(*torch.from_numpy(theirs).flip(-1).unbind(-1))
    torch.testing.assert_close(spokes[:, samples // 2 :], half[:readouts], rtol=0, atol=1e-6)
    torch.testing.assert_close(spokes[:, 1 : samples // 2 + 1].flip(1), half[readouts:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tiny", "degrees"), [(1, 111.246), (2, 68.754), (3, 49.751), (5, 32.040), (7, 23.628)])
def test_golden_angles(tiny: int, degrees: float) -> None:
    """The increments are those of Wundrak et al. 2015, Table I, and the first is pi over the golden ratio."""
    spokes = in_plane(trajectories.golden_angle(3, (16, 16), 50, 16, seeded(), tiny)).reshape(3, 50, 16)
    increments = turned(spokes[:, :, -1].angle().diff(dim=1), 2 * PI)
    want = torch.full_like(increments, math.radians(degrees))
    torch.testing.assert_close(increments, want, rtol=0, atol=math.radians(0.0006))
    if tiny == 1:
        torch.testing.assert_close(increments, torch.full_like(increments, GOLDEN), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tiny", [1, 2, 7])
@pytest.mark.parametrize("readouts", [21, 34, 50, 89])
def test_golden_angles_cover_evenly(tiny: int, readouts: int) -> None:
    """Any run of spokes has at most three gaps (Steinhaus), of which none is wider than the golden ratio allows."""
    spokes = in_plane(trajectories.golden_angle(2, (16, 16), readouts, 16, seeded(), tiny)).reshape(2, readouts, 16)
    angles = (spokes[:, :, -1].angle() % PI).sort(1).values
    gaps = torch.cat([angles, angles[:, :1] + PI], 1).diff(dim=1)
    for scan in gaps:
        assert len(torch.unique((scan / 1e-4).round())) <= 4  # three, and rounding
    assert float(gaps.max()) < 2.7 * PI / readouts


@pytest.mark.parametrize("name", ["golden-angle", "kooshball"])
def test_continuing(name: str) -> None:
    """Frames of a series are the series, cut."""
    call = {"golden-angle": trajectories.golden_angle, "kooshball": trajectories.kooshball}[name]
    frames = call(4, shape_of(name), 5, 8, seeded(), continuing=True)
    series = call(1, shape_of(name), 20, 8, seeded(), continuing=True)
    torch.testing.assert_close(frames.reshape(1, 160, -1), series, rtol=0, atol=1e-6)
    apart = call(4, shape_of(name), 5, 8, seeded())
    assert not torch.allclose(apart[1], frames[1], atol=1e-3)


def test_golden_angle_refuses_no_angle() -> None:
    with pytest.raises(DataError, match="tiny must be 1"):
        trajectories.golden_angle(1, (8, 8), 4, 8, seeded(), tiny=0)


def test_kooshball_is_that_of_sigpy() -> None:
    """Golden means: polar coordinate and azimuth advance as sigpy's do, whose half spokes fill the whole sphere."""
    readouts, samples = 40, 8
    ends = trajectories.kooshball(1, (16, 16, 16), readouts, samples, seeded())[0].reshape(readouts, samples, 3)
    ends = ends[:, 0].double() / -PI  # the first sample is at -pi
    theirs = torch.from_numpy(sigpy.mri.radial((readouts, 2, 3), (16, 16, 16))[:, 1]) / (16 * 0.25)
    polar = (ends[:, 0] - ends[0, 0]) % 1
    torch.testing.assert_close(polar, ((theirs[:, 0] + 1) / 2 - (theirs[0, 0] + 1) / 2) % 1, rtol=0, atol=1e-5)
    azimuth = in_plane(ends) / in_plane(ends)[0]
    # sigpy's first spoke points along the axis and has no azimuth; the formula's is zero
    want = torch.exp(2j * PI * 0.682327803828019 * torch.arange(readouts, dtype=torch.float64))
    torch.testing.assert_close(azimuth / azimuth.abs(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(in_plane(theirs)[1:].angle(), torch.angle(want[1:]), rtol=0, atol=1e-6)


def test_kooshball_covers_evenly() -> None:
    """Ends of spokes, of both signs, fall into equal parts of the sphere equally often."""
    ends = trajectories.kooshball(3, (16, 16, 16), 2000, 4, seeded()).reshape(3, 2000, 4, 3)[:, :, 0].double() / PI
    ends = torch.cat([ends, -ends], 1)
    torch.testing.assert_close(ends.norm(dim=-1), torch.ones(3, 4000, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(ends.mT @ ends / 4000, torch.eye(3).double().expand(3, 3, 3) / 3, rtol=0, atol=5e-3)
    for scan in ends:
        assert torch.histc(scan[:, 0], 10, -1, 1).sub(400).abs().max() < 20  # Archimedes: cos beta is uniform
        assert torch.histc(in_plane(scan).angle(), 8, -PI, PI).sub(500).abs().max() < 25


def test_ends_of_spokes_are_a_pixel_apart_at_the_nyquist_number() -> None:
    """The definition in 2-D, and the area per end in 3-D."""
    assert trajectories.nyquist_spokes((64, 48)) == math.ceil(PI * 32) == 101
    spokes = trajectories.nyquist_spokes((64, 64))
    ends = in_plane(trajectories.radial(1, (64, 64), spokes, 64, seeded())).reshape(spokes, 64)[:, 0]
    assert 0.97 * 2 * PI / 64 < float(ends.diff().abs().max()) <= 2 * PI / 64
    spokes = trajectories.nyquist_spokes((20, 20, 20))
    assert 4 * PI * PI**2 / (2 * spokes) == pytest.approx((2 * PI / 20) ** 2, rel=2e-3)
    with pytest.raises(DataError, match="spokes are 2-D or 3-D"):
        trajectories.nyquist_spokes((20,))


@pytest.mark.parametrize(
    ("shape", "readouts", "samples", "width", "tolerance"),
    [((32, 32), 60, 32, 4.0, 5e-3), ((31, 31), 60, 41, 3.0, 1e-3), ((16, 16, 16), 500, 33, 2.0, 3e-3)],
)
def test_ramp(shape: tuple[int, ...], readouts: int, samples: int, width: float, tolerance: float) -> None:
    """The weights add up to disc or ball, and with them spokes become an image: that of a Gaussian is known."""
    ndim = len(shape)
    weights = trajectories.ramp(1, shape, readouts, samples)
    assert weights.shape == (1, readouts * samples)
    assert torch.equal(trajectories.ramp(3, shape, readouts, samples), weights.expand(3, -1))
    part = PI / 4 if ndim == 2 else PI / 6  # of the square or cube around it
    assert float(weights.double().sum()) == pytest.approx(part * math.prod(shape), rel=0.01)
    name = "radial" if ndim == 2 else "kooshball"
    points = TRAJECTORIES[name](1, shape, readouts, samples, seeded())[0].double()
    values = torch.exp(-(points**2).sum(-1) * width**2 / 2) * (2 * PI) ** (ndim / 2) * width**ndim
    for n in ([0, 0, 0], [1, 0, -2], [3, 2, 1], [-4, 4, 0]):
        where = torch.tensor(n[:ndim], dtype=torch.float64)
        image = (weights[0].double() * values * torch.exp(1j * (points @ where))).sum() / math.prod(shape)
        assert abs(complex(image) - math.exp(-float(where @ where) / (2 * width**2))) < tolerance
    with pytest.raises(DataError, match="spokes are 2-D or 3-D"):
        trajectories.ramp(1, (8,), 4, 8)


# -------------------------------------------------------------------------------------------------- spirals, rosettes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(0.5, 3), st.floats(1, 3), st.integers(0, 99))
def test_spiral(readouts: int, acceleration: float, density: float, seed: int) -> None:
    """Radius grows from the centre to the edge as a power of the angle, and interleaves are evenly turned."""
    size, samples = 64, 600
    points = trajectories.spiral(2, (48, size), readouts, samples, seeded(seed), acceleration, density)
    curves = in_plane(points).reshape(2, readouts, samples)
    radius = curves.abs()
    assert bool((radius.diff(dim=2) > 0).all())
    assert bool((radius[:, :, 0] == 0).all())
    torch.testing.assert_close(radius[:, :, -1], torch.full((2, readouts), PI, dtype=torch.float64), rtol=1e-6, atol=0)
    step = 2 * readouts * acceleration / size
    turns = 1 / (1 - (1 - step) ** (1 / density))
    phase = 2 * PI * turns * (radius / PI) ** (1 / density)  # the angle that belongs to a radius
    start = (curves * torch.exp(-1j * phase))[:, :, 1:]
    start = start / start.abs()
    torch.testing.assert_close(start, start[:, :, -1:].expand_as(start), rtol=0, atol=2e-4)
    # the last turn is the acceleration times 2 pi / N away from the one before it, for all interleaves together
    before = PI * (1 - 1 / turns) ** density
    assert (PI - before) / readouts == pytest.approx(acceleration * 2 * PI / size, rel=1e-9)
    if readouts > 1:
        increments = turned((start[:, 1:, -1] / start[:, :-1, -1]).angle(), 2 * PI) % (2 * PI)
        torch.testing.assert_close(increments, torch.full_like(increments, 2 * PI / readouts), rtol=0, atol=1e-4)


def test_spiral_samples_are_even_along_the_curve() -> None:
    """Speed is constant beyond the first turn, at Nyquist's distance for the number of samples of the docstring."""
    size, readouts = 64, 4
    samples = round(PI * size**2 / (4 * readouts))
    curve = in_plane(trajectories.spiral(1, (size, size), readouts, samples, seeded()))[0].reshape(readouts, samples)
    steps = curve.diff(dim=1).abs()[:, samples // 8 :]
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * PI / size), rtol=0.03, atol=0)


@pytest.mark.parametrize("density", [1.0, 2.0])
def test_spiral_is_that_of_sigpy(density: float) -> None:
    """sigpy walks the same curve, at the pace of a gradient system."""
    fov, size = 0.24, 96
    theirs = sigpy.mri.spiral(fov, size, 1, 1, 3, density, 0.03, 150.0)
    theirs = units.from_wavenumber(theirs, fov / size)
    one = torch.complex(theirs[:, 0], theirs[:, 1])[: len(theirs) // 3]  # the first of three interleaves
    curve = in_plane(trajectories.spiral(1, (size, size), 3, 4000, seeded(), 1.0, density))[0].reshape(3, -1)[0]
    radius = one.abs()
    inside = (radius > 0.3) & (radius < 3.0)
    assert int(inside.sum()) > 100
    assert float(radius.max()) == pytest.approx(PI, rel=0.01)
    theirs_turns = np.unwrap(one.angle().numpy())[inside]
    ours_turns = np.interp(radius[inside], curve.abs(), np.unwrap(curve.angle().numpy()))
    difference = theirs_turns - ours_turns
    assert np.ptp(difference) < 0.05  # they differ by a rotation alone, over tens of radians
    assert np.ptp(ours_turns) > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acceleration": 0.0}, r"acceleration must be above 0, got 0\.0"),
        ({"acceleration": math.nan}, "acceleration must be above 0"),
        ({"density": 0.5}, r"density must be 1 \(Archimedean\) or more, got 0\.5"),
        ({"density": math.inf}, "density must be 1"),
        ({"readouts": 9}, r"9 readouts at acceleration 1\.0 .* must be 8 at most"),
    ],
)
def test_spiral_refuses(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trajectories.spiral(
            **{"batch": 1, "shape": (16, 16), "readouts": 2, "samples": 50, **options}, generator=seeded()
        )


def test_variable_density_spiral_has_as_many_turns() -> None:
    curve = in_plane(TRAJECTORIES["variable-density-spiral"](1, (64, 64), 2, 3000, seeded()))[0, :3000]
    plain = in_plane(trajectories.spiral(1, (64, 64), 2, 3000, seeded()))[0, :3000]
    turns = [np.ptp(np.unwrap(np.angle(c.numpy()[1:]))) / (2 * PI) for c in (curve, plain)]
    assert turns[0] == pytest.approx(turns[1], rel=0.1)
    assert float((curve.abs() < PI / 4).double().mean()) > 1.5 * float((plain.abs() < PI / 4).double().mean())


@pytest.mark.parametrize(("readouts", "petals"), [(3, 5), (1, 8), (7, 1), (4, 2), (2, 4)])
def test_rosette(readouts: int, petals: int) -> None:
    """As many petals as asked for, all as long as k-space, at even angles, each from the centre and back."""
    samples = 8 * petals
    curves = in_plane(trajectories.rosette(2, (16, 16), readouts, samples, seeded(), petals))
    curves = curves.reshape(2, readouts, petals, 8)
    assert float(curves[..., 0].abs().max()) < 1e-5  # between petals
    tips = curves[..., 4]
    torch.testing.assert_close(tips.abs(), torch.full_like(tips.abs(), PI), rtol=1e-5, atol=0)
    angles = (tips.angle() % (2 * PI)).reshape(2, -1).sort(1).values
    gaps = torch.cat([angles, angles[:, :1] + 2 * PI], 1).diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 2 * PI / (readouts * petals)), rtol=0, atol=1e-4)


def test_rosette_is_noll() -> None:
    """The closed form at a time of its own, up to the rotation of the scan."""
    curve = in_plane(trajectories.rosette(1, (16, 16), 1, 100, seeded(), petals=6))[0]
    t = torch.arange(100, dtype=torch.float64) / 100
    want = PI * torch.sin(6 * PI * t) * torch.exp(1j * 4 * PI * t)
    rotation = (curve * want.conj()).sum()
    torch.testing.assert_close(curve, want * rotation / rotation.abs(), rtol=0, atol=1e-5)
    with pytest.raises(DataError, match="petals must be 1 or more, got 0"):
        trajectories.rosette(1, (16, 16), 1, 100, seeded(), petals=0)


# -------------------------------------------------------------------------------------------------- Cartesian, stacks


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (4, 5, 6)])
def test_cartesian_is_the_fourier_transform(shape: tuple[int, ...]) -> None:
    """At the points of a mask, the transform as a sum is what the operator measures there, readout after readout."""
    mask = patterns.random_points(2, shape, 2.5, 2, seeded())
    points = trajectories.cartesian(mask, shape)
    x = torch.randn(2, 1, *shape, generator=seeded(1), dtype=torch.complex128)
    y = Fourier(mask.double(), shape)(x)
    full = mask.expand(2, 1, *shape) == 1
    for scan in range(2):
        # in a volume the first axis is read out, and varies fastest
        want = y[scan, 0].movedim(0, -1)[full[scan, 0].movedim(0, -1)] if len(shape) == 3 else y[scan][full[scan]]
        torch.testing.assert_close(transform(points[scan], x[scan, 0]), want, rtol=0, atol=1e-5)


def test_ramp_is_voronoi() -> None:
    """Away from centre and rim, a sample's weight is the area of what is nearer to it than to others."""
    shape, readouts, samples = (32, 32), 64, 32
    points = trajectories.radial(2, shape, readouts, samples, seeded())
    areas = density_compensation(points, shape, "voronoi")
    radius = points.norm(dim=-1)
    inside = (radius > 0.5) & (radius < 2.9)
    torch.testing.assert_close(trajectories.ramp(2, shape, readouts, samples)[inside], areas[inside], rtol=0.01, atol=0)


@pytest.mark.parametrize("name", ["radial", "golden-angle"])
def test_spokes_measure_and_give_back_an_image(name: str) -> None:
    """Measured by spokes at the Nyquist number and gridded with the ramp, an image within the disc is itself."""
    shape = (32, 32)
    readouts = trajectories.nyquist_spokes(shape) if name == "radial" else 89
    points = TRAJECTORIES[name](2, shape, readouts, 64, seeded())
    A = Nufft(points, shape, weights=trajectories.ramp(2, shape, readouts, 64).sqrt(), readout=64)
    n = torch.arange(32) - 16
    bump = torch.exp(-((n[:, None] + 3) ** 2 + (n - 2) ** 2) / 18) - 0.5 * torch.exp(-(n[:, None] ** 2 + n**2) / 8)
    x = bump.to(torch.complex64).expand(2, 1, 32, 32)
    assert float((A.gram(x) - x).norm() / x.norm()) < 0.02


def test_cartesian_is_a_nufft() -> None:
    """A mask of lines is a trajectory of readouts, which are lost as lines are."""
    shape = (12, 9)
    mask = patterns.equispaced_lines(3, shape, 3.0, 2, seeded())
    A = Nufft(trajectories.cartesian(mask, shape), shape, readout=12)
    B = Fourier(mask, shape)
    x = torch.randn(3, 1, *shape, generator=seeded(1), dtype=torch.complex64)
    lines = B(x).mT[(mask.expand(3, 1, *shape) == 1).mT]
    torch.testing.assert_close(A(x).flatten(), lines, rtol=0, atol=2e-3)
    torch.testing.assert_close(A.gram(x), B.gram(x), rtol=0, atol=2e-3)
    thinned = A.thin(0.5, seeded()).rows.reshape(3, 3, 12)
    assert bool((thinned == thinned[..., :1]).all())


def test_cartesian_refuses() -> None:
    with pytest.raises(DataError, match=r"mask must be \(batch, 1, 5 or 1, 4 or 1\), got \(1, 1, 4, 4\)"):
        trajectories.cartesian(torch.ones(1, 1, 4, 4), (5, 4))
    with pytest.raises(DataError, match=r"mask must be \(batch, 1"):
        trajectories.cartesian(torch.ones(1, 2, 5, 4), (5, 4))
    with pytest.raises(DataError, match="zeros and ones"):
        trajectories.cartesian(torch.full((1, 1, 5, 4), 0.5), (5, 4))
    uneven = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]]).reshape(2, 1, 1, 4)
    with pytest.raises(DataError, match="as many samples each to be one trajectory, got 5 to 10"):
        trajectories.cartesian(uneven, (5, 4))


def test_epi() -> None:
    """Lines of the grid, to and fro; all of them are the whole grid."""
    points = trajectories.epi(5, (12, 9), 4, 9, seeded()).reshape(5, 4, 9, 2).double()
    y, x = points.unbind(-1)
    assert bool((y == y[:, :, :1]).all())
    rows = y[:, :, 0] * 12 / (2 * PI) + 6
    torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.diff(dim=1), torch.full((5, 3), 3.0, dtype=torch.float64), rtol=0, atol=1e-5)
    assert {round(float(row)) for row in rows[:, 0]} <= {0, 1, 2}
    grid = 2 * PI * (torch.arange(9, dtype=torch.float64) - 4) / 9
    torch.testing.assert_close(x[:, 0::2], grid.expand(5, 2, 9), rtol=0, atol=1e-6)
    torch.testing.assert_close(x[:, 1::2], grid.flip(0).expand(5, 2, 9), rtol=0, atol=1e-6)
    every = trajectories.epi(1, (12, 9), 12, 9, seeded())[0]
    whole = trajectories.cartesian(torch.ones(1, 1, 12, 9), (12, 9))[0]
    assert {tuple(point) for point in every.tolist()} == {tuple(point) for point in whole.tolist()}
    with pytest.raises(DataError, match="readouts must be at most the 12 lines"):
        trajectories.epi(1, (12, 9), 13, 9, seeded())


@pytest.mark.parametrize(("name", "plane"), [("stack-of-stars", "radial"), ("stack-of-spirals", "spiral")])
def test_stacks(name: str, plane: str) -> None:
    """One trajectory of the plane on every partition of the grid."""
    points = TRAJECTORIES[name](2, (5, 32, 32), 3, 40, seeded()).reshape(2, 5, 120, 3)
    flat = TRAJECTORIES[plane](2, (32, 32), 3, 40, seeded())
    assert torch.equal(points[..., 1:], flat[:, None].expand(2, 5, 120, 2))
    want = 2 * PI * (torch.arange(5) - 2) / 5
    torch.testing.assert_close(points[..., 0], want[:, None].expand(2, 5, 120))


def test_stack_options() -> None:
    golden = trajectories.stack_of_stars(1, (2, 32, 32), 3, 8, seeded(), golden=True)
    assert torch.equal(golden[:, :24, 1:], trajectories.golden_angle(1, (32, 32), 3, 8, seeded()))
    dense = trajectories.stack_of_spirals(1, (2, 32, 32), 3, 8, seeded(), 1.5, 2.0)
    assert torch.equal(dense[:, :24, 1:], trajectories.spiral(1, (32, 32), 3, 8, seeded(), 1.5, 2.0))
    with pytest.raises(DataError, match="partitions must be 1 or more, got 0"):
        trajectories.stack(torch.zeros(1, 4, 2), 0)


# -------------------------------------------------------------------------------------------------- acceleration


def test_acceleration() -> None:
    """In samples, and in readouts of a Cartesian scan."""
    points = trajectories.radial(2, (64, 64), 16, 128, seeded())
    assert trajectories.acceleration(points, (64, 64)) == 2.0  # 4096 pixels, 2048 samples
    assert trajectories.acceleration(points, (64, 64), 128) == 4.0  # 64 lines, 16 spokes
    volume = trajectories.stack_of_stars(1, (10, 64, 64), 16, 128, seeded())
    assert trajectories.acceleration(volume, (10, 64, 64), 128) == 4.0
    ball = trajectories.kooshball(1, (16, 16, 16), 64, 32, seeded())
    assert trajectories.acceleration(ball, (16, 16, 16), 32) == 4.0  # 256 lines
    full = trajectories.cartesian(torch.ones(1, 1, 1, 1), (6, 8))
    assert trajectories.acceleration(full, (6, 8)) == trajectories.acceleration(full, (6, 8), 8) == 1.0
    with pytest.raises(DataError, match=r"points must be \(batch, n, 3\), got \(2, 2048, 2\)"):
        trajectories.acceleration(points, (64, 64, 64))
    with pytest.raises(DataError, match="samples must divide the 2048 of the trajectory, got 100"):
        trajectories.acceleration(points, (64, 64), 100)
