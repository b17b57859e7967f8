r"""What the site needs beside Sphinx and its themes: an extension, which `conf` names.

- A page for every module of the package, from its docstring and its ``__all__``; packages list what they gather.
- Names in single backquotes are found wherever Python finds them from the place that they stand in.
- Formulas become MathML when the site is built, so that no page needs a script for them.
- Links of Markdown files to modules lead to their pages.
- A public name that no page documents is a warning, and so an error with ``-W``.
"""

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import pydoc
import re
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from ambient_sci import TrainConfig

__all__ = ["missing_names", "modules", "setup"]

PACKAGE = "ambient_sci"
COMMAND_LINE = "ambient_sci.cli"  # what it defines has --help
PAGES = "docs/api"
NAPOLEON = Config(napoleon_use_rtype=False)
LONGEST = 200  # characters of a value that is shown

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------ pages of modules


def modules(package: str) -> Iterator[ModuleType]:
    """Load a package and every module below it but the command line."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not found.name.startswith(COMMAND_LINE):
            yield importlib.import_module(found.name)


def write_pages(app: Sphinx) -> None:
    """Write the pages of modules that are not there yet, or not like this."""
    folder = Path(app.srcdir, PAGES)
    folder.mkdir(exist_ok=True)
    pages = {f"{module.__name__}.rst": page(module) for module in modules(PACKAGE)}
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def page(module: ModuleType) -> str:
    """Restructured text of a module's page."""
    name, names = module.__name__, list(getattr(module, "__all__", ()))
    own, comments = [each for each in names if each in bound(module)], commented(module)
    code = [each for each in own if is_code(getattr(module, each))]
    lines = [name, "=" * len(name), "", f".. automodule:: {name}"]
    lines += [f"   :members: {', '.join(code)}" if code else "   :no-members:", ""]
    for each in own:
        value = repr(getattr(module, each))
        if each in comments:
            lines += [f".. autodata:: {name}.{each}", "   :no-value:" if len(value) > LONGEST else "", ""]
        elif each not in code:  # autodoc would show what is said of its type
            lines += [f".. py:data:: {name}.{each}", f"   :value: {value}" if len(value) <= LONGEST else "", ""]
    if gathered := [each for each in names if each not in own]:
        lines += [".. list-table::", "   :widths: auto", ""]
    for each in gathered:
        value = getattr(module, each)
        about = (inspect.getdoc(value) or "").split("\n\n")[0].splitlines() if is_code(value) else []
        lines += [f"   * - `{each} <{origin(module, each)}>`", f"     - {' '.join(about)}"]
    if hasattr(module, "__path__"):
        below = sorted(pkgutil.iter_modules(module.__path__, f"{name}."), key=lambda each: (not each.ispkg, each.name))
        lines += ["", ".. toctree::", "   :maxdepth: 1", ""]
        inside = [each.name for each in below if each.name != COMMAND_LINE]
        lines += [f"   {each.removeprefix(f'{name}.')} <{each}>" for each in inside]
    return "\n".join([*lines, ""])


def is_code(value: Any) -> bool:
    """Whether a value has a docstring of its own: a module, class or function."""
    return isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value))


def origin(module: ModuleType, name: str) -> str:
    """Full name of something that a module defines, or gathers from another one."""
    value = getattr(module, name)
    if is_code(value):
        return home(value) or f"{module.__name__}.{name}"
    tree = ast.parse(inspect.getsource(module))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    sources = [str(node.module) for node in froms if any(name == alias.name for alias in node.names)]
    return f"{(sources or [module.__name__])[0]}.{name}"


def commented(module: ModuleType) -> set[str]:
    """Names of a module's other values that a comment ``#:`` or a string describes."""
    return {name for owner, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs() if not owner}


def bound(module: ModuleType) -> set[str]:
    """Names that a module defines itself."""
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names


def home(value: Any) -> str | None:
    """Full name under which a module, class or function is documented; of other values nothing is known."""
    if isinstance(value, ModuleType):
        return value.__name__
    value = inspect.unwrap(value) if callable(value) else value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name else None


# ------------------------------------------------------------------------------------------------ names


def find_name(app: Sphinx, env: Any, node: Any, text: nodes.TextElement) -> Any:
    """Resolve a name that Sphinx did not: an import, a member of something, or a name that there is once."""
    if node.get("refdomain") != "py":
        return None
    target, module, owner = node["reftarget"], node.get("py:module"), node.get("py:class")
    known = env.domains.python_domain.objects

    def link(name: str) -> Any:
        return make_refnode(app.builder, node["refdoc"], *known[name][:2], text, name)

    for place in (f"{module}.{owner}.", f"{module}.", "", f"{PACKAGE}."):
        value = locate(place + target)
        if value is not None:
            return link(name) if (name := home(value) or place + target) in known else text
    matches = [name for name in known if name.endswith(f".{target}")]
    if len(matches) == 1:
        return link(matches[0])
    root, imported = target.split(".")[0], typing_imports(module) if module else set()
    return text if root in sys.stdlib_module_names or root in imported else None


def locate(name: str) -> Any:
    """Find what a full name stands for, or the class of which it is a field."""
    value = pydoc.locate(name)
    if value is None:
        parent, _, field = name.rpartition(".")
        owner = pydoc.locate(parent) if parent else None
        return owner if field in getattr(owner, "__annotations__", {}) else None
    return value


@functools.cache
def typing_imports(module: str) -> set[str]:
    """Names that a module imports, also those for type checkers alone."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def missing_names(packages: Iterable[ModuleType], documented: Container[str]) -> list[str]:
    """Public names of packages, by ``__all__``, that are not among those that pages document."""
    missing = []
    for package in packages:
        for name in getattr(package, "__all__", ()):
            value, full = getattr(package, name), origin(package, name)
            own = sys.modules.get(full.rpartition(".")[0], package)
            described = bool(value.__doc__) if is_code(value) else name in commented(own)
            if not described or full not in documented:
                missing.append(f"{package.__name__}.{name}")
    return missing


def check_names(app: Sphinx, env: Any) -> None:
    """Warn of public names that no page documents."""
    packages = [module for module in modules(PACKAGE) if hasattr(module, "__path__")]
    for name in missing_names(packages, env.domains.python_domain.objects):
        logger.warning("public name without documentation: %s", name)


# ------------------------------------------------------------------------------------------------ docstrings


def skip_options(app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave fields of options to `list_options`."""
    return True if name == "model_config" or name in TrainConfig.model_fields else None


def list_options(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Show the fields of options with their defaults and what they do."""
    if not (inspect.isclass(value) and issubclass(value, BaseModel)):
        return
    lines += ["", "Parameters", "----------"]
    for field, about in value.model_fields.items():
        default = "" if about.is_required() else f" (default {about.default!r})"
        lines += [field, f"    {about.description}{default}"]


def short_signature(app: Sphinx, kind: str, name: str, value: Any, *rest: Any) -> tuple[str, None] | None:
    """Options have a list; their signature would be the same once more."""
    return ("(**options)", None) if inspect.isclass(value) and issubclass(value, BaseModel) else None


def sections(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Read the sections of numpydoc. Attributes have none: napoleon would take words before a colon for types."""
    if kind not in ("attribute", "data", "property"):
        lines[:] = NumpyDocstring(lines, NAPOLEON, app, kind, name, value, options).lines()


# ------------------------------------------------------------------------------------------------ links and formulas


def lead_to_pages(app: Sphinx, document: str, source: list[str]) -> None:
    """Let links of a Markdown file to modules and folders lead to pages."""
    path = Path(app.env.doc2path(document))
    if path.suffix != ".md":
        return

    def page_of(match: re.Match[str]) -> str:
        text, link = match.groups()
        target = Path(os.path.normpath(path.parent / link)).relative_to(app.srcdir)
        parts = target.with_suffix("").parts
        parts = parts[:-1] if parts and parts[-1] == "__init__" else parts
        name = ".".join(parts if parts[:1] == (PACKAGE,) else (PACKAGE, *parts))
        if Path(app.srcdir, PAGES, f"{name}.rst").exists():
            return f"[{text}](/{PAGES}/{name}.rst)"
        if (app.srcdir / target).is_dir():
            pages = (target / "README.md", Path(f"docs/{target}.md"))
            index = next((each for each in pages if (app.srcdir / each).exists()), None)
            return f"[{text}](/{index})" if index else text
        return match[0]

    source[0] = re.sub(r"\[([^\]\[]*)\]\((?![a-z]+:|#)([^)#\s]+?)/?\)", page_of, source[0])


CONVERTER = LatexToMathML(annotation=True)


def mathml(node: Any, display: bool) -> str:
    """Convert a formula; several lines are aligned."""
    latex = node.astext().strip()
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        return CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        logger.warning("formula that cannot be shown: %s", error, location=node)
        return ""


def visit_math(self: Any, node: Any) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node, False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: Any) -> None:
    """Write formulas that stand by themselves."""
    self.body.append(f'<div class="formula">{mathml(node, True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of it."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", write_pages)
    app.connect("source-read", lead_to_pages)
    app.connect("autodoc-skip-member", skip_options)
    app.connect("autodoc-process-docstring", list_options, priority=400)
    app.connect("autodoc-process-docstring", sections)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("missing-reference", find_name)
    app.connect("env-check-consistency", check_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
