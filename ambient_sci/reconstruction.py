r"""Reconstruction: posterior samples of every scan, summarised, with where they came from.

The result is an xarray Dataset in the instrument's units, one row a scan:

========== ============================== ==================================================================
``sample`` (scan, draw, channel, y, x)    posterior samples
``mean``   (scan, channel, y, x)          their mean, the estimate with the least expected squared error
``std``    (scan, channel, y, x)          posterior standard deviation, of real and imaginary part together
``lower``  (scan, channel, y, x)          90% credible interval of the magnitude (of the value, for real images)
``upper``  (scan, channel, y, x)
========== ============================== ==================================================================

Images of several shapes are the groups ``size_0``, ``size_1``, ... of a DataTree, each of which is such a Dataset.

With few samples an interval between empirical quantiles is too narrow; the interval here is the predictive one of a
normal sample of that size, :math:`m \pm t_{S-1} \, \mathrm{std} \, \sqrt{1 + 1/S}`. It fits antithetic pairs
(`ambient_sci.posterior.draw`), too: what their mean knows better, half as many independent deviations know worse.
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

import ambient_sci
from ambient_sci.datasets.containers import FAULTS, brief
from ambient_sci.datasets.store import Indices, Store, open_store
from ambient_sci.errors import ConfigError, DataError, NotFoundError, OutputError, StoreError, output_error
from ambient_sci.posterior.draw import PosteriorMethod, draw_posterior
from ambient_sci.prior import Prior, load_prior
from ambient_sci.sample import Solver

if TYPE_CHECKING:
    import xarray

__all__ = ["INTERVAL", "datasets_of", "open_reconstruction", "reconstruct", "scan_coords", "summarise"]

INTERVAL = 0.9
TITLE = "posterior samples"


def reconstruct(
    prior: Prior | Path | str,
    store: Store | Path | str,
    out: Path | str | None = None,
    *,
    scans: Indices | None = None,
    samples: int = 8,
    method: PosteriorMethod = "auto",
    steps: int = 32,
    iterations: int = 3,
    guidance: float = 1.0,
    solver: Solver = "multistep",
    eta: float = 1.0,
    batch: int = 64,
    seed: int = 0,
    any_size: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> "xarray.Dataset | xarray.DataTree":
    """Draw posterior samples of scans.

    Parameters
    ----------
    prior
        A learned prior, or the folder of a run.
    store
        Store of measurements, or its path.
    out
        Zarr folder to write to, batch by batch; without it the result is kept in memory.
    scans
        Which scans; all by default.
    samples
        Samples of each scan, at least 2.
    method, steps, iterations, guidance, solver, eta, seed, any_size
        See `ambient_sci.posterior.draw.draw_posterior`.
    batch
        Images in the network at once; it does not change the result.
    overwrite
        Replace a reconstruction that is already at ``out``.
    progress
        Show a progress bar.

    Returns
    -------
    xarray.Dataset or xarray.DataTree
        See the module's table; opened from ``out`` when given. A DataTree only where images are of several shapes.
    """
    prior = prior if isinstance(prior, Prior) else load_prior(prior)
    store = store if isinstance(store, Store) else open_store(store)
    if samples < 2:
        raise ConfigError(f"samples must be at least 2 for a standard deviation, got {samples}")
    index = _numbers(store, slice(None) if scans is None else scans)
    options: dict[str, Any] = {"method": method, "steps": steps, "iterations": iterations, "guidance": guidance}
    options |= {"solver": solver, "eta": eta, "seed": seed, "any_size": any_size}
    attrs = _provenance(prior, store, samples, options)
    writer = None if out is None else _Writer(Path(out), overwrite, attrs)

    shapes = _by_image_shape(store, index)
    several = len(shapes) > 1
    size = max(1, batch // samples)
    chunks = [
        (f"size_{number}" if several else "", scans[i : i + size])
        for number, scans in enumerate(shapes)
        for i in range(0, len(scans), size)
    ]
    parts: dict[str, list[Any]] = {}
    try:
        for group, chunk in tqdm(chunks, desc="posterior samples", unit="batch", disable=not progress):
            part = _dataset(_draw(prior, store, chunk, samples, options), chunk, store, attrs)
            if writer is None:
                parts.setdefault(group, []).append(part)
            else:
                writer.append(part, group)
        if writer is not None:
            return writer.finish()
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    import xarray

    joined = {
        group: xarray.concat(some, "scan", data_vars="minimal", coords="minimal", compat="override", join="override")
        for group, some in parts.items()
    }
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **joined}) if several else joined[""]


def _draw(prior: Prior, store: Store, chunk: NDArray[Any], samples: int, options: dict[str, Any]) -> Tensor:
    """Posterior samples of scans whose images have one shape, in the instrument's units."""
    drawn, places = [], []
    for scans, place in store.by_size(chunk):
        measurement = store.read(scans).to(prior.device)
        part = draw_posterior(prior, measurement, samples, **options).cpu()
        drawn.append(part * measurement.scale.cpu().reshape(-1, *[1] * (part.ndim - 1)))
        places.append(place)
    return torch.cat(drawn)[np.argsort(np.concatenate(places))]


def _by_image_shape(store: Store, index: NDArray[Any]) -> list[NDArray[Any]]:
    """Numbers of the scans of each image shape, in their order."""
    chosen: dict[tuple[int, ...], NDArray[Any]] = {}
    for group in store.groups:
        inside = np.isin(index, group.scans)
        chosen[group.image_shape] = chosen.get(group.image_shape, False) | inside
    return [index[inside] for inside in chosen.values() if inside.any()]


def _numbers(store: Store, scans: Indices) -> NDArray[Any]:
    """Numbers of the scans that are asked for."""
    try:
        index = np.atleast_1d(np.arange(len(store))[scans if isinstance(scans, slice) else np.asarray(scans)])
    except IndexError as error:
        raise DataError(f"scans: {error}; {store.path} holds {len(store)}, counted from 0") from error
    if index.ndim != 1 or len(index) == 0:
        raise DataError(f"scans must name at least one of the {len(store)} scans of {store.path}, got {scans}")
    return index


def summarise(drawn: Tensor) -> dict[str, Tensor]:
    """Mean, standard deviation and 90% interval of samples ``(scan, draw, channel, *spatial)``."""
    from scipy.stats import t

    count = drawn.shape[1]
    mean = drawn.mean(1)
    variance = (drawn - mean[:, None]).abs().square().sum(1) / count
    if count % 2 == 0 and count > 2:
        # what the mean takes from the spread depends on how the samples of a pair hang together; pairs are independent
        pairs = drawn.unflatten(1, (count // 2, 2)).mean(2)
        variance = variance + (pairs - mean[:, None]).abs().square().sum(1) / (count // 2 * (count // 2 - 1))
    else:
        variance = variance * count / (count - 1)
    std = variance.sqrt()
    value = drawn.abs() if drawn.is_complex() else drawn
    centre, spread = value.mean(1), value.std(1)
    half = float(t.ppf(0.5 + INTERVAL / 2, count - 1)) * spread * (1 + 1 / count) ** 0.5
    lower = (centre - half).clamp_min(0) if drawn.is_complex() else centre - half
    return {"mean": mean, "std": std, "lower": lower, "upper": centre + half}


def _dataset(drawn: Tensor, index: NDArray[Any], store: Store, attrs: dict[str, Any]) -> "xarray.Dataset":
    import xarray

    axes = ("channel", *("z", "y", "x")[-(drawn.ndim - 3) :])
    variables: dict[str, Any] = {"sample": (("scan", "draw", *axes), drawn.numpy())}
    variables |= {name: (("scan", *axes), value.numpy()) for name, value in summarise(drawn).items()}
    return xarray.Dataset(variables, scan_coords(store, index), attrs)


def scan_coords(store: Store, index: NDArray[Any]) -> dict[str, Any]:
    """Coordinates of some scans, for a Dataset; text as objects, for which Zarr has a stable type."""
    chosen = {name: values[index] for name, values in store.coords.items()}
    text = {name: values.astype(object) if values.dtype.kind in "SU" else values for name, values in chosen.items()}
    return {name: ("scan", values) for name, values in text.items()} | {"scan": index}


def _provenance(prior: Prior, store: Store, samples: int, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": TITLE,
        "ambient_sci_version": ambient_sci.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "prior": prior.fingerprint(),
        "prior_method": prior.config.method,
        "prior_images": prior.images,
        "prior_store": str(prior.trained_on.get("fingerprint")),
        "store": store.fingerprint,
        "operator": store.kind,
        "samples": samples,
        "interval": INTERVAL,
        **{f"sampler_{name}": value for name, value in options.items()},
    }


class _Writer:
    """Appends to a hidden neighbour of the path, which takes the path's name in the end."""

    def __init__(self, path: Path, overwrite: bool, attrs: dict[str, Any]) -> None:
        self.path, self.attrs = path, attrs
        if path.exists() and not overwrite:
            raise OutputError(f"{path} already exists; choose another path or pass --overwrite")
        if path.exists():
            try:
                open_reconstruction(path)
            except StoreError as error:
                raise OutputError(f"{path} is not a reconstruction and is not replaced; choose another path") from error
        self.partial = path.with_name(f".{path.name}.partial")
        self.replaced = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.groups: set[str] = set()

    def append(self, part: "xarray.Dataset", group: str) -> None:
        import xarray

        common: dict[str, Any] = {"zarr_format": 3, "consolidated": False}
        try:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            if group and not self.groups:
                xarray.Dataset(attrs=self.attrs).to_zarr(self.partial, mode="w", **common)
            options: dict[str, Any] = {"append_dim": "scan"} if group in self.groups else {"mode": "w"}
            part.to_zarr(self.partial, group=group or None, **common, **options)
        except OSError as error:
            raise output_error(self.path, error) from error
        self.groups.add(group)

    def finish(self) -> "xarray.Dataset | xarray.DataTree":
        try:
            if self.path.exists():  # steps aside, and back if the new one cannot take its place
                shutil.rmtree(self.replaced, ignore_errors=True)
                self.path.rename(self.replaced)
            self.partial.rename(self.path)
        except OSError as error:
            if not self.path.exists() and self.replaced.exists():
                self.replaced.rename(self.path)
            raise output_error(self.path, error) from error
        shutil.rmtree(self.replaced, ignore_errors=True)
        return open_reconstruction(self.path)

    def abandon(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)


def open_reconstruction(path: Path | str) -> "xarray.Dataset | xarray.DataTree":
    """Open what `reconstruct` wrote.

    Raises
    ------
    NotFoundError, StoreError
        If there is nothing at ``path``, or something else.
    """
    import xarray

    if not Path(path).exists():
        raise NotFoundError(f"no reconstruction at {path}")
    found: xarray.Dataset | xarray.DataTree
    try:
        found = xarray.open_zarr(path, consolidated=False)
        if found.attrs.get("title") == TITLE and not found.sizes:
            found = xarray.open_datatree(path, engine="zarr", consolidated=False)
    except FAULTS as error:
        raise StoreError(f"{path} is not a reconstruction, or a damaged one: {brief(error)}") from error
    complete = all({"mean", "std"} <= set(dataset) for dataset in datasets_of(found))
    if found.attrs.get("title") != TITLE or not complete:
        raise StoreError(f"{path} is not a reconstruction; `ambient-sci reconstruct` writes one")
    return found


def datasets_of(reconstruction: "xarray.Dataset | xarray.DataTree") -> "list[xarray.Dataset]":
    """Datasets of a reconstruction, one for each shape of images."""
    import xarray

    if isinstance(reconstruction, xarray.Dataset):
        return [reconstruction]
    return [child.to_dataset() for child in reconstruction.children.values()]
