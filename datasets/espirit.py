r"""Coil sensitivity maps from a fully measured centre of k-space: ESPIRiT.

Every patch of k-space, :math:`K` samples of each of :math:`C` coils, lies in a small space, since the coils see one
image (Uecker et al. 2014, Magn. Reson. Med. 71:990). The patches of the calibration block are the rows of a matrix,
whose singular vectors above a threshold, :math:`v_k`, span it. In image space the projection on them is, at a pixel
:math:`r`, a small matrix,

.. math:: G_{cd}(r) = \frac{1}{K} \sum_{\delta} e^{2\pi i r \delta / N} \sum_{i - j = \delta} P_{ci, dj},
          \qquad P = \sum_k v_k v_k^H,

whose eigenvector of eigenvalue one is the coils' sensitivity there, normalised and up to a phase,

.. math:: G(r) \, S(r) = S(r), \qquad \sum_c |S_c(r)|^2 = 1 .

Where no eigenvalue is near one there is no image. If a part of an object lies outside the field of view and folds back
into it, two have eigenvalue one: a second *set* of maps.

The sum over :math:`\delta` has few terms, :math:`(2 k - 1)^d` for kernels :math:`k` wide, whatever the number of
kernels and the size of the image, and is done axis by axis. The eigenvectors come from squaring the matrices,
:math:`G^{2^m} \to \lambda^{2^m} S S^H`, which takes :math:`m` steps instead of the :math:`2^m` of the power iteration.
Everything happens one line of pixels at a time, in cache.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = ["SMALLEST", "eigenmaps", "estimate_maps", "soft_weight"]

SMALLEST = 8
"""Calibration samples along each axis that there must be, or all that the image has, for the patches to be many."""

_SQUARINGS = 6
_THRESHOLDS = (0.02, 0.01)  # without and with a noise level: what is above the noise are coils, down to small values


def estimate_maps(
    block: NDArray[np.complexfloating[Any]],
    shape: Sequence[int],
    crop: float = 0.95,
    sets: int = 1,
    soft: bool = False,
    noise_std: float = 0.0,
) -> NDArray[np.complex64]:
    """Coil sensitivity maps by ESPIRiT.

    Parameters
    ----------
    block
        Calibration block: fully measured, centred k-space, ``(coil, *width)``.
    shape
        Spatial shape of the image.
    crop
        Pixels whose eigenvalue is below this are taken to be outside the image; their maps are zero.
    sets
        Number of sets of maps.
    soft
        Let maps fall to zero smoothly around ``crop``, by `soft_weight`, instead of at once.
    noise_std
        Standard deviation of the block's noise in each real component. Singular values then count if they are above
        those of noise, and without it if they are above a fiftieth of the largest.

    Returns
    -------
    ndarray
        ``(coil, *shape)``, or ``(set, coil, *shape)`` for several sets, complex64, of unit root sum of squares or zero
        (between the two if ``soft``). Their phase is relative to the combination of coils that holds most of the
        block's energy, which unlike a single coil has signal everywhere.

    Raises
    ------
    DataError
        If the block is too small, or no pixel has an eigenvalue above ``crop``.
    """
    coils, *width = block.shape
    if coils == 1 and sets == 1:
        return np.ones((1, *shape), np.complex64)
    if any(got < min(SMALLEST, size) for got, size in zip(width, shape, strict=True)):
        raise DataError(
            f"coil maps need a fully measured centre of at least {SMALLEST} samples along every axis, got "
            f"{min(width)}; give maps, or the width of the calibration block if it is known to be larger"
        )
    if not 1 <= sets <= coils:
        raise DataError(f"sets of maps must be between 1 and the {coils} coils, got {sets}")
    peak = float(np.abs(block).max()) or 1.0  # squares of small units would not be single precision's
    samples, noise_std = torch.from_numpy((block / peak).astype(np.complex64)), noise_std / peak
    threshold = _THRESHOLDS[noise_std > 0]
    vectors, values = eigenmaps(samples, shape, threshold=threshold, sets=sets, noise_std=noise_std)
    weight = soft_weight(values, crop) if soft else (values > crop).to(values.dtype)
    if not bool(weight.any()):
        raise DataError(
            "ESPIRiT found no coil maps in the calibration block: its samples are inconsistent or all noise"
        )
    flat = samples.reshape(coils, -1)
    principal = torch.linalg.eigh(flat @ flat.mH)[1][:, -1]
    common = torch.einsum("c,sc...->s...", principal.conj(), vectors)
    phase = torch.polar(weight, -common.angle())
    maps: NDArray[np.complex64] = (vectors * phase[:, None]).numpy()
    return maps[0] if sets == 1 else maps


def soft_weight(eigenvalues: Tensor, crop: float) -> Tensor:
    r"""Weight of maps, a smooth step where the root of the eigenvalue is ``crop``.

    .. math:: w = \frac12 + \frac{t}{1 + t^2}, \qquad t = \frac{\sqrt \lambda - c}{1 - c} \in [-1, 1]

    so that an image may fade out at its border (Uecker and Lustig 2017, Magn. Reson. Med. 77:1201).
    """
    t = ((eigenvalues.clamp_min(0).sqrt() - crop) / max(1 - crop, 1e-6)).clamp(-1, 1)
    return 0.5 + t / (1 + t**2)


def eigenmaps(
    block: Tensor,
    shape: Sequence[int],
    kernel: int | None = None,
    threshold: float = 0.02,
    sets: int = 1,
    noise_std: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Largest eigenvalues of :math:`G(r)` and their vectors, everywhere.

    Parameters
    ----------
    block
        Calibration block, ``(coil, *width)``, complex.
    shape
        Spatial shape of the image, of one to three axes.
    kernel
        Width of the patches along every axis, along short ones half the block's; by default 6, and 5 in 3-D, where
        patches have many samples.
    threshold
        Singular vectors count whose value is above this part of the largest.
    sets
        How many eigenvalues.
    noise_std
        With it, singular values must also be above what noise of that level in each real component gives,
        :math:`\sqrt 2 \sigma (\sqrt{\text{patches}} + \sqrt{C K})`, the edge of the spectrum of a random matrix.

    Returns
    -------
    vectors : Tensor
        ``(set, coil, *shape)``, of unit norm, their phase arbitrary.
    values : Tensor
        ``(set, *shape)``, between 0 and 1, the largest set first.
    """
    coils = len(block)
    wanted = kernel or (6 if block.ndim < 4 else 5)
    kernels = [wanted if width >= SMALLEST else min(wanted, (width + 1) // 2) for width in block.shape[1:]]
    table = _lags(_projection(block, kernels, threshold, noise_std), coils, kernels)
    parts = [_largest(matrices, sets) for matrices in _lines(table, shape)]
    vectors, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return vectors.permute(2, 1, 0).reshape(sets, coils, *shape), values.mT.reshape(sets, *shape)


def _projection(block: Tensor, kernels: Sequence[int], threshold: float, noise_std: float) -> Tensor:
    """Projection on the space of patches, ``(coil * K, coil * K)``."""
    patches = block
    for axis, kernel in enumerate(kernels):
        patches = patches.unfold(1 + axis, kernel, 1)  # (coil, *position, *kernel)
    patches = patches.movedim(0, len(kernels)).flatten(len(kernels)).flatten(0, len(kernels) - 1)
    # rows of the matrix are v^H, and patches are what the projection is on
    squares, vectors = torch.linalg.eigh(patches.mT @ patches.conj())
    count, length = patches.shape
    edge = math.sqrt(2) * noise_std * (count**0.5 + length**0.5)
    least = max(threshold * float(squares[-1].clamp_min(0).sqrt()), edge)
    vectors = vectors[:, squares > least**2]
    projection: Tensor = vectors @ vectors.mH
    return projection


def _lags(projection: Tensor, coils: int, kernels: Sequence[int]) -> Tensor:
    """Sum over pairs of places with the same difference, ``(coil, coil, *[2 kernel - 1])``."""
    size, lags = math.prod(kernels), [2 * kernel - 1 for kernel in kernels]
    index = torch.zeros(size, size, dtype=torch.long)
    for place, kernel, count in zip(
        torch.meshgrid(*map(torch.arange, kernels), indexing="ij"), kernels, lags, strict=True
    ):
        line = place.flatten()
        index = index * count + line[:, None] - line + kernel - 1
    pairs = projection.reshape(coils, size, coils, size).transpose(1, 2).reshape(coils * coils, -1)
    table = pairs.new_zeros(coils * coils, math.prod(lags))
    table.index_add_(1, index.flatten(), pairs / size)
    return table.reshape(coils, coils, *lags)


def _lines(table: Tensor, shape: Sequence[int]) -> Iterator[Tensor]:
    """Matrices ``G`` of one line of pixels after the other, ``(pixel, coil, coil)``."""
    size, *rest = shape
    lags = table.shape[2]
    place, lag = torch.arange(size) - size // 2, torch.arange(lags) - lags // 2
    angle = 2 * math.pi / size * torch.outer(place, lag).to(torch.float64)
    phases = torch.polar(torch.ones_like(angle), angle).to(table)
    if not rest:
        yield (table @ phases.mT).permute(2, 0, 1).contiguous()
        return
    for phase in phases:
        yield from _lines(torch.einsum("l,cdl...->cd...", phase, table), rest)


def _largest(matrices: Tensor, sets: int) -> tuple[Tensor, Tensor]:
    """Vectors ``(pixel, coil, set)`` and values ``(pixel, set)`` of Hermitian matrices' largest eigenvalues."""
    power = matrices
    for _ in range(_SQUARINGS):
        trace = power.diagonal(dim1=1, dim2=2).real.sum(1).clamp_min(torch.finfo(power.real.dtype).tiny)
        power = power / trace[:, None, None]
        power = power @ power
    # columns of the power, the longest first, span what is left of it (a pivoted Cholesky factor)
    found: list[Tensor] = []
    for _ in range(sets):
        longest = power.diagonal(dim1=1, dim2=2).real.argmax(1)
        column = power.take_along_dim(longest[:, None, None], 2)
        vector = matrices @ column
        for other in found:
            vector = vector - other * (other.mH @ vector)
        vector = torch.nn.functional.normalize(vector, dim=1)
        found.append(vector)
        power = power - vector @ (vector.mH @ power)
    vectors = torch.cat(found, 2)
    small = vectors.mH @ (matrices @ vectors)
    if sets == 1:
        return vectors, small[:, :, 0].real
    values, turn = torch.linalg.eigh(small)
    return vectors @ turn.flip(2), values.flip(1)
