"""Denoisers, networks, samplers and schedules against their formulas; priors saved and loaded; checkpoints."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ambient_sci import load_prior, open_store
from ambient_sci.checkpoint import load_tensors, replacing, save_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.denoise import Denoiser, EDMDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from ambient_sci.errors import CheckpointError, ConfigError, DataError, NotFoundError, OutputError
from ambient_sci.measurement import randn_like
from ambient_sci.network import UNet, as_complex, as_real, best_precision
from ambient_sci.operators import Mask
from ambient_sci.prior import Prior, build_denoiser, resolve_device
from ambient_sci.sample import sample
from ambient_sci.schedule import edm_levels, training_levels
from ambient_sci.seeding import scan_noise, stream

REAL, COMPLEX = torch.float64, torch.complex128


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ denoisers


class Remembers(nn.Module):
    """A network that keeps what it was given."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.x, self.label = x, label
        return torch.sin(3 * x) + label.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_edm_preconditioning(dtype: torch.dtype) -> None:
    x = randn_like(torch.zeros(3, 2, 4, 5, dtype=dtype), generator())
    sigma, d = torch.tensor([0.01, 0.6, 30.0], dtype=REAL), 0.4
    network = Remembers()
    got = EDMDenoiser(network, d)(x, sigma)
    for scan, s in enumerate(sigma.tolist()):
        seen = x[scan] / math.sqrt(s**2 + d**2)
        seen = torch.cat([seen.real, seen.imag]) if dtype.is_complex else seen
        torch.testing.assert_close(network.x[scan], seen)
        assert float(network.label[scan]) == pytest.approx(math.log(s / d) / 4)
        out = torch.sin(3 * seen) + math.log(s / d) / 4
        out = torch.complex(out[:2], out[2:]) if dtype.is_complex else out
        want = d**2 / (s**2 + d**2) * x[scan] + s * d / math.sqrt(s**2 + d**2) * out
        torch.testing.assert_close(got[scan], want)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_gaussian_denoiser_against_the_dense_formula(dtype: torch.dtype) -> None:
    shape, n = (2, 2, 3), 12
    factor = randn_like(torch.zeros(n, 7, dtype=dtype), generator(1))  # of rank 7: positive semi-definite
    covariance = factor @ factor.mH / n
    mean = randn_like(torch.zeros(shape, dtype=dtype), generator(2))
    x = randn_like(torch.zeros(3, *shape, dtype=dtype), generator(3))
    sigma = torch.tensor([0.2, 1.0, 5.0], dtype=REAL)
    got = GaussianDenoiser(mean, covariance)(x, sigma)
    for scan, s in enumerate(sigma.tolist()):
        gain = covariance @ torch.linalg.inv(covariance + s**2 * torch.eye(n, dtype=dtype))
        want = mean.flatten() + gain @ (x[scan] - mean).flatten()
        torch.testing.assert_close(got[scan].flatten(), want)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_mixture_denoiser_against_tweedie(dtype: torch.dtype) -> None:
    """The gradient of the log density of noisy images, of dense covariances of their real components."""
    shape, n = (1, 2, 3), 6
    factors = randn_like(torch.zeros(3, n, 4, dtype=dtype), generator(1))  # of rank 4: positive semi-definite
    covariances = factors @ factors.mH / n
    means = randn_like(torch.zeros(3, *shape, dtype=dtype), generator(2))
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=REAL)
    x = randn_like(torch.zeros(4, *shape, dtype=dtype), generator(3))
    sigma = torch.tensor([0.1, 0.5, 1.0, 5.0], dtype=REAL)
    got = GaussianMixtureDenoiser(weights, means, covariances)(x, sigma)

    def parts(z: Tensor) -> Tensor:
        return torch.cat([z.real, z.imag], -1) if dtype.is_complex else z

    for scan, s in enumerate(sigma.tolist()):
        point = parts(x[scan].flatten()).clone().requires_grad_()
        logs = []
        for weight, mean, covariance in zip(weights, means, covariances, strict=True):
            real = covariance
            if dtype.is_complex:
                real = torch.cat([parts(covariance.conj()), parts(1j * covariance.conj())])
            law = torch.distributions.MultivariateNormal(
                parts(mean.flatten()), real + s**2 * torch.eye(len(real), dtype=REAL)
            )
            logs.append(weight.log() + law.log_prob(point))
        score = torch.autograd.grad(torch.stack(logs).logsumexp(0), point)[0]
        torch.testing.assert_close(parts(got[scan].flatten()), (point + s**2 * score).detach())


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_mixture_of_one_is_a_gaussian(dtype: torch.dtype) -> None:
    mean = randn_like(torch.zeros(1, 2, 2, dtype=dtype), generator(1))
    covariance = torch.diag(torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=REAL))
    x = randn_like(torch.zeros(2, 1, 2, 2, dtype=dtype), generator(2))
    sigma = torch.tensor([0.3, 2.0], dtype=REAL)
    got = GaussianMixtureDenoiser(torch.ones(1, dtype=REAL), mean[None], covariance[None])(x, sigma)
    torch.testing.assert_close(got, GaussianDenoiser(mean, covariance)(x, sigma))


@pytest.mark.parametrize("like", [torch.zeros(1, 1, dtype=REAL), torch.zeros(1, 1, dtype=COMPLEX)])
def test_views_of_channels_are_inverse(like: Tensor) -> None:
    x = randn_like(like.new_zeros(2, 3, 4, 5), generator())
    view = as_real(x)
    assert view.shape == (2, 6 if like.is_complex() else 3, 4, 5)
    assert not view.is_complex()
    assert torch.equal(as_complex(view, like), x)
    torch.testing.assert_close(view.square().sum(), x.abs().square().sum())


# ------------------------------------------------------------------------------------------------ the network


@pytest.fixture(scope="module")
def unet() -> UNet:
    """A network with random weights everywhere; a fresh one is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(2, 2, (32, 32, 64)).eval()
        nn.init.normal_(network.body.conv_out.weight, std=0.1)
    return network.requires_grad_(False)


def test_a_fresh_network_is_zero() -> None:
    assert not UNet(2, 3, (32,))(torch.randn(1, 2, 8, 8), torch.zeros(1)).any()


@pytest.mark.parametrize("size", [(30, 22), (8, 8), (9, 16), (5, 3)])
def test_the_network_takes_any_size(size: tuple[int, int], unet: UNet) -> None:
    height, width = size
    x = torch.randn(2, 2, *size, generator=generator())
    label = torch.tensor([-0.5, 0.5])
    got = unet(x, label)
    assert got.shape == (2, 2, *size)
    assert got.std() > 0.01
    padded = nn.functional.pad(x, (0, -width % 8, 0, -height % 8))
    torch.testing.assert_close(got, unet(padded, label)[..., :height, :width], rtol=1e-4, atol=1e-5)


def test_the_network_knows_the_noise_level(unet: UNet) -> None:
    x = torch.randn(1, 2, 16, 16, generator=generator()).repeat(2, 1, 1, 1)
    quiet, loud = unet(x, torch.tensor([-1.0, 1.0]))
    assert (quiet - loud).abs().mean() > 0.01 * quiet.abs().mean()


def test_half_precision_is_close(unet: UNet) -> None:
    x, label = torch.randn(2, 2, 16, 24, generator=generator()), torch.tensor([-0.5, 0.5])
    exact = unet(x, label)
    unet.precision = "bf16"
    try:
        coarse = unet(x, label)
    finally:
        unet.precision = "fp32"
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).norm() / exact.norm() < 0.05


def test_best_precision_is_one_the_network_knows() -> None:
    assert best_precision("cpu") in ("bf16", "fp32")
    assert best_precision("meta") == "fp32"


# ------------------------------------------------------------------------------------------------ sampling


def test_edm_levels() -> None:
    levels = edm_levels(5, 0.002, 80.0)
    assert levels.shape == (6,)
    assert levels.dtype == torch.float64
    assert float(levels[-1]) == 0
    for i in range(5):
        want = (80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert float(levels[i]) == pytest.approx(want)
    assert edm_levels(1, 0.1, 3.0).tolist() == pytest.approx([3.0, 0.0])
    torch.testing.assert_close(
        edm_levels(3, 1.0, 3.0, rho=1.0), torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    )


@pytest.mark.parametrize("arguments", [(0, 0.1, 1.0), (4, 0.0, 1.0), (4, 2.0, 1.0), (4, 1.0, 1.0)])
def test_levels_that_there_are_not(arguments: Any) -> None:
    with pytest.raises(ConfigError, match=r"needs steps >= 1 and 0 < sigma_min < sigma_max, got steps"):
        edm_levels(*arguments)


def test_training_levels_are_log_normal() -> None:
    logs = torch.log(training_levels(100_000, 0.3, generator()) / 0.3)
    assert float(logs.mean()) == pytest.approx(-0.5, abs=0.02)
    assert float(logs.std()) == pytest.approx(1.4, abs=0.02)


class Shrinks(Denoiser):
    """The denoiser of a standard normal, with a count of its calls."""

    calls = 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        assert not torch.is_grad_enabled()
        return x / (1 + sigma.reshape(-1, 1) ** 2)


def test_one_step_of_each_solver() -> None:
    def noise(k: int) -> Tensor:
        return torch.full((1, 1), float(k + 1), dtype=REAL)

    s, t = 2.0, 0.5
    levels = torch.tensor([s, t, 0.0])
    x = s * 1.0
    D = x / (1 + s**2)
    euler = D + t / s * (x - D)
    denoiser = Shrinks()
    # the last step goes to the denoised image
    assert float(sample(denoiser, noise, levels, "euler")) == pytest.approx(euler / (1 + t**2))
    assert denoiser.calls == 2

    eta = 0.6
    up = eta * t * (1 - t**2 / s**2) ** 0.5
    down = (t**2 - up**2) ** 0.5
    renewed = D + down / s * (x - D) + up * 2.0
    assert float(sample(Shrinks(), noise, levels, "euler", eta)) == pytest.approx(renewed / (1 + t**2))

    slope = ((x - D) / s + (euler - euler / (1 + t**2)) / t) / 2
    heun = x + (t - s) * slope
    denoiser = Shrinks()
    assert float(sample(denoiser, noise, levels, "heun")) == pytest.approx(heun / (1 + t**2))
    assert denoiser.calls == 3

    # the second step extrapolates over the first; the last one cannot
    u, h, g = 0.1, math.log(t / 0.1), math.log(s / t)
    second = euler / (1 + t**2)
    bent = second + h / (2 * g) * (second - D)
    multistep = bent + u / t * (euler - bent)
    denoiser = Shrinks()
    levels = torch.tensor([s, t, u, 0.0], dtype=REAL)
    assert float(sample(denoiser, noise, levels, "multistep")) == pytest.approx(multistep / (1 + u**2))
    assert denoiser.calls == 3
    partly = second + 0.3 * (bent - second)
    partly = partly + u / t * (euler - partly)
    found = sample(Shrinks(), noise, levels, "multistep", extrapolation=0.3)
    assert float(found) == pytest.approx(partly / (1 + u**2))

    levels = torch.tensor([s, t, 0.0])
    start = torch.full((1, 1), 10.0, dtype=REAL)
    moved = sample(Shrinks(), noise, levels[1:], "euler", start=start)
    assert float(moved) == pytest.approx((t + 10) / (1 + t**2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "rk4"}, "solver must be 'euler', 'heun' or 'multistep', got 'rk4'"),
        ({"solver": "heun", "eta": 0.5}, "eta must be 0 to 1, and 0 with solver 'heun', got 0.5 with 'heun'"),
        ({"solver": "euler", "eta": 1.5}, "eta must be 0 to 1, and 0 with solver 'heun', got 1.5 with 'euler'"),
        ({"solver": "euler", "eta": -0.1}, "eta must be 0 to 1"),
        ({"solver": "multistep", "extrapolation": 1.1}, "extrapolation must be 0 to 1, got 1.1"),
    ],
)
def test_samplers_refuse(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sample(Shrinks(), lambda k: torch.zeros(1, 1), torch.tensor([1.0, 0.0]), **options)


def test_noise_of_a_scan_is_its_own() -> None:
    labels = torch.tensor([[0, 3], [0, 4], [1, 3]])
    every = scan_noise((2, 3), torch.complex64, 7, labels)
    assert torch.equal(scan_noise((2, 3), torch.complex64, 7, labels[1:2]), every[1:2])
    assert len({float(row.real.sum()) for row in every}) == 3
    large = torch.view_as_real(scan_noise((20_000,), torch.complex64, 7, labels[:1]))
    assert float(large.std()) == pytest.approx(1, abs=0.02)
    # streams with a counter more, even one of zero, are others
    assert stream(7, 0, 3).initial_seed() != stream(7, 0, 3, 0).initial_seed()


# ------------------------------------------------------------------------------------------------ priors


@pytest.fixture(scope="module")
def prior(run_path: Path) -> Prior:
    return load_prior(run_path, "cpu")


def operator_for(prior: Prior, store_path: Path, count: int) -> Any:
    return open_store(store_path).read(range(count)).operator if prior.config.method == "ambient" else None


def test_a_prior_of_an_earlier_release_is_loaded(prior: Prior, tmp_path: Path) -> None:
    """Its training had options that there no longer are."""
    path = tmp_path / "prior.safetensors"
    prior.save(path)
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {**header, "config": {**header["config"], "em_growth": 1.5}})
    assert load_prior(path, "cpu").fingerprint() == prior.fingerprint()


def test_a_prior_is_loaded_as_it_was_saved(prior: Prior, run_path: Path, store_path: Path, tmp_path: Path) -> None:
    prior.save(tmp_path / "copy.safetensors")
    again = load_prior(tmp_path / "copy.safetensors", "cpu")
    first, second = prior.denoiser.state_dict(), again.denoiser.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.fingerprint() == prior.fingerprint()
    facts = ("image_shape", "is_complex", "config", "trained_on", "images")
    assert all(getattr(again, fact) == getattr(prior, fact) for fact in facts)
    operator = operator_for(prior, store_path, 2)
    assert torch.equal(again.sample(2, 3, operator=operator), prior.sample(2, 3, operator=operator))
    assert not prior.denoiser.training
    assert not any(weight.requires_grad for weight in prior.denoiser.parameters())
    # what is loaded is the average, not the weights that were trained last
    tensors, _ = load_tensors(run_path / "checkpoint.safetensors")
    assert all(torch.equal(tensors[f"ema.{name}"], first[name]) for name in first)
    assert not all(torch.equal(tensors[f"net.{name}"], first[name]) for name in first)


def test_a_fingerprint_is_of_the_weights(prior: Prior, run_path: Path) -> None:
    other = load_prior(run_path, "cpu")
    with torch.no_grad():
        next(other.denoiser.parameters()).flatten()[0] += 1e-3
    assert other.fingerprint() != prior.fingerprint()


def test_prior_samples_do_not_depend_on_their_number(prior: Prior, store_path: Path) -> None:
    prior.denoiser.network.precision = "fp32"  # type: ignore[union-attr,assignment]
    three = prior.sample(3, 4, seed=5, operator=operator_for(prior, store_path, 3))
    assert three.shape == (3, 1, 16, 16)
    assert three.dtype == torch.complex64
    two = prior.sample(2, 4, seed=5, operator=operator_for(prior, store_path, 2))
    torch.testing.assert_close(two, three[:2], rtol=1e-3, atol=1e-3)
    other = prior.sample(2, 4, seed=6, operator=operator_for(prior, store_path, 2))
    assert (other - two).abs().mean() > 0.01


def test_an_ambient_prior_samples_through_a_mask(prior: Prior, store_path: Path) -> None:
    if prior.config.method != "ambient":
        pytest.skip("of ambient priors only")
    with pytest.raises(ConfigError, match="a prior of method 'ambient' samples through a mask: give operator="):
        prior.sample(2, 3)
    operator = open_store(store_path).read(range(3)).operator
    with pytest.raises(ConfigError, match="operator must hold a scan for each mask of 2 images, got 3 for masks 1"):
        prior.sample(2, 3, operator=operator)
    four = open_store(store_path).read(range(4)).operator
    alone = prior.sample(2, 3, operator=four[:2])
    torch.testing.assert_close(prior.sample(2, 3, operator=four, masks=2, guidance=0.0), alone)
    assert (prior.sample(2, 3, operator=four, masks=2) - alone).abs().mean() > 1e-3
    with pytest.raises(DataError):
        prior.sample(2, 3, operator=Mask(torch.ones(2, 1, 12, 12)))


def test_ambient_levels_end_at_the_noise_of_the_training(prior: Prior) -> None:
    lowest = float(prior.levels(6)[-2])
    if prior.config.method == "ambient":
        assert lowest == pytest.approx(max(prior.trained_on["noise_std"], 0.02 * prior.sigma_data))
    else:
        assert lowest == pytest.approx(0.02 * prior.sigma_data)
    assert float(prior.levels(6)[0]) == pytest.approx(50 * prior.sigma_data)


def test_priors_that_there_are_not(run_path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no run at .*absent; `ambient-sci train STORE --out .*absent` makes one"):
        load_prior(tmp_path / "absent")
    with pytest.raises(NotFoundError, match=r"not a run, or one that has not reached its first checkpoint"):
        load_prior(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_prior(run_path, network=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"device 'abacus' cannot be used .*; use auto, cpu or one that this machine"):
        load_prior(run_path, "abacus")


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda' cannot be used"):
            resolve_device("cuda")


def test_networks_that_cannot_be_built() -> None:
    config = TrainConfig(store="a", out="b", widths=(32,))
    with pytest.raises(ConfigError, match="sigma_data is not known"):
        build_denoiser(config, (1, 8, 8), False)
    known = config.model_copy(update={"sigma_data": 0.5})
    with pytest.raises(ConfigError, match=r"takes 2-D images, got shape \(1, 8, 8, 8\): pass network="):
        build_denoiser(known, (1, 8, 8, 8), False)
    own = nn.Identity()
    assert build_denoiser(known, (1, 8, 8, 8), False, own).network is own


# ------------------------------------------------------------------------------------------------ checkpoints


def write_and_fail(path: Path, error: BaseException) -> None:
    with replacing(path) as partial:
        partial.write_text("second")
        raise error


def test_replacing_takes_the_place_only_when_all_is_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "first"
    for error in (RuntimeError("of the program"), KeyboardInterrupt(), OutputError("said already")):
        with pytest.raises(type(error)) as raised:
            write_and_fail(path, error)
        assert raised.value is error
        assert path.read_text() == "first"
        assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free space or choose another path"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full; free space or choose another path"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission; choose another path"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_replacing_says_what_the_system_said(error: Exception, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("first")
    with pytest.raises(OutputError) as raised:
        write_and_fail(path, error)
    assert str(raised.value).startswith(f"cannot write {path}: {said}")
    assert raised.value.__cause__ is error
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "first"


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).mT, "b.c": torch.arange(3), "z": torch.randn(2, dtype=torch.complex64)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"seen": 12, "list": [1, None]})
    found, header = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    assert (header["seen"], header["list"]) == (12, [1, None])
    with pytest.raises(NotFoundError, match="no checkpoint at"):
        load_tensors(tmp_path / "other.safetensors")
    torch.save(tensors, tmp_path / "pickle.safetensors")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        load_tensors(tmp_path / "pickle.safetensors")
