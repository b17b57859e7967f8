"""Where scans come from: a store, or a `Measurement` in memory, which answers the same questions."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.datasets.store import Indices, SizeGroup, Store
from ambient_sci.errors import DataError
from ambient_sci.measurement import Measurement

__all__ = ["Source", "Tensors", "image_shapes", "numbers", "scan_coords"]


class Source(Protocol):
    """What `ambient_sci.reconstruct` asks of scans; a `Store` has it."""

    kind: str
    is_complex: bool
    groups: list[SizeGroup]
    coords: dict[str, NDArray[Any]]

    @property
    def fingerprint(self) -> str:
        """Hash of measurements and operators."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Indices, /) -> Measurement:
        """Read scans of one size, in normalised units."""
        ...

    def by_size(self, indices: Indices, /) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Sort scans by size: their numbers, and their places among those that were asked for."""
        ...


class Tensors:
    """A measurement in memory as a `Source`."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.kind = measurement.operator.kind
        first = measurement[0]
        image = first.operator.adjoint(first.y)
        self.is_complex = image.is_complex()
        size = measurement.y[0].nbytes
        shapes = tuple(image.shape[1:]), tuple(measurement.y.shape[1:])
        self.groups = [SizeGroup(np.arange(len(measurement)), *shapes, chunk=1, nbytes=size)]
        self.coords = {"scan": measurement.index.cpu().numpy()}

    def __len__(self) -> int:
        return len(self.measurement)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all values, of the measurement and of its operator."""
        m = self.measurement
        tensors: dict[str, Tensor] = {"measurement": m.y, "noise_std": m.noise_std, "scale": m.scale}
        tensors |= {f"operator_{name}": value for name, value in m.operator.parameters.items()}
        digest = hashlib.sha256(json.dumps([self.kind, m.operator.settings], sort_keys=True, default=str).encode())
        for name, value in sorted(tensors.items()):
            array = value.detach().cpu().resolve_conj().contiguous().numpy()
            digest.update(json.dumps([name, array.shape, array.dtype.str]).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def read(self, indices: Indices) -> Measurement:
        """Take scans of the measurement."""
        return self.measurement[torch.as_tensor(indices, device=self.measurement.y.device)]

    def by_size(self, indices: Indices) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Give all of them: they are of one size."""
        scans = np.asarray(indices)
        yield scans, np.arange(len(scans))


def numbers(source: Source, scans: Indices) -> NDArray[np.int64]:
    """Places of the scans that are asked for."""
    try:
        index = np.atleast_1d(np.arange(len(source))[scans if isinstance(scans, slice) else np.asarray(scans)])
    except IndexError as error:
        raise DataError(f"scans: {error}; {_name(source)} holds {len(source)}, counted from 0") from error
    if index.ndim != 1 or len(index) == 0:
        raise DataError(f"scans must name at least one of the {len(source)} scans of {_name(source)}, got {scans}")
    return index


def _name(source: Source) -> str:
    return str(source.path) if isinstance(source, Store) else "the measurement"


def image_shapes(source: Source, index: NDArray[Any]) -> dict[tuple[int, ...], NDArray[np.int64]]:
    """Places of the scans of each image shape, in their order."""
    chosen: dict[tuple[int, ...], NDArray[Any]] = {}
    for group in source.groups:
        inside = np.isin(index, group.scans)
        chosen[group.image_shape] = chosen.get(group.image_shape, False) | inside
    return {shape: index[inside] for shape, inside in chosen.items() if inside.any()}


def scan_coords(source: Source, index: NDArray[Any]) -> dict[str, Any]:
    """Coordinates of some scans, for a Dataset; text as objects, for which Zarr has a stable type."""
    chosen = {name: values[index] for name, values in source.coords.items()}
    if isinstance(source, Store):
        chosen["scan"] = index
    text = {name: values.astype(object) if values.dtype.kind in "SU" else values for name, values in chosen.items()}
    return {name: ("scan", values) for name, values in text.items()}
