"""Time, memory and error of the operators beside deepinv, mrpro, sigpy, torchkbnufft, mri-nufft and finufft.

Prints one Markdown table. All libraries do the same work on the same problem, and take turns, so that what else the
machine does hits them alike; each has been checked to compute the right numbers. `benchmarks/README.md` says how to
install the peers; those that are not installed are left out.

Examples
--------
Everything, as in the README, also with one core kept busy by another process::

    python -m benchmarks.operators --load --json operators.json

One operation, or all of one problem::

    python -m benchmarks.operators --case sense-gram
    python -m benchmarks.operators --case nufft --repeats 21
"""

import argparse
import json
import math
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.cases import Row

PACKAGES = (
    "ambient-sci",
    "torch",
    "numpy",
    "deepinv",
    "mrpro",
    "sigpy",
    "torchkbnufft",
    "mri-nufft",
    "finufft",
)
COLUMNS = """\
- ms: median time of a call; ours: that as a multiple of ours, the median of the ratios within one round
- loaded: how many times longer a call takes while another process keeps one core busy
- MiB: the most that a call takes beyond what was there, its result included
- error: relative to the exact answer in double precision\
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the numbers if asked to."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # OpenMP reads it when the first library with threads is loaded: none is imported above
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from benchmarks import cases

    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    names = [case.name for case in cases.CASES]
    for wanted in options.case:
        if not any(_matches(name, wanted) for name in names):
            parser.error(f"there is no case {wanted!r}, but {', '.join(names)}")
    chosen = [case for case in cases.CASES if any(_matches(case.name, wanted) for wanted in options.case or names)]

    with warnings.catch_warnings(record=True):  # the peers', of what torch will drop; some undo a filter
        rows = cases.run(chosen, options.repeats, options.device, options.load, options.quick, _report)
    machine = machine_description(options.device)
    versions = {name: found for name in PACKAGES if (found := installed_version(name))}
    families = dict.fromkeys(case.family for case in chosen)
    problems = {family: str(cases.problem(family, options.quick)) for family in families}
    print(f"{machine}; OMP_NUM_THREADS={options.threads}; median of {options.repeats} rounds.")
    print(", ".join(f"{name} {found}" for name, found in versions.items()) + ".\n")
    print("\n".join(f"- {family}: {problem}" for family, problem in problems.items()))
    print(COLUMNS + "\n")
    print(_table(rows) + "\n")
    print(_summary(rows))
    if options.json:
        measured = {
            "machine": machine,
            "versions": versions,
            "problems": problems,
            "rows": [_plain(row) for row in rows],
        }
        options.json.write_text(json.dumps({"options": {**vars(options), "json": None}, **measured}, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    description, _, examples = (__doc__ or "").partition("Examples\n--------\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME", help="cases, or problems for all of theirs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=positive, default=7, metavar="N", help="rounds of turns (default: 7)")
    parser.add_argument("--threads", type=positive, default=cores, metavar="N", help=f"default: all cores ({cores})")
    parser.add_argument("--load", action="store_true", help="measure again with one core kept busy by another process")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to a file, too")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs: no target is judged")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return number


def _report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _matches(name: str, wanted: str) -> bool:
    return wanted in (name, name.partition("-")[0])


def _table(rows: Sequence["Row"]) -> str:
    """One line a library."""
    loaded = not all(math.isnan(row.loaded) for row in rows)
    head = ["case", "library", "ms", "ours", *(["loaded"] if loaded else []), "MiB", "error", "target"]
    cells = [head]
    for before, row in zip([None, *rows], rows, strict=False):
        numbers = [
            _number(row.milliseconds),
            _number(row.ratio),
            *([_number(row.loaded)] if loaded else []),
            "" if math.isnan(row.memory) else f"{row.memory:.0f}",
            "" if math.isnan(row.error) else f"{row.error:.0e}",
        ]
        if not row.installed:
            numbers[0] = "not installed"
        name = row.case if before is None or before.case != row.case else ""
        cells.append([name, row.library, *numbers, "; ".join(map(_verdict, row.verdicts))])
    return markdown(cells, ("case", "library", "target"))


def markdown(cells: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """Table with columns as wide as their widest cell, so that it reads well unrendered; ``words`` are not numbers."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [column not in words for column in cells[0]]
    rule = ["-" * (width - 1) + (":" if numeric else "-") for width, numeric in zip(widths, right, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:{'>' if r else '<'}{w}}" for cell, w, r in zip(line, widths, right, strict=True))
        + " |"
        for line in [cells[0], rule, *cells[1:]]
    )


def _number(value: float) -> str:
    """Three significant digits, or two below one."""
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _verdict(verdict: Any) -> str:
    met = {True: "met", False: "NOT met", None: "not judged"}[verdict.met]
    return f"{verdict.target}: {met}"


def _summary(rows: Sequence["Row"]) -> str:
    verdicts = [verdict.met for row in rows for verdict in row.verdicts]
    return (
        f"Targets: {verdicts.count(True)} met, {verdicts.count(False)} NOT met, {verdicts.count(None)} not judged "
        "(a library that is not installed, another size or device)."
    )


def _plain(row: "Row") -> dict[str, Any]:
    """For JSON, which has no nan."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(row).items()
    }


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def machine_description(device: str) -> str:
    """Hardware and system, as far as they tell."""
    if device == "cuda":
        import torch

        processor = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        found = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
        processor = f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
        processor += f", {int(memory[1]) / 2**20:.0f} GiB" if memory else ""
    waiting = [f"{name}={os.environ[name]}" for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return "; ".join([processor, system, *waiting])


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
