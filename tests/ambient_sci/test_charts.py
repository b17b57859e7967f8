"""Charts: that marks lie where their values are, that ticks are round, that everything is named."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ambient_sci.charts import BOTTOM, FEW, HEIGHT, LEFT, MOST, RIGHT, SHAPES, TOP, WIDTH, Series, chart, histogram


def places(html: str) -> np.ndarray:
    """Where marks are, ``(n, 2)``."""
    marks = html.partition("<ul")[0].partition('<g class="marks')[2].partition("</g>")[0]
    return np.array(re.findall(r'd="M([\d.-]+) ([\d.-]+)m', marks), float)


def texts(html: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", html)


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_marks_lie_where_their_values_are(log: str) -> None:
    x, y = np.array([1.0, 10, 100]), np.array([0.01, 0.1, 1])
    html = chart("Title", [Series("a", x, y, "points")], "x", "y", log=log, xlim=(1, 100), ylim=(0.01, 1))
    across = np.log10(x) / 2 if "x" in log else (x - 1) / 99
    up = np.log10(y) / 2 + 1 if "y" in log else (y - 0.01) / 0.99
    wanted = np.stack([LEFT + across * (WIDTH - RIGHT - LEFT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)], 1)
    np.testing.assert_allclose(places(html), wanted, atol=0.051)


def test_what_cannot_be_drawn_is_left_out() -> None:
    x, y = [1.0, 2, 3, 4, 5], [1.0, np.nan, np.inf, -1, 4]
    names = ["one", "two", "three", "four", "five"]
    assert len(places(chart("", [Series("", x, y, "points", 0, names)], "x", "y"))) == 3
    html = chart("", [Series("", x, y, "points", 0, names)], "x", "y", log="y")
    assert re.findall("<title>(.*?)</title>", html) == ["one: x 1, y 1", "five: x 5, y 4"]
    for nothing in ([], [np.nan]):
        for scale in ("", "xy"):
            assert not len(places(chart("", [Series("a", nothing, nothing)], "x", "y", log=scale)))
    assert "nan" not in chart("", [Series("a", [2.0], [3.0])], "x", "y")  # one point has a mark, and the axes a width


@pytest.mark.parametrize(
    ("limits", "log", "wanted"),
    [
        ((0, 1), "", ["0", "0.5", "1"]),
        ((0, 147336), "", ["0", "50k", "100k"]),
        ((0, 4e6), "", ["0", "1M", "2M", "3M", "4M"]),
        ((-0.31, 0.32), "", ["-0.2", "0", "0.2"]),
        ((0.001, 1), "x", ["0.001", "0.01", "0.1", "1"]),
        ((0.4, 2.5), "x", ["0.5", "1", "2"]),
        ((2, 3), "x", ["2", "2.5", "3"]),
    ],
)
def test_ticks_are_round(limits: tuple[float, float], log: str, wanted: list[str]) -> None:
    html = chart("", [Series("", limits, (0, 1))], "x", "y", log=log, xlim=limits, ylim=(0, 1))
    ticks = [text for text in texts(html) if text not in ("x", "y")]
    assert ticks[3:] == wanted  # after those of the other axis: 0, 0.5, 1


def test_a_histogram_has_the_area_of_one() -> None:
    values = np.random.default_rng(0).normal(size=500)
    one = histogram("normal", values, np.linspace(-5, 5, 21), 2)
    assert np.sum(np.asarray(one.y) * np.diff(np.asarray(one.x))) == pytest.approx(1)
    path = re.findall(r'<path class="line" d="(M[^"]+)"', chart("", [one], "x", "density", xlim=(-5, 5)))[0]
    edges = np.array(re.findall(r"H([\d.]+)", path), float)
    np.testing.assert_allclose(edges, LEFT + np.arange(1, 21) / 20 * (WIDTH - RIGHT - LEFT), atol=0.051)


def test_long_lines_are_thinned_and_short_ones_have_marks() -> None:
    for count in (FEW, FEW + 1, 20 * MOST):
        html = chart("", [Series("a", np.arange(count), np.arange(count), "line", 3)], "x", "y")
        assert len(places(html)) == (count if count <= FEW else 0)
        assert len(re.findall(r"[ML][\d.]+ [\d.]+", html.partition('class="line" d="')[2].partition('"')[0])) <= MOST


def test_everything_is_named_and_escaped() -> None:
    series = [
        Series("<one>", [0, 1], [0, 1], "line", 0),
        Series("", [0], [0], "points", 1),
        Series("z", [0, 1], [1], "area"),
    ]
    html = chart("<b>Title</b>", series, "<x>", '"y"', categories=["<p>", "q"], at_x=[0.5], at_y=[0.5], span=(0.2, 0.4))
    assert "<b>" not in html
    assert "<one>" not in html
    assert 'aria-label="&lt;b&gt;Title&lt;/b&gt;: &quot;y&quot; over &lt;x&gt;"' in html
    assert re.findall("<li[^>]*>.*?<span>(.*?)</span>", html) == ["&lt;one&gt;", "z"]
    assert "&lt;p&gt;" in texts(html)
    assert html.count('class="guide"') == 2
    assert html.count('class="span"') == 1
    balanced = Balance(html)
    assert not balanced.open
    assert len(set(SHAPES)) == len(SHAPES)  # colours are not all that tells series apart


class Balance(HTMLParser):
    """Whether elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
