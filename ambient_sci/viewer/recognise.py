"""What lies at a path, as a page: a reconstruction, a run, a validation or an audit."""

import os
from pathlib import Path
from typing import Any, Literal

from ambient_sci.audit import PriorAudit
from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError, NotFoundError
from ambient_sci.evaluate.held_out import PriorValidation
from ambient_sci.reconstruction import open_reconstruction
from ambient_sci.viewer.audit import write_audit
from ambient_sci.viewer.reconstruction import write_viewer
from ambient_sci.viewer.run import write_run
from ambient_sci.viewer.validation import write_validation

__all__ = ["kind_of", "view"]

Kind = Literal["reconstruction", "run", "validation", "audit"]
MARKS: dict[Kind, tuple[str, ...]] = {
    "run": ("config.json", "prior.safetensors"),
    "validation": ("validation.json",),
    "audit": ("audit.json",),
}


def kind_of(path: Path) -> Kind:
    """Tell what a path holds; a folder that is nothing else is taken for a reconstruction.

    Raises
    ------
    NotFoundError
        If there is nothing.
    ConfigError
        If a folder holds a validation as well as an audit.
    """
    if not path.exists():
        raise NotFoundError(f"nothing at {path}: there is no such file or folder")
    marks = [kind for kind, names in MARKS.items() if any(path.name == one or (path / one).exists() for one in names)]
    if marks == ["validation", "audit"]:
        raise ConfigError(f"{path} holds a validation and an audit: name one file, such as {path / 'audit.json'}")
    return marks[0] if marks else "reconstruction"


def view(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    reference: Store | None = None,
    title: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Path:
    """Write what lies at a path as one HTML file: a reconstruction, a run, a validation or an audit.

    Parameters
    ----------
    path
        What `ambient_sci.reconstruct` wrote; the folder of a run; or the folder or file of a validation or an audit,
        in which case an audit to compare with (``compared/``) is shown as well.
    out
        File to write, replaced when it exists; never left half-written.
    reference, options
        Of a reconstruction (`write_viewer`).
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
    NotFoundError, DataError, StoreError, CheckpointError
        If there is nothing at the path, or something else.
    ConfigError
        If options are for something else.
    OutputError
        If it cannot be written.
    """
    path = Path(path)
    kind = kind_of(path)
    given = [*options, *([] if reference is None else ["reference"])]
    if kind != "reconstruction" and given:
        raise ConfigError(f"{', '.join(given)} can be given for a reconstruction only; {path} is of kind {kind}")
    folder = path if path.is_dir() else path.parent
    if kind == "run":
        return write_run(out, folder, title)
    if kind == "validation":
        return write_validation(out, PriorValidation.load(folder), title)
    if kind == "audit":
        compared = folder / "compared"
        others = {"images of the compared prior": PriorAudit.load(compared)} if compared.exists() else None
        return write_audit(out, PriorAudit.load(folder), others, title)
    return write_viewer(
        out, open_reconstruction(path), reference, title=title or "Reconstruction", progress=progress, **options
    )
