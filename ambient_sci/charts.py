"""Charts of a page: SVG that takes the page's colours, in light and in dark, and needs no script.

A chart maps values ``(x, y)`` linearly, or by their logarithms, to a drawing of `WIDTH` times `HEIGHT` units that is as
wide as its column. Colours are those of Okabe and Ito 2008, or lighter ones of the same hues on dark paper; each has a
mark of its own as well. A pointer that rests on a mark is told its numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["STYLE", "Series", "chart", "histogram", "side_by_side"]

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 44
MOST = 500  # points of a line
FEW = 24  # points of a line that has marks
MUTED = 5  # colour of what others are compared with
SHAPES = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "m-3.2 -3.2h6.4v6.4h-6.4z",
    "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "m0 -4.4l4.4 7.6h-8.8z",
    "m0 4.4l4.4 -7.6h-8.8z",
    "m-4 -1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
)
STYLE = """
:root { --k0: #0072b2; --k1: #d55e00; --k2: #008560; --k3: #b55d90; --k4: #9a6a00; --k5: var(--muted); }
@media (prefers-color-scheme: dark) { :root { --k0: #6cb8ea; --k1: #f0803c; --k2: #35c49a; --k3: #e39cc4;
  --k4: #e6c34d; } }
.k0 { color: var(--k0); } .k1 { color: var(--k1); } .k2 { color: var(--k2); } .k3 { color: var(--k3); }
.k4 { color: var(--k4); } .k5 { color: var(--k5); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.4rem 2rem; }
.chart { margin: 0; min-width: 0; max-width: 34rem; }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: 0.95rem; margin: 0 0 0.3rem; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--ink); font-size: 12px; } .chart .label { fill: var(--muted); }
.chart .grid { stroke: var(--line); } .chart .frame { stroke: var(--muted); fill: none; }
.chart .guide { stroke: var(--muted); fill: none; stroke-dasharray: 4 3; }
.chart .span { fill: var(--muted); opacity: 0.14; }
.chart .line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.chart .faint { stroke-width: 1; opacity: 0.55; } .chart .area { fill: currentColor; opacity: 0.28; }
.chart .marks path { fill: currentColor; stroke: var(--paper); stroke-width: 0.8; }
.chart .means path { stroke: currentColor; stroke-width: 4; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; list-style: none; margin: 0.3rem 0 0; padding: 0;
  font-size: 0.85rem; }
.legend li { display: flex; align-items: center; gap: 0.4rem; } .legend span { color: var(--ink); }
.legend svg { width: 22px; flex: none; }
@media print { .charts { grid-template-columns: 1fr 1fr; } }
"""

Kind = Literal["line", "faint", "points", "means", "steps", "area"]


@dataclass(frozen=True)
class Series:
    """Values to draw.

    Attributes
    ----------
    label
        What they are, for the legend; a series without one is not in it.
    x, y
        ``(n,)``; of ``steps`` and ``area``, which are histograms, ``x`` are the ``n + 1`` edges. What is not finite is
        left out.
    kind
        How to draw them; ``means`` are large points.
    colour
        0 to 5, of which the last is that of what the others are compared with; it decides the mark, too.
    names
        What a pointer is told of each point before its numbers.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    kind: Kind = "line"
    colour: int = 0
    names: Sequence[str] = ()


@dataclass(frozen=True)
class _Axis:
    """A scale from values to a place between two ends of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        low, high, at = (np.log(v) if self.log else np.asarray(v, float) for v in (self.low, self.high, values))
        place: NDArray[np.float64] = self.start + (at - low) / (high - low) * (self.end - self.start)
        return place

    @property
    def ticks(self) -> list[float]:
        """Round values between the ends."""
        if self.log:
            first, last = (round(math.log10(value), 9) for value in (self.low, self.high))
            decades = range(math.floor(first), math.ceil(last) + 1)
            for parts in ((1,), (1, 3), (1, 2, 5)):
                every = [part * 10.0**k for k in decades for part in parts]
                inside = [value for value in every if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
                if len(inside) >= 3:
                    return inside[:: -(-len(inside) // 6)]
        width = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(width))
        step = next(part * power for part in (1, 2, 5, 10) if part * power >= width * 0.999)
        first_tick = math.ceil(self.low / step - 1e-6)
        return [k * step for k in range(first_tick, math.floor(self.high / step + 1e-6) + 1)]


def chart(
    title: str,
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    log: str = "",
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    at_x: Sequence[float] = (),
    at_y: Sequence[float] = (),
    span: tuple[float, float] | None = None,
    diagonal: bool = False,
    categories: Sequence[str] = (),
) -> str:
    """Draw series into one chart, as HTML.

    Parameters
    ----------
    title
        What it shows.
    series
        What to draw, from the back to the front.
    x, y
        What the axes are.
    log
        Axes with a logarithmic scale: ``"x"``, ``"y"`` or both, as ``"xy"``. What is not above zero is left out.
    xlim, ylim
        Ends of the axes; by default those of the values.
    at_x, at_y
        Values of which there is a dashed line across the chart.
    span
        Values of ``y`` between which the chart is grey.
    diagonal
        Whether there is a dashed line on which both are equal.
    categories
        Names at 0, 1, ... on the axis of ``x``, instead of numbers.
    """
    drawn = [_finite(one, log) for one in series]
    if categories:
        xlim = (-0.6, len(categories) - 0.4)
    across = _axis([points for _, points, _ in drawn], xlim, at_x, LEFT, WIDTH - RIGHT, "x" in log)
    up = _axis([values for _, _, values in drawn], ylim, at_y, HEIGHT - BOTTOM, TOP, "y" in log)
    ticks: list[tuple[float, str]] = [(value, _short(value)) for value in across.ticks]
    if categories:
        ticks = [(float(k), name) for k, name in enumerate(categories)]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    if span is not None:
        top, base = up([span[1], span[0]]).clip(TOP, bottom)
        parts.append(
            f'<rect class="span" x="{LEFT}" y="{top:.1f}" width="{right - LEFT}" height="{base - top:.1f}"></rect>'
        )
    for value in up.ticks:
        place = float(up(value))
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{right}"></path>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value, text in ticks:
        place = float(across(value))
        parts.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"></path>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"></path>')
    guides = [f"M{float(across(value)):.1f} {TOP}V{bottom}" for value in at_x]
    guides += [f"M{LEFT} {float(up(value)):.1f}H{right}" for value in at_y]
    if diagonal:
        ends = np.array([max(across.low, up.low), min(across.high, up.high)])
        guides.append(_path(across(ends), up(ends)))
    parts += [f'<path class="guide" d="{d}"></path>' for d in guides]
    parts += [_draw(one, points, values, across, up, x, y) for one, points, values in drawn if len(values)]
    parts.append(
        f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>'
    )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )
    keys = "".join(_key(one) for one in series if one.label)
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    said = f"{title}: {y} over {x}"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(said)}">{"".join(parts)}</svg>{legend}</figure>\n'
    )


def side_by_side(*charts: str) -> str:
    """Put charts beside each other where there is room, and below each other where there is none."""
    return f'<div class="charts">{"".join(charts)}</div>'


def histogram(label: str, values: ArrayLike, edges: ArrayLike, colour: int = 0, kind: Kind = "steps") -> Series:
    """Density of values between edges."""
    density, _ = np.histogram(values, edges, density=True)
    return Series(label, edges, density, kind, colour)


def _finite(one: Series, log: str) -> tuple[Series, NDArray[np.float64], NDArray[np.float64]]:
    """Values of a series that can be drawn; long lines are thinned."""
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    if one.kind in ("steps", "area"):
        return one, x, y
    good = np.isfinite(x) & np.isfinite(y)
    for name, values in (("x", x), ("y", y)):
        if name in log:
            good &= np.where(good, values, 0) > 0
    rows = np.flatnonzero(good)
    if one.kind in ("line", "faint"):
        rows = rows[:: max(-(-len(rows) // MOST), 1)]
    names = [one.names[k] for k in rows] if one.names else ()
    return Series(one.label, x, y, one.kind, one.colour, names), x[rows], y[rows]


def _axis(
    values: Sequence[NDArray[np.float64]],
    given: tuple[float, float] | None,
    lines: Sequence[float],
    start: float,
    end: float,
    log: bool,
) -> _Axis:
    if given is not None:
        return _Axis(*given, start, end, log)
    every = np.concatenate([*values, np.asarray(lines, float)])
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    if log:
        low, high = (low, high) if low > 0 else (0.1, 1.0)
        edge = max((high / low) ** 0.04, 1.01)
        return _Axis(low / edge, high * edge, start, end, log)
    edge = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    low = 0.0 if 0 <= low < 0.25 * high else low - edge
    return _Axis(low, high + edge, start, end, log)


def _draw(
    one: Series, x: NDArray[np.float64], y: NDArray[np.float64], across: _Axis, up: _Axis, name_x: str, name_y: str
) -> str:
    if one.kind in ("steps", "area"):
        edges, tops, base = across(x), up(y), float(up(up.low))
        path = f"M{edges[0]:.1f} {base:.1f}" + "".join(
            f"V{top:.1f}H{edge:.1f}" for top, edge in zip(tops, edges[1:], strict=True)
        )
        kind = "area" if one.kind == "area" else "line"
        return f'<g class="k{one.colour}"><path class="{kind}" d="{path}V{base:.1f}"></path></g>'
    places = across(x), up(y)
    found = ""
    if one.kind in ("line", "faint") and len(x) > 1:
        faint = " faint" if one.kind == "faint" else ""
        found = f'<path class="line{faint}" d="{_path(*places)}"></path>'
    if _marked(one) or len(x) == 1:
        marks = []
        for k, (left, top) in enumerate(zip(*places, strict=True)):
            told = f"{one.names[k]}: " if one.names else f"{one.label}: " if one.label else ""
            told += f"{name_x} {x[k]:.4g}, {name_y} {y[k]:.4g}"
            marks.append(f'<path d="M{left:.1f} {top:.1f}{SHAPES[one.colour]}"><title>{escape(told)}</title></path>')
        found += f'<g class="marks{" means" if one.kind == "means" else ""}">{"".join(marks)}</g>'
    return f'<g class="k{one.colour}">{found}</g>'


def _marked(one: Series) -> bool:
    """Whether each point of a series has a mark."""
    return one.kind in ("points", "means") or (one.kind == "line" and np.size(one.x) <= FEW)


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in zip(x, y, strict=True))


def _key(one: Series) -> str:
    """Make an entry of the legend."""
    if one.kind == "area":
        drawn = '<path class="area" d="M2 2h18v10h-18z"></path>'
    elif one.kind == "steps":
        drawn = '<path class="line" d="M2 12v-5h6v-4h7v6h5v3"></path>'
    else:
        faint = " faint" if one.kind == "faint" else ""
        drawn = f'<path class="line{faint}" d="M1 7h20"></path>' if one.kind in ("line", "faint") else ""
        if _marked(one):
            drawn += f'<g class="marks"><path d="M11 7{SHAPES[one.colour]}"></path></g>'
    mark = f'<svg viewBox="0 0 22 14" aria-hidden="true">{drawn}</svg>'
    return f'<li class="k{one.colour}">{mark}<span>{escape(one.label)}</span></li>'


def _short(value: float) -> str:
    """Write the number of a tick, in thousands or millions where it is large."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * factor or (abs(value) >= factor and letter == "M"):
            return f"{value / factor:g}{letter}"
    return f"{0.0 if abs(value) < 1e-12 else value:g}"
