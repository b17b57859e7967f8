r"""A step of training: the gradient of a batch, how far to go along it, and the average of the weights.

The average forgets with a half-life :math:`T` in images, shorter at first so that the first steps are forgotten,

.. math:: \bar\theta \leftarrow k \bar\theta + (1 - k)\, \theta, \qquad k = 2^{-m / \min(T, n / 4)}

after ``n`` images, ``m`` of them since it was last moved. That is every 32 images, which is often enough for half-lives
of hundreds, and saves passes over all weights where batches are small.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ambient_sci.config import TrainConfig
from ambient_sci.distributed import add_up, is_sharded, own_part, shard, size, whole
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.methods import Learner
from ambient_sci.methods.base import Batch
from ambient_sci.runs import State

__all__ = ["Average", "backward", "check_step", "learning_rate", "own_parts", "prepare_network"]

# objectives are of order one, and so are gradients and what is let through of them (`clip`); one that is so many times
# larger comes from weights that nothing will bring back
EXPLODED = 1e6
AVERAGE_EVERY = 32  # images


def learning_rate(config: TrainConfig, seen: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth of the peak."""
    rise = min(1.0, (seen + config.batch) / max(config.warmup, 1))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, seen / config.images)))
    return config.peak_rate * rise * (0.05 + 0.95 * fall)


def prepare_network(denoiser: nn.Module, config: TrainConfig) -> None:
    """Make a network that is to be trained save memory or time as the options have it."""
    network: Any = denoiser.network
    if config.checkpoint_activations:
        if not hasattr(network, "enable_gradient_checkpointing"):
            raise ConfigError(
                "checkpoint_activations wants the built-in U-Net, or a network with enable_gradient_checkpointing()"
            )
        network.enable_gradient_checkpointing()
    if config.compile:
        check_compiler(next(network.parameters()).device)
        network.compile()
    if is_sharded():
        if config.compile:
            raise ConfigError("compile does not go together with FSDP: leave out one of them")
        shard(denoiser)


def check_compiler(device: torch.device) -> None:
    """Raise `ConfigError` where ``torch.compile`` finds no compiler that works."""
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"compile needs a compiler that works here, and there is none ({said}): leave it out"
        ) from None


def own_parts(config: TrainConfig) -> list[slice]:
    """Which scans of a batch this process computes on, part by part."""
    own = own_part(config.batch)
    count, parts = own.stop - own.start, config.accumulate
    if parts > count:
        raise ConfigError(f"accumulate must be at most {count}, the images of a batch that a process has, got {parts}")
    return [slice(own.start + k * count // parts, own.start + (k + 1) * count // parts) for k in range(parts)]


def backward(denoiser: nn.Module, learner: Learner, batch: Batch, parts: list[slice], device: torch.device) -> Tensor:
    """Leave the gradient of a batch's mean loss in the weights; returns the loss of every scan, ``(batch,)``.

    Each process computes on parts of its own, one after the other.
    """
    losses = torch.zeros(len(batch), device=device)
    for part in parts:
        loss = learner.loss(denoiser, batch[part].to(device))
        # FSDP takes the mean over the processes where a sum is meant
        (loss.sum() * (size() if is_sharded() else 1) / len(batch)).backward()
        losses[part] = loss.detach()
    if size() > 1:
        gradients = [] if is_sharded() else [p.grad for p in denoiser.parameters() if p.grad is not None]
        add_up([*gradients, losses])
    return losses


class Average:
    """Exponential moving average of the weights of a network in training (see the module).

    Parameters
    ----------
    average
        A copy of the network, to be moved.
    denoiser
        The network in training.
    half_life
        In images.
    weights
        What gives the weights of the network in training, in the order of the copy's; its own if not given.
    """

    def __init__(
        self,
        average: nn.Module,
        denoiser: nn.Module,
        half_life: int,
        weights: Callable[[], Sequence[Tensor]] | None = None,
    ) -> None:
        self.half_life = half_life
        # to walk through the modules takes about as long as to add up their weights
        own: list[Tensor] = [*denoiser.parameters()]
        self._averages: list[Tensor] = [*average.parameters()]
        self._weights = weights or (lambda: own)
        self._buffers = list(zip(average.buffers(), denoiser.buffers(), strict=True))

    @torch.no_grad()
    def update(self, batch: int, seen: int, last: bool = False) -> None:
        """Take up the weights after ``seen`` images in steps of ``batch``, if that is due or it is the last time."""
        every = max(1, AVERAGE_EVERY // batch)
        steps = (seen // batch) % every or every
        if steps < every and not last:
            return
        keep = 0.5 ** (steps * batch / min(self.half_life, max(seen / 4, 1)))
        torch._foreach_lerp_(self._averages, [whole(weight) for weight in self._weights()], 1 - keep)
        for old, new in self._buffers:
            old.copy_(new)


def check_step(losses: Tensor, norm: float, batch: Batch, state: State, config: TrainConfig) -> None:
    """Raise `DataError` where a batch's losses or their gradient say that the training diverges."""
    if norm < EXPLODED * config.clip:
        return
    wrong = batch.index[~torch.isfinite(losses).cpu()]
    what = f"the loss became {float(losses.mean())}" if len(wrong) else f"the gradient's norm became {norm:.3g}"
    scans = [scan for scan in (wrong if len(wrong) else batch.index).tolist() if scan >= 0]
    where = f"on scans {', '.join(map(str, scans))}" if scans else "on images of no scan"
    kept = f"the checkpoint of {state.saved} images is kept in {config.out}" if state.saved else "nothing is kept"
    raise DataError(
        f"{what} after {state.seen} images, {where}; {kept}. "
        f"Try a learning rate below {config.peak_rate:g}, or look at these images"
    )
