"""The options of a training run: one frozen, validated object, saved with the run.

Durations are counted in images (scans shown to the network), not in epochs or steps, so that runs with other batch
sizes or store sizes compare.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ambient_sci.errors import ConfigError

__all__ = ["Adapt", "EMStart", "Method", "TrainConfig"]

Method = Literal["em", "ambient", "l1-edm", "tv-edm", "ambient-gan", "naive", "oracle"]
Adapt = Literal["full", "lora", "last"]
EMStart = Literal["l1-wavelet", "tv", "gaussian", "prior", "leaves"]


class TrainConfig(BaseModel):
    """What `ambient_sci.train` does; every field but the two paths has a default that works.

    Unknown fields and impossible values raise `ConfigError` with the field's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path = Field(description="store of measurements to learn from")
    out: Path = Field(description="folder of the run; run again to resume")
    method: Method = Field(
        "em",
        description="em, ambient; to compare l1-edm, tv-edm, ambient-gan, naive, oracle (on references)",
    )
    images: int = Field(25_000, ge=1, description="length of the training, in images")
    batch: int = Field(16, ge=1, description="images in a step, of all processes together")
    accumulate: int = Field(1, ge=1, description="parts in which a step is computed, to save memory")
    seed: int = Field(0, ge=0, description="seed of everything random in the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="arithmetic of the network alone")
    checkpoint_activations: bool = Field(
        False, description="keep less of the network's forward pass and compute it again: less memory, more time"
    )
    compile: bool = Field(False, description="compile the network first (needs a compiler): faster steps afterwards")

    widths: tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...] = Field(
        (64, 64, 64), min_length=1, description="channels of each level of the U-Net, multiples of 32"
    )
    blocks: int = Field(1, ge=1, description="residual blocks per level")
    patch: int = Field(4, ge=1, description="side of the pixel blocks that the stem folds into channels")
    sigma_data: float | None = Field(
        None, gt=0, description="standard deviation of the images; estimated when not given"
    )

    start_from: Path | None = Field(
        None, description="earlier run whose weights to begin with, or, for em, the images that it restores"
    )
    pretrained: str | None = Field(
        None, description="model to begin with: a folder that diffusers saved, or owner/name of one on the Hub"
    )
    download: bool = Field(False, description="fetch the pretrained model from the Hub if it is not here")
    prompt: Path | None = Field(
        None, description="pretrained: embedding of an empty text, as safetensors or npy, for a model that takes one"
    )
    pretrained_range: tuple[float, float] | None = Field(
        None, description="pretrained: image values that are its black and white; 0 1, or -1 1 for complex images"
    )
    adapt: Adapt = Field("full", description="weights of an earlier model that learn: full, lora, last (layers)")
    lora_rank: int = Field(16, ge=1, description="lora: rank of what is added to each matrix of weights")
    clean: Path | None = Field(None, description="store with references: a few clean images to learn from as well")
    clean_share: float = Field(0.1, gt=0, lt=1, description="chance that an image of a batch is one of the clean ones")

    optimizer: Literal["muon", "adamw", "adamw-8bit"] | None = Field(
        None,
        description="muon, for new networks if not given; adamw, for pretrained or private ones; adamw-8bit: a quarter "
        "of its memory, where bitsandbytes is installed",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate; 0.005, adamw 0.003, pretrained 0.0001, part of the weights 0.0005"
    )
    warmup: int = Field(500, ge=0, description="images over which the learning rate rises")
    ema: int = Field(1_000, ge=1, description="half-life of the averaged weights, in images; at most a tenth of all")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    checkpoint: int = Field(4_000, ge=1, description="images between checkpoints")

    privacy_epsilon: float | None = Field(
        None, gt=0, description="differential privacy of each scan: largest epsilon, for which noise is found"
    )
    privacy_delta: float | None = Field(
        None, gt=0, lt=1, description="private: chance to fail; a tenth over the number of scans if not given"
    )
    privacy_noise: float | None = Field(
        None, ge=0.01, description="private: noise on the sum of gradients, in units of privacy_clip, not epsilon"
    )
    privacy_clip: float = Field(1.0, gt=0, description="private: largest norm of the gradient of a scan")

    validation_scans: int | None = Field(
        None, ge=0, description="last scans of the store, kept out of training to watch it; a few if not given"
    )
    patience: int | None = Field(
        None, ge=1, description="end when held-out rows have not been predicted better in so many previews"
    )
    preview: int | None = Field(
        None, ge=0, description="images between previews (samples, held-out rows); 0: none; else with checkpoints"
    )
    tensorboard: bool = Field(False, description="write the log for TensorBoard too")

    thinning: float = Field(0.3, gt=0, le=1, description="ambient: chance that a measured row is hidden")
    noisy_objective: bool = Field(
        True, description="ambient: account for the noise of the measurements; without it, as if they were exact"
    )
    consistency_steps: int = Field(1, ge=1, description="ambient: data-consistency steps inside the network")

    laps: int | None = Field(
        None, ge=0, description="em: how often posterior samples are drawn; every 6000 images if not given"
    )
    start_images: int | None = Field(
        None, ge=1, description="em: images before the first lap; a quarter of all, at most 8000, if not given"
    )
    em_start: EMStart | None = Field(
        None,
        description="em: images before the first lap: l1-wavelet, tv (the default), gaussian; leaves, made-up ones "
        "with edges; prior, posterior samples of a pretrained model; with such a model tv or prior if not given, "
        "whichever predicts held-out rows better",
    )
    em_first: float = Field(
        0.1, gt=0, le=1, description="em: share of the scans that the first lap draws samples of; later ones take more"
    )
    em_level: float = Field(2.0, gt=0, description="em: noise from which samples are renewed, in units of sigma_data")
    em_steps: int = Field(7, ge=1, description="em: sampler steps of the posterior samples")
    em_solver: Literal["euler", "multistep", "mixed"] = Field(
        "mixed",
        description="em: euler narrows samples, multistep widens those of a poor prior; mixed: one, then the other",
    )
    em_extrapolation: float = Field(
        1.0, ge=0, le=1, description="em: part of what multistep steps extrapolate; less leaves samples less spread"
    )
    em_power: bool = Field(
        True, description="em: bring images to the power that was measured, at each frequency of Cartesian k-space"
    )
    em_imputed: float = Field(
        0.05, ge=0, le=1, description="em: weight in the loss of what a scan has not measured (1: as much as the rest)"
    )
    em_iterations: int = Field(2, ge=1, description="em: conjugate gradient iterations of the posterior samples")

    @property
    def peak_rate(self) -> float:
        """Peak learning rate, given or not."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.adapt != "full":
            return 5e-4
        if self.pretrained is not None:
            return 1e-4
        return 5e-3 if self.optimizer in (None, "muon") else 3e-3

    @property
    def half_life(self) -> int:
        """Half-life of the averaged weights: one as long as the run would leave the average where the run began."""
        return min(self.ema, max(self.images // 10, 1))

    @property
    def private(self) -> bool:
        """Whether the training is to be differentially private."""
        return self.privacy_epsilon is not None or self.privacy_noise is not None

    @property
    def restores(self) -> bool:
        """Whether the network restores measurements, told their operator, instead of denoising images."""
        return self.method in ("ambient", "naive")

    @property
    def hidden(self) -> float:
        """Chance that a measured row is hidden from such a network."""
        return 0.0 if self.method == "naive" else self.thinning

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None

    @classmethod
    def learned_with(cls, options: dict[str, Any]) -> Self:
        """Read the options of a prior, of an earlier release too: what training no longer has does not matter to it."""
        return cls(**{name: value for name, value in options.items() if name in cls.model_fields})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `model_dump_json` wrote."""
        try:
            return cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"the saved options of the run are damaged: {error}") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}; the options are {', '.join(model.model_fields)}"
    if first["type"] == "missing":
        return f"option {name!r} is missing: {model.model_fields[name].description}"
    return f"option {name!r}: {first['msg'].lower()}, got {first['input']!r}"
