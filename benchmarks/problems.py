r"""The problems that all libraries are given, and their exact answers.

A problem is one linear map for every scan of a batch, an image :math:`x` and a measurement :math:`y`. Asked for are

.. math:: A x, \quad A^H y, \quad A^H A x, \quad \nabla_x \| A x - y \|^2,
          \quad \text{the tenth conjugate gradient iterate of } A^H A z = x .

The answers are written out in double precision with numpy's FFT, the plain sum of the non-uniform Fourier transform
and scipy's conjugate gradients: nothing of what is measured. (Random Gaussian maps are drawn in a way of their own
by each library; there the answer is the package's own, in double precision.)
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from ambient_sci.operators import Gaussian

__all__ = [
    "ITERATIONS",
    "OPERATIONS",
    "GaussianProblem",
    "NufftProblem",
    "Problem",
    "SenseProblem",
    "gaussian_problem",
    "nufft_problem",
    "sense_problem",
]

ITERATIONS = 10

Array = NDArray[Any]  # complex128, or float64 for real images


@dataclass(frozen=True)
class Problem(ABC):
    """One linear map for every scan, and what to apply it to.

    Attributes
    ----------
    image
        ``(batch, 1, *spatial)``, complex64.
    data
        A measurement, ``(batch, *measurement)``, complex64.
    """

    image: Tensor
    data: Tensor

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Apply the map in double precision."""

    @abstractmethod
    def adjoint(self, y: Array) -> Array:
        """Apply its adjoint in double precision."""

    @abstractmethod
    def __str__(self) -> str:
        """Sizes and sampling in a line."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the image."""
        return tuple(self.image.shape[2:])

    @property
    def batch(self) -> int:
        """Number of scans."""
        return int(self.image.shape[0])

    def change(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every tensor of the problem by a function."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        )

    def scans(self) -> list[Self]:
        """One problem for each scan."""
        return [self.change(lambda value, scan=scan: value[scan : scan + 1]) for scan in range(self.batch)]  # type: ignore[misc]

    def answer(self, operation: str) -> Tensor:
        """Give the result of one of the `OPERATIONS` in double precision, on the CPU."""
        return torch.from_numpy(OPERATIONS[operation](self.change(Tensor.cpu)))


def _double(value: Tensor) -> Array:
    return value.numpy().astype(np.complex128 if value.is_complex() else np.float64)


def _forward(problem: Problem) -> Array:
    return problem.forward(_double(problem.image))


def _adjoint(problem: Problem) -> Array:
    return problem.adjoint(_double(problem.data))


def _gram(problem: Problem) -> Array:
    return problem.adjoint(_forward(problem))


def _gradient(problem: Problem) -> Array:
    return 2 * problem.adjoint(_forward(problem) - _double(problem.data))


def _solve(problem: Problem) -> Array:
    return np.concatenate([_solve_scan(scan) for scan in problem.scans()])


def _solve_scan(scan: Problem) -> Array:
    x = _double(scan.image)

    def gram(z: Array) -> Array:
        return scan.adjoint(scan.forward(z.reshape(x.shape))).ravel()

    solution, _ = cg(LinearOperator((x.size, x.size), gram, dtype=x.dtype), x.ravel(), rtol=0, maxiter=ITERATIONS)
    return np.asarray(solution).reshape(x.shape)


OPERATIONS: dict[str, Callable[[Problem], Array]] = {
    "forward": _forward,
    "adjoint": _adjoint,
    "gram": _gram,
    "gradient": _gradient,
    "solve": _solve,
}


# ------------------------------------------------------------------------------------------------- Cartesian, coils


@dataclass(frozen=True)
class SenseProblem(Problem):
    """Multi-coil Cartesian MRI with other columns and other maps in every scan.

    Attributes
    ----------
    mask
        Measured columns, ``(batch, 1, 1, width)``, the same number in every scan.
    maps
        Coil sensitivities of unit root sum of squares, ``(batch, coil, height, width)``, complex64.
    """

    mask: Tensor
    maps: Tensor

    def __str__(self) -> str:
        return (
            f"{_sizes(self)}, {self.columns.shape[1]} of {self.shape[1]} columns measured, "
            "other ones and other maps in every scan"
        )

    @property
    def columns(self) -> Tensor:
        """Indices of the measured columns, ``(batch, lines)``."""
        return self.mask.flatten(1).nonzero()[:, 1].reshape(self.batch, -1)

    def forward(self, x: Array) -> Array:
        """Centred orthonormal FFT of each coil's image, masked."""
        shifted = np.fft.ifftshift(_double(self.maps) * x, axes=(-2, -1))
        return _double(self.mask) * np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))

    def adjoint(self, y: Array) -> Array:
        """Its adjoint."""
        shifted = np.fft.ifftshift(_double(self.mask) * y, axes=(-2, -1))
        images = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))
        return np.asarray((_double(self.maps).conj() * images).sum(1, keepdims=True))


def sense_problem(batch: int, coils: int, shape: Sequence[int], acceleration: int = 4) -> SenseProblem:
    """Draw images and maps from a normal distribution, and every ``acceleration``-th column at random."""
    generator = torch.Generator().manual_seed(0)
    height, width = shape
    columns = torch.rand(batch, width, generator=generator).argsort(1)[:, : width // acceleration]
    mask = torch.zeros(batch, width).scatter(1, columns, 1.0).reshape(batch, 1, 1, width)
    data = mask * _randn((batch, coils, height, width), generator)
    maps = _unit_maps(batch, coils, shape, generator)
    return SenseProblem(_randn((batch, 1, height, width), generator), data, mask, maps)


# --------------------------------------------------------------------------------------------------- non-Cartesian


@dataclass(frozen=True)
class NufftProblem(Problem):
    r"""Non-uniform samples :math:`y_j = N^{-1/2} \sum_n x_n e^{-i k_j (n - c)}`, :math:`c = \lfloor N_d/2 \rfloor`.

    Attributes
    ----------
    trajectory
        ``(batch, samples, 2)``, radians per pixel, float32.
    maps
        Coil sensitivities, ``(batch, coil, height, width)``, or none for a single coil without.
    spokes
        Number of spokes that the samples lie on.
    """

    trajectory: Tensor
    maps: Tensor | None
    spokes: int

    def __str__(self) -> str:
        samples = self.trajectory.shape[1] // self.spokes
        others = ", other ones in every scan" if self.batch > 1 else ""
        return f"{_sizes(self)}, {self.spokes} radial spokes of {samples} samples{others}"

    def _chunks(self, scan: int) -> Iterator[tuple[slice, Array, Array]]:
        """Parts of the samples, each with a matrix ``exp(-i k (n - c))`` an axis, ``(samples, size)``."""
        k = self.trajectory[scan].numpy().astype(np.float64)
        for start in range(0, len(k), 512):
            part = slice(start, start + 512)
            rows, columns = (
                np.exp(-1j * k[part, axis, None] * (np.arange(size) - size // 2))
                for axis, size in enumerate(self.shape)
            )
            yield part, rows, columns

    def _maps(self) -> Array:
        return np.ones((self.batch, 1, 1, 1), np.complex128) if self.maps is None else _double(self.maps)

    def forward(self, x: Array) -> Array:
        """Sum over all pixels, one axis after the other."""
        images = self._maps() * x
        y = np.empty((*images.shape[:2], self.trajectory.shape[1]), np.complex128)
        for scan in range(self.batch):
            for part, rows, columns in self._chunks(scan):
                y[scan, :, part] = np.einsum("csw,sw->cs", rows @ images[scan], columns)
        return y / math.sqrt(math.prod(self.shape))

    def adjoint(self, y: Array) -> Array:
        """Sum over all samples."""
        images = np.zeros((*y.shape[:2], *self.shape), np.complex128)
        for scan in range(self.batch):
            for part, rows, columns in self._chunks(scan):
                images[scan] += rows.conj().T @ (y[scan, :, part, None] * columns.conj())
        return np.asarray((self._maps().conj() * images).sum(1, keepdims=True)) / math.sqrt(math.prod(self.shape))


def nufft_problem(batch: int, coils: int, shape: Sequence[int], spokes: int, samples: int) -> NufftProblem:
    """Radial spokes through the centre at the golden angle, each scan's by itself; no maps for ``coils`` = 0."""
    generator = torch.Generator().manual_seed(0)
    golden = math.pi * (math.sqrt(5) - 1) / 2
    angles = golden * torch.arange(spokes) + torch.arange(batch)[:, None]  # a radian apart from scan to scan
    radius = torch.linspace(-math.pi, math.pi, samples + 1)[:-1]
    directions = torch.stack([angles.sin(), angles.cos()], -1)
    trajectory = (directions[:, :, None] * radius[:, None]).reshape(batch, spokes * samples, 2)
    data = _randn((batch, max(coils, 1), spokes * samples), generator)
    maps = _unit_maps(batch, coils, shape, generator) if coils else None
    return NufftProblem(_randn((batch, 1, *shape), generator), data, trajectory, maps, spokes)


# -------------------------------------------------------------------------------------------------------- Gaussian


@dataclass(frozen=True)
class GaussianProblem(Problem):
    """Random Gaussian measurements of real images: image ``(batch, 1, *spatial)`` and data ``(batch, m)``, float32."""

    def __str__(self) -> str:
        return f"{_count(self.batch, 'scan')}, {math.prod(self.shape)} pixels to {self.data.shape[1]} values"

    def operator(self) -> Gaussian:
        """Structured, with another seed for every scan."""
        seeds = torch.arange(self.batch, device=self.image.device)
        return Gaussian(self.data.shape[1], (1, *self.shape), seeds, structured=True)

    def forward(self, x: Array) -> Array:
        """Measure with the package's operator."""
        return np.asarray(self.operator().to(torch.float64)(torch.from_numpy(x)))

    def adjoint(self, y: Array) -> Array:
        """Apply its adjoint."""
        return np.asarray(self.operator().to(torch.float64).H(torch.from_numpy(y)))


def gaussian_problem(batch: int, shape: Sequence[int], measurements: int) -> GaussianProblem:
    """Draw images and measurements from a normal distribution."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 1, *shape, generator=generator)
    return GaussianProblem(image, torch.randn(batch, measurements, generator=generator))


def _randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.complex64)


def _unit_maps(batch: int, coils: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    maps = _randn((batch, coils, *shape), generator)
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt()


def _sizes(problem: Problem) -> str:
    size = "x".join(map(str, problem.shape))
    return f"{_count(problem.batch, 'scan')} x {_count(problem.data.shape[1], 'coil')} x {size}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
