"""Differentially private training: sums by hand, laws of what is told, Opacus and closed forms, and what is refused."""

import importlib
import json
import math
import secrets
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn

from ambient_sci import TrainConfig, cli, load_prior, privacy, train
from ambient_sci.checkpoint import load_tensors
from ambient_sci.datasets import Store, open_store
from ambient_sci.denoise import EDMDenoiser
from ambient_sci.errors import ConfigError
from ambient_sci.methods import METHODS
from ambient_sci.methods.base import Batch
from ambient_sci.prior import build_denoiser
from ambient_sci.privacy import Mechanism, PrivateGradient
from ambient_sci.viewer.run import write_run

accountants = pytest.importorskip("opacus.accountants")
CPU = torch.device("cpu")
RELEASED = ("README.md", "config.json", "log.jsonl", "prior.safetensors", "samples.png")


@pytest.fixture
def options(store_path: Path, tmp_path: Path) -> dict[str, Any]:
    """A private run of seconds."""
    return {
        "store": store_path, "out": tmp_path / "run", "method": "oracle", "images": 96, "batch": 8, "widths": (32,),
        "patch": 2, "precision": "fp32", "checkpoint": 32, "sigma_data": 0.3, "privacy_epsilon": 8.0, "device": "cpu",
        "learning_rate": 1e-3,
    }  # fmt: skip


# --------------------------------------------------------------------------------- a step, where gradients are known


class Linear:
    """Learner whose loss of scan ``i`` is ``g_i · w``: its gradient is ``g_i``, whatever the weights are."""

    def __init__(self, gradients: Tensor) -> None:
        self.gradients, self.taken = gradients, []

    def of(self, scans: np.ndarray, generator: torch.Generator) -> list[Batch]:
        self.taken.append(set(scans.tolist()))
        index = torch.from_numpy(scans)
        return [Batch(index, (self.gradients[index],))]

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        return batch.values[0] @ denoiser.network.weight[0]


class Weights(nn.Module):
    """Nothing but weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.network = nn.Linear(count, 1, bias=False)


def linear(
    gradients: Tensor, options: dict[str, Any], **changes: Any
) -> tuple[Linear, Callable[[int], Tensor], TrainConfig]:
    """A learner, and what gives the noisy gradient of a step."""
    config = TrainConfig(**options | {"privacy_delta": 1e-3, "privacy_noise": 1.0} | changes)
    learner, denoiser = Linear(gradients), Weights(gradients.shape[1])
    private = PrivateGradient(denoiser, list(denoiser.parameters()), learner, config, len(gradients))

    def step(seen: int) -> Tensor:
        norm = private.step(seen, 12345, CPU)
        told = denoiser.network.weight.grad[0].clone()
        assert norm == pytest.approx(float(told.norm()))
        return told

    return learner, step, config


def test_a_step_is_the_sum_of_clipped_gradients_and_noise(options: dict[str, Any]) -> None:
    """Over the expected number of scans, whatever their number is; the noise is what is left."""
    g = torch.randn(12, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 12)[:, None]
    clip, noise = 0.7, 0.05  # small enough to see an error of the sum behind it
    learner, step, config = linear(g, options, batch=6, privacy_clip=clip, privacy_noise=noise)
    told = torch.stack([step(seen) for seen in range(0, 6 * 40, 6)])
    by_hand = []
    for taken in learner.taken:
        total = torch.zeros(300)
        for scan in taken:
            total += g[scan] * min(1.0, clip / float(g[scan].norm()))
        by_hand.append(total / config.batch)
    left = (told - torch.stack(by_hand)).flatten() * config.batch / (noise * clip)
    assert stats.kstest(left.numpy(), "norm").pvalue > 1e-3
    assert float(left.std()) == pytest.approx(1, abs=0.03)
    # new noise in every step
    steps = left.reshape(40, 300)
    assert float((torch.corrcoef(steps) - torch.eye(40)).abs().max()) < 5 / math.sqrt(300)


def test_scans_are_taken_independently_of_each_other(options: dict[str, Any]) -> None:
    """Poisson sampling: sizes are binomial, and so are pairs; an empty step is noise."""
    learner, step, _ = linear(torch.zeros(8, 2), options, batch=2)
    empty = 0
    for seen in range(0, 4000, 2):
        told, size = step(seen), len(learner.taken)
        empty += len(learner.taken) < size or not bool(told.any())
    sizes = np.array([len(taken) for taken in learner.taken])
    steps, calls = 2000, len(sizes)  # nothing is asked for where no scan is taken
    assert empty == 0
    expected = steps * stats.binom.pmf(np.arange(9), 8, 0.25)
    seen = np.bincount(sizes, minlength=9).astype(float)
    seen[0] = steps - calls
    assert stats.chisquare([*seen[:5], seen[5:].sum()], [*expected[:5], expected[5:].sum()]).pvalue > 1e-3
    pairs = sum({2, 5} <= taken for taken in learner.taken)
    assert stats.binomtest(pairs, steps, 0.25**2).pvalue > 1e-3


def test_what_is_told_of_a_scan_has_the_law_that_is_accounted_for(options: dict[str, Any]) -> None:
    """Along the gradient of one scan: noise, and with probability q a shift of the clipped norm."""
    g = torch.zeros(4, 3)
    g[1, 0], g[2, 1] = 50.0, 3.0  # far above the clipped norm, and at right angles to each other
    clip, noise, batch = 2.0, 0.4, 1
    _, step, _ = linear(g, options, batch=batch, privacy_clip=clip, privacy_noise=noise)
    told = np.array([float(step(seen)[0]) * batch for seen in range(3000)])

    def law(x: np.ndarray) -> np.ndarray:
        spread = noise * clip
        return 0.75 * stats.norm.cdf(x, 0, spread) + 0.25 * stats.norm.cdf(x, clip, spread)

    assert stats.kstest(told, law).pvalue > 1e-3


@pytest.mark.parametrize("value", [1e30, math.inf, math.nan])
def test_no_scan_moves_a_step_by_more_than_the_clipped_norm(options: dict[str, Any], value: float) -> None:
    g = torch.randn(10, 5, generator=torch.Generator().manual_seed(1))
    clip, batch = 0.5, 10
    _, step, _ = linear(g, options, batch=batch, privacy_clip=clip)
    without = g.clone()
    without[3] = 0
    g[3] = value
    _, step_without, _ = linear(without, options, batch=batch, privacy_clip=clip)
    for seen in (0, 10, 20):
        moved = float((step(seen) - step_without(seen)).norm()) * batch
        assert moved <= clip * (1 + 1e-5)


def private_step(
    store: Store, options: dict[str, Any], network: nn.Module | None = None, **changes: Any
) -> tuple[Tensor, PrivateGradient]:
    """One step on a store without noise, as one vector."""
    config = TrainConfig(**options | {"privacy_noise": 1.0, "privacy_delta": 1e-3} | changes)
    learner = METHODS[config.method](config, store, False)
    torch.manual_seed(0)
    denoiser = build_denoiser(config, store.image_shape, store.is_complex, network)
    with torch.no_grad():  # the last layer begins with zeros, and nothing else would have a gradient
        for weight in denoiser.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    learner.prepare(0, None)
    private = PrivateGradient(denoiser, list(denoiser.parameters()), learner, config, len(store))
    private.mechanism = replace(private.mechanism, noise=0.0)
    private.step(0, 7, CPU)
    return torch.cat([weight.grad.flatten() for weight in private.weights]), private


def test_gradients_are_those_that_opacus_computes(store_path: Path, options: dict[str, Any]) -> None:
    """Its hooks and its optimiser, on the same scans, noise and levels.

    Not with the hooks that it has for convolutions: those of 1.6 give zeros where activations are not contiguous, as
    they are not behind the attention of this network.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    store, clip = open_store(store_path), 0.05
    told, private = private_step(store, options, privacy_clip=clip)
    assert private._together
    denoiser = private.denoiser
    network = GradSampleModule(denoiser.network, loss_reduction="sum", force_functorch=True)
    theirs = EDMDenoiser(network, denoiser.sigma_data)
    optimizer = DPOptimizer(
        torch.optim.SGD(network.parameters(), 1.0), noise_multiplier=0.0, max_grad_norm=clip,
        expected_batch_size=private.config.batch, loss_reduction="mean",
    )  # fmt: skip
    optimizer.zero_grad()
    taken = np.flatnonzero(privacy.rng_for(7, privacy._SAMPLE, 0).random(len(store)) < 8 / 40)
    assert len(taken) > 2
    (batch,) = private.learner.of(taken, privacy.stream(7, 0, 0))
    x, sigma, noise = batch.values
    error = (theirs(x + sigma.reshape(-1, 1, 1, 1) * noise, sigma) - x).abs().square().flatten(1).mean(1)
    ((1 / sigma**2 + 1 / 0.3**2) * error).sum().backward()
    optimizer.pre_step()
    expected = torch.cat([weight.grad.flatten() for weight in network.parameters()])
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["oracle", "ambient"])
@pytest.mark.parametrize("changes", [{"checkpoint_activations": True}, {"accumulate": 3}])
def test_together_or_one_by_one_is_the_same(
    store_path: Path, options: dict[str, Any], method: str, changes: dict[str, Any]
) -> None:
    """Weights have copies for some scans at a time, or there is one scan at a time."""
    store, some = open_store(store_path), {"method": method, "consistency_steps": 2, "privacy_clip": 0.05}
    told, private = private_step(store, options, **some, **changes)
    assert private._together != ("checkpoint_activations" in changes)
    expected, _ = private_step(store, options, **some)
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["ambient", "naive"])
def test_networks_that_restore_learn_from_each_scan_by_itself(
    store_path: Path, options: dict[str, Any], method: str
) -> None:
    """Without clipping, the sum is the gradient of the sum of losses."""
    store = open_store(store_path)
    told, private = private_step(store, options, method=method, privacy_clip=1e6)
    taken = np.flatnonzero(privacy.rng_for(7, privacy._SAMPLE, 0).random(len(store)) < 8 / 40)
    (batch,) = private.learner.of(taken, privacy.stream(7, 0, 0))
    loss = private.learner.loss(private.denoiser, batch).sum() / 8
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, private.weights)])
    torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_networks_that_keep_statistics_are_refused(store_path: Path, options: dict[str, Any]) -> None:
    class Statistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return self.layers(x)

    with pytest.raises(ConfigError, match=r"buffer 'network.layers.1.running_mean' .* is not private: .* GroupNorm"):
        train(TrainConfig(**options), network=Statistics(), progress=False)


# ------------------------------------------------------------------------------------------------------- accounting


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Exact epsilon of the Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""

    def gap(epsilon: float) -> float:
        a, b = 1 / (2 * noise), epsilon * noise
        return float(stats.norm.cdf(a - b) - math.exp(epsilon + stats.norm.logcdf(-a - b)) - delta)

    return float(optimize.brentq(gap, 0, 500))


@pytest.mark.parametrize("noise", [0.6, 2.0, 30.0])
@pytest.mark.parametrize("steps", [1, 100])
def test_epsilon_is_just_above_that_of_the_gaussian_mechanism(noise: float, steps: int) -> None:
    """Where every scan is in every step: steps are as one with less noise."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    assert exact <= Mechanism(noise, 1.0, 1e-5).epsilon(steps) <= 1.15 * exact


@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.05), (1.0, 0.3), (3.0, 0.5)])
def test_epsilon_of_a_step_is_above_both_exact_ones(noise: float, rate: float) -> None:
    """With and without the scan: the mixture against the Gaussian, and the Gaussian against the mixture."""
    delta, x = 1e-3, np.linspace(-40 * noise, 40 * noise + 1, 400_001)
    without = stats.norm.pdf(x, 0, noise)
    mixture = (1 - rate) * without + rate * stats.norm.pdf(x, 1, noise)

    def exact(p: np.ndarray, q: np.ndarray) -> float:
        def gap(epsilon: float) -> float:
            return float(np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x)) - delta

        return 0.0 if gap(0) <= 0 else float(optimize.brentq(gap, 0, 50))

    told = Mechanism(noise, rate, delta).epsilon(1)
    highest = max(exact(mixture, without), exact(without, mixture))
    assert highest <= told <= 1.6 * highest + 0.05


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (0.8, 0.2, 30), (4.0, 0.1, 2000)])
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int) -> None:
    by_hand, tight = accountants.RDPAccountant(), accountants.PRVAccountant()
    for _ in range(steps):
        by_hand.step(noise_multiplier=noise, sample_rate=rate)
        tight.step(noise_multiplier=noise, sample_rate=rate)
    told = Mechanism(noise, rate, 1e-5).epsilon(steps)
    assert told == pytest.approx(by_hand.get_epsilon(1e-5), rel=1e-3)  # our orders have theirs among them
    assert told <= by_hand.get_epsilon(1e-5) + 1e-9
    assert tight.get_epsilon(1e-5, eps_error=0.01) - 0.02 <= told <= 1.25 * tight.get_epsilon(1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 200.0])
def test_the_least_noise_is_found(epsilon: float) -> None:
    found = Mechanism.within(epsilon, 0.08, 1e-4, 500)
    assert found.epsilon(500) <= epsilon < Mechanism(0.998 * found.noise, 0.08, 1e-4).epsilon(500)
    assert found.noise == float(f"{found.noise:.4g}")


def test_nothing_is_spent_before_the_first_step() -> None:
    assert Mechanism(1.0, 0.1, 1e-5).epsilon(0) == 0


# ------------------------------------------------------------------------------------------------------------ a run


def test_a_run_tells_what_it_spent_and_nothing_else(
    store_path: Path,
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run = options["out"]
    given = [f"--{name.replace('_', '-')}={options[name]}" for name in sorted({*options} - {"store", "widths"})]
    monkeypatch.setattr(sys, "argv", ["ambient-sci", "train", str(store_path), *given, "--widths=32", "--quiet"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    prior, log = load_prior(run, "cpu"), [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    spent = prior.trained_on["privacy"]
    by_hand = accountants.RDPAccountant()
    by_hand.history = [(prior.config.privacy_noise, 8 / 40, 12)]
    assert spent["epsilon"] == pytest.approx(by_hand.get_epsilon(0.1 / 40), abs=2e-3)
    assert 7.9 < spent["epsilon"] <= 8
    assert (spent["delta"], spent["rate"], spent["steps"]) == (0.1 / 40, 8 / 40, 12)
    assert f"epsilon {spent['epsilon']:g} at delta 0.0025 for each scan" in capsys.readouterr().out
    card = (run / "README.md").read_text()
    assert f"epsilon {spent['epsilon']:g} at delta 0.0025 for each scan" in card
    assert "Of k scans of one person it is k times the epsilon." in card
    assert [line["epsilon"] for line in log] == sorted(line["epsilon"] for line in log)
    assert log[-1]["epsilon"] == spent["epsilon"]
    # what is not noisy is not told
    assert all(set(line) == {"images", "gradient", "rate", "epsilon"} for line in log)
    store = open_store(store_path)
    assert {path.name for path in run.iterdir()} == {*RELEASED, "checkpoint.safetensors"}
    for name in RELEASED:
        assert store.fingerprint.encode() not in (run / name).read_bytes()
    assert set(prior.trained_on) == {"store", "operator", "scans", "privacy"}
    assert prior.config.validation_scans == 0
    write_run(tmp_path / "run.html", run)
    assert "Privacy spent" in (tmp_path / "run.html").read_text()


def test_the_key_is_secret_and_ends_with_the_run(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbits", lambda bits: 0xABCDEF0123456789ABCDEF)
    run = options["out"]
    headers = []
    monkeypatch.setattr("ambient_sci.training.write_model_card", lambda *_: headers.append(checkpoint(run)))
    train(TrainConfig(**options), progress=False)
    assert [header.get("key") for header in headers] == ["abcdef0123456789abcdef", "abcdef0123456789abcdef", None]
    assert stat.S_IMODE((run / "checkpoint.safetensors").stat().st_mode) == 0o600


def checkpoint(run: Path) -> dict[str, Any]:
    return load_tensors(run / "checkpoint.safetensors")[1]


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_tensors(run / "prior.safetensors")[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Stopped(Exception):
    """A run that is killed."""


@pytest.mark.parametrize("method", ["oracle", "ambient"])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    options: dict[str, Any], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run with the same seed does not, since noise is not drawn from it."""
    options |= {"method": method, "images": 64, "checkpoint": 16}
    whole, killed, another = (TrainConfig(**options | {"out": tmp_path / name}) for name in ("whole", "killed", "new"))
    with monkeypatch.context() as patch:
        patch.setattr(secrets, "randbits", lambda bits: 2**100 + 3)
        train(whole, progress=False)
        step = PrivateGradient.step

        def fails(self: PrivateGradient, seen: int, key: int, device: torch.device) -> float:
            if seen == 40:
                raise Stopped
            return step(self, seen, key, device)

        patch.setattr(PrivateGradient, "step", fails)
        with pytest.raises(Stopped):
            train(killed, progress=False)
    assert checkpoint(killed.out)["seen"] == 32
    train(killed, progress=False)
    train(another, progress=False)
    assert same(weights_of(whole.out), weights_of(killed.out))
    assert (whole.out / "log.jsonl").read_text() == (killed.out / "log.jsonl").read_text()
    assert not same(weights_of(whole.out), weights_of(another.out))
    assert load_prior(whole.out).trained_on["privacy"] == load_prior(another.out).trained_on["privacy"]


def test_the_length_of_a_run_stays_as_it_is(options: dict[str, Any]) -> None:
    options = options | {"privacy_epsilon": None, "privacy_noise": 1.0, "images": 16}
    train(TrainConfig(**options), progress=False)
    with pytest.raises(ConfigError, match=r"images \(was 16, now 32\)"):
        train(TrainConfig(**options | {"images": 32}), progress=False)


def test_options_that_were_found_can_be_given_again(options: dict[str, Any]) -> None:
    """The run's own ``config.json`` repeats it."""
    train(TrainConfig(**options), progress=False)
    again = TrainConfig.from_json((options["out"] / "config.json").read_text())
    assert again.privacy_noise is not None
    train(again, progress=False)


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "em"}, "'em' cannot be private: its first images and their power are chosen on all scans together"),
        ({"method": "tv-edm"}, "'tv-edm' cannot be private: its regularisation is chosen"),
        ({"method": "ambient-gan"}, "'ambient-gan' cannot be private: its generator"),
        ({"sigma_data": None}, "looks at no scan to estimate sigma_data"),
        ({"validation_scans": 4}, "validation_scans must be 0"),
        ({"patience": 2}, "patience looks at scans that are set aside"),
        ({"clean": Path("clean.zarr")}, "leave out clean"),
        ({"batch": 41}, "batch must be at most 40"),
        ({"privacy_delta": 0.03}, r"privacy_delta must be below 0\.025"),
        ({"privacy_epsilon": 1e-9, "privacy_delta": 1e-12}, "cannot be kept with any noise"),
        ({"privacy_noise": 0.5}, r"privacy_noise 0\.5 would spend an epsilon of .*, not 8"),
        ({"privacy_epsilon": None, "privacy_delta": 1e-3}, "privacy_delta alone asks for nothing"),
    ],
)
def test_what_would_break_the_guarantee_is_refused(options: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        train(TrainConfig(**options | changes), progress=False)
    assert "\n" not in str(refused.value)


def test_several_processes_are_refused(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "size", lambda: 2)
    with pytest.raises(ConfigError, match="runs in one process"):
        train(TrainConfig(**options), progress=False)


def test_a_run_on_the_same_scans_is_no_beginning(options: dict[str, Any], tmp_path: Path) -> None:
    first = {**options, "out": tmp_path / "first", "images": 16}
    train(TrainConfig(**first | {"privacy_epsilon": None}), progress=False)
    with pytest.raises(ConfigError, match="learned from the same scans"):
        train(TrainConfig(**options | {"start_from": tmp_path / "first"}), progress=False)


def test_without_opacus_one_line_says_what_to_install(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ConfigError, match=r"needs Opacus: pip install 'ambient-sci\[privacy\]'"):
        train(TrainConfig(**options), progress=False)


# ----------------------------------------------------------------------------------------------------- the benchmark


def test_the_table_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary trainings come first, then from weak to strong guarantees; the small set last."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.privacy")
    scores = {"nrmse": 0.25, "nrmse_error": 0.01, "auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "seconds": 12.4}
    rows = [
        {"scans": scans, "method": method, "privacy": spent, **scores}
        for scans in (64, 4000)
        for method in ("ambient", "oracle")
        for spent in (
            {"epsilon": 1.0, "delta": 0.1 / scans, "noise": 2.5},
            {"epsilon": 8.0, "delta": 0.1 / scans, "noise": 0.6},
            None,
        )
    ]
    found = {"rows": rows, "classical": 0.2146, "images": 12_000, "test": 64, "torch": "2.13.0"}
    lines = benchmark.table(found).splitlines()
    assert lines[2] == "| 4,000 | `oracle` | none |  | 0.250 ± 0.010 | 0.50 (0.40-0.60) | 12 |"
    assert lines[3].startswith("| 4,000 | `oracle` | 8 | 0.6 |")
    assert lines[4].startswith("| 4,000 | `oracle` | 1 | 2.5 |")
    assert [line.split(" | ")[1] for line in lines[2:8]] == ["`oracle`"] * 3 + ["`ambient`"] * 3
    assert [line[:7] for line in lines[2:14]] == ["| 4,000"] * 6 + ["| 64 | "] * 6
    assert "Total variation, without any prior: 0.215. 12,000 images each" in lines[-1]
    assert "delta 0.0015625 and 2.5e-05" in lines[-1]
