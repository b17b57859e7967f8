"""Learning a prior, and drawing from it; options of a training are the fields of its configuration."""

import inspect
import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from ambient_sci.cli.app import app, examples
from ambient_sci.cli.options import Device, Overwrite, PriorSolver, Quiet, Run, Seed, Steps, Store, write_figure
from ambient_sci.config import Method, TrainConfig
from ambient_sci.errors import ConfigError, NotFoundError, OutputError

OFF = ("patience", "pretrained", "privacy_epsilon", "privacy_noise")  # what is not done unless it is asked for


def _train(store: Path, out: Path, config: Path | None, no_check: bool, quiet: bool, **options: Any) -> None:
    from ambient_sci.distributed import main as main_process
    from ambient_sci.training import train as run_training

    given = {name: value for name, value in options.items() if value is not None and value != []}
    wanted = TrainConfig(**{**_read_config(config), **given, "store": store, "out": out})
    if main_process() and not (no_check or wanted.method == "oracle" or out.exists()):
        _warn_of(store)
    prior = run_training(wanted, progress=not quiet)
    if main_process():
        spent = prior.trained_on.get("privacy")
        told = f"; epsilon {spent['epsilon']:g} at delta {spent['delta']:g} for each scan" if spent else ""
        print(f"wrote {out}: {prior.images} images seen{told}")


def _warn_of(store: Path) -> None:
    """Say so before a training from measurements that cannot be learned from."""
    from ambient_sci.check import reason_to_refuse

    if reason := reason_to_refuse(store):
        print(f"warning: {reason}; `ambient-sci check {store}` explains", file=sys.stderr)


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not path.exists():
        raise NotFoundError(f"no configuration at {path}")
    try:
        options = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable file of JSON: {error}") from None
    if not isinstance(options, dict):
        raise ConfigError(f"{path} must hold an object of options, got {type(options).__name__}")
    return options


def _train_signature(*arguments: inspect.Parameter) -> inspect.Signature:
    """One option for each field of `TrainConfig`, so that help, names and checks have one source.

    Fields that ``arguments`` name come first, as they are.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    path_out = Annotated[Path, typer.Option(help=str(TrainConfig.model_fields["out"].description))]
    parameters = [
        *arguments,
        inspect.Parameter("store", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Store),
        inspect.Parameter("out", keyword, annotation=path_out),
        inspect.Parameter(
            "config",
            keyword,
            default=None,
            annotation=Annotated[Path | None, typer.Option(help="JSON file of options")],
        ),
    ]
    for name, field in TrainConfig.model_fields.items():
        if name in ("store", "out", *(argument.name for argument in arguments)):
            continue
        accepted = (field.annotation, *get_args(field.annotation))
        several = [float if float in get_args(kind) else int for kind in accepted if get_origin(kind) is tuple]
        kind: Any = next((known for known in (bool, int, float, str) if known in accepted), str)
        if name == "method":
            kind = StrEnum("Method", [str(value) for value in get_args(Method)])  # type: ignore[misc,no-redef]
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        if shown is None:  # what is not given is found out, but for these
            shown = "none" if name in OFF or Path in accepted else "automatic"
        option = typer.Option(help=field.description, show_default=str(shown))
        annotation: Any = list[several[0]] if several else kind | None  # type: ignore[valid-type]
        default: Any = [] if several else None
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=Annotated[annotation, option]))
    no_check = typer.Option("--no-check", help="do not look first whether the store can be learned from")
    parameters.append(inspect.Parameter("no_check", keyword, default=False, annotation=Annotated[bool, no_check]))
    parameters.append(inspect.Parameter("quiet", keyword, default=False, annotation=Quiet))
    return inspect.Signature(parameters)


def _declare(command: Any, signature: inspect.Signature) -> Any:
    """Give a command the options of a signature."""
    command.__signature__ = signature
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return command


app.command(
    "train",
    help="Learn a prior from a store. The same command again resumes a run that was stopped.",
    epilog=examples(
        "ambient-sci train scans.zarr --out run",
        "ambient-sci train scans.zarr --out run-ambient --method ambient --images 50000",
        "ambient-sci train scans.zarr --out run --config options.json --seed 3",
    ),
)(_declare(_train, _train_signature()))


def _finetune(pretrained: str, store: Path, **options: Any) -> None:
    _train(store, pretrained=pretrained, **options)


_model = typer.Argument(metavar="MODEL", help=str(TrainConfig.model_fields["pretrained"].description))
app.command(
    "finetune",
    help="Learn a prior from a store, beginning with a pretrained diffusion model: `train` with --pretrained MODEL. "
    "Memory and time are said first. The run is then loaded without the model's folder.",
    epilog=examples(
        "ambient-sci finetune ddpm-church scans.zarr --out run --images 5000",
        "ambient-sci finetune if-stage-1 scans.zarr --out run --prompt empty.safetensors --adapt lora --images 2000",
        "ambient-sci finetune google/ddpm-celebahq-256 scans.zarr --out run --download --adapt last",
        "ambient-sci finetune ddpm photos.zarr --out run --pretrained-range 0 --pretrained-range 255",
    ),
)(
    _declare(
        _finetune,
        _train_signature(
            inspect.Parameter("pretrained", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[str, _model])
        ),
    )
)


@app.command(epilog=examples("ambient-sci sample run --count 16 --out samples"))
def sample(
    run: Run,
    out: Annotated[Path, typer.Option(help="folder for samples.npy and samples.png")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, help="number of images")] = 16,
    steps: Steps = 32,
    solver: PriorSolver = "heun",
    store: Annotated[
        Path | None, typer.Option(help="store whose masks an ambient prior samples through; the training's")
    ] = None,
    masks: Annotated[
        int, typer.Option(min=1, help="masks that an ambient prior samples through; more than one are made to agree")
    ] = 1,
    guidance: Annotated[float, typer.Option(min=0, help="weight of their agreement")] = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw images from a learned prior."""
    import numpy as np

    from ambient_sci.checkpoint import replacing
    from ambient_sci.plot import samples_grid
    from ambient_sci.prior import load_prior

    paths = out / "samples.npy", out / "samples.png"
    if not overwrite and any(path.exists() for path in paths):
        raise OutputError(f"{out} already holds samples; choose another folder or pass --overwrite")
    prior = load_prior(run, device)
    operator = None
    if prior.config.restores:
        from ambient_sci.datasets import open_store

        scans = open_store(store or prior.config.store)
        alike = scans.groups[0].scans
        operator = scans.read(alike[np.arange(masks * count) % len(alike)]).operator.to(prior.device)
    label = None if quiet else "sampling"
    images = prior.sample(count, steps, solver, seed, operator, label, masks, guidance).cpu()  # type: ignore[arg-type]
    array = io.BytesIO()  # NumPy does not say so when a disk is full
    np.save(array, images.numpy())
    with replacing(paths[0]) as partial:
        partial.write_bytes(array.getbuffer())
    write_figure(paths[1], samples_grid(images[:, 0]), dpi=150)
    print(f"wrote {paths[0]} and {paths[1]}")
