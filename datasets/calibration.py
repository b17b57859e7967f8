r"""What measured k-space says of itself: where it was measured, its fully measured centre, its principal coils.

**Centre off the grid.** ESPIRiT (`ambient_sci.datasets.espirit`) wants a block of k-space on the grid. Samples are
dense enough for one as far out as every point of the grid has a sample no farther away than any place has a point of
the grid, :math:`\sqrt d / 2` cells of :math:`2 \pi / N`, whatever the trajectory. The block is that of the image with
as few pixels which explains the samples of the centre best, by least squares.

**Coil compression.** The :math:`V` principal components of the coils, orthonormal combinations that keep the most
energy of what was measured (Buehrer et al. 2007, Magn. Reson. Med. 57:1131; Huang et al. 2008, Magn. Reson. Imaging
26:133),

.. math:: y' = U^H y, \qquad Y Y^H = U \Lambda U^H .

White noise stays white.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ambient_sci.operators import Nufft, conjugate_gradient
from ambient_sci.operators.fourier import centred_fft

__all__ = ["calibration_width", "centre", "compression", "gridded_centre", "nyquist_width", "sampled"]

Samples = NDArray[np.complexfloating[Any]]
_MARGIN = 8  # cells beyond the block that are solved for along with it, since samples do not end at its border


def sampled(kspace: Samples) -> NDArray[np.bool_]:
    """Where any coil has a sample that is not exactly zero, ``(coil, *spatial) -> spatial``."""
    return np.asarray((kspace != 0).any(0))


def centre(array: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """Block in the middle of the last axes; the sample of frequency zero stays in the middle."""
    starts = [length // 2 - kept // 2 for kept, length in zip(size, array.shape[-len(size) :], strict=True)]
    block: tuple[Any, ...] = tuple(slice(start, start + kept) for start, kept in zip(starts, size, strict=True))
    return np.asarray(array[(..., *block)])


def calibration_width(mask: NDArray[np.bool_]) -> int:
    """Width of the largest fully measured centred block, counted as an operator's ``calibration``.

    Axes along which sampling does not vary do not limit it, unless it varies along none.
    """
    varying = [axis for axis in range(mask.ndim) if (mask != mask.take([0], axis)).any()]
    most = min(mask.shape[axis] for axis in varying or range(mask.ndim))
    width = 0
    while width < most and centre(mask, [min(width + 1, size) for size in mask.shape]).all():
        width += 1
    return width


def nyquist_width(trajectory: NDArray[np.floating[Any]], shape: Sequence[int], most: int) -> int:
    """Width of the largest centred block of k-space in which samples are as dense as the grid.

    Parameters
    ----------
    trajectory
        Radians per pixel, ``(sample, axis)``.
    shape
        Spatial shape of the image.
    most
        Where to stop looking.

    Returns
    -------
    int
        In cells of the image's grid, along every axis.
    """
    most = min(most, *shape)
    places = np.stack(np.meshgrid(*[np.arange(most) - most // 2] * len(shape), indexing="ij"), -1).reshape(
        -1, len(shape)
    )
    apart = KDTree(trajectory * np.asarray(shape) / (2 * np.pi)).query(places)[0]
    empty = places[apart > math.sqrt(len(shape)) / 2 * (1 + 1e-3)]
    # the narrowest block that a place is in
    return int(np.where(empty < 0, -2 * empty, 2 * empty + 1).max(1).min()) - 1 if len(empty) else most


def gridded_centre(
    kspace: Samples,
    trajectory: NDArray[np.floating[Any]],
    shape: Sequence[int],
    width: int,
    weights: NDArray[np.floating[Any]] | None = None,
    iterations: int = 30,
) -> NDArray[np.complex64]:
    """Centre of k-space on the grid, from samples off it.

    Parameters
    ----------
    kspace
        ``(coil, sample)``.
    trajectory
        Radians per pixel, ``(sample, axis)``.
    shape
        Spatial shape of the image.
    width
        Of the block along every axis.
    weights
        Density compensation, ``(sample,)``, with which fewer iterations are needed.
    iterations
        Of conjugate gradients.

    Returns
    -------
    ndarray
        Calibration block, ``(coil, *[width])``, of the normalisation of k-space on a grid of ``shape``.
    """
    size = [min(width + _MARGIN, full) for full in shape]
    stretched = trajectory * (np.asarray(shape) / np.asarray(size))
    near = (np.abs(stretched) <= np.pi).all(1)
    root = np.ones(int(near.sum())) if weights is None else np.sqrt(weights[near] / weights[near].max())
    A = Nufft(
        torch.from_numpy(stretched[near].astype(np.float32))[None],
        size,
        None,
        torch.from_numpy(root.astype(np.float32))[None],
    )
    y = torch.from_numpy((root * kspace[:, near]).astype(np.complex64))[None]
    image = conjugate_gradient(A.gram, A.adjoint(y), iterations=iterations)[0]
    block: NDArray[np.complex64] = centre(centred_fft(image, len(size)).numpy(), [width] * len(size))
    return block


def compression(samples: Samples, coils: int) -> tuple[NDArray[np.complex128], float]:
    """Combine coils to fewer.

    Parameters
    ----------
    samples
        Measured samples, ``(coil, n)``.
    coils
        Number of virtual coils, at most that of coils.

    Returns
    -------
    matrix : ndarray
        Orthonormal rows, ``(virtual coil, coil)``.
    energy : float
        Part of the samples' energy that the virtual coils have.
    """
    whole = samples.astype(np.complex128)
    energies, vectors = np.linalg.eigh(whole @ whole.conj().T)
    return vectors[:, ::-1][:, :coils].conj().T, float(energies[::-1][:coils].sum() / energies.sum())
