"""What is in a store, for ``ambient-sci info`` and for a first look in a notebook."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ambient_sci.datasets.store import SizeGroup, Store
from ambient_sci.operators import Nufft, trajectories

__all__ = ["Description", "describe"]

_SAMPLE = 16  # scans of a size that are read for what needs reading


@dataclass(frozen=True)
class Description:
    """Facts about a store, in order; ``str()`` is a table of them."""

    facts: dict[str, Any]

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.facts.items())

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]


def describe(store: Store) -> Description:
    """Describe a store; at most a few scans of each size are read.

    Returns
    -------
    Description
        Number and size of scans, operator, acceleration, noise relative to the images, intensities, coordinates,
        whether there are references, where the scans came from, and the fingerprint. Where scans are of several sizes,
        what depends on the size has its name before it.
    """
    container = "HDF5" if store.path.is_file() else "Zarr"
    facts: dict[str, Any] = {
        "store": f"{store.path} ({container}, schema version {store.attrs['schema_version']})",
        "scans": len(store),
    }
    for group in store.groups:
        before = f"{group.name} " if group.name else ""
        if group.name:
            facts[f"{before}scans"] = len(group.scans)
        facts |= {f"{before}{name}": value for name, value in _of_a_size(store, group).items()}
    facts["intensity"] = f"{_span(store.scale)} (scale)"
    coords = {name: len(np.unique(values)) for name, values in store.coords.items() if name != "scan"}
    if coords:
        facts["coordinates"] = ", ".join(f"{name} ({count} different)" for name, count in coords.items())
    facts["references"] = "yes (not used in training)" if store.has_references else "no"
    facts["in memory"] = f"{store.nbytes / 1e6:.1f} MB"
    for name, value in store.attrs["provenance"].items():
        if name == "appended":
            value = ", then ".join(f"{entry.get('source', 'scans')} {_range(entry['scans'])}" for entry in value)
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items() if entry is not None)
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        label = name.replace("_", " ")
        if value != "":
            facts[label if label not in facts else f"{label}, how"] = value
    facts["fingerprint"] = store.fingerprint
    return Description(facts)


def _of_a_size(store: Store, group: SizeGroup) -> dict[str, Any]:
    some = np.unique(np.linspace(0, len(group.scans) - 1, _SAMPLE).round().astype(int))
    measurement = store.read(group.scans[some])
    operator = measurement.operator
    rows = operator.rows.expand(len(some), *operator.rows.shape[1:]).flatten(1).mean(1)
    fraction = rows.numpy()
    told = "".join(f", {name} {value}" for name, value in group.settings.items() if name != "shape")
    facts: dict[str, Any] = {
        "image": f"{' × '.join(map(str, group.image_shape))}, {'complex' if store.is_complex else 'real'}",
        "operator": f"{store.kind}{told}",
        "measurement": " × ".join(map(str, measurement.y.shape[1:])),
    }
    if store.kind in ("sense", "nufft"):
        facts["coils"] = measurement.y.shape[1]
    if isinstance(operator, Nufft):  # readouts against those of a Cartesian scan
        samples = operator.readout if operator.readout > 1 else None
        fraction = fraction / trajectories.acceleration(operator.trajectory, operator.shape, samples)
    if store.kind in ("gaussian", "matrix"):
        fraction = fraction * measurement.y.shape[1] / float(np.prod(group.image_shape))
    facts["measured"] = f"{_span(100 * fraction)} % (acceleration {_span(1 / np.maximum(fraction, 1e-9))})"
    noise = measurement.noise_std.flatten(1).mean(1) if measurement.noise_std.ndim > 1 else measurement.noise_std
    facts["noise"] = f"{_span(noise.numpy())} per real component, relative to the images' intensity"
    return facts


def _range(scans: list[int]) -> str:
    return f"(scans {scans[0]} to {scans[1] - 1})"


def _span(values: Any) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
