"""Errors that a user can act on: one line that names what is wrong and what would be right.

Every error below is also the built-in exception that a Python caller expects (``ValueError``, ``FileNotFoundError``,
``OSError``). The command line prints it as one line and exits with status 2.
"""

__all__ = ["AmbientError", "CheckpointError", "ConfigError", "DataError", "NotFoundError", "OutputError", "StoreError"]


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
