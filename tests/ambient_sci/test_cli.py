"""The command line: the whole path on small data, and the demonstration."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

import ambient_sci
from ambient_sci import cli, open_store, registry
from ambient_sci.checkpoint import load_tensors
from ambient_sci.operators.fourier import centred_fft

Command = Callable[..., tuple[str, str]]
TRAIN = ("--images", 64, "--batch", 16, "--widths", 32, "--laps", 1, "--em-steps", 2, "--checkpoint", 32, "--quiet")
QUICK = ("--steps", 3, "--quiet", "--device", "cpu")
MEASURE = ("--coils", 3, "--acceleration", 2, "--calibration", 4, "--quiet")
IMPORTS = [f"import {name}" for name in ("array", "bart", "fastmri", "ismrmrd", "ms", "uvfits", "uvh5")]
STORES = ["simulate", *IMPORTS, "info", "check", "convert", "validate"]
COMMANDS = [
    "demo",
    *STORES,
    "train",
    "finetune",
    "sample",
    "audit",
    "reconstruct",
    "evaluate",
    "figure",
    "view",
    "export",
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """``command("info", path)`` runs the program in a folder of its own and returns what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert (end.value.code or 0) == status, said.err
        return said.out, said.err

    return run


def program(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    start = "import torch; torch.set_num_threads(1); from ambient_sci.cli import main; main()"
    line = [sys.executable, "-c", start, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture
def images(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> dict[str, Path]:
    """The same twelve images in every format."""
    from PIL import Image

    values = blobs(12)
    np.save(tmp_path / "images.npy", values)
    np.savez(tmp_path / "images.npz", age=np.arange(3), faces=values)
    (tmp_path / "png").mkdir()
    for number, image in enumerate(values):
        Image.fromarray((255 * image).round().astype(np.uint8)).save(tmp_path / "png" / f"{number:02}.png")
    found = {kind: tmp_path / f"images.{kind}" for kind in ("npy", "npz", "nii.gz")} | {"png": tmp_path / "png"}
    nibabel = pytest.importorskip("nibabel")
    # axes from left to right and from back to front, as the reader turns them back
    volume = values.transpose(2, 1, 0)[:, ::-1]
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), found["nii.gz"])
    return found


# ------------------------------------------------------------------------------------------------ the whole path


@pytest.mark.parametrize("method", ["em", "ambient"])
def test_the_whole_path(method: str, command: Command, images: dict[str, Path], tmp_path: Path) -> None:
    out, _ = command("simulate", images["npy"], "scans.zarr", *MEASURE, "--no-references")
    assert out == "wrote scans.zarr: 12 scans\n"
    assert not open_store("scans.zarr").has_references
    command("simulate", images["npy"], "held-out.zarr", *MEASURE, "--seed", 1, "--start", 2, "--stop", 6)
    assert len(open_store("held-out.zarr")) == 4

    out, _ = command("info", "held-out.zarr")
    assert re.search(r"^scans +4$", out, re.MULTILINE)
    assert re.search(r"^coils +3$", out, re.MULTILINE)
    assert re.search(r"^references +yes", out, re.MULTILINE)

    out, _ = command("convert", "held-out.zarr", "held-out.h5", "--quiet")
    assert out == f"wrote held-out.h5: 4 scans, fingerprint {open_store('held-out.zarr').fingerprint}\n"
    assert command("validate", "held-out.h5")[0] == "held-out.h5 is as it should be\n"
    Path("held-out.h5").unlink()

    out, _ = command("train", "scans.zarr", "--out", "run", "--method", method, *TRAIN)
    assert out == "wrote run: 64 images seen\n"
    files = {"config.json", "checkpoint.safetensors", "prior.safetensors", "log.jsonl", "samples.png", "README.md"}
    assert set(os.listdir("run")) == files

    out, _ = command("sample", "run", "--count", 3, "--out", "samples", *QUICK)
    assert out == f"wrote {Path('samples/samples.npy')} and {Path('samples/samples.png')}\n"
    drawn = np.load("samples/samples.npy")
    assert drawn.shape == (3, 1, 16, 16)
    assert drawn.dtype == np.complex64
    assert np.isfinite(drawn).all()
    assert Path("samples/samples.png").read_bytes().startswith(b"\x89PNG")

    out, _ = command("reconstruct", "run", "held-out.zarr", "--out", "recon.zarr", "--samples", 3, "--stop", 3, *QUICK)
    assert out == "wrote recon.zarr: 3 scans, 3 samples each\n"
    result = xarray.open_zarr("recon.zarr", consolidated=False)
    assert result["sample"].shape == (3, 3, 1, 16, 16)
    assert result["slice"].to_numpy().tolist() == [2, 3, 4]

    command("figure", "recon.zarr", "held-out.zarr", "--count", "1", "--out", "figure.png")
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")
    out, _ = command("evaluate", "recon.zarr", "--reference", "held-out.zarr", "--json", "scores/metrics.json")
    metrics = json.loads(Path("scores/metrics.json").read_text())
    assert set(metrics["methods"]["posterior mean"]) == {"nrmse", "psnr", "ssim"}
    assert f"{metrics['methods']['posterior mean']['nrmse']:.4f}" in out
    assert metrics["scans"] == 3
    left = {"scans.zarr", "held-out.zarr", "run", "samples", "recon.zarr", "scores", "figure.png"}
    assert {entry.name for entry in tmp_path.iterdir()} - {path.name for path in images.values()} == left


def test_every_format_gives_the_same_scans(command: Command, images: dict[str, Path]) -> None:
    stores = {}
    for kind, path in images.items():
        name = f"{kind}.h5" if kind == "npz" else f"{kind}.zarr"
        command("simulate", path, name, *MEASURE, *(("--name", "faces") if kind == "npz" else ()))
        stores[kind] = open_store(name)
    first = stores["npy"].read(slice(None))
    for kind, store in stores.items():
        assert len(store) == 12, kind
        # a PNG has 8 bits
        torch.testing.assert_close(store.read(slice(None)).y, first.y, rtol=0, atol=0.02 if kind == "png" else 1e-5)


def test_images_are_brought_to_size(command: Command, images: dict[str, Path]) -> None:
    command("simulate", images["png"], "pixels.zarr", "--operator", "mask", "--keep", 0.3, "--size", 12, "--quiet")
    store = open_store("pixels.zarr")
    assert (store.kind, store.image_shape, store.is_complex) == ("mask", (1, 12, 12), False)


def test_measured_kspace(command: Command) -> None:
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    disc = (x.hypot(y) < 0.7).to(torch.complex64)
    maps = torch.stack([torch.exp(-((x - a) ** 2) - (y - b) ** 2 + 0j) for a in (-1, 1) for b in (-1, 1)])
    maps = maps / maps.abs().square().sum(0).sqrt()
    noise = torch.view_as_complex(torch.randn(4, 32, 32, 2, generator=generator))
    lines = torch.arange(32) % 2 == 0
    lines[10:22] = True
    kspace = ((centred_fft(maps * disc) + 0.01 * noise) * lines).numpy()
    np.save("kspace.npy", kspace)
    np.save("maps.npy", maps.numpy())
    np.save("mask.npy", np.broadcast_to(lines.numpy(), (32, 32)))

    out, _ = command("import", "array", "kspace.npy", "estimated.zarr")
    assert re.search(r"^scans +1$", out, re.MULTILINE)
    assert "ESPIRiT" in out
    store = open_store("estimated.zarr")
    assert 0.005 < float(store.read(0, raw=True).noise_std) < 0.05

    given = ("--mask", "mask.npy", "--maps", "maps.npy", "--noise-std", 0.01, "--calibration", 8)
    command("import", "array", "kspace.npy", "given.h5", *given)
    measurement = open_store("given.h5").read(0, raw=True)
    np.testing.assert_allclose(measurement.y[0], kspace, rtol=1e-5)
    np.testing.assert_allclose(measurement.operator.spec().parameters["maps"][0], maps)
    assert float(measurement.noise_std) == pytest.approx(0.01)


# ------------------------------------------------------------------------------------------------ habits


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples(name: str, command: Command) -> None:
    out, err = command(*name.split(), "--help")
    assert err == ""
    _, _, shown = out.partition("Examples:\n")
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert lines
    assert all(line.startswith(f"ambient-sci {name} ") or line == f"ambient-sci {name}" for line in lines)


def test_examples_name_options_that_exist(command: Command) -> None:
    for name in COMMANDS:
        out, _ = command(*name.split(), "--help")
        options, _, shown = out.partition("Examples:\n")
        for option in re.findall(r"--[a-z-]+", shown):
            assert re.search(rf"{option}\b", options), f"{name} {option}"


def test_every_command_is_tested_here() -> None:
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]
    names |= {f"import {name}" for name in registry.available("ambient_sci.importers")}
    assert names == set(COMMANDS)


def test_without_a_command_the_help_is_shown(command: Command) -> None:
    out, err = command()
    assert err == ""
    assert all(re.search(rf"^  {name.split()[0]} ", out, re.MULTILINE) for name in COMMANDS)
    assert "array" in command("import")[0]


def test_help_is_a_page(command: Command) -> None:
    """Every command is in one group, in whole sentences, and the example names commands that exist."""
    from ambient_sci.cli.app import GROUPS

    out, _ = command("--help")
    assert sorted(name for names in GROUPS.values() for name in names) == sorted({name.split()[0] for name in COMMANDS})
    assert all(f"\n{heading}:\n" in out for heading in GROUPS)
    assert "..." not in out.partition("\n")[2]
    example = out.partition("From a file to error bars:\n")[2].partition("\n\n")[0]
    assert [line.split()[1] for line in example.splitlines()] == [
        "import", "check", "train", "validate", "reconstruct", "view"
    ]  # fmt: skip
    assert (
        out.index("Scans into a store:") < out.index("Learn a prior:") < out.index("Options:") < out.index("Read on:")
    )


def test_version(command: Command) -> None:
    assert command("--version") == (f"{ambient_sci.__version__}\n", "")


def test_seeds_reproduce(command: Command, run_path: Path, store_path: Path, images: dict[str, Path]) -> None:
    def simulated(seed: int, name: str) -> str:
        command("simulate", images["npy"], name, *MEASURE, "--seed", seed)
        return open_store(name).fingerprint

    assert simulated(3, "a.zarr") == simulated(3, "b.h5") != simulated(4, "c.zarr")

    def sampled(seed: int, name: str) -> np.ndarray:
        command("sample", run_path, "--count", 2, "--out", name, *QUICK, "--seed", seed)
        drawn: np.ndarray = np.load(Path(name) / "samples.npy")
        return drawn

    first = sampled(1, "s1")
    np.testing.assert_array_equal(first, sampled(1, "s2"))
    assert abs(first - sampled(2, "s3")).max() > 0.01

    def reconstructed(seed: int, name: str) -> np.ndarray:
        command("reconstruct", run_path, store_path, "--out", name, "--stop", 2, "--seed", seed, *QUICK)
        values: np.ndarray = xarray.open_zarr(name, consolidated=False)["sample"].to_numpy()
        return values

    first = reconstructed(1, "r1.zarr")
    np.testing.assert_array_equal(first, reconstructed(1, "r2.zarr"))
    assert abs(first - reconstructed(2, "r3.zarr")).max() > 0.01


def test_the_seed_of_a_training(command: Command, store_path: Path) -> None:
    weights = []
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        command("train", store_path, "--out", run, *TRAIN, "--images", 16, "--laps", 0, "--seed", seed)
        weights.append(load_tensors(Path(run) / "prior.safetensors")[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_progress_unless_quiet(command: Command, run_path: Path, store_path: Path, images: dict[str, Path]) -> None:
    every = {
        "simulate": (images["npy"], "a.zarr", *MEASURE[:-1]),
        "train": (store_path, "--out", "run", *TRAIN[:-1], "--images", 16, "--laps", 0),
        "sample": (run_path, "--steps", 2, "--count", 1),
        "reconstruct": (run_path, store_path, "--out", "r.zarr", "--steps", 2, "--stop", 1),
    }
    for name, arguments in every.items():
        again = () if name == "train" else ("--overwrite",)
        assert "%|" in command(name, *arguments)[1]
        assert command(name, *arguments, *again, "--quiet")[1] == ""


def test_options_of_a_training_from_a_file(command: Command, store_path: Path) -> None:
    Path("options.json").write_text(json.dumps({"images": 32, "batch": 16, "widths": [32], "laps": 0, "seed": 5}))
    out, _ = command("train", store_path, "--out", "run", "--config", "options.json", "--images", 16, "--quiet")
    assert out == "wrote run: 16 images seen\n"  # what is said on the command line goes before the file
    assert json.loads(Path("run/config.json").read_text())["seed"] == 5
    # the run's own options are such a file too
    command("train", store_path, "--out", "again", "--config", "run/config.json", "--quiet")
    first, second = (load_tensors(Path(run) / "checkpoint.safetensors")[0] for run in ("run", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_process_of_its_own(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> None:
    np.save(tmp_path / "images.npy", blobs(2))
    done = program("simulate", "images.npy", "scans.zarr", *MEASURE, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote scans.zarr: 2 scans\n", "")
    done = program("info", "other.zarr", cwd=tmp_path)
    wanted = "error: no store at other.zarr: there is no such file or folder\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)


# ------------------------------------------------------------------------------------------------ the demonstration


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quick demonstration: its folder and what it said."""
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("demo")
    done = program("demo", "--quick", "--out", "out", "--quiet", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(folder) == ["out"]
    return folder / "out", done.stdout


def test_demo_leaves_what_it_promises(demo: tuple[Path, str]) -> None:
    out, _ = demo
    promised = {"scans.zarr", "held-out.zarr", "run", "reconstructions.zarr", "reconstructions.png"}
    assert promised | {"metrics.json", "report.html"} <= set(os.listdir(out))
    assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert not open_store(out / "scans.zarr").has_references
    assert not (out / "scans.zarr" / "reference").exists()
    assert open_store(out / "held-out.zarr").has_references
    trained = set(open_store(out / "scans.zarr").coords["subject"].tolist())
    assert trained.isdisjoint(open_store(out / "held-out.zarr").coords["subject"].tolist())
    assert load_tensors(out / "run" / "prior.safetensors")[1]["images"] > 0
    result = xarray.open_zarr(out / "reconstructions.zarr", consolidated=False)
    assert {"sample", "mean", "std", "lower", "upper"} <= set(result)
    assert (out / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def test_demo_metrics(demo: tuple[Path, str]) -> None:
    out, said = demo
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"zero-filled", "CG-SENSE", "L1-wavelet", "posterior mean"}
    for name, numbers in metrics["methods"].items():
        assert set(numbers) == {"nrmse", "psnr", "ssim"}
        assert all(isinstance(value, float) and np.isfinite(value) for value in numbers.values())
        assert re.search(rf"^{name} +{numbers['nrmse']:.4f} ±", said, re.MULTILINE)
    assert metrics["quick"] is True


def test_demo_scores_what_it_stored(demo: tuple[Path, str]) -> None:
    """The table of a demonstration is that of `evaluate` on its files."""
    from ambient_sci.evaluate.compare import evaluate
    from ambient_sci.reconstruction import open_reconstruction

    out, _ = demo
    result = evaluate(open_reconstruction(out / "reconstructions.zarr"), open_store(out / "held-out.zarr"))
    metrics = json.loads((out / "metrics.json").read_text())
    assert result.metrics["methods"]["posterior mean"] == pytest.approx(metrics["methods"]["posterior mean"])


def test_demo_says_that_a_quick_result_is_not_one_to_judge(demo: tuple[Path, str]) -> None:
    out, said = demo
    report = (out / "report.html").read_text()
    assert "not one to judge" in said
    assert "not one to judge" in report
    assert said.rstrip().splitlines()[-2] == f"report: {Path('out') / 'report.html'}"


def test_demo_report_is_self_contained(demo: tuple[Path, str]) -> None:
    report = (demo[0] / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|<script|@import", re.sub(r'"data:[^"]*"', "", report))
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:|#|["'])""", report)
    assert report.count("data:image/png;base64,") >= 4


def copy_of(demo: tuple[Path, str], to: Path) -> Path:
    shutil.copytree(demo[0], to)
    return to


def test_a_finished_demo_is_not_replaced(demo: tuple[Path, str], command: Command, tmp_path: Path) -> None:
    out = copy_of(demo, tmp_path / "out")
    before = (out / "metrics.json").stat()
    _, err = command("demo", "--quick", "--out", out, "--quiet", status=2)
    assert err.count("\n") == 1
    assert "holds a finished demonstration; choose another --out, or pass --overwrite" in err
    assert (out / "metrics.json").stat() == before
    _, err = command("demo", "--quick", "--out", out, "--seed", 1, "--quiet", status=2)
    assert "other settings" in err


def test_an_interrupted_demo_continues(demo: tuple[Path, str], command: Command, tmp_path: Path) -> None:
    out = copy_of(demo, tmp_path / "out").relative_to(tmp_path)
    (out / "metrics.json").unlink()
    (out / "report.html").unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in ("scans.zarr", "held-out.zarr")}
    weights = (out / "run" / "checkpoint.safetensors").read_bytes()
    said, _ = command("demo", "--quick", "--out", out, "--quiet")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert (out / "run" / "checkpoint.safetensors").read_bytes() == weights
    metrics, again = (json.loads((folder / "metrics.json").read_text()) for folder in (demo[0], out))
    assert metrics == again
    assert said.splitlines()[1:6] == demo[1].splitlines()[1:6]


def test_demo_leaves_others_things_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for options in ((), ("--overwrite",)):
        _, err = command("demo", "--quick", "--out", "thesis", "--quiet", *options, status=2)
        assert err == "error: thesis holds something that is not a demonstration; choose another folder with --out\n"
    _, err = command("demo", "--quick", "--out", "thesis/chapter.tex", "--quiet", status=2)
    assert err == "error: thesis/chapter.tex is a file; choose another folder with --out\n"
    assert os.listdir("thesis") == ["chapter.tex"]


def test_demo_starts_afresh_beside_what_is_not_its_own(
    demo: tuple[Path, str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ambient_sci.demo import run

    out = copy_of(demo, tmp_path / "out")
    (out / "notes.txt").write_text("what I thought of it")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "make_cohort", stop)
    _, err = command("demo", "--quick", "--out", out, "--quiet", "--seed", 1, "--overwrite", status=130)
    assert err.count("\n") == 1
    assert "interrupted" in err
    assert sorted(os.listdir(out)) == ["demo.json", "notes.txt"]
    assert json.loads((out / "demo.json").read_text())["seed"] == 1
