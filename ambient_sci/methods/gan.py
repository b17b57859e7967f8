r"""AmbientGAN: images whose measurements cannot be told from those of the scans.

A generator :math:`G` makes an image from white noise :math:`z`, which is measured as a scan was, with its operator and
noise of its level. A discriminator :math:`T` is shown scans and such measurements,

.. math:: \min_G \max_T \; E[\log T(y, A)] + E[\log(1 - T(A G(z) + \sigma_y e, A))],

and where measurements determine the distribution of images, the best generator draws from it (Bora, Price and Dimakis
2018, ICLR). Both kinds enter as images, :math:`A^H y` beside the operator's response :math:`A^H A 1`, so that an
ordinary convolutional network judges k-space, pixels and projections alike. The generator maximises
:math:`\log T` of its own (non-saturating loss), and the gradient of :math:`T` is penalised at scans (R1, Mescheder et
al. 2018, arXiv:1801.04406).

What can sample and reconstruct is a denoiser. So one is trained beside it in the ordinary way, on images drawn anew for
every batch from the averaged generator. Over the second half of the training the generator's rate falls to nothing, so
that the denoiser ends with images of one distribution.
"""

import copy
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_sci.config import TrainConfig
from ambient_sci.datasets.loader import batches
from ambient_sci.datasets.store import Store
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.methods.base import ImageLearner, turn
from ambient_sci.network import as_complex, as_real
from ambient_sci.prior import Prior, resolve_device
from ambient_sci.seeding import stream

__all__ = ["AmbientGANLearner", "Discriminator", "Generator"]

LATENT = 64
BATCH = 32  # at least: a batch that does for a denoiser is too small to compare distributions
RATE = 1e-3
PENALTY, PENALISED_EVERY = 1.0, 4  # weight of R1, and steps between its gradients
EMA = 8_000  # half-life of the averaged generator, in images
COARSEST = 4  # pixels across the image where it begins


class Generator(nn.Module):
    """From ``(batch, LATENT)`` to images in real channels, ``(batch, channels, height, width)``.

    Parameters
    ----------
    channels
        Real channels of an image.
    shape
        Height and width.
    width
        Features at full resolution; twice as many at each level below, at most eight times.
    """

    def __init__(self, channels: int, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        widths = _widths(shape, width)
        self.shape = shape
        self.coarse = tuple(-(-size // 2 ** (len(widths) - 1)) for size in shape)
        self.first = nn.Linear(LATENT, widths[-1] * math.prod(self.coarse))
        steps = [*zip(widths[:0:-1], widths[-2::-1], strict=True)]
        self.ups = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in steps)
        self.mixes = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1) for _, b in steps)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Make images."""
        x = _unit(self.first(_unit(z)).unflatten(1, (-1, *self.coarse)))
        for up, mix in zip(self.ups, self.mixes, strict=True):
            x = functional.interpolate(x, scale_factor=2.0)
            for layer in (up, mix):
                x = _unit(functional.leaky_relu(layer(x), 0.2))
        height, width = self.shape
        image: Tensor = self.last(x)[..., :height, :width].float()
        return image


class Discriminator(nn.Module):
    """From images in real channels to a logit each, ``(batch,)``.

    Parameters
    ----------
    channels, shape, width
        As in `Generator`.
    """

    def __init__(self, channels: int, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        widths = _widths(shape, width)
        coarse = math.prod(-(-size // 2 ** (len(widths) - 1)) for size in shape)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        steps = [*itertools.pairwise(widths)]
        self.mixes = nn.ModuleList(nn.Conv2d(a, a, 3, padding=1) for a, _ in steps)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in steps)
        self.skips = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in steps)
        self.last = nn.Linear((widths[-1] + 1) * coarse, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Judge images."""
        x = functional.leaky_relu(self.first(x), 0.2)
        for mix, down, skip in zip(self.mixes, self.downs, self.skips, strict=True):
            pooled = functional.avg_pool2d(x, 2, ceil_mode=True)
            x = functional.leaky_relu(mix(x), 0.2)
            x = functional.avg_pool2d(functional.leaky_relu(down(x), 0.2), 2, ceil_mode=True)
            x = (x + skip(pooled)) * 0.5**0.5
        # how much the batch varies: a generator that makes few images gives itself away (Karras et al. 2018)
        spread = (x.float().var(0, correction=0) + 1e-8).sqrt().mean().to(x.dtype).expand(len(x), 1, *x.shape[2:])
        logit: Tensor = self.last(torch.cat([x, spread], 1).flatten(1))[:, 0].float()
        return logit


class AmbientGANLearner(ImageLearner):
    """Trains generator and discriminator on scans, and a denoiser on what the generator makes."""

    def __init__(self, config: TrainConfig, store: Store, progress: bool) -> None:
        super().__init__(config, store, progress)
        channels, *shape = store.image_shape
        if len(shape) != 2:
            raise ConfigError(f"method 'ambient-gan' makes 2-D images, got shape {store.image_shape}")
        self.device = resolve_device(config.device)
        self.batch = max(BATCH, config.batch)
        self.sigma_data = float(config.sigma_data or 1)  # resolved before there is a learner
        real = channels * (2 if store.is_complex else 1)
        width = max(config.widths[0] // 2, 8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = Generator(real, tuple(shape), width).to(self.device)
            self.discriminator = Discriminator(2 * real, tuple(shape), width).to(self.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), RATE, betas=(0.0, 0.99))
            for name, network in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        self.steps = 0
        self._scans: Iterator[Measurement] | None = None

    def first_images(self) -> Tensor:
        """Keep none: images are made when they are needed."""
        return torch.empty(0)

    def prepare(self, seen: int, prior: Prior) -> None:
        """Let generator and discriminator see as many scans as the denoiser saw images."""
        super().prepare(seen, prior)
        if self._scans is None:
            self._scans = batches(self.store, self.batch, self.config.seed, start=self.steps * self.batch)
        while self.steps * self.batch <= seen:
            self._step(next(self._scans).to(self.device))
            self.steps += 1

    def pick(self, scans: Tensor, generator: torch.Generator) -> Tensor:
        """Make as many images as there are scans."""
        z = torch.randn(len(scans), LATENT, generator=generator)
        with torch.no_grad():
            return self._images(self.average, z).cpu()

    def _images(self, network: nn.Module, z: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            images = self.sigma_data * network(z.to(self.device))
        return as_complex(images, torch.empty(0, dtype=torch.complex64 if self.store.is_complex else torch.float32))

    def _judge(self, seen: Tensor, response: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits: Tensor = self.discriminator(torch.cat([as_real(seen) / self.sigma_data, as_real(response)], 1))
        return logits

    def _step(self, m: Measurement) -> None:
        """One step of the discriminator and one of the generator, on the same scans and images."""
        seen = self.steps * self.batch
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - seen / self.config.images))
        random = stream(self.config.seed, 0x6C, self.steps)
        A, softplus = m.operator, functional.softplus
        real = A.adjoint(turn(m.y, random))
        image = turn(self._images(self.generator, torch.randn(len(m), LATENT, generator=random)), random)
        fake = A.adjoint(A(image) + m.noise * A.rows * randn_like(m.y, random))
        response = A.gram(torch.ones_like(real))

        penalised = self.steps % PENALISED_EVERY == 0
        real.requires_grad_(penalised)
        logits = self._judge(real, response)
        loss = (softplus(-logits) + softplus(self._judge(fake.detach(), response))).mean()
        if penalised:
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            size = (self.sigma_data * gradient).abs().square().flatten(1).sum(1).mean()
            loss = loss + 0.5 * PENALTY * PENALISED_EVERY * size
        self._minimise("discriminator", loss)
        self.discriminator.requires_grad_(False)
        self._minimise("generator", softplus(-self._judge(fake, response)).mean())
        self.discriminator.requires_grad_(True)
        keep = 0.5 ** (self.batch / min(EMA, max(seen / 4, 1)))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - keep)

    def _minimise(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Networks, their optimisers, and the number of steps."""
        tensors = {"steps": torch.tensor(self.steps)}
        for name, network in self._networks().items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for number, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{number}.{key}": value for key, value in values.items()}
        return tensors

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up networks and optimisers of a checkpoint."""
        self.steps = int(state["steps"])
        for name, network in self._networks().items():
            network.load_state_dict(_part(state, f"{name}."))
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(state, f"optimizer.{name}.").items():
                number, field = key.split(".")
                moments.setdefault(int(number), {})[field] = value
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _widths(shape: tuple[int, ...], width: int) -> list[int]:
    """Features of each level, from full resolution to a few pixels across the image."""
    levels = max(1, round(math.log2(max(shape) / COARSEST)))
    return [width * min(2**level, 8) for level in range(levels + 1)]


def _unit(x: Tensor) -> Tensor:
    """Give the features of each place unit mean square, which keeps a generator's amplitude in bounds."""
    return x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-8).to(x.dtype)
