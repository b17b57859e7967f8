"""Images of every scan that are made once: what expectation-maximisation starts from, and what baselines learn from.

Regularisation and spectra are chosen on the measurements alone.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.baselines import l1_wavelet_batch, total_variation_batch, tune_held_out
from ambient_sci.config import EMStart
from ambient_sci.datasets.store import Store
from ambient_sci.distributed import share_out
from ambient_sci.measurement import Measurement
from ambient_sci.seeding import stream
from ambient_sci.stationary import fit_stationary

__all__ = ["REGULARISATIONS", "TUNED", "WAVELET", "chunks_of", "every_scan", "regularisation", "starting_images"]

CHUNK = 64
TUNED, FITTED = 16, 128  # scans on which a regularisation is chosen, and a spectrum fitted
WAVELET = "haar"  # with shifted grids it leaves the least error of the orthogonal wavelets, close to total variation
# for images of unit range and rows of unit norm
REGULARISATIONS: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
GROWTH, LARGEST = 50, 1e6  # of the grid, where its largest is the best; it overlaps with the last one
_GAUSSIAN = 0x6A  # purpose of a scan's stream


def starting_images(store: Store, kind: EMStart, seed: int, progress: bool) -> Tensor:
    """Images of every scan, ``(scan, channel, *spatial)``, in normalised units.

    ``"l1-wavelet"`` and ``"tv"`` are reconstructions with the regularisation that predicts held-out rows best;
    ``"gaussian"`` are posterior samples under a stationary Gaussian that is fitted to the measurements.
    """
    some = store.read(store.groups[0].scans[:FITTED])
    if kind == "gaussian":
        model = fit_stationary(some, seed=seed)

        def restore(m: Measurement) -> Tensor:
            return model.sample(m, stream(seed, _GAUSSIAN, int(m.index[0])))

        return every_scan(store, restore, "samples of a stationary Gaussian", progress)

    def reconstruct(m: Measurement, lam: float) -> Tensor:
        return total_variation_batch(m, lam) if kind == "tv" else l1_wavelet_batch(m, lam, wavelet=WAVELET)

    lam = regularisation(reconstruct, some[:TUNED])
    return every_scan(store, lambda m: reconstruct(m, lam), f"{kind} reconstructions", progress)


def regularisation(reconstruct: Callable[[Measurement, float], Tensor], m: Measurement) -> float:
    """Choose the regularisation that predicts held-out rows best.

    Among `REGULARISATIONS`, where the smallest is good enough, or above them: rows of large norm, as visibilities in Jy
    have, want more of it, in proportion to the square of the norm.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the best value")
        grid: tuple[float, ...] = REGULARISATIONS
        while (lam := tune_held_out(reconstruct, m, grid)) == grid[-1] and lam < LARGEST:
            grid = tuple(GROWTH * value for value in grid)
    return lam


def every_scan(store: Store, restore: Callable[[Measurement], Tensor], label: str, progress: bool) -> Tensor:
    """Restore all scans, some at a time, each process a part of them: ``(scan, channel, *spatial)``."""
    chunks = list(chunks_of(store, np.arange(len(store))))
    first = store.read(chunks[0][:1])
    images = torch.empty(len(store), *store.image_shape, dtype=first.operator.adjoint(first.y).dtype)
    share_out(chunks, lambda scans: restore(store.read(scans)), images, label if progress else None)
    return images


def chunks_of(store: Store, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Numbers of wanted scans, some of one size at a time."""
    for group in store.groups:
        scans = np.intersect1d(group.scans, wanted)
        yield from (scans[start : start + CHUNK] for start in range(0, len(scans), CHUNK))
