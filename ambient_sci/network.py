r"""The backbone: a small U-Net behind a pixel-unshuffle stem, which steers filters of its input.

.. math:: F(x, c) = u_0(x, c) + \sum_k u_k(x, c) \odot (f_k * x)

The stem folds each block of 4 × 4 pixels into channels before anything is computed and unfolds it at the end, which
multiplies the images per second on a CPU. The U-Net :math:`u` is ``diffusers.UNet2DModel``. Besides a residual
:math:`u_0` it predicts, pixel by pixel, how much of each of a few learned filters :math:`f_k` of the input to add: at
low noise a denoiser mostly smooths where the image is smooth, which a U-Net alone takes many thousands of images to
find out (kernel prediction, Bako et al. 2017, ACM Trans. Graph. 36:97).

Shapes: ``x`` is ``(batch, in_channels, height, width)``, labels ``(batch,)``, the result ``(batch, out_channels,
height, width)``. Any module of this signature can take its place.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["UNet", "as_complex", "as_real", "best_precision"]

Precision = Literal["auto", "bf16", "fp32"]


class UNet(nn.Module):
    """U-Net with residual blocks, attention at the coarsest level, and a noise-level embedding.

    Parameters
    ----------
    in_channels, out_channels
        Real channels in and out.
    widths
        Channels of each level, from fine to coarse; multiples of 32.
    blocks
        Residual blocks per level.
    patch
        Side of the blocks that the stem folds into channels.
    filters
        Number of steered filters.
    precision
        ``"bf16"`` runs this module, and nothing else, in bfloat16 autocast; the result is float32 either way.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (64, 64, 64),
        blocks: int = 1,
        patch: int = 4,
        filters: int = 16,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        body: Any = UNet2DModel  # untyped

        self.patch = patch
        self.precision = precision
        self.out_channels = out_channels
        self.filters = nn.Conv2d(in_channels, filters * out_channels, 7, padding=3, bias=False)
        self.multiple = patch * 2 ** (len(widths) - 1)
        self.body = body(
            in_channels=in_channels * patch**2,
            out_channels=(out_channels + filters) * patch**2,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=blocks,
            attention_head_dim=32,
            norm_num_groups=16,
        )
        nn.init.zeros_(self.body.conv_out.weight)
        nn.init.zeros_(self.body.conv_out.bias)

    def enable_gradient_checkpointing(self) -> None:
        """Keep the inputs of blocks in training, and compute what is between them again."""
        self.body.enable_gradient_checkpointing()

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """Apply to ``x`` (batch, in_channels, height, width) with one noise label per image, ``(batch,)``."""
        height, width = x.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            folded = functional.pixel_unshuffle(functional.pad(x, pad), self.patch)
            # the embedding of diffusers is made for steps of 0 to 1000; labels here span about -2 to 2
            steered = self.body(folded, 250.0 * (noise_label + 2.0)).sample
            filtered = self.filters(x).float()
        steered = functional.pixel_shuffle(steered.float(), self.patch)[..., :height, :width]
        residual, gates = steered[:, : self.out_channels], steered[:, self.out_channels :]
        filtered = filtered.unflatten(1, (gates.shape[1], self.out_channels))
        result: Tensor = residual + (gates[:, :, None] * filtered).sum(1)
        return result


def best_precision(device: torch.device | str) -> str:
    """``"bf16"`` where the device computes in bfloat16 natively, otherwise ``"fp32"``."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if kind == "cpu" and native() else "fp32"


def as_real(x: Tensor) -> Tensor:
    """Images as a network takes them: complex ``(batch, c, ...)`` becomes real ``(batch, 2 c, ...)``."""
    return torch.cat([x.real, x.imag], 1) if x.is_complex() else x


def as_complex(x: Tensor, like: Tensor) -> Tensor:
    """Inverse of `as_real` for images of the type of ``like``."""
    return torch.complex(*x.chunk(2, 1)) if like.is_complex() else x
