"""Training: what it reads, how it resumes, and how it refuses."""

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ambient_sci.checkpoint import load_tensors, save_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import StoreWriter, estimate_scale, open_store, simulate
from ambient_sci.datasets.loader import epoch_order
from ambient_sci.errors import ConfigError, DataError, OutputError, StoreError
from ambient_sci.measurement import Measurement
from ambient_sci.methods.em import EMLearner, lap_count, lap_scans, lap_starts
from ambient_sci.operators import Interferometer
from ambient_sci.prior import Prior, build_denoiser, load_prior
from ambient_sci.reconstruction import reconstruct
from ambient_sci.training import train


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "checkpoint.safetensors")[0]


def assert_same_bits(run: Path, other: Path) -> None:
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["em", "ambient", "tv-edm", "ambient-gan"])
def test_references_are_never_read(method: str, store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    bare = tmp_path / "bare.zarr"
    shutil.copytree(store_path, bare)
    shutil.rmtree(bare / "reference")
    assert not open_store(bare).has_references
    for store, run in ((store_path, "with"), (bare, "without")):
        train(TrainConfig(store=store, out=tmp_path / run, method=method, **small), progress=False)
    assert_same_bits(tmp_path / "with", tmp_path / "without")


def test_changed_references_do_not_change_training(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    import zarr

    other = tmp_path / "other.zarr"
    shutil.copytree(store_path, other)
    zarr.open_group(str(other))["reference/image"][:] = np.nan
    for store, run in ((store_path, "as-is"), (other, "nan")):
        train(TrainConfig(store=store, out=tmp_path / run, **small), progress=False)
    assert_same_bits(tmp_path / "as-is", tmp_path / "nan")


def test_oracle_needs_references(store_path: Path, tmp_path: Path, small: dict[str, Any], blobs: Any) -> None:
    train(TrainConfig(store=store_path, out=tmp_path / "oracle", method="oracle", **small), progress=False)
    simulate(blobs(8), tmp_path / "bare.zarr", acceleration=2, calibration=4, coils=2, references=False)
    config = TrainConfig(store=tmp_path / "bare.zarr", out=tmp_path / "no", method="oracle", **small)
    with pytest.raises(StoreError, match="no references"):
        train(config, progress=False)


@pytest.mark.parametrize("method", ["em", "ambient"])
def test_a_killed_run_ends_with_the_same_weights(
    method: str, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    options = {**small, "images": 1200, "widths": [32, 32], "method": method}
    options |= {"laps": 3, "em_first": 0.25} if method == "em" else {}
    options_file = tmp_path / "options.json"
    options_file.write_text(json.dumps(options))

    def command(run: str) -> list[str]:
        start = "import torch; torch.set_num_threads(1); from ambient_sci.cli import main; main()"
        given = ["train", str(store_path), "--out", str(tmp_path / run), "--config", str(options_file), "--quiet"]
        return [sys.executable, "-c", start, *given]

    subprocess.run(command("whole"), check=True)

    # first it is asked to stop, and leaves a checkpoint of the step that was under way; then it is killed
    kills, rng = 0, random.Random()
    while kills < 20:
        process = subprocess.Popen(command("killed"))
        checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        # the first time soon after the first checkpoint, then at any moment between two of them, if it comes to that
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is not None or (kills and rng.random() < 0.5):
            process.wait()
            break
        process.send_signal(signal.SIGKILL if kills else signal.SIGTERM)
        status = process.wait()
        assert status == (-signal.SIGKILL if kills else 143)
        kills += 1
    assert process.returncode == 0
    assert kills > 0
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


def test_a_run_continues_only_with_its_own_options(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **{**small, "images": 32})
    train(config, progress=False)
    with pytest.raises(ConfigError, match=r"thinning \(was 0\.3, now 0\.5\)"):
        train(config.model_copy(update={"thinning": 0.5}), progress=False)
    longer = train(config.model_copy(update={"images": 64}), progress=False)
    assert longer.images == 64


def test_a_run_without_a_checkpoint_begins_anew_with_other_options(
    store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    """It has none because its options were wrong, say, or because it was killed early."""
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="start_images"):
        train(TrainConfig(store=store_path, out=out, **small, start_images=1000), progress=False)
    (out / "log.jsonl").write_text('{"images": 16}\n')
    train(TrainConfig(store=store_path, out=out, **small), progress=False)
    images = [json.loads(line)["images"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert images == sorted(set(images))


def test_a_run_knows_its_store(store_path: Path, tmp_path: Path, small: dict[str, Any], blobs: Any) -> None:
    moved, other = tmp_path / "moved.zarr", tmp_path / "other.zarr"
    shutil.copytree(store_path, moved)
    simulate(blobs(8, seed=1), other, acceleration=2, calibration=4, coils=3)
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **{**small, "images": 32})
    train(config, progress=False)
    assert train(config.model_copy(update={"store": moved, "images": 48}), progress=False).images == 48
    sigma = train(config.model_copy(update={"images": 48}), progress=False).sigma_data
    with pytest.raises(ConfigError, match="started on another store"):
        train(config.model_copy(update={"store": other, "sigma_data": sigma}), progress=False)


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_weights_are_as_readable_as_their_folder(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    save_tensors(tmp_path / "prior.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "prior.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_laps_take_more_and_more_scans(tmp_path: Path) -> None:
    config = TrainConfig(store=tmp_path, out=tmp_path, images=25_000, laps=5, em_first=0.0625, seed=3)
    scans = [set(lap_scans(config, 288, lap).tolist()) for lap in range(5)]
    assert [len(some) for some in scans] == [32, 36, 72, 144, 288]
    assert all(some < more for some, more in itertools.pairwise(scans))
    assert max(scans[0]) > 250  # not the first ones, which may be of one subject
    assert all(len(lap_scans(config.model_copy(update={"em_first": 1.0}), 288, lap)) == 288 for lap in range(5))


def test_laps_of_large_stores_take_turns(tmp_path: Path) -> None:
    """Samples that have hardly been learned from when the next ones are drawn were drawn for little."""
    config = TrainConfig(store=tmp_path, out=tmp_path, images=24_000)
    assert lap_count(config) == 3
    scans = [lap_scans(config, 10_000, lap) for lap in range(3)]
    assert [len(some) for some in scans] == [500, 500, 500]
    assert all(len(set(some.tolist())) == len(some) for some in scans)
    assert len(set(np.concatenate(scans).tolist())) == 1500
    assert max(len(lap_scans(config, 700, lap)) for lap in range(3)) == 500


def test_batches_are_of_the_scans_of_the_lap(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    options = {**small, "laps": 2, "em_first": 0.8, "sigma_data": 0.3, "precision": "fp32"}
    config = TrainConfig(store=store_path, out=tmp_path, **options)
    store = open_store(store_path)
    learner = EMLearner(config, store, False)
    denoiser = build_denoiser(config, store.image_shape, store.is_complex)
    prior = Prior(denoiser.eval().requires_grad_(False), store.image_shape, store.is_complex, config, {}, 0)
    learner.prepare(0, prior)
    assert learner.images is not None
    first = learner.images.clone()
    assert np.array_equal(learner.scans(), np.arange(40))
    learner.prepare(lap_starts(config)[0], prior)
    renewed = (learner.images != first).flatten(1).any(1).nonzero().flatten()
    assert np.array_equal(renewed, lap_scans(config, 40, 0))
    assert len(renewed) == 32
    assert np.array_equal(learner.scans(), renewed)
    seen = {int(scan) for _ in range(10) for scan in next(learner._order or iter(()))}
    assert seen == set(renewed.tolist())


def test_impossible_laps_and_empty_scans(tmp_path: Path, store_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="start_images must be below images, got 192 of 192"):
        train(TrainConfig(store=store_path, out=tmp_path / "a", start_images=192, **small), progress=False)
    simulate(np.zeros((4, 16, 16)), tmp_path / "zeros.zarr", operator="mask", noise=0.0)
    with pytest.raises(DataError, match="nothing but zeros"):
        train(TrainConfig(store=tmp_path / "zeros.zarr", out=tmp_path / "b", **small), progress=False)


def test_a_folder_that_is_no_run_is_left_alone(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not a run"):
        train(TrainConfig(store=store_path, out=tmp_path, **small), progress=False)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


class Gain(nn.Module):
    """A network of one number; at its calls from ``call`` on ``fault`` happens to what it returns."""

    def __init__(self, call: int = 0, fault: Callable[[torch.Tensor], torch.Tensor] = lambda y: y) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.left, self.fault = call, fault

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        y = self.gain * x[:, :2]
        return self.fault(y) if self.left <= 0 else y


def scans_of_step(store: int, batch: int, step: int) -> list[int]:
    """Numbers of the scans in a step's batch: each epoch a permutation, and these laid end to end."""
    order: list[int] = []
    for epoch in range(batch * (step + 1) // store + 1):
        order += epoch_order(store, 0, epoch).tolist()
    return order[batch * step : batch * (step + 1)]


def spoilt(scan: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def fault(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[:scan], torch.nan * y[scan : scan + 1], y[scan + 1 :]])

    return fault


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda y: torch.nan * y, "the loss became nan after 96 images, on scans {every}; "),
        (spoilt(3), "the loss became nan after 96 images, on scans {third}; "),
        (lambda y: 1e8 * y, r"the gradient's norm became [0-9.]+e\+[0-9]+ after 96 images, on scans {every}; "),
    ],
)
def test_a_diverging_run_keeps_its_checkpoint_and_names_the_scans(
    fault: Any, said: str, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **small)
    with pytest.raises(DataError) as error:
        train(config, network=Gain(7, fault), progress=False)
    scans = scans_of_step(40, 16, 6)
    said = said.format(every=", ".join(map(str, scans)), third=scans[3])
    assert re.match(said + "the checkpoint of 96 images is kept in ", str(error.value)), error.value
    assert "\n" not in str(error.value)
    assert load_prior(tmp_path / "run", network=Gain()).images == 96
    # as it was: the run goes on from there when the fault is gone
    train(config, network=Gain(), progress=False)
    train(config.model_copy(update={"out": tmp_path / "whole"}), network=Gain(), progress=False)
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_diverges_at_once_says_that_nothing_is_kept(
    store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **small)
    with pytest.raises(DataError, match=r"became nan after 0 images, on scans .*; nothing is kept\. Try"):
        train(config, network=Gain(1, lambda y: torch.nan * y), progress=False)


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C interrupts, which it does not where the tests were started in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_a_checkpoint(
    number: signal.Signals, store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    def struck(y: torch.Tensor) -> torch.Tensor:
        if not [*tmp_path.glob("run/checkpoint.*")]:  # once, before the first checkpoint would be due
            signal.raise_signal(number)
        return y

    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **{**small, "checkpoint": 100})
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as end:
        train(config, network=Gain(3, struck), progress=False)
    if number == signal.SIGTERM:
        assert end.value.code == 143
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert load_prior(tmp_path / "run", network=Gain()).images == 48  # the step was finished
    for run in ("run", "whole"):
        train(config.model_copy(update={"out": tmp_path / run}), network=Gain(), progress=False)
    assert_same_bits(tmp_path / "run", tmp_path / "whole")
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("run", "whole")]
    first, second = ([{**json.loads(line), "seconds": 0} for line in log] for log in logs)
    assert first == second


@pytest.mark.usefixtures("heeded")
def test_a_second_key_press_does_not_wait(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    def struck(y: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it waited")

    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **small)
    with pytest.raises(KeyboardInterrupt):
        train(config, network=Gain(5, struck), progress=False)
    assert load_prior(tmp_path / "run", network=Gain()).images == 48


def test_signals_outside_the_main_thread_and_ignored_ones_are_left_alone(
    store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", **{**small, "images": 32})
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(train, config, Gain(), False).result().images == 32
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    try:
        longer = config.model_copy(update={"images": 64})
        prior = train(longer, Gain(1, lambda y: (signal.raise_signal(signal.SIGINT), y)[1]), progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert prior.images == 64


def test_training_learns_to_denoise(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    options = {**small, "images": 1200, "batch": 4, "warmup": 100, "checkpoint": 1200}
    prior = train(TrainConfig(store=store_path, out=tmp_path / "run", **options), progress=False)
    store = open_store(store_path)
    images = store.references(slice(None)) / torch.from_numpy(store.scale).reshape(-1, 1, 1, 1)
    noise = torch.view_as_complex(torch.randn(*images.shape, 2, generator=torch.Generator().manual_seed(0)))
    restored = prior.denoiser(images + 0.2 * noise, torch.full((len(images),), 0.2))
    error = ((restored - images).abs().square().mean() / 2).sqrt()
    assert error < 0.7 * 0.2


def test_ambient_training_lowers_its_loss(store_path: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    options = {**small, "images": 1536, "batch": 4, "warmup": 100, "checkpoint": 2000, "method": "ambient"}
    train(TrainConfig(store=store_path, out=tmp_path / "run", **options), progress=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.9 * log[1]["loss"]  # the first record is of one batch alone


def test_masks_of_real_images_train_too(tmp_path: Path, small: dict[str, Any], blobs: Any) -> None:
    simulate(blobs(24), tmp_path / "pixels.h5", operator="mask", keep=0.6, noise=0.0)
    for method in ("em", "ambient"):
        prior = train(
            TrainConfig(store=tmp_path / "pixels.h5", out=tmp_path / method, method=method, **small), progress=False
        )
        assert not prior.is_complex


def test_scans_off_the_grid_train_too(tmp_path: Path, small: dict[str, Any], blobs: Any) -> None:
    store = simulate(blobs(12), tmp_path / "radial.zarr", operator="nufft", coils=2, acceleration=2)
    prior = train(TrainConfig(store=store.path, out=tmp_path / "run", **small), progress=False)
    assert prior.is_complex
    result = reconstruct(prior, store, scans=slice(0, 2), samples=2, steps=4, progress=False)
    assert bool(np.isfinite(result["mean"]).all())
    # the centre of k-space is measured many times over, and the adjoint is as many times too bright
    spread = float(torch.view_as_real(store.references(slice(None))).std())
    assert prior.sigma_data == pytest.approx(spread, rel=0.1)


def test_visibilities_are_of_real_images(tmp_path: Path, small: dict[str, Any], blobs: Any) -> None:
    """Measurements are complex, and what is learned and reconstructed is not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.as_tensor(blobs(12), dtype=torch.float32)[:, None]
    shape = tuple(x.shape[2:])
    A = Interferometer((torch.rand(12, 200, 2, generator=generator) - 0.5) / 1e-5, shape, 1e-5)
    y = A(x)
    y = y + 0.1 * torch.randn(y.shape, dtype=y.dtype, generator=generator)
    scans = Measurement(y, A, 0.1 / 2**0.5)
    with StoreWriter(tmp_path / "radio.zarr", {"source": "a test"}) as writer:
        writer.append(Measurement(y, A, scans.noise_std, scale=estimate_scale(scans)))
    store = open_store(tmp_path / "radio.zarr")
    assert not store.is_complex
    assert store.image_shape == (1, *shape)
    prior = train(TrainConfig(store=store.path, out=tmp_path / "run", **small), progress=False)
    assert not prior.is_complex
    spread = float((x / torch.as_tensor(store.scale).reshape(-1, 1, 1, 1)).std())
    assert prior.sigma_data == pytest.approx(spread, rel=0.3), "that of images, though visibilities sum over them"
    result = reconstruct(prior, store, scans=slice(0, 2), samples=2, steps=4, progress=False)
    assert result["mean"].dtype.kind == "f"
    assert bool(np.isfinite(result["mean"]).all())


def test_unknown_and_impossible_options() -> None:
    with pytest.raises(ConfigError, match="unknown option 'lr'; the options are"):
        TrainConfig(store="a", out="b", lr=1)
    with pytest.raises(ConfigError, match=r"'images'.*greater than or equal to 1, got 0"):
        TrainConfig(store="a", out="b", images=0)
    with pytest.raises(ConfigError, match="'store' is missing"):
        TrainConfig(out="b")


@pytest.mark.parametrize("method", ["em", "ambient", "oracle"])
def test_scans_of_several_sizes(method: str, tmp_path: Path, small: dict[str, Any], blobs: Any) -> None:
    """A prior is one of images; how many coils saw them does not matter. Of several image shapes it cannot be one."""
    with StoreWriter(tmp_path / "mixed.zarr") as out:
        for coils in (3, 2):
            part = simulate(
                blobs(12, seed=coils),
                tmp_path / f"{coils}.zarr",
                acceleration=2,
                calibration=4,
                coils=coils,
                seed=coils,
            )
            out.append(part.read(slice(None), raw=True), part.references(slice(None)))
    shutil.copytree(tmp_path / "mixed.zarr", tmp_path / "shapes.zarr")
    config = TrainConfig(store=tmp_path / "mixed.zarr", out=tmp_path / "run", method=method, **{**small, "images": 48})
    prior = train(config, progress=False)
    assert prior.image_shape == (1, 16, 16)
    part = simulate(blobs(3, size=24), tmp_path / "24.zarr", acceleration=2, calibration=4, coils=2)
    with StoreWriter(tmp_path / "shapes.zarr", append=True) as out:
        out.append(part.read(slice(None), raw=True), part.references(slice(None)))
    config = config.model_copy(update={"store": tmp_path / "shapes.zarr", "out": tmp_path / "other"})
    with pytest.raises(DataError, match="holds images of different shapes, 1×16×16 and 1×24×24, where one is wanted"):
        train(config, progress=False)
    assert not (tmp_path / "other").exists()
