"""Muon against singular values, torch's own Muon and AdamW."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ambient_sci import optimizers
from ambient_sci.config import TrainConfig
from ambient_sci.errors import ConfigError
from ambient_sci.optimizers import ITERATIONS, POLYNOMIAL, Muon, default_optimizer, make_optimizer, orthogonalise

OPTIONS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 5, 12), (2, 12, 5), (1, 6, 6), (2, 1, 4)])
def test_singular_values_are_brought_near_one(shape: tuple[int, ...]) -> None:
    matrices = 1e-5 * drawn(*shape)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    a, b, c = POLYNOMIAL
    values = s / s.norm(dim=-1, keepdim=True)
    for _ in range(ITERATIONS):
        values = values * (a + b * values**2 + c * values**4)
    torch.testing.assert_close(orthogonalise(matrices), u * values[:, None] @ vh)
    well = u * (0.5 + s / s.amax(-1, keepdim=True))[:, None] @ vh
    assert ((torch.linalg.svdvals(orthogonalise(well)) - 1).abs() < 0.35).all()


def test_nothing_stays_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs_of: Any = torch.optim.Muon
    plain, kernel = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape)[..., None, None])
    theirs = theirs_of(
        [plain], lr=0.01, weight_decay=0.1, momentum=0.9, ns_coefficients=POLYNOMIAL, ns_steps=ITERATIONS,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    ours = Muon([kernel], **OPTIONS)
    before = plain.detach().clone()
    for step in range(5):
        plain.grad = drawn(*shape, seed=step)
        kernel.grad = plain.grad[..., None, None].clone()
        theirs.step()
        ours.step()
    moved = plain - before
    # theirs multiplies in bfloat16
    assert (kernel[..., 0, 0] - plain).norm() < 0.02 * moved.norm()


def test_what_is_no_kernel_is_left_to_adamw() -> None:
    own, their = ([nn.Parameter(drawn(*shape)) for shape in ((3, 2, 3, 3), (4, 5), (6,))] for _ in range(2))
    ours, theirs = Muon(own, **OPTIONS), torch.optim.AdamW(their, **OPTIONS)
    for step in range(3):
        for one, other in zip(own, their, strict=True):
            one.grad = drawn(*one.shape, seed=step)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(own[1:], their[1:])
    assert (own[0] - their[0]).abs().max() > 1e-3


def test_weights_without_gradients_stay() -> None:
    weights = [nn.Parameter(drawn(2, 2, 3, 3)), nn.Parameter(drawn(3))]
    before = [weight.detach().clone() for weight in weights]
    Muon(weights, **OPTIONS).step()
    assert all(map(torch.equal, weights, before))


def test_who_learns_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = TrainConfig(store=tmp_path, out=tmp_path)
    assert (default_optimizer(new), new.peak_rate) == ("muon", 5e-3)
    assert new.model_copy(update={"optimizer": "adamw"}).peak_rate == 3e-3
    for options in ({"pretrained": "model"}, {"adapt": "last"}, {"privacy_noise": 1.0}):
        assert default_optimizer(new.model_copy(update=options)) == "adamw"
    monkeypatch.setattr(optimizers, "is_sharded", lambda: True)
    assert default_optimizer(new) == "adamw"
    with pytest.raises(ConfigError, match="'muon' needs whole matrices, which FSDP cuts: take 'adamw'"):
        make_optimizer([nn.Parameter(drawn(2, 2, 3, 3))], new.model_copy(update={"optimizer": "muon"}))
