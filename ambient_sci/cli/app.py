"""The command itself: its page of help, and the groups in which commands stand there."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ambient_sci import __version__

__all__ = ["GROUPS", "app", "examples", "show_help"]

# in the order in which one uses them
GROUPS = {
    "Try it": ("demo",),
    "Scans into a store": ("import", "simulate", "info", "check", "convert"),
    "Learn a prior": ("train", "finetune", "sample"),
    "Reconstruct": ("reconstruct",),
    "Find out whether to trust it": ("validate", "audit", "evaluate"),
    "Show it, hand it on": ("figure", "view", "export"),
}
ABOUT = """Learn what images look like from scans that never show a whole one, and reconstruct with error bars.

A store holds scans: what was measured, how (masks, coil maps, trajectories), and how noisily. A run holds the prior that was learned from a store. A reconstruction holds posterior samples of scans with mean, standard deviation and intervals. No clean image is needed at any point."""  # noqa: E501
MORE = """\b
From a file to error bars:
  ambient-sci import array kspace.npy scans.zarr            what was measured
  ambient-sci check scans.zarr                              can a prior be learned?
  ambient-sci train scans.zarr --out run                    learn it, or resume
  ambient-sci validate run others.zarr                      do error bars hold?
  ambient-sci reconstruct run others.zarr --out recon.zarr  samples, mean, std
  ambient-sci view recon.zarr --out view.html               look through them

\b
Read on:
  ambient-sci COMMAND --help    all options, with examples
  README.md, docs/              the same in Python; formats, training, pretrained
                                models, reconstruction, calibration, audits

A mistake in the input is one line on standard error and exit status 2. Training, imports and reconstructions that were interrupted go on when the same command is given again."""  # noqa: E501


def examples(*lines: str) -> str:
    """Epilogue of a help text; the marks keep the lines apart."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Page(TyperGroup):
    """Help in which commands stand before options, in their groups, each with its first sentence."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands, then options."""
        for heading, names in GROUPS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl([(name, one.get_short_help_str(200)) for name, one in commands if one is not None])
        options = [record for one in self.get_params(ctx) if (record := one.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl(options)


app = typer.Typer(
    cls=Page, help=ABOUT, epilog=MORE, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    """Print the version, or this page."""
    if version:
        print(__version__)
        raise typer.Exit
    show_help(context)


def show_help(context: typer.Context) -> None:
    """Print the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        print(context.get_help())
