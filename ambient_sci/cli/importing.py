"""The commands ``ambient-sci import <format>``: one for every importer that is installed, made from its signature.

Options of the importer and, where it yields raw k-space, those of `ambient_sci.datasets.Preparation` become options of
the command; what they are is said beside their types, ``Annotated[type, "what it is"]``.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

from ambient_sci.cli.app import app, examples, show_help
from ambient_sci.cli.options import NewStore, Overwrite, Quiet
from ambient_sci.errors import ConfigError
from ambient_sci.registry import available, load

__all__ = ["ImportGroup"]

GROUP = "ambient_sci.importers"


class ImportGroup(TyperGroup):
    """A command for each installed importer; a broken one warns and is left out."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the importers."""
        return available(GROUP)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Make the command of one importer; nothing if there is none of that name."""
        if cmd_name not in available(GROUP):
            return None
        try:
            return _command(cmd_name, load(GROUP, cmd_name))
        except ConfigError:  # it has warned
            return None


def _command(name: str, importer: Callable[..., Any]) -> Any:
    from ambient_sci.datasets.prepare import Preparation
    from ambient_sci.datasets.raw import RawScan

    hints = get_type_hints(importer, include_extras=True)
    own = {
        key: _option(key, hints[key], parameter.default)
        for key, parameter in inspect.signature(importer).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    preparing: dict[str, inspect.Parameter] = {}
    if RawScan in get_args(hints.get("return")):
        types = get_type_hints(Preparation, include_extras=True)
        fields = dataclasses.fields(Preparation)
        preparing = {
            field.name: _option(field.name, types[field.name], field.default)
            for field in fields
            if field.name not in own
        }

    def run(paths: list[Path], store: Path, append: bool, overwrite: bool, quiet: bool, **options: Any) -> None:
        from ambient_sci.datasets import describe, import_files

        preparation = Preparation(**{key: options.pop(key) for key in preparing})
        made = import_files(
            name,
            paths,
            store,
            preparation=preparation,
            append=append,
            overwrite=overwrite,
            progress=not quiet,
            **options,
        )
        print(describe(made))

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    files = Annotated[list[Path], typer.Argument(help="files or folders to read")]
    parameters = [
        inspect.Parameter("paths", positional, annotation=files),
        inspect.Parameter("store", positional, annotation=NewStore),
        *own.values(),
        *preparing.values(),
        _option("append", Annotated[bool, "add to the store that is there"], False),
        inspect.Parameter("overwrite", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Overwrite),
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    first, _, rest = (inspect.getdoc(importer) or "").partition("\n\n")
    lines = [line.strip() for line in rest.splitlines() if line.strip().startswith(f"ambient-sci import {name} ")]
    one.command(name, help=first, epilog=examples(*lines) if lines else None)(run)
    return typer.main.get_command(one)


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Keyword parameter that typer makes an option of."""
    said: str | None = None
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        said = next((note for note in notes if isinstance(note, str)), None)
    optional = False
    if get_origin(annotation) in (Union, UnionType):
        inner = [kind for kind in get_args(annotation) if kind is not NoneType]
        optional, annotation = True, inner[0]
    if get_origin(annotation) is tuple and Ellipsis in get_args(annotation):
        option = typer.Option(help=said, parser=_sizes, metavar="YxX")
        annotation = str
    else:
        flags = (f"--{name.replace('_', '-')}",) if annotation is bool and default is False else ()
        option = typer.Option(*flags, help=said)
    kind = annotation | None if optional else annotation
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _sizes(text: str) -> tuple[int, ...]:
    """Read sizes written as ``128x100``."""
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"sizes are written like 128x100, got {text!r}") from None


imports = typer.Typer(cls=ImportGroup, help="Bring measured data into a store.", rich_markup_mode=None)
imports.callback(invoke_without_command=True)(show_help)
app.add_typer(imports, name="import")
