"""A validation: whether predictions hold on rows that were hidden, by band of frequencies and by scan."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ambient_sci import report
from ambient_sci.charts import MUTED, Series, chart, histogram, side_by_side
from ambient_sci.evaluate.held_out import ALL, PriorValidation
from ambient_sci.evaluate.predictive import TOLERANCE

__all__ = ["write_validation"]


def write_validation(path: str | os.PathLike[str], found: PriorValidation, title: str | None = None) -> Path:
    """Write a validation as one HTML file.

    Parameters
    ----------
    path
        File to write, replaced when it exists; never left half-written.
    found
        What `ambient_sci.validate_prior` returned, or `PriorValidation.load` read.
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
    every = data.sel(band=ALL)
    levels = data["level"].to_numpy()
    facts = {
        "scans": data.sizes["scan"],
        "hidden values": f"{int(every['values'].sum()):,}",
        "errors / predicted spread": f"{float(every['band_ratio']):.3f}",
        f"in {levels[1]:.0%} intervals": f"{float(every['coverage'].sel(level=levels[1]).mean()):.1%}",
        "best temperature": f"{found.temperature:.2f} ± {found.temperature_error:.2f}",
        "scans not explained": len(found.flagged),
    }
    sections = {
        "In short": report.facts(facts),
        "Coverage and size of errors": side_by_side(_coverage(data), _ratios(data), _residuals(data), _surprise(data)),
        "By band of spatial frequency": report.table("Bands", _bands(data, found.faults)),
        "By scan": _by_scan(found),
        "Where it comes from": report.pairs_table("Options", data.attrs),
    }
    summary = [
        "Rows that were measured were hidden, predicted by posterior samples from the rest, and compared. No known "
        "image is needed; the prior's own draws, judged in the same way, say what is to be expected."
    ]
    return report.write_report(
        path, title or "Validation on hidden rows", sections, summary, verdict=(found.passed, found.verdict)
    )


def _names(data: Any) -> list[str]:
    return [str(band) for band in data["band"].to_numpy()]


def _colour(k: int) -> int:
    return k % MUTED


def _coverage(data: Any) -> str:
    levels = data["level"].to_numpy()
    series = [
        Series(f"{band} cycles/pixel" if k else band, levels, data["coverage"].sel(band=band).mean("scan"), "line",
               _colour(k))
        for k, band in enumerate(_names(data))
    ]  # fmt: skip
    own = data["own_coverage"].sel(band=ALL).mean("scan")
    series.append(Series("the prior's own draws", levels, own, "points", MUTED))
    return chart(
        "How often intervals hold hidden values", series, "claimed probability", "part inside",
        xlim=(0, 1), ylim=(0, 1), diagonal=True,
    )  # fmt: skip


def _ratios(data: Any) -> str:
    names, scans = _names(data), data["scan"].to_numpy()
    shift = np.linspace(-0.25, 0.25, len(scans)) if len(scans) > 1 else np.zeros(1)
    series = []
    for k, band in enumerate(names):
        told = [f"scan {scan}" for scan in scans]
        series.append(Series("", k + shift, data["ratio"].sel(band=band), "points", MUTED, told))
    for k, band in enumerate(names):
        series.append(Series("", [k], [float(data["band_ratio"].sel(band=band))], "means", _colour(k), [band]))
    return chart(
        "Errors over predicted spread, scans (grey) and their mean", series, "cycles per pixel", "ratio", log="y",
        at_y=[1.0], span=(1 / (1 + TOLERANCE), 1 + TOLERANCE), categories=[_brief(name) for name in names],
    )  # fmt: skip


def _brief(band: str) -> str:
    return band.replace(" to ", "–").replace("above ", ">").replace("0.", ".")


def _residuals(data: Any) -> str:
    """Histogram of what is 1 for a prior that predicts its errors."""
    own, expected = (data[name].sel(band=ALL).to_numpy() for name in ("residual", "expected"))
    both = np.concatenate([own, expected])
    edges = np.linspace(both.min() - 1e-6, both.max() + 1e-6, 2 + int(np.sqrt(2 * len(own))) * 2)
    series = [
        histogram("the prior's own draws", expected, edges, MUTED, "area"),
        histogram("hidden values", own, edges, 0),
    ]
    return chart(
        "Normalised residuals of scans", series, "root mean square, in units of the predicted spread", "density",
        ylim=(0, 1.08 * max(float(np.max(one.y)) for one in series)),
    )  # fmt: skip


def _surprise(data: Any) -> str:
    flagged, scans = data["flagged"].to_numpy().astype(bool), data["scan"].to_numpy()
    surprise = data["surprise"].sel(band=ALL).to_numpy()
    series = [
        Series(label, scans[some], surprise[some], "points", colour, [f"scan {scan}" for scan in scans[some]])
        for label, some, colour in (("explained", ~flagged, 0), ("not explained", flagged, 1))
        if some.any()
    ]
    return chart("Surprise of each scan", series, "scan", "nats per value beyond the draws'", at_y=[0.0])


def _bands(data: Any, faults: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for band in _names(data):
        one = data.sel(band=band)
        row: dict[str, Any] = {
            "cycles/pixel": band,
            "values": f"{int(one['values'].sum()):,}",
            "errors/spread": float(one["band_ratio"]),
            "p": f"{float(one['band_p_value']):.1g}",
        }
        for level in data["level"].to_numpy():
            row[f"{level:.0%} holds"] = f"{float(one['coverage'].sel(level=level).mean()):.1%}"
        row |= {"residual": float(one["residual"].mean()), "own": float(one["expected"].mean())}
        rows.append(row | {"surprise": float(one["surprise"].mean()), "fault": faults.get(band)})
    return rows


def _by_scan(found: PriorValidation) -> str:
    rows = _scans(found.dataset)
    flagged = [row for row in rows if row["scan"] in found.flagged]
    some = report.table("Scans not explained", flagged) if flagged else "<p>All are explained.</p>"
    return some + report.details(f"All {len(rows)} scans", report.table("Scans", rows))


def _scans(data: Any) -> list[dict[str, Any]]:
    """Give scans in the order of their p-values."""
    every = data.sel(band=ALL)
    rows = []
    for k in np.argsort(data["p_value"].to_numpy(), kind="stable"):
        one = every.isel(scan=int(k))
        rows.append(
            {
                "scan": int(one["scan"]),
                "p": f"{float(one['p_value']):.1g}",
                "surprise": float(one["surprise"]),
                "errors/spread": float(one["ratio"]),
                "residual": float(one["residual"]),
                "own": float(one["expected"]),
                "values": f"{int(one['values']):,}",
            }
        )
    return rows
