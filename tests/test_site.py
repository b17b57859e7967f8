"""The documentation site: what it asks of public names. The build itself is a step of .ci/run."""

import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return pytest.importorskip("site_pages")


def test_public_names_without_documentation_are_found(
    site_pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        __all__ = ["DESCRIBED", "NUMBER", "described", "silent"]
        #: What it is.
        DESCRIBED = 1
        NUMBER = 2

        def described():
            "Say something."

        def silent():
            pass
    """
    (tmp_path / "some_package.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("some_package")
    try:
        every = {f"some_package.{name}" for name in module.__all__}
        assert site_pages.missing_names([module], every) == ["some_package.NUMBER", "some_package.silent"]
        no_page = every - {"some_package.described"}
        assert "some_package.described" in site_pages.missing_names([module], no_page)
    finally:
        del sys.modules["some_package"]


def test_every_module_has_a_page_but_the_command_line(site_pages: ModuleType) -> None:
    names = {module.__name__ for module in site_pages.modules("ambient_sci")}
    assert {"ambient_sci", "ambient_sci.operators.sense", "ambient_sci.posterior.mmps"} <= names
    assert not any(name.startswith("ambient_sci.cli") for name in names)
