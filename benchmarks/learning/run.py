"""A row of the table: a method learns a task's frozen scans in the time that all have, and is scored on others.

Nothing but the training store is opened while a method learns, unless its name says that it has clean images.
"""

import fcntl
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci import TrainConfig, load_prior, open_store, train
from ambient_sci.baselines import cg_sense, l1_wavelet_batch, total_variation_batch, tune, zero_filled
from ambient_sci.checkpoint import replacing
from ambient_sci.datasets.store import Store
from ambient_sci.evaluate import coverage_normal, head_mask, nrmse, psnr, score
from ambient_sci.posterior.ambient import AmbientDenoiser, restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from benchmarks.learning.budget import planned_images
from benchmarks.learning.clean import clean
from benchmarks.learning.drawn import can_sample, drawn_scores
from benchmarks.learning.tasks import TASKS, Frozen, Task, freeze

__all__ = ["CLASSICAL", "LEARNED", "classical_row", "learned_row", "record"]

LEARNED: dict[str, dict[str, Any]] = {
    "em": {"method": "em"},
    "ambient": {"method": "ambient"},
    "ambient-noiseless": {"method": "ambient", "noisy_objective": False},
    "l1-edm": {"method": "l1-edm"},
    "tv-edm": {"method": "tv-edm"},
    "ambient-gan": {"method": "ambient-gan"},
    "naive": {"method": "naive"},
    "oracle": {"method": "oracle"},
}
CLEAN = ("oracle",)  # methods that are given references
SAMPLES, STEPS, ITERATIONS = 8, 16, 3
SHOWN = 8  # test scans that are kept for figures, spread over all: neighbours are often of one patient
STRENGTHS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
CLASSICAL: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "zero-filled": (lambda m, _: zero_filled(m), (None,)),
    "cg-sense": (lambda m, lam: cg_sense(m, regularisation=lam), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    "l1-wavelet": (
        lambda m, value: l1_wavelet_batch(m, value[1], wavelet=value[0]),
        tuple((name, lam) for name in ("haar", "db4") for lam in STRENGTHS),
    ),
    "tv": (lambda m, lam: total_variation_batch(m, lam, iterations=50), STRENGTHS),
    "clean": (
        lambda m, value: clean(m, *value),
        tuple((threshold, width) for threshold in (0.25, 0.5, 1, 2) for width in (0.5, 0.6, 0.7, 0.8, 1.0)),
    ),
}


def learned_row(
    name: str,
    method: str,
    data: Path,
    out: Path,
    seed: int,
    budget: int,
    options: dict[str, Any],
    scans: int | None = None,
) -> dict[str, Any]:
    """Train, score, and draw figures; a training that was interrupted goes on.

    With an option ``clean=N`` the first ``N`` references are learned from as well.
    """
    torch.set_num_threads(1)
    task = TASKS[name]
    frozen = freeze(task, data, out, scans)
    few = [f"scans={scans}"] if scans else []
    shown = {k: Path(v).name if isinstance(v, str) else v for k, v in options.items()}
    run = out / name / str(budget) / "-".join([method, *few, *(f"{k}={v}" for k, v in shown.items()), str(seed)])
    every = {**task.network, **LEARNED[method], "seed": seed, "device": "cpu", **options}
    if "clean" in options:
        every["clean"] = freeze(task, data, out, options["clean"]).clean
    earlier = _seconds(Path(options["start_from"])) if "start_from" in options else 0.0
    if (run / "config.json").exists():
        config = TrainConfig.from_json((run / "config.json").read_text())
    else:
        images = planned_images(frozen.probes, len(open_store(frozen.train)), every, budget, earlier)
        config = TrainConfig(
            store=frozen.clean if method in CLEAN else frozen.train, out=run, images=images, checkpoint=4096, **every
        )
    train(config)
    prior = load_prior(run, device="cpu")
    seconds = earlier + _seconds(run)  # what it took to get there
    row: dict[str, Any] = {"task": name, "method": method, "seed": seed, "options": shown, "seconds": seconds}
    row |= {"budget": budget, "images": config.images, **posterior_scores(prior, frozen, run)}
    row |= drawn_scores(prior, frozen, run)
    row |= {"trained_scans": len(open_store(frozen.train)), **({"scans": scans} if scans else {})}
    if "nrmse_exact" in row:
        row["nrmse_ratio"] = row.get("nrmse", row.get("nrmse_restored")) / row["nrmse_exact"]
    return row


def _seconds(run: Path) -> float:
    """Processor time of a training."""
    return float(json.loads((run / "log.jsonl").read_text().splitlines()[-1])["seconds"])


def posterior_scores(prior: Prior, frozen: Frozen, run: Path) -> dict[str, float]:
    """Errors of the mean of some posterior samples and of one, coverage of their intervals; of restorations, too."""
    store = frozen.test
    m, truth = store.read(slice(None)), store.references(slice(None)) / _scale(store)
    mask = _mask(frozen.task, truth)
    values: dict[str, float] = {}
    if isinstance(prior.denoiser, AmbientDenoiser):
        restored = restore(prior.denoiser, m)
        values |= {f"{name}_restored": float(v.mean()) for name, v in _score(restored, truth, mask).items()}
        if not can_sample(prior, m.operator):
            _keep(run, mean=restored, truth=truth)
            return values
    draws = [
        draw_posterior(prior, m[start : start + 16], SAMPLES, steps=STEPS, iterations=ITERATIONS, seed=1)
        for start in range(0, len(m), 16)
    ]
    samples = torch.cat(draws)
    mean = samples.mean(1)
    values |= {name: float(value.mean()) for name, value in _score(mean, truth, mask).items()}
    values |= {f"{name}_one": float(v.mean()) for name, v in _score(samples[:, 0], truth, mask).items()}
    std = torch.view_as_real(samples).std(1) if samples.is_complex() else samples.std(1)
    spread = torch.view_as_complex(std) if samples.is_complex() else std
    covered = coverage_normal(mean, spread, truth, mask=mask, samples=SAMPLES)
    values |= {f"coverage_{round(100 * level)}": value for level, value in covered.items()}
    values["evaluations"] = STEPS * (1 + ITERATIONS)
    _keep(run, mean=mean, one=samples[:, 0], std=spread, truth=truth)
    return values


def classical_row(name: str, method: str, data: Path, out: Path) -> dict[str, Any]:
    """Reconstruct by a classical method whose settings were chosen on scans that are not scored."""
    task = TASKS[name]
    frozen = freeze(task, data, out)
    function, grid = CLASSICAL[method]
    tuning, test = frozen.tuning, frozen.test
    chosen = grid[0]
    if len(grid) > 1:
        known = tuning.references(slice(None)) / _scale(tuning)
        chosen = tune(function, tuning.read(slice(None)), known, grid, _mask(task, known))
    truth = test.references(slice(None)) / _scale(test)
    images = function(test.read(slice(None)), chosen)
    scores = _score(images, truth, _mask(task, truth))
    run = out / name / method
    run.mkdir(exist_ok=True)
    _keep(run, mean=images, truth=truth)
    row: dict[str, Any] = {"task": name, "method": method, "seed": 0, "options": {}, "chosen": str(chosen)}
    return row | {name: float(value.mean()) for name, value in scores.items()}


def record(row: dict[str, Any], path: Path) -> None:
    """Put a row into the file of results, in the place of an earlier one of the same task, method, options and seed."""
    row = row | {
        "commit": _commit(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("ambient-sci", "torch", "numpy", "diffusers")},
    }
    key = ("task", "method", "seed", "options", "budget", "scans")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = json.loads(path.read_text()) if path.exists() else []
        rows = [old for old in rows if any(old.get(k) != row.get(k) for k in key)] + [row]
        rows.sort(key=lambda r: [json.dumps(r.get(k)) for k in key])
        with replacing(path) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n")


def _keep(run: Path, **images: Tensor) -> None:
    """Keep some of the test scans for figures."""
    count = len(images["truth"])
    some = np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int)
    kept: dict[str, Any] = {name: values[some] for name, values in images.items()}
    np.savez_compressed(run / "restored.npz", **kept)


def _mask(task: Task, truth: Tensor) -> NDArray[np.bool_]:
    return head_mask(truth) if task.masked else np.ones(truth.shape, bool)


def _score(images: Tensor, truth: Tensor, mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """All metrics, without SSIM where images are smaller than its window."""
    if min(truth.shape[-2:]) >= 11:
        return score(images, truth, mask)
    return {"nrmse": nrmse(images, truth, mask), "psnr": psnr(images, truth, mask)}


def _scale(store: Store) -> Tensor:
    return torch.from_numpy(store.scale).float().reshape(-1, 1, 1, 1)


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
