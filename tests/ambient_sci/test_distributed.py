"""Two processes, started by accelerate, against one: the same training, but for rounding."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from ambient_sci import distributed
from ambient_sci.checkpoint import load_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.datasets.loader import epoch_order
from ambient_sci.errors import ConfigError
from ambient_sci.methods import AmbientLearner, em
from ambient_sci.prior import load_prior
from ambient_sci.steps import own_parts
from ambient_sci.training import train

PROGRAM = Path(__file__).with_name("one_of_several.py")
PAGE = Path(__file__).parents[2] / "docs" / "training.md"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
OPTIONS: dict[str, Any] = {
    "images": 80, "batch": 10, "widths": (32,), "checkpoint": 20, "laps": 1, "em_steps": 2, "precision": "fp32",
    "warmup": 20, "device": "cpu",
}  # fmt: skip
RUNS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "em": ({"images": 120, "start_images": 40}, {}),
    "ambient": ({"method": "ambient", "batch": 9, "images": 90, "accumulate": 2}, {}),
    "sharded": ({"images": 120, "start_images": 40, "optimizer": "adamw"}, FSDP),
    "sharded-ambient": ({"method": "ambient", "images": 40, "optimizer": "adamw"}, FSDP),
    "stopped": ({"laps": 0}, {"STRUCK": "1"}),
}


def configs() -> tuple[str, str]:
    """The files for accelerate on the page about training: all weights in every process, and weights in shards."""
    together, sharded = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return together, sharded


@pytest.fixture(scope="module")
def folder(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every run above."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "accelerate.yaml").write_text(configs()[0])
    runs = {name: (options(name, store_path, folder / name), RUNS[name][1]) for name in RUNS}
    (folder / "runs.json").write_text(json.dumps(runs))
    # one process begins what two go on with, in shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AmbientLearner, "loss", interrupted(AmbientLearner.loss, 3))
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**options("sharded-ambient", store_path, folder / "sharded-ambient")), progress=False)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    here = [folder / "accelerate.yaml", "--num_processes", 2, "--main_process_port", 0, PROGRAM, folder]
    done = subprocess.run([*launch, *map(str, here)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "training (em)" in done.stderr
    return folder


def options(name: str, store: Path, out: Path) -> dict[str, Any]:
    return {**OPTIONS, **RUNS[name][0], "store": str(store), "out": str(out)}


def interrupted(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = iter(range(1, call + 1))

    def loss(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return loss


def noted(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["em", "ambient", "sharded", "sharded-ambient"])
def test_the_losses_are_those_of_one_process(
    name: str, folder: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(em, "TIMES", 1)
    alone = TrainConfig(**{**options(name, store_path, tmp_path), "accumulate": 1})
    train(alone, progress=False)
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (tmp_path, folder / name)]
    one, two = ([json.loads(line) for line in log] for log in logs)
    assert [record["images"] for record in one] == [record["images"] for record in two]
    for key in ("loss", "gradient"):
        torch.testing.assert_close([r[key] for r in one], [r[key] for r in two], rtol=1e-4, atol=0)
    first, second = (load_tensors(run / "checkpoint.safetensors")[0] for run in (tmp_path, folder / name))
    assert first.keys() == second.keys()
    for part in {key.split(".")[0] for key in first}:  # weights, their average, the optimiser, posterior samples
        keys = [key for key in first if key.startswith(f"{part}.")]
        a, b = (torch.cat([tensors[key].abs().flatten() for key in keys]) for tensors in (first, second))
        assert (a - b).norm() < 1e-3 * a.norm(), part


@pytest.mark.parametrize("name", ["em", "ambient", "sharded"])
def test_each_scan_is_seen_once_an_epoch(name: str, folder: Path) -> None:
    batch, images = (RUNS[name][0].get(key, OPTIONS[key]) for key in ("batch", "images"))
    parts = RUNS[name][0].get("accumulate", 1)
    steps = []
    for record in noted(folder, name):
        some = record["trained"]
        steps.append([list(chain(*some[k : k + parts])) for k in range(0, len(some), parts)])
    order = [scan for first, second in zip(*steps, strict=True) for scan in first + second]
    epochs = [scan for epoch in range(-(-images // 40)) for scan in epoch_order(40, 0, epoch).tolist()]
    assert order == epochs[:images]
    assert {len(part) for step in zip(*steps, strict=True) for part in step} == {batch // 2, batch - batch // 2}


@pytest.mark.parametrize("name", ["em", "sharded"])
def test_posterior_samples_are_shared_out(name: str, folder: Path) -> None:
    first, second = (record["drawn"] for record in noted(folder, name))
    assert sorted(first + second) == list(range(40))
    assert {len(first), len(second)} == {16, 24}  # in chunks of 8


def test_one_process_writes_and_speaks(folder: Path) -> None:
    """Writing by the other is an error there; it had been told to show its progress."""
    assert "training (" not in (folder / "said.txt").read_text()
    for name in RUNS:
        files = {path.name for path in (folder / name).iterdir()}
        assert files == {
            "config.json",
            "checkpoint.safetensors",
            "prior.safetensors",
            "log.jsonl",
            "samples.png",
            "README.md",
        }


def test_a_signal_to_one_process_stops_all(folder: Path) -> None:
    assert [record["status"] for record in noted(folder, "stopped")] == [143, 143]
    assert load_prior(folder / "stopped").images == 30


def test_a_batch_has_a_scan_for_each_process_and_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    base = TrainConfig(store="a", out="b", batch=8, accumulate=2)
    assert own_parts(base) == [slice(2, 3), slice(3, 5)]
    with pytest.raises(
        ConfigError, match="accumulate must be at most 3, the images of a batch that a process has, got 4"
    ):
        own_parts(base.model_copy(update={"accumulate": 4}))
    with pytest.raises(ConfigError, match="batch must be at least the number of processes, 3, got 2"):
        own_parts(base.model_copy(update={"batch": 2}))


def test_the_page_about_training_has_files_that_accelerate_reads(tmp_path: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    environments = []
    for text in configs():
        (tmp_path / "accelerate.yaml").write_text(text)
        arguments = ["--config_file", str(tmp_path / "accelerate.yaml"), "--main_process_port", "0", "train.py"]
        launched, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
        assert launched.num_processes == 4
        environments.append(prepare_multi_gpu_env(launched))
    assert FSDP.keys().isdisjoint(environments[0])
    assert FSDP.items() <= environments[1].items()
