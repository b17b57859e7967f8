"""A report of a run as one HTML file that needs nothing else.

Figures are inlined, styles too, and there is no script: the file can be mailed, archived or printed, and opens without
a network. Tables and figures carry what screen readers need, colours follow the reader's light or dark setting, and
every text is escaped.
"""

import base64
import io
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ambient_sci.errors import DataError, OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pairs_table", "write_report"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --muted: #5b6770; --paper: #ffffff; --line: #dfe4e8; --soft: #f4f6f8;
  --accent: #0067a3; --warn: #8a4b00; --warn-paper: #fff5e5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --muted: #9aa7b1; --paper: #14181b; --line: #31393f;
  --soft: #1d2327; --accent: #6cb8ea; --warn: #ffc77d; --warn-paper: #33270f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.25rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem); }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 0.4rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.9rem; letter-spacing: -0.01em; }
p { max-width: 42rem; margin: 0 0 1rem; }
.date { color: var(--muted); font-size: 0.9rem; margin-bottom: 2rem; }
.warnings { border-left: 4px solid var(--warn); background: var(--warn-paper); padding: 0.9rem 1.2rem; margin: 0 0 2rem;
  border-radius: 0 6px 6px 0; }
.warnings h2 { font-size: 1rem; margin: 0 0 0.3rem; color: var(--warn); }
.warnings ul { margin: 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 1.4rem 0.5rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; font-size: 0.85rem; border-bottom-width: 2px; white-space: nowrap; }
th[scope="row"] { font-weight: 500; }
.results { min-width: min(100%, 34rem); }
.results td, .results thead th:not(:first-child) { text-align: right; }
.results td.best { font-weight: 700; color: var(--accent); }
.pairs { width: 100%; font-size: 0.9rem; }
.pairs th { width: 14rem; color: var(--muted); }
.pairs td { overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: 0.85rem; white-space: pre-wrap; }
figure { margin: 0 0 2.2rem; }
.frame { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: #fff; padding: 0.5rem;
  width: fit-content; max-width: 100%; }
.frame img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 0.9rem; margin-top: 0.6rem; max-width: 46rem; }
.note { color: var(--muted); font-size: 0.85rem; margin-top: 0.6rem; }
@media (max-width: 36rem) { body { font-size: 16px; } .pairs th { width: 40%; }
  th, td { padding-right: 0.9rem; } .wide img { max-width: none; width: 44rem; } }
@media print { :root { --ink: #000; --muted: #444; --paper: #fff; --line: #bbb; --accent: #000; --warn-paper: #fff; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2 { margin-top: 1.6rem; break-after: avoid; }
  figure, tr, .warnings { break-inside: avoid; } .frame img { max-height: 22cm; object-fit: contain; } }
"""


def write_report(
    path: str | os.PathLike[str],
    title: str,
    summary: Sequence[str] = (),
    rows: Sequence[Mapping[str, Any]] = (),
    figures: "Sequence[tuple[str, Figure | bytes]]" = (),
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    best: Mapping[str, str] | None = None,
) -> Path:
    """Write a report.

    Parameters
    ----------
    path
        File to write, replaced when it exists; never left half-written.
    title
        Heading of the report.
    summary
        Paragraphs of plain text.
    rows
        Rows of the table of results, each a mapping of column title to value; the first column names the row.
        Numbers of a column are shown with as many decimals as give its largest four digits.
    figures
        Captions with figures: matplotlib figures, or the bytes of a PNG, JPEG or SVG image. The first sentence of a
        caption is what a screen reader says for the image.
    settings, provenance
        What was run, with what; nested mappings are shown with dotted names.
    warnings
        What a reader must know before the results; shown first.
    best
        Columns whose best number is set off: column title to ``"min"`` or ``"max"``.

    Returns
    -------
    Path
        Where the report is.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    made = datetime.now(UTC).astimezone()
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="date"><time datetime="{made.isoformat(timespec="seconds")}">{made:%d %B %Y, %H:%M}</time></p>',
    ]
    if warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
        body.append(
            f'<section class="warnings" aria-labelledby="warnings"><h2 id="warnings">Before reading on</h2>'
            f"<ul>{items}</ul></section>"
        )
    body += [f"<p>{escape(paragraph)}</p>" for paragraph in summary]
    if rows:
        body.append(_section("results", "Results", _results(rows, best or {})))
    if figures:
        drawn = "".join(_figure(number, caption, image) for number, (caption, image) in enumerate(figures, 1))
        body.append(_section("figures", "Figures", drawn))
    for name, pairs in (("Settings", settings), ("Provenance", provenance)):
        if pairs:
            body.append(_section(name.lower(), name, pairs_table(name, pairs)))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
    return _write(Path(path), page)


def _section(name: str, heading: str, content: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{content}</section>'


def _results(rows: Sequence[Mapping[str, Any]], best: Mapping[str, str]) -> str:
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
            text = f"{value:.{digits[column]}f}" if isinstance(value, float) else _text(value)
            cells.append(f"<td{mark}>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="note">Bold: best of its column ({escape(", ".join(winners))}).</p>' if winners else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="results"><table class="results">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table></div>{note}"
    )


def _decimals(values: Sequence[Any]) -> int:
    largest = max((abs(value) for value in values if isinstance(value, float) and math.isfinite(value)), default=0.0)
    return max(3 - math.floor(math.log10(largest)), 0) if largest > 0 else 0


def _figure(number: int, caption: str, image: "Figure | bytes") -> str:
    width, wide = "", ""
    if not isinstance(image, bytes):
        pixels = round(110 * image.get_figwidth())
        width, wide = f' width="{pixels}"', ' class="wide"' if pixels > 700 else ""
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", metadata={"Software": None})
        image = buffer.getvalue()
    start = image[:256].lstrip()
    if image.startswith(b"\x89PNG"):
        kind = "png"
    elif image.startswith(b"\xff\xd8"):
        kind = "jpeg"
    elif start.startswith((b"<svg", b"<?xml")):
        kind = "svg+xml"
    else:
        raise DataError(f"figure {number} must be a matplotlib figure or PNG, JPEG or SVG bytes, got {image[:8]!r}")
    spoken = caption.split(". ")[0].rstrip(".")
    data = base64.b64encode(image).decode()
    focus = ' tabindex="0"' if wide else ""  # it may scroll, and must do so from the keyboard too
    source = f"data:image/{kind};base64,{data}"
    return (
        f'<figure{wide}><div class="frame"{focus}><img{width} src="{source}" alt="{escape(spoken)}"></div>'
        f"<figcaption><b>Figure {number}.</b> {escape(caption)}</figcaption></figure>\n"
    )


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
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise OutputError(f"cannot write the report {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OutputError(f"cannot write the report {path}: {error.strerror or error}") from error
    return path
