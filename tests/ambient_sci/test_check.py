"""The check before training: against dense matrices, enumeration and planted faults."""

import importlib
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci import Measurement, cli, open_store
from ambient_sci.check import CheckReport, check, coverage, duplicates, gaussian, reason_to_refuse
from ambient_sci.check.coverage import Rows
from ambient_sci.check.gaussian import Basis
from ambient_sci.datasets import StoreWriter, simulate
from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import randn_like
from ambient_sci.operators import Average, Blur, Fourier, LinearOperator, Mask, Sense, patterns
from ambient_sci.operators.blur import gaussian_kernel
from ambient_sci.operators.fourier import centred_fft

ROOT = Path(__file__).parents[2]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.complex64) -> Tensor:
    """Matrix of a map of images ``(1, *shape)``."""
    n = math.prod(shape)
    columns = [apply(unit.reshape(1, *shape)).flatten() for unit in torch.eye(n, dtype=dtype)]
    return torch.stack(columns, 1)


def write(path: Path, images: Tensor, operator: LinearOperator, noise: float = 0.02, **coords: Any) -> Store:
    y = operator(images)
    y = y + noise * randn_like(y, generator(9)) * operator.rows
    with StoreWriter(path, {}, overwrite=True) as writer:
        writer.append(Measurement(y, operator, noise), coords=coords)
    return open_store(path)


def as_images(blobs: np.ndarray) -> Tensor:
    return torch.from_numpy(blobs)[:, None].to(torch.complex64)


def random_columns(count: int, size: int, seed: int = 0, acceleration: float = 3) -> Tensor:
    return patterns.random_lines(count, (size, size), acceleration, min(4, size // 4), generator(seed))


# ------------------------------------------------------------------------------------------ conditional coverage


def chances(masks: list[tuple[int, ...]], weights: list[float], shown: tuple[int, ...], thinning: float) -> np.ndarray:
    """P(m_k = 1 | shown) by Bayes' rule over all masks, written out."""
    joint = []
    for mask, weight in zip(masks, weights, strict=True):
        factor = weight
        for m, s in zip(mask, shown, strict=True):
            factor *= (1 - thinning if s else thinning) if m else float(not s)
        joint.append(factor)
    return np.array(joint) @ np.array(masks, float) / sum(joint)


def test_independent_rows_have_the_conditional_of_the_closed_form() -> None:
    part, thinning = np.array([0.2, 0.5, 0.9]), 0.3
    masks = list(itertools.product((0, 1), repeat=3))
    weights = [float(np.prod(np.where(mask, part, 1 - part))) for mask in masks]
    c = coverage.conditional(part, np.zeros(3, bool), thinning)
    for shown in masks:
        expected = chances(masks, weights, shown, thinning)
        np.testing.assert_allclose(np.where(shown, 1, c), expected, rtol=1e-12)


def test_conditional_at_its_ends() -> None:
    part = np.array([0.0, 1.0, 1.0, 0.5])
    protected = np.array([False, True, False, True])
    np.testing.assert_allclose(coverage.conditional(part, protected, 0.3), [0, 1, 1, 0])


def test_conditional_is_the_average_over_what_is_shown() -> None:
    # dependent rows: of four, two at a time
    masks = [mask for mask in itertools.product((0, 1), repeat=4) if sum(mask) == 2]
    weights, thinning = [1 / len(masks)] * len(masks), 0.4
    total = weight = 0.0
    for shown in itertools.product((0, 1), repeat=4):
        if shown[0] or sum(shown) > 2:
            continue
        chance = sum(
            w
            * np.prod(
                [(1 - thinning if s else thinning) if m else float(not s) for m, s in zip(mask, shown, strict=True)]
            )
            for mask, w in zip(masks, weights, strict=True)
        )
        total += chance * chances(masks, weights, shown, thinning)[0]
        weight += chance
    assert coverage.conditional(np.full(4, 0.5), np.zeros(4, bool), thinning)[0] == pytest.approx(total / weight)


def test_few_patterns_are_enumerated() -> None:
    """Smallest eigenvalue of the dense matrix ``F^H diag(g) F``, averaged over everything that can be shown."""
    seen = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]], bool)
    counts, thinning = np.array([5, 3, 2]), 0.5
    F = dense(lambda x: centred_fft(x, 1), (1, 4)).numpy()
    masks, weights = [tuple(map(int, mask)) for mask in seen], (counts / 10).tolist()
    expected = 0.0
    for shown in itertools.product((0, 1), repeat=4):
        chance = sum(
            w
            * np.prod(
                [(1 - thinning if s else thinning) if m else float(not s) for m, s in zip(mask, shown, strict=True)]
            )
            for mask, w in zip(masks, weights, strict=True)
        )
        if chance > 0:
            G = F.conj().T @ np.diag(chances(masks, weights, shown, thinning)) @ F
            expected += chance * np.linalg.eigvalsh(G)[0]
    got, mean = coverage.conditional_of_patterns(seen, counts, np.zeros(4, bool), thinning, generator(), draws=4000)
    assert expected > 0.05
    assert got == pytest.approx(expected, abs=0.01)
    np.testing.assert_allclose(mean, (counts / 10) @ seen, atol=0.03)  # the law of total expectation


def test_one_pattern_is_singular_for_every_thinning() -> None:
    seen = np.array([[1, 0, 1, 1]], bool)
    for thinning in (0.01, 0.5, 1.0):
        got = coverage.conditional_of_patterns(seen, np.array([8]), np.zeros(4, bool), thinning, generator())
        assert got[0] == 0


@pytest.mark.parametrize("coils", [1, 3])
def test_lanczos_finds_the_ends_of_the_spectrum(coils: int) -> None:
    maps = randn_like(torch.zeros(1, coils, 5, 6, dtype=torch.complex64), generator(1))
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    full = Sense(torch.ones(1, 1, 1, 6), maps)
    weights = torch.tensor([0.05, 0.3, 1, 1, 0.3, 0.2]).reshape(1, 1, 1, 6)

    def apply(x: Tensor) -> Tensor:
        return full.adjoint(weights * full(x))

    values, vectors = torch.linalg.eigh(dense(apply, (1, 5, 6)))
    start = randn_like(torch.zeros(1, 1, 5, 6, dtype=torch.complex64), generator(2))
    low, high, direction = coverage.lanczos(apply, start, 30)
    assert low == pytest.approx(float(values[0]), abs=1e-4)
    assert high == pytest.approx(float(values[-1]), rel=1e-4)
    near = vectors[:, values < values[0] + 1e-3]
    assert float((near.conj().T @ direction.flatten()).norm()) == pytest.approx(1, abs=1e-2)


def test_pairs_that_a_scheme_keeps_apart() -> None:
    two = np.tile(np.array([[1, 0, 1, 0], [0, 1, 0, 1]], bool), (30, 1))
    apart, together = coverage.pairs_apart(Rows(two, (4,), np.zeros(4, bool)), np.ones(4), generator())
    assert apart == 1
    assert together == 0
    free = torch.rand(400, 6, generator=generator()).numpy() < 0.4
    apart, together = coverage.pairs_apart(Rows(free, (6,), np.zeros(6, bool)), np.ones(6), generator())
    assert apart == 0
    assert together == pytest.approx(0.16, abs=0.03)


# ------------------------------------------------------------------------------------------ linear estimates


def make_sense(count: int, size: int) -> Measurement:
    maps = randn_like(torch.zeros(count, 2, size, size, dtype=torch.complex64), generator(1))
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    A = Sense(random_columns(count, size), maps)
    y = A(randn_like(torch.zeros(count, 1, size, size, dtype=torch.complex64), generator(3)))
    return Measurement(y, A, torch.tensor([0.1, 0.3, 0.2])[:count])


def test_what_a_scan_leaves_unknown_is_that_of_dense_matrices() -> None:
    size, m = 6, make_sense(2, 6)
    basis = Basis(False, (1, size, size), True)
    power = 0.5 / (0.2 + basis.radius()) ** 2
    F = dense(lambda x: centred_fft(x, 2), (1, size, size))
    every = gaussian.determined(m.repeat(400), power, basis, generator()).unflatten(0, (2, 400)).mean(1)
    rhs = randn_like(torch.zeros(2, 1, size, size, dtype=torch.complex64), generator(5))
    solved = gaussian.resolve(gaussian.information(m, basis), power, rhs, basis, iterations=80)
    for scan in range(2):
        A = m.operator[scan]
        G = F @ dense(lambda x: A.gram(x), (1, size, size)) @ F.conj().T / float(m.noise_std[scan]) ** 2  # noqa: B023
        X = torch.linalg.inv(torch.diag(1 / power.flatten()).to(G.dtype) + G)
        share = 1 - X.diagonal().real / power.flatten()
        torch.testing.assert_close(every[scan].flatten(), share, atol=0.08, rtol=0)
        torch.testing.assert_close(solved[scan].flatten(), X @ rhs[scan].flatten(), atol=1e-3, rtol=1e-3)


def test_determined_share_is_exact_where_it_is_diagonal() -> None:
    A = Fourier(random_columns(3, 8), (8, 8))
    basis = Basis(False, (1, 8, 8), True)
    power = 1 / (0.1 + basis.radius()) ** 2
    m = Measurement(A(torch.ones(3, 1, 8, 8, dtype=torch.complex64)), A, 0.5)
    expected = A.mask * power / (power + 0.25)
    torch.testing.assert_close(gaussian.determined(m, power, basis, generator()), expected)

    def apply(x: Tensor) -> Tensor:  # as for kinds of which nothing is known
        return A.gram(x) / 0.25

    probes = basis.probes(3, generator())
    explained = gaussian.resolve(apply, power, gaussian.inform(apply, probes, basis), basis)
    torch.testing.assert_close((probes.conj() * explained).real, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["fourier", "mask", "gaussian"])
def test_the_spectrum_is_found_from_measurements(kind: str, tmp_path: Path) -> None:
    """Gaussian images of a known spectrum; white ones where pixels are measured."""
    size, count = 16, 60
    basis = Basis(False, (1, size, size), kind == "fourier")
    power = torch.full((size, size), 0.5) if kind == "mask" else 0.4 / (0.25 + basis.radius()) ** 3
    white = randn_like(
        torch.zeros(count, 1, size, size, dtype=torch.complex64 if basis.is_complex else None), generator(4)
    )
    images = basis.images(power.sqrt() * basis.coefficients(white))
    A = {
        "fourier": lambda: Fourier(random_columns(count, size), (size, size), 4),
        "mask": lambda: Mask((torch.rand(count, 1, size, size, generator=generator(6)) < 0.5).float()),
        "gaussian": lambda: (
            simulate(images[:, 0].numpy(), tmp_path / "g.zarr", operator="gaussian", acceleration=2)
            .read(slice(None))
            .operator
        ),
    }[kind]()
    m = Measurement(A(images) + 0.1 * randn_like(A(images), generator(7)) * A.rows, A, 0.1)
    own = Basis(kind == "mask", basis.shape, basis.is_complex)
    found = gaussian.fit_power([m[:30], m[30:]], own, generator(), lambda: None)
    bands = basis.bands().flatten()
    count_of = torch.bincount(bands)
    mean = [torch.zeros(len(count_of)).index_add_(0, bands, v.flatten()) / count_of for v in (found, power)]
    torch.testing.assert_close(mean[0][1:8], mean[1][1:8], rtol=0.35, atol=0)


# ------------------------------------------------------------------------------------------ verdicts


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.check")


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("random lines", "good", None),
        ("one fixed mask", "refused", "all scans have one pattern"),
        ("variable density, narrow gap", "marginal", "7-9"),
        ("variable density, wide gap", "refused", "9-13, 19-23"),
        ("radial, golden angle", "marginal", "of the highest frequency"),
        ("two interleaved masks", "refused", "never in one scan"),
    ],
)
def test_verdicts(name: str, verdict: str, reason: str | None, benchmark: Any, tmp_path: Path) -> None:
    count = 30 if "radial" in name else 150
    benchmark.write(tmp_path / "scans.zarr", benchmark.ellipses(count, 1), benchmark.CASES[name].scheme, 3)
    report = check(tmp_path / "scans.zarr", progress=False)
    assert report.verdict == verdict, report.reasons
    assert reason is None or any(reason in text for text in report.reasons)
    assert bool(report.advice) == (verdict != "good")
    quick = reason_to_refuse(tmp_path / "scans.zarr")
    assert str(reason) in str(quick) if verdict == "refused" else quick is None
    (group,) = report.groups
    if name == "random lines":
        mask = open_store(tmp_path / "scans.zarr").read(slice(None)).operator.parameters["mask"]
        p = mask.mean(0).flatten()
        outer = p[p < 1]
        assert group.eigenvalue == pytest.approx(float((0.3 * outer / (1 - 0.7 * outer)).min()), rel=1e-5)
        least = int((mask.sum(0) + 1e9 * (mask.sum(0) == count)).argmin())
        assert group.effective_scans[:, least].max() <= float(mask.sum(0).flatten()[least]) + 1e-3
    elif "radial" not in name:
        assert group.eigenvalue == 0
    else:
        radius = np.hypot(*np.meshgrid(*[np.arange(-16, 16) / 16] * 2))
        assert (group.unmeasured[radius > 1.2] > 0.5).all()
        assert (group.unmeasured[radius < 0.9] < 0.5).all()


def test_coils_see_what_a_fixed_mask_leaves_out(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    """Parallel imaging: a fixed mask of half the lines leaves one coil blind, and eight not."""
    images, count = as_images(blobs(60)), 60
    mask = torch.zeros(count, 1, 1, 16)
    mask[..., ::2] = 1
    one = check(write(tmp_path / "one.zarr", images, Fourier(mask, (16, 16))), progress=False)
    maps = simulate(blobs(count), tmp_path / "maps.zarr", coils=8, acceleration=2, calibration=4).read(slice(None))
    several = Sense(mask, maps.operator.parameters["maps"])
    eight = check(write(tmp_path / "eight.zarr", images, several, 0.002), progress=False)
    assert one.verdict == "refused"
    assert "one pattern" in str(reason_to_refuse(tmp_path / "one.zarr"))
    assert reason_to_refuse(tmp_path / "eight.zarr") is None
    assert one.groups[0].eigenvalue == 0
    assert eight.groups[0].starved_share < one.groups[0].starved_share / 3
    assert eight.groups[0].eigenvalue > 1e-3


def test_noise_is_told_from_what_is_not_measured(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    A = Fourier(random_columns(60, 16, acceleration=2), (16, 16), 4)
    report = check(write(tmp_path / "noisy.zarr", as_images(blobs(60)), A, 30.0), progress=False)
    assert report.verdict == "refused"
    assert "noise" in report.reasons[0]
    assert report.groups[0].directions["unmeasured"] == 0


def test_scans_without_noise(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    A = Fourier(random_columns(60, 16, acceleration=2), (16, 16), 4)
    report = check(write(tmp_path / "clean.zarr", as_images(blobs(60)), A, 0.0), progress=False)
    assert report.verdict == "good", report.reasons
    json.loads(report.to_json(), parse_constant=pytest.fail)


def test_few_scans_are_refused(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    A = Fourier(random_columns(8, 16), (16, 16), 4)
    report = check(write(tmp_path / "few.zarr", as_images(blobs(8)), A), progress=False)
    assert report.verdict == "refused"
    assert "8 scans are too few" in report.reasons[0]
    assert "8 scans are too few" in str(reason_to_refuse(tmp_path / "few.zarr"))


KINDS: dict[str, dict[str, Any]] = {
    "identity": {},
    "mask": {"keep": 0.5},
    "gaussian": {"acceleration": 2},
    "sense": {"acceleration": 2, "coils": 3, "calibration": 4},
    "nufft": {"acceleration": 2, "coils": 2},
}


@pytest.mark.parametrize("kind", [*KINDS, "blur", "average", "volume", "line"])
def test_every_kind_has_a_report(kind: str, tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    images = blobs(16, 12)
    if kind in KINDS:
        store = simulate(images, tmp_path / "s.zarr", operator=kind, **KINDS[kind])
    else:
        real = torch.from_numpy(images)[:, None]
        volume = real[..., None].repeat(1, 1, 1, 1, 3).to(torch.complex64)
        store = write(
            tmp_path / "s.zarr",
            {"volume": volume, "line": as_images(images)[:, :, 6]}.get(kind, real),
            {
                "blur": lambda: Blur(gaussian_kernel(torch.full((16,), 1.5), (7, 7)), (12, 12)),
                "average": lambda: Average(torch.ones(16, 1, 6, 6), (2, 2)),
                "volume": lambda: Fourier(random_columns(16, 12).repeat(1, 1, 1, 1)[..., None], (12, 12, 3)),
                "line": lambda: Fourier(random_columns(16, 12)[:, :, 0], (12,)),
            }[kind](),
        )
    report = check(store, progress=False)
    (group,) = report.groups
    assert group.starved.shape == group.effective_scans.shape == store.image_shape[1:]
    assert np.isfinite(json.loads(report.to_json(), parse_constant=pytest.fail)["groups"][0]["missing"])
    assert report.verdict in str(report)
    if kind in ("blur", "average"):  # all scans lose the same details
        assert group.directions["unmeasured"] > 0.3
        assert group.eigenvalue < 0.01
    if kind == "identity":
        assert group.eigenvalue == 1
    assert len(report.plot().axes) >= 3


def test_each_size_has_its_own_report(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    small = random_columns(40, 16)
    sizes = [(40, 16, small), (60, 20, random_columns(1, 20).expand(60, -1, -1, -1))]
    with StoreWriter(tmp_path / "two.zarr", {}) as writer:
        for count, size, mask in sizes:
            A = Fourier(mask, (size, size), 4)
            y = A(as_images(blobs(count, size)))
            writer.append(Measurement(y + 0.02 * randn_like(y, generator(9)) * A.rows, A, 0.02))
    report = check(tmp_path / "two.zarr", progress=False)
    assert [group.judge()[0] for group in report.groups][1] == "refused"
    assert [group.patterns for group in report.groups] == [len(torch.unique(small, dim=0)), 1]
    assert report.verdict == "refused"  # most scans are of the second size
    assert len(report.plot().axes) >= 6


# ------------------------------------------------------------------------------------------ duplicates and leaks


@pytest.mark.parametrize("kind", ["fourier", "sense"])
def test_planted_duplicates_are_found(kind: str, tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    """Measured again with another mask, other noise and another phase; neighbours are not taken for them."""
    images = as_images(blobs(40, 20))
    images[[11, 37]] = images[[3, 30]] * torch.polar(torch.tensor(0.8), torch.tensor(0.7))
    mask = random_columns(40, 20, seed=2)
    maps = simulate(blobs(40, 20), tmp_path / "m.zarr", coils=4, acceleration=2).read(slice(None)).operator
    A = Fourier(mask, (20, 20), 4) if kind == "fourier" else Sense(mask, maps.parameters["maps"], 4)
    report = check(write(tmp_path / "d.zarr", images, A), progress=False)
    assert report.duplicates == [(3, 11), (30, 37)]
    assert report.duplicated == 2
    assert report.verdict != "good"
    other = write(tmp_path / "t.zarr", torch.cat([as_images(blobs(5, 20, seed=8)), images[20:21]]), A[:6])
    leaks = check(open_store(tmp_path / "d.zarr"), other, progress=False).leaks
    assert leaks is not None
    assert leaks.pairs == [(20, 5)]
    assert leaks.subjects is None


def test_leaks_by_subject(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    stores = {}
    for name, first, seed in (("train", 0, 0), ("test", 19, 1), ("clean", 40, 2)):
        A = Fourier(random_columns(20, 16, seed), (16, 16), 4)
        people = [f"P{number}" for number in range(first, first + 20)]
        stores[name] = write(tmp_path / f"{name}.zarr", as_images(blobs(20, seed=seed)), A, subject=people)
    report = check(stores["train"], stores["test"], progress=False)
    assert report.subjects == 20
    assert report.leaks is not None
    assert report.leaks.subjects == ["P19"]
    assert any("1 subjects are in both stores (P19)" in text for text in report.reasons)
    clean = check(stores["train"], stores["clean"], progress=False)
    assert clean.leaks is not None
    assert not clean.leaks.any
    assert "none found" in str(clean)


def test_duplicates_among_many_are_found_by_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1500, 40, generator=generator())
    values[[1200, 1499]] = 3 * values[[7, 50]] + 0.003 * torch.randn(2, 40, generator=generator(1))
    features = duplicates.Features(values, None, torch.full((1500,), 40 * 0.002**2), np.arange(1500))
    exact, told = duplicates.same_images(features, generator())
    assert told
    assert exact == [(7, 1200), (50, 1499)]
    monkeypatch.setattr(duplicates, "EXACT", 10)
    compared: list[int] = []
    apart = duplicates._apart
    monkeypatch.setattr(duplicates, "_apart", lambda f, pairs: (compared.append(len(pairs)), apart(f, pairs))[1])
    assert duplicates.same_images(features, generator())[0] == exact
    assert sum(compared) < 1500 * 1500 / 2 / 5


def test_nothing_is_claimed_where_noise_hides_duplicates() -> None:
    values = torch.randn(50, 40, generator=generator())
    features = duplicates.Features(values, None, torch.full((50,), 40.0), np.arange(50))
    assert duplicates.same_images(features, generator()) == ([], False)
    noise = duplicates.Features(values, torch.ones_like(values), torch.ones(50), np.arange(50))
    assert duplicates.same_rows(noise) == ([], False)


def test_images_that_are_near_each_other_by_chance_are_no_duplicates(tmp_path: Path) -> None:
    """Three blobs have 12 degrees of freedom: of half a million pairs, some are within the noise of each other."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    centre, width = rng.uniform(-0.6, 0.6, (2, 1000, 3, 1, 1)), rng.uniform(0.12, 0.3, (1000, 3, 1, 1))
    height = rng.uniform(0.4, 1, (1000, 3, 1, 1))
    images = (height * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))).sum(1)
    images /= images.max((1, 2), keepdims=True)
    found = []
    for noise in (0.05, 0.02):
        store = simulate(images, tmp_path / f"{noise}.zarr", operator="mask", keep=0.5, noise=noise, seed=0)
        found.append(check(store, progress=False))
    assert found[0].duplicates is None  # could not be told, and so it says
    assert found[1].duplicates == []
    assert {report.verdict for report in found} == {"good"}
    images[-5:] = images[:5]
    store = simulate(images, tmp_path / "planted.zarr", operator="mask", keep=0.5, noise=0.02, seed=0)
    pairs = check(store, progress=False).duplicates
    assert pairs is not None
    planted = [(k, 995 + k) for k in range(5)]
    assert len(set(pairs) & set(planted)) >= 4  # half of the limit holds most
    assert len(set(pairs) - set(planted)) <= 1


@pytest.mark.parametrize("dimension", [2, 5, 12])
def test_pairs_are_claimed_if_more_are_near_than_chance_has(dimension: int) -> None:
    """Points of a torus, near each other by chance alone; then some stand in it twice."""
    points = torch.rand(600, dimension, generator=generator(), dtype=torch.float64)
    pairs = torch.combinations(torch.arange(600))
    apart = (points[pairs[:, 0]] - points[pairs[:, 1]] + 0.5).remainder(1) - 0.5
    squares = apart.square().sum(1)
    v = squares / squares.sort().values[20]  # 20 are nearer than the limit
    assert duplicates._claimed(pairs, v) == ([], False)
    assert duplicates._claimed(pairs, 1000 * v) == ([], True)
    twice = torch.tensor([[k, 600 + k] for k in range(300)])
    found, told = duplicates._claimed(torch.cat([pairs, twice]), torch.cat([v, torch.zeros(300)]))
    assert told
    assert {(k, 600 + k) for k in range(300)} <= set(found)
    assert len(found) <= 321


# ------------------------------------------------------------------------------------------ use


def test_the_report_is_the_same_for_the_same_seed(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    store = simulate(blobs(12, 12), tmp_path / "s.zarr", acceleration=2, calibration=4, coils=2)
    first, second = (str(check(store, seed=4, progress=False)) for _ in range(2))
    assert first == second


def test_a_sample_of_the_scans_is_enough(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    store = write(tmp_path / "s.zarr", as_images(blobs(90)), Fourier(random_columns(90, 16), (16, 16), 4))
    report = check(store, scans=30, progress=False)
    assert (report.groups[0].scans, report.groups[0].looked_at) == (90, 30)


def test_a_sample_of_scans_whose_patterns_take_turns(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    """At even distances, 48 of 95 scans would be those of one pattern."""
    mask = random_columns(2, 16).repeat(48, 1, 1, 1)[:95]
    store = write(tmp_path / "s.zarr", as_images(blobs(95)), Fourier(mask, (16, 16), 4))
    assert check(store, scans=48, progress=False).groups[0].patterns == 2


def test_what_is_quick_is_said_of_most_scans_or_of_none(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    """40 scans of one pattern are to be refused, unless most scans are of other sizes."""
    masks = {16: random_columns(1, 16).expand(40, -1, -1, -1), 12: random_columns(40, 12), 14: random_columns(40, 14)}
    for others, told in (({12: 40}, True), ({12: 30, 14: 30}, False)):
        with StoreWriter(tmp_path / "s.zarr", {}, overwrite=True) as writer:
            for size, count in ({16: 40} | others).items():
                A = Fourier(masks[size][:count], (size, size), 3)
                writer.append(Measurement(A(as_images(blobs(count, size))), A, 0.02))
        assert (reason_to_refuse(tmp_path / "s.zarr") is not None) == told


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"thinning": 0.0}, ConfigError, "thinning must be above 0 and at most 1, got 0"),
        ({"scans": 1}, ConfigError, "scans must be at least 2, got 1"),
    ],
)
def test_impossible_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, store_path: Path
) -> None:
    with pytest.raises(error, match=message):
        check(store_path, progress=False, **options)


def test_stores_of_other_kinds_do_not_compare(
    store_path: Path, tmp_path: Path, blobs: Callable[..., np.ndarray]
) -> None:
    other = simulate(blobs(4), tmp_path / "o.zarr", operator="mask")
    with pytest.raises(DataError, match="against must hold 'sense' scans"):
        check(store_path, other, progress=False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_command(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], blobs: Any
) -> None:
    wanted = ("--json", tmp_path / "out" / "check.json", "--figure", tmp_path / "check.png", "--quiet")
    assert run(monkeypatch, "check", store_path, "--against", store_path, *wanted) == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    assert found["verdict"] == "marginal"  # its test data are its training data
    assert len(found["leaks"]["pairs"]) >= 40
    assert "verdict" in said.out
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")

    fixed = random_columns(1, 16).expand(40, -1, -1, -1)
    write(tmp_path / "fixed.zarr", as_images(blobs(40)), Fourier(fixed, (16, 16), 4))
    assert run(monkeypatch, "check", tmp_path / "fixed.zarr", "--quiet") == 1
    assert "one pattern" in capsys.readouterr().out
    assert run(monkeypatch, "check", store_path, "--thinning", 2, "--quiet") == 2
    assert capsys.readouterr().err.startswith("error: thinning must be")


def test_a_training_from_a_store_that_is_refused(
    tmp_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], blobs: Any
) -> None:
    """It is warned of once, in a line, and done."""
    images, path = as_images(blobs(40)), tmp_path / "fixed.zarr"
    A = Fourier(random_columns(1, 16).expand(40, -1, -1, -1), (16, 16), 4)
    with StoreWriter(path) as writer:
        writer.append(Measurement(A(images), A, 0.02), images)
    said = []
    for number, (store, *options) in enumerate(
        [(path,), (path, "--out", 0, "--images", 16), (path, "--no-check"), (path, "--method", "oracle"), (store_path,)]
    ):
        short = ("--images", 8, "--laps", 0, "--widths", 32, "--device", "cpu", "--quiet")
        monkeypatch.chdir(tmp_path)
        assert run(monkeypatch, "train", store, "--out", number, *short, *options) == 0
        said.append(capsys.readouterr().err)
    assert said[0].startswith("warning: 9")
    assert "all scans have one pattern" in said[0]
    assert said[0].endswith(f"; `ambient-sci check {path}` explains\n")
    assert said[0].count("\n") == 1
    assert said[1:] == [""] * 4


def test_reports_know_nothing_of_references(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    kept, without = (
        simulate(blobs(12, 12), tmp_path / f"{flag}.zarr", operator="fourier", acceleration=2, references=flag)
        for flag in (True, False)
    )
    one, two = (json.loads(report_of(store).to_json()) for store in (kept, without))
    assert {**one, "store": ""} == {**two, "store": ""}


def report_of(store: Store) -> CheckReport:
    return check(store, progress=False)
