"""Small stores and runs that several tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ambient_sci.config import TrainConfig
from ambient_sci.datasets import open_store, simulate

if TYPE_CHECKING:
    import xarray

SMALL: dict[str, Any] = {
    "images": 192,
    "batch": 16,
    "widths": (32, 32),
    "checkpoint": 48,
    "laps": 1,
    "em_steps": 3,
    "precision": "fp32",
    "preview": 0,
}


def make_blobs(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Images of a few soft discs, in unit range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : 1j * size, -1 : 1 : 1j * size]
    images = np.zeros((count, size, size))
    for image in images:
        for _ in range(3):
            cx, cy = rng.uniform(-0.5, 0.5, 2)
            image += rng.uniform(0.2, 0.6) / (1 + np.exp(20 * (np.hypot(x - cx, y - cy) - rng.uniform(0.2, 0.5))))
    return (images / images.max((1, 2), keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Options of a run of seconds."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def blobs() -> Callable[..., np.ndarray]:
    """``blobs(count, size=16, seed=0)`` makes images."""
    return make_blobs


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undersampled multi-coil scans with references."""
    path = tmp_path_factory.mktemp("stores") / "scans.zarr"
    simulate(make_blobs(40), path, acceleration=2, calibration=4, coils=3, seed=5)
    return path


@pytest.fixture(scope="session", params=["em", "ambient"])
def run_path(request: pytest.FixtureRequest, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of each kind of prior."""
    from ambient_sci.training import train

    path = tmp_path_factory.mktemp("runs") / request.param
    train(TrainConfig(store=store_path, out=path, method=request.param, **SMALL), progress=False)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small work on many threads is slower than on one, and tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def posterior(store_path: Path) -> "xarray.Dataset":
    """What reconstructing nine scans of that store could give: samples around the references, complex."""
    import xarray

    from ambient_sci.reconstruction import summarise
    from ambient_sci.reconstruction.output import TITLE
    from ambient_sci.reconstruction.summary import quantiles_of

    store, generator = open_store(store_path), torch.Generator().manual_seed(0)
    truth = store.references(np.arange(9))
    shape = (9, 7, *truth.shape[1:])  # of which the first is taken for the truth
    noise = torch.complex(*(0.05 * torch.randn(shape, generator=generator) for _ in range(2)))
    drawn = (truth[:, None] * np.exp(0.7j) + noise[:, 1:] + noise[:, :1]).to(torch.complex64)
    dims = ("scan", "channel", "y", "x")
    summary = {name: value.numpy() for name, value in summarise(drawn).items()}
    effective = summary.pop("effective_samples")
    variables = {name: (dims, value, {"units": "arbitrary"}) for name, value in summary.items()}
    return xarray.Dataset(
        variables
        | {
            "sample": (("scan", "draw", *dims[1:]), drawn.numpy(), {"units": "arbitrary"}),
            "quantile": (("scan", "probability", *dims[1:]), quantiles_of(drawn, (0.25, 0.75)).numpy()),
            "residual": (("scan", "draw"), 1 + 0.01 * np.arange(54).reshape(9, 6)),
            "effective_samples": (("scan",), effective),
        },
        {"scan": np.arange(9), "probability": [0.25, 0.75], "subject": ("scan", np.arange(9) // 3)},
        {"title": TITLE, "store": store.fingerprint, "interval": 0.9, "samples": 6},
    )
