r"""Training: one function that reads top to bottom.

State is counted in images. A run is a folder; running the same command again resumes it, and a run that was killed
ends with the weights of one that was not: batches, noise levels, noise and hidden rows of a step follow from the seed
and the number of images seen, and everything else is in the checkpoint.
"""

import contextlib
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ambient_sci.checkpoint import load_tensors, replacing, save_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.errors import CheckpointError, ConfigError, DataError, OutputError
from ambient_sci.methods import METHODS, Learner
from ambient_sci.network import best_precision
from ambient_sci.prior import Prior, build_denoiser, resolve_device
from ambient_sci.seeding import stream

__all__ = ["train"]

LOG_EVERY = 512  # images
# what may differ between a run and its continuation
# (the store is compared by its fingerprint, so that it may be moved)
CONTINUABLE = {"images", "checkpoint", "out", "device", "precision", "store"}


def train(config: TrainConfig, network: nn.Module | None = None, progress: bool = True) -> Prior:
    """Learn a prior from a store of measurements.

    Parameters
    ----------
    config
        Every option; see `TrainConfig`.
    network
        A module to train instead of the built-in U-Net: ``network(x, label)`` on real channels.
    progress
        Show progress bars.

    Returns
    -------
    Prior
        The prior with averaged weights, as `ambient_sci.load_prior` would load it from ``config.out``.

    Raises
    ------
    ConfigError
        If the run in ``config.out`` was started with other options.
    DataError
        If measurements are not finite, the loss is not, or images are of several shapes, of which a prior has one.
    """
    device = resolve_device(config.device)
    store = open_store(config.store)
    run = config.out
    image_shape = store.image_shape  # one for all scans, or refused before there is a run
    config = _resolve(config, store, device)
    started = _start_run(run, config)

    learner = METHODS[config.method](config, store, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        denoiser = build_denoiser(config, image_shape, store.is_complex, network).to(device)
    average = copy.deepcopy(denoiser).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    trained_on = {
        "store": str(config.store),
        "fingerprint": store.fingerprint,
        "operator": store.kind,
        "scans": len(store),
        "noise_std": max(float(store.read(group.scans[:64]).noise_std.max()) for group in store.groups),
    }
    prior = Prior(average, image_shape, store.is_complex, config, trained_on, 0)
    seen, seconds = _resume(run, store, denoiser, average, optimizer, learner) if started else (0, 0.0)
    began = time.process_time() - seconds

    losses: list[Tensor] = []
    bar = tqdm(
        total=config.images, initial=seen, unit="image", desc=f"training ({config.method})", disable=not progress
    )
    while seen < config.images:
        learner.prepare(seen, prior)
        rate = learning_rate(config, seen)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = learner.loss(denoiser, seen, stream(config.seed, 0, seen)).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(denoiser.parameters(), config.clip)
        if not bool(torch.isfinite(norm)):
            raise DataError(
                f"the loss became {float(loss.detach())} after {seen} images; the last checkpoint is in {run}. "
                f"Try a learning rate below {config.learning_rate}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        before, seen = seen, seen + config.batch
        _average(average, denoiser, config, seen)
        bar.update(config.batch)
        if before // config.checkpoint != seen // config.checkpoint or seen >= config.images:
            prior = Prior(average, image_shape, store.is_complex, config, trained_on, seen)
            _save(run, prior, denoiser, optimizer, learner, seen, time.process_time() - began)
        losses.append(loss.detach())
        if before // LOG_EVERY != seen // LOG_EVERY or before == 0 or seen >= config.images:
            mean = float(torch.stack(losses).mean())
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            record = {"images": seen, "loss": mean, "gradient": float(norm), "rate": rate}
            _log(run, record | {"seconds": round(time.process_time() - began, 3)})
            losses = []
    bar.close()
    return Prior(average, image_shape, store.is_complex, config, trained_on, seen)


def learning_rate(config: TrainConfig, seen: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth of the peak."""
    rise = min(1.0, (seen + config.batch) / max(config.warmup, 1))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, seen / config.images)))
    return config.learning_rate * rise * (0.05 + 0.95 * fall)


def _resolve(config: TrainConfig, store: Store, device: torch.device) -> TrainConfig:
    """Fill in what the configuration leaves to the machine and to the data."""
    update: dict[str, Any] = {}
    if config.precision == "auto":
        update["precision"] = best_precision(device)
    if config.sigma_data is None:
        some = store.read(store.groups[0].scans[:64])
        image = some.operator.adjoint(some.y)
        spread = float((torch.view_as_real(image) if image.is_complex() else image).std())
        if not spread > 0:
            raise DataError(
                f"the first {len(some)} scans of {store.path} hold nothing but zeros: there is nothing to learn"
            )
        update["sigma_data"] = float(f"{spread:.4g}")
    return config.model_copy(update=update)


def _start_run(run: Path, config: TrainConfig) -> bool:
    """Make the run's folder, or check that it continues the same run. Returns whether there is something to resume."""
    path = run / "config.json"
    if path.exists():
        old = TrainConfig.from_json(path.read_text()).model_dump()
        changed = [k for k, v in config.model_dump().items() if k not in CONTINUABLE and str(old[k]) != str(v)]
        if changed:
            text = ", ".join(f"{k} (was {old[k]}, now {getattr(config, k)})" for k in changed)
            raise ConfigError(
                f"the run in {run} was started with other options: {text}; give another --out, or the same options"
            )
    elif run.exists() and any(run.iterdir()):
        raise OutputError(f"{run} exists and is not a run; choose another folder for the run")
    with replacing(path) as partial:
        partial.write_text(config.model_dump_json(indent=2) + "\n")
    return (run / "checkpoint.safetensors").exists()


def _average(average: nn.Module, denoiser: nn.Module, config: TrainConfig, seen: int) -> None:
    """Exponential moving average of the weights, shorter at the beginning so that the first steps are forgotten."""
    keep = 0.5 ** (config.batch / min(config.ema, max(seen / 4, 1)))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - keep)
        for old, new in zip(average.buffers(), denoiser.buffers(), strict=True):
            old.copy_(new)


def _save(
    run: Path,
    prior: Prior,
    denoiser: nn.Module,
    optimizer: torch.optim.Optimizer,
    learner: Learner,
    seen: int,
    seconds: float,
) -> None:
    parts = {"net": denoiser.state_dict(), "ema": prior.denoiser.state_dict(), "learner": learner.state()}
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    header = {"seen": seen, "seconds": seconds, "store": prior.trained_on["fingerprint"]}
    save_tensors(run / "checkpoint.safetensors", tensors, header)
    prior.save(run / "prior.safetensors")


def _resume(
    run: Path, store: Store, denoiser: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, learner: Learner
) -> tuple[int, float]:
    """Take up a checkpoint; returns images seen and processor seconds spent until then."""
    tensors, header = load_tensors(run / "checkpoint.safetensors")
    if header.get("store") != store.fingerprint:
        raise ConfigError(f"the run in {run} was started on another store than {store.path}: give another --out")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    try:
        denoiser.load_state_dict(part("net."))
        average.load_state_dict(part("ema."))
        learner.load(part("learner."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            number, field = name.split(".")
            state.setdefault(int(number), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        seen, seconds = int(header["seen"]), float(header["seconds"])
    except (KeyError, RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise CheckpointError(f"the checkpoint in {run} does not fit the network of its options: {text}") from error
    _trim_log(run, seen)
    return seen, seconds


def _trim_log(run: Path, seen: int) -> None:
    """Forget what was logged after the checkpoint: it is about to happen again."""
    with contextlib.suppress(OSError, ValueError):
        lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
        with replacing(run / "log.jsonl") as partial:
            partial.write_text("".join(line for line in lines if json.loads(line)["images"] <= seen))


def _log(run: Path, record: dict[str, Any]) -> None:
    """Append a record to ``log.jsonl``; a log that cannot be written is not worth stopping for."""
    with contextlib.suppress(OSError), (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
