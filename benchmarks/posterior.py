r"""What each approximation of the posterior costs, where the posterior is known: ``python -m benchmarks.posterior``.

Priors are a Gaussian and a mixture of three on 8 x 8 pixels (`benchmarks.learning.laws`), with their exact denoisers,
and a Gaussian of power-law spectrum on 64 x 64, all of whose frequencies are independent. One scan of each is drawn,

.. math:: y = A x_0 + \sigma e

with half of the pixels, 24 random rows, two-fold undersampled lines of 4 coils, or 6 radial spokes, and many samples of
its posterior. Operators of the small cases are applied as the matrices that they are. Each row of the results has

- ``mean_error``: :math:`\|m - m^*\| / \|m^*\|`, of the mean,
- ``std_error``: :math:`\|s - s^*\| / \|s^*\|`, of the standard deviations of all pixels (frequencies on 64 x 64),
- ``cov_error``: :math:`\|C - C^*\|_F / \|C^*\|_F`, of the covariance, on 8 x 8,
- ``weight_error``: total variation between the shares of the mixture's components,
- ``sliced``: sliced Wasserstein distance from exact draws, mean over directions, in units of the exact spread along
  each, and ``sliced_floor``, that of as many exact draws,
- ``c2st``: classifier two-sample test, on 8 x 8: how many of held-out draws, half of them exact, a classifier puts in
  the right half (Lopez-Paz and Oquab 2017, arXiv:1610.06545), and ``c2st_floor``, where all are exact. One half cannot
  be told apart, one is always. It is a quadratic discriminant, the best there is for two Gaussians, on real and
  imaginary parts of draws that the exact moments make white; of mixtures it sees no more than mean and covariance,
- ``seconds``: of the processor, per sample, on one thread.

Squares of the first three have what chance would give on average taken off. Rows of MMPS whose conjugate gradients
converge (``cg`` 64; Gaussians of 8 x 8) are without chance: the sampler is an affine map of its noise then, and what it
makes of an orthonormal basis gives mean and covariance. Multistep sampling with eta = 1 from 20 ``sigma_data`` down to
0.01 or to a third of the noise, whichever is lower, unless the method says otherwise. Particles are left out where they
would take hours, lower levels where the noise makes them as low anyway.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.checkpoint import replacing
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.denoise import Denoiser, GaussianDenoiser, GaussianMixtureDenoiser
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import Fourier, Gaussian, LinearOperator, Mask, Matrix, Nufft, Sense, patterns, trajectories
from ambient_sci.posterior import DDS, DPS, MMPS, DiffPIR
from ambient_sci.posterior.particles import twisted_sample
from ambient_sci.sample import Solver, sample
from ambient_sci.schedule import edm_levels
from ambient_sci.seeding import stream
from benchmarks.learning.laws import LAWS, SIZE
from benchmarks.readme import write_section

__all__ = [
    "CASES",
    "METHODS",
    "Case",
    "Method",
    "affine_moments",
    "c2st",
    "measure",
    "scores",
    "sliced",
    "small_case",
    "table",
]

ROOT = Path(__file__).parent
CONVERGED, TOLERANCE = 64, 1e-4
TOP, FINEST = 20.0, 0.01  # in units of sigma_data
GUESSED = 16  # particles


@dataclass(frozen=True)
class Case:
    """A scan whose posterior is a mixture of Gaussians, in coordinates in which it is written down.

    Parameters
    ----------
    denoiser
        Of the prior, exact.
    measurement
        One scan.
    shape
        Of an image, ``(channel, *spatial)``.
    sigma_data
        Standard deviation of the images per real component.
    weights, means, roots
        Of the components of the posterior: ``(k,)``, ``(k, n)``, and square roots of their covariances per real
        component, ``(k, n, n)``, or where these are diagonal ``(k, n)``.
    coordinates
        From images ``(batch, *shape)`` to ``(batch, n)``.
    """

    denoiser: Denoiser
    measurement: Measurement
    shape: tuple[int, ...]
    sigma_data: float
    weights: Tensor
    means: Tensor
    roots: Tensor
    coordinates: Callable[[Tensor], Tensor] = field(default=lambda x: x.flatten(1))

    @property
    def dtype(self) -> torch.dtype:
        """Of images."""
        return self.means.dtype

    def levels(self, steps: int, finest: float = FINEST) -> Tensor:
        """Noise levels for as many steps, the lowest one in units of ``sigma_data``."""
        noise = float(self.measurement.noise_std.max())
        return edm_levels(steps, min(finest * self.sigma_data, noise / 3), TOP * self.sigma_data)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact draws in coordinates, ``(count, n)``."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white, drawn = randn_like(self.means[which], generator), self.means[which].clone()
        for k, root in enumerate(self.roots):
            mine = which == k
            drawn[mine] += white[mine] * root if root.ndim == 1 else white[mine] @ root.mT
        return drawn

    def shares(self, drawn: Tensor) -> Tensor:
        """Part of draws that each component is the most likely origin of, ``(k,)``."""
        logs = []
        for weight, mean, root in zip(self.weights, self.means, self.roots, strict=True):
            white = torch.linalg.solve(root, (drawn - mean).mT)
            logs.append(weight.log() - white.abs().square().sum(0) / 2 - torch.linalg.slogdet(root)[1] * self.parts)
        return torch.bincount(torch.stack(logs).argmax(0), minlength=len(self.weights)) / len(drawn)

    @property
    def parts(self) -> int:
        """Real components of a value."""
        return 2 if self.dtype.is_complex else 1

    def moments(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Exact mean, variances per real component, and covariance where it is not diagonal."""
        mean = (self.weights[:, None] * self.means).sum(0)
        off = self.means - mean
        if self.roots.ndim == 2:
            return mean, (self.roots**2).sum(0), None
        each = self.roots @ self.roots.mH + off[:, :, None] * off[:, None, :].conj() / self.parts
        covariance = (self.weights[:, None, None] * each).sum(0)
        return mean, covariance.diagonal().real, covariance


def _operator(kind: str) -> LinearOperator:
    g, shape = stream(1), (SIZE, SIZE)
    if kind == "mask":
        return Mask((torch.rand(1, 1, *shape, generator=g) < 0.5).double())
    if kind == "rows":
        return Gaussian(24, (1, *shape), 3).to(dtype=torch.float64)
    if kind == "sense":
        maps = coil_maps(4, shape, g)[None].to(torch.complex128)
        return Sense(patterns.random_lines(1, shape, 2, 2, generator=g).double(), maps)
    return Nufft(trajectories.radial(1, shape, 6, 2 * SIZE, g).double(), shape)


def small_case(law: str, kind: str, noise: float, scan: int = 0) -> Case:
    """Measure one image of a law (`benchmarks.learning.laws`); other scans are of other images."""
    known = LAWS[f"{law}-complex" if kind in ("sense", "nufft") else law]
    A, dtype, shape = _operator(kind), known.means.dtype, (1, SIZE, SIZE)
    basis = torch.eye(SIZE**2, dtype=dtype).reshape(-1, *shape)
    matrix = A.repeat(SIZE**2)(basis).flatten(1).mT
    matrix = matrix[matrix.abs().sum(1) > 0]
    which = (scan,) if scan else ()
    y = matrix @ known.draw(1, stream(2, *which)).flatten()
    y = y + noise * randn_like(y, stream(3, *which))
    components = 2 if dtype.is_complex else 1
    means, roots, logs = [], [], []
    for weight, mean, covariance in zip(known.weights, known.means, known.covariances.to(dtype), strict=True):
        inner = matrix @ covariance @ matrix.mH + noise**2 * torch.eye(len(y), dtype=dtype)
        gain = torch.linalg.solve(inner, matrix @ covariance).mH
        residual = y - matrix @ mean
        # the form that stays positive
        rest = torch.eye(SIZE**2, dtype=dtype) - gain @ matrix
        roots.append(_root(rest @ covariance @ rest.mH + noise**2 * gain @ gain.mH))
        means.append(mean + gain @ residual)
        chi = (residual.conj() @ torch.linalg.solve(inner, residual)).real
        logs.append(weight.log() - (chi + components * torch.linalg.slogdet(inner)[1]) / 2)
    denoiser: Denoiser = GaussianMixtureDenoiser(known.weights, known.means.reshape(-1, *shape), known.covariances)
    if len(known.weights) == 1:
        denoiser = GaussianDenoiser(known.means[0].reshape(shape), known.covariances[0])
    m = Measurement(y[None], Matrix(matrix[None], shape), noise)
    sigma = float((known.weights * known.covariances.diagonal(dim1=1, dim2=2).mean(1)).sum().sqrt())
    return Case(denoiser, m, shape, sigma, torch.softmax(torch.stack(logs), 0), torch.stack(means), torch.stack(roots))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mH
    return root


class _Spectral(Denoiser):
    """Exact denoiser of independent frequencies of variance ``power`` ``(height, width)``, zero in the centre."""

    def __init__(self, power: Tensor) -> None:
        super().__init__()
        self.power, self.fourier = power, Fourier(torch.ones(1, 1, *power.shape).double())

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        shrink = self.power / (self.power + sigma.reshape(-1, 1, 1, 1) ** 2)
        return self.fourier.adjoint(shrink * self.fourier(x))


def large_case(noise: float, size: int = 64) -> Case:
    """Measure some of the frequencies of an image whose frequencies are independent."""
    away = torch.arange(size, dtype=torch.float64) - size // 2
    power = 1 / (1 + (away[:, None] ** 2 + away**2) / 4) ** 1.5
    power = power / power.mean()
    mask = patterns.random_points(1, (size, size), 4, 8, generator=stream(1)).double()
    A, white = Fourier(mask), torch.zeros(1, 1, size, size, dtype=torch.complex128)
    denoiser = _Spectral(power)
    x = denoiser.fourier.adjoint(power.sqrt() * randn_like(white, stream(2)))
    y = A(x)
    y = y + noise * randn_like(y, stream(3)) * mask
    gain = mask * power / (power + noise**2)
    variance = power * (1 - gain)
    return Case(
        denoiser,
        Measurement(y, A, noise),
        (1, size, size),
        1.0,
        torch.ones(1, dtype=torch.float64),
        (gain * y).flatten(1),
        variance.sqrt().reshape(1, -1).to(y.dtype),
        lambda image: denoiser.fourier(image).flatten(1),
    )


CASES: dict[str, Callable[..., Case]] = {
    **{
        f"gaussian-{kind}-{noise:g}": partial(small_case, "gaussian", kind, noise)
        for kind in ("mask", "rows", "sense", "nufft")
        for noise in (0.3, 0.03, 0.001)
    },
    **{
        f"mixture-{kind}-{noise:g}": partial(small_case, "mixture", kind, noise)
        for kind in ("mask", "rows")
        for noise in (0.3, 0.03)
    },
    "gaussian-fourier-4096-0.1": partial(large_case, 0.1),
}


@dataclass(frozen=True)
class Method:
    """A posterior method and how it is sampled.

    ``cg`` are conjugate gradient iterations of each evaluation, ``finest`` is the lowest noise level.
    """

    name: str
    steps: int
    cg: int = 0
    solver: Solver = "multistep"
    eta: float = 1.0
    finest: float = FINEST

    def denoiser(self, prior: Denoiser, m: Measurement) -> Denoiser:
        """Wrap the prior."""
        if self.name == "dps":
            return DPS(prior, m)
        if self.name == "diffpir":
            return DiffPIR(prior, m, iterations=self.cg)
        if self.name == "dds":
            return DDS(prior, m, iterations=self.cg)
        return MMPS(prior, m, self.cg, TOLERANCE if self.cg == CONVERGED else 0.03 if self.cg == 30 else 0.0)

    def fits(self, case: Case) -> bool:
        """Whether it is worth the time."""
        small = math.prod(case.shape) == SIZE**2
        if self.name == "tds":
            return small and not case.dtype.is_complex and float(case.measurement.noise_std.max()) >= 0.03
        if self.finest < FINEST and torch.equal(self.levels(case), case.levels(self.steps)):
            return False
        return self.cg != CONVERGED or (small and len(case.weights) == 1)

    def levels(self, case: Case) -> Tensor:
        """Noise levels of a case."""
        return case.levels(self.steps, self.finest)

    @property
    def key(self) -> tuple[str, int, int]:
        """What its row of a case is found by."""
        return self.label, self.steps, self.cg

    @property
    def label(self) -> str:
        """Name, and the sampler if it is not the usual one."""
        usual = self.solver == "multistep" and self.eta == 1
        sampler = "" if usual else f", {self.solver}" + (f", eta {self.eta:g}" if self.eta else "")
        return self.name + sampler + (f", down to {self.finest:g}" if self.finest < FINEST else "")


METHODS = (
    Method("mmps", 8, 3),
    Method("mmps", 16, 3),
    Method("mmps", 32, 1),
    Method("mmps", 32, 3),
    Method("mmps", 32, 10),
    Method("mmps", 32, 30),
    Method("mmps", 32, CONVERGED),
    Method("mmps", 32, CONVERGED, finest=0.005),
    Method("mmps", 16, CONVERGED),
    Method("mmps", 16, CONVERGED, "heun", 0.0),
    Method("mmps", 32, CONVERGED, "multistep", 0.0),
    Method("mmps", 32, 30, "euler", 1.0),
    Method("dps", 32),
    Method("dps", 256),
    Method("diffpir", 32, 20),
    Method("dds", 32, 5),
    Method("tds", 64),
)


def affine_moments(case: Case, method: Method) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a sampler makes of a Gaussian when every step is affine, without chance.

    The first of a batch sees no noise, and the others what all steps draw, turned so that they are orthogonal. They are
    as long as draws are: solves that guard against what no draw has are not met with it.
    """
    n = math.prod(case.shape)
    stages = method.steps if method.eta > 0 else 1
    size = stages * n
    turned = torch.linalg.qr(randn_like(torch.zeros(size, size, dtype=case.dtype), stream(6)))[0]
    noises = torch.cat([torch.zeros_like(turned[:1]), size**0.5 * turned]).reshape(-1, stages, *case.shape)
    posterior = method.denoiser(case.denoiser, case.measurement.repeat(1 + size))
    levels = method.levels(case)
    out = sample(posterior, lambda k: noises[:, k], levels, method.solver, method.eta).flatten(1)
    response = (out[1:] - out[0]).mT / size**0.5
    return out[0], response @ response.mH


def draws(case: Case, method: Method, count: int) -> Tensor:
    """Draw samples of a method, in coordinates."""
    g, times = stream(4), GUESSED if method.name == "tds" else 1
    like = torch.zeros(count * times, *case.shape, dtype=case.dtype)
    m, levels = case.measurement.repeat(count), method.levels(case)
    if method.name == "tds":
        streams = [stream(5, swarm) for swarm in range(count)]
        images = twisted_sample(case.denoiser, m, times, lambda k: randn_like(like, g), levels, streams)
    else:
        posterior = method.denoiser(case.denoiser, m)
        images = sample(posterior, lambda k: randn_like(like, g), levels, method.solver, method.eta)
    return case.coordinates(images)


def measure(name: str, case: Case, method: Method, count: int) -> dict[str, Any]:
    """One row of the results."""
    exactly = method.cg == CONVERGED
    start, times = time.process_time(), count // 8 if exactly else count
    drawn = draws(case, method, times)
    seconds = (time.process_time() - start) / times
    found = None
    if exactly:
        found = affine_moments(case, method)
        drawn = found[0] + randn_like(found[0].expand(count, -1).contiguous(), stream(4)) @ _root(found[1]).mT
    row = {"case": name, "method": method.label, "steps": method.steps, "cg": method.cg, "seconds": round(seconds, 5)}
    return row | scores(case, drawn, found)


def scores(case: Case, drawn: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> dict[str, float]:
    """Errors of draws in coordinates ``(count, n)``, or of mean and covariance if these are known without chance."""
    mean, variance, covariance = case.moments()
    count, second = len(drawn), None
    if moments is not None:
        (found, second), chance = moments, 0.0
        spread = second.diagonal().real
    else:
        found, chance = drawn.mean(0), 1.0
        off = drawn - found
        spread = off.abs().square().sum(0) / (count - 1) / case.parts
        if covariance is not None:
            second = off.mT @ off.conj() / (count - 1) / case.parts
    total, own = float(variance.sum()), chance / count
    row = {
        "mean_error": _beyond(found - mean, mean, own * total * case.parts),
        "std_error": _beyond(spread.sqrt() - variance.sqrt(), variance.sqrt(), own * total / 2 / case.parts),
    }
    if covariance is not None and second is not None:
        by_chance = own * (total**2 + float(covariance.abs().square().sum())) / case.parts
        row["cov_error"] = _beyond(second - covariance, covariance, by_chance)
    if len(case.weights) > 1:
        apart = case.shares(drawn) - case.shares(case.draw(20_000, stream(8)))
        row["weight_error"] = round(float(apart.abs().sum()) / 2, 4)
    exact, others = case.draw(count, stream(6)), case.draw(count, stream(7))
    row["sliced"], row["sliced_floor"] = sliced(drawn, exact), sliced(others, exact)
    if covariance is not None:
        inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
        drawn, exact, others = ((x - mean) @ inverse.mT for x in (drawn, exact, others))
        row["c2st"], row["c2st_floor"] = c2st(drawn, exact), c2st(others, exact)
    return row


def _beyond(error: Tensor, exact: Tensor, by_chance: float) -> float:
    """Relative error, the mean square of chance taken off."""
    square = float(error.abs().square().sum()) - by_chance
    return round(math.sqrt(max(square, 0.0) / float(exact.abs().square().sum())), 4)


def sliced(a: Tensor, b: Tensor, directions: int = 128) -> float:
    """Sliced Wasserstein distance of two sets of as many draws, in units of the spread of the second."""
    a, b = _real(a), _real(b)
    onto = randn_like(a.new_zeros(a.shape[1], directions), stream(9))
    a, b = ((x @ onto).sort(0)[0] for x in (a, b))
    apart: Tensor = (a - b).abs().mean(0) / b.std(0)
    return round(float(apart.mean()), 4)


def c2st(a: Tensor, b: Tensor, folds: int = 5) -> float:
    """Part of two sets of draws ``(count, n)`` that a classifier attributes rightly, each fold by what others teach."""
    x, y = torch.cat([_real(a), _real(b)]).numpy(), np.repeat([0, 1], [len(a), len(b)])
    classifier = QuadraticDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    return round(float(cross_val_score(classifier, x, y, cv=parts).mean()), 4)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(1) if x.is_complex() else x


# --------------------------------------------------------------------------------------------------------------- table


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown, cases one after the other."""
    columns = {
        "mean_error": "mean / %",
        "std_error": "std / %",
        "cov_error": "covariance / %",
        "weight_error": "weights / %",
        "sliced": "sliced",
        "c2st": "C2ST",
        "seconds": "ms a sample",
    }
    forms: dict[str, Callable[[float], str]] = {name: lambda v: f"{100 * v:.1f}" for name in columns}
    forms |= {name: lambda v: f"{v:.3f}" for name in ("sliced", "c2st")} | {"seconds": lambda v: f"{1000 * v:.3g}"}
    parts = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        shown = [name for name in columns if name in mine[0]]
        lines = [
            f"#### {case}",
            "",
            "| method | steps | CG | " + " | ".join(columns[name] for name in shown) + " |",
            "|---|--:|--:|" + "--:|" * len(shown),
        ]
        for row in mine:
            cg = {0: "", CONVERGED: "all", 30: "to 3%"}.get(row["cg"], row["cg"])
            cells = " | ".join(forms[name](row[name]) for name in shown)
            lines.append(f"| {row['method']} | {row['steps']} | {cg} | {cells} |")
        floors = [f"a sliced distance of {mine[0]['sliced_floor']:.3f}"]
        floors += [f"a C2ST of {mine[0]['c2st_floor']:.3f}"] if "c2st" in shown else []
        lines += ["", f"As many exact draws have {' and '.join(floors)}.", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Measure the cases and make the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.posterior", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--samples", type=int, default=1024, help="samples of each; of 4096 values a sixteenth as many")
    parser.add_argument("--missing", action="store_true", help="only methods that a case has no row of")
    parser.add_argument("--table", action="store_true", help="make the table of what was measured, and nothing else")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "posterior.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(argv)
    rows = json.loads(options.results.read_text()) if options.results.exists() else []
    torch.set_num_threads(1)
    for name in [] if options.table else tqdm(options.cases, desc="cases"):
        case = CASES[name]()
        count = max(options.samples // 16, 2) if math.prod(case.shape) > SIZE**2 else options.samples
        kept = {(row["method"], row["steps"], row["cg"]): row for row in rows if row["case"] == name}
        some = [method for method in METHODS if method.fits(case)]
        wanted = [method for method in some if not options.missing or method.key not in kept]
        kept |= {one.key: measure(name, case, one, count) for one in tqdm(wanted, desc=name, leave=False)}
        rows = [row for row in rows if row["case"] != name] + [kept[method.key] for method in some]
        rows.sort(key=lambda row: list(CASES).index(row["case"]))
        with replacing(options.results) as unfinished:  # case by case, for a run that is interrupted
            unfinished.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    write_section(options.readme, "posterior", table(rows))


if __name__ == "__main__":
    main()
