"""Tables of learning, made from the file of results: ``python -m benchmarks.learning.table``.

Writes them into ``benchmarks/README.md`` between its markers. A number is the mean over seeds, with the standard
deviation of one seed where there are several; the targets are judged on means.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.run import CLEAN, LEARNED
from benchmarks.learning.tasks import TASKS
from benchmarks.readme import write_section

__all__ = ["Group", "document", "groups", "judged"]

ROOT = Path(__file__).parents[1]
COLUMNS = {
    "nrmse": ("NRMSE", "{:.3f}"),
    "oracle": ("of the oracle's", "{:.2f}"),
    "nrmse_one": ("one sample", "{:.3f}"),
    "psnr": ("PSNR / dB", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "coverage_90": ("in 90% intervals", "{:.3f}"),
    "frechet": ("Fréchet", "{:.3g}"),
    "sliced_wasserstein": ("patches", "{:.3f}"),
    "spectrum_error": ("spectrum", "{:.3f}"),
    "excess": ("excess", "{:.3f}"),
    "nrmse_ratio": ("of the exact", "{:.2f}"),
    "minutes": ("minutes", "{:.1f}"),
}
FLOORS = ("frechet", "sliced_wasserstein", "spectrum_error")


@dataclass(frozen=True)
class Group:
    """Rows that differ in their seeds alone."""

    task: str
    method: str
    options: dict[str, Any]
    budget: int | None
    scans: int | None
    seeds: int
    mean: dict[str, float]
    spread: dict[str, float]
    seconds: dict[int, float]  # by seed

    @property
    def is_default(self) -> bool:
        """Whether the method ran as it comes, on all scans."""
        return not self.options and self.scans is None

    @property
    def is_learned(self) -> bool:
        """Whether it is a method of learning, not a classical one."""
        return self.method in LEARNED

    @property
    def has_clean(self) -> bool:
        """Whether clean images had a part in it, be it by the run that it began with, whose name has its options."""
        earlier = str(self.options.get("start_from", ""))
        return self.method in CLEAN or "clean" in self.options or any(name in earlier for name in (*CLEAN, "clean="))

    @property
    def label(self) -> str:
        """Method, and what is not as it comes."""
        parts = [f"{name}={value}" for name, value in self.options.items()]
        parts += [f"{self.scans} scans"] if self.scans else []
        return self.method + (f" ({', '.join(parts)})" if parts else "")


def groups(rows: Iterable[dict[str, Any]]) -> list[Group]:
    """Put rows of several seeds together; those of a task stand together, the best first."""
    together: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        shared = [row["task"], row["method"], row["options"], row.get("budget"), row.get("scans")]
        together.setdefault(json.dumps(shared), []).append(row)
    found = []
    for key, same in together.items():
        values = {
            name: [row[name] for row in same]
            for name in same[0]
            if name not in ("seed", "budget", "scans") and all(isinstance(row.get(name), float | int) for row in same)
        }
        if "seconds" in values:
            values["minutes"] = [value / 60 for value in values["seconds"]]
        mean = {name: float(np.mean(every)) for name, every in values.items()}
        spread = {name: float(np.std(every, ddof=1)) for name, every in values.items() if len(every) > 1}
        task, method, options, budget, scans = json.loads(key)
        seconds = {row["seed"]: row["seconds"] for row in same if row.get("seconds") is not None}
        found.append(Group(task, method, options, budget, scans, len(same), mean, spread, seconds))
    order = list(TASKS)
    return sorted(found, key=lambda g: (order.index(g.task), g.budget or 0, g.mean.get("nrmse", math.inf)))


def document(every: Sequence[Group]) -> str:
    """All tables and what became of the targets, as Markdown."""
    verdicts = [f"| {' | '.join(line)} |\n" for line in judged(every)]
    parts = ["| target | measured | |\n|---|---|---|\n" + "".join(verdicts)]
    for task in dict.fromkeys(group.task for group in every):
        of_task = [group for group in every if group.task == task]
        classical = [group for group in of_task if not group.is_learned]
        budgets = sorted({group.budget or 0 for group in of_task if group.is_learned})
        for budget in budgets or [0]:
            trained = [group for group in of_task if group.is_learned and (group.budget or 0) == budget]
            parts.append(_table(task, budget, [*classical, *trained]))
    return "\n".join(parts)


def _table(task: str, budget: int, some: list[Group]) -> str:
    oracle = next((group for group in some if group.method == "oracle" and group.is_default), None)
    known = [name for name in COLUMNS if name == "oracle" or any(name in group.mean for group in some)]
    lines = [
        f"#### {task}" + (f", budget {budget}" if budget else ""),
        "",
        "| method | " + " | ".join(COLUMNS[name][0] for name in known) + " | seeds |",
        "|---|" + "--:|" * (len(known) + 1),
    ]
    for group in sorted(some, key=lambda g: -g.mean.get("nrmse", math.inf)):
        cells = []
        for name in known:
            form, value, spread = COLUMNS[name][1], group.mean.get(name), group.spread.get(name)
            if name == "oracle":
                value = group.mean["nrmse"] / oracle.mean["nrmse"] if oracle else None
            shown = "" if value is None else form.format(value)
            cells.append(shown + (f" ± {form.format(spread)}" if shown and spread is not None else ""))
        lines.append(f"| {group.label} | {' | '.join(cells)} | {group.seeds} |")
    floors = [
        f"{COLUMNS[name][0]} {COLUMNS[name][1].format(group.mean[f'{name}_floor'])}"
        for group in some[-1:]
        for name in FLOORS
        if f"{name}_floor" in group.mean
    ]
    return "\n".join(lines) + "\n" + (f"\nAs many clean images have: {', '.join(floors)}.\n" if floors else "")


# ------------------------------------------------------------------------------------------------------------- targets

LONGER = 1.25  # times the oracle's seconds: plans of budgets are not exact


def took_longer(group: Group, oracle: Group | None) -> bool:
    """Whether a method took longer than the oracle, with the same seeds if it has any: those ran on one machine."""
    if oracle is None or not group.seconds or not oracle.seconds:
        return False
    same = group.seconds.keys() & oracle.seconds.keys()
    own, others = ([g.seconds[seed] for seed in same or g.seconds] for g in (group, oracle))
    return bool(np.mean(own) > LONGER * np.mean(others))


class _Results:
    """Groups as they come, at the largest budget at which there is an oracle; none that took longer than it counts."""

    def __init__(self, every: Sequence[Group]) -> None:
        plain = [group for group in every if group.is_default]
        budgets: dict[str, list[int]] = {}
        for group in plain:
            if group.method == "oracle":
                budgets.setdefault(group.task, []).append(group.budget or 0)
        judged = [
            group for group in every if not group.is_learned or group.budget == max(budgets.get(group.task, [-1]))
        ]
        self.every = every
        self.plain = [group for group in judged if group.is_default]
        self.without_clean = [group for group in judged if group.scans is None and not group.has_clean]

    def __call__(self, task: str, method: str, name: str = "nrmse") -> float | None:
        """Look up a number of a method."""
        for group in self.plain:
            if group.task == task and group.method == method:
                return group.mean.get(name)
        return None

    def best(self, task: str, name: str = "nrmse") -> tuple[float, str] | None:
        """Find the least number among methods that learn from measurements alone, with any options, and whose it is."""
        oracle = next((group for group in self.plain if (group.task, group.method) == (task, "oracle")), None)
        found = [
            (group.mean[name], group.method + (", with options" if group.options else ""))
            for group in self.without_clean
            if group.task == task and group.is_learned and name in group.mean and not took_longer(group, oracle)
        ]
        return min(found, default=None)


Verdict = tuple[str, bool] | None


def _ratio(best: tuple[float, str] | None, other: float | None, limit: float) -> Verdict:
    if best is None or other is None:
        return None
    ratio = best[0] / other
    return f"{best[1]}: {ratio:.2f}", ratio <= limit


def _radio(results: _Results) -> Verdict:
    classical = [(g.mean["nrmse"], g.method) for g in results.plain if g.task == "radio" and not g.is_learned]
    best = results.best("radio")
    if best is None or not classical:
        return None
    value, method = min(classical)
    return f"{best[1]} {best[0]:.3f}, {method} {value:.3f}", best[0] < value


def _coverage(results: _Results) -> Verdict:
    """Look at all rows, whatever their budget and options."""
    found = [
        (group.mean["coverage_90"], f"{group.task} {group.method}")
        for group in results.every
        if group.task.startswith("mri") and "coverage_90" in group.mean
    ]
    if not found:
        return None
    (low, where), (high, there) = min(found), max(found)
    return f"{low:.3f} ({where}) to {high:.3f} ({there})", low >= 0.87 and high <= 0.93


def _em_ahead(results: _Results) -> Verdict:
    em, ambient = (results("digits-p75", method, "frechet") for method in ("em", "ambient"))
    return None if em is None else _ratio((em, "em"), ambient, 0.8)


def _noisy(results: _Results) -> Verdict:
    """Compare restorations by the two objectives wherever the noise is 0.1."""
    ratios = {
        task: value / other
        for task in TASKS
        if task.endswith("-noisy")
        and (value := results(task, "ambient", "nrmse_restored")) is not None
        and (other := results(task, "ambient-noiseless", "nrmse_restored")) is not None
    }
    if not ratios:
        return None
    worst = max(ratios, key=lambda task: ratios[task])
    return f"at most {ratios[worst]:.2f} ({worst}), of {len(ratios)} tasks", ratios[worst] <= 0.95


def _l1_edm(results: _Results) -> Verdict:
    pairs = [
        (task, best, value)
        for task in TASKS
        if (best := results.best(task)) is not None and (value := results(task, "l1-edm")) is not None
    ]
    if not pairs:
        return None
    not_beaten = [task for task, best, value in pairs if best[1].startswith("l1-edm")]
    return f"not on {', '.join(not_beaten)}" if not_beaten else f"on {len(pairs)} tasks", not not_beaten


TARGETS: dict[str, Callable[[_Results], Verdict]] = {
    "mri-r4: NRMSE of the best, over the oracle's, at most 1.15": lambda r: _ratio(
        r.best("mri-r4"), r("mri-r4", "oracle"), 1.15
    ),
    "mri-r4: the same, aim 1.05": lambda r: _ratio(r.best("mri-r4"), r("mri-r4", "oracle"), 1.05),
    "mri-r4: over tuned total variation's, at most 0.65": lambda r: _ratio(r.best("mri-r4"), r("mri-r4", "tv"), 0.65),
    "mri-r8: over the oracle's, at most 1.20": lambda r: _ratio(r.best("mri-r8"), r("mri-r8", "oracle"), 1.20),
    "mri-r8: the same, aim 1.10": lambda r: _ratio(r.best("mri-r8"), r("mri-r8", "oracle"), 1.10),
    "digits-p75: Fréchet distance of the best, over the oracle's, at most 1.5": lambda r: _ratio(
        r.best("digits-p75", "frechet"), r("digits-p75", "oracle", "frechet"), 1.5
    ),
    "digits-p75: Fréchet distance of em, over ambient's, at most 0.8": _em_ahead,
    "radio: better than every classical method": _radio,
    "MRI: 90% intervals hold 87 to 93%": _coverage,
    "noise 0.1: restorations of ambient over those of ambient-noiseless, at most 0.95": _noisy,
    "l1-edm is beaten everywhere": _l1_edm,
}


def judged(every: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Target, what was measured, and whether it is met."""
    results, lines = _Results(every), []
    for target, judge in TARGETS.items():
        verdict = judge(results)
        text, met = ("", "not measured") if verdict is None else (verdict[0], "met" if verdict[1] else "NOT met")
        lines.append((target, text, met))
    return lines


def main(argv: list[str] | None = None) -> None:
    """Make the tables anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "learning.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(argv)
    write_section(options.readme, "learning", document(groups(json.loads(options.results.read_text()))))


if __name__ == "__main__":
    main()
