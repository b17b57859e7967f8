"""Figures of calibration: coverage, ranks and random points; held-out rows by band and by scan."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ambient_sci.evaluate.calibration import CURVE, TARP, Calibration
from ambient_sci.evaluate.metrics import LEVELS
from ambient_sci.evaluate.predictive import TOLERANCE
from ambient_sci.plot import COLOURS, INK, MUTED, _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ambient_sci.evaluate.held_out import PriorValidation

__all__ = ["held_out_figure", "ranks_figure"]

MARKS = "osD^vP"
SURE = 1.96  # standard errors of a 95% band


def ranks_figure(found: Calibration) -> "Figure":
    """Draw, from left to right: coverage of central intervals, ranks, and the distance to random points (TARP).

    Grey bands hold 95% of what honest samples would give, for one value a scan.
    """
    figure, (left, middle, right) = _axes((10.2, 3.4), 3)
    bins, scans = found.draws + 1, found.scans
    _diagonal(left)
    for k, (name, one) in enumerate(found.quantities.items()):
        style: dict[str, Any] = {
            "color": COLOURS[k % 6],
            "marker": MARKS[k % 6],
            "markersize": 4,
            "linewidth": 1.5,
            "label": name,
        }
        if name == TARP:
            expected = np.concatenate([[0], np.cumsum(one.ranks)])
            right.plot(np.arange(bins + 1) / bins, expected, **style)
            continue
        left.errorbar(CURVE, one.coverage, SURE * one.coverage_error, elinewidth=1, **style)
        middle.plot(np.arange(bins), bins * one.ranks, **style)
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    left.set_xlabel("claimed probability", fontsize=9)
    left.set_ylabel("observed coverage", fontsize=9)
    left.legend(frameon=False, fontsize=8)

    wide = SURE * np.sqrt((bins - 1) / scans)  # of the part in one of the bins, times their number
    middle.axhspan(1 - wide, 1 + wide, color=MUTED, alpha=0.15, linewidth=0)
    middle.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    middle.set_ylim(0, max(2.0, 1.05 * middle.get_ylim()[1]))
    middle.set_xlabel(f"rank of the known value among {found.draws}", fontsize=9)
    middle.set_ylabel("frequency, relative to uniform", fontsize=9)

    grid = np.linspace(0, 1, 101)
    band = SURE * np.sqrt(grid * (1 - grid) / scans)
    _diagonal(right)
    right.fill_between(grid, grid - band, grid + band, color=MUTED, alpha=0.15, linewidth=0)
    right.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.set_xlabel("credibility", fontsize=9)
    right.set_ylabel("expected coverage (TARP)", fontsize=9)
    _title(figure, found.passed, "calibrated", "not calibrated", f"{scans} scans")
    return figure


def held_out_figure(found: "PriorValidation") -> "Figure":
    """Draw, from left to right: coverage of hidden values, errors over spread by band, and the surprise of every scan.

    Small points are scans, large ones means; where both are one, all of the prior's errors are as large as it says.
    """
    from matplotlib.ticker import MaxNLocator

    data = found.dataset
    bands = [str(band) for band in data["band"].to_numpy()]
    figure, (left, middle, right) = _axes((10.2, 3.4), 3)
    _diagonal(left)
    for k, band in enumerate(bands):
        style: dict[str, Any] = {
            "color": COLOURS[k % 6],
            "marker": MARKS[k % 6],
            "markersize": 4,
            "linewidth": 1.5,
            "label": band,
        }
        left.plot(LEVELS, data["coverage"].sel(band=band).mean("scan"), **style)
    own = data["own_coverage"].sel(band=bands[0]).mean("scan")
    left.plot(LEVELS, own, color=INK, linewidth=0, marker="x", markersize=6, label="its own draws")
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    left.set_xlabel("claimed probability", fontsize=9)
    left.set_ylabel("hidden values inside", fontsize=9)
    title = "cycles per pixel" if len(bands) > 1 else None
    left.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, loc="upper left")

    middle.axhspan(1 / (1 + TOLERANCE), 1 + TOLERANCE, color=MUTED, alpha=0.15, linewidth=0)
    middle.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    shift = np.linspace(-0.25, 0.25, data.sizes["scan"]) if data.sizes["scan"] > 1 else np.zeros(1)
    for k, band in enumerate(bands):
        middle.scatter(k + shift, data["ratio"].sel(band=band), s=7, color=COLOURS[k % 6], alpha=0.45, linewidth=0)
        mean = float(data["band_ratio"].sel(band=band))
        middle.plot(k, mean, color=COLOURS[k % 6], marker=MARKS[k % 6], markersize=9, markeredgecolor="white")
    middle.set_yscale("log")
    shown = [tick for tick in (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 6) if _inside(middle, tick)]
    middle.set_yticks(shown, [f"{tick:g}" for tick in shown])
    middle.minorticks_off()
    middle.set_xticks(range(len(bands)), [band.replace(" to ", "–") for band in bands], rotation=20)
    middle.set_xlim(-0.6, len(bands) - 0.4)
    middle.set_ylabel("errors / predicted spread", fontsize=9)

    flagged = data["flagged"].to_numpy()
    scans, surprise = data["scan"].to_numpy(), data["surprise"].to_numpy()[:, 0]
    right.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    right.scatter(scans[~flagged], surprise[~flagged], s=14, color=COLOURS[0], marker="o", label="explained")
    if flagged.any():
        right.scatter(scans[flagged], surprise[flagged], s=26, color=COLOURS[1], marker="X", label="not explained")
        right.legend(frameon=False, fontsize=8)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("scan", fontsize=9)
    right.set_ylabel("surprise, nats per value", fontsize=9)
    _title(figure, found.passed, "predicts held-out rows", "does not predict held-out rows", f"{len(scans)} scans")
    return figure


def _style(k: int, label: str) -> dict[str, Any]:
    return {"color": COLOURS[k % 6], "marker": MARKS[k % 6], "markersize": 4, "linewidth": 1.5, "label": label}


def _diagonal(axes: "Axes") -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def _inside(axes: "Axes", value: float) -> bool:
    low, high = axes.get_ylim()
    return low <= value <= high


def _title(figure: "Figure", passed: bool, good: str, bad: str, rest: str) -> None:
    figure.suptitle(f"{good if passed else bad} ({rest})", color=COLOURS[2] if passed else COLOURS[1], fontsize=10)
