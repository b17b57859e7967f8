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

    from ambient_sci.audit import PriorAudit
    from ambient_sci.evaluate.held_out import PriorValidation

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


@pytest.fixture
def validation() -> "PriorValidation":
    """What validating a prior on five scans could find; scan 12 is not explained."""
    import xarray

    from ambient_sci.evaluate.held_out import PriorValidation

    rng = np.random.default_rng(0)
    coords = {
        "scan": [3, 7, 9, 12, 20],
        "band": ["all", "0.125 to 0.25", "above 0.375"],
        "level": [0.5, 0.9, 0.95],
    }
    sizes = {name: len(values) for name, values in coords.items()}
    variables = {
        name: (axes, rng.uniform(0.5, 1.5, [sizes[axis] for axis in axes]))
        for name, axes in PriorValidation.axes.items()
    }
    variables["values"] = (("scan", "band"), rng.integers(10, 99, (5, 3)))
    variables["coverage"] = (("scan", "band", "level"), rng.uniform(0.4, 1, (5, 3, 3)))
    variables["ratio"][1][0, 2] = np.nan  # a scan without hidden values in a band
    variables["flagged"] = (("scan",), np.arange(5) == 3)
    variables["band_ratio"] = (("band",), np.array([1.02, 0.98, 1.31]))
    variables["band_p_value"] = (("band",), np.array([0.2, 0.6, 1e-5]))
    return PriorValidation(
        xarray.Dataset(variables, coords, {"title": "<i>t</i>", "prior": "0123", "steps": 4}), 1.1, 0.1
    )


@pytest.fixture
def audit() -> "PriorAudit":
    """What auditing a prior with six images, two of which copy scan 31, could find."""
    import xarray

    from ambient_sci.audit import Membership, PriorAudit
    from ambient_sci.audit.result import QUANTILES
    from ambient_sci.audit.statistics import separate

    rng = np.random.default_rng(1)
    coords = {"space": ["pixels"], "image": np.arange(6), "scan": np.arange(9), "quantile": list(QUANTILES)}
    coords["end"] = ["low", "high"]
    sizes = {name: len(values) for name, values in coords.items()}
    variables = {
        name: (axes, rng.uniform(0.2, 0.8, [sizes[axis] for axis in axes])) for name, axes in PriorAudit.axes.items()
    }
    nearest = np.array([[4, 31, 2, 31, 8, 8]])
    variables |= {"nearest": (("space", "image"), nearest), "copy": (("space", "image"), nearest == 31)}
    variables["p_value"] = (("space", "image"), np.where(nearest == 31, 1e-9, 0.5))
    variables["held_nearest"] = (("space", "scan"), rng.integers(0, 40, (1, 9)))
    variables["auc_p_value"] = (("space",), np.array([1e-4]))
    variables["residual"] = (("image",), np.full(6, np.nan))
    members, others = rng.uniform(0, 1, 30), rng.uniform(0.2, 1.2, 9)
    attack = separate(-members, -others)
    pairs = (rng.random((2, 6, 1, 10, 8)) * np.exp(1j)).astype(np.complex64)
    order = np.array([1, 3, 0, 2, 4, 5])
    dataset = xarray.Dataset(variables, coords, {"training_scans": 40, "prior": "0123"})
    return PriorAudit(dataset, Membership("denoising", members, others, attack, attack), pairs, order)
