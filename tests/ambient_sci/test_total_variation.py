"""Total variation against closed forms and against scikit-image and sigpy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci.baselines import total_variation_batch
from ambient_sci.baselines.total_variation import differences, differences_adjoint, total_variation
from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Fourier, Gaussian, Identity, Mask, Sense, patterns
from ambient_sci.operators.solve import dot


def noisy(x: Tensor, std: float = 0.1) -> Measurement:
    """Images with noise, and nothing else."""
    y = x + std * randn_like(x, torch.Generator().manual_seed(0))
    return Measurement(y, Identity(tuple(x.shape[1:])).repeat(len(x)), std)


def discs(batch: int, size: int) -> Tensor:
    """Complex discs, other ones in every scan, ``(batch, 1, size, size)``."""
    ticks = torch.linspace(-1, 1, size)
    shift = 0.2 * torch.arange(batch)[:, None, None]
    inside = (ticks[:, None] - shift) ** 2 + (ticks + shift / 2) ** 2 < 0.4
    return (inside * torch.exp(1j * ticks))[:, None].to(torch.complex64)


def sense(batch: int, size: int) -> tuple[Tensor, Measurement]:
    """Scans of discs with three coils and a third of the lines."""
    generator = torch.Generator().manual_seed(0)
    x = discs(batch, size)
    ticks = torch.linspace(-1, 1, size)
    bumps = [torch.exp(-((ticks[:, None] - a) ** 2) - (ticks - b) ** 2 + 1j * a) for a, b in ((-1, 0), (1, 0), (0, 1))]
    maps = torch.stack(bumps) / torch.stack(bumps).abs().square().sum(0).sqrt()
    mask = patterns.random_lines(batch, (size, size), 3, 4, generator)
    A = Sense(mask, maps.repeat(batch, 1, 1, 1), calibration=4)
    y = A(x)
    return x, Measurement(y + 0.02 * randn_like(y, generator) * A.rows, A, 0.02)


def objective(m: Measurement, x: Tensor, lam: float) -> Tensor:
    residual = m.operator(x) - m.y
    return 0.5 * dot(residual, residual).flatten() + lam * total_variation(x)


@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5)])
def test_differences_and_their_adjoint(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, *shape, dtype=torch.complex128, generator=generator)
    z = torch.randn(len(shape), *x.shape, dtype=torch.complex128, generator=generator)
    for axis, values in enumerate(differences(x)):
        inside = torch.diff(x, dim=axis + 2)
        torch.testing.assert_close(values.narrow(axis + 2, 0, shape[axis] - 1), inside)
        assert not values.select(axis + 2, -1).any()
    torch.testing.assert_close(torch.vdot(z.flatten(), differences(x).flatten()),
                               torch.vdot(differences_adjoint(z).flatten(), x.flatten()))  # fmt: skip


@pytest.mark.parametrize("phase", [0.0, 1.2])
def test_a_step_loses_contrast_as_it_must(phase: float) -> None:
    """Of an edge between n and m columns, the sides move towards each other by lam/n and lam/m; borders do not."""
    x = torch.zeros(1, 1, 6, 20, dtype=torch.float64)
    x[..., 8:] = 1
    expected = x + torch.where(x == 0, 0.3 / 8, -0.3 / 12)
    turn = torch.exp(torch.tensor(1j * phase, dtype=torch.complex128)) if phase else 1.0
    m = Measurement(turn * x, Identity((1, 6, 20)), 0.1)
    torch.testing.assert_close(total_variation_batch(m, 0.3, 100), turn * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 20), (8, 7, 6)])
def test_denoising_agrees_with_scikit_image(shape: tuple[int, ...]) -> None:
    from skimage.restoration import denoise_tv_chambolle

    x = torch.zeros(2, 1, *shape, dtype=torch.float64)
    x[0, ..., 3:6], x[1, ..., 4:] = 1, -2
    m = noisy(x)
    for ours, y in zip(total_variation_batch(m, 0.15, 200), m.y, strict=True):
        theirs = denoise_tv_chambolle(y[0].numpy(), weight=0.15, eps=1e-9, max_num_iter=3000)
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=2e-3)


def test_the_minimum_is_the_one_that_sigpy_finds() -> None:
    """sigpy's solver and SENSE operator; its own TV is anisotropic and joins opposite borders."""
    import sigpy
    import sigpy.mri

    lam, size = 0.02, 16
    _, m = sense(1, size)
    assert isinstance(m.operator, Sense)
    A = sigpy.mri.linop.Sense(m.operator.maps[0].numpy(), weights=m.operator.mask[0].numpy())
    parts = []
    for axis in range(2):
        inside = np.ones((1, size, size))
        inside[0, -1 if axis == 0 else slice(None), -1 if axis == 1 else slice(None)] = 0
        ahead = sigpy.linop.Circshift((size, size), [-1], axes=[axis]) - sigpy.linop.Identity((size, size))
        reshape = sigpy.linop.Reshape((1, size, size), (size, size))
        parts.append(sigpy.linop.Multiply((1, size, size), inside) * reshape * ahead)
    G = sigpy.linop.Vstack(parts, axis=0)

    class Isotropic(sigpy.prox.Prox):  # type: ignore[misc]
        def _prox(self, alpha: float, input: Any) -> Any:
            length = np.sqrt((np.abs(input) ** 2).sum(0)).clip(1e-30)
            return input * (1 - alpha * lam / length).clip(0)

    app = sigpy.app.LinearLeastSquares(
        A, m.y[0].numpy(), proxg=Isotropic(G.oshape), G=G, solver="ADMM", rho=0.1, max_iter=100, show_pbar=False
    )
    theirs = torch.from_numpy(app.run())[None, None]
    torch.testing.assert_close(total_variation_batch(m, lam, 100), theirs, rtol=1e-3, atol=3e-3)


def test_default_iterations_come_close_to_the_minimum() -> None:
    _, m = sense(2, 32)
    for lam in (0.003, 0.02):
        best, ours = (objective(m, total_variation_batch(m, lam, *n), lam) for n in ((300,), ()))
        assert bool((ours < 1.01 * best).all())


def test_several_operators_and_better_than_no_prior() -> None:
    generator = torch.Generator().manual_seed(0)
    x = discs(2, 16)
    mask = (torch.rand(2, 1, 16, 16, generator=generator) < 0.6).float()
    mask[..., 6:10, 6:10] = 1
    operators = (Mask(mask), Fourier(mask), Gaussian(160, (1, 16, 16), torch.tensor([3, 4])))
    for A in operators:
        image = x.real.contiguous() if A.kind == "gaussian" else x
        m = Measurement(A(image), A, 0.0)
        restored = total_variation_batch(m, 0.003)
        assert restored.dtype == image.dtype
        assert float((restored - image).norm()) < 0.25 * float(image.norm())
        torch.testing.assert_close(total_variation_batch(m[1], 0.003), restored[1:], rtol=1e-3, atol=1e-4)


def test_units_and_weights() -> None:
    """Images in other units come out in them; a sample with much noise counts as one that was not measured."""
    _, m = sense(1, 16)
    large = Measurement(1000 * m.y, m.operator, 20.0)
    torch.testing.assert_close(
        total_variation_batch(large, 10.0), 1000 * total_variation_batch(m, 0.01), rtol=1e-3, atol=1e-2
    )
    noise = torch.full(m.y.shape, 0.02)
    noise[..., 1::4] = 1e4
    kept = m.operator.mask.clone()
    kept[..., 1::4] = 0
    fewer = Measurement(m.y * kept, Sense(kept, m.operator.maps), 0.02)
    torch.testing.assert_close(
        total_variation_batch(Measurement(m.y, m.operator, noise), 0.01),
        total_variation_batch(fewer, 0.01),
        rtol=1e-3,
        atol=1e-3,
    )
    with pytest.raises(ConfigError, match="lam must not be negative, got -1"):
        total_variation_batch(m, -1)
