"""An audit: whether images of a prior copy scans that it learned from, and whether its loss gives these away."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci import report
from ambient_sci.audit import PriorAudit
from ambient_sci.audit.result import SHOWN
from ambient_sci.audit.statistics import FALSE_POSITIVES
from ambient_sci.cards import png
from ambient_sci.charts import MUTED, Series, chart, histogram, side_by_side

__all__ = ["write_audit"]

BINS = 32


def write_audit(
    path: str | os.PathLike[str], found: PriorAudit, others: Mapping[str, PriorAudit] | None = None,
    title: str | None = None,
) -> Path:  # fmt: skip
    """Write an audit as one HTML file.

    Parameters
    ----------
    path
        File to write, replaced when it exists; never left half-written.
    found
        What `ambient_sci.audit_prior` returned, or `PriorAudit.load` read.
    others
        Audits of other priors with the same training and held-out scans, by name: in the charts and tables, too.
    title
        Heading of the page.

    Returns
    -------
    Path
        Where the file is.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    data = found.dataset
    audits = {"images of the prior": found, **(others or {})}
    loss = found.membership.threshold
    facts = {
        "images drawn": data.sizes["image"],
        "training scans": data.attrs.get("training_scans"),
        "held-out scans": data.sizes["scan"],
        "near-copies": found.copies,
        "nearer than held-out scans (AUC)": f"{float(data['auc'].max()):.2f}",
        "membership by loss (AUC)": f"{loss.auc:.2f}",
    }
    spaces = [str(space) for space in data["space"].to_numpy()]
    similarity = [drawn for space in spaces for drawn in _similarity(space, audits)]
    sections = {
        "In short": report.facts(facts),
        "Similarity to the nearest training scan": side_by_side(*similarity)
        + report.table("Quantiles of similarity", _quantiles(audits, spaces))
        + report.table("Nearer than held-out scans", _areas(audits, spaces)),
        "Nearest pairs": _pairs(found),
        "Near-copies by scan": _copies(found),
        "Membership": side_by_side(_curves(audits)) + report.table("Membership", _attacks(audits)),
        "Where it comes from": report.pairs_table("Options", data.attrs),
    }
    summary = [
        "Images that the prior draws, and scans that no training has seen, are compared with every training scan. A "
        "prior that knows no scan by heart draws images that are as near to these as held-out scans are: the honest "
        "zero."
    ]
    return report.write_report(
        path, title or "Audit of copies", sections, summary, verdict=(found.passed, found.verdict)
    )


def _similarity(space: str, audits: Mapping[str, PriorAudit]) -> list[str]:
    """Histograms of similarity and of relative distance in one space."""
    drawn = []
    for name, label in (
        ("similarity", "similarity to the nearest scan"),
        ("distance", "its distance over the next ones'"),
    ):
        values = {who: _in(one, space)[name].to_numpy() for who, one in audits.items() if space in one.dataset["space"]}
        held = _in(next(iter(audits.values())), space)[f"held_{name}"].to_numpy()
        every = np.concatenate([held, *values.values()])
        edges = np.linspace(every.min() - 1e-3, every.max() + 1e-3, BINS + 1)
        series = [histogram("held-out scans", held, edges, MUTED, "area")]
        series += [histogram(who, one, edges, k % MUTED) for k, (who, one) in enumerate(values.items())]
        top = max(float(np.max(one.y)) for one in series)
        drawn.append(chart(f"{name.capitalize()}, {space}", series, label, "density", ylim=(0, 1.08 * top)))
    return drawn


def _in(one: PriorAudit, space: str) -> Any:
    return one.dataset.sel(space=space)


def _quantiles(audits: Mapping[str, PriorAudit], spaces: list[str]) -> list[dict[str, Any]]:
    rows = []
    for space in spaces:
        sides = [("held-out scans", next(iter(audits.values())), "held_")]
        sides += [(who, one, "") for who, one in audits.items() if space in one.dataset["space"]]
        for who, one, side in sides:
            data = _in(one, space)
            row: dict[str, Any] = {"similarity": f"{space}: {who}"}
            values = zip(data["quantile"].to_numpy(), data[f"{side}quantiles"].to_numpy(), strict=True)
            row |= {f"{quantile:.0%}": f"{value:.3f}" for quantile, value in values}
            row["median distance"] = f"{float(data[f'{side}distance'].median()):.3f}"
            row["near-copies"] = None if side else int(data["copy"].sum())
            rows.append(row)
    return rows


def _areas(audits: Mapping[str, PriorAudit], spaces: list[str]) -> list[dict[str, Any]]:
    rows = []
    for space in spaces:
        for who, one in audits.items():
            if space not in one.dataset["space"]:
                continue
            data = _in(one, space)
            low, high = data["auc_interval"].to_numpy()
            rows.append(
                {
                    "nearer than held-out scans": f"{space}: {who}",
                    "AUC by distance": f"{float(data['auc']):.2f}",
                    "95% interval": f"{low:.2f}–{high:.2f}",
                    "p": f"{float(data['auc_p_value']):.1g}",
                    "AUC by similarity": f"{float(data['auc_similarity']):.2f}",
                }
            )
    return rows


def _pairs(found: PriorAudit) -> str:
    """Images of the prior beside the nearest training scans."""
    lines = []
    for image, drawn, scan in zip(found.pair_images, *found.pairs, strict=True):
        one = found.dataset.isel(image=int(image))
        one = one.isel(space=int(one["p_value"].to_numpy().argmin()))
        copy = "<b>near-copy</b>" if bool(one["copy"]) else "no near-copy"
        number, nearest = int(one["image"]), int(one["nearest"])
        told = (
            f"image {number} · scan {nearest}<br>similarity {float(one['similarity']):.2f}, "
            f"p {float(one['p_value']):.1g}, {copy}"
        )
        sides = ((drawn, f"Image {number} of the prior"), (scan, f"Scan {nearest}, the nearest to it"))
        shown = "".join(report.picture(png(_flat(values)), said) for values, said in sides)
        lines.append(f'<li><div class="frame pixels">{shown}</div><p>{told}</p></li>')
    note = "Left an image of the prior, right the nearest training scan, each on its own grey scale."
    return f'<ul class="couples">{"".join(lines)}</ul><p class="note">{escape(note)}</p>'


def _flat(values: NDArray[Any]) -> NDArray[np.float64]:
    """First channel of an image, of a volume its middle slice, without the few brightest pixels' glare."""
    image = np.abs(values[0]) if np.iscomplexobj(values) else values[0].astype(np.float64)
    image = image if image.ndim == 2 else image[len(image) // 2]
    flat: NDArray[np.float64] = image.clip(None, np.percentile(image, 99.8))
    return flat


def _copies(found: PriorAudit) -> str:
    rows = [
        {
            "scan": scan,
            "copied by": f"{len(images)} image{'s'[: len(images) > 1]}",
            "which": ", ".join(map(str, images)),
        }
        for scan, images in sorted(found.copied.items(), key=lambda one: -len(one[1]))
    ]
    if not rows:
        return "<p>None.</p>"
    rest = report.details(f"All {len(rows)} scans", report.table("All near-copies by scan", rows))
    return report.table("Near-copies by scan", rows[:SHOWN]) + (rest if len(rows) > SHOWN else "")


def _curves(audits: Mapping[str, PriorAudit]) -> str:
    """Part of the members found over part of the others accused, by a threshold on the loss."""
    least = 0.5 / max(len(one.membership.others) for one in audits.values())
    series = []
    for k, (who, one) in enumerate(audits.items()):
        inside, outside = np.sort(one.membership.members), np.sort(one.membership.others)
        thresholds = np.sort(np.concatenate([inside, outside]))
        accused, hits = (np.searchsorted(side, thresholds, "right") / len(side) for side in (outside, inside))
        series.append(Series(who, accused.clip(least), hits.clip(least), "line", k % MUTED))
    return chart(
        "Members found by their loss", series, "part of the others accused", "part of the members found", log="xy",
        xlim=(least, 1), ylim=(least, 1), at_x=[FALSE_POSITIVES] if least < FALSE_POSITIVES else [], diagonal=True,
    )  # fmt: skip


def _attacks(audits: Mapping[str, PriorAudit]) -> list[dict[str, Any]]:
    rows = []
    for who, one in audits.items():
        for name, told in one.membership.attacks.items():
            (low, high), (least, most) = told.auc_interval, told.rate_interval
            rows.append(
                {
                    "attack": f"{who}: {name} ({one.membership.kind})",
                    "AUC": f"{told.auc:.2f}",
                    "95% interval": f"{low:.2f}–{high:.2f}",
                    "p": f"{told.p_value:.1g}",
                    "found at 1% accused": f"{told.rate:.1%} ({least:.1%}–{most:.1%})",
                }
            )
    return rows
