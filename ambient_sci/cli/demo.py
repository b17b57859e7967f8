"""The demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from ambient_sci.cli.app import app, examples
from ambient_sci.cli.options import Device, Overwrite, Quiet, Seed


@app.command(epilog=examples("ambient-sci demo", "ambient-sci demo --quick --out /scratch/try"))
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything that comes out")] = Path("ambient-sci-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="under a minute; not a result to judge")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Learn a prior from simulated undersampled scans and reconstruct others with it: the whole path."""
    from ambient_sci.demo.run import run_demo

    result = run_demo(out, quick=quick, seed=seed, device=device, overwrite=overwrite, progress=not quiet)
    print(f"\n{result.table}\n\nreport: {result.report}")
    if quick:
        print("This was a quick run, to see that everything works. Its result is not one to judge.")
