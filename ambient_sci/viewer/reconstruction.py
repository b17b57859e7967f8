"""A reconstruction to look through: images of chosen scans as data, and a page that shows them.

Every scan is a block of JSON that the page parses when it is looked at. The same reconstruction gives the same bytes.
"""

import base64
import json
import math
import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.evaluate.compare import require_same_store
from ambient_sci.plot import ERROR_MAP
from ambient_sci.reconstruction import datasets_of
from ambient_sci.report import page, pairs_table, write_page
from ambient_sci.viewer.arrays import images_of, pack, packed_size, windows

if TYPE_CHECKING:
    import xarray

__all__ = ["write_viewer"]


def write_viewer(
    path: str | os.PathLike[str],
    reconstruction: "xarray.Dataset | xarray.DataTree",
    reference: Store | None = None,
    *,
    count: int = 6,
    samples: int | None = None,
    limit: float = 50.0,
    title: str = "Reconstruction",
    progress: bool = False,
) -> Path:
    """Write a reconstruction as an HTML file to look through.

    Parameters
    ----------
    path
        File to write, replaced when it exists; never left half-written.
    reconstruction
        What `ambient_sci.reconstruct` returned, or `ambient_sci.reconstruction.open_reconstruction` opened.
    reference
        The simulated store that was reconstructed: its references are shown, with the error of the mean and its
        z-score.
    count
        Number of scans to show, chosen evenly; fewer where they would exceed ``limit``.
    samples
        Number of samples of each scan to show, from the first on; all that were kept by default.
    limit
        Largest size of the images in the file, in megabytes.
    title
        Heading of the page.
    progress
        Show a progress bar.

    Returns
    -------
    Path
        Where the file is.

    Raises
    ------
    ConfigError, DataError
        If an option cannot be, if one scan is above the limit, or if the reference is another store.
    OutputError
        If it cannot be written.
    """
    from tqdm.auto import tqdm

    if count < 1 or limit <= 0 or (samples is not None and samples < 0):
        raise ConfigError(f"count and limit must be above 0, samples not below, got {count}, {limit:g} and {samples}")
    if reference is not None:
        require_same_store(reconstruction, reference)
    sets = datasets_of(reconstruction)
    for dataset in sets:
        _check(dataset)
    kept = min(dataset.sizes["draw"] if "sample" in dataset else 0 for dataset in sets)
    shown = kept if samples is None else min(samples, kept)
    places = [(dataset, row) for dataset in sets for row in range(dataset.sizes["scan"])]
    size = max(_size(dataset, shown, reference is not None) for dataset in sets) / 1e6
    if size > limit:
        raise DataError(
            f"the images of one scan take {size:.3g} MB, over the limit of {limit:g} MB: show fewer than {shown} "
            "samples (--samples), raise it (--limit), or give a part of the images"
        )
    fit = min(count, len(places), int(limit / size))
    chosen = [places[k] for k in np.linspace(0, len(places) - 1, fit).round().astype(int)]

    blocks = []
    for number, (dataset, row) in enumerate(tqdm(chosen, "viewer", unit=" scans", disable=not progress)):
        truth = None
        if reference is not None:
            truth = reference.references([int(dataset["scan"][row])])[0].numpy()
        images = images_of(dataset, row, shown, truth)
        block = {
            "shape": images["mean"].shape[1:],
            "windows": windows(images),
            "arrays": {name: pack(values) for name, values in images.items()},
        }
        blocks.append(f'<script type="application/json" id="scan-{number}">{_json(block)}</script>')
    first = chosen[0][0]
    level = f"{100 * float(reconstruction.attrs.get('interval', 0.9)):g}%"
    panels = _panels(first, shown, reference is not None, level)
    about = {
        "units": first["mean"].attrs.get("units", "arbitrary"),
        "samples": shown,
        "level": level,
        "quantiles": "Quantiles " + ", ".join(f"{100 * p:g}%" for p in _probabilities(first)),
        "panels": panels,
        "overlays": _overlays(panels, level),
        "colours": _colours(),
        "scans": _about_scans(chosen),
    }
    notes = [f"{len(chosen)} of {len(places)} scans" + (", chosen evenly" if len(chosen) < len(places) else "")]
    if fit < min(count, len(places)):
        notes[0] += f" (more would exceed {limit:g} MB)"
    drawn = f"{shown} of {kept} posterior samples each" if shown < kept else f"{kept} posterior samples each"
    notes += [drawn if kept else "samples were not kept", "kept in 16 bits, to within 0.0008% of each image's range"]
    attrs = {str(name): value for name, value in reconstruction.attrs.items()}
    return write_page(path, _page(title, " · ".join(notes), about, blocks, attrs))


def _check(dataset: "xarray.Dataset") -> None:
    missing = [name for name in ("mean", "std") if name not in dataset]
    if missing:
        raise DataError(f"the reconstruction holds no {' and no '.join(missing)}; `ambient-sci reconstruct` writes one")
    dims = dataset["mean"].dims
    if dims[:2] != ("scan", "channel") or len(dims) not in (4, 5) or 0 in dataset["mean"].shape:
        raise DataError(f"mean must be (scan, channel, [z,] y, x), got {dims} of {dataset['mean'].shape}")


def _size(dataset: "xarray.Dataset", samples: int, reference: bool) -> int:
    """Bytes of the images of one scan in the file."""
    arrays = 2 + sum(name in dataset for name in ("lower", "upper")) + dataset.sizes.get("probability", 0)
    parts = 2 if np.iscomplexobj(dataset["mean"]) else 1
    arrays += parts * samples + parts - 1 + (2 + parts if reference else 0)
    return packed_size(arrays * math.prod(dataset["mean"].shape[1:]))


def _about_scans(chosen: list[tuple["xarray.Dataset", int]]) -> list[dict[str, Any]]:
    """Say what each scan is called, and how well its samples fit."""
    rows = [dataset.isel(scan=row) for dataset, row in chosen]
    coords = [{str(name): value.item() for name, value in row.coords.items() if not value.dims} for row in rows]
    # what tells scans apart: numbers and names that are not the same for all
    telling = [
        name
        for name, value in coords[0].items()
        if name != "scan" and isinstance(value, int | str) and len({str(one.get(name)) for one in coords}) > 1
    ]
    found = []
    for row, one in zip(rows, coords, strict=True):
        names = [f"{name} {one[name]}" for name in telling if one.get(name, "") != ""]
        about: dict[str, Any] = {"label": " · ".join([f"Scan {one['scan']}", *names[:3]])}
        if "residual" in row:
            values = row["residual"].to_numpy().astype(float)
            about["residual"] = [round(value, 4) if math.isfinite(value) else None for value in values]
        if "effective_samples" in row and math.isfinite(effective := float(row["effective_samples"])):
            about["effective"] = round(effective, 1)
        found.append(about)
    return found


def _panels(dataset: "xarray.Dataset", samples: int, reference: bool, level: str) -> list[dict[str, Any]]:
    """Panels in their order: which image each shows, on which scale, and what that is."""
    parts = np.iscomplexobj(dataset["mean"])
    value = "magnitude" if parts else "value"
    z = "(|mean| − |reference|) / (std / √2)" if parts else "(mean − reference) / std"
    panels: list[tuple[str, int, str, str, bool, str]] = [
        ("mean", 0, "Mean", "image", True, "posterior mean, the estimate with the least expected squared error")
    ]
    if samples:
        panels.append(("sample", 0, "Sample", "image", True, "posterior samples: images that the data allow"))
    if reference:
        panels.append(("truth", 0, "Reference", "image", True, "the image that was measured, known in a simulation"))
    std = "posterior standard deviation" + (", of real and imaginary part together" if parts else "")
    panels.append(("std", 0, "Std", "spread", True, std))
    if reference:
        panels.append(("error", 0, "Error", "spread", True, "|mean − reference|, on the scale of the std"))
        panels.append(("z", 0, "z-score", "z", True, f"{z}: beyond ±2 one time in twenty if the error bars are right"))
    for name in ("lower", "upper"):
        if name in dataset:
            about = f"{name} end of the {level} interval of the {value}"
            panels.append((name, 0, f"{name.capitalize()} {level}", "image", False, about))
    for k, probability in enumerate(_probabilities(dataset)):
        percent = f"{100 * probability:g}%"
        panels.append(("quantile", k, f"Quantile {percent}", "image", False, f"{percent} quantile of the {value}"))
    names = ("array", "index", "title", "scale", "shown", "about")
    return [dict(zip(names, panel, strict=True)) for panel in panels]


def _probabilities(dataset: "xarray.Dataset") -> list[float]:
    return [float(p) for p in dataset["probability"]] if "quantile" in dataset else []


def _overlays(panels: list[dict[str, Any]], level: str) -> list[dict[str, Any]]:
    """List what may lie over the mean: an image, or how far one is above another."""
    found = [
        {"title": panel["title"], "scale": panel["scale"], "of": [panel["array"], 0]}
        for panel in panels
        if panel["scale"] != "image"
    ]
    arrays = [panel["array"] for panel in panels]
    if {"lower", "upper"} <= set(arrays):
        title = f"Width, {level} interval"
        found.append({"title": title, "scale": "interval", "of": ["upper", 0], "less": ["lower", 0]})
    if (last := arrays.count("quantile") - 1) > 0:
        width = {"scale": "quantiles", "of": ["quantile", last], "less": ["quantile", 0]}
        found.append({"title": "Width, quantiles", **width})
    return found


def _colours() -> dict[str, str]:
    """256 colours of each scale, bytes of red, green and blue in base64.

    All can be read without telling red from green: lightness grows along the scale, and for z-scores from a dark zero
    to blue on one side and orange on the other. That of phases ends as it begins.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    ends = LinearSegmentedColormap.from_list("z", ["#a5dcff", "#0072b2", "#101010", "#d55e00", "#ffd9a0"])
    scales = {"image": colormaps["gray"], "spread": colormaps[ERROR_MAP], "z": ends, "phase": colormaps["twilight"]}
    values = np.linspace(0, 1, 256)
    return {
        name: base64.b64encode((255 * scale(values)[:, :3]).round().astype(np.uint8).tobytes()).decode()
        for name, scale in scales.items()
    }


def _page(title: str, note: str, about: dict[str, Any], blocks: list[str], attrs: dict[str, Any]) -> str:
    parts = (files("ambient_sci.viewer") / f"viewer.{kind}" for kind in ("html", "css", "js"))
    html, css, script = (part.read_text("utf-8") for part in parts)
    meanings = "".join(
        f"<dt>{escape(panel['title'])}</dt><dd>{escape(panel['about'])}</dd>" for panel in about["panels"]
    )
    body = Template(html).substitute(
        title=escape(title),
        note=escape(note),
        meanings=meanings,
        provenance=pairs_table("Provenance", attrs),
        about=_json(about),
        scans="\n".join(blocks),
    )
    return page(title, body, css, script)


def _json(value: Any) -> str:
    """JSON that can stand in a page: nothing in it ends the element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
