r"""One evaluation, many, and their mean, of the same priors and scans: ``python -m benchmarks.restorations``.

A prior can be asked for the image of a scan in three ways:

- ``one step``: an ambient network restores the scan, :math:`h(A, y, \sigma_y)`. Of an ordinary denoiser it is what the
  first step of a posterior sampler finds, from noise alone at a level :math:`s` (``--once``, in units of
  ``sigma_data``): :math:`D + V A^H (\sigma_y^2 + A V A^H)^{-1} (y - A D)` with :math:`V = s^2 J`, the posterior mean if
  images were Gaussian. Noise hides more of what the network knows the lower the level is, and the higher it is the
  more it takes to be right about what it says of noise.
- ``one sample`` of the posterior, in few steps or in many.
- ``mean of 8`` such samples, and whether their 90% intervals hold the known value: Student's, of mean and standard
  deviation, real and imaginary parts by themselves.

Evaluations of the network are counted by hooks on it, for each scan: passes, and passes back for its gradient, of which
conditioning takes some. Time is the processor's (on a GPU the clock's) for a scan, and in units of that of the first
row of the prior, with as many images at a time in all rows.

Example
-------
With ``digits.npy``, 2,064 digits of MNIST in random order, or any other images::

    ambient-sci simulate digits.npy scans.zarr --size 16 --operator mask --noise 0.1 --stop 2000 --no-references
    ambient-sci simulate digits.npy test.zarr --size 16 --operator mask --noise 0.1 --start 2000 --seed 1
    ambient-sci train scans.zarr --out ambient --method ambient --images 8000 --patch 2
    ambient-sci train scans.zarr --out em --images 8000 --patch 2
    python -m benchmarks.restorations ambient em test.zarr --title digits
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ambient_sci import load_prior, open_store
from ambient_sci.checkpoint import replacing
from ambient_sci.evaluate import coverage_normal, head_mask, nrmse, psnr
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.ambient import AmbientDenoiser, restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from benchmarks.readme import write_section

__all__ = ["Counts", "counting", "measure", "one_step", "table"]

ROOT = Path(__file__).parent
ONCE = 1.0, 3.0, 10.0  # noise levels of one step
INTERVAL = 0.9
REPEATS = 3  # of one step, whose time is the unit


@dataclass
class Counts:
    """Images that went through a network, and whose gradient came back through it."""

    passes: int = 0
    back: int = 0


@contextmanager
def counting(network: nn.Module) -> Iterator[Counts]:
    """Count what a network is asked for."""
    counts = Counts()

    def passed(_: nn.Module, __: Any, output: Any) -> None:
        image: Tensor = output[0] if isinstance(output, tuple) else output
        counts.passes += len(image)
        if image.requires_grad:
            image.register_hook(came_back)

    def came_back(gradient: Tensor) -> None:
        counts.back += len(gradient)

    handle = network.register_forward_hook(passed)
    try:
        yield counts
    finally:
        handle.remove()


def one_step(prior: Prior, m: Measurement, level: float) -> Tensor:
    """Restore scans by one evaluation of the network, ``(batch, channel, *spatial)`` (see the module).

    An ambient network is told the noise of the scans, and no level.
    """
    if isinstance(prior.denoiser, AmbientDenoiser):
        return restore(prior.denoiser, m)
    return draw_posterior(prior, m, steps=1, level=level)[:, 0]


def measure(
    prior: Prior,
    m: Measurement,
    known: Tensor,
    once: list[float],
    steps: list[int],
    samples: int,
    batch: int,
    mask: Any,
) -> list[dict[str, Any]]:
    """Rows of a prior: one step, then one sample and the mean of several for each number of steps.

    Parameters
    ----------
    prior
        The prior.
    m, known
        Scans, and their images in normalised units.
    once
        Noise levels of one step of an ordinary prior, in units of ``sigma_data``.
    steps, samples
        Numbers of steps, and of samples.
    batch
        Images at a time.
    mask
        Pixels that count.
    """

    def run(restored: Callable[[Measurement], Tensor], scans: int) -> tuple[Tensor, Counts, float]:
        with counting(network) as counts:
            began = clock()
            parts = [restored(m[k : k + scans].to(prior.device)).cpu() for k in range(0, len(m), scans)]
            return torch.cat(parts), counts, clock() - began

    def clock() -> float:
        if prior.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def row(kind: str, image: Tensor, counts: Counts, seconds: float) -> dict[str, Any]:
        errors, peaks = nrmse(image, known, mask), psnr(image, known, mask)
        return {
            "kind": kind,
            "nrmse": float(errors.mean()),
            "nrmse_error": float(errors.std() / len(m) ** 0.5),
            "psnr": float(peaks.mean()),
            "passes": counts.passes / len(m),
            "back": counts.back / len(m),
            "seconds": seconds / len(m),
            "relative": seconds / unit,
        }

    network: Any = prior.denoiser.network

    rows: list[dict[str, Any]] = []
    unit = 0.0
    ambient = isinstance(prior.denoiser, AmbientDenoiser)
    for level in [0.0] if ambient else once:
        restored = partial(one_step, prior, level=level)
        run(restored, batch)  # libraries plan their transforms in a first call
        tries = [run(restored, batch) for _ in range(REPEATS)]
        seconds = median(took for *_, took in tries)
        unit = unit or seconds
        rows.append(row("one step" if ambient else f"one step, level {level:g}", *tries[0][:2], seconds))
    for count in tqdm(steps, desc="numbers of steps"):
        drawn = partial(draw_posterior, prior, steps=count, seed=1)
        one, counts, seconds = run(partial(drawn, samples=1), batch)
        rows.append({**row("one sample", one[:, 0], counts, seconds), "steps": count})
        several, counts, seconds = run(partial(drawn, samples=samples), max(batch // samples, 1))
        mean = several.mean(1)
        std = torch.view_as_real(several).std(1) if several.is_complex() else several.std(1)
        spread = torch.view_as_complex(std) if several.is_complex() else std
        inside = coverage_normal(mean, spread, known, [INTERVAL], mask, samples)[INTERVAL]
        rows.append({**row(f"mean of {samples}", mean, counts, seconds), "steps": count, "inside": inside})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown, a table for each title."""
    lines = []
    for title in dict.fromkeys(row["title"] for row in rows):
        some = [row for row in rows if row["title"] == title]
        lines += [
            f"#### {title}, one step and many",
            "",
            "| prior | | steps | NRMSE | PSNR / dB | in 90% intervals | passes | passes back | ms | of one step |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in some:
            inside = f"{row['inside']:.3f}" if "inside" in row else ""
            cells = [
                row["prior"],
                row["kind"],
                str(row.get("steps", "")),
                f"{row['nrmse']:.3f} ± {row['nrmse_error']:.3f}",
                f"{row['psnr']:.1f}",
                inside,
                f"{row['passes']:.4g}",
                f"{row['back']:.4g}",
                f"{1000 * row['seconds']:.3g}",
                f"{row['relative']:.3g}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"{some[0]['scans']} scans, mean ± standard error; levels are in units of `sigma_data`.", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure priors on the scans of a store, and make the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restorations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="+", help="folders of training runs")
    parser.add_argument("store", type=Path, help="store with references, of scans that none of them has seen")
    parser.add_argument("--title", help="name of the scans in the table; that of the store if not given")
    parser.add_argument("--scans", type=int, default=64, help="how many of its scans, from the first")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--samples", type=int, default=8, help="samples of a mean")
    parser.add_argument(
        "--once", type=float, nargs="+", default=[*ONCE], help="noise levels of one step of an ordinary prior"
    )
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--head", action="store_true", help="score inside the head alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "restorations.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(argv)
    if options.samples < 2:
        parser.error("--samples must be at least 2: a spread needs as many")

    torch.set_num_threads(options.threads)
    store = open_store(options.store)
    m = store.read(slice(0, options.scans))
    known = store.references(slice(0, options.scans)) / m.scale.reshape(-1, 1, 1, 1)
    mask = head_mask(known) if options.head else torch.ones(known.shape, dtype=torch.bool)
    title = options.title or options.store.stem
    rows: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else []
    for run in options.run:
        prior = load_prior(run, options.device)
        label = f"{prior.config.method}, {prior.images:,} images"
        rows = [row for row in rows if (row["title"], row["prior"]) != (title, label)]
        names = {"title": title, "prior": label, "scans": len(m)}
        found = measure(prior, m, known, options.once, options.steps, options.samples, options.batch, mask)
        rows += [{**names, **row} for row in found]
        with replacing(options.results) as partial:
            partial.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    text = table(rows)
    print(text)
    write_section(options.readme, "restorations", text)


if __name__ == "__main__":
    main()
