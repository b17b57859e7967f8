r"""Whether posterior samples of known images are honest: coverage, ranks, and distances to random points.

If :math:`x` is an image and :math:`x_1 \ldots x_L` are independent samples of its posterior, then all :math:`L + 1` of
them are alike: the rank of :math:`q(x)` among the :math:`q(x_l)` is uniform on :math:`0 \ldots L` for any quantity
:math:`q` (simulation-based calibration, Talts et al. 2018, arXiv:1804.06788). With the distance to a random point for
:math:`q`, this is TARP (Lemos et al. 2023, arXiv:2302.03026), which sees what no single pixel shows. The samples of an
antithetic pair are not independent, so that ranks are taken among the first of every pair.

With :math:`u = (\text{rank} + 1/2) / (L + 1)`, two statistics say what is wrong: the mean of :math:`u`, one half if
there is no bias, and the mean of :math:`|u - 1/2|`, too large where errors are larger than the samples' spread: by the
factor that normal errors would need for it, given :math:`L`. Pixels of one scan hang together, scans do not: statistics
are averaged within each scan, and Student's t-test over scans compares them with what uniform ranks have. Of a quantity
with one value a scan their variance is known, and a normal test takes its place. All tests together are at level
`LEVEL` (Bonferroni). A deviation that is significant but smaller than `TOLERANCE` is no failure: with scans enough the
slightest is significant. (Of the mean of :math:`u` it is half as much.)

The pixels that count must not be chosen by the known image alone, or they would be those where it is bright and samples
perhaps are not. They are chosen by the mean of the image and the samples that it is ranked among, which are alike.

Coverage is that of the central intervals that the samples predict, all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import DataError
from ambient_sci.evaluate.metrics import LEVELS, Images, head_mask
from ambient_sci.evaluate.predictive import LEVEL, TOLERANCE, components, predictive
from ambient_sci.seeding import rng_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Calibrated",
    "Calibration",
    "Quantity",
    "SampleJudge",
    "contrast",
    "flux",
    "judge_samples",
    "region_means",
]

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PIXELS, TARP = "pixels", "random point (TARP)"

Float = NDArray[np.float64]
Quantity = Callable[[NDArray[Any], int], NDArray[Any]]
"""From images of a scan ``(n, channel, *spatial)`` and the scan's place to real values, one an image ``(n,)`` or
several ``(n, values)``; NaN where there is none."""


@dataclass(frozen=True)
class Calibrated:
    """How honest the samples are about one quantity.

    Attributes
    ----------
    ranks
        Part of the values that has each rank, ``(L + 1,)``; averaged over scans.
    coverage
        Part of the values inside central intervals of the levels `CURVE`, ``(levels,)``, and its standard error over
        scans, ``coverage_error``.
    position
        Mean of ``u``: one half where there is no bias, below where samples are too large.
    ratio
        Size of errors, relative to the spread of the samples: 1 where it is honest, above where it is too narrow.
    p_position, p_ratio
        Chance of as large a deviation if the samples are honest.
    """

    ranks: Float
    coverage: Float
    coverage_error: Float
    position: float
    ratio: float
    p_position: float
    p_ratio: float

    def fault(self, level: float) -> str | None:
        """Say what is wrong with the samples, if a test at a level and the tolerance find that something is."""
        if self.p_ratio < level and not 1 / (1 + TOLERANCE) <= self.ratio <= 1 + TOLERANCE:
            return "too narrow" if self.ratio > 1 else "too wide"
        if self.p_position < level and abs(self.position - 0.5) > TOLERANCE / 2:
            return "too large" if self.position < 0.5 else "too small"
        return None


@dataclass(frozen=True)
class Calibration:
    """What `judge_samples` found; ``str()`` is a table and the verdict.

    Attributes
    ----------
    quantities
        Name to what was found of it.
    scans, draws
        How many scans, and among how many samples the ranks are.
    """

    quantities: dict[str, Calibrated]
    scans: int
    draws: int

    @property
    def passed(self) -> bool:
        """Whether no quantity is at fault."""
        return not any(found.fault(self._level) for found in self.quantities.values())

    @property
    def verdict(self) -> str:
        """One line: whether the samples are honest, and by which test."""
        test = f"{2 * len(self.quantities)} tests of ranks over {self.scans} scans at level {LEVEL:g} together"
        faults = {name: fault for name, found in self.quantities.items() if (fault := found.fault(self._level))}
        if not faults:
            return f"calibrated: {test} find no significant deviation of {TOLERANCE:.0%} or more"
        told = []
        for name, fault in faults.items():
            found = self.quantities[name]
            spread = f"errors {found.ratio:.2f} times the spread, p = {found.p_ratio:.1g}"
            position = f"mean u {found.position:.2f} in place of 0.5, p = {found.p_position:.1g}"
            told.append(f"{name} {fault} ({spread if fault in ('too narrow', 'too wide') else position})")
        return f"NOT calibrated: samples of {'; '.join(told)}; {test}"

    @property
    def _level(self) -> float:
        return LEVEL / (2 * len(self.quantities))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        quantities = {}
        for name, found in self.quantities.items():
            inside = {str(level): float(found.coverage[CURVE.index(level)]) for level in LEVELS}
            numbers = {key: getattr(found, key) for key in ("position", "ratio", "p_position", "p_ratio")}
            quantities[name] = {"coverage": inside, **numbers, "ranks": found.ranks.tolist()}
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "scans": self.scans,
            "draws": self.draws,
            "quantities": quantities,
        }

    def plot(self) -> "Figure":
        """Draw coverage, ranks and TARP."""
        from ambient_sci.evaluate.figures import ranks_figure

        return ranks_figure(self)

    def __str__(self) -> str:
        width = max(map(len, self.quantities))
        head = "".join(f"{f'{100 * level:.0f}% holds':>12}" for level in LEVELS)
        lines = [f"{'':{width}}{head}{'errors/spread':>16}{'p':>9}{'mean u':>9}{'p':>9}"]
        for name, found in self.quantities.items():
            inside = "".join(f"{100 * found.coverage[CURVE.index(level)]:>11.1f}%" for level in LEVELS)
            tests = f"{found.ratio:>16.2f}{found.p_ratio:>9.2g}{found.position:>9.3f}{found.p_position:>9.2g}"
            lines.append(f"{name:{width}}{inside}{tests}")
        return "\n".join([*lines, self.verdict])


def judge_samples(
    samples: Images,
    reference: Images,
    quantities: Mapping[str, Quantity] | None = None,
    mask: Images | None = None,
    pairs: bool = True,
    seed: int = 0,
) -> Calibration:
    """Compare posterior samples with the images that were measured.

    Parameters
    ----------
    samples
        ``(n, samples, channel, *spatial)``, real or complex; of complex images the real and the imaginary part count
        as pixels of their own. Of at least 2 scans; of an odd number of samples in pairs the last is left out.
    reference
        Known images, ``(n, channel, *spatial)``.
    quantities, pairs, seed
        See `SampleJudge`.
    mask
        Pixels that count, ``(n, channel, *spatial)``, chosen without looking at the references; by default as
        the module says.

    Raises
    ------
    DataError
        If shapes do not fit, or scans or samples are too few.
    """
    judge = SampleJudge(quantities, pairs, seed)
    judge.add(samples, reference, mask)
    return judge.result()


class SampleJudge:
    """`judge_samples` of scans that come one batch after the other, also of several sizes.

    Parameters
    ----------
    quantities
        Name to quantity; by default the `flux` and the `region_means` inside the mask. Pixels, and the distance to a
        random point, are looked at always.
    pairs
        Whether samples ``2 k`` and ``2 k + 1`` are antithetic pairs, as `ambient_sci.reconstruct` draws them.
    seed
        Of the random points, and of ranks among equal values.
    """

    def __init__(self, quantities: Mapping[str, Quantity] | None = None, pairs: bool = True, seed: int = 0) -> None:
        self.quantities, self.pairs, self.seed = quantities, pairs, seed
        self._tallies: dict[str, _Tally] = {}
        self._scans = self._draws = 0

    def add(self, samples: Images, reference: Images, mask: Images | None = None) -> None:
        """Look at further scans; arguments as for `judge_samples`."""
        drawn, known = np.asarray(samples), np.asarray(reference)
        if drawn.ndim != known.ndim + 1 or drawn.shape[0] != len(known) or drawn.shape[2:] != known.shape[1:]:
            raise DataError(
                f"samples must be (n, samples, *{known.shape[1:]}) of {len(known)} scans, got {drawn.shape}"
            )
        if np.iscomplexobj(drawn) != np.iscomplexobj(known):
            raise DataError(f"samples ({drawn.dtype}) and reference ({known.dtype}) must both be real or both complex")
        draws = drawn.shape[1] // 2 if self.pairs else drawn.shape[1]
        if draws < 2 or self._draws not in (0, draws):
            want = f"as many as before, {self._draws}" if self._draws else "at least 2"
            raise DataError(f"samples must be of {want} {'pairs' if self.pairs else 'samples'}, got {draws}")
        self._draws = draws
        for scan in range(len(known)):
            inside = None if mask is None else np.asarray(mask)[scan].astype(bool)
            self._scan(drawn[scan, : 2 * draws] if self.pairs else drawn[scan], known[scan], inside)

    def _scan(self, draws: NDArray[Any], truth: NDArray[Any], inside: NDArray[np.bool_] | None) -> None:
        scan, rng = self._scans, rng_for(self.seed, self._scans)
        alike = np.concatenate([truth[None], draws[::2] if self.pairs else draws])
        if inside is None:
            inside = head_mask(np.abs(alike).mean(0)[None])[0]
        parts = 2 if np.iscomplexobj(truth) else 1
        point = rng.standard_normal((*truth.shape, parts)) @ np.array([1, 1j][:parts])
        point = point * np.sqrt(np.mean(np.abs(alike) ** 2) / parts)
        given = self.quantities
        given = {"flux": flux(inside), "regions": region_means(inside)} if given is None else given
        for name, quantity in {PIXELS: _pixels(inside), TARP: _distance(point, inside), **given}.items():
            values = _values(name, quantity, np.concatenate([truth[None], draws]), scan)
            self._tallies.setdefault(name, _Tally()).add(values[1:], values[0], self.pairs, rng)
        self._scans += 1

    def result(self) -> Calibration:
        """Say what was found in all of them."""
        if self._scans < 2:
            raise DataError(f"calibration compares scans: at least 2 are needed, got {self._scans}")
        found = {name: tally.judge() for name, tally in self._tallies.items() if tally.most}
        return Calibration(found, self._scans, self._draws)


# ----------------------------------------------------------------------------------------------------- quantities


def flux(mask: Images | None = None) -> Quantity:
    """Sum of an image (of its magnitude, if it is complex) over a mask.

    Parameters
    ----------
    mask
        Pixels that count, ``(channel, *spatial)``, or ``(n, channel, *spatial)`` if scans differ; all by default.
    """
    return lambda images, scan: (_visible(images) * _of(mask, images, scan)).reshape(len(images), -1).sum(1)


def region_means(mask: Images | None = None, tiles: int = 4) -> Quantity:
    """Mean of an image (of its magnitude) over tiles of the last two axes.

    Parameters
    ----------
    mask
        Pixels that count, as for `flux`; tiles of which they are less than half have no value.
    tiles
        How many along an axis.
    """

    def means(images: NDArray[Any], scan: int) -> Float:
        seen, inside = _visible(images), _of(mask, images, scan)
        rows, columns = (np.array_split(np.arange(size), tiles) for size in images.shape[-2:])
        values = []
        for some in rows:
            for others in columns:
                part = inside[..., some[:, None], others]
                total = (seen[..., some[:, None], others] * part).reshape(len(images), -1).sum(1)
                values.append(total / part.sum() if part.mean() >= 0.5 else np.full(len(images), np.nan))
        return np.stack(values, 1)

    return means


def contrast(lesion: Images, around: Images) -> Quantity:
    """Difference of the means of an image (of its magnitude) in a lesion and around it; masks as for `flux`."""

    def difference(images: NDArray[Any], scan: int) -> Float:
        one, other = (
            (_visible(images) * part).reshape(len(images), -1).sum(1) / part.sum()
            for part in (_of(lesion, images, scan), _of(around, images, scan))
        )
        return np.asarray(one - other, np.float64)

    return difference


def _pixels(mask: NDArray[np.bool_]) -> Quantity:
    return lambda images, scan: components(images[:, mask]).reshape(len(images), -1)


def _distance(point: NDArray[Any], mask: NDArray[np.bool_]) -> Quantity:
    return lambda images, scan: np.linalg.norm((images - point)[:, mask], axis=1)


def _of(mask: Images | None, images: NDArray[Any], scan: int) -> Float:
    if mask is None:
        return np.ones(images.shape[1:])
    weight = np.asarray(mask, np.float64)
    weight = weight[scan] if weight.ndim == images.ndim else weight
    if weight.shape != images.shape[1:]:
        raise DataError(f"mask must be {images.shape[1:]} or one of these for every scan, got {weight.shape}")
    return weight


def _visible(images: NDArray[Any]) -> NDArray[Any]:
    return np.abs(images) if np.iscomplexobj(images) else images


def _values(name: str, quantity: Quantity, images: NDArray[Any], scan: int) -> Float:
    values = np.asarray(quantity(images, scan))
    if np.iscomplexobj(values) or values.ndim not in (1, 2) or len(values) != len(images):
        raise DataError(
            f"quantity {name!r} must give real values ({len(images)},) or ({len(images)}, values), got {values.dtype} "
            f"of shape {values.shape}"
        )
    values = values.reshape(len(images), -1).astype(np.float64)
    return values[:, np.isfinite(values).all(0)]


# ---------------------------------------------------------------------------------------------------------- tests


class _Tally:
    """Statistics of one quantity, scan by scan."""

    def __init__(self) -> None:
        self.most = 0  # values of a scan
        self.bins = 0
        self.position: list[float] = []
        self.distance: list[float] = []
        self.ranks: list[Float] = []
        self.inside: list[Float] = []

    def add(self, draws: Float, truth: Float, pairs: bool, rng: np.random.Generator) -> None:
        """Take ``(samples, values)`` and ``(values,)`` of a scan."""
        if not truth.size:
            return
        chosen = draws[::2] if pairs else draws
        rank = (chosen < truth).sum(0) + rng.integers(0, (chosen == truth).sum(0) + 1)
        self.bins = len(chosen) + 1
        u = (rank + 0.5) / self.bins
        self.most = max(self.most, truth.size)
        self.position.append(u.mean())
        self.distance.append(np.abs(u - 0.5).mean())
        self.ranks.append(np.bincount(rank, minlength=self.bins) / truth.size)
        off = 2 * np.abs(predictive(draws, pairs=pairs).below(truth) - 0.5)
        self.inside.append((off[:, None] <= CURVE).mean(0))

    def judge(self) -> Calibrated:
        every = (np.arange(self.bins) + 0.5) / self.bins  # what `u` can be, all equally likely
        away = np.abs(every - 0.5)
        inside, scans = np.array(self.inside), len(self.inside)
        return Calibrated(
            ranks=np.mean(self.ranks, 0),
            coverage=inside.mean(0),
            coverage_error=inside.std(0, ddof=1) / np.sqrt(scans) if scans > 1 else np.full(len(CURVE), np.nan),
            position=float(np.mean(self.position)),
            ratio=_ratio(float(np.mean(self.distance)), self.bins),
            p_position=self._p(self.position, every),
            p_ratio=self._p(self.distance, away),
        )

    def _p(self, statistic: Sequence[float], honest: Float) -> float:
        """Two-sided test that the mean over scans is that of the honest values."""
        from scipy import stats

        values = np.array(statistic)
        off = values.mean() - honest.mean()
        if self.most == 1:
            return float(2 * stats.norm.sf(abs(off) / (honest.std() / np.sqrt(len(values)))))
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
        return float(2 * stats.t.sf(abs(off) / max(error, 1e-12), max(len(values) - 1, 1)))


def _ratio(distance: float, bins: int) -> float:
    """Size of normal errors, relative to the spread, at which the mean of ``|u - 1/2|`` is this one."""
    from scipy import special

    points, weights = np.polynomial.hermite_e.hermegauss(64)
    ranks = np.arange(bins)
    away = np.abs((ranks + 0.5) / bins - 0.5)
    sizes = np.geomspace(0.05, 20, 200)
    below = special.ndtr(sizes[:, None, None] * points[:, None])
    chance = special.comb(bins - 1, ranks) * below**ranks * (1 - below) ** (bins - 1 - ranks)
    return float(np.interp(distance, np.einsum("scr,c,r->s", chance, weights, away) / weights.sum(), sizes))
