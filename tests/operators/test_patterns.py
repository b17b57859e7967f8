"""Sampling patterns: counts, centres, densities, seeds."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Fourier, patterns
from ambient_sci.operators.patterns import PATTERNS, acceleration

LINES = ["random-lines", "variable-density-lines", "equispaced-lines"]
POINTS = ["random-pixels", "gaussian-points"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calibration_of(name: str) -> int:
    return 0 if name == "boxes" else 6


@pytest.mark.parametrize("name", PATTERNS)
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


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("bad", [0.5, 0.0, -2.0, math.nan, math.inf, 1e6])
def test_impossible_acceleration(name: str, bad: float) -> None:
    with pytest.raises(DataError, match="acceleration must be between 1 and"):
        PATTERNS[name](2, (16, 16), bad, 0, seeded())


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "boxes"])
@pytest.mark.parametrize(("calibration", "factor"), [(9, 2.0), (-1, 2.0), (30, 1.0)])
def test_calibration_that_does_not_fit(name: str, calibration: int, factor: float) -> None:
    shape = (16, 16)
    if name not in LINES and calibration == 9:
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
    assert PATTERNS[name](2, (4, 5, 6), 4.0, 0, seeded()).shape == (2, 1, 4, 5, 6)


def test_random_pixels() -> None:
    mask = patterns.random_pixels(3000, (4, 5), 0.3, seeded())
    assert bool((mask.sum((1, 2, 3)) == 6).all())
    torch.testing.assert_close(mask.mean(0), torch.full((1, 4, 5), 0.3), rtol=0, atol=0.045)
    assert bool((patterns.random_pixels(2, (4, 5), 1.0, seeded()) == 1).all())
    for keep in (0.0, 1.2, math.nan):
        with pytest.raises(DataError, match="keep"):
            patterns.random_pixels(2, (4, 5), keep, seeded())


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
    with pytest.raises(DataError, match="2-D"):
        patterns.poisson_disc(1, (8, 8, 8), 5.0, 2, seeded())
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
    with pytest.raises(DataError, match="calibration must be 0, got 4"):
        PATTERNS["boxes"](1, (6, 7), 2.0, 4, seeded())


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
