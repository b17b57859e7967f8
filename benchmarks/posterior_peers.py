r"""Posterior samplers of deepinv and azula beside ours, where the posterior is known.

``python -m benchmarks.posterior_peers``: all sample the same eight scans of a case of `benchmarks.posterior` with the
same exact denoiser, and are scored by the same code; scores are means over scans. Peers see scans in the units that
they expect, images from 0 to 1 (deepinv) or -1 to 1 (azula):

.. math:: x = c + a v, \quad y_v = (y - A c) / a, \quad \sigma_v = \sigma / a, \quad
          D_v(v, s) = (D(c + a v, a s) - c) / a

with the range :math:`[c, c + a]` (or :math:`c \pm a`) of 4096 images of the law, so that what they clip is hardly ever
met. azula's :math:`x_t = \alpha_t v + \sigma_t n` is denoised as :math:`D_v(x_t / \alpha_t, \sigma_t / \alpha_t)`.

A budget is of passes through the denoiser, forward or backward, for each image: a product with its Jacobian costs one.
Every method has the settings among those listed here that did best (by ``sliced``) on eight other scans: all are tried
with 16 samples of each, and the best four of these with 64. It takes as many steps as the budget has room for. They run
one after the other on one thread. What counts:

- **as accurate**: the sliced distance of ours is at most that of the best peer with this budget, or at most 1.1 times
  that of as many exact draws, from which none can be told apart then,
- **as fast**: our fastest row that is at least as accurate as deepinv's DPS of 1000 steps takes at most half its time.

Peers that are not installed have their line all the same, and targets that are about them are not judged.
"""

import argparse
import importlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.checkpoint import replacing
from ambient_sci.denoise import Denoiser
from ambient_sci.measurement import Measurement, collate_measurements, randn_like
from ambient_sci.posterior import MMPS
from ambient_sci.sample import sample
from ambient_sci.seeding import stream
from benchmarks.learning.laws import LAWS
from benchmarks.operators import installed_version, machine_description
from benchmarks.posterior import CASES, ROOT, Case, scores, sliced
from benchmarks.readme import write_section

__all__ = ["SAMPLERS", "Counted", "Sampler", "Scaled", "table", "verdicts"]

SHOWN = ("gaussian-mask-0.03", "gaussian-rows-0.03", "mixture-mask-0.3")
BUDGETS, LEAST = (32, 100, 1000), 12
REFERENCE, REFERENCE_STEPS = "deepinv, DPS", 1000
OURS = "ambient-sci, MMPS"
TUNED, SCORED = range(1, 9), range(9, 17)  # scans
TUNING = ((16, 4), (64, 1))  # samples of each scan, and how many of the settings are left after it
CHANCE, TIMES = 1.1, 2.0  # of the distance of exact draws; as fast
SCHEDULES = ("VP", "Rectified", "VE")  # of azula: the default, that of its tutorials, and one as ours
PACKAGES = ("torch", "deepinv", "azula")


class Counted(Denoiser):
    """A denoiser that counts passes through it, forward and backward."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.passes = denoiser, 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise; see `Denoiser`."""
        self._count()
        mean: Tensor = self.denoiser(x, sigma)
        if mean.requires_grad:
            mean.register_hook(self._count)
        return mean

    def _count(self, gradient: Tensor | None = None) -> None:
        self.passes += 1


@dataclass(frozen=True)
class Scaled:
    """As many copies of each scan in a row, with images :math:`v` for which :math:`x = c + a v`.

    Parameters
    ----------
    cases, times
        Scans, which differ in their measurements alone, and how many samples of each.
    prior
        Denoiser of :math:`x`.
    origin, unit
        :math:`c` and :math:`a`.
    """

    cases: Sequence[Case]
    times: int
    prior: Counted
    origin: float = 0.0
    unit: float = 1.0

    @property
    def case(self) -> Case:
        """The first scan, for what they have in common."""
        return self.cases[0]

    @property
    def count(self) -> int:
        """Size of a batch."""
        return self.times * len(self.cases)

    @property
    def measurement(self) -> Measurement:
        """What was measured of :math:`x`."""
        return collate_measurements([case.measurement for case in self.cases]).repeat(self.times)

    @property
    def matrix(self) -> Tensor:
        """Of the operator, ``(m, n)``."""
        matrix: Tensor = self.case.measurement.operator.parameters["matrix"][0]
        return matrix

    @property
    def y(self) -> Tensor:
        """Measurements of :math:`v`, ``(count, m)``."""
        return (self.measurement.y - self.origin * self.matrix.sum(1)) / self.unit

    @property
    def noise(self) -> float:
        """Standard deviation of their noise."""
        return float(self.case.measurement.noise_std.max()) / self.unit

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a batch of images."""
        return self.count, *self.case.shape

    @property
    def mask(self) -> Tensor | None:
        """What is measured of an image, if that is pixels alone."""
        pixels = bool(((self.matrix == 0) | (self.matrix == 1)).all()) and bool((self.matrix.sum(1) == 1).all())
        mask: Tensor = self.matrix.sum(0).reshape(self.case.shape)
        return mask if pixels else None

    def apply(self, v: Tensor) -> Tensor:
        """Measure images of any shape, ``(count, m)``."""
        return v.flatten(1).to(self.matrix) @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """Back to images."""
        images: Tensor = (y.to(self.matrix) @ self.matrix).reshape(-1, *self.case.shape)
        return images

    def denoise(self, v: Tensor, sigma: Tensor | float) -> Tensor:
        """Denoise images ``(count, ...)`` at one noise level."""
        x = self.origin + self.unit * v.reshape(-1, *self.case.shape).to(self.case.dtype)
        level = self.unit * torch.as_tensor(sigma, dtype=x.dtype).reshape(1).expand(len(x))
        denoised: Tensor = (self.prior(x, level) - self.origin) / self.unit
        return denoised.reshape(v.shape).to(v.dtype)


# ---------------------------------------------------------------------------------------------------------- samplers


def mmps(scan: Scaled, steps: int, cg: int, eta: float) -> Tensor:
    """Ours, multistep; solves of many iterations end at 3% of the first residual."""
    g, like = stream(4, scan.count), torch.zeros(scan.shape, dtype=scan.case.dtype)
    posterior = MMPS(scan.prior, scan.measurement, cg, 0.03 if cg >= 10 else 0.0)
    return sample(posterior, lambda k: randn_like(like, g), scan.case.levels(steps), "multistep", eta)


def _deepinv(scan: Scaled) -> tuple[Any, Any, Tensor]:
    """Denoiser, physics and measurements; masks as the kind of their own that deepinv has."""
    deepinv = importlib.import_module("deepinv")

    class Exact(deepinv.models.Denoiser):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor, sigma: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
            return scan.denoise(x, sigma)

    noise = deepinv.physics.GaussianNoise(scan.noise)
    if scan.mask is None:
        return Exact(), deepinv.physics.LinearPhysics(A=scan.apply, A_adjoint=scan.adjoint, noise_model=noise), scan.y
    physics = deepinv.physics.Inpainting(img_size=scan.case.shape, mask=scan.mask, noise_model=noise)
    return Exact(), physics, scan.adjoint(scan.y)


def deepinv_dps(scan: Scaled, steps: int, **setting: Any) -> Tensor:
    """`deepinv.sampling.DPS`: at its last time it denoises once more (VE) or not at all (VP)."""
    denoiser, physics, y = _deepinv(scan)
    times = steps + (setting["schedule"] == "vp")
    model = importlib.import_module("deepinv").sampling.DPS(denoiser, num_steps=times, **setting)
    drawn: Tensor = model(y, physics, x_init=scan.shape)
    return drawn


def deepinv_diffpir(scan: Scaled, steps: int, **setting: Any) -> Tensor:
    """`deepinv.sampling.DiffPIR`."""
    deepinv = importlib.import_module("deepinv")
    denoiser, physics, y = _deepinv(scan)
    fidelity = deepinv.optim.data_fidelity.L2()
    drawn: Tensor = deepinv.sampling.DiffPIR(denoiser, fidelity, scan.noise, max_iter=steps, **setting)(y, physics)
    return drawn


def deepinv_ddrm(scan: Scaled, steps: int, levels: str, **setting: Any) -> Tensor:
    """`deepinv.sampling.DDRM`, with noise levels as in its examples or geometric ones."""
    denoiser, physics, y = _deepinv(scan)
    sigmas = np.linspace(1, 0, steps)
    if levels == "geometric":
        sigmas = np.append(np.geomspace(1, scan.noise / 3, steps - 1), 0)
    drawn: Tensor = importlib.import_module("deepinv").sampling.DDRM(denoiser, sigmas, **setting)(y, physics)
    return drawn


def _azula(scan: Scaled, name: str) -> Any:
    """Denoiser of ``(count, n)`` with one of azula's schedules, VE from our first level to our last one."""
    denoise = importlib.import_module("azula.denoise")
    levels = scan.case.levels(2) / scan.unit
    ends = {"sigma_min": float(levels[-2]), "sigma_max": float(levels[0])} if name == "VE" else {}

    class Exact(denoise.Denoiser):  # type: ignore[misc, name-defined]
        schedule = getattr(importlib.import_module("azula.noise"), f"{name}Schedule")(**ends)

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return denoise.DiracPosterior(mean=scan.denoise(x_t / alpha, sigma / alpha))

    return Exact()


def _from_azula(sampler: Any, scan: Scaled) -> Tensor:
    start = sampler.init((scan.count, math.prod(scan.case.shape)), dtype=torch.float64)
    drawn: Tensor = sampler(start).reshape(scan.shape)
    return drawn


def azula_mmps(scan: Scaled, steps: int, schedule: str, iterations: int, sampler: str, **setting: Any) -> Tensor:
    """`azula.guidance.MMPSDenoiser`, sampled by one of azula's samplers."""
    covariance = importlib.import_module("azula.linalg.covariance").IsotropicCovariance(scan.noise**2)
    guidance, samplers = (importlib.import_module(f"azula.{name}") for name in ("guidance", "sample"))
    posterior = guidance.MMPSDenoiser(_azula(scan, schedule), scan.y, scan.apply, covariance, iterations=iterations)
    return _from_azula(getattr(samplers, sampler)(posterior, steps=steps, silent=True, **setting), scan)


def azula_dps(scan: Scaled, steps: int, schedule: str, zeta: float) -> Tensor:
    """`azula.guidance.DPSSampler`; it takes one norm over the batch, for which its strength is made up here."""
    guidance, strength = importlib.import_module("azula.guidance"), zeta * math.sqrt(scan.count)
    prior = _azula(scan, schedule)
    return _from_azula(guidance.DPSSampler(prior, scan.y, scan.apply, strength, steps=steps, silent=True), scan)


@dataclass(frozen=True)
class Sampler:
    """A method of a package; ``passes`` of one step by setting, and the settings to choose from."""

    name: str
    draw: Callable[..., Tensor]
    passes: Callable[[dict[str, Any]], int]
    settings: tuple[dict[str, Any], ...]
    masks: bool = field(default=False)  # alone

    @property
    def package(self) -> str:
        """What has to be installed."""
        return self.name.partition(",")[0].replace("-", "_")

    @property
    def installed(self) -> bool:
        """Whether it is."""
        return importlib.util.find_spec(self.package) is not None

    def steps(self, setting: dict[str, Any], budget: int) -> int:
        """As many as the budget has room for."""
        return budget // self.passes(setting)


SAMPLERS = (
    Sampler(
        OURS,
        mmps,
        lambda setting: 1 + int(setting["cg"]),
        tuple({"cg": cg, "eta": eta} for cg in (1, 2, 3, 5, 10, 30) for eta in (0.0, 1.0)),
    ),
    Sampler(
        REFERENCE,
        deepinv_dps,
        lambda setting: 2,
        tuple(
            {"schedule": schedule, "guidance": guidance, "weight": weight}
            for schedule in ("vp", "ve")
            for guidance, weights in (("norm", (1.0, 30.0, 100.0, 300.0)), ("annealed", (1.0, 3.0)))
            for weight in weights
        ),
    ),
    Sampler(
        "deepinv, DiffPIR",
        deepinv_diffpir,
        lambda setting: 1,
        tuple({"lambda_": strength, "zeta": zeta} for strength in (1.0, 3.0, 7.0, 25.0) for zeta in (0.1, 0.3, 1.0)),
    ),
    Sampler(
        "deepinv, DDRM",
        deepinv_ddrm,
        lambda setting: 1,
        tuple(
            {"levels": levels, "eta": eta, "etab": etab}
            for levels in ("linear", "geometric")
            for eta in (0.7, 0.85, 1.0)
            for etab in (0.5, 1.0)
        ),
        masks=True,
    ),
    Sampler(
        "azula, MMPS",
        azula_mmps,
        lambda setting: 2 + int(setting["iterations"]),
        tuple(
            {"schedule": schedule, "iterations": iterations} | sampler
            for schedule in SCHEDULES
            for iterations in (1, 3, 10)
            for sampler in (
                {"sampler": "DDIMSampler", "eta": 0.0},
                {"sampler": "DDIMSampler", "eta": 1.0},
                {"sampler": "zABSampler", "order": 2},
            )
        ),
    ),
    Sampler(
        "azula, DPS",
        azula_dps,
        lambda setting: 2,
        tuple({"schedule": name, "zeta": zeta} for name in SCHEDULES for zeta in (0.1, 0.3, 1.0, 3.0)),
    ),
)


def run(
    name: str, sampler: Sampler, setting: dict[str, Any], steps: int, scans: Sequence[int], count: int
) -> tuple[list[Tensor], dict[str, Any]]:
    """Draws of each scan in coordinates; steps, passes and seconds of each sample."""
    cases, law = [CASES[name](scan) for scan in scans], LAWS[name.partition("-")[0]].draw(4096, stream(10))
    low, high = float(law.min()), float(law.max())
    units = {"deepinv": (low, high - low), "azula": ((low + high) / 2, (high - low) / 2)}
    scaled = Scaled(cases, count, Counted(cases[0].denoiser), *units.get(sampler.package, (0.0, 1.0)))
    torch.manual_seed(count)
    start = time.process_time()
    drawn = scaled.origin + scaled.unit * sampler.draw(scaled, steps, **setting)
    seconds = (time.process_time() - start) / scaled.count
    row = {"setting": setting, "steps": steps, "passes": scaled.prior.passes, "seconds": round(seconds, 6)}
    return list(cases[0].coordinates(drawn.to(cases[0].dtype)).split(count)), row


def choose(name: str, sampler: Sampler, budget: int) -> dict[str, Any]:
    """Find the settings that do best on other scans."""
    exact = [CASES[name](scan).draw(max(TUNING)[0], stream(11, scan)) for scan in TUNED]

    def distance(setting: dict[str, Any], count: int) -> float:
        drawn, _ = run(name, sampler, setting, sampler.steps(setting, budget), TUNED, count)
        if not all(bool(each.isfinite().all()) for each in drawn):
            return math.inf
        return sum(sliced(each, known[:count]) for each, known in zip(drawn, exact, strict=True))

    left = [setting for setting in sampler.settings if sampler.steps(setting, budget) > 3]
    for count, best in TUNING:
        found = [distance(setting, count) for setting in left]
        left = [left[k] for k in np.argsort(found, kind="stable")[:best]]
    return left[0]


def measure(name: str, sampler: Sampler, budget: int, count: int) -> dict[str, Any]:
    """Row of the settings that did best, ``count`` samples of each scan."""
    row = {"case": name, "method": sampler.name, "budget": budget, "scans": len(SCORED), "samples": count}
    if not sampler.installed:
        return row | {"missing": sampler.package}
    setting = choose(name, sampler, budget)
    drawn, own = run(name, sampler, setting, sampler.steps(setting, budget), SCORED, count)
    if not all(bool(each.isfinite().all()) for each in drawn):
        return row | own | {"sliced": math.inf}
    found = [scores(CASES[name](scan), each) for scan, each in zip(SCORED, drawn, strict=True)]
    return row | own | {key: round(float(np.mean([each[key] for each in found])), 4) for key in found[0]}


# ------------------------------------------------------------------------------------------------------------- table


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, bool | None]]:
    """Targets of one case and whether they are met; none: not judged."""
    ours = {row["budget"]: row for row in rows if row["method"] == OURS}
    found: list[tuple[str, bool | None]] = []
    for budget, own in ours.items():
        peers = [row for row in rows if row["budget"] == budget and row["method"] != OURS]
        if any("missing" in row for row in peers):
            found.append((f"{budget} passes, at least as accurate as the best peer", None))
            continue
        peer = min(peers, key=lambda row: float(row["sliced"]))
        met = own["sliced"] <= max(peer["sliced"], CHANCE * own["sliced_floor"])
        text = f"{budget} passes, at least as accurate as the best peer: {own['sliced']:.3f} against"
        found.append((f"{text} {peer['sliced']:.3f} ({peer['method']})", met))
    (slow,) = (row for row in rows if row["method"] == REFERENCE and row["budget"] not in ours)
    text = f"{TIMES:g} times less time than {REFERENCE} of {REFERENCE_STEPS} steps for its error"
    enough = [] if "missing" in slow else [row["seconds"] for row in ours.values() if row["sliced"] <= slow["sliced"]]
    if enough:
        text += f": {slow['seconds'] / min(enough):.3g} times"
    found.append((text, None if "missing" in slow else bool(enough) and slow["seconds"] >= TIMES * min(enough)))
    return found


def table(results: dict[str, Any]) -> str:
    """All rows as Markdown, cases one after the other."""
    columns = ("mean_error", "std_error", "sliced", "c2st", "seconds")
    forms = ("{:.1f}", "{:.1f}", "{:.3f}", "{:.3f}", "{:.3g}")
    factors = (100, 100, 1, 1, 1000)
    lines = []
    for case in dict.fromkeys(row["case"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["case"] == case]
        lines += [
            f"#### {case}, beside others",
            "",
            "| passes | method | settings | steps | mean / % | std / % | sliced | C2ST | ms a sample |",
            "|--:|---|---|--:|--:|--:|--:|--:|--:|",
        ]
        for row in mine:
            if "missing" in row:
                lines.append(f"| {row['budget']} | {row['method']} | not installed | | | | | | |")
                continue
            setting = ", ".join(f"{name.strip('_')} {value}" for name, value in row["setting"].items())
            numbers = [
                form.format(factor * row[name]) if name in row else "diverged"
                for name, form, factor in zip(columns, forms, factors, strict=True)
            ]
            cells = [row["budget"], row["method"], setting, row["steps"], *numbers]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        floor = next(row for row in mine if "sliced_floor" in row)
        drawn = f"{floor['samples']} samples of each scan, scans: {floor['scans']}"
        exact = f"as many exact draws: {floor['sliced_floor']:.3f} sliced, {floor['c2st_floor']:.3f} C2ST"
        lines += ["", f"{drawn}; {exact}.", ""]
        for text, met in verdicts(mine):
            lines.append(f"- {text}: {'not judged' if met is None else 'met' if met else 'NOT met'}")
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join([*lines, f"One thread; {versions}; {results['machine']}.", ""])


def main(argv: list[str] | None = None) -> None:
    """Measure, judge, and make the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.posterior_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="*", default=list(SHOWN), choices=list(CASES), metavar="CASE")
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS), help="passes through the denoiser")
    parser.add_argument("--samples", type=int, default=256, help="of each scan")
    parser.add_argument("--table", action="store_true", help="make the table of what was measured, and nothing else")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "posterior_peers.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(argv)
    if min(options.budgets) < LEAST:
        parser.error(f"budgets must be {LEAST} passes or more, got {min(options.budgets)}")
    rows = json.loads(options.results.read_text())["rows"] if options.results.exists() else []
    torch.set_num_threads(1)
    for name in [] if options.table else options.cases:
        jobs = [
            (sampler, budget)
            for budget in (*options.budgets, 2 * REFERENCE_STEPS)
            for sampler in SAMPLERS
            if budget in options.budgets or sampler.name == REFERENCE
            if not sampler.masks or "-mask-" in name
        ]
        new = [measure(name, sampler, budget, options.samples) for sampler, budget in tqdm(jobs, desc=name)]
        rows = [row for row in rows if row["case"] != name] + new
        rows.sort(key=lambda row: list(CASES).index(row["case"]))
        results = {
            "machine": machine_description("cpu"),
            "versions": {name: found for name in PACKAGES if (found := installed_version(name))},
            "rows": rows,
        }
        with replacing(options.results) as partial:  # case by case, for a run that is interrupted
            partial.write_text(json.dumps(results, indent=1) + "\n")
    write_section(options.readme, "posterior-peers", table(json.loads(options.results.read_text())))


if __name__ == "__main__":
    main()
