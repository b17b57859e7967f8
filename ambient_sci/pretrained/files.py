"""Pretrained networks from folders that diffusers saved (``pipeline.save_pretrained``), or from the Hub.

Read are ``model_index.json``, ``unet/`` and ``scheduler/``, weights as safetensors only: no pickle is opened, and
nothing is fetched unless that is asked for. What the pipeline's own code would do besides (clipping, guidance, text) is
not part of the network.
"""

import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ambient_sci.errors import ConfigError, DataError, NotFoundError
from ambient_sci.pretrained.denoiser import MODELS, Architecture, Prediction, PretrainedNetwork, fold_channels

__all__ = ["image_shape", "is_pipeline", "locate", "pipeline_folder", "read_pipeline"]

# schedulers whose noise levels are those of DDPM, from the same options
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"
)  # fmt: skip
WANTED = ("model_index.json", "*/*.json", "unet/*.safetensors", "text_encoder/*.safetensors", "tokenizer/*")
TOKENS = 77  # to which the pipeline of DeepFloyd IF pads a text


def is_pipeline(path: Path) -> bool:
    """Tell whether a folder is one that a pipeline of diffusers was saved to."""
    return (path / "model_index.json").is_file()


def locate(model: Path | str, download: bool = False) -> Path:
    """Folder of a model: itself, or where the Hub's cache has it.

    Parameters
    ----------
    model
        A folder, or the name of a model on the Hub, ``owner/name``.
    download
        Whether it may be fetched. It is looked for on this machine only otherwise.

    Raises
    ------
    NotFoundError
        If it is not there, or cannot be fetched.
    """
    path = Path(model)
    if path.exists():
        if not is_pipeline(path):
            raise NotFoundError(
                f"no model_index.json in {path}: not a folder that a pipeline of diffusers was saved to"
            )
        return path
    name = str(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise NotFoundError(f"no model at {name}: give a folder of diffusers, or owner/name of one on the Hub")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name, local_files_only=not download, allow_patterns=list(WANTED), ignore_patterns=["*.fp16*", "*.bf16*"]
        )
    except Exception as error:  # of the network, of the Hub or of the disk, each with a class of its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"fetching it failed ({said})" if download else "allow to fetch it with download (--download)"
        raise NotFoundError(f"no model {name} on this machine: {reason}") from None
    return Path(found)


def pipeline_folder(model: Path | str, download: bool = False) -> Path | None:
    """Folder of a pretrained model as `locate` finds it, or None where there is another folder or nothing."""
    path = Path(model)
    if path.exists():
        return path if is_pipeline(path) else None
    try:
        return locate(model, download)
    except NotFoundError:
        if download:
            raise
        return None


def image_shape(folder: Path) -> tuple[int, ...]:
    """Shape of the images that a model makes, ``(channel, height, width)``."""
    config = _json(folder / "unet" / "config.json")
    size = config.get("sample_size")
    if size is None:
        raise ConfigError(f"{folder} does not say what size its images have: give image_shape")
    height, width = (size, size) if isinstance(size, int) else size
    return int(config["in_channels"]), int(height), int(width)


def read_pipeline(
    folder: Path,
    channels: int,
    value_range: tuple[float, float],
    prompt: Path | None = None,
    extra: int = 0,
    precision: str = "fp32",
) -> PretrainedNetwork:
    """Read a model for images of some real channels.

    Parameters
    ----------
    folder
        What a pipeline of diffusers was saved to.
    channels
        Real channels of the data: two for complex images of one.
    value_range
        Values of images, in normalised units, that are -1 and 1 to the network.
    prompt
        Text embedding of an empty prompt for a network that takes one: safetensors or npy, ``(tokens, features)``.
        It is computed if the folder has a text encoder.
    extra
        Real channels that an ambient network sees beside the image.
    precision
        See `PretrainedNetwork`.

    Raises
    ------
    ConfigError, DataError, NotFoundError
        If it is not a model of pixels of this kind, has no safetensors, or needs what is not given.
    """
    index = _json(folder / "model_index.json")
    latent = [name for name in ("vae", "vqvae", "vqgan", "movq") if index.get(name, [None])[0] is not None]
    if latent:
        raise ConfigError(f"{folder} works on latents of its {latent[0]}: only models of pixels become priors")
    model = (index.get("unet") or [None, None])[1]
    if model not in MODELS:
        raise ConfigError(f"the network of {folder} must be a {' or a '.join(MODELS)}, got {model}")
    _check_weights(folder / "unet")
    config = _json(folder / "unet" / "config.json")
    _check_network(folder, config)
    low, high = value_range
    if not high > low:
        raise ConfigError(f"pretrained_range must rise, from black to white, got {low:g} to {high:g}")
    own = int(config["in_channels"])
    if channels > own > 1:
        raise ConfigError(f"{folder} has {own} channels: too few for images of {channels} real channels")

    body = _load(folder, model)
    split = channels > own
    noise = fold_channels(body, 1 if split else channels)
    prediction, log_levels = _levels(folder)
    embedding = _prompt(folder, config, prompt) if model == "UNet2DConditionModel" else None
    architecture = Architecture(
        model,
        {name: value for name, value in body.config.items() if not name.startswith("_")},
        prediction,
        len(log_levels),
        None if embedding is None else tuple(embedding.shape),
        gain=2 / (high - low),
        offset=-(high + low) / (high - low),
        noise=noise,
        split=split,
    )
    network = PretrainedNetwork(architecture, body, extra, precision)
    network.log_levels.copy_(log_levels)
    if network.prompt is not None and embedding is not None:
        network.prompt.copy_(embedding)
    return network


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFoundError(f"no {path.name} in {path.parent}: not a whole model") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold an object of options, got {type(values).__name__}")
    return values


def _check_weights(folder: Path) -> None:
    """Weights are read from safetensors, also where an index names the files."""
    files = [path.name for path in folder.glob("*.safetensors")]
    for index in folder.glob("*.safetensors.index.json"):
        files += [str(name) for name in _json(index).get("weight_map", {}).values()]
    pickled = [path.name for path in folder.glob("*.bin")] if not files else [f for f in files if f.endswith(".bin")]
    if pickled:
        raise ConfigError(
            f"{folder} has its weights as pickle ({pickled[0]}), which can run any code and is not read: save it again "
            "with safe_serialization=True where you trust it"
        )
    if not files:
        raise NotFoundError(f"no safetensors in {folder}: not a whole model")


def _check_network(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what needs inputs that there are none of, or uses its input in more places than the first convolution."""
    inputs, outputs = int(config.get("in_channels", 0)), int(config.get("out_channels", 0))
    if outputs not in (inputs, 2 * inputs):
        raise ConfigError(f"the network of {folder} gives {outputs} channels for {inputs}: not a denoiser of its input")
    for name in ("class_embed_type", "num_class_embeds"):
        if config.get(name) is not None:
            raise ConfigError(f"the network of {folder} wants a class or a second image ({name}): take one without")
    addition = config.get("addition_embed_type")
    if addition not in (None, "text"):
        raise ConfigError(f"the network of {folder} wants further inputs ({addition}): take one without")
    skips = any(str(kind).startswith(("Skip", "AttnSkip")) for kind in config.get("down_block_types", ()))
    if config.get("center_input_sample") or config.get("time_embedding_type") == "fourier" or skips:
        raise ConfigError(f"the network of {folder} is one of score-based models in other variables: take one of DDPM")


def _load(folder: Path, model: str) -> Any:
    import diffusers

    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of accelerate's absence, and of names that older releases had
    try:
        return getattr(diffusers, model).from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"the network of {folder} does not load: {said}") from None
    finally:
        logger.setLevel(level)


def _levels(folder: Path) -> tuple[Prediction, Tensor]:
    r"""Read what the network predicts, and its noise levels :math:`\ln s_t`."""
    from diffusers import DDPMScheduler

    config = _json(folder / "scheduler" / "scheduler_config.json")
    kind, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if kind not in SCHEDULERS:
        raise ConfigError(f"the noise of {folder} is that of {kind}: known are {', '.join(SCHEDULERS)}")
    if prediction not in get_args(Prediction):
        raise ConfigError(f"{folder} predicts {prediction!r}: known are {', '.join(get_args(Prediction))}")
    options = {name: value for name, value in config.items() if name in inspect.signature(DDPMScheduler).parameters}
    try:
        scheduler: Any = DDPMScheduler(**options)
        signal = scheduler.alphas_cumprod.double()
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(f"the noise schedule of {folder} is not one of diffusers: {error}") from None
    levels = 0.5 * torch.log(1 / signal - 1)
    levels = levels[torch.isfinite(levels)]  # with zero terminal signal the last one is endless
    if len(levels) < 2 or not bool((levels.diff() > 0).all()):
        raise DataError(f"the noise schedule of {folder} does not rise")
    return prediction, levels.float()


def _prompt(folder: Path, config: dict[str, Any], given: Path | None) -> Tensor:
    """Text embedding of an empty prompt, ``(tokens, features)``, from a file or by the folder's text encoder."""
    if given is not None:
        embedding = _embedding(given)
    elif (folder / "text_encoder" / "config.json").exists():
        embedding = _encode(folder)
    else:
        raise ConfigError(
            f"{folder} takes a text and has no text encoder: give the embedding of an empty prompt as a file, prompt "
            "(--prompt)"
        )
    features = config.get("encoder_hid_dim") or config.get("cross_attention_dim")
    if embedding.ndim == 3 and len(embedding) == 1:
        embedding = embedding[0]
    if embedding.ndim != 2 or embedding.shape[1] != features:
        raise DataError(f"the text embedding must be (tokens, {features}), got {tuple(embedding.shape)}")
    if not bool(torch.isfinite(embedding).all()):
        raise DataError("the text embedding must be finite")
    return embedding.float()


def _embedding(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise NotFoundError(f"no text embedding at {path}")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            return tensors["prompt_embeds"] if "prompt_embeds" in tensors else next(iter(tensors.values()))
    except (SafetensorError, OSError, ValueError, TypeError, StopIteration) as error:
        raise DataError(f"{path} holds no text embedding: {error}") from None
    raise ConfigError(f"a text embedding must be a .safetensors or .npy file, got {path.name}")


def _encode(folder: Path) -> Tensor:
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError:
        raise ConfigError(
            f"the text encoder of {folder} needs transformers (pip install 'ambient-sci[finetune]'); or give the "
            "embedding of an empty prompt as a file, prompt (--prompt)"
        ) from None
    _check_weights(folder / "text_encoder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder: Any = T5EncoderModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"the text encoder of {folder} does not load: {' '.join(str(error).split())[:200]}") from None
    text = tokenizer("", padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    with torch.no_grad():
        encoded: Tensor = encoder(text["input_ids"], attention_mask=text["attention_mask"])[0]
    return encoded[0]
