"""Reconstructions on disk: written batch by batch, resumed where they stopped, under their name when they are whole.

A reconstruction that is under way is the hidden folder ``.<name>.partial`` beside its path::

    result/        the Zarr folder, with all its arrays from the beginning
    begun.json     what is being computed; there when ``result`` is
    finished       a line for each batch that is in ``result``

A batch has Zarr chunks of its own, one along the axis of scans. They are on the disk before their line is, and a batch
whose line is missing is computed again, to the same bits: wherever a process is killed, nothing is lost but what it was
at. When all lines are there, ``result`` takes the path's name.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.datasets.containers import FAULTS, brief
from ambient_sci.datasets.durable import replace, sync
from ambient_sci.datasets.publishing import Output, remove
from ambient_sci.errors import ConfigError, NotFoundError, OutputError, StoreError
from ambient_sci.reconstruction.job import Arrays, Variable

if TYPE_CHECKING:
    import xarray

__all__ = ["TITLE", "Chunk", "Frame", "Results", "datasets_of", "joined", "open_reconstruction"]

TITLE = "posterior samples"


@dataclass(frozen=True)
class Chunk:
    """A batch of scans: the group that it belongs to, which of its batches it is, and places of the scans."""

    group: str
    number: int
    start: int
    scans: NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """What is known of a group before anything is computed: coordinates, variables, and scans in a batch."""

    coords: "xarray.Dataset"
    variables: dict[str, Variable]
    size: int


class Results(Output):
    """The path of a reconstruction that is being written.

    Parameters
    ----------
    path
        Where it is, or will be.
    overwrite
        Replace one that is already there.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        super().__init__(path, overwrite)
        self.folder = self.neighbour("partial")
        self.result, self.begun, self.finished = (self.folder / name for name in ("result", "begun.json", "finished"))

    def check(self) -> None:
        """Refuse what must not be written to."""
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise OutputError(f"{self.path} already exists; choose another path or pass --overwrite")
        try:
            open_reconstruction(self.path)
        except StoreError as error:
            raise OutputError(
                f"{self.path} is not a reconstruction and is not replaced; choose another path"
            ) from error

    @contextmanager
    def begin(
        self, wanted: Mapping[str, Any], attrs: dict[str, Any], frames: Mapping[str, Frame]
    ) -> Iterator[set[int]]:
        """Begin, or go on with what was begun with the same options. A beginning without a batch is taken away again.

        Parameters
        ----------
        wanted
            What decides the results, in JSON, by names that an error can say.
        attrs
            Attributes of the result.
        frames
            Groups by name; one with no name is the root.

        Yields
        ------
        set of int
            Batches that are there, counted over all groups.
        """
        with self.faults():
            done = self._take_up(json.loads(json.dumps(wanted)))
            if done is None:
                self._lay_out(attrs, frames)
                replace(self.begun, json.dumps(wanted).encode())
                done = set()
            # without the half line that a power cut may leave
            replace(self.finished, "".join(f"{number}\n" for number in sorted(done)).encode())
            sync(self.folder)
        try:
            yield done
        except BaseException:
            if self.finished.exists() and self.finished.stat().st_size == 0:
                remove(self.folder)
            raise

    def _take_up(self, wanted: dict[str, Any]) -> set[int] | None:
        """Give the batches that are there; None where nothing is, or no longer, or nothing that is wanted."""
        if not (self.begun.exists() and self.finished.exists() and self.result.exists()):
            remove(self.folder)
            return None
        before = json.loads(self.begun.read_text())
        lines = self.finished.read_text().split("\n")[:-1]
        names = dict.fromkeys([*before, *wanted])
        changed = [
            f"{name} (was {before.get(name)}, now {wanted.get(name)})"
            for name in names
            if before.get(name) != wanted.get(name)
        ]
        if not changed:
            return {int(line) for line in lines}
        if not self.overwrite:
            raise ConfigError(
                f"{self.path} was begun with other options: {', '.join(changed)}; give the same, another path, or "
                "--overwrite to begin anew"
            )
        remove(self.folder)
        return None

    def _lay_out(self, attrs: dict[str, Any], frames: Mapping[str, Frame]) -> None:
        """Write everything but the values."""
        import xarray
        import zarr

        common: dict[str, Any] = {"mode": "a", "zarr_format": 3, "consolidated": False}
        self.folder.mkdir(parents=True)
        if "" not in frames:
            xarray.Dataset(attrs=attrs).to_zarr(self.result, **common)
        for name, frame in frames.items():
            frame.coords.assign_attrs(attrs).to_zarr(self.result, group=name or None, **common)
            group: Any = zarr.open_group(self.result, path=name, mode="r+", use_consolidated=False)
            for variable, about in frame.variables.items():
                whole = [1 if dim == "draw" else size for dim, size in zip(about.dims, about.shape, strict=True)]
                group.create_array(
                    variable,
                    shape=(frame.coords.sizes["scan"], *about.shape),
                    dtype=about.dtype,
                    chunks=(frame.size, *whole),
                    dimension_names=("scan", *about.dims),
                    attributes=about.attrs,
                    config={"write_empty_chunks": True},  # which have to be on the disk like the others
                )
        for path in [*self.result.rglob("*"), self.result]:
            sync(path)

    def write(self, number: int, chunk: Chunk, arrays: Arrays) -> None:
        """Write a batch; it is on the disk when this returns."""
        import zarr

        with self.faults():
            group: Any = zarr.open_group(self.result, path=chunk.group, mode="r+", use_consolidated=False)
            for name, values in arrays.items():
                group[name][chunk.start : chunk.start + len(chunk.scans)] = values
                place = self.result / chunk.group / name / "c"
                own = place / str(chunk.number)
                for path in [*own.rglob("*"), own, place, place.parent]:
                    sync(path)
            with self.finished.open("a") as file:
                file.write(f"{number}\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> "xarray.Dataset | xarray.DataTree":
        """Give the result its name."""
        with self.faults():
            self.publish(self.result)
            remove(self.folder)
        return open_reconstruction(self.path)


def open_reconstruction(path: Path | str) -> "xarray.Dataset | xarray.DataTree":
    """Open what `reconstruct` wrote.

    Raises
    ------
    NotFoundError, StoreError
        If there is nothing at ``path``, or something else.
    """
    import xarray

    if not Path(path).exists():
        raise NotFoundError(f"no reconstruction at {path}")
    found: xarray.Dataset | xarray.DataTree
    try:
        # without Dask's arrays, which there are only where it is installed
        found = xarray.open_zarr(path, consolidated=False, chunks=None)
        if found.attrs.get("title") == TITLE and not found.sizes:
            found = xarray.open_datatree(path, engine="zarr", consolidated=False)
    except FAULTS as error:
        raise StoreError(f"{path} is not a reconstruction, or a damaged one: {brief(error)}") from error
    complete = all({"mean", "std"} <= set(dataset) for dataset in datasets_of(found))
    if found.attrs.get("title") != TITLE or not complete:
        raise StoreError(f"{path} is not a reconstruction; `ambient-sci reconstruct` writes one")
    return found


def datasets_of(reconstruction: "xarray.Dataset | xarray.DataTree") -> "list[xarray.Dataset]":
    """Datasets of a reconstruction, one for each shape of images."""
    import xarray

    if isinstance(reconstruction, xarray.Dataset):
        return [reconstruction]
    return [child.to_dataset() for child in reconstruction.children.values()]


def joined(parts: Sequence[Arrays], frame: Frame, attrs: dict[str, Any]) -> "xarray.Dataset":
    """Batches of a group in their order, in memory."""
    variables: dict[str, Any] = {
        name: (("scan", *about.dims), np.concatenate([part[name] for part in parts]), about.attrs)
        for name, about in frame.variables.items()
    }
    return frame.coords.assign(variables).assign_attrs(attrs)
