r"""Images of a scan as a viewer shows them, and as few bytes.

**What is shown**, each ``(n, channel, z, y, x)``, z of one for flat images; of complex images the magnitude, and
the phase of ``mean``, ``sample`` and ``truth`` under ``mean_phase`` and so on:

=================== =========== =======================================================================================
``mean``, ``std``   n = 1       as reconstructed
``sample``          n = draws   posterior samples
``lower, upper``    n = 1       credible interval
``quantile``        n = levels  quantiles
``truth``           n = 1       the reference
``error``           n = 1       :math:`|m - x|` of mean :math:`m` and truth :math:`x`, complex where these are
``z``               n = 1       :math:`(m - x) / \mathrm{std}`; of complex images, as ``std`` is of two parts together,
                                :math:`\sqrt 2 (|m| - |x|) / \mathrm{std}`
=================== =========== =======================================================================================

**Bytes.** A value is ``offset + scale * code`` with a code of 16 bits. Offset and scale are those that take the least
value of an array to 0 and the greatest to 65534, so that no value is off by more than half a step, 1 / 131068 of the
array's range. Code 65535 is no value: NaN or infinite.
"""

import base64
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.containers import FAULTS, brief
from ambient_sci.errors import DataError

if TYPE_CHECKING:
    import xarray

__all__ = ["MISSING", "images_of", "pack", "packed_size", "windows"]

MISSING = 65535
INSIDE = 99.8  # percent of the values of an image that its scale ends above

Images = dict[str, NDArray[Any]]


def images_of(dataset: "xarray.Dataset", row: int, samples: int, truth: NDArray[Any] | None) -> Images:
    """Images of one scan, by name; of so many of its samples; with its ``truth`` ``(channel, [z,] y, x)``."""
    found: Images = {}
    for name in ("mean", "std", "lower", "upper", "quantile", "sample"):
        if name not in dataset or (name == "sample" and not samples):
            continue
        one = dataset[name].isel(scan=row)
        try:
            values = (one.isel(draw=slice(samples)) if name == "sample" else one).to_numpy()
        except FAULTS as error:
            raise DataError(f"the reconstruction is damaged: {brief(error)}; reconstruct again") from error
        found[name] = values if name in ("quantile", "sample") else values[None]
    if truth is not None:
        mean, std = found["mean"], found["std"]
        if truth.shape != mean.shape[1:]:
            raise DataError(f"references of scans of shape {mean.shape[1:]} must have it too, got {truth.shape}")
        found["truth"], found["error"] = truth[None], np.abs(mean - truth)
        two_parts = np.iscomplexobj(mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(mean) - np.abs(truth) if two_parts else mean - truth
            found["z"] = off * np.sqrt(2 if two_parts else 1) / std
    for name in [name for name, values in found.items() if np.iscomplexobj(values)]:
        found[f"{name}_phase"] = np.angle(found[name])
        found[name] = np.abs(found[name])
    return {name: values[:, :, None] if values.ndim == 4 else values for name, values in found.items()}


def windows(images: Images) -> dict[str, list[float]]:
    """Lower and upper ends of the scales that suit the images of a scan.

    The scale of images begins at zero where none is negative. Standard deviation and error have one, so that they
    can be compared; that of the z-score is from -3 to 3 always.
    """
    known = _values(images[name] for name in ("mean", "truth") if name in images)
    low = 0.0 if known.min() >= 0 else min(float(np.percentile(known, 100 - INSIDE)), 0.0)
    found = {"image": [low, _top(known)], "z": [-3.0, 3.0]}
    found["spread"] = [0.0, _top(_values(images[name] for name in ("std", "error") if name in images))]
    if "lower" in images and "upper" in images:
        found["interval"] = [0.0, _top(_values([images["upper"] - images["lower"]]))]
    if len(images.get("quantile", ())) > 1:
        found["quantiles"] = [0.0, _top(_values([images["quantile"][-1] - images["quantile"][0]]))]
    return found


def _values(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """All that are finite; a zero where none is."""
    values = np.concatenate([array.ravel() for array in arrays])
    return values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)


def _top(values: NDArray[Any]) -> float:
    return float(np.percentile(values, INSIDE))


def pack(values: NDArray[Any]) -> dict[str, Any]:
    """Turn an array into codes in base64, with scale and offset."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    scale = (high - low) / (MISSING - 1)
    codes = np.full(values.shape, MISSING, "<u2")
    codes[finite] = np.rint((values[finite] - low) / (scale or 1.0))
    return {"offset": float(low), "scale": float(scale), "codes": base64.b64encode(codes.tobytes()).decode()}


def packed_size(values: int) -> int:
    """Bytes of so many values: two each, four letters for three of them."""
    return 8 * values // 3
