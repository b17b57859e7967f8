"""Steps of training: in parts, with activations computed again, compiled, and stopped in the middle of a lap."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ambient_sci.methods.em as em
from ambient_sci import steps
from ambient_sci.checkpoint import load_tensors
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store
from ambient_sci.errors import ConfigError
from ambient_sci.methods import METHODS, Learner, starts
from ambient_sci.prior import Prior, build_denoiser, load_prior
from ambient_sci.seeding import stream
from ambient_sci.training import train


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.gain * torch.tanh(x[:, :2])


def problem(method: str, store: Path, **options: Any) -> tuple[TrainConfig, Learner, Any]:
    """A learner of batches of 7 scans, and a network that has left its initial weights."""
    config = TrainConfig(store=store, out="run", method=method, widths=(32, 32), sigma_data=0.4, **options)
    source = open_store(store)
    learner = METHODS[config.method](config, source, False)
    torch.manual_seed(0)
    denoiser = build_denoiser(config, source.image_shape, source.is_complex)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    prior = Prior(denoiser, source.image_shape, source.is_complex, config, {}, 0)
    learner.prepare(0, prior)
    return config, learner, denoiser


def gradients(config: TrainConfig, learner: Learner, denoiser: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    denoiser.zero_grad()
    losses = steps.backward(denoiser, learner, batch, steps.own_parts(config), torch.device("cpu"))
    return losses, torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


@pytest.mark.parametrize("method", ["oracle", "ambient"])
def test_a_step_in_parts_has_the_same_gradient(method: str, store_path: Path) -> None:
    config, learner, denoiser = problem(method, store_path, batch=7, precision="fp32")
    batch = learner.draw(stream(0, 0, 0))
    losses, gradient = gradients(config, learner, denoiser, batch)
    denoiser.zero_grad()
    mean = learner.loss(denoiser, batch).mean()  # what it is all about, in one line
    mean.backward()
    torch.testing.assert_close(losses.mean(), mean.detach())
    plain = torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, plain, rtol=0, atol=0)
    for parts in (2, 7):
        some = config.model_copy(update={"accumulate": parts})
        split, sums = gradients(some, learner, denoiser, batch)
        torch.testing.assert_close(split, losses, rtol=1e-5, atol=0)
        assert (sums - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("method", ["oracle", "ambient"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_computed_again_give_the_same_gradient(method: str, precision: str, store_path: Path) -> None:
    config, learner, denoiser = problem(method, store_path, batch=4, precision=precision)
    batch = learner.draw(stream(0, 0, 0))

    def kept() -> int:
        """Numbers that the graph of a forward pass holds for its derivative."""
        held: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
            learner.loss(denoiser, batch)
        return sum(held)

    before, (losses, gradient) = kept(), gradients(config, learner, denoiser, batch)
    steps.prepare_network(denoiser, config.model_copy(update={"checkpoint_activations": True}))
    assert kept() < 0.7 * before
    again, same = gradients(config, learner, denoiser, batch)
    torch.testing.assert_close(again, losses, rtol=0, atol=0)
    torch.testing.assert_close(same, gradient, rtol=0, atol=0)


@pytest.mark.parametrize(("batch", "every"), [(8, 4), (10, 3), (32, 1), (50, 1)])
def test_the_average_forgets_with_its_half_life(batch: int, every: int) -> None:
    """Of weights that jump from 0 to 1 half is there after a half-life, whatever the size of the steps."""
    average, network = Gain(), Gain()
    moving = steps.Average(average, network, half_life=400)
    start = 3200 // (batch * every) * batch * every  # where an update was due
    with torch.no_grad():
        average.gain.zero_()
    for count in range(1, 4 * every + 1):
        moving.update(batch, start + count * batch)
        done = batch * every * (count // every)
        assert float(average.gain) == pytest.approx(1 - 0.5 ** (done / 400), abs=1e-6)
    moving.update(batch, start + batch * (4 * every + 1), last=True)
    done = batch * (4 * every + 1)
    assert float(average.gain) == pytest.approx(1 - 0.5 ** (done / 400), abs=1e-6)


def test_activation_checkpointing_wants_a_network_that_can(
    store_path: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", checkpoint_activations=True, **small)
    with pytest.raises(ConfigError, match="checkpoint_activations wants the built-in U-Net, or a network with"):
        train(config, network=Gain(), progress=False)


def test_a_compiled_network_trains_to_the_same(
    store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "plain", method="ambient", **{**small, "images": 64})
    train(config, network=Gain(), progress=False)
    compiled = []

    def trace_only(network: nn.Module) -> None:  # the C++ compiler takes long
        compiled.append(network)
        nn.Module.compile(network, backend="aot_eager")

    monkeypatch.setattr(steps, "check_compiler", lambda device: None)
    monkeypatch.setattr(Gain, "compile", trace_only)
    train(config.model_copy(update={"out": tmp_path / "compiled", "compile": True}), network=Gain(), progress=False)
    assert len(compiled) == 1
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors")[0] for run in ("plain", "compiled"))
    assert first.keys() == second.keys()  # torch.compile would have renamed them
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_compiling_without_a_compiler_is_refused(
    store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(store=store_path, out=tmp_path / "run", method="ambient", compile=True, **small)
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError, match=r"compile needs a compiler that works here, and there is none \(.*\): leave"):
        train(config, network=Gain(), progress=False)


def test_a_signal_in_a_lap_does_not_wait_for_its_end(
    store_path: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lap is drawn anew by the continuation, to the same bits."""
    monkeypatch.setattr(starts, "CHUNK", 16)
    monkeypatch.setattr(em, "TIMES", 1)  # a lap of all scans
    calls = []
    draw = em.draw_posterior

    def struck(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return draw(*arguments, **options)

    config = TrainConfig(store=store_path, out=tmp_path / "run", **{**small, "checkpoint": 1000})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "draw_posterior", struck)
        with pytest.raises(SystemExit) as end:
            train(config, network=Gain(), progress=False)
    assert end.value.code == 143
    assert len(calls) == 2  # of three
    assert load_prior(tmp_path / "run", network=Gain()).images == 96
    for run in ("run", "whole"):
        train(config.model_copy(update={"out": tmp_path / run}), network=Gain(), progress=False)
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors")[0] for run in ("run", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in second)
