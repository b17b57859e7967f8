"""A reconstruction beside what is known: scores against references, and a figure beside classical methods."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.baselines import l1_wavelet_batch, tune_held_out, zero_filled
from ambient_sci.datasets.containers import FAULTS, brief
from ambient_sci.datasets.store import Store
from ambient_sci.errors import DataError
from ambient_sci.evaluate.calibration import Calibration, SampleJudge
from ambient_sci.evaluate.metrics import coverage_normal, head_mask, score, table
from ambient_sci.measurement import Measurement
from ambient_sci.plot import reconstruction_figure
from ambient_sci.reconstruction import datasets_of

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Evaluation", "comparison_figure", "evaluate", "require_same_store"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the posterior mean and coverage of its error bars.

    Attributes
    ----------
    text
        A table to print.
    metrics
        ``{"methods": {name: {"nrmse": …, "psnr": …, "ssim": …}}, "scans": n, "coverage": {"0.9": …}}``, and under
        ``"calibration"`` what that holds.
    calibration
        Coverage, ranks and TARP of the samples, with a verdict; none where there is but one scan, less than two pairs
        of samples, or samples were not kept.
    """

    text: str
    metrics: dict[str, Any]
    calibration: Calibration | None

    def __str__(self) -> str:
        return self.text


def evaluate(reconstruction: "xarray.Dataset | xarray.DataTree", store: Store) -> Evaluation:
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
    require_same_store(reconstruction, store)
    scores: dict[str, list[Any]] = {}
    inside: list[int] = []
    judge = SampleJudge()
    judged = all("sample" in dataset and dataset.sizes["draw"] >= 4 for dataset in datasets_of(reconstruction))
    covered: dict[float, list[float]] = {}
    for dataset in datasets_of(reconstruction):
        reference = store.references(dataset["scan"].to_numpy())
        mean, std = _values(dataset["mean"]), _values(dataset["std"])
        mask = head_mask(reference)
        for name, values in score(mean, reference, mask).items():
            scores.setdefault(name, []).append(values)
        part = std / np.sqrt(2) if np.iscomplexobj(mean) else std
        held = coverage_normal(mean, part, reference, mask=mask, samples=dataset.sizes["draw"])
        for level, value in held.items():
            covered.setdefault(level, []).append(value)
        inside.append(int(np.sum(mask)))
        if judged:
            for scan in range(len(reference)):  # not all samples at once
                judge.add(_values(dataset["sample"][scan : scan + 1]), reference[scan : scan + 1])
    text, metrics = table({"posterior mean": {name: np.concatenate(values) for name, values in scores.items()}})
    coverage = {level: float(np.average(values, weights=inside)) for level, values in covered.items()}
    metrics["coverage"] = {str(level): value for level, value in coverage.items()}
    lines = [
        f"{100 * level:.0f}% intervals hold the known value in {100 * value:.1f}% of pixels"
        for level, value in coverage.items()
    ]
    calibration = judge.result() if judged and metrics["scans"] >= 2 else None
    if calibration is not None:
        metrics["calibration"] = calibration.to_dict()
        lines += ["", str(calibration)]
    return Evaluation("\n".join([text, "", *lines]), metrics, calibration)


def _values(variable: "xarray.DataArray") -> NDArray[Any]:
    try:
        return np.asarray(variable.to_numpy())
    except FAULTS as error:
        raise DataError(f"the reconstruction is damaged: {brief(error)}; reconstruct again") from error


def comparison_figure(reconstruction: "xarray.Dataset | xarray.DataTree", store: Store, count: int = 3) -> "Figure":
    """Draw the posterior mean and standard deviation beside classical reconstructions of the same scans.

    The regularisation of L1-wavelet is chosen by predicting rows that it was not given, so that measured scans, of
    which no reference exists, can be shown; where there are references, errors are shown too.

    Parameters
    ----------
    reconstruction
        What `ambient_sci.reconstruct` returned.
    store
        The store that was reconstructed.
    count
        Number of scans to show, from the first on; of its size, where scans are of several.
    """
    require_same_store(reconstruction, store)
    dataset = datasets_of(reconstruction)[0]
    scans, places = next(iter(store.by_size(dataset["scan"].to_numpy())))
    scans, places = scans[:count], places[:count]
    m = store.read(scans)
    scale = m.scale.reshape(-1, *[1] * (dataset["mean"].ndim - 1))

    def wavelet(measurement: Measurement, value: tuple[str, float]) -> Tensor:
        return l1_wavelet_batch(measurement, value[1], wavelet=value[0])

    grid = [(name, lam) for name in ("haar", "db4") for lam in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)]
    columns = {
        "zero-filled": zero_filled(m) * scale,
        "L1-wavelet": wavelet(m, tune_held_out(wavelet, m, grid)) * scale,
        "posterior mean": torch.from_numpy(dataset["mean"][places].to_numpy()),
    }
    reference = store.references(scans) if store.has_references else None
    std = dataset["std"][places].to_numpy()
    return reconstruction_figure(columns, reference, std, labels=[f"scan {scan}" for scan in scans])


def require_same_store(reconstruction: "xarray.Dataset | xarray.DataTree", store: Store) -> None:
    """Refuse a reconstruction that was made from another store."""
    made_from = reconstruction.attrs.get("store")
    if made_from != store.fingerprint:
        raise DataError(
            f"the reconstruction was made from another store (fingerprint {made_from}, not {store.fingerprint})"
        )
