r"""Fréchet Inception distance, with the network that everyone's figures were made with.

.. math:: \mathrm{FID} = \| \mu_1 - \mu_2 \|^2 + \operatorname{tr} ( C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2} )

of 2048 features (Heusel et al. 2017, arXiv:1706.08500). The network is a file of yours, nothing is downloaded: the
graph of 2015 as TorchScript, which StyleGAN's authors distribute as ``inception-2015-12-05.pt`` and which resizes and
normalises images itself. It is called as they call it, ``network(images, return_features=True)`` with bytes ``(n, 3,
height, width)``; grey images are shown in three equal channels. Images here are ``(n, channel, height, width)`` from -1
to 1. Statistics in double precision.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.errors import DataError, NotFoundError
from benchmarks.learning.distances import frechet_distance

__all__ = ["as_bytes", "fid", "inception", "inception_features"]


def inception(path: Path, device: torch.device | str = "cpu") -> Any:
    """Load the network.

    Raises
    ------
    NotFoundError
        If there is no such file.
    DataError
        If it is not TorchScript; nothing else is loaded, pickles least of all.
    """
    if not path.is_file():
        raise NotFoundError(f"no Inception file at {path}; it is the TorchScript file inception-2015-12-05.pt")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        raise DataError(f"{path} is not a TorchScript file such as inception-2015-12-05.pt: {text}") from None


def as_bytes(images: Tensor) -> Tensor:
    """Images from -1 to 1 as bytes of three channels, as a file of pictures has them."""
    if images.is_complex() or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"images must be real (n, 1 or 3, height, width), got {images.dtype} {tuple(images.shape)}")
    coloured = images.expand(-1, 3, -1, -1)
    return (127.5 * (coloured + 1)).round().clamp(0, 255).to(torch.uint8)


def inception_features(
    network: Any, images: Iterable[Tensor], device: torch.device | str = "cpu"
) -> NDArray[np.float64]:
    """Features of batches of images, ``(n, features)``."""
    with torch.no_grad():
        parts = [network(as_bytes(batch).to(device), return_features=True).double().cpu() for batch in images]
    features: NDArray[np.float64] = torch.cat(parts).numpy()
    return features


def fid(network: Any, images: Iterable[Tensor], known: Iterable[Tensor], device: torch.device | str = "cpu") -> float:
    """Distance of drawn images from known ones, both in batches ``(n, channel, height, width)``."""
    return frechet_distance(*(inception_features(network, some, device) for some in (images, known)))
