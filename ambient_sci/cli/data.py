"""Scans into a store, and what is in it."""

from pathlib import Path
from typing import Annotated

import typer

from ambient_sci.cli.app import app, examples
from ambient_sci.cli.options import Json, NewStore, Overwrite, Quiet, Seed, Store, write_figure, write_text


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
    store: NewStore,
    operator: Annotated[str, typer.Option(help="sense, fourier, nufft, mask, gaussian, identity")] = "sense",
    pattern: Annotated[
        str | None,
        typer.Option(help="sampling pattern; random-lines, or golden-angle for nufft, random-pixels for mask"),
    ] = None,
    acceleration: Annotated[float, typer.Option(help="samples over measured samples (k-space, gaussian)")] = 4.0,
    calibration: Annotated[int, typer.Option(help="width of the fully measured centre of k-space")] = 6,
    coils: Annotated[int, typer.Option(help="receive coils (sense, nufft)")] = 8,
    noise: Annotated[float, typer.Option(help="noise per real component, relative to images of unit range")] = 0.03,
    keep: Annotated[float, typer.Option(help="fraction of pixels kept (mask)")] = 0.5,
    structured: Annotated[bool, typer.Option(help="projections without a matrix, for large images (gaussian)")] = False,
    size: Annotated[int | None, typer.Option(help="bring images to this many pixels a side")] = None,
    axis: Annotated[int, typer.Option(help="axis of a volume to slice along: 0 sagittal, 1 coronal, 2 axial")] = 2,
    start: Annotated[int | None, typer.Option(help="first image to take")] = None,
    stop: Annotated[int | None, typer.Option(help="image to stop before")] = None,
    name: Annotated[str | None, typer.Option(help="which array of an npz")] = None,
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
def info(store: Store) -> None:
    """Say what is in a store."""
    from ambient_sci.datasets import describe, open_store

    print(describe(open_store(store)))


@app.command(
    epilog=examples("ambient-sci convert scans.zarr scans.h5", "ambient-sci convert scans.h5 /scratch/scans.zarr")
)
def convert(
    store: Store,
    out: NewStore,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a store as HDF5 or as Zarr, bit by bit the same."""
    from ambient_sci.datasets.convert import convert as convert_store

    made = convert_store(store, out, overwrite, progress=not quiet)
    print(f"wrote {made.path}: {len(made)} scans, fingerprint {made.fingerprint}")


@app.command(
    epilog=examples(
        "ambient-sci check scans.zarr",
        "ambient-sci check scans.zarr --against test.zarr --figure check.png --json check.json",
    )
)
def check(
    store: Annotated[Path, typer.Argument(help="a store to learn from")],
    against: Annotated[
        Path | None, typer.Option(help="store to test on: look for what it shares with the first")
    ] = None,
    thinning: Annotated[float, typer.Option(help="fraction of rows that training hides")] = 0.3,
    scans: Annotated[int, typer.Option(min=2, help="look at so many scans of each size, at most")] = 2048,
    figure: Annotated[Path | None, typer.Option(help="draw it, as PNG")] = None,
    json_path: Json = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Say, before any training, whether a prior can be learned from a store. Exit status 1 if it cannot."""
    from ambient_sci.check import check as check_store

    report = check_store(store, against, thinning=thinning, scans=scans, seed=seed, progress=not quiet)
    print(report)
    if json_path is not None:
        write_text(json_path, report.to_json())
    if figure is not None:
        write_figure(figure, report.plot())
    if report.verdict == "refused":
        raise typer.Exit(1)
