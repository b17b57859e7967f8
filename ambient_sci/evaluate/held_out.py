r"""A prior on trial without any known image: rows that were measured and hidden, against what it predicts of them.

Of every scan a part of the measured rows is hidden, as acquisitions lose them (`LinearOperator.thin`); posterior
samples :math:`x_1 \ldots x_S` are drawn from the rest, and :math:`A x_j` with the noise added is what the prior
predicts of the hidden values :math:`y`. Real and imaginary parts are values of their own.

**Against its own draws.** Hidden values hang together in a way that nobody knows, so that no :math:`\chi^2` of theirs
has the distribution of that name. But if the prior, the noise level and the sampler are right, then :math:`y` and
:math:`y_j = A x_j + \sigma n` are alike, given all samples other than those of the pair of :math:`x_j`. From these
others comes a `Predictive` distribution of each value (marginal, noise included, for few samples), and any statistic of
:math:`y` under it has the same distribution as that of :math:`y_j`: the mean over ``j`` of their difference has
expectation zero, whatever the correlations and the shape of the posterior. Two statistics are used:

- the size of errors relative to the spread, ``ratio``, from the mean of :math:`|u - 1/2|` (`excess`): its logarithm, in
  each band of frequencies. Above one, error bars are too narrow.
- the log score, the mean log density of the values: ``surprise`` is by how much it falls short of that of the draws, in
  nats per value. It finds single scans that the prior cannot explain. Tested is the logarithm of the mean deviance (by
  how much the log density falls short of that at the mean), which has no long tail where few values are hidden.

**Tests.** How much a statistic varies from one draw of a scan to the next is seen in the draws themselves; pooled over
scans, in proportion to :math:`1/n` of their values, it gives Student's t for a scan's deviance and for the mean of the
log-ratios over scans. A scan is flagged at level `LEVEL` over the number of scans, one-sided; a band fails at `LEVEL`
over the number of bands, two-sided, if its ratio is off by `TOLERANCE` too. (Posterior predictive checks, Gelman et al.
1996, Statist. Sinica 6:733, on data that were left out, Gelfand et al. 1992, Bayesian Statistics 4:147.)

**Temperature.** The spread that would have given the hidden values the greatest log score: samples
:math:`m + t (x_j - m)` (`ambient_sci.evaluate.predictive.temper`), with the noise as it is. Its standard error is that
of the jackknife over scans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.baselines.tuning import set_rows_aside
from ambient_sci.datasets.store import Indices, Store, open_store
from ambient_sci.errors import ConfigError
from ambient_sci.evaluate.metrics import LEVELS
from ambient_sci.evaluate.predictive import LEVEL, TOLERANCE, components, excess, predictive, temper
from ambient_sci.findings import Findings
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Fourier, Interferometer, LinearOperator, Nufft, Sense
from ambient_sci.posterior.draw import PosteriorMethod, draw_posterior
from ambient_sci.prior import Prior, load_prior
from ambient_sci.sample import Solver
from ambient_sci.seeding import rng_for

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["PriorValidation", "best_temperature", "frequencies", "validate_prior"]

EDGES = (0.0, 0.125, 0.25, 0.375, np.inf)  # of bands, in cycles per pixel
ALL = "all"
TEMPERATURES = np.geomspace(0.25, 4, 65)
CHUNK = 8  # scans whose samples are in the network at once
MOST = 64  # scans that are looked at by default
_NOISE = 0x61  # purpose of a stream

Float = NDArray[np.float64]
Scans: TypeAlias = Store | Path | str | Measurement | Sequence[Measurement]


@dataclass(frozen=True)
class PriorValidation(Findings):
    """What `validate_prior` found; ``str()`` is a table and the verdict.

    Attributes
    ----------
    dataset
        One row a scan and a column for each band of frequencies, of which ``all`` is the first:

        ================= ==================== ===============================================================
        ``values``        (scan, band)         how many real values were hidden
        ``ratio``         (scan, band)         size of errors, relative to the predicted spread
        ``residual``      (scan, band)         root mean square of residuals in units of the predicted spread
        ``expected``      (scan, band)         the same of the prior's own draws
        ``log_score``     (scan, band)         mean log density of the hidden values, in nats
        ``surprise``      (scan, band)         by how much that falls short of the draws'
        ``coverage``      (scan, band, level)  part of the values inside central intervals
        ``own_coverage``  (scan, band, level)  the same of the draws
        ``p_value``       (scan)               chance of as large a surprise if the prior is right
        ``flagged``       (scan)               whether the prior cannot explain the scan
        ``band_ratio``    (band)               geometric mean of ``ratio`` over scans
        ``band_p_value``  (band)               chance of as large a deviation from 1
        ================= ==================== ===============================================================

        Where a scan has no hidden values in a band, it is NaN.
    temperature, temperature_error
        By what the spread is to be multiplied, and the standard error of that.
    """

    kind: ClassVar = "validation"
    files: ClassVar = ("validation.png",)
    axes: ClassVar = {
        **dict.fromkeys(("values", "ratio", "residual", "expected", "log_score", "surprise"), ("scan", "band")),
        **dict.fromkeys(("coverage", "own_coverage"), ("scan", "band", "level")),
        **dict.fromkeys(("p_value", "flagged"), ("scan",)),
        **dict.fromkeys(("band_ratio", "band_p_value"), ("band",)),
    }
    temperature: float
    temperature_error: float

    @property
    def faults(self) -> dict[str, str]:
        """Bands that fail, and whether the prior is ``"too narrow"`` or ``"too wide"`` there."""
        found = {}
        for band in self._bands:
            ratio, p = (float(self.dataset[name].sel(band=band)) for name in ("band_ratio", "band_p_value"))
            if p < LEVEL / len(self._bands) and not 1 / (1 + TOLERANCE) <= ratio <= 1 + TOLERANCE:
                found[band] = "too narrow" if ratio > 1 else "too wide"
        return found

    @property
    def flagged(self) -> list[int]:
        """Numbers of the scans that the prior cannot explain."""
        return [int(scan) for scan in self.dataset["scan"][self.dataset["flagged"]]]

    @property
    def passed(self) -> bool:
        """Whether no band fails and no scan is flagged."""
        return not (self.faults or self.flagged)

    @property
    def _bands(self) -> list[str]:
        """Names of the bands, of which the first is all."""
        return [str(band) for band in self.dataset["band"].to_numpy()]

    @property
    def verdict(self) -> str:
        """One line: whether the prior predicts what was measured, and by which test."""
        scans = self.dataset.sizes["scan"]
        ratio = float(self.dataset["band_ratio"].sel(band=ALL))
        p = float(self.dataset["band_p_value"].sel(band=ALL))
        test = f"errors {ratio:.2f} times the predicted spread over {scans} scans, p = {p:.1g}"
        if self.passed:
            none = f"no significant deviation of {TOLERANCE:.0%} or more, no scan flagged (level {LEVEL:g})"
            return f"predicts what was hidden: {test}; {none}"
        told = []
        for kind in ("too narrow", "too wide"):
            bands = [
                band if band == ALL else f"{band} cycles/pixel" for band, fault in self.faults.items() if fault == kind
            ]
            told += [f"predictions {kind} in {', '.join(bands)}"] if bands else []
        if self.flagged:
            some = ", ".join(map(str, self.flagged[:5])) + (", …" if len(self.flagged) > 5 else "")
            told.append(f"{len(self.flagged)} of {scans} scans not explained ({some})")
        return f"does NOT predict what was hidden: {'; '.join(told)}; {test}"

    def _facts(self) -> dict[str, Any]:
        return {
            "faults": self.faults,
            "flagged": self.flagged,
            "temperature": self.temperature,
            "temperature_error": None if np.isnan(self.temperature_error) else self.temperature_error,
        }

    def _contents(self) -> "list[Figure | bytes]":
        return [self.plot()]

    @classmethod
    def _of(cls, dataset: "xarray.Dataset", told: dict[str, Any], folder: Path) -> Self:
        error = told["temperature_error"]  # none of one scan
        return cls(dataset, float(told["temperature"]), float("nan" if error is None else error))

    def plot(self) -> "Figure":
        """Draw coverage, ratios of bands, and surprises of scans."""
        from ambient_sci.evaluate.figures import held_out_figure

        return held_out_figure(self)

    def __str__(self) -> str:
        data = self.dataset
        head = "".join(f"{f'{100 * level:.0f}% holds':>11}" for level in LEVELS)
        lines = [f"{'cycles/pixel':<14}{'values':>9}{'errors/spread':>15}{'p':>9}{head}{'surprise':>10}"]
        for band in self._bands:
            row = data.sel(band=band)
            inside = "".join(f"{100 * float(row['coverage'].sel(level=level).mean()):>10.1f}%" for level in LEVELS)
            ratio, p, surprise = (float(row[name].mean()) for name in ("band_ratio", "band_p_value", "surprise"))
            lines.append(f"{band:<14}{int(row['values'].sum()):>9}{ratio:>15.2f}{p:>9.1g}{inside}{surprise:>10.3f}")
        best = f"best temperature of the samples: {self.temperature:.2f} ± {self.temperature_error:.2f}"
        return "\n".join([*lines, best, self.verdict])


def validate_prior(
    prior: Prior | Path | str,
    store: Scans,
    *,
    scans: Indices | None = None,
    fraction: float = 0.25,
    samples: int = 16,
    temperature: float = 1.0,
    method: PosteriorMethod = "auto",
    steps: int = 32,
    iterations: int = 3,
    guidance: float = 1.0,
    solver: Solver = "multistep",
    eta: float = 1.0,
    seed: int = 0,
    any_size: bool = False,
    progress: bool = True,
) -> PriorValidation:
    """Hide rows that were measured and compare them with what a prior predicts of them.

    Parameters
    ----------
    prior
        A learned prior, or the folder of a run.
    store
        Store of measurements, or its path; or scans in normalised units, one measurement for each size. Scans that the
        prior has not learned from.
    scans
        Which of a store; the first 64 by default.
    fraction
        Part of the measured rows (lines, pixels, visibilities) that is hidden. Rows of a calibration region never are.
    samples
        Posterior samples of each scan: an even number, at least 6.
    temperature
        By what the spread of the samples is multiplied before they are judged.
    method, steps, iterations, guidance, solver, eta, seed, any_size
        Of the sampler, as for `ambient_sci.reconstruct`: what is judged is the prior with this sampler. The seed is
        that of the hidden rows, too.
    progress
        Show a progress bar.

    Raises
    ------
    ConfigError, DataError
        If there are too few samples, or no row can be hidden.

    Examples
    --------
    >>> found = validate_prior("run", "scans.zarr")  # doctest: +SKIP
    >>> print(found.verdict)  # doctest: +SKIP
    """
    prior = prior if isinstance(prior, Prior) else load_prior(prior)
    if samples < 6 or samples % 2:
        raise ConfigError(f"samples must be an even number, at least 6, got {samples}")
    options: dict[str, Any] = {"method": method, "steps": steps, "iterations": iterations, "guidance": guidance}
    options |= {"solver": solver, "eta": eta, "seed": seed, "any_size": any_size}
    batches = _batches(store, scans)
    bar = tqdm(total=sum(map(len, batches)), desc="held-out rows", unit="scan", disable=not progress)
    judged: list[_Judged] = []
    with bar:
        for m in batches:
            rest, _ = set_rows_aside(m, fraction, seed)
            for start in range(0, len(m), CHUNK):
                some = slice(start, start + CHUNK)
                drawn = temper(draw_posterior(prior, rest[some].to(prior.device), samples, **options), temperature)
                judged += _judge(m[some], rest.operator[some], drawn.to(m.y.device), seed)
                bar.update(len(drawn))
    options |= {"samples": samples, "fraction": fraction, "temperature": temperature, "prior": prior.fingerprint()}
    if isinstance(store, Store | Path | str):
        options["store"] = (store if isinstance(store, Store) else open_store(store)).fingerprint
    return _result(judged, {"title": "prior on held-out rows", **options})


def frequencies(operator: LinearOperator) -> Tensor | None:
    """Spatial frequency of every measured value, in cycles per pixel, broadcastable to ``(batch, *measurement)``.

    None for kinds that do not measure frequencies.
    """
    if isinstance(operator, Fourier | Sense):
        axes = [(torch.arange(size) - size // 2) / size for size in operator.shape]
        squared = sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij"))
        return torch.as_tensor(squared).sqrt()[None, None]
    if isinstance(operator, Nufft):
        radius: Tensor = torch.linalg.vector_norm(operator.trajectory, dim=2)[:, None] / (2 * torch.pi)
        return radius
    if isinstance(operator, Interferometer):
        distance: Tensor = torch.linalg.vector_norm(operator.uv, dim=2) * operator.pixel_size
        return distance
    return None


# ------------------------------------------------------------------------------------------------------- one scan


@dataclass(frozen=True)
class _Judged:
    """Statistics of one scan, with a row for each band (of which the first has everything)."""

    scan: int
    banded: bool
    values: NDArray[np.int64]
    own: dict[str, Float]  # of its hidden values, (pair, band)
    draws: dict[str, Float]  # of the prior's own draws, (draw, band)
    coverage: Float  # (band, level)
    own_coverage: Float
    curve: Float  # log score of everything at each of the temperatures


def _batches(
    store: Store | Path | str | Measurement | Sequence[Measurement], scans: Indices | None
) -> list[Measurement]:
    if isinstance(store, Measurement):
        return [store]
    if not isinstance(store, Store | Path | str):
        return list(store)
    store = store if isinstance(store, Store) else open_store(store)
    chosen = slice(min(MOST, len(store))) if scans is None else scans
    return [store.read(some) for some, _ in store.by_size(chosen)]


def _judge(m: Measurement, shown: LinearOperator, drawn: Tensor, seed: int) -> Iterator[_Judged]:
    """Statistics of scans, given the operators with which samples ``(batch, samples, *image)`` were drawn."""
    hidden = (m.operator.rows - shown.rows > 0).expand(m.y.shape)
    predicted = torch.stack([m.operator(drawn[:, k]) for k in range(drawn.shape[1])], 1)
    noise, frequency = m.noise.expand(m.y.shape), frequencies(m.operator)
    parts = 2 if m.y.is_complex() else 1
    for scan in range(len(m)):
        inside = hidden[scan]
        if not bool(inside.any()):
            continue
        y = components(m.y[scan][inside].numpy()).ravel().astype(np.float64)
        draws = components(predicted[scan][:, inside].numpy()).reshape(drawn.shape[1], -1).astype(np.float64)
        sigma = noise[scan][inside].numpy().repeat(parts).astype(np.float64)
        bands = np.ones((1, len(y)), bool)
        if frequency is not None:
            at = frequency.expand(m.y.shape)[scan][inside].numpy().repeat(parts)
            bands = np.stack([bands[0], *((low <= at) & (at < high) for low, high in pairwise(EDGES))])
        number = int(m.index[scan])
        yield _scan(number, y, draws, sigma, bands, rng_for(seed, _NOISE, number))


def _scan(
    number: int, y: Float, draws: Float, sigma: Float, bands: NDArray[np.bool_], rng: np.random.Generator
) -> _Judged:
    """Judge hidden values ``(values,)`` by samples ``(samples, values)`` of them without noise."""
    count = bands.sum(1)
    weight = np.where(count[:, None] > 0, bands / np.maximum(count, 1)[:, None], np.nan)
    own: dict[str, list[Float]] = {"ratio": [], "squared": [], "log_score": [], "deviance": []}
    other: dict[str, list[Float]] = {name: [] for name in own}
    inside: list[list[Float]] = [[], []]
    for first in range(0, len(draws), 2):
        rest = predictive(np.delete(draws, (first, first + 1), 0), sigma)
        for found, values, covered in (
            (own, y, inside[0]),
            *((other, draws[first + k] + sigma * rng.standard_normal(len(y)), inside[1]) for k in range(2)),
        ):
            away = np.abs(rest.below(values) - 0.5)
            found["ratio"].append(np.log(excess(weight @ away)))
            found["squared"].append(weight @ ((values - rest.mean) ** 2 / rest.variance))
            found["log_score"].append(weight @ rest.log_density(values))
            found["deviance"].append(np.log(np.maximum(weight @ rest.deviance(values), 1e-12)))
            covered.append(np.stack([weight @ (away <= level / 2) for level in LEVELS], 1))
    curve = np.array([predictive(temper(draws[None], float(t))[0], sigma).log_density(y).sum() for t in TEMPERATURES])
    mine, theirs = ({name: np.array(rows) for name, rows in found.items()} for found in (own, other))
    held, held_draws = (np.mean(rows, 0) for rows in inside)
    return _Judged(number, len(bands) > 1, count, mine, theirs, held, held_draws, curve)


# ------------------------------------------------------------------------------------------------------ all scans


def _result(judged: list[_Judged], attrs: dict[str, Any]) -> PriorValidation:
    import xarray
    from scipy import stats

    banded = all(one.banded for one in judged)
    names = [ALL, *(f"{low:g} to {high:g}" if np.isfinite(high) else f"above {low:g}"
                    for low, high in pairwise(EDGES))]  # fmt: skip
    values = np.stack([one.values[: None if banded else 1] for one in judged])
    used = values.sum(0) > 0
    values, columns = values[:, used], np.flatnonzero(used)

    def mean(name: str, who: str) -> Float:
        return np.stack([getattr(one, who)[name].mean(0)[columns] for one in judged])

    log_ratio = mean("ratio", "own") - mean("ratio", "draws")
    surprise = mean("log_score", "draws") - mean("log_score", "own")
    unlikely = mean("deviance", "own") - mean("deviance", "draws")
    pairs = len(judged[0].own["ratio"])
    dof = len(judged) * (pairs - 1)
    error = {name: _spread(judged, name, values, columns) for name in ("ratio", "deviance")}
    weight = np.isfinite(error["ratio"]).astype(float)
    counted = weight.sum(0)
    band_log = np.nansum(log_ratio, 0) / counted
    band_error = np.sqrt(np.nansum(error["ratio"] ** 2, 0)) / counted
    p_value = stats.t.sf(unlikely[:, 0] / error["deviance"][:, 0], dof)
    variables = {
        "values": values,
        "ratio": np.exp(log_ratio),
        "residual": np.sqrt(mean("squared", "own")),
        "expected": np.sqrt(mean("squared", "draws")),
        "log_score": mean("log_score", "own"),
        "surprise": surprise,
        "coverage": np.stack([one.coverage[columns] for one in judged]),
        "own_coverage": np.stack([one.own_coverage[columns] for one in judged]),
        "p_value": p_value,
        "flagged": p_value < LEVEL / len(judged),
        "band_ratio": np.exp(band_log),
        "band_p_value": 2 * stats.t.sf(np.abs(band_log) / band_error, dof),
    }
    named = {name: (PriorValidation.axes[name], value) for name, value in variables.items()}
    coords = {"scan": [one.scan for one in judged], "band": [names[k] for k in columns], "level": list(LEVELS)}
    return PriorValidation(xarray.Dataset(named, coords, attrs), *best_temperature([one.curve for one in judged]))


def _spread(judged: list[_Judged], name: str, values: NDArray[np.int64], columns: NDArray[np.int64]) -> Float:
    """Estimate standard errors of scans' mean differences, ``(scan, band)``: pooled, and falling with their values."""
    pairs = len(judged[0].own[name])
    # the two draws of a pair may be alike in this, as if there were but one
    variance = np.stack([one.draws[name][:, columns].var(0) for one in judged]) * (pairs / (pairs - 1))
    with np.errstate(invalid="ignore"):
        pooled = np.nansum(variance * values, 0) / (values > 0).sum(0)
        error: Float = np.sqrt(np.where(values > 0, pooled / np.maximum(values, 1), np.nan) * (1 + 1 / pairs))
    return error


def best_temperature(curves: Sequence[Float]) -> tuple[float, float]:
    """Temperature of the greatest log score over scans, and its standard error by the jackknife.

    Parameters
    ----------
    curves
        For every scan the log score of its hidden values at each of `TEMPERATURES`.
    """
    every = np.stack(curves)
    total = every.sum(0)
    found = _peak(total)
    if len(every) < 2:
        return float(np.exp(found)), float("nan")
    without = np.array([_peak(total - one) for one in every])
    error = np.sqrt((len(every) - 1) * np.mean((without - without.mean()) ** 2))
    return float(np.exp(found)), float(np.exp(found) * error)


def _peak(curve: Float) -> float:
    """Logarithm of the temperature at the top of a curve, by a parabola through three points."""
    grid = np.log(TEMPERATURES)
    top = int(np.clip(curve.argmax(), 1, len(grid) - 2))
    left, middle, right = curve[top - 1 : top + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float(grid[top] + np.clip(shift, -1, 1) * (grid[1] - grid[0]))
