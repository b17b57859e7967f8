r"""The runs of Ambient Diffusion (Daras et al. 2023, arXiv:2305.19256) on CIFAR-10, CelebA and AFHQ: missing pixels.

.. math:: y = m \odot x, \qquad m \sim \mathrm{Bernoulli}(1 - p) \text{ per pixel, all colours together}

A configuration, ``benchmarks/paper/*.json``, says which side images have, how many pixels are missing, what `train` is
told, how many images are drawn, and what was published, where that is known from a source. What is strict here:

- Each image is measured once, to disk; the images themselves are not read again until the distance is computed.
- No augmentation: an image that is mirrored before it is masked shows pixels that were not measured.

Figures of runs that do otherwise are not reached by the same method alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_sci import Measurement, TrainConfig, open_store, train
from ambient_sci.datasets import Store, StoreWriter
from ambient_sci.errors import ConfigError, NotFoundError
from ambient_sci.measurement import randn_like
from ambient_sci.operators import Mask
from ambient_sci.operators.patterns import PATTERNS
from ambient_sci.seeding import stream
from benchmarks.learning.drawn import draw
from benchmarks.learning.fid import fid, inception

__all__ = ["CONFIGS", "PaperConfig", "freeze_pictures", "pictures", "run"]

FOLDER = Path(__file__).parent
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.json"))
"""Names of the configurations that come with the benchmark."""

ENDINGS = (".png", ".jpg", ".jpeg")
BATCH = 256
SEED = 20261126  # of the masks


@dataclass(frozen=True)
class PaperConfig:
    """A run.

    Parameters
    ----------
    images
        Which data set it is made for, in words.
    side
        Side that pictures are cropped to a square and resized to.
    missing
        Share of the pixels that are lost.
    noise
        Standard deviation of the noise, for pictures from -1 to 1.
    train
        Options of `ambient_sci.TrainConfig`.
    drawn, steps
        Images that are drawn, in so many steps of Heun's method.
    published
        Fréchet Inception distances that were published, by their source.
    """

    images: str
    side: int
    missing: float
    noise: float
    train: dict[str, Any]
    drawn: int
    steps: int
    published: dict[str, float]

    @classmethod
    def read(cls, name: str | Path) -> "PaperConfig":
        """Read a configuration by its name or from a file."""
        path = FOLDER / f"{name}.json" if str(name) in CONFIGS else Path(name)
        if not path.is_file():
            raise NotFoundError(f"no configuration {str(name)!r}: give a file, or one of {', '.join(CONFIGS)}")
        try:
            return cls(**json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"{path} is not a configuration of a run: {error}") from None


def pictures(folder: Path, side: int) -> Iterator[Tensor]:
    """Batches of all pictures in a folder and those below it, ``(n, 3, side, side)`` from -1 to 1, by their names."""
    from PIL import Image, ImageOps

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not paths:
        raise NotFoundError(f"no pictures ({', '.join(ENDINGS)}) in {folder}")
    for first in range(0, len(paths), BATCH):
        batch = []
        for path in paths[first : first + BATCH]:
            with Image.open(path) as picture:
                square = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
            batch.append(np.asarray(square, np.float32).transpose(2, 0, 1) / 127.5 - 1)
        yield torch.from_numpy(np.stack(batch))


def freeze_pictures(config: PaperConfig, folder: Path, path: Path) -> Store:
    """Measure every picture once; a store that is there already stays as it is."""
    if path.exists():
        return open_store(path)
    shape = (config.side, config.side)
    first = 0
    origin = {"source": "simulation", "arguments": {"missing": config.missing, "noise": config.noise, "seed": SEED}}
    with StoreWriter(path, origin) as writer:
        for x in pictures(folder, config.side):
            streams = [stream(SEED, first + k) for k in range(len(x))]
            pattern = PATTERNS["bernoulli-pixels"]
            masks = [pattern(1, shape, 1 / (1 - config.missing), 0, generator) for generator in streams]
            A = Mask(torch.cat(masks).expand(-1, 1, *shape).contiguous())
            noise = torch.stack([randn_like(one, generator) for one, generator in zip(x, streams, strict=True)])
            writer.append(Measurement(A(x + config.noise * noise), A, config.noise))
            first += len(x)
    return open_store(path)


def run(config: PaperConfig, images: Path, out: Path, network: Path | None, changed: dict[str, Any]) -> dict[str, Any]:
    """Freeze, train, draw and score; what was done before is not done again.

    Parameters
    ----------
    config
        The run.
    images
        Folder of its pictures.
    out
        Folder for store, run, drawn images and ``row.json``.
    network
        Inception as TorchScript (`benchmarks.learning.fid`); without it the distance is left out.
    changed
        Options of the training that are other than the configuration's.

    Returns
    -------
    dict
        What ``row.json`` holds: the configuration, ``fid`` and the number of images it is from.
    """
    store = freeze_pictures(config, images, out / "scans.zarr")
    prior = train(TrainConfig(store=store.path, out=out / "run", **{**config.train, **changed}))
    path = out / "samples.npz"
    if path.exists():
        with np.load(path) as file:
            drawn = torch.from_numpy(file["samples"])
    else:
        drawn = draw(prior, store.path, config.drawn, config.steps)
        np.savez_compressed(path, samples=drawn)
    row: dict[str, Any] = {**vars(config), "train": prior.config.model_dump(mode="json"), "scans": len(store)}
    if network is not None:
        known = pictures(images, config.side)
        row["fid"] = fid(inception(network, prior.device), drawn.split(BATCH), known, prior.device)
    (out / "row.json").write_text(json.dumps(row, indent=2) + "\n")
    return row
