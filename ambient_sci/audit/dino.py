r"""Features of DINO and DINOv2, from a file of their weights: what audits of pictures compare images by.

A vision transformer cuts a picture into patches, puts a token of its own and a place before them, and applies blocks

.. math:: z \leftarrow z + \gamma_1 \odot \mathrm{attention}(\mathrm{norm}_1(z)), \qquad
          z \leftarrow z + \gamma_2 \odot \mathrm{mlp}(\mathrm{norm}_2(z))

with :math:`\gamma = 1` in DINO (Caron et al. 2021, arXiv:2104.14294) and learned in DINOv2 (Oquab et al. 2024,
arXiv:2304.07193). The features are the first token at the end, normalised. The authors of Ambient Diffusion
look for copies by their correlations (Daras et al. 2023, arXiv:2305.19256).

Read are the weights that the authors publish (``dino_deitsmall16_pretrain.pth``, ``dinov2_vits14_pretrain.pth`` and
their larger relatives, with register tokens, too), as PyTorch or safetensors files, and folders in which transformers
saved a ``ViTModel``, ``Dinov2Model`` or ``Dinov2WithRegistersModel``. Nothing is downloaded, and of a pickle nothing
but tensors is read.

**What the network sees.** It knows colour photographs. Of complex images it is shown the magnitude; one channel is
shown in red, green and blue alike. Values from 0 to 1, in the units in which priors know images, are black to white;
what is outside is cut off. Then pictures are brought to 224 pixels on the shorter side (bicubic, antialiased), the
longer one to a whole number of patches, and normalised by the mean and standard deviation of ImageNet's pictures.
Embeddings of places are brought to other numbers of patches by bicubic interpolation, with register tokens antialiased,
as transformers does.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_sci.errors import DataError, NotFoundError

__all__ = ["Dino", "load_dino"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # pixels of the shorter side: what DINO was made for, and DINOv2 is judged at
HEAD = 64  # channels of a head of attention in all published models
EPSILON = 1e-6
UNUSED = re.compile(r"mask_token|(head|pooler)\..*")
WANTED = "weights of DINO or DINOv2 (safetensors, pth), or a folder that transformers saved"

# names that transformers gives, to those of the authors; queries, keys and values are put together afterwards
RENAMED = {
    r"^(?:vit|dinov2|dinov2_with_registers)\.(?=embeddings|encoder|layernorm)": "",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.": "",
    r"^layernorm\.": "norm.",
    r"^encoder\.layer\.": "blocks.",
    r"\.attention\.attention\.(query|key|value)\.": r".attn.\1.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"^(blocks\.\d+)\.intermediate\.dense\.": r"\1.mlp.fc1.",
    r"^(blocks\.\d+)\.output\.dense\.": r"\1.mlp.fc2.",
    r"\.layer_scale(\d)\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.w12.",
    r"\.mlp\.weights_out\.": ".mlp.w3.",
}


class Dino(nn.Module):
    """A vision transformer that makes features of images.

    Parameters
    ----------
    weights
        Tensors by the names that the authors give them.
    heads
        Heads of attention; by default those of 64 channels.
    epsilon
        What normalisations add to variances.
    source
        Where the weights are from, for records.

    Raises
    ------
    DataError
        If weights are missing, do not fit together, or are of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, weights: dict[str, Tensor], heads: int | None = None, epsilon: float = EPSILON, source: str = ""
    ) -> None:
        super().__init__()
        self.source, self.epsilon = source, epsilon
        self._kept = {name: name.replace(".", "/") for name in weights if not UNUSED.fullmatch(name)}
        for name, kept in self._kept.items():
            self.register_buffer(kept, weights[name].detach().float())
        _, _, self.patch, _ = self._of("patch_embed.proj.weight", 4).shape
        self.width = self._of("cls_token", 3).shape[-1]
        self.heads = heads or self.width // HEAD
        self.depth = 1 + max((int(name.split(".")[1]) for name in self._kept if name.startswith("blocks.")), default=-1)
        self._check()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``(n, channel, height, width)``, real or complex, in about unit range: ``(n, features)``.

        Raises
        ------
        DataError
            If images are volumes, or of other than one or three channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                "features of DINO are those of pictures of one or three channels, (n, 1 or 3, height, width), got "
                f"{tuple(images.shape)}"
            )
        if self.mean.device != images.device:
            self.to(images.device)
        tokens = self._tokens(self._picture(images))
        for k in range(self.depth):
            tokens = tokens + self._scaled(f"blocks.{k}.ls1", self._attention(f"blocks.{k}", tokens))
            tokens = tokens + self._scaled(f"blocks.{k}.ls2", self._mlp(f"blocks.{k}", tokens))
        return self._norm("norm", tokens[:, 0])

    def _picture(self, images: Tensor) -> Tensor:
        grey = (images.abs() if images.is_complex() else images).float().clamp(0, 1)
        factor = SIDE / min(grey.shape[2:])
        height, width = (max(1, round(factor * size / self.patch)) * self.patch for size in grey.shape[2:])
        resized = functional.interpolate(grey, (height, width), mode="bicubic", antialias=True)
        return (resized.clamp(0, 1).expand(-1, 3, -1, -1) - self.mean) / self.std

    def _tokens(self, pictures: Tensor) -> Tensor:
        """Tokens of patches in their places, after those that are the network's own."""
        patches = functional.conv2d(
            pictures, self._of("patch_embed.proj.weight"), self._of("patch_embed.proj.bias"), stride=self.patch
        )
        places, registers = self._of("pos_embed"), "register_tokens" in self._kept
        side = math.isqrt(places.shape[1] - 1)
        if patches.shape[2:] == (side, side):
            grid = places[:, 1:]
        else:
            grid = places[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            size = (patches.shape[2], patches.shape[3])
            grid = functional.interpolate(grid, size, mode="bicubic", antialias=registers).flatten(2).mT
        own = [self._of("cls_token") + places[:, :1]]
        if registers:
            own.append(self._of("register_tokens"))
        return torch.cat([*(token.expand(len(pictures), -1, -1) for token in own), patches.flatten(2).mT + grid], 1)

    def _attention(self, block: str, tokens: Tensor) -> Tensor:
        mixed = self._linear(f"{block}.attn.qkv", self._norm(f"{block}.norm1", tokens))
        q, k, v = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return self._linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))

    def _mlp(self, block: str, tokens: Tensor) -> Tensor:
        x = self._norm(f"{block}.norm2", tokens)
        if f"{block}.mlp.w12.weight" in self._kept:  # of the largest DINOv2
            gate, value = self._linear(f"{block}.mlp.w12", x).chunk(2, -1)
            return self._linear(f"{block}.mlp.w3", functional.silu(gate) * value)
        return self._linear(f"{block}.mlp.fc2", functional.gelu(self._linear(f"{block}.mlp.fc1", x)))

    def _of(self, name: str, axes: int | None = None) -> Tensor:
        if name not in self._kept:
            raise DataError(f"{self.source or 'what was given'} is not {WANTED}: it lacks {name}")
        found: Tensor = self.get_buffer(self._kept[name])
        if axes is not None and found.ndim != axes:
            raise DataError(f"{self.source}: {name} must have {axes} axes, got shape {tuple(found.shape)}")
        return found

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self._of(f"{name}.weight"), self._of(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._of(f"{name}.weight"), self._of(f"{name}.bias")
        return functional.layer_norm(x, weight.shape, weight, bias, self.epsilon)

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return x * self._of(f"{name}.gamma") if f"{name}.gamma" in self._kept else x

    def _check(self) -> None:
        """Refuse weights that do not fit together, or that this network has no place for, by their shapes."""
        width, places = self.width, self._of("pos_embed", 3).shape[1]
        layers: dict[str, tuple[int, ...]] = {
            "norm.weight": (width,), "norm.bias": (width,), "cls_token": (1, 1, width), "pos_embed": (1, places, width),
            "patch_embed.proj.weight": (width, 3, self.patch, self.patch), "patch_embed.proj.bias": (width,),
        }  # fmt: skip
        if "register_tokens" in self._kept:
            layers["register_tokens"] = (1, self._of("register_tokens", 3).shape[1], width)
        for k in range(self.depth):
            first, second, factor = (
                ("w12", "w3", 2) if f"blocks.{k}.mlp.w12.weight" in self._kept else ("fc1", "fc2", 1)
            )
            inside = self._of(f"blocks.{k}.mlp.{second}.weight", 2).shape[1]
            linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
            linear |= {f"mlp.{first}": (factor * inside, width), f"mlp.{second}": (width, inside)}
            own: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linear.items()}
            own |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
            own |= {f"{name}.{part}": (width,) for name in ("norm1", "norm2") for part in ("weight", "bias")}
            own |= {f"{name}.gamma": (width,) for name in ("ls1", "ls2") if f"blocks.{k}.{name}.gamma" in self._kept}
            layers |= {f"blocks.{k}.{name}": shape for name, shape in own.items()}
        for name, shape in layers.items():
            if (found := tuple(self._of(name).shape)) != shape:
                raise DataError(f"{self.source}: {name} must be of shape {shape}, got {found}")
        if unknown := sorted(self._kept.keys() - layers.keys()):
            raise DataError(f"{self.source} is not {WANTED}: {unknown[0]} has no place in these networks")
        if not self.depth or width % self.heads or math.isqrt(places - 1) ** 2 != places - 1:
            raise DataError(
                f"{self.source} is not {WANTED}: {self.depth} blocks of {width} channels, {self.heads} heads and "
                f"{places} places are none"
            )


def load_dino(path: Path | str) -> Dino:
    """Read weights of DINO or DINOv2.

    Parameters
    ----------
    path
        A file of weights (``.safetensors``, or ``.pth`` as PyTorch wrote it), or a folder that transformers saved.

    Returns
    -------
    Dino
        A function from images ``(n, channel, height, width)`` to features ``(n, d)``, for `audit_prior`.

    Raises
    ------
    NotFoundError
        If there is nothing, or a folder has no weights.
    DataError
        If it holds something else than such weights.

    Examples
    --------
    >>> features = load_dino("dinov2_vits14_pretrain.pth")  # doctest: +SKIP
    >>> audit_prior("run", "scans.zarr", "held-out.zarr", features=features)  # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"no file at {path}: give {WANTED}")
    heads, epsilon = None, EPSILON
    file = path
    if path.is_dir():
        file = path / "model.safetensors"
        if not file.exists():
            raise NotFoundError(f"no model.safetensors in {path}: give {WANTED}")
        heads, epsilon = _described(path / "config.json")
    weights = {_renamed(name): value for name, value in _tensors(file).items()}
    for name in [name for name in weights if ".attn.query." in name]:
        parts = [weights.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        if any(part is None for part in parts):
            raise DataError(f"{path} is not {WANTED}: it lacks keys or values beside {name}")
        weights[name.replace("query", "qkv")] = torch.cat([part for part in parts if part is not None])
    return Dino(weights, heads, epsilon, str(path)).eval().requires_grad_(False)


def _described(config: Path) -> tuple[int, float]:
    """Read from the configuration of a folder what weights do not say."""
    try:
        found = json.loads(config.read_text())
        act, heads, epsilon = found["hidden_act"], int(found["num_attention_heads"]), float(found["layer_norm_eps"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{config} does not say what the network is like: it has to be that of transformers") from None
    if act != "gelu":
        raise DataError(f"{config.parent} is not {WANTED}: its activation is {act}, not gelu")
    return heads, epsilon


def _tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; nothing that it may hold besides is run or made."""
    from safetensors.torch import load_file

    found: Any
    try:
        if file.suffix == ".safetensors":
            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of safetensors, of the system, or whatever bytes that are no pickle lead to
        raise DataError(f"{file} cannot be read as {WANTED}: {_first_line(error)}") from None
    if isinstance(found, dict) and isinstance(found.get("teacher"), dict):  # a checkpoint of DINO's training
        found = found["teacher"]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{file} is not {WANTED}: it holds something else than tensors by name")
    return {str(name): value for name, value in found.items()}


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "it holds more than tensors" if "Weights only load failed" in text else text


def _renamed(name: str) -> str:
    """Name that the authors give to a tensor."""
    name = re.sub(r"^(module\.)?(backbone\.)?", "", name)
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name
