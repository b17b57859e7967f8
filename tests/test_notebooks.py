"""Notebooks: each runs from top to bottom at quick size, and agrees with the script that it is paired with."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def images(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield output["data"]["image/png"]


def test_every_notebook_has_a_script() -> None:
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_script_and_notebook_agree(path: Path) -> None:
    """`jupytext --sync notebooks/*.py` makes them agree; outputs are not committed."""
    notebook = nbformat.read(path, as_version=4)
    assert cells(notebook) == cells(jupytext.read(path.with_suffix(".py")))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, work = tmp_path / "here", tmp_path / "work"
    here.mkdir()
    for name, value in {
        "AMBIENT_SCI_QUICK": "1",
        "AMBIENT_SCI_WORK": str(work),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),  # this environment's kernel, not the user's
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()
    assert len(list(images(notebook))) >= 5, "figures are shown"
    assert any(work.iterdir())
    assert not any(here.iterdir()), "a notebook writes to its working folder only"
