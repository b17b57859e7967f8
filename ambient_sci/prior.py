"""A learned prior: the network, what it was learned from, and how to draw from it.

Two kinds of network come out of training: an ordinary `Denoiser` of images (of most methods), and an
`AmbientDenoiser`, which restores measurements (``ambient`` and ``naive``). `Prior` holds either.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ambient_sci.cards import card
from ambient_sci.checkpoint import load_tensors, save_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.denoise import Denoiser, EDMDenoiser
from ambient_sci.errors import CheckpointError, ConfigError, NotFoundError
from ambient_sci.network import UNet, best_precision
from ambient_sci.operators import LinearOperator
from ambient_sci.posterior.ambient import AmbientDenoiser, FixedMask, ReconstructionGuidance
from ambient_sci.pretrained.denoiser import (
    Architecture,
    PretrainedAmbientDenoiser,
    PretrainedDenoiser,
    PretrainedNetwork,
)
from ambient_sci.pretrained.files import image_shape as shape_of
from ambient_sci.pretrained.files import locate, pipeline_folder, read_pipeline
from ambient_sci.sample import Solver, sample
from ambient_sci.schedule import Schedule, spread_levels
from ambient_sci.seeding import scan_noise, stream

__all__ = ["Prior", "build_denoiser", "earlier_network", "load_prior", "resolve_device", "saved_prior"]

# standard deviation of natural images, of the range [-1, 1] (Karras et al. 2022)
NATURAL = 0.5


@dataclass(frozen=True)
class Prior:
    """A learned prior.

    Parameters
    ----------
    denoiser
        `Denoiser` or `AmbientDenoiser`, in evaluation mode.
    image_shape
        Shape of one image, ``(channel, *spatial)``.
    is_complex
        Whether images are complex.
    config
        The options of the run.
    trained_on
        Fingerprint and description of the store.
    images
        Number of images seen in training.
    """

    denoiser: Denoiser | AmbientDenoiser
    image_shape: tuple[int, ...]
    is_complex: bool
    config: TrainConfig
    trained_on: dict[str, Any]
    images: int

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the images per real component, in normalised units."""
        return float(self.denoiser.sigma_data)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images."""
        return torch.complex64 if self.is_complex else torch.float32

    def _repr_html_(self) -> str:
        """Show what it is of, and what it was learned from."""
        weights = sum(parameter.numel() for parameter in self.denoiser.parameters())
        facts = {
            "method": self.config.method,
            "images": f"{list(self.image_shape)}, {'complex' if self.is_complex else 'real'}",
            "learned from": f"{self.images:,} images shown",
            **{name.replace("_", " "): value for name, value in self.trained_on.items()},
            "weights": f"{weights:,} on {self.device}",
            "fingerprint": self.fingerprint(),
        }
        return card("Prior", facts)

    def levels(
        self, steps: int, sigma_max: float | None = None, finest: float = 0.02, schedule: Schedule = "edm"
    ) -> Tensor:
        """Noise levels for sampling, from far above (or a given level) to far below the data's own scale.

        ``finest`` is the lowest one, in units of ``sigma_data``; ``schedule`` spreads those between
        (`ambient_sci.schedule.spread_levels`).
        An ambient network is not taken below the noise of the measurements that it was trained on.
        """
        ambient = isinstance(self.denoiser, AmbientDenoiser)
        floor = float(self.trained_on.get("noise_std", 0)) if ambient and self.config.noisy_objective else 0.0
        lowest, highest = max(finest * self.sigma_data, floor), sigma_max or 50 * self.sigma_data
        return spread_levels(schedule, steps, lowest, highest, self.sigma_data)

    def fingerprint(self) -> str:
        """Hash of the weights, for provenance."""
        digest = hashlib.sha256()
        for name, value in sorted(self.denoiser.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def sample(
        self,
        count: int,
        steps: int = 32,
        solver: Solver = "heun",
        seed: int = 0,
        operator: LinearOperator | None = None,
        progress: str | None = None,
        masks: int = 1,
        guidance: float = 1.0,
    ) -> Tensor:
        """Draw images from the prior, ``(count, channel, *spatial)``, in normalised units.

        Parameters
        ----------
        count
            Number of images.
        steps, solver
            See `ambient_sci.sample.sample`.
        seed
            Image ``k`` depends on the seed and on ``k`` alone.
        operator
            Operators of ``masks * count`` scans; thinned, they are how an ambient network sees the state (fixed-mask
            sampling). Needed for methods ``ambient`` and ``naive`` only.
        progress
            Label of a progress bar.
        masks
            Through how many operators such a network sees the state of an image; image ``k`` through those numbered
            ``k``, ``k + count`` and so on. More than one are guided to agree
            (`ambient_sci.posterior.ReconstructionGuidance`), at two to three times the time for two.
        guidance
            Weight of that agreement.
        """
        if isinstance(self.denoiser, AmbientDenoiser):
            if operator is None:
                raise ConfigError(
                    f"a prior of method {self.config.method!r} samples through a mask: give operator=, that of as many "
                    "scans"
                )
            if masks < 1 or len(operator) != masks * count:
                raise ConfigError(
                    f"operator must hold a scan for each mask of {count} images, got {len(operator)} for masks {masks}"
                )
            blank = torch.zeros(1, *self.image_shape, dtype=self.dtype, device=self.device)
            streams = [stream(seed, image) for image in range(count)]
            views = [
                FixedMask.thinned(self.denoiser, operator[k : k + count], blank, self.config.hidden, streams)
                for k in range(0, masks * count, count)
            ]
            denoiser: Denoiser = views[0] if masks == 1 else ReconstructionGuidance(views, guidance)
        else:
            denoiser = self.denoiser
        images = torch.arange(count)

        def noise(k: int) -> Tensor:
            labels = torch.stack([torch.full_like(images, k), images], 1)
            return scan_noise(self.image_shape, self.dtype, seed, labels).to(self.device)

        return sample(denoiser, noise, self.levels(steps), solver, progress=progress)

    def save(self, path: Path) -> None:
        """Write ``prior.safetensors``."""
        header = {
            "config": self.config.model_dump(mode="json"),
            "image_shape": list(self.image_shape),
            "is_complex": self.is_complex,
            "trained_on": self.trained_on,
            "images": self.images,
        }
        if isinstance(self.denoiser.network, PretrainedNetwork):
            header["architecture"] = self.denoiser.network.architecture.to_json()
        save_tensors(path, self.denoiser.state_dict(), header)


def build_denoiser(
    config: TrainConfig, image_shape: tuple[int, ...], is_complex: bool, network: nn.Module | None = None
) -> Denoiser | AmbientDenoiser:
    """Build the denoiser that a configuration asks for, around a given network or an untrained U-Net."""
    channels = image_shape[0] * (2 if is_complex else 1)
    if config.sigma_data is None:
        raise ConfigError("sigma_data is not known: give a number, or let `train` estimate it from a store")
    if network is None:
        if len(image_shape) != 3:
            raise ConfigError(f"the built-in U-Net takes 2-D images, got shape {image_shape}: pass network=")
        inputs = 3 * channels if config.restores else channels
        network = UNet(inputs, channels, config.widths, config.blocks, config.patch, precision=config.precision)
    if config.restores:
        ambient = PretrainedAmbientDenoiser if isinstance(network, PretrainedNetwork) else AmbientDenoiser
        return ambient(network, config.sigma_data, config.consistency_steps, exact=not config.noisy_objective)
    if isinstance(network, PretrainedNetwork):
        return PretrainedDenoiser(network, config.sigma_data)
    return EDMDenoiser(network, config.sigma_data)


def earlier_network(
    config: TrainConfig, image_shape: tuple[int, ...], is_complex: bool, header: dict[str, Any] | None = None
) -> PretrainedNetwork | None:
    """Build the pretrained network that a configuration begins with, with its weights or as a header has it.

    Parameters
    ----------
    config
        The options. Without ``pretrained``, and without a header that has a network, there is none.
    image_shape, is_complex
        Images of the data.
    header
        Of a run's prior, whose weights are then to be loaded into it.
    """
    if config.pretrained is None and "architecture" not in (header or {}):
        return None
    if len(image_shape) != 3:
        raise ConfigError(f"pretrained networks take 2-D images, got shape {image_shape}")
    channels = image_shape[0] * (2 if is_complex else 1)
    extra = 2 * channels if config.restores else 0
    if header is not None:
        return PretrainedNetwork(Architecture.from_json(header["architecture"]), None, extra, config.precision)
    assert config.pretrained is not None
    values = config.pretrained_range or _usual_range(is_complex)
    folder = locate(config.pretrained, config.download)
    return read_pipeline(folder, channels, values, config.prompt, extra, config.precision)


def _usual_range(is_complex: bool) -> tuple[float, float]:
    """Values of images in normalised units; a complex one has components of either sign."""
    return (-1.0, 1.0) if is_complex else (0.0, 1.0)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU where there is none."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        text = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({text}); use auto, cpu or one that this machine has"
        ) from None
    return device


def saved_prior(run: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any], TrainConfig]:
    """Read a run's ``prior.safetensors``, given the folder or the file: its path, weights, header and options.

    Raises
    ------
    NotFoundError, CheckpointError
        If there is none, or its options are not those of a training.
    """
    if not run.exists():
        raise NotFoundError(f"no run at {run}; `ambient-sci train STORE --out {run}` makes one")
    path = run / "prior.safetensors" if run.is_dir() else run
    if not path.exists():
        raise NotFoundError(
            f"no prior.safetensors in {run}: not a run, or one that has not reached its first checkpoint"
        )
    tensors, header = load_tensors(path)
    try:
        return path, tensors, header, TrainConfig.learned_with(header["config"])
    except (AttributeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} does not fit the network that its options describe: {error}") from error


def load_prior(
    run: Path | str,
    device: str = "auto",
    network: nn.Module | None = None,
    *,
    image_shape: tuple[int, ...] | None = None,
    is_complex: bool = False,
    pretrained_range: tuple[float, float] | None = None,
    prompt: Path | None = None,
    download: bool = False,
) -> Prior:
    """Load what `ambient_sci.train` learned, or a pretrained model as it is.

    Parameters
    ----------
    run
        Folder of the run, or its ``prior.safetensors``; or a folder that a pipeline of diffusers was saved to
        (`ambient_sci.pretrained`), or the name of a model on the Hub.
    device
        Where to put it.
    network
        The module that was trained, if it was not the built-in one.
    image_shape, is_complex
        Of a pretrained model: images of the data, ``(channel, height, width)``, if not those that it makes.
    pretrained_range, prompt, download
        Of a pretrained model: see `ambient_sci.TrainConfig`. Nothing is fetched without ``download``.

    Raises
    ------
    NotFoundError, CheckpointError
        If there is nothing to load, or it does not fit this release.
    """
    target = resolve_device(device)
    folder = pipeline_folder(run, download)
    if folder is not None:
        shape = image_shape or shape_of(folder)
        low, high = values = pretrained_range or _usual_range(is_complex)
        config = TrainConfig(
            store=folder,
            out=folder,
            method="oracle",
            precision=best_precision(target),
            sigma_data=NATURAL * (high - low) / 2,
            pretrained=str(run),
            pretrained_range=values,
            prompt=prompt,
        )
        denoiser = build_denoiser(config, shape, is_complex, earlier_network(config, shape, is_complex))
        denoiser.to(target).eval().requires_grad_(False)
        return Prior(denoiser, shape, is_complex, config, {"model": str(run)}, 0)
    path, tensors, header, config = saved_prior(Path(run))
    try:
        # weights are the same in either precision: take what this device does best
        config = config.model_copy(update={"precision": best_precision(target)})
        shape, trained_on, images = tuple(header["image_shape"]), header["trained_on"], int(header["images"])
        if network is None and "architecture" in header:
            network = earlier_network(config, shape, header["is_complex"], header)
        denoiser = build_denoiser(config, shape, header["is_complex"], network)
        denoiser.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        text = str(error).splitlines()[0]
        raise CheckpointError(f"{path} does not fit the network that its options describe: {text}") from error
    denoiser.to(target).eval().requires_grad_(False)
    return Prior(denoiser, shape, header["is_complex"], config, trained_on, images)
