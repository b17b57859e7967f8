"""The benchmark of posteriors that are known: its closed forms, its measures, its table."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ambient_sci.measurement import randn_like

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.posterior")


@pytest.mark.parametrize("name", ["gaussian-sense-0.3", "mixture-rows-0.3"])
def test_exact_draws_are_images_that_explain_the_data(benchmark: Any, name: str) -> None:
    """Draws have the moments that are said to be exact, and the mean is that of another derivation of it."""
    case = benchmark.CASES[name]()
    drawn = case.draw(20_000, torch.Generator().manual_seed(0))
    mean, variance, covariance = case.moments()
    deviation = variance.sqrt()
    assert ((drawn.mean(0) - mean).abs() / deviation).max() < 0.06
    off = drawn - mean
    spread = off.abs().square().mean(0) / case.parts
    assert (spread / variance - 1).abs().max() < 0.1
    assert (off.mT @ off.conj() / len(drawn) / case.parts - covariance).norm() < 0.05 * covariance.norm()
    m, law = case.measurement, "gaussian-complex" if "sense" in name else "mixture"
    known = benchmark.LAWS[law].posterior_mean(m.operator.matrix[0], m.y[0], 0.3)
    torch.testing.assert_close(mean, known.flatten())
    assert float(case.shares(drawn).sum()) == pytest.approx(1)


def test_exact_methods_have_no_error(benchmark: Any) -> None:
    """Draws of the law itself, in place of a method's, are as far from exact as chance has it."""
    case = benchmark.CASES["gaussian-mask-0.3"]()
    exact = case.draw(2000, torch.Generator().manual_seed(1))
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(benchmark, "draws", lambda case, method, count: exact[:count])
        row = benchmark.measure("x", case, benchmark.Method("dps", 4), 2000)
        patch.setattr(benchmark, "draws", lambda case, method, count: 1.2 * exact[:count])
        wrong = benchmark.measure("x", case, benchmark.Method("dps", 4), 2000)
    assert max(row[name] for name in ("mean_error", "std_error", "cov_error")) < 0.03
    assert row["sliced"] < 1.3 * row["sliced_floor"]
    assert row["c2st"] == pytest.approx(0.5, abs=0.03)
    assert row["c2st_floor"] == pytest.approx(0.5, abs=0.03)
    assert wrong["mean_error"] == pytest.approx(0.2, abs=0.02)
    assert wrong["std_error"] == pytest.approx(0.2, abs=0.02)
    assert wrong["cov_error"] == pytest.approx(0.44, abs=0.05)
    assert wrong["sliced"] > 2 * wrong["sliced_floor"]
    assert wrong["c2st"] > 0.8


def test_lowest_levels(benchmark: Any) -> None:
    """In units of the spread of images, and never above a third of the noise, which may be lower than a lower one."""
    usual, lower = benchmark.Method("mmps", 8, 3), benchmark.Method("mmps", 8, 3, finest=0.005)
    noisy, clean = (benchmark.CASES[f"gaussian-mask-{noise}"]() for noise in ("0.3", "0.001"))
    spread = 0.25 * math.sqrt(1.001)  # of the law
    assert float(usual.levels(noisy)[-2]) == pytest.approx(0.01 * spread)
    assert float(lower.levels(noisy)[-2]) == pytest.approx(0.005 * spread)
    assert float(usual.levels(clean)[-2]) == pytest.approx(0.001 / 3)
    assert [method.fits(case) for case in (noisy, clean) for method in (usual, lower)] == [True, True, True, False]
    assert usual.label != lower.label


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_classifier_is_as_good_as_the_best_one(benchmark: Any, dtype: torch.dtype) -> None:
    """Gaussians of one law, of two means, and of two spreads, for which the best classifier's accuracy is known."""
    g, normal = torch.Generator().manual_seed(0), torch.distributions.Normal(0.0, 1.0)
    a, b = randn_like(torch.zeros(2, 4000, 4, dtype=dtype), g)
    shift = torch.zeros(4, dtype=dtype)
    assert benchmark.c2st(a, b) == pytest.approx(0.5, abs=0.02)
    shift[1] = 1.5
    half = float(normal.cdf(torch.tensor(1.5 / 2)))  # the boundary is half way
    assert benchmark.c2st(a + shift, b) == pytest.approx(half, abs=0.01)
    # densities of N(0, 1) and N(0, s^2) are equal at x^2 = 2 log(s) / (1 - s^-2)
    s, alone = 3.0, (a[:, 0].real[:, None], b[:, 0].real[:, None])
    edge = torch.tensor(2 * math.log(s) / (1 - s**-2)).sqrt()
    inside = [float(2 * normal.cdf(x) - 1) for x in (edge, edge / s)]
    assert benchmark.c2st(alone[0], s * alone[1]) == pytest.approx((inside[0] + 1 - inside[1]) / 2, abs=0.01)


def test_rows_and_table(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "METHODS", (benchmark.Method("mmps", 4, 3), benchmark.Method("diffpir", 4, 5)))
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda count: None)
    results, readme = tmp_path / "posterior.json", tmp_path / "README.md"
    readme.write_text("before\n<!-- posterior -->\nold\n<!-- /posterior -->\nafter\n")
    paths = ["--results", str(results), "--readme", str(readme)]
    benchmark.main(["--cases", "mixture-mask-0.3", "gaussian-mask-0.3", "--samples", "50", *paths])
    rows = json.loads(results.read_text())
    assert [(row["case"], row["method"], row["cg"]) for row in rows[:2]] == [
        ("gaussian-mask-0.3", "mmps", 3),
        ("gaussian-mask-0.3", "diffpir", 5),
    ]
    assert all(0 <= row["mean_error"] < 3 and 0 <= row["std_error"] < 3 for row in rows)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| weights / % |" in text
    benchmark.main(["--table", *paths])
    assert readme.read_text() == text
    monkeypatch.setattr(benchmark, "METHODS", (benchmark.Method("mmps", 2, 1), *benchmark.METHODS))
    benchmark.main(["--cases", "gaussian-mask-0.3", "--samples", "50", "--missing", *paths])
    more = json.loads(results.read_text())
    assert [row["steps"] for row in more] == [2, 4, 4, 4, 4]
    assert more[1:] == rows, "what was there was measured again"
    readme.write_text("nothing")
    with pytest.raises(SystemExit, match="lacks the markers"):
        benchmark.main(["--table", *paths])
