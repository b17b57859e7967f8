"""Kinds by name: entry points of this distribution, of another, and broken ones."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ambient_sci import operators, registry
from ambient_sci.errors import ConfigError
from ambient_sci.operators import Compose, LinearOperator, Mask, OperatorSpec, from_spec
from ambient_sci.operators.base import GROUP


class Reverse(Mask):
    """A toy plug-in: the image upside down, then masked."""

    kind = "toy-reverse"

    def _forward(self, x: Tensor) -> Tensor:
        return x.flip(2) * self.mask

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y * self.mask).flip(2)

    def _gram(self, x: Tensor) -> Tensor:
        return x * self.mask.flip(2)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two plug-ins of another distribution, one of which cannot be imported."""
    home = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "toy_plugin", home)
    installed = registry.entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        toys = {"toy-reverse": "toy_plugin:Reverse", "toy-broken": "a_module_that_is_not_there:Broken"}
        return [*installed(group=group), *(EntryPoint(name, value, group) for name, value in toys.items())]

    def forget() -> None:
        registry._entries.cache_clear()
        registry.load.cache_clear()

    monkeypatch.setattr(registry, "entry_points", entry_points)
    forget()
    yield
    forget()


def test_every_kind_is_registered_under_its_name() -> None:
    kinds = {
        cls.kind: cls
        for cls in vars(operators).values()
        if isinstance(cls, type) and issubclass(cls, LinearOperator) and cls is not LinearOperator
    }
    assert len(kinds) >= 9
    for kind, cls in kinds.items():
        assert registry.load(GROUP, kind) is cls


def test_unknown_kind_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown operator 'sens'; installed: .*mask.*sense"):
        from_spec(OperatorSpec("sens", {}, {}))


@pytest.mark.usefixtures("plugins")
def test_plugin_is_loaded_and_stored_like_a_kind_of_our_own() -> None:
    assert "toy-reverse" in registry.available(GROUP)
    mask = (torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    A = Reverse(mask)
    x = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(1))
    B = from_spec(A.spec())
    assert type(B).__name__ == "Reverse"
    assert torch.equal(B(x), A(x))
    C = from_spec(Compose(Mask(mask), A).spec())
    assert torch.equal(C(x), mask * A(x))


@pytest.mark.usefixtures("plugins")
def test_broken_plugin_warns_and_others_work() -> None:
    with (
        pytest.warns(UserWarning, match=r"'toy-broken' \(a_module_that_is_not_there:Broken\) does not load"),
        pytest.raises(ConfigError, match="toy-broken"),
    ):
        registry.load(GROUP, "toy-broken")
    assert registry.load(GROUP, "mask") is Mask


# ---------------------------------------------------------------------------------- a distribution that is installed

TOY = """
import torch
from ambient_sci.errors import DataError
from ambient_sci.operators import LinearOperator


class Roll(LinearOperator):
    kind = "toy-roll"

    def __init__(self, shift):
        self.shift = shift

    parameters = property(lambda self: {"shift": self.shift})
    rows = property(lambda self: torch.ones(1))

    def measurement_shape(self, channels=1):
        return (channels, 4, 3)

    def _roll(self, x, sign):
        shifts = (sign * self.shift).expand(len(x)).tolist()
        return torch.stack([one.roll(shift, -1) for one, shift in zip(x, shifts)])

    def _forward(self, x):
        return self._roll(x, 1)

    def _adjoint(self, y):
        return self._roll(y, -1)

    def _check_image(self, x):
        if x.shape[2:] != (4, 3):
            raise DataError(f"a roll takes images (batch, channel, 4, 3), got {tuple(x.shape)}")

    _check_measurement = _check_image
"""

TOY_TESTS = """
import torch
from ambient_sci.testing import OperatorTests
from toy_roll import Roll


class TestRoll(OperatorTests):
    image_shape = (1, 4, 3)
    thins = False

    def make(self, batch, seed):
        return Roll(torch.arange(batch) + seed)

    def dense(self, operator):
        eye = torch.eye(12, dtype=torch.float64).reshape(12, 4, 3)
        return torch.stack([eye.roll(int(s), -1).reshape(12, 12).mT for s in operator.parameters["shift"]])
"""

USE = """
import sys, warnings
import torch
from ambient_sci import registry
from ambient_sci.datasets import StoreWriter, open_store
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Mask, OperatorSpec, from_spec
from ambient_sci.operators.base import GROUP

assert {"toy-roll", "toy-broken", "mask"} <= set(registry.available(GROUP)), registry.available(GROUP)
assert "toy_roll" not in sys.modules, "a plug-in is loaded when it is used"
A = from_spec(OperatorSpec("toy-roll", {"shift": torch.tensor([1, 2])}, {}))
x = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
want = torch.stack([x[0].roll(1, -1), x[1].roll(2, -1)])
assert torch.equal(A(x), want)
assert torch.equal(A.gram(x), x)
product = from_spec((A @ Mask(torch.ones(2, 1, 4, 3))).spec())
assert torch.equal(product(x), want)
with StoreWriter(sys.argv[1]) as writer:
    writer.append(Measurement(A(x), A, 0.1))
with open_store(sys.argv[1]) as store:
    read = store.read([0, 1])
assert type(read.operator) is type(A)
assert torch.equal(read.operator.adjoint(read.y), x)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        registry.load(GROUP, "toy-broken")
    except ConfigError as error:
        assert "'toy-broken' (toy_broken:Broken) does not load: out of order" in str(error), error
    else:
        raise AssertionError("a broken plug-in was loaded")
assert len(caught) == 1 and "out of order" in str(caught[0].message), caught
assert registry.load(GROUP, "mask") is Mask
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two distributions, built and installed into a folder as their users would, one of which breaks on import."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip in this environment")
    home = tmp_path_factory.mktemp("plugins")
    sources = {"roll": ("Roll", TOY), "broken": ("Broken", "raise RuntimeError('out of order')")}
    for name, (kind, code) in sources.items():
        project = home / name
        project.mkdir()
        (project / f"toy_{name}.py").write_text(code)
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "toy-{name}"\nversion = "1.0"\n'
            f'[project.entry-points."{GROUP}"]\ntoy-{name} = "toy_{name}:{kind}"\n'
            f'[tool.setuptools]\npy-modules = ["toy_{name}"]\n'
        )
    target = home / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    folders = [str(home / name) for name in sources]
    done = subprocess.run(
        [*pip, "--no-build-isolation", f"--target={target}", *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def run_with(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_installed_plugin_is_found_used_and_stored(installed: Path, tmp_path: Path) -> None:
    """By name, in a store, beside one that breaks; nothing of another distribution is imported before it is used."""
    done = run_with(installed, "-c", USE, str(tmp_path / "scans.zarr"))
    assert done.returncode == 0, done.stderr


def test_installed_plugin_runs_the_kit(installed: Path, tmp_path: Path) -> None:
    """In the test-suite of its own distribution."""
    (tmp_path / "test_roll.py").write_text(TOY_TESTS)
    done = run_with(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_roll.py"))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_import_under_the_folders_name_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import operators"], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("not run from the root of the repository")
    assert "import this package as ambient_sci.operators" in done.stderr
