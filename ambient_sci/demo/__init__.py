"""Data to try the package on: a cohort of brain images that needs no download.

`ambient_sci.demo.cohort` makes it from the anatomy that nilearn ships (the ``demo`` extra).
"""

from ambient_sci.demo.cohort import make_cohort

__all__ = ["make_cohort"]
