"""Whether an audit finds what priors have learned by heart.

Priors learn from few images for long, from the images themselves and from measurements of them alone, and from many
others for as long. Of each, printed is in how many images the audit finds near-copies, of which scans, and what losses
tell of who was trained on; a prior of many images is the reference model of those of few. In it nothing should be
found.

==========  ==========================================================================================================
``blobs``   made here: three soft blobs on 16 x 16 pixels, of which half are measured with noise; one of few scans
            stands in the training set many times, as the same scan
``digits``  MNIST, 28 x 28, of which half the pixels are measured with noise; nothing is planted
``brain``   T1 slices, 64 x 64, 4 coils, every fourth line at random with 4 in the centre; those held out are of other
            patients
==========  ==========================================================================================================

Examples: ``python -m benchmarks.audit --out audit-benchmark`` (about a quarter of an hour of a core),
``python -m benchmarks.audit --of digits --data DATA --out audit-digits``
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci import TrainConfig, audit_prior, open_store, train
from ambient_sci.audit import PriorAudit
from ambient_sci.audit.figure import audit_figure
from ambient_sci.datasets import Store, StoreWriter, simulate
from ambient_sci.prior import load_prior
from benchmarks.learning.tasks import Splits, brain_slices, digits

SIDE = 16  # of blobs
Images = NDArray[Any]


def blobs(count: int, seed: int) -> NDArray[np.float64]:
    """Draw images of three blobs each, ``(count, SIDE, SIDE)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, width = rng.uniform(2, SIDE - 3, (2, count, 3, 1, 1)), rng.uniform(1, 2.5, (count, 3, 1, 1))
    height = rng.uniform(0.4, 1, (count, 3, 1, 1))
    drawn = height * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    return np.asarray(drawn.sum(1) / drawn.sum(1).max((1, 2), keepdims=True))


def made(data: Path | None, few: int, many: int, others: int) -> list[Images]:
    """Blobs; there are as many as are wanted."""
    return [blobs(count, seed) for seed, count in enumerate((few, many, others), 1)]


def given(read: Callable[[Path], Splits]) -> "Callable[[Path | None, int, int, int], list[Images]]":
    """Images of a folder of data, in the order of a shuffle: few, many others, and some that are held out."""

    def images(data: Path | None, few: int, many: int, others: int) -> list[Images]:
        if data is None:
            raise SystemExit("error: --data is needed: the folder of images, as for benchmarks.learning")
        splits = read(data)
        rng = np.random.default_rng(0)
        known = rng.permutation(splits.train)
        held = rng.permutation(np.concatenate([splits.tuning, splits.test]))
        if few + many > len(known) or others > len(held):
            raise SystemExit(f"error: there are {len(known)} images to learn from, and {len(held)} others")
        return [known[:few], known[few : few + many], held[:others]]

    return images


@dataclass(frozen=True)
class Kind:
    """Images of one kind, how they are measured, who learns from them, and how much of everything there is.

    Parameters
    ----------
    images
        From the folder of data and their numbers: few images to learn from, many, and others.
    measure, network
        Options of `simulate` and of the training.
    priors
        From how many images, and by which method; those of many first, which are references.
    defaults
        Of the options of the command.
    """

    images: Callable[[Path | None, int, int, int], list[Images]]
    measure: dict[str, Any]
    network: dict[str, Any]
    priors: tuple[str, ...]
    defaults: dict[str, int]


HALF: dict[str, Any] = {"operator": "mask", "keep": 0.5, "noise": 0.03}
LINES: dict[str, Any] = {
    "operator": "sense", "acceleration": 4, "calibration": 4, "coils": 4, "noise": 0.03, "phase": False,
}  # fmt: skip
SMALL: dict[str, Any] = {"widths": (32, 32), "batch": 16, "warmup": 1_000}
PAIRS = ("many, oracle", "few, oracle", "many, ambient", "few, ambient")
KINDS = {
    "blobs": Kind(
        made, HALF, {**SMALL, "patch": 2}, ("many, oracle", "few, oracle", "few, em", "few, ambient"),
        {"images": 24_000, "scans": 48, "times": 16, "many": 2_000, "held_out": 96},
    ),
    "digits": Kind(
        given(digits), HALF, {**SMALL, "patch": 4}, PAIRS,
        {"images": 30_000, "scans": 40, "times": 1, "many": 4_000, "held_out": 192},
    ),
    "brain": Kind(
        given(brain_slices), LINES, {**SMALL, "patch": 4}, PAIRS,
        {"images": 30_000, "scans": 40, "times": 1, "many": 2_000, "held_out": 96},
    ),
}  # fmt: skip


def measured(images: Images, path: Path, seed: int, measure: dict[str, Any] = HALF) -> Store:
    """Measure images, or open what was measured before."""
    return open_store(path) if path.exists() else simulate(images, path, seed=seed, **measure)


def planted(store: Store, path: Path, times: int) -> Store:
    """Write a store again with its last scan so many times."""
    if not path.exists():
        scans = np.concatenate([np.arange(len(store)), np.full(times - 1, len(store) - 1)])
        with StoreWriter(path) as writer:
            writer.append(store.read(scans, raw=True), store.references(scans))
    return open_store(path)


def row(name: str, found: PriorAudit, planted_from: int) -> str:
    """One line of the table."""
    named = [scan >= planted_from for scan in found.copied]
    attacks = found.membership.attacks.values()
    told = "  ".join(f"{one.auc:.2f} ({one.auc_interval[0]:.2f}-{one.auc_interval[1]:.2f})" for one in attacks)
    data = found.dataset.isel(space=0)
    images = [image for scan, some in found.copied.items() if scan >= planted_from for image in some]
    return (
        f"{name:20s} {data['space'].item():9s} {found.copies:7d} {len(set(images)):8d} {len(named) - sum(named):8d} "
        f"{float(data['auc']):6.2f}  {told}"
    )


def main() -> None:
    """Print a table, and write runs, numbers and figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", choices=KINDS, default="blobs", help="kind of images")
    parser.add_argument("--data", type=Path, help="folder of images, as for benchmarks.learning; blobs need none")
    parser.add_argument("--out", type=Path, required=True, help="folder for stores, runs, numbers and figures")
    parser.add_argument("--images", type=int, help="length of each training")
    parser.add_argument("--scans", type=int, help="different scans of the small training set")
    parser.add_argument("--many", type=int, help="scans of the large one")
    parser.add_argument("--times", type=int, help="how often the last scan stands in the small one")
    parser.add_argument("--held-out", type=int, help="scans that nobody learns from")
    parser.add_argument("--count", type=int, default=128, help="images that are drawn of each prior")
    parser.add_argument("--only", nargs="+", help="which priors, if not all: 'many, oracle' and so on")
    kind = KINDS[parser.parse_known_args()[0].of]
    parser.set_defaults(**kind.defaults)
    options = parser.parse_args()
    small = "planted" if options.times > 1 else "few"
    names = [name.replace("few", small) for name in kind.priors]
    if wrong := [name for name in options.only or () if name not in names]:
        parser.error(f"no prior {wrong[0]!r}: choose from {', '.join(map(repr, names))}")

    images = kind.images(options.data, options.scans, options.many, options.held_out)
    few, many, held = (
        measured(some, options.out / f"{name}.zarr", seed, kind.measure)
        for seed, (name, some) in enumerate(zip(("few", "many", "held-out"), images, strict=True), 1)
    )
    stores = {"few": few, "many": many}
    if small == "planted":
        stores[small] = planted(few, options.out / "planted.zarr", options.times)
    found: dict[str, Any] = {}
    print("near-copies: images that are, of which of the planted scan, and other scans that are copied")
    print(
        f"{'prior':20s} {'compared':9s} {'copies':>7s} {'planted':>8s} {'others':>8s} {'AUC':>6s}  membership, by loss"
    )
    for name in options.only or names:
        learned_from, method = name.split(", ")
        store, run = stores[learned_from], options.out / name.replace(", ", "-")
        config = TrainConfig(
            store=store.path, out=run, method=method, images=options.images, preview=0, validation_scans=0,
            device="cpu", optimizer="adamw", **kind.network,  # as in all rows that were measured
        )  # fmt: skip
        prior = train(config)
        # a reference learned with the same loss
        other = options.out / f"many-{'ambient' if method == 'ambient' else 'oracle'}"
        reference = load_prior(other) if other != run and other.exists() else None
        for space in ("pixels", "measured"):
            one = audit_prior(prior, store, held, count=options.count, spaces=[space], reference=reference)
            one.save(run / space, overwrite=True)
            print(row(name, one, options.scans - 1 if learned_from == "planted" else len(store)), flush=True)
            found.setdefault(space, {})[name] = one
    for space, audits in found.items():
        alike = {name: one for name, one in audits.items() if name.startswith(small)}  # of one training set
        if alike:
            audit_figure(alike).savefig(options.out / f"{space}.png")
    numbers = {space: {name: one.to_dict() for name, one in audits.items()} for space, audits in found.items()}
    (options.out / "audit.json").write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
