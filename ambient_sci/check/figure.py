"""The figure of a check: how often everything is measured, what stays unknown, and how strong the signal is."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.check.group_report import LEAST_SCANS, GroupReport
from ambient_sci.check.report import CheckReport
from ambient_sci.plot import COLOURS, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_figure"]

VERDICT = {"good": COLOURS[2], "marginal": COLOURS[4], "refused": COLOURS[1]}


def check_figure(report: CheckReport) -> "Figure":
    """Draw a row for the scans of each size.

    From left to right: in how many scans each frequency (or pixel) is determined; the part of its power that all scans
    together leave unknown, with outlines about what they do not measure at all; rings of frequencies, with signal to
    noise and scans. Of volumes the central plane is shown.
    """
    from matplotlib.figure import Figure

    rows = len(report.groups)
    figure = Figure(figsize=(9.6, 0.5 + 3.0 * rows), dpi=160, facecolor="white", layout="constrained")
    figure.suptitle(f"{report.path.rsplit('/', 1)[-1]}: {report.verdict}", color=VERDICT[report.verdict], fontsize=11)
    panels = figure.subplots(rows, 3, squeeze=False, width_ratios=(1, 1, 1.15))
    for group, (left, middle, right) in zip(report.groups, panels, strict=True):
        _scans(figure, left, group)
        _unknown(figure, middle, group)
        if group.domain == "pixels":
            _histogram(right, group)
        else:
            _rings(right, group)
    return figure


def _scans(figure: "Figure", axes: "Axes", group: GroupReport) -> None:
    from matplotlib.colors import LogNorm

    values = _plane(group.effective_scans).clip(0.1)
    norm = LogNorm(0.1, max(group.scans, 1))
    drawn = axes.imshow(values, cmap="cividis", norm=norm, aspect=_aspect(values), interpolation="nearest")
    _bar(figure, axes, drawn)
    axes.set_title("Effective scans", fontsize=9, color=INK)
    _label(axes, group, f"{' × '.join(map(str, group.image_shape))}, {group.scans} scans")


def _unknown(figure: "Figure", axes: "Axes", group: GroupReport) -> None:
    values, never = _plane(group.starved), _plane(group.unmeasured) > 0.5
    drawn = axes.imshow(values, cmap="inferno", vmin=0, vmax=1, aspect=_aspect(values), interpolation="nearest")
    _outline(axes, never)
    _bar(figure, axes, drawn)
    axes.set_title("Left unknown by all scans", fontsize=9, color=INK)
    part = group.directions
    _label(axes, group, f"not measured {part['unmeasured']:.0%}, lost in noise {part['noisy']:.0%}")


def _outline(axes: "Axes", where: NDArray[np.bool_]) -> None:
    """Lines along the edges between pixels that are inside and outside."""
    from matplotlib.collections import LineCollection

    padded = np.pad(where, 1)
    edges: list[Any] = []
    for i, j in zip(*np.nonzero(padded[1:] != padded[:-1]), strict=True):
        edges.append([(j - 1.5, i - 0.5), (j - 0.5, i - 0.5)])
    for i, j in zip(*np.nonzero(padded[:, 1:] != padded[:, :-1]), strict=True):
        edges.append([(j - 0.5, i - 1.5), (j - 0.5, i - 0.5)])
    axes.add_collection(LineCollection(edges, colors=COLOURS[5], linewidths=1.2))


def _rings(axes: "Axes", group: GroupReport) -> None:
    radius = np.array(group.bands["radius"])
    snr = np.array(group.bands["snr"])
    scans = np.array(group.bands["effective_scans"])
    axes.plot(radius, snr.clip(1e-3), color=COLOURS[0], linewidth=1.6, label="signal to noise")
    axes.plot(radius, scans.clip(1e-3), color=COLOURS[1], linewidth=1.6, label="effective scans")
    axes.axhline(1, color=COLOURS[0], linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axhline(LEAST_SCANS, color=COLOURS[1], linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yscale("log")
    axes.set_ylim(0.02, 2 * max(group.scans, float(np.percentile(snr, 99)), 100))
    axes.set_xlim(0, None)
    axes.set_xlabel("frequency (1: the highest along an axis)", fontsize=8, color=INK)
    axes.set_title("Rings of frequencies", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8)
    _frame(axes)


def _histogram(axes: "Axes", group: GroupReport) -> None:
    axes.hist(group.effective_scans.flatten(), bins=30, color=COLOURS[0])
    axes.axvline(LEAST_SCANS, color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, None)
    axes.set_xlabel("effective scans", fontsize=8, color=INK)
    axes.set_ylabel("pixels", fontsize=8, color=INK)
    axes.set_title("Pixels by scans", fontsize=9, color=INK)
    _frame(axes)


def _frame(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=7, color=MUTED, labelcolor=INK)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _bar(figure: "Figure", axes: "Axes", drawn: Any) -> None:
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2, width=0.6, colors=INK)


def _label(axes: "Axes", group: GroupReport, text: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(text, fontsize=8, color=MUTED)


def _plane(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Central plane of a volume, a line as a picture of one row."""
    while values.ndim > 2:
        values = values[len(values) // 2]
    return values if values.ndim == 2 else values[None]


def _aspect(values: NDArray[np.float64]) -> Any:
    return "equal" if len(values) > 1 else values.shape[1] / 8
