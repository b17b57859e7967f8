r"""How well reconstructions predict samples that were measured and set aside: a score without a known image.

A tenth of the measured rows, calibration aside, is hidden from every method (`LinearOperator.thin`) and predicted from
the rest. Printed is

.. math:: \frac{\| B (A \hat x - y) \|^2}{2 \sigma_y^2 \, \#B}

for the hidden rows :math:`B`: 1 is the noise itself, what is above it is error. The regularisation of L1-wavelet is
chosen in the same way within the rows that are left.

Example: ``python -m benchmarks.held_out_rows RUN STORE --any-size``
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ambient_sci import Measurement, load_prior, open_store
from ambient_sci.baselines import l1_wavelet_batch, tune_held_out, zero_filled
from ambient_sci.posterior.draw import draw_posterior

REGULARISATIONS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02]


def haar(m: Measurement, lam: float) -> Tensor:
    """L1-wavelet as the demonstration has it."""
    return l1_wavelet_batch(m, lam, wavelet="haar")


def misfit(m: Measurement, hidden: Tensor, image: Tensor) -> float:
    """Mean squared error of the hidden rows in units of the noise, of real and imaginary part each."""
    hidden = hidden.expand_as(m.y.real)
    error = (m.operator(image) - m.y).abs().square() / m.noise**2
    return float((error * hidden).sum() / hidden.sum()) / (2 if m.y.is_complex() else 1)


def main() -> None:
    """Print a table: one row a method, mean and range over the draws of hidden rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a trained prior")
    parser.add_argument("store", type=Path, help="store of scans")
    parser.add_argument("--scans", type=int, default=8, help="how many of its scans, from the first")
    parser.add_argument("--draws", type=int, default=3, help="how often other rows are hidden")
    parser.add_argument("--fraction", type=float, default=0.1, help="part of the rows that is hidden")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--any-size", action="store_true")
    options = parser.parse_args()

    prior = load_prior(options.run, "cpu")
    m = open_store(options.store).read(slice(0, options.scans))
    scores: dict[str, list[float]] = {}
    for seed in range(options.draws):
        kept = m.operator.thin(options.fraction, torch.Generator().manual_seed(seed))
        shown = dataclasses.replace(m, y=m.y * kept.rows, operator=kept)
        hidden = m.operator.rows - kept.rows
        if not bool(hidden.any()):
            parser.error(f"draw {seed} hid no row of so few: raise --fraction ({options.fraction:g}) or --scans")
        lam = tune_held_out(haar, shown, REGULARISATIONS, seed=options.draws + seed)  # other rows than those
        drawn = draw_posterior(prior, shown, options.samples, steps=options.steps, any_size=options.any_size)
        images = {"zero-filled": zero_filled(shown), "L1-wavelet": haar(shown, lam), "posterior mean": drawn.mean(1)}
        for name, image in images.items():
            scores.setdefault(name, []).append(misfit(m, hidden, image))
    for name, values in scores.items():
        print(f"{name:16s} {np.mean(values):8.2f}   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
