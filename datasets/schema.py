r"""Schema of a store: the names, dimensions and units of everything in it.

A store is one Zarr v3 folder or one HDF5 file with the same names in both, which xarray opens as it is. ``*`` stands
for the dimensions of one measurement, which are

==============  =============================  ==========================
operator        dimensions of one measurement  dimensions of one image
==============  =============================  ==========================
sense           coil, [z,] [y,] x              channel, [z,] [y,] x
fourier         channel, [z,] [y,] x           channel, [z,] [y,] x
mask            channel, [z,] [y,] x           channel, [z,] [y,] x
identity        channel, [z,] [y,] x           channel, [z,] [y,] x
nufft           coil, sample                   channel, [z,] [y,] x
interferometer  visibility                     channel, y, x
gaussian        row                            channel, [z,] [y,] x
matrix          row                            channel, [z,] [y,] x
others          measurement_1, ...             channel, [z,] [y,] x
==============  =============================  ==========================

Arrays of a store whose scans all have one size, in the root group:

======================  ==========================  =========================================================
``measurement``         (scan, \*)                  measured values in the instrument's units, zeros where
                                                    nothing was measured; float or complex, never NaN
``noise_std``           (scan,) or (scan, \*)       standard deviation of each real component, same units
``scale``               (scan,)                     what to divide a scan by to bring its image to about unit
                                                    range, found from the measurement alone; same units
``operator_<name>``     (scan, ...)                 one parameter of the operator: ``operator_mask``,
                                                    ``operator_maps``, ``operator_seed``; without units
``scan``                (scan,)                     number of the scan in the whole store, from zero
``<coordinate>``        (scan,)                     what else is known of a scan: ``subject``, ``slice``, ...;
                                                    integers, floats or strings
======================  ==========================  =========================================================

Axes of size one along which a parameter does not depend are left out of the store, so that a mask of phase-encoding
columns is ``operator_mask (scan, x)``. The attribute ``layout`` of such an array keeps them: ``"scan 1 1 x"``.

The group ``reference``, which only simulations have, holds ``image (scan, channel, ...)``: what was measured, in the
units of the measurement. Nothing that trains opens it, and a store without it is complete.

Attributes of the root group: ``schema`` (``"ambient-sci"``), ``schema_version``, ``operator`` (its kind),
``operator_settings`` (JSON), ``image_shape`` (channel and spatial sizes), ``coordinates`` (their names, separated by
spaces, as the CF conventions have it) and ``provenance`` (JSON: package version, how the scans came about, arguments,
seed). Every array has ``long_name`` and ``units``.

Scans of several sizes (of image, coils or samples), dimensions or operator settings, all of one kind of operator, stand
in groups ``size_0``, ``size_1``, ... Each of them is what is described above, its own group ``reference`` and all
attributes but ``provenance`` included, so that ``xarray.open_dataset(path, group="size_1")`` opens it and
``xarray.open_datatree(path)`` all of them; ``scan`` says which scans of the whole store it holds. The root group then
has no arrays, and of the attributes ``schema``, ``schema_version``, ``operator`` and ``provenance``.

Version 2 has these groups; a store of version 1 is one of version 2 with a single size.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ambient_sci.errors import StoreError

if TYPE_CHECKING:
    from ambient_sci.datasets.containers import Container

__all__ = [
    "COORDINATES",
    "REFERENCE",
    "RESERVED",
    "SCHEMA",
    "SCHEMA_VERSION",
    "check",
    "check_attributes",
    "decode",
    "describe_array",
    "full_shape",
    "image_dims",
    "layout",
    "measurement_dims",
    "size_groups",
    "stored_dims",
    "validate",
]

SCHEMA = "ambient-sci"
SCHEMA_VERSION = 2
READABLE = (1, 2)
REFERENCE = "reference/image"
REQUIRED = ("measurement", "noise_std", "scale", "scan")
RESERVED = (*REQUIRED, "reference", "channel", "coil", "row", "sample", "visibility", "z", "y", "x")
SIZE = "size_"

COORDINATES: dict[str, tuple[str, str]] = {
    "file": ("1", "file that the scan came from, without its ending"),
    "subject": ("1", "who or what was scanned; scans of one subject are never split between training and test"),
    "slice": ("1", "number of the slice in its volume"),
    "contrast": ("1", "number of the contrast or echo"),
    "repetition": ("1", "number of the repetition"),
    "phase": ("1", "number of the phase of a motion, as in cine"),
    "set": ("1", "number of the encoding set, as in flow"),
    "acquisition": ("1", "name of the sequence or protocol"),
    "time": ("d", "time of the measurement, modified Julian date"),
    "pixel_x": ("mm", "size of an image pixel along x"),
    "pixel_y": ("mm", "size of an image pixel along y"),
    "pixel_z": ("mm", "size of an image pixel along z, or the thickness of a slice"),
    "position_x": ("mm", "voxel at index size // 2 of every axis, towards the patient's left"),
    "position_y": ("mm", "voxel at index size // 2 of every axis, towards the patient's back"),
    "position_z": ("mm", "voxel at index size // 2 of every axis, towards the patient's head"),
    "row_x": ("1", "direction in which the image's index x grows: component towards the left"),
    "row_y": ("1", "direction in which the image's index x grows: component towards the back"),
    "row_z": ("1", "direction in which the image's index x grows: component towards the head"),
    "column_x": ("1", "direction in which the image's index y grows: component towards the left"),
    "column_y": ("1", "direction in which the image's index y grows: component towards the back"),
    "column_z": ("1", "direction in which the image's index y grows: component towards the head"),
    "field": ("1", "name of the source or pointing"),
    "telescope": ("1", "name of the telescope or array"),
    "right_ascension": ("deg", "right ascension of the phase centre, ICRS"),
    "declination": ("deg", "declination of the phase centre, ICRS"),
    "frequency": ("Hz", "mean frequency of the visibilities"),
    "bandwidth": ("Hz", "width of the band that the visibilities span"),
    "pixel": ("arcsec", "size of an image pixel of the interferometer"),
}
"""Coordinates of scans that have a meaning to this package: units and long names by name. Others are free."""

_LONG_NAMES = {
    "measurement": "measured values, zeros where nothing was measured",
    "noise_std": "standard deviation of the noise in each real component",
    "scale": "intensity that brings the image of a scan to about unit range",
    "scan": "number of the scan in this store",
    "reference/scan": "number of the scan in this store",
    REFERENCE: "image that was measured in a simulation",
}
_SPATIAL = ("z", "y", "x")
_FLAT = ("sample", "visibility", "row")  # axes of values that are on no grid


def spatial_dims(ndim: int) -> list[str]:
    """Names of the spatial axes, the last of which is ``x``."""
    return list(_SPATIAL[3 - ndim :]) if ndim <= 3 else [f"axis_{axis}" for axis in range(ndim)]


def image_dims(ndim: int) -> list[str]:
    """Dimensions of images with ``ndim`` axes, the scan axis included."""
    return ["scan", "channel", *spatial_dims(ndim - 2)]


def measurement_dims(kind: str, ndim: int) -> list[str]:
    """Dimensions of measurements with ``ndim`` axes by an operator of one kind, the scan axis included."""
    if kind == "sense":
        return ["scan", "coil", *spatial_dims(ndim - 2)]
    if kind in ("fourier", "mask", "identity"):
        return image_dims(ndim)
    if kind == "nufft":
        return ["scan", "coil", "sample"]
    if kind == "interferometer":
        return ["scan", "visibility"]
    if kind in ("gaussian", "matrix"):
        return ["scan", "row"]
    return ["scan", *(f"measurement_{axis}" for axis in range(1, ndim))]


def layout(name: str, shape: Sequence[int], dims: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Dimensions of an array that goes with a measurement; ``"1"`` for an axis that the store leaves out.

    Parameters
    ----------
    name
        Name of the array, after which axes that are the measurement's are not named.
    shape
        Its shape, the scan axis first.
    dims, sizes
        Dimensions and shape of the measurement.
    """
    if len(shape) == 1:
        return ["scan"]
    alike = len(shape) == len(sizes)
    result = ["scan"]
    for axis, size in enumerate(shape[1:], start=1):
        if alike and size == sizes[axis]:
            result.append(dims[axis])
        elif axis == 1 and dims[-1] in _FLAT and size == sizes[-1]:
            result.append(dims[-1])  # trajectories and weights go with samples, whatever the coil
        else:
            result.append("1" if size == 1 else f"{name}_{axis}")
    return result


def stored_dims(every: Sequence[str]) -> list[str]:
    """Dimensions of the array as it is stored."""
    return [dim for dim in every if dim != "1"]


def full_shape(every: Sequence[str], stored: Sequence[int]) -> tuple[int, ...]:
    """Shape of the array as the operator wants it, from its layout and the shape that is stored."""
    sizes = iter(stored)
    return tuple(1 if dim == "1" else next(sizes) for dim in every)


def describe_array(name: str) -> dict[str, str]:
    """Attributes ``long_name`` and ``units`` of an array."""
    if name.startswith("operator_"):
        return {"long_name": f"operator parameter {name.removeprefix('operator_')}", "units": "1"}
    if name in COORDINATES:
        units, about = COORDINATES[name]
        return {"long_name": about, "units": units}
    units = "arbitrary" if name in ("measurement", "noise_std", "scale", REFERENCE) else "1"
    return {"long_name": _LONG_NAMES.get(name, name), "units": units}


def size_groups(container: "Container") -> list[str]:
    """Names of the groups of a store, one for each size; ``[""]`` where all scans have one, which is the root's."""
    found = [name for name in container.groups() if re.fullmatch(rf"{SIZE}\d+", name)]
    return sorted(found, key=lambda name: int(name.removeprefix(SIZE))) or [""]


def check_attributes(path: object, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Check a root group's attributes, and return them decoded.

    Raises
    ------
    StoreError
        With one line that names what is wrong and what would be right.
    """
    if attributes.get("schema") != SCHEMA:
        raise StoreError(f"{path} is not an ambient-sci store: its attribute 'schema' is not {SCHEMA!r}")
    version = attributes.get("schema_version")
    if version not in READABLE:
        raise StoreError(
            f"{path} has schema version {version}, this version of ambient-sci reads "
            f"{' and '.join(map(str, READABLE))}; write the store again, or install the version of ambient-sci that "
            f"wrote it"
        )
    decoded = dict(attributes)
    try:
        decoded["provenance"] = json.loads(attributes.get("provenance", "{}"))
        decoded["operator"] = str(attributes["operator"])
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{path} has damaged attributes: {type(error).__name__} {error}") from error
    return decoded


def decode(path: object, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Decode what the attributes of a size's group say of its operator and images.

    Raises
    ------
    StoreError
        If an attribute is missing or damaged.
    """
    try:
        return {
            "operator_settings": json.loads(attributes["operator_settings"]),
            "image_shape": [int(size) for size in attributes["image_shape"]],
        }
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{path} has damaged attributes: {type(error).__name__} {error}") from error


def check(container: "Container") -> None:
    """Check what a store cannot be read without; no array is read.

    Raises
    ------
    StoreError
        With the first problem.
    """
    for problem in _essential(container):
        raise StoreError(problem)


def validate(container: "Container") -> list[str]:
    """List everything by which a store differs from this schema; no array is read but ``scan``.

    Returns
    -------
    list of str
        One line a problem, which names what is wrong and what would be right; empty for a store that is as it should
        be.
    """
    found = list(_essential(container))
    return found or list(_descriptive(container))


def _essential(container: "Container") -> Iterator[str]:
    path = container.path
    try:
        check_attributes(path, container.attributes())
    except StoreError as error:
        yield str(error)
        return
    groups = size_groups(container)
    if groups != [""] and (stray := sorted(set(container.names()) & set(REQUIRED))):
        yield f"{path}: the root group must have no arrays beside groups of sizes, it has {', '.join(stray)}"
    for group in groups:
        inside = f"{path}, group {group}" if group else str(path)
        names = container.names(group)
        if missing := [name for name in REQUIRED if name not in names]:
            has = ", ".join(sorted(names)) or "none"
            yield f"{inside} lacks the array {', '.join(map(repr, missing))}; it has {has}"
            continue
        try:
            decode(inside, container.attributes(group))
        except StoreError as error:
            yield str(error)
        infos = {name: container.info(_full(group, name)) for name in names}
        measurement = infos["measurement"]
        scans = measurement.shape[0] if measurement.shape else 0
        if scans == 0:
            yield f"{inside} holds no scans; a store needs at least one"
        for name, info in infos.items():
            if info.shape[:1] != (scans,):
                yield (
                    f"{inside}: {name} has shape {info.shape}, but the measurement has {scans} scans; "
                    f"the first axis of every array is the scan"
                )
        if measurement.dtype.kind not in "fc":
            yield f"{inside}: measurement must be float or complex, got {measurement.dtype}"


def _descriptive(container: "Container") -> Iterator[str]:
    """Names, dimensions, units and counts, which other programs rely on."""
    path = container.path
    kind = str(container.attributes()["operator"])
    groups = size_groups(container)
    every: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    numbers = []
    for group in groups:
        inside = f"{path}, group {group}" if group else str(path)
        infos = {name: container.info(_full(group, name)) for name in container.names(group)}
        listed = str(container.attributes(group).get("coordinates", "")).split()
        every[group] = sorted(listed)
        sizes = infos["measurement"].shape
        wanted = measurement_dims(kind, len(sizes))
        for name, info in infos.items():
            known = name in REQUIRED or name.startswith("operator_") or name in listed
            if not known:
                yield f"{inside}: {name} is no array of this schema, and the attribute 'coordinates' does not list it"
            yield from _units(inside, name, info.attributes)
            if info.dtype.kind == "U" and name not in listed:
                yield f"{inside}: {name} must be numbers, got text"
            if types.setdefault(name, str(info.dtype)) != str(info.dtype):
                yield f"{inside}: {name} is {info.dtype}, in other sizes {types[name]}; a store has one type of each"
            dims = info.dims
            if name == "measurement":
                right = tuple(wanted)
            elif name in listed or name in ("scan", "scale") or len(info.shape) == 1:
                right = ("scan",)
            else:
                full = str(info.attributes.get("layout", "")).split() or list(info.dims)
                try:
                    right = tuple(stored_dims(layout(name, full_shape(full, info.shape), wanted, sizes)))
                except StopIteration:
                    right = ()
            if dims != right:
                yield f"{inside}: {name} has dimensions {_tuple(dims)}, wanted {_tuple(right)} for shape {info.shape}"
        for name in sorted(set(listed) - set(infos)):
            yield f"{inside}: the attribute 'coordinates' lists {name}, but there is no such array"
        numbers.append(container.read(_full(group, "scan")))
        yield from _references(container, group, inside, sizes[0])
    if len({tuple(names) for names in every.values()}) > 1:
        yield f"{path}: all sizes must have the same coordinates, got {'; '.join(map(_tuple, every.values()))}"
    if not np.array_equal(np.sort(np.concatenate(numbers)), np.arange(sum(map(len, numbers)))):
        yield f"{path}: scan must number the scans from 0 without gaps, each once"


def _references(container: "Container", group: str, inside: str, scans: int) -> Iterator[str]:
    if not container.has(_full(group, REFERENCE)):
        return
    info = container.info(_full(group, REFERENCE))
    shape = (scans, *decode(inside, container.attributes(group))["image_shape"])
    if info.shape != shape:
        yield f"{inside}: {REFERENCE} has shape {info.shape}, wanted {shape}: one image a scan"
    if info.dims != tuple(image_dims(len(shape))):
        yield f"{inside}: {REFERENCE} has dimensions {_tuple(info.dims)}, wanted {_tuple(image_dims(len(shape)))}"
    yield from _units(inside, REFERENCE, info.attributes)


def _units(inside: str, name: str, attributes: Mapping[str, Any]) -> Iterator[str]:
    for attribute in ("long_name", "units"):
        if not attributes.get(attribute):
            yield f"{inside}: {name} has no attribute {attribute!r}"
    units = describe_array(name)["units"]
    if name in COORDINATES and attributes.get("units") not in (None, units):
        yield f"{inside}: {name} is in {attributes['units']}, wanted {units}"


def _full(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _tuple(names: Sequence[str]) -> str:
    return f"({', '.join(names)})"
