"""The command line: each command is one call of the Python interface with its options spelled out.

One module for each group of commands, `app` for what they have in common, `options` for the options that several have.
A mistake in the input is one line on standard error and exit status 2; anything else that goes wrong is a bug and shows
its traceback.
"""

import os
import sys
from typing import Any

import typer

from ambient_sci.cli import data, demo, importing, learning, posterior, showing, trust  # noqa: F401  (their commands)
from ambient_sci.cli.app import app
from ambient_sci.errors import AmbientError

__all__ = ["app", "main"]

_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which typer carries inside


def main() -> None:
    """Entry point of the ``ambient-sci`` command."""
    # the network is thousands of short parallel regions a second: threads that fall asleep after each have to be woken
    # as often, threads that spin for long take the core from other processes; set before torch loads
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    status: Any
    try:
        status = app(prog_name="ambient-sci", standalone_mode=False)
    except AmbientError as error:
        status = _refuse(str(error))
    except _UsageError as error:
        status = _refuse(f"{error.format_message()} (see `{error.ctx.command_path} --help`)")
    except SystemExit as end:
        status = end.code
    if status in (130, 143):
        print("interrupted; the same command resumes a training, an import or a reconstruction", file=sys.stderr)
    sys.exit(status)


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
