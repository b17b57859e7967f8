"""Whether validation without references finds what is wrong with a prior, at the size of the demonstration.

Scans of a simulated store are validated as they are, and after one thing was made wrong at a time:

- the anatomy: other images are measured, by the same operators with as much noise. Vessels as an angiogram shows them
  (of all scans, or of the last eighth of them); and the known images turned by a quarter;
- the noise level that is stated, 0.6 or 1.6 times the true one;
- the sampler: the spread of its samples is halved or doubled, or it takes 4 steps.

Printed is a row for each case. What is right should pass, the others should not. Last, samples are compared with
the known images. ``--out`` writes all numbers and figures.

Example: ``python -m benchmarks.calibration run held-out.zarr --out calibration``
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from ambient_sci import Measurement, load_prior, open_store
from ambient_sci.evaluate.calibration import judge_samples
from ambient_sci.evaluate.held_out import validate_prior
from ambient_sci.measurement import collate_measurements, randn_like
from ambient_sci.posterior.draw import draw_posterior


def stated(m: Measurement, factor: float) -> Measurement:
    """State another noise level of the same values."""
    return Measurement(m.y, m.operator, factor * m.noise_std, m.index, m.scale)


def vessels(images: torch.Tensor, count: int = 12) -> torch.Tensor:
    """Draw bright random walks on nothing, with the phase of images and as bright as they are."""
    rng = np.random.default_rng(2)
    size, length = images.shape[-1], 2 * images.shape[-1]
    drawn = np.zeros(images.shape)
    for image in drawn.reshape(-1, size, size):
        for _ in range(count):
            heading = rng.uniform(0, 2 * np.pi) + np.cumsum(0.25 * rng.standard_normal(length))
            y, x = rng.uniform(0.2, 0.8, (2, 1)) * size + np.cumsum([np.sin(heading), np.cos(heading)], 1) / 2
            inside = (np.stack([y, x]) >= 0).all(0) & (np.stack([y, x]) < size).all(0)
            image[y[inside].astype(int), x[inside].astype(int)] = rng.uniform(0.5, 1)
        image[:] = ndimage.gaussian_filter(image, 0.6)
    shown = torch.from_numpy(drawn).to(images.real.dtype)
    return shown * (images.abs().amax() / shown.amax()) * torch.exp(1j * images.angle())


def measured(m: Measurement, images: torch.Tensor) -> Measurement:
    """Measure other images by the operators of the scans."""
    y = m.operator(images)
    y = (y + m.noise * randn_like(y, torch.Generator().manual_seed(1))) * m.operator.rows
    return Measurement(y, m.operator, m.noise_std, m.index, m.scale)


def main() -> None:
    """Print a table, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a trained prior")
    parser.add_argument("store", type=Path, help="simulated store with references of square images")
    parser.add_argument("--scans", type=int, default=16, help="how many of its scans, from the first")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--fraction", type=float, default=0.25, help="part of the rows that is hidden")
    parser.add_argument("--only", nargs="+", help="names of cases, if not all; 'references' for the last step")
    parser.add_argument("--out", type=Path, help="folder for numbers and figures")
    options = parser.parse_args()

    prior, store = load_prior(options.run), open_store(options.store)
    m = store.read(slice(0, options.scans))
    images = store.references(slice(0, options.scans)) / m.scale.reshape(-1, 1, 1, 1)
    other, few = measured(m, vessels(images)), max(len(m) // 8, 1)
    cases: dict[str, tuple[Measurement, dict[str, Any]]] = {
        "as it is": (m, {}),
        "heads turned": (measured(m, torch.rot90(images, 1, (-2, -1))), {}),
        "vessels": (other, {}),
        f"vessels in the last {few}": (collate_measurements([m[: len(m) - few], other[len(m) - few :]]), {}),
        "noise stated 0.6 times": (stated(m, 0.6), {}),
        "noise stated 1.6 times": (stated(m, 1.6), {}),
        "spread halved": (m, {"temperature": 0.5}),
        "spread doubled": (m, {"temperature": 2.0}),
        "4 steps": (m, {"steps": 4}),
    }
    found: dict[str, Any] = {}
    print(f"{'case':32s} {'passes':>7s} {'errors/spread':>14s} {'p':>8s} {'flagged':>8s} {'temperature':>13s}")
    for name, (scans, changed) in cases.items():
        if options.only and name not in options.only:
            continue
        given = {"samples": options.samples, "steps": options.steps, "fraction": options.fraction, **changed}
        result = validate_prior(prior, scans, **given)
        ratio, p = (float(result.dataset[key][0]) for key in ("band_ratio", "band_p_value"))
        best = f"{result.temperature:.2f} ± {result.temperature_error:.2f}"
        passes = "yes" if result.passed else "NO"
        print(f"{name:32s} {passes:>7s} {ratio:14.2f} {p:8.1g} {len(result.flagged):8d} {best:>13s}", flush=True)
        found[name] = {**result.to_dict(), "numbers": None}
        if options.out is not None:
            result.save(options.out / name.replace(" ", "-"), overwrite=True)
    if options.only and "references" not in options.only:
        return
    drawn = [
        draw_posterior(prior, m[k : k + 8].to(prior.device), options.samples, steps=options.steps).cpu()
        for k in range(0, len(m), 8)
    ]
    known = judge_samples(torch.cat(drawn).numpy(), images.numpy())
    print(f"\nwith references:\n{known}")
    if options.out is not None:
        known.plot().savefig(options.out / "with-references.png")
        numbers = {"held_out": found, "with_references": known.to_dict()}
        (options.out / "calibration.json").write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
