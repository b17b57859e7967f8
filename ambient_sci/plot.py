"""Figures: reconstructions beside each other, samples of a prior, training, calibration.

Every function returns a `matplotlib.figure.Figure` that belongs to no window: save it with ``figure.savefig``, put it
in a report, or let a notebook show it. Images are tensors or arrays, ``(n, height, width)`` or ``(n, 1, height,
width)``; of complex ones the magnitude is shown. Grey for images, one perceptually even scale for errors and standard
deviations, and line colours that colour-blind readers can tell apart (Okabe and Ito 2008).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration_figure", "reconstruction_figure", "samples_grid", "tiles", "training_curve"]

Images: TypeAlias = Tensor | NDArray[Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, MUTED = "#1a1a1a", "#6b6b6b"
ERROR_MAP = "inferno"
PANEL, GAP = 1.6, 0.035  # inches


def reconstruction_figure(
    columns: Mapping[str, Images],
    reference: Images | None = None,
    std: Images | None = None,
    mask: Images | None = None,
    labels: Sequence[str] | None = None,
    gain: float | None = None,
) -> "Figure":
    """Draw reconstructions of the same scans side by side.

    Each scan is a row of images, all on one grey scale. With a reference, a second row shows how far each is from it,
    all on one scale that is finer by a stated factor; the predicted standard deviation stands there too, under
    the reference, so that it can be compared with the error of the mean beside it. Without a reference it is the last
    column.

    Parameters
    ----------
    columns
        Title to images, in the order to show them; the posterior mean last.
    reference
        Known images.
    std
        Posterior standard deviation, real.
    mask
        Where the NRMSE and PSNR under the images count; `ambient_sci.evaluate.head_mask` of the reference by default.
    labels
        A label for each scan, such as its number.
    gain
        How much finer the scale of the errors is; by default so that nearly all errors of all columns fit.
    """
    from matplotlib.figure import Figure

    from ambient_sci.evaluate.metrics import score

    if not columns:
        raise DataError("columns must hold at least one method's images")
    shown = {title: _magnitudes(title, images) for title, images in columns.items()}
    first = next(iter(shown.values()))
    truth = None if reference is None else _magnitudes("reference", reference)
    spread = None if std is None else _magnitudes("std", std)
    for title, images in (*shown.items(), ("reference", truth), ("std", spread)):
        if images is not None and images.shape != first.shape:
            raise DataError(f"all images must have one shape, got {first.shape} and {images.shape} for {title!r}")
    errors, scores = {}, {}
    if reference is not None:
        known = _squeeze(reference)
        errors = {title: np.abs(_squeeze(images) - known) for title, images in columns.items()}
        inside = None if mask is None else _squeeze(mask)
        scores = {title: score(_squeeze(images), known, inside) for title, images in columns.items()}
    bright = [max(float(np.percentile(image, 99.8)), 1e-12) for image in (first if truth is None else truth)]
    small = np.concatenate(list(errors.values()), 1) if errors else spread
    if gain is None:
        gain = 1.0 if small is None else _round_gain(np.array(bright), small)

    titles = [*shown, *(["Reference"] if truth is not None else ["Posterior std"] if spread is not None else [])]
    layout = _Layout(len(first), 2 if truth is not None else 1, len(titles), first.shape[1:], labels is not None)
    figure = Figure(figsize=layout.size, dpi=200, facecolor="white")
    for scan, top in enumerate(bright):
        grey: dict[str, Any] = {"cmap": "gray", "vmin": 0.0, "vmax": top}
        fine: dict[str, Any] = {"cmap": ERROR_MAP, "vmin": 0.0, "vmax": top / gain}
        drawn: Any = None
        for column, (title, images) in enumerate(shown.items()):
            axes = layout.panel(figure, scan, 0, column)
            drawn = axes.imshow(images[scan], **grey)
            if scores:
                _caption(axes, f"NRMSE {scores[title]['nrmse'][scan]:.3f} · {scores[title]['psnr'][scan]:.1f} dB")
                drawn_error = layout.panel(figure, scan, 1, column).imshow(errors[title][scan], **fine)
            if scan == 0:
                axes.set_title(title, fontsize=9, color=INK, pad=4)
        layout.bar(figure, drawn, scan, 0)
        last = len(titles) - 1
        if truth is not None:
            axes = layout.panel(figure, scan, 0, last)
            axes.imshow(truth[scan], **grey)
            if scan == 0:
                axes.set_title("Reference", fontsize=9, color=INK, pad=4)
            below = layout.panel(figure, scan, 1, last, visible=spread is not None)
            if spread is not None:
                below.imshow(spread[scan], **fine)
                _caption(below, "Posterior std")
            layout.bar(figure, drawn_error, scan, 1)
            layout.label(figure, scan, 1, f"|error| ×{gain:g}")
        elif spread is not None:
            axes = layout.panel(figure, scan, 0, last)
            drawn = axes.imshow(spread[scan], **fine)
            layout.bar(figure, drawn, scan, 0, second=True)
            if scan == 0:
                axes.set_title(f"Posterior std ×{gain:g}", fontsize=9, color=INK, pad=4)
        if labels is not None:
            layout.label(figure, scan, 0, labels[scan])
    return figure


def samples_grid(images: Images, columns: int = 8, title: str | None = None) -> "Figure":
    """Draw images in a grid, each on its own grey scale from zero."""
    from matplotlib.figure import Figure

    shown = _magnitudes("images", images)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    side = 1.1
    height = side * shown.shape[1] / shown.shape[2]
    head = 0.3 if title else 0.0
    width, total = columns * side + GAP * (columns - 1), rows * height + GAP * (rows - 1) + head
    figure = Figure(figsize=(width, total), dpi=200, facecolor="white")
    for k, image in enumerate(shown):
        left, row = (k % columns) * (side + GAP), k // columns
        bottom = total - head - (row + 1) * height - row * GAP
        axes = figure.add_axes((left / width, bottom / total, side / width, height / total))
        axes.imshow(image, cmap="gray", vmin=0, vmax=max(float(np.percentile(image, 99.8)), 1e-12), aspect="auto")
        axes.set_axis_off()
    if title:
        figure.text(0.5, 1 - 0.15 / total, title, ha="center", va="center", fontsize=9, color=INK)
    return figure


def tiles(images: Images, columns: int = 8) -> NDArray[np.uint8]:
    """Put images side by side, pixel by pixel, each on its own grey scale from zero; black is what is not finite.

    Returns
    -------
    array
        ``(rows * height, columns * width)``, of bytes.
    """
    shown = np.nan_to_num(_magnitudes("images", images), posinf=0, neginf=0)
    count, height, width = shown.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    brightest = np.percentile(shown, 99.8, (1, 2), keepdims=True).clip(1e-12)
    picture = np.zeros((rows * columns, height, width), np.uint8)
    picture[:count] = 255 * (shown / brightest).clip(0, 1)
    return picture.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def training_curve(records: Sequence[Mapping[str, Any]], x: str = "images", y: str = "loss") -> "Figure":
    """Draw a quantity of a training log: every record, and a running median over a twentieth of them.

    Where records say how well held-out rows are predicted, that is drawn beside it.

    Parameters
    ----------
    records
        One mapping per logged step; those without ``x`` or ``y`` are passed over.
    x, y
        Names of what to draw over what.
    """
    points = np.array([(record[x], record[y]) for record in records if x in record and y in record], float)
    if not len(points):
        raise DataError(f"records must hold numbers under {x!r} and {y!r}, got none")
    looks = np.array([(record[x], record["held_out"]) for record in records if x in record and "held_out" in record])
    figure, panels = _axes((4.8 if not len(looks) else 8.2, 2.9), 2 if len(looks) else 1)
    axes = panels[0]
    window = max(len(points) // 20, 1)
    half = window // 2
    median = [np.median(points[max(k - half, 0) : k + half + 1, 1]) for k in range(len(points))]
    single = len(points) == 1
    axes.plot(*points.T, color=COLOURS[5], linewidth=0.8, alpha=0.7, label="logged", marker="o" if single else None)
    if window > 1:
        axes.plot(points[:, 0], median, color=COLOURS[0], linewidth=1.8, label="running median")
        axes.legend(frameon=False, fontsize=8)
    if (points[:, 1] > 0).all() and points[:, 1].max() > 4 * points[:, 1].min():
        axes.set_yscale("log")
    axes.set_ylabel(y, fontsize=9)
    if len(looks):
        panels[1].plot(*looks.T, color=COLOURS[1], linewidth=1.8, marker="o", markersize=4)
        panels[1].set_ylabel("squared error on held-out rows", fontsize=9)
    for panel in panels:
        panel.set_xlabel(f"{x} seen" if x == "images" else x, fontsize=9)
    return figure


def calibration_figure(levels: Sequence[float], coverage: Sequence[float] | Mapping[str, Sequence[float]]) -> "Figure":
    """Draw how often intervals held the truth over how often they claimed to.

    Parameters
    ----------
    levels
        Claimed probabilities.
    coverage
        Observed fractions at those levels, or several named sequences of them.
    """
    curves = coverage if isinstance(coverage, Mapping) else {"": coverage}
    figure, (axes,) = _axes((3.6, 3.6))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.fill_between([0, 1], [0, 1], 0, color=COLOURS[1], alpha=0.07, linewidth=0)
    axes.text(0.96, 0.06, "intervals too narrow", ha="right", fontsize=8, color=COLOURS[1])
    axes.text(0.04, 0.92, "intervals too wide", fontsize=8, color=MUTED)
    for k, (name, fractions) in enumerate(curves.items()):
        if len(fractions) != len(levels):
            raise DataError(
                f"coverage {name!r} must have {len(levels)} values, one for each level, got {len(fractions)}"
            )
        colour, marker = COLOURS[k % len(COLOURS)], "osD^vP"[k % 6]
        axes.plot(levels, fractions, color=colour, marker=marker, markersize=5, linewidth=1.6, label=name)
    if any(curves):
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.02, 0.75))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("claimed probability", fontsize=9)
    axes.set_ylabel("observed coverage", fontsize=9)
    return figure


class _Layout:
    """Places of panels, in inches: scans from top to bottom, rows within a scan close together."""

    def __init__(self, scans: int, rows: int, columns: int, shape: Sequence[int], labelled: bool) -> None:
        self.rows, self.columns = rows, columns
        self.height = PANEL * shape[0] / shape[1]
        self.left = 0.24 if labelled or rows > 1 else 0.04
        self.block = rows * (self.height + GAP) + 0.07
        self.right = 0.62 if rows > 1 else 1.15
        self.size = (self.left + columns * (PANEL + GAP) + self.right, 0.26 + scans * self.block)

    def _rectangle(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        across, down = self.size
        return left / across, 1 - (top + height) / down, width / across, height / down

    def _top(self, scan: int, row: int) -> float:
        return 0.24 + scan * self.block + row * (self.height + GAP)

    def panel(self, figure: "Figure", scan: int, row: int, column: int, visible: bool = True) -> "Axes":
        left = self.left + column * (PANEL + GAP)
        axes = figure.add_axes(self._rectangle(left, self._top(scan, row), PANEL, self.height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_visible(visible)
        return axes

    def bar(self, figure: "Figure", drawn: Any, scan: int, row: int, second: bool = False) -> None:
        left = self.left + self.columns * (PANEL + GAP) + 0.03 + (0.52 if second else 0)
        axes = figure.add_axes(self._rectangle(left, self._top(scan, row), 0.09, self.height))
        bar = figure.colorbar(drawn, cax=axes)
        bar.outline.set_visible(False)
        bar.ax.locator_params(nbins=4)
        bar.ax.yaxis.set_major_formatter("{x:g}")  # a factor of all labels would stand in the panel above
        bar.ax.tick_params(labelsize=7, length=2, width=0.6, pad=2, colors=INK)

    def label(self, figure: "Figure", scan: int, row: int, text: str) -> None:
        x, y, _, height = self._rectangle(0.11, self._top(scan, row), 0, self.height)
        figure.text(x, y + height / 2, text, rotation=90, ha="center", va="center", fontsize=8, color=INK)


def _axes(size: tuple[float, float], panels: int = 1, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=200, facecolor="white", layout="constrained")
    every = list(figure.subplots(rows, panels, squeeze=False).flat)
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(labelsize=8, color=MUTED, labelcolor=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, every


def _caption(axes: "Axes", text: str) -> None:
    from matplotlib.patheffects import withStroke

    effect = [withStroke(linewidth=1.6, foreground="black")]
    axes.text(
        0.5,
        0.025,
        text,
        transform=axes.transAxes,
        ha="center",
        va="bottom",
        fontsize=7,
        color="white",
        path_effects=effect,
    )


def _round_gain(bright: NDArray[np.float64], errors: NDArray[np.float64]) -> float:
    """Find the largest round factor at which nearly all errors still fit the scale."""
    largest = np.percentile(errors.reshape(len(errors), -1), 98, axis=1).clip(1e-12)
    fits = float(np.median(bright / largest))
    return max([gain for gain in (1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 20.0, 50.0) if gain <= fits], default=1.0)


def _squeeze(images: Images) -> NDArray[Any]:
    values = images.numpy(force=True) if isinstance(images, Tensor) else np.asarray(images)
    return values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values


def _magnitudes(name: str, images: Images) -> NDArray[np.float64]:
    values = _squeeze(images)
    if values.ndim != 3 or not len(values):
        raise DataError(f"{name} must be (n, height, width) or (n, 1, height, width), got {values.shape}")
    return np.abs(values) if np.iscomplexobj(values) else values
