r"""A diffusion network of diffusers as a denoiser D(x, s).

Such a network :math:`F` was trained on images :math:`z_0` in [-1, 1], at discrete times with
:math:`z_t = \sqrt{\bar\alpha_t} z_0 + \sqrt{1 - \bar\alpha_t}\, n` (Ho et al. 2020, arXiv:2006.11239). That is
:math:`z = z_0 + s n` times :math:`a = (1 + s^2)^{-1/2} = \sqrt{\bar\alpha_t}` with
:math:`s_t = \sqrt{1 / \bar\alpha_t - 1}`, so that

.. math:: E[z_0 \mid z] = z - s F \;(\text{epsilon}), \qquad a^2 z - s a F \;(\text{v\_prediction}), \qquad F
          \;(\text{sample}), \qquad F = F(a z, t(s)).

:math:`t(s)` is the inverse of :math:`s_t`: exact at the network's own levels, linear in :math:`\ln s` between them (the
embedding of time is continuous), and the first or last time beyond them. :math:`a` is that of ``s`` in any case.

**Values.** Images ``x`` of this package, in normalised units, become :math:`z = g x + o`, so that a given range maps
to [-1, 1]; noise of level ``s`` becomes :math:`g s`.

**Channels.** ``c`` real channels of data (two for complex images of one) become the ``m`` of the network by a matrix
``E`` ``(m, c)`` with :math:`E^T E = k I`: first :math:`E z`, last :math:`E^T / k`, both folded into the first and last
convolution.

- ``c = m``: ``E = I``.
- ``c = 1``, grey images: copied to all channels, and the mean of what comes out, ``k = m``. The mean of ``m`` channels
  with independent noise has :math:`\sqrt m` times less noise than each of them, so the network is told
  :math:`\sqrt m\, s`. Where it treats luminance and colour separately, this is exactly its denoiser of luminance.
- ``1 < c < m``, such as complex images in RGB: the first channels; the others are zero.
- ``c > m = 1``: each real channel by itself, as an image of its own.

A learned variance, the second half of the outputs, is left out. ``x`` is ``(batch, c, height, width)``; sizes that the
levels of the U-Net do not divide are continued by reflection.

**Ambient networks** (`PretrainedAmbientDenoiser`) also see the adjoint and the operator's response, through a
convolution beside the first, and add :math:`d\, G`, from one beside the last: at low noise :math:`F` can change little,
and what was not measured has the scale of the data, :math:`d`. Both convolutions begin with zeros.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_sci.denoise import Denoiser, per_image
from ambient_sci.errors import CheckpointError
from ambient_sci.network import as_complex, as_real
from ambient_sci.posterior.ambient import AmbientDenoiser

__all__ = ["Architecture", "PretrainedAmbientDenoiser", "PretrainedDenoiser", "PretrainedNetwork", "fold_channels"]

Prediction = Literal["epsilon", "v_prediction", "sample"]
MODELS = ("UNet2DModel", "UNet2DConditionModel")
# in time steps: a level as close as this to one of the network's own, which rounding alone can be, is that level
SNAP = 1e-3


@dataclass(frozen=True)
class Architecture:
    """Everything about a pretrained network but its weights, as JSON can say it.

    Parameters
    ----------
    model
        ``UNet2DModel`` or ``UNet2DConditionModel``.
    config
        Options of that class, with the channels of the data in and out.
    prediction
        What the network was trained to predict.
    levels
        Number of its noise levels.
    prompt
        Shape of its text embedding, ``(tokens, features)``.
    gain, offset
        From normalised units to the network's values.
    noise
        Noise level that it is told, in units of that of its first channel: the root of ``k``.
    split
        Every real channel is an image of its own.
    """

    model: str
    config: dict[str, Any]
    prediction: Prediction
    levels: int
    prompt: tuple[int, ...] | None = None
    gain: float = 1.0
    offset: float = 0.0
    noise: float = 1.0
    split: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give what the header of a run holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Architecture":
        """Read what `to_json` gave."""
        if values.get("model") not in MODELS:
            raise CheckpointError(f"a network must be one of {', '.join(MODELS)}, got {values.get('model')!r}")
        prompt = values.get("prompt")
        return cls(**{**values, "prompt": None if prompt is None else tuple(prompt)})

    def body(self) -> Any:
        """Build the network, untrained."""
        import diffusers

        return getattr(diffusers, self.model).from_config(self.config)


class PretrainedNetwork(nn.Module):
    """A U-Net of diffusers with what it takes to call it: levels, prediction, values, channels, text embedding.

    Parameters
    ----------
    architecture
        What it is.
    body
        The U-Net, if there is one already.
    extra
        Real channels that an ambient network sees beside the image; 0 for an ordinary one.
    precision
        ``"bf16"`` runs the U-Net, and nothing else, in bfloat16 autocast.
    """

    log_levels: Tensor
    prompt: Tensor | None

    def __init__(self, architecture: Architecture, body: Any = None, extra: int = 0, precision: str = "fp32") -> None:
        super().__init__()
        self.architecture, self.precision, self.extra = architecture, precision, extra
        self.body = (architecture.body() if body is None else body).train()  # diffusers reads for use
        if extra:
            self.body.conv_in = _Beside(self.body.conv_in, extra=extra)
            self.body.conv_out = _Beside(self.body.conv_out)
        self.multiple = 2 ** (len(architecture.config["block_out_channels"]) - 1)
        self.register_buffer("log_levels", torch.zeros(architecture.levels))
        shape = architecture.prompt
        self.register_buffer("prompt", None if shape is None else torch.zeros(*shape))

    def enable_gradient_checkpointing(self) -> None:
        """Keep the inputs of blocks in training, and compute what is between them again."""
        self.body.enable_gradient_checkpointing()

    def time(self, sigma: Tensor) -> Tensor:
        """Time steps ``(batch,)`` of noise levels in the network's own units, ``(batch,)``."""
        wanted = torch.log(sigma.clamp_min(torch.finfo(sigma.dtype).tiny))
        grid = self.log_levels
        after = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
        low, high = grid[after - 1], grid[after]
        step = (after - 1 + (wanted - low) / (high - low)).clamp(0, len(grid) - 1)
        nearest = step.round()
        return torch.where((step - nearest).abs() < SNAP, nearest, step)

    def forward(self, x: Tensor, sigma: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Denoise real channels ``(batch, c, height, width)`` at levels ``(batch,)``, in normalised units.

        ``seen`` ``(batch, extra, height, width)`` is what an ambient network is shown besides. Returns the denoised
        image, and of such a network what it adds, in units of the data's scale.
        """
        a, count = self.architecture, x.shape[1]
        if a.split:
            x, sigma = x.flatten(0, 1)[:, None], sigma.repeat_interleave(count)
            seen = None if seen is None else seen.repeat_interleave(count, 0)
        s = a.noise * a.gain * sigma
        level = per_image(s, x)
        scale = torch.rsqrt(1 + level**2)
        z = a.gain * x + a.offset
        out = self._predict(scale * z if seen is None else torch.cat([scale * z, seen], 1), self.time(s))
        out, added = (out, None) if seen is None else out.chunk(2, 1)
        if a.prediction == "epsilon":
            image = z - level * out
        elif a.prediction == "v_prediction":
            image = scale**2 * z - level * scale * out
        else:
            image = out
        image = (image - a.offset) / a.gain
        if a.split:
            image = image.unflatten(0, (-1, count)).squeeze(2)
            added = None if added is None else added.unflatten(0, (-1, count)).squeeze(2)
        return image, added

    def _predict(self, x: Tensor, time: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="reflect")
        given: dict[str, Any] = {}
        if self.prompt is not None:
            given["encoder_hidden_states"] = self.prompt.expand(len(x), -1, -1)
        if self.body.config.get("time_embedding_type") == "learned":
            time = time.round().long()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            out: Tensor = self.body(x, time, **given).sample
        return out.float()[..., :height, :width]


class _Beside(nn.Module):
    """A convolution, and one of zeros beside it: for further inputs, which are added, or for further outputs."""

    def __init__(self, main: nn.Conv2d, extra: int = 0) -> None:
        super().__init__()
        self.main, self.inputs = main, main.in_channels
        self.widens = extra > 0
        kernel: Any = main.kernel_size
        padding: Any = main.padding
        self.beside = nn.Conv2d(extra or main.in_channels, main.out_channels, kernel, padding=padding)
        self.beside.requires_grad_(main.weight.requires_grad)
        nn.init.zeros_(self.beside.weight)
        assert self.beside.bias is not None
        nn.init.zeros_(self.beside.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.widens:
            widened: Tensor = self.main(x[:, : self.inputs]) + self.beside(x[:, self.inputs :])
            return widened
        return torch.cat([self.main(x), self.beside(x)], 1)


class PretrainedDenoiser(Denoiser):
    """A pretrained network as a denoiser of images.

    Parameters
    ----------
    network
        The network.
    sigma_data
        Standard deviation of the images per real component: what training weighs its losses with.
    """

    def __init__(self, network: PretrainedNetwork, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = float(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        image, _ = self.network(as_real(x), sigma)
        return as_complex(image, x)


class PretrainedAmbientDenoiser(AmbientDenoiser):
    """A pretrained network that restores measurements, beginning as a denoiser of what was measured of the image."""

    network: PretrainedNetwork

    def fill_in(self, x: Tensor, adjoint: Tensor, response: Tensor, sigma: Tensor) -> Tensor:
        """Denoise the current image, and add what the conditioning says."""
        scale = torch.rsqrt(per_image(sigma, adjoint) ** 2 + self.sigma_data**2)
        seen = torch.cat([as_real(adjoint * scale), as_real(response)], 1)
        image, added = self.network(as_real(x), sigma, seen)
        return as_complex(image + self.sigma_data * added, x)


def fold_channels(body: Any, count: int) -> float:
    """Make a U-Net take and give ``count`` real channels, in place; returns the root of ``k`` (see the module).

    Its learned variance goes too.
    """
    first, last = body.conv_in, body.conv_out
    own = first.in_channels
    mean = last.weight.detach()[:own], last.bias.detach()[:own]
    k = own if count == 1 else 1
    E = torch.ones(own, 1) if count == 1 else torch.eye(own, count)
    E = E.to(first.weight)
    body.conv_in = _convolution(first, torch.einsum("omyx,mc->ocyx", first.weight.detach(), E), first.bias.detach())
    weight = torch.einsum("mc,miyx->ciyx", E / k, mean[0])
    body.conv_out = _convolution(last, weight, (E / k).T @ mean[1])
    body.register_to_config(in_channels=count, out_channels=count)
    return math.sqrt(k)


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    kernel: Any = like.kernel_size
    padding: Any = like.padding
    made = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, padding=padding)
    with torch.no_grad():
        made.weight.copy_(weight)
        assert made.bias is not None
        made.bias.copy_(bias)
    return made
