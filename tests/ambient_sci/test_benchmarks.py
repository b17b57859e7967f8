"""The benchmarks' commands, at the smallest size: that they run, and print what they say."""

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ambient_sci import Measurement, TrainConfig, load_prior, open_store
from ambient_sci.denoise import EDMDenoiser
from ambient_sci.operators import Mask
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior

ROOT = Path(__file__).parents[2]


def test_held_out_rows(
    run_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.held_out_rows")
    arguments = [run_path, store_path, "--fraction", 0.3, "--scans", 20, "--draws", 2, "--samples", 2, "--steps", 4]
    monkeypatch.setattr(sys, "argv", ["held_out_rows", *map(str, arguments)])
    benchmark.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--fraction", "0"])
    with pytest.raises(SystemExit):
        benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    scores = {line[:16].strip(): float(line[16:].split()[0]) for line in lines}
    assert list(scores) == ["zero-filled", "L1-wavelet", "posterior mean"]

    # what was there predicts every row but for the noise
    store = open_store(store_path)
    m = store.read(slice(None))
    truth = store.references(slice(None)) / m.scale.reshape(-1, 1, 1, 1)
    rows = m.operator.rows
    assert benchmark.misfit(m, rows, truth) == pytest.approx(1, abs=0.1)
    assert benchmark.misfit(m, rows, torch.zeros_like(truth)) > 10
    assert min(scores.values()) > 0.8


# ------------------------------------------------------------------------------------------------- benchmarks.pipeline


def test_time_of_a_pipeline(
    run_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.pipeline")
    benchmark.main([str(run_path), str(store_path), "--repeats", "1", "--steps", "2", "--threads", "1"])
    said = capsys.readouterr().out
    assert "4 samples of a scan of 3x16x16 in 2 steps" in said
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines() if line.startswith("|")]
    assert [row[1] for row in rows if ":" not in row[2]] == ["seconds", "wall", "processor, 1 threads"]
    assert float(rows[3][2]) > 0


# ------------------------------------------------------------------------------------------------- benchmarks.training


def test_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.training")
    # the network's turn takes 2 s by the clock and 3 s of the processor, the loop's 5 and 4; the first are slower
    moments, stamps = (0.0, 0.0), []
    for step in range(8):
        slow = 10.0 if step < benchmark.WARM else 1.0
        went = moments[0] + 2 * slow, moments[1] + 3 * slow
        stamps.append(benchmark.Stamp(moments, went))
        moments = went[0] + 5 * slow, went[1] + 4 * slow
    found = benchmark.measure(stamps)
    assert (found.step, found.network) == ((5, 4), (2, 3))
    assert found.ratios == (2.5, 4 / 3)
    arguments = "--size 32 --coils 2 --scans 30 --rounds 2 --steps 3 --batch 2 --method ambient"
    benchmark.main(arguments.split())
    line = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0].startswith("ambient: ")
    assert 1 < float(cells[3].split()[0]) < 20
    assert float(cells[6]) > 0


# ------------------------------------------------------------------------------------------------ benchmarks.operators


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules of the benchmark, and its command with the number of threads that the tests have."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it: put it back afterwards
    names = ("cases", "libraries", "measure", "operators", "problems")
    modules = SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in names})
    threads = str(torch.get_num_threads())
    modules.run = lambda *arguments: modules.operators.main(["--quick", "--threads", threads, *arguments])
    return modules


def test_operators(operators: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table that is Markdown, a line for each library, and the same numbers as JSON."""
    cases = ("sense", "nufft-gram", "trajectories", "gaussian")
    operators.run("--case", *cases, "--repeats", "1", "--json", str(tmp_path / "o.json"))
    printed = capsys.readouterr().out
    assert "sense: 2 scans x 3 coils x 24x32, 8 of 32 columns measured" in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, "columns are not aligned"
    assert len({line.count("|") for line in table}) == 1
    assert set(table[1]) <= set("|-: ")

    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert len(rows) == len(table) - 2
    ours = [row for row in rows if row["library"] == "ambient-sci"]
    assert [row["case"].partition("-")[0] for row in ours] == (
        ["sense"] * 5 + ["nufft"] + ["trajectories"] * 2 + ["gaussian"] * 2
    )
    assert all(row["ratio"] == 1 and row["milliseconds"] > 0 and row["error"] < 1e-3 for row in ours)
    by_name = {row["library"]: row for row in rows}
    for name, module in (
        ("sigpy", "sigpy"),
        ("finufft by hand", "finufft"),
        ("deepinv", "deepinv"),
        ("mrpro", "mrpro"),
    ):
        assert by_name[name]["installed"] == (importlib.util.find_spec(module) is not None)
        assert (by_name[name]["milliseconds"] is not None) == by_name[name]["installed"]
    verdicts = [verdict["met"] for row in rows for verdict in row["verdicts"]]
    assert set(verdicts) == {None}, "nothing is judged at this size"
    assert f"0 met, 0 NOT met, {len(verdicts)} not judged" in printed


def test_operators_under_load(operators: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """A column more, and a target more for the package."""
    operators.run("--case", "nufft-adjoint", "--repeats", "1", "--load")
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "| loaded |" in table[0]
    assert "loaded at most 3: not judged" in table[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "sense-gramm"], "no case 'sense-gramm', but sense-forward"),
        (["--repeats", "0"], "must be 1 or more"),
    ],
)
def test_operators_refuses(
    operators: SimpleNamespace, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        operators.run(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_library_that_computes_something_else_is_refused(operators: SimpleNamespace) -> None:
    class Wrong(operators.libraries.AmbientSense):  # type: ignore[name-defined]
        name = "wrong"

        def forward(self) -> torch.Tensor:
            return 1.001 * super().forward()

    case = dataclasses.replace(operators.cases.CASES[0], contestants={Wrong: None})
    with pytest.raises(ArithmeticError, match=r"sense-forward: wrong is off by 1\.0e-03"):
        operators.cases.run([case], rounds=1, quick=True)


def test_targets(operators: SimpleNamespace) -> None:
    """Each judges the number that it names, on the side that it names."""
    cases, libraries = operators.cases, operators.libraries
    found = {case.name: case.contestants for case in cases.CASES}

    def met(case: str, library: type, **numbers: float) -> bool:
        result: bool = found[case][library].met(cases.Row(case, "", **numbers))
        return result

    assert met("sense-gram", libraries.DeepinvSense, ratio=10)
    assert not met("sense-gram", libraries.DeepinvSense, ratio=9.9)
    assert met("sense-gram", libraries.FourierAlone, ratio=0.67)  # ours takes 1.49 times as long
    assert not met("sense-gram", libraries.FourierAlone, ratio=0.66)
    assert not met("sense-gram", libraries.AmbientSense, memory=32)
    assert met("sense-gram", libraries.AmbientSense, memory=31)
    assert met("nufft-forward", libraries.FinufftNufft, ratio=0.96)
    assert not met("nufft-forward", libraries.FinufftNufft, ratio=0.94)
    assert not met("gaussian-forward", libraries.AmbientGaussian, milliseconds=10)
    assert not met("gaussian-forward", libraries.AmbientGaussian), "what was not measured is not met"


def test_exact_answers(operators: SimpleNamespace) -> None:
    """Against matrices written down entry by entry."""
    problem = operators.problems.nufft_problem(2, 3, (4, 5), spokes=3, samples=6)
    n = np.stack(np.meshgrid(np.arange(4) - 2, np.arange(5) - 2, indexing="ij"), -1).reshape(-1, 2)
    k = problem.trajectory.double().numpy()
    transform = np.exp(-1j * np.einsum("bjd,nd->bjn", k, n)) / np.sqrt(20)
    _check_answers(problem, transform[:, None] * problem.maps.numpy().reshape(2, 3, 1, 20))

    problem = operators.problems.sense_problem(2, 3, (4, 5), acceleration=2)
    k = 2 * np.pi * n / (4, 5)
    transform = np.exp(-1j * k @ n.T) / np.sqrt(20)
    mask = problem.mask.expand(2, 1, 4, 5).numpy().reshape(2, 1, 20, 1)
    assert mask.sum() == 2 * 4 * 2, "two of five columns in each scan"
    _check_answers(problem, mask * transform * problem.maps.numpy().reshape(2, 3, 1, 20))


def _check_answers(problem, matrices: np.ndarray) -> None:
    """Matrices ``(batch, coil, rows, pixels)``."""
    matrices = matrices.reshape(2, -1, 20)
    x = problem.image.numpy().reshape(2, 20, 1)
    y = problem.data.numpy().reshape(2, -1, 1)
    adjoint = matrices.conj().swapaxes(1, 2)
    want = {
        "forward": matrices @ x,
        "adjoint": adjoint @ y,
        "gram": adjoint @ (matrices @ x),
        "gradient": 2 * adjoint @ (matrices @ x - y),
    }
    for operation, values in want.items():
        got = problem.answer(operation).numpy()
        np.testing.assert_allclose(got, values.reshape(got.shape), rtol=1e-10, atol=1e-10)
    # ten steps are optimal among polynomials in the gram: the residual is orthogonal to what they span
    z = problem.answer("solve").numpy().reshape(2, 20, 1)
    vector = x
    for _ in range(10):
        residual = x - adjoint @ (matrices @ z)
        overlap = np.abs(vector.conj().swapaxes(1, 2) @ residual).max()
        assert overlap < 1e-7 * np.linalg.norm(vector) * np.linalg.norm(x)
        vector = adjoint @ (matrices @ vector)


def test_turns(operators: SimpleNamespace) -> None:
    """Each has its turn in every round, after a call that is not timed, and each is first once."""
    calls: list[str] = []
    functions = [lambda name=name: (calls.append(name), time.sleep(0.005 * (1 + "abc".index(name)))) for name in "abc"]
    timings = operators.measure.take_turns(functions, rounds=3, device="cpu")
    assert "".join(calls) == "aabbcc" + "bbccaa" + "ccaabb"
    assert all(len(timing.rounds) == 3 for timing in timings)
    assert 1.5 < timings[2].relative_to(timings[0]) < 6

    Timing = operators.measure.Timing
    # a machine that is three times slower in one round changes the median of the times, and not that of the ratios
    assert Timing((2.0, 6.0, 2.0)).relative_to(Timing((1.0, 3.0, 1.0))) == 2
    assert Timing((1.0, 5.0, 2.0)).seconds == 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of memory")
def test_peak_memory(operators: SimpleNamespace) -> None:
    """The most at a time: what is freed before counts once, and what is kept from the first call does not count."""
    kept: list[torch.Tensor] = []

    def function() -> torch.Tensor:
        if not kept:
            kept.append(torch.ones(16 * 2**18))
        for _ in range(2):
            torch.ones(24 * 2**18)
        return torch.ones(8 * 2**18)

    assert operators.measure.peak_memory(function, "cpu") == pytest.approx(24, abs=2)


def test_busy_core_ends(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process computes while it is wanted, and is gone afterwards, whatever happens."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    context = operators.measure.busy_core()
    context.__enter__()
    assert started[0].poll() is None
    assert not context.__exit__(KeyError, KeyError(), None), "errors pass"
    assert started[0].poll() is not None


# --------------------------------------------------------------------------------------------------- benchmarks.loader


@pytest.mark.parametrize("container", ["zarr", "h5"])
def test_loader(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every phase, here in this process; a table that is Markdown; nothing is left."""
    monkeypatch.syspath_prepend(str(ROOT))
    loader = importlib.import_module("benchmarks.loader")
    phases: list[Any] = []

    def here(function: Any) -> Any:
        phases.append(loader._observed(function))
        return phases[-1]

    monkeypatch.setattr(loader, "_alone", here)
    monkeypatch.setattr(loader, "STEPS", 1)
    options = [
        "--gigabytes",
        "0.02",
        "--size",
        "32",
        "--coils",
        "4",
        "--folder",
        str(tmp_path / "new"),
        "--rounds",
        "1",
    ]
    loader.main([*options, "--container", container])
    printed = capsys.readouterr().out
    assert (
        f"305 scans x 4 coils x 32x32, measurements and coil maps\n- 0.0 GB in memory, 0.0 GB on disk ({container})"
        in printed
    )
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 9
    assert len({len(line) for line in table}) == 1, "columns are not aligned"
    assert all(phase.seconds > 0 for phase in phases)
    seconds = [float(line.split("|")[2]) for line in table[2:5]]
    assert seconds == pytest.approx([phase.seconds for phase in phases[:3]], abs=0.051)
    assert float(table[5].split("|")[4]) == pytest.approx(1 / phases[3].more["em"], abs=0.051)
    assert list((tmp_path / "new").iterdir()) == []


def test_loader_wants_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    loader = importlib.import_module("benchmarks.loader")
    with pytest.raises(SystemExit):
        loader.main(["--gigabytes", "1e9", "--folder", str(tmp_path)])
    assert "GB free; the store may take" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_busy_core_ends_with_what_keeps_it_busy() -> None:
    """Killed in the middle, a benchmark leaves nothing behind that would slow down the next one."""
    code = "import time\nfrom benchmarks import measure\nwith measure.busy_core(): print(1, flush=True), time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.kill()
        parent.communicate(timeout=20)  # the pipe ends when nobody has it any more, the other process included


def test_scale_multiplies_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, on 32 cores: 10^5 scans are 10 MB, of which 16 kB a second can be read: 625 s.

    4 10^5 images at 64 a second and 10^5 samples at 32 take 9375 s, 3 10^5 samples as long again; 5.2 hours at 7.2.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    scale = importlib.import_module("benchmarks.scale")
    given = {name: value for inputs in (scale.MEASURED, scale.ASSUMED) for name, (value, _) in inputs.items()}
    given |= {"bytes": 100.0, "disk": 0.5, "read": 1000.0, "bandwidth": 1e12, "train": 2.0, "sample": 1.0}
    given |= {"least": 0.0, "epochs": 4.0, "laps": 1.0, "samples": 3.0, "scaling": 1.0, "price": 7.2}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in scale.table(given).splitlines()[2:]]
    assert rows[1] == ["one machine, 32 cores", "10^5", "5 MB", "10 min", "3 h", "3 h", "38"]


# --------------------------------------------------------------------------------------------- benchmarks.restorations


class Counted(torch.nn.Module):
    """A network that counts for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.calls += len(x)
        return self.weight * x


def test_restorations_count_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.restorations")
    network = Counted()
    with benchmark.counting(network) as counts:
        for images in (3, 5):
            x = torch.ones(images, 1, 4, 4, requires_grad=True)
            out = network(x, torch.zeros(images))
        for _ in range(2):
            torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
        with torch.no_grad():
            network(torch.ones(2, 1, 4, 4), torch.zeros(2))
    network(torch.ones(7, 1, 4, 4), torch.zeros(7))
    assert (counts.passes, counts.back) == (10, 10)


def test_one_step_is_the_posterior_mean_of_white_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images are white, a network of zeros denoises exactly, and data weigh d^2 / (d^2 + noise^2)."""
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.restorations")
    d, noise = 0.5, 0.3
    config = TrainConfig(store=Path("none"), out=Path("none"), sigma_data=d)
    prior = Prior(EDMDenoiser(Counted(), d).eval(), (1, 8, 8), False, config, {}, 0)
    generator = torch.Generator().manual_seed(0)
    operator = Mask((torch.rand(4, 1, 8, 8, generator=generator) < 0.5).float())
    y = operator(torch.randn(4, 1, 8, 8, generator=generator))
    m = Measurement(y, operator, noise)
    found = benchmark.one_step(prior, m, level=1e4)
    torch.testing.assert_close(found, y * d**2 / (d**2 + noise**2), atol=2e-3, rtol=0)


def test_restorations(
    run_path: Path,
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.restorations")
    readme, results = tmp_path / "README.md", tmp_path / "rows.json"
    readme.write_text("before\n<!-- restorations -->\nold\n<!-- /restorations -->\nafter\n")
    files = ["--results", str(results), "--readme", str(readme)]
    sizes = ["--scans", "4", "--steps", "2", "3", "--samples", "4", "--batch", "8", "--once", "2", "10"]
    for _ in range(2):  # rows of the same run take the place of the first ones
        benchmark.main([str(run_path), str(store_path), *sizes, *files])
    rows = json.loads(results.read_text())
    ambient = "ambient" in rows[0]["prior"]
    once, drawn = (rows[:1], rows[1:]) if ambient else (rows[:2], rows[2:])
    assert [row["kind"] for row in once] == (["one step"] if ambient else ["one step, level 2", "one step, level 10"])
    assert [(row["kind"], row["steps"], row["passes"]) for row in drawn] == [
        ("one sample", 2, 2),
        ("mean of 4", 2, 8),
        ("one sample", 3, 3),
        ("mean of 4", 3, 12),
    ]
    assert all(row["passes"] == 1 and (row["back"] == 0) == ambient for row in once)
    assert all(row["back"] > 0 for row in drawn)
    assert [row["kind"] for row in rows if "inside" in row] == ["mean of 4"] * 2
    assert rows[0]["relative"] == 1

    # the mean of what is drawn, by what is given to everybody who draws
    store, prior = open_store(store_path), load_prior(run_path, "cpu")
    m = store.read(slice(0, 4))
    samples = draw_posterior(prior, m, 4, steps=3, seed=1)
    known = store.references(slice(0, 4)) / m.scale.reshape(-1, 1, 1, 1)
    errors = [(samples.mean(1) - known), (samples[:, 0] - known)]
    apart = [float((e.flatten(1).norm(dim=1) / known.flatten(1).norm(dim=1)).mean()) for e in errors]
    assert [drawn[3]["nrmse"], drawn[2]["nrmse"]] == pytest.approx(apart, rel=1e-3)
    text = readme.read_text()
    assert text.startswith("before\n<!-- restorations -->\n#### scans, one step and many\n")
    assert text.endswith("<!-- /restorations -->\nafter\n")
    assert "| one sample | 3 |" in text
