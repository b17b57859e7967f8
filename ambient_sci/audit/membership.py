r"""Membership inference: whether the loss of a scan tells that it was trained on.

A scan is taken for a member if its loss is low (loss threshold, Yeom et al. 2018, CSF, arXiv:1709.01604), or lower than
that of a reference model which was not trained on it (Watson et al. 2022, ICLR, arXiv:2111.08440),

.. math:: -\ell(y_i), \qquad \ell_\text{reference}(y_i) - \ell(y_i).

Members are scans of the training, others are held out. Success is the area under the curve, and the part of the
members that is found where at most 1% of the others are accused (Carlini et al. 2022, S&P, arXiv:2112.03570).
Losses are means over noise at `DRAWS` levels, from the middle of equal parts of the levels of training:

- ``denoising``: the objective of an ordinary prior on images, where they are known.
- ``misfit``: of an ordinary prior where they are not. A regularised least squares image :math:`\hat x` of the scan is
  noised and denoised, and compared with what was measured:
  :math:`\| A_i D(\hat x + s n, s) - y_i \|^2 / n_i` in units of the noise.
- ``ambient``: the objective of a network that restores measurements, with rows hidden as in training.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.audit.statistics import Separation, separate
from ambient_sci.baselines import cg_sense
from ambient_sci.check.gaussian import noise_of
from ambient_sci.denoise import per_image
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.methods.base import turn
from ambient_sci.objectives import ambient_loss, corruption, denoising_loss
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.prior import Prior
from ambient_sci.schedule import MEAN, SPREAD
from ambient_sci.seeding import scan_noise, stream

__all__ = ["Membership", "infer_membership", "scan_losses"]

DRAWS = 8
_NOISE, _ROWS, _PHASE = 0x71, 0x72, 0x73  # purposes of streams
Scans = Iterable[tuple[Measurement, Tensor | None]]


@dataclass(frozen=True)
class Membership:
    """What losses tell of who was trained on.

    Attributes
    ----------
    kind
        Which loss: ``"denoising"``, ``"misfit"`` or ``"ambient"``.
    members, others
        Loss of each scan of the training and of each that was held out.
    threshold
        How well a threshold on the loss tells them apart.
    reference
        The same for the difference of losses to a reference model, if there is one.
    """

    kind: str
    members: NDArray[np.float64]
    others: NDArray[np.float64]
    threshold: Separation
    reference: Separation | None

    @classmethod
    def of(cls, told: dict[str, Any]) -> Self:
        """Put together what `to_dict` gave."""
        attacks = {}
        for name, one in told["attacks"].items():
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in one.items()
            }
            attacks[name] = Separation(**values)
        members, others = (np.array(told[name], float) for name in ("members", "others"))
        return cls(told["loss"], members, others, attacks["loss threshold"], attacks.get("reference model"))

    @property
    def attacks(self) -> dict[str, Separation]:
        """Attacks by name."""
        found = {"loss threshold": self.threshold}
        return found if self.reference is None else {**found, "reference model": self.reference}

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "loss": self.kind,
            "members": self.members.tolist(),
            "others": self.others.tolist(),
            "attacks": {name: asdict(found) for name, found in self.attacks.items()},
        }

    def __str__(self) -> str:
        lines = [f"{f'membership by {self.kind} loss':<30}{'AUC':>18}{'p':>9}{'found at 1% accused':>24}"]
        for name, one in self.attacks.items():
            auc, (low, high) = one.auc, one.auc_interval
            rate = f"{one.rate:.1%} ({one.rate_interval[0]:.1%}-{one.rate_interval[1]:.1%})"
            lines.append(f"{name:<30}{f'{auc:.2f} ({low:.2f}-{high:.2f})':>18}{one.p_value:>9.1g}{rate:>24}")
        return "\n".join(lines)


def infer_membership(
    prior: Prior, members: Scans, others: Scans, reference: Prior | None = None, seed: int = 0
) -> Membership:
    """Attack a prior by its losses.

    Parameters
    ----------
    prior
        The prior.
    members, others
        Batches of scans that it was trained on, and of scans that it was not: measurements, each with images in the
        same units, or with none where they are not known.
    reference
        A prior that learned from other scans of the same kind, for the second attack.
    seed
        Of noise and hidden rows.

    Raises
    ------
    ConfigError
        If only one of prior and reference restores measurements: their losses are different things.
    """
    if reference is not None and reference.config.restores != prior.config.restores:
        raise ConfigError(
            f"reference must have a loss like the prior's, of method {prior.config.method!r}, got one of method "
            f"{reference.config.method!r}"
        )
    kind, losses = "", []
    for scans in (members, others):
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        for m, images in scans:
            kind = _kind(prior, images)
            ours.append(scan_losses(prior, m, images, seed))
            if reference is not None:
                theirs.append(scan_losses(reference, m, images, seed))
        losses.append([torch.cat(found).double().numpy() for found in (ours, theirs) if found])
    (inside, *inside_reference), (outside, *outside_reference) = losses
    second = None
    if reference is not None:
        second = separate(inside_reference[0] - inside, outside_reference[0] - outside)
    return Membership(kind, inside, outside, separate(-inside, -outside), second)


def _kind(prior: Prior, images: Tensor | None) -> str:
    if isinstance(prior.denoiser, AmbientDenoiser):
        return "ambient"
    return "misfit" if images is None else "denoising"


@torch.no_grad()
def scan_losses(prior: Prior, m: Measurement, images: Tensor | None = None, seed: int = 0) -> Tensor:
    """Loss of each scan, ``(batch,)``, on the CPU (see the module).

    Parameters
    ----------
    prior
        The prior.
    m
        Scans.
    images
        Their images in the same units, if they are known.
    seed
        Of noise and hidden rows.
    """
    denoiser, device = prior.denoiser, prior.device
    scans, first = m.to(device), int(m.index[0])
    start = cg_sense(scans) if images is None else images.to(device)
    total = torch.zeros(len(m), device=device)
    for k in range(DRAWS):
        middle = float(torch.special.ndtri(torch.tensor((k + 0.5) / DRAWS)))
        sigma = torch.full_like(total, prior.sigma_data * math.exp(MEAN + SPREAD * middle))
        if isinstance(denoiser, AmbientDenoiser):
            noise, thinned = corruption(m, prior.config.hidden, stream(seed, _ROWS, k, first))
            total += ambient_loss(denoiser, scans, sigma, noise.to(device), thinned.to(device))
            continue
        labels = torch.stack([torch.full_like(m.index, _NOISE), torch.full_like(m.index, k), m.index], 1)
        noise = scan_noise(tuple(start.shape[1:]), start.dtype, seed, labels).to(device)
        if images is not None:
            turned = turn(start, stream(seed, _PHASE, k, first))
            total += denoising_loss(denoiser, turned, sigma, prior.sigma_data, noise)
        else:
            total += _misfit(denoiser(start + per_image(sigma, start) * noise, sigma), scans)
    return (total / DRAWS).cpu()


def _misfit(images: Tensor, m: Measurement) -> Tensor:
    """Mean squared residual of what was measured, in units of the noise, ``(batch,)``."""
    rows = m.operator.rows.expand(m.y.shape)
    squared = ((m.operator(images) - m.y) * rows / noise_of(m)).abs().square()
    return squared.flatten(1).sum(1) / rows.flatten(1).sum(1).clamp_min(1) / (2 if m.y.is_complex() else 1)
