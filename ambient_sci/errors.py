"""Errors that a user can act on: one line that names what is wrong and what would be right.

Every error below is also the built-in exception that a Python caller expects (``ValueError``, ``FileNotFoundError``,
``OSError``). The command line prints it as one line and exits with status 2.
"""

import errno
import re
from pathlib import Path

__all__ = [
    "AmbientError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NotFoundError",
    "OutputError",
    "StoreError",
    "output_error",
]


class AmbientError(Exception):
    """Base of all errors that name a mistake in the input rather than in the program."""


class DataError(AmbientError, ValueError):
    """Values or shapes that cannot be what they claim to be: NaN in k-space, a mask of the wrong size."""


class ConfigError(AmbientError, ValueError):
    """An option that does not exist, or a value that it cannot take."""


class StoreError(AmbientError, ValueError):
    """A store that cannot be read: not a store, another schema version, an array missing, no scans."""


class CheckpointError(AmbientError, ValueError):
    """A run whose checkpoint cannot be used: none written yet, another version, weights that do not fit."""


class NotFoundError(AmbientError, FileNotFoundError):
    """A path that does not exist."""


class OutputError(AmbientError, OSError):
    """Writing failed (disk full, no permission) or would replace something that is not ours to replace."""


def output_error(path: Path, error: BaseException) -> OutputError:
    """Say in one line why ``path`` could not be written."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    # HDF5 and safetensors report what the system said in their texts only
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
        reason = "the disk is full; free space or choose another path"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "no permission; choose another path"
    elif number in (errno.ENOTDIR, errno.EEXIST):
        reason = "a file is in the way of its folder; choose another path"
    else:
        said = str(error).strip() or type(error).__name__
        reason = getattr(error, "strerror", None) or said.splitlines()[0]
    return OutputError(f"cannot write {path}: {reason}")
