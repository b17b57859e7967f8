r"""Differential privacy of single scans, by DP-SGD.

A training is :math:`(\epsilon, \delta)`-differentially private if for any scans, and the same with one of them
replaced by an empty one, and any set :math:`E` of what could be published of it,

.. math:: P(E) \le e^\epsilon P'(E) + \delta,

in both directions (Dwork et al. 2006; the empty scan as in Ponomareva et al. 2023, arXiv:2303.00654, sec. 2.1: how
many scans there are is public). A step (Abadi et al. 2016, arXiv:1607.00133) takes each of :math:`n` scans with
probability :math:`q = B / n`, independently of the others, clips the gradient of each to norm :math:`C`, and adds
noise to their sum:

.. math:: \hat g = \frac1B \Bigl( \sum_{i \in S} \nabla \ell_i \min\bigl(1, \tfrac{C}{\|\nabla \ell_i\|}\bigr)
          + \sigma C z \Bigr), \qquad z \sim \mathcal N(0, 1).

One scan changes the sum by at most :math:`C`, and :math:`B` is the expected size, not that of :math:`S`. What
:math:`T` steps spend is added up in Rényi divergences, by `Opacus <https://opacus.ai>`_ (Mironov, Talwar and Zhang
2019, arXiv:1908.10530, whose bound holds in both directions; conversion of Balle et al. 2020, arXiv:1905.09982). All
that follows from the noisy gradients alone is covered: optimiser, averaged weights, images drawn from them.

What has to hold besides, and what sees to it:

- :math:`\nabla \ell_i` depends on scan :math:`i`, on earlier noisy gradients, and on nothing of other scans. It is
  computed for one scan at a time, or for some of which each has a copy of the weights (``torch.func.vmap``), and not
  by hooks: those of Opacus 1.6 give zeros for convolutions whose input is not contiguous, as behind attention here. A
  gradient that is not finite counts as zero, and a network that keeps statistics of what it sees is refused.
- Nothing else is learned from the scans: ``sigma_data`` is given and not estimated; methods that choose a
  regularisation, a spectrum or a power on all scans are refused (``em``, ``tv-edm``, ``l1-edm``), and so is
  ``ambient-gan``, whose generator has steps of its own. Each scan is scaled by itself, which is allowed.
- Nothing else is told: no loss, no norm of a gradient before noise, no processor time (which tells the sizes of
  :math:`S`), no fingerprint or noise level of the store, no scan set aside, no picture drawn through the operators of
  scans.
- Noise and :math:`S` are secret. They follow from a key that the system's source of randomness gives, not from
  ``seed``. It is in ``checkpoint.safetensors``, which only its owner can read and nobody should be given, until the
  last one is written without it.

Not covered: files but those of the finished prior (``prior.safetensors``, ``README.md``, ``config.json``,
``log.jsonl``, ``samples.png``); messages and times on the terminal; options that were chosen by trying them on the same
scans; a person of whom there are :math:`k` scans, who has :math:`k \epsilon` and
:math:`k e^{(k - 1) \epsilon} \delta`. Noise is that of NumPy's PCG64 in single precision, neither a cryptographic
generator nor one that is safe from attacks on its rounding (Mironov 2012).
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.store import Store
from ambient_sci.distributed import size
from ambient_sci.errors import ConfigError
from ambient_sci.methods import Learner
from ambient_sci.methods.base import Batch
from ambient_sci.network import UNet
from ambient_sci.prior import saved_prior
from ambient_sci.seeding import rng_for, stream

__all__ = ["METHODS", "Mechanism", "PrivateGradient", "private_options"]

#: Methods whose losses depend on one scan each, with nothing that is chosen on all of them.
METHODS = ("ambient", "naive", "oracle")
# of Rényi divergences; the best one is large where epsilon is small
ORDERS = [1 + x / 10 for x in range(1, 100)] + [*range(11, 64), 80, 128, 256, 512, 1024]
LEAST, MOST = 0.05, 1e6  # noise that is looked for
COPIED = 1 << 26  # weights that there are at once for scans that each have a copy
_DRAWN, _SAMPLE, _NOISE = 0, 0xD1, 0xD2  # purposes of a step's streams


@dataclass(frozen=True)
class Mechanism:
    """The subsampled Gaussian mechanism, and what its repetition spends.

    Parameters
    ----------
    noise
        Standard deviation of the noise in units of the clipped norm.
    rate
        Probability that a scan is in a step.
    delta
        Failure probability at which epsilon is told.
    """

    noise: float
    rate: float
    delta: float

    def epsilon(self, steps: int) -> float:
        """Epsilon after so many steps."""
        if steps == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the best order, where it is the smallest or largest
            spent, _ = _analysis().get_privacy_spent(orders=ORDERS, rdp=steps * self._one, delta=self.delta)
        return max(float(spent), 0.0)

    @cached_property
    def _one(self) -> NDArray[np.float64]:
        """Rényi divergences of one step."""
        divergences = _analysis().compute_rdp(q=self.rate, noise_multiplier=self.noise, steps=1, orders=ORDERS)
        return np.asarray(divergences, np.float64)

    @classmethod
    def within(cls, epsilon: float, rate: float, delta: float, steps: int) -> "Mechanism":
        """Find the least noise, to four digits, with which so many steps stay within an epsilon.

        Raises
        ------
        ConfigError
            If none is enough.
        """
        low, high = LEAST, MOST
        if cls(high, rate, delta).epsilon(steps) > epsilon:
            raise ConfigError(f"privacy_epsilon {epsilon:g} cannot be kept with any noise; give a larger one")
        while high / low > 1 + 1e-5:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if cls(middle, rate, delta).epsilon(steps) > epsilon else (low, middle)
        unit = 10.0 ** (math.floor(math.log10(high)) - 3)
        return cls(float(f"{math.ceil(high / unit) * unit:.4g}"), rate, delta)


def _analysis() -> Any:
    """Opacus's arithmetic of Rényi divergences."""
    try:
        from opacus.accountants.analysis import rdp
    except ImportError:
        raise ConfigError("a private training needs Opacus: pip install 'ambient-sci[privacy]'") from None
    return rdp


# ------------------------------------------------------------------------------------------------------ the options


def private_options(config: TrainConfig, store: Store) -> dict[str, Any]:
    """Refuse options with which the guarantee would not hold, and find those that were not given.

    Returns
    -------
    dict
        Options of a `TrainConfig` that are to be changed; none where the training is not private.

    Raises
    ------
    ConfigError
        With one line that says why.
    """
    if not config.private:
        if config.privacy_delta is not None:
            raise ConfigError("privacy_delta alone asks for nothing: give privacy_epsilon or privacy_noise as well")
        return {}
    if size() > 1:
        raise ConfigError("a private training runs in one process: start it without a launcher")
    if config.method not in METHODS:
        why = {
            "ambient-gan": "its generator and discriminator have steps of their own",
            "em": "its first images and their power are chosen on all scans together",
        }.get(config.method, "its regularisation is chosen on all scans together")
        raise ConfigError(f"method {config.method!r} cannot be private: {why}; {', '.join(METHODS)} can")
    if config.sigma_data is None and config.start_from is None:
        raise ConfigError(
            "a private training looks at no scan to estimate sigma_data: give it, from what is known of such images"
        )
    if config.validation_scans:
        raise ConfigError("numbers of scans that are set aside are not private: validation_scans must be 0")
    if config.patience is not None:
        raise ConfigError("patience looks at scans that are set aside, which is not private: leave it out")
    if config.clean is not None:
        raise ConfigError("clean images would be learned from without privacy: leave out clean")
    if config.batch > len(store):
        raise ConfigError(f"batch must be at most {len(store)} in a private training, the scans, got {config.batch}")
    if config.start_from is not None:
        earlier = saved_prior(config.start_from)[2].get("trained_on", {})
        if earlier.get("fingerprint") == store.fingerprint or earlier.get("store") == str(config.store):
            raise ConfigError(
                f"{config.start_from} learned from the same scans: start_from must be of others, or public ones"
            )
    delta = config.privacy_delta or float(f"{0.1 / len(store):.2g}")
    if delta >= 1 / len(store):
        raise ConfigError(
            f"privacy_delta must be below {1 / len(store):.3g}, one over the number of scans, got {delta:g}: "
            "publishing one scan at random would be within it"
        )
    options: dict[str, Any] = {"privacy_delta": delta, "validation_scans": 0}
    rate, steps, wanted = config.batch / len(store), -(-config.images // config.batch), config.privacy_epsilon
    if config.privacy_noise is None:
        assert wanted is not None
        options["privacy_noise"] = Mechanism.within(wanted, rate, delta, steps).noise
    else:
        spent = Mechanism(config.privacy_noise, rate, delta).epsilon(steps)
        if wanted is not None and spent > wanted:
            raise ConfigError(
                f"privacy_noise {config.privacy_noise:g} would spend an epsilon of {spent:.3g}, not {wanted:g}: "
                "give one of the two"
            )
    if config.restores:  # what such a network draws is drawn through operators of scans
        options["preview"] = 0
    return options


# --------------------------------------------------------------------------------------------------------- the steps


class PrivateGradient:
    """Leaves noisy gradients in the weights of a network.

    Parameters
    ----------
    denoiser
        The network in training.
    weights
        Those of its weights that learn.
    learner
        The method of learning.
    config
        Options, after `private_options`.
    scans
        How many scans there are.
    """

    def __init__(
        self, denoiser: nn.Module, weights: Sequence[nn.Parameter], learner: Learner, config: TrainConfig, scans: int
    ) -> None:
        assert config.privacy_noise is not None
        assert config.privacy_delta is not None
        self.denoiser, self.weights, self.learner, self.config, self.scans = denoiser, weights, learner, config, scans
        self.mechanism = Mechanism(config.privacy_noise, config.batch / scans, config.privacy_delta)
        # what torch.func.vmap is known to go through; anything else takes scan by scan
        self._together = isinstance(denoiser.network, UNet) and not (config.checkpoint_activations or config.compile)

    def spent(self, images: int) -> dict[str, Any]:
        """Tell what has been spent after so many images, and with what."""
        config, steps = self.config, -(-images // self.config.batch)
        return {
            "epsilon": math.ceil(1e3 * self.mechanism.epsilon(steps)) / 1e3,
            "delta": self.mechanism.delta,
            "noise": self.mechanism.noise,
            "clip": config.privacy_clip,
            "rate": self.mechanism.rate,
            "steps": steps,
        }

    def step(self, seen: int, key: int, device: torch.device) -> float:
        """Leave the noisy gradient of a step after so many images; returns its norm.

        Parameters
        ----------
        seen
            Number of images, which names the step.
        key
            What is secret.
        device
            Where the network is.
        """
        taken = np.flatnonzero(rng_for(key, _SAMPLE, seen).random(self.scans) < self.mechanism.rate)
        before = {name: value.clone() for name, value in self.denoiser.named_buffers()}
        total = [torch.zeros_like(weight) for weight in self.weights]
        for batch in self.learner.of(taken, stream(key, _DRAWN, seen)) if len(taken) else ():
            for gradients in self._of_scans(batch, device):
                _add_clipped(total, gradients, self.config.privacy_clip)
        for name, value in self.denoiser.named_buffers():
            if not torch.equal(value, before[name]):
                raise ConfigError(
                    f"buffer {name!r} of the network changes with the scans that it sees, which is not private: take "
                    "layers that keep no statistics, such as GroupNorm"
                )
        rng, spread = rng_for(key, _NOISE, seen), self.mechanism.noise * self.config.privacy_clip
        squared = 0.0
        for weight, value in zip(self.weights, total, strict=True):
            noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), np.float32)).to(value)
            weight.grad = value.add_(noise, alpha=spread).div_(self.config.batch)
            squared += float(value.double().square().sum())
        return math.sqrt(squared)

    def _of_scans(self, batch: Batch, device: torch.device) -> Iterator[list[Tensor]]:
        """Gradients of the scans of a batch, some at a time: ``(scans, *weight)`` for each weight."""
        some = 1
        if self._together:
            fit = COPIED // sum(weight.numel() for weight in self.weights)
            some = max(1, min(-(-self.config.batch // self.config.accumulate), fit))
        for start in range(0, len(batch), some):
            part = batch[start : start + some].to(device)
            if self._together:
                denoiser, weights = _copied(self.denoiser, len(part))
            else:
                denoiser, weights = self.denoiser, list(self.weights)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*performance drop")  # of attention, a small part of the network
                loss = self.learner.loss(denoiser, part).sum()
                found = torch.autograd.grad(loss, weights, allow_unused=True)
            gradients = [torch.zeros_like(w) if one is None else one for one, w in zip(found, weights, strict=True)]
            yield gradients if self._together else [one[None] for one in gradients]


def _copied(denoiser: nn.Module, count: int) -> tuple[nn.Module, list[Tensor]]:
    """Give each of so many scans copies of the weights that learn, ``(count, *weight)``, in their order."""
    copies = {
        name: weight.detach().expand(count, *weight.shape).requires_grad_()
        for name, weight in denoiser.named_parameters()
        if weight.requires_grad
    }
    other = copy.copy(denoiser)  # which shares everything but what is replaced
    inside = {name.removeprefix("network."): value for name, value in copies.items() if name.startswith("network.")}
    network: Any = denoiser.network
    other._modules = denoiser._modules | {"network": _Copies(network, inside)}
    # what a denoiser has of its own are numbers that scale images
    own = {name: value.mT.reshape(-1, count, 1, 1, 1) for name, value in copies.items() if "." not in name}
    other._parameters = denoiser._parameters | own  # type: ignore[operator]
    return other, list(copies.values())


class _Copies(nn.Module):
    """A network that has other weights for each image.

    Parameters
    ----------
    network
        The network.
    weights
        Some of its weights by name, ``(batch, *weight)``.
    """

    def __init__(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.network, self.weights = network, weights

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply it."""

        def one(weights: dict[str, Tensor], *image: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(self.network, weights, tuple(value[None] for value in image))
            return result[0]

        results: Tensor = torch.func.vmap(one)(self.weights, *inputs)
        return results


def _add_clipped(total: Sequence[Tensor], gradients: Sequence[Tensor], clip: float) -> None:
    """Add gradients ``(scans, *weight)`` to their total, each brought to a norm of at most ``clip``."""
    squares = torch.stack([value.flatten(1).square().sum(1) for value in gradients])
    norm = squares.sum(0).sqrt()
    finite = torch.isfinite(norm)
    factor = torch.where(finite, (clip / (norm + 1e-6)).clamp(max=1.0), 0.0)
    for sum_, value in zip(total, gradients, strict=True):
        known = value if bool(finite.all()) else value.nan_to_num(0.0, 0.0, 0.0)
        sum_.add_(torch.tensordot(factor.to(known), known, 1))
