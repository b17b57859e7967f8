"""Methods that learning from measurements is compared with, and what any training can be mixed with or begin from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ambient_sci.config import TrainConfig
from ambient_sci.datasets import simulate
from ambient_sci.posterior.ambient import restore
from ambient_sci.training import train

Blobs = Callable[..., np.ndarray]


class Gated(nn.Module):
    """A network of 4 x 4 images with other weights for pixels that are missing than for those that are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.seen, self.missing = nn.Linear(64, 16), nn.Linear(64, 16)
        for values in (*self.seen.parameters(), *self.missing.parameters()):
            nn.init.zeros_(values)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        image, _, mask = x.flatten(2).unbind(1)
        hidden = self.hidden(image)
        return (mask * self.seen(hidden) + (1 - mask) * self.missing(hidden)).reshape(-1, 1, 4, 4)


def test_naive_learns_nothing_of_what_a_scan_has_not_measured(tmp_path: Path, small: dict[str, Any]) -> None:
    """Every image is a multiple of one: what is missing follows from the rest, if the loss ever asks for it."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (100, 1, 1)) * rng.choice([-1, 1], (4, 4))
    store = simulate(images, tmp_path / "scans.zarr", operator="mask", keep=0.5, noise=0.0)
    m, truth = store.read(slice(None)), store.references(slice(None))
    options = {**small, "images": 3200, "warmup": 100, "checkpoint": 3200}
    errors = {}
    for method in ("naive", "ambient"):
        config = TrainConfig(store=store.path, out=tmp_path / method, method=method, **options)
        prior = train(config, network=Gated(), progress=False)
        missing = m.operator.rows == 0
        errors[method] = float((restore(prior.denoiser, m) - truth)[missing].norm() / truth[missing].norm())  # type: ignore[arg-type]
    assert errors["naive"] > 0.999  # that of zeros, which is where the network begins
    assert errors["ambient"] < 0.6
