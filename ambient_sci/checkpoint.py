"""Weights on disk: safetensors with a JSON header, written to a temporary name and renamed.

A run folder holds ``config.json`` (the resolved options), ``checkpoint.safetensors`` (everything that resuming needs),
``prior.safetensors`` (the averaged weights, all that reconstruction needs), ``log.jsonl`` and ``samples.png``
(`ambient_sci.logs`), and ``README.md`` (`ambient_sci.model_card`). No pickle is ever read.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ambient_sci.errors import CheckpointError, NotFoundError, OutputError, output_error

__all__ = ["CHECKPOINT_VERSION", "load_tensors", "replacing", "save_tensors"]

CHECKPOINT_VERSION = 1


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to write to, which takes the place of ``path`` only when the block ends well.

    Raises
    ------
    OutputError
        If the disk is full or the folder cannot be written; what was at ``path`` is then untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OutputError):
            raise
        # safetensors reports what the system said in its text only
        if isinstance(error, OSError) or "os error" in str(error):
            raise output_error(path, error) from error
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], secret: bool = False) -> None:
    """Write tensors and a JSON header as one file, atomically; a secret one can be read by its owner alone."""
    from safetensors.torch import save_file

    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps({"version": CHECKPOINT_VERSION, **header})
    with replacing(path) as partial:
        save_file(contents, partial, metadata={"ambient_sci": text})
        # safetensors lets nobody but the owner read it; whoever may read the run's folder may read its files
        partial.chmod(0o600 if secret else path.parent.stat().st_mode & 0o666)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises
    ------
    NotFoundError
        If there is no such file.
    CheckpointError
        If it is damaged, of another origin or of another version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise NotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("ambient_sci", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from error
    version = header.get("version")
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version}, this release reads {CHECKPOINT_VERSION}: "
            "train again, or use the release that wrote it"
        )
    return tensors, header
