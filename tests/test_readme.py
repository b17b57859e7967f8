"""The README: every command and every snippet runs, one after the other, in one folder.

What is changed to make that quick is in the two tables below, and nothing else is.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambient_sci import cli
from ambient_sci.operators.base import GROUP
from ambient_sci.operators.fourier import centred_fft

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INSTALL = "pip install -c constraints.txt -e "

# what a command gets besides what the README gives it
ADDED = {
    "ambient-sci demo": "--quick",
    "ambient-sci train": "--images 64 --widths 32 --laps 1 --em-steps 2",
    "ambient-sci sample": "--steps 4",
    "ambient-sci reconstruct": "--steps 4",
}
# the same options in Python
REPLACED = {'out="run")': 'out="run", images=64, widths=(32,), laps=1, em_steps=2)'}

PLUG_IN = "FlatField"  # the operator that the README adds


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Fenced blocks of the README in order, as (language, text)."""
    every = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in every if language in languages]


def commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run(command: str) -> None:
    """Run a command of this package in the current folder, through its entry point."""
    added = [options for start, options in ADDED.items() if command.startswith(start)]
    program, *arguments = shlex.split(" ".join([command, *added]))
    assert program == "ambient-sci", f"how is {command!r} to be tested?"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code in (0, None), f"{command} ended with status {end.value.code}"


def discs(count: int, seed: int) -> np.ndarray:
    """Images of soft discs, ``(count, 32, 32)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    centres, radii = rng.uniform(-0.3, 0.3, (2, count, 1, 1)), rng.uniform(0.3, 0.6, (count, 1, 1))
    return (1 / (1 + np.exp(20 * (np.hypot(x - centres[0], y - centres[1]) - radii)))).astype(np.float32)


def kspace() -> np.ndarray:
    """A scan by four coils, all of the centre and half of the other lines, ``(4, 32, 32)``."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    maps = torch.stack([torch.exp(-((x - a) ** 2) - (y - b) ** 2 + 0j) for a in (-1, 1) for b in (-1, 1)])
    noise = torch.view_as_complex(torch.randn(4, 32, 32, 2, generator=generator))
    lines = torch.arange(32) % 2 == 0
    lines[10:22] = True
    return ((centred_fft(maps * torch.from_numpy(discs(1, 7))) + 0.01 * noise) * lines).numpy()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README supposes its reader to have."""
    np.save(tmp_path / "brains.npy", discs(96, 0))
    np.save(tmp_path / "others.npy", discs(6, 1))
    np.save(tmp_path / "kspace.npy", kspace())
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def test_installation_commands() -> None:
    """The two commands that a new machine is given; `.ci/run` installs with the second."""
    installing = [line for _, text in blocks("console") for line in commands(text) if line.startswith("pip ")]
    assert installing == [f'{INSTALL}".[demo]" && ambient-sci demo', f'{INSTALL}".[test]" && pytest']
    assert f'{INSTALL}".[test]"\n' in (ROOT / ".ci" / "run").read_text().replace(
        "step pip install --quiet", "pip install"
    )


def test_demo(folder: Path) -> None:
    run("ambient-sci demo")
    made = {path.name for path in (folder / "ambient-sci-demo").iterdir()}
    assert {"metrics.json", "report.html", "reconstructions.png", "reconstructions.zarr", "run", "scans.zarr"} <= made


def test_snippets(folder: Path) -> None:
    given = {path.name for path in folder.iterdir()}
    names: dict[str, Any] = {"__name__": "readme"}
    replaced = set()
    for language, text in blocks("console", "python"):
        if PLUG_IN in text:
            continue  # below
        if language == "console":
            for command in commands(text):
                if not command.startswith("pip "):
                    run(command)
            continue
        for old, new in REPLACED.items():
            if old in text:
                replaced.add(old)
                text = text.replace(old, new)
        exec(compile(text, "README.md", "exec"), names)
    assert replaced == set(REPLACED)
    assert names["images"].shape == (16, 1, 32, 32)
    assert names["result"].sizes["draw"] == 8
    made = {path.name for path in folder.iterdir()} - given
    stores = {"scans.zarr", "held-out.zarr", "measured.zarr", "measured.h5", "mine.zarr"}
    results = {
        "recon.zarr",
        "measured-recon.zarr",
        "metrics.json",
        "figure.png",
        "view.html",
        "run.html",
        "check.png",
        "nifti",
    }
    assert made == stores | results | {"run", "samples"}


def test_operator_example_passes_its_tests(tmp_path: Path) -> None:
    """As a distribution of its own: a module, its tests, and what an installation writes of its entry points."""
    module, tests = (text for _, text in blocks("python") if PLUG_IN in text)
    (announced,) = (tomllib.loads(text)["project"]["entry-points"] for _, text in blocks("toml"))
    (tmp_path / "my_package.py").write_text(module)
    (tmp_path / "test_my_package.py").write_text(tests)
    installed = tmp_path / "my_package-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    entries = "\n".join(f"{name} = {value}" for name, value in announced[GROUP].items())
    (installed / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_package.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]


def anchors(page: Path) -> set[str]:
    """Of headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith("api/"):  # what building the site makes, that checks
            continue
        target, _, anchor = link.partition("#")
        there = page.parent / target if target else page
        assert there.exists(), link
        assert there.is_dir() or there.stat().st_size, f"{link} is empty"
        assert not anchor or anchor in anchors(there), link
