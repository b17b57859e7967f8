"""Reading a store that is larger than memory: time and resident memory beside the bare libraries and a training step.

Writes a store of multi-coil k-space, scan by scan, and measures, each in a process of its own: writing; reading its
chunks in order with zarr or h5py alone; an epoch of shuffled batches; the training step of the demonstration, on
batches that are there and on those of the loader; reconstructing a few scans. Prints one Markdown table and removes
the store. The sizes of scan and batch are those of the demonstration unless given.

Examples
--------
As in the README, 20 GB of scans (about 12 GB of disk)::

    python -m benchmarks.loader
    python -m benchmarks.loader --container h5

Larger scans, fewer of them, on another disk::

    python -m benchmarks.loader --gigabytes 5 --size 256 --coils 12 --folder /scratch
"""

import argparse
import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.operators import installed_version, machine_description, markdown, positive

PACKAGES = ("ambient-sci", "torch", "numpy", "zarr", "numcodecs", "h5py")
BLOCK = 32 << 20  # bytes that the bare libraries are asked for at once; a shard of zarr where it has some
MAPS = 64  # different sets of coil maps; each scan turns the phase of one
STEPS = 20  # training steps in a round
RATIO, FASTER, RESIDENT = 1.3, 3.0, 1500.0  # targets: of reading alone, of the training step, MB
COLUMNS = """\
- MB/s: of scans in memory, uncompressed; batches/s: of the batch size above
- ratio: seconds as a multiple of those of the bare library, the median of the ratios within a round and their range
- processor: the same for processor time, all threads together; other programs disturb it less, and it hides no thread
- resident: the most memory that the process had, in MB; torch and the package alone take about 350
- before the bare library and the loader read, the store is taken out of the system's cache of files (Linux)\
"""


@dataclass(frozen=True)
class Phase:
    """What one process did."""

    seconds: float
    resident: float
    more: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, remove the store."""
    parser = _parser()
    options = parser.parse_args(arguments)
    row = options.coils * options.size**2 * 8
    scans = max(2 * options.batch, round(options.gigabytes * 1e9 / (2 * row)))
    options.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.folder).free
    if free < 2 * row * scans * 0.8:
        parser.error(f"{options.folder} has {free / 1e9:.1f} GB free; the store may take {1.6e-9 * row * scans:.1f} GB")
    home = Path(tempfile.mkdtemp(prefix="loader-", dir=options.folder))
    try:
        store = home / f"scans.{options.container}"
        write = _alone(partial(_write, store, scans, options.coils, options.size, options.batch))
        disk = sum(file.stat().st_size for file in _files(store)) / 1e9
        raw, shuffled = [], []
        for _ in range(options.rounds):
            raw.append(_alone(partial(_raw, store)))
            shuffled.append(_alone(partial(_shuffled, store, options.batch)))
        steps = _alone(partial(_training, store, options.batch, options.rounds))
        reconstruction = _alone(partial(_reconstruct, store))
    finally:
        shutil.rmtree(home)
    machine = machine_description("cpu")
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    load = f"load average {os.getloadavg()[0]:.1f} at the end"
    print(f"{machine}; OMP_NUM_THREADS {threads}; rounds: {options.rounds}; {load}.")
    print(", ".join(f"{name} {installed_version(name)}" for name in PACKAGES) + ".\n")
    size = 2 * row * scans / 1e6
    print(f"- {scans} scans x {options.coils} coils x {options.size}x{options.size}, measurements and coil maps")
    print(f"- {size / 1e3:.1f} GB in memory, {disk:.1f} GB on disk ({options.container}); batches of {options.batch}")
    print(COLUMNS + "\n")
    print(_table(options, scans, size, write, raw, shuffled, steps, reconstruction))


def _parser() -> argparse.ArgumentParser:
    description, _, examples = (__doc__ or "").partition("Examples\n--------\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gigabytes", type=float, default=20, metavar="N", help="size of the scans (default: 20)")
    parser.add_argument("--container", choices=["zarr", "h5"], default="zarr")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the store is written")
    parser.add_argument("--size", type=positive, default=64, metavar="N", help="pixels along each axis (default: 64)")
    parser.add_argument("--coils", type=positive, default=8, metavar="N", help="default: 8")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="scans in a batch (default: 8)")
    parser.add_argument("--rounds", type=positive, default=2, metavar="N", help="repetitions of reading (default: 2)")
    return parser


def _alone(function: Callable[[], tuple[float, dict[str, float]]]) -> Phase:
    """Run a phase in a process of its own, which starts from nothing."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_observed, function).result()


def _observed(function: Callable[[], tuple[float, dict[str, float]]]) -> Phase:
    seconds, more = function()
    return Phase(seconds, _peak(), more)


def _peak() -> float:
    """Most memory of this process so far, without files that are mapped, in MB; nan where it cannot be told."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) * 1.024e-3 for line in text.splitlines() if line.startswith("VmHWM")), math.nan)


def _files(store: Path) -> list[Path]:
    return [store] if store.is_file() else [file for file in store.rglob("*") if file.is_file()]


def _forget(store: Path) -> None:
    """Take a store out of the system's cache of files, so that it is read from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in _files(store):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------- phases


def _write(path: Path, scans: int, coils: int, size: int, batch: int) -> tuple[float, dict[str, float]]:
    """Smooth images seen by smooth coils, a quarter of the columns measured, with noise."""
    import torch
    from tqdm import tqdm

    from ambient_sci.datasets import StoreWriter
    from ambient_sci.datasets.coils import coil_maps
    from ambient_sci.measurement import Measurement, randn_like
    from ambient_sci.operators import Sense

    generator = torch.Generator().manual_seed(0)
    known = torch.stack([coil_maps(coils, (size, size), generator) for _ in range(MAPS)])
    start = time.perf_counter()
    with StoreWriter(path) as writer, tqdm(total=scans, unit="scan", desc="writing") as bar:
        while len(writer) < scans:
            count = min(batch, scans - len(writer))
            coarse = torch.randn(2, count, 1, 6, 6, generator=generator)
            real, imaginary = (
                torch.nn.functional.interpolate(part, size=(size, size), mode="bicubic") for part in coarse
            )
            turn = torch.rand(count, 1, 1, 1, generator=generator) * 2 * math.pi
            maps = known[torch.randint(MAPS, (count,), generator=generator)] * torch.polar(torch.ones_like(turn), turn)
            mask = (torch.rand(count, 1, 1, size, generator=generator) < 0.25).float()
            mask[..., size // 2 - 3 : size // 2 + 3] = 1
            operator = Sense(mask, maps, 6)
            y = operator(torch.complex(real, imaginary))
            y = y + 0.03 * randn_like(y, generator) * operator.rows
            scale = 1 + torch.rand(count, generator=generator)
            writer.append(Measurement(y, operator, 0.03, scale=scale))
            bar.update(count)
    return time.perf_counter() - start, {}


def _raw(path: Path) -> tuple[float, dict[str, float]]:
    """Every chunk once, in order, by the library alone."""
    from tqdm import tqdm

    opened: Any
    if path.is_dir():
        import zarr

        opened = zarr.open_group(path, mode="r")
    else:
        import h5py

        opened = h5py.File(path)
    names = ("measurement", "noise_std", "operator_maps", "operator_mask")
    arrays = [opened[name] for name in names]
    shards = getattr(arrays[0], "shards", None)
    step = shards[0] if shards else max(1, BLOCK // (math.prod(arrays[0].shape[1:]) * arrays[0].dtype.itemsize))
    _forget(path)
    start, used = time.perf_counter(), time.process_time()
    for first in tqdm(range(0, arrays[0].shape[0], step), desc="reading in order", unit="block"):
        for array in arrays:
            array[first : first + step]
    return time.perf_counter() - start, {"processor": time.process_time() - used}


def _shuffled(path: Path, batch: int) -> tuple[float, dict[str, float]]:
    """One epoch of batches, whole ones."""
    from tqdm import tqdm

    from ambient_sci.datasets import batches, open_store

    store = open_store(path)
    count = len(store) // batch
    _forget(path)
    start, used = time.perf_counter(), time.process_time()
    drawn = batches(store, batch, seed=0, memory=0)
    for _ in tqdm(itertools.islice(drawn, count), total=count, desc="shuffled batches", unit="batch"):
        pass
    return time.perf_counter() - start, {"processor": time.process_time() - used}


def _training(path: Path, batch: int, rounds: int) -> tuple[float, dict[str, float]]:
    """Step as the demonstration does: by its method, on images, and by the one that learns from batches of scans."""
    import torch
    from tqdm import tqdm

    from ambient_sci.config import TrainConfig
    from ambient_sci.datasets import batches, open_store
    from ambient_sci.demo.run import FULL
    from ambient_sci.measurement import randn_like
    from ambient_sci.network import best_precision
    from ambient_sci.objectives import ambient_loss, corruption, denoising_loss
    from ambient_sci.prior import build_denoiser
    from ambient_sci.schedule import training_levels

    store = open_store(path)
    drawn = batches(store, batch, seed=0, memory=0)
    fixed = next(drawn)
    images = fixed.operator.adjoint(fixed.y)
    generator = torch.Generator().manual_seed(0)

    def learner(method: str) -> tuple[Any, torch.optim.Optimizer]:
        options: dict[str, Any] = {"method": method, "widths": FULL.widths, "sigma_data": 0.5}
        config = TrainConfig(store=path, out=path.parent / "run", precision=best_precision("cpu"), **options)
        denoiser = build_denoiser(config, store.image_shape, store.is_complex, None)
        return denoiser, torch.optim.AdamW(denoiser.parameters(), 1e-3, fused=True)

    def step(denoiser: Any, optimizer: torch.optim.Optimizer, measurement: Any) -> None:
        sigma = training_levels(batch, 0.5, generator)
        if measurement is None:
            loss = denoising_loss(denoiser, images, sigma, 0.5, randn_like(images, generator))
        else:
            loss = ambient_loss(denoiser, measurement, sigma, *corruption(measurement, 0.3, generator))
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    em, ambient = learner("em"), learner("ambient")
    contestants: dict[str, tuple[tuple[Any, torch.optim.Optimizer], Iterator[Any]]] = {
        "em": (em, itertools.repeat(None)),
        "ambient": (ambient, itertools.repeat(fixed)),
        "fed": (ambient, drawn),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    bar = tqdm(total=rounds * STEPS * len(contestants), desc="training steps", unit="step")
    for _ in range(rounds):
        for name, (learning, source) in contestants.items():
            for _ in range(2):  # to warm up
                step(*learning, next(source))
            start = time.perf_counter()
            for _ in range(STEPS):
                step(*learning, next(source))
                bar.update()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    bar.close()
    return sum(map(sum, seconds.values())) * STEPS, {name: median(values) for name, values in seconds.items()}


def _reconstruct(path: Path) -> tuple[float, dict[str, float]]:
    """Posterior samples of four scans from all over the store, by an untrained network of one level."""
    from ambient_sci.config import TrainConfig
    from ambient_sci.datasets import open_store
    from ambient_sci.prior import Prior, build_denoiser
    from ambient_sci.reconstruction import reconstruct

    store = open_store(path)
    config = TrainConfig(store=path, out=path.parent / "run", widths=(32,), sigma_data=0.5, precision="fp32")
    denoiser = build_denoiser(config, store.image_shape, store.is_complex, None).eval().requires_grad_(False)
    prior = Prior(denoiser, store.image_shape, store.is_complex, config, {}, 0)
    scans = [0, len(store) // 3, len(store) // 2, len(store) - 1]
    _forget(path)
    start = time.perf_counter()
    reconstruct(prior, store, scans=scans, samples=2, steps=4)
    return time.perf_counter() - start, {}


# -------------------------------------------------------------------------------------------------------------- table


def _table(
    options: argparse.Namespace,
    scans: int,
    size: float,
    write: Phase,
    raw: Sequence[Phase],
    shuffled: Sequence[Phase],
    steps: Phase,
    reconstruction: Phase,
) -> str:
    def verdict(good: bool) -> str:
        return "met" if good else "NOT met"

    def bounded(phases: Sequence[Phase]) -> tuple[str, str]:
        most = max(phase.resident for phase in phases)
        return f"{most:.0f}", f"under {RESIDENT:.0f} MB: {verdict(most < RESIDENT)}"

    seconds = median(phase.seconds for phase in raw), median(phase.seconds for phase in shuffled)
    ratios = [mine.seconds / bare.seconds for mine, bare in zip(shuffled, raw, strict=True)]
    ratio = median(ratios)
    processor = median(m.more["processor"] / bare.more["processor"] for m, bare in zip(shuffled, raw, strict=True))
    rate = scans // options.batch / seconds[1]
    within = f"at most {RATIO:g}: {verdict(ratio <= RATIO)}"
    faster = f"at least {FASTER:g} times the steps: {verdict(rate * steps.more['em'] >= FASTER)}"
    library = {"zarr": "zarr", "h5": "h5py"}[options.container]
    spread = f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    resident, bound = bounded(shuffled)
    alone = bounded(raw)[0], ""
    limit = f"{processor:.2f}", resident, f"{within}; {faster}; {bound}"
    lines = [
        ["phase", "seconds", "MB/s", "batches/s", "ratio", "processor", "resident", "target"],
        ["writing", f"{write.seconds:.1f}", f"{size / write.seconds:.0f}", "", "", "", *bounded([write])],
        [f"{library}, in order", f"{seconds[0]:.1f}", f"{size / seconds[0]:.0f}", "", "1.00", "1.00", *alone],
        ["batches, shuffled", f"{seconds[1]:.1f}", f"{size / seconds[1]:.0f}", f"{rate:.1f}", spread, *limit],
        ["training step, images", "", "", f"{1 / steps.more['em']:.1f}", "", "", *bounded([steps])],
        ["training step, one batch of scans", "", "", f"{1 / steps.more['ambient']:.1f}", "", "", "", ""],
        ["training step, batches of the loader", "", "", f"{1 / steps.more['fed']:.1f}", "", "", "", ""],
        ["reconstructing 4 scans", f"{reconstruction.seconds:.1f}", "", "", "", "", *bounded([reconstruction])],
    ]
    return markdown(lines, ("phase", "target"))


if __name__ == "__main__":
    main()
