"""Learning from measurements directly, by hiding part of them from the network (`ambient_sci.objectives.ambient`)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.loader import MEMORY, batches
from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.methods.base import Batch, turn
from ambient_sci.objectives import ambient_loss, corruption
from ambient_sci.prior import Prior
from ambient_sci.schedule import training_levels

__all__ = ["AmbientLearner"]


class AmbientLearner:
    """Learns to restore measurements of which it is shown a part.

    With method ``naive`` it is shown all of them, and what a scan has not measured never enters its loss: the control
    that says what hiding is for. A network with weights of its own for what is missing learns nothing about it; a
    convolutional one fills it in as it smooths what is there, since its weights are the same everywhere.
    """

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        if config.clean is not None:
            raise ConfigError(f"method {config.method!r} learns from measurements alone: clean goes with em and others")
        self.config, self.store = config, store
        self.sigma_data = float(config.sigma_data or 0)  # resolved before there is a learner
        self._batches: Iterator[Measurement] | None = None
        self._kept: list[Measurement] = []  # scans of each size, where all fit into the memory

    def prepare(self, seen: int, prior: Prior) -> None:
        """Take up the order of scans where it was left."""
        if self._batches is None:
            self._batches = batches(self.store, self.config.batch, self.config.seed, start=seen)

    def draw(self, generator: torch.Generator) -> Batch:
        """Draw the next scans, with the noise to add, its levels, and operators that lack rows."""
        assert self._batches is not None
        return self._corrupted(next(self._batches), generator)

    def of(self, scans: NDArray[np.int64], generator: torch.Generator) -> list[Batch]:
        """Read given scans, with what `draw` adds."""
        groups = self.store.groups
        if not self._kept and self.store.nbytes <= MEMORY:
            self._kept = [self.store.read(group.scans) for group in groups]
        found = []
        for number, group in enumerate(groups):
            places = np.flatnonzero(np.isin(group.scans, scans))
            if len(places):
                kept = self._kept[number][torch.from_numpy(places)] if self._kept else None
                found.append(self._corrupted(kept or self.store.read(group.scans[places]), generator))
        return found

    def _corrupted(self, m: Measurement, generator: torch.Generator) -> Batch:
        m = dataclasses.replace(m, y=turn(m.y, generator))
        sigma = training_levels(len(m), self.sigma_data, generator)
        return Batch(m.index, (m, sigma, *corruption(m, self.config.hidden, generator)))

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Ambient loss of scans, ``(batch,)``."""
        return ambient_loss(denoiser, *batch.values)

    def state(self) -> dict[str, Tensor]:
        """Keep nothing: batches follow from the seed and the number of images seen."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up nothing."""
