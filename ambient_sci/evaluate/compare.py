"""Scores of a reconstruction against the references of a simulated store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ambient_sci.datasets.containers import FAULTS, brief
from ambient_sci.datasets.store import Store
from ambient_sci.errors import DataError
from ambient_sci.evaluate.metrics import coverage_normal, head_mask, score, table

if TYPE_CHECKING:
    import xarray

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the posterior mean and coverage of its error bars.

    Attributes
    ----------
    text
        A table to print.
    metrics
        ``{"methods": {name: {"nrmse": …, "psnr": …, "ssim": …}}, "scans": n, "coverage": {"0.9": …}}``.
    """

    text: str
    metrics: dict[str, Any]

    def __str__(self) -> str:
        return self.text


def evaluate(reconstruction: "xarray.Dataset", store: Store) -> Evaluation:
    """Score a reconstruction where the images are known.

    Parameters
    ----------
    reconstruction
        What `ambient_sci.reconstruct` returned.
    store
        The simulated store that was reconstructed, with its references.

    Raises
    ------
    DataError
        If the reconstruction was made from another store.
    """
    made_from = reconstruction.attrs.get("store")
    if made_from != store.fingerprint:
        raise DataError(
            f"the reconstruction was made from another store (fingerprint {made_from}, not {store.fingerprint})"
        )
    reference = store.references(reconstruction["scan"].to_numpy())
    try:
        mean, std = reconstruction["mean"].to_numpy(), reconstruction["std"].to_numpy()
    except FAULTS as error:
        raise DataError(f"the reconstruction is damaged: {brief(error)}; reconstruct again") from error
    mask = head_mask(reference)
    text, metrics = table({"posterior mean": score(mean, reference, mask)})
    part = std / np.sqrt(2) if np.iscomplexobj(mean) else std
    covered = coverage_normal(mean, part, reference, mask=mask, samples=reconstruction.sizes["draw"])
    metrics["coverage"] = {str(level): value for level, value in covered.items()}
    lines = [
        f"{100 * level:.0f}% intervals hold the known value in {100 * value:.1f}% of pixels"
        for level, value in covered.items()
    ]
    return Evaluation("\n".join([text, "", *lines]), metrics)
