"""Figures of an audit: how near images and held-out scans are to the training data, and the nearest pairs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.audit.statistics import FALSE_POSITIVES
from ambient_sci.evaluate.figures import _title
from ambient_sci.plot import COLOURS, INK, MUTED, _axes, _caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ambient_sci.audit.result import PriorAudit

__all__ = ["audit_figure", "pairs_figure"]

BINS = 32
SIDE = 1.1  # inches of an image


def audit_figure(audits: "Mapping[str, PriorAudit]") -> "Figure":
    """Draw, from left to right: similarity to the nearest training scan, its relative distance, and membership.

    Parameters
    ----------
    audits
        One audit, or several with the same training and held-out scans, by name.
    """
    first = next(iter(audits.values()))
    spaces = [str(space) for space in first.dataset["space"].to_numpy()]
    figure, every = _axes((10.2, 3.4 * len(spaces)), 3, len(spaces))
    for row, space in enumerate(spaces):
        left, middle, right = every[3 * row : 3 * row + 3]
        for axes, name, label in (
            (left, "similarity", f"similarity to the nearest scan ({space})"),
            (middle, "distance", f"its distance, relative to the next ({space})"),
        ):
            samples = {title: found.dataset[name].sel(space=space).to_numpy() for title, found in audits.items()}
            _histograms(axes, first.dataset[f"held_{name}"].sel(space=space).to_numpy(), samples)
            axes.set_xlabel(label, fontsize=9)
            axes.set_ylabel("density", fontsize=9)
        left.legend(frameon=False, fontsize=8, loc="upper left")
        right.set_visible(row == 0)
    _membership(every[2], audits)
    passed = all(found.passed for found in audits.values())
    sizes = f"{first.dataset.sizes['image']} images, {first.dataset.sizes['scan']} held-out scans"
    _title(figure, passed, "no copies found", "near to training scans", sizes)
    return figure


def _histograms(axes: "Axes", held: NDArray[np.float64], samples: Mapping[str, NDArray[np.float64]]) -> None:
    every = np.concatenate([held, *samples.values()])
    edges = np.linspace(every.min() - 1e-3, every.max() + 1e-3, BINS + 1).tolist()
    axes.hist(held, edges, density=True, color=MUTED, alpha=0.35, label="held-out scans")
    for k, (title, values) in enumerate(samples.items()):
        axes.hist(values, edges, density=True, histtype="step", color=COLOURS[k % 6], linewidth=1.6, label=title)


def _membership(axes: "Axes", audits: "Mapping[str, PriorAudit]") -> None:
    """Draw part of the members found over part of the others accused, on logarithmic scales."""
    least = 0.5 / max(len(found.membership.others) for found in audits.values())
    axes.plot([least, 1], [least, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.axvline(FALSE_POSITIVES, color=MUTED, linewidth=0.8, linestyle=":")
    for k, (title, found) in enumerate(audits.items()):
        inside, outside = found.membership.members, found.membership.others
        thresholds = np.sort(np.concatenate([inside, outside]))
        accused = np.searchsorted(np.sort(outside), thresholds, "right") / len(outside)
        hits = np.searchsorted(np.sort(inside), thresholds, "right") / len(inside)
        label = f"{title}, AUC {found.membership.threshold.auc:.2f}"
        axes.plot(accused.clip(least), hits.clip(least), color=COLOURS[k % 6], linewidth=1.6, label=label)
    axes.set(xscale="log", yscale="log", xlim=(least, 1.1), ylim=(least, 1.1))
    axes.set_xlabel("others accused", fontsize=9)
    axes.set_ylabel("members found, by their loss", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def pairs_figure(found: "PriorAudit") -> "Figure":
    """Draw the nearest pairs: an image of the prior above the nearest training scan, each on its own grey scale."""
    from matplotlib.figure import Figure

    data, count = found.dataset, found.pairs.shape[1]
    height = SIDE * found.pairs.shape[3] / found.pairs.shape[4]
    width, total = 0.25 + SIDE * count, 2 * height + 0.04
    figure = Figure(figsize=(width, total), dpi=200, facecolor="white")
    place = {"left": 0.25 / width, "right": 0.998, "bottom": 0.02 / total, "top": 1 - 0.02 / total}
    panels = figure.subplots(2, count, squeeze=False, gridspec_kw={**place, "wspace": 0.03, "hspace": 0.03})
    for column, image in enumerate(found.pair_images):
        one = data.isel(image=int(image), space=int(data["p_value"].isel(image=int(image)).to_numpy().argmin()))
        similar = f"scan {int(one['nearest'])} · {float(one['similarity']):.2f}"
        mark = "near-copy" if bool(one["copy"]) else f"image {int(image)}"
        for axes, values, text in zip(panels[:, column], found.pairs[:, column, 0], (mark, similar), strict=True):
            shown: NDArray[Any] = np.abs(values) if np.iscomplexobj(values) else values
            top = max(float(np.percentile(shown, 99.8)), 1e-12)
            axes.imshow(shown, cmap="gray", vmin=min(0.0, float(shown.min())), vmax=top)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            _caption(axes, text)
    for axes, text in zip(panels[:, 0], ("drawn", "nearest scan"), strict=True):
        axes.set_ylabel(text, fontsize=8, color=INK)
    return figure
