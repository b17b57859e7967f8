r"""What a pretrained model is worth where there are few corrupted images: ``python -m benchmarks.finetune``.

A small DDPM is trained on clean images of one kind and saved as a pipeline of diffusers. Of images of another kind,
50, 200 and 1,000 are measured once (half of the pixels, noise 0.05), and a prior is learned from these alone by ``em``:

- ``untouched``: not at all, the model as it is,
- ``full``, ``lora``, ``last``: the model is fine-tuned,
- ``same``: the same network learns from scratch, from its untrained weights, with the learning rate that these need,
- ``scratch``: the built-in network of this package learns from scratch.

All learn for as many images. Other images of the second kind are measured the same way and reconstructed: mean of 8
posterior samples, its NRMSE and share of known pixels in 90% intervals, of ``--test`` scans, for each seed (of the
choice of images, their measurement, and the training). A row of the results is one prior.

``--source`` and ``--target`` are files of images as `ambient-sci simulate` reads them, or kinds that are drawn: soft
``discs``; ``rods``, which are much like them; and ``strokes``, which are not.

Example: ``python -m benchmarks.finetune --source digits.npy --target letters.npy --work /scratch/finetune``
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ambient_sci import TrainConfig, load_prior, open_store, train
from ambient_sci.checkpoint import replacing
from ambient_sci.datasets import read_images, simulate
from ambient_sci.evaluate.metrics import coverage_normal, nrmse
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from ambient_sci.seeding import rng_for
from benchmarks.readme import write_section

__all__ = ["METHODS", "draw", "learn", "pretrain", "score", "table"]

ROOT = Path(__file__).parent
KINDS = ("discs", "rods", "strokes")
METHODS = ("untouched", "full", "lora", "last", "same", "scratch")
SAMPLES, INTERVAL = 8, 0.9
KEEP, NOISE = 0.5, 0.05
FRESH_RATE = 1e-3  # of the pretrained network's architecture when its weights are random
OPTIONS: dict[str, Any] = {"preview": 0, "validation_scans": 0, "optimizer": "adamw"}


def draw(kind: str, count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Draw images of soft discs, of rods or of strokes, ``(count, size, size)``, in unit range."""
    rng = rng_for(seed, 0xF1)
    y, x = np.mgrid[-1 : 1 : 1j * size, -1 : 1 : 1j * size]
    images = np.zeros((count, size, size))
    for image in images:
        for _ in range(4):
            cx, cy = rng.uniform(-0.6, 0.6, 2)
            if kind == "discs":
                edge = np.hypot(x - cx, y - cy) - rng.uniform(0.15, 0.4)
            else:
                angle, length = rng.uniform(0, np.pi), rng.uniform(0.3, 0.8)
                along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
                across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
                if kind == "rods":
                    beyond = along - along.clip(-0.6 * length, 0.6 * length)
                    edge = np.hypot(beyond, across) - rng.uniform(0.15, 0.25)
                else:
                    edge = np.maximum(np.abs(along) - length, np.abs(across) - 0.06)
            image[:] = np.maximum(image, rng.uniform(0.4, 1) / (1 + np.exp(40 * edge.clip(-1, 1))))
    return images.astype(np.float32)


def images_of(source: str, count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Draw images of a kind, or read those of a file, in a random order."""
    if source in KINDS:
        return draw(source, count, size, seed)
    path = Path(source)
    found = np.asarray(read_images(path, size=size)[0], np.float32)
    if len(found) < count:
        raise SystemExit(f"error: {path} holds {len(found)} images, {count} are wanted: give more, or lower counts")
    return found[rng_for(0, 0xF2).permutation(len(found))[:count]]


def pretrain(images: NDArray[np.float32], work: Path, steps: int, widths: tuple[int, ...]) -> tuple[Path, Path]:
    """Make an untrained pipeline and one that has learned clean images; returns both folders."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    kinds: Any = (UNet2DModel, DDPMPipeline, DDPMScheduler)
    network, pipeline, scheduler = kinds
    untrained, learned = work / "untrained", work / "pretrained"
    if not (learned / "model_index.json").exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            body: Any = network(
                sample_size=images.shape[-1],
                in_channels=1,
                out_channels=1,
                block_out_channels=widths,
                down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
                up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
                layers_per_block=1,
                norm_num_groups=8,
            )
        pipeline(body, scheduler()).save_pretrained(untrained)
        store = simulate(images, work / "source.zarr", operator="identity", noise=0.01, overwrite=True)
        config = TrainConfig(
            store=store.path,
            out=work / "pretraining",
            pretrained=str(untrained),
            method="oracle",
            images=steps,
            learning_rate=FRESH_RATE,
            batch=16,
            **OPTIONS,
        )
        taught: Any = train(config).denoiser.network
        pipeline(taught.body, scheduler()).save_pretrained(learned)
    return untrained, learned


def learn(method: str, store: Path, out: Path, folders: tuple[Path, Path], images: int, seed: int) -> Prior:
    """Learn a prior from measurements, by one of `METHODS`."""
    untrained, learned = folders
    if method == "untouched":
        return load_prior(learned, image_shape=open_store(store).image_shape)
    options: dict[str, Any] = {"images": images, "seed": seed, "batch": 8, **OPTIONS}  # as in all rows
    if method == "same":
        # reconstructions to begin with: samples of an untrained network would be noise
        options |= {"pretrained": str(untrained), "learning_rate": FRESH_RATE, "em_start": "tv"}
    elif method != "scratch":
        options |= {"pretrained": str(learned), "adapt": method}
    return train(TrainConfig(store=store, out=out, **options))


def score(prior: Prior, store: Path, steps: int = 32) -> dict[str, float]:
    """Reconstruct all scans of a store, and compare with their known images."""
    known = open_store(store)
    drawn = [
        draw_posterior(prior, known.read(slice(k, k + 8)).to(prior.device), SAMPLES, steps=steps, seed=1).cpu()
        for k in range(0, len(known), 8)
    ]
    samples, images = torch.cat(drawn).numpy(), known.references(slice(None)).numpy()
    mean, spread = samples.mean(1), samples.std(1, ddof=1)
    errors = nrmse(mean, images)
    inside = coverage_normal(mean, spread, images, [INTERVAL], samples=SAMPLES)[INTERVAL]
    return {
        "nrmse": float(errors.mean()),
        "nrmse_error": float(errors.std() / len(errors) ** 0.5),
        "one": float(nrmse(samples[:, 0], images).mean()),
        "inside": inside,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """NRMSE of every method and number of scans, mean and standard deviation over the seeds, as Markdown."""
    lines = []
    for source, target in dict.fromkeys((row["source"], row["target"]) for row in rows):
        those = [row for row in rows if (row["source"], row["target"]) == (source, target)]
        counts = sorted({row["scans"] for row in those if row["method"] != "untouched"})
        lines += [
            f"#### From {source} to {target}",
            "",
            "| | " + " | ".join(f"{count} scans" for count in counts) + " |",
            "|---" * (len(counts) + 1) + "|",
        ]
        for method in METHODS:
            cells = []
            for count in counts:
                some = [row for row in those if row["method"] == method and row["scans"] in (0, count)]
                errors, inside = [row["nrmse"] for row in some], [row["inside"] for row in some]
                spread = f" ± {np.std(errors, ddof=1):.3f}" if len(errors) > 1 else ""
                cells.append(f"{np.mean(errors):.3f}{spread} ({np.mean(inside):.0%})" if some else "")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        images, tests = ({row[name] for row in those if row["scans"]} for name in ("images", "test"))
        seeds = len({row["seed"] for row in those})
        lines += [
            "",
            f"NRMSE of the mean of {SAMPLES} posterior samples, mean ± standard deviation over {seeds} seeds, of "
            f"{', '.join(map(str, sorted(tests)))} scans; in",
            f"parentheses the share of pixels inside 90% intervals (Student's). Every training is "
            f"{', '.join(f'{n:,}' for n in sorted(images))} images long.",
            "",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Learn and score what is not in the results yet, and make the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = f"{', '.join(KINDS)}, or a file"
    parser.add_argument("--source", default="discs", help=f"clean images to pretrain on: {kinds}")
    parser.add_argument("--target", default="rods", help=f"images of another kind, to measure: {kinds}")
    parser.add_argument("--size", type=int, default=16, help="pixels a side")
    parser.add_argument("--scans", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--images", type=int, default=1600, help="length of each training")
    parser.add_argument("--pretrain", type=int, default=28_000, help="length of the pretraining, in images")
    parser.add_argument("--source-images", type=int, default=5000)
    parser.add_argument("--test", type=int, default=32, help="scans to test on")
    parser.add_argument("--steps", type=int, default=10, help="sampler steps of the test")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 32], help="channels of the pretrained U-Net")
    parser.add_argument("--work", type=Path, default=Path("finetune-work"), help="folder for models, stores and runs")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "finetune.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--table", action="store_true", help="make the table of what was measured, and nothing else")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else []
    if not options.table:
        folders = pretrain(
            images_of(options.source, options.source_images, options.size, 0),
            options.work,
            options.pretrain,
            tuple(options.widths),
        )
        most = max(options.scans) * (max(options.seeds) + 1) + options.test
        target = images_of(options.target, most, options.size, 1)
        measured: dict[str, Any] = {"operator": "mask", "keep": KEEP, "noise": NOISE, "overwrite": True}
        names = {"source": Path(options.source).stem, "target": Path(options.target).stem}
        test = simulate(target[: options.test], options.work / f"test-{names['target']}.zarr", seed=1000, **measured)
        cases = [(n, s, m) for s in options.seeds for n in options.scans for m in options.methods]
        # of the model as it is there is one
        cases = list(dict.fromkeys((0, 0, m) if m == "untouched" else (n, s, m) for n, s, m in cases))
        done = {(row["scans"], row["seed"], row["method"]) for row in rows if names.items() <= row.items()}
        for scans, seed, method in tqdm([case for case in cases if case not in done], desc="priors"):
            first = options.test + seed * max(options.scans)
            name = f"{names['target']}-{scans}-{seed}"
            path = options.work / f"{name}.zarr"
            if scans and not path.exists():
                simulate(target[first : first + scans], path, seed=seed, references=False, **measured)
            out = options.work / f"{name}-{method}"
            prior = learn(method, path if scans else test.path, out, folders, options.images, seed)
            case = {"scans": scans, "seed": seed, "method": method, "images": options.images if scans else 0}
            rows.append({**names, **case, "test": options.test, **score(prior, test.path, options.steps)})
            with replacing(options.results) as partial:  # prior by prior, for a run that is interrupted
                partial.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    write_section(options.readme, "finetune", table(rows))


if __name__ == "__main__":
    main()
