"""The demonstration: the whole path on anatomy that a package ships, with an honest table in the end.

1. A cohort of brain slices is made, and every slice measured once. The training store keeps measurements alone; the
   held-out store, of other subjects, keeps references for the scoring.
2. A prior is learned from the training store.
3. Held-out scans are reconstructed: with the prior and with classical methods, whose regularisation is chosen on
   held-out subjects that are not scored. All methods get the same measurements and coil maps.
4. Table, figures and report.

The same command again continues a demonstration that was interrupted.
"""

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import ambient_sci
from ambient_sci import report as html
from ambient_sci.baselines import cg_sense, l1_wavelet_batch, tune, zero_filled
from ambient_sci.checkpoint import replacing
from ambient_sci.config import TrainConfig
from ambient_sci.datasets.simulate import simulate
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.demo.cohort import make_cohort
from ambient_sci.errors import OutputError, output_error
from ambient_sci.evaluate import head_mask, score, table
from ambient_sci.evaluate.compare import evaluate
from ambient_sci.logs import read_log
from ambient_sci.measurement import Measurement
from ambient_sci.plot import calibration_figure, reconstruction_figure, samples_grid, training_curve
from ambient_sci.prior import Prior
from ambient_sci.reconstruction import reconstruct, scan_coords
from ambient_sci.training import train

__all__ = ["DemoResult", "DemoSize", "run_demo"]

# what a demonstration leaves, and all that it ever replaces; the mark of a finished one goes first
WRITTEN = (
    "metrics.json",
    "report.html",
    "reconstructions.png",
    "columns.zarr",
    "reconstructions.zarr",
    "run",
    "held-out.zarr",
    "scans.zarr",
)
FIRST_HELD_OUT = 1_000_000  # subjects from this number on are never trained on
WAVELETS = [(name, lam) for name in ("haar", "db4") for lam in (0.002, 0.005, 0.01, 0.02, 0.05)]
RIDGES = [0.003, 0.01, 0.03, 0.1, 0.3]


@dataclass(frozen=True)
class DemoSize:
    """How much of everything; the two sizes are below."""

    size: int = 64
    subjects: int = 80
    slices: int = 8
    acceleration: float = 4.0
    calibration: int = 6
    noise: float = 0.03
    images: int = 25_000
    widths: tuple[int, ...] = (64, 64, 64)
    tuning_subjects: int = 2
    scored_subjects: int = 4
    held_out_slices: int = 4
    samples: int = 16
    steps: int = 16
    laps: int | None = None


FULL = DemoSize()
QUICK = DemoSize(
    size=32, subjects=6, slices=4, images=640, widths=(32, 64), scored_subjects=1, samples=3, steps=8, laps=1
)


@dataclass(frozen=True)
class DemoResult:
    """What came out: a table to print, the numbers, and where the report is."""

    table: str
    metrics: dict[str, Any]
    report: Path


def run_demo(
    out: Path,
    quick: bool = False,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> DemoResult:
    """Run the demonstration; see the module.

    Parameters
    ----------
    out
        Folder for everything that comes out.
    quick
        A run of under a minute, whose result is not one to judge.
    seed
        Seed of everything random.
    device
        Where the network runs.
    overwrite
        Start afresh in a folder that an earlier demonstration finished.
    progress
        Show progress bars.
    """
    size = QUICK if quick else FULL
    _open_folder(out, {"seed": seed, "quick": quick, **asdict(size)}, overwrite)
    scans, held_out = _measure(out, size, seed, progress)

    config = TrainConfig(
        store=scans.path,
        out=out / "run",
        images=size.images,
        laps=size.laps,
        widths=size.widths,
        seed=seed,
        device=device,
    )
    prior = train(config, progress=progress)

    first_scored = size.tuning_subjects * size.held_out_slices
    scored = np.arange(first_scored, len(held_out))
    result = reconstruct(
        prior,
        held_out,
        out / "reconstructions.zarr",
        scans=scored,
        samples=size.samples,
        steps=size.steps,
        seed=seed,
        overwrite=True,
        progress=progress,
    )
    columns, chosen = _classical(held_out, first_scored, progress)
    columns["posterior mean"] = torch.from_numpy(result["mean"].to_numpy())
    std = result["std"].to_numpy()

    reference = held_out.references(scored)
    mask = head_mask(reference)
    text, metrics = table({name: score(images, reference, mask) for name, images in columns.items()})
    metrics["coverage"] = evaluate(result, held_out).metrics["coverage"]
    metrics |= {"quick": quick, "chosen": chosen, "size": asdict(size), "seed": seed}
    _write_columns(out / "columns.zarr", columns, reference, held_out, scored)
    shown = np.linspace(0, len(scored) - 1, min(3, len(scored))).round().astype(int)
    figure = reconstruction_figure(
        {name: images[shown] for name, images in columns.items()},
        reference[shown],
        std[shown],
        mask[shown],
        [f"scan {scan}" for scan in scored[shown]],
    )
    with replacing(out / "reconstructions.png") as partial:
        figure.savefig(partial, format="png", dpi=160)
    report = _report(out, size, prior, metrics, figure, text, quick)
    # last, so that a folder with metrics is a finished one
    with replacing(out / "metrics.json") as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n")
    return DemoResult(text, metrics, report)


def _open_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder, or take up what an interrupted run of the same settings left."""
    mark = out / "demo.json"
    text = json.dumps({"ambient_sci_version": ambient_sci.__version__, **settings}, indent=2) + "\n"
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; choose another folder with --out")
    if out.exists() and any(out.iterdir()):
        if not mark.exists():
            raise OutputError(f"{out} holds something that is not a demonstration; choose another folder with --out")
        if overwrite:
            for path in (out / name for name in WRITTEN):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif mark.read_text() != text:
            raise OutputError(
                f"{out} holds a demonstration with other settings; choose another --out, or pass --overwrite"
            )
        elif (out / "metrics.json").exists():
            raise OutputError(f"{out} holds a finished demonstration; choose another --out, or pass --overwrite")
    with replacing(mark) as partial:
        partial.write_text(text)


def _measure(out: Path, size: DemoSize, seed: int, progress: bool) -> tuple[Store, Store]:
    """Measure both cohorts, each slice once; what an interrupted run has measured is kept."""
    paths = out / "scans.zarr", out / "held-out.zarr"
    cohorts = (
        (size.subjects, size.slices, 0),
        (size.tuning_subjects + size.scored_subjects, size.held_out_slices, FIRST_HELD_OUT),
    )
    for path, (subjects, slices, first) in zip(paths, cohorts, strict=True):
        if path.exists():
            continue
        images, coords = make_cohort(subjects, slices, size.size, seed, first, progress=progress)
        simulate(
            images,
            path,
            acceleration=size.acceleration,
            calibration=size.calibration,
            noise=size.noise,
            references=first == FIRST_HELD_OUT,
            coords=coords,
            seed=seed + first,
            progress=progress,
        )
    return open_store(paths[0]), open_store(paths[1])


def _classical(held_out: Store, first_scored: int, progress: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Classical reconstructions of the scored scans in the instrument's units, tuned on the scans before them."""

    def wavelet(m: Measurement, value: tuple[str, float]) -> Tensor:
        return l1_wavelet_batch(m, value[1], wavelet=value[0])

    def ridge(m: Measurement, value: float) -> Tensor:
        return cg_sense(m, regularisation=value)

    tuning, scored = held_out.read(slice(0, first_scored)), held_out.read(slice(first_scored, None))
    known = held_out.references(slice(0, first_scored)) / _per_image(tuning.scale)
    with tqdm(total=3, desc="classical reconstructions", disable=not progress) as bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the best value")
        lam = tune(ridge, tuning, known, RIDGES)
        bar.update()
        kind = tune(wavelet, tuning, known, WAVELETS)
        bar.update()
        columns = {
            "zero-filled": zero_filled(scored),
            "CG-SENSE": ridge(scored, lam),
            "L1-wavelet": wavelet(scored, kind),
        }
        bar.update()
    chosen = {"CG-SENSE": {"regularisation": lam}, "L1-wavelet": {"wavelet": kind[0], "regularisation": kind[1]}}
    return {name: images * _per_image(scored.scale) for name, images in columns.items()}, chosen


def _per_image(scale: Tensor) -> Tensor:
    return scale.reshape(-1, 1, 1, 1)


def _write_columns(path: Path, columns: dict[str, Tensor], reference: Tensor, store: Store, scans: Any) -> None:
    """All reconstructions side by side, for xarray."""
    import xarray

    axes = ("scan", "method", "channel", "y", "x")
    stacked = torch.stack([*columns.values(), reference], 1).numpy()
    coords = {**scan_coords(store, scans), "method": np.array([*columns, "reference"], object)}
    dataset = xarray.Dataset({"image": (axes, stacked)}, coords, {"title": "reconstructions side by side"})
    try:
        dataset.to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    except OSError as error:
        raise output_error(path, error) from error


def _report(
    out: Path, size: DemoSize, prior: Prior, metrics: dict[str, Any], figure: Any, text: str, quick: bool
) -> Path:
    methods = metrics["methods"]
    best, learned = methods["L1-wavelet"], methods["posterior mean"]
    change = 100 * (1 - learned["nrmse"] / best["nrmse"])
    verdict = f"{abs(change):.0f}% {'below' if change > 0 else 'above'}"
    covered = metrics["coverage"]
    levels = [float(level) for level in covered]
    level = list(covered)[1]
    summary = [
        f"A diffusion prior was learned from {size.subjects * size.slices} undersampled, noisy scans (acceleration "
        f"{size.acceleration:g}, 8 coils, noise {size.noise:g} of the brightest tissue), none of which was ever seen "
        f"whole. Scans of {size.scored_subjects} other subjects were then reconstructed.",
        f"The error (NRMSE) of the posterior mean is {verdict} that of L1-wavelet compressed sensing tuned on other "
        f"scans, from the same measurements and coil maps. The {100 * float(level):.0f}% intervals of its samples hold "
        f"the known value in {100 * covered[level]:.0f}% of the pixels of the head.",
    ]
    images = prior.sample(16, 16).cpu()[:, 0]
    log = read_log(out / "run")
    figures = [
        ("Reconstructions of held-out scans, and their errors on a finer scale.", figure),
        (
            "How often intervals hold the known value, against how often they claim to.",
            calibration_figure(levels, list(covered.values())),
        ),
        ("Images drawn from the learned prior: no scan behind them.", samples_grid(images)),
        ("Loss in training, and how well rows of scans that it did not see are predicted.", training_curve(log)),
    ]
    titles = {"nrmse": "NRMSE", "psnr": "PSNR / dB", "ssim": "SSIM"}
    rows = [
        {"method": name, **{titles[key]: value for key, value in numbers.items()}} for name, numbers in methods.items()
    ]
    provenance = {
        "written": datetime.now(UTC).astimezone().isoformat(" ", "minutes"),
        "ambient-sci": ambient_sci.__version__,
        "torch": torch.__version__,
        "prior": prior.fingerprint(),
        **prior.trained_on,
    }
    return html.write_report(
        out / "report.html",
        "From undersampled scans to reconstructions with error bars",
        {
            "Results": html.table("Results", rows, {"NRMSE": "min", "PSNR / dB": "max", "SSIM": "max"}),
            "Figures": "".join(html.figure(*one) for one in figures),
            "Settings": html.pairs_table("Settings", {**asdict(size), "chosen": metrics["chosen"]}),
            "Provenance": html.pairs_table("Provenance", provenance),
        },
        summary,
        warnings=["This was a quick run, to see that everything works. Its result is not one to judge."]
        if quick
        else [],
    )
