"""Tasks of the harness of learning: what is measured, and what is known exactly, against sums written down by hand."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_sci import Measurement, open_store
from ambient_sci.config import TrainConfig
from ambient_sci.denoise import Denoiser
from ambient_sci.errors import DataError
from ambient_sci.measurement import randn_like
from ambient_sci.operators import Mask
from ambient_sci.prior import Prior
from ambient_sci.seeding import stream

ROOT = Path(__file__).parents[2]
Blobs = Callable[..., np.ndarray]
NAMES = ("clean", "laws", "radio")


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT))
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.learning.{name}") for name in NAMES})


# --------------------------------------------------------------------------------------------------------------- radio


def test_snapshots_are_visibilities(learning: SimpleNamespace, tmp_path: Path, blobs: Blobs) -> None:
    """The sum over pixels of the textbook, with noise of the stated level, other baselines in each scan."""
    images = blobs(12)
    store = learning.radio.snapshots(images, tmp_path / "radio.zarr", True, 3)
    m, truth = store.read(slice(None), raw=True), store.references(slice(None))
    assert torch.equal(truth[:, 0], torch.from_numpy(images))
    A = m.operator
    assert A.uv.shape == (12, 351, 2)
    step = np.arange(16) - 8
    north, east = np.meshgrid(step * A.pixel_size, -step * A.pixel_size, indexing="ij")
    phase = A.uv[..., 0, None].numpy() * east.ravel() + A.uv[..., 1, None].numpy() * north.ravel()
    want = np.einsum("bjn,bn->bj", np.exp(-2j * np.pi * phase), images.reshape(12, -1)) / 16  # 16 = root of the pixels
    seen = A.rows.numpy() > 0
    assert (m.y.numpy()[~seen] == 0).all()
    error = ((m.y.numpy() - want) / m.noise.numpy())[seen]
    assert error.real.std() == pytest.approx(1, abs=0.04)
    assert error.imag.std() == pytest.approx(1, abs=0.04)
    assert seen.mean() == pytest.approx(0.95**2, abs=0.05)
    assert not torch.equal(A.uv[0], A.uv[1])
    assert float(m.noise.std() / m.noise.mean()) == pytest.approx(0.25 / np.sqrt(2), abs=0.04)
    # 11 km and 21 cm, and the grid of 1.8 arcsec holds them
    assert 0.25 < float(A.uv.abs().max()) * A.pixel_size < 0.5


def _noiseless(learning: SimpleNamespace, image: Tensor) -> Measurement:
    scan = learning.radio.snapshot(image.numpy(), stream(0))
    return Measurement(scan.operator(image[None, None]), scan.operator, 1e-6 * scan.noise)


def test_clean_of_a_point(learning: SimpleNamespace) -> None:
    """A point source becomes the restoring Gaussian, in its place and of its flux, whatever the sidelobes are."""
    image = torch.zeros(32, 32)
    image[20, 9] = 5.0
    m = _noiseless(learning, image)
    for width in (1.0, 0.6):
        got = learning.clean.clean(m, 3.0, width)[0, 0]
        assert got.argmax() == 20 * 32 + 9
        assert float(got.sum()) == pytest.approx(5.0, rel=1e-3)
        square = (torch.arange(32) - 20)[:, None] ** 2 + (torch.arange(32) - 9) ** 2
        width_now = float((got * square).sum() / got.sum())
        if width == 1.0:
            before = width_now
    assert width_now == pytest.approx(0.36 * before, rel=0.02)  # a sum of variances


def test_clean_puts_sources_where_they_are(learning: SimpleNamespace) -> None:
    """Two sources of unequal flux that the dirty image does not tell from its sidelobes."""
    image = torch.zeros(32, 32)
    image[6, 25], image[22, 10] = 10.0, 1.0
    got = learning.clean.clean(_noiseless(learning, image), 3.0, 0.5)[0, 0]
    assert float(got[3:10, 22:29].sum()) == pytest.approx(10, rel=1e-2)
    assert float(got[19:26, 7:14].sum()) == pytest.approx(1, rel=1e-2)
    rest = got.clone()
    rest[3:10, 22:29] = rest[19:26, 7:14] = 0
    assert float(rest.abs().max()) < 0.01


def test_main_lobe(learning: SimpleNamespace) -> None:
    K = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    axis = torch.arange(32, dtype=torch.float64) - 16
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    psf = torch.exp(-torch.einsum("hwi,ij,hwj->hw", z, K, z) / 2)
    torch.testing.assert_close(learning.clean.main_lobe(psf[None])[0], K)


def test_clean_needs_visibilities(learning: SimpleNamespace) -> None:
    mask = torch.ones(1, 1, 4, 4)
    with pytest.raises(DataError, match="CLEAN needs visibilities, got measurements of kind 'mask'"):
        learning.clean.clean(Measurement(mask, Mask(mask), 0.1))


# ---------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", ["gaussian", "gaussian-complex", "mixture", "mixture-complex"])
def test_law(name: str, learning: SimpleNamespace) -> None:
    """Its moments; with every pixel measured the posterior mean is what the denoiser gives; half of them measured, that
    of a joint Gaussian of the other half."""
    law = learning.laws.LAWS[name]
    x = law.draw(20000, stream(1)).flatten(1)
    mean = law.weights.to(law.means.dtype) @ law.means
    assert float((x.mean(0) - mean).abs().max()) < 0.02
    spread = (law.weights[:, None, None] * law.covariances).sum(0) * (2 if x.is_complex() else 1)
    centre = law.means - mean
    spread = spread + torch.einsum("k,ki,kj->ij", law.weights.to(centre.dtype), centre, centre.conj())
    got = (x - x.mean(0)).mT @ (x - x.mean(0)).conj() / len(x)
    assert float((got - spread).abs().max()) < 0.05 * float(spread.abs().max())

    y = x[:3] + 0.2 * randn_like(x[:3], stream(2))
    want = law.denoiser(y.reshape(3, 1, 8, 8), torch.full((3,), 0.2, dtype=torch.float64))
    identity = torch.eye(64, dtype=x.dtype)
    torch.testing.assert_close(torch.stack([law.posterior_mean(identity, each, 0.2) for each in y]), want)

    if law.weights.shape[0] == 1:
        half = identity[:32]
        S, mu = law.covariances[0].to(x.dtype), law.means[0]
        exact = mu[32:] + S[32:, :32] @ torch.linalg.solve(S[:32, :32], (x[0] - mu)[:32])
        torch.testing.assert_close(law.posterior_mean(half, x[0, :32], 0).flatten()[32:], exact, atol=1e-3, rtol=1e-3)


class Off(Denoiser):
    """The exact denoiser with an error of known size."""

    def __init__(self, exact: Denoiser, error: float) -> None:
        super().__init__()
        self.exact, self.error, self.sigma_data = exact, error, 0.3
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        exact = self.exact(x.to(self.exact.means.dtype), sigma.double()).to(x.dtype)
        return exact + self.error


def _prior(denoiser: Denoiser, is_complex: bool) -> Prior:
    config = TrainConfig(store="s", out="o", method="oracle")
    return Prior(denoiser, (1, 8, 8), is_complex, config, {}, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gaussian", "mixture-complex"])
def test_excess(name: str, learning: SimpleNamespace) -> None:
    """None for the exact denoiser; of another, the added square over the least error, which a Gaussian has in closed
    form."""
    laws = learning.laws
    law, is_complex = laws.LAWS[name], name.endswith("complex")
    assert laws.denoised_excess(_prior(Off(law.denoiser, 0.0), is_complex), law) < 1e-9
    got = laws.denoised_excess(_prior(Off(law.denoiser, 0.1), is_complex), law, count=2000)
    if not is_complex:
        spectrum = torch.linalg.eigvalsh(law.covariances[0])
        levels = 0.3 * laws.LEVELS
        least = [float((s**2 * spectrum / (s**2 + spectrum)).sum()) for s in levels]
        assert got == pytest.approx(np.mean([64 * 0.01 / value for value in least]), rel=0.05)


def test_law_scores(learning: SimpleNamespace, tmp_path: Path) -> None:
    """Multi-coil scans keep their law: the exact posterior mean is as far off as its covariance says."""
    laws = learning.laws
    law = laws.LAWS["gaussian-complex"]
    images = law.draw(40, stream(7))[:, 0].to(torch.complex64).numpy()
    path = tmp_path / "scans.zarr"
    laws.sense_scans(images, path, True, 5, 0.1)
    store = open_store(path)
    m = store.read(slice(None))
    assert torch.equal(m.scale, torch.ones(40))
    matrices = laws.dense(m)
    x = store.references(slice(None))
    for scan in (0, 39):
        torch.testing.assert_close(
            matrices[scan] @ x[scan].flatten().to(torch.complex128),
            m.operator(x)[scan].flatten().to(torch.complex128),
            atol=1e-6,
            rtol=1e-5,
        )
    exact = laws.posterior_means(law, matrices, m.y, 0.1)
    error = (exact - x).abs().square().flatten(1).sum(1)
    S = law.covariances[0].to(torch.complex128)
    expected = []
    for matrix in matrices:
        gain = S @ matrix.mH @ torch.linalg.inv(matrix @ S @ matrix.mH + 0.01 * torch.eye(len(matrix)))
        expected.append(2 * float((S - gain @ matrix @ S).diagonal().real.sum()))
    assert float(error.mean()) == pytest.approx(np.mean(expected), rel=0.15)

    scores = laws.law_scores(_prior(Off(law.denoiser, 0.0), True), store, law)
    assert scores["excess"] < 1e-9
    assert scores["nrmse_exact"] == pytest.approx(float((error / x.abs().square().flatten(1).sum(1)).sqrt().mean()))
    drawn = law.draw(256, stream(8))
    distances = laws.law_distances(drawn, law)
    assert distances["frechet"] == pytest.approx(distances["frechet_floor"], rel=0.2)
    assert laws.law_distances(2 * drawn, law)["frechet"] > 3 * distances["frechet"]
