"""What an audit found: numbers, a verdict, and the nearest pairs."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ambient_sci.audit.membership import Membership
from ambient_sci.audit.statistics import Separation, rate_interval, separate
from ambient_sci.evaluate.predictive import LEVEL
from ambient_sci.findings import Findings

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["QUANTILES", "SHOWN", "PriorAudit"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SHOWN = 10  # pairs in the figure


@dataclass(frozen=True)
class PriorAudit(Findings):
    """What `audit_prior` found; ``str()`` is a table and the verdict.

    Attributes
    ----------
    dataset
        Along ``space`` are the ways of comparing: ``pixels``, ``features``, ``measured``.

        ==================== ================= ===================================================================
        ``similarity``       (space, image)    of each image that the prior drew to the nearest training scan
        ``distance``         (space, image)    relative distance of that scan, 0 for a copy
        ``nearest``          (space, image)    its number
        ``p_value``          (space, image)    chance of being as near, if the prior knows nothing of it
        ``copy``             (space, image)    whether it is a near-copy
        ``residual``         (image)           misfit to its nearest scan in units of the noise, where ``measured``
        ``held_similarity``  (space, scan)     the same of held-out scans
        ``held_distance``    (space, scan)
        ``held_nearest``     (space, scan)
        ``quantiles``        (space, quantile) of ``similarity``
        ``held_quantiles``   (space, quantile) of ``held_similarity``
        ``auc``              (space)           chance that an image is nearer than a held-out scan, by distance
        ``auc_interval``     (space, end)      its 95% interval
        ``auc_similarity``   (space)           the same by similarity
        ``auc_p_value``      (space)           chance of as large an area (``auc``) if they are alike
        ==================== ================= ===================================================================
    membership
        What losses tell of who was trained on.
    pairs
        The nearest pairs: images of the prior, and those of their nearest scans (regularised least squares where they
        are not known), ``(2, pair, channel, *spatial)``.
    pair_images
        Which images of the prior they are, ``(pair,)``.
    """

    kind: ClassVar = "audit"
    files: ClassVar = "audit.png", "pairs.png", "pairs.npz"
    axes: ClassVar = {
        **dict.fromkeys(("similarity", "distance", "nearest", "p_value", "copy"), ("space", "image")),
        **dict.fromkeys(("held_similarity", "held_distance", "held_nearest"), ("space", "scan")),
        **dict.fromkeys(("quantiles", "held_quantiles"), ("space", "quantile")),
        **dict.fromkeys(("auc", "auc_similarity", "auc_p_value"), ("space",)),
        "auc_interval": ("space", "end"),
        "residual": ("image",),
    }
    membership: Membership
    pairs: NDArray[Any]
    pair_images: NDArray[np.int64]

    @property
    def copied(self) -> dict[int, list[int]]:
        """Scans that were copied, by number, and the images that are near-copies of each."""
        found: dict[int, list[int]] = {}
        for space in range(self.dataset.sizes["space"]):
            one = self.dataset.isel(space=space)
            for image in np.flatnonzero(one["copy"]):
                images = found.setdefault(int(one["nearest"][image]), [])
                if int(image) not in images:
                    images.append(int(image))
        return dict(sorted(found.items()))

    @property
    def copies(self) -> int:
        """How many images are near-copies."""
        return int(self.dataset["copy"].any("space").sum())

    @property
    def passed(self) -> bool:
        """Whether no image is a near-copy, and images are no nearer to the training data than held-out scans."""
        return self.copies == 0 and bool((self.dataset["auc_p_value"] >= LEVEL / self.dataset.sizes["space"]).all())

    @property
    def verdict(self) -> str:
        """One line: whether training scans were copied, and by which test."""
        data = self.dataset
        images, scans = data.sizes["image"], data.sizes["scan"]
        worst = data.isel(space=int(data["auc_p_value"].to_numpy().argmin()))
        auc, p = float(worst["auc"]), float(worst["auc_p_value"])
        low, high = worst["auc_interval"].to_numpy()
        test = (
            f"nearer to a training scan than {scans} held-out scans are with AUC {auc:.2f} ({low:.2f}-{high:.2f}), "
            f"p = {p:.1g} ({worst['space'].item()})"
        )
        if self.copies:
            some = ", ".join(map(str, list(self.copied)[:5])) + (", …" if len(self.copied) > 5 else "")
            return f"COPIES {len(self.copied)} training scans ({some}) in {self.copies} of {images} images; {test}"
        most = rate_interval(0, images)[1]
        none = f"no near-copy among {images} images (of all, at most {most:.1%})"
        if self.passed:
            return f"no copies found: {none}; {test}"
        return f"is TOO NEAR to training scans: {none}; {test}"

    def _facts(self) -> dict[str, Any]:
        return {
            "copied": {str(scan): images for scan, images in self.copied.items()},
            "membership": self.membership.to_dict(),
        }

    def _contents(self) -> "list[Figure | bytes]":
        pairs = io.BytesIO()
        np.savez_compressed(pairs, pairs=self.pairs, images=self.pair_images)
        return [self.plot(), self.plot_pairs(), pairs.getvalue()]

    @classmethod
    def _of(cls, dataset: "xarray.Dataset", told: dict[str, Any], folder: Path) -> Self:
        with np.load(folder / "pairs.npz", allow_pickle=False) as kept:
            pairs, images = kept["pairs"], kept["images"]
        return cls(dataset, Membership.of(told["membership"]), pairs, images)

    def nearer_than(self, other: "PriorAudit") -> Separation:
        """By how much images of this prior are nearer to training scans than those of another, in the first space."""
        return separate(*(-found.dataset["distance"].to_numpy()[0] for found in (self, other)))

    def plot(self) -> "Figure":
        """Draw similarities and distances of images and of held-out scans."""
        from ambient_sci.audit.figure import audit_figure

        return audit_figure({"the prior": self})

    def plot_pairs(self) -> "Figure":
        """Draw the ten nearest pairs."""
        from ambient_sci.audit.figure import pairs_figure

        return pairs_figure(self)

    def __str__(self) -> str:
        data = self.dataset
        head = "".join(f"{f'{quantile:.0%}':>7}" for quantile in QUANTILES)
        lines = [f"{'quantiles of similarity':<30}{head}{'distance':>10}{'near-copies':>13}"]
        for space in data["space"].to_numpy():
            one = data.sel(space=space)
            for who, name, count in (("images", "", int(one["copy"].sum())), ("held-out scans", "held_", "")):
                values = "".join(f"{float(value):>7.3f}" for value in one[f"{name}quantiles"])
                distance = float(one[f"{name}distance"].median())
                lines.append(f"{f'{space}: {who}':<30}{values}{distance:>10.3f}{count:>13}")
        if bool(data["residual"].notnull().all()):
            apart = ", ".join(f"{float(value):.1f}" for value in data["residual"].quantile((0.05, 0.5, 0.95)))
            lines.append(f"misfit of images to what their nearest scans measured: {apart} times the noise (5, 50, 95%)")
        for scan, images in list(self.copied.items())[:SHOWN]:
            some = ", ".join(map(str, images[:5])) + (", …" if len(images) > 5 else "")
            lines.append(f"scan {scan} is copied by {len(images)} images ({some})")
        return "\n".join([*lines, str(self.membership), self.verdict])
