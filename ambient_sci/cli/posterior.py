"""Posterior samples of scans."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ambient_sci.cli.app import app, examples
from ambient_sci.cli.options import (
    AnySize,
    Device,
    Eta,
    Guidance,
    Iterations,
    Overwrite,
    PosteriorName,
    Quiet,
    Run,
    Seed,
    SolverName,
    Start,
    Steps,
    Stop,
    Temperature,
)


@app.command(
    epilog=examples(
        "ambient-sci reconstruct run scans.zarr --out recon.zarr",
        "ambient-sci reconstruct run scans.zarr --out recon.zarr --samples 32 --steps 64 --start 0 --stop 10",
        "ambient-sci reconstruct run scans.zarr --out recon.zarr --no-samples --quantile 0.25 --quantile 0.75",
        "ambient-sci reconstruct /data/run /data/scans.zarr --out recon.zarr --scheduler tcp://node1:8786",
    )
)
def reconstruct(
    run: Run,
    store: Annotated[Path, typer.Argument(help="store of scans to reconstruct")],
    out: Annotated[Path, typer.Option(help="Zarr folder to write, which xarray opens")],
    start: Start = None,
    stop: Stop = None,
    samples: Annotated[int, typer.Option(help="posterior samples of each scan")] = 8,
    method: PosteriorName = "auto",
    steps: Steps = 32,
    iterations: Iterations = 3,
    guidance: Guidance = 1.0,
    solver: SolverName = "multistep",
    eta: Eta = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="images in the network at once")] = 64,
    any_size: AnySize = False,
    no_samples: Annotated[bool, typer.Option("--no-samples", help="keep what is said of the samples only")] = False,
    quantile: Annotated[
        list[float] | None,
        typer.Option(help="probability of a quantile to keep; may be given several times", show_default="none"),
    ] = None,
    temperature: Temperature = 1.0,
    scheduler: Annotated[
        str | None,
        typer.Option(help="address of a Dask scheduler whose workers draw", show_default="this process"),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw posterior samples of scans. The same command again goes on with what was interrupted.

    Beside the samples: mean, standard deviation, credible intervals, and how well the samples fit the data.
    """
    import warnings

    from ambient_sci.reconstruction import datasets_of
    from ambient_sci.reconstruction import reconstruct as run_reconstruction

    with warnings.catch_warnings():
        warnings.showwarning = _warning  # type: ignore[assignment]
        result = run_reconstruction(  # type: ignore[call-overload]
            run,
            store,
            out,
            scans=slice(start, stop),
            samples=samples,
            method=method,
            steps=steps,
            iterations=iterations,
            guidance=guidance,
            solver=solver,
            eta=eta,
            batch=batch,
            seed=seed,
            any_size=any_size,
            keep_samples=not no_samples,
            quantiles=quantile or (),
            temperature=temperature,
            scheduler=scheduler,
            device=device,
            overwrite=overwrite,
            progress=not quiet,
        )
    scans = sum(dataset.sizes["scan"] for dataset in datasets_of(result))
    print(f"wrote {out}: {scans} scans, {samples} samples each")


def _warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Show a warning as a line, while something is under way."""
    print(f"warning: {message}", file=sys.stderr)
