"""Whether a prior and its error bars are to be trusted."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ambient_sci.cli.app import app, examples
from ambient_sci.cli.options import (
    AnySize,
    Device,
    Eta,
    Guidance,
    Iterations,
    Json,
    Overwrite,
    PosteriorName,
    PriorSolver,
    Quiet,
    Reconstruction,
    Run,
    Seed,
    SolverName,
    Start,
    Steps,
    Temperature,
    write_figure,
    write_text,
)
from ambient_sci.errors import ConfigError, DataError


@app.command(
    epilog=examples(
        "ambient-sci validate scans.zarr",
        "ambient-sci validate run scans.zarr",
        "ambient-sci validate run scans.zarr --out validation --start 0 --stop 32 --samples 32",
    )
)
def validate(
    path: Annotated[
        Path, typer.Argument(metavar="STORE|RUN", help="a store to check; or, before a store, folder of a training run")
    ],
    store: Annotated[Path | None, typer.Argument(metavar="[STORE]", help="scans to validate the run on")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for validation.json and validation.png")] = None,
    start: Start = None,
    stop: Annotated[int | None, typer.Option(help="scan to stop before", show_default="64 scans")] = None,
    fraction: Annotated[float, typer.Option(help="part of the measured rows that is hidden")] = 0.25,
    samples: Annotated[int, typer.Option(help="posterior samples of each scan, an even number")] = 16,
    temperature: Temperature = 1.0,
    method: PosteriorName = "auto",
    steps: Steps = 32,
    iterations: Iterations = 3,
    guidance: Guidance = 1.0,
    solver: SolverName = "multistep",
    eta: Eta = 1.0,
    any_size: AnySize = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Check a store (STORE), or a prior on a store (RUN STORE).

    With a store alone: read all of it and list what is wrong with it.

    With a run before it: hide measured rows, predict them from the rest with the prior, and say whether its error bars
    hold and which scans it cannot explain. No known image is needed; the scans should be ones that the run has not
    learned from. The options are for this alone.

    The exit status is 1 if anything is wrong.
    """
    if store is None:
        if out is not None:
            raise ConfigError("--out is for validating a run on a store: ambient-sci validate RUN STORE --out FOLDER")
        from ambient_sci.datasets.store import validate as problems_of

        problems = problems_of(path)
        print("\n".join(problems) if problems else f"{path} is as it should be")
        if problems:
            raise typer.Exit(1)
        return
    from ambient_sci.datasets import open_store
    from ambient_sci.evaluate.held_out import MOST, PriorValidation, validate_prior
    from ambient_sci.prior import load_prior

    if out is not None:
        PriorValidation.refuse_to_replace(out, overwrite)
    first = start or 0
    found = validate_prior(
        load_prior(path, device),
        open_store(store),
        scans=slice(first, first + MOST if stop is None else stop),
        fraction=fraction,
        samples=samples,
        temperature=temperature,
        method=method,  # type: ignore[arg-type]
        steps=steps,
        iterations=iterations,
        guidance=guidance,
        solver=solver,  # type: ignore[arg-type]
        eta=eta,
        seed=seed,
        any_size=any_size,
        progress=not quiet,
    )
    print(found)
    if out is not None:
        found.save(out, overwrite)
    if not found.passed:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "ambient-sci audit run scans.zarr --against held-out.zarr",
        "ambient-sci audit run scans.zarr --against held-out.zarr --count 512 --out audit",
        "ambient-sci audit run scans.zarr --against held-out.zarr --compare run-oracle --out audit",
        "ambient-sci audit run scans.zarr --space pixels --space measured --reference run-on-others",
        "ambient-sci audit run scans.zarr --against held-out.zarr --features dinov2_vits14_pretrain.pth",
    )
)
def audit(
    run: Run,
    store: Annotated[Path, typer.Argument(help="the store that it learned from")],
    against: Annotated[
        Path | None,
        typer.Option(help="store of other scans", show_default="those that training kept for validation"),
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="another run on the store, side by side")] = None,
    reference: Annotated[Path | None, typer.Option(help="a run on other scans, for membership inference")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for audit.json and its figures")] = None,
    count: Annotated[int, typer.Option(min=1, help="images that the prior draws")] = 128,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="pixels or measured; may be given twice", show_default="pixels where images are known, else measured"
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="DINO or DINOv2 weights: a .pth or .safetensors file, or a folder of transformers"),
    ] = None,
    steps: Steps = 32,
    solver: PriorSolver = "heun",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Say whether a prior copies scans that it learned from, and how well its loss tells who they are.

    Images that the prior draws are compared with all training scans, and so are held-out scans: the honest zero. Where
    images are not known, everything is compared on what was measured. Where they are, --features compares what DINO or
    DINOv2 sees in them, too; in Python any function of images can be given (ambient_sci.audit_prior).

    The exit status is 1 if there are near-copies, or images are nearer to training scans than held-out scans are.
    """
    from ambient_sci.audit import PriorAudit, audit_prior, load_dino
    from ambient_sci.audit.figure import audit_figure
    from ambient_sci.prior import load_prior

    runs = {run.name: run} if compare is None else {run.name: run, f"{compare.name} (compared)": compare}
    folders = [] if out is None else [out, out / "compared"][: len(runs)]
    for folder in folders:
        PriorAudit.refuse_to_replace(folder, overwrite)
    seen = None if features is None else load_dino(features)
    other = None if reference is None else load_prior(reference, device)
    found = {
        name: audit_prior(
            load_prior(path, device),
            store,
            against,
            count=count,
            spaces=space,
            features=seen,
            reference=other,
            steps=steps,
            solver=solver,  # type: ignore[arg-type]
            seed=seed,
            progress=not quiet,
        )
        for name, path in runs.items()
    }
    first, *second = found.values()
    print("\n\n".join(f"{name}\n{one}" if compare else str(one) for name, one in found.items()))
    for one in second:
        nearer = first.nearer_than(one)
        low, high = nearer.auc_interval
        print(f"\nimages of {run} are nearer than those of {compare} with AUC {nearer.auc:.2f} ({low:.2f}-{high:.2f})")
    for folder, one in zip(folders, found.values(), strict=False):
        one.save(folder, overwrite)
    if out is not None and second:
        write_figure(out / "compared.png", audit_figure(found))
    if not first.passed:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "ambient-sci evaluate recon.zarr --reference scans.zarr --json metrics.json --figure calibration.png"
    )
)
def evaluate(
    reconstruction: Reconstruction,
    reference: Annotated[Path, typer.Option(help="simulated store with references")],
    json_path: Json = None,
    figure: Annotated[Path | None, typer.Option(help="draw coverage, ranks and TARP of the samples, as PNG")] = None,
) -> None:
    """Score a reconstruction, and the calibration of its samples, where the images are known."""
    from ambient_sci.datasets import open_store
    from ambient_sci.evaluate.compare import evaluate as score_reconstruction
    from ambient_sci.reconstruction import open_reconstruction

    result = score_reconstruction(open_reconstruction(reconstruction), open_store(reference))
    print(result)
    if json_path is not None:
        write_text(json_path, json.dumps(result.metrics, indent=2))
    if figure is not None:
        if result.calibration is None:
            raise DataError("--figure needs at least 2 scans of at least 4 samples each, kept (no --no-samples)")
        write_figure(figure, result.calibration.plot())
