"""Pretrained networks of diffusers: what they become here, how they learn on, and what is refused."""

import copy
import importlib
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file
from torch import nn

from ambient_sci.checkpoint import load_tensors
from ambient_sci.cli import app
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store, simulate
from ambient_sci.denoise import GaussianDenoiser
from ambient_sci.errors import ConfigError, DataError, NotFoundError
from ambient_sci.finetuning import adapt, effective_weights, measure, state_bytes
from ambient_sci.methods.em import EMLearner, predicts_better
from ambient_sci.objectives import denoising_loss
from ambient_sci.operators import Mask
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.pretrained import PretrainedAmbientDenoiser, PretrainedDenoiser, PretrainedNetwork, read_pipeline
from ambient_sci.pretrained.denoiser import Architecture, fold_channels
from ambient_sci.prior import Prior, load_prior
from ambient_sci.sample import sample
from ambient_sci.training import train

SIZE = 16
UNIT = (-1.0, 1.0)  # values that are the network's own


def stirred(kind: Any, **options: Any) -> nn.Module:
    """A network of which no weight is zero, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: nn.Module = kind(**options)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    return model.eval()


def small_unet(channels: int = 3, **options: Any) -> nn.Module:
    return stirred(
        UNet2DModel,
        sample_size=SIZE,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        **options,
    )


def small_if() -> nn.Module:
    """Stage I of DeepFloyd IF, scaled down: its blocks, embeddings and learned variance."""
    return stirred(
        UNet2DConditionModel,
        sample_size=SIZE,
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        act_fn="gelu",
        attention_head_dim=8,
        cross_attention_dim=32,
        encoder_hid_dim=24,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )


IF_SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
    "variance_type": "learned_range",
}


def save_if(folder: Path) -> nn.Module:
    """What `IFPipeline.save_pretrained` writes of a pipeline that has no text encoder."""
    unet: Any = small_if()
    unet.save_pretrained(folder / "unet")
    scheduler: Any = DDPMScheduler
    scheduler(**IF_SCHEDULER).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "IFPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return unet


def save(folder: Path, unet: Any, **options: Any) -> Path:
    pipeline: Any = DDPMPipeline
    scheduler: Any = DDPMScheduler
    pipeline(unet, scheduler(**options)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "rgb", small_unet(3))


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "grey", small_unet(1))


def denoiser(folder: Path, channels: int, values: tuple[float, float] = UNIT, **options: Any) -> PretrainedDenoiser:
    return PretrainedDenoiser(read_pipeline(folder, channels, values, **options), 0.5).eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- against the scheduler


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_step_is_that_of_ddim(prediction: str, schedule: str, tmp_path: Path) -> None:
    """At the network's own levels, and Euler's step in this package's variables."""
    unet: Any = small_unet(3)
    options: dict[str, Any] = {"beta_schedule": schedule, "prediction_type": prediction}
    D = denoiser(save(tmp_path / "model", unet, **options), 3)
    kind: Any = DDIMScheduler
    scheduler = kind(**options, clip_sample=False)
    scheduler.set_timesteps(10)
    signal = scheduler.alphas_cumprod.double()
    for t in (900, 500, 100):
        x_t = noise(2, 3, SIZE, SIZE, seed=t)
        with torch.no_grad():
            expected = scheduler.step(unet(x_t, t).sample, t, x_t, eta=0.0)
        a, after = float(signal[t]), float(signal[t - 100])
        level, below = math.sqrt(1 / a - 1), math.sqrt(1 / after - 1)
        x = x_t / math.sqrt(a)
        got = D(x, torch.full((2,), level))
        scale = expected.pred_original_sample.abs().max()
        assert (got - expected.pred_original_sample).abs().max() < 2e-5 * scale
        moved = (got + below / level * (x - got)) * math.sqrt(after)
        assert (moved - expected.prev_sample).abs().max() < 2e-5 * expected.prev_sample.abs().max()


def test_sampling_is_that_of_the_pipeline(rgb: Path) -> None:
    """Images of `DDIMPipeline`, from the same noise by as many steps."""
    kind: Any = DDIMScheduler
    scheduler = kind.from_pretrained(rgb / "scheduler", clip_sample=False)
    kind = DDIMPipeline
    pipeline = kind(small_unet(3), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    expected = pipeline(batch_size=2, generator=generator, num_inference_steps=5, eta=0.0, output_type="np").images

    scheduler = pipeline.scheduler
    signal = scheduler.alphas_cumprod[scheduler.timesteps].double()
    levels = torch.cat([torch.sqrt(1 / signal - 1), torch.zeros(1)])
    first = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    begin = first / torch.sqrt(signal[0]) / levels[0]  # the pipeline's noise is that of its last, most noisy state
    prior = load_prior(rgb, "cpu")
    prior.denoiser.network.precision = "fp32"
    assert (prior.image_shape, prior.is_complex, prior.sigma_data) == ((3, SIZE, SIZE), False, 0.25)
    D = denoiser(rgb, 3)
    got = sample(D, lambda k: begin.float(), levels, "euler")
    images = (got / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.1
    assert np.abs(images - expected).max() < 1e-4
    # in normalised units of [0, 1], where noise is half as large
    half = sample(prior.denoiser, lambda k: begin.float(), levels / 2, "euler", start=torch.tensor(0.5))
    assert np.abs(half.clamp(0, 1).permute(0, 2, 3, 1).numpy() - expected).max() < 1e-4


class Exact(nn.Module):
    """Noise in an image of independent normal pixels of variance v, were there a time between the discrete ones."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self, signal: torch.Tensor, variance: float) -> None:
        super().__init__()
        self.signal, self.variance = signal, variance

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> Any:
        low = time.floor().long().clamp(max=len(self.signal) - 2)
        a = torch.lerp(self.signal[low], self.signal[low + 1], (time - low).double())[:, None, None, None]
        gain = torch.sqrt(1 - a) / (a * self.variance + 1 - a)
        return SimpleNamespace(sample=(gain * x).float())


def test_levels_between_those_of_the_network() -> None:
    """The time between two steps is right to well below what a step changes, whichever way a network interpolates."""
    scheduler: Any = DDPMScheduler()
    signal = scheduler.alphas_cumprod.double()
    architecture = Architecture("UNet2DModel", {"block_out_channels": [1]}, "epsilon", 1000)
    network = PretrainedNetwork(architecture, Exact(signal, 0.25))
    network.log_levels.copy_(0.5 * torch.log(1 / signal - 1))
    exact = GaussianDenoiser(torch.zeros(1, 2, 2), 0.25 * torch.eye(4))
    x = noise(1, 1, 2, 2)
    for sigma in torch.exp(torch.linspace(math.log(0.011), math.log(150), 301)):
        level = sigma[None]
        error = (PretrainedDenoiser(network, 0.5)(x * sigma, level) - exact(x * sigma, level)).abs().max()
        assert error < 2e-4 * x.abs().max() * min(float(sigma), 1)
    times = network.time(torch.exp(network.log_levels))
    assert torch.equal(times, torch.arange(1000.0))
    beyond = network.time(torch.tensor([1e-9, 0.0, 1e9]))
    assert beyond.tolist() == [0, 0, 999]
    middle = network.time(torch.exp((network.log_levels[500] + network.log_levels[501]) / 2)[None])
    assert abs(float(middle) - 500.5) < 1e-3


# ------------------------------------------------------------------------------------------- values and channels


def test_values_are_mapped(rgb: Path) -> None:
    """A denoiser of images in other units: D(x, s) = (D'(g x + o, g s) - o) / g."""
    own, other = denoiser(rgb, 3), denoiser(rgb, 3, (-0.5, 3.5))
    x, sigma = 2 * noise(2, 3, SIZE, SIZE) + 1.5, torch.tensor([0.3, 4.0])
    expected = 2 * own((x - 1.5) / 2, sigma / 2) + 1.5
    torch.testing.assert_close(other(x, sigma), expected, rtol=1e-5, atol=1e-5)


def test_grey_images_in_colour_weights(rgb: Path) -> None:
    """The mean of what the whole network makes of a copy in each channel, told the noise of a channel."""
    whole, folded = denoiser(rgb, 3), denoiser(rgb, 1)
    x, sigma = noise(2, 1, SIZE, SIZE), torch.tensor([0.3, 4.0])
    expected = whole(x.expand(-1, 3, -1, -1), math.sqrt(3) * sigma).mean(1, keepdim=True)
    torch.testing.assert_close(folded(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_luminance_is_denoised_exactly() -> None:
    """Of a normal image in colour with independent luminance, the denoiser of the grey image is known."""
    mixing = torch.linalg.qr(torch.tensor([[1.0, 1, 0], [1, -1, 1], [1, 0, -1]]))[0]  # the first column is grey
    spread = torch.tensor([0.9, 0.2, 0.05])  # variance of each
    s = 0.4  # of a channel
    covariance = mixing @ torch.diag(spread) @ mixing.T
    eps = math.sqrt(1 + s**2) * s * torch.linalg.inv(covariance + s**2 * torch.eye(3))  # of a z

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_in, self.conv_out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.config: dict[str, Any] = {}
            for conv, weight in ((self.conv_in, torch.eye(3)), (self.conv_out, eps)):
                conv.weight.data.copy_(weight[..., None, None])
                conv.bias.data.zero_()

        def register_to_config(self, **options: Any) -> None:
            self.config = options

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> Any:
            return SimpleNamespace(sample=self.conv_out(self.conv_in(x)))

    body = Linear()
    root = fold_channels(body, 1)
    assert body.config == {"in_channels": 1, "out_channels": 1}
    architecture = Architecture("UNet2DModel", {"block_out_channels": [1]}, "epsilon", 2, noise=root)
    network = PretrainedNetwork(architecture, body)
    network.log_levels.copy_(torch.tensor([-3.0, 3.0]))
    # the coefficient of the grey direction is root 3 times the grey value, so that its variance is a third
    exact = GaussianDenoiser(torch.zeros(1, 1, 1), spread[:1, None] / 3)
    x, sigma = noise(3, 1, 1, 1), torch.full((3,), s / math.sqrt(3))
    torch.testing.assert_close(PretrainedDenoiser(network, 0.5)(x, sigma), exact(x, sigma), rtol=1e-5, atol=1e-6)


def test_complex_images_in_colour_weights(rgb: Path) -> None:
    """Real and imaginary part are the first two channels, and the third is zero."""
    whole, folded = denoiser(rgb, 3), denoiser(rgb, 2)
    x, sigma = torch.complex(noise(2, 1, SIZE, SIZE), noise(2, 1, SIZE, SIZE, seed=1)), torch.tensor([0.3, 4.0])
    expected = whole(torch.cat([x.real, x.imag, torch.zeros_like(x.real)], 1), sigma)
    torch.testing.assert_close(folded(x, sigma), torch.complex(*expected[:, :2].split(1, 1)), rtol=1e-4, atol=1e-5)


def test_complex_images_in_grey_weights(grey: Path) -> None:
    """Each part is an image of its own."""
    one, both = denoiser(grey, 1), denoiser(grey, 2)
    x, sigma = torch.complex(noise(2, 1, SIZE, SIZE), noise(2, 1, SIZE, SIZE, seed=1)), torch.tensor([0.3, 4.0])
    torch.testing.assert_close(both(x, sigma), torch.complex(one(x.real, sigma), one(x.imag, sigma)))


def test_sizes_that_the_levels_do_not_divide(grey: Path) -> None:
    D = denoiser(grey, 1)
    x, sigma = noise(1, 1, SIZE - 1, SIZE - 3), torch.tensor([0.3])
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="reflect")
    torch.testing.assert_close(D(x, sigma), D(padded, sigma)[..., : SIZE - 1, : SIZE - 3])


# ------------------------------------------------------------------------------------------- ambient networks


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_widened_networks_begin_as_they_were(grey: Path, rgb: Path, channels: int, precision: str) -> None:
    """To the bit, whatever the conditioning is; and what it adds can be learned."""
    for folder in (grey, rgb):
        before = denoiser(folder, channels, precision=precision)
        network = read_pipeline(folder, channels, UNIT, extra=2 * channels, precision=precision)
        after = PretrainedAmbientDenoiser(network, 0.5)
        x = noise(2, 1, SIZE, SIZE)
        x = torch.complex(x, noise(2, 1, SIZE, SIZE, seed=1)) if channels == 2 else x
        sigma = torch.tensor([0.3, 4.0])
        got = after.fill_in(x, 3 * x.flip(0), x.abs().to(x.dtype), sigma)
        assert torch.equal(got, before(x, sigma))
        got.abs().square().sum().backward()
        for convolution in (network.body.conv_in, network.body.conv_out):
            assert convolution.beside.weight.grad.abs().max() > 0


def test_an_ambient_network_alternates_with_data_consistency(grey: Path) -> None:
    """With pixels that are missing: where one was measured, the solution of the two equations for it; elsewhere D."""
    network = read_pipeline(grey, 1, UNIT, extra=2)
    ambient = PretrainedAmbientDenoiser(network, 0.5).requires_grad_(False)
    mask = (noise(2, 1, SIZE, SIZE, seed=2) > 0).float()
    y, sigma = mask * noise(2, 1, SIZE, SIZE), torch.tensor([0.3, 0.4])
    z = denoiser(grey, 1)(y, sigma)
    weight = (sigma / 0.5).square()[:, None, None, None]
    expected = torch.where(mask > 0, (y + weight * z) / (1 + weight), z)
    torch.testing.assert_close(ambient(y, Mask(mask), sigma), expected, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------- DeepFloyd IF


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module]:
    folder = tmp_path_factory.mktemp("models") / "if"
    unet = save_if(folder)
    prompt = folder.parent / "empty.safetensors"
    save_file({"prompt_embeds": noise(1, 77, 24, seed=9)}, prompt)
    return folder, prompt, unet


def test_stage_one_of_if(stage_one: tuple[Path, Path, nn.Module]) -> None:
    """Without its learned variance it denoises as its scheduler has it, with the embedding from either kind of file."""
    folder, prompt, unet = stage_one
    kind: Any = DDIMScheduler
    scheduler = kind(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    scheduler.set_timesteps(10)
    text = noise(1, 77, 24, seed=9)
    as_npy = prompt.with_suffix(".npy")
    np.save(as_npy, text[0].numpy())
    for t, file in ((900, prompt), (300, as_npy)):
        x_t = noise(2, 3, SIZE, SIZE, seed=t)
        with torch.no_grad():
            out = unet(x_t, t, encoder_hidden_states=text.expand(2, -1, -1)).sample[:, :3]
        expected = scheduler.step(out, t, x_t).pred_original_sample
        a = float(scheduler.alphas_cumprod[t].double())
        got = denoiser(folder, 3, prompt=file)(x_t / math.sqrt(a), torch.full((2,), math.sqrt(1 / a - 1)))
        assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_an_if_pipeline_with_its_text_encoder(tmp_path: Path) -> None:
    """Saved by `IFPipeline` itself; the embedding is that of the pipeline for an empty prompt."""
    transformers = pytest.importorskip("transformers")
    from diffusers import IFPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    options = {"vocab_size": 3, "d_model": 24, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.T5EncoderModel(transformers.T5Config(**options)).eval()
    scheduler: Any = DDPMScheduler
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "unet": small_if(),
        "scheduler": scheduler(**IF_SCHEDULER),
    }
    none = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
    kind: Any = IFPipeline
    pipeline = kind(**parts, **none, requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "if")
    expected, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
    network = read_pipeline(tmp_path / "if", 3, UNIT)
    assert expected.std() > 0
    torch.testing.assert_close(network.prompt, expected[0].detach())


# ------------------------------------------------------------------------------------------- what is refused


def edited(folder: Path, to: Path, file: str, **values: Any) -> Path:
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return to


def test_pickled_weights_are_not_read(rgb: Path, tmp_path: Path) -> None:
    shutil.copytree(rgb, tmp_path / "model")
    (weights,) = (tmp_path / "model" / "unet").glob("*.safetensors")
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match=r"weights as pickle .*is not read"):
        denoiser(tmp_path / "model", 3)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(NotFoundError, match="no safetensors in"):
        denoiser(tmp_path / "model", 3)
    index = {"weight_map": {"conv_in.weight": "part-1.bin"}}
    (weights.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"weights as pickle \(part-1\.bin\)"):
        denoiser(tmp_path / "model", 3)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "works on latents of its vae"),
        ("model_index.json", {"unet": ["diffusers", "UNet1DModel"]}, "must be a UNet2DModel or a UNet2DCond"),
        ("unet/config.json", {"num_class_embeds": 10}, "wants a class"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "in other variables"),
        ("unet/config.json", {"out_channels": 4}, "gives 4 channels for 3"),
        ("unet/config.json", {"block_out_channels": [16, 64]}, "does not load"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}, "is that of ScoreSdeVe"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "predicts 'flow'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "steps"}, "not one of diffusers"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.0, 0.0]}, "does not rise"),
    ],
)
def test_other_models_are_refused(rgb: Path, tmp_path: Path, file: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        denoiser(edited(rgb, tmp_path / "model", file, **values), 3)


def test_folders_that_lack_something(rgb: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 channels: too few for images of 4"):
        denoiser(rgb, 4)
    with pytest.raises(ConfigError, match="pretrained_range must rise"):
        denoiser(rgb, 3, (1.0, 0.0))
    shutil.copytree(rgb, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "scheduler")
    with pytest.raises(NotFoundError, match=r"no scheduler_config\.json"):
        denoiser(tmp_path / "model", 3)


def test_the_text_embedding(stage_one: tuple[Path, Path, nn.Module], tmp_path: Path) -> None:
    folder, _, _ = stage_one
    with pytest.raises(ConfigError, match="takes a text and has no text encoder"):
        load_prior(folder, "cpu")
    np.save(tmp_path / "wrong.npy", np.zeros((77, 23), np.float32))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.txt").write_text("")
    for name, message in (
        ("wrong.npy", r"must be \(tokens, 24\)"),
        ("pickled.npy", "holds no text embedding"),
        ("text.txt", r"must be a \.safetensors or \.npy"),
        ("none.npy", "no text embedding at"),
    ):
        with pytest.raises((ConfigError, DataError, NotFoundError), match=message):
            load_prior(folder, "cpu", prompt=tmp_path / name)


def test_nothing_is_fetched_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def fetch(name: str, **options: Any) -> str:
        asked.append(options)
        raise OSError("no network\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(NotFoundError, match="no run at google/ddpm-none"):
        load_prior("google/ddpm-none", "cpu")
    with pytest.raises(NotFoundError, match=r"fetching it failed \(no network\)$"):
        load_prior("google/ddpm-none", "cpu", download=True)
    assert [options["local_files_only"] for options in asked] == [True, False]
    assert not any("bin" in pattern for options in asked for pattern in options["allow_patterns"])


# ------------------------------------------------------------------------------------------- learning on

SHORT: dict[str, Any] = {
    "images": 32,
    "batch": 8,
    "warmup": 8,
    "laps": 1,
    "start_images": 16,
    "em_steps": 1,
    "precision": "fp32",
    "preview": 0,
    "device": "cpu",
}


def finetuned(model: Path, store: Path, out: Path, **options: Any) -> Prior:
    return train(TrainConfig(store=store, out=out, pretrained=str(model), **{**SHORT, **options}), progress=False)


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    first, second = before.state_dict(), after.state_dict()
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("method", ["em", "ambient"])
@pytest.mark.parametrize("adapt", ["full", "lora", "last"])
def test_learning_on(method: str, adapt: str, rgb: Path, store_path: Path, tmp_path: Path) -> None:
    """Every way, to a prior that is whole without the model that it began with, and of which posteriors are drawn."""
    if adapt == "lora":
        pytest.importorskip("peft")
    model = tmp_path / "model"
    shutil.copytree(rgb, model)
    extra = 4 if method == "ambient" else 0
    network = read_pipeline(model, 2, UNIT, extra=extra)
    prior = finetuned(model, store_path, tmp_path / "run", method=method, adapt=adapt, lora_rank=2, checkpoint=16)
    shutil.rmtree(model)
    again = load_prior(tmp_path / "run", "cpu")
    assert again.fingerprint() == prior.fingerprint()
    assert again.denoiser.network.architecture == network.architecture
    m = open_store(store_path).read(slice(0, 3))
    again.denoiser.network.precision = "fp32"
    drawn = [draw_posterior(each, m, samples=2, steps=3) for each in (prior, again)]
    assert torch.equal(*drawn)
    assert torch.isfinite(drawn[0].abs()).all()
    learned = changed(network, again.denoiser.network)
    weights = {name for name, _ in network.named_parameters()}
    first = {name for name in weights if name.startswith("body.conv_in")}
    beside = {name for name in weights if ".beside." in name}
    norms = {name for name in weights if ".norm" in name or "group_norm" in name}
    assert learned >= beside
    if adapt == "full":
        assert learned == weights
    elif adapt == "lora":
        assert first <= learned
        assert not learned & (norms | {name for name in weights if "time_embedding" in name})
        inside = {name for name in weights - norms if "_block" in name and name.endswith("weight")}
        assert inside <= learned
    else:
        last = ("body.up_blocks.1", "body.conv_out", "body.conv_norm_out")
        assert learned - beside == {name for name in weights - beside if name.startswith(last)}

    # the run goes on without the model, and with the state that it had
    config = prior.config.model_copy(update={"images": 48})
    assert train(config, progress=False).images == 48


def test_a_run_that_is_resumed_ends_with_the_same_weights(rgb: Path, store_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = {"method": "ambient", "adapt": "lora", "lora_rank": 2, "checkpoint": 16, "ema": 2}
    whole = finetuned(rgb, store_path, tmp_path / "whole", **options)
    stop = {"count": 0}

    def interrupt(*_: Any) -> None:
        stop["count"] += 1
        if stop["count"] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ambient_sci.training.obey_signals", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetuned(rgb, store_path, tmp_path / "parts", **options)
    assert load_tensors(tmp_path / "parts" / "checkpoint.safetensors")[1]["seen"] == 16
    parts = finetuned(rgb, store_path, tmp_path / "parts", **options)
    assert parts.fingerprint() == whole.fingerprint()


def test_adapters_begin_with_nothing_and_are_merged_exactly(rgb: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = TrainConfig(store=tmp_path, out=tmp_path, pretrained="model", adapt="lora", lora_rank=3)
    plain = denoiser(rgb, 3)
    learning = copy.deepcopy(plain).requires_grad_(True)
    adapt(learning, config)
    x, sigma = noise(2, 3, SIZE, SIZE), torch.tensor([0.3, 4.0])
    assert torch.equal(learning(x, sigma), plain(x, sigma))
    with torch.no_grad():
        for name, weight in learning.named_parameters():
            if weight.requires_grad:
                weight.add_(0.1 * noise(*weight.shape, seed=len(name)))
    weights = effective_weights(learning, plain, config)
    assert weights is not None
    with torch.no_grad():
        for weight, value in zip(plain.parameters(), weights(), strict=True):
            weight.copy_(value)
        expected = learning(x, sigma)
        assert (expected - x).abs().max() > 0.1
        torch.testing.assert_close(plain(x, sigma), expected, rtol=1e-4, atol=1e-4)


def gaussian_prior(mean: float, covariance: torch.Tensor, **options: Any) -> Prior:
    """An exact prior of Gaussian images."""
    known: Any = GaussianDenoiser(torch.full((1, 8, 8), mean), covariance)
    known.sigma_data = float(covariance.diagonal().mean().sqrt())
    known.register_parameter("place", nn.Parameter(torch.zeros(())))
    config = TrainConfig(store=Path("none"), out=Path("none"), pretrained="model", **options)
    return Prior(known, (1, 8, 8), False, config, {}, 0)


def test_em_begins_with_what_the_measurements_bear_out(tmp_path: Path) -> None:
    """The law that images were drawn from predicts them better than anything; one of others is not to be believed."""
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    smooth = torch.exp(-((torch.cdist(place, place) / 2) ** 2) / 2) + 1e-4 * torch.eye(64)
    images = 3 + noise(24, 64) @ torch.linalg.cholesky(smooth).T
    scans = simulate(images.reshape(-1, 8, 8).numpy(), tmp_path / "scans.zarr", operator="mask", keep=0.6, noise=0.1)
    own, other = gaussian_prior(3.0, smooth), gaussian_prior(-6.0, 0.04 * torch.eye(64))
    assert predicts_better(own, scans)
    assert not predicts_better(other, scans)

    # and a run begins so: with samples that the data and the prior agree on, or with total variation
    config = own.config.model_copy(update={"laps": 0, "images": 8})
    begun = []
    for prior, start in ((own, None), (other, None), (other, "tv"), (other, "prior")):
        learner = EMLearner(config.model_copy(update={"em_start": start}), scans, progress=False)
        learner.prepare(0, prior)
        assert learner.images is not None
        begun.append(learner.images.flatten(1))
    assert [float((each - images).abs().mean()) < 0.4 for each in begun] == [True, True, True, False]
    assert torch.equal(begun[1], begun[2])
    assert not torch.equal(begun[0], begun[2])


def test_what_is_learned_helps(grey: Path, blobs: Any, tmp_path: Path) -> None:
    """A network that has seen other things denoises the new ones better after a short run."""
    simulate(blobs(40), tmp_path / "scans.zarr", operator="mask", keep=0.9, noise=0.01)
    store = open_store(tmp_path / "scans.zarr")
    options = {"method": "oracle", "images": 320, "validation_scans": 8, "learning_rate": 2e-3}
    prior = finetuned(grey, store.path, tmp_path / "run", **options)
    untouched = load_prior(grey, "cpu", image_shape=(1, SIZE, SIZE))
    untouched.denoiser.network.precision = "fp32"
    images = store.references(slice(32, 40))
    sigma = torch.full((8,), 0.2)
    losses = [
        float(denoising_loss(each.denoiser, images, sigma, 0.5, noise(*images.shape)).mean())
        for each in (untouched, prior)
    ]
    assert losses[1] < 0.25 * losses[0], losses


def test_a_run_begins_with_a_finetuned_one(rgb: Path, store_path: Path, tmp_path: Path) -> None:
    first = finetuned(rgb, store_path, tmp_path / "first", method="oracle", images=8)
    config = TrainConfig(
        store=store_path, out=tmp_path / "second", start_from=tmp_path / "first", **{**SHORT, "adapt": "last"}
    )
    second = train(config, progress=False)
    assert second.config.learning_rate == 5e-4
    learned = changed(first.denoiser, second.denoiser)
    assert learned
    assert all(name.startswith(("network.body.up_blocks.1", "network.body.conv_")) for name in learned)


def test_stage_one_of_if_from_end_to_end(
    stage_one: tuple[Path, Path, nn.Module], store_path: Path, tmp_path: Path
) -> None:
    folder, prompt, _ = stage_one
    options = {"prompt": prompt, "checkpoint_activations": True, "images": 16, "start_images": 8}
    prior = finetuned(folder, store_path, tmp_path / "run", **options)
    again = load_prior(tmp_path / "run", "cpu")
    assert again.fingerprint() == prior.fingerprint()
    assert again.denoiser.network.architecture.prompt == (77, 24)
    assert torch.equal(again.denoiser.network.prompt, noise(1, 77, 24, seed=9)[0])
    assert torch.isfinite(again.sample(2, steps=3).abs()).all()


def test_the_command(grey: Path, store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "16", "--method", "oracle", "--preview", "0", "--device", "cpu", "--no-check"]
    values = ["--pretrained-range", "-2", "--pretrained-range", "2"]
    run = tmp_path / "run"
    app(["finetune", str(grey), str(store_path), "--out", str(run), *options, *values], standalone_mode=False)
    said = capsys.readouterr()
    assert "16 images seen" in said.out
    assert "weights learn; memory about" in said.err
    prior = load_prior(run, "cpu")
    assert prior.config.pretrained_range == (-2.0, 2.0)
    assert prior.config.learning_rate == 1e-4
    architecture = prior.denoiser.network.architecture
    assert (architecture.gain, architecture.offset, architecture.split) == (0.5, 0.0, True)


# ------------------------------------------------------------------------------------------- memory and optimisers


def test_what_a_step_needs(grey: Path, tmp_path: Path) -> None:
    config = TrainConfig(store=tmp_path, out=tmp_path, pretrained="model", batch=4, precision="fp32")
    plain = denoiser(grey, 1)
    learning = copy.deepcopy(plain).requires_grad_(True)
    count = sum(weight.numel() for weight in learning.parameters())
    # weights, average, gradient and two moments of 4 bytes each
    assert state_bytes(learning, plain, config) == (count, count, 20 * count)
    eight = config.model_copy(update={"optimizer": "adamw-8bit", "adapt": "last"})
    assert state_bytes(learning, plain, eight)[2] == 14 * count
    found = measure(learning, plain, config, (1, SIZE, SIZE), False, 1 << 40)
    assert all(weight.grad is None for weight in learning.parameters())
    assert found.seconds > 0
    assert f"{count:,} of {count:,} weights learn" in str(found)

    # what is kept is at least the inputs of the four convolutions of each level, and grows with the part of a batch
    level = 4 * SIZE**2 * 16 * 4
    assert found.activations > 4 * level
    half = config.model_copy(update={"accumulate": 2})
    assert 2 * measure(learning, plain, half, (1, SIZE, SIZE), False, None).activations == found.activations
    learning.train().network.enable_gradient_checkpointing()
    assert measure(learning, plain, config, (1, SIZE, SIZE), False, None).activations < 0.5 * found.activations


def test_models_that_do_not_fit_say_what_helps(
    grey: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(weight.numel() for weight in denoiser(grey, 1).parameters())
    for memory, words in (
        (12 * weights, "0 MiB for activations"),
        (21 * weights, "accumulate, checkpoint_activations"),
    ):
        monkeypatch.setattr("ambient_sci.finetuning.available_memory", lambda device, free=memory: free)
        with pytest.raises(ConfigError, match=f"does not fit.*{words}.*adapt lora or last"):
            finetuned(grey, store_path, tmp_path / "run", method="oracle")


def test_the_average_fits_a_short_run(tmp_path: Path) -> None:
    config = TrainConfig(store=tmp_path, out=tmp_path)
    assert config.half_life == 1000
    assert config.model_copy(update={"images": 500}).half_life == 50
    assert config.model_copy(update={"images": 500, "ema": 20}).half_life == 20


def test_the_optimiser_of_8_bits(grey: Path, store_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"method": "oracle", "optimizer": "adamw-8bit"}
    whole = finetuned(grey, store_path, tmp_path / "whole", **options)
    finetuned(grey, store_path, tmp_path / "parts", **options, images=16)
    tensors, _ = load_tensors(tmp_path / "parts" / "checkpoint.safetensors")
    assert torch.uint8 in {value.dtype for name, value in tensors.items() if name.startswith("optimizer.")}
    parts = finetuned(grey, store_path, tmp_path / "parts", **options)
    assert changed(parts.denoiser, denoiser(grey, 2))
    assert whole.images == parts.images == 32


def test_what_is_not_installed_is_named(
    grey: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        finetuned(grey, store_path, tmp_path / "run", method="oracle", optimizer="adamw-8bit")
    with pytest.raises(ConfigError, match=r"needs peft: pip install 'ambient-sci\[finetune\]'"):
        finetuned(grey, store_path, tmp_path / "run", method="oracle", adapt="lora")
    config = TrainConfig(store=store_path, out=tmp_path / "run", adapt="last", **SHORT)
    with pytest.raises(ConfigError, match="it needs pretrained or start_from"):
        train(config, progress=False)


# ------------------------------------------------------------------------------------------- the benchmark


def test_the_table_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.finetune")
    names = {"source": "discs", "test": 32, "images": 100}
    rows = [
        {
            **names,
            "target": target,
            "method": "full",
            "scans": scans,
            "seed": seed,
            "nrmse": 0.1 + 0.02 * seed,
            "inside": 0.9,
        }
        for target in ("rods", "strokes")
        for scans in (50, 200)
        for seed in (0, 1)
    ]
    rows.append({**rows[0], "method": "untouched", "scans": 0, "images": 0, "nrmse": 0.3})
    lines = benchmark.table(rows).splitlines()
    assert lines[:3] == ["#### From discs to rods", "", "| | 50 scans | 200 scans |"]
    assert lines.count("| full | 0.110 ± 0.014 (90%) | 0.110 ± 0.014 (90%) |") == 2
    assert lines.index("| untouched | 0.300 (90%) | 0.300 (90%) |") < lines.index("#### From discs to strokes")
    assert "| untouched |  |  |" in lines
    drawn = [benchmark.draw(kind, 3, 16, 0) for kind in benchmark.KINDS]
    assert all(each.shape == (3, 16, 16) and each.min() >= 0 and each.max() <= 1 for each in drawn)


def test_a_pipeline_that_the_benchmark_pretrains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is saved again with diffusers is, read again, the network that was trained."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.finetune")
    _, learned = benchmark.pretrain(benchmark.draw("discs", 8, SIZE, 0), tmp_path, 16, (8, 16))
    trained = load_prior(tmp_path / "pretraining", "cpu").denoiser.network
    again = load_prior(learned, "cpu").denoiser.network
    assert not changed(trained, again)
    assert again.architecture.config == trained.architecture.config


def test_the_command_of_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every row is of the scans that are left for it, and a second call finds nothing to do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.finetune")
    readme, results = tmp_path / "README.md", tmp_path / "rows.json"
    readme.write_text("<!-- finetune -->\n<!-- /finetune -->\n")
    sizes = {"scans": "4 6", "seeds": "0 1", "methods": "untouched full", "images": "16", "pretrain": "16"}
    sizes |= {"source-images": "8", "test": "3", "steps": "2", "widths": "8 16"}
    given = [word for name, value in sizes.items() for word in [f"--{name}", *value.split()]]
    files = ["--work", str(tmp_path / "work"), "--results", str(results), "--readme", str(readme)]
    for _ in range(2):
        benchmark.main([*given, *files])
        rows = json.loads(results.read_text())
        assert [(row["method"], row["scans"], row["seed"]) for row in rows] == [
            ("untouched", 0, 0),
            *(("full", scans, seed) for seed in (0, 1) for scans in (4, 6)),
        ]
    assert readme.read_text().count("#### From discs to rods") == 1
    drawn = benchmark.draw("rods", 15, SIZE, 1)
    y = open_store(tmp_path / "work" / "rods-6-1.zarr").read(slice(None))
    seen = y.operator.rows * torch.from_numpy(drawn[9:15])[:, None]  # after the three of the test, and six of seed 0
    assert (y.y - seen).abs().max() < 6 * benchmark.NOISE
