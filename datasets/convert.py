"""Converting stores between Zarr and HDF5, bit by bit.

Everything that `ambient_sci.datasets.schema` knows stays as it is, and so does the fingerprint; only how many scans are
compressed together may change. Groups that somebody else has put into a store are left behind. Blocks of scans are
copied one after the other, so that a store may be larger than the memory.
"""

from pathlib import Path

import numpy as np

from ambient_sci.datasets import schema
from ambient_sci.datasets.containers import Container, container_type
from ambient_sci.datasets.publishing import Output, remove
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.datasets.writer import block_of, chunking

__all__ = ["convert"]


def convert(store: str | Path, out: str | Path, overwrite: bool = False, progress: bool = True) -> Store:
    """Write a store again in another container, or in the same one.

    Parameters
    ----------
    store
        Zarr folder or HDF5 file.
    out
        What to write: HDF5 where the name ends in ``.h5`` or ``.hdf5``, Zarr otherwise.
    overwrite
        Replace a store that is already at ``out``.
    progress
        Show a progress bar.

    Returns
    -------
    Store
        The new store, open.

    Raises
    ------
    NotFoundError, StoreError
        If there is no store, or it is damaged.
    OutputError
        If the new one cannot be written.

    Examples
    --------
    >>> convert("scans.zarr", "scans.h5")  # doctest: +SKIP
    """
    with open_store(store):  # whole, as far as can be seen without reading it
        pass
    output = Output(Path(out), overwrite)
    with output.locked():
        source = container_type(Path(store))(Path(store))
        try:
            with output.faults():
                target = container_type(output.path)(output.partial, "w")
            try:
                _copy(source, target, output, progress)
            finally:
                with output.faults():
                    target.close()
            with output.faults():
                output.publish(output.partial)
        finally:
            source.close()
            remove(output.partial)
    return open_store(out)


def _copy(source: Container, target: Container, output: Output, progress: bool) -> None:
    from tqdm.auto import tqdm

    sizes = schema.size_groups(source)
    present = ["", *source.all_groups()]
    groups = {size: [group for group in (size, f"{size}/reference".strip("/")) if group in present] for size in sizes}
    total = sum(source.info(f"{size}/measurement".strip("/")).shape[0] for size in sizes)
    bar = tqdm(total=total, desc="converting", unit=" scans", disable=not progress)
    for size, inside in groups.items():
        names = [f"{group}/{name}".strip("/") for group in inside for name in source.names(group)]
        infos = {name: source.info(name) for name in names}
        nbytes = {name: int(np.prod(info.shape[1:])) * info.dtype.itemsize for name, info in infos.items()}
        block = block_of(nbytes.values())
        for name, info in infos.items():
            shape = info.shape[1:]
            chunk, together = chunking(shape, nbytes[name], block)
            with output.faults():
                target.create(name, shape, info.dtype, info.dims, chunk, together, info.attributes)
        length = infos[f"{size}/measurement".strip("/")].shape[0]
        for start in range(0, length, block):
            rows = np.arange(start, min(start + block, length))
            for name in names:
                values = source.read(name, rows)
                with output.faults():
                    target.append(name, values)
            bar.update(len(rows))
    with output.faults():
        every = {"", *(group for inside in groups.values() for group in inside)}
        target.commit({group: source.attributes(group) for group in every})
    bar.close()
