r"""What expectation-maximisation teaches with an image: what was measured more than what was filled in.

Posterior samples :math:`x_i \sim p_\theta(x \mid y_i)` are right where a scan has measured well, and repeat the prior
elsewhere. Learned as they are, they leave much of what is wrong with a prior as it was. Two changes of the loss bring
more of the measurements in, and leave the fixed point where it is.

**Weights.** Errors are weighted in the basis in which scans measure,

.. math:: \ell_i = \frac{\lambda(s)}{n} \sum_k W_{ik} \, |D(x_i + s n, s) - t_i|_k^2, \qquad
          W_{ik} = 1 + (1 - \alpha) \, c_k \, (M_{ik} - p_k), \quad c_k = \min(1 / p_k, c_\max),

where :math:`M_{ik}` is one if scan :math:`i` has measured position :math:`k` and zero if not, and :math:`p_k` the share
of scans that have: what was filled in weighs :math:`\alpha`, and all scans together one at every position. Of a wrong
correlation between two positions that scans measure with chance :math:`p`, independently, a lap mends a part
:math:`p^2` without weights, and :math:`p` with :math:`\alpha = 0`. Under the true prior, posterior samples of all scans
of one mask follow the prior again, whatever the mask, if masks do not know what they measure; so the mean of
:math:`x_k` given :math:`x + s n` is what any weights of masks lead to.

Bases are pixels (`Mask`), Cartesian k-space (`Fourier`, `Sense`), or the nearest positions of Cartesian k-space to a
trajectory or to spatial frequencies (`Nufft`, `Interferometer`). With other operators, and where all scans have
measured the same, all weights are one.

**Targets.** Where noise is not small against the signal, samples are a shrunk copy of what was measured, by
:math:`g = S / (S + v)` with powers :math:`S` of the signal and :math:`v` of the noise. Targets take a step towards the
data,

.. math:: t_i = x_i + \beta(s) \frac{A_i^H (y_i - A_i x_i)}{\|A_i\|^2}, \qquad \beta(s) = \frac{s^2}{s^2 + v_i},

with :math:`v_i` the mean variance of the noise over :math:`\|A_i\|^2`. Of a wrong correlation of such a position with
those that are known well, a lap mends a part :math:`g` with :math:`t_i = x_i`, and all of it with :math:`\beta = 1`.
Under the true prior :math:`(x_i, y_i)` is distributed like the image and its measurement, so that the rest
:math:`y_i - A_i x_i` is noise of mean zero whatever the sample is, and the mean of :math:`t_i` given :math:`x_i + s n`
is that of :math:`x_i`. The noise of targets is kept below that of the input by :math:`\beta`: below the noise level of
the scans, data have nothing to add.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.datasets.store import Store
from ambient_sci.denoise import per_image
from ambient_sci.distributed import share_out
from ambient_sci.measurement import Measurement
from ambient_sci.methods.clean import CLEAN
from ambient_sci.methods.starts import chunks_of
from ambient_sci.operators import Interferometer, LinearOperator, Nufft
from ambient_sci.operators.fourier import centred_fft
from ambient_sci.operators.solve import operator_norm

__all__ = ["DataSteps", "TargetWeights", "measured_positions", "target_weights"]

PIXELS, CARTESIAN, GRIDDED = ("mask",), ("fourier", "sense"), ("nufft", "interferometer")
MOST = 10.0  # c_max: rare positions would otherwise be most of the gradient
ITERATIONS = 10  # of the power method: a norm a little too small makes a step a little longer


class TargetWeights:
    r"""Weights of the errors of all scans of a store.

    Parameters
    ----------
    measured
        Positions that each scan has measured, ``(scan, 1 or channel, *spatial)``, of size one along axes that do not
        matter; bool.
    imputed
        The weight :math:`\alpha` of what was not measured.
    kspace
        Positions are those of centred k-space, not pixels.
    """

    def __init__(self, measured: Tensor, imputed: float, kspace: bool) -> None:
        self.measured, self.kspace = measured, kspace
        self._share = measured.float().mean(0)
        self._gain = (1 - imputed) * (1 / self._share).clamp(max=MOST)

    def of(self, scans: Tensor) -> Tensor:
        """Weights of some scans, ``(len(scans), 1 or channel, *spatial)``; one for images that are not of any."""
        weights = 1 + self._gain * (self.measured[scans.clamp_min(0)].float() - self._share)
        weights[scans == CLEAN] = 1
        return weights

    def norm(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Mean square over the image of errors ``(batch, channel, *spatial)`` with weights of `of`, ``(batch,)``."""

        def weighted(error: Tensor) -> Tensor:
            values = centred_fft(error, error.ndim - 2) if self.kspace else error
            return (weights * values.abs().square()).flatten(1).mean(1)

        return weighted


def target_weights(store: Store, imputed: float, directed: bool = True, progress: bool = False) -> TargetWeights | None:
    """Learn from the operators of a store what each scan has measured; None where it does not matter.

    Parameters
    ----------
    store
        The measurements, of which only operators are looked at.
    imputed
        Weight of what a scan has not measured, between 0 and 1 (all alike).
    directed
        See `measured_positions`.
    progress
        Show a progress bar.
    """
    if imputed == 1 or store.kind not in (*PIXELS, *CARTESIAN, *GRIDDED):
        return None
    chunks = list(chunks_of(store, np.arange(len(store))))
    parts = [
        measured_positions(store.read(scans).operator, store.image_shape, directed)
        for scans in tqdm(chunks, desc="measured positions", unit="batch", disable=not progress)
    ]
    shape = torch.broadcast_shapes(*(part.shape[1:] for part in parts))
    ordered = torch.from_numpy(np.argsort(np.concatenate(chunks)))
    measured = torch.cat([part.expand(-1, *shape) for part in parts])[ordered]
    if bool((measured == measured[:1]).all()):
        return None
    return TargetWeights(measured, imputed, store.kind not in PIXELS)


def measured_positions(operator: LinearOperator, image_shape: tuple[int, ...], directed: bool = True) -> Tensor:
    """Positions that scans have measured, ``(batch, 1 or channel, *spatial)``, bool.

    Parameters
    ----------
    operator
        One of the kinds that this module knows.
    image_shape
        ``(channel, *spatial)``.
    directed
        Images are complex: k-space has no symmetry, and each half of it counts for itself.
    """
    if operator.kind in PIXELS:
        return operator.rows > 0
    if operator.kind in CARTESIAN:
        return operator.rows.amax(1, keepdim=True) > 0
    assert isinstance(operator, Nufft | Interferometer)
    spatial = image_shape[1:]
    sizes = torch.tensor(spatial)
    found = torch.zeros(len(operator.trajectory), math.prod(spatial), dtype=torch.bool)
    for sign in (1,) if directed else (1, -1):
        cells = (sign * operator.trajectory * sizes / (2 * math.pi)).round().long() + sizes // 2
        flat = torch.zeros(cells.shape[:2], dtype=torch.long)
        for axis, size in enumerate(spatial):
            flat = flat * size + cells[..., axis] % size
        scan, sample = torch.nonzero(operator.weights > 0, as_tuple=True)
        found[scan, flat[scan, sample]] = True
    return found.reshape(-1, 1, *spatial)


class DataSteps:
    r"""Steps from the images of all scans of a store towards their data.

    Parameters
    ----------
    store
        The measurements.
    images
        One of each scan, ``(scan, channel, *spatial)``, in normalised units; or none at all.
    progress
        Show a progress bar.
    """

    def __init__(self, store: Store, images: Tensor, progress: bool = False) -> None:
        self.store, self.progress = store, progress
        self.steps = images.new_zeros(len(store), *images.shape[1:])
        self._scales = torch.zeros(len(store), 2)  # squared norms, and variances of steps
        self._share_out(lambda some: _scales(store.read(some), images), self._scales, np.arange(len(images)), "norms")
        self.renew(images, np.arange(len(images)))

    def renew(self, images: Tensor, scans: NDArray[np.int64]) -> None:
        """Take the steps again of scans whose images have changed."""

        def step(some: NDArray[np.int64]) -> Tensor:
            m = self.store.read(some)
            back = m.operator.adjoint(m.y - m.operator(images[some]))
            return back / per_image(self._scales[some, 0], back)

        self._share_out(step, self.steps, scans, "steps towards the data")

    def of(self, scans: Tensor, sigma: Tensor) -> Tensor:
        """Look up the steps of scans at levels ``(len(scans),)``, like the images; zeros for those of none."""
        share = sigma**2 / (sigma**2 + self._scales[scans, 1])
        return per_image(torch.where(scans == CLEAN, 0, share), self.steps) * self.steps[scans]

    def _share_out(
        self, work: Callable[[NDArray[np.int64]], Tensor], result: Tensor, scans: NDArray[np.int64], label: str
    ) -> None:
        share_out(list(chunks_of(self.store, scans)), work, result, label if self.progress else None)


def _scales(m: Measurement, images: Tensor) -> Tensor:
    """Squared norms of the operators, and the mean variance of the noise over them, ``(batch, 2)``."""
    generator = torch.Generator().manual_seed(0)
    norm = operator_norm(m.operator, images.shape[1:], ITERATIONS, generator, images.dtype)
    square = norm.square().clamp_min(torch.finfo(norm.dtype).tiny)  # a scan may have measured nothing
    measured = m.operator.rows.expand_as(m.y).real > 0
    variance = torch.where(measured, m.noise.square(), 0).flatten(1).sum(1) / measured.flatten(1).sum(1).clamp_min(1)
    return torch.stack([square, variance / square], 1)
