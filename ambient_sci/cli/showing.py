"""Figures, pages to look through, files for other programs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ambient_sci.cli.app import app, examples
from ambient_sci.cli.options import Overwrite, Quiet, Reconstruction, refuse_to_replace, write_figure
from ambient_sci.errors import ConfigError


@app.command(epilog=examples("ambient-sci figure recon.zarr scans.zarr --out figure.png"))
def figure(
    reconstruction: Reconstruction,
    store: Annotated[Path, typer.Argument(help="the store that was reconstructed")],
    out: Annotated[Path, typer.Option(help="PNG file to write")] = Path("figure.png"),
    count: Annotated[int, typer.Option(min=1, help="number of scans to show")] = 3,
    overwrite: Overwrite = False,
) -> None:
    """Draw a reconstruction beside zero-filled and L1-wavelet ones, with its standard deviation."""
    from ambient_sci.datasets import open_store
    from ambient_sci.evaluate.compare import comparison_figure
    from ambient_sci.reconstruction import open_reconstruction

    refuse_to_replace(out, overwrite)
    write_figure(out, comparison_figure(open_reconstruction(reconstruction), open_store(store), count), dpi=160)
    print(f"wrote {out}")


@app.command(
    epilog=examples(
        "ambient-sci view recon.zarr --out view.html",
        "ambient-sci view recon.zarr --out view.html --reference scans.zarr --count 12",
        "ambient-sci view volumes.zarr --out volume.html --count 1 --samples 2 --limit 400",
        "ambient-sci view run --out run.html",
        "ambient-sci view validation --out validation.html",
        "ambient-sci view audit --out audit.html",
    )
)
def view(
    path: Annotated[
        Path,
        typer.Argument(help="what `reconstruct` wrote, folder of a run, what `validate` or `audit` wrote with --out"),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("view.html"),
    title: Annotated[str | None, typer.Option(help="heading of the page", show_default="what it is")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="of a reconstruction: simulated store with references; show these, errors and z-scores",
            show_default="none",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="of a reconstruction: scans, chosen evenly; fewer if these exceed the limit", show_default="6"
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="of a reconstruction: samples of each scan", show_default="all")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(help="of a reconstruction: size of its images in megabytes, at most", show_default="50"),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a reconstruction, a run, a validation or an audit as one HTML file to look through and to show.

    Of a reconstruction: samples, mean, spread and errors, with linked zoom; `?` there shows the keys. Of a run: what it
    is, curves, samples, checks. Of validations and audits: verdict, charts and tables. The file opens in a browser from
    the disk and needs no network.
    """
    from ambient_sci.datasets import open_store
    from ambient_sci.viewer import view as write_view

    refuse_to_replace(out, overwrite)
    given = {"count": count, "samples": samples, "limit": limit}
    options = {name: value for name, value in given.items() if value is not None}
    store = None if reference is None else open_store(reference)
    write_view(path, out, store, title, progress=not quiet, **options)
    print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command(
    epilog=examples(
        "ambient-sci export recon.zarr volumes --format nifti --what mean --what std",
        "ambient-sci export recon.zarr sky --format fits --what mean --what std --what sample",
        "ambient-sci export recon.zarr submission --format fastmri --option crop=320",
        "ambient-sci export recon.zarr dicom --format dicom --part phase",
    )
)
def export(
    reconstruction: Reconstruction,
    out: Annotated[Path, typer.Argument(help="folder to write")],
    format: Annotated[str, typer.Option(help="nifti, fits, fastmri, ismrmrd, dicom, or that of a plug-in")] = "nifti",
    what: Annotated[
        list[str] | None,
        typer.Option(help="mean, std, lower, upper or sample; may be given several times", show_default="mean"),
    ] = None,
    part: Annotated[str, typer.Option(help="of complex means and samples: magnitude, phase or complex")] = "magnitude",
    option: Annotated[
        list[str] | None,
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
