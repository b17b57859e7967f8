r"""Exporting: images of a reconstruction in the formats that other programs read.

An exporter is a function that writes volumes into a folder, announced as an entry point::

    [project.entry-points."ambient_sci.exporters"]
    mha = "my_package:write_mha"

Its first parameters are an iterator of `Volume` and a folder, the others are options with defaults, annotated
``Annotated[type, "what it is"]``. What it writes appears under the name that was asked for when all of it is written,
with a file ``export.json`` that says where the images come from.

A volume is what lies together: a scan with an axis z, or slices that follow each other, of one file and subject, one
contrast, repetition, phase and set. Volumes are read one at a time.
"""

import inspect
import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ambient_sci import __version__
from ambient_sci.datasets.containers import FAULTS, brief
from ambient_sci.datasets.geometry import Geometry, scan_geometry, stack
from ambient_sci.errors import (
    AmbientError,
    ConfigError,
    DataError,
    NotFoundError,
    OutputError,
    StoreError,
    output_error,
)
from ambient_sci.registry import load

if TYPE_CHECKING:
    import xarray

__all__ = ["GROUP", "Images", "Part", "Volume", "export", "plain", "warn"]

GROUP = "ambient_sci.exporters"
MANIFEST = "export.json"

Part = Literal["magnitude", "phase", "complex"]

_STATISTICS = ("mean", "std", "lower", "upper", "sample")
_SOURCE = ("file", "subject", "field")  # the first that is known names the volume
_APART = ("file", "subject", "acquisition", "field", "contrast", "repetition", "phase", "set")


@dataclass(frozen=True)
class Images:
    """Values of a volume.

    Parameters
    ----------
    values
        float32, or complex64 where ``part`` is ``"complex"``, ``(draw, channel, z, y, x)``; one draw, unless they are
        samples.
    part
        ``"magnitude"``, ``"phase"`` or ``"complex"``; ``"real"`` where images have no imaginary part.
    about
        What they are, in words.
    units
        ``"Jy/pixel"``, ``"rad"``, ``"arbitrary"``, ...
    """

    values: NDArray[Any]
    part: str
    about: str
    units: str


@dataclass(frozen=True)
class Volume:
    """Images that lie together.

    Parameters
    ----------
    name
        For files: of letters, digits, dots, dashes and underscores, and no other volume's.
    source
        Name of the file, subject or field that it comes from, which several volumes may share.
    images
        By statistic: ``"mean"``, ``"std"``, ``"lower"``, ``"upper"``, ``"sample"``.
    coords
        Coordinates of each scan in it, one for each slice or one for a scan with an axis z. With ``scan``, its number.
    geometries
        Places of each scan's voxels, None where they are not known.
    provenance
        Where the images come from: attributes of the reconstruction, and the version that exports.
    """

    name: str
    source: str
    images: Mapping[str, Images]
    coords: Sequence[Mapping[str, Any]]
    geometries: Sequence[Geometry | None]
    provenance: Mapping[str, Any]

    @cached_property
    def geometry(self) -> Geometry | None:
        """Places of the voxels; None where coordinates do not say it, or where slices are not evenly spaced."""
        return stack(self.geometries)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size, ``(z, y, x)``."""
        z, y, x = next(iter(self.images.values())).values.shape[2:]
        return z, y, x

    def planes(self) -> list[Geometry | None]:
        """Places of the voxels of each slice."""
        if len(self.coords) == 1 and self.shape[0] > 1:
            return [self.geometry and self.geometry.plane(k) for k in range(self.shape[0])]
        return list(self.geometries)

    def scans(self) -> Iterator["Volume"]:
        """Every scan by itself, named after its slice where there are several."""
        if len(self.coords) == 1:
            yield self
            return
        for k, coords in enumerate(self.coords):
            images = {
                what: Images(one.values[:, :, k : k + 1], one.part, one.about, one.units)
                for what, one in self.images.items()
            }
            name = f"{self.name}_slice{_number(coords['slice'])}"
            yield Volume(name, self.source, images, [coords], [self.geometries[k]], self.provenance)


def export(
    reconstruction: "xarray.Dataset | xarray.DataTree | Path | str",
    out: Path | str,
    format: str = "nifti",
    *,
    what: str | Sequence[str] = "mean",
    part: Part = "magnitude",
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> list[Path]:
    """Write images of a reconstruction in a format that other programs read.

    Parameters
    ----------
    reconstruction
        What `ambient_sci.reconstruct` returned or wrote, or any Dataset of ``(scan, channel, [z,] y, x)``; with a tree
        of several, one for each size of image, all of them.
    out
        Folder to write.
    format
        Name of the exporter: ``"nifti"``, ``"fits"``, ``"fastmri"``, ``"ismrmrd"``, ``"dicom"``, or one of a plug-in.
    what
        One or several of ``"mean"``, ``"std"``, ``"lower"``, ``"upper"``, ``"sample"``.
    part
        What to write of complex means and samples. The magnitude of a mean is that: not the mean of magnitudes.
    overwrite
        Replace an export that is already there. Anything else that is there is never replaced.
    progress
        Show a progress bar.
    **options
        Options of the exporter.

    Returns
    -------
    list of Path
        The files of images, sorted.

    Raises
    ------
    NotFoundError, StoreError
        If there is no reconstruction, or a damaged one.
    ConfigError, DataError
        If the format is not known, needs an extra that is not installed, or cannot hold these images.
    OutputError
        If something is already there, if there is no permission, or if the disk is full.

    Examples
    --------
    >>> files = export("recon.zarr", "nifti/", "nifti", what=["mean", "std"])  # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    wanted = [what] if isinstance(what, str) else list(what)
    if not wanted or not set(wanted) <= set(_STATISTICS) or len(set(wanted)) < len(wanted):
        raise ConfigError(f"what must be one or several of {', '.join(_STATISTICS)}, got {what!r}")
    if part not in get_args(Part):
        raise ConfigError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
    exporter = load(GROUP, format)
    chosen = _options(format, exporter, options)
    sets = _datasets(reconstruction, wanted, part)
    plans = _plan(sets, wanted[0])
    target = Path(out)
    with _writing(target, overwrite) as folder:
        volumes = (plan.read(wanted, part) for plan in plans)
        exporter(tqdm(volumes, "exporting", len(plans), unit=" volumes", disable=not progress), folder, **chosen)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        about = {
            "ambient_sci_version": __version__,
            "format": format,
            "options": chosen,
            "images": {name: _about(name, sets[0], part) for name in wanted},
            "provenance": sets[0].attrs,
            "files": [path.as_posix() for path in files],
        }
        (folder / MANIFEST).write_text(json.dumps(about, indent=2, default=plain) + "\n")
    return [target / path for path in files]


def plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does: NumPy's numbers and arrays, paths."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def warn(names: Sequence[str], total: int, text: str) -> None:
    """Warn once of what is the matter with some of the volumes."""
    if names:
        which = "all volumes" if len(names) == total else f"{len(names)} of {total} volumes ({names[0]}, ...)"
        warnings.warn(f"{which}: {text}", stacklevel=2)


# ------------------------------------------------------------------------------------------------ what is asked for


def _options(format: str, exporter: Callable[..., None], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the types that the exporter declares; text, as a command line has it, is converted."""
    from pydantic import TypeAdapter, ValidationError

    known = dict(list(inspect.signature(exporter, eval_str=True).parameters.items())[2:])
    checked = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"format {format!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
        try:
            checked[name] = TypeAdapter(known[name].annotation).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"option {name} of format {format!r}: {reason}, got {value!r}") from error
    return checked


def _datasets(given: "xarray.Dataset | xarray.DataTree | Path | str", wanted: Sequence[str], part: Part) -> list[Any]:
    import xarray

    name = "the reconstruction"
    if isinstance(given, str | Path):
        name = str(given)
        if not Path(given).exists():
            raise NotFoundError(f"no reconstruction at {name}")
        try:
            given = xarray.open_datatree(given, engine="zarr", consolidated=False)
        except FAULTS as error:
            raise StoreError(f"{name} is not a reconstruction, or a damaged one: {brief(error)}") from error
    if isinstance(given, xarray.Dataset):
        sets = [given]
    else:  # one group for each size of image
        nodes = [node for node in given.subtree if node.data_vars] or [given]
        nodes.sort(key=lambda node: (len(node.path), node.path))  # size_2 before size_10
        sets = [node.to_dataset().assign_attrs({**given.attrs, **node.attrs}) for node in nodes]
    for one in sets:
        missing = [statistic for statistic in wanted if statistic not in one]
        if missing:
            raise DataError(f"{name} holds no {', '.join(missing)}; `ambient-sci reconstruct` writes one that does")
        for statistic in wanted:
            dims = ("scan", "draw", "channel") if statistic == "sample" else ("scan", "channel")
            array = one[statistic]
            if array.dims[: len(dims)] != dims or not 2 <= array.ndim - len(dims) <= 3 or 0 in array.shape:
                raise DataError(
                    f"{statistic} of {name} must be ({', '.join(dims)}, [z,] y, x), got {array.dims} of {array.shape}"
                )
            if part != "magnitude" and statistic in ("mean", "sample") and array.dtype.kind != "c":
                raise ConfigError(f"{statistic} of {name} is real: leave the part at magnitude, got {part!r}")
    return sets


def _about(what: str, dataset: Any, part: Part) -> dict[str, str]:
    """Part, meaning and units of a statistic's images."""
    value = "magnitude" if dataset["mean" if "mean" in dataset else what].dtype.kind == "c" else "value"
    samples = dataset.attrs.get("samples")
    interval = dataset.attrs.get("interval")
    level = "credible interval" if interval is None else f"{100 * float(interval):g}% credible interval"
    number = "" if samples is None else f" of {samples} samples"
    about = {
        "mean": f"posterior mean{number}",
        "std": f"posterior standard deviation{number}",
        "lower": f"lower end of the {level} of the {value}",
        "upper": f"upper end of the {level} of the {value}",
        "sample": "posterior samples",
    }[what]
    units = str(dataset[what].attrs.get("units", "Jy/pixel" if dataset.attrs.get("operator") == "interferometer" else
                                        "arbitrary"))  # fmt: skip
    if dataset[what].dtype.kind != "c":
        return {"part": "real" if value == "value" else "magnitude", "about": about, "units": units}
    if part == "complex":
        return {"part": part, "about": about, "units": units}
    return {"part": part, "about": f"{part} of the {about}", "units": "rad" if part == "phase" else units}


# ---------------------------------------------------------------------------------------------- what lies together


@dataclass(frozen=True)
class _Plan:
    """Rows of a dataset that become a volume."""

    dataset: Any
    rows: Sequence[int]
    name: str
    source: str
    coords: Sequence[Mapping[str, Any]]
    geometries: Sequence[Geometry | None]

    def read(self, wanted: Sequence[str], part: Part) -> Volume:
        images = {what: Images(self._values(what, part), **_about(what, self.dataset, part)) for what in wanted}
        attrs = {**self.dataset.attrs, "export_version": __version__}
        return Volume(self.name, self.source, images, self.coords, self.geometries, attrs)

    def _values(self, what: str, part: Part) -> NDArray[Any]:
        try:
            values = self.dataset[what].isel(scan=list(self.rows)).to_numpy()
        except FAULTS as error:
            raise StoreError(f"the reconstruction is damaged: {what} cannot be read ({brief(error)})") from error
        if not np.isfinite(values).all():
            raise StoreError(f"the reconstruction is damaged: {what} of {self.name} has NaN or infinite values")
        if what != "sample":
            values = values[:, None]
        # (scan, draw, channel, [z,] y, x): slices of a stack become the axis z, whole volumes are alone
        values = np.moveaxis(values, 0, 2) if values.ndim == 5 else values[0]
        if values.dtype.kind == "c" and part != "complex":
            values = np.abs(values) if part == "magnitude" else np.angle(values)
        return np.ascontiguousarray(values, np.complex64 if values.dtype.kind == "c" else np.float32)


def _plan(sets: Sequence[Any], what: str) -> list[_Plan]:
    """Find the volumes, and names for them."""
    found: list[tuple[Any, list[int], list[dict[str, Any]], list[Geometry | None]]] = []
    for dataset in sets:
        coords = _coordinates(dataset)
        shape = dataset[what].shape[dataset[what].dims.index("channel") + 1 :]
        geometries = [scan_geometry(one, shape) for one in coords]
        for run in _runs(coords, len(shape) == 2):
            run = _by_place(run, geometries)
            found.append((dataset, run, [coords[row] for row in run], [geometries[row] for row in run]))
    firsts = [coords[0] for _, _, coords, _ in found]
    sources = _sources(firsts)
    return [
        _Plan(dataset, run, name, source, coords, geometries)
        for (dataset, run, coords, geometries), name, source in zip(
            found, _names(firsts, sources), sources, strict=True
        )
    ]


def _coordinates(dataset: Any) -> list[dict[str, Any]]:
    count = dataset.sizes["scan"]
    columns = {
        str(name): [plain(value) if isinstance(value, np.generic) else value for value in array.to_numpy()]
        for name, array in dataset.coords.items()
        if array.dims == ("scan",)
    }
    columns.setdefault("scan", list(range(count)))
    # NaN and empty text say that something is not known
    return [
        {name: values[row] for name, values in columns.items() if values[row] == values[row] and values[row] != ""}
        for row in range(count)
    ]


def _runs(coords: Sequence[Mapping[str, Any]], flat: bool) -> list[list[int]]:
    """Rows of each volume: slices in order, as far as their numbers follow each other."""
    if not flat or "slice" not in coords[0]:
        return [[row] for row in range(len(coords))]
    apart: dict[tuple[Any, ...], list[int]] = {}
    for row, one in enumerate(coords):
        apart.setdefault(tuple(one.get(name) for name in _APART), []).append(row)
    runs: list[list[int]] = []
    for rows in apart.values():
        rows.sort(key=lambda row: coords[row]["slice"])
        for k, row in enumerate(rows):
            if k and coords[row]["slice"] == coords[rows[k - 1]]["slice"] + 1:
                runs[-1].append(row)
            else:
                runs.append([row])
    return sorted(runs, key=min)


def _by_place(run: list[int], geometries: Sequence[Geometry | None]) -> list[int]:
    """Slices that were numbered as they were measured, interleaved, come in the order in which they lie."""
    places = [geometries[row] for row in run]
    if stack(places) is not None or None in places:
        return run
    normal = places[0].normal  # type: ignore[union-attr]
    lying = sorted(run, key=lambda row: float(normal @ geometries[row].affine[:3, 3]))  # type: ignore[union-attr]
    return lying if stack([geometries[row] for row in lying]) is not None else run


def _sources(firsts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the file, subject or field of each volume, by the coordinates of its first scan."""
    given = [next(((name, one[name]) for name in _SOURCE if name in one), ("", "scans")) for one in firsts]
    different = list(dict.fromkeys(given))
    words = [_word(value) if isinstance(value, str) else f"{name}{_number(value)}" for name, value in different]
    named = dict(zip(different, _distinct(words), strict=True))
    return [named[one] for one in given]


def _names(firsts: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> list[str]:
    """Give every volume its source's name, with as much of its coordinates as tells it from others of that source."""
    names = list(sources)
    for key in _APART:
        values: dict[str, set[Any]] = {}
        for source, one in zip(sources, firsts, strict=True):
            values.setdefault(source, set()).add(one.get(key))
        for k, one in enumerate(firsts):
            if len(values[sources[k]]) > 1 and key in one:
                names[k] += f"_{_word(one[key])}" if isinstance(one[key], str) else f"_{key}{_number(one[key])}"
    for key in ("slice", "scan"):
        counts = Counter(names)
        for k, one in enumerate(firsts):
            if counts[names[k]] > 1 and key in one:
                names[k] += f"_{key}{_number(one[key])}"
    return _distinct(names)


def _distinct(names: Sequence[str]) -> list[str]:
    """Add numbers to names that are alike, also to file systems that do not know capital letters."""
    taken: set[str] = set()
    distinct = []
    for name in names:
        number, numbered = 1, name
        while numbered.lower() in taken:
            number += 1
            numbered = f"{name}-{number}"
        taken.add(numbered.lower())
        distinct.append(numbered)
    return distinct


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] or "unnamed"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------- to the disk


@contextmanager
def _writing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a hidden neighbour to write to, which takes the place of ``path`` only when the block ends well."""
    _check(path, overwrite)
    path = Path(os.path.abspath(path))  # "." has no name, and a neighbour needs one
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    old = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _check(path, overwrite)
        if path.exists():  # steps aside, and back if the new one cannot take its place
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except AmbientError:
        raise
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _check(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{path} already exists; choose another path or pass --overwrite (overwrite=True)")
    if path.is_symlink() or not (path / MANIFEST).is_file():
        raise OutputError(f"{path} is not an export and is not replaced; choose another path")
