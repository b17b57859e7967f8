r"""What differential privacy costs: ``python -m benchmarks.privacy``.

Images of three soft blobs on 16 x 16 pixels (`benchmarks.audit`), of which half are measured with noise, once. Priors
learn from many scans and from few, without a guarantee and with an epsilon of each scan; all with the same network,
for as many images. Of each:

- NRMSE of the mean of posterior samples of other scans, beside total variation, whose regularisation predicts held-out
  rows best and which needs no prior,
- how well the loss tells the scans of the training from others (area under the curve, 1/2 is nothing),
- processor time.

Options of the private trainings were chosen on other images of this kind, which spends nothing. One clips and takes
scans as the private ones do, but adds next to no noise: what clipping and large batches cost by themselves.

Example: ``python -m benchmarks.privacy --work privacy-work`` (about ten minutes of a core)
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ambient_sci import TrainConfig, train
from ambient_sci.audit.membership import infer_membership
from ambient_sci.baselines import total_variation_batch
from ambient_sci.checkpoint import replacing
from ambient_sci.datasets import Store
from ambient_sci.evaluate.metrics import nrmse
from ambient_sci.methods.starts import regularisation
from ambient_sci.posterior.ambient import restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from benchmarks.audit import blobs, measured
from benchmarks.readme import write_section

__all__ = ["CASES", "learn", "score", "table"]

ROOT = Path(__file__).parent
SAMPLES = 8
MANY, FEW = 4_000, 64
# set of scans, method, and epsilon: none is an ordinary training
CASES: tuple[tuple[str, str, float | None], ...] = (
    ("many", "oracle", None),
    ("many", "oracle", 8.0),
    ("few", "oracle", None),
    ("few", "oracle", 8.0),
    ("many", "oracle", 1.0),
    ("many", "ambient", None),
    ("many", "ambient", 8.0),
    ("many", "oracle", 50.0),
    ("many", "oracle", math.inf),
)
PRIVATE: dict[str, Any] = {"batch": 128, "learning_rate": 3e-3, "privacy_clip": 1.0}


def learn(store: Store, run: Path, method: str, epsilon: float | None, images: int, seed: int) -> Prior:
    """Learn a prior, with a guarantee if there is an epsilon."""
    options: dict[str, Any] = {"batch": 16, "optimizer": "adamw"}  # that of private trainings
    if epsilon is not None:
        least = {"privacy_noise": 0.01} if math.isinf(epsilon) else {"privacy_epsilon": epsilon}
        options |= PRIVATE | least | {"batch": min(PRIVATE["batch"], len(store) // 2)}
    config = TrainConfig(
        store=store.path, out=run, method=method, images=images, widths=(32,), patch=2, warmup=1_000, sigma_data=0.3,
        preview=0, validation_scans=0, checkpoint=images, device="cpu", precision="fp32", seed=seed, **options,
    )  # fmt: skip
    return train(config, progress=False)


def score(prior: Prior, store: Store, test: Store, count: int) -> dict[str, float]:
    """Reconstruct scans that no prior learned from, and attack the prior by its loss."""
    m, images = test.read(slice(0, count)), test.references(slice(0, count)).numpy()
    mean = restore(prior.denoiser, m) if prior.config.restores else draw_posterior(prior, m, SAMPLES, seed=1).mean(1)  # type: ignore[arg-type]
    errors = nrmse(mean.numpy(), images)
    some = min(len(store), len(test))
    members, others = (((one.read(slice(0, some)), one.references(slice(0, some))),) for one in (store, test))
    attack = infer_membership(prior, members, others).threshold
    return {
        "nrmse": float(errors.mean()),
        "nrmse_error": float(errors.std() / len(errors) ** 0.5),
        "auc": attack.auc,
        "auc_low": attack.auc_interval[0],
        "auc_high": attack.auc_interval[1],
    }


def classical(test: Store, tuning: Store, count: int) -> float:
    """NRMSE of total variation."""
    lam = regularisation(total_variation_batch, tuning.read(slice(0, 16)))
    found = total_variation_batch(test.read(slice(0, count)), lam)
    return float(nrmse(found.numpy(), test.references(slice(0, count)).numpy()).mean())


def table(results: dict[str, Any]) -> str:
    """Make Markdown of the results."""
    lines = [
        "| scans | method | epsilon | noise | NRMSE | membership, AUC | processor time / s |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]

    def place(row: dict[str, Any]) -> tuple[int, bool, float]:
        spent = row["privacy"]
        return -row["scans"], row["method"] != "oracle", -math.inf if spent is None else -spent["epsilon"]

    for row in sorted(results["rows"], key=place):
        spent = row["privacy"]
        cells = (
            f"{row['scans']:,}",
            f"`{row['method']}`",
            "none" if spent is None else f"{spent['epsilon']:.3g}",
            "" if spent is None else f"{spent['noise']:g}",
            f"{row['nrmse']:.3f} ± {row['nrmse_error']:.3f}",
            f"{row['auc']:.2f} ({row['auc_low']:.2f}-{row['auc_high']:.2f})",
            f"{row['seconds']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    deltas = sorted({row["privacy"]["delta"] for row in results["rows"] if row["privacy"] is not None}, reverse=True)
    lines += [
        "",
        f"Total variation, without any prior: {results['classical']:.3f}. {results['images']:,} images each; NRMSE of "
        f"{results['test']} scans, mean ± its standard error; delta {' and '.join(f'{one:g}' for one in deltas)}; "
        f"torch {results['torch']}.",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Learn and score, and make the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.privacy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("privacy-work"), help="folder for stores and runs")
    parser.add_argument("--images", type=int, default=12_000, help="length of each training")
    parser.add_argument("--many", type=int, default=MANY, help="scans of the large training set")
    parser.add_argument("--few", type=int, default=FEW, help="scans of the small one")
    parser.add_argument("--test", type=int, default=64, help="scans that are reconstructed")
    parser.add_argument("--seed", type=int, default=0, help="of images, measurements and ordinary trainings")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "privacy.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--again", action="store_true", help="measure again what the results have already")
    parser.add_argument("--table", action="store_true", help="make the table of what was measured, and nothing else")
    options = parser.parse_args(argv)
    if not options.table:
        work, seed = options.work, 100 + 10 * options.seed
        counts = {"many": options.many, "few": options.few}
        stores = {
            name: measured(blobs(count, seed + k), work / f"{name}.zarr", seed + k)
            for k, (name, count) in enumerate(counts.items(), 1)
        }
        test = measured(blobs(max(options.test, 256), seed + 3), work / "test.zarr", seed + 3)
        found: dict[str, Any] = {"rows": []}
        if options.results.exists() and not options.again:
            found = json.loads(options.results.read_text())
        found |= {"images": options.images, "test": options.test, "torch": torch.__version__.partition("+")[0]}
        found["classical"] = classical(test, stores["many"], options.test)
        done = {row["case"] for row in found["rows"]}
        for name, method, epsilon in tqdm(CASES, desc="priors"):
            case = f"{name}-{method}-{epsilon}"
            if case in done:
                continue
            began = time.process_time()
            prior = learn(stores[name], work / case, method, epsilon, options.images, options.seed)
            row = {"case": case, "scans": counts[name], "method": method, "privacy": prior.trained_on.get("privacy")}
            row["seconds"] = round(time.process_time() - began, 1)
            found["rows"].append(row | score(prior, stores[name], test, options.test))
            with replacing(options.results) as partial:  # prior by prior, for a run that is interrupted
                partial.write_text(json.dumps(found, indent=1) + "\n")
    write_section(options.readme, "privacy", table(json.loads(options.results.read_text())))


if __name__ == "__main__":
    main()
