r"""Several processes that train one prior, started by ``accelerate launch`` or ``torchrun``.

Each of :math:`R` processes draws the whole batch of :math:`B` scans, with its noise and hidden rows, from the same
streams, and computes on its own part :math:`P_r` of it. Gradients are summed,

.. math:: \nabla L = \frac1B \sum_{r=1}^R \sum_{i \in P_r} \nabla \ell_i,

so that all take the same step: that of one process, but for rounding, whatever their number. Nothing here is needed by
one process alone: every function then does nothing, or gives back what it got.

With FSDP (``accelerate launch --use_fsdp --fsdp_version 2``) the weights in training, their gradients and the
optimiser's averages are spread over the processes (Zhao et al. 2023, arXiv:2304.11277); the averaged weights, from
which every process samples, are whole everywhere.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from ambient_sci.errors import ConfigError
from ambient_sci.signals import Interrupted, asked_to_stop

__all__ = [
    "add_up",
    "agree",
    "equalise",
    "is_sharded",
    "join",
    "main",
    "obey_signals",
    "own_part",
    "placed",
    "rank",
    "shard",
    "share_out",
    "size",
    "wait",
    "whole",
]

# where launchers say how many processes there are: torchrun and accelerate, MPI's
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_device = torch.device("cpu")


def join(device: torch.device) -> torch.device:
    """Join the other processes, if a launcher started several, and get this one's device.

    Parameters
    ----------
    device
        What was asked for: the CPU, or any one GPU where each process is to have its own.

    Raises
    ------
    ConfigError
        If accelerate is missing, or asked to do what training does not support.
    """
    if max(int(os.environ.get(name) or 1) for name in _COUNTS) < 2:
        return device
    from accelerate import PartialState

    global _device  # where tensors are that the processes exchange
    own: torch.device = PartialState(cpu=device.type == "cpu").device
    if own.type != device.type or not dist.is_initialized():
        raise ConfigError(f"several processes were started, but no way for them to share devices {device.type!r}")
    if is_sharded() and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError("weights are spread over processes with version 2 of FSDP only: set fsdp_version: 2")
    _device = own
    return own


def _there() -> bool:
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """Count the processes."""
    return dist.get_world_size() if _there() else 1


def rank() -> int:
    """Give the number of this process, from 0."""
    return dist.get_rank() if _there() else 0


def main() -> bool:
    """Tell whether this process is the one that writes."""
    return rank() == 0


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        dist.barrier()


def own_part(length: int) -> slice:
    """Which of so many scans are this process's own."""
    if length < size():
        raise ConfigError(f"batch must be at least the number of processes, {size()}, got {length}")
    return slice(rank() * length // size(), (rank() + 1) * length // size())


# ------------------------------------------------------------------------------------------------------ all together


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace real tensors by their sums over the processes, all in one go."""
    if size() < 2:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(_device)
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def agree(number: int) -> int:
    """Give the largest number that any process has."""
    if size() < 2:
        return number
    largest = torch.tensor(number, device=_device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def equalise(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Replace tensors by those of one process."""
    if size() < 2:
        return
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        carried = real.to(_device, copy=True, memory_format=torch.contiguous_format)
        dist.broadcast(carried, source)
        real.copy_(carried)


def obey_signals() -> None:
    """Raise `ambient_sci.signals.Interrupted` in all processes if any was asked to stop."""
    number = agree(asked_to_stop())
    if number:
        raise Interrupted(number)


def share_out(parts: Sequence[Any], work: Callable[[Any], Tensor], result: Tensor, label: str | None = None) -> None:
    """Fill ``result[part]`` with ``work(part)`` for each part; the processes take turns and tell each other.

    Parameters
    ----------
    parts
        Indices into the first axis of ``result``, the same in all processes.
    work
        What to do for a part.
    result
        Where it goes, on the CPU.
    label
        Label of a progress bar.

    Raises
    ------
    ambient_sci.signals.Interrupted
        Between two parts, if a process was asked to stop.
    """
    rounds = range(0, len(parts), size())
    for first in tqdm(rounds, desc=label, unit="batch", disable=label is None or not main()):
        obey_signals()
        some = parts[first : first + size()]
        if rank() < len(some):
            result[some[rank()]] = work(some[rank()])
        if size() > 1:
            for owner, part in enumerate(some):
                rows = result[part]
                equalise([rows], owner)
                result[part] = rows


# --------------------------------------------------------------------------------------------------- weights in shards


def is_sharded() -> bool:
    """Tell whether the launcher asked for the weights to be spread over the processes."""
    return size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shard(module: nn.Module) -> None:
    """Spread a module's weights over the processes, in place: the entries of its lists of layers, then what is left."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(module.parameters()).device.type, (size(),))
    for layer in list(_layers(module)):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def whole(value: Tensor) -> Tensor:
    """Gather a tensor that is spread over the processes; all have to ask for it."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def placed(value: Tensor, like: Any) -> Tensor:
    """Spread a tensor over the processes as another one is."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Tensor = distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return spread
