r"""Optimisers: AdamW, and Muon for the kernels of convolutions.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix of weights along the orthogonal
matrix next to its averaged gradient :math:`M = U S V^T`, with Nesterov's look-ahead in :math:`M`:

.. math:: W \leftarrow (1 - \eta \lambda) W - 0.2\, \eta \sqrt{\max(m, n)}\, U V^T, \qquad W \in \mathbb R^{m \times n}.

All directions are learned at one pace, where gradients hold few of them. The factor gives updates the size that those
of AdamW have, so that rates of one fit the other (Liu et al. 2025, arXiv:2502.16982). A kernel is a matrix with a row
for each channel that comes out. All other weights are AdamW's (Loshchilov and Hutter 2019, arXiv:1711.05101); among
them are the layers that read the noise level, whose large matrices would take more time than they are worth. On
denoisers of flows Muon ended with an 18% lower loss than AdamW (Schaipp 2025, arXiv:2510.19376).

:math:`U V^T` is found to within a third in each direction by a few steps of

.. math:: X \leftarrow (a I + b X X^T + c (X X^T)^2) X, \qquad X_0 = M / \|M\|_F.

All factors are polynomials of :math:`X_0 X_0^T`, so that matrices of the shorter side are all that is multiplied until
the end; those of one shape are done together.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from ambient_sci.config import TrainConfig
from ambient_sci.distributed import is_sharded
from ambient_sci.errors import ConfigError

__all__ = ["Muon", "default_optimizer", "make_optimizer", "orthogonalise"]

POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at zero, and within 0.3 of one after a few steps
ITERATIONS = 4
SIZE = 0.2  # of an update of AdamW, in units of its rate


def default_optimizer(config: TrainConfig) -> str:
    """Muon learns new networks soonest; what AdamW has learned, and shards of kernels, are left to AdamW.

    So is differential privacy: noise on gradients is orthogonalised like any gradient.
    """
    return "adamw" if config.pretrained or config.adapt != "full" or config.private or is_sharded() else "muon"


def make_optimizer(weights: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Muon, or AdamW with moments of 32 or of 8 bits (Dettmers et al. 2021, arXiv:2110.02861).

    Raises
    ------
    ConfigError
        If the optimiser is not installed, or cannot learn weights that are spread over processes.
    """
    options: dict[str, Any] = {"lr": config.peak_rate, "betas": (0.9, 0.95), "weight_decay": 0.01}
    if config.optimizer == "muon":
        if is_sharded():
            raise ConfigError("optimizer 'muon' needs whole matrices, which FSDP cuts: take 'adamw'")
        return Muon(weights, **options)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(weights, fused=True, **options)
    try:
        import bitsandbytes
    except ImportError:
        raise ConfigError(
            "optimizer 'adamw-8bit' needs bitsandbytes (pip install bitsandbytes); or take 'adamw'"
        ) from None
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(weights, **options)
    return optimizer


class Muon(torch.optim.AdamW):
    """Muon for weights of more than two dimensions, AdamW for the others.

    Parameters
    ----------
    weights
        Of a network.
    lr
        Learning rate of both.
    betas
        Decay of the averages of gradients, Muon's and AdamW's, and of AdamW's squares.
    weight_decay
        Of both.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        kinds = {kernels: [weight for weight in weights if (weight.ndim > 2) == kernels] for kernels in (False, True)}
        groups = [{"params": some, "kernels": kernels} for kernels, some in kinds.items() if some]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all weights that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["kernels"]]
        super().step()
        self.param_groups = groups
        for group in groups:
            learning = [weight for weight in group["params"] if weight.grad is not None]
            if group["kernels"] and learning:
                self._move(learning, group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        rate, keep = group["lr"], group["betas"][0]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self._average(weight) for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - keep)
        ahead = torch._foreach_lerp(gradients, averages, keep)
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for k, weight in enumerate(weights):
            alike[len(weight), weight[0].numel()].append(k)
        for shape, some in alike.items():
            updates = orthogonalise(torch.stack([ahead[k].reshape(shape) for k in some]))
            moved = [update.view_as(weights[k]) for k, update in zip(some, updates, strict=True)]
            torch._foreach_add_([weights[k] for k in some], moved, alpha=-SIZE * rate * max(shape) ** 0.5)

    def _average(self, weight: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            # AdamW, when it is loaded, wants every weight to have a step
            state |= {"average": torch.zeros_like(weight), "step": torch.zeros(())}
        return state["average"]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Find what is next to being orthogonal (rows or columns, the fewer) to matrices ``(batch, m, n)``; zeros stay."""
    a, b, c = POLYNOMIAL
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    gram = wide @ wide.mT
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp_min(torch.finfo(gram.dtype).tiny)
    gram = gram / square
    product: Tensor | None = None
    for k in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if k < ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    near: Tensor = product / square.sqrt() @ wide
    return near if near.shape == matrices.shape else near.mT
