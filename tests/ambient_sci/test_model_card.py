"""The page beside a prior."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store
from ambient_sci.model_card import MARK, NAME, write_model_card
from ambient_sci.prior import load_prior
from ambient_sci.training import train


def rows(text: str) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and " | " in line]
    return {cell[0]: cell[1] for cell in cells if len(cell) == 2}


def test_a_run_says_what_its_prior_was_learned_from(tmp_path: Path, store_path: Path, small: dict[str, Any]) -> None:
    run = tmp_path / "run"
    train(TrainConfig(store=store_path, out=run, **small), progress=False)
    text = (run / NAME).read_text()
    assert str(store_path.parent) not in text
    front, _, body = text.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "ambient-sci"  # what hubs read
    prior, store, found = load_prior(run, "cpu"), open_store(store_path), rows(body)
    assert found["method"] == prior.config.method
    assert found["fingerprint of the weights"] == prior.fingerprint()
    assert found["fingerprint"] == store.fingerprint
    assert found["scans"] == str(len(store))
    assert found["images shown"] == f"{prior.images:,} of {prior.images:,}"
    last = [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "chi_square" in line]
    said = f"chi-square of {last[-1]['chi_square']:.4g} after" if last else "No scan was set aside"
    assert said in body


@pytest.mark.parametrize("kept", ["# My own page\n", "\xff"])
def test_a_page_of_somebody_else_is_left_as_it_is(
    kept: str, tmp_path: Path, store_path: Path, small: dict[str, Any]
) -> None:
    run, page = tmp_path / "run", tmp_path / "run" / NAME
    train(TrainConfig(store=store_path, out=run, **small), progress=False)
    page.write_text(kept, encoding="latin-1")
    facts: dict[str, Any] = {"scans": 3}
    write_model_card(run, load_prior(run, "cpu"), facts)
    assert page.read_text(encoding="latin-1") == kept
    page.write_text(MARK)
    write_model_card(run, load_prior(run, "cpu"), facts)
    assert rows(page.read_text())["scans"] == "3"
