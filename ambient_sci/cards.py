"""How objects show themselves in a notebook: a small table, and a picture where there is one to see."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["card", "png"]

SIDE = 128  # pixels that a picture is brought to, at least
_CELL = 'style="text-align: left; padding: 0.1em 1em 0.1em 0; overflow-wrap: anywhere"'


def card(title: str, facts: Mapping[str, Any], picture: Any = None, caption: str = "") -> str:
    """HTML for ``_repr_html_``, which needs nothing else.

    Parameters
    ----------
    title
        What it is.
    facts
        Its properties, in order.
    picture
        A tensor ``(height, width)``, drawn from black to white; none where it is not of two dimensions.
    caption
        What the picture shows.
    """
    rows = "".join(
        f'<tr><th scope="row" {_CELL}>{escape(name)}</th><td {_CELL}>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    table = f"<div><strong>{escape(title)}</strong><table>{rows}</table></div>"
    if picture is None or picture.ndim != 2:
        return table
    data = base64.b64encode(png(picture)).decode()
    figure = (
        f'<figure style="margin: 0"><img src="data:image/png;base64,{data}" alt="{escape(caption)}" '
        f'style="image-rendering: pixelated"><figcaption>{escape(caption)}</figcaption></figure>'
    )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1.5em; align-items: start">{table}{figure}</div>'


def png(picture: Any) -> bytes:
    """PNG of a tensor or array ``(height, width)`` from black to white, enlarged by a whole number."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture.detach().cpu() if hasattr(picture, "detach") else picture, np.float64)
    low, high = values.min(), values.max()
    grey = np.rint(255 * (values - low) / (high - low if high > low else 1)).astype(np.uint8)
    times = [max(1, -(-SIDE // size)) for size in grey.shape]
    times = times if 1 in grey.shape else [min(times)] * 2  # a line of k-space becomes a strip
    file = io.BytesIO()
    Image.fromarray(grey.repeat(times[0], 0).repeat(times[1], 1)).save(file, "png")
    return file.getvalue()
