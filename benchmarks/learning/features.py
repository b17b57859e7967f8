r"""Features by which images are told apart, for distances between sets of them.

.. math:: \phi(x) = \left(\frac{\langle a_\ell(x) \rangle - \mu_\ell}{\sigma_\ell}\right)_{\ell = 3, 4, \dots}

A small convolutional network, one for each data set, learns from its clean training images what image it is shown (a
digit, a kind of galaxy, scans of which patients) and what was done to it: blurred, noisy, pixels missing, blocks
exchanged, warped, another image on top, or thresholded in blocks. Averages of its last activations :math:`a_\ell` over
the image, in units of their standard deviation over good and bad images, are the features. Images ``(n, height,
width)``, real, in about unit range.

``python -m benchmarks.learning.features --data DATA`` trains the networks anew (a few minutes), writes them beside this
file, and prints how distances grow as clean images get worse. They are used for scoring; no method sees them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ambient_sci.checkpoint import load_tensors, save_tensors
from ambient_sci.seeding import stream

__all__ = ["DEGRADATIONS", "Features", "degraded", "load_features", "train_features"]

DESCRIPTION = "Train the networks whose features tell images apart, and show how distances grow as images get worse."
FOLDER = Path(__file__).parent / "features"
NAMES = ("brain", "digits", "galaxies")
WIDTHS = {28: (16, 32, 48, 64), 64: (16, 24, 32, 48, 64)}  # by the side of the images


class Features(nn.Module):
    """Strided convolutions whose averages are features.

    Parameters
    ----------
    widths
        Channels of each level; each halves the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip((1, *widths), widths, strict=False)
        )
        count = sum(widths[2:])
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``(n, height, width)``, ``(n, features)``."""
        x, averages = images[:, None], []
        for level in self.levels:
            x = functional.silu(level(x))
            averages.append(x.mean((2, 3)))
        return (torch.cat(averages[2:], 1) - self.mean) / self.std

    def of(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features of an array of images, ``(n, features)``."""
        with torch.no_grad():
            parts = [self(part) for part in torch.from_numpy(images).float().split(256)]
        return torch.cat(parts).double().numpy()


def load_features(dataset: str) -> Features:
    """Read the network of a data set."""
    tensors, header = load_tensors(FOLDER / f"{dataset}.safetensors")
    network = Features(tuple(header["widths"]))
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    return network.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------------- degradations


def _slightly_noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of up to 0.03, which nobody sees: what a sampler leaves in an empty background must not count for much."""
    return x + 0.03 * torch.rand(len(x), 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)


def _blur(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussians of up to 2 pixels of standard deviation."""
    frequencies = [torch.fft.fftfreq(size) for size in x.shape[1:]]
    square = frequencies[0][:, None] ** 2 + frequencies[1] ** 2
    blurred: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * torch.exp(-2 * (2 * torch.pi * level) ** 2 * square)).real
    return blurred


def _noise(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of up to a quarter."""
    return x + level / 4 * torch.randn(x.shape, generator=generator)


def _missing(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Up to half of the pixels are zero."""
    return x * (torch.rand(x.shape, generator=generator) > level / 2)


def _exchanged(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Blocks, 4 x 4 of them, of which up to all are in another's place."""
    height, width = (size // 4 for size in x.shape[1:])
    blocks: Tensor = x.unfold(1, height, height).unfold(2, width, width).flatten(1, 2)
    for image, share in zip(blocks, level.flatten().tolist(), strict=True):
        some = torch.randperm(16, generator=generator)[: max(2, round(16 * share))]
        image[some] = image[some.roll(1)].clone()
    whole: Tensor = blocks.unflatten(1, (4, 4)).transpose(2, 3)
    return whole.reshape(x.shape)


def _warped(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth displacements of up to about a seventh of the image."""
    coarse = torch.randn(len(x), 2, 4, 4, generator=generator) * level[:, None] / 7
    shift = functional.interpolate(coarse, x.shape[1:], mode="bicubic").permute(0, 2, 3, 1)
    axes = [(2 * torch.arange(size) + 1) / size - 1 for size in x.shape[1:]]
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), -1)
    return functional.grid_sample(x[:, None], grid + shift, align_corners=False)[:, 0]


def _doubled(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Another image on top of each, of up to the same brightness."""
    return x + level * x.roll(1, 0)


def _thresholded(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Differences within 4 x 4 blocks, of up to a fifth, are gone."""
    coarse = functional.interpolate(functional.avg_pool2d(x[:, None], 4), scale_factor=4)[:, 0]
    fine = x - coarse
    return coarse + fine.sign() * (fine.abs() - level / 5).clamp_min(0)


Degradation = Callable[[Tensor, Tensor, torch.Generator], Tensor]
DEGRADATIONS: dict[str, Degradation] = {
    "blurred": _blur,
    "noisy": _noise,
    "missing pixels": _missing,
    "blocks exchanged": _exchanged,
    "warped": _warped,
    "doubled": _doubled,
    "thresholded": _thresholded,
}


def degraded(images: NDArray[np.float32], name: str, level: float, seed: int = 0) -> NDArray[np.float32]:
    """Images made worse, from level 0, as they are, to level 1."""
    x = torch.from_numpy(images).float()
    result = DEGRADATIONS[name](x, torch.full((len(x), 1, 1), level), stream(seed))
    return result.numpy() if level > 0 else images


# ----------------------------------------------------------------------------------------------------------- training


def train_features(
    images: NDArray[np.float32],
    classes: NDArray[np.int64],
    widths: tuple[int, ...],
    shown: int = 64_000,
    batch: int = 64,
    seed: int = 0,
) -> Features:
    """Train a network on clean images; the same for the same arguments.

    Parameters
    ----------
    images
        ``(n, height, width)``, their brightest pixel one.
    classes
        What each of them is, ``(n,)`` from 0.
    widths
        Those of `Features`.
    shown
        Images in all.
    batch
        Images of a step, one in eight as it is, the others made worse.
    seed
        Of everything random.
    """
    generator = stream(seed)
    clean, label = torch.from_numpy(images).float(), torch.from_numpy(classes)
    kinds, known = len(DEGRADATIONS) + 1, int(classes.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Features(widths)
        heads = nn.Linear(len(network.mean), known + kinds + 1)
    parameters = [*network.parameters(), *heads.parameters()]
    steps = shown // batch
    optimizer = torch.optim.AdamW(parameters, 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(clean), (batch,), generator=generator)
        # priors are of images that are normalised by estimates: their brightest pixel is somewhat below or above one
        x = clean[chosen] * torch.exp2(1.5 * torch.rand(batch, 1, 1, generator=generator) - 0.5)
        x = _slightly_noisy(x, generator)
        kind = torch.arange(batch) % kinds
        level = torch.rand(batch, generator=generator) * (kind > 0)
        for number, function in enumerate(DEGRADATIONS.values(), 1):
            x[kind == number] = function(x[kind == number], level[kind == number, None, None], generator)
        logits, what, amount = heads(network(x)).split([known, kinds, 1], 1)
        loss = functional.cross_entropy(logits, label[chosen]) + functional.cross_entropy(what, kind)
        loss = loss + 4 * functional.mse_loss(amount[:, 0], level)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.half().float()  # as they are stored
    # in units of what differs among good and bad images: of clean ones alone it is next to nothing in empty corners
    some = clean[torch.randint(len(clean), (2048,), generator=generator)]
    every = [_slightly_noisy(some, generator)]
    for function in DEGRADATIONS.values():
        every.append(function(some[:256], torch.rand(len(some[:256]), 1, 1, generator=generator), generator))
    values = torch.from_numpy(network.eval().of(torch.cat(every).numpy()))
    network.mean.copy_(values.mean(0))
    network.std.copy_(values.std(0).clamp_min(1e-6))
    return network.requires_grad_(False)


def save_features(network: Features, dataset: str) -> Path:
    """Write a network beside this file, its weights in half precision."""
    path = FOLDER / f"{dataset}.safetensors"
    tensors = {k: v if k in ("mean", "std") else v.half() for k, v in network.state_dict().items()}
    save_tensors(path, tensors, {"widths": [level.out_channels for level in network.levels]})
    return path


def growth(network: Features, images: NDArray[np.float32], classes: NDArray[np.int64]) -> dict[str, list[float]]:
    """Fréchet distances from clean images of as many others that are worse and worse, by what was done to them.

    The first number of each is the floor, that of clean images; then come levels of a quarter, a half and one. For
    ``classes dropped`` a quarter, a half and three quarters of the classes are missing.
    """
    from benchmarks.learning.distances import frechet_distance

    order = np.random.default_rng(0).permutation(len(images))
    few, others = np.split(order, [min(512, len(images) // 2)])
    known = network.of(images[others])
    rows = {
        name: [frechet_distance(network.of(degraded(images[few], name, level)), known) for level in (0, 0.25, 0.5, 1)]
        for name in DEGRADATIONS
    }
    number = int(classes.max()) + 1
    kept = [few[classes[few] < number - round(share * number)] for share in (0, 0.25, 0.5, 0.75)]
    return rows | {"classes dropped": [frechet_distance(network.of(images[some]), known) for some in kept]}


def main(argv: list[str] | None = None) -> None:
    """Train the networks and show what distances do."""
    from benchmarks.learning.tasks import DATASETS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.features", description=DESCRIPTION)
    parser.add_argument("--data", type=Path, required=True, help="folder of images, see benchmarks.learning")
    parser.add_argument("--dataset", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--look", action="store_true", help="do not train, look at the networks that there are")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| images | clean | a quarter | half | all the way |\n|---|--:|--:|--:|--:|")
    for dataset in options.dataset:
        splits = DATASETS[dataset](options.data)
        assert splits.classes is not None
        images = splits.train / splits.train.max((1, 2), keepdims=True)
        if not options.look:
            widths = WIDTHS[splits.train.shape[1]]
            save_features(train_features(images, splits.classes, widths), dataset)
        network = load_features(dataset)
        for name, values in growth(network, images, splits.classes).items():
            print(f"| {dataset}, {name} |", " | ".join(f"{value:.3g}" for value in values), "|", flush=True)


if __name__ == "__main__":
    main()
