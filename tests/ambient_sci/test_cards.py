"""What objects show of themselves in a notebook."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ambient_sci.cards import SIDE, card
from ambient_sci.datasets import open_store
from ambient_sci.operators import Fourier, Gaussian, Mask
from ambient_sci.prior import load_prior


def picture_of(html: str) -> np.ndarray:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class Text(HTMLParser):
    """The text of a card, and whether its elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_cards_escape_what_they_show() -> None:
    html = card("<b>title</b>", {"a<b": '"x" & <script>'}, torch.rand(4, 4), '"quoted"')
    assert "<script>" not in html
    assert "<b>" not in html
    text = Text(html).text
    assert 'a<b "x" & <script>' in text
    assert '"quoted"' in text


def test_a_picture_is_enlarged_by_a_whole_number() -> None:
    values = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.25]])
    picture = picture_of(card("", {}, values))
    times = -(-SIDE // 3)
    assert picture.shape == (2 * times, 3 * times)
    assert picture[::times, ::times].tolist() == [[0, 255, 128], [255, 0, 64]]
    assert picture_of(card("", {}, torch.ones(5, 5))).max() == 0  # nothing to see, and no division by zero
    assert "img" not in card("", {}, torch.ones(5))


def test_operators_show_what_they_measure() -> None:
    lines = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 1]]).reshape(2, 1, 1, 4)
    html = Fourier(lines)._repr_html_()
    assert "75.0% of the rows" in Text(html).text
    picture = picture_of(html)
    assert picture.shape == (SIDE, SIDE)  # a strip for each column of k-space
    assert picture[0, :: SIDE // 4].tolist() == [0, 255, 255, 0]
    mask = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    assert np.array_equal(picture_of(Mask(mask)._repr_html_())[:: SIDE // 8, :: SIDE // 8] > 0, mask[0, 0].bool())
    assert "seed" in Text(Gaussian(4, (1, 8, 8), 3)._repr_html_()).text


def test_stores_measurements_and_priors_show_themselves(store_path: Path, run_path: Path) -> None:
    store = open_store(store_path)
    m = store.read(range(2))
    seen = m.operator[0].adjoint(m.y[:1])[0, 0].abs().numpy()
    bright = np.unravel_index(seen.argmax(), seen.shape)
    for html in (store._repr_html_(), m._repr_html_()):
        times = -(-SIDE // seen.shape[-1])
        picture = picture_of(html)[::times, ::times]
        assert picture.shape == seen.shape
        assert picture[bright] == 255
    assert f"scans {len(store)}" in Text(store._repr_html_()).text
    assert "noise" in Text(m._repr_html_()).text
    prior = load_prior(run_path, "cpu")
    text = Text(prior._repr_html_()).text
    assert prior.fingerprint() in text
    assert f"{prior.images:,} images shown" in text
