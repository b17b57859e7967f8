"""Fuzz the reading of stores: whatever bytes a file has, a scan that is read is right, and what is not is refused.

By hand, for as long as you like, with `pip install atheris`::

    python tests/datasets/fuzz/fuzz_store.py tests/datasets/fuzz/corpus -max_total_time=600

An input is one byte that chooses a file of a small store, and the file's new contents. Crashes are written to the
current folder; those that were mended live in ``corpus``, which the tests read again (`tests/datasets/test_guards.py`).
"""

import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

if __name__ == "__main__":  # the fuzzer follows which lines of these an input reaches
    import atheris

    with atheris.instrument_imports(include=["ambient_sci.datasets", "zarr"]):
        import zarr  # noqa: F401

        import ambient_sci.datasets.hdf5_container
        import ambient_sci.datasets.zarr_container  # noqa: F401

from ambient_sci.datasets import StoreWriter, open_store
from ambient_sci.errors import AmbientError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Fourier

CORPUS = Path(__file__).parent / "corpus"
TARGETS = (
    "scans.h5",
    "scans.zarr/zarr.json",
    "scans.zarr/measurement/zarr.json",
    "scans.zarr/measurement/c/0/0/0/0",
    "scans.zarr/operator_mask/c/0/0/0",
    "scans.zarr/scale/c/0",
    "scans.zarr/scan/c/0",
    "scans.zarr/subject/c/0",
)


def write(path: Path, batch: int = 4) -> Path:
    """Write a store of single-coil scans, 4 x 6."""
    g = torch.Generator().manual_seed(0)
    A = Fourier((torch.rand(batch, 1, 1, 6, generator=g) < 0.5).float(), (4, 6))
    y = A(torch.randn(batch, 1, 4, 6, dtype=torch.complex64, generator=g))
    with StoreWriter(path) as writer:
        writer.append(Measurement(y, A, 0.1), coords={"subject": list("abcd")[:batch]})
    return path


@cache
def stores() -> tempfile.TemporaryDirectory[str]:
    """One store of each container, and what was measured."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    write(Path(folder.name) / "scans.h5")
    write(Path(folder.name) / "scans.zarr")
    return folder


@cache
def original(target: str) -> bytes:
    """Contents of a file before it was damaged."""
    return (Path(stores().name) / target).read_bytes()


@cache
def truth() -> torch.Tensor:
    """K-space of all scans."""
    with open_store(Path(stores().name) / "scans.h5") as store:
        return store.read(slice(None), raw=True).y


def read_damaged(target: str, contents: bytes) -> None:
    """Read a store one file of which has other contents."""
    home = Path(stores().name)
    original(target), truth()
    (home / target).write_bytes(contents)
    try:
        with open_store(home / target.partition("/")[0]) as store:
            for scan in range(min(len(store), 4)):
                read = store.read(scan, raw=True).y[0]
                assert torch.equal(read, truth()[scan]), f"scan {scan} is read wrongly"
    except AmbientError as error:
        if "\n" in str(error):
            raise AssertionError(f"an error of more than one line: {error}") from error
    finally:
        (home / target).write_bytes(original(target))


def test_one_input(data: bytes) -> None:
    """Read the store that an input of the fuzzer means."""
    if data:
        read_damaged(TARGETS[data[0] % len(TARGETS)], data[1:])


def main() -> None:
    """Run the fuzzer, from the files as they are."""
    seeds = Path(stores().name) / "seeds"
    seeds.mkdir()
    for number, target in enumerate(TARGETS):
        (seeds / str(number)).write_bytes(bytes([number]) + original(target))
    atheris.Setup([*sys.argv, str(seeds), "-max_len=40000"], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
