"""Sampling patterns: counts, centres, densities, seeds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Fourier, Mask, patterns
from ambient_sci.operators.patterns import PATTERNS, acceleration

LINES = ["random-lines", "variable-density-lines", "equispaced-lines"]
POINTS = ["random-points", "variable-density-points", "gaussian-points"]
ANYWHERE = ["bernoulli-pixels", "boxes", "patch", "blocks"]
EXACT = [*LINES, *POINTS, "random-pixels"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calibration_of(name: str) -> int:
    return 0 if name in ANYWHERE else 6


def centre(mask: Tensor, shape: tuple[int, ...], calibration: int) -> Tensor:
    """The centre block of a mask, along the axes that it samples."""
    for axis, size in enumerate(shape, start=2):
        if mask.shape[axis] > 1:
            mask = mask.narrow(axis, size // 2 - calibration // 2, calibration)
    return mask


def test_names() -> None:
    assert list(PATTERNS) == [
        *LINES,
        "partial-fourier",
        *POINTS,
        "poisson-disc",
        "random-pixels",
        *ANYWHERE,
    ]


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "partial-fourier"])
def test_uniform_call(name: str) -> None:
    """What all patterns share: shape, values, seeds, and scans that differ."""
    shape, calibration = (40, 33), calibration_of(name)
    mask = PATTERNS[name](5, shape, 3.0, calibration, seeded())
    assert mask.dtype == torch.float32
    assert mask.shape == (5, 1, 1 if name in LINES else 40, 33)
    assert bool(((mask == 0) | (mask == 1)).all())
    assert torch.equal(mask, PATTERNS[name](5, shape, 3.0, calibration, seeded()))
    assert not torch.equal(mask, PATTERNS[name](5, shape, 3.0, calibration, seeded(1)))
    assert len({tuple(scan.flatten().tolist()) for scan in mask}) == 5
    torch.testing.assert_close(acceleration(mask, shape), torch.full((5,), 3.0, dtype=torch.float64), rtol=0.1, atol=0)
    Fourier(mask, shape, calibration)  # an operator takes it


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_size(data: st.DataObject) -> None:
    """Values, counts, centres and seeds, for sizes odd and even, flat and long."""
    name = data.draw(st.sampled_from(EXACT))
    shape = tuple(data.draw(st.lists(st.integers(2, 24), min_size=1, max_size=3)))
    sampled = shape[-1:] if name in LINES else shape[-2:] if name in POINTS else shape
    calibration = data.draw(st.integers(0, min(sampled)))
    size = math.prod(sampled)
    most = size / max(calibration ** len(sampled), 1)
    acceleration_ = data.draw(st.floats(1, max(1.0, most * (1 - 1e-9))))
    seed = data.draw(st.integers(0, 2**32))
    mask = PATTERNS[name](3, shape, acceleration_, calibration, seeded(seed))
    assert mask.dtype == torch.float32
    assert mask.shape == (3, 1, *[1] * (len(shape) - len(sampled)), *sampled)
    assert bool(((mask == 0) | (mask == 1)).all())
    count = round(size / acceleration_)
    assert mask.flatten(1).sum(1).tolist() == [count] * 3
    assert acceleration(mask, shape).tolist() == pytest.approx([size / count] * 3, rel=1e-12)
    if calibration:
        assert bool((centre(mask, shape, calibration) == 1).all())
    assert torch.equal(mask, PATTERNS[name](3, shape, acceleration_, calibration, seeded(seed)))
    always = calibration ** len(sampled)
    if name != "equispaced-lines" and math.comb(size - always, count - always) > 1e9:
        assert len({tuple(scan.flatten().tolist()) for scan in mask}) == 3
    Fourier(mask, shape, calibration)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("bad", [0.5, 0.0, -2.0, math.nan, math.inf, 1e6])
def test_impossible_acceleration(name: str, bad: float) -> None:
    with pytest.raises(DataError, match="acceleration must be between 1 and"):
        PATTERNS[name](2, (16, 16), bad, 0, seeded())


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in ANYWHERE])
@pytest.mark.parametrize(("calibration", "factor"), [(9, 1.9), (-1, 1.9), (30, 1.0)])
def test_calibration_that_does_not_fit(name: str, calibration: int, factor: float) -> None:
    shape = (16, 16)
    if name not in [*LINES, "partial-fourier"] and calibration == 9:
        calibration = 12  # 144 of 256 points
    with pytest.raises(DataError, match="calibration"):
        PATTERNS[name](2, shape, factor, calibration, seeded())


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(("width", "factor", "calibration"), [(32, 4.0, 4), (33, 3.3, 5), (64, 8.0, 8), (31, 1.0, 3)])
def test_lines(name: str, width: int, factor: float, calibration: int) -> None:
    mask = PATTERNS[name](50, (10, width), factor, calibration, seeded())
    count = round(width / factor)
    assert bool((mask.sum((1, 2, 3)) == count).all())
    assert torch.equal(acceleration(mask, (10, width)), torch.full((50,), width / count, dtype=torch.float64))
    start = width // 2 - calibration // 2
    assert bool((mask[..., start : start + calibration] == 1).all())


@pytest.mark.parametrize("name", LINES)
def test_lines_in_one_and_three_dimensions(name: str) -> None:
    assert PATTERNS[name](2, (20,), 4.0, 2, seeded()).shape == (2, 1, 20)
    assert PATTERNS[name](2, (5, 6, 20), 4.0, 2, seeded()).shape == (2, 1, 1, 1, 20)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_lines_in_partial_fourier(data: st.DataObject) -> None:
    """One end is never sampled, and the count is that of all of k-space."""
    name = data.draw(st.sampled_from(LINES))
    width, partial = data.draw(st.integers(12, 40)), data.draw(st.floats(5 / 8, 1))
    acquired = round(partial * width)
    calibration = data.draw(st.integers(0, 2 * (acquired - width // 2) - 2))
    count = data.draw(st.integers(max(calibration, 1), acquired))
    draw = PATTERNS[name]
    mask = draw(20, (4, width), width / count, calibration, seeded(data.draw(st.integers(0, 99))), partial=partial)
    lines = mask[:, 0, 0]
    assert lines.sum(1).tolist() == [count] * 20
    assert bool((centre(mask, (4, width), calibration) == 1).all())
    low, high = lines[:, : width - acquired].sum(1), lines[:, acquired:].sum(1)
    assert bool(((low == 0) | (high == 0)).all())


@pytest.mark.parametrize("name", LINES)
def test_partial_fourier_loses_either_end(name: str) -> None:
    mask = PATTERNS[name](200, (4, 32), 4.0, 2, seeded(), partial=0.625)[:, 0, 0]
    low, high = mask[:, :12].any(1), mask[:, 20:].any(1)
    assert not bool((low & high).any())
    assert 70 < int(low.sum()) < 130
    # no partial Fourier: the same lines as ever, for the same seed
    full = PATTERNS[name](3, (4, 32), 4.0, 2, seeded())
    assert torch.equal(PATTERNS[name](3, (4, 32), 4.0, 2, seeded(), partial=1.0), full)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    ("partial", "factor", "calibration", "message"),
    [
        (0.5, 4.0, 0, "partial must be above 1/2"),
        (1.1, 4.0, 0, "partial must be above 1/2"),
        (math.nan, 4.0, 0, "partial must be above 1/2"),
        (0.51, 4.0, 0, "acquires 16 of 32 lines, which cannot hold a calibration of 0"),
        (0.75, 1.4, 18, "acquires 24 of 32 lines, which cannot hold a calibration of 18"),
        (0.75, 1.0, 0, "acquires 24 of 32 lines, the acceleration asks for 32"),
    ],
)
def test_partial_fourier_that_does_not_fit(
    name: str, partial: float, factor: float, calibration: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        PATTERNS[name](2, (4, 32), factor, calibration, seeded(), partial=partial)


def test_partial_fourier() -> None:
    mask = patterns.partial_fourier(100, (4, 31), 0.625, seeded())
    assert mask.shape == (100, 1, 1, 31)
    low = torch.cat([torch.zeros(12), torch.ones(19)])
    assert {tuple(lines.tolist()) for lines in mask[:, 0, 0]} == {tuple(low.tolist()), tuple(low.flip(0).tolist())}
    assert torch.equal(patterns.partial_fourier(2, (4, 31), 0.625, seeded(), side="low")[1, 0, 0], low)
    assert torch.equal(patterns.partial_fourier(2, (4, 31), 0.625, seeded(), side="high")[1, 0, 0], low.flip(0))
    assert patterns.partial_fourier(2, (30, 31), 0.625, seeded(), axis=-2).sum((1, 2, 3)).tolist() == [19, 19]
    assert patterns.partial_fourier(2, (5, 30, 31), 0.625, seeded(), axis=0).shape == (2, 1, 5, 1, 1)
    # it composes with points, whose product samples no more than either
    points = patterns.gaussian_points(100, (4, 31), 2.0, 2, seeded())
    both = points * mask
    assert bool((both <= points).all())
    assert bool((both.sum((1, 2, 3)) > 0).all())
    assert acceleration(PATTERNS["partial-fourier"](3, (4, 32), 1.6, 6, seeded()), (4, 32)).tolist() == [1.6] * 3
    for bad, message in (
        ({"partial": 0.5}, "partial"),
        ({"side": "left"}, "side must be 'low', 'high'"),
        ({"axis": 2}, "axis must be one of the 2"),
        ({"calibration": 20}, "cannot hold a calibration of 20"),
        ({"calibration": -1}, "calibration must be between 0 and 31"),
    ):
        with pytest.raises(DataError, match=message):
            patterns.partial_fourier(**{"batch": 1, "shape": (4, 31), "partial": 0.625, "generator": seeded(), **bad})
    with pytest.raises(DataError, match=r"acceleration must be below 2, got 2\.5"):
        PATTERNS["partial-fourier"](3, (4, 32), 2.5, 0, seeded())


def test_random_lines_are_uniform() -> None:
    mask = patterns.random_lines(4000, (1, 20), 4.0, 2, seeded())[:, 0, 0]
    outside = torch.cat([mask[:, :9], mask[:, 11:]], 1).mean(0)
    torch.testing.assert_close(outside, torch.full((18,), 3 / 18), rtol=0, atol=0.03)


def test_variable_density_falls_from_the_centre() -> None:
    mask = patterns.variable_density_lines(4000, (1, 21), 3.0, 0, seeded(), power=2.0)[:, 0, 0].mean(0)
    right = mask[10:]
    assert bool((right.diff() < 0).all())
    torch.testing.assert_close(mask, mask.flip(0), rtol=0, atol=0.04)
    one = patterns.variable_density_lines(20000, (1, 5), 5.0, 0, seeded(), power=1.0)[:, 0, 0].mean(0)
    weight = 1 - torch.tensor([2, 1, 0, 1, 2]) / 3  # a draw of one line follows the density itself
    torch.testing.assert_close(one, weight / weight.sum(), rtol=0, atol=0.02)
    with pytest.raises(DataError, match="power"):
        patterns.variable_density_lines(1, (1, 21), 3.0, 0, seeded(), power=-1.0)


@pytest.mark.parametrize(("width", "factor"), [(32, 4.0), (35, 5.0)])
def test_equispaced_lines_have_one_spacing_and_every_offset(width: int, factor: float) -> None:
    mask = patterns.equispaced_lines(200, (8, width), factor, 0, seeded())[:, 0, 0]
    firsts = set()
    for lines in mask:
        places = lines.nonzero()[:, 0]
        assert bool((places.diff() == int(factor)).all())
        firsts.add(int(places[0]))
    assert firsts == set(range(int(factor)))


def test_equispaced_lines_around_the_calibration() -> None:
    mask = patterns.equispaced_lines(20, (8, 48), 4.0, 6, seeded())[:, 0, 0]
    outside = torch.cat([mask[:, :21], mask[:, 27:]], 1)  # 6 of 42 lines: every seventh
    for lines in outside:
        assert bool((lines.nonzero()[:, 0].diff() == 7).all())


@pytest.mark.parametrize("name", POINTS)
def test_points(name: str) -> None:
    mask = PATTERNS[name](20, (15, 16), 4.0, 4, seeded())
    assert bool((mask.sum((1, 2, 3)) == 60).all())
    assert bool((mask[..., 5:9, 6:10] == 1).all())


@pytest.mark.parametrize("name", [*POINTS, "poisson-disc"])
def test_points_in_a_volume(name: str) -> None:
    """A volume is read out along its first axis, in full; in the plane it is sampled as an image is."""
    volume = PATTERNS[name](3, (7, 24, 30), 4.0, 4, seeded())
    assert volume.shape == (3, 1, 1, 24, 30)
    assert torch.equal(volume[:, :, 0], PATTERNS[name](3, (24, 30), 4.0, 4, seeded()))
    A = Fourier(volume, (7, 24, 30), 4)
    assert torch.equal(acceleration(A.mask, A.shape), acceleration(volume[:, :, 0], (24, 30)))


@pytest.mark.parametrize("name", POINTS)
def test_points_along_other_axes(name: str) -> None:
    every = PATTERNS[name](2, (4, 5, 6), 4.0, 2, seeded(), axes=3)
    assert every.shape == (2, 1, 4, 5, 6)
    assert every.sum((1, 2, 3, 4)).tolist() == [30, 30]
    assert PATTERNS[name](2, (4, 5, 16), 4.0, 2, seeded(), axes=1).shape == (2, 1, 1, 1, 16)
    with pytest.raises(DataError, match="axes must be 1 or more, got 0"):
        PATTERNS[name](2, (4, 5, 6), 4.0, 0, seeded(), axes=0)


def test_points_of_a_density() -> None:
    uniform = patterns.random_points(4000, (4, 5), 5.0, 0, seeded()).mean(0)
    torch.testing.assert_close(uniform, torch.full((1, 4, 5), 0.2), rtol=0, atol=0.03)
    one = patterns.variable_density_points(20000, (5, 3), 15.0, 0, seeded(), power=2.0)[:, 0].mean(0)
    y, x = torch.tensor([2, 1, 0, 1, 2]) / 3, torch.tensor([1, 0, 1]) / 2
    weight = (1 - ((y[:, None] ** 2 + x**2) / 2).sqrt()) ** 2  # a draw of one point follows the density itself
    torch.testing.assert_close(one, weight / weight.sum(), rtol=0, atol=0.015)
    # on a line, points are lines
    lines = patterns.variable_density_lines(3, (21,), 3.0, 4, seeded())
    assert torch.equal(patterns.variable_density_points(3, (21,), 3.0, 4, seeded()), lines)
    with pytest.raises(DataError, match="power"):
        patterns.variable_density_points(1, (21, 4), 3.0, 0, seeded(), power=math.inf)


def test_random_pixels() -> None:
    mask = patterns.random_pixels(3000, (4, 5), 0.3, seeded())
    assert bool((mask.sum((1, 2, 3)) == 6).all())
    torch.testing.assert_close(mask.mean(0), torch.full((1, 4, 5), 0.3), rtol=0, atol=0.045)
    assert bool((patterns.random_pixels(2, (4, 5), 1.0, seeded()) == 1).all())
    assert patterns.random_pixels(2, (4, 5, 6), 0.5, seeded()).shape == (2, 1, 4, 5, 6)
    for keep in (0.0, 1.2, math.nan, 0.01):
        with pytest.raises(DataError, match="keep must be at most 1 and leave one of 20 pixels"):
            patterns.random_pixels(2, (4, 5), keep, seeded())
    with pytest.raises(DataError, match=r"keep 0\.5 leaves 10 of 20 samples, which cannot hold a calibration of 4 x 4"):
        patterns.random_pixels(2, (4, 5), 0.5, seeded(), calibration=4)


def test_pixels_of_channels() -> None:
    """Channels by themselves: each has its count, and what one has says nothing about the others."""
    mask = patterns.random_pixels(2000, (4, 5), 0.3, seeded(), channels=3)
    assert mask.shape == (2000, 3, 4, 5)
    assert bool((mask.sum((2, 3)) == 6).all())
    together = (mask[:, 0] * mask[:, 1]).mean()
    assert float(together) == pytest.approx(0.09, abs=0.006)
    assert acceleration(mask, (4, 5)).tolist() == pytest.approx([20 / 6] * 2000)
    assert Mask(mask[:2])(torch.ones(2, 3, 4, 5)).sum() == 36


@pytest.mark.parametrize("channels", [1, 3])
def test_bernoulli_pixels(channels: int) -> None:
    mask = patterns.bernoulli_pixels(3000, (4, 5), 0.3, seeded(), channels)
    assert mask.shape == (3000, channels, 4, 5)
    torch.testing.assert_close(mask.mean(0), torch.full((channels, 4, 5), 0.3), rtol=0, atol=0.045)
    counts = mask.flatten(1).sum(1)
    assert float(counts.var()) == pytest.approx(20 * channels * 0.3 * 0.7, rel=0.15)  # binomial
    assert bool((patterns.bernoulli_pixels(2, (4, 5), 1.0, seeded()) == 1).all())
    for keep in (0.0, 1.2, math.nan):
        with pytest.raises(DataError, match="keep must be above 0"):
            patterns.bernoulli_pixels(2, (4, 5), keep, seeded())


def test_gaussian_points_follow_their_density() -> None:
    mask = patterns.gaussian_points(20000, (9, 5), 45.0, 0, seeded(), width=0.5)[:, 0].mean(0)
    y, x = (torch.arange(size) - size // 2 for size in (9, 5))
    density = torch.exp(-0.5 * ((y[:, None] / 2.25) ** 2 + (x / 1.25) ** 2))
    torch.testing.assert_close(mask, density / density.sum(), rtol=0, atol=0.015)
    # a far tail underflows as a density, and is drawn all the same when everything is
    assert bool((patterns.gaussian_points(1, (64, 64), 1.0, 0, seeded(), width=0.01) == 1).all())
    with pytest.raises(DataError, match="width"):
        patterns.gaussian_points(1, (8, 8), 2.0, 0, seeded(), width=0.0)


def test_poisson_disc() -> None:
    state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    torch_state = torch.random.get_rng_state()
    mask = patterns.poisson_disc(6, (48, 49), 5.0, 7, seeded())
    assert bool((mask[..., 21:28, 21:28] == 1).all())
    assert bool((acceleration(mask, (48, 49)) - 5 < 0.5).all())
    # points avoid each other: near the edge, neighbours are rarer than among independent points of this density
    edge = mask[:, 0, :, 34:]
    assert (edge[:, 1:] * edge[:, :-1]).mean() < 0.7 * edge.mean() ** 2
    independent = edge.flatten(1)[:, torch.randperm(edge[0].numel(), generator=seeded())].reshape(edge.shape)
    assert (independent[:, 1:] * independent[:, :-1]).mean() > 0.7 * edge.mean() ** 2
    for shape in ((64,), (4, 4, 8, 8)):
        with pytest.raises(DataError, match="2-D"):
            patterns.poisson_disc(1, shape, 5.0, 2, seeded())
    with pytest.raises(DataError, match="no Poisson disc pattern"):
        patterns.poisson_disc(1, (8, 8), 1.0, 2, seeded())
    # neither success nor failure touches the generators that others may be using
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], state)  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_boxes() -> None:
    mask = patterns.random_boxes(500, (6, 7), (2, 3), seeded())
    assert mask.shape == (500, 1, 6, 7)
    missing = 1 - mask[:, 0]
    for box in missing[:20]:
        places = box.nonzero()
        assert len(places) == 6
        assert (places.max(0).values - places.min(0).values).tolist() == [1, 2]
    corners = {tuple(box.nonzero()[0].tolist()) for box in missing}
    assert corners == {(i, j) for i in range(5) for j in range(5)}
    assert bool((patterns.random_boxes(1, (4, 4), 0, seeded()) == 1).all())
    assert patterns.random_boxes(2, (4, 5, 6), 2, seeded()).shape == (2, 1, 4, 5, 6)
    for size in (8, (2,), (-1, 2)):
        with pytest.raises(DataError, match="size"):
            patterns.random_boxes(1, (6, 7), size, seeded())
    with pytest.raises(DataError, match="boxes must be 0 or more, got -1"):
        patterns.random_boxes(1, (6, 7), 2, seeded(), boxes=-1)
    with pytest.raises(DataError, match=r"acceleration 30\.0 leaves nothing of"):
        PATTERNS["boxes"](1, (6, 7), 30.0, 0, seeded())


def test_several_boxes() -> None:
    """Boxes are independent of each other, and may overlap."""
    one = patterns.random_boxes(4000, (8, 9), 3, seeded())
    assert torch.equal(one, patterns.random_boxes(4000, (8, 9), 3, seeded(), boxes=1))
    two = patterns.random_boxes(4000, (8, 9), 3, seeded(), boxes=2)
    lost = (1 - two).sum((1, 2, 3))
    assert set(lost.tolist()) <= set(range(9, 19))
    assert int(lost.max()) == 18
    # a pixel survives two boxes with the square of the probability for one
    torch.testing.assert_close(two.mean(0), one.mean(0) ** 2, rtol=0, atol=0.05)
    assert bool((patterns.random_boxes(2, (8, 9), 3, seeded(), boxes=0) == 1).all())


@pytest.mark.parametrize("name", ANYWHERE)
def test_patterns_without_a_centre(name: str) -> None:
    with pytest.raises(DataError, match="calibration must be 0, got 4"):
        PATTERNS[name](1, (6, 7), 2.0, 4, seeded())


def test_patch() -> None:
    """One box is measured, and nothing else."""
    mask = PATTERNS["patch"](200, (20, 30), 6.0, 0, seeded())
    for patch in mask[:, 0]:
        places = patch.nonzero()
        sides = places.max(0).values - places.min(0).values + 1
        assert sides.tolist() == [8, 12]  # 1 / sqrt(6) of either
        assert len(places) == 96
    assert len({tuple(patch.nonzero()[0].tolist()) for patch in mask[:, 0]}) > 50
    assert bool((PATTERNS["patch"](3, (1, 50), 50.0, 0, seeded()).sum((1, 2, 3)) >= 1).all())


@pytest.mark.parametrize("channels", [1, 2])
def test_blocks(channels: int) -> None:
    mask = patterns.random_blocks(300, (8, 12), 0.25, 4, seeded(), channels)
    assert mask.shape == (300, channels, 8, 12)
    blocks = mask.reshape(300, channels, 2, 4, 3, 4).transpose(3, 4)
    assert bool((blocks == blocks[..., :1, :1]).all())  # whole blocks alone
    assert bool((blocks[..., 0, 0].sum((2, 3)) == 2).all())  # of six, round(1.5)
    torch.testing.assert_close(blocks[..., 0, 0].mean(0), torch.full((channels, 2, 3), 1 / 3), rtol=0, atol=0.1)
    if channels == 2:
        assert not torch.equal(mask[:, 0], mask[:, 1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 6), st.floats(0.2, 1), st.integers(0, 99))
def test_blocks_of_any_grid(shape: list[int], block: int, keep: float, seed: int) -> None:
    """Blocks are no larger than asked for, differ by a pixel, and as many are kept as should be."""
    sides = [min(block, size) for size in shape]
    grid = [math.ceil(size / side) for size, side in zip(shape, sides, strict=True)]
    count = round(keep * math.prod(grid))
    assume(count > 0)
    mask = patterns.random_blocks(2, shape, keep, sides, seeded(seed))[:, 0]
    edges = [torch.arange(n + 1) * size / n for n, size in zip(grid, shape, strict=True)]
    starts = [edge.ceil().long() for edge in edges]
    for start, side in zip(starts, sides, strict=True):
        assert int(start.diff().max()) <= side
        assert int(start.diff().max() - start.diff().min()) <= 1
    coarse = mask
    for axis, start in enumerate(starts, start=1):
        pieces = coarse.split(start.diff().tolist(), axis)
        assert all(torch.equal(piece.amin(axis), piece.amax(axis)) for piece in pieces)
        coarse = torch.stack([piece.amax(axis) for piece in pieces], axis)
    assert coarse.flatten(1).sum(1).tolist() == [count] * 2


def test_blocks_that_do_not_fit() -> None:
    for block in (0, 9, (2,), (2, 13)):
        with pytest.raises(DataError, match="block must be sides from 1 to those of an image of shape \\(8, 12\\)"):
            patterns.random_blocks(1, (8, 12), 0.5, block, seeded())
    with pytest.raises(DataError, match="keep must be at most 1 and leave one of 6 blocks"):
        patterns.random_blocks(1, (8, 12), 0.01, 4, seeded())


@pytest.mark.parametrize(
    ("mask", "want"),
    [
        (torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).reshape(3, 1, 1, 4), [4, 2, math.inf]),
        (torch.eye(3).reshape(1, 1, 3, 3), [3]),
    ],
)
def test_acceleration(mask: Tensor, want: list[float]) -> None:
    assert acceleration(mask, (3, mask.shape[-1])).tolist() == pytest.approx(want)


def test_acceleration_checks_the_shape() -> None:
    with pytest.raises(DataError, match=r"\(batch, channel, 5 or 1, 4 or 1\), got \(1, 1, 3, 3\)"):
        acceleration(torch.ones(1, 1, 3, 3), (5, 4))
