"""A reconstruction as one HTML file to look through: `write_viewer`, and what ``ambient-sci view`` writes.

The file opens from the disk without a network and holds the images themselves, in 16 bits (`arrays`): a reader goes
through scans and samples, zooms into all panels at once, sets grey and colour scales, lays the spread over the mean
and reads values under the pointer. `page` puts the file together; ``viewer.html``, ``viewer.css`` and ``viewer.js`` are
what is in it beside the images.
"""

from ambient_sci.viewer.page import write_viewer

__all__ = ["write_viewer"]
