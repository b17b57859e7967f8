"""The harness of learning, on stand-ins: what methods get to see, what is scored, and what comes of the rows."""

import hashlib
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ambient_sci import TrainConfig, open_store, train
from ambient_sci.datasets import simulate
from ambient_sci.datasets.store import Store
from ambient_sci.methods.em import lap_count, lap_scans
from ambient_sci.prior import Prior

ROOT = Path(__file__).parents[2]
Blobs = Callable[..., np.ndarray]
NAMES = ("__main__", "drawn", "figures", "laws", "run", "table", "tasks")
TASK = "mri-r4"
SMALL = {"batch": 16, "widths": (32,), "laps": 1, "em_steps": 2, "precision": "fp32", "ema": 16}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, blobs: Blobs) -> SimpleNamespace:
    """Modules of the harness, with a task of few and small images."""
    monkeypatch.syspath_prepend(str(ROOT))
    modules = SimpleNamespace(
        **{name.strip("_"): importlib.import_module(f"benchmarks.learning.{name}") for name in NAMES}
    )

    def measure(images: np.ndarray, path: Path, references: bool, seed: int) -> Store:
        return simulate(images, path, references=references, seed=seed, acceleration=2, calibration=4, coils=2)

    def read(data: Path) -> Any:
        return modules.tasks.Splits(blobs(48), blobs(4, seed=1), blobs(6, seed=2))

    monkeypatch.setitem(modules.tasks.TASKS, TASK, modules.tasks.Task(TASK, "brain", measure, SMALL, masked=True))
    monkeypatch.setitem(modules.tasks.DATASETS, "brain", read)
    monkeypatch.setattr(modules.run, "planned_images", lambda *arguments: 48)
    monkeypatch.setattr(modules.drawn, "DRAWN", 8)
    monkeypatch.setattr(modules.drawn, "STEPS", 2)
    monkeypatch.setattr(modules.run, "SAMPLES", 3)
    monkeypatch.setattr(modules.run, "STEPS", 2)
    return modules


# --------------------------------------------------------------------------------------------------- nothing leaks out


def test_methods_see_measurements_alone(
    harness: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While any method learns, unless it is one that is given clean images, nobody asks for a reference."""
    read, asked = Store.references, []

    def guarded(config: TrainConfig) -> Prior:
        def references(store: Store, indices: Any) -> Any:
            asked.append(method)
            if method not in harness.run.CLEAN:
                raise AssertionError(f"{method} asked for the clean images of {store.path}")
            return read(store, indices)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "references", references)
            return train(config, progress=False)

    monkeypatch.setattr(harness.run, "train", guarded)
    monkeypatch.setattr(harness.run, "posterior_scores", lambda *arguments: {})
    monkeypatch.setattr(harness.run, "drawn_scores", lambda *arguments: {})
    for method in harness.run.LEARNED:
        harness.run.learned_row(TASK, method, tmp_path, tmp_path, 0, 100, {})
        config = json.loads((tmp_path / TASK / "100" / f"{method}-0" / "config.json").read_text())
        store = Path(config["store"])
        assert store.name == ("clean.zarr" if method in harness.run.CLEAN else "train.zarr")
        assert open_store(store).has_references == (method in harness.run.CLEAN)
    assert set(asked) == set(harness.run.CLEAN), "a method with clean images that never asks for them"


def test_frozen_stores(harness: SimpleNamespace, tmp_path: Path) -> None:
    """No reference is on the disk beside what is learned from; no image is in two parts; twice the same bits."""
    tasks = harness.tasks
    frozen = tasks.freeze(tasks.TASKS[TASK], tmp_path, tmp_path)
    assert not any("reference" in str(path) for path in frozen.train.rglob("*"))
    assert any("reference" in str(path) for path in frozen.clean.rglob("*"))
    train, clean = open_store(frozen.train), open_store(frozen.clean)
    assert np.array_equal(train.read(slice(None), raw=True).y, clean.read(slice(None), raw=True).y)

    seen: dict[str, str] = {}
    for part, store in (("train", clean), ("tuning", frozen.tuning), ("test", frozen.test)):
        for image in store.references(slice(None)):
            key = hashlib.sha256(np.abs(image.numpy()).round(5).tobytes()).hexdigest()
            assert seen.setdefault(key, part) == part, f"an image is in {seen[key]} and in {part}"

    before = json.loads((frozen.folder / "frozen.json").read_text())
    again = tasks.freeze(tasks.TASKS[TASK], tmp_path, tmp_path / "again")
    assert json.loads((again.folder / "frozen.json").read_text()) == before
    assert before == {part: open_store(frozen.folder / f"{part}.zarr").fingerprint for part in before}
    stamp = (frozen.train / "zarr.json").stat().st_mtime_ns
    few = tasks.freeze(tasks.TASKS[TASK], tmp_path, tmp_path, scans=8)
    assert (frozen.train / "zarr.json").stat().st_mtime_ns == stamp, "what is frozen stays as it is"
    assert (len(open_store(few.train)), len(open_store(few.clean))) == (8, 8)
    assert np.array_equal(open_store(few.train).read(slice(None)).y, train.read(slice(8)).y)
    assert not open_store(few.train).has_references


def test_blocks_of_patients_are_apart(
    harness: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbouring numbers are often of one patient: none of training within 16 of tuning or test."""
    monkeypatch.undo()  # the reader that there is
    number = np.arange(2560)
    images = np.zeros((2560, 128, 128), np.uint8)
    images[:, :64], images[:, 64:] = (number // 51)[:, None, None], (number % 51)[:, None, None]
    (tmp_path / "mri-t1-slices").mkdir()
    np.savez(tmp_path / "mri-t1-slices" / "t1_128.npz", images=images)
    splits = harness.tasks.brain_slices(tmp_path)

    def numbers(part: np.ndarray) -> set[int]:
        top, bottom = (np.rint(255 * part[:, row, 0]).astype(int) for row in (0, -1))
        return set((51 * top + bottom).tolist())

    train, tuning, test = (numbers(part) for part in (splits.train, splits.tuning, splits.test))
    assert (len(train), len(tuning), len(test)) == (2080, 32, 64)
    held = np.array(sorted(tuning | test))
    assert min(np.abs(held - one).min() for one in train) >= 16
    assert not tuning & test


# ------------------------------------------------------------------------------------------------ rows, tables, figures


def test_rows_tables_and_figures(harness: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command to the README, with everything that a row has to have."""
    results, readme = tmp_path / "learning.json", tmp_path / "README.md"
    arguments = ["--data", tmp_path, "--out", tmp_path, "--results", results]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["learning", TASK, "zero-filled", "ambient", "oracle", *map(str, arguments)])
        harness.main.main()
        patch.setattr("sys.argv", ["learning", TASK, "zero-filled", *map(str, arguments)])
        harness.main.main()  # its row is replaced
    rows = json.loads(results.read_text())
    assert [row["method"] for row in rows] == ["ambient", "oracle", "zero-filled"]
    names = {"nrmse", "psnr", "ssim", "nrmse_one", "coverage_90", "frechet", "sliced_wasserstein", "spectrum_error"}
    for row in rows[:2]:
        assert names <= set(row)
        assert row["trained_scans"] == 48
        with np.load(tmp_path / TASK / str(row["budget"]) / f"{row['method']}-0" / "samples.npz") as file:
            assert file["samples"].shape == (8, 1, 16, 16)
        assert (tmp_path / TASK / str(row["budget"]) / f"{row['method']}-0" / "samples.png").exists()

    readme.write_text("before\n<!-- learning -->\nstale numbers\n<!-- /learning -->\nafter\n")
    harness.table.main(["--results", str(results), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n<!-- learning -->\n| target")
    assert text.endswith("<!-- /learning -->\nafter\n")
    assert "stale" not in text
    lines = [line for line in text.splitlines() if line.startswith("| zero-filled")]
    assert lines[0].split("|")[2].strip() == f"{rows[2]['nrmse']:.3f}"
    harness.figures.main(["--results", str(results), "--runs", str(tmp_path), "--out", str(tmp_path / "figures")])
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"{TASK}-restorations", f"{TASK}-samples"}
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the markers"):
        harness.table.main(["--results", str(results), "--readme", str(readme)])
    capsys.readouterr()


@pytest.mark.parametrize("task", ["mixture-rows-noisy", "gaussian-sense"])
def test_rows_of_known_laws(
    task: str, harness: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ambient prior of random projections restores, but cannot be sampled from."""
    for name, count in (("TRAINING", 32), ("TUNING", 4), ("TEST", 6)):
        monkeypatch.setattr(harness.laws, name, count)
    method = "oracle" if task == "gaussian-sense" else "ambient"
    options = {"batch": 16, "widths": (32,)}
    row = harness.run.learned_row(task, method, tmp_path, tmp_path, 0, 100, options)
    sampled = method == "oracle"
    assert row["nrmse_ratio"] == row["nrmse" if sampled else "nrmse_restored"] / row["nrmse_exact"] > 1
    assert row["excess"] > 0
    assert ({"coverage_90", "frechet", "frechet_floor", "psnr"} <= set(row)) == sampled
    assert (tmp_path / task / "100" / f"{method}-batch=16-widths=(32,)-0" / "restored.npz").exists()
    assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())


def _row(task: str, method: str, **more: Any) -> dict[str, Any]:
    budget = None if method in ("tv", "clean") else 100
    return {"task": task, "method": method, "seed": 0, "options": {}, "budget": budget, "nrmse": 0.2, **more}


def test_tables_are_means_over_seeds(harness: SimpleNamespace) -> None:
    rows = [
        _row("mri-r4", "oracle", seconds=60.0),
        *(_row("mri-r4", "em", seed=seed, nrmse=0.2 + 0.02 * seed, seconds=120.0) for seed in range(3)),
        _row("mri-r4", "em", options={"laps": 9}, nrmse=0.21),
        _row("mri-r4", "em", scans=100, nrmse=0.4),
        _row("mri-r4", "em", budget=200, nrmse=0.19),
    ]
    groups = harness.table.groups(rows)
    assert [(group.label, group.seeds) for group in groups] == [
        ("oracle", 1),
        ("em (laps=9)", 1),
        ("em", 3),
        ("em (100 scans)", 1),
        ("em", 1),
    ]
    text = harness.table.document(groups)
    assert "| em | 0.220 ± 0.020 | 1.10 | 2.0 ± 0.0 | 3 |" in text
    assert "#### mri-r4, budget 200" in text


def test_targets_of_learning(harness: SimpleNamespace) -> None:
    """Each is judged by the rows that it names, at the budget that the oracle had, by methods without clean images."""

    def verdicts(*rows: dict[str, Any]) -> dict[str, str]:
        lines = harness.table.judged(harness.table.groups(rows))
        return {target: met for target, _, met in lines}

    (r4, _, tv, r8, _, digits, ahead, radio, coverage, noisy, _) = harness.table.TARGETS
    assert set(verdicts().values()) == {"not measured"}
    rows = [_row("mri-r4", "oracle", nrmse=0.1), _row("mri-r4", "em", nrmse=0.114), _row("mri-r4", "tv", nrmse=0.18)]
    assert verdicts(*rows)[r4] == "met"
    assert verdicts(*rows)[tv] == "met"
    assert verdicts(*rows)[r8] == "not measured"
    assert verdicts(rows[0], rows[2])[tv] == "not measured", "the oracle does not count"
    assert verdicts(*rows, _row("mri-r4", "oracle", nrmse=0.09, budget=300))[r4] == "not measured"
    rows[1]["nrmse"] = 0.118
    assert verdicts(*rows)[r4] == "NOT met"
    assert verdicts(*rows, _row("mri-r4", "em", options={"laps": 9}, nrmse=0.11))[r4] == "met"
    assert verdicts(*rows, _row("mri-r4", "em", options={"start_from": "ambient-0"}, nrmse=0.11))[r4] == "met"
    for helped in ({"clean": 50}, {"start_from": "oracle-0"}, {"start_from": "em-clean=50-0"}):
        assert verdicts(*rows, _row("mri-r4", "em", options=helped, nrmse=0.11))[r4] == "NOT met"
    assert verdicts(*rows)[tv] == "NOT met"
    timed = [_row("mri-r4", "oracle", nrmse=0.1, seconds=60.0), _row("mri-r4", "em", nrmse=0.11, seconds=70.0)]
    assert verdicts(*timed)[r4] == "met"
    timed[1]["seconds"] = 80.0
    assert verdicts(*timed)[r4] == "not measured", "it took longer than the oracle"
    timed.append(_row("mri-r4", "oracle", seed=1, nrmse=0.1, seconds=70.0))
    assert verdicts(*timed)[r4] == "not measured", "on a slower machine the oracle would have taken longer, too"
    timed.append(_row("mri-r4", "em", seed=1, nrmse=0.11, seconds=82.0))
    assert verdicts(*timed)[r4] == "met"

    digit = [_row("digits-p75", name, frechet=value) for name, value in (("oracle", 10), ("em", 14), ("ambient", 17))]
    assert (verdicts(*digit)[digits], verdicts(*digit)[ahead]) == ("met", "NOT met")
    sky = [_row("radio", name, nrmse=value) for name, value in (("oracle", 0.1), ("em", 0.15), ("clean", 0.16))]
    assert verdicts(*sky)[radio] == "met"
    assert verdicts(*sky, _row("radio", "tv", nrmse=0.14))[radio] == "NOT met"
    inside = [_row("mri-r4", "oracle", coverage_90=0.92), _row("mri-r4", "em", coverage_90=0.88)]
    assert verdicts(*inside)[coverage] == "met"
    assert verdicts(*inside, _row("mri-r4", "ambient", coverage_90=0.8))[coverage] == "NOT met"
    pairs = [
        _row(task, method, nrmse_restored=value)
        for task, value in (("mri-r4-noisy", 0.3), ("digits-p50-noisy", 0.38))
        for method, value in (("ambient", value), ("ambient-noiseless", 0.4), ("oracle", 0.1))
    ]
    assert verdicts(*pairs[:3])[noisy] == "met"
    assert verdicts(*pairs)[noisy] == "met"
    pairs[3]["nrmse_restored"] = 0.39
    assert verdicts(*pairs)[noisy] == "NOT met"


def test_curves(harness: SimpleNamespace) -> None:
    """A line for each method with two points, at the place of each row."""
    rows = [
        *(_row("mri-r4", "em", budget=b, seconds=60.0 * b, nrmse=20 / b, trained_scans=2000) for b in (100, 200)),
        *(_row("mri-r4", "em", scans=n, trained_scans=n, nrmse=50 / n, seconds=1.0) for n in (500, 1000)),
        _row("mri-r4", "ambient", seconds=60.0, trained_scans=2000),
        *(_row("digits-p75", "em", frechet=3.0, budget=b) for b in (100, 200)),
        _row("digits-p90", "em", frechet=5.0, budget=200),
    ]
    every, figures = harness.table.groups(rows), harness.figures

    def lines(figure: Any) -> dict[tuple[str, str], list[tuple[float, float]]]:
        found = {}
        for axes in figure.axes:
            for bars in axes.containers:
                found[bars.get_label(), axes.get_xlabel()] = [tuple(xy) for xy in bars.lines[0].get_xydata()]
        return found

    assert lines(figures.time_curves(every, "mri-r4")) == {("em", "minutes of training"): [(100, 0.2), (200, 0.1)]}
    of_scans = {("em", "scans to learn from"): [(500, 0.1), (1000, 0.05), (2000, 0.2)]}
    assert lines(figures.scan_curves(every, "mri-r4")) == of_scans
    assert figures.scan_curves(every, "digits-p75") is None
    assert lines(figures.corruption_curves(every)) == {("em", "missing pixels / %"): [(75, 3), (90, 5)]}


# ------------------------------------------------------------------------------------------------------- equal budgets


def test_what_a_method_costs_is_told_for_any_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    budget = importlib.import_module("benchmarks.learning.budget")
    images = np.random.default_rng(0).random((32, 8, 8), np.float32)
    simulate(images, tmp_path / "scans.zarr", operator="mask", keep=0.5)
    monkeypatch.setattr(budget, "ALL", 560)
    for batch in (16, 24):
        options = {"method": "em", "em_steps": 2, "batch": batch, "widths": (32, 32), "device": "cpu"}
        cost = budget._cost(tmp_path / "scans.zarr", options)
        assert min(cost.image, cost.start, cost.lap) > 0


def test_all_methods_have_the_time_of_the_oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Images, starts and laps of a plan together take as long as the oracle's images, and hardly less."""
    monkeypatch.syspath_prepend(str(ROOT))
    budget = importlib.import_module("benchmarks.learning.budget")
    few, more, scans, wanted = 8, 32, 320, 60_000
    probes = {few: tmp_path / "few", more: tmp_path / "more"}
    choice, start = 3.0, 0.25  # seconds once, and for each scan

    def cost(probe: Path, options: dict[str, Any]) -> Any:
        if options["method"] == "oracle":  # is another kind of network, and has clean images anyway
            assert not {"start_from", "clean"} & set(options)
            return budget.Cost(1.0, 7.0, 0.0)
        (count,) = (count for count, path in probes.items() if path == probe)
        return budget.Cost(1.1, choice + start * count, 0.6 * count)

    monkeypatch.setattr(budget, "_cost", cost)
    options: dict[str, Any] = {"method": "em", "batch": 8, "start_from": tmp_path, "clean": tmp_path, "sigma_data": 0.3}

    def seconds(images: int) -> float:
        config = TrainConfig(store=tmp_path, out=tmp_path, images=images, **options)
        laps = sum(len(lap_scans(config, scans, lap)) for lap in range(lap_count(config)))
        return 1.1 * images + choice + start * scans + 0.6 * laps

    images = budget.planned_images(probes, scans, options, wanted)
    assert seconds(images) <= wanted < seconds(images + 8)
    assert budget.planned_images(probes, scans, {**options, "method": "oracle"}, wanted) == wanted
    after = budget.planned_images(probes, scans, options, wanted, 20_000.0)
    assert after == budget.planned_images(probes, scans, options, wanted - 20_000)
    with pytest.raises(SystemExit, match="a budget of 600 is too little"):
        budget.planned_images(probes, scans, options, 600)


# ---------------------------------------------------------------------------------------------------------- optimisers


def test_optimisers_are_compared_on_other_images(
    harness: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long training leaves less loss on the test images than a short one, and its line says how much."""
    optimizers = importlib.import_module("benchmarks.optimizers")
    monkeypatch.setattr(optimizers.torch, "set_num_threads", lambda count: None)
    small = {"widths": (32,), "precision": "fp32"}
    monkeypatch.setattr(optimizers, "SETTINGS", {"adamw": {**small, "optimizer": "adamw"}, "muon": small})
    paths = ["--data", str(tmp_path), "--out", str(tmp_path)]
    optimizers.main([*paths, "--images", "32", "--only", "muon"])
    optimizers.main([*paths, "--images", "640"])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = [(row[0].strip(), float(row[2])) for row in lines if row[0].strip() in ("muon", "adamw")]
    assert [name for name, _ in found] == ["muon", "adamw", "muon"]
    assert found[2][1] < 0.95 * found[0][1]
