"""Figures of learning, from run folders and the file of results: ``python -m benchmarks.learning.figures``.

For every task that was run: restorations of a few scans by all methods beside each other, and images that priors draw.
Curves from the rows: error against the time of training (rows of several budgets), against corruption (tasks that
differ in it), and against the number of scans to learn from (rows made with ``--scans``).
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci import open_store
from ambient_sci.plot import COLOURS, INK, MUTED, reconstruction_figure
from benchmarks.learning.drawn import clean_images
from benchmarks.learning.run import CLASSICAL, CLEAN, LEARNED
from benchmarks.learning.table import ROOT, Group, groups
from benchmarks.learning.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["corruption_curves", "restorations", "samples", "scan_curves", "time_curves"]

SCANS, DRAWN = 3, 10  # shown
CORRUPTION = {  # tasks of a curve, by what is on its axis
    "acceleration": {"mri-r4": 4, "mri-r8": 8},
    "acceleration, noise 0.1": {"mri-r4-noisy": 4, "mri-r8-noisy": 8},
    "missing pixels / %": {f"digits-p{missing}": missing for missing in (50, 75, 90)},
    "missing pixels / %, noise 0.1": {f"digits-p{missing}-noisy": missing for missing in (50, 75, 90)},
}
MEASURES = {"nrmse": "NRMSE of the posterior mean", "frechet": "Fréchet distance of samples"}


def restorations(task: str, out: Path, methods: Sequence[str], seed: int = 0) -> "Figure | None":
    """Draw what methods make of the same scans, with their errors, and the standard deviation of the last one.

    Parameters
    ----------
    task
        Name of the task.
    out
        Folder of frozen stores and runs.
    methods
        Those to show, in this order, if they have run.
    seed
        Of the runs of those that learn.
    """
    found = {name: run for name in methods if (run := _read(out, task, name, seed, "restored.npz"))}
    if not found:
        return None
    columns = {name: run["mean"][:SCANS] for name, run in found.items()}
    truth = next(iter(found.values()))["truth"][:SCANS]
    std = next((run["std"][:SCANS] for run in reversed(found.values()) if "std" in run), None)
    if std is not None and np.iscomplexobj(std):  # parts of it are those of real and imaginary part
        std = np.hypot(std.real, std.imag)
    mask = None if TASKS[task].masked else np.ones(truth.shape, bool)
    return reconstruction_figure(columns, truth, std, mask)


def samples(task: str, out: Path, methods: Sequence[str], seed: int = 0) -> "Figure | None":
    """Images that priors draw, a row for each method, below a row of clean ones."""
    from matplotlib.figure import Figure

    found = {name: run["samples"] for name in methods if (run := _read(out, task, name, seed, "samples.npz"))}
    if not found:
        return None
    some = np.random.default_rng(0).choice(len(open_store(out / task / "clean.zarr")), DRAWN, replace=False)
    rows = {"clean": clean_images(out / task / "clean.zarr")[some].numpy(), **found}
    side, left = 0.9, 0.9
    figure = Figure(figsize=(left + side * DRAWN, side * len(rows)), dpi=150, facecolor="white")
    for r, (name, images) in enumerate(rows.items()):
        bottom = 1 - (r + 1) / len(rows)
        figure.text(0.01, bottom + 0.5 / len(rows), name, va="center", fontsize=9, color=INK)
        for c, image in enumerate(np.abs(images[:DRAWN, 0]) if np.iscomplexobj(images) else images[:DRAWN, 0]):
            width = side / figure.get_figwidth()
            place = (left / figure.get_figwidth() + c * width, bottom, 0.97 * width, 0.97 / len(rows))
            axes = figure.add_axes(place)
            axes.imshow(image, cmap="gray", vmin=0, vmax=max(float(np.percentile(image, 99.8)), 1e-12), aspect="auto")
            axes.set_axis_off()
    return figure


def time_curves(every: Sequence[Group], task: str) -> "Figure | None":
    """Quality against the time of training."""
    plain = [group for group in every if group.task == task and group.is_default and "minutes" in group.mean]
    return _curves({"minutes of training": plain}, lambda group: group.mean["minutes"])


def scan_curves(every: Sequence[Group], task: str) -> "Figure | None":
    """Quality against the number of scans to learn from; those of all scans stand at their number."""
    some = [
        group
        for group in every
        if group.task == task and not group.options and "trained_scans" in group.mean
        and any(other.scans and other.budget == group.budget for other in every if other.task == task)
    ]  # fmt: skip
    return _curves({"scans to learn from": some}, lambda group: group.mean["trained_scans"])


def corruption_curves(every: Sequence[Group]) -> "Figure | None":
    """Quality against what is missing."""
    panels = {
        label: _largest([group for group in every if group.task in levels and group.is_default])
        for label, levels in CORRUPTION.items()
    }
    level = {task: value for levels in CORRUPTION.values() for task, value in levels.items()}
    return _curves(panels, lambda group: level[group.task])


def _largest(some: list[Group]) -> list[Group]:
    """Of each task and method those of the largest budget."""
    best: dict[tuple[str, str], Group] = {}
    for group in some:
        key = (group.task, group.method)
        if key not in best or (group.budget or 0) > (best[key].budget or 0):
            best[key] = group
    return list(best.values())


def _curves(panels: dict[str, list[Group]], x: Callable[[Group], float]) -> "Figure | None":
    """One row of panels for each measure: a line for each method that has two points or more."""
    from matplotlib.figure import Figure

    lines: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    for (label, some), name in itertools.product(panels.items(), MEASURES):
        of = {method: [g for g in some if g.method == method and name in g.mean] for method in (*CLASSICAL, *LEARNED)}
        lines[label, name] = {
            method: sorted((x(g), g.mean[name], g.spread.get(name, 0.0)) for g in points)
            for method, points in of.items()
            if len(points) > 1
        }
    labels = [label for label in panels if any(lines[label, name] for name in MEASURES)]
    names = [name for name in MEASURES if any(lines[label, name] for label in labels)]
    if not labels:
        return None
    figure = Figure(figsize=(3.6 * len(labels), 2.9 * len(names)), dpi=150, facecolor="white", layout="constrained")
    grid = figure.subplots(len(names), len(labels), squeeze=False)
    looks = _looks()
    for row, name in zip(grid, names, strict=True):
        for axes, label in zip(row, labels, strict=True):
            for method, points in lines[label, name].items():
                at, value, spread = np.array(points).T
                look: Any = {"marker": "o", "markersize": 3.5, "linewidth": 1.4, **looks[method]}
                axes.errorbar(at, value, spread, label=method, **look)
            axes.set_xlabel(label, fontsize=9)
            axes.set_ylabel(MEASURES[name], fontsize=9)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if lines[label, name]:
                axes.legend(frameon=False, fontsize=7)
    return figure


def _looks() -> dict[str, dict[str, str]]:
    """Colour, line and marker of each method: those that learn, the oracle in black; those that do not, grey."""
    markers = itertools.cycle("sv^Dx")
    looks = {m: {"color": MUTED, "linestyle": ":", "marker": next(markers)} for m in CLASSICAL}
    looks["oracle"] = {"color": INK}
    for k, method in enumerate(method for method in LEARNED if method not in CLEAN):
        looks[method] = {"color": COLOURS[k % len(COLOURS)], "linestyle": "-" if k < len(COLOURS) else "--"}
    return looks


def _read(out: Path, task: str, method: str, seed: int, name: str) -> dict[str, NDArray[Any]] | None:
    """Read what a run left; of those of several budgets the one of the largest."""
    where = f"*/{method}-{seed}/{name}" if method in LEARNED else f"{method}/{name}"
    found = sorted((out / task).glob(where), key=lambda path: int(path.parts[-3]) if method in LEARNED else 0)
    if not found:
        return None
    with np.load(found[-1]) as file:
        return dict(file)


def main(argv: list[str] | None = None) -> None:
    """Draw everything that there is."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.figures", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="what --out was when the rows were made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "learning.json")
    parser.add_argument("--task", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument(
        "--method", nargs="+", choices=[*CLASSICAL, *LEARNED], default=[*CLASSICAL, *reversed(LEARNED)], help="in order"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the runs to show")
    options = parser.parse_args(argv)
    every = groups(json.loads(options.results.read_text()))
    figures: dict[str, Figure | None] = {"corruption": corruption_curves(every)}
    for task in options.task:
        figures[f"{task}-restorations"] = restorations(task, options.runs, options.method, options.seed)
        figures[f"{task}-samples"] = samples(task, options.runs, options.method, options.seed)
        figures[f"{task}-time"] = time_curves(every, task)
        figures[f"{task}-scans"] = scan_curves(every, task)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(options.out / f"{name}.png")
            print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
