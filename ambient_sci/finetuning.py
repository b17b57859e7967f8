r"""Fine-tuning: which weights of an earlier model learn, and whether that fits into the memory.

- ``full``: all of them.
- ``lora``: the weights of the U-Net's blocks stay, and each matrix gets a product of low rank added,
  :math:`W + B A` (Hu et al. 2021, arXiv:2106.09685); the first and last convolution learn as they are. The averaged
  weights are those of the sums, so that a prior is an ordinary network of its own.
- ``last``: the last block and what follows it.

What an ambient network has for its conditioning learns in any case.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ambient_sci.config import TrainConfig
from ambient_sci.distributed import is_sharded
from ambient_sci.errors import ConfigError
from ambient_sci.optimizers import default_optimizer
from ambient_sci.pretrained.denoiser import PretrainedNetwork

__all__ = ["Footprint", "adapt", "available_memory", "check_fits", "effective_weights", "measure"]

ADAPTER = "default"
MOMENTS = {"adamw": 8, "muon": 4, "adamw-8bit": 2}  # bytes for each weight; Muon's few others do not count


def adapt(denoiser: nn.Module, config: TrainConfig) -> None:
    """Let the weights learn that ``config.adapt`` says, and no others.

    Raises
    ------
    ConfigError
        If there is no earlier model, or peft is needed and missing.
    """
    if config.adapt == "full":
        return
    if config.pretrained is None and config.start_from is None:
        raise ConfigError(f"adapt {config.adapt!r} keeps weights as they are: it needs pretrained or start_from")
    network: Any = denoiser.network
    body: Any = getattr(network, "body", None)
    if not hasattr(body, "up_blocks"):
        raise ConfigError(f"adapt {config.adapt!r} wants a U-Net of diffusers")
    body.requires_grad_(False)
    learning: list[Any] = [body.conv_out, body.conv_norm_out]
    if config.adapt == "lora":
        _add_adapters(body, config.lora_rank)
        learning.append(body.conv_in)
    else:
        learning.append(body.up_blocks[-1])
    learning += [getattr(body.conv_in, "beside", None)]
    for module in learning:
        if module is not None:
            module.requires_grad_(True)


def _add_adapters(body: Any, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("adapt 'lora' needs peft: pip install 'ambient-sci[finetune]'") from None
    if is_sharded():
        raise ConfigError("adapt 'lora' does not go together with FSDP: leave out one of them")
    blocks = ("down_blocks", "mid_block", "up_blocks")
    targets = [
        name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.split(".")[0] in blocks
    ]
    options = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(options, body, adapter_name=ADAPTER)


def effective_weights(
    denoiser: nn.Module, plain: nn.Module, config: TrainConfig
) -> Callable[[], Sequence[Tensor]] | None:
    """Give what computes the weights of a network with adapters as those of one without, in the order of ``plain``.

    None where there are no adapters.
    """
    if config.adapt != "lora":
        return None
    own = dict(denoiser.named_parameters())

    def weight(name: str) -> Callable[[], Tensor]:
        if name in own:
            return lambda: own[name]
        path, _, kind = name.rpartition(".")
        layer: Any = denoiser.get_submodule(path)
        base: Tensor = getattr(layer.base_layer, kind)
        return lambda: base + layer.get_delta_weight(ADAPTER) if kind == "weight" else base

    weights = [weight(name) for name, _ in plain.named_parameters()]
    return lambda: [read() for read in weights]


# --------------------------------------------------------------------------------------------------- memory and time


@dataclass(frozen=True)
class Footprint:
    """What a step of training needs.

    Parameters
    ----------
    weights, learning
        Numbers of weights, and of those that learn.
    states
        Bytes of weights, their average, gradients and optimiser.
    activations
        Bytes that the network keeps of a part of a batch for its gradient.
    seconds
        Of a step, in the network alone.
    available
        Bytes of memory that the device had; None where that is not known.
    """

    weights: int
    learning: int
    states: int
    activations: int
    seconds: float
    available: int | None

    def __str__(self) -> str:
        of = "" if self.available is None else f" of {_size(self.available)}"
        return (
            f"{self.learning:,} of {self.weights:,} weights learn; memory about {_size(self.states)} for them and "
            f"{_size(self.activations)} for activations{of}; {self.seconds:.2g} s a step in the network"
        )


def state_bytes(denoiser: nn.Module, averaged: nn.Module, config: TrainConfig) -> tuple[int, int, int]:
    """Count weights, those that learn, and bytes of all that is kept of them."""
    own, copied = list(denoiser.parameters()), list(averaged.parameters())
    learning = sum(weight.numel() for weight in own if weight.requires_grad)
    moments = MOMENTS[config.optimizer or default_optimizer(config)]
    count = sum(weight.numel() for weight in own)
    kept = sum(weight.numel() * weight.element_size() for weight in (*own, *copied))
    return count, learning, kept + (4 + moments) * learning


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where there is no telling."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    return None


def check_fits(denoiser: nn.Module, averaged: nn.Module, config: TrainConfig, device: torch.device) -> int | None:
    """Raise `ConfigError` if weights, gradients and optimiser alone do not fit; returns the memory that there is."""
    available = available_memory(device)
    if is_sharded():
        return available
    _, _, states = state_bytes(denoiser, averaged, config)
    _refuse_too_large(states, 0, available, config)
    return available


def measure(
    denoiser: nn.Module,
    averaged: nn.Module,
    config: TrainConfig,
    image_shape: tuple[int, ...],
    is_complex: bool,
    available: int | None,
) -> Footprint:
    """Measure what a step of a pretrained network needs, by passes on noise; nothing is learned from them.

    Raises
    ------
    ConfigError
        If it does not fit, with what would help.
    """
    network: Any = denoiser.network
    assert isinstance(network, PretrainedNetwork)
    weights = list(denoiser.parameters())
    device = weights[0].device
    count, learning, states = state_bytes(denoiser, averaged, config)
    channels = image_shape[0] * (2 if is_complex else 1)
    part = -(-config.batch // config.accumulate)

    def once(images: int) -> float:
        x = torch.zeros(images, channels, *image_shape[1:], device=device)
        seen = x.new_zeros(images, network.extra, *image_shape[1:]) if network.extra else None
        began = time.perf_counter()
        image, added = network(x, x.new_ones(images), seen)
        (image.sum() if added is None else image.sum() + added.sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    held: dict[int, int] = {}
    own = {weight.untyped_storage().data_ptr() for weight in weights}

    def count_bytes(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            once(1)
        activations = part * sum(held.values())
        _refuse_too_large(states, activations, available, config)
        seconds = config.accumulate * once(part)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        _refuse_too_large(states, available or 0, available or 0, config)
        raise
    finally:
        for weight in weights:
            weight.grad = None
    return Footprint(count, learning, states, activations, seconds, available)


def _refuse_too_large(states: int, activations: int, available: int | None, config: TrainConfig) -> None:
    if available is None or states + activations <= available:
        return
    advice = []
    if activations:
        advice += ["accumulate"] if config.accumulate < config.batch else []
        advice += [] if config.checkpoint_activations else ["checkpoint_activations"]
    if config.optimizer != "adamw-8bit" and config.adapt == "full":
        advice.append("optimizer adamw-8bit")
    advice += ["adapt lora or last"] if config.adapt == "full" else []
    raise ConfigError(
        f"the model does not fit: {_size(states)} for weights, gradients and optimiser and {_size(activations)} for "
        f"activations, of {_size(available)} that are free; what helps: {', '.join([*advice, 'a larger device'])}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
