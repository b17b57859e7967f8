r"""Non-Cartesian k-space: the non-uniform discrete Fourier transform, with or without coils.

.. math:: y_{cj} = w_j N^{-1/2} \sum_n S_{cn} x_n e^{-i k_j \cdot (n - c)}, \qquad c = \lfloor \text{size}/2 \rfloor

with samples at :math:`k_j` in radians per pixel, :math:`N` pixels in all and weights :math:`w_j \ge 0`; on the points
of a grid it is the transform of `ambient_sci.operators.fourier`. Images ``(batch, channel, *spatial)``, complex;
trajectories ``(batch, samples, ndim)`` whose last axis follows the spatial axes; coil sensitivity maps ``(batch, coil,
*spatial)``; measurements ``(batch, channel or coil, samples)``. Every scan has its own trajectory; shorter ones are
filled up with samples of weight zero, which count as not measured.

The gram operator needs no samples: without coils :math:`A^H A` is a convolution,

.. math:: (A^H A x)_n = \sum_m t_{n-m} x_m, \qquad t_d = N^{-1} \sum_j w_j^2 e^{i k_j \cdot d},

a Toeplitz matrix, and that is a part of a circulant one of twice the size (Fessler et al. 2005, IEEE Trans. Signal
Process. 53:3393). Of its spectrum :math:`\kappa`, which is real, the even and the odd frequencies are those of
transforms of the simple size,

.. math:: A^H A = 2^{-d} \sum_{p \in \{0,1\}^d} \bar m_p F^{-1} \kappa_p F m_p, \qquad m_p = e^{-i \pi p \cdot n / N},

so that nothing of twice the size is ever transformed, and the work stays in cache.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.backends import Backend, choose
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_shape, drop
from ambient_sci.operators.parallel import SumWork, own, share_sum
from ambient_sci.operators.sense import check_maps, combine, seen

__all__ = ["Nufft"]


class Nufft(LinearOperator):
    r"""Non-uniform Fourier transform.

    Parameters
    ----------
    trajectory
        Where k-space was sampled, in radians per pixel, ``(batch, samples, ndim)``, float32 or float64. Column ``a``
        belongs to spatial axis ``a``; a period is :math:`2\pi`. `ambient_sci.operators.trajectories` makes them,
        and `ambient_sci.operators.units` turns other units into this one.
    shape
        Spatial shape of the image, of one to three axes.
    maps
        Coil sensitivity maps, ``(batch, coil, *spatial)``, complex, or of several sets, ``(batch, set, coil,
        *spatial)`` for images of as many channels (`Sense` says more); none by default.
    weights
        What each sample is multiplied with, ``(batch, samples)``, 0 or more: one by default, zero where nothing was
        measured. Inverse standard deviations whiten measurements that are multiplied with them, too. The square root of
        a `density_compensation` makes of ``A.H(weights * y)`` the compensated gridding of samples ``y``.
    readout
        How many consecutive samples belong to one readout (spoke, interleave); `thin` loses whole readouts.
    backend
        ``"finufft"`` (CPU), ``"torchkbnufft"`` (any device) or ``"auto"``, which chooses by device.
    tolerance
        Relative error of FINUFFT; by default 1e-4 in single and 1e-12 in double precision. In single precision less
        than 3e-5 is not to be had. Torchkbnufft's error is about 5e-5 anyway.

    Notes
    -----
    The trajectory is a constant of the operator: gradients with respect to it do not come from autograd (neither of the
    two libraries has them) but from `trajectory_gradient`.
    """

    kind = "nufft"

    def __init__(
        self,
        trajectory: Tensor,
        shape: Sequence[int],
        maps: Tensor | None = None,
        weights: Tensor | None = None,
        readout: int = 1,
        backend: str = "auto",
        tolerance: float | None = None,
    ) -> None:
        self.trajectory = trajectory
        self.shape = as_shape(shape)
        self.maps = maps
        self.weights = trajectory.new_ones(trajectory.shape[:2]) if weights is None else weights
        self.readout = int(readout)
        self.backend = backend
        self.tolerance = tolerance
        self._check_arguments()

    def _check_arguments(self) -> None:
        k, shape, maps, weights = self.trajectory, self.shape, self.maps, self.weights
        if len(shape) > 3:
            raise DataError(f"shape must be one to three sizes, got {shape}")
        if not k.is_floating_point() or k.ndim != 3 or k.shape[2] != len(shape) or not bool(k.isfinite().all()):
            want = f"finite real (batch, samples, {len(shape)}) in radians per pixel"
            raise DataError(f"trajectory must be {want}, got {k.dtype} of shape {tuple(k.shape)}")
        if bool((k.abs() > 3 * math.pi).any()):
            raise DataError(
                f"trajectory must be in radians per pixel, between -pi and pi (3 pi at most), got "
                f"{float(k.abs().max()):.4g}: ambient_sci.operators.units converts others"
            )
        if maps is not None:
            check_maps(maps, k.shape[0], len(shape))
            if tuple(maps.shape[-len(shape) :]) != shape:
                raise DataError(f"maps must be of the shape of the image, {shape}, got {tuple(maps.shape)}")
        if (
            weights.is_complex()
            or weights.shape != k.shape[:2]
            or not bool(((weights >= 0) & weights.isfinite()).all())
        ):
            want = f"0 or more, finite, real, of shape {tuple(k.shape[:2])}"
            raise DataError(f"weights must be {want}, got {weights.dtype} of shape {tuple(weights.shape)}")
        if self.readout < 1 or k.shape[1] % self.readout:
            raise DataError(f"readout must divide the number of samples, {k.shape[1]}, got {self.readout}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise DataError(f"tolerance must be between 0 and 1, got {self.tolerance}")
        choose(self.backend, k.device)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Trajectory, weights and, where there are coils, their maps."""
        own = {"trajectory": self.trajectory, "weights": self.weights}
        return own if self.maps is None else {**own, "maps": self.maps}

    @property
    def settings(self) -> dict[str, Any]:
        """Image shape, readout length, backend and tolerance."""
        return {
            "shape": list(self.shape),
            "readout": self.readout,
            "backend": self.backend,
            "tolerance": self.tolerance,
        }

    @property
    def rows(self) -> Tensor:
        """Ones where the weight is above zero, ``(batch, 1, samples)``."""
        return (self.weights > 0).to(self.trajectory.dtype)[:, None]

    @property
    def coils(self) -> int:
        """Number of receive coils; one where there are no maps."""
        return 1 if self.maps is None else int(self.maps.shape[-1 - len(self.shape)])

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Coils, or else channels, and samples."""
        return (channels if self.maps is None else self.coils, self.trajectory.shape[1])

    # Made once and where they are needed; plans hold pointers and do not travel.

    @cached_property
    def _transform(self) -> Backend:
        return choose(self.backend, self.trajectory.device)(self.trajectory, self.shape, self._tolerance)

    @property
    def _tolerance(self) -> float:
        return self.tolerance or (1e-4 if self.trajectory.dtype == torch.float32 else 1e-12)

    @cached_property
    def _factor(self) -> Tensor:
        return (self.weights.to(self.trajectory.dtype) / math.sqrt(math.prod(self.shape)))[:, None]

    @cached_property
    def _sets(self) -> Tensor | None:
        """Maps with the axis of their sets, ``(batch, set, coil, *spatial)``."""
        return self.maps if self.maps is None or self.maps.ndim > 2 + len(self.shape) else self.maps[:, None]

    @cached_property
    def _spectra(self) -> list[Tensor]:
        r"""Spectra :math:`2^{-d} \kappa_p / N`, each ``(batch, 1, *spatial)``, in the order of `_parities`.

        Complex, though they are real, since complex numbers multiply complex ones without a conversion.
        """
        double = [2 * size for size in self.shape]
        # needed once, so in double precision and with a smaller error than the transforms
        backend = choose(self.backend, self.trajectory.device)
        exact = backend(self.trajectory.double(), double, min(self._tolerance, 1e-7))
        psf = exact.adjoint(self._factor.to(torch.complex128), None, self._factor.double())
        axes = tuple(range(2, psf.ndim))
        for axis in axes:
            psf.select(axis, 0).zero_()  # never needed, and without it the spectrum is real
        spectrum = torch.fft.fftn(torch.fft.ifftshift(psf, dim=axes), dim=axes).real / math.prod(double)
        every = (slice(parity, None, 2) for parity in (0, 1))
        return [
            spectrum[(..., *part)].to(self.trajectory.dtype.to_complex()).contiguous()
            for part in itertools.product(list(every), repeat=len(axes))
        ]

    @cached_property
    def _parities(self) -> list[tuple[Tensor, Tensor]]:
        """Phases :math:`m_p` and their conjugates, each ``(*spatial)``."""
        phases = []
        for parity in itertools.product((0, 1), repeat=len(self.shape)):
            phase = torch.ones((), dtype=torch.complex128)
            for p, size in zip(parity, self.shape, strict=True):
                phase = phase[..., None] * torch.exp(-1j * math.pi * p * torch.arange(size, dtype=torch.float64) / size)
            phase = phase.to(self.trajectory.device, self.trajectory.dtype.to_complex())
            phases.append((phase, phase.conj().resolve_conj()))
        return phases

    def __getstate__(self) -> dict[str, Any]:
        made = ("_transform", "_factor", "_sets", "_spectra", "_parities")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def _forward(self, x: Tensor) -> Tensor:
        return self._transform.forward(x, self._sets, self._factor)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._transform.adjoint(y, self._sets, self._factor)

    def _gram(self, x: Tensor) -> Tensor:
        pixels = 2 ** len(self.shape) * math.prod(self.shape)
        return share_sum(self._gram_work(), x, self.coils, pixels, torch.empty_like(x))

    def _gram_work(self) -> SumWork:
        maps, every = self._sets, self._spectra

        def work(x: Tensor, scans: slice, coils: range, total: Tensor) -> None:
            spectra = [own(spectrum, scans) for spectrum in every]
            if maps is None:
                total.copy_(self._convolve(x, spectra))
                return
            total.zero_()
            for coil in coils:
                one = own(maps, scans)[:, :, coil : coil + 1]
                combine(total, self._convolve(seen(x, one), spectra), one[:, :, 0])
            total.conj_physical_()

        return work

    def _convolve(self, x: Tensor, spectra: list[Tensor]) -> Tensor:
        axes = tuple(range(2, x.ndim))

        def convolve(image: Tensor, spectrum: Tensor) -> Tensor:
            result: Tensor = torch.fft.ifftn(torch.fft.fftn(image, dim=axes).mul_(spectrum), dim=axes, norm="forward")
            return result

        total = convolve(x, spectra[0])  # parity zero has no phase
        for (phase, back), spectrum in zip(self._parities[1:], spectra[1:], strict=True):
            total.addcmul_(convolve(x * phase, spectrum), back)
        return total

    def trajectory_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Gradient of :math:`\mathrm{Re} \langle y, A x \rangle` with respect to the trajectory.

        By :math:`\partial / \partial k_{ja} \, e^{-i k_j \cdot r} = -i r_a e^{-i k_j \cdot r}` it takes one transform
        for each axis. With the gradient of a loss with respect to ``A(x)`` for ``y``, it is that of the loss.

        Parameters
        ----------
        x
            Images, ``(batch, channel, *spatial)``.
        y
            Measurements, ``(batch, channel or coil, samples)``.

        Returns
        -------
        Tensor
            ``(batch, samples, ndim)``, real.
        """
        self._check_image(x)
        self._check_measurement(y)
        gradients = []
        for axis, size in enumerate(self.shape):
            position = torch.arange(size, dtype=self.trajectory.dtype, device=x.device) - size // 2
            position = position.reshape([-1 if other == axis else 1 for other in range(len(self.shape))])
            gradients.append((y.conj() * self(-1j * position * x)).real.sum(1))
        return torch.stack(gradients, -1)

    def _check_image(self, x: Tensor) -> None:
        channels = None if self._sets is None else self._sets.shape[1]
        fits = x.ndim == 2 + len(self.shape) and channels in (None, x.shape[1]) and tuple(x.shape[2:]) == self.shape
        if not fits or not x.is_complex():
            want = f"complex (batch, {channels or 'channel'}, {', '.join(map(str, self.shape))})"
            raise DataError(f"the transform expects images {want}, got {x.dtype} of shape {tuple(x.shape)}")

    def _check_measurement(self, y: Tensor) -> None:
        coils, samples = self.measurement_shape(-1)
        if y.ndim != 3 or coils not in (-1, y.shape[1]) or y.shape[2] != samples or not y.is_complex():
            want = f"complex (batch, {'channel' if coils == -1 else coils}, {samples})"
            raise DataError(f"the transform gives measurements {want}, got {y.dtype} of shape {tuple(y.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> "Nufft":
        """Lose each readout with probability ``fraction``."""
        readouts = self.weights.new_ones(self.weights.shape[0], self.weights.shape[1] // self.readout)
        kept = drop(readouts, fraction, generator).repeat_interleave(self.readout, 1)
        return self.build({**self.parameters, "weights": self.weights * kept}, self.settings)
