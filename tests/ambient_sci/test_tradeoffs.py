"""The trade-off curves at the smallest size: what is trained on, what a row says, and what is drawn of it."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci import TrainConfig, open_store, train
from ambient_sci.datasets.store import Store
from ambient_sci.denoise import GaussianMixtureDenoiser
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior

ROOT = Path(__file__).parents[2]
SIDE = 16


@pytest.fixture
def tradeoffs(monkeypatch: pytest.MonkeyPatch, blobs: Any) -> Any:
    """The benchmark with few and small images."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.tradeoffs")

    def read(data: Path) -> tuple[np.ndarray, np.ndarray]:
        return blobs(24).astype(np.float32), blobs(12, seed=1).astype(np.float32)

    network = {"widths": (32,), "patch": 4, "batch": 8, "precision": "fp32", "laps": 1, "em_steps": 2}
    for name, levels, fixed in (("digits", (0, 75), 75), ("brain", (1, 4), 4)):
        small = dataclasses.replace(module.KINDS[name], read=read, levels=levels, fixed=fixed, network=network)
        monkeypatch.setitem(module.KINDS, name, small)
    for name, value in (("DRAWN", 6), ("AUDITED", 8), ("STEPS", 2), ("TESTED", 3), ("SAMPLES", 2)):
        monkeypatch.setattr(module, name, value)
    module._read.cache_clear()
    return module


def test_from_the_command_to_the_readme(
    tradeoffs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows, of which only those of the oracle have seen an image; the command again makes none of them again."""
    read, learned_from = Store.references, []

    def guarded(config: TrainConfig) -> Prior:
        def references(store: Store, indices: Any) -> Tensor:
            assert config.method == "oracle", f"{config.method} asked for the images of {store.path}"
            return read(store, indices)

        learned_from.append((config.method, open_store(config.store).has_references))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "references", references)
            return train(config, progress=False)

    monkeypatch.setattr(tradeoffs, "train", guarded)
    readme, results, figure = tmp_path / "README.md", tmp_path / "rows.json", tmp_path / "docs" / "tradeoffs.png"
    readme.write_text("before\n<!-- tradeoffs -->\nstale\n<!-- /tradeoffs -->\nafter\n")
    paths = ["--work", tmp_path, "--results", results, "--readme", readme, "--figure", figure]
    arguments = ["--scans", "8", "16", "--images", "16", "--data", tmp_path, *paths]
    tradeoffs.main(list(map(str, arguments)))
    assert set(learned_from) == {("oracle", True), ("ambient", False), ("em", False)}
    assert len(learned_from) == 2 * 2 * 2

    rows = json.loads(results.read_text())
    assert len(rows) == len(learned_from)
    for row in rows:
        assert set(tradeoffs.COLUMNS) - {"membership_measured", "copies_other_masks"} <= set(row)
        assert ("membership_measured" in row) == (row["method"] == "em") != ("copies_other_masks" in row)
        assert ("frechet_floor" in row) == (row["level"] == tradeoffs.KINDS[row["data"]].levels[0])
        assert 0 <= row["copies_pixels"] <= 1
        assert row["membership_known_interval"][0] <= row["membership_known"] <= row["membership_known_interval"][1]
        if row["level"] == tradeoffs.KINDS[row["data"]].fixed:
            assert row["nrmse"] == row["nrmse_fixed"]
    tradeoffs.main(list(map(str, arguments)))
    assert len(learned_from) == len(rows), "rows that are there were made again"

    text = readme.read_text()
    assert text.startswith("before\n<!-- tradeoffs -->\n#### digits\n\n| method | missing pixels / % | scans |")
    assert text.endswith("<!-- /tradeoffs -->\nafter\n")
    (line,) = (line for line in text.splitlines() if line.startswith("| ambient | 75 | 16 |"))
    (row,) = (row for row in rows if (row["task"], row["method"], row["scans"]) == ("digits-75", "ambient", 16))
    assert [cell.strip() for cell in line.split("|")][4] == f"{row['nrmse']:.3f}"
    assert figure.read_bytes().startswith(b"\x89PNG")
    readme.write_text(text.replace("digits", "stale"))
    tradeoffs.main(["--draw", *map(str, paths)])
    assert readme.read_text() == text
    with pytest.raises(SystemExit):
        tradeoffs.main(["--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="24 images of digits to learn from, 30 are wanted"):
        tradeoffs.main(["--scans", "30", *map(str, arguments[3:])])
    capsys.readouterr()


def test_lines_of_the_figure(tradeoffs: Any) -> None:
    """A line for each method and number of scans, through the means over seeds."""
    shared = {"data": "digits", "nearer_measured_interval": [0.4, 0.6], "membership_known_interval": [0.4, 0.6]}
    shared |= dict.fromkeys(tradeoffs.PANELS, 0.5)
    rows = [
        {**shared, "method": "ambient", "level": level, "scans": scans, "seed": seed, "frechet": level + scans + seed}
        for level in (0, 75)
        for scans in (8, 16)
        for seed in (0, 1)
    ]
    figure = tradeoffs.tradeoff_figure(rows)
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == tradeoffs.PANELS["frechet"])
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines if len(line.get_ydata())}
    assert lines == {"ambient, 8 scans": [8.5, 83.5], "ambient, 16 scans": [16.5, 91.5]}


def test_scores_of_a_prior_that_is_known(tradeoffs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that draws its training images, and nothing else, is found to draw copies, and its loss tells members."""
    kind = tradeoffs.KINDS["digits"]
    known = tradeoffs.measured(kind, "digits", 0, tmp_path, tmp_path, "24", True)
    others = tradeoffs.measured(kind, "digits", 0, tmp_path, tmp_path, "others", True)
    images = known.references(slice(None)).float()
    pixels = SIDE**2
    narrow = 1e-5 * torch.eye(pixels).expand(24, pixels, pixels)
    denoiser = GaussianMixtureDenoiser(torch.ones(24), images, narrow)
    denoiser.sigma_data = 0.3
    denoiser.register_parameter("somewhere", torch.nn.Parameter(torch.zeros(1)))
    prior = Prior(denoiser.eval(), (1, SIDE, SIDE), False, TrainConfig(store="a", out="b"), {}, 0)
    monkeypatch.setattr(tradeoffs, "STEPS", 12)
    found = tradeoffs.score(kind, prior, known, others, others, 0)
    assert found["copies_pixels"] == found["nearer_pixels"] == 1
    assert found["membership_known"] > 0.95
    monkeypatch.setattr(tradeoffs, "DRAWN", 24)
    assert tradeoffs.floor(kind, known, known)["frechet"] == pytest.approx(0, abs=1e-4)
    m = others.read(slice(3))
    mean = draw_posterior(prior, m, 2, steps=12, seed=1).mean(1)
    truth = others.references(slice(3))
    error = torch.linalg.vector_norm((mean - truth).flatten(1), dim=1) / torch.linalg.vector_norm(
        truth.flatten(1), dim=1
    )
    assert found["nrmse"] == pytest.approx(float(error.mean()), rel=1e-4)
