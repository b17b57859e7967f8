"""Options and arguments that several commands have, and what several commands do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ambient_sci.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AnySize",
    "Device",
    "Eta",
    "Guidance",
    "Iterations",
    "Json",
    "NewStore",
    "Overwrite",
    "PosteriorName",
    "PriorSolver",
    "Quiet",
    "Reconstruction",
    "Run",
    "Seed",
    "SolverName",
    "Start",
    "Steps",
    "Stop",
    "Store",
    "Temperature",
    "refuse_to_replace",
    "write_figure",
    "write_text",
]

Store = Annotated[Path, typer.Argument(help="a store")]
NewStore = Annotated[Path, typer.Argument(help="store to write: a folder, or a file ending in .h5")]
Run = Annotated[Path, typer.Argument(help="folder of a training run")]
Reconstruction = Annotated[Path, typer.Argument(help="what `reconstruct` wrote")]

Start = Annotated[int | None, typer.Option(help="first scan")]
Stop = Annotated[int | None, typer.Option(help="scan to stop before")]
Json = Annotated[Path | None, typer.Option("--json", help="write the numbers here too")]
Seed = Annotated[int, typer.Option(min=0, help="seed of everything random")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is already there")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]

# of the samplers
Steps = Annotated[int, typer.Option(min=1, help="sampler steps")]
PriorSolver = Annotated[str, typer.Option(help="heun, multistep or euler")]
SolverName = Annotated[str, typer.Option(help="multistep, euler or heun")]
PosteriorName = Annotated[
    str, typer.Option(help="mmps, dps, diffpir, dds, tds; adps for ambient priors; auto: what fits")
]
Iterations = Annotated[int, typer.Option(min=1, help="conjugate gradient iterations a step")]
Guidance = Annotated[float, typer.Option(help="pull towards the data (dps, adps)")]
Eta = Annotated[float, typer.Option(help="share of noise renewed each step, 0 to 1; 0 with heun")]
AnySize = Annotated[bool, typer.Option("--any-size", help="let the image size differ from the training's")]
Temperature = Annotated[float, typer.Option(help="factor of the samples' spread; `validate RUN STORE` finds the best")]


def refuse_to_replace(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` if there is something at a path that is not to be replaced."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists; choose another path or pass --overwrite")


def write_text(path: Path, text: str) -> None:
    """Write a text and an end of line."""
    from ambient_sci.checkpoint import replacing

    with replacing(path) as partial:
        partial.write_text(text + "\n")


def write_figure(path: Path, figure: "Figure", **options: Any) -> None:
    """Write a figure as PNG, whatever the path ends in."""
    from ambient_sci.checkpoint import replacing

    with replacing(path) as partial:
        figure.savefig(partial, format="png", **options)
