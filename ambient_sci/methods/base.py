"""What a method of learning is to the training loop: where batches come from, and what is minimised on them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.loader import batch_indices
from ambient_sci.datasets.store import Store
from ambient_sci.objectives import denoising_loss
from ambient_sci.prior import Prior
from ambient_sci.schedule import training_levels

__all__ = ["ImageLearner", "Learner", "turn"]


class Learner(Protocol):
    """What differs between methods."""

    def prepare(self, seen: int, prior: Prior) -> None:
        """Do what is due after so many images, before the next step."""

    def loss(self, denoiser: Any, seen: int, generator: torch.Generator) -> Tensor:
        """Loss of each image of the next batch, ``(batch,)``."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint has to hold."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the tensors of a checkpoint."""


class ImageLearner(ABC):
    """Learns an ordinary denoiser from images, one for every scan; which they are is what subclasses say."""

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        self.config, self.store, self.progress = config, store, progress
        self.images: Tensor | None = None
        self._order: Iterator[NDArray[np.int64]] | None = None

    @abstractmethod
    def first_images(self) -> Tensor:
        """Images to begin with, ``(scan, channel, *spatial)``, in normalised units."""

    def prepare(self, seen: int, prior: Prior) -> None:
        """Make the first images, and take up the order of scans where it was left."""
        if self.images is None:
            self.images = self.first_images()
        if self._order is None:
            self.order(seen)

    def scans(self) -> NDArray[np.int64]:
        """Numbers of the scans whose images are learned from."""
        return np.arange(len(self.store))

    def order(self, seen: int) -> None:
        """Begin the sequence of batches at so many images."""
        scans, config = self.scans(), self.config
        self._order = (scans[some] for some in batch_indices(len(scans), config.batch, config.seed, start=seen))

    def loss(self, denoiser: Any, seen: int, generator: torch.Generator) -> Tensor:
        """Denoising loss of the next images, ``(batch,)``."""
        assert self.images is not None
        assert self._order is not None
        images = turn(self.images[torch.from_numpy(next(self._order))], generator)
        images = images.to(next(denoiser.parameters()).device)
        sigma = training_levels(len(images), denoiser.sigma_data, generator).to(images.device)
        return denoising_loss(denoiser, images, sigma, denoiser.sigma_data, generator)

    def state(self) -> dict[str, Tensor]:
        """Keep the images, which need not be made again."""
        return {} if self.images is None else {"images": self.images}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the images of a checkpoint."""
        self.images = state.get("images")


def turn(values: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the global phase of each complex scan at random: it is arbitrary, and commutes with every operator."""
    if not values.is_complex():
        return values
    angle = 2 * math.pi * torch.rand(len(values), *[1] * (values.ndim - 1), generator=generator)
    return values * torch.polar(torch.ones_like(angle), angle).to(values.device)
