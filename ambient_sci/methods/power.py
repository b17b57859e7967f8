r"""Images of scans, brought to the power that was measured at each spatial frequency.

Whatever images look like, if they are right in distribution and :math:`x_i` is the one of scan :math:`i`, then

.. math:: \sum_{i, k \in b} |y_{ik}|^2 - 2 \sigma_{ik}^2 \approx \sum_{i, k \in b} |(A_i x_i)_k|^2

in every band :math:`b` of measured k-space; and masks that do not know what they measure leave as much power in the
positions of :math:`x` that a scan has not measured as in those that it has. Reconstructions and samples of a poor prior
have too little in both, above all in what was not measured: total variation a quarter. Expectation-maximisation brings
back :math:`(S / (S + \sigma^2))^2` of the deficit in a lap, at most, with :math:`S` the power of the signal: hardly
anything where noise exceeds it, which is most of k-space. So images are multiplied in k-space by

.. math:: g_b^2 = \frac{\sum |y|^2 - 2 \sigma^2}{\sum |A x|^2} \text{ where measured}, \qquad
          g_b^2 \, \frac{\langle |x_k|^2 \rangle_\text{measured}}{\langle |x_k|^2 \rangle_\text{not}} \text{ elsewhere.}

Their structure stays what it was. Bands are rings of equal width. What is measured and what is not are compared at
positions that some scans measure and others do not, since power may fall within a band. Bands whose signal the noise
hides are left alone. Nothing but measurements is read. For complex images ``(scan, channel, *spatial)`` on Cartesian
k-space (`Fourier`, `Sense`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.datasets.store import Store
from ambient_sci.methods.starts import chunks_of
from ambient_sci.operators.fourier import centred_fft, centred_ifft

__all__ = ["match_power"]

KINDS = ("fourier", "sense")
BANDS = 16  # up to Nyquist's frequency
MOST = 2.0  # times the amplitude, at most
CERTAIN = 3.0  # standard errors that the power of a signal is above zero


def match_power(store: Store, images: Tensor, scans: NDArray[np.int64], progress: bool = False) -> Tensor:
    """Bring the images of some scans to the power that these scans measured.

    Parameters
    ----------
    store
        The measurements.
    images
        One of each scan of the store, in normalised units.
    scans
        Numbers of those to learn the power from, and to change.
    progress
        Show a progress bar.

    Returns
    -------
    Tensor
        All images; those of other kinds of measurement as they were.
    """
    if store.kind not in KINDS or not images.is_complex():
        return images
    spatial = images.shape[2:]
    band, axes = _bands(spatial), len(spatial)
    names = ("values", "seen", "signal", "explained", "measured", "own", "missing", "others")
    sums = {name: torch.zeros(spatial, dtype=torch.float64) for name in names}  # over scans, at each position

    chunks = list(chunks_of(store, scans))
    for chunk in tqdm(chunks, desc="measured power", unit="batch", disable=not progress):
        m = store.read(chunk)
        rows = m.operator.rows.expand(m.y.shape)
        power, here = centred_fft(images[chunk], axes).abs().square(), _positions(m.operator.rows, spatial)
        parts = {
            "values": rows,
            "seen": m.y.abs().square(),
            "signal": m.y.abs().square() - 2 * m.noise**2 * rows,
            "explained": (m.operator(images[chunk]) * rows).abs().square(),
            "measured": here.expand(power.shape),
            "own": power * here,
            "missing": (1 - here).expand(power.shape),
            "others": power * (1 - here),
        }
        for name, part in parts.items():
            sums[name] += part.flatten(0, -axes - 1).double().sum(0)

    def in_bands(values: Tensor) -> Tensor:
        return torch.zeros(BANDS, dtype=values.dtype).scatter_add_(0, band.flatten(), values.flatten())

    tiny = torch.finfo(torch.float64).tiny
    times = (sums["measured"] + sums["missing"]).clamp_min(1)
    # position by position, so that it does not matter which of a band are measured more often
    own, others = in_bands(sums["own"] * sums["missing"] / times), in_bands(sums["others"] * sums["measured"] / times)
    signal, seen, values = (in_bands(sums[name]) for name in ("signal", "seen", "values"))
    gain = signal.clamp_min(0) / in_bands(sums["explained"]).clamp_min(tiny)
    elsewhere = torch.where(others > 0, gain * own / others.clamp_min(tiny), 1.0)
    # a sum of n squares of about Gaussian numbers is known to one part in the root of n
    certain = signal > CERTAIN * seen / values.clamp_min(1).sqrt()
    gain, elsewhere = (
        torch.where(certain, value.sqrt().clamp(1 / MOST, MOST), 1.0).float() for value in (gain, elsewhere)
    )
    matched = images.clone()
    for chunk in chunks:
        here = _positions(store.read(chunk).operator.rows, spatial)
        factor = here * gain[band] + (1 - here) * elsewhere[band]
        matched[chunk] = centred_ifft(factor * centred_fft(images[chunk], axes), axes)
    return matched


def _bands(spatial: tuple[int, ...]) -> Tensor:
    """Band of every position of k-space, whose centre is in the middle; corners belong to the outermost one."""
    axes = [(torch.arange(size) - size // 2) / (size / 2) for size in spatial]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    return (radius * BANDS).long().clamp_max(BANDS - 1)


def _positions(rows: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """Ones where a scan has measured k-space, ``(scan, 1, *spatial)``: the same for all of its coils."""
    return rows[:, :1].expand(len(rows), 1, *spatial)
