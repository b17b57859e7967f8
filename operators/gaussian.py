r"""Random Gaussian compressed sensing.

.. math:: y = R \, G \, \mathrm{vec}(x), \qquad E[G^T G] = 1

with a random matrix :math:`G` of ``m`` rows for every scan, made again from the scan's seed whenever it is needed, and
a 0/1 diagonal :math:`R` of the rows that are kept. Images ``(batch, channel, *spatial)``, real or complex, of ``n``
values; measurements ``(batch, m)``.

Dense matrices have independent entries :math:`G_{ij} \sim \mathcal N(0, 1/m)` (Bora et al. 2017, arXiv:1703.03208).
They take ``m n`` numbers of memory for each scan. Where that is too much, a structured matrix does much the same with
``n`` of them, by two FFTs:

.. math:: G = \sqrt{n/m} \; P \, C \, D, \qquad C = F^{-1} \, \mathrm{diag}(\sigma) \, F, \quad |\sigma_k| = 1

It flips the signs of the pixels at random (:math:`D`), convolves them with a filter whose spectrum :math:`\sigma` has
random phases and is that of a real filter, and looks at ``m`` places :math:`P` drawn at random without replacement:
random convolution (Romberg 2009, SIAM J. Imaging Sci. 2:1098), for which sparse images are recovered from as many
measurements as with a dense matrix, up to logarithms. The places are random because that theorem wants them to be, and
they stay in random order, so that the first rows are a sample like any other. The signs make it an embedding that
preserves distances, of any images (Krahmer and Ward 2011, SIAM J. Math. Anal. 43:1269). Its entries have variance
:math:`1/m` and are nearly Gaussian, and its rows are orthogonal,

.. math:: G G^T = \frac{n}{m} \, 1, \qquad G^+ = \frac{m}{n} \, G^T

"""

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators.matrix import Dense, Map, MatrixOperator
from ambient_sci.operators.parallel import share

__all__ = ["Gaussian"]

_BLOCK = 1 << 15  # numbers drawn at a time: a block stays in the cache, and is too small for torch to start threads for


class Gaussian(MatrixOperator):
    """Random Gaussian matrices, one for every scan.

    Parameters
    ----------
    n_measurements
        Number of rows ``m``.
    shape
        Shape of one image, ``(channel, *spatial)``.
    seed
        One seed for every scan, ``(batch,)`` int64, or a single integer for a batch of one. A seed means the same
        matrix on every device and in every precision; torch looks at its lowest 32 bits.
    rows
        Which rows are kept, ``(batch, m)``; all of them by default.
    structured
        Orthogonal rows by random convolution, of which there are at most as many as pixels, instead of dense matrices.

    Raises
    ------
    DataError
        If seeds are no integers, or if numbers and shapes do not go together.
    """

    kind = "gaussian"

    def __init__(
        self,
        n_measurements: int,
        shape: Sequence[int],
        seed: Tensor | int,
        rows: Tensor | None = None,
        structured: bool = False,
    ) -> None:
        try:
            seeds = torch.as_tensor(seed)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"seed must be integers of at most 64 bits, (batch,): {error}") from error
        if seeds.ndim > 1 or seeds.is_floating_point() or seeds.is_complex():
            raise DataError(f"seed must be integers (batch,), got {seeds.dtype} of shape {tuple(seeds.shape)}")
        self.seed = seeds.to(torch.int64).reshape(-1)
        self.structured = bool(structured)
        super().__init__(len(self.seed), n_measurements, shape, rows)
        self._rows = self._rows.to(self.seed.device)
        pixels = math.prod(self.shape)
        if self.structured and self.n_measurements > pixels:
            raise DataError(
                f"n_measurements of a structured matrix must be at most the {pixels} values of an image, "
                f"got {self.n_measurements}"
            )

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Seeds and kept rows."""
        return {"seed": self.seed, "rows": self._rows}

    @property
    def settings(self) -> dict[str, Any]:
        """Size and sort of the matrix."""
        return {"n_measurements": self.n_measurements, "shape": list(self.shape), "structured": self.structured}

    def _make(self) -> Map:
        runs, lengths = torch.unique_consecutive(self.seed, return_counts=True)
        # repeated scans (several samples of each) share a matrix
        seeds = runs if bool((lengths == lengths[0]).all()) else self.seed
        draw = RandomConvolution.draw if self.structured else _draw_dense
        return draw(seeds.tolist(), self.n_measurements, math.prod(self.shape), self._rows)

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        """Measure the noise, which is possible where rows are orthonormal: structured, as many as pixels.

        With fewer rows they have the squared norm ``n / m`` each, and measured noise has more variance than the white
        noise that is wanted: there is nothing that could be added.
        """
        if not self.structured:
            return super().lift(n, generator)
        if self.n_measurements < math.prod(self.shape):
            raise DataError(
                f"image noise can be lifted by a structured matrix only with as many rows as pixels: with "
                f"{self.n_measurements} of {math.prod(self.shape)} it has more variance than white noise"
            )
        return self(n)


def _draw_dense(seeds: Sequence[int], m: int, n: int, like: Tensor) -> Dense:
    """Draw ``(seeds, m, n)`` entries, each matrix as ``torch.randn(m, n)`` in double precision gives them."""
    matrix = like.new_empty(len(seeds), m, n)
    # torch draws blocks of at least 16 numbers as it would draw the whole, if all but the last are multiples of 16
    edges = [*range(0, max(m * n - 15, 1), _BLOCK), m * n]

    def fill(scan: int) -> None:
        generator = torch.Generator().manual_seed(seeds[scan])
        flat = matrix[scan].view(-1)
        for start, end in itertools.pairwise(edges):
            block = torch.randn(end - start, generator=generator, dtype=torch.float64)
            flat[start:end].copy_(block.mul_(1 / math.sqrt(m)).to(matrix.dtype))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(seeds))))
    return Dense(matrix)


@dataclass(frozen=True)
class RandomConvolution:
    """Structured random matrices by what they are made of; see `ambient_sci.operators.matrix.Map`.

    Parameters
    ----------
    signs
        Of the pixels, ``(scans, 1, n)``.
    spectrum
        Of the filter, times :math:`sqrt(n/m)`, for real FFTs: ``(scans, 1, n // 2 + 1)``.
    places
        That are looked at, ``(scans, 1, m)``.
    """

    signs: Tensor
    spectrum: Tensor
    places: Tensor

    @classmethod
    def draw(cls, seeds: Sequence[int], m: int, n: int, like: Tensor) -> Self:
        """Draw signs, phases and places, in double precision and in this order."""
        signs, spectra, places = [], [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            signs.append(2.0 * torch.randint(2, (n,), generator=generator) - 1)
            turn = torch.rand(n // 2 + 1, generator=generator, dtype=torch.float64)
            spectrum = torch.polar(torch.ones_like(turn), 2 * math.pi * turn)
            own = [0, -1] if n % 2 == 0 else [0]  # frequencies that are their own negative: a sign, for a real filter
            spectrum[own] = torch.where(turn[own] < 0.5, 1, -1).to(spectrum)
            spectra.append(math.sqrt(n / m) * spectrum)
            places.append(torch.randperm(n, generator=generator)[:m])
        return cls(
            torch.stack(signs)[:, None].to(like),
            torch.stack(spectra)[:, None].to(like.device, like.dtype.to_complex()),
            torch.stack(places)[:, None].to(like.device),
        )

    @property
    def matrix(self) -> Tensor:
        """The matrices, ``(scans, m, n)``, made of what they do to unit vectors."""
        scans, _, n = self.signs.shape
        unit = torch.eye(n, dtype=self.signs.dtype, device=self.signs.device)
        return self.forward(unit.repeat(scans, 1)).reshape(scans, n, -1).mT

    def forward(self, x: Tensor) -> Tensor:
        """Flip signs, convolve, look at places."""
        return self._share(RandomConvolution._look, x, self.places.shape[2])

    def adjoint(self, y: Tensor) -> Tensor:
        """Put back in place, correlate, flip signs."""
        return self._share(RandomConvolution._put_back, y, self.signs.shape[2])

    def inverse(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Scale the adjoint, whichever rows are kept: they are orthogonal."""
        ratio, (scans, _, m) = self.places.shape[2] / self.signs.shape[2], self.places.shape
        # not in threads, which would lose the derivatives
        return lambda y: ratio * self._put_back(y.reshape(scans, -1, m)).flatten(0, 1)

    def _share(self, apply: Callable[[Self, Tensor], Tensor], vectors: Tensor, size: int) -> Tensor:
        """Apply to some scans at a time what takes ``(scans, times, values)`` to ``(scans, times, size)``."""
        batches = vectors.reshape(len(self.signs), -1, vectors.shape[1])
        result = vectors.new_empty(*batches.shape[:2], size)

        def work(values: Tensor, scans: slice, _: range) -> None:
            result[scans] = apply(replace(self, **{name: each[scans] for name, each in vars(self).items()}), values)

        pixels = 2 * batches.shape[1] * self.signs.shape[2]  # there and back
        # as few pieces as threads: the tables that every call of a long FFT makes take longer than several vectors
        share(work, batches, 1, pixels, len(batches) * pixels)
        return result.flatten(0, 1)

    # complex vectors go part by part: no slower than both at once, and half the memory

    def _look(self, x: Tensor) -> Tensor:
        if x.is_complex():
            return torch.complex(self._look(x.real), self._look(x.imag))
        return _convolve(x * self.signs.to(x.dtype), self.spectrum).gather(2, self.places.expand(-1, x.shape[1], -1))

    def _put_back(self, y: Tensor) -> Tensor:
        if y.is_complex():
            return torch.complex(self._put_back(y.real), self._put_back(y.imag))
        whole = y.new_zeros(*y.shape[:2], self.signs.shape[2])
        whole.scatter_(2, self.places.expand(-1, y.shape[1], -1), y)
        return _convolve(whole, self.spectrum.conj()).mul_(self.signs)


def _convolve(x: Tensor, spectrum: Tensor) -> Tensor:
    convolved: Tensor = torch.fft.irfft(torch.fft.rfft(x).mul_(spectrum), n=x.shape[-1])
    return convolved
