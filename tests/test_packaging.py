"""What is installed, what it loads, and which module may import which."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ambient_sci

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("ambient_sci", "operators", "datasets")

# ------------------------------------------------------------------------------------------- what is installed


def module_name(path: Path) -> str:
    """Import name of a file of this repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ambient_sci" else ("ambient_sci", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Every module by name; the two links are other ways to the same files."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    links = [ROOT / "ambient_sci" / name for name in FOLDERS[1:]]
    return {module_name(path): path for path in paths if not any(path.is_relative_to(link) for link in links)}


def test_every_folder_of_code_is_installed() -> None:
    on_disk = {name for name, path in sources().items() if path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    without = {path.parent for path in sources().values()} - {sources()[name].parent for name in on_disk}
    assert not without, "folders without an __init__.py"


def test_every_file_of_data_is_installed() -> None:
    """A glob of package-data matches each file beside the code, and each glob matches some."""
    settings = PROJECT["tool"]["setuptools"]
    folders = {name: sources()[name].parent for name in settings["packages"]}
    on_disk = {
        path
        for folder in folders.values()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    installed = [set(folders[name].glob(glob)) for name, globs in settings["package-data"].items() for glob in globs]
    assert all(installed)
    assert set().union(*installed) == on_disk


def test_links_show_the_folders() -> None:
    for name in FOLDERS[1:]:
        link = ROOT / "ambient_sci" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("name", FOLDERS[1:])
def test_folders_are_not_imported_by_their_own_names(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: import this package as ambient_sci.{name}" in done.stderr


def entry_points() -> list[str]:
    project = PROJECT["project"]
    return [
        *project["scripts"].values(),
        *(value for group in project["entry-points"].values() for value in group.values()),
    ]


@pytest.mark.parametrize("value", entry_points())
def test_entry_points_can_be_imported(value: str) -> None:
    module, _, name = value.partition(":")
    assert callable(getattr(import_module(module), name))


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == ambient_sci.__version__


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins), "exact, and of no particular build"
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}


def needed(requirements: list[str], extras: set[str], seen: set[tuple[str, str]]) -> Iterator[Requirement]:
    """What requirements install here, and what these require in turn."""
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        yield requirement
        key = (canonicalize_name(requirement.name), ",".join(sorted(requirement.extras)))
        if key not in seen:
            seen.add(key)
            try:
                yield from needed(requires(requirement.name) or [], set(requirement.extras), seen)
            except PackageNotFoundError:
                continue


def test_constraints_name_everything_that_is_installed() -> None:
    pins = constraints()
    project = PROJECT["project"]
    asked = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    asked = [text for text in asked if not text.startswith(project["name"])]
    every = {(canonicalize_name(r.name), r.specifier) for r in needed(asked, set(), set())}
    # torch names the libraries of its CUDA build, which differ between platforms
    every = {(name, wanted) for name, wanted in every if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not {name for name, _ in every} - set(pins)
    wrong = [f"{name}=={pins[name]}, not {wanted}" for name, wanted in every if not wanted.contains(pins[name], True)]
    assert not wrong


# ------------------------------------------------------------------------------------------- what is loaded


def test_importing_the_package_is_quick() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import ambient_sci; took = time.perf_counter() - start; "
        "heavy = {'torch', 'numpy', 'xarray', 'zarr', 'h5py', 'matplotlib', 'diffusers'} & set(sys.modules); "
        "assert not heavy, heavy; assert took < 0.5, took"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_loaded_on_first_use() -> None:
    for name in ambient_sci.__all__:
        assert callable(getattr(ambient_sci, name))
        assert name in dir(ambient_sci)
    with pytest.raises(AttributeError, match="has no attribute 'reconstrcut'"):
        ambient_sci.reconstrcut  # noqa: B018


# ------------------------------------------------------------------------------------------- who imports whom

# From below to above, as docs/architecture.md has it: a module imports from its own line and from those before it.
LINES = [
    "errors, registry, cards",
    "operators",
    "measurement, seeding, signals, distributed",
    "network, denoise, schedule, sample, posterior, objectives, pretrained, prior, checkpoint, config, "
    "baselines, stationary, "
    "evaluate.metrics, evaluate.predictive, evaluate.calibration, evaluate.figures, plot, charts, findings, report",
    "datasets",
    "methods, warm_start, validation, runs, steps, logs, model_card, optimizers, finetuning, privacy, training, "
    "reconstruction, evaluate.compare, evaluate.held_out, check, audit, viewer",
    "demo",
    "cli",
]
LEVEL = {f"ambient_sci.{name}": level for level, line in enumerate(LINES) for name in line.split(", ")}
MATHEMATICS, DATASETS = 3, 4
EVERYWHERE = {"ambient_sci", "ambient_sci.evaluate"}  # packages whose __init__ only gathers names


def level(module: str) -> int | None:
    """Line of a module or of the package that it is in."""
    while module not in LEVEL and "." in module:
        module = module.rpartition(".")[0]
    return LEVEL.get(module)


def imports(path: Path, on_loading: bool = False) -> Iterator[str]:
    """Modules of this package that a file imports: all, or those that loading it loads."""

    def visit(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if typing_only or (on_loading and function):
                continue
            yield child
            yield from visit(child)

    for node in visit(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ambient_sci")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ambient_sci":
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in sources() else str(node.module) for name in inside)


@pytest.mark.parametrize("module", sources())
def test_imports_point_one_way(module: str) -> None:
    own = level(module)
    if module in EVERYWHERE or module.startswith("ambient_sci.testing"):
        return
    assert own is not None, f"{module} has no place in docs/architecture.md"
    for other in set(imports(sources()[module])) - {"ambient_sci"}:
        theirs = level(other)
        if other == "ambient_sci.evaluate":  # its names are those of evaluate.metrics
            theirs = LEVEL["ambient_sci.evaluate.metrics"]
        assert theirs is not None, other
        assert theirs <= own, f"{module} imports {other}"
        assert (own, theirs) != (DATASETS, MATHEMATICS), f"{module} imports {other}"


def test_no_module_imports_itself_on_the_way() -> None:
    graph = {name: set(imports(path, on_loading=True)) - {name} for name, path in sources().items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules in question


def test_architecture_page_has_these_lines() -> None:
    (text,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert text.splitlines() == LINES


def test_contributing_names_what_exists() -> None:
    """In the table of where new things go: ``symbol`` in [file](file)."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    places = re.findall(r"`([^`]+)` in \[[^\]]+\]\(([^)]+)\)", text)
    assert len(places) > 10
    missing = [(symbol, path) for symbol, path in places if symbol not in (ROOT / path).read_text()]
    assert not missing
