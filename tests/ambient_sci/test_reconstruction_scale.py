"""Reconstructions that are interrupted, too large for the memory, shared among workers, or never see a disk."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from ambient_sci import Measurement, TrainConfig, cli, load_prior, open_store, reconstruct
from ambient_sci.datasets.exporting import export
from ambient_sci.datasets.scale import normalise
from ambient_sci.errors import ConfigError, OutputError
from ambient_sci.evaluate.compare import evaluate
from ambient_sci.measurement import randn_like
from ambient_sci.operators import Sense
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior, build_denoiser
from ambient_sci.reconstruction import open_reconstruction, output, pieces, summarise
from ambient_sci.reconstruction.job import Job
from ambient_sci.reconstruction.output import Results
from ambient_sci.reconstruction.summary import misfit, quantiles_of

OPTIONS: dict[str, Any] = {"samples": 3, "steps": 3, "batch": 3, "seed": 4, "progress": False}
SCANS = slice(2, 8)  # of which each is a batch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network has learned nothing, which is all the same here."""
    path = tmp_path_factory.mktemp("run") / "prior.safetensors"
    config = TrainConfig(store="scans", out=path.parent, widths=(32,), blocks=1, sigma_data=0.3, precision="fp32")
    torch.manual_seed(0)
    denoiser = build_denoiser(config, (1, 16, 16), True)
    with torch.no_grad():  # which begin with zeros at the end
        for parameter in denoiser.parameters():
            parameter += 0.01 * torch.randn(parameter.shape)
    Prior(denoiser, (1, 16, 16), True, config, {"fingerprint": "none"}, 0).save(path)
    return path


@pytest.fixture(scope="module")
def prior(run: Path) -> Prior:
    prior = load_prior(run, "cpu")
    prior.denoiser.network.precision = "fp32"  # type: ignore[union-attr,assignment]
    return prior


@pytest.fixture(scope="module")
def whole(prior: Prior, store_path: Path) -> xarray.Dataset:
    result = reconstruct(prior, store_path, scans=SCANS, **OPTIONS)
    assert isinstance(result, xarray.Dataset)
    return result


def assert_equal_bits(found: Any, wanted: xarray.Dataset) -> None:
    assert set(found.variables) == set(wanted.variables)
    for name in wanted.variables:
        np.testing.assert_array_equal(found[name].to_numpy(), wanted[name].to_numpy(), err_msg=str(name))
    assert {**found.attrs, "created": "", "device": ""} == {**wanted.attrs, "created": "", "device": ""}


class Counted:
    """Calls of a method by name, with what they were given first."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.given: list[Any] = []
        method = getattr(owner, name)

        def counted(inner: Any, *arguments: Any) -> Any:
            self.given.append(arguments[0])
            return method(inner, *arguments)

        patch.setattr(owner, name, counted)


# ------------------------------------------------------------------------------------------------ interrupted

KILLED = """
import os, signal, sys
import torch
from ambient_sci import load_prior, reconstruct
from ambient_sci.reconstruction import output

number, sync = 0, output.sync

def dies(path):
    global number
    sync(path)
    number += "/std/c/2" in str(path)
    if number:  # in the midst of the third batch, whose samples and mean are written
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
prior = load_prior(sys.argv[1], "cpu")
prior.denoiser.network.precision = "fp32"
output.sync = dies
options = dict(samples=3, steps=3, batch=3, seed=4, progress=False)
reconstruct(prior, sys.argv[2], sys.argv[3], scans=slice(2, 8), **options)
"""


def test_a_killed_reconstruction_goes_on(
    prior: Prior, run: Path, store_path: Path, whole: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.zarr"
    done = subprocess.run([sys.executable, "-c", KILLED, run, store_path, out], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    partial = tmp_path / ".r.zarr.partial"
    assert (partial / "finished").read_text() == "0\n1\n"
    assert not out.exists()

    with (partial / "finished").open("a") as file:
        file.write("5")  # as a power cut may leave it
    shutil.copytree(partial, tmp_path / "kept")
    others: list[tuple[dict[str, Any], str]] = [
        ({"steps": 4}, r"begun with other options: sampler_steps \(was 3, now 4\); give the same"),
        ({"batch": 6}, r"batch \(was 3, now 6\)"),
        ({"keep_samples": False}, r"keep_samples \(was True, now False\)"),
        ({"scans": slice(2, 7)}, r"scans \(was 6 from 2 to 7, \w+, now 5 from 2 to 6"),
    ]
    for changed, said in others:
        with pytest.raises(ConfigError, match=said):
            reconstruct(prior, store_path, out, **{"scans": SCANS, **OPTIONS, **changed})
    with monkeypatch.context() as patch:
        computed, written = Counted(patch, Job, "compute"), Counted(patch, Results, "write")
        found = reconstruct(prior, store_path, out, scans=SCANS, **OPTIONS)
    assert [scans.tolist() for scans in computed.given] == [[4], [5], [6], [7]]
    assert written.given == [2, 3, 4, 5]
    assert_equal_bits(found, whole)

    # with other options anew, when that is asked for
    shutil.rmtree(out)
    (tmp_path / "kept").rename(partial)
    with monkeypatch.context() as patch:
        written = Counted(patch, Results, "write")
        reconstruct(prior, store_path, out, scans=SCANS, overwrite=True, **{**OPTIONS, "seed": 5})
    assert written.given == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["r.zarr"]


def test_sigterm_waits_for_the_batch(
    prior: Prior, store_path: Path, whole: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.zarr"
    compute = Job.compute

    def told_to_stop(self: Job, scans: Any) -> Any:
        if scans.tolist() == [3]:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, scans)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "compute", told_to_stop)
        with pytest.raises(SystemExit) as end:
            reconstruct(prior, store_path, out, scans=SCANS, **OPTIONS)
    assert end.value.code == 143
    assert (tmp_path / ".r.zarr.partial" / "finished").read_text() == "0\n1\n"
    assert_equal_bits(reconstruct(prior, store_path, out, scans=SCANS, **OPTIONS), whole)


def test_killed_when_all_is_done(
    prior: Prior, store_path: Path, whole: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the result takes its name, or after it, when its neighbour is still there."""

    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "r.zarr"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(Results, "publish", dies)
        reconstruct(prior, store_path, out, scans=SCANS, **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(Job, "compute", None)  # nothing is left to do
        patch.setattr(output, "remove", dies)
        reconstruct(prior, store_path, out, scans=SCANS, **OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"r.zarr", ".r.zarr.partial"}
    assert_equal_bits(open_reconstruction(out), whole)
    assert_equal_bits(reconstruct(prior, store_path, out, scans=SCANS, overwrite=True, **OPTIONS), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["r.zarr"]


def test_one_writer_at_a_time(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    with Results(tmp_path / "r").locked(), pytest.raises(OutputError, match="being written by another process"):
        reconstruct(prior, store_path, tmp_path / "r", scans=0, **OPTIONS)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(("fits", "largest"), [(4, 4), (1, 1)])
def test_what_does_not_fit_is_done_in_pieces(
    prior: Prior, store_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, largest: int
) -> None:
    done: list[int] = []

    def narrow(prior: Prior, measurement: Measurement, samples: int, **options: Any) -> torch.Tensor:
        if len(measurement) * samples > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.append(len(measurement) * samples)
        return draw_posterior(prior, measurement, samples, **options)

    options = {**OPTIONS, "samples": 4, "batch": 16, "scans": slice(0, 6)}
    wanted = reconstruct(prior, store_path, **options)
    monkeypatch.setattr(pieces, "draw_posterior", narrow)
    with pytest.warns(UserWarning, match="16 images at once do not fit into the memory of cpu") as said:
        found = reconstruct(prior, store_path, **options)
    assert len(said) == 1
    assert max(done) == largest
    assert sum(done) == 24
    for name in ("sample", "mean", "residual"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_not_even_one_fits(prior: Prior, store_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pieces, "draw_posterior", fails)
    with (
        pytest.warns(UserWarning, match="smaller pieces"),
        pytest.raises(ConfigError, match="scan 3 does not fit into the memory of cpu, not even one sample"),
    ):
        reconstruct(prior, store_path, tmp_path / "r", scans=3, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_more_samples_than_go_at_once(prior: Prior, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def noted(prior: Prior, measurement: Measurement, samples: int, **options: Any) -> torch.Tensor:
        counts.append(samples)
        return draw_posterior(prior, measurement, samples, **options)

    wanted = reconstruct(prior, store_path, scans=1, **{**OPTIONS, "samples": 10, "batch": 10})
    monkeypatch.setattr(pieces, "draw_posterior", noted)
    found = reconstruct(prior, store_path, scans=1, **{**OPTIONS, "samples": 10, "batch": 3})
    assert counts == [2, 3, 2, 3]
    np.testing.assert_allclose(found["sample"], wanted["sample"], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ tensors


def test_tensors_as_a_store(prior: Prior, store_path: Path, whole: xarray.Dataset, tmp_path: Path) -> None:
    store = open_store(store_path)
    measurement = store.read(np.arange(2, 8))
    found = reconstruct(prior, measurement, **OPTIONS)
    assert found.attrs["store"] != store.fingerprint
    found.attrs["store"] = store.fingerprint
    # numbers of scans decide on their samples, not places
    assert_equal_bits(found, whole.drop_vars(set(whole.coords) - {"scan", "draw"}))
    again = reconstruct(prior, measurement[3:], tmp_path / "r", **OPTIONS)
    np.testing.assert_array_equal(again["mean"], whole["mean"][3:])
    assert again["scan"].to_numpy().tolist() == [5, 6, 7]


def test_fingerprint_of_tensors(prior: Prior, store_path: Path) -> None:
    m = open_store(store_path).read([0, 1])

    def fingerprint(measurement: Measurement) -> str:
        return str(reconstruct(prior, measurement, **{**OPTIONS, "samples": 2, "steps": 1}).attrs["store"])

    wanted = fingerprint(m)
    assert fingerprint(m) == wanted
    y = m.y.clone()
    y[1, 0, 3] += 1
    mask = m.operator.parameters["mask"].clone()
    mask[0, ..., 5] = 1 - mask[0, ..., 5]
    operator = Sense(mask, m.operator.parameters["maps"])
    for values, other, noise in ((y, m.operator, m.noise_std), (m.y, operator, m.noise_std), (m.y, m.operator, 0.1)):
        assert fingerprint(Measurement(values, other, noise, m.index, m.scale)) != wanted


def test_raw_units_are_doubted(prior: Prior, store_path: Path) -> None:
    raw = open_store(store_path).read([0, 1], raw=True)
    raw = Measurement(1e-5 * raw.y, raw.operator, 1e-5 * raw.noise_std)
    with pytest.warns(UserWarning, match="in other units|seem to be about"):
        reconstruct(prior, raw, **OPTIONS)
    right = normalise(raw)
    assert right.y.abs().max() == pytest.approx(float((raw.y.abs().amax((1, 2, 3)) / right.scale).max()))
    found, wanted = (reconstruct(prior, m, **OPTIONS)["mean"] for m in (right, open_store(store_path).read([0, 1])))
    np.testing.assert_allclose(found, 1e-5 * wanted, rtol=1e-3, atol=1e-8)


# ------------------------------------------------------------------------------------------------ what is said


def test_without_samples_and_with_quantiles(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "samples": 9, "scans": slice(0, 3), "quantiles": (0.1, 0.5)}
    wanted = reconstruct(prior, store_path, **options)
    reconstruct(prior, store_path, tmp_path / "r", keep_samples=False, **options)
    found = xarray.open_zarr(tmp_path / "r", consolidated=False)
    assert "sample" not in found
    np.testing.assert_array_equal(found["mean"], wanted["mean"])
    assert found["quantile"].dims == ("scan", "probability", "channel", "y", "x")
    assert found["probability"].to_numpy().tolist() == [0.1, 0.5]
    ranked = np.sort(abs(wanted["sample"].to_numpy()), axis=1)
    for probability, rank in ((0.1, 1), (0.5, 5)):
        of_rank = ranked[:, rank - 1]
        np.testing.assert_allclose(found["quantile"].sel(probability=probability), of_rank, rtol=1e-6)
    assert found["std"].attrs == {"long_name": "posterior standard deviation", "units": "arbitrary"}
    # others go on without samples
    assert set(evaluate(found, open_store(store_path)).metrics["coverage"]) >= {"0.9"}
    assert export(found, tmp_path / "volumes", what=["mean", "lower"], progress=False)


def test_a_temperature_widens_samples_and_is_recorded(prior: Prior, store_path: Path) -> None:
    options = {**OPTIONS, "scans": slice(0, 2)}
    plain, wider = (reconstruct(prior, store_path, **options, **more) for more in ({}, {"temperature": 1.5}))
    assert (plain.attrs["temperature"], wider.attrs["temperature"]) == (1.0, 1.5)
    np.testing.assert_allclose(wider["mean"], plain["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(wider["std"], 1.5 * plain["std"], rtol=1e-3)
    with pytest.raises(ConfigError, match="temperature must be above 0, got -1"):
        reconstruct(prior, store_path, **options, temperature=-1)


def test_quantiles_that_there_are_not(prior: Prior, store_path: Path) -> None:
    cases = [
        ((0.05,), 8, "a quantile of 0.05 needs at least 19 samples, got 8"),
        ((0.5, 0.9), 8, "a quantile of 0.9 needs at least 9 samples"),
        ((0.0,), 8, "above 0 and below 1, got 0.0"),
        ((0.5, 0.5), 8, "different probabilities"),
    ]
    for quantiles, samples, said in cases:
        with pytest.raises(ConfigError, match=said):
            reconstruct(prior, store_path, **{**OPTIONS, "quantiles": quantiles, "samples": samples})


def test_quantiles_hold_what_they_claim() -> None:
    """Another draw is below the p-quantile with probability p, however few there are, and of whatever distribution."""
    g = torch.Generator().manual_seed(0)
    values = torch.empty(40_000, 10, 1, 1, 1).exponential_(generator=g)
    found = quantiles_of(values[:, :9], (0.1, 0.5, 0.9))
    below = (values[:, 9:] <= found).double().mean(0).flatten()
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.01)


def test_misfit_of_the_truth_is_one(store_path: Path) -> None:
    """Whatever the noise of each sample; and that of a dense matrix."""
    m = open_store(store_path).read(np.arange(40))
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(40, 1, 16, 16, generator=g, dtype=torch.complex64)
    noise = 0.1 + torch.rand(m.y.shape, generator=g)
    y = (m.operator(truth) + noise * randn_like(m.y, g)) * m.operator.rows
    made = Measurement(y, m.operator, noise)
    found = misfit(truth, made)
    rows = float(m.operator.rows.expand_as(y)[0].sum())
    assert float(found.square().mean()) == pytest.approx(1, abs=5 * (1 / rows / 40) ** 0.5)
    assert float(found.square().std()) == pytest.approx((1 / rows) ** 0.5, rel=0.4)

    other = truth + 0.1
    seen = m.operator.rows.expand_as(y)[0].bool()
    error = ((m.operator(other) - y)[0] / noise[0])[seen]
    wanted = np.sqrt(np.mean(np.concatenate([error.real, error.imag]) ** 2))
    assert float(misfit(other, made)[0]) == pytest.approx(wanted, rel=1e-5)
    assert misfit(truth, Measurement(y, m.operator, 0.0)).isnan().all()


@pytest.mark.parametrize(("correlation", "worth"), [(0.0, 8.0), (-0.5, 16.0), (-0.9, 80.0)])
def test_effective_samples_of_pairs(correlation: float, worth: float) -> None:
    """Of S samples in pairs of correlation c the mean has variance (1 + c) / S."""
    g = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 1, 4, 1, 200, 200, generator=g)
    second = correlation * first + (1 - correlation**2) ** 0.5 * other
    found = summarise(torch.stack([first, second], 2).flatten(1, 2))["effective_samples"]
    assert float(found) == pytest.approx(worth, rel=0.03)
    assert float(summarise(torch.randn(1, 5, 1, 8, 8))["effective_samples"]) == 5


def test_from_the_command_line(
    run: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, out = pieces.draw_posterior, tmp_path / "r.zarr"

    def narrow(prior: Prior, measurement: Measurement, samples: int, **options: Any) -> torch.Tensor:
        if samples > 4:
            raise torch.OutOfMemoryError
        return draw(prior, measurement, samples, **options)

    monkeypatch.setattr(pieces, "draw_posterior", narrow)
    arguments = ["reconstruct", run, store_path, "--out", out, "--stop", 2, "--samples", 5, "--steps", 2]
    arguments += ["--no-samples", "--quantile", 0.5, "--quantile", 0.25, "--device", "cpu", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (None, f"wrote {out}: 2 scans, 5 samples each\n")
    assert said.err.startswith(
        "warning: 10 images at once do not fit into the memory of cpu: scans are done in smaller"
    )
    assert said.err.count("\n") == 1
    found = open_reconstruction(out)
    assert isinstance(found, xarray.Dataset)
    assert "sample" not in found
    assert found["probability"].to_numpy().tolist() == [0.5, 0.25]


# ------------------------------------------------------------------------------------------------ over a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, each a process with one thread."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs="ERROR"
    ) as cluster:
        yield cluster


def test_a_killed_worker_loses_nothing(
    cluster: Any, prior: Prior, store_path: Path, whole: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    monkeypatch.chdir(store_path.parent)
    address = cluster.scheduler_address
    with Client(address, set_as_default=False) as client:
        victim = next(iter(client.run(os.getpid).values()))
    write, written = Results.write, []

    def kills(self: Results, number: int, *arguments: Any) -> None:
        if not written:
            os.kill(victim, signal.SIGKILL)
        written.append(number)
        write(self, number, *arguments)

    monkeypatch.setattr(Results, "write", kills)
    found = reconstruct(prior, store_path.name, tmp_path / "r", scans=SCANS, scheduler=address, device="cpu", **OPTIONS)
    assert sorted(written) == [0, 1, 2, 3, 4, 5]
    assert_equal_bits(found, whole)
    assert_equal_bits(reconstruct(prior, store_path, scans=SCANS, scheduler=address, device="cpu", **OPTIONS), whole)
    with pytest.raises(ConfigError, match="solver must be"):  # mistakes come back from where they are noticed
        reconstruct(prior, store_path, scans=0, scheduler=address, device="cpu", **OPTIONS, solver="rk4")  # type: ignore[arg-type]


def test_nobody_at_the_address(prior: Prior, store_path: Path, tmp_path: Path) -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    for address, said in (("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),):
        with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}), pytest.raises(ConfigError, match=said):
            reconstruct(prior, store_path, tmp_path / "r", scheduler=address, **OPTIONS)
    assert list(tmp_path.iterdir()) == []
