"""Kinds by name: entry points of this distribution, of another, and broken ones."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint

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


def test_import_under_the_folders_name_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import operators"], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("not run from the root of the repository")
    assert "import this package as ambient_sci.operators" in done.stderr
