"""What a check found: numbers, a verdict, and what to do about it."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ambient_sci.check.group_report import ORDER, GroupReport, Verdict, worse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CheckReport", "Leaks"]

DUPLICATE_SHARE = 0.01
"""Repeated scans from which there is less data than it seems."""


@dataclass(frozen=True)
class Leaks:
    """What training and test data share.

    Attributes
    ----------
    path
        The other store.
    subjects
        Subjects that are in both; none if a store does not name them.
    pairs
        Numbers of scans here and there that are the same measurement; none where that could not be told.
    """

    path: str
    subjects: list[str] | None
    pairs: list[tuple[int, int]] | None

    @property
    def any(self) -> bool:
        """Whether there is a leak."""
        return bool(self.subjects) or bool(self.pairs)


@dataclass(frozen=True)
class CheckReport:
    """What `ambient_sci.check.check` found; ``str()`` is a table of it.

    Attributes
    ----------
    path, operator
        The store and the kind of its operator.
    groups
        One report for the scans of each size.
    duplicates
        Pairs of scans that are the same measurement but for noise; none where that could not be told.
    subjects
        How many subjects there are; none if the store does not name them.
    leaks
        What is shared with another store, if one was given.
    verdict, reasons, advice
        ``"good"``, ``"marginal"`` or ``"refused"``, why, and what to do.
    """

    path: str
    operator: str
    groups: list[GroupReport]
    duplicates: list[tuple[int, int]] | None
    subjects: int | None
    leaks: Leaks | None
    verdict: Verdict = field(init=False)
    reasons: list[str] = field(init=False)
    advice: list[str] = field(init=False)

    def __post_init__(self) -> None:
        judged = [group.judge() for group in self.groups]
        total = sum(group.scans for group in self.groups)
        weight = {
            name: sum(g.scans for g, j in zip(self.groups, judged, strict=True) if j[0] == name) for name in ORDER
        }
        verdict: Verdict = "good"
        if weight["refused"] >= 0.5 * total:
            verdict = "refused"
        elif weight["good"] < total:
            verdict = "marginal"
        label = len(self.groups) > 1
        reasons, advice = [], []
        for group, (_, why, how) in zip(self.groups, judged, strict=True):
            size = " × ".join(map(str, group.image_shape))
            reasons += [f"{size}: {text}" if label else text for text in why]
            advice += [text for text in how if text not in advice]
        if self.duplicates and self.duplicated > DUPLICATE_SHARE * total:
            verdict = worse(verdict, "marginal")
            reasons.append(f"{self.duplicated} scans repeat another one: there is less data than it seems")
            advice.append("keep one of each, or merge repetitions into one scan of less noise")
        if self.leaks is not None and self.leaks.any:
            verdict = worse(verdict, "marginal")
            reasons.append(f"{_leak_text(self.leaks)}: scores on {self.leaks.path} would be too good")
            advice.append("split by subject, so that nobody is in both stores")
        for name, value in (("verdict", verdict), ("reasons", reasons), ("advice", advice)):
            object.__setattr__(self, name, value)

    @property
    def duplicated(self) -> int:
        """How many scans repeat an earlier one."""
        return len({later for _, later in self.duplicates or []})

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, as JSON can hold it."""
        leaks = None
        if self.leaks is not None:
            leaks = {"path": self.leaks.path, "subjects": self.leaks.subjects, "pairs": self.leaks.pairs}
        return {
            "store": self.path,
            "operator": self.operator,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "advice": self.advice,
            "duplicates": self.duplicates,
            "subjects": self.subjects,
            "leaks": leaks,
            "groups": [group.to_dict() for group in self.groups],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def plot(self) -> "Figure":
        """Draw maps and profiles; see `ambient_sci.check.figure.check_figure`."""
        from ambient_sci.check.figure import check_figure

        return check_figure(self)

    def __str__(self) -> str:
        facts = [("store", f"{self.path} ({self.operator})")]
        for group in self.groups:
            facts += list(group.facts().items())
        facts.append(("duplicates", self._duplicates()))
        if self.subjects is not None:
            facts.append(("subjects", str(self.subjects)))
        if self.leaks is not None:
            facts.append(("leaks", _leak_text(self.leaks) if self.leaks.any else f"none found with {self.leaks.path}"))
        facts.append(("verdict", self.verdict))
        facts += [("" if k else "because", text) for k, text in enumerate(self.reasons)]
        facts += [("" if k else "what to do", text) for k, text in enumerate(self.advice)]
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in facts)

    def _duplicates(self) -> str:
        if self.duplicates is None:
            return "could not be told: too little in common, too noisy, or images too alike"
        if not self.duplicates:
            return "none found"
        shown = ", ".join(f"{i} and {j}" for i, j in self.duplicates[:5])
        return f"{self.duplicated} scans repeat another: {shown}{', ...' if len(self.duplicates) > 5 else ''}"


def _leak_text(leaks: Leaks) -> str:
    parts = []
    if leaks.subjects:
        names = ", ".join(leaks.subjects[:5]) + (", ..." if len(leaks.subjects) > 5 else "")
        parts.append(f"{len(leaks.subjects)} subjects are in both stores ({names})")
    if leaks.pairs:
        shown = ", ".join(f"{i} and {j}" for i, j in leaks.pairs[:5]) + (", ..." if len(leaks.pairs) > 5 else "")
        parts.append(f"{len(leaks.pairs)} scans are in both stores (here and there: {shown})")
    return "; ".join(parts)
