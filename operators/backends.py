r"""The sums of a non-uniform Fourier transform, by library.

.. math:: f_j = \sum_n x_n e^{-i k_j \cdot (n - c)}, \qquad x_n = \sum_j f_j e^{+i k_j \cdot (n - c)},
          \qquad c = \lfloor N/2 \rfloor

for a batch of trajectories: ``(batch, *spatial)`` images and ``(batch, samples)`` values of each coil or channel,
without scale or weights, which are the business of `ambient_sci.operators.nufft`. Both backends stream over coils.

``finufft``
    On the CPU (Barnett, Magland and af Klinteberg 2019, SIAM J. Sci. Comput. 41:C479). The plans, which hold the sorted
    samples, are kept. Scans and coils go to threads of their own, each of which transforms one image with a
    single-threaded plan: unlike a parallel loop inside every transform, that does not wait at each of its ends for
    a thread whose core is busy with something else.
``torchkbnufft``
    On any device (Muckley et al. 2020, ISMRM Workshop on Data Sampling): table interpolation with a Kaiser-Bessel
    kernel, whose error is about 5e-5 whatever the precision.
"""

import importlib
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.parallel import share

__all__ = ["BACKENDS", "Backend", "Finufft", "KaiserBessel", "choose", "torchkbnufft"]

WHOLE = 1 << 62  # pixels beyond any piece: scans, which have plans of their own, go one by one


class Backend(ABC):
    """Non-uniform Fourier sums of a batch of trajectories.

    Parameters
    ----------
    trajectory
        Radians per pixel, ``(batch, samples, ndim)``.
    shape
        Spatial shape of the images.
    tolerance
        Relative error asked for; a backend that cannot reach it does its best.
    """

    def __init__(self, trajectory: Tensor, shape: Sequence[int], tolerance: float) -> None:
        self.trajectory = trajectory
        self.shape = tuple(shape)
        self.tolerance = tolerance

    @abstractmethod
    def forward(self, images: Tensor, maps: Tensor | None, factor: Tensor) -> Tensor:
        """Transform images, and multiply what comes out.

        Images ``(batch, set or channel, *spatial)``, maps ``(batch, set, coil, *spatial)``, factors ``(batch, 1,
        samples)``; gives ``(batch, coil, samples)``. Maps and factors of one scan serve a batch of any size.
        """

    @abstractmethod
    def adjoint(self, values: Tensor, maps: Tensor | None, factor: Tensor) -> Tensor:
        """Its adjoint, ``(batch, coil, samples)`` to ``(batch, set or channel, *spatial)``."""


class Finufft(Backend):
    """FINUFFT on the CPU, with plans that are kept."""

    def __init__(self, trajectory: Tensor, shape: Sequence[int], tolerance: float) -> None:
        super().__init__(trajectory, shape, tolerance)
        self._plans: dict[Any, list[Any]] = {}
        self._lock = threading.Lock()

    def forward(self, images: Tensor, maps: Tensor | None, factor: Tensor) -> Tensor:
        """See `Backend.forward`."""
        coils = images.shape[1] if maps is None else maps.shape[2]
        result = images.new_empty(len(images), coils, self.trajectory.shape[1])
        out, maps_, factor_ = result.numpy(), _array(maps, result.dtype), _array(factor, result.real.dtype)

        def work(images: Tensor, scans: slice, coils: range) -> None:
            scan, x = scans.start, _array(images)[0]
            with self._plan(scan, images.dtype) as plan:
                for coil in coils:
                    plan.execute(
                        x[coil] if maps_ is None else _seen(x, maps_[scan % len(maps_), :, coil]), out[scan, coil]
                    )
                    out[scan, coil] *= factor_[scan % len(factor_), 0]

        share(work, images, coils, WHOLE)
        return result

    def adjoint(self, values: Tensor, maps: Tensor | None, factor: Tensor) -> Tensor:
        """See `Backend.adjoint`."""
        channels = values.shape[1] if maps is None else maps.shape[1]
        result = values.new_empty(len(values), channels, *self.shape)
        out, maps_, factor_ = result.numpy(), _array(maps, result.dtype), _array(factor, result.real.dtype)

        def work(values: Tensor, scans: slice, coils: range) -> Any:
            scan, y = scans.start, _array(values)[0]
            total = None if maps_ is None else np.zeros(out.shape[1:], out.dtype)
            with self._plan(scan, values.dtype) as plan:
                for coil in coils:
                    value = y[coil] * factor_[scan % len(factor_), 0]
                    if total is None:
                        plan.execute_adjoint(value, out[scan, coil])
                    else:  # the conjugate of the image instead of that of the maps, and once more at the end
                        image = plan.execute_adjoint(value)
                        total += np.conjugate(image, out=image) * maps_[scan % len(maps_), :, coil]
            return total

        totals = share(work, values, values.shape[1], WHOLE)
        if maps is not None:
            for scan, blocks in enumerate(totals):
                np.conjugate(reduce(np.add, blocks), out=out[scan])
        return result

    @contextmanager
    def _plan(self, scan: int, dtype: torch.dtype) -> Iterator[Any]:
        """Lend a plan of a scan's trajectory that no other thread uses; it is made if there is none."""
        key = scan % len(self.trajectory), dtype
        with self._lock:
            idle = self._plans.setdefault(key, [])
            plan = idle.pop() if idle else None
        plan = plan or self._make(*key)
        try:
            yield plan
        finally:
            with self._lock:
                idle.append(plan)

    def _make(self, scan: int, dtype: torch.dtype) -> Any:
        import finufft

        single = dtype == torch.complex64
        # the calling thread computes alone if others work beside it, and with all its threads if it is the only one
        options: dict[str, Any] = {"nthreads": torch.get_num_threads()}
        if single:  # twofold upsampling is several times slower in single precision, and no more precise there
            options["upsampfac"] = 1.25
        tolerance = max(self.tolerance, 3e-5 if single else 1e-14)  # with less, rounding is larger
        name = str(dtype).removeprefix("torch.")
        plan = finufft.Plan(2, self.shape, eps=tolerance, isign=-1, dtype=name, **options)
        points = self.trajectory[scan].detach().to(dtype.to_real())
        plan.setpts(*(np.ascontiguousarray(points[:, axis].numpy()) for axis in range(len(self.shape))))
        return plan


class KaiserBessel(Backend):
    """torchkbnufft on any device."""

    def forward(self, images: Tensor, maps: Tensor | None, factor: Tensor) -> Tensor:
        """See `Backend.forward`."""
        transform, _ = self._transforms
        if maps is None:
            return self._apply(transform, images) * factor
        coils = [
            self._apply(transform, (images * maps[:, :, coil]).sum(1, keepdim=True)) for coil in range(maps.shape[2])
        ]
        return torch.cat(coils, 1) * factor

    def adjoint(self, values: Tensor, maps: Tensor | None, factor: Tensor) -> Tensor:
        """See `Backend.adjoint`."""
        _, transform = self._transforms
        values = values * factor
        if maps is None:
            return self._apply(transform, values)
        result = values.new_zeros(len(values), maps.shape[1], *self.shape)
        for coil in range(maps.shape[2]):
            result.addcmul_(self._apply(transform, values[:, coil : coil + 1]), maps[:, :, coil].conj())
        return result

    @property
    def _transforms(self) -> tuple[Any, Any]:
        return _kaiser_bessel(self.shape, self.trajectory.dtype, self.trajectory.device)

    @cached_property
    def _omega(self) -> Tensor:
        omega = self.trajectory.mT.contiguous()
        return omega[0] if len(omega) == 1 else omega  # one trajectory serves a batch of any size

    def _apply(self, transform: Any, values: Tensor) -> Tensor:
        result: Tensor = transform(values.contiguous(), self._omega)
        return result


@cache
def _kaiser_bessel(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """Interpolators, which know a size and no trajectory."""
    library = torchkbnufft()
    # the table is read at the nearest entry: a finer one is as fast, and more precise
    options: dict[str, Any] = {"im_size": shape, "table_oversamp": 2**14, "dtype": dtype, "device": device}
    return library.KbNufft(**options), library.KbNufftAdjoint(**options)


def torchkbnufft() -> Any:
    """Import the library without a warning that is not the user's: it compiles with torch.jit, which will go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        return importlib.import_module("torchkbnufft")


BACKENDS: dict[str, type[Backend]] = {"finufft": Finufft, "torchkbnufft": KaiserBessel}
"""Backends by name."""


def choose(name: str, device: torch.device) -> type[Backend]:
    """Backend of a name; ``"auto"`` is FINUFFT on the CPU and torchkbnufft elsewhere."""
    if name == "auto":
        return Finufft if device.type == "cpu" else KaiserBessel
    if name not in BACKENDS:
        raise DataError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    if name == "finufft" and device.type != "cpu":
        raise DataError(f"backend 'finufft' computes on the CPU, and the trajectory is on {device}")
    return BACKENDS[name]


def _array(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Any:
    """Give numpy a tensor, of a type if one is given: plans compute in that of their images alone."""
    if tensor is None:
        return None
    return tensor.detach().to(dtype=dtype or tensor.dtype).resolve_conj().resolve_neg().contiguous().numpy()


def _seen(images: Any, maps: Any) -> Any:
    """Images ``(set, *spatial)`` through one coil's maps of that shape, summed over the sets."""
    return images[0] * maps[0] if len(images) == 1 else (images * maps).sum(0)
