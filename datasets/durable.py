"""Files that are whole after the power failed.

A file that took the name of another may be on the disk under that name before its contents are. Where others rely on
the old one, the new contents are therefore written out first (``fsync``), and the folder after the renaming.
"""

import errno
import os
from pathlib import Path
from typing import Any

__all__ = ["replace", "sync"]


def sync(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.EBADF)):  # file systems without that for folders
            raise
    finally:
        os.close(descriptor)


def replace(path: Path, contents: Any) -> None:
    """Write a file anew: whoever opens it finds the old one or the new one, also after the power failed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
