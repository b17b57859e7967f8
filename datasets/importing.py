"""Importing: the scans that an importer yields become a store.

An importer is a function that yields scans of files, announced as an entry point::

    [project.entry-points."ambient_sci.importers"]
    tomo = "my_package:read_tomo"

Its first parameter is a list of paths, the others are options with defaults, and it yields `RawScan` (k-space, which
`ambient_sci.datasets.prepare` prepares) or `ReadyScan` (measurements that need nothing more), one image at a time and
always in the same order. Options annotated ``Annotated[type, "what it is"]`` become those of the command
``ambient-sci import tomo``, the first paragraph of the docstring its help.

An import into a Zarr store that stopped, whatever stopped it, goes on when it is called again: what was written stays
in ``.<name>.partial`` beside the store, and as many scans of the importer are passed over.
"""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ambient_sci.datasets.containers import container_type
from ambient_sci.datasets.prepare import Findings, Preparation, examine, summarise
from ambient_sci.datasets.raw import RawScan, ReadyScan
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.datasets.writer import StoreWriter
from ambient_sci.errors import AmbientError, DataError, NotFoundError
from ambient_sci.measurement import Measurement
from ambient_sci.operators.base import OperatorSpec, from_spec
from ambient_sci.registry import load

__all__ = ["GROUP", "import_files", "import_scans"]

GROUP = "ambient_sci.importers"
COMMIT = 30.0  # seconds after which scans are made safe from a SIGKILL; from anything else they are at once


def import_files(
    importer: str,
    paths: Sequence[str | Path] | str | Path,
    path: str | Path,
    *,
    preparation: Preparation | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = True,
    progress: bool = True,
    **options: Any,
) -> Store:
    """Bring measured files into a store.

    Parameters
    ----------
    importer
        Name of the importer: ``"fastmri"``, ``"ismrmrd"``, ``"uvfits"``, ... or one of a plug-in.
    paths
        Files or folders to read.
    path
        The store to write.
    preparation
        How k-space becomes a measurement.
    overwrite
        Replace a store that is already there.
    append
        Add the scans to the store that is there, all of them or, if something goes wrong, none.
    resume
        Keep what was written when something stops the import of a new Zarr store, and go on after it if the same import
        (files, options, preparation) was stopped before. An HDF5 file is written in one go, whatever this is.
    progress
        Show a progress bar.
    **options
        Options of the importer.

    Returns
    -------
    Store
        The new store, open.

    Raises
    ------
    NotFoundError, ConfigError, DataError
        If a file is missing or of another format, or holds too little to estimate from.
    OutputError
        If the store cannot be written, or another import to this path was stopped before.

    Examples
    --------
    >>> store = import_files("fastmri", "multicoil_train/", "knees.zarr")  # doctest: +SKIP
    """
    given = [Path(one) for one in ([paths] if isinstance(paths, str | Path) else paths)]
    for one in given:
        if not one.exists():
            raise NotFoundError(f"nothing to import at {one}: there is no such file or folder")
    scans = load(GROUP, importer)(given, **options)
    said = {name: value for name, value in options.items() if value is not None}
    origin = {"source": f"import {importer}", "files": [str(one) for one in given], "options": said}
    return import_scans(
        scans, path, preparation=preparation, overwrite=overwrite, append=append,
        resume=resume and not append and container_type(Path(path)).appends_in_place,
        progress=progress, provenance=origin,
    )  # fmt: skip


def import_scans(
    scans: Iterable[RawScan | ReadyScan],
    path: str | Path,
    *,
    preparation: Preparation | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> Store:
    """Bring scans, from whatever yields them, into a store.

    Parameters and errors are those of `import_files`, with these differences: ``resume`` is off unless asked for, since
    scans that come from memory cannot be told from others, and then ``provenance`` must say what they are, and they
    must come in the same order each time.
    """
    from tqdm.auto import tqdm

    preparation = preparation or Preparation()
    findings: list[Findings] = []
    how: dict[str, str] = {}
    origin = {**(provenance or {}), "preparation": asdict(preparation)}
    with _interruptions(StoreWriter(path, origin, overwrite, append=append, resume=resume), progress) as writer:
        start = len(writer)
        done = 0 if append else start
        left = islice(scans, done, None)
        bar = tqdm(left, desc="importing", initial=done, unit=" scans", delay=2, disable=not progress)
        committed = time.monotonic()
        for number, scan in enumerate(bar, start=done):
            if isinstance(scan, ReadyScan):
                measurement, coords = scan.measurement, scan.coords
                how = how or dict(scan.how)
            else:
                prepared = examine(scan, preparation, f"scan {number}")
                measurement, coords = prepared.measurement, prepared.coords
                if prepared.findings.doubt and not any(one.doubt for one in findings):
                    warnings.warn(prepared.findings.doubt, stacklevel=2)
                findings.append(prepared.findings)
            writer.append(_alike(measurement, writer), coords={name: [value] for name, value in coords.items()})
            if resume and time.monotonic() - committed > COMMIT:
                writer.commit()
                committed = time.monotonic()
        if len(writer) == (start if append else 0):
            raise DataError(f"there are no scans to import into {path}")
        writer.provenance.update(summarise(findings) if findings else how)
    return open_store(path)


def _alike(measurement: Measurement, writer: StoreWriter) -> Measurement:
    """Let scans whose fully measured centres differ by a little share a size.

    The centre's width says how much is measured for certain; random lines beside it make it one or two wider by chance.
    A scan takes the largest width that there is and that is true of it too, if that is at least half of its own.
    """
    spec = measurement.operator.spec()
    own = spec.settings.get("calibration")
    if own is None:
        return measurement
    others = {**spec.settings, "calibration": None}
    known = [s["calibration"] for s in writer.settings_like(measurement) if {**s, "calibration": None} == others]
    width = max((width for width in known if own / 2 <= width <= own), default=own)
    if width == own:
        return measurement
    operator = from_spec(OperatorSpec(spec.kind, spec.parameters, {**spec.settings, "calibration": width}))
    return Measurement(measurement.y, operator, measurement.noise_std, measurement.index, measurement.scale)


@contextmanager
def _interruptions(writer: StoreWriter, progress: bool) -> Iterator[StoreWriter]:
    """Say what is kept when an import stops before its end."""
    try:
        with writer:
            yield writer
    except AmbientError as error:
        if writer.kept is None:
            raise
        raise type(error)(f"{error}; {_kept(*writer.kept)}") from error
    except KeyboardInterrupt:
        if writer.kept is not None and progress:
            print(_kept(*writer.kept), file=sys.stderr)
        raise


def _kept(partial: Path, scans: int) -> str:
    return f"{scans} scans are safe in {partial}, and the same import goes on after them"
