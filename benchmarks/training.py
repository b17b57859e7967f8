"""What the training loop costs beside the forward and backward pass of its network.

`ambient_sci.train` runs on scans of the demonstration's size with the options that it has by default: reading, drawing
noise, objective, operators, clipping, optimiser, averaged weights, log. Its network is wrapped: whenever the loop calls
it, a second network of the same size first makes one forward and backward pass on numbers that are there. The two take
turns step by step, so that what else the machine does hits both alike, and

    ratio = time from the end of one such pass to the begin of the next / time of such a pass.

Checkpoints and previews come every few thousand images and are timed by themselves.

Examples
--------
As in the README::

    python -m benchmarks.training

Larger scans, on a GPU::

    python -m benchmarks.training --size 128 --coils 12 --device cuda
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ambient_sci import TrainConfig, train
from ambient_sci.datasets import simulate
from ambient_sci.network import UNet, best_precision
from benchmarks.operators import installed_version, machine_description, markdown, positive

PACKAGES = ("ambient-sci", "torch", "numpy", "diffusers")
METHODS = {"em": "denoising of images in memory", "ambient": "scans, with operators and a solve inside the network"}
TARGET = {"em": 1.15}  # of the network's own time
SCANS = 400  # of which 8 are set aside
WARM = 3  # steps that are not counted
PREVIEWS = 3


@dataclass
class Stamp:
    """Moments of one call of the network: when the loop came, and when it got its turn back."""

    came: tuple[float, float]
    went: tuple[float, float]


class Turns(nn.Module):
    """A network before each of whose calls in training another one makes a forward and a backward pass."""

    def __init__(self, network: nn.Module, other: UNet, size: int, batch: int) -> None:
        super().__init__()
        self.network = network
        self.stamps: list[Stamp] = []
        # not as a module: it is no part of what is learned
        self.aside: tuple[Any, Tensor, Tensor] = (
            other,
            torch.randn(batch, other.filters.in_channels, size, size),
            torch.zeros(batch),
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if self.training:
            came = now(x.device)
            other, image, labels = self.aside
            result = other.to(x.device)(image.to(x.device), labels.to(x.device))
            result.backward(result.detach())
            other.zero_grad(set_to_none=True)
            self.stamps.append(Stamp(came, now(x.device)))
        y: Tensor = self.network(x, label)
        return y


def now(device: torch.device) -> tuple[float, float]:
    """Seconds of the clock and of the processor, all threads together."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Round:
    """Seconds of a step of the loop and of a pass of the network, by the clock and of the processor."""

    step: tuple[float, float]
    network: tuple[float, float]

    @property
    def ratios(self) -> tuple[float, float]:
        return self.step[0] / self.network[0], self.step[1] / self.network[1]


def measure(stamps: Sequence[Stamp]) -> Round:
    """Sum up over the steps of a round, but for the first ones."""
    steps, passes = [], []
    for before, after in zip(stamps[WARM:-1], stamps[WARM + 1 :], strict=True):
        steps.append([b - a for a, b in zip(before.went, after.came, strict=True)])
        passes.append([b - a for a, b in zip(before.came, before.went, strict=True)])
    (a, b), (c, d) = np.mean(steps, 0).tolist(), np.mean(passes, 0).tolist()
    return Round((a, b), (c, d))


def run_method(method: str, store: Path, out: Path, options: argparse.Namespace) -> tuple[list[Round], float]:
    """Train in rounds, each going on with the one before; and the processor seconds of a checkpoint with a preview."""
    config: dict[str, Any] = {
        "store": store, "out": out, "method": method, "batch": options.batch, "device": options.device, "laps": 0,
        "validation_scans": min(8, SCANS // 50),
    }  # fmt: skip
    ambient = method == "ambient"
    precision = best_precision(options.device)

    def network() -> Turns:
        inner, other = (UNet(6 if ambient else 2, 2, precision=precision) for _ in range(2))
        return Turns(inner, other, options.size, options.batch)

    images, rounds = 0, []
    for _ in range(options.rounds):
        images += options.batch * (options.steps + WARM + 1)
        turns = network()
        train(TrainConfig(**config, images=images, checkpoint=10**9, preview=0), network=turns, progress=False)
        rounds.append(measure(turns.stamps))
    every = 5 * options.batch
    images = (images // every + PREVIEWS + 1) * every
    turns = network()
    train(TrainConfig(**config, images=images, checkpoint=every), network=turns, progress=False)
    steps = [after.came[1] - before.went[1] for before, after in zip(turns.stamps[:-1], turns.stamps[1:], strict=True)]
    usual = median(steps)
    return rounds, median(sorted(steps)[-PREVIEWS:]) - usual


def smooth_images(count: int, size: int) -> np.ndarray[Any, Any]:
    """Images of smooth random shapes in unit range; what they show does not matter here."""
    rng = np.random.default_rng(0)
    spectrum = rng.standard_normal((count, size, size)) * np.exp(-np.hypot(*np.indices((size, size))) / 4)
    images: np.ndarray[Any, Any] = np.abs(np.fft.fft2(spectrum))
    scaled: np.ndarray[Any, Any] = (images / images.max((1, 2), keepdims=True)).astype(np.float32)
    return scaled


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    description, _, examples = (__doc__ or "").partition("Examples\n--------\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", choices=list(METHODS), action="append", help="one method only; may be repeated")
    parser.add_argument("--size", type=positive, default=64, metavar="N", help="pixels along each axis (default: 64)")
    parser.add_argument("--coils", type=positive, default=8, metavar="N", help="default: 8")
    usual = TrainConfig.model_fields["batch"].default
    parser.add_argument(
        "--batch", type=positive, default=usual, metavar="N", help=f"images in a step (default: {usual})"
    )
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: 5")
    parser.add_argument("--steps", type=positive, default=64, metavar="N", help="steps in a round (default: 64)")
    parser.add_argument("--scans", type=positive, default=SCANS, metavar="N", help=f"in the store (default: {SCANS})")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    head = ("loop", "step / ms", "network / ms", "ratio", "processor", "target", "checkpoint and preview / s", "share")
    cells = [list(head)]
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        store = Path(folder) / "scans.zarr"
        simulate(smooth_images(options.scans, options.size), store, coils=options.coils, references=False)
        for method in options.method or METHODS:
            rounds, extra = run_method(method, store, Path(folder) / method, options)
            cells.append(row(method, rounds, extra, options.batch))
    print(f"{machine_description('cpu')}; {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f} at the end.")
    print(", ".join(f"{name} {installed_version(name)}" for name in PACKAGES) + ".\n")
    print(
        f"- batches of {options.batch} of {options.scans} scans, {options.size}x{options.size}, {options.coils} coils"
    )
    print(f"- {options.rounds} rounds of {options.steps} steps: medians, and the range of the ratio by the clock")
    print("- processor: the ratio of processor times; checkpoint and preview: seconds of the processor")
    print("- share: of checkpoints and previews, every 4000 images, in the processor time of a training without laps\n")
    print(markdown(cells, ("loop", "target")))


def row(method: str, rounds: Sequence[Round], extra: float, batch: int) -> list[str]:
    """Line of the table."""
    clock, processor = ([one.ratios[k] for one in rounds] for k in range(2))
    step, network = (median(getattr(one, name)[0] for one in rounds) for name in ("step", "network"))
    target = TARGET.get(method)
    met = "met" if target and median(processor) <= target else "NOT met"
    every = TrainConfig.model_fields["checkpoint"].default
    share = extra / (extra + median(one.step[1] for one in rounds) * every / batch)
    return [
        f"{method}: {METHODS[method]}",
        f"{1e3 * step:.0f}",
        f"{1e3 * network:.0f}",
        f"{median(clock):.2f} ({min(clock):.2f}-{max(clock):.2f})",
        f"{median(processor):.2f}",
        f"at most {target}: {met}" if target else "",
        f"{extra:.1f}",
        f"{100 * share:.1f}%",
    ]


if __name__ == "__main__":
    main()
