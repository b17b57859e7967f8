"""`reconstruct`: from a prior and scans to a Dataset."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ambient_sci.datasets.scale import estimate_scale
from ambient_sci.datasets.store import Indices, Store, open_store
from ambient_sci.errors import ConfigError
from ambient_sci.evaluate.predictive import check_temperature
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.draw import PosteriorMethod
from ambient_sci.prior import Prior, load_prior
from ambient_sci.reconstruction.cluster import compute_on
from ambient_sci.reconstruction.job import Arrays, Job, layout, versions
from ambient_sci.reconstruction.output import TITLE, Chunk, Frame, Results, joined
from ambient_sci.reconstruction.source import Source, Tensors, image_shapes, numbers, scan_coords
from ambient_sci.reconstruction.summary import INTERVAL, check_quantiles
from ambient_sci.sample import Solver
from ambient_sci.signals import Interrupted, Signals, asked_to_stop

if TYPE_CHECKING:
    import xarray

__all__ = ["reconstruct"]

UNUSUAL = 5.0  # images are about one at their brightest; by so many times more or less they are in other units


class _Options(TypedDict, total=False):
    scans: Indices | None
    samples: int
    method: PosteriorMethod
    steps: int
    iterations: int
    guidance: float
    solver: Solver
    eta: float
    batch: int
    seed: int
    any_size: bool
    keep_samples: bool
    quantiles: Sequence[float]
    temperature: float
    scheduler: str | None
    device: str
    overwrite: bool
    progress: bool


@overload
def reconstruct(
    prior: Prior | Path | str, measurement: Measurement, out: Path | str | None = None, **options: Unpack[_Options]
) -> "xarray.Dataset": ...


@overload
def reconstruct(
    prior: Prior | Path | str,
    measurement: Store | Path | str,
    out: Path | str | None = None,
    **options: Unpack[_Options],
) -> "xarray.Dataset | xarray.DataTree": ...


def reconstruct(
    prior: Prior | Path | str,
    measurement: Measurement | Store | Path | str,
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
    keep_samples: bool = True,
    quantiles: Sequence[float] = (),
    temperature: float = 1.0,
    scheduler: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> "xarray.Dataset | xarray.DataTree":
    """Draw posterior samples of scans.

    Parameters
    ----------
    prior
        A learned prior, or the folder of a run.
    measurement
        Scans: a store, its path, or a `Measurement` in memory. The latter in normalised units, as a store reads it and
        `ambient_sci.datasets.normalise` makes it. Results are multiplied by its ``scale``.
    out
        Zarr folder to write to, batch by batch; without it the result is kept in memory. What was interrupted goes on
        where it stopped when it is called again with the same options.
    scans
        Which scans; all by default.
    samples
        Samples of each scan, at least 2.
    method, steps, iterations, guidance, solver, eta, seed, any_size
        See `ambient_sci.posterior.draw.draw_posterior`.
    batch
        Images in the network at once, at most; fewer are, with a warning, where the device's memory is too small. It
        changes results by rounding only.
    keep_samples
        Keep the samples beside what is said of them.
    quantiles
        Probabilities whose quantiles are wanted.
    temperature
        By what the spread of the samples is multiplied: one that `ambient_sci.validate_prior` found on other scans, to
        recalibrate. ``residual`` stays that of the samples as they were drawn.
    scheduler
        Address of a Dask scheduler whose workers are to draw; this process, otherwise. Workers have to find a store at
        the same path. Results are those of one process, to the bit on hardware of one kind with as many threads.
    device
        Where to load a prior that is given as a folder, and where workers put theirs.
    overwrite
        Replace a reconstruction that is already at ``out``, and do not go on with one of other options.
    progress
        Show a progress bar.

    Returns
    -------
    xarray.Dataset or xarray.DataTree
        See the table in `ambient_sci.reconstruction`; opened from ``out`` when given. A DataTree only where images are
        of several shapes.

    Raises
    ------
    ConfigError, DataError
        If options do not exist, do not go with the prior, or differ from those with which ``out`` was begun; if scans
        cannot be what they claim to be.
    OutputError
        If something is already at ``out``, or it cannot be written.

    Examples
    --------
    >>> posterior = reconstruct(prior, measurement, samples=8)  # doctest: +SKIP
    >>> posterior["mean"].sel(scan=0), posterior["std"].sel(scan=0)  # doctest: +SKIP
    """
    if samples < 2:
        raise ConfigError(f"samples must be at least 2 for a standard deviation, got {samples}")
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    check_quantiles(quantiles, samples)
    check_temperature(temperature)
    results = None if out is None else Results(Path(out), overwrite)
    if not isinstance(prior, Prior):
        prior = load_prior(prior, device if scheduler is None else "cpu")
    source = _source(measurement, elsewhere=scheduler is not None)
    index = numbers(source, slice(None) if scans is None else scans)
    options: dict[str, Any] = {"method": method, "steps": steps, "iterations": iterations, "guidance": guidance}
    options |= {"solver": solver, "eta": eta, "seed": seed, "any_size": any_size}
    job = Job(prior, source, samples, batch, keep_samples, tuple(quantiles), temperature, options)
    attrs = _provenance(job) | {"device": prior.device.type if scheduler is None else f"cluster, {device}"}
    frames, chunks = _plan(job, index)

    def computed(done: set[int]) -> Iterator[tuple[int, Arrays]]:
        left = [(number, chunk.scans) for number, chunk in enumerate(chunks) if number not in done]
        if scheduler is not None:
            yield from compute_on(scheduler, device, job, left)
        else:
            yield from ((number, job.compute(some)) for number, some in left)

    with ExitStack() as stack:
        done: set[int] = set()
        if results is not None:
            stack.enter_context(results.locked())
            identity = {name: attrs[name] for name in attrs if name not in ("created", "device")}
            identity |= {"scans": _scans_in_words(index), "keep_samples": keep_samples, "quantiles": list(quantiles)}
            done = stack.enter_context(results.begin(identity, attrs, frames))
            stack.enter_context(Signals())
        parts: dict[int, Arrays] = {}
        bar: Any = tqdm(
            total=len(chunks), initial=len(done), desc="posterior samples", unit="batch", disable=not progress,
            delay=2 if results is None else 0,
        )  # fmt: skip
        stack.enter_context(bar)
        for number, arrays in computed(done):
            if results is None:
                parts[number] = arrays
            else:
                results.write(number, chunks[number], arrays)
                if stop := asked_to_stop():
                    raise Interrupted(stop).obeyed()
            bar.update()
        if results is not None:
            return results.finish()
    return _in_memory(chunks, parts, frames, attrs)


def _source(measurement: Measurement | Store | Path | str, elsewhere: bool) -> Source:
    if isinstance(measurement, Measurement):
        brightest = estimate_scale(measurement)
        if bool(((brightest > UNUSUAL) | (brightest < 1 / UNUSUAL)).any()):
            warnings.warn(
                f"images of the measurement seem to be about {float(brightest.median()):.2g} at their brightest, where "
                "the prior knows some of about 1: give it normalise(measurement) of ambient_sci.datasets",
                stacklevel=3,
            )
        return Tensors(measurement)
    if isinstance(measurement, Store):
        return measurement
    return open_store(Path(measurement).absolute() if elsewhere else measurement)  # workers are in other folders


def _plan(job: Job, index: NDArray[np.int64]) -> tuple[dict[str, Frame], list[Chunk]]:
    """Lay out groups of images of one shape, and batches of scans, which are the same however they get done."""
    import xarray

    shapes = image_shapes(job.source, index)
    size = max(1, job.batch // job.samples)
    units = "Jy/pixel" if job.source.kind == "interferometer" else "arbitrary"
    common: dict[str, Any] = {"draw": np.arange(job.samples)}
    if job.quantiles:
        common["probability"] = list(job.quantiles)
    frames: dict[str, Frame] = {}
    chunks: list[Chunk] = []
    for number, (shape, scans) in enumerate(shapes.items()):
        group = f"size_{number}" if len(shapes) > 1 else ""
        variables = layout(shape, job.prior.is_complex, job.samples, job.keep_samples, job.quantiles, units)
        coords = scan_coords(job.source, scans) | common
        frames[group] = Frame(xarray.Dataset(coords=coords), variables, size)
        starts = range(0, len(scans), size)
        chunks += [Chunk(group, k, start, scans[start : start + size]) for k, start in enumerate(starts)]
    return frames, chunks


def _in_memory(
    chunks: Sequence[Chunk], parts: dict[int, Arrays], frames: dict[str, Frame], attrs: dict[str, Any]
) -> "xarray.Dataset | xarray.DataTree":
    import xarray

    groups = {
        name: joined([parts[k] for k, chunk in enumerate(chunks) if chunk.group == name], frame, attrs)
        for name, frame in frames.items()
    }
    if "" in groups:
        return groups[""]
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **groups})


def _scans_in_words(index: NDArray[np.int64]) -> str:
    return f"{len(index)} from {index[0]} to {index[-1]}, {hashlib.sha256(index.tobytes()).hexdigest()[:8]}"


def _provenance(job: Job) -> dict[str, Any]:
    prior, source = job.prior, job.source
    return {
        "title": TITLE,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **versions(),
        "prior": prior.fingerprint(),
        "prior_method": prior.config.method,
        "prior_images": prior.images,
        "prior_store": str(prior.trained_on.get("fingerprint")),
        "store": source.fingerprint,
        "operator": source.kind,
        "samples": job.samples,
        "batch": job.batch,
        "interval": INTERVAL,
        "temperature": job.temperature,
        **{f"sampler_{name}": value for name, value in job.options.items()},
    }
