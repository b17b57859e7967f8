"""Importing: the scans that an importer yields become a store.

An importer is a function that yields scans of files, announced as an entry point::

    [project.entry-points."ambient_sci.importers"]
    tomo = "my_package:read_tomo"

Its first parameter is a list of paths, the others are options with defaults, and it yields `RawScan` (k-space, which
`ambient_sci.datasets.prepare` prepares) or `ReadyScan` (measurements that need nothing more), one image at a time and
always in the same order. Options annotated ``Annotated[type, "what it is"]`` become those of the command
``ambient-sci import tomo``, the first paragraph of the docstring its help.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ambient_sci.datasets.prepare import Findings, Preparation, examine, summarise
from ambient_sci.datasets.raw import RawScan, ReadyScan
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.datasets.writer import StoreWriter
from ambient_sci.errors import DataError, NotFoundError
from ambient_sci.registry import load

__all__ = ["GROUP", "import_files", "import_scans"]

GROUP = "ambient_sci.importers"


def import_files(
    importer: str,
    paths: Sequence[str | Path] | str | Path,
    path: str | Path,
    *,
    preparation: Preparation | None = None,
    overwrite: bool = False,
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
        If the store cannot be written.

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
    return import_scans(scans, path, preparation=preparation, overwrite=overwrite, progress=progress, provenance=origin)


def import_scans(
    scans: Iterable[RawScan | ReadyScan],
    path: str | Path,
    *,
    preparation: Preparation | None = None,
    overwrite: bool = False,
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> Store:
    """Bring scans, from whatever yields them, into a store; see `import_files`."""
    from tqdm.auto import tqdm

    preparation = preparation or Preparation()
    findings: list[Findings] = []
    with StoreWriter(path, provenance, overwrite) as writer:
        for number, scan in enumerate(tqdm(scans, desc="importing", unit=" scans", disable=not progress)):
            if isinstance(scan, ReadyScan):
                measurement, coords = scan.measurement, scan.coords
            else:
                prepared = examine(scan, preparation, f"scan {number}")
                measurement, coords = prepared.measurement, prepared.coords
                if prepared.findings.doubt and not any(one.doubt for one in findings):
                    warnings.warn(prepared.findings.doubt, stacklevel=2)
                findings.append(prepared.findings)
            writer.append(measurement, coords={name: [value] for name, value in coords.items()})
        if len(writer) == 0:
            raise DataError(f"there are no scans to import into {path}")
        if findings:
            writer.provenance.update(summarise(findings))
    return open_store(path)
