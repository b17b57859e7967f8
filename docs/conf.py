"""The site: ``sphinx-build -W -n -c docs . build/site`` from the root of the repository.

Nothing is fetched, and no page fetches. Notebooks are executed; ``-D nb_execution_mode=off`` leaves their outputs out.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import ambient_sci  # noqa: E402

project = "ambient-sci"
author = copyright = "The ambient-sci developers"
release = version = ambient_sci.__version__

extensions = ["sphinx.ext.autodoc", "myst_nb", "site_pages"]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "benchmarks/README.md", "*.md"]
exclude_patterns = ["docs/_*"]
nitpicky = True
default_role = "py:obj"
suppress_warnings = ["myst.header"]  # levels that are left out

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # progress bars
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # would come from the network

autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "ambient-sci"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
