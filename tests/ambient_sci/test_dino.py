"""Features of DINO and DINOv2: the transformer against transformers' and PyTorch's own, files, and what is refused."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from ambient_sci import cli
from ambient_sci.audit import audit_prior, load_dino
from ambient_sci.audit.dino import MEAN, STD
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import simulate
from ambient_sci.denoise import GaussianMixtureDenoiser
from ambient_sci.errors import DataError, NotFoundError
from ambient_sci.prior import Prior

WIDTH, HEADS, DEPTH, PATCH = 128, 2, 2, 32  # heads of 64 channels, as in all that are published
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "patch_size": PATCH}


def stirred(module: Any) -> Any:
    """Give a module weights of which none is zero or one, always the same."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return module.eval()


def pictures(count: int = 3, height: int = 20, width: int = 20, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def shown(images: Tensor) -> Tensor:
    """What a network of photographs is given of grey images, written out."""
    height, width = (224 if images.shape[2] == images.shape[3] else size for size in (224, 320))
    resized = nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return torch.cat([(resized - m) / s for m, s in zip(MEAN, STD, strict=True)], 1)


MODELS = {
    "dino": lambda: ViTModel(ViTConfig(**SMALL, intermediate_size=256, image_size=224), add_pooling_layer=True),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=288)),
    "swiglu": lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=224, use_swiglu_ffn=True)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, image_size=224)),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_transformers_has_it(name: str, tmp_path: Path) -> None:
    """Same first token, from the folder that transformers saved; places are interpolated where they must be."""
    model = stirred(MODELS[name]())
    model.save_pretrained(tmp_path)
    network = load_dino(tmp_path)
    for size in ((20, 20), (14, 20)):
        images = pictures(3, *size)
        more = {} if name != "dino" else {"interpolate_pos_encoding": True}
        with torch.no_grad():
            expected = model(shown(images), **more).last_hidden_state[:, 0]
        assert expected.std(0).min() > 1e-3, "all images look alike: this tests nothing"
        torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)


def published(scales: bool) -> tuple[dict[str, Tensor], nn.Module]:
    """Weights by the names that the authors give, and PyTorch's own encoder with the same ones."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 256, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    encoder = stirred(nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH, eps=1e-6), enable_nested_tensor=False))
    of = {
        "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    weights = {
        "cls_token": torch.randn(1, 1, WIDTH, generator=generator),
        "pos_embed": torch.randn(1, 50, WIDTH, generator=generator),
        "mask_token": torch.zeros(1, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, PATCH, PATCH, generator=generator) / (PATCH * 3**0.5),
        "patch_embed.proj.bias": torch.randn(WIDTH, generator=generator),
    }
    for name, value in encoder.state_dict().items():
        inside = name.removeprefix("layers.")
        for theirs, ours in of.items():
            inside = inside.replace(theirs, ours, 1) if f".{theirs}" in f".{inside}" else inside
        weights[name if name.startswith("norm.") else f"blocks.{inside}"] = value.clone()
    if scales:  # learned scales of DINOv2 are a part of the last linear maps
        for k in range(DEPTH):
            for number, last in ((1, "attn.proj"), (2, "mlp.fc2")):
                scale = 0.5 + torch.rand(WIDTH, generator=generator)
                weights[f"blocks.{k}.ls{number}.gamma"] = scale
                weights[f"blocks.{k}.{last}.weight"] = weights[f"blocks.{k}.{last}.weight"] / scale[:, None]
                weights[f"blocks.{k}.{last}.bias"] = weights[f"blocks.{k}.{last}.bias"] / scale
    return weights, encoder


@pytest.mark.parametrize("scales", [False, True])
def test_published_names_as_pytorch_computes_them(scales: bool, tmp_path: Path) -> None:
    """The authors' names, as the files of their releases have them, in PyTorch's and in safetensors' format."""
    weights, encoder = published(scales)
    torch.save(weights, tmp_path / "dinov2_vits14_pretrain.pth")
    save_file(weights, tmp_path / "dino.safetensors")
    torch.save({"teacher": {f"backbone.{name}": value for name, value in weights.items()}}, tmp_path / "teacher.pth")
    x = shown(pictures())
    patches = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    tokens = patches @ weights["patch_embed.proj.weight"].flatten(1).mT + weights["patch_embed.proj.bias"]
    tokens = torch.cat([weights["cls_token"].expand(3, 1, -1), tokens], 1) + weights["pos_embed"]
    with torch.no_grad():
        expected = encoder(tokens)[:, 0]
    for file in tmp_path.iterdir():
        torch.testing.assert_close(load_dino(file)(pictures()), expected, rtol=1e-3, atol=1e-4)


def test_what_the_network_is_shown(tmp_path: Path) -> None:
    """Magnitudes, the same in three channels, cut off at 0 and 1."""
    torch.save(published(True)[0], tmp_path / "dino.pth")
    network = load_dino(tmp_path / "dino.pth")
    grey = pictures()
    turned = torch.polar(grey, torch.linspace(0, 6, 20).expand_as(grey))
    torch.testing.assert_close(network(turned), network(grey), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(grey.expand(-1, 3, -1, -1)), network(grey))
    torch.testing.assert_close(network(3 * grey - 1), network((3 * grey - 1).clamp(0, 1)))
    assert not torch.allclose(network(0.5 * grey), network(grey), atol=1e-2)
    for shape in ((2, 2, 20, 20), (2, 1, 8, 8, 8)):
        with pytest.raises(DataError, match="pictures of one or three channels"):
            network(torch.zeros(shape))


class Hostile:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Each is refused in one line that names it, and nothing that it holds is run."""
    good = published(True)[0]

    def refused(name: str, contents: Any, message: str, kind: type[Exception] = DataError) -> None:
        path = tmp_path / name
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        elif contents is not None:
            torch.save(contents, path)
        with pytest.raises(kind, match=message) as error:
            load_dino(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def without(name: str) -> dict[str, Tensor]:
        return {key: value for key, value in good.items() if key != name}

    refused("nothing.pth", None, "no file at .*: give weights of DINO", NotFoundError)
    refused("hostile.pth", {"cls_token": Hostile(tmp_path / "ran")}, "it holds more than tensors$")
    assert not (tmp_path / "ran").exists()
    refused("text.pth", b"this is no file of weights", "cannot be read as weights of DINO")
    refused("empty.pth", b"", "cannot be read as weights of DINO")
    refused("text.safetensors", b"this is no file of weights", "cannot be read as weights of DINO")
    torch.save(good, tmp_path / "whole.pth")
    refused("half.pth", (tmp_path / "whole.pth").read_bytes()[:5000], "cannot be read as weights of DINO")
    refused("list.pth", [torch.zeros(3)], "something else than tensors by name")
    refused("number.pth", {"cls_token": 3}, "something else than tensors by name")
    refused("unet.pth", {"conv_in.weight": torch.zeros(3, 3, 3, 3)}, "it lacks patch_embed.proj.weight")
    for name in ("pos_embed", "blocks.1.norm2.bias", "blocks.0.attn.qkv.weight", "norm.weight"):
        refused("lacks.pth", without(name), f"it lacks {name}$")
    refused("more.pth", good | {"decoder.weight": torch.zeros(2)}, "decoder.weight has no place in these networks")
    refused("shape.pth", good | {"norm.bias": torch.zeros(3)}, r"norm.bias must be of shape \(128,\), got \(3,\)")
    refused("places.pth", good | {"pos_embed": torch.zeros(1, 48, WIDTH)}, "48 places are none")

    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(NotFoundError, match=f"no model.safetensors in {folder}"):
        load_dino(folder)
    stirred(MODELS["dino"]()).save_pretrained(folder)
    described = (folder / "config.json").read_text()
    for wrong, message in (("{", "does not say what the network is like"), (described.replace("gelu", "relu"), "relu")):
        (folder / "config.json").write_text(wrong)
        with pytest.raises(DataError, match=message):
            load_dino(folder)


def test_an_audit_by_features(
    tmp_path: Path, blobs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prior that draws its training images is found to copy, by features, from the command line."""
    stores = [
        simulate(blobs(count, seed=seed), tmp_path / f"{seed}.zarr", operator="mask", noise=0.01, seed=seed)
        for count, seed in ((12, 0), (16, 1))
    ]
    known = stores[0].references(slice(None)).float()
    denoiser = GaussianMixtureDenoiser(torch.ones(12), known, 1e-6 * torch.eye(256).expand(12, 256, 256))
    denoiser.sigma_data = 0.3
    denoiser.register_parameter("somewhere", nn.Parameter(torch.zeros(1)))
    prior = Prior(denoiser.eval(), (1, 16, 16), False, TrainConfig(store="a", out="b"), {}, 0)
    weights = tmp_path / "dino.pth"
    torch.save(published(True)[0], weights)
    found = audit_prior(prior, *stores, count=8, steps=8, features=load_dino(weights), progress=False)
    one = found.dataset.sel(space="features")
    assert found.dataset.attrs["features"] == str(weights)
    assert float(one["similarity"].min()) > 0.999
    np.testing.assert_array_equal(one["nearest"], found.dataset.sel(space="pixels")["nearest"])
    features = load_dino(weights)
    mine, theirs = (
        nn.functional.normalize(features(some), dim=1) for some in (stores[1].references([3]).float(), known)
    )
    assert float(one["held_similarity"][3]) == pytest.approx(float((mine @ theirs.mT).max()), abs=1e-5)

    monkeypatch.setattr("ambient_sci.prior.load_prior", lambda run, device: prior)

    def command(features: Path) -> tuple[int, str]:
        arguments = ["run", stores[0].path, "--against", stores[1].path, "--count", 8, "--steps", 8, "--quiet"]
        arguments += ["--features", features]
        monkeypatch.setattr(sys, "argv", ["ambient-sci", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    status, said = command(weights)
    assert status == 1
    assert "features: images" in said
    status, said = command(tmp_path / "none.pth")
    assert (status, said.count("\n")) == (2, 1)
    assert math.isfinite(float(one["auc"]))
