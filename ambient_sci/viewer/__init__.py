"""What this package writes, as HTML files to look through and to show: `view`, and what ``ambient-sci view`` writes.

Every file opens from the disk without a network and holds all that it shows (`ambient_sci.report`).

- a reconstruction (`reconstruction`): the images themselves, in 16 bits (`arrays`). A reader goes through scans and
  samples, zooms into all panels at once, sets grey and colour scales, lays the spread over the mean and reads values
  under the pointer. ``viewer.html``, ``viewer.css`` and ``viewer.js`` are what is in the page beside the images.
- a `run`, a `validation`, an `audit`: verdicts, charts and tables, without a script.
"""

from ambient_sci.viewer.audit import write_audit
from ambient_sci.viewer.recognise import view
from ambient_sci.viewer.reconstruction import write_viewer
from ambient_sci.viewer.run import write_run
from ambient_sci.viewer.validation import write_validation

__all__ = ["view", "write_audit", "write_run", "write_validation", "write_viewer"]
