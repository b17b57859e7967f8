r"""Learning an ordinary denoiser from images that are made once: what learning from measurements is compared with.

``l1-edm`` and ``tv-edm`` take the classical reconstruction of every scan for its image,

.. math:: \hat x_i = \arg\min_x \tfrac12 \| A_i x - y_i \|_W^2 + \lambda R(x),

with the :math:`\lambda` that predicts held-out measured rows best, and learn their distribution as if nothing were
wrong with them: what the regulariser removes is missing from the prior (L1-EDM in Aali et al. 2025, arXiv:2403.08728).
``oracle`` takes the references.
"""

from torch import Tensor

from ambient_sci.methods.base import ImageLearner
from ambient_sci.methods.clean import normalised_references
from ambient_sci.methods.starts import starting_images

__all__ = ["OracleLearner", "TotalVariationLearner", "WaveletLearner"]


class WaveletLearner(ImageLearner):
    """Learns from L1-wavelet reconstructions."""

    def first_images(self) -> Tensor:
        """Reconstruct every scan."""
        return starting_images(self.store, "l1-wavelet", self.config.seed, self.progress)


class TotalVariationLearner(ImageLearner):
    """Learns from total variation reconstructions."""

    def first_images(self) -> Tensor:
        """Reconstruct every scan."""
        return starting_images(self.store, "tv", self.config.seed, self.progress)


class OracleLearner(ImageLearner):
    """Learns from the references, which only a simulation has."""

    def first_images(self) -> Tensor:
        """Read the references."""
        return normalised_references(self.store)

    def state(self) -> dict[str, Tensor]:
        """Keep nothing: references are read again from the store."""
        return {}
