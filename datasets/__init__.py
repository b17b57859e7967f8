"""Data sets: stores of measured scans, and the ways into them.

`ambient_sci.datasets.schema` has the names and dimensions of a store, `open_store` reads one, `StoreWriter` writes one;
`import_files` brings in what instruments measured, `simulate` measures images, `batches` draws from a store to train
(`StoreDataset` in the workers of a torch ``DataLoader``), `export` writes reconstructions for other programs.
"""

if __name__ != "ambient_sci.datasets":  # found as a top-level name from the repository root
    raise ImportError("import this package as ambient_sci.datasets")

from ambient_sci.datasets.convert import convert
from ambient_sci.datasets.describe import Description, describe
from ambient_sci.datasets.exporting import export
from ambient_sci.datasets.importers.array import import_array
from ambient_sci.datasets.importing import import_files, import_scans
from ambient_sci.datasets.loader import StoreDataset, batches
from ambient_sci.datasets.prepare import Preparation
from ambient_sci.datasets.raw import RawScan, ReadyScan
from ambient_sci.datasets.readers import read_images
from ambient_sci.datasets.scale import estimate_scale, normalise
from ambient_sci.datasets.simulate import simulate
from ambient_sci.datasets.store import SizeGroup, Store, open_store, validate
from ambient_sci.datasets.writer import StoreWriter

__all__ = [
    "Description",
    "Preparation",
    "RawScan",
    "ReadyScan",
    "SizeGroup",
    "Store",
    "StoreDataset",
    "StoreWriter",
    "batches",
    "convert",
    "describe",
    "estimate_scale",
    "export",
    "import_array",
    "import_files",
    "import_scans",
    "normalise",
    "open_store",
    "read_images",
    "simulate",
    "validate",
]
