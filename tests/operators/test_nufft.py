"""Non-uniform transforms against the sum written out, and against sigpy."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Fourier, LinearOperator, Nufft, Sense
from ambient_sci.operators.density import density_compensation
from ambient_sci.testing import OperatorTests


def trajectories(batch: int, samples: int, ndim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(batch, samples, ndim, generator=generator, dtype=torch.float64) - 1) * math.pi


def complex_noise(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def sums(trajectory: Tensor, shape: Sequence[int]) -> Tensor:
    """The transform of one image as it is defined, ``(batch, samples, pixels)``, in double precision."""
    rows = []
    for points in trajectory.double().numpy():
        positions = itertools.product(*(range(-(size // 2), size - size // 2) for size in shape))
        rows.append(np.exp(-1j * points @ np.array(list(positions)).T))
    return torch.from_numpy(np.stack(rows)) / math.sqrt(math.prod(shape))


def matrices(A: Nufft, channels: int) -> Tensor:
    matrix = A.weights.double()[..., None] * sums(A.trajectory, A.shape)
    if A.maps is None:
        return torch.stack([torch.block_diag(*[one] * channels) for one in matrix])
    maps = A.maps if A.maps.ndim > 2 + len(A.shape) else A.maps[:, None]
    batch, sets, coils = maps.shape[:3]
    full = matrix[:, None, :, None] * maps.flatten(3).transpose(1, 2)[:, :, None]
    return full.reshape(batch, coils * matrix.shape[1], sets * matrix.shape[2])


class NufftTests(OperatorTests):
    """The kit for one shape; see the classes below."""

    coils: tuple[int, ...] = ()
    readout = 1
    samples = 24
    backend = "auto"

    def make(self, batch: int, seed: int) -> LinearOperator:
        shape = self.image_shape[1:]
        weights = torch.rand(batch, self.samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights[:, self.samples // 2 :: 5] = 0  # not measured
        return Nufft(
            trajectories(batch, self.samples, len(shape), seed),
            shape,
            complex_noise((batch, *self.coils, *shape), seed) if self.coils else None,
            weights,
            readout=self.readout,
            backend=self.backend,
        )

    def dense(self, operator: LinearOperator) -> Tensor:
        assert isinstance(operator, Nufft)
        return matrices(operator, self.image_shape[0])


class TestLine(NufftTests):
    image_shape = (1, 7)


class TestChannels(NufftTests):
    image_shape = (2, 6, 5)


class TestCoils(NufftTests):
    image_shape = (1, 4, 7)
    coils = (3,)


class TestVolumeOfTwoSets(NufftTests):
    image_shape = (2, 3, 4, 5)
    coils = (2, 3)
    readout = 6


class TestTorchkbnufft(NufftTests):
    """Adjoint and gram belong to an approximate map; `test_torchkbnufft_adjoint_is_exact` has the rest."""

    image_shape = (1, 6, 5)
    coils = (2,)
    backend = "torchkbnufft"
    tolerance = 1e-3


@pytest.mark.parametrize("shape", [(6,), (6, 9), (3, 4, 5)])
def test_points_of_the_grid_give_the_fourier_transform(shape: tuple[int, ...]) -> None:
    axes = [2 * math.pi * (torch.arange(size, dtype=torch.float64) - size // 2) / size for size in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, len(shape))
    x, maps = complex_noise((2, 1, *shape), 0), complex_noise((1, 3, *shape), 1)
    mask = torch.ones(1, 1, *shape, dtype=torch.float64)
    A = Nufft(grid, shape)
    torch.testing.assert_close(A(x).reshape(x.shape), Fourier(mask)(x))
    torch.testing.assert_close(A.gram(x), x)
    torch.testing.assert_close(Nufft(grid, shape, maps)(x).reshape(2, 3, *shape), Sense(mask, maps)(x))


@pytest.mark.parametrize("shape", [(12, 15), (6, 7, 8)])
@pytest.mark.parametrize("backend", ["finufft", "torchkbnufft"])
def test_sigpy(shape: tuple[int, ...], backend: str) -> None:
    """Single precision against another library, which takes frequencies in cycles per field of view."""
    import sigpy

    k = trajectories(1, 50, len(shape), 0)
    x = complex_noise((1, 1, *shape), 1)
    want = sigpy.nufft(x[0, 0].numpy(), (k[0] / (2 * math.pi)).numpy() * shape, oversamp=2, width=8)
    got = Nufft(k.float(), shape, backend=backend)(x.to(torch.complex64))[0, 0]
    error = np.linalg.norm(got.numpy() - want) / np.linalg.norm(want)
    assert error < 3e-4, error


@pytest.mark.parametrize(("backend", "bound"), [("finufft", 1e-4), ("torchkbnufft", 2e-4)])
def test_single_precision(backend: str, bound: float) -> None:
    """Within the tolerance that is promised, forwards, backwards and for the gram."""
    k, x, maps = trajectories(2, 300, 2, 0), complex_noise((2, 1, 33, 20), 1), complex_noise((2, 3, 33, 20), 2)
    exact = Nufft(k, (33, 20), maps)
    single = Nufft(k.float(), (33, 20), maps.to(torch.complex64), backend=backend)
    y = exact(x)
    pairs = [(single(x.to(torch.complex64)), y), (single.H(y.to(torch.complex64)), exact.H(y))]
    pairs.append((single.gram(x.to(torch.complex64)), exact.gram(x)))
    for got, want in pairs:
        assert got.dtype == torch.complex64
        assert float((got - want).norm() / want.norm()) < bound


def test_images_of_another_precision_than_the_operator(capfd: pytest.CaptureFixture[str]) -> None:
    """The precision of the result is that of the image, whatever the maps are; nothing is printed about it."""
    k, x, maps = trajectories(2, 300, 2, 0), complex_noise((2, 1, 33, 20), 1), complex_noise((2, 3, 33, 20), 2)
    A = Nufft(k, (33, 20), maps)
    y = A(x.to(torch.complex64))
    assert y.dtype == torch.complex64
    assert float((y - A(x)).norm() / y.norm()) < 5e-5
    assert A.H(y).dtype == torch.complex64
    assert A[0].to(torch.float32)(x[:1]).dtype == torch.complex128
    assert capfd.readouterr().err == ""


def test_torchkbnufft_adjoint_is_exact() -> None:
    A = Nufft(trajectories(2, 30, 2, 0), (6, 7), complex_noise((2, 3, 6, 7), 1), backend="torchkbnufft")
    x, y = complex_noise((2, 1, 6, 7), 2), complex_noise((2, 3, 30), 3)
    torch.testing.assert_close(torch.vdot(A(x).flatten(), y.flatten()), torch.vdot(x.flatten(), A.H(y).flatten()))


def test_tolerance_is_reached() -> None:
    k, x = trajectories(1, 200, 2, 0), complex_noise((1, 1, 30, 30), 1)
    want = torch.einsum("bkn,bcn->bck", sums(k, (30, 30)), x.flatten(2))
    errors = []
    for tolerance in (1e-2, 1e-5, 1e-8, 1e-12):
        errors.append(float((Nufft(k, (30, 30), tolerance=tolerance)(x) - want).norm() / want.norm()))
        assert errors[-1] < tolerance * 2
    assert errors == sorted(errors, reverse=True)


def test_trajectory_gradient() -> None:
    """That of the sum written out, differentiated by autograd, for a loss that is not linear."""
    k, x, maps = trajectories(2, 9, 2, 0), complex_noise((2, 1, 4, 5), 1), complex_noise((2, 3, 4, 5), 2)
    weights = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position = torch.stack(torch.meshgrid(torch.arange(4) - 2, torch.arange(5) - 2, indexing="ij"), -1).reshape(-1, 2)
    moving = k.clone().requires_grad_()
    matrix = torch.exp(-1j * (moving @ position.double().T)) / math.sqrt(20) * weights[..., None]
    y = torch.einsum("bkn,bcn->bck", matrix, (x * maps).flatten(2))
    loss = y.abs().pow(3).sum()
    gradient_y, want = torch.autograd.grad(loss, [y, moving])
    torch.testing.assert_close(Nufft(k, (4, 5), maps, weights).trajectory_gradient(x, gradient_y), want)


def test_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import finufft

    made = []
    plan = finufft.Plan

    def counted(*args: object, **kwargs: object) -> object:
        made.append(args)
        return plan(*args, **kwargs)

    monkeypatch.setattr(finufft, "Plan", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    A = Nufft(trajectories(3, 20, 2, 0), (6, 6), complex_noise((3, 4, 6, 6), 1))
    x = complex_noise((3, 1, 6, 6), 2)
    for _ in range(3):
        A.H(A(x))
    assert len(made) == 3  # one for every scan, for both directions and all coils
    A.gram(x)
    assert len(made) == 6  # of twice the size, once
    A.gram(x)
    assert len(made) == 6


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    batch=st.integers(1, 3),
    samples=st.integers(1, 12),
    coils=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_any_shape(shape: tuple[int, ...], batch: int, samples: int, coils: int, seed: int) -> None:
    k = trajectories(batch, samples, len(shape), seed)
    A = Nufft(k, shape, complex_noise((batch, coils, *shape), seed) if coils else None)
    x = complex_noise((batch, 1, *shape), seed + 1)
    matrix = matrices(A, 1)
    y = (matrix @ x.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(A(x).flatten(1), y, rtol=1e-9, atol=1e-9)
    back = (matrix.mH @ y[..., None])[..., 0]
    torch.testing.assert_close(A.H(A(x)).flatten(1), back, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(A.gram(x).flatten(1), back, rtol=1e-9, atol=1e-9)


K = trajectories(2, 10, 2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trajectory": K[0]}, r"trajectory must be .*\(batch, samples, 2\).* got .*\(10, 2\)"),
        ({"trajectory": K.to(torch.complex128)}, "trajectory must be .*real"),
        ({"trajectory": K * math.nan}, "trajectory must be finite"),
        ({"trajectory": K * 100}, "trajectory must be in radians per pixel"),
        ({"shape": (4, 5, 6)}, r"trajectory must be .*\(batch, samples, 3\)"),
        ({"shape": ()}, "shape must be whole numbers"),
        ({"shape": (4, 0)}, "shape must be whole numbers of at least 1"),
        ({"shape": (4, 5.5)}, "shape must be whole numbers"),
        ({"shape": (4, 5, 6, 7)}, "shape must be one to three sizes"),
        ({"maps": torch.ones(2, 3, 4, 6, dtype=torch.complex128)}, r"maps must be of the shape of the image, \(4, 5\)"),
        ({"maps": torch.ones(2, 3, 4, 5)}, "maps must be finite, complex"),
        ({"maps": torch.ones(1, 3, 4, 5, dtype=torch.complex128)}, "maps must be .* the batch of 2"),
        ({"maps": torch.full((2, 3, 4, 5), math.nan, dtype=torch.complex128)}, "maps must be finite"),
        ({"weights": torch.full((2, 10), math.inf)}, "weights must be 0 or more, finite"),
        ({"weights": torch.ones(2, 9)}, r"weights must be .*\(2, 10\), got .*\(2, 9\)"),
        ({"weights": -torch.ones(2, 10)}, "weights must be 0 or more"),
        ({"weights": torch.full((2, 10), math.nan)}, "weights must be 0 or more"),
        ({"readout": 3}, "readout must divide the number of samples, 10, got 3"),
        ({"readout": 0}, "readout must divide"),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1"),
        ({"backend": "fftw"}, "backend must be one of auto, finufft, torchkbnufft, got 'fftw'"),
    ],
)
def test_bad_parameters_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Nufft(**{"trajectory": K, "shape": (4, 5), **change})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- density compensation


def radial(spokes: int, samples: int) -> Tensor:
    angle = torch.arange(spokes, dtype=torch.float64) * math.pi / spokes
    radius = 2 * math.pi * (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples
    points = radius[:, None] * torch.stack([angle.sin(), angle.cos()], -1)[:, None]
    return points.reshape(1, -1, 2)


@pytest.mark.parametrize("method", ["pipe", "voronoi"])
@pytest.mark.parametrize("shape", [(9,), (7, 9), (3, 5, 7)])
def test_samples_on_the_grid_have_one_cell_each(method: str, shape: tuple[int, ...]) -> None:
    axes = [2 * math.pi * (torch.arange(size, dtype=torch.float64) - size // 2) / size for size in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, len(shape))
    areas = density_compensation(grid, shape, method)
    torch.testing.assert_close(areas, torch.ones_like(areas), rtol=1e-2, atol=0)


def test_voronoi_cells_of_spokes() -> None:
    """Known areas: rings between the radii, cut by the spokes; the centre, that all spokes sample, is shared."""
    spokes, samples = 40, 32
    areas = density_compensation(radial(spokes, samples), (16, 16), "voronoi").reshape(spokes, samples)
    step = 2 * math.pi / samples
    radius = (torch.arange(samples) - samples // 2) * step
    cell = (2 * math.pi / 16) ** 2
    # the edges of a cell are straight: a polygon with as many corners as there are half-spokes
    want = radius.abs().double() * step * 2 * math.tan(math.pi / (2 * spokes)) / cell
    inner = slice(2, samples - 1)
    got = areas[:, inner]
    away = (want[inner] > 0).expand_as(got)
    torch.testing.assert_close(got[away], want[inner].expand_as(got)[away], rtol=1e-6, atol=0)
    centre = areas[:, samples // 2]
    polygon = (step / 2) ** 2 * 2 * spokes * math.tan(math.pi / (2 * spokes)) / cell
    torch.testing.assert_close(centre.sum(), torch.tensor(polygon, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["pipe", "voronoi"])
def test_compensated_gridding_has_the_scale_of_the_image(method: str) -> None:
    """A smooth image is gridded to itself; without compensation the centre of k-space counts many times."""
    position = torch.arange(32, dtype=torch.float64) - 16
    x = torch.exp(-(position[:, None] ** 2 + position**2) / 40).to(torch.complex128)[None, None]
    k = radial(64, 64)
    areas = density_compensation(k, (32, 32), method)
    A = Nufft(k, (32, 32), weights=areas.sqrt())
    error = float((A.gram(x) - x).norm() / x.norm())
    assert error < 0.06, error
    plain = Nufft(k, (32, 32)).gram(x)
    scale = (plain.conj() * x).sum() / (plain.abs() ** 2).sum()
    assert float((scale * plain - x).norm() / x.norm()) > 0.4


def test_density_refuses() -> None:
    with pytest.raises(DataError, match="method must be one of pipe, voronoi, got 'ramp'"):
        density_compensation(K, (4, 5), "ramp")
    with pytest.raises(DataError, match=r"trajectory must be \(batch, samples, 3\)"):
        density_compensation(K, (4, 5, 6))
    with pytest.raises(DataError, match="iterations"):
        density_compensation(K, (4, 5), iterations=0)
    line = torch.zeros(1, 10, 2, dtype=torch.float64)
    line[..., 0] = torch.linspace(-3, 3, 10)
    with pytest.raises(DataError, match="samples must span all 2 axes"):
        density_compensation(line, (4, 5), "voronoi")
    with pytest.raises(DataError, match="too few"):
        density_compensation(K[:, :4], (4, 5), "voronoi")
