"""The benchmarks' commands, at the smallest size: that they run, and print what they say."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from ambient_sci import open_store

ROOT = Path(__file__).parents[2]


def test_held_out_rows(
    run_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.held_out_rows")
    arguments = [run_path, store_path, "--fraction", 0.3, "--scans", 20, "--draws", 2, "--samples", 2, "--steps", 4]
    monkeypatch.setattr(sys, "argv", ["held_out_rows", *map(str, arguments)])
    benchmark.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--fraction", "0"])
    with pytest.raises(SystemExit):
        benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    scores = {line[:16].strip(): float(line[16:].split()[0]) for line in lines}
    assert list(scores) == ["zero-filled", "L1-wavelet", "posterior mean"]

    # what was there predicts every row but for the noise
    store = open_store(store_path)
    m = store.read(slice(None))
    truth = store.references(slice(None)) / m.scale.reshape(-1, 1, 1, 1)
    rows = m.operator.rows
    assert benchmark.misfit(m, rows, truth) == pytest.approx(1, abs=0.1)
    assert benchmark.misfit(m, rows, torch.zeros_like(truth)) > 10
    assert min(scores.values()) > 0.8
