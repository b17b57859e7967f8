r"""What scans leave unknown to someone who knows the power spectrum of images and nothing else.

Images are taken to be Gaussian with independent coefficients of power :math:`C_k` (per real component) in a basis:
frequencies, of an isotropic spectrum, or pixels where pixels are what is measured. Of a scan with the information
:math:`G = A^H \Sigma^{-1} A`, :math:`\Sigma` the noise variances per real component, there remains

.. math:: X = (C^{-1} + G)^{-1}, \qquad W_k = (X G)_{kk} = 1 - X_{kk} / C_k,

and :math:`W_k`, the *determined share*, is 0 for what the scan does not measure and :math:`\mathrm{snr} / (1 +
\mathrm{snr})` for what it measures directly. Diagonals are found from probes :math:`\xi` whose coefficients have
modulus one, :math:`W_k = E[\bar \xi_k (X G \xi)_k]` (Hutchinson 1990, Commun. Stat. Simul. 19:433): exact where
:math:`A^H A` is diagonal in the basis.

The spectrum is fitted to the measurements by Fisher scoring for the variances of a Gaussian (as in Patterson and
Thompson 1971, Biometrika 58:545),

.. math:: C_b \leftarrow C_b + \frac{\sum_{k \in b} |\hat x_k|^2 - W_k C_k}{\sum_{k \in b} \sum_l |(X G)_{kl}|^2},
          \qquad \hat x = X A^H \Sigma^{-1} y

over the coefficients :math:`k` of a band :math:`b` in all scans; where :math:`A^H A` is diagonal one step is the exact
:math:`|y|^2 - \sigma^2`. Bands of which scans say too little get what the power law of the outer known bands says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.operators import conjugate_gradient
from ambient_sci.operators.fourier import centred_fft, centred_ifft

__all__ = [
    "DIAGONAL",
    "Basis",
    "Information",
    "determined",
    "fit_power",
    "inform",
    "information",
    "noise_of",
    "posterior_mean",
    "resolve",
    "uncertainty",
]

Map = Callable[[Tensor], Tensor]
Information: TypeAlias = Map | Tensor
DIAGONAL = ("fourier", "mask", "identity")  # kinds with an A^H A that is diagonal, in frequencies or in pixels
STEPS, SETTLED = 16, 0.05  # of the fit, and relative change of the power at which it ends
COARSE, FINE = 10, 30  # conjugate gradient iterations of the first half of the steps, and of the others
KNOWN, MEASURED = 10.0, 0.01  # Fisher information (the power is known to a third) and share from which a band is fitted
FLOOR = 1e-3  # noise relative to the measured values that counts as none


@dataclass(frozen=True)
class Basis:
    """Coefficients of images: frequencies (centred, orthonormal) or the pixels themselves.

    Parameters
    ----------
    pixels
        Whether the coefficients are the pixels.
    shape
        ``(channel, *spatial)`` of an image.
    is_complex
        Whether images are complex.
    """

    pixels: bool
    shape: tuple[int, ...]
    is_complex: bool

    @property
    def parts(self) -> int:
        """Real components of a coefficient's own: 2 for complex images."""
        return 2 if self.is_complex else 1

    def coefficients(self, x: Tensor) -> Tensor:
        """Coefficients of images."""
        return x if self.pixels else centred_fft(x.to(x.dtype.to_complex()), len(self.shape) - 1)

    def images(self, z: Tensor) -> Tensor:
        """Images of coefficients."""
        if self.pixels:
            return z
        x = centred_ifft(z, len(self.shape) - 1)
        return x if self.is_complex else x.real

    def probes(self, count: int, generator: torch.Generator) -> Tensor:
        """Coefficients of modulus one and random phase, ``(count, *shape)``, of complex or of real images."""
        blank = torch.zeros(count, *self.shape, dtype=torch.complex64 if self.is_complex else torch.float32)
        z = self.coefficients(randn_like(blank, generator))
        return z / z.abs().clamp_min(torch.finfo(torch.float32).tiny)

    def bands(self) -> Tensor:
        """Give the number of each coefficient's band, like ``shape`` without the channels."""
        spatial = self.shape[1:]
        if self.pixels:
            return torch.arange(math.prod(spatial)).reshape(spatial)
        return (self.radius() * (max(spatial) / 2)).round().long()

    def radius(self) -> Tensor:
        """Distance of each frequency from the centre, 1 at the edge of an axis; like ``shape`` without the channels."""
        squares = torch.zeros(())
        for size in self.shape[1:]:
            offset = (torch.arange(size) - size // 2) / max(size / 2, 1)
            squares = squares[..., None] + offset**2
        return squares.sqrt()


def noise_of(m: Measurement) -> Tensor:
    """Noise per real component with as many axes as ``y``; not quite zero where it is said to be."""
    measured = m.operator.rows.expand(m.y.shape).flatten(1).sum(1).clamp_min(1)
    rms = (m.y.abs().square().flatten(1).sum(1) / measured).sqrt().reshape(-1, *[1] * (m.y.ndim - 1))
    return torch.maximum(m.noise, FLOOR * rms.clamp_min(torch.finfo(m.y.real.dtype).tiny))


def information(m: Measurement, basis: Basis) -> Information:
    r"""Make :math:`G = A^H \Sigma^{-1} A` of every scan, a map of images; where it is diagonal, its diagonal."""
    noise, A = noise_of(m), m.operator
    if A.kind in DIAGONAL and basis.pixels == (A.kind != "fourier"):
        return (A.rows / noise**2).expand(len(m), *basis.shape)
    scalar = noise.numel() == len(noise)

    def apply(x: Tensor) -> Tensor:
        image = A.gram(x) / noise.reshape(-1, *[1] * (x.ndim - 1)) ** 2 if scalar else A.adjoint(A(x) / noise**2)
        return image if x.is_complex() else image.real

    return apply


def inform(G: Information, z: Tensor, basis: Basis) -> Tensor:
    """Apply :math:`G` to coefficients."""
    return G * z if isinstance(G, Tensor) else basis.coefficients(G(basis.images(z)))


def resolve(G: Information, power: Tensor, rhs: Tensor, basis: Basis, iterations: int = 20) -> Tensor:
    r"""Solve :math:`(C^{-1} + G)\, x = r` for coefficients.

    Parameters
    ----------
    G
        A map from a batch of images to a batch of images, or a diagonal in the basis.
    power
        :math:`C`, broadcastable to the coefficients.
    rhs
        Coefficients :math:`r`, ``(batch, *shape)``.
    basis
        What they are coefficients of.
    iterations
        At most so many conjugate gradient iterations, unless :math:`G` is diagonal.
    """
    if isinstance(G, Tensor):
        return rhs * power / (1 + G * power)
    probe = basis.probes(1, torch.Generator().manual_seed(0)).expand(rhs.shape)
    gain = float((probe.conj() * inform(G, probe, basis)).real.mean().clamp_min(0))
    root, rest = (power / (1 + gain * power)).sqrt(), 1 / (1 + gain * power)  # preconditioned by (1 / C + gain)

    def scaled(u: Tensor) -> Tensor:
        return rest * u + root * inform(G, root * u, basis)

    return root * conjugate_gradient(scaled, root * rhs, iterations=iterations, tolerance=1e-4)


def determined(m: Measurement, power: Tensor, basis: Basis, generator: torch.Generator) -> Tensor:
    """Share of each coefficient's power that each scan determines, ``(batch, *shape)``, from one probe a scan."""
    G, probes = information(m, basis), basis.probes(len(m), generator)
    return (probes.conj() * resolve(G, power, inform(G, probes, basis), basis)).real


def posterior_mean(m: Measurement, power: Tensor, basis: Basis, iterations: int = 20) -> Tensor:
    """Coefficients of the linear estimate of every scan's image, ``(batch, *shape)``."""
    back = m.operator.adjoint(m.y / noise_of(m) ** 2)
    back = back if basis.is_complex else back.real
    return resolve(information(m, basis), power, basis.coefficients(back), basis, iterations)


def uncertainty(m: Measurement, power: Tensor, where: Tensor, basis: Basis, generator: torch.Generator) -> Tensor:
    """Sum of :math:`X_{kk}` over some coefficients, ``(batch,)``, from one probe a scan."""
    probes = basis.probes(len(m), generator) * where
    solved = resolve(information(m, basis), power, probes, basis, COARSE)
    return (probes.conj() * solved).real.flatten(1).sum(1)


def fit_power(
    parts: Sequence[Measurement],
    basis: Basis,
    generator: torch.Generator,
    tick: Callable[[], object],
    steps: int = STEPS,
) -> Tensor:
    """Power of each coefficient per real component, like ``shape`` without the channels.

    Parameters
    ----------
    parts
        Scans, in batches.
    basis
        Of the power.
    generator
        Source of the probes.
    tick
        Called after each batch of each iteration.
    steps
        Most iterations.
    """
    bands = basis.bands()
    flat = bands.flatten()
    count = torch.bincount(flat)
    power = torch.full(bands.shape, _level(parts, basis))
    for step in range(steps):
        iterations = COARSE if step < steps // 2 else FINE
        score, fisher, share = torch.zeros(3, len(count))
        for m in parts:
            G = information(m, basis)
            estimate = posterior_mean(m, power, basis, iterations).abs().square() / basis.parts
            probes = basis.probes(len(m), generator)
            explained = resolve(G, power, inform(G, probes, basis), basis, iterations)
            known = (probes.conj() * explained).real
            squared = explained.abs().square()
            for total, values in ((score, estimate - known * power), (fisher, squared), (share, known)):
                total.index_add_(0, flat, values.sum((0, 1)).flatten().to(total.dtype))
            tick()
        spectrum = torch.zeros(len(count)).index_put_((flat,), power.flatten())
        stepped = (spectrum + score / fisher.clamp_min(1e-9)).clamp(0.1 * spectrum, 10 * spectrum)
        seen = share / (count.clamp_min(1) * sum(map(len, parts)) * basis.shape[0])
        stepped = _completed(stepped, (fisher >= KNOWN) & (seen >= MEASURED), basis)
        power = stepped[flat].reshape(bands.shape)
        change = float((stepped / spectrum.clamp_min(1e-30)).log().abs().max())
        if iterations == FINE and change < SETTLED:
            break
    return power


def _level(parts: Sequence[Measurement], basis: Basis) -> float:
    """Power of white images that would give measurements of this energy."""
    m = parts[0]
    rows = m.operator.rows.expand(m.y.shape)
    signal = m.y.abs().square() / (2 if m.y.is_complex() else 1) - rows * m.noise**2
    white = basis.images(basis.probes(len(m), torch.Generator().manual_seed(0)))
    seen = m.operator(white).abs().square().sum()
    total = float(signal.sum().clamp_min(1e-3 * m.y.abs().square().sum()))
    # white images of unit power have coefficients of modulus one (two components: half the power each)
    return max(total * (2 if m.y.is_complex() else 1) / basis.parts / float(seen.clamp_min(1e-30)), 1e-20)


def _completed(spectrum: Tensor, good: Tensor, basis: Basis) -> Tensor:
    """Replace what lies outside of the longest run of known bands, and keep all above zero."""
    if not bool(good.any()):
        return spectrum.clamp_min(1e-20)
    spectrum = spectrum.clamp_min(1e-6 * float(spectrum[good].mean()))
    if basis.pixels:
        return torch.where(good, spectrum, spectrum[good].mean())
    edges = torch.cat([torch.zeros(1), good.float(), torch.zeros(1)]).diff()
    starts, ends = (edges > 0).nonzero().flatten(), (edges < 0).nonzero().flatten()
    longest = int((ends - starts).argmax())
    first, last = int(starts[longest]), int(ends[longest])
    outer = slice(max(first, (first + last) // 2 - 1), last)
    band = torch.arange(len(spectrum)).clamp_min(0.5).double().log()
    x, y = band[outer], spectrum[outer].double().log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum().clamp_min(1e-12))
    law = (y.mean() + min(slope, 0.0) * (band - x.mean())).exp().to(spectrum.dtype)
    return torch.cat([spectrum[first].expand(first), spectrum[first:last], law[last:]])
