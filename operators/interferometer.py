r"""Radio interferometry: visibilities of an image of the sky.

.. math:: V_j = w_j \sum_n B_n x_n \, e^{-2\pi i (u_j l_n + v_j m_n)}

with the brightness :math:`x` in Jy per pixel (Stokes I, so that images are real), the power pattern :math:`B` of the
dishes, spatial frequencies :math:`u, v` in wavelengths and weights :math:`w` (Thompson, Moran and Swenson 2017,
*Interferometry and Synthesis in Radio Astronomy*, chapter 3, for a narrow field). Images ``(batch, 1, height, width)``;
visibilities ``(batch, n_visibilities)``, complex, in Jy: at :math:`u = v = 0` stands the flux of the field. Nothing is
normalised, and :math:`A^H` of whitened visibilities is the dirty image times the sum of :math:`w^2`.

The image is the sky as a FITS file stores it: East is where the column index falls, North where the row index grows
(``imshow`` with ``origin="lower"``). With :math:`p` the size of a pixel in radians and the phase centre in the pixel
:math:`(c_0, c_1)`, :math:`c = \lfloor \text{size}/2 \rfloor`,

.. math:: l_n = -(n_1 - c_1) \, p, \qquad m_n = (n_0 - c_0) \, p.

A field is narrow where :math:`\pi w (l^2 + m^2)` is far below one, for then the third coordinate :math:`w` of a
baseline drops out. Channels of several frequencies measure one image and one beam: a spectrum that is flat across them.
The sum is a `Nufft` of the frequencies :math:`2\pi p v` and :math:`-2\pi p u` per pixel.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.mask import as_shape, drop
from ambient_sci.operators.nufft import Nufft

__all__ = ["ARCSEC", "MAS", "Interferometer", "primary_beam"]

ARCSEC = math.pi / 648000
"""One second of arc in radians."""

MAS = ARCSEC / 1000
"""One thousandth of a second of arc in radians."""

LIGHT = 299792458.0  # m/s


class Interferometer(LinearOperator):
    """Visibilities of a small field of the sky.

    Parameters
    ----------
    uv
        Spatial frequencies in wavelengths, ``(batch, n_visibilities, 2)``, float32 or float64; the precision of the
        operator is theirs. `ambient_sci.operators.arrays` makes them for an array and an observation.
    shape
        Shape of the image, ``(height, width)``.
    pixel_size
        Side of a pixel in radians (``0.2 * ARCSEC``), at most half a period of the highest frequency.
    beam
        Power pattern of the dishes, ``(batch or 1, 1, height, width)``, real; see `primary_beam`. By default the
        field is small against it, and it is one.
    weights
        What each visibility is multiplied with, ``(batch, n_visibilities)``, 0 or more: one by default, zero where
        nothing was measured. One over the noise of a visibility whitens it.
    groups
        What is lost together: numbers from 0, ``(batch, n_visibilities)`` or ``(batch, n_visibilities, k)``. `thin`
        keeps a visibility if it keeps all of its groups; by default each is a group of its own. The ``pairs`` of a
        `Coverage` lose whole stations, its ``baselines`` whole baselines.
    backend, tolerance
        Those of `Nufft`.

    Raises
    ------
    DataError
        If shapes or types do not fit, or if the pixel is too large for the frequencies.
    """

    kind = "interferometer"

    def __init__(
        self,
        uv: Tensor,
        shape: Sequence[int],
        pixel_size: float,
        beam: Tensor | None = None,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
        backend: str = "auto",
        tolerance: float | None = None,
    ) -> None:
        if not uv.is_floating_point() or uv.ndim != 3 or uv.shape[2] != 2 or not bool(uv.isfinite().all()):
            raise DataError(
                f"uv must be finite real (batch, n_visibilities, 2) in wavelengths, got {uv.dtype} of shape "
                f"{tuple(uv.shape)}"
            )
        batch, visibilities, _ = uv.shape
        self.uv = uv
        self.shape = as_shape(shape)
        self.pixel_size = float(pixel_size)
        self.backend = backend
        self.tolerance = tolerance
        self.weights = uv.new_ones(batch, visibilities) if weights is None else weights.to(uv.dtype)
        # an operator without a beam keeps a pixel of it, so that all operators have the same parameters
        beam = uv.new_ones(1, 1, 1, 1) if beam is None else beam.to(uv.dtype)
        self.beam = beam.expand(batch, *beam.shape[1:]) if len(beam) == 1 else beam
        own = torch.arange(visibilities, device=uv.device).expand(batch, -1)
        groups = own if groups is None else groups
        self.groups = groups[..., None] if groups.ndim == 2 else groups
        self._check_arguments()
        row, column = 2 * math.pi * self.pixel_size * uv[..., 1], -2 * math.pi * self.pixel_size * uv[..., 0]
        # what is not measured may lie beyond the grid
        trajectory = torch.stack([row, column], dim=2) * self.rows[..., None]
        scale = math.sqrt(math.prod(self.shape))  # the transform is orthonormal, fluxes are not
        self._nufft = Nufft(trajectory, self.shape, weights=scale * self.weights, backend=backend, tolerance=tolerance)

    def _check_arguments(self) -> None:
        leading = tuple(self.uv.shape[:2])
        if len(self.shape) != 2:
            raise DataError(f"shape must be (height, width), got {self.shape}")
        if self.weights.shape != leading or not bool((self.weights >= 0).all()):
            raise DataError(f"weights must be 0 or more, of shape {leading}, got shape {tuple(self.weights.shape)}")
        if self.beam.shape not in ((leading[0], 1, *self.shape), (leading[0], 1, 1, 1)):
            want = f"({leading[0]} or 1, 1, {', '.join(map(str, self.shape))})"
            raise DataError(f"beam must be {want}, got shape {tuple(self.beam.shape)}")
        integers = not (self.groups.is_floating_point() or self.groups.is_complex())
        if self.groups.ndim != 3 or self.groups.shape[:2] != leading or not integers or bool((self.groups < 0).any()):
            want = f"integers from 0, of shape {leading} or ({leading[0]}, {leading[1]}, k)"
            raise DataError(f"groups must be {want}, got {self.groups.dtype} of shape {tuple(self.groups.shape)}")
        highest = float((self.uv.abs().amax(2) * self.rows).max()) if self.uv.numel() else 0.0
        limit = 0.5 / highest if highest else math.inf
        if not 0 < self.pixel_size <= limit * (1 + 1e-6):  # a number rounded to single precision still fits
            raise DataError(
                f"pixel_size must be above 0 and at most half a period of the highest frequency, {limit:.6g} rad or "
                f"{limit / ARCSEC:.4g} arcsec, got {self.pixel_size:.6g} rad"
            )

    @property
    def trajectory(self) -> Tensor:
        """Where k-space was measured, in radians per pixel of each axis, ``(batch, n_visibilities, 2)``."""
        return self._nufft.trajectory

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Spatial frequencies, beam, weights and groups."""
        return {"uv": self.uv, "beam": self.beam, "weights": self.weights, "groups": self.groups}

    @property
    def settings(self) -> dict[str, Any]:
        """Shape of the image, size of a pixel, and how to transform."""
        return {
            "shape": list(self.shape),
            "pixel_size": self.pixel_size,
            "backend": self.backend,
            "tolerance": self.tolerance,
        }

    @property
    def rows(self) -> Tensor:
        """Ones where the weight is above zero, ``(batch, n_visibilities)``."""
        return (self.weights > 0).to(self.uv.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return self._nufft._forward(self._seen(x))[:, 0]

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._nufft._adjoint(y[:, None].to(self._complex)).real * self.beam

    def _gram(self, x: Tensor) -> Tensor:
        return self._nufft._gram(self._seen(x)).real * self.beam

    def _seen(self, x: Tensor) -> Tensor:
        return (x * self.beam).to(self._complex)

    @property
    def _complex(self) -> torch.dtype:
        return self.uv.dtype.to_complex()

    def _check_image(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != (1, *self.shape) or x.is_complex():
            want = f"real images of shape (batch, 1, {', '.join(map(str, self.shape))})"
            raise DataError(f"the interferometer measures {want}, got {x.dtype} of shape {tuple(x.shape)}")

    def _check_measurement(self, y: Tensor) -> None:
        if tuple(y.shape[1:]) != tuple(self.uv.shape[1:2]) or not y.is_complex():
            want = f"complex visibilities of shape (batch, {self.uv.shape[1]})"
            raise DataError(f"the interferometer gives {want}, got {y.dtype} of shape {tuple(y.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> "Interferometer":
        """Lose each visibility with probability ``fraction``: by itself, or with the groups that it is in.

        A visibility in ``k`` groups keeps all of them with probability ``1 - fraction`` if each is lost with
        :math:`1 - (1 - f)^{1/k}`.
        """
        if not 0 <= fraction <= 1:
            raise DataError(f"fraction must be between 0 and 1, got {fraction}")
        batch, visibilities, k = self.groups.shape
        every = self.weights.new_ones(batch, int(self.groups.max()) + 1)
        kept = drop(every, 1 - (1 - fraction) ** (1 / k), generator)
        kept = kept.gather(1, self.groups.flatten(1).long()).reshape(batch, visibilities, k).amin(2)
        return self.build({**self.parameters, "weights": self.weights * kept}, self.settings)


def primary_beam(
    shape: Sequence[int], pixel_size: float, diameter: float, frequency: float, form: str = "gaussian"
) -> Tensor:
    r"""Power pattern of a dish that points at the centre of the field.

    Parameters
    ----------
    shape
        Shape of the image, ``(height, width)``.
    pixel_size
        Side of a pixel in radians.
    diameter
        Diameter of the dish in metres.
    frequency
        Frequency in Hz.
    form
        ``"gaussian"``, with a full width at half maximum of :math:`1.13 \lambda / D`: what ALMA's dishes have, whose
        receivers see the rim at -10 dB (ALMA Technical Handbook, section Single-dish Response). ``"airy"`` for a dish
        that is illuminated evenly, :math:`(2 J_1(x) / x)^2` with :math:`x = \pi D \sin \theta / \lambda` and a width
        of :math:`1.03 \lambda / D`, as is nearly true of the VLA's.

    Returns
    -------
    Tensor
        One at the centre, ``(1, 1, height, width)``, float64.
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "gaussian": lambda r: torch.exp(-4 * math.log(2) * (r / 1.13) ** 2),
        "airy": lambda r: torch.where(r == 0, 1, 2 * torch.special.bessel_j1(math.pi * r) / (math.pi * r)) ** 2,
    }
    if form not in forms:
        raise DataError(f"form must be one of {', '.join(forms)}, got {form!r}")
    if len(shape) != 2 or not (pixel_size > 0 and diameter > 0 and frequency > 0):
        raise DataError(
            f"a beam needs (height, width) and a pixel size, diameter and frequency above 0, got {tuple(shape)}, "
            f"{pixel_size}, {diameter} and {frequency}"
        )
    north, west = (pixel_size * (torch.arange(size, dtype=torch.float64) - size // 2) for size in shape)
    return forms[form](torch.hypot(north[:, None], west) * (diameter * frequency / LIGHT))[None, None]
