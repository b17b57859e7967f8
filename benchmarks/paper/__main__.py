"""A run of the paper's table: ``python -m benchmarks.paper CONFIG --images FOLDER --out FOLDER``.

Example
-------
python -m benchmarks.paper cifar10-p60 --images cifar10/train --out runs/cifar10-p60 --inception inception-2015-12-05.pt
python -m benchmarks.paper cifar10-p60 --images cifar10/train --out runs/cifar10-p60-em --set method=em
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.paper import CONFIGS, PaperConfig, run


def main(argv: list[str] | None = None) -> None:
    """Run one configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help=f"{', '.join(CONFIGS)}, or a file like these")
    parser.add_argument("--images", type=Path, required=True, help="folder of the training pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run; run again to resume")
    parser.add_argument("--inception", type=Path, help="inception-2015-12-05.pt; without it nothing is scored")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the training")
    options = parser.parse_args(argv)
    changed: dict[str, Any] = {}
    for text in options.set:
        name, _, value = text.partition("=")
        try:
            changed[name] = json.loads(value)
        except json.JSONDecodeError:
            changed[name] = value
    row = run(PaperConfig.read(options.config), options.images, options.out, options.inception, changed)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
