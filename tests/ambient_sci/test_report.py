import base64
import hashlib
import os
import re
import stat
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from ambient_sci.errors import DataError, OutputError
from ambient_sci.report import checks, details, facts, figure, items, pairs_table, table, write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Tags in order, checked for balance."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def report(tmp_path, **changes):
    drawn = Figure(figsize=(2, 1))
    drawn.add_subplot().plot([0, 1])
    rows = [
        {"Method": "L1-wavelet", "NRMSE": 0.2345, "PSNR / dB": 20.5},
        {"Method": "Posterior <mean>", "NRMSE": 0.09876, "PSNR / dB": 25.125},
    ]
    figures = [('Errors "in" the head. More of it.', drawn), ("A pixel", PNG), ("A drawing", b"<svg></svg>")]
    settings = {"seed": 0, "train": {"images": 1000, "levels": (64, 128)}, "device": None, "torch": "2.13.0"}
    arguments = {
        "title": "Brain & <b>knee</b>",
        "summary": ["First paragraph.", "<script>alert('x')</script>"],
        "sections": {
            "Results": table("Results", rows, {"NRMSE": "min", "PSNR / dB": "max"}),
            "Figures": "".join(figure(*one) for one in figures),
            "Settings": pairs_table("Settings", settings),
            "Checks": checks([("One", True, "well"), ("<Two>", False, "ill"), ("Three", None, "who knows")]),
            "Facts": facts({"scans": 3, "mean": float("nan")}) + details("More & more", items(["see `ls <folder>`"])),
            "Nothing": "",
        },
        "warnings": ["A quick run."],
        "verdict": (False, "1 < 2"),
    }
    path = write_report(tmp_path / "report.html", **(arguments | changes))
    return path, path.read_text(encoding="utf-8")


def test_is_one_file_that_needs_nothing(tmp_path):
    path, text = report(tmp_path)
    page = Page(text)
    assert os.listdir(tmp_path) == ["report.html"]
    assert not page.all("script")
    sources = [attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if "src" in attrs or "href" in attrs]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_text_is_escaped(tmp_path):
    _, text = report(tmp_path)
    assert "<title>Brain &amp; &lt;b&gt;knee&lt;/b&gt;</title>" in text
    assert "&lt;script&gt;" in text
    assert "Posterior &lt;mean&gt;" in text


def test_figures_have_alternative_text_and_captions(tmp_path):
    _, text = report(tmp_path)
    page = Page(text)
    assert [attrs["alt"] for attrs in page.all("img")] == ['Errors "in" the head', "A pixel", "A drawing"]
    kinds = [re.match(r"data:image/([a-z+]+);base64,", attrs["src"])[1] for attrs in page.all("img")]
    assert kinds == ["png", "png", "svg+xml"]
    data = page.all("img")[1]["src"].split(",")[1]
    assert base64.b64decode(data) == PNG
    assert len(page.all("figcaption")) == 3


def test_tables_have_headers_and_the_best_is_set_off(tmp_path):
    _, text = report(tmp_path)
    page = Page(text)
    assert [attrs["scope"] for attrs in page.all("th")][:3] == ["col"] * 3
    assert re.findall(r'<td class="best">([^<]*)<', text) == ["0.0988", "25.12"]
    assert "0.2345" in page.words
    assert {"train.images", "train.levels", "64, 128", "2.13.0"} <= set(page.words)
    assert "A quick run." in page.words


def test_everything_but_the_title_may_be_missing(tmp_path):
    text = write_report(tmp_path / "new" / "report.html", "Title", {}).read_text()
    assert not Page(text).all("table")


def test_nothing_gets_in(tmp_path):
    """The policy allows one style, that of the page, by its hash, and no script."""
    _, text = report(tmp_path)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    known = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{known}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not re.search(r"<[^>]+ style=", text)  # which the policy would refuse


def test_verdicts_are_words_and_not_only_colours(tmp_path):
    _, text = report(tmp_path)
    page = Page(text)
    assert "✗ Not passed:" in page.words
    assert "1 &lt; 2" in text
    signs = [attrs["aria-label"] for attrs in page.all("i")]
    assert signs == ["passed", "not passed", "for information"]
    assert "Nothing" not in page.words
    assert {"3", "–", "More & more", "ls <folder>"} <= set(page.words)
    passed = report(tmp_path, verdict=(True, "all is well"))[1]
    assert "✓ Passed:</b> all is well" in passed


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="a figure must be"):
        figure("Text", b"hello")
    with pytest.raises(DataError, match="row 1 has"):
        table("Rows", [{"a": 1}, {"b": 1}])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", "Title", {})


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path, before = report(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="the disk is full"):
        report(tmp_path, title="Another")
    assert path.read_text(encoding="utf-8") == before
    assert os.listdir(tmp_path) == ["report.html"]
