r"""Simulated scans: images measured once, to disk.

.. math:: y_i = A_i x_i + \sigma e_i, \qquad x_i = \text{image}_i \, e^{i \phi_i}

Every scan :math:`i` has its own operator (sampling pattern, coil maps), phase and noise, drawn from a stream named by
``(seed, i)``: what is measured of a scan doesn't depend on how many others there are, and it is never measured
again. That is all that training will ever see of it, as with a real scanner.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ambient_sci.datasets.coils import coil_maps, smooth_phase
from ambient_sci.datasets.scale import estimate_scale
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.datasets.writer import StoreWriter
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement, collate_measurements, randn_like
from ambient_sci.operators import (
    Fourier,
    Gaussian,
    Identity,
    LinearOperator,
    Mask,
    Nufft,
    Sense,
)
from ambient_sci.operators.patterns import PATTERNS
from ambient_sci.operators.trajectories import TRAJECTORIES
from ambient_sci.seeding import stream

__all__ = ["OPERATORS", "simulate"]

OPERATORS = ("sense", "fourier", "nufft", "mask", "gaussian", "identity")
_KSPACE = ("sense", "fourier", "nufft")
_PHASE, _OPERATOR, _NOISE = 0x51, 0x52, 0x53  # purposes of a scan's streams
_BATCH = 16


def simulate(
    images: ArrayLike,
    path: str | Path,
    *,
    operator: str = "sense",
    pattern: str | None = None,
    acceleration: float = 4.0,
    calibration: int = 6,
    coils: int = 8,
    noise: float = 0.03,
    keep: float = 0.5,
    n_measurements: int | None = None,
    structured: bool = False,
    phase: bool = True,
    references: bool = True,
    subject: ArrayLike | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Store:
    """Measure every image once and write the scans to a store.

    Parameters
    ----------
    images
        ``(n, *spatial)``, real or complex, in about unit range.
    path
        The store to write: a Zarr folder, or an HDF5 file where it ends in ``.h5``.
    operator
        ``"sense"`` (several coils), ``"fourier"`` (one), ``"nufft"`` (several coils, off the grid), ``"mask"``
        (missing pixels), ``"gaussian"`` (random projections) or ``"identity"`` (noise alone).
    pattern
        Sampling pattern by its name in `ambient_sci.operators.patterns.PATTERNS`; by default ``"random-lines"`` in
        k-space and ``"random-pixels"`` for ``"mask"``. For ``"nufft"`` a trajectory by its name in
        `ambient_sci.operators.trajectories.TRAJECTORIES`, by default ``"golden-angle"``, whose readouts have two
        samples for every pixel of the widest axis.
    acceleration, calibration
        Of the pattern in k-space: samples divided by measured samples (off the grid, Cartesian readouts divided by
        readouts), and width of the fully measured centre.
    coils
        Number of simulated receive coils, for ``"sense"`` and ``"nufft"``.
    noise
        Standard deviation of each real component of the measurement, relative to an image of unit range.
    keep
        Fraction of pixels that ``"mask"`` keeps.
    n_measurements
        Projections per scan, for ``"gaussian"``; by default the number of pixels divided by ``acceleration``.
    structured
        Structured random projections for ``"gaussian"``, which take no matrix: for large images.
    phase
        Give real images a smooth phase of their own where the operator needs complex ones.
    references
        Write the images as well, into a group of their own that training does not open.
    subject
        Which subject each image is of, ``(n,)``.
    coords
        Further coordinates by name, ``(n,)`` each.
    seed
        Of all randomness.
    overwrite
        Replace a store that is already there.
    progress
        Show a progress bar.
    provenance
        Further entries for the store's provenance, such as where the images came from.

    Returns
    -------
    Store
        The new store, open.

    Raises
    ------
    ConfigError
        If an option has a value that it cannot have.
    DataError
        If images are not what they should be.
    OutputError
        If the store cannot be written.

    Examples
    --------
    >>> store = simulate(images, "scans.zarr", acceleration=4, noise=0.03)  # doctest: +SKIP
    """
    values = np.asarray(images)
    _check_images(values)
    if operator not in OPERATORS:
        raise ConfigError(f"operator must be one of {', '.join(OPERATORS)}, got {operator!r}")
    pattern = pattern or {"mask": "random-pixels", "nufft": "golden-angle"}.get(operator, "random-lines")
    known = TRAJECTORIES if operator == "nufft" else PATTERNS
    if pattern not in known:
        raise ConfigError(f"pattern must be one of {', '.join(sorted(known))}, got {pattern!r}")
    for name, value, good in (
        ("noise", noise, noise >= 0 and np.isfinite(noise)),
        ("keep", keep, 0 < keep <= 1),
        ("acceleration", acceleration, acceleration >= 1 and np.isfinite(acceleration)),
        ("coils", coils, coils >= 1),
        ("seed", seed, seed >= 0),
    ):
        if not good:
            raise ConfigError(f"{name} cannot be {value}")
    spatial = values.shape[1:]
    if n_measurements is None:
        n_measurements = max(1, round(int(np.prod(spatial)) / acceleration))
    every = {name: np.asarray(value) for name, value in (coords or {}).items()}
    if subject is not None:
        every["subject"] = np.asarray(subject)
    for name, array in every.items():
        if array.shape != (len(values),):
            raise DataError(f"{name} must have one entry per image, ({len(values)},), got shape {array.shape}")

    def draw(scan: int) -> LinearOperator:
        generator = stream(seed, scan, _OPERATOR)
        if operator == "identity":
            return Identity((1, *spatial))
        if operator == "gaussian":
            seeds = torch.randint(2**62, (1,), generator=generator)
            return Gaussian(n_measurements, (1, *spatial), seeds, structured=structured)
        if operator == "mask":
            return Mask(PATTERNS[pattern](1, spatial, 1 / keep, 0, generator).expand(1, 1, *spatial).contiguous())
        if operator == "nufft":
            samples = 2 * max(spatial)
            readouts = max(1, round(math.prod(spatial) / max(spatial) / acceleration))
            points = TRAJECTORIES[pattern](1, spatial, readouts, samples, generator)
            return Nufft(points, spatial, coil_maps(coils, spatial, generator)[None], readout=samples)
        mask = PATTERNS[pattern](1, spatial, acceleration, calibration, generator)
        if operator == "fourier":
            return Fourier(mask, spatial, calibration)
        return Sense(mask, coil_maps(coils, spatial, generator)[None], calibration)

    def measure(scan: int) -> tuple[Measurement, Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(values[scan]))[None, None]
        if operator in _KSPACE and not x.is_complex():
            turned = (
                smooth_phase(spatial, stream(seed, scan, _PHASE)) if phase else torch.ones((), dtype=torch.complex64)
            )
            x = x.to(torch.float32) * turned
        x = x.to(torch.complex64 if x.is_complex() else torch.float32)
        A = draw(scan)
        y = A(x)
        y = y + noise * randn_like(y, stream(seed, scan, _NOISE)) * A.rows
        scan_ = Measurement(y, A, noise)
        return Measurement(y, A, noise, scale=estimate_scale(scan_)), x

    settings: dict[str, Any] = {"operator": operator, "noise": noise, "seed": seed}
    if operator in _KSPACE:
        settings |= {"pattern": pattern, "acceleration": acceleration, "phase": phase}
    if operator in ("sense", "fourier"):
        settings["calibration"] = calibration
    if operator in ("sense", "nufft"):
        settings["coils"] = coils
    elif operator == "mask":
        settings |= {"pattern": pattern, "keep": keep}
    elif operator == "gaussian":
        settings |= {"n_measurements": n_measurements, "structured": structured}
    origin = {"source": "simulation", "arguments": settings, **(provenance or {})}
    with StoreWriter(path, origin, overwrite) as writer:
        for first in _steps(len(values), progress):
            scans = range(first, min(first + _BATCH, len(values)))
            measured, images_ = zip(*map(measure, scans), strict=True)
            part = {name: array[first : first + _BATCH] for name, array in every.items()}
            writer.append(collate_measurements(measured), torch.cat(images_) if references else None, part)
    return open_store(path)


def _check_images(values: NDArray[Any]) -> None:
    if not 2 <= values.ndim <= 4 or values.dtype.kind not in "fciub" or 0 in values.shape:
        raise DataError(
            f"images must be numbers (n, *spatial) with 1 to 3 spatial axes, got {values.dtype} {values.shape}"
        )
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        bad = ", ".join(map(str, np.flatnonzero(~finite)[:5]))
        raise DataError(f"images must be finite; image {bad} has NaN or infinite values")


def _steps(scans: int, progress: bool) -> Any:
    steps = range(0, scans, _BATCH)
    if not progress:
        return steps
    from tqdm import tqdm

    return tqdm(steps, desc="measuring", unit_scale=_BATCH, unit=" scans")
