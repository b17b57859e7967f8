"""From raw data to a usable operator: what a scan's own samples say of its coils, maps, noise and intensity.

Every importer yields `RawScan`; `prepare` makes a `Measurement` of one, in this order: where it was measured,
prewhitening of the coils (`ambient_sci.datasets.noise`), noise level, compression of the coils
(`ambient_sci.datasets.calibration`), the centre of k-space where only that is wanted, coil maps
(`ambient_sci.datasets.espirit`), intensity scale. On the grid the operator is a `Sense`, off it a `Nufft`. Nothing is
taken from samples that the mask did not measure.

At last the samples are compared with the operator and the noise level: a level that they contradict by a factor of 1.5
or more, beyond its uncertainty, is warned of, since every posterior would be as wrong as it is. What is estimated
rather than given, and what was found, is said for the store's provenance.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.datasets.calibration import (
    calibration_width,
    centre,
    compression,
    gridded_centre,
    nyquist_width,
    sampled,
)
from ambient_sci.datasets.espirit import estimate_maps
from ambient_sci.datasets.noise import NoiseLevel, disagree, estimate_noise, outer_noise, residual_noise, whitening
from ambient_sci.datasets.raw import Coords, RawScan
from ambient_sci.datasets.scale import estimate_scale
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import LinearOperator, Nufft, Sense

__all__ = ["Findings", "Preparation", "Prepared", "examine", "prepare", "summarise"]

Array = NDArray[Any]
_WIDEST = {1: 64, 2: 32, 3: 24}  # calibration block for maps, by axes: wider ones cost time and tell little more


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared.

    Parameters
    ----------
    matrix
        Keep only the centre of k-space, as many samples per spatial axis: the same field of view in fewer, larger
        pixels. A prior of small images then meets structures of the size that it knows.
    crop
        Eigenvalue below which ESPIRiT takes a pixel to be outside the image.
    noise_std
        Standard deviation of each real component, instead of the scan's own or an estimate.
    calibration
        Width of the fully measured centre block, instead of the scan's own or the largest there is.
    coils
        Combine coils to at most so many virtual ones.
    sets
        Sets of coil maps: two, where an object is larger than the field of view and folds back into it.
    soft
        Let maps fall to zero smoothly at the border of the image. Noise then cannot be lifted to the coils there.
    check
        Compare noise level and operator with the samples, by a fit of the image; it takes about twenty iterations.
    """

    matrix: Annotated[tuple[int, ...] | None, "keep only the centre of k-space: the same view in fewer pixels"] = None
    crop: Annotated[float, "eigenvalue below which ESPIRiT takes a pixel to be outside the image"] = 0.95
    noise_std: Annotated[float | None, "noise per real component; that of the scan or estimated otherwise"] = None
    calibration: Annotated[int | None, "width of the fully measured centre; found otherwise"] = None
    coils: Annotated[int | None, "combine coils to at most so many virtual ones"] = None
    sets: Annotated[int, "sets of coil maps: 2 where the object is larger than the field of view"] = 1
    soft: Annotated[bool, "let coil maps fall to zero smoothly at the border of the image"] = False
    check: Annotated[bool, "compare noise and coil maps with the samples, by a fit of the image"] = True

    def __post_init__(self) -> None:
        if self.noise_std is not None and not (np.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ConfigError(f"noise_std must be finite and not negative, got {self.noise_std}")
        if not 0 <= self.crop < 1:
            raise ConfigError(f"crop must be at least 0 and below 1, got {self.crop}")
        if self.coils is not None and self.coils < 1:
            raise ConfigError(f"coils must be at least 1, got {self.coils}")
        if self.sets < 1:
            raise ConfigError(f"sets must be at least 1, got {self.sets}")

    def how(self, scan: RawScan) -> dict[str, str]:
        """Say how a scan's properties are found, for provenance."""
        on_grid = scan.trajectory is None
        if self.calibration is not None or scan.calibration_width is not None:
            width = "given"
        elif on_grid:
            width = "largest fully measured centre block"
        else:
            width = "largest centre block in which samples are as dense as the grid"
        block = "a separate calibration scan" if scan.calibration is not None else "the calibration block"
        if scan.calibration is None and not on_grid:
            block += ", by least squares from the samples in it"
        edge = "soft around" if self.soft else "above"
        several = "" if self.sets == 1 else f"{self.sets} sets, "
        espirit = f"ESPIRiT of {block}, {several}eigenvalue {edge} {self.crop}"
        fewer = self.coils is not None and self.coils < len(scan.kspace)
        mixed = scan.noise is not None or fewer
        if self.noise_std is not None or scan.noise_std is not None:
            noise = "given"
        elif scan.noise is not None:
            noise = "noise scan"
        else:
            noise = "median absolute deviation of the outermost samples"
            noise += ", or of the rim of the field of view where that is less" if on_grid else ""
        white = "covariance of the noise scan; the level is the geometric mean of the coils, in the instrument's units"
        as_is = "none: there is no noise scan; coils are taken to have independent noise of one level"
        plain = "zero-filled" if on_grid else "after five iterations of conjugate gradients"
        return {
            "mask": "given" if scan.mask is not None else "where any coil is not zero" if on_grid else "every sample",
            "calibration": width,
            "maps": espirit if scan.maps is None else "given, mixed as coils are, normalised" if mixed else "given",
            "noise_std": noise,
            "matrix": "as measured" if self.matrix is None else f"central {' x '.join(map(str, self.matrix))} samples",
            "prewhitening": as_is if scan.noise is None else white,
            "coils": f"{self.coils} principal components of {len(scan.kspace)}" if fewer else "as measured",
            "scale": f"99th percentile of the magnitude {plain}",
        }


@dataclass(frozen=True)
class Findings:
    """What came out of the preparation of one scan.

    Parameters
    ----------
    how
        How its properties were found.
    noise
        Noise level that it was given.
    residual
        Noise level that its samples have by their misfit, where that was looked at and can be known.
    energy
        Part of the energy that compression of the coils left.
    doubt
        What the samples contradict, in one line, or nothing.
    """

    how: dict[str, str]
    noise: NoiseLevel
    residual: NoiseLevel | None = None
    energy: float = 1.0
    doubt: str = ""

    @property
    def chi2(self) -> float | None:
        """Misfit in units of the noise, about one where operator and noise level are right."""
        if self.residual is None or self.noise.value == 0:
            return None
        return (self.residual.value / self.noise.value) ** 2


@dataclass(frozen=True)
class Prepared:
    """A raw scan as a measurement, with its coordinates and what was found on the way."""

    measurement: Measurement
    coords: Coords
    findings: Findings


def prepare(scan: RawScan, preparation: Preparation, name: str = "this scan") -> Measurement:
    """Make a measurement of a raw scan.

    Parameters
    ----------
    scan
        On the grid or off it.
    preparation
        How.
    name
        What to call the scan in errors.

    Returns
    -------
    Measurement
        A batch of one, in the instrument's units.

    Raises
    ------
    DataError
        If values are not finite, arrays do not fit, or there is too little to estimate from.
    ConfigError
        If the matrix is larger than what was measured.

    Warns
    -----
    UserWarning
        If the samples contradict the noise level.
    """
    prepared = examine(scan, preparation, name)
    if prepared.findings.doubt:
        warnings.warn(prepared.findings.doubt, stacklevel=2)
    return prepared.measurement


def examine(scan: RawScan, preparation: Preparation, name: str = "this scan") -> Prepared:
    """Make a measurement of a raw scan, as `prepare` does, and say what was found, without a warning."""
    on_grid = scan.trajectory is None
    measured = _measured(scan, name)
    y = np.where(measured, scan.kspace, 0)
    given = preparation.noise_std if preparation.noise_std is not None else scan.noise_std
    mixing, level = None, None if given is None else NoiseLevel(float(given), 0.0, "given")
    if scan.noise is not None:
        if len(scan.noise) != len(y):
            raise DataError(f"noise of {name} has {len(scan.noise)} coils, its k-space {len(y)}")
        mixing, found = whitening(scan.noise)
        y, level = _mix(mixing, y), level or found
    others: list[NoiseLevel] = []  # of all samples, not of a central part: near the centre there is signal in every one
    if level is None:
        level = _estimate(scan, y, measured)
    elif preparation.check:
        with suppress(DataError):  # too few samples contradict nothing
            others.append(_estimate(scan, y, measured))
    energy = 1.0
    if preparation.coils is not None and preparation.coils < len(y):
        combined, energy = compression(y.reshape(len(y), -1), preparation.coils)
        y = _mix(combined, y)
        mixing = combined if mixing is None else combined @ mixing
    shape = measured.shape if on_grid else tuple(scan.shape or ())
    kept = preparation.matrix or shape
    if len(kept) != len(shape) or not all(0 < k <= n for k, n in zip(kept, shape, strict=True)):
        raise ConfigError(f"matrix must be between 1 and what was measured, {shape}, got {kept}")
    if on_grid:
        y, operator = _on_grid(scan, preparation, y, measured, kept, mixing, level, name)
    else:
        y, operator = _off_grid(scan, preparation, y, kept, mixing, level, name)
    unscaled = Measurement(torch.from_numpy(y.astype(np.complex64))[None], operator, level.value)
    measurement = Measurement(unscaled.y, operator, level.value, scale=estimate_scale(unscaled))
    residual = residual_noise(measurement) if preparation.check else None
    doubt = _doubt(name, level, others if residual is None else [*others, residual])
    findings = Findings(preparation.how(scan), level, residual, energy, doubt)
    return Prepared(measurement, _coarser(scan.coords, shape, kept), findings)


def summarise(findings: Sequence[Findings]) -> dict[str, str]:
    """Say how the scans of a store were prepared and what was found: entries for its provenance."""
    said: dict[str, str] = {}
    for key in findings[0].how:
        ways = [one.how[key] for one in findings]
        counts = {way: ways.count(way) for way in dict.fromkeys(ways)}
        said[key] = (
            next(iter(counts)) if len(counts) == 1 else "; ".join(f"{way} ({n} scans)" for way, n in counts.items())
        )
    levels = [one.noise for one in findings]
    middle = sorted(levels, key=lambda level: level.value)[len(levels) // 2]
    chi2 = [one.chi2 for one in findings if one.chi2 is not None]
    residual = f"residual chi2 {_spread(chi2)}" if chi2 else "residual not known"
    spread = "" if len(levels) == 1 else f", {_spread([level.value for level in levels])} over {len(levels)} scans"
    said["noise"] = f"{middle}{spread}, {residual}"
    if min(one.energy for one in findings) < 1:
        said["coils"] += f", with {100 * min(one.energy for one in findings):.4g} % of the energy or more"
    doubts = [one.doubt for one in findings if one.doubt]
    if doubts:
        said["doubt"] = f"{len(doubts)} of {len(findings)} scans, such as: {doubts[0]}"
    return said


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _measured(scan: RawScan, name: str) -> NDArray[np.bool_]:
    """Where a scan was measured, ``spatial`` or ``(sample,)``."""
    if scan.mask is None:
        measured = sampled(scan.kspace) if scan.trajectory is None else np.ones(scan.kspace.shape[1], bool)
    elif scan.mask.shape != scan.kspace.shape[1:]:
        raise DataError(f"mask of {name} has shape {scan.mask.shape}; its k-space wants {scan.kspace.shape[1:]}")
    elif not np.isin(scan.mask, (0, 1)).all():
        raise DataError(f"mask of {name} must consist of zeros and ones only")
    else:
        measured = scan.mask.astype(bool)
    values = scan.kspace[:, measured]
    finite = np.isfinite(values)
    if not finite.all():
        raise DataError(f"kspace of {name} has {int((~finite).sum())} NaN or infinite values")
    if not values.any():
        raise DataError(f"kspace of {name} has no measured samples: all are zero")
    return measured


def _estimate(scan: RawScan, y: Array, measured: NDArray[np.bool_]) -> NoiseLevel:
    if scan.trajectory is None:
        return estimate_noise(y, measured)
    return outer_noise(y, np.linalg.norm(scan.trajectory, axis=1), scan.trajectory.shape[1])


def _doubt(name: str, noise: NoiseLevel, others: Sequence[NoiseLevel]) -> str:
    """Say what contradicts a noise level."""
    contrary = [other for other in others if disagree(noise, other)]
    if not contrary:
        return ""
    # signal that is left, and maps that do not fit, only ever add to a level
    return f"noise_std of {name} is {noise}, but its samples have {min(contrary, key=lambda other: other.value)}"


def _on_grid(
    scan: RawScan,
    preparation: Preparation,
    y: Array,
    measured: NDArray[np.bool_],
    kept: tuple[int, ...],
    mixing: Array | None,
    noise: NoiseLevel,
    name: str,
) -> tuple[Array, LinearOperator]:
    width = calibration_width(measured)
    wanted = preparation.calibration if preparation.calibration is not None else scan.calibration_width
    if wanted is not None and not 0 <= wanted <= width:
        raise DataError(f"calibration is {wanted}, but {name} is fully measured only in the central {width}")
    y, measured = centre(y, kept), centre(measured, kept)
    mask = _compact(measured)
    width = min([width if wanted is None else wanted, *(size for size in mask.shape[2:] if size > 1)])
    maps = _known_maps(scan, preparation, kept, mixing, name)
    if maps is None:
        # axes along which sampling does not vary are measured in full
        across = [size if along == 1 else width for size, along in zip(kept, mask.shape[2:], strict=True)]
        block = centre(y, [min(most, _WIDEST[len(kept)]) for most in across])
        maps = _espirit(block, kept, preparation, noise.value)
    return y, Sense(mask, torch.from_numpy(maps)[None], width)


def _off_grid(
    scan: RawScan,
    preparation: Preparation,
    y: Array,
    kept: tuple[int, ...],
    mixing: Array | None,
    noise: NoiseLevel,
    name: str,
) -> tuple[Array, LinearOperator]:
    trajectory, shape = np.asarray(scan.trajectory), tuple(scan.shape or ())
    maps = _known_maps(scan, preparation, kept, mixing, name)
    if maps is None:
        wanted = preparation.calibration if preparation.calibration is not None else scan.calibration_width
        width = min(_WIDEST[len(shape)], *kept)
        width = nyquist_width(trajectory, shape, width) if wanted is None else min(wanted, width)
        empty = np.zeros((len(y), *[0] * len(shape)), np.complex64)
        block = gridded_centre(y, trajectory, shape, width, scan.weights) if width > 0 else empty
        # several samples for a cell of the grid average the noise
        samples = (np.abs(trajectory) * np.asarray(shape) <= np.pi * width).all(1).sum()
        averaged = noise.value * np.sqrt(min(1, width ** len(shape) / max(samples, 1)))
        maps = _espirit(block, kept, preparation, float(averaged))
    inside = np.ones(len(trajectory), np.float32)
    readout = scan.readout
    if kept != shape:
        trajectory = trajectory * (np.asarray(shape) / np.asarray(kept))
        turns = trajectory / np.pi + 1e-6  # -1 belongs to the band, 1 does not, whatever they were rounded to
        inside = ((turns >= -1) & (turns < 1)).all(1).astype(np.float32)
        # readouts lose the places at which none of them is inside; what else is outside counts as not measured
        used = inside.reshape(-1, readout).any(0)
        place = np.tile(used, len(inside) // readout)
        trajectory, y, inside, readout = trajectory[place], y[:, place], inside[place], int(used.sum())
        trajectory, y = trajectory * inside[:, None], y * inside
    points = torch.from_numpy(trajectory.astype(np.float32))[None]
    operator = Nufft(points, kept, torch.from_numpy(maps)[None], torch.from_numpy(inside)[None], readout)
    return y, operator


def _espirit(block: Array, shape: tuple[int, ...], preparation: Preparation, noise_std: float) -> NDArray[np.complex64]:
    return estimate_maps(block, shape, preparation.crop, preparation.sets, preparation.soft, noise_std)


def _known_maps(
    scan: RawScan, preparation: Preparation, shape: tuple[int, ...], mixing: Array | None, name: str
) -> NDArray[np.complex64] | None:
    """Look for maps that are given, or come from a calibration scan, for the coils that there are now."""
    own = (len(scan.kspace), *shape)
    if scan.maps is not None:
        if scan.maps.shape[-len(own) :] != own or scan.maps.ndim > len(own) + 1:
            raise DataError(f"maps has shape {scan.maps.shape}; with this k-space it must be {own} or (set, *{own})")
        if not np.isfinite(scan.maps).all():
            raise DataError("maps has NaN or infinite values")
        if mixing is None:
            return scan.maps.astype(np.complex64)
        maps = _mix(mixing, scan.maps, axis=-len(own))
        norm = np.sqrt((np.abs(maps) ** 2).sum(-len(own), keepdims=True))
        return np.asarray(np.divide(maps, norm, out=np.zeros_like(maps), where=norm > 0), np.complex64)
    if scan.calibration is None:
        return None
    block = scan.calibration
    if len(block) != len(scan.kspace) or block.ndim != len(own) or block.dtype.kind != "c":
        raise DataError(f"calibration of {name} must be complex ({own[0]}, *width), got {block.dtype} {block.shape}")
    if not np.isfinite(block).all() or not (block != 0).any(0).all():
        raise DataError(f"calibration of {name} must be finite and fully measured, without zeros or NaN")
    most = [min(width, size, _WIDEST[len(shape)]) for width, size in zip(block.shape[1:], shape, strict=True)]
    block = centre(block if mixing is None else _mix(mixing, block), most)
    return _espirit(block, shape, preparation, 0.0)  # of a noise level of its own


def _mix(matrix: Array, array: Array, axis: int = 0) -> Array:
    """Combine coils, along ``axis``."""
    mixed = np.tensordot(matrix.astype(np.complex64), array.astype(np.complex64), (1, axis))
    return np.asarray(np.moveaxis(mixed, 0, axis))


def _coarser(coords: Coords, shape: tuple[int, ...], kept: tuple[int, ...]) -> Coords:
    """Coordinates, with the sizes of the pixels there are now."""
    names = ("pixel_z", "pixel_y", "pixel_x")[3 - len(shape) :]
    larger = {
        name: float(coords[name]) * full / now
        for name, full, now in zip(names, shape, kept, strict=True)
        if name in coords and full != now
    }
    return {**coords, **larger}


def _compact(mask: NDArray[np.bool_]) -> torch.Tensor:
    """Shape a mask for an operator, ``(1, 1, *spatial)``, with axes of size one where sampling does not vary."""
    varying = [axis for axis in range(mask.ndim) if (mask != mask.take([0], axis)).any()] or [mask.ndim - 1]
    kept = tuple(slice(None) if axis in varying else slice(1) for axis in range(mask.ndim))
    return torch.from_numpy(mask[kept].astype(np.float32))[None, None]
