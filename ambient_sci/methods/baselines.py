"""Learning an ordinary denoiser from images that are made once: what learning from measurements is compared with."""

import torch
from torch import Tensor

from ambient_sci.methods.base import ImageLearner

__all__ = ["OracleLearner"]


class OracleLearner(ImageLearner):
    """Learns from the references, which only a simulation has."""

    def first_images(self) -> Tensor:
        """Read the references."""
        everything = self.store.references(slice(None))
        scale = torch.from_numpy(self.store.scale).to(everything.real.dtype)
        return everything / scale.reshape(-1, *[1] * (everything.ndim - 1))

    def state(self) -> dict[str, Tensor]:
        """Keep nothing: references are read again from the store."""
        return {}
