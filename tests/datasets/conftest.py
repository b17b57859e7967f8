import numpy as np
import pytest
import torch

from ambient_sci.measurement import Measurement
from ambient_sci.operators import Fourier, Gaussian, Identity, Mask, Matrix, Sense


@pytest.fixture(params=["zarr", "h5"])
def container(request):
    """Both containers, by file ending."""
    return request.param


@pytest.fixture(scope="session")
def images():
    """Smooth blobs, (6, 16, 12), in unit range."""
    y, x = np.mgrid[-1:1:16j, -1:1:12j]
    rng = np.random.default_rng(0)
    return np.stack([np.exp(-3 * ((x - a) ** 2 + (y - b) ** 2)) for a, b in rng.uniform(-0.4, 0.4, (6, 2))])


def _draw(kind, batch=5, dtype=torch.complex64, seed=0):
    """A measurement of random numbers with an operator of a kind."""
    g = torch.Generator().manual_seed(seed)
    real = dtype.to_real()
    mask = (torch.rand(batch, 1, 1, 12, generator=g) < 0.5).to(real)
    maps = torch.randn(batch, 3, 16, 12, generator=g, dtype=dtype)
    operator = {
        "sense": lambda: Sense(mask, maps, calibration=2),
        "fourier": lambda: Fourier(mask, (16, 12), calibration=2),
        "mask": lambda: Mask((torch.rand(batch, 1, 16, 12, generator=g) < 0.5).to(real)),
        "gaussian": lambda: Gaussian(7, (1, 16, 12), torch.arange(batch) + 5),
        "structured": lambda: Gaussian(7, (1, 16, 12), torch.arange(batch) + 5, structured=True),
        "matrix": lambda: Matrix(torch.randn(batch, 7, 192, generator=g, dtype=dtype), (1, 16, 12)),
        "identity": lambda: Identity((2, 16, 12), batch=batch),
    }[kind]()
    channels = 2 if kind == "identity" else 1
    complex_ = kind in ("sense", "fourier", "matrix")
    x = torch.randn(batch, channels, 16, 12, generator=g, dtype=dtype if complex_ else real)
    noise = 0.1 + torch.rand(batch, generator=g, dtype=real)
    scale = 1 + torch.rand(batch, generator=g, dtype=real)
    return Measurement(operator(x), operator, noise, scale=scale), x


@pytest.fixture(scope="session")
def draw():
    """Function that measures random numbers with an operator of a kind."""
    return _draw
