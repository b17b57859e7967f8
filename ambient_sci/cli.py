"""The command line: each command is one call of the Python interface with its options spelled out.

A mistake in the input is one line on standard error and exit status 2; anything else that goes wrong is a bug and shows
its traceback.
"""

import inspect
import io
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer

from ambient_sci import __version__
from ambient_sci.cli_import import ImportGroup
from ambient_sci.config import Method, TrainConfig
from ambient_sci.errors import AmbientError, ConfigError, DataError, NotFoundError, OutputError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Learn diffusion priors from corrupted measurements, and reconstruct with error bars.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
imports = typer.Typer(cls=ImportGroup, help="Bring measured data into a store.", rich_markup_mode=None)
app.add_typer(imports, name="import")
_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which typer carries inside

Seed = Annotated[int, typer.Option(min=0, help="seed of everything random")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is already there")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]

# of the sampler of posteriors
PosteriorName = Annotated[
    str, typer.Option(help="mmps, dps, diffpir, dds, tds; adps for ambient priors; auto: what fits")
]
Steps = Annotated[int, typer.Option(min=1, help="sampler steps")]
Iterations = Annotated[int, typer.Option(min=1, help="conjugate gradient iterations a step")]
Guidance = Annotated[float, typer.Option(help="pull towards the data (dps, adps)")]
SolverName = Annotated[str, typer.Option(help="multistep, euler or heun")]
Eta = Annotated[float, typer.Option(help="share of noise renewed each step, 0 to 1; 0 with heun")]
AnySize = Annotated[bool, typer.Option("--any-size", help="let the image size differ from the training's")]
Temperature = Annotated[float, typer.Option(help="factor of the samples' spread; `validate RUN STORE` finds the best")]


def main() -> None:
    """Entry point of the ``ambient-sci`` command."""
    # the network is thousands of short parallel regions a second: threads that fall asleep after each have to be woken
    # as often, threads that spin for long take the core from other processes; set before torch loads
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    status: Any
    try:
        status = app(prog_name="ambient-sci", standalone_mode=False)
    except AmbientError as error:
        status = _refuse(str(error))
    except _UsageError as error:
        status = _refuse(f"{error.format_message()} (see `{error.ctx.command_path} --help`)")
    except SystemExit as end:
        status = end.code
    if status in (130, 143):
        print("interrupted; the same command resumes a training, an import or a reconstruction", file=sys.stderr)
    sys.exit(status)


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Show a warning as a line, while something is under way."""
    print(f"warning: {message}", file=sys.stderr)


def examples(*lines: str) -> str:
    """Epilogue of a help text; the marks keep the lines apart."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    """Learn diffusion priors from corrupted measurements, and reconstruct with error bars."""
    if version:
        print(__version__)
        raise typer.Exit
    _help_without_command(context)


@imports.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    """Bring measured data into a store."""
    if context.invoked_subcommand is None:
        print(context.get_help())


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


@app.command(
    epilog=examples(
        "ambient-sci simulate brains.npy scans.zarr --acceleration 4 --noise 0.03",
        "ambient-sci simulate brains.npy radial.zarr --operator nufft --pattern golden-angle",
        "ambient-sci simulate photos/ pixels.zarr --operator mask --keep 0.3 --size 64",
        "ambient-sci simulate head.nii.gz scans.h5 --axis 2 --size 128 --no-references",
    )
)
def simulate(
    images: Annotated[Path, typer.Argument(help="npy, npz, PNG file or folder, NIfTI")],
    store: Annotated[Path, typer.Argument(help="store to write: a folder, or a file ending in .h5")],
    operator: Annotated[str, typer.Option(help="sense, fourier, nufft, mask, gaussian, identity")] = "sense",
    pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="sampling pattern; random-lines, or golden-angle for nufft, random-pixels for mask"),
    ] = None,
    acceleration: Annotated[float, typer.Option(help="samples over measured samples (k-space, gaussian)")] = 4.0,
    calibration: Annotated[int, typer.Option(help="width of the fully measured centre of k-space")] = 6,
    coils: Annotated[int, typer.Option(help="receive coils (sense, nufft)")] = 8,
    noise: Annotated[float, typer.Option(help="noise per real component, relative to images of unit range")] = 0.03,
    keep: Annotated[float, typer.Option(help="fraction of pixels kept (mask)")] = 0.5,
    structured: Annotated[bool, typer.Option(help="projections without a matrix, for large images (gaussian)")] = False,
    size: Annotated[Optional[int], typer.Option(help="bring images to this many pixels a side")] = None,  # noqa: UP045
    axis: Annotated[int, typer.Option(help="axis of a volume to slice along: 0 sagittal, 1 coronal, 2 axial")] = 2,
    start: Annotated[Optional[int], typer.Option(help="first image to take")] = None,  # noqa: UP045
    stop: Annotated[Optional[int], typer.Option(help="image to stop before")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Option(help="which array of an npz")] = None,  # noqa: UP045
    references: Annotated[bool, typer.Option(help="keep the images too, to compare with later")] = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure images once, to disk: one store of undersampled, noisy scans."""
    from ambient_sci.datasets import read_images
    from ambient_sci.datasets import simulate as simulate_store

    values, coords = read_images(images, name=name, axis=axis, slices=slice(start, stop), size=size)
    made = simulate_store(
        values,
        store,
        operator=operator,
        pattern=pattern,
        acceleration=acceleration,
        calibration=calibration,
        coils=coils,
        noise=noise,
        keep=keep,
        structured=structured,
        references=references,
        coords=coords,
        seed=seed,
        overwrite=overwrite,
        progress=not quiet,
        provenance={"images": str(images)},
    )
    print(f"wrote {made.path}: {len(made)} scans")


@app.command(epilog=examples("ambient-sci info scans.zarr"))
def info(store: Annotated[Path, typer.Argument(help="a store")]) -> None:
    """Say what is in a store."""
    from ambient_sci.datasets import describe, open_store

    print(describe(open_store(store)))


@app.command(
    epilog=examples("ambient-sci convert scans.zarr scans.h5", "ambient-sci convert scans.h5 /scratch/scans.zarr")
)
def convert(
    store: Annotated[Path, typer.Argument(help="a store")],
    out: Annotated[Path, typer.Argument(help="store to write: a folder, or a file ending in .h5")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a store as HDF5 or as Zarr, bit by bit the same."""
    from ambient_sci.datasets.convert import convert as convert_store

    made = convert_store(store, out, overwrite, progress=not quiet)
    print(f"wrote {made.path}: {len(made)} scans, fingerprint {made.fingerprint}")


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
    store: Annotated[
        Optional[Path], typer.Argument(metavar="[STORE]", help="scans to validate the run on")  # noqa: UP045
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="folder for validation.json and validation.png")] = None,  # noqa: UP045
    start: Annotated[Optional[int], typer.Option(help="first scan")] = None,  # noqa: UP045
    stop: Annotated[
        Optional[int], typer.Option(help="scan to stop before", show_default="64 scans")  # noqa: UP045
    ] = None,
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
        "ambient-sci check scans.zarr",
        "ambient-sci check scans.zarr --against test.zarr --figure check.png --json check.json",
    )
)
def check(
    store: Annotated[Path, typer.Argument(help="a store to learn from")],
    against: Annotated[
        Optional[Path], typer.Option(help="store to test on: look for what it shares with the first")  # noqa: UP045
    ] = None,
    thinning: Annotated[float, typer.Option(help="fraction of rows that training hides")] = 0.3,
    scans: Annotated[int, typer.Option(min=2, help="look at so many scans of each size, at most")] = 2048,
    figure: Annotated[Optional[Path], typer.Option(help="draw it, as PNG")] = None,  # noqa: UP045
    json_path: Annotated[Optional[Path], typer.Option("--json", help="write the numbers here too")] = None,  # noqa: UP045
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Say, before any training, whether a prior can be learned from a store. Exit status 1 if it cannot."""
    from ambient_sci.check import check as check_store
    from ambient_sci.checkpoint import replacing

    report = check_store(store, against, thinning=thinning, scans=scans, seed=seed, progress=not quiet)
    print(report)
    if json_path is not None:
        with replacing(json_path) as partial:
            partial.write_text(report.to_json() + "\n")
    if figure is not None:
        with replacing(figure) as partial:
            report.plot().savefig(partial, format="png")
    if report.verdict == "refused":
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "ambient-sci audit run scans.zarr --against held-out.zarr",
        "ambient-sci audit run scans.zarr --against held-out.zarr --count 512 --out audit",
        "ambient-sci audit run scans.zarr --against held-out.zarr --compare run-oracle --out audit",
        "ambient-sci audit run scans.zarr --space pixels --space measured --reference run-on-others",
    )
)
def audit(
    run: Annotated[Path, typer.Argument(help="folder of a training run")],
    store: Annotated[Path, typer.Argument(help="the store that it learned from")],
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="store of other scans", show_default="those that training kept for validation"),
    ] = None,
    compare: Annotated[Optional[Path], typer.Option(help="another run on the store, side by side")] = None,  # noqa: UP045
    reference: Annotated[
        Optional[Path], typer.Option(help="a run on other scans, for membership inference")  # noqa: UP045
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(help="folder for audit.json and its figures")  # noqa: UP045
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="images that the prior draws")] = 128,
    space: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="pixels or measured; may be given twice", show_default="pixels where images are known, else measured"
        ),
    ] = None,
    steps: Steps = 32,
    solver: Annotated[str, typer.Option(help="heun, multistep or euler")] = "heun",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Say whether a prior copies scans that it learned from, and how well its loss tells who they are.

    Images that the prior draws are compared with all training scans, and so are held-out scans: the honest zero. Where
    images are not known, everything is compared on what was measured. Features of a network can be compared in Python
    (ambient_sci.audit_prior).

    The exit status is 1 if there are near-copies, or images are nearer to training scans than held-out scans are.
    """
    from ambient_sci.audit import PriorAudit, audit_prior
    from ambient_sci.audit.figure import audit_figure
    from ambient_sci.checkpoint import replacing
    from ambient_sci.prior import load_prior

    runs = {run.name: run} if compare is None else {run.name: run, f"{compare.name} (compared)": compare}
    folders = [] if out is None else [out, out / "compared"][: len(runs)]
    for folder in folders:
        PriorAudit.refuse_to_replace(folder, overwrite)
    other = None if reference is None else load_prior(reference, device)
    found = {
        name: audit_prior(
            load_prior(path, device),
            store,
            against,
            count=count,
            spaces=space,
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
        with replacing(out / "compared.png") as partial:
            audit_figure(found).savefig(partial, format="png")
    if not first.passed:
        raise typer.Exit(1)


def _train(store: Path, out: Path, config: Path | None, no_check: bool, quiet: bool, **options: Any) -> None:
    from ambient_sci.distributed import main as main_process
    from ambient_sci.training import train as run_training

    given = {name: value for name, value in options.items() if value is not None and value != []}
    wanted = TrainConfig(**{**_read_config(config), **given, "store": store, "out": out})
    if main_process() and not (no_check or wanted.method == "oracle" or out.exists()):
        _warn_of(store)
    prior = run_training(wanted, progress=not quiet)
    if main_process():
        print(f"wrote {out}: {prior.images} images seen")


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
        inspect.Parameter(
            "store", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[Path, typer.Argument(help="a store")]
        ),
        inspect.Parameter("out", keyword, annotation=path_out),
        inspect.Parameter(
            "config",
            keyword,
            default=None,
            annotation=Annotated[Optional[Path], typer.Option(help="JSON file of options")],  # noqa: UP045
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
            shown = "none" if name in ("patience", "pretrained") or Path in accepted else "automatic"
        option = typer.Option(help=field.description, show_default=str(shown))
        annotation: Any = list[several[0]] if several else Optional[kind]  # type: ignore[valid-type]  # noqa: UP045
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
    run: Annotated[Path, typer.Argument(help="folder of a training run")],
    out: Annotated[Path, typer.Option(help="folder for samples.npy and samples.png")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, help="number of images")] = 16,
    steps: Steps = 32,
    solver: Annotated[str, typer.Option(help="heun, multistep or euler")] = "heun",
    store: Annotated[
        Optional[Path], typer.Option(help="store whose masks an ambient prior samples through; the training's")  # noqa: UP045
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
    with replacing(paths[1]) as partial:
        samples_grid(images[:, 0]).savefig(partial, format="png", dpi=150)
    print(f"wrote {paths[0]} and {paths[1]}")


@app.command(
    epilog=examples(
        "ambient-sci reconstruct run scans.zarr --out recon.zarr",
        "ambient-sci reconstruct run scans.zarr --out recon.zarr --samples 32 --steps 64 --start 0 --stop 10",
        "ambient-sci reconstruct run scans.zarr --out recon.zarr --no-samples --quantile 0.25 --quantile 0.75",
        "ambient-sci reconstruct /data/run /data/scans.zarr --out recon.zarr --scheduler tcp://node1:8786",
    )
)
def reconstruct(
    run: Annotated[Path, typer.Argument(help="folder of a training run")],
    store: Annotated[Path, typer.Argument(help="store of scans to reconstruct")],
    out: Annotated[Path, typer.Option(help="Zarr folder to write, which xarray opens")],
    start: Annotated[Optional[int], typer.Option(help="first scan")] = None,  # noqa: UP045
    stop: Annotated[Optional[int], typer.Option(help="scan to stop before")] = None,  # noqa: UP045
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
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="probability of a quantile to keep; may be given several times", show_default="none"),
    ] = None,
    temperature: Temperature = 1.0,
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
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


@app.command(epilog=examples("ambient-sci figure recon.zarr scans.zarr --out figure.png"))
def figure(
    reconstruction: Annotated[Path, typer.Argument(help="what `reconstruct` wrote")],
    store: Annotated[Path, typer.Argument(help="the store that was reconstructed")],
    out: Annotated[Path, typer.Option(help="PNG file to write")] = Path("figure.png"),
    count: Annotated[int, typer.Option(min=1, help="number of scans to show")] = 3,
    overwrite: Overwrite = False,
) -> None:
    """Draw a reconstruction beside zero-filled and L1-wavelet ones, with its standard deviation."""
    from ambient_sci.checkpoint import replacing
    from ambient_sci.datasets import open_store
    from ambient_sci.evaluate.compare import comparison_figure
    from ambient_sci.reconstruction import open_reconstruction

    if out.exists() and not overwrite:
        raise OutputError(f"{out} already exists; choose another path or pass --overwrite")
    drawn = comparison_figure(open_reconstruction(reconstruction), open_store(store), count)
    with replacing(out) as partial:
        drawn.savefig(partial, format="png", dpi=160)
    print(f"wrote {out}")


@app.command(
    epilog=examples(
        "ambient-sci view recon.zarr --out view.html",
        "ambient-sci view recon.zarr --out view.html --reference scans.zarr --count 12",
        "ambient-sci view volumes.zarr --out volume.html --count 1 --samples 2 --limit 400",
    )
)
def view(
    reconstruction: Annotated[Path, typer.Argument(help="what `reconstruct` wrote")],
    out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("view.html"),
    reference: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="simulated store with references: show these, errors and z-scores", show_default="none"),
    ] = None,
    count: Annotated[int, typer.Option(help="scans to show, chosen evenly; fewer if these exceed the limit")] = 6,
    samples: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="samples of each scan to show", show_default="all"),
    ] = None,
    limit: Annotated[float, typer.Option(help="size of the images in the file, in megabytes, at most")] = 50.0,
    title: Annotated[str, typer.Option(help="heading of the page")] = "Reconstruction",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a reconstruction as one HTML file to look through: samples, mean, spread and errors.

    It opens in a browser from the disk and needs no network. `?` there shows the keys.
    """
    from ambient_sci.datasets import open_store
    from ambient_sci.reconstruction import open_reconstruction
    from ambient_sci.viewer import write_viewer

    if out.exists() and not overwrite:
        raise OutputError(f"{out} already exists; choose another path or pass --overwrite")
    store = None if reference is None else open_store(reference)
    opened = open_reconstruction(reconstruction)
    write_viewer(out, opened, store, count=count, samples=samples, limit=limit, title=title, progress=not quiet)
    print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command(
    epilog=examples(
        "ambient-sci evaluate recon.zarr --reference scans.zarr --json metrics.json --figure calibration.png"
    )
)
def evaluate(
    reconstruction: Annotated[Path, typer.Argument(help="what `reconstruct` wrote")],
    reference: Annotated[Path, typer.Option(help="simulated store with references")],
    json_path: Annotated[Optional[Path], typer.Option("--json", help="write the numbers here too")] = None,  # noqa: UP045
    figure: Annotated[
        Optional[Path], typer.Option(help="draw coverage, ranks and TARP of the samples, as PNG")  # noqa: UP045
    ] = None,
) -> None:
    """Score a reconstruction, and the calibration of its samples, where the images are known."""
    from ambient_sci.checkpoint import replacing
    from ambient_sci.datasets import open_store
    from ambient_sci.evaluate.compare import evaluate as score_reconstruction
    from ambient_sci.reconstruction import open_reconstruction

    result = score_reconstruction(open_reconstruction(reconstruction), open_store(reference))
    print(result)
    if json_path is not None:
        with replacing(json_path) as partial:
            partial.write_text(json.dumps(result.metrics, indent=2) + "\n")
    if figure is not None:
        if result.calibration is None:
            raise DataError("--figure needs at least 2 scans of at least 4 samples each, kept (no --no-samples)")
        with replacing(figure) as partial:
            result.calibration.plot().savefig(partial, format="png")


@app.command(
    epilog=examples(
        "ambient-sci export recon.zarr volumes --format nifti --what mean --what std",
        "ambient-sci export recon.zarr sky --format fits --what mean --what std --what sample",
        "ambient-sci export recon.zarr submission --format fastmri --option crop=320",
        "ambient-sci export recon.zarr dicom --format dicom --part phase",
    )
)
def export(
    reconstruction: Annotated[Path, typer.Argument(help="what `reconstruct` wrote")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    format: Annotated[str, typer.Option(help="nifti, fits, fastmri, ismrmrd, dicom, or that of a plug-in")] = "nifti",
    what: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="mean, std, lower, upper or sample; may be given several times", show_default="mean"),
    ] = None,
    part: Annotated[str, typer.Option(help="of complex means and samples: magnitude, phase or complex")] = "magnitude",
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="option of the format: crop=320 (fastmri), compress=no (nifti)", metavar="NAME=VALUE"),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write images of a reconstruction in a format that other programs read."""
    import warnings

    from ambient_sci.datasets.exporting import export as export_images

    options = {}
    for given in option or []:
        name, equals, value = given.partition("=")
        if not equals:
            raise ConfigError(f"option must be NAME=VALUE, got {given!r}")
        options[name] = value
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        files = export_images(
            reconstruction,
            out,
            format,
            what=what or "mean",
            part=part,  # type: ignore[arg-type]
            overwrite=overwrite,
            progress=not quiet,
            **options,
        )
    for warning in said:
        if issubclass(warning.category, UserWarning):
            print(f"warning: {warning.message}", file=sys.stderr)
    print(f"wrote {out}: {len(files)} {'file' if len(files) == 1 else 'files'}")
