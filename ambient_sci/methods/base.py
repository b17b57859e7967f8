r"""What a method of learning is to the training loop: where batches come from, and what is minimised on them.

A step minimises the mean over a batch of losses that depend on one scan each,

.. math:: L = \frac1B \sum_{i=1}^B \ell(\theta; x_i, \xi_i),

with everything random about scan :math:`i`, its noise, level and hidden rows :math:`\xi_i`, drawn for the whole batch
before anything is computed. Its gradient can then be summed from any parts, of one process or of several.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.loader import batch_indices
from ambient_sci.datasets.store import Store
from ambient_sci.denoise import per_image
from ambient_sci.measurement import randn_like
from ambient_sci.methods.clean import CLEAN, clean_images
from ambient_sci.objectives import denoising_loss
from ambient_sci.prior import Prior
from ambient_sci.schedule import training_levels

__all__ = ["Batch", "ImageLearner", "Learner", "turn"]


@dataclass(frozen=True)
class Batch:
    """Scans of a step, with everything that is random about them.

    Parameters
    ----------
    index
        Their numbers in the store, ``(batch,)``.
    values
        What a loss takes: tensors, operators or measurements with one entry, row or scan for each.
    """

    index: Tensor
    values: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> "Batch":
        """Take some of the scans."""
        if part.indices(len(self)) == (0, len(self), 1):
            return self
        return Batch(self.index[part], tuple(value[part] for value in self.values))

    def to(self, device: torch.device) -> "Batch":
        """Take from the CPU to another device."""
        if device.type == "cpu":
            return self
        return Batch(self.index, tuple(value.to(device) for value in self.values))


class Learner(Protocol):
    """What differs between methods."""

    def prepare(self, seen: int, prior: Prior) -> None:
        """Do what is due after so many images, before the next step."""

    def draw(self, generator: torch.Generator) -> Batch:
        """Draw the next batch, on the CPU."""

    def of(self, scans: NDArray[np.int64], generator: torch.Generator) -> list[Batch]:
        """Make batches of given scans, one for each of their sizes, on the CPU."""

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Loss of each scan of a batch, or of a part of one, ``(batch,)``."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint has to hold."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the tensors of a checkpoint."""


class ImageLearner(ABC):
    """Learns an ordinary denoiser from images, one for every scan; which they are is what subclasses say."""

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        self.config, self.store, self.progress = config, store, progress
        self.sigma_data = float(config.sigma_data or 0)  # resolved before there is a learner
        self.images: Tensor | None = None
        self.clean = clean_images(config, store)
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

    def pick(self, scans: Tensor, generator: torch.Generator) -> Tensor:
        """Images of some scans, ``(len(scans), channel, *spatial)``, on the CPU."""
        assert self.images is not None
        return self.images[scans]

    def draw(self, generator: torch.Generator) -> Batch:
        """Draw the next images, with noise and its levels."""
        assert self._order is not None
        return self._batch(torch.from_numpy(next(self._order)), generator)

    def of(self, scans: NDArray[np.int64], generator: torch.Generator) -> list[Batch]:
        """Take the images of given scans, with noise and its levels."""
        return [self._batch(torch.from_numpy(scans), generator)]

    def _batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        images = self.pick(index, generator)
        if self.clean is not None:
            chosen = torch.rand(len(index), generator=generator) < self.config.clean_share
            some = self.clean[torch.randint(len(self.clean), index.shape, generator=generator)]
            images = torch.where(per_image(chosen, images), some, images)
            index = torch.where(chosen, CLEAN, index)
        factor = phases(images, generator)
        sigma = training_levels(len(images), self.sigma_data, generator)
        return Batch(index, (factor * images, sigma, randn_like(images, generator), *self.beside(index, factor, sigma)))

    def beside(self, index: Tensor, factor: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Look up what else the loss needs of scans, whose images are multiplied by phase factors, at their levels."""
        return ()

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Denoising loss of images, ``(batch,)``."""
        images, sigma, noise = batch.values
        return denoising_loss(denoiser, images, sigma, denoiser.sigma_data, noise)

    def state(self) -> dict[str, Tensor]:
        """Keep the images, which need not be made again."""
        return {} if self.images is None else {"images": self.images}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the images of a checkpoint."""
        self.images = state.get("images")


def turn(values: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the global phase of each complex scan at random: it is arbitrary, and commutes with every operator."""
    return values * phases(values, generator)


def phases(values: Tensor, generator: torch.Generator) -> Tensor:
    """Random phase factors, one for each complex scan, with as many axes as the values; ones for real scans."""
    shape = len(values), *[1] * (values.ndim - 1)
    if not values.is_complex():
        return values.new_ones(shape)
    angle = 2 * math.pi * torch.rand(shape, generator=generator)
    return torch.polar(torch.ones_like(angle), angle).to(values.device)
