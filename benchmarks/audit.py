"""Whether an audit finds what priors have learned by heart: scans that were planted in the training set.

Images are made here: three soft blobs on 16 x 16 pixels, of which half are measured with noise. One of them stands in
a small training set many times, as the same scan. Priors learn from that set for long, from the images themselves and
from the measurements alone, and one learns from many different images for as long. Of each, printed is in how many
images the audit finds near-copies, whether they are of the planted scan, and what losses tell of who was trained on;
the prior of many images is the reference model of those of its kind, and nothing should be found in it.

Example: ``python -m benchmarks.audit --out audit-benchmark`` (about a quarter of an hour of a core)
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci import TrainConfig, audit_prior, open_store, train
from ambient_sci.audit import PriorAudit
from ambient_sci.audit.figure import audit_figure
from ambient_sci.datasets import Store, StoreWriter, simulate
from ambient_sci.prior import load_prior

SIDE = 16
REFERENCE = "many, oracle"
RUNS = {REFERENCE: "many", "planted, oracle": "planted", "planted, em": "planted", "planted, ambient": "planted"}


def blobs(count: int, seed: int) -> NDArray[np.float64]:
    """Draw images of three blobs each, ``(count, SIDE, SIDE)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, width = rng.uniform(2, SIDE - 3, (2, count, 3, 1, 1)), rng.uniform(1, 2.5, (count, 3, 1, 1))
    height = rng.uniform(0.4, 1, (count, 3, 1, 1))
    drawn = height * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    return np.asarray(drawn.sum(1) / drawn.sum(1).max((1, 2), keepdims=True))


def measured(images: NDArray[np.float64], path: Path, seed: int) -> Store:
    """Measure images, or open what was measured before."""
    if path.exists():
        return open_store(path)
    return simulate(images, path, operator="mask", keep=0.5, noise=0.03, seed=seed)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for stores, runs, numbers and figures")
    parser.add_argument("--images", type=int, default=24_000, help="length of each training")
    parser.add_argument("--scans", type=int, default=48, help="different scans of the small training set")
    parser.add_argument("--many", type=int, default=2_000, help="scans of the large one")
    parser.add_argument("--times", type=int, default=16, help="how often the last scan stands in the small one")
    parser.add_argument("--held-out", type=int, default=96, help="scans that nobody learns from")
    parser.add_argument("--count", type=int, default=128, help="images that are drawn of each prior")
    parser.add_argument("--only", nargs="+", choices=RUNS, help="which priors, if not all")
    options = parser.parse_args()

    few = measured(blobs(options.scans, 1), options.out / "few.zarr", 1)
    stores = {
        "planted": planted(few, options.out / "planted.zarr", options.times),
        "many": measured(blobs(options.many, 2), options.out / "many.zarr", 2),
    }
    held = measured(blobs(options.held_out, 3), options.out / "held-out.zarr", 3)
    found: dict[str, Any] = {}
    print("near-copies: images that are, of which of the planted scan, and other scans that are copied")
    print(
        f"{'prior':20s} {'compared':9s} {'copies':>7s} {'planted':>8s} {'others':>8s} {'AUC':>6s}  membership, by loss"
    )
    for name in options.only or RUNS:
        store, method = stores[RUNS[name]], name.split(", ")[1]
        run = options.out / name.replace(", ", "-")
        config = TrainConfig(
            store=store.path, out=run, method=method, images=options.images, batch=16, widths=(32, 32), patch=2,
            warmup=1_000, preview=0, validation_scans=0, device="cpu",
        )  # fmt: skip
        prior = train(config)
        comparable = name != REFERENCE and method != "ambient"  # whose loss is another
        reference = options.out / REFERENCE.replace(", ", "-") if comparable else None
        for space in ("pixels", "measured"):
            one = audit_prior(
                prior, store, held, count=options.count, spaces=[space],
                reference=load_prior(reference) if reference is not None and reference.exists() else None,
            )  # fmt: skip
            one.save(run / space, overwrite=True)
            print(row(name, one, options.scans - 1 if RUNS[name] == "planted" else len(store)), flush=True)
            found.setdefault(space, {})[name] = one
    for space, audits in found.items():
        alike = {name: one for name, one in audits.items() if RUNS[name] == "planted"}  # of one training set
        if alike:
            audit_figure(alike).savefig(options.out / f"{space}.png")
    numbers = {space: {name: one.to_dict() for name, one in audits.items()} for space, audits in found.items()}
    (options.out / "audit.json").write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
