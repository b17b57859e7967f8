"""A row of the table of learning: ``python -m benchmarks.learning TASK METHOD``.

Examples
--------
python -m benchmarks.learning mri-r4 l1-wavelet --data DATA --out SCRATCH
python -m benchmarks.learning mri-r4 em oracle --data DATA --out SCRATCH --budget 120000 --seed 0
python -m benchmarks.learning mri-r4 em --set laps=6 --data DATA --out SCRATCH

``DATA`` holds the folders mri-t1-slices, mnist and radio-galaxies-first. Everything big goes to ``SCRATCH``; the row
goes to ``benchmarks/results/learning.json``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.learning.run import CLASSICAL, LEARNED, classical_row, learned_row, record
from benchmarks.learning.tasks import TASKS

RESULTS = Path(__file__).parents[1] / "results" / "learning.json"


def main() -> None:
    """Make the rows that were asked for, one after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("method", nargs="+", choices=[*LEARNED, *CLASSICAL])
    parser.add_argument("--data", type=Path, required=True, help="folder of images, see above")
    parser.add_argument("--out", type=Path, required=True, help="folder for frozen stores, runs and figures")
    parser.add_argument("--seed", type=int, default=0, help="of training and sampling")
    parser.add_argument(
        "--budget", type=int, default=120_000, help="the time in which the oracle sees so many images, for all methods"
    )
    parser.add_argument("--scans", type=int, help="to learn from; all by default")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the training")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    changed: dict[str, Any] = {}
    for text in options.set:
        name, _, value = text.partition("=")
        try:
            changed[name] = json.loads(value)
        except json.JSONDecodeError:
            changed[name] = value
    for method in options.method:
        if method in CLASSICAL:
            row = classical_row(options.task, method, options.data, options.out)
        else:
            row = learned_row(
                options.task, method, options.data, options.out, options.seed, options.budget, changed, options.scans
            )
        record(row, options.results)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
