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

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambient_sci.errors import DataError

__all__ = ["BACKENDS", "Backend", "Finufft", "KaiserBessel", "choose"]


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
    def forward(self, images: Tensor, maps: Tensor | None) -> Tensor:
        """``(batch, set or channel, *spatial)``, maps ``(batch, set, coil, *spatial)``: ``(batch, coil, samples)``."""

    @abstractmethod
    def adjoint(self, values: Tensor, maps: Tensor | None) -> Tensor:
        """``(batch, coil, samples)`` to ``(batch, set or channel, *spatial)``."""


class Finufft(Backend):
    """FINUFFT on the CPU, with plans that are kept."""

    def __init__(self, trajectory: Tensor, shape: Sequence[int], tolerance: float) -> None:
        super().__init__(trajectory, shape, tolerance)
        self._plans: dict[Any, list[Any]] = {}
        self._lock = threading.Lock()

    def forward(self, images: Tensor, maps: Tensor | None) -> Tensor:
        """See `Backend.forward`."""
        x: Any = _array(images)
        s: Any = None if maps is None else _array(maps)
        coils = x.shape[1] if s is None else s.shape[2]
        result = np.empty((len(x), coils, self.trajectory.shape[1]), x.dtype)

        def work(scan: int, block: range, plan: Any) -> None:
            for coil in block:
                seen = x[scan, coil] if s is None else (x[scan] * s[scan % len(s), :, coil]).sum(0)
                plan.execute(seen, result[scan, coil])

        self._run(work, len(x), coils, x.dtype)
        return torch.from_numpy(result)

    def adjoint(self, values: Tensor, maps: Tensor | None) -> Tensor:
        """See `Backend.adjoint`."""
        y: Any = _array(values)
        s: Any = None if maps is None else _array(maps)
        channels = y.shape[1] if s is None else s.shape[1]
        result = np.empty((len(y), channels, *self.shape), y.dtype)

        def plain(scan: int, block: range, plan: Any) -> None:
            for coil in block:
                plan.execute_adjoint(y[scan, coil], result[scan, coil])

        def combined(scan: int, block: range, plan: Any) -> Any:
            total = np.zeros((channels, *self.shape), y.dtype)
            for coil in block:
                image = plan.execute_adjoint(y[scan, coil])
                # the conjugate of the image instead of that of the maps, and once more at the end
                total += np.conjugate(image, out=image) * s[scan % len(s), :, coil]
            return total

        totals = self._run(plain if s is None else combined, len(y), y.shape[1], y.dtype)
        if s is not None:
            for scan in range(len(y)):
                np.conjugate(reduce(np.add, totals[scan]), out=result[scan])
        return torch.from_numpy(result)

    def _run(self, work: Callable[[int, range, Any], Any], scans: int, coils: int, dtype: Any) -> list[list[Any]]:
        """Share scans and blocks of coils among threads; results in order, so that sums do not depend on luck."""
        threads = torch.get_num_threads()
        blocks = min(coils, math.ceil(2 * threads / scans))
        edges = [coils * block // blocks for block in range(blocks + 1)]
        tasks = [(scan, range(*edges[block : block + 2])) for scan in range(scans) for block in range(blocks)]
        inner = max(1, threads // len(tasks))

        def one(task: tuple[int, range]) -> Any:
            scan, block = task
            key = scan % len(self.trajectory), np.dtype(dtype), inner
            plan = self._take(key)
            try:
                return work(scan, block, plan)
            finally:
                with self._lock:
                    self._plans[key].append(plan)

        if threads == 1 or len(tasks) == 1:
            done = [one(task) for task in tasks]
        else:
            with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
                done = list(pool.map(one, tasks))
        return [done[scan * blocks : (scan + 1) * blocks] for scan in range(scans)]

    def _take(self, key: tuple[int, Any, int]) -> Any:
        """Take a plan that no other thread uses; it is made if there is none."""
        with self._lock:
            idle = self._plans.setdefault(key, [])
            if idle:
                return idle.pop()
        import finufft

        scan, dtype, threads = key
        single = dtype == np.complex64
        options: dict[str, Any] = {"nthreads": threads}
        if single:  # twofold upsampling is several times slower in single precision, and no more precise there
            options["upsampfac"] = 1.25
        tolerance = max(self.tolerance, 1e-6 if single else 1e-14)
        plan = finufft.Plan(2, self.shape, eps=tolerance, isign=-1, dtype=dtype.name, **options)
        points = self.trajectory[scan].detach().to(torch.float32 if single else torch.float64)
        plan.setpts(*(np.ascontiguousarray(points[:, axis].numpy()) for axis in range(len(self.shape))))
        return plan


class KaiserBessel(Backend):
    """torchkbnufft on any device."""

    def forward(self, images: Tensor, maps: Tensor | None) -> Tensor:
        """See `Backend.forward`."""
        transform, _ = self._transforms
        if maps is None:
            return self._apply(transform, images)
        coils = [
            self._apply(transform, (images * maps[:, :, coil]).sum(1, keepdim=True)) for coil in range(maps.shape[2])
        ]
        return torch.cat(coils, 1)

    def adjoint(self, values: Tensor, maps: Tensor | None) -> Tensor:
        """See `Backend.adjoint`."""
        _, transform = self._transforms
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
    with warnings.catch_warnings():  # it compiles with torch.jit, which warns that it will go
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        from torchkbnufft import KbNufft, KbNufftAdjoint

    # the table is read at the nearest entry: a finer one is as fast, and more precise
    options: dict[str, Any] = {"im_size": shape, "table_oversamp": 2**14, "dtype": dtype, "device": device}
    return KbNufft(**options), KbNufftAdjoint(**options)


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


def _array(tensor: Tensor) -> Any:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().numpy()
