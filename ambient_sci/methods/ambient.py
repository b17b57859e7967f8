"""Learning from measurements directly, by hiding part of them from the network (`ambient_sci.objectives.ambient`)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.loader import batches
from ambient_sci.datasets.store import Store
from ambient_sci.measurement import Measurement
from ambient_sci.methods.base import turn
from ambient_sci.objectives import ambient_loss
from ambient_sci.prior import Prior
from ambient_sci.schedule import training_levels

__all__ = ["AmbientLearner"]


class AmbientLearner:
    """Learns to restore measurements of which it is shown a part.

    With method ``naive`` it is shown all of them. What a scan has not measured then never enters the loss, and nothing
    is learned about it: the control that says what hiding is for.
    """

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        self.config, self.store = config, store
        self._batches: Iterator[Measurement] | None = None

    def prepare(self, seen: int, prior: Prior) -> None:
        """Take up the order of scans where it was left."""
        if self._batches is None:
            self._batches = batches(self.store, self.config.batch, self.config.seed, start=seen)

    def loss(self, denoiser: Any, seen: int, generator: torch.Generator) -> Tensor:
        """Ambient loss of the next scans, ``(batch,)``."""
        assert self._batches is not None
        m = next(self._batches)
        m = dataclasses.replace(m, y=turn(m.y, generator)).to(next(denoiser.parameters()).device)
        sigma = training_levels(len(m), denoiser.sigma_data, generator).to(m.y.device)
        return ambient_loss(denoiser, m, sigma, self.config.hidden, generator)

    def state(self) -> dict[str, Tensor]:
        """Keep nothing: batches follow from the seed and the number of images seen."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up nothing."""
