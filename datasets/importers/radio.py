r"""Visibilities of radio interferometers: UVFITS and UVH5 files and CASA measurement sets.

All three hold, for pairs of antennas, times and channels, a correlation, its baseline in metres, a weight and a flag.
A correlation of antennas 1 and 2 and the baseline from 1 to 2, :math:`b = r_2 - r_1`, as pyuvdata defines them for
every format (:math:`V = \langle E_1^* E_2 \rangle`; its documentation, Conventions), are

.. math:: V = \int I(l, m) \, e^{+2\pi i (u l + v m)} \, dl \, dm, \qquad (u, v) = b \nu / c,

so that the `Interferometer`, with the other sign, measures :math:`\bar V` at :math:`(u, v)`. A format that counts
baselines the other way conjugates its correlations as well, which is the same visibility of a real sky. That the sign
is this one, and no image is turned by half a circle, is seen in the files of M87 that the Event Horizon Telescope
published (2019-D01-01): by their closure phases, which no antenna's phase changes, the ring is brighter in the South
(position angles of 150 to 180 degrees on the four days), as in EHT Collaboration 2019, ApJL 875 L4.

From samples to one image's measurement, each of these steps only where it is asked for or needed:

#. Rows of one field, and of one interval of time, are read. Autocorrelations, flagged samples and those that are not
   finite are left out.
#. Stokes I is half the sum of the parallel hands, RR and LL or XX and YY, or their sum in files that say so. Where
   one of them is flagged the other stands for it, which is right for a source that is not polarised (``stokes``).
   Its weight :math:`w` is that of independent hands of variance one over weight.
#. The noise: :math:`\sigma^2 = 1 / w` of each real component where weights are inverse variances, as in UVFITS and
   measurement sets. Where only their ratios mean something, as in UVH5 (a weight is then the number of samples times
   integration time times channel width), :math:`\sigma^2 = s^2 / w`, with :math:`s` from the scatter of successive
   visibilities of a baseline, :math:`(V_{k+1} - V_k) / \sqrt{1 / w_k + 1 / w_{k+1}}`, by their median absolute
   deviation. A source that changes between them makes it too large rather than too small.
#. Means over times and channels, with the weights :math:`1 / \sigma^2`, of visibilities and frequencies alike, have
   :math:`\sigma^{-2} = \sum \sigma_k^{-2}`.
#. Lengths are padded with visibilities of weight zero to one of a few (`ambient_sci.datasets.padding`).
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci.datasets.importers.visibility_files import (
    DAY,
    Block,
    find_files,
    longest_baseline,
    open_file,
    scan_rows,
    time_bins,
)
from ambient_sci.datasets.padding import padded_length
from ambient_sci.datasets.raw import ReadyScan
from ambient_sci.datasets.scale import estimate_scale
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Interferometer, primary_beam
from ambient_sci.operators.interferometer import ARCSEC, LIGHT

__all__ = ["read_visibilities"]

SPECTRA, STOKES, NOISE = ("together", "windows", "channels"), ("pseudo-I", "I"), ("auto", "weights", "scatter")
GROUPS = ("baseline", "station", "visibility")

_EARTH = 7.2921159e-5  # rotation in rad/s
_MAD = 0.6744897501960817  # median of |N(0, 1)|
_PAIRS = 50  # successive visibilities that a baseline's own noise takes
_LOSS = 0.05  # of amplitude, at the edge of the field on the longest baseline
_CURVATURE = 0.5  # radians of phase that the third coordinate may add there


def read_visibilities(
    paths: list[Path],
    *,
    size: Annotated[int, "pixels along each side of the image"] = 64,
    pixel: Annotated[float | None, "size of a pixel in arcsec; a fifth of the resolution by default"] = None,
    field: Annotated[str | None, "only the field of this name"] = None,
    interval: Annotated[float | None, "one scan per so many seconds; a field is one scan by default"] = None,
    spectrum: Annotated[str, "channels in one scan: together, windows (each spectral window) or channels"] = "together",
    average_time: Annotated[float, "average over so many seconds"] = 0.0,
    average_channels: Annotated[int, "average over so many channels"] = 1,
    stokes: Annotated[str, "pseudo-I (one hand where the other is flagged) or I (both hands only)"] = "pseudo-I",
    noise: Annotated[str, "weights (they are inverse variances), scatter, or auto: scatter for UVH5"] = "auto",
    groups: Annotated[str, "what training hides together: baseline, station or visibility"] = "baseline",
    diameter: Annotated[float | None, "dishes in metres: images are then of the sky before the primary beam"] = None,
    column: Annotated[str | None, "of a measurement set: DATA, ...; CORRECTED_DATA where it is there"] = None,
    conjugate: Annotated[bool, "phases have the other sign: images would come out turned by 180 degrees"] = False,
    pad: Annotated[int, "pad to one of so many numbers of visibilities per octave; 0 pads nothing"] = 8,
) -> Iterator[ReadyScan]:
    """Read visibilities from UVFITS or UVH5 files or CASA measurement sets.

    The format is seen in a file itself. In memory are a UVFITS file, or what a UVH5 file or a measurement set has of
    one scan, and the times and baselines of all of it.

    Parameters
    ----------
    paths
        Files, measurement sets, or folders of them.
    size, pixel
        The image: ``size`` by ``size`` pixels of ``pixel`` arcsec, the same for all scans. Half a period of the highest
        frequency is the largest pixel there can be. The field of view is for the source to fit in: 64 pixels of 2e-6
        arcsec for M87 with the EHT.
    field
        Name of the only field to read.
    interval
        Length of a scan in seconds, counted from a field's first sample.
    spectrum
        ``"together"``: all frequencies measure one image, whose spectrum is flat. ``"windows"``: a scan for each
        spectral window; ``"channels"``: one for each channel, after averaging.
    average_time, average_channels
        Seconds, and adjacent channels of a spectral window, to take the mean of.
    stokes
        What to do where one of two parallel hands is flagged: take the other, or nothing.
    noise
        ``"weights"``: they are inverse variances. ``"scatter"``: successive visibilities tell, and weights are only
        relative, as in all files that pyuvdata itself wrote. ``"auto"``: the second for UVH5, else the first.
    groups
        What `Interferometer.thin` loses together.
    diameter
        Diameter of the dishes, for a `primary_beam`; by default the field is small against it.
    column
        Which visibilities of a measurement set.
    conjugate
        For files in which phases have the other sign than in the formats' conventions.
    pad
        Lengths per octave; see `padded_length`.

    Yields
    ------
    ReadyScan
        Visibilities in Jy, a batch of one; fields in the order of their numbers, intervals, then frequencies.

    Warns
    -----
    UserWarning
        If averaging (or the file's own integrations and channels) blurs the edge of the field, if the field is so wide
        that the third coordinate of baselines matters, if a file says that it is not calibrated, or if its weights
        are no inverse variances by the look of its visibilities.

    Raises
    ------
    ConfigError
        If an option cannot have its value, or a library is missing.
    DataError, NotFoundError
        If a file is none of these, is damaged, or has no Stokes I or no phase centre.

    Examples
    --------
    ::

        ambient-sci import uvfits m87/ m87.zarr --pixel 2e-6 --size 64
        ambient-sci import uvh5 night.uvh5 night.zarr --interval 600 --average-channels 8
        ambient-sci import ms field.ms field.zarr --field 3C273 --diameter 25
    """
    for name, choice, known in (
        ("spectrum", spectrum, SPECTRA),
        ("stokes", stokes, STOKES),
        ("noise", noise, NOISE),
        ("groups", groups, GROUPS),
    ):
        if choice not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {choice!r}")
    for name, number, good, want in (
        ("size", size, size >= 2, "2 pixels or more"),
        ("pixel", pixel, pixel is None or 0 < pixel < math.inf, "above 0 arcsec"),
        ("interval", interval, interval is None or 0 < interval < math.inf, "above 0 s"),
        ("average_time", average_time, 0 <= average_time < math.inf, "0 s or more"),
        ("average_channels", average_channels, average_channels >= 1, "1 channel or more"),
        ("diameter", diameter, diameter is None or 0 < diameter < math.inf, "above 0 m"),
        ("pad", pad, pad >= 0, "0 lengths per octave or more"),
    ):
        if not good:
            raise ConfigError(f"{name} must be {want}, got {number}")
    files = find_files(paths)
    names: set[str] = set()
    longest = 0.0
    for path in files:  # all are looked at before any is read
        source = open_file(path, column)
        names |= {source.name(int(number)) for number in np.unique(source.fields)}
        longest = max(longest, longest_baseline(source, field))
    if field is not None and field not in names:
        raise DataError(f"there is no field {field!r}; there are {', '.join(sorted(names))}")
    if longest == 0:
        raise DataError(f"there are no baselines in {', '.join(map(str, files))}, only autocorrelations")
    side = 1 / (5 * longest) if pixel is None else pixel * ARCSEC
    warned: set[str] = set()
    for path in files:
        source = open_file(path, column)
        scatter = source.scatter if noise == "auto" else noise == "scatter"
        for one, rows in scan_rows(source, field, interval):
            name, right_ascension, declination = source.field(one)
            start = float((source.times[rows] - source.exposures[rows] / 2 / DAY).min())
            parts = []
            for block in source.read(rows):
                value, weight = _stokes(block, stokes == "I", path)
                precision = _precision(block, value, weight, scatter, path, warned)
                parts.append(_average(block, value, precision, start, average_time, average_channels))
            every = _Visibilities(*(np.concatenate(values) for values in zip(*parts, strict=True)))
            for measured in _split(every, spectrum):
                _warn(measured, size * side / 2, max(average_time, float(source.exposures[rows].max())), warned)
                coords: dict[str, float | str] = {
                    "file": path.stem,
                    "field": name,
                    "telescope": source.telescope,
                    "right_ascension": right_ascension,
                    "declination": declination,
                    "frequency": float(measured.frequency.mean()),
                    "bandwidth": float(measured.high.max() - measured.low.min()),
                    "time": float((measured.time.min() + measured.time.max()) / 2),
                    "pixel": side / ARCSEC,
                }
                y = measured.value if conjugate else measured.value.conj()
                beam = None
                if diameter is not None:
                    beam = primary_beam((size, size), side, diameter, float(measured.frequency.mean()))
                measurement = _measurement(measured, y, size, side, beam, groups, pad)
                yield ReadyScan(measurement, coords, _how(scatter, stokes, conjugate, average_time, average_channels))


def _how(scatter: bool, stokes: str, conjugate: bool, seconds: float, channels: int) -> dict[str, str]:
    one = "" if stokes == "I" else "; one hand where the other is flagged"
    return {
        "units": "Jy, frequencies in wavelengths",
        "phase": f"{'as in' if conjugate else 'complex conjugate of'} the file with baselines from antenna 1 to 2: "
        "V = sum I exp(-2 pi i (u l + v m)), l to the East, m to the North",
        "stokes": f"I, or half the sum of the parallel hands{one}",
        "noise_std": "median absolute deviation of successive visibilities of a baseline, relative to weights"
        if scatter
        else "weights are inverse variances",
        "average": f"{seconds:g} s, {channels} channels",
        "scale": "99th percentile of five conjugate gradient iterations, with inverse variances",
    }


class _Visibilities(NamedTuple):
    """Stokes I, one after the other: values in Jy and their noise, where and when they were measured.

    ``low`` and ``high`` are the edges of the channels of each, ``width`` the band of it alone.
    """

    uvw: NDArray[np.float64]
    value: NDArray[np.complex128]
    noise: NDArray[np.float64]
    antennas: NDArray[np.int64]
    time: NDArray[np.float64]
    frequency: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    window: NDArray[np.int64]
    channel: NDArray[np.int64]


def _stokes(block: Block, strict: bool, path: Path) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Stokes I and its weight, zero where there is none: ``(row, channel)`` each."""
    if "I" in block.hands:
        one = block.hands.index("I")
        return block.data[..., one].astype(complex), block.weights[..., one].astype(float)
    pair = [hand for hand in (("RR", "LL") if {"RR", "LL"} & set(block.hands) else ("XX", "YY")) if hand in block.hands]
    if strict and len(pair) == 1:
        raise DataError(f"{path} has only {pair[0]}, and Stokes I takes both hands; pseudo-I takes one")
    parts = [block.hands.index(hand) for hand in pair]
    weights = block.weights[..., parts].astype(float)
    used = weights > 0
    if strict:
        used = used & used.all(-1, keepdims=True)
    number = used.sum(-1)
    value = np.where(used, block.data[..., parts], 0).sum(-1) / np.maximum(number, 1)
    variance = np.where(used, 1 / np.where(used, weights, 1), 0).sum(-1)
    factor = 2 if block.total else 1
    weight = np.where(number > 0, number**2 / np.where(number > 0, variance, 1) / factor**2, 0)
    return factor * value.astype(complex), weight


def _precision(
    block: Block,
    value: NDArray[np.complex128],
    weight: NDArray[np.float64],
    scatter: bool,
    path: Path,
    warned: set[str],
) -> NDArray[np.float64]:
    """One over the variance of a real component, from weights and from what changes between successive visibilities."""
    first, second = block.antennas.T
    order = np.lexsort((block.times, second, first))
    before, after = order[:-1], order[1:]
    gap = (block.times[after] - block.times[before]) * DAY
    near = (block.antennas[before] == block.antennas[after]).all(1) & (gap > 0)
    near &= gap < 1.5 * np.maximum(block.exposures[before], block.exposures[after])
    before, after = before[near], after[near]
    both = (weight[before] > 0) & (weight[after] > 0)
    error = np.sqrt(sum(1 / np.where(both, weight[rows], 1) for rows in (before, after)))
    steps = (value[after] - value[before]) / error

    def level(rows: NDArray[np.bool_]) -> float:
        """Give the noise of unit weight, or zero where there are too few to tell."""
        chosen = steps[rows][both[rows]]
        if chosen.size < _PAIRS:
            return 0.0
        return float(np.median(np.abs(np.concatenate([chosen.real, chosen.imag]))) / _MAD)

    common = level(np.ones(len(before), bool))
    if not scatter:
        # a source, and the phase of the air, can only add to the scatter
        if 0 < common < 0.5 and "weights" not in warned:
            warned.add("weights")
            warnings.warn(
                f"{path}: the noise that its weights say is {1 / common:.3g} times what successive visibilities differ "
                "by; if they are no inverse variances in 1/Jy^2 (files that pyuvdata wrote count samples), take "
                "noise='scatter'",
                stacklevel=3,
            )
        return weight
    if not common:
        raise DataError(
            f"{path} has {int(both.sum())} pairs of successive visibilities that differ, too few to estimate the noise "
            f"from ({_PAIRS}); if its weights are inverse variances, take noise='weights'"
        )
    pairs, own = np.unique(block.antennas, axis=0, return_inverse=True)
    own = own.reshape(-1)
    levels = np.array([level(own[before] == pair) or common for pair in range(len(pairs))])
    return np.asarray(weight / levels[own, None] ** 2)


def _average(
    block: Block,
    value: NDArray[np.complex128],
    precision: NDArray[np.float64],
    start: float,
    seconds: float,
    channels: int,
) -> _Visibilities:
    """Weighted means over times and channels; without any, the samples themselves that are not flagged."""
    if seconds:
        bins = time_bins(block.times, block.exposures, start, seconds)
        order = np.lexsort((block.antennas[:, 1], block.antennas[:, 0], bins))
        key = np.column_stack([bins, block.antennas])[order]
        rows = np.flatnonzero(np.r_[True, (key[1:] != key[:-1]).any(1)])
    else:
        order = rows = np.arange(len(block.times))
    across = np.argsort(block.windows, kind="stable")
    windows = block.windows[across]
    place = np.arange(len(windows)) - np.searchsorted(windows, windows)  # within its window
    columns = np.flatnonzero(place % channels == 0)

    def total(values: NDArray[Any]) -> NDArray[Any]:
        summed = np.add.reduceat(values[order], rows, axis=0)
        return np.asarray(np.add.reduceat(summed[:, across], columns, axis=1))

    weight = total(precision)
    kept = weight > 0

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        weighted = np.zeros(precision.shape, values.dtype)
        np.multiply(precision, values, out=weighted, where=precision > 0)  # what is flagged need not be finite
        return np.asarray(total(weighted)[kept] / weight[kept])

    def spread(values: NDArray[Any], axis: int) -> NDArray[Any]:
        return np.asarray(np.broadcast_to(np.expand_dims(values, axis), kept.shape + values.shape[1:])[kept])

    half, frequencies = block.widths[across] / 2, block.frequencies[across]
    uvw = [mean(block.baselines[:, axis, None] * block.frequencies / LIGHT) for axis in range(3)]
    return _Visibilities(
        uvw=np.stack(uvw, 1),
        value=mean(value),
        noise=1 / np.sqrt(weight[kept]),
        antennas=np.repeat(block.antennas[order][rows], kept.sum(1), axis=0),
        time=mean(block.times[:, None]),
        frequency=mean(block.frequencies),
        low=spread(np.minimum.reduceat(frequencies - half, columns), 0),
        high=spread(np.maximum.reduceat(frequencies + half, columns), 0),
        window=spread(windows[columns], 0),
        channel=spread(place[columns] // channels, 0),
    )


def _split(every: _Visibilities, spectrum: str) -> Iterator[_Visibilities]:
    """Take apart what does not measure one image; where all is flagged there is nothing."""
    keys = {"together": [], "windows": [every.window], "channels": [every.window, every.channel]}[spectrum]
    if not len(every.value):
        return
    key = np.column_stack([np.zeros_like(every.window), *keys])
    _, number = np.unique(key, axis=0, return_inverse=True)
    number = number.reshape(-1)
    for one in range(int(number.max()) + 1):
        yield _Visibilities(*(values[number == one] for values in every))


def _warn(measured: _Visibilities, edge: float, seconds: float, warned: set[str]) -> None:
    """Warn, once an import, of what one visibility cannot hold of a source at ``edge`` radians from the centre."""
    length = np.hypot(measured.uvw[:, 0], measured.uvw[:, 1]) * edge  # in periods
    band = (measured.high - measured.low) / measured.frequency
    loss = 1 - float((np.sinc(np.minimum(length * band, 1)) * np.sinc(np.minimum(length * _EARTH * seconds, 1))).min())
    turn = math.pi * float(np.abs(measured.uvw[:, 2]).max()) * edge**2
    said = {
        "smearing": loss > _LOSS
        and f"over {seconds:.3g} s and {float((measured.high - measured.low).max()):.3g} Hz, sources at the edge of "
        f"the field ({edge / ARCSEC:.3g} arcsec from its centre) lose up to {100 * loss:.0f} % of their amplitude: "
        "average less, or make the field smaller",
        "width": turn > _CURVATURE
        and f"the field is not narrow: {edge / ARCSEC:.3g} arcsec from its centre the third coordinate of baselines "
        f"adds up to {turn:.2g} rad of phase, which is left out; make the field smaller",
    }
    for kind, text in said.items():
        if text and kind not in warned:
            warned.add(kind)
            warnings.warn(text, stacklevel=3)


def _measurement(
    measured: _Visibilities,
    y: NDArray[np.complex128],
    size: int,
    side: float,
    beam: torch.Tensor | None,
    groups: str,
    steps: int,
) -> Measurement:
    count = len(y)
    length = padded_length(count, steps)

    def column(values: NDArray[Any], dtype: torch.dtype, fill: float = 0) -> torch.Tensor:
        added = np.full((length - count, *values.shape[1:]), fill, values.dtype)
        return torch.from_numpy(np.concatenate([values, added])).to(dtype)[None]

    # what fills up has a noise, too, one that no minimum or maximum of the others notices
    noise = column(measured.noise, torch.float32, float(np.median(measured.noise)))
    weights = column(np.ones(count), torch.float32)
    _, stations = np.unique(measured.antennas, return_inverse=True)
    pairs = np.sort(stations.reshape(-1, 2), axis=1)
    numbers = {
        "visibility": np.arange(count)[:, None],
        "baseline": (pairs[:, 1] * (pairs[:, 1] - 1) // 2 + pairs[:, 0])[:, None],
        "station": pairs,
    }[groups]
    operator = Interferometer(
        column(measured.uvw[:, :2], torch.float32),
        (size, size),
        side,
        beam=beam,
        weights=weights,
        groups=column(numbers, torch.int32),
    )
    values = column(y, torch.complex64)
    # baselines are not equally noisy: the image whose brightness counts is that of whitened visibilities
    white = float(noise.min()) / noise * weights
    whitened = Interferometer(operator.uv, (size, size), side, beam=beam, weights=white)
    scale = estimate_scale(Measurement(values * white, whitened, 1.0))
    return Measurement(values, operator, noise, scale=scale)
