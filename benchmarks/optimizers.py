"""How soon optimisers learn a denoiser: ``python -m benchmarks.optimizers --data DATA --out FOLDER``.

The oracle of the task ``mri-r4`` (`benchmarks.learning`) learns from clean images with each of the settings below. Its
loss on the tuning images, which are of other patients and are not scored in any row, is that of
`ambient_sci.objectives.denoising`, at eight noise levels from 0.03 to 10 times the spread of images, with noise that is
the same for all, and its mean over levels. Processor seconds are those of the whole training.

Examples
--------
As in the README::

    python -m benchmarks.optimizers --data DATA --out FOLDER

One setting, for longer::

    python -m benchmarks.optimizers --data DATA --out FOLDER --images 60000 --only muon
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ambient_sci import TrainConfig, open_store, train
from ambient_sci.objectives import denoising_loss
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.seeding import stream
from benchmarks.learning.tasks import TASKS, freeze
from benchmarks.operators import installed_version, machine_description, markdown

SETTINGS: dict[str, dict[str, Any]] = {
    "muon": {},
    "muon, rate 0.0025": {"learning_rate": 0.0025},
    "muon, 8 images": {"batch": 8, "learning_rate": 0.003},
    "adamw": {"optimizer": "adamw", "batch": 8},
    "adamw, 16 images": {"optimizer": "adamw", "learning_rate": 0.004},
}
LEVELS = (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 5.0, 10.0)  # in units of sigma_data


def losses(run: Path, clean: Path, others: Path, images: int, seed: int, options: dict[str, Any]) -> list[float]:
    """Learn, and score by the loss at each level."""
    config = TrainConfig(
        store=clean, out=run, method="oracle", images=images, seed=seed, device="cpu", preview=0, checkpoint=images,
        **options,
    )  # fmt: skip
    prior = train(config)
    assert not isinstance(prior.denoiser, AmbientDenoiser)
    store = open_store(others)
    x = store.references(slice(None)) / torch.from_numpy(store.scale).float().reshape(-1, 1, 1, 1)
    noise = torch.view_as_complex(torch.randn(*x.shape, 2, generator=stream(0)))
    found = []
    for level in LEVELS:
        sigma = torch.full((len(x),), level * prior.sigma_data)
        with torch.no_grad():
            found.append(float(denoising_loss(prior.denoiser, x, sigma, prior.sigma_data, noise).mean()))
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    description, _, examples = (__doc__ or "").partition("Examples\n--------\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of images, see benchmarks.learning")
    parser.add_argument("--out", type=Path, required=True, help="folder for frozen stores and runs")
    parser.add_argument("--images", type=int, default=16_000, help="of each training (default: 16000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), help="these settings alone")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    frozen = freeze(TASKS["mri-r4"], options.data, options.out)
    cells = [["setting", "seconds", "mean", *(f"{level:g}" for level in LEVELS)]]
    for name in options.only or SETTINGS:
        run = (
            options.out
            / "optimizers"
            / str(options.images)
            / f"{name.replace(', ', '-').replace(' ', '-')}-{options.seed}"
        )
        found = losses(run, frozen.clean, frozen.tuning.path, options.images, options.seed, SETTINGS[name])
        seconds = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["seconds"]
        cells.append([name, f"{seconds:.0f}", *(f"{value:.3f}" for value in (sum(found) / len(found), *found))])
    print(f"{machine_description('cpu')}; one thread; torch {installed_version('torch')}; seed {options.seed}.\n")
    print(markdown(cells, ("setting",)))


if __name__ == "__main__":
    main()
