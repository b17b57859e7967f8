"""Reconstructions: what is in them, in which units, and that nothing but the scan and the seed decides it."""

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from scipy import stats

import ambient_sci
from ambient_sci import load_prior, open_store, reconstruct
from ambient_sci.datasets import StoreWriter, simulate
from ambient_sci.errors import ConfigError, DataError, NotFoundError, OutputError, StoreError
from ambient_sci.evaluate.compare import comparison_figure, evaluate
from ambient_sci.prior import Prior
from ambient_sci.reconstruction import open_reconstruction, summarise
from ambient_sci.reconstruction.pieces import Pieces

QUICK: dict[str, Any] = {"samples": 3, "steps": 4, "progress": False}
NAMES = ["sample", "mean", "std", "lower", "upper"]


@pytest.fixture(scope="module")
def prior(run_path: Path) -> Prior:
    prior = load_prior(run_path, "cpu")
    prior.denoiser.network.precision = "fp32"  # type: ignore[union-attr,assignment]
    return prior


def assert_same(a: xarray.Dataset, b: xarray.Dataset, rtol: float = 1e-3, atol: float = 1e-3) -> None:
    for name in NAMES:
        np.testing.assert_allclose(a[name].to_numpy(), b[name].to_numpy(), rtol=rtol, atol=atol, err_msg=name)


def test_neither_batch_size_nor_choice_of_scans_matters(prior: Prior, store_path: Path) -> None:
    whole = reconstruct(prior, store_path, scans=slice(0, 7), batch=64, **QUICK)
    assert whole["sample"].shape == (7, 3, 1, 16, 16)
    assert_same(reconstruct(prior, store_path, scans=slice(0, 7), batch=1, **QUICK), whole)
    chosen = reconstruct(prior, store_path, scans=[5, 2, 6], batch=6, **QUICK)
    assert chosen["scan"].to_numpy().tolist() == [5, 2, 6]
    assert_same(chosen, whole.isel(scan=[5, 2, 6]))
    last = reconstruct(prior, store_path, scans=-1, **QUICK)
    assert last["scan"].to_numpy().tolist() == [39]
    # one scan tells another's result apart, though
    assert abs(whole["mean"][0] - whole["mean"][1]).mean() > 0.01


def test_on_disk_as_in_memory(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    memory = reconstruct(prior, store_path, scans=slice(3, 8), batch=6, **QUICK)
    written = reconstruct(
        prior, open_store(store_path), tmp_path / "deep" / "r.zarr", scans=slice(3, 8), batch=6, **QUICK
    )
    opened = xarray.open_zarr(tmp_path / "deep" / "r.zarr", consolidated=False)
    for found in (written, opened, open_reconstruction(tmp_path / "deep" / "r.zarr")):
        assert_same(found, memory, 0, 0)
        assert {k: v for k, v in found.attrs.items() if k != "created"} == {
            k: v for k, v in memory.attrs.items() if k != "created"
        }
        assert set(found.coords) == set(memory.coords)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.zarr"]


def test_coordinates_are_carried_over(prior: Prior, blobs: Callable[..., np.ndarray], tmp_path: Path) -> None:
    coords = {"age": np.linspace(20, 80, 6), "site": np.array(["Lübeck", "Graz", "Lübeck", "Wien", "Graz", "Ulm"])}
    simulate(
        blobs(6), tmp_path / "s.h5", acceleration=2, calibration=4, coils=2, subject=[7, 7, 8, 8, 9, 9], coords=coords
    )
    reconstruct(prior, tmp_path / "s.h5", tmp_path / "r", scans=slice(1, 5), batch=6, **QUICK)
    result = xarray.open_zarr(tmp_path / "r", consolidated=False)
    assert result["scan"].to_numpy().tolist() == [1, 2, 3, 4]
    assert result["subject"].to_numpy().tolist() == [7, 8, 8, 9]
    assert result["site"].to_numpy().tolist() == ["Graz", "Lübeck", "Wien", "Graz"]
    np.testing.assert_allclose(result["age"], coords["age"][1:5])
    assert result["mean"].dims == ("scan", "channel", "y", "x")
    assert result["sample"].dims == ("scan", "draw", "channel", "y", "x")
    assert result.set_index(scan=["subject"]).sel(scan=8).sizes["scan"] == 2


@pytest.mark.parametrize("correlation", [-1.0, -0.6, 0.0])
@pytest.mark.parametrize("count", [3, 4, 8])
def test_standard_deviation_of_samples_in_pairs(count: int, correlation: float) -> None:
    """Right on average however the two of a pair hang together (three samples are independent, or taken to be)."""
    g = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 40_000, (count + 1) // 2, 1, 1, 1, generator=g)
    second = correlation * first + (1 - correlation**2) ** 0.5 * other
    drawn = (
        torch.stack([first, second], 2).flatten(1, 2)[:, :count] if count > 3 else torch.cat([first, other], 1)[:, :3]
    )
    variance = summarise(drawn)["std"].square().mean()
    assert float(variance) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("correlation", [-1.0, 0.0])
@pytest.mark.parametrize("count", [8, 16])
def test_intervals_of_samples_in_pairs(count: int, correlation: float) -> None:
    """Nine of ten hold another draw, whether the two of a pair cancel or have nothing to do with each other."""
    g = torch.Generator().manual_seed(1)
    truth = torch.randn(40_000, 1, 1, 1, generator=g)
    first, other = torch.randn(2, 40_000, count // 2, 1, 1, 1, generator=g)
    second = correlation * first + (1 - correlation**2) ** 0.5 * other
    found = summarise(torch.stack([first, second], 2).flatten(1, 2))
    held = (found["lower"] <= truth) & (truth <= found["upper"])
    assert float(held.double().mean()) == pytest.approx(0.9, abs=0.008)


def test_provenance(prior: Prior, store_path: Path) -> None:
    store = open_store(store_path)
    result = reconstruct(prior, store, scans=0, seed=11, guidance=0.7, solver="heun", eta=0.0, **QUICK)
    attrs = result.attrs
    wanted = {
        "ambient_sci_version": ambient_sci.__version__,
        "prior": prior.fingerprint(),
        "prior_method": prior.config.method,
        "prior_images": prior.images,
        "prior_store": store.fingerprint,
        "store": store.fingerprint,
        "operator": "sense",
        "samples": 3,
        "interval": 0.9,
        "sampler_seed": 11,
        "sampler_steps": 4,
        "sampler_guidance": 0.7,
        "sampler_solver": "heun",
        "sampler_eta": 0.0,
    }
    assert {name: attrs.get(name) for name in wanted} == wanted
    age = datetime.now(UTC) - datetime.fromisoformat(attrs["created"])
    assert timedelta(0) <= age + timedelta(seconds=1) < timedelta(minutes=5)


def test_results_are_in_the_units_of_the_measurement(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    import zarr

    shutil.copytree(store_path, tmp_path / "scaled.zarr")
    group: Any = zarr.open_group(str(tmp_path / "scaled.zarr"), use_consolidated=False)
    for name in ("measurement", "noise_std", "scale"):
        group[name][:] = group[name][:] * np.float32(1000)
    before, after = (reconstruct(prior, path, scans=[0, 9], **QUICK) for path in (store_path, tmp_path / "scaled.zarr"))
    for name in NAMES:
        np.testing.assert_allclose(after[name], 1000 * before[name], rtol=2e-3, atol=1, err_msg=name)
    # and they fit what was measured, in its own units
    reference = open_store(store_path).references([0, 9]).numpy()
    peak = abs(reference).max()
    assert abs(before["mean"].to_numpy()).max() == pytest.approx(peak, rel=0.6)


def test_real_images(blobs: Callable[..., np.ndarray], small: dict[str, Any], tmp_path: Path) -> None:
    from ambient_sci import TrainConfig, train

    simulate(blobs(8), tmp_path / "pixels.zarr", operator="mask", keep=0.6)
    options = {**small, "images": 16, "laps": 0}
    prior = train(TrainConfig(store=tmp_path / "pixels.zarr", out=tmp_path / "run", **options), progress=False)
    result = reconstruct(prior, tmp_path / "pixels.zarr", scans=slice(0, 2), **QUICK)
    assert result["mean"].dtype == np.float32
    assert (result["lower"] <= result["mean"]).all()
    assert (result["upper"] >= result["mean"]).all()


# ------------------------------------------------------------------------------------------------ summaries


def test_summary_of_four_numbers() -> None:
    found = summarise(torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 4, 1, 1, 1))
    assert float(found["mean"]) == pytest.approx(3)
    # of pairs: 14 / 4 around the mean, and what the mean itself varies by: that of 1.5 and 4.5, over their number
    assert float(found["std"]) == pytest.approx((14 / 4 + 4.5 / 2) ** 0.5)
    half = 2.3533634 * (14 / 3) ** 0.5 * (5 / 4) ** 0.5  # Student's t of 3 degrees of freedom at 95%
    assert float(found["lower"]) == pytest.approx(3 - half)
    assert float(found["upper"]) == pytest.approx(3 + half)


def test_summary_of_complex_numbers() -> None:
    drawn = torch.tensor([3 + 4j, 3 - 4j, 0 + 5j]).reshape(1, 3, 1, 1, 1)
    found = summarise(drawn)
    assert complex(found["mean"]) == pytest.approx(2 + 5j / 3)
    # of both parts together, and it does not fit an interval of the magnitude, which never varies here
    assert float(found["std"]) == pytest.approx((6 / 2 + (2 * 16 + 25 - 25 / 3) / 2) ** 0.5)
    assert (float(found["lower"]), float(found["upper"])) == pytest.approx((5, 5))
    assert not found["std"].is_complex()
    near = summarise(torch.tensor([0.1 + 0j, 2 + 0j]).reshape(1, 2, 1, 1, 1))
    assert float(near["lower"]) == 0  # a magnitude is not negative


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_intervals_hold_what_they_claim(samples: int) -> None:
    """A value drawn like the samples lies inside nine times of ten, however few samples there are."""
    generator = torch.Generator().manual_seed(0)
    values = 3 + 0.5 * torch.randn(1, samples + 1, 1, 200, 200, generator=generator)
    found = summarise(values[:, 1:])
    inside = ((found["lower"] <= values[:, 0]) & (values[:, 0] <= found["upper"])).float().mean()
    assert float(inside) == pytest.approx(0.9, abs=5 * (0.09 / 200**2) ** 0.5)


# ------------------------------------------------------------------------------------------------ evaluation


def perfect(store: Any, scans: list[int], spread: float) -> xarray.Dataset:
    """A reconstruction whose mean is off by normal noise and which says so."""
    reference = store.references(scans).numpy()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=reference.shape) + 1j * rng.normal(size=reference.shape)
    axes = ("scan", "channel", "y", "x")
    mean = (reference + 0.01 * noise).astype(np.complex64)
    std = np.full(reference.shape, spread * 0.01 * 2**0.5, np.float32)
    variables = {"mean": (axes, mean), "std": (axes, std), "sample": (("scan", "draw", *axes[1:]), mean[:, None])}
    result = xarray.Dataset(variables, {"scan": scans}, {"store": store.fingerprint})
    return result.isel(draw=[0] * 500)


def test_evaluation_of_what_is_known(store_path: Path) -> None:
    store = open_store(store_path)
    scans = [7, 3, 11, 2, 5, 9]
    honest = evaluate(perfect(store, scans, 1.0), store).metrics
    for level, covered in honest["coverage"].items():
        assert covered == pytest.approx(float(level), abs=0.04)
    scores = honest["methods"]["posterior mean"]
    assert 0.005 < scores["nrmse"] < 0.05
    assert scores["ssim"] > 0.95
    assert honest["scans"] == 6
    bold = evaluate(perfect(store, scans, 0.5), store)
    assert bold.metrics["coverage"]["0.9"] == pytest.approx(2 * stats.norm.cdf(1.645 / 2) - 1, abs=0.04)
    assert f"90% intervals hold the known value in {100 * bold.metrics['coverage']['0.9']:.1f}% of pixels" in str(bold)


def test_evaluation_against_another_store(prior: Prior, store_path: Path, blobs: Any, tmp_path: Path) -> None:
    result = reconstruct(prior, store_path, scans=slice(0, 2), **QUICK)
    assert evaluate(result, open_store(store_path)).metrics["scans"] == 2
    other = simulate(blobs(3), tmp_path / "other.zarr", acceleration=2, calibration=4, coils=3)
    with pytest.raises(DataError, match=r"made from another store \(fingerprint"):
        evaluate(result, other)


# ------------------------------------------------------------------------------------------------ refusals


def test_options_that_are_refused(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"samples": 1}, ConfigError, "samples must be at least 2"),
        ({"scans": [0, 40]}, DataError, "holds 40, counted from 0"),
        ({"scans": slice(50, 60)}, DataError, "must name at least one of the 40 scans"),
        ({"scans": []}, DataError, "scans"),
        ({"steps": 0}, ConfigError, "needs steps >= 1"),
        ({"solver": "rk4"}, ConfigError, "solver must be"),
        ({"seed": -1}, ConfigError, "seed must be at least 0"),
    ]
    for options, kind, said in cases:
        with pytest.raises(kind, match=said):
            reconstruct(prior, store_path, tmp_path / "r", **{**QUICK, "scans": [0], **options})
        assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced_only_when_asked(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    reconstruct(prior, store_path, out, scans=[0], **QUICK)
    with pytest.raises(OutputError, match="already exists"):
        reconstruct(prior, store_path, out, scans=[1], **QUICK)
    assert open_reconstruction(out)["scan"].to_numpy().tolist() == [0]
    reconstruct(prior, store_path, out, scans=[1], overwrite=True, **QUICK)
    assert open_reconstruction(out)["scan"].to_numpy().tolist() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_old_one_comes_back_when_the_new_one_cannot_take_its_place(
    prior: Prior, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    reconstruct(prior, store_path, out, scans=[0], **QUICK)
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if ".partial" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OutputError, match=r"cannot write .*: Input/output error"):
        reconstruct(prior, store_path, out, scans=[1], overwrite=True, **QUICK)
    assert open_reconstruction(out)["scan"].to_numpy().tolist() == [0]
    monkeypatch.undo()  # what was drawn is not lost, and waits for the same command
    monkeypatch.setattr(Pieces, "draw", None)
    reconstruct(prior, store_path, out, scans=[1], overwrite=True, **QUICK)
    assert open_reconstruction(out)["scan"].to_numpy().tolist() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_is_no_reconstruction(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no reconstruction at"):
        open_reconstruction(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("")
    for path in (store_path, tmp_path / "empty", tmp_path / "text"):
        with pytest.raises(StoreError, match="is not a reconstruction"):
            open_reconstruction(path)


def test_another_size_only_when_asked_for(prior: Prior, blobs: Any, tmp_path: Path) -> None:
    simulate(blobs(2, size=20), tmp_path / "large.zarr", acceleration=2, calibration=4, coils=2)
    with pytest.raises(ConfigError, match="any_size"):
        reconstruct(prior, tmp_path / "large.zarr", **QUICK)
    result = reconstruct(prior, tmp_path / "large.zarr", any_size=True, **QUICK)
    assert result["sample"].shape == (2, 3, 1, 20, 20)
    assert np.isfinite(result["mean"].to_numpy()).all()


def test_figure_of_scans_without_references(prior: Prior, store_path: Path, tmp_path: Path, blobs: Any) -> None:
    simulate(blobs(3), tmp_path / "bare.zarr", acceleration=2, calibration=4, coils=3, references=False)
    result = reconstruct(prior, tmp_path / "bare.zarr", **QUICK)
    figure = comparison_figure(result, open_store(tmp_path / "bare.zarr"), 2)
    titles = {axes.get_title() for axes in figure.axes}
    assert {"zero-filled", "L1-wavelet", "posterior mean"} <= titles
    with pytest.raises(DataError, match="made from another store"):
        comparison_figure(result, open_store(store_path))


# ------------------------------------------------------------------------------------------------ several sizes


@pytest.fixture(scope="module")
def mixed_path(tmp_path_factory: pytest.TempPathFactory, blobs: Callable[..., np.ndarray]) -> Path:
    """Scans of two image shapes, and of two numbers of coils of the first."""
    folder = tmp_path_factory.mktemp("mixed")
    with StoreWriter(folder / "mixed.zarr") as out:
        for number, (size, coils) in enumerate(((16, 3), (24, 3), (16, 2), (16, 3))):
            images = blobs(2, size=size, seed=number)
            part = simulate(images, folder / f"{number}.zarr", acceleration=2, calibration=4, coils=coils, seed=number)
            out.append(part.read(slice(None), raw=True), part.references(slice(None)))
    return folder / "mixed.zarr"


@pytest.mark.parametrize("kept", [True, False])
def test_several_image_shapes_are_groups(prior: Prior, mixed_path: Path, tmp_path: Path, kept: bool) -> None:
    store = open_store(mixed_path)
    options: dict[str, Any] = {"samples": 2, "steps": 2, "any_size": True, "progress": False}
    result = reconstruct(prior, store, tmp_path / "r.zarr" if kept else None, batch=4, **options)
    assert isinstance(result, xarray.DataTree)
    if kept:
        result = xarray.open_datatree(tmp_path / "r.zarr", engine="zarr", consolidated=False)
        assert isinstance(open_reconstruction(tmp_path / "r.zarr"), xarray.DataTree)
    assert set(result.children) == {"size_0", "size_1"}
    assert result.attrs["store"] == store.fingerprint
    assert result["size_0"].scan.values.tolist() == [0, 1, 4, 5, 6, 7]
    assert result["size_1"].scan.values.tolist() == [2, 3]
    assert result["size_1"]["mean"].shape == (2, 1, 24, 24)
    for scan, group, row in ((5, "size_0", 3), (3, "size_1", 1)):
        alone = reconstruct(prior, store, scans=[scan], **options)
        assert isinstance(alone, xarray.Dataset)
        np.testing.assert_allclose(result[group]["sample"].values[row], alone["sample"].values[0], rtol=1e-4, atol=1e-5)
    scored = evaluate(result, store)
    assert scored.metrics["scans"] == 8
    comparison_figure(result, store, 2)


def test_one_image_shape_is_one_dataset(prior: Prior, mixed_path: Path) -> None:
    """Whatever the coils, and in the order that was asked for."""
    store = open_store(mixed_path)
    options: dict[str, Any] = {"samples": 2, "steps": 2, "progress": False}
    result = reconstruct(prior, store, scans=[7, 4, 0, 5], **options)
    assert result.scan.values.tolist() == [7, 4, 0, 5]
    for row, scan in enumerate((7, 4, 0, 5)):
        alone = reconstruct(prior, store, scans=[scan], **options)["mean"].values[0]
        np.testing.assert_allclose(result["mean"].values[row], alone, rtol=1e-4, atol=1e-5)
