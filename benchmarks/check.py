r"""Whether the verdicts of `ambient_sci.check` come true: images measured by several schemes, checked, learned from.

Images are random ellipses with a smooth phase, 32 x 32, made here; each is measured once by every scheme. A network is
trained on the scans of each (`ambient_sci.train`) with the method ``ambient``: nothing but the scans teaches it, while
``em`` starts from l1-wavelet reconstructions, which fill in a lot by themselves. The oracle is the same network with
the same training, from scans that miss nothing but what is hidden from the network. Spokes are learned from by ``em``,
with an oracle of the images: in so short a training an ambient network learns nothing from samples of uneven density,
its oracle neither. Further scans of the scheme, of other images, are restored with both, and the error counted in
frequencies that a scan did not measure, apart for those that no scan of the scheme measures ("starved") and for the
others ("elsewhere"):

.. math:: e = \frac{\sum_{i, k} |\hat x_{ik} - x_{ik}|^2}{\sum_{i, k} |x_{ik}|^2}, \qquad
          r = \frac{\max(1 - e, 0)}{1 - e_\text{oracle}}

so that :math:`r` is what a network fills in as a part of what it could: 1 is as good as learning from complete scans, 0
as good as leaving zeros. What counts as agreement:

- *good*: :math:`r \ge 1/2` in all that scans do not measure;
- *marginal*: :math:`r \ge 1/2` elsewhere, and less than half filled in where the check says that nothing is measured;
- *refused*: :math:`r < 1/2` in all that scans do not measure.

Example: ``python -m benchmarks.check --out /scratch/check``
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_sci import Measurement, TrainConfig, open_store, train
from ambient_sci.baselines import l1_wavelet_batch, tune_held_out
from ambient_sci.check import CheckReport, check
from ambient_sci.datasets import StoreWriter
from ambient_sci.datasets.coils import smooth_phase
from ambient_sci.measurement import randn_like
from ambient_sci.methods.starts import REGULARISATIONS, WAVELET
from ambient_sci.operators import Fourier, LinearOperator, Nufft, trajectories
from ambient_sci.operators.fourier import centred_fft
from ambient_sci.posterior.ambient import AmbientDenoiser, restore
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from ambient_sci.seeding import stream

SIZE, CALIBRATION, NOISE = 32, 4, 0.02
TESTS = 32
EM_ITERATIONS = 8  # of conjugate gradients: samples of uneven density take more than the default
PLACES = ("starved", "elsewhere", "all")
Scheme = Callable[[int, torch.Generator], LinearOperator]


def ellipses(count: int, seed: int) -> Tensor:
    """Images of a few ellipses with a smooth phase, ``(count, 1, SIZE, SIZE)``, complex, of unit range."""
    rng = np.random.default_rng(seed)
    fine = 4 * SIZE
    y, x = np.mgrid[-1 : 1 : 1j * fine, -1 : 1 : 1j * fine]
    images = np.zeros((count, fine, fine))
    for image in images:
        for k in range(5):
            a, b = rng.uniform(0.5, 0.8, 2) if k == 0 else rng.uniform(0.1, 0.4, 2)
            cx, cy = rng.uniform(-0.1, 0.1, 2) if k == 0 else rng.uniform(-0.45, 0.45, 2)
            angle = rng.uniform(0, math.pi)
            turned = np.exp(-1j * angle) * (x - cx + 1j * (y - cy))
            u, v = turned.real, turned.imag
            image[(u / a) ** 2 + (v / b) ** 2 < 1] += rng.uniform(0.3, 0.6) if k == 0 else rng.uniform(-0.3, 0.4)
    coarse = images.clip(0).reshape(count, SIZE, 4, SIZE, 4).mean((2, 4))
    coarse /= coarse.max((1, 2), keepdims=True)
    phases = torch.stack([smooth_phase((SIZE, SIZE), stream(seed, k)) for k in range(count)])
    return (torch.from_numpy(coarse).float() * phases)[:, None]


def lines(count: int, n: int, generator: torch.Generator, never: tuple[int, ...] = (), power: float = 0.0) -> Tensor:
    """Masks of calibration lines and of ``n`` others, denser towards the centre with ``power``."""
    offset = (torch.arange(SIZE) - SIZE // 2).abs()
    density = (1 - offset / (SIZE / 2 + 1)) ** power
    first = SIZE // 2 - CALIBRATION // 2
    density[first : first + CALIBRATION] = 0
    density[list(never)] = 0
    mask = torch.zeros(count, SIZE).scatter_(1, torch.multinomial(density.expand(count, -1), n, generator=generator), 1)
    mask[:, first : first + CALIBRATION] = 1
    return mask[:, None, None]


def interleaved(count: int) -> Tensor:
    """Even lines in one half of the scans and odd ones in the other."""
    mask = torch.zeros(count, 1, 1, SIZE)
    mask[0::2, ..., 0::2] = 1
    mask[1::2, ..., 1::2] = 1
    return mask


def cartesian(mask: Tensor, calibration: int = CALIBRATION) -> Fourier:
    """One coil."""
    return Fourier(mask.contiguous(), (SIZE, SIZE), calibration)


def golden(count: int, spokes: int, generator: torch.Generator) -> Nufft:
    """Spokes, of two samples a pixel."""
    points = trajectories.golden_angle(count, (SIZE, SIZE), spokes, 2 * SIZE, generator)
    return Nufft(points, (SIZE, SIZE), readout=2 * SIZE)


@dataclass(frozen=True)
class Case:
    """A scheme, and complete scans with what to hide of them for the oracle's network; none: ``em`` and the images."""

    scheme: Scheme
    complete: Scheme | None = None
    hidden: float = 0.0


def every_line(calibration: int) -> Scheme:
    """All lines."""
    return lambda n, g: cartesian(torch.ones(n, 1, 1, SIZE), calibration)


OUTER = SIZE - CALIBRATION
CASES: dict[str, Case] = {
    "random lines": Case(lambda n, g: cartesian(lines(n, 8, g)), every_line(CALIBRATION), 1 - 8 / OUTER),
    "one fixed mask": Case(
        lambda n, g: cartesian(lines(1, 8, torch.Generator().manual_seed(7)).expand(n, -1, -1, -1)),
        every_line(CALIBRATION),
        1 - 8 / OUTER,
    ),
    "variable density, narrow gap": Case(
        lambda n, g: cartesian(lines(n, 8, g, (7, 8, 9), 2.0)), every_line(CALIBRATION), 1 - 8 / OUTER
    ),
    "variable density, wide gap": Case(
        lambda n, g: cartesian(lines(n, 8, g, (9, 10, 11, 12, 13, 19, 20, 21, 22, 23), 2.0)),
        every_line(CALIBRATION),
        1 - 8 / OUTER,
    ),
    "two interleaved masks": Case(lambda n, g: cartesian(interleaved(n), 0), every_line(0), 0.5),
    "radial, golden angle": Case(lambda n, g: golden(n, 16, g)),
}


def write(path: Path, images: Tensor, scheme: Scheme, seed: int) -> None:
    """Measure images once by a scheme."""
    generator = torch.Generator().manual_seed(seed)
    operator = scheme(len(images), generator)
    y = operator(images)
    y = y + NOISE * randn_like(y, generator) * operator.rows
    with StoreWriter(path, {"source": "benchmarks.check"}, overwrite=True) as writer:
        writer.append(Measurement(y, operator, NOISE), images)


def not_measured(m: Measurement, report: CheckReport) -> Tensor:
    """Frequencies that each scan does not measure, ``(batch, 1, SIZE, SIZE)``, bool."""
    if isinstance(m.operator, Fourier):
        return (m.operator.mask == 0).expand(len(m), 1, SIZE, SIZE)
    # off the grid: what most of the power of is left unknown by a scan
    (group,) = report.groups
    return torch.from_numpy(group.effective_scans < 0.5 * group.scans).expand(len(m), 1, SIZE, SIZE)


def starved(report: CheckReport) -> Tensor:
    """Frequencies that no scan measures, by the check."""
    return torch.from_numpy(report.groups[0].unmeasured > 0.5).expand(1, 1, SIZE, SIZE)


def filled(images: Tensor, truth: Tensor, where: Tensor) -> float:
    """One minus the relative squared error in some frequencies."""
    error, energy = (centred_fft(x).abs().square() for x in (images - truth, truth))
    return 1 - float(error[where].sum() / energy[where].sum()) if bool(where.any()) else math.nan


def estimate(prior: Prior, m: Measurement) -> Tensor:
    """Posterior mean: that of samples, or as an ambient network says it."""
    if isinstance(prior.denoiser, AmbientDenoiser):
        return restore(prior.denoiser, m)
    return draw_posterior(prior, m, samples=4, steps=16).mean(1)


def oracle(case: Case, out: Path, images: Tensor, options: dict[str, Any]) -> Prior:
    """Learn from complete scans, or from the images; cases that have the same oracle share it."""
    complete = case.complete or every_line(CALIBRATION)
    calibration = complete(1, torch.Generator()).settings["calibration"]
    store = out / f"complete-{calibration}.zarr"
    if not store.exists():
        write(store, images, complete, 3)
    own = {"method": "oracle"} if case.complete is None else {"method": "ambient", "thinning": case.hidden}
    run = out / f"oracle-{own['method']}-{calibration}"
    return train(TrainConfig(store=store, out=run, **{**options, **own}), progress=False)


def run(name: str, out: Path, scans: int, options: dict[str, Any]) -> dict[str, Any]:
    """Check a scheme, learn from it, and measure."""
    folder, case = out / name.replace(",", "").replace(" ", "-"), CASES[name]
    images, others = ellipses(scans, seed=1), ellipses(TESTS, seed=2)
    for path, x, seed in ((folder / "train.zarr", images, 3), (folder / "test.zarr", others, 4)):
        if not path.exists():
            write(path, x, case.scheme, seed)
    report = check(folder / "train.zarr", folder / "test.zarr", progress=False)
    report.plot().savefig(folder / "check.png")
    (folder / "check.txt").write_text(str(report) + "\n")
    own: dict[str, Any] = {"method": "ambient"}
    if case.complete is None:
        own = {"method": "em", "em_iterations": EM_ITERATIONS}
    prior = train(
        TrainConfig(store=folder / "train.zarr", out=folder / own["method"], **options, **own), progress=False
    )
    store = open_store(folder / "test.zarr")
    m, truth = store.read(slice(None)), store.references(slice(None))
    lam = tune_held_out(lambda m, lam: l1_wavelet_batch(m, lam, wavelet=WAVELET), m[:16], REGULARISATIONS)
    results = {
        "learned": estimate(prior, m),
        "oracle": estimate(oracle(case, out, images, options), m),
        "l1": l1_wavelet_batch(m, lam, wavelet=WAVELET),
    }
    missing, never = not_measured(m, report), starved(report)
    places = {"all": missing, "starved": missing & never, "elsewhere": missing & ~never}
    fills = {
        place: {method: filled(x, truth, where) for method, x in results.items()} for place, where in places.items()
    }
    ratio = {
        place: max(values["learned"], 0) / values["oracle"] if values["oracle"] > 0.1 else math.nan
        for place, values in fills.items()
    }
    held = {
        "good": ratio["all"] >= 0.5,
        "refused": ratio["all"] < 0.5,
        "marginal": ratio["elsewhere"] >= 0.5 and fills["starved"]["learned"] < 0.5,
    }[report.verdict]
    return {"scheme": name, "verdict": report.verdict, "fills": fills, "ratio": ratio, "agree": bool(held)} | {
        "eigenvalue": report.groups[0].eigenvalue,
        "unmeasured": report.groups[0].directions["unmeasured"],
        "starved share": report.groups[0].starved_share,
        "apart": report.groups[0].apart,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def number(value: float | None) -> str:
        return "" if value is None or math.isnan(value) else f"{value:.2f}"

    text = [
        "| scheme | verdict | eigenvalue | not measured | starved energy | kept apart | filled in, starved: oracle "
        "| learned | elsewhere: oracle | learned | all: oracle | learned | r | agree |",
        "|---|---|" + "---:|" * 11 + "---|",
    ]
    for row in rows:
        filled_in = [row["fills"][place][who] for place in PLACES for who in ("oracle", "learned")]
        cells = [
            row["scheme"],
            row["verdict"],
            f"{row['eigenvalue']:.3g}",
            f"{row['unmeasured']:.0%}",
            f"{row['starved share']:.0%}",
            "" if row["apart"] is None else f"{row['apart']:.0%}",
            *map(number, filled_in),
            number(row["ratio"]["all"]),
            "yes" if row["agree"] else "NO",
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    """Run all schemes and print the table; what was trained before is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument("--images", type=int, default=8_000, help="length of each training")
    parser.add_argument("--scheme", action="append", choices=list(CASES), help="only this one; may be repeated")
    options = parser.parse_args()
    training: dict[str, Any] = {
        "images": options.images,
        "batch": 16,
        "optimizer": "adamw",
        "widths": (64, 64),
        "checkpoint": 4000,
        "laps": 3,
    }
    training |= {"device": "cpu", "precision": "fp32"}
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.scheme or CASES:
        rows.append(run(name, options.out, options.scans, training))
        print(json.dumps(rows[-1]), flush=True)
    (options.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
