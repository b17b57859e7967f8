"""Time from a scan in memory to its posterior mean and spread, as a pipeline has it that keeps a prior loaded.

`ambient_sci.reconstruct` is given tensors and touches no disk. Importing, loading and a first call, in which libraries
plan their transforms, are not counted. Other work on the machine makes the wall's clock run longer, the processor's a
little: both are shown, the least and the median of several calls, each with another scan.

Example
-------
With what `ambient-sci demo` leaves::

    python -m benchmarks.pipeline ambient-sci-demo/run ambient-sci-demo/held-out.zarr
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from ambient_sci import load_prior, open_store, reconstruct
from benchmarks.operators import installed_version, machine_description, markdown, positive

PACKAGES = ("ambient-sci", "torch", "numpy", "xarray")
TARGET = 2.0  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("store", help="store of scans")
    parser.add_argument("--samples", type=positive, default=4)
    parser.add_argument("--steps", type=positive, default=16)
    parser.add_argument("--repeats", type=positive, default=10)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    prior, store = load_prior(options.run, options.device), open_store(options.store)
    walls, processors = [], []
    for number in range(options.repeats + 1):
        measurement = store.read(number % len(store))
        began = time.perf_counter(), time.process_time()
        posterior = reconstruct(prior, measurement, samples=options.samples, steps=options.steps, progress=False)
        posterior["mean"].to_numpy(), posterior["std"].to_numpy()
        walls.append(time.perf_counter() - began[0])
        processors.append(time.process_time() - began[1])
    walls, processors = walls[1:], processors[1:]

    weights = sum(parameter.numel() for parameter in prior.denoiser.parameters())
    shape = "x".join(map(str, measurement.y.shape[1:]))
    print(f"{options.samples} samples of a scan of {shape} in {options.steps} steps, {weights} weights")
    print(machine_description(options.device))
    print(", ".join(f"{name} {installed_version(name)}" for name in PACKAGES) + "\n")
    verdict = f"under {TARGET:g} s: {'met' if min(walls) < TARGET else 'not met'}"
    rows = [
        ["seconds", "least", "median", "target"],
        ["wall", f"{min(walls):.2f}", f"{median(walls):.2f}", verdict],
        [f"processor, {options.threads} threads", f"{min(processors):.2f}", f"{median(processors):.2f}", ""],
    ]
    print(markdown(rows, ("seconds", "target")))


if __name__ == "__main__":
    main()
