"""The folder of a run: its options, and the state of a training that a checkpoint keeps whole.

A checkpoint holds the weights, their average, the optimiser, what the method of learning keeps (the images of
expectation-maximisation), the losses that are not yet in the log, and how many images were seen. Everything random
follows from the seed and that number, so that nothing else is needed for a continuation with the same bits.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ambient_sci.checkpoint import load_tensors, replacing, save_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.datasets.store import Store
from ambient_sci.distributed import main, placed, wait, whole
from ambient_sci.errors import CheckpointError, ConfigError, OutputError
from ambient_sci.methods import Learner
from ambient_sci.prior import Prior

__all__ = ["State", "start_run"]

# what may differ between a run and its continuation
# (the store is compared by its fingerprint, so that it may be moved)
CONTINUABLE = {
    "accumulate", "checkpoint", "checkpoint_activations", "compile", "device", "download", "images", "out", "patience",
    "precision", "preview", "store", "tensorboard"
}  # fmt: skip


@dataclass
class State:
    """What changes while a prior is learned, the fingerprint of the store, and the key of a private training."""

    denoiser: nn.Module
    prior: Prior
    optimizer: torch.optim.Optimizer
    learner: Learner
    fingerprint: str
    key: int | None = None
    seen: int = 0
    saved: int = 0
    losses: list[Tensor] = field(default_factory=list)
    began: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        """Processor seconds spent on the run, by all that took part in it one after the other."""
        return time.process_time() - self.began

    def save(self, run: Path) -> None:
        """Write ``checkpoint.safetensors`` and ``prior.safetensors``; every process has to take part."""
        self.prior = replace(self.prior, images=self.seen)
        parts: dict[str, Mapping[str, Tensor]] = {
            "net": self.denoiser.state_dict(),
            "ema": self.prior.denoiser.state_dict(),
            "learner": self.learner.state(),
            "log": {"losses": torch.stack(self.losses)} if self.losses else {},
        }
        moments = self.optimizer.state_dict()["state"]
        parts |= {f"optimizer.{number}": dict(_flat(values)) for number, values in moments.items()}
        tensors = {f"{part}.{name}": whole(value) for part, values in parts.items() for name, value in values.items()}
        self.saved = self.seen
        if not main():
            return
        header = {"seen": self.seen, "seconds": self.seconds, "store": self.fingerprint}
        secret = self.key is not None
        if secret and self.seen < self.prior.config.images:  # the last checkpoint needs no key, and gives none away
            header["key"] = f"{self.key:x}"
        save_tensors(run / "checkpoint.safetensors", tensors, header, secret)
        self.prior.save(run / "prior.safetensors")

    def resume(self, run: Path, store: Store) -> None:
        """Take up the checkpoint of a run; what was logged after it is about to happen again, and forgotten."""
        tensors, header = load_tensors(run / "checkpoint.safetensors")
        if header.get("store") != store.fingerprint:
            raise ConfigError(f"the run in {run} was started on another store than {store.path}: give another --out")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        try:
            own = self.denoiser.state_dict()
            self.denoiser.load_state_dict(
                {name: placed(value, own.get(name, value)) for name, value in part("net.").items()}
            )
            self.prior.denoiser.load_state_dict(part("ema."))
            self.learner.load(part("learner."))
            state: dict[int, dict[str, Any]] = {}
            parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            for name, value in part("optimizer.").items():
                number, key = name.split(".")
                group, _, inner = key.rpartition("/")
                own_values = state.setdefault(int(number), {})
                if key == "step":
                    own_values[key] = value if isinstance(self.optimizer, torch.optim.AdamW) else int(value)
                elif group:
                    own_values.setdefault(group, {})[inner] = value
                else:
                    own_values[key] = placed(value, parameters[int(number)])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.losses = [loss.to(self.prior.device) for loss in part("log.").get("losses", ())]
            self.seen = self.saved = int(header["seen"])
            self.prior = replace(self.prior, images=self.seen)
            self.began -= float(header["seconds"])
            if self.key is not None and self.seen < self.prior.config.images:
                self.key = int(header["key"], 16)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            text = str(error).splitlines()[0]
            raise CheckpointError(f"the checkpoint in {run} does not fit the network of its options: {text}") from error
        if not main():
            return
        with contextlib.suppress(OSError, ValueError):
            lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
            with replacing(run / "log.jsonl") as partial:
                partial.write_text("".join(line for line in lines if json.loads(line)["images"] <= self.seen))


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of an optimiser for one weight; one of 8 bits has a plain number of steps, and groups of tensors."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            # a table of its moments is shared by all weights, and safetensors wants each with memory of its own
            yield from ((f"{name}/{inner}", tensor.clone()) for inner, tensor in _flat(value))
        else:
            yield name, torch.as_tensor(value)


def start_run(run: Path, config: TrainConfig) -> bool:
    """Make the run's folder, or check that it continues the same run. Returns whether there is something to resume.

    A run without a checkpoint begins anew, with whatever options: it often has none because its options were wrong.
    """
    path = run / "config.json"
    started = (run / "checkpoint.safetensors").exists()
    if path.exists() and started:
        old = TrainConfig.from_json(path.read_text()).model_dump()
        # an epsilon is that of so many images
        may_differ = CONTINUABLE - {"images"} if config.private else CONTINUABLE
        changed = [k for k, v in config.model_dump().items() if k not in may_differ and str(old[k]) != str(v)]
        if changed:
            text = ", ".join(f"{k} (was {old[k]}, now {getattr(config, k)})" for k in changed)
            raise ConfigError(
                f"the run in {run} was started with other options: {text}; give another --out, or the same options"
            )
    elif not path.exists() and run.exists() and any(run.iterdir()):
        raise OutputError(f"{run} exists and is not a run; choose another folder for the run")
    wait()  # until every process has looked
    if main():
        with replacing(path) as partial:
            partial.write_text(config.model_dump_json(indent=2) + "\n")
        if not started:
            (run / "log.jsonl").unlink(missing_ok=True)
    return started
