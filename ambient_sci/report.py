"""Pages of HTML that need nothing else.

Figures are inlined, styles too, and there is no script unless one is given: the file can be mailed, archived or
printed, and opens without a network. Its policy (Content-Security-Policy) lets it load nothing, and run no other script
and style than those in it, by their hashes. Tables and figures carry what screen readers need, colours follow the
reader's light or dark setting, and every text is escaped.

A report is a title, a verdict or warnings, and sections; `table`, `pairs_table`, `facts`, `figure`, `details` and
`ambient_sci.charts` make what is in these.
"""

import base64
import hashlib
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ambient_sci import charts
from ambient_sci.checkpoint import replacing
from ambient_sci.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "checks",
    "details",
    "facts",
    "figure",
    "items",
    "page",
    "pairs_table",
    "picture",
    "table",
    "write_page",
    "write_report",
]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --muted: #5b6770; --paper: #ffffff; --line: #dfe4e8; --soft: #f4f6f8;
  --accent: #0067a3; --warn: #8a4b00; --warn-paper: #fff5e5; --good: #00684a; --good-paper: #e8f5f0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --muted: #9aa7b1; --paper: #14181b; --line: #31393f;
  --soft: #1d2327; --accent: #6cb8ea; --warn: #ffc77d; --warn-paper: #33270f; --good: #5fd3ae;
  --good-paper: #10291f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.25rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem); }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 0.8rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.9rem; letter-spacing: -0.01em; }
p { max-width: 42rem; margin: 0 0 1rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 6px; }
summary { cursor: pointer; font-weight: 600; }
.warnings { border-left: 4px solid var(--warn); background: var(--warn-paper); padding: 0.9rem 1.2rem; margin: 0 0 2rem;
  border-radius: 0 6px 6px 0; }
.note { color: var(--muted); font-size: 0.85rem; margin-top: 0.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 1.4rem 0.5rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; font-size: 0.85rem; border-bottom-width: 2px; white-space: nowrap; }
th[scope="row"] { font-weight: 500; }
.pairs { width: 100%; font-size: 0.9rem; }
.pairs th { width: 14rem; color: var(--muted); }
.pairs td { overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: 0.85rem; white-space: pre-wrap; }
figcaption { color: var(--muted); font-size: 0.9rem; margin-top: 0.6rem; max-width: 46rem; }
@media (max-width: 36rem) { body { font-size: 16px; } .pairs th { width: 40%; } th, td { padding-right: 0.9rem; } }
@media print { :root { --ink: #000; --muted: #444; --paper: #fff; --line: #bbb; --accent: #000; --warn-paper: #fff;
  --good-paper: #fff; } body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2 { margin-top: 1.6rem; break-after: avoid; } figure, tr, .warnings { break-inside: avoid; } }
"""
REPORT = """
.warnings h2 { font-size: 1rem; margin: 0 0 0.3rem; color: var(--warn); }
ul { margin: 0; padding-left: 1.2rem; } li { max-width: 46rem; } code { font-size: 0.88em; overflow-wrap: anywhere; }
.verdict { max-width: none; border-left: 4px solid var(--warn); background: var(--warn-paper); padding: 0.8rem 1.1rem;
  border-radius: 0 6px 6px 0; margin: 1rem 0 1.8rem; overflow-wrap: anywhere; } .verdict b { color: var(--warn); }
.verdict.good { border-color: var(--good); background: var(--good-paper); } .verdict.good b { color: var(--good); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.9rem 1.5rem;
  margin: 0 0 1.5rem; }
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dt { color: var(--muted); font-size: 0.85rem; line-height: 1.35; }
.facts dd { margin: 0; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin-bottom: 1.2rem; }
.results { min-width: min(100%, 34rem); font-size: 0.9rem; } .charts + .scroll { margin-top: 1.6rem; }
.results td, .results thead th:not(:first-child) { text-align: right; }
.results th, .results td { white-space: nowrap; } .results :is(th, td):not(:last-child) { padding-right: 1.2rem; }
.results :is(th, td):last-child { padding-right: 0; }
.checks { list-style: none; padding: 0; }
.checks li { padding-left: 1.6rem; text-indent: -1.6rem; margin-bottom: 0.5rem; }
.checks i { display: inline-block; width: 1.6rem; text-indent: 0; font-style: normal; font-weight: 700; }
.checks .good i { color: var(--good); } .checks .bad i { color: var(--warn); }
.results td.best { font-weight: 700; color: var(--accent); }
details { border-top: 1px solid var(--line); padding: 0.6rem 0; } summary + * { margin-top: 0.7rem; }
.figure { margin: 0 0 2.2rem; } main { counter-reset: figure; }
.figure figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; font-weight: 700; }
.frame { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: #fff; padding: 0.5rem;
  width: fit-content; max-width: 100%; }
.frame img { display: block; max-width: 100%; height: auto; }
.frame.pixels { background: #000; padding: 0; width: 100%; max-width: 46rem; }
.pixels img { width: 100%; image-rendering: pixelated; display: block; }
.couples { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 1.2rem; list-style: none;
  padding: 0; }
.couples .pixels { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.couples p { margin: 0.3rem 0 0; font-size: 0.85rem; line-height: 1.35; }
@media (max-width: 36rem) { .wide img { max-width: none; width: 44rem; }
  .results th[scope="row"] { white-space: normal; min-width: 8rem; } }
@media print { .frame img { max-height: 22cm; object-fit: contain; } .verdict, .couples li { break-inside: avoid; } }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """Put a page together.

    Parameters
    ----------
    title
        What the window is called.
    body
        HTML of what is seen.
    style, script
        What this page has beside the style of all.
    """
    style = STYLE + style
    runs = f"script-src {_hash(script)}; " if script else ""
    policy = f"default-src 'none'; {runs}style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    end = f"<script>{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n{end}</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """Write a page, in place of one that is there; never left half-written.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = Path(path)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def write_report(
    path: str | os.PathLike[str],
    title: str,
    sections: Mapping[str, str],
    summary: Sequence[str] = (),
    warnings: Sequence[str] = (),
    verdict: tuple[bool, str] | None = None,
) -> Path:
    """Write a report.

    Parameters
    ----------
    path
        File to write, replaced when it exists; never left half-written.
    title
        Heading of the report.
    sections
        Heading to HTML, in their order; those with nothing in them are left out.
    summary
        Paragraphs of plain text.
    warnings
        What a reader must know before the results; shown first.
    verdict
        Whether all is well, and why.

    Returns
    -------
    Path
        Where the report is.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    if verdict is not None:
        good, text = verdict
        mark = '<p class="verdict good"><b>✓ Passed:</b> ' if good else '<p class="verdict"><b>✗ Not passed:</b> '
        body.append(f"{mark}{escape(text)}</p>")
    if warnings:
        body.append(
            f'<section class="warnings" aria-labelledby="warnings"><h2 id="warnings">Before reading on</h2>'
            f"{items(warnings)}</section>"
        )
    body += [f"<p>{escape(paragraph)}</p>" for paragraph in summary]
    for number, (heading, content) in enumerate(sections.items(), 1):
        name = f"section-{number}"
        if content:
            body.append(
                f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>\n{content}</section>'
            )
    return write_page(path, page(title, "<main>\n" + "\n".join(body) + "\n</main>", REPORT + charts.STYLE))


def items(texts: Sequence[str]) -> str:
    """Make a list of plain texts; what stands between backticks is code."""
    lines = [re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)) for text in texts]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def checks(results: Sequence[tuple[str, bool | None, str]]) -> str:
    """List what was checked: its name, whether that is as it should be (none: it does not say), and what was found."""
    words = {True: ("good", "✓", "passed"), False: ("bad", "✗", "not passed"), None: ("", "–", "for information")}
    lines = []
    for name, good, text in results:
        kind, mark, said = words[good]
        sign = f'<i role="img" aria-label="{said}">{mark}</i>'
        lines.append(f'<li class="{kind}">{sign}<b>{escape(name)}.</b> {escape(text)}</li>')
    return f'<ul class="checks">{"".join(lines)}</ul>'


def facts(pairs: Mapping[str, Any]) -> str:
    """Set a few numbers or words off, each above its name."""
    found = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd></div>" for name, value in pairs.items()
    )
    return f'<dl class="facts">{found}</dl>'


def details(summary: str, content: str) -> str:
    """Hide something until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def table(name: str, rows: Sequence[Mapping[str, Any]], best: Mapping[str, str] | None = None) -> str:
    """Make a table of results.

    Parameters
    ----------
    name
        What it shows, for screen readers.
    rows
        Each a mapping of column title to value; the first column names the row. Numbers of a column are shown with as
        many decimals as give its largest four digits.
    best
        Columns whose best number is set off: column title to ``"min"`` or ``"max"``.

    Raises
    ------
    DataError
        If rows have different columns.
    """
    best = best or {}
    columns = list(rows[0])
    for number, row in enumerate(rows):
        if list(row) != columns:
            raise DataError(f"every row must have the columns {columns}, row {number} has {list(row)}")
    winners = {}
    for column, sense in best.items():
        numbers = [row[column] for row in rows if isinstance(row.get(column), int | float)]
        if numbers:
            winners[column] = min(numbers) if sense == "min" else max(numbers)
    digits = {column: _decimals([row[column] for row in rows]) for column in columns}
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for row in rows:
        cells = [f'<th scope="row">{escape(_text(row[columns[0]]))}</th>']
        for column in columns[1:]:
            mark = ' class="best"' if column in winners and row[column] == winners[column] else ""
            value = row[column]
            decimal = isinstance(value, float) and math.isfinite(value)
            text = f"{value:.{digits[column]}f}" if decimal else _text(value)
            cells.append(f"<td{mark}>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="note">Bold: best of its column ({escape(", ".join(winners))}).</p>' if winners else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="'
        f'{escape(name)}"><table class="results">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table></div>{note}"
    )


def _decimals(values: Sequence[Any]) -> int:
    largest = max((abs(value) for value in values if isinstance(value, float) and math.isfinite(value)), default=0.0)
    return max(3 - math.floor(math.log10(largest)), 0) if largest > 0 else 0


def figure(caption: str, image: "Figure | bytes") -> str:
    """Make a numbered figure.

    Parameters
    ----------
    caption
        What it shows. Its first sentence is what a screen reader says for the image.
    image
        A matplotlib figure, or the bytes of a PNG, JPEG or SVG image.

    Raises
    ------
    DataError
        If it is another kind of image.
    """
    width, wide = "", ""
    if not isinstance(image, bytes):
        pixels = round(110 * image.get_figwidth())
        width, wide = f' width="{pixels}"', " wide" if pixels > 700 else ""
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", metadata={"Software": None})
        image = buffer.getvalue()
    spoken = caption.split(". ")[0].rstrip(".")
    focus = ' tabindex="0"' if wide else ""  # it may scroll, and must do so from the keyboard too
    return (
        f'<figure class="figure{wide}"><div class="frame"{focus}>{picture(image, spoken, width)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def picture(image: bytes, spoken: str, attributes: str = "") -> str:
    """Make an image element of the bytes of a PNG, JPEG or SVG image, with what a screen reader says for it."""
    start = image[:256].lstrip()
    if image.startswith(b"\x89PNG"):
        kind = "png"
    elif image.startswith(b"\xff\xd8"):
        kind = "jpeg"
    elif start.startswith((b"<svg", b"<?xml")):
        kind = "svg+xml"
    else:
        raise DataError(f"a figure must be a matplotlib figure or PNG, JPEG or SVG bytes, got {image[:8]!r}")
    data = base64.b64encode(image).decode()
    return f'<img{attributes} src="data:image/{kind};base64,{data}" alt="{escape(spoken)}">'


def pairs_table(name: str, pairs: Mapping[str, Any]) -> str:
    """Lay names and values out as a table of HTML, of that name for screen readers."""
    lines = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(_text(value))}</td></tr>' for key, value in _flat(pairs)
    )
    return f'<table class="pairs" aria-label="{escape(name)}"><tbody>{lines}</tbody></table>'


def _flat(pairs: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in pairs.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
