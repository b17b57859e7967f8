"""Importers by name: a plug-in of another distribution, and what goes wrong on the way into a store."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ambient_sci.datasets import RawScan, ReadyScan, import_files, import_scans, open_store
from ambient_sci.errors import ConfigError, DataError, NotFoundError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Gaussian

TOY = '''
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from ambient_sci.datasets import RawScan


def read_toy(paths: list[Path], *, gain: Annotated[float, "what to multiply by"] = 1.0) -> Iterator[RawScan]:
    """Read the toy format.

    Examples
    --------
    ::

        ambient-sci import toy a.toy b.toy scans.zarr --gain 2
    """
    for path in paths:
        values = np.full((1, 8, 8), gain * float(path.read_text()), np.complex64)
        yield RawScan(values, noise_std=0.5, coords={"file": path.stem, "subject": 7})
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distribution with an importer, and one whose importer is broken, installed as their users would."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip in this environment")
    home = tmp_path_factory.mktemp("importers")
    for name, code in {"toy": TOY, "torn": "raise RuntimeError('out of order')"}.items():
        project = home / name
        project.mkdir()
        (project / f"format_{name}.py").write_text(code)
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "format-{name}"\nversion = "1.0"\n'
            f'[project.entry-points."ambient_sci.importers"]\n{name} = "format_{name}:read_{name}"\n'
            f'[tool.setuptools]\npy-modules = ["format_{name}"]\n'
        )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    folders = [str(home / "toy"), str(home / "torn")]
    done = subprocess.run(
        [*pip, "--no-build-isolation", f"--target={home / 'site'}", *folders],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home / "site"


def test_an_installed_importer_is_a_command(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "a.toy").write_text("2")
    (tmp_path / "b.toy").write_text("3")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        start = "from ambient_sci.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", start, "import", *arguments],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip

    told = command("--help")
    assert "toy" in told.stdout
    assert "Read the toy format." in told.stdout
    assert "'torn' (format_torn:read_torn) does not load: out of order" in told.stderr
    told = command("toy", "--help")
    assert "what to multiply by" in told.stdout
    assert "ambient-sci import toy a.toy b.toy scans.zarr --gain 2" in told.stdout
    done = command("toy", "a.toy", "b.toy", "scans.zarr", "--gain", "2")
    assert done.returncode == 0, done.stderr
    with open_store(tmp_path / "scans.zarr") as store:
        scans = store.read(slice(None), raw=True)
        assert store.attrs["provenance"]["options"] == {"gain": 2.0}
        assert store.coords["file"].tolist() == ["a", "b"]
        assert store.coords["subject"].tolist() == [7, 7]
    np.testing.assert_array_equal(scans.y[:, 0, 0, 0], [4, 6])
    np.testing.assert_array_equal(scans.noise_std, [0.5, 0.5])
    wrong = command("toi", "a.toy", "x.zarr")
    assert wrong.returncode == 2
    assert "No such command 'toi'" in wrong.stderr


def test_ready_scans_are_stored_as_they_are(tmp_path: Path, container: str) -> None:
    A = Gaussian(7, (1, 4, 4), torch.tensor([3]))
    y = A(torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    scans = (ReadyScan(Measurement(y, A, 0.1), {"field": "north"}) for _ in range(3))
    store = import_scans(scans, tmp_path / f"a.{container}", progress=False)
    assert len(store) == 3
    assert torch.equal(store.read(2, raw=True).y, y)
    assert store.coords["field"].tolist() == ["north"] * 3


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown importer 'fastmry'; installed: .*array"):
        import_files("fastmry", tmp_path, tmp_path / "a.zarr")
    with pytest.raises(NotFoundError, match=r"nothing to import at .*none.npy: there is no such file"):
        import_files("array", tmp_path / "none.npy", tmp_path / "a.zarr")
    with pytest.raises(DataError, match="there are no scans to import"):
        import_scans([], tmp_path / "a.zarr", progress=False)
    with pytest.raises(DataError, match=r"k-space must be complex \(coil, ...\), got float64"):
        RawScan(np.zeros((2, 3)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a trajectory and the shape of the image must be given together"):
        RawScan(np.zeros((2, 3), np.complex64), trajectory=np.zeros((3, 2)))
    assert not list(tmp_path.iterdir())


def test_a_single_error_leaves_nothing(tmp_path: Path) -> None:
    good = RawScan(np.ones((1, 8, 8), np.complex64), noise_std=1.0)
    bad = RawScan(np.full((1, 8, 8), np.nan, np.complex64), noise_std=1.0)
    with pytest.raises(DataError, match="kspace of scan 1 has 64 NaN"):
        import_scans([good, bad], tmp_path / "a.zarr", progress=False)
    assert not list(tmp_path.iterdir())
