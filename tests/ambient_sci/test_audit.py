"""An audit of priors: exact ones that copy and exact ones that do not, with images and with measurements alone."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xarray
from torch import Tensor, nn

import ambient_sci
from ambient_sci import cli, train
from ambient_sci.audit import PriorAudit, audit_prior, infer_membership
from ambient_sci.audit.comparison import chance, remeasure
from ambient_sci.audit.figure import audit_figure
from ambient_sci.audit.membership import DRAWS, scan_losses
from ambient_sci.audit.similarity import Nearest, agreement, correlation
from ambient_sci.audit.statistics import auc_interval, rate_interval, separate
from ambient_sci.baselines import cg_sense
from ambient_sci.config import TrainConfig
from ambient_sci.datasets import Store, open_store, simulate
from ambient_sci.denoise import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser
from ambient_sci.errors import ConfigError, DataError, NotFoundError, OutputError
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Fourier, LinearOperator, Mask, Matrix, Nufft, Sense
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.prior import Prior, build_denoiser

SIDE = 10
SHAPE, N = (1, SIDE, SIDE), SIDE**2
TRAINING, HELD = 60, 40
QUICK: dict[str, Any] = {"count": 40, "steps": 12, "progress": False}


def covariance(width: float = 1.3) -> Tensor:
    place = torch.cartesian_prod(torch.arange(float(SIDE)), torch.arange(float(SIDE)))
    return 0.09 * (torch.exp(-(torch.cdist(place, place) ** 2) / (2 * width**2)) + 1e-3 * torch.eye(N))


def images(count: int, seed: int, width: float = 1.3) -> Tensor:
    white = torch.randn(count, N, generator=torch.Generator().manual_seed(seed))
    return (white @ torch.linalg.cholesky(covariance(width)).mT).reshape(-1, *SHAPE)


def as_prior(denoiser: Any, is_complex: bool = False, trained_on: dict[str, Any] | None = None) -> Prior:
    denoiser.sigma_data = 0.3
    denoiser.register_parameter("somewhere", nn.Parameter(torch.zeros(1)))
    return Prior(denoiser.eval(), SHAPE, is_complex, TrainConfig(store="a", out="b"), trained_on or {}, 0)


def honest(scale: float = 1.0) -> Prior:
    """Prior that images were drawn from; it has not seen a single one."""
    return as_prior(GaussianDenoiser(torch.zeros(SHAPE), scale * covariance()))


def empirical(known: Tensor, weights: Tensor | None = None) -> Prior:
    """Exact denoiser of the training images, which draws these and nothing else."""
    weights = torch.ones(len(known)) if weights is None else weights
    narrow = 1e-6 * torch.eye(N).expand(len(known), N, N)
    return as_prior(GaussianMixtureDenoiser(weights, known, narrow), known.is_complex())


class Scans(NamedTuple):
    training: Store
    held: Store
    known: Tensor  # images of the training, in normalised units
    scale: float  # variance of images in these units


def scans(folder: Path, operator: str, references: bool = True, **options: Any) -> Scans:
    stores = [
        simulate(
            images(count, seed)[:, 0].numpy(),
            folder / f"{name}.zarr",
            operator=operator,
            noise=0.03,
            references=references,
            seed=seed,
            **options,
        )
        for name, count, seed in (("training", TRAINING, 1), ("held", HELD, 2))
    ]
    scale = torch.from_numpy(stores[0].scale).float()
    known = images(TRAINING, 1) / scale.reshape(-1, 1, 1, 1)
    return Scans(*stores, known, float((scale**-2).mean()))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    return scans(tmp_path_factory.mktemp("pixels"), "mask", keep=0.6)


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    """The same without references."""
    return scans(tmp_path_factory.mktemp("unknown"), "mask", keep=0.6, references=False)


# ------------------------------------------------------------------------------------------------------- what passes


@pytest.mark.parametrize("space", ["pixels", "measured"])
def test_an_exact_prior_that_has_seen_nothing_passes(space: str, pixels: Scans) -> None:
    found = audit_prior(honest(pixels.scale), pixels.training, pixels.held, spaces=[space], **QUICK)
    assert found.passed
    assert found.copied == {}
    data = found.dataset
    assert 0.35 < float(data["auc"].item()) < 0.65
    low, high = data["auc_interval"].to_numpy()[0]
    assert low < 0.5 < high
    limit = rate_interval(0, 40)[1]
    assert found.verdict.startswith(f"no copies found: no near-copy among 40 images (of all, at most {limit:.1%}); ")


def test_blurred_images_are_like_everything_and_copy_nothing(pixels: Scans) -> None:
    """They are more similar to training scans than these are to each other, which by itself looks like copying."""
    smooth = as_prior(GaussianDenoiser(torch.zeros(SHAPE), pixels.scale * covariance(4.0)))
    known = as_prior(GaussianDenoiser(torch.zeros(SHAPE), pixels.scale * covariance(0.5)))
    blurred, rough = (audit_prior(prior, pixels.training, pixels.held, **QUICK) for prior in (smooth, known))
    assert blurred.copies == rough.copies == 0
    assert float(blurred.dataset["auc_similarity"].item()) > float(rough.dataset["auc_similarity"].item()) + 0.2


# ------------------------------------------------------------------------------------------------------ what is found


def test_an_empirical_prior_is_found_to_copy(pixels: Scans) -> None:
    found = audit_prior(empirical(pixels.known), pixels.training, pixels.held, **QUICK)
    data = found.dataset.sel(space="pixels")
    assert not found.passed
    assert found.copies == 40
    assert float(data["similarity"].min()) > 0.999
    assert float(data["auc"]) == 1
    closest = torch.cdist(
        torch.from_numpy(found.pairs[0]).flatten(1), pixels.known.flatten(1)
    )  # by another measure of distance
    np.testing.assert_array_equal(closest.argmin(1), data["nearest"][found.pair_images])
    np.testing.assert_allclose(found.pairs[0], found.pairs[1], atol=0.02)
    assert f"COPIES {len(found.copied)} training scans (" in found.verdict
    assert sorted(image for some in found.copied.values() for image in some) == list(range(40))


def test_planted_scans_are_named(pixels: Scans) -> None:
    """Half of the images are two of the scans; the others are new."""

    class Planted(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            rest = pixels.scale * covariance()
            narrow = 1e-6 * torch.eye(N)
            means = torch.cat([pixels.known[[7, 31]], torch.zeros(1, *SHAPE)])
            self.mixture = GaussianMixtureDenoiser(
                torch.tensor([1.0, 1, 2]), means, torch.stack([narrow, narrow, rest])
            )

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            found: Tensor = self.mixture(x, sigma)
            return found

    for space in ("pixels", "measured"):
        found = audit_prior(as_prior(Planted()), pixels.training, pixels.held, spaces=[space], **QUICK)
        assert set(found.copied) == {7, 31}, space
        assert 10 <= found.copies <= 30, space
        assert not found.passed


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("mask", {"keep": 0.6}),
        ("sense", {"coils": 2, "acceleration": 1.6, "calibration": 4, "phase": False}),
        ("gaussian", {"n_measurements": 60}),
        ("nufft", {"coils": 1, "acceleration": 1.0, "phase": False}),
    ],
)
def test_copies_are_found_in_measurements_alone(operator: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = scans(tmp_path, operator, references=False, **options)
    is_complex = made.training.is_complex
    known = made.known.to(torch.complex64) if is_complex else made.known
    found = audit_prior(empirical(known), made.training, made.held, **QUICK)
    assert list(found.dataset["space"]) == ["measured"]
    assert found.copies > 0
    assert float(found.dataset["auc"].item()) > 0.95
    # a copy is one standard deviation of the noise away from its scan
    assert float(found.dataset["residual"].median()) == pytest.approx(1, abs=0.1)
    covering = (1 + is_complex) ** -1 * made.scale * covariance()
    mean = torch.zeros(SHAPE, dtype=known.dtype)
    other = audit_prior(as_prior(GaussianDenoiser(mean, covering), is_complex), made.training, made.held, **QUICK)
    assert other.copies == 0
    assert float(other.dataset["residual"].min()) > 1.5
    assert "times the noise" in str(other)


# ---------------------------------------------------------------------------------------------------------- similarity


def test_correlation_is_that_of_numpy_and_blind_to_phase() -> None:
    a, b = images(3, 1), images(4, 2)
    expected = np.corrcoef(a.flatten(1).numpy(), b.flatten(1).numpy())[:3, 3:]
    np.testing.assert_allclose(correlation(a, 5 * b + 2), expected, atol=1e-5)
    turned = a * torch.polar(torch.ones(3, 1, 1, 1), torch.tensor([0.3, 2.0, -3.0]).reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(correlation(turned, a.to(torch.complex64)).diagonal(), np.ones(3), rtol=1e-5)
    features = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(correlation(*features, centred=False), [[0.5**0.5, 1]], rtol=1e-6)


def operators() -> Iterator[LinearOperator]:
    generator = torch.Generator().manual_seed(0)
    lines = (torch.rand(1, 1, 1, SIDE, generator=generator) < 0.6).float()
    yield Mask((torch.rand(1, *SHAPE, generator=generator) < 0.5).float())
    yield Fourier(lines, (SIDE, SIDE))
    yield Sense(lines, torch.view_as_complex(torch.randn(1, 3, SIDE, SIDE, 2, generator=generator)))
    yield Nufft(3 * torch.rand(1, 40, 2, generator=generator), (SIDE, SIDE))
    yield Matrix(torch.randn(1, 30, N, generator=generator), SHAPE)


@pytest.mark.parametrize("operator", [*operators()], ids=lambda operator: operator.kind)
def test_agreement_is_the_fit_of_dense_least_squares(operator: LinearOperator) -> None:
    """The factor and the residual by numpy, from the matrix of the operator and noise that differs between samples."""
    generator = torch.Generator().manual_seed(3)
    is_complex = operator.kind in ("fourier", "sense", "nufft")
    blank = torch.zeros(3, *SHAPE, dtype=torch.complex64 if is_complex else torch.float32)
    x = randn_like(blank, generator)
    y = operator(x[:1])
    sigma = 0.1 + torch.rand(y.shape, generator=generator)
    y = (y + sigma * randn_like(y, generator)) * operator.rows
    similarity, residual = agreement(x, Measurement(y, operator, sigma))

    rows = (operator.rows.expand(y.shape) > 0).flatten().numpy()
    target = (y / sigma).flatten().numpy()[rows].astype(complex)
    for k in range(3):
        fitted = (operator(x[k : k + 1]) / sigma).flatten().numpy()[rows].astype(complex)
        if is_complex:
            factor = np.linalg.lstsq(fitted[:, None], target, rcond=None)[0][0]
        else:
            factor = max(np.linalg.lstsq(fitted.real[:, None], target.real, rcond=None)[0][0], 0)
        parts, free = (2, 2) if y.is_complex() else (1, 1)
        expected = np.linalg.norm(target - factor * fitted) / np.sqrt(parts * len(target) - free)
        assert float(residual[k]) == pytest.approx(expected, rel=1e-3)
    assert float(similarity[0]) > float(similarity[1:].max())


def test_noise_is_taken_off_on_average() -> None:
    """The similarity estimates the correlation with the noiseless measurement, however noisy the scan."""
    generator = torch.Generator().manual_seed(0)
    x = randn_like(torch.zeros(2, 1, 40, 40), generator)
    mixed = 0.6 * x[:1] + 0.8 * x[1:]
    operator = Mask(torch.ones(1, 1, 40, 40))
    for noise in (0.01, 1.0, 2.0):
        found = [
            float(agreement(mixed, Measurement(x[:1] + noise * randn_like(x[:1], generator), operator, noise))[0])
            for _ in range(20)
        ]
        assert np.mean(found) == pytest.approx(0.6, abs=0.04)
    silent = Measurement(randn_like(x[:1], generator), operator, 1.0)
    assert float(agreement(mixed, silent)[0]) == 0


def test_the_nearest_of_a_stream_are_those_of_all() -> None:
    similarity = torch.rand(5, 23, generator=torch.Generator().manual_seed(0))
    near = Nearest(5, 4)
    for start in range(0, 23, 6):
        part = torch.arange(start, min(start + 6, 23))
        near.add(similarity[:, part], 100 + part)
    values, places = similarity.sort(1, descending=True)
    torch.testing.assert_close(near.similarity, values[:, :4])
    torch.testing.assert_close(near.scan, 100 + places[:, :4])
    apart = np.sqrt(2 - 2 * values[:, :4].double().numpy())
    np.testing.assert_allclose(near.relative_distance, apart[:, 0] / apart.mean(1))


def test_images_are_remeasured_like_held_out_scans(unknown: Scans) -> None:
    """Images of zeros leave the noise, on what was measured; images are in one size as are the scans."""

    def read() -> Iterator[Measurement]:
        for start in range(0, HELD, 16):
            yield unknown.held.read(slice(start, min(start + 16, HELD)))

    known = images(HELD + 8, 5)
    again = remeasure(known, read, cg_sense, seed=0)
    m = unknown.held.read(slice(None))
    assert again.shape == known.shape
    first = again[:HELD]
    inside = m.operator.rows > 0
    # least squares of a mask is y / (1 + 0.01): the regularisation
    error = (1.01 * first - known[:HELD])[inside] / m.noise.expand(first.shape)[inside]
    assert float(error.std()) == pytest.approx(1, abs=0.1)
    assert float(first[~inside].abs().max()) < 1e-6
    torch.testing.assert_close(again[HELD:][~inside[:8]], torch.zeros(int((~inside[:8]).sum())))


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("held", "training"), [(8, 200), (64, 200), (200, 64)])
def test_a_near_copy_is_claimed_as_rarely_as_stated(held: int, training: int) -> None:
    """Images on a sphere of 7 dimensions, of a density of its own for images and for scans."""
    rng = np.random.default_rng(0)
    chances = []
    for _ in range(40):
        scans = torch.from_numpy(rng.standard_normal((held + training, 8))).float()
        drawn = torch.from_numpy(rng.standard_normal((40, 8)) * np.linspace(0.5, 2, 8)).float()
        similarity = correlation(drawn, scans, centred=False).double().numpy()
        chances.append(chance(similarity[:, held:].max(1), similarity[:, :held], training))
    p = np.concatenate(chances)
    for level in (0.5, 0.1, 0.01):
        assert np.mean(p < level) < 2 * level
    if held > 8:
        assert np.mean(p < 0.1) > 0.02
    copy = chance(np.full(40, 1 - 1e-5), similarity[:, :held], training)
    assert copy.max() < 1e-5


def test_intervals_of_areas_hold_the_known_value() -> None:
    """Normal samples a distance apart, whose area is known (Hanley and McNeil 1982)."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    for apart in (0.0, 1.0, 2.5):
        known, held = norm.cdf(apart / np.sqrt(2)), 0
        for _ in range(200):
            found = separate(rng.standard_normal(40) + apart, rng.standard_normal(25))
            held += found.auc_interval[0] <= known <= found.auc_interval[1]
        assert held / 200 >= 0.9
    low, high = auc_interval(1.0, 20, 20)
    assert (0.8 < low < 0.95, high) == (True, 1.0)
    assert auc_interval(0.0, 20, 20) == pytest.approx((0.0, 1 - low), abs=1e-6)


def test_rates_at_one_percent() -> None:
    members, others = np.arange(100.0), np.arange(-100.0, 100.0)[::-1] * 0.5  # up to 49.5
    found = separate(members, others)
    assert found.rate == np.mean(members > 48.5)  # two of 200 others are above
    assert found.auc == np.mean(members[:, None] > others) + 0.5 * np.mean(members[:, None] == others)
    # of Clopper and Pearson's own table: 10 of 10 leave at least 0.692 at 95%; none of 60 leave at most 0.0596
    assert rate_interval(10, 10)[0] == pytest.approx(0.692, abs=5e-4)
    assert rate_interval(0, 60)[1] == pytest.approx(0.0596, abs=5e-5)
    with pytest.raises(DataError, match="got 3 and 0 of them"):
        separate(np.zeros(3), np.zeros(0))


# ---------------------------------------------------------------------------------------------------------- membership


def membership(found: Any) -> tuple[float, float]:
    return found.membership.threshold.auc, found.membership.threshold.p_value


def test_losses_tell_members_of_a_prior_that_copies(pixels: Scans, unknown: Scans) -> None:
    copying = empirical(pixels.known)
    for made, kind in ((pixels, "denoising"), (unknown, "misfit")):
        found = audit_prior(copying, made.training, made.held, reference=honest(made.scale), **QUICK)
        assert found.membership.kind == kind
        auc, p = membership(found)
        assert auc > 0.9
        assert p < 1e-6
        second = found.membership.reference
        assert second is not None
        assert second.auc > 0.9
        assert second.rate > 0.3
        assert (len(found.membership.members), len(found.membership.others)) == (TRAINING, HELD)
        innocent = audit_prior(honest(made.scale), made.training, made.held, **QUICK)
        assert membership(innocent)[1] > 0.005
        assert innocent.membership.reference is None


def test_the_denoising_loss_is_the_known_one() -> None:
    """Of the exact prior it is the mean over levels of the posterior variance, weighted."""
    from ambient_sci.schedule import training_levels

    prior, m = (
        honest(),
        Measurement(images(300, 1), Mask(torch.ones(300, *SHAPE)), 0.1),
    )
    found = scan_losses(prior, m, images(300, 1))
    spectrum = torch.linalg.eigvalsh(covariance()).double().clamp_min(0)
    levels = training_levels(200_000, prior.sigma_data, torch.Generator().manual_seed(0)).sort().values
    middles = levels[[int((k + 0.5) / DRAWS * 200_000) for k in range(DRAWS)]].double()
    weight = 1 / middles**2 + 1 / prior.sigma_data**2
    error = (spectrum * middles[:, None] ** 2 / (spectrum + middles[:, None] ** 2)).mean(1)
    assert float(found.mean()) == pytest.approx(float((weight * error).mean()), rel=0.02)


def test_the_misfit_of_a_copy_is_its_noise(unknown: Scans) -> None:
    m = unknown.training.read(slice(0, 20))
    one = empirical(unknown.known[:1])
    same = scan_losses(one, m)
    assert float(same[0]) == pytest.approx(1, abs=0.4)  # of 60 values
    assert float(same[1:].min()) > 5


def test_ambient_networks_are_attacked_by_their_own_loss(unknown: Scans) -> None:
    options = TrainConfig(store="a", out="b", method="ambient", sigma_data=0.3, widths=(32,), patch=2)
    torch.manual_seed(0)
    prior = Prior(build_denoiser(options, SHAPE, False).eval(), SHAPE, False, options, {}, 0)
    assert isinstance(prior.denoiser, AmbientDenoiser)
    found = audit_prior(prior, unknown.training, unknown.held, **{**QUICK, "count": 8, "steps": 3})
    assert found.membership.kind == "ambient"
    assert 0.3 < membership(found)[0] < 0.7  # untrained
    with pytest.raises(ConfigError, match="of method 'ambient', got one of method 'em'"):
        infer_membership(prior, [], [], reference=honest())
    m = unknown.training.read(slice(0, 4))
    losses = [infer_membership(prior, [(m, None)], [(m, None)], seed=seed).members for seed in (0, 0, 1)]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert not np.allclose(losses[0], losses[2])


# ------------------------------------------------------------------------------------------------------- what is told


def test_features_are_compared_too(pixels: Scans) -> None:
    def features(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1)

    found = audit_prior(empirical(pixels.known), pixels.training, pixels.held, features=features, **QUICK)
    assert list(found.dataset["space"]) == ["pixels", "features"]
    pooled, drawn = features(pixels.known), features(torch.from_numpy(found.pairs[0]))
    expected = torch.nn.functional.cosine_similarity(drawn[:, None], pooled[None], dim=2).max(1).values
    shown = found.dataset["similarity"].sel(space="features", image=found.pair_images)
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    with pytest.raises(DataError, match=r"features must be \(n, d\) for 80 images, got \(80, 1, 5, 5\)"):
        audit_prior(
            honest(), pixels.training, pixels.held, features=lambda x: torch.nn.functional.avg_pool2d(x, 2), **QUICK
        )


def test_what_is_written(pixels: Scans, tmp_path: Path) -> None:
    found = audit_prior(honest(pixels.scale), pixels.training, pixels.held, **QUICK)
    found.save(tmp_path / "out")
    for name in ("audit.png", "pairs.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert told["verdict"] == found.verdict == str(found).splitlines()[-1]
    assert told["numbers"]["scan"] == list(range(HELD))
    assert np.array(told["numbers"]["similarity"]).shape == (1, 40)
    assert told["membership"]["attacks"]["loss threshold"]["auc"] == found.membership.threshold.auc
    assert told["options"]["store"] == pixels.training.fingerprint
    assert "NaN" not in json.dumps(told)
    with pytest.raises(OutputError, match="already holds an audit"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", overwrite=True)
    for path in (tmp_path / "out", tmp_path / "out" / "audit.json"):
        again = PriorAudit.load(path)
        xarray.testing.assert_identical(again.dataset, found.dataset)
        assert str(again) == str(found)
        assert again.to_dict() == found.to_dict()
        np.testing.assert_array_equal(again.pairs, found.pairs)
    assert "no copies found" in found._repr_html_()
    (tmp_path / "out" / "pairs.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"audit\.json is damaged, or of another release"):
        PriorAudit.load(tmp_path / "out")
    with pytest.raises(NotFoundError, match="no audit at"):
        PriorAudit.load(tmp_path)
    copying = audit_prior(empirical(pixels.known), pixels.training, pixels.held, **QUICK)
    assert copying.nearer_than(found).auc == 1
    assert found.nearer_than(copying).auc == 0
    assert len(audit_figure({"one": found, "two": copying}).axes) == 3


def test_scans_that_training_kept_are_held_out(pixels: Scans) -> None:
    of = {"fingerprint": pixels.training.fingerprint, "scans": TRAINING - 10}
    prior = as_prior(GaussianDenoiser(torch.zeros(SHAPE), pixels.scale * covariance()), trained_on=of)
    found = audit_prior(prior, pixels.training, **QUICK)
    assert found.dataset["scan"].to_numpy().tolist() == list(range(TRAINING - 10, TRAINING))
    assert int(found.dataset["nearest"].max()) < TRAINING - 10
    assert len(found.membership.members) == TRAINING - 10


def test_what_cannot_be_audited(pixels: Scans, unknown: Scans) -> None:
    prior = honest()
    with pytest.raises(DataError, match=r"needs at least 8 scans that were not trained on to compare with, got 0"):
        audit_prior(prior, pixels.training, **QUICK)
    with pytest.raises(DataError, match="is the same store"):
        audit_prior(prior, pixels.training, pixels.training, **QUICK)
    with pytest.raises(DataError, match="pixels and features need the images of all scans"):
        audit_prior(prior, pixels.training, unknown.held, spaces=["pixels"], **QUICK)
    with pytest.raises(ConfigError, match="spaces must be 'pixels' or 'measured', got 'k-space'"):
        audit_prior(prior, pixels.training, pixels.held, spaces=["k-space"], **QUICK)
    with pytest.raises(ConfigError, match="count must be at least 1, got 0"):
        audit_prior(prior, pixels.training, pixels.held, count=0)
    other = as_prior(GaussianDenoiser(torch.zeros(SHAPE), covariance()), trained_on={"fingerprint": "of another"})
    with pytest.raises(DataError, match="the prior learned from another store than"):
        audit_prior(other, pixels.training, pixels.held, **QUICK)
    twofold = as_prior(GaussianDenoiser(torch.zeros(SHAPE), covariance()), is_complex=True)
    with pytest.raises(DataError, match="holds images of another kind than the prior"):
        audit_prior(twofold, pixels.training, pixels.held, **QUICK)


def test_the_command(
    pixels: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    priors = {"clean": honest(pixels.scale), "copies": empirical(pixels.known)}
    monkeypatch.setattr("ambient_sci.prior.load_prior", lambda run, device: priors[run.name])

    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ambient-sci", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    stores = (pixels.training.path, "--against", pixels.held.path)
    options = ("--count", 24, "--steps", 8, "--quiet")
    status, said, wrong = command("runs/clean", *stores, *options, "--out", tmp_path / "one")
    assert (status, wrong) == (0, "")
    again = audit_prior(
        priors["clean"], open_store(pixels.training.path), pixels.held.path, count=24, steps=8, progress=False
    )
    assert said.splitlines()[-1] == again.verdict
    both = ("--compare", "runs/clean", "--reference", "runs/clean", "--space", "pixels", "--space", "measured")
    status, said, _ = command("runs/copies", *stores, *both, *options, "--out", tmp_path / "two")
    assert status == 1
    assert "images of runs/copies are nearer than those of runs/clean with AUC 1.00" in said
    assert "reference model" in said
    written = sorted(str(path.relative_to(tmp_path / "two")) for path in (tmp_path / "two").rglob("*.*"))
    assert written == [
        "audit.json", "audit.png", "compared.png", "compared/audit.json", "compared/audit.png", "compared/pairs.npz",
        "compared/pairs.png", "pairs.npz", "pairs.png",
    ]  # fmt: skip
    status, _, said = command("runs/clean", *stores, *options, "--out", tmp_path / "two")
    assert (status, "already holds an audit" in said) == (2, True)
    status, said, _ = command("--help")
    assert "ambient-sci audit run scans.zarr --against held-out.zarr --compare run-oracle" in said


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.audit")
    few = ("--images", 16, "--scans", 10, "--times", 3, "--many", 16, "--held-out", 8, "--count", 4)
    monkeypatch.setattr(sys, "argv", ["audit", *map(str, (*few, "--only", "planted, oracle", "--out", tmp_path))])
    monkeypatch.setattr(benchmark, "audit_prior", partial(audit_prior, steps=3, progress=False))
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:30].split("  ")[0] for line in lines[2:]] == ["planted, oracle"] * 2
    numbers = json.loads((tmp_path / "audit.json").read_text())
    assert numbers["measured"]["planted, oracle"]["membership"]["loss"] == "misfit"
    made = open_store(tmp_path / "planted.zarr")
    assert len(made) == 12
    m = made.read(slice(9, 12))
    torch.testing.assert_close(m.y[1:], m.y[:1].expand(2, 1, 16, 16))
    assert (tmp_path / "pixels.png").exists()


def test_the_benchmark_of_images_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blobs: Any) -> None:
    """Few, many and held-out images are different ones, and the network of measurements has seen no image."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    benchmark = importlib.import_module("benchmarks.audit")
    every = blobs(48).astype(np.float32)
    read, learned_from = Store.references, []

    def splits(data: Path) -> Any:
        return benchmark.Splits(every[:30], every[30:36], every[36:])

    def guarded(config: TrainConfig) -> Prior:
        def references(store: Store, indices: Any) -> Tensor:
            assert config.method == "oracle", f"{config.method} asked for the images of {store.path}"
            return read(store, indices)

        learned_from.append(config.store.name)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "references", references)
            return train(config, progress=False)

    kind = replace(benchmark.KINDS["digits"], images=benchmark.given(splits))
    monkeypatch.setitem(benchmark.KINDS, "digits", kind)
    monkeypatch.setattr(benchmark, "train", guarded)
    monkeypatch.setattr(benchmark, "audit_prior", partial(audit_prior, steps=3, progress=False))

    def command(*options: Any) -> None:
        sizes = ("--images", 16, "--scans", 10, "--many", 20, "--held-out", 18, "--count", 4, "--out", tmp_path)
        monkeypatch.setattr(sys, "argv", ["audit", "--of", "digits", *map(str, (*sizes, *options))])
        benchmark.main()

    with pytest.raises(SystemExit, match="--data is needed"):
        command()
    with pytest.raises(SystemExit, match="30 images to learn from, and 18 others"):
        command("--data", tmp_path, "--many", 21)
    with pytest.raises(SystemExit):
        command("--data", tmp_path, "--only", "planted, oracle")  # nothing is planted
    assert learned_from == []
    command("--data", tmp_path)
    assert learned_from == ["many.zarr", "few.zarr"] * 2
    numbers = json.loads((tmp_path / "audit.json").read_text())["pixels"]
    attacks = {name: sorted(found["membership"]["attacks"]) for name, found in numbers.items()}
    assert [len(attacks[name]) for name in ("many, oracle", "many, ambient", "few, oracle", "few, ambient")] == [
        1, 1, 2, 2,
    ]  # fmt: skip
    shown = [open_store(tmp_path / f"{name}.zarr").references(slice(None)) for name in ("few", "many", "held-out")]
    assert [len(some) for some in shown] == [10, 20, 18]
    assert len(torch.cat(shown).flatten(1).unique(dim=0)) == len(every)
    assert (torch.cdist(shown[2].flatten(1), torch.from_numpy(every[30:]).flatten(1)).amin(1) < 1e-5).all()


def test_it_is_a_name_of_the_package() -> None:
    assert ambient_sci.audit_prior is audit_prior
