"""Tables in the README of the benchmarks, between markers of their own."""

from pathlib import Path

from ambient_sci.checkpoint import replacing

__all__ = ["write_section"]


def write_section(readme: Path, section: str, text: str) -> None:
    """Put a table between the markers of a section of a Markdown file."""
    first, last = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, opening, rest = readme.read_text().partition(first + "\n")
    _, closing, after = rest.partition(last)
    if not opening or not closing:
        raise SystemExit(f"error: {readme} lacks the markers {first} and {last}")
    with replacing(readme) as partial:
        partial.write_text(before + opening + text + closing + after)
