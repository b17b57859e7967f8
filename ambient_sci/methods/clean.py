"""References as images to learn from: all of them for the oracle, a few beside what comes from measurements for others.

A few clean images tell a prior what no measurement does. Papers that start from 50 of them (Bai et al. 2024,
arXiv:2407.01014) or mix in a tenth (Daras et al. 2024, arXiv:2411.02780) report that little else helps as much.
"""

import torch
from torch import Tensor

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.errors import ConfigError

__all__ = ["CLEAN", "clean_images", "normalised_references"]

CLEAN = -1  # in the place of a scan's number in a batch, for images that are of none


def normalised_references(store: Store) -> Tensor:
    """Read the references of all scans, ``(scan, channel, *spatial)``, in normalised units."""
    everything = store.references(slice(None))
    scale = torch.from_numpy(store.scale).to(everything.real.dtype)
    return everything / scale.reshape(-1, *[1] * (everything.ndim - 1))


def clean_images(config: TrainConfig, store: Store) -> Tensor | None:
    """Read the clean images of the options, ``(n, channel, *spatial)`` in normalised units; none without that option.

    Raises
    ------
    ConfigError
        If they are of another shape or kind than the images of the scans.
    """
    if config.clean is None:
        return None
    known = open_store(config.clean)
    if known.image_shape != store.image_shape or known.is_complex != store.is_complex:
        kinds = {True: "complex", False: "real"}
        raise ConfigError(
            f"clean images must be like those of the scans, {kinds[store.is_complex]} of shape {store.image_shape}: "
            f"those of {config.clean} are {kinds[known.is_complex]} of shape {known.image_shape}"
        )
    return normalised_references(known)
