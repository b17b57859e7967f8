"""Plug-ins: named objects that distributions announce as entry points, loaded on first use.

Another distribution adds an operator kind with three lines in its ``pyproject.toml``::

    [project.entry-points."ambient_sci.operators"]
    shear = "my_package:Shear"

A plug-in that fails to load warns and is left out, so that one broken installation does not stop the others.
"""

import warnings
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from ambient_sci.errors import ConfigError

__all__ = ["available", "load"]


@cache
def _entries(group: str) -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=group)}


def available(group: str) -> list[str]:
    """Names of the plug-ins in an entry point group, sorted."""
    return sorted(_entries(group))


@cache
def load(group: str, name: str) -> Any:
    """Load one plug-in.

    Parameters
    ----------
    group
        Entry point group, such as ``"ambient_sci.operators"``.
    name
        Name within the group.

    Raises
    ------
    ConfigError
        If nothing of that name is installed, or if it fails to import.
    """
    noun = group.removeprefix("ambient_sci.").removesuffix("s")
    entry = _entries(group).get(name)
    if entry is None:
        raise ConfigError(f"unknown {noun} {name!r}; installed: {', '.join(available(group)) or 'none'}")
    try:
        return entry.load()
    except Exception as error:
        warnings.warn(f"the {noun} plug-in {name!r} ({entry.value}) does not load: {error}", stacklevel=2)
        raise ConfigError(f"the {noun} {name!r} ({entry.value}) does not load: {error}") from error
