r"""Cartesian multi-coil k-space (SENSE).

.. math:: y_c = M F \sum_s S_{sc} x_s, \qquad (A^H y)_s = \sum_c \bar S_{sc} F^H M y_c

with coil sensitivity maps :math:`S_c` and the centred orthonormal transform of `ambient_sci.operators.fourier`
(Pruessmann et al. 1999, Magn. Reson. Med. 42:952). Images ``(batch, 1, *spatial)``, complex; maps ``(batch, coil,
*spatial)``; k-space ``(batch, coil, *spatial)``; masks ``(batch, 1 or coil, *spatial)``, of size one along axes on
which sampling does not depend. Where one set of maps cannot explain the coils, several do (soft SENSE, Uecker et al.
2014, Magn. Reson. Med. 71:990): maps ``(batch, set, coil, *spatial)``, images ``(batch, set, *spatial)``.

Coils are streamed: no temporary holds all of them, which is what makes large batches run from cache. Along axes on
which the mask does not depend, :math:`F^H F` cancels, and the gram operator transforms the sampled axes alone.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator
from ambient_sci.operators.fourier import (
    _check_mask,
    _constant,
    calibration_region,
    centred_fft,
    centring,
    filtered,
    gram_filter,
)
from ambient_sci.operators.mask import as_mask, drop
from ambient_sci.operators.parallel import SumWork, chunks, own, share, share_sum

__all__ = ["Sense", "check_maps", "combine", "seen"]


class Sense(LinearOperator):
    r"""Multi-coil Cartesian MRI.

    Parameters
    ----------
    mask
        Ones (measured) and zeros, ``(batch, 1 or coil, *spatial)``; an axis of size one is sampled in full.
    maps
        Coil sensitivity maps, ``(batch, coil, *spatial)``, complex, or of several sets, ``(batch, set, coil,
        *spatial)``. With :math:`\sum_c |S_c|^2 = 1` (of one set) the image is in the units of the root sum of squares,
        and image noise can be lifted to the coils.
    calibration
        Width of the centre block along every sampled axis that is always measured; `thin` leaves it alone.
    """

    kind = "sense"
    orthonormal = True

    def __init__(self, mask: Tensor, maps: Tensor, calibration: int = 0) -> None:
        self.mask = as_mask(mask)
        self.maps = maps
        check_maps(maps, mask.shape[0], mask.ndim - 2)
        # with the axis of the sets, (batch, set, coil, *spatial)
        self._sets = maps if maps.ndim > mask.ndim else maps[:, None]
        self.shape: Sequence[int] = tuple(maps.shape[maps.ndim - mask.ndim + 2 :])
        self.mask = self.mask.to(maps.real.dtype)
        self.calibration = _check_mask(self.mask, self.shape, self.coils, calibration)
        self._axes = tuple(range(-len(self.shape), 0))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Sampling mask and coil sensitivity maps."""
        return {"mask": self.mask, "maps": self.maps}

    @property
    def settings(self) -> dict[str, Any]:
        """Calibration width."""
        return {"calibration": self.calibration}

    @property
    def rows(self) -> Tensor:
        """The mask itself."""
        return self.mask

    @property
    def coils(self) -> int:
        """Number of receive coils."""
        return int(self._sets.shape[2])

    def measurement_shape(self, channels: int = 1) -> tuple[int, ...]:
        """Coils and the shape of the image."""
        return (self.coils, *self.shape)

    # The phases of the centring: one side of them joins the mask, the other the image.

    @cached_property
    def _phase(self) -> Tensor:
        return centring(self.shape, self.maps.device, self.maps.dtype)

    @cached_property
    def _post(self) -> Tensor:
        return self.mask * (self._phase * _constant(self.shape))

    @cached_property
    def _filter(self) -> Tensor:
        return gram_filter(self.mask)

    def __getstate__(self) -> dict[str, Any]:
        made = ("_phase", "_post", "_filter")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def _forward(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.coils, *self.shape)
        phase, every = self._phase, self._post

        def work(x: Tensor, scans: slice, coils: range) -> None:
            phased, maps, post = x * phase, own(self._sets, scans), own(every, scans)
            for coil in coils:
                some = slice(coil, coil + 1)
                kspace = torch.fft.fftn(seen(phased, maps[:, :, some]), dim=self._axes, norm="ortho")
                torch.mul(kspace, _coils(post, some), out=y[scans, some])

        share(work, x, self.coils, math.prod(self.shape))
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        phase, every = self._phase.conj(), self._post.conj()

        def work(y: Tensor, scans: slice, coils: range, total: Tensor) -> None:
            maps, post = own(self._sets, scans), own(every, scans).resolve_conj()
            total.zero_()
            for coil in coils:
                some = slice(coil, coil + 1)
                kspace = y[:, some] * _coils(post, some)
                combine(total, torch.fft.ifftn(kspace, dim=self._axes, norm="ortho"), maps[:, :, coil])
            total.conj_physical_().mul_(phase)

        x = y.new_empty(len(y), self._sets.shape[1], *self.shape)
        return share_sum(work, y, self.coils, math.prod(self.shape), x)

    def _gram(self, x: Tensor) -> Tensor:
        return share_sum(self._gram_work(), x, self.coils, math.prod(self.shape), torch.empty_like(x))

    def _gram_work(self) -> SumWork:
        every, rest = self._filter, math.prod(self.shape[1:])

        def work(x: Tensor, scans: slice, coils: range, total: Tensor) -> None:
            maps = own(self._sets, scans)[:, :, coils.start : coils.stop]
            mask = _coils(own(every, scans), slice(coils.start, coils.stop))
            # rows along an axis on which sampling does not depend are problems of their own
            apart = mask.shape[2] == 1 and x.device.type == "cpu"
            slabs = chunks(self.shape[0], len(x) * rest) if apart else 1
            for image, seeing, result in zip(
                x.chunk(slabs, 2), maps.chunk(slabs, 3), total.chunk(slabs, 2), strict=True
            ):
                sums: Any = None
                parts = chunks(len(coils), len(x) * image.shape[2] * rest)
                masks = mask.chunk(parts, 1) if mask.shape[1] > 1 else repeat(mask)
                for some, measured in zip(seeing.chunk(parts, 2), masks, strict=False):
                    # conjugates, as in `combine`; without a name they leave their place in the cache to the next ones
                    if sums is None:
                        sums = filtered(seen(image, some), measured)[:, None]
                        sums = sums.mul_(some) if some.shape[1] == 1 else sums * some
                    else:
                        sums[:, :, : some.shape[2]].addcmul_(filtered(seen(image, some), measured)[:, None], some)
                torch.sum(sums, 2, out=result).conj_physical_()

        return work

    def _check_image(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != (self._sets.shape[1], *self.shape) or not x.is_complex():
            want = f"complex images of shape (batch, {self._sets.shape[1]}, {', '.join(map(str, self.shape))})"
            raise DataError(f"SENSE expects {want}, got {x.dtype} of shape {tuple(x.shape)}")

    def _check_measurement(self, y: Tensor) -> None:
        if tuple(y.shape[1:]) != self.measurement_shape() or not y.is_complex():
            want = f"complex k-space of shape (batch, {', '.join(map(str, self.measurement_shape()))})"
            raise DataError(f"SENSE expects {want}, got {y.dtype} of shape {tuple(y.shape)}")

    def thin(self, fraction: float, generator: torch.Generator) -> "Sense":
        """Lose each measured line or point outside the calibration region with probability ``fraction``."""
        keep = calibration_region(self.mask, self.shape, self.calibration)
        # a mask that all coils share loses a line in all of them at once
        return Sense(drop(self.mask, fraction, generator, keep), self.maps, self.calibration)

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """Coil noise ``S n + (1 - S S^H) z``: white where the maps are normalised, and ``S^H`` of it is ``n``."""
        self._check_image(n)
        self._check_batch(n)
        if self._sets.shape[1] > 1:
            raise DataError("image noise can be lifted to the coils only with one set of maps")
        spread = (self._sets.abs() ** 2).sum(2)
        if not bool(((spread - 1).abs().minimum(spread) < 1e-3).all()):
            raise DataError("image noise can be lifted to the coils only with maps of unit root sum of squares")
        z = torch.view_as_complex(
            torch.randn(n.shape[0], *self.measurement_shape(), 2, generator=generator, dtype=n.real.dtype).to(n.device)
        )
        maps = self._sets[:, 0]
        coil_noise = z + maps * (n - (maps.conj() * z).sum(1, keepdim=True))
        return centred_fft(coil_noise, len(self.shape)) * self.mask


def _coils(tensor: Tensor, some: slice) -> Tensor:
    return tensor[:, some] if tensor.shape[1] > 1 else tensor


def check_maps(maps: Tensor, batch: int, axes: int) -> None:
    """Check coil sensitivity maps of a batch of images of so many axes."""
    if not isinstance(maps, Tensor):
        raise DataError(f"maps must be a tensor, got {type(maps).__name__}")
    fits = maps.is_complex() and maps.ndim in (2 + axes, 3 + axes) and maps.shape[0] == batch
    # the sum is one pass; it may overflow where every value is finite
    if not fits or 0 in maps.shape[1:] or not (bool(maps.sum().isfinite()) or bool(maps.isfinite().all())):
        raise DataError(
            f"maps must be finite, complex (batch, [set,] coil, *spatial) with the batch of {batch} and {axes} spatial "
            f"axes, got {maps.dtype} of shape {tuple(maps.shape)}"
        )


def seen(x: Tensor, maps: Tensor) -> Tensor:
    """See images ``(batch, set, *spatial)`` through maps ``(batch, set, coil, *spatial)`` of some coils."""
    return x * maps[:, 0] if maps.shape[1] == 1 else (x[:, :, None] * maps).sum(1)


def combine(total: Tensor, seen: Tensor, maps: Tensor) -> None:
    """Add one coil to the conjugate of the combined image: that of ``seen`` costs less than that of the maps."""
    total.addcmul_(seen.conj_physical_(), maps)
