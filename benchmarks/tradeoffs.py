r"""What corruption costs and what it protects from: ``python -m benchmarks.tradeoffs --data DATA --work WORK``.

A scan that is known in part can be copied in part only. So corruption may keep a prior from learning scans by heart,
and it takes quality away. Both depend on how many scans there are. Small priors learn here at several levels of
corruption from several numbers of scans, all from as many images shown, so many that those of the fewest scans learn
some by heart where nothing is missing:

=========  ==========================================================================================================
``digits``  MNIST, averaged to 14 x 14; so many percent of the pixels are missing, noise 0.01; method ``ambient``, which
            at 0% learns from complete images of that noise
``brain``   T1 slices, averaged to 16 x 16, of other patients than those that are held out; 4 coils, every ``R``-th
            line at random with 2 in the centre, noise 0.03; method ``em``, which at R = 1 is an oracle
=========  ==========================================================================================================

What is measured of each prior, always beside the same held-out images, which nothing has learned from:

- *NRMSE* of posterior means of held-out scans, of the corruption that was trained on, and of one that is the same for
  all; a restoration of one step for ``ambient``, the mean of 4 posterior samples otherwise;
- *Fréchet distance* of what it draws by itself from held-out images, by the features of `benchmarks.learning.features`
  (images enlarged to the size that these know), and sliced Wasserstein distance of patches;
- *copies*: part of the images drawn that an audit takes for near-copies (`ambient_sci.audit`), in pixels and on what
  was measured, and the area under the curve of being nearer to training scans than held-out scans are. An ``ambient``
  network is told the mask through which it sees: images are drawn through masks of training scans, and once more
  through those of held-out scans (*other masks*);
- *membership*: the area under the curve of a threshold on the loss, with the images known (``em``; the loss of an
  ``ambient`` network is of measurements), and with measurements alone.

Training opens measurements alone, but for the oracle's; images of scans are for scores. Rows that exist are not made
again: a command that was interrupted goes on. ``--draw`` makes the table and the figure of the rows that there are.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from ambient_sci import TrainConfig, audit_prior, open_store, train
from ambient_sci.audit import infer_membership
from ambient_sci.audit.comparison import Comparison
from ambient_sci.audit.scans import MOST, Scans, split, spread
from ambient_sci.datasets import Store, simulate
from ambient_sci.evaluate import nrmse
from ambient_sci.plot import INK, MUTED
from ambient_sci.posterior.ambient import AmbientDenoiser, restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from ambient_sci.seeding import rng_for
from benchmarks.learning.distances import frechet_distance, sliced_wasserstein
from benchmarks.learning.drawn import clean_images, draw
from benchmarks.learning.features import load_features
from benchmarks.learning.run import record
from benchmarks.learning.tasks import digits
from benchmarks.readme import write_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KINDS", "Kind", "learn", "score", "table", "tradeoff_figure"]

ROOT = Path(__file__).parent
SEED = 20261127  # of choices and measurements; the seed of rows is that of training and sampling
OTHERS = 256  # held-out images
DRAWN, AUDITED, STEPS = 256, 128, 16  # images drawn of a prior, those of them that are audited, steps for each
TESTED, SAMPLES = 24, 4  # held-out scans that are reconstructed, posterior samples of each
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """Images of one kind, how they are measured, and who learns from them.

    Parameters
    ----------
    read
        From the folder of data: images to learn from, in the order in which they are taken, and others.
    measure
        Options of `simulate` for a level of corruption.
    levels
        Of corruption; the first is none.
    fixed
        Level of the scans that all priors reconstruct.
    axis
        What the levels are.
    methods
        Methods of learning.
    dataset, side
        Whose features compare images, and the size of those that they know.
    """

    read: Callable[[Path], tuple[Images, Images]]
    measure: Callable[[float], dict[str, Any]]
    levels: tuple[float, ...]
    fixed: float
    axis: str
    methods: tuple[str, ...]
    dataset: str
    side: int
    images: int
    network: dict[str, Any] = field(default_factory=lambda: {"widths": (32, 32), "batch": 16})


def _averaged(images: Images, by: int) -> Images:
    count, height, width = images.shape
    return np.asarray(images.reshape(count, height // by, by, width // by, by).mean((2, 4)))


def small_digits(data: Path) -> tuple[Images, Images]:
    """MNIST at 14 x 14: 7,000 to learn from, others."""
    every = _averaged(digits(data).train, 2)
    return every[:7000], every[7000 : 7000 + OTHERS]


def small_brains(data: Path) -> tuple[Images, Images]:
    """T1 slices at 16 x 16, and those of other patients: blocks of numbers, 16 away from which nothing is taken."""
    with np.load(data / "mri-t1-slices" / "t1_128.npz") as file:
        images = file["images"].astype(np.float32) / 255
    blocks = _averaged(images, 8).reshape(32, 80, 16, 16)
    held = [3, 7, 11, 19, 23, 27]
    known = np.delete(blocks, held, axis=0).reshape(-1, 16, 16)
    others = blocks[held, 16:64].reshape(-1, 16, 16)
    rng = rng_for(SEED, 1)
    return known[rng.permutation(len(known))], others[rng.permutation(len(others))[:OTHERS]]


def _missing(percent: float) -> dict[str, Any]:
    return {"operator": "mask", "keep": 1 - percent / 100, "noise": 0.01}


def _lines(acceleration: float) -> dict[str, Any]:
    options = {"operator": "sense", "acceleration": acceleration, "calibration": 2, "coils": 4}
    return {**options, "noise": 0.03, "phase": False}


KINDS = {
    "digits": Kind(
        small_digits, _missing, (0, 50, 75, 90), 75, "missing pixels / %", ("ambient",), "digits", 28, 20_000,
        {"widths": (32, 32), "patch": 2, "batch": 16},
    ),
    "brain": Kind(
        small_brains, _lines, (1, 2, 4), 4, "acceleration R", ("em",), "brain", 64, 24_000,
        {"widths": (32, 32), "patch": 2, "batch": 8},
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ learning


def measured(kind: Kind, name: str, level: float, data: Path, work: Path, part: str, references: bool) -> Store:
    """Measure the first images to learn from (``part`` is how many), or the others; what is there stays as it is."""
    path = work / f"{name}-{level:g}" / f"{part}{'-known' if references else ''}.zarr"
    if (path.parent / f"{path.name}.done").exists():
        return open_store(path)
    train, others = _read(kind.read, data)
    images, seed = (others, SEED + 1) if part == "others" else (train[: int(part)], SEED)
    if part != "others" and len(images) < int(part):
        raise SystemExit(f"error: there are {len(images)} images of {name} to learn from, {part} are wanted")
    store = simulate(images, path, references=references, seed=seed, overwrite=True, **kind.measure(level))
    (path.parent / f"{path.name}.done").touch()
    return store


@cache
def _read(read: Callable[[Path], tuple[Images, Images]], data: Path) -> tuple[Images, Images]:
    return read(data)


def learn(
    kind: Kind, method: str, level: float, store: Store, known: Store, out: Path, images: int, seed: int
) -> Prior:
    """Learn from measurements, and where nothing is missing by ``em``, which would have nothing to do, from images."""
    oracle = method == "em" and level == kind.levels[0]
    options: dict[str, Any] = {"images": images, "seed": seed, "preview": 0, "validation_scans": 0, **kind.network}
    options |= {"optimizer": "adamw"}  # as in all rows that were measured
    options |= {"method": "oracle" if oracle else method, "store": known.path if oracle else store.path}
    return train(TrainConfig(out=out, device="cpu", **options))


# ------------------------------------------------------------------------------------------------------------- scoring


def score(kind: Kind, prior: Prior, known: Store, others: Store, fixed: Store, seed: int) -> dict[str, Any]:
    """Quality, memorisation and membership of a prior.

    Parameters
    ----------
    kind, prior
        What was learned.
    known
        The scans that it learned from, with their images.
    others, fixed
        Held-out scans, measured as those of the training, and at the level that is the same for all priors.
    seed
        Of everything drawn.
    """
    values: dict[str, Any] = {
        "nrmse": _error(prior, others),
        "nrmse_fixed": _error(prior, fixed),
    }
    drawn, held = draw(prior, known.path, DRAWN, STEPS), clean_images(others.path)
    values |= {
        "frechet": _frechet(kind, drawn, held),
        "sliced_wasserstein": sliced_wasserstein(_grey(drawn), _grey(held)),
    }
    found = audit_prior(
        prior, known, others, count=AUDITED, spaces=["pixels", "measured"], steps=STEPS, seed=seed, progress=False
    )
    for space in ("pixels", "measured"):
        one = found.dataset.sel(space=space)
        values[f"copies_{space}"] = float(one["copy"].mean())
        values[f"copied_scans_{space}"] = len(set(one["nearest"].to_numpy()[one["copy"].to_numpy()].tolist()))
        values[f"nearer_{space}"] = float(one["auc"])
        values[f"nearer_{space}_interval"] = one["auc_interval"].to_numpy().tolist()
        values[f"similarity_{space}"] = float(one["similarity"].median())
        values[f"held_similarity_{space}"] = float(one["held_similarity"].median())
    told = {"known": found.membership}
    if isinstance(prior.denoiser, AmbientDenoiser):
        values["copies_other_masks"] = copies_elsewhere(prior, known, others, seed)
    else:  # the loss of an ambient network is of measurements already
        inside = Scans(known, spread(np.arange(len(known)), MOST))
        outside = Scans(others, np.arange(len(others)))
        told["measured"] = infer_membership(prior, inside.batches(False, None), outside.batches(False, None), seed=seed)
    for name, membership in told.items():
        values[f"membership_{name}"] = membership.threshold.auc
        values[f"membership_{name}_interval"] = list(membership.threshold.auc_interval)
        values[f"membership_{name}_rate"] = membership.threshold.rate
    return values


def copies_elsewhere(prior: Prior, known: Store, others: Store, seed: int) -> float:
    """Part of near-copies, on what was measured, among images of an ambient prior drawn through held-out operators."""
    training, held = split(prior, known, others)
    drawn = draw(prior, others.path, AUDITED, STEPS)
    found = Comparison(prior, training, held, ["measured"], None, drawn, seed, progress=False)
    return float(found.dataset(held.scans, {})["copy"].mean())


def _error(prior: Prior, store: Store) -> float:
    """NRMSE of posterior means of some held-out scans, of all pixels."""
    some = np.arange(min(TESTED, len(store)))
    m = store.read(some)
    truth = store.references(some) / m.scale.reshape(-1, 1, 1, 1)
    if isinstance(prior.denoiser, AmbientDenoiser):
        means = restore(prior.denoiser, m)
    else:
        means = draw_posterior(prior, m, SAMPLES, steps=STEPS, seed=1).mean(1)
    return float(nrmse(means, truth).mean())


def _grey(images: Tensor) -> Images:
    grey: Images = (images.abs() if images.is_complex() else images)[:, 0].float().numpy()
    return grey


def _frechet(kind: Kind, images: Tensor, others: Tensor) -> float:
    network = load_features(kind.dataset)

    def features(some: Tensor) -> NDArray[np.float64]:
        grey = torch.from_numpy(_grey(some))[:, None]
        return network.of(functional.interpolate(grey, (kind.side, kind.side), mode="bilinear")[:, 0].numpy())

    return frechet_distance(features(images), features(others))


def floor(kind: Kind, known: Store, others: Store) -> dict[str, float]:
    """Distances of as many clean images to learn from as are drawn of a prior: those of a perfect one."""
    some, held = clean_images(known.path)[:DRAWN], clean_images(others.path)
    return {"frechet": _frechet(kind, some, held), "sliced_wasserstein": sliced_wasserstein(_grey(some), _grey(held))}


# ------------------------------------------------------------------------------------------------- tables and figures

COLUMNS = {
    "nrmse": ("NRMSE", "{:.3f}"),
    "nrmse_fixed": ("at {fixed}", "{:.3f}"),
    "frechet": ("Fréchet", "{:.3g}"),
    "sliced_wasserstein": ("patches", "{:.3f}"),
    "copies_pixels": ("copies, pixels", "{:.0%}"),
    "copies_measured": ("measured", "{:.0%}"),
    "copies_other_masks": ("other masks", "{:.0%}"),
    "nearer_pixels": ("nearer, pixels", "{:.2f}"),
    "nearer_measured": ("measured", "{:.2f}"),
    "membership_known": ("membership", "{:.2f}"),
    "membership_measured": ("measured", "{:.2f}"),
}
PANELS = {
    "nrmse_fixed": "NRMSE of posterior means at {fixed}",
    "frechet": "Fréchet distance of samples",
    "copies_pixels": "near-copies, in pixels",
    "copies_measured": "near-copies, where measured",
    "nearer_measured": "nearer than held-out scans, AUC",
    "membership_known": "membership by loss, AUC",
}
SHADES = ("#0072B2", "#E69F00", "#D55E00", "#CC79A7")
LINES = {"ambient": "-", "em": "--"}


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, as Markdown: a table for each kind of images, means over seeds."""
    parts = []
    for name, kind in KINDS.items():
        some = [row for row in rows if row["data"] == name]
        if not some:
            continue
        heads = [head.format(fixed=f"{kind.fixed:g}") for head, _ in COLUMNS.values()]
        lines = [f"| method | {kind.axis} | scans | " + " | ".join(heads) + " |"]
        lines += ["|---|--:|--:|" + "--:|" * len(heads)]
        for (method, level, scans), same in sorted(_cells(some).items()):
            cells = [_cell(same, key, text) for key, (_, text) in COLUMNS.items()]
            lines.append(f"| {method} | {level:g} | {scans:,} | " + " | ".join(cells) + " |")
        counts = sorted({len(same) for same in _cells(some).values()})
        seeds = "one seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
        shown = " or ".join(f"{count:,}" for count in sorted({row["budget"] for row in some}))
        lines += ["", f"{shown} images shown in each training, {seeds} a row."]
        if clean := [row for row in some if "frechet_floor" in row]:
            floors = {key: np.mean([row[f"{key}_floor"] for row in clean]) for key in ("frechet", "sliced_wasserstein")}
            said = ", ".join(f"{COLUMNS[key][0]} {COLUMNS[key][1].format(value)}" for key, value in floors.items())
            lines[-1] += f" As many clean images have: {said}."
        parts.append(f"#### {name}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _cells(rows: list[dict[str, Any]]) -> dict[tuple[str, float, int], list[dict[str, Any]]]:
    """Rows by method, level and number of scans."""
    found: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["level"], row["scans"]), []).append(row)
    return found


def _cell(same: list[dict[str, Any]], key: str, text: str) -> str:
    values = [row[key] for row in same if key in row]
    return text.format(np.mean(values)) if values else ""


def tradeoff_figure(rows: list[dict[str, Any]]) -> "Figure":
    """Draw each measure over corruption, a line for each number of scans and method, a row for each kind of images."""
    from matplotlib.figure import Figure

    names = [name for name in KINDS if any(row["data"] == name for row in rows)]
    figure = Figure(
        figsize=(2.35 * len(PANELS), 2.7 * len(names) + 0.4), dpi=120, facecolor="white", layout="constrained"
    )
    grid = figure.subplots(len(names), len(PANELS), squeeze=False)
    counts = sorted({row["scans"] for row in rows})
    for line, name in zip(grid, names, strict=True):
        for axes, (key, label) in zip(line, PANELS.items(), strict=True):
            _panel(axes, name, [row for row in rows if row["data"] == name], key, counts)
            title = label.format(fixed=f"{KINDS[name].fixed:g}")
            axes.set_title(f"{name}: {title}" if axes is line[0] else title, fontsize=8, color=INK, loc="left")
        line[0].legend(frameon=False, fontsize=7, handlelength=2.6)
    return figure


def _panel(axes: "Axes", name: str, rows: list[dict[str, Any]], key: str, counts: list[int]) -> None:
    kind = KINDS[name]
    every = _cells(rows)
    for method in kind.methods:
        for colour, scans in zip(SHADES, counts, strict=False):
            at = [k for k, level in enumerate(kind.levels) if (method, level, scans) in every]
            if not at:
                continue
            cells = [every[method, kind.levels[k], scans] for k in at]
            values = [float(np.mean([row[key] for row in same])) for same in cells]
            look: dict[str, Any] = {
                "color": colour,
                "linestyle": LINES[method],
                "marker": "o" if method == "em" else "s",
            }
            axes.plot(at, values, label=f"{method}, {scans:,} scans", markersize=3.5, linewidth=1.4, **look)
            if f"{key}_interval" in rows[0]:
                ends = np.array([np.mean([row[f"{key}_interval"] for row in same], 0) for same in cells]).reshape(-1, 2)
                axes.fill_between(at, *ends.T, color=colour, alpha=0.1, linewidth=0)
    axes.set_xticks(range(len(kind.levels)), [f"{level:g}" for level in kind.levels])
    axes.set_xlabel(kind.axis, fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    if key.startswith(("nearer", "membership")):
        axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_ylim(min(0.3, axes.get_ylim()[0]), 1.02)
    else:
        axes.set_ylim(*((-0.02, 1.02) if key.startswith("copies") else (0, 1.08 * max(row[key] for row in rows))))


# ------------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> None:
    """Make the rows that are not there, then the table and the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tradeoffs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of images, as for benchmarks.learning")
    parser.add_argument("--work", type=Path, default=Path("tradeoffs-work"), help="folder for stores and runs")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--level", type=float, nargs="+", help="of corruption; all of a kind by default")
    parser.add_argument("--scans", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--images", type=int, help="length of each training; for rows to compare, leave it as it is")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of training and sampling")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "tradeoffs.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--figure", type=Path, default=ROOT.parent / "docs" / "tradeoffs.png")
    parser.add_argument("--draw", action="store_true", help="table and figure of the rows that there are, nothing else")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    def rows() -> list[dict[str, Any]]:
        return json.loads(options.results.read_text()) if options.results.exists() else []

    if not options.draw:
        if options.data is None:
            parser.error("--data is needed to make rows: the folder of images")
        cells = [
            (name, method, level, scans, seed)
            for scans in options.scans
            for seed in options.seed
            for name in options.kind
            for method in KINDS[name].methods
            for level in KINDS[name].levels
            if options.level is None or level in options.level
        ]
        for name, method, level, scans, seed in tqdm(cells, desc="priors", unit="prior"):
            cell = {"data": name, "level": level, "task": f"{name}-{level:g}", "method": method, "scans": scans}
            cell |= {"seed": seed, "options": {}, "budget": options.images or KINDS[name].images}
            if not any(cell.items() <= row.items() for row in rows()):
                record(_row(cell, options.data, options.work), options.results)
    write_section(options.readme, "tradeoffs", table(rows()))
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    tradeoff_figure(rows()).savefig(options.figure)


def _row(cell: dict[str, Any], data: Path, work: Path) -> dict[str, Any]:
    """Measure what is not measured yet, learn and score."""
    name, level, scans, method = cell["data"], cell["level"], cell["scans"], cell["method"]
    kind = KINDS[name]

    def stores(level: float, part: str, references: bool) -> Store:
        return measured(kind, name, level, data, work, part, references)

    store, known = (stores(level, str(scans), references) for references in (False, True))
    others, fixed = stores(level, "others", True), stores(kind.fixed, "others", True)
    out = work / f"{name}-{level:g}" / f"{method}-{scans}-{cell['budget']}-{cell['seed']}"
    prior = learn(kind, method, level, store, known, out, cell["budget"], cell["seed"])
    seconds = float(json.loads((out / "log.jsonl").read_text().splitlines()[-1])["seconds"])
    began = time.process_time()
    values = score(kind, prior, known, others, fixed, cell["seed"])
    if level == kind.levels[0]:
        pool = stores(level, str(4 * DRAWN), True)
        values |= {f"{key}_floor": value for key, value in floor(kind, pool, others).items()}
    times = {"seconds": seconds, "scoring_seconds": time.process_time() - began}
    return {**cell, **values, **{key: round(value, 1) for key, value in times.items()}}


if __name__ == "__main__":
    main()
