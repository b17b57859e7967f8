r"""ISMRMRD files, also called MRD: readouts as the scanner took them (Inati et al. 2017, Magn. Reson. Med. 77:411).

A file is HDF5 with a group, by custom ``dataset``, of

==========  ===========================  ==========================================================================
``xml``     text                         the header: matrix and field of view, see `parse_header`
``data``    (acquisition,) of records    ``head`` (340 bytes), ``traj`` (sample, dimension), ``data`` (coil, sample)
==========  ===========================  ==========================================================================

and of images and waveforms, which are not read. One pass over the heads alone sorts acquisitions into images, one for
each repetition, phase, set, contrast and slice, in this order; then the readouts of one image after the other are read.

**Cartesian.** Line :math:`i` of phase encoding goes to row :math:`i - c + \lfloor N/2 \rfloor` of :math:`N` rows
encoded, where :math:`c` is the header's centre, and partitions likewise; ``center_sample`` of a readout goes to column
:math:`\lfloor N/2 \rfloor`. What no line fills, by undersampling, partial Fourier or an asymmetric echo, is not
measured. Samples to discard are discarded; reversed readouts are turned round, and their ``center_sample`` counts in
the order of rising :math:`k`. Lines that were measured :math:`n` times are averaged, which lowers their noise by
:math:`\sqrt n`. Where all readouts are complete their field of view is cropped to that of the image
(`ambient_sci.datasets.importers.mri`), and an asymmetric echo keeps the field of view that was encoded: it cannot be
cropped without mixing samples that were measured with those that were not.

**Radial, spiral and others** have their trajectory with them, whose unit the format leaves open. Values up to 0.5 are
taken for cycles per pixel, up to :math:`\pi` for radians per pixel, larger ones for cycles per field of view, that of
the image if it has the pixels for them and else the encoded one. A column more than there are axes is the density
compensation (Gadgetron's custom), unless the image is a plane and it is all zero. A stack along z whose trajectory has
two columns gets the third of its partitions. Echo-planar readouts without a trajectory are refused: their ghosts want
correction first.

**Noise.** Samples of noise scans are scaled to the bandwidth of the image, its variance being proportional to that:
:math:`n \sqrt{t_n / (t \beta m)}` with dwell times :math:`t_n` and :math:`t`, the header's relative noise bandwidth
:math:`\beta` of a receiver that falls off towards the edge of its band (where the oversampled field of view, and the
edge with it, is removed) and :math:`m` averages (Kellman and McVeigh 2005, Magn. Reson. Med. 54:1439).

**Calibration lines** are data where they are flagged as imaging too, or where the header says that they are embedded.
Others are a separate scan, of which the fully measured centre becomes the scan's ``calibration``, if its field of view
is that of the image.

Left out are readouts flagged as navigators, phase correction, feedback, dummy scans, surface coil correction and phase
stabilisation, and those of other encodings.

**Privacy.** Names and dates are never read. The ``subject`` is a hash of the patient's identifier, by which files of
one patient are kept together; whoever has a list of identifiers can invert it. Protocol names and the names of files
are kept.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import torch
from numpy.lib.recfunctions import repack_fields
from numpy.typing import NDArray

from ambient_sci.datasets.importers.mri import (
    Encoding,
    Header,
    check_size,
    crop_readout,
    find_files,
    parse_header,
    pseudonym,
    readable,
    stored_text,
)
from ambient_sci.datasets.raw import RawScan
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.operators.units import from_inverse_fov, from_ismrmrd, from_wavenumber

__all__ = ["UNITS", "read_ismrmrd"]

UNITS = ("auto", "cycles/pixel", "radians/pixel", "cycles/fov", "cycles/encoded-fov", "1/m")
"""Units that trajectories may be in."""

_ENDINGS = (".h5", ".hdf5", ".mrd")
_FORMAT = "ISMRMRD file (HDF5)"
_COUNTERS = ("repetition", "phase", "set", "contrast", "slice")  # an image for each; the last varies fastest
_FIELDS = [
    "flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample",
    "encoding_space_ref", "trajectory_dimensions", "sample_time_us", "position", "read_dir", "phase_dir", "idx",
]  # fmt: skip
_NOISE, _CALIBRATION, _CALIBRATION_TOO, _REVERSE = 19, 20, 21, 22  # flags, numbered from one
_LEFT_OUT = (23, 24, 26, 27, 28, 29, 30, 31)
_BLOCK = 4096  # heads read at once
_RUN = 256  # readouts read at once
_SPARSEST = 1000  # no scan measures less than one in so many samples

Heads = NDArray[Any]


@dataclass(frozen=True)
class _File:
    """An open file: its header, all heads, and where readouts are."""

    path: Path
    header: Header
    heads: Heads
    data: Any

    def readouts(self, numbers: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.complex64], NDArray[np.float32]]]:
        """Read samples ``(coil, n)`` and trajectories ``(n, dimension)``, without what is to be discarded."""
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        for run in runs:
            for start in range(0, len(run), _RUN):
                part = run[start : start + _RUN]
                records = self.data.fields(["data", "traj"])[part[0] : part[-1] + 1]
                for number, record in zip(part, records, strict=True):
                    yield self._readout(number, record)

    def _readout(self, number: int, record: Any) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        head = self.heads[number]
        samples, coils = int(head["number_of_samples"]), int(head["active_channels"])
        columns = int(head["trajectory_dimensions"])
        values, trajectory = (np.asarray(record[name], np.float32) for name in ("data", "traj"))
        if values.size != 2 * samples * coils or trajectory.size != samples * columns:
            raise DataError(
                f"acquisition {number} of {self.path} must have {samples} complex samples of {coils} coils with "
                f"{columns} coordinates, as its head says; it has {values.size} and {trajectory.size} values"
            )
        kept = slice(int(head["discard_pre"]), samples - int(head["discard_post"]))
        data = values.view(np.complex64).reshape(coils, samples)[:, kept]
        return data, trajectory.reshape(samples, columns)[kept]


def read_ismrmrd(
    paths: list[Path],
    *,
    slices: Annotated[tuple[int, int] | None, "first slice and the one to stop before"] = None,
    oversampled: Annotated[bool, "keep the encoded field of view of the readout"] = False,
    encoding: Annotated[int, "number of the header's encoding that is the image"] = 0,
    unit: Annotated[str, f"of trajectories: {', '.join(UNITS)}"] = "auto",
    noise: Annotated[Path | None, "file with the noise scan, where it has one of its own"] = None,
    identifiers: Annotated[bool, "write the patient's identifier itself as subject, not a hash of it"] = False,
    group: Annotated[str, "group of the file that holds the acquisitions"] = "dataset",
) -> Iterator[RawScan]:
    """Read images of ISMRMRD (MRD) files.

    Parameters
    ----------
    paths
        Files, or folders of files that end in ``.h5`` or ``.mrd``.
    slices
        Which slices, by their number in the file.
    oversampled
        Keep the field of view that was encoded: that of the readout, and along all axes off the grid.
    encoding
        Which encoding is the image; others are left out but for calibration scans.
    unit
        Unit of trajectories; ``"auto"`` tells from their extent.
    noise
        A file in which readouts are flagged as noise.
    identifiers
        Keep the patient's identifier as it is.
    group
        Group of the file.

    Yields
    ------
    RawScan
        One image, ``(coil, [z,] y, x)``, or ``(coil, sample)`` with a trajectory.

    Raises
    ------
    DataError
        If a file is damaged or not of this format, or has readouts that do not fit its header.
    ConfigError
        If an option cannot be.

    Examples
    --------
    ::

        ambient-sci import ismrmrd scan.h5 scan.zarr
        ambient-sci import ismrmrd session/ scans.zarr --noise noise.h5 --coils 8
    """
    if unit not in UNITS:
        raise ConfigError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    separate = None if noise is None else _noise_file(Path(noise), group)
    for path in find_files(paths, _ENDINGS):
        with readable(path, _FORMAT), h5py.File(path, "r") as file:
            opened = _open(path, file, group)
            if not 0 <= encoding < len(opened.header.encodings):
                count = len(opened.header.encodings)
                raise ConfigError(f"encoding must be below {count}, the number of encodings of {path}, got {encoding}")
            importing = _Import(opened, encoding, oversampled, unit, identifiers, separate)
            yield from importing.scans(slices)


def _open(path: Path, file: Any, group: str) -> _File:
    found = file.get(group)
    if not isinstance(found, h5py.Group) or "xml" not in found or "data" not in found:
        raise DataError(f"{path} has no group {group!r} with 'xml' and 'data'; it has {', '.join(file) or 'nothing'}")
    header, data = parse_header(path, stored_text(path, found["xml"])), found["data"]
    kind = data.dtype
    lists = [h5py.check_vlen_dtype(kind[name]) for name in ("traj", "data") if name in (kind.names or ())]
    if data.ndim != 1 or lists != [np.float32, np.float32] or len(data) == 0:
        raise DataError(f"data of {path} must be a list of acquisitions with head, traj and data, got {data}")
    check_size(path, data, (len(data),))
    heads = np.concatenate([repack_fields(block[_FIELDS]) for block in _heads(data)])
    used = heads["number_of_samples"].astype(int) - heads["discard_pre"] - heads["discard_post"]
    if (used < 0).any():
        raise DataError(f"acquisition {np.argmax(used < 0)} of {path} discards more samples than it has")
    return _File(path, header, heads, data)


def _heads(data: Any) -> Iterator[Heads]:
    """Read heads in blocks.

    Asked for heads alone, HDF5 reads all samples, too, and keeps them. Chunks as they lie in the file hold heads and
    only pointers to samples, so that this reads one part in a hundred of it and needs no conversion.
    """
    kind = data.id.get_type()
    if data.chunks is None or data.id.get_create_plist().get_nfilters():
        for start in range(0, len(data), _RUN):
            yield data[start : start + _RUN]["head"]
        return
    place = kind.get_member_index(b"head")
    offset, head = kind.get_member_offset(place), kind.get_member_type(place).dtype
    (step,) = data.chunks
    group = step * max(1, _BLOCK // step)
    for start in range(0, len(data), group):
        chunks = range(start, min(start + group, len(data)), step)
        raw = b"".join(data.id.read_direct_chunk((chunk,))[1] for chunk in chunks)
        records = np.frombuffer(raw, np.uint8).reshape(-1, kind.get_size())[: len(data) - start]
        yield np.ascontiguousarray(records[:, offset : offset + head.itemsize]).view(head)[:, 0]


def _flagged(heads: Heads, *flags: int) -> NDArray[np.bool_]:
    bits = sum(1 << (flag - 1) for flag in flags)
    return np.asarray((heads["flags"] & np.uint64(bits)) != 0)


def _noise(file: _File) -> tuple[NDArray[np.complex64], float] | None:
    """Read samples of noise ``(coil, n)`` and the time between them, if the file has any."""
    numbers = np.flatnonzero(_flagged(file.heads, _NOISE))
    if not len(numbers):
        return None
    _one_value(file, numbers, "active_channels")
    time = _one_value(file, numbers, "sample_time_us")
    samples = np.concatenate([data for data, _ in file.readouts(numbers)], 1)
    return (samples, float(time)) if samples.shape[1] else None


def _noise_file(path: Path, group: str) -> tuple[NDArray[np.complex64], float]:
    with readable(path, _FORMAT), h5py.File(path, "r") as file:
        found = _noise(_open(path, file, group))
    if found is None:
        raise DataError(f"{path} has no readouts that are flagged as noise")
    return found


def _one_value(file: _File, numbers: NDArray[np.intp], name: str) -> Any:
    values = np.unique(file.heads[name][numbers])
    if len(values) != 1:
        raise DataError(
            f"readouts of one image must have one {name}; those of {file.path} have {', '.join(map(str, values[:4]))}"
        )
    return values[0]


class _Import:
    """The images of one file."""

    def __init__(
        self,
        file: _File,
        encoding: int,
        oversampled: bool,
        unit: str,
        identifiers: bool,
        noise: tuple[NDArray[np.complex64], float] | None,
    ) -> None:
        self.file = file
        self.number = encoding
        self.encoding = file.header.encodings[encoding]
        self.oversampled = oversampled
        self.unit = unit
        self.noise = noise or _noise(file)
        heads = file.heads
        usable = ~_flagged(heads, _NOISE, *_LEFT_OUT)
        alone = usable & _flagged(heads, _CALIBRATION) & ~_flagged(heads, _CALIBRATION_TOO)
        if self.encoding.calibration == "embedded":
            alone &= heads["encoding_space_ref"] != encoding
        self.calibration = np.flatnonzero(alone)
        own = heads["encoding_space_ref"] == encoding
        self.data = np.flatnonzero(usable & ~alone & own)
        other = int((usable & ~alone & ~own).sum())
        if other:
            warnings.warn(
                f"{file.path}: {other} readouts of other encodings than {encoding} are left out", stacklevel=2
            )
        if not len(self.data):
            raise DataError(f"{file.path} has no readouts of an image in encoding {encoding}")
        self.cartesian = self.encoding.trajectory in ("cartesian", "")
        if not self.cartesian and not (heads["trajectory_dimensions"][self.data] > 0).all():
            raise DataError(
                f"{file.path} is {self.encoding.trajectory}, but its readouts have no trajectory; correct them and put "
                f"them on the grid, or write their trajectory into the file"
            )
        partitions = heads["idx"]["kspace_encode_step_2"][self.data]
        # some writers count slices as partitions, of which the readouts know nothing
        self.volume = self.encoding.encoded.matrix[2] > 1 and (
            partitions.max() > partitions.min() or (not self.cartesian and self._columns(self.data) > 2)
        )
        self.common: dict[str, Any] = {
            "file": file.path.stem,
            "subject": _subject(file, identifiers),
            "acquisition": file.header.protocol,
        }

    def scans(self, slices: Sequence[int] | None) -> Iterator[RawScan]:
        counters = self.file.heads["idx"][self.data]
        keys = np.stack([counters[name] for name in _COUNTERS], 1).astype(int)
        images, member = np.unique(keys, axis=0, return_inverse=True)
        chosen = range(int(keys[:, -1].max()) + 1)[slice(*(slices or (None,)))]
        make = self._on_grid if self.cartesian else self._off_grid
        for image, key in enumerate(images):
            if key[-1] in chosen:
                numbers = self.data[member.reshape(-1) == image]
                _one_value(self.file, numbers, "active_channels")
                counted = dict(zip(_COUNTERS, map(int, key), strict=True))
                yield make(numbers, counted)

    # ------------------------------------------------------------------------------------------------- on the grid

    def _on_grid(self, numbers: NDArray[np.intp], counted: dict[str, int]) -> RawScan:
        kspace, measured, times = self._assemble(numbers, self.encoding)
        cropped = self._crop(kspace, measured, self.encoding)
        removed = cropped[0].shape[-1] < kspace.shape[-1]
        kspace, measured = cropped
        return RawScan(
            kspace if self.volume else kspace[:, 0],
            measured if self.volume else measured[0],
            noise=self._scaled_noise(numbers, times, removed),
            calibration=self._calibration(counted, kspace.shape[0], removed),
            coords=self._coords(numbers, counted, self.encoding.encoded.pixel),
        )

    def _assemble(
        self, numbers: NDArray[np.intp], encoding: Encoding
    ) -> tuple[NDArray[np.complex64], NDArray[np.bool_], int]:
        """Lines in their places: k-space ``(coil, z, y, x)``, what was measured, and how often each line was."""
        heads = self.file.heads[numbers]
        x, y, z = encoding.encoded.matrix
        z = z if self.volume else 1
        rows = self._places(heads["idx"]["kspace_encode_step_1"], encoding.centre[0], y, "kspace_encode_step_1")
        planes = np.zeros(len(numbers), int)
        if self.volume:
            planes = self._places(heads["idx"]["kspace_encode_step_2"], encoding.centre[1], z, "kspace_encode_step_2")
        starts, lengths = self._columns_of(numbers, x)
        if x * y * z > _SPARSEST * int(lengths.sum()):  # before memory is asked for
            raise DataError(
                f"the header of {self.file.path} has a matrix of {x} x {y} x {z}, of which {lengths.sum()} samples "
                f"were measured; it cannot be right"
            )
        places = planes * y + rows
        counts = np.bincount(places, minlength=z * y)
        times = int(counts[counts > 0].min())
        if counts.max() > 1 and len(np.unique(np.stack([starts, lengths]), axis=1).T) > 1:
            raise DataError(f"{self.file.path} repeats lines with readouts of different lengths, which have no average")
        if counts.max() > times:
            warnings.warn(
                f"{self.file.path}: lines were measured {times} to {counts.max()} times; the first {times} of each are "
                f"used, so that all have noise of one level",
                stacklevel=2,
            )
        order = np.argsort(places, kind="stable")
        nth = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        used = np.sort(order[nth < times])
        kspace = np.zeros((int(heads["active_channels"][0]), z, y, x), np.complex64)
        measured = np.zeros((z, y, x), bool)
        reverse = _flagged(heads, _REVERSE)
        for index, (data, _) in zip(used, self.file.readouts(numbers[used]), strict=True):
            line = (planes[index], rows[index], slice(starts[index], starts[index] + lengths[index]))
            kspace[(slice(None), *line)] += data[:, ::-1] if reverse[index] else data
            measured[line] = True
        return kspace / np.float32(times) if times > 1 else kspace, measured, times

    def _places(self, steps: NDArray[Any], centre: int | None, size: int, name: str) -> NDArray[np.intp]:
        places = steps.astype(int) + (0 if centre is None else size // 2 - centre)
        if places.min() < 0 or places.max() >= size:
            raise DataError(
                f"{name} of {self.file.path} is {steps.min()} to {steps.max()} about {centre}, which does not fit the "
                f"{size} lines of its encoded matrix"
            )
        return places

    def _columns_of(self, numbers: NDArray[np.intp], size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First column and length of readouts, without what is to be discarded."""
        heads = self.file.heads[numbers]
        before, after = heads["discard_pre"].astype(int), heads["discard_post"].astype(int)
        lengths = heads["number_of_samples"].astype(int) - before - after
        centres = heads["center_sample"].astype(int) - np.where(_flagged(heads, _REVERSE), after, before)
        starts = np.where(lengths == size, 0, size // 2 - centres)  # a complete readout fits in one way only
        wrong = (lengths < 1) | (starts < 0) | (starts + lengths > size)
        if wrong.any():
            one = int(np.argmax(wrong))
            raise DataError(
                f"acquisition {numbers[one]} of {self.file.path} has {lengths[one]} samples with its centre at "
                f"{centres[one]}, which do not fit the {size} columns of its encoded matrix"
            )
        return starts, lengths

    def _crop(
        self, kspace: NDArray[np.complex64], measured: NDArray[np.bool_], encoding: Encoding
    ) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
        """Take the outer field of view of complete readouts away."""
        lines = measured.any(-1, keepdims=True)
        wanted = encoding.wanted(0, kspace.shape[-1])
        if self.oversampled or wanted == kspace.shape[-1] or (measured != lines).any():
            return kspace, measured
        return crop_readout(kspace, wanted), np.repeat(lines, wanted, -1)

    def _calibration(self, counted: dict[str, int], coils: int, removed: bool) -> NDArray[np.complex64] | None:
        """Fully measured centre of the separate calibration scan of a slice, ``(coil, *width)``."""
        heads = self.file.heads[self.calibration]
        here = self.calibration[heads["idx"]["slice"] == counted["slice"]]
        if not len(here):
            return None
        others = np.stack([self.file.heads["idx"][name][here] for name in _COUNTERS[:-1]], 1).astype(int)
        wanted = np.array([counted[name] for name in _COUNTERS[:-1]])
        same = (others == wanted).all(1)
        if not same.any():  # calibrated once for all repetitions, say: the first is as good as any
            same = (others == others[np.lexsort(others.T[::-1])[0]]).all(1)
        numbers = here[same]
        reference = int(_one_value(self.file, numbers, "encoding_space_ref"))
        if reference >= len(self.file.header.encodings):
            raise DataError(f"{self.file.path} has readouts of encoding {reference}, which its header does not have")
        encoding = self.file.header.encodings[reference]
        axes = 3 if self.volume else 2
        alike = np.allclose(encoding.encoded.fov[:axes], self.encoding.encoded.fov[:axes], rtol=0.01)
        if removed:
            alike = np.allclose(encoding.encoded.fov[1:axes], self.encoding.encoded.fov[1:axes], rtol=0.01)
            alike = alike and abs(encoding.recon.fov[0] / self.encoding.recon.fov[0] - 1) < 0.01
        if not alike or _one_value(self.file, numbers, "active_channels") != coils:
            warnings.warn(
                f"{self.file.path}: the calibration scan has another field of view or other coils than the image, and "
                f"is left out",
                stacklevel=2,
            )
            return None
        kspace, measured, _ = self._assemble(numbers, encoding)
        if removed:
            size = kspace.shape[-1]
            kspace, measured = self._crop(kspace, measured, encoding)
            if kspace.shape[-1] > encoding.wanted(0, size):
                return None  # asymmetric echoes of twice the field of view
        block = _full_centre(measured if self.volume else measured[0])
        kspace = kspace if self.volume else kspace[:, 0]
        return None if block is None else kspace[(slice(None), *block)]

    # ------------------------------------------------------------------------------------------------ off the grid

    def _off_grid(self, numbers: NDArray[np.intp], counted: dict[str, int]) -> RawScan:
        used = self.file.heads[numbers]
        lengths = used["number_of_samples"].astype(int) - used["discard_pre"] - used["discard_post"]
        if len(np.unique(lengths)) != 1 or lengths[0] < 1:
            raise DataError(
                f"readouts of one image must be of one length; those of {self.file.path} have {lengths.min()} to "
                f"{lengths.max()} samples"
            )
        axes = 3 if self.volume else 2
        columns = self._columns(numbers)
        stacked = self.volume and columns == 2
        if columns not in (axes, axes + 1) and not stacked:
            raise DataError(f"trajectories of {self.file.path} must have {axes} coordinates, got {columns}")
        readouts = list(self.file.readouts(numbers))
        kspace = np.concatenate([data for data, _ in readouts], 1)
        values = np.concatenate([trajectory for _, trajectory in readouts])
        spatial = values[:, : 2 if stacked else axes]
        extra = values[:, axes] if columns == axes + 1 else None
        if not np.isfinite(values).all():
            raise DataError(f"trajectories of {self.file.path} must be finite, got NaN or infinite values")
        if extra is not None and (extra < 0).any():
            raise DataError(f"column {axes} of trajectories of {self.file.path} must be weights of 0 or more")
        encoding = self.encoding
        sizes = encoding.encoded.matrix[:axes]
        if not self.oversampled:
            sizes = tuple(encoding.wanted(axis, size) for axis, size in enumerate(sizes))
        shape = tuple(reversed(sizes))
        radians = self._radians(spatial, shape[-2 if stacked else -axes :])
        if stacked:
            steps = used["idx"]["kspace_encode_step_2"].astype(float)
            size, centre = encoding.encoded.matrix[2], encoding.centre[1]
            planes = 2 * np.pi * (steps - (size // 2 if centre is None else centre)) / size
            radians = np.concatenate([np.repeat(planes, lengths[0])[:, None].astype(radians.dtype), radians], 1)
        return RawScan(
            kspace,
            trajectory=radians,
            shape=shape,
            readout=int(lengths[0]),
            weights=extra if extra is not None and extra.any() else None,
            noise=self._scaled_noise(numbers, 1, not self.oversampled),
            coords=self._coords(numbers, counted, encoding.encoded.pixel),
        )

    def _columns(self, numbers: NDArray[np.intp]) -> int:
        return int(_one_value(self.file, numbers, "trajectory_dimensions"))

    def _radians(self, k: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Trajectory in the order of axes and in radians per pixel of an image of this shape."""
        encoded = self.encoding.encoded
        whole = tuple(reversed(encoded.matrix[: len(shape)]))
        unit = _guess(k, shape) if self.unit == "auto" else self.unit
        values = torch.from_numpy(np.array(k))
        try:
            if unit == "1/m":
                sizes = [size / 1000 for size in reversed(encoded.pixel[: len(shape)])]
                radians = from_wavenumber(values.flip(-1), sizes)
            elif unit == "cycles/fov":
                radians = from_inverse_fov(values.flip(-1), shape)
            elif unit == "cycles/encoded-fov":
                radians = from_ismrmrd(values, whole)[0]
            else:
                radians = from_ismrmrd(values / (2 * np.pi if unit == "radians/pixel" else 1))[0]
        except DataError as error:
            raise DataError(f"trajectories of {self.file.path} do not fit the unit {unit}: {error}") from None
        return np.asarray(radians.numpy(), np.float32)

    # -------------------------------------------------------------------------------------------------------- both

    def _scaled_noise(self, numbers: NDArray[np.intp], times: int, removed: bool) -> NDArray[np.complex64] | None:
        """Noise samples as strong as the noise of an image's k-space."""
        if self.noise is None:
            return None
        samples, dwell = self.noise
        coils = self.file.heads["active_channels"][numbers[0]]
        if len(samples) != coils:
            raise DataError(f"the noise scan of {self.file.path} has {len(samples)} coils, the image has {coils}")
        own = float(_one_value(self.file, numbers, "sample_time_us"))
        ratio = dwell / own if dwell > 0 and own > 0 else 1.0
        beta = self.file.header.noise_bandwidth if removed else 1.0
        return np.asarray(samples * np.sqrt(ratio / (beta * times)), np.complex64)

    def _coords(
        self, numbers: NDArray[np.intp], counted: dict[str, int], pixel: tuple[float, float, float]
    ) -> dict[str, Any]:
        head = self.file.heads[numbers[0]]
        coords = {**self.common, **counted, "pixel_x": pixel[0], "pixel_y": pixel[1]}
        coords["pixel_z"] = pixel[2] if self.volume else self.encoding.recon.fov[2]
        directions = {"row": head["read_dir"], "column": head["phase_dir"]}
        if all(abs(float(np.linalg.norm(one)) - 1) < 0.01 for one in directions.values()):  # zeros if not known
            for name, values in {"position": head["position"], **directions}.items():
                coords |= {f"{name}_{axis}": float(value) for axis, value in zip("xyz", values, strict=True)}
        return coords


def _guess(k: NDArray[np.float32], shape: tuple[int, ...]) -> str:
    """Tell the unit of a trajectory, columns x, y, z, by its extent."""
    largest = np.abs(k).max(0)[::-1]
    if largest.max() <= 0.5 * 1.0001:
        return "cycles/pixel"
    if largest.max() <= np.pi * 1.0001:
        return "radians/pixel"
    return "cycles/fov" if (largest <= np.array(shape) / 2 * 1.0001).all() else "cycles/encoded-fov"


def _full_centre(measured: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Largest block about the centre that was measured in full, grown along one axis after the other."""
    centre = [size // 2 for size in measured.shape]
    if not measured[tuple(centre)]:
        return None
    block = [slice(middle, middle + 1) for middle in centre]
    growing = set(range(measured.ndim))
    while growing:
        for axis in sorted(growing):
            width = block[axis].stop - block[axis].start + 1
            start = centre[axis] - width // 2
            larger = [*block]
            larger[axis] = slice(start, start + width)
            if start < 0 or start + width > measured.shape[axis] or not measured[tuple(larger)].all():
                growing.discard(axis)
            else:
                block = larger
    return tuple(block)


def _subject(file: _File, identifiers: bool) -> str:
    known = file.header.subject
    if not known:
        return file.path.stem
    return known if identifiers else pseudonym(known)
