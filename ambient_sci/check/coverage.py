r"""Which rows are measured how often, given what the network is shown.

Let :math:`m \in \{0, 1\}^K` say which rows of a scan were measured, :math:`A = \mathrm{diag}(m) B` with :math:`B` all
rows of that scan (its coil maps, its kernel: they are known to the network and are conditioned on), and let the further
corruption :math:`\tilde m` lose each measured row with probability :math:`\delta_k` (0 for calibration). Then

.. math:: E[A^H A \mid \tilde A] = B^H \mathrm{diag}(g) B, \qquad
          g_k = 1 \text{ if } \tilde m_k = 1, \quad g_k = P(m_k = 1 \mid \tilde m) \text{ if not.}

The probability is over all of :math:`\tilde m`, and with few scans that is not to be had: when all masks differ,
:math:`\tilde m` names its scan. What can be estimated is its average over those :math:`\tilde m` in which row :math:`k`
was lost or not there, by Bayes' rule from the part :math:`p_k` of scans that measure the row:

.. math:: c_k = E[g_k \mid \tilde m_k = 0] = P(m_k = 1 \mid \tilde m_k = 0)
              = \frac{\delta_k p_k}{1 - (1 - \delta_k) p_k}.

It is exact where rows are measured independently of each other (corollary of theorem 4.1 in Daras et al. 2023,
arXiv:2305.19256, with :math:`p = 1 - p_\text{paper}`), and zero just where a row is never measured, or never lost
though not always measured. With a few patterns that many scans share, :math:`P(m \mid \tilde m) \propto P(m) \, [m \ge
\tilde m] \, \delta^{|m| - |\tilde m|}` is summed over the patterns, which is exact, and the smallest :math:`g_k`
averaged over :math:`\tilde m`.

Where the transform :math:`B` is unitary (``fourier``, ``mask``, ``identity``) the eigenvalues are the :math:`g_k`
themselves. Otherwise (``sense``, ``blur``, ``average``) the smallest one of :math:`B^H \mathrm{diag}(c) B` is found by
the Lanczos method for one scan's :math:`B`. Kinds whose rows are other functionals in every scan (``nufft``,
``gaussian``, compositions, plug-ins) have :math:`E[A^H A]` averaged over a sample of scans; of that the thinning loses
and asks for the part :math:`\delta`.

Pairs of rows: :math:`n_{jk}` is the number of scans that measured both. Where it is zero though rows as frequent as
these would have met five times by chance, the scheme keeps them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Identity, LinearOperator

__all__ = ["Rows", "all_rows", "conditional", "conditional_of_patterns", "lanczos", "pairs_apart", "protected_rows"]

PAIRED = 2048  # rows among which pairs are counted
CHANCE = 5.0  # scans in which a pair should have met by chance


@dataclass(frozen=True)
class Rows:
    """Which rows each of the scans measured that were looked at.

    Attributes
    ----------
    seen
        ``(scan, row)``, bool; rows in the order of the mask.
    shape
        Shape of one scan's mask.
    protected
        Rows that thinning never loses, ``(row,)``, bool.
    """

    seen: NDArray[np.bool_]
    shape: tuple[int, ...]
    protected: NDArray[np.bool_]

    @property
    def part(self) -> NDArray[np.float64]:
        """Part of the scans that measured each row, ``(row,)``."""
        return np.asarray(self.seen.mean(0))

    def patterns(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Different patterns ``(pattern, row)`` and by how many scans each was used."""
        packed = np.packbits(self.seen, axis=1)
        _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
        return self.seen[first], counts

    def on(self, values: NDArray[np.floating]) -> Tensor:
        """Values of rows, to multiply measurements with: ``(1, *mask)``."""
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(1, *self.shape)


def all_rows(operator: LinearOperator) -> LinearOperator | None:
    """All rows of the scans, measured or not; none where a row is another functional in every scan."""
    if isinstance(operator, Identity):
        return operator
    mask = operator.parameters.get("mask")
    if mask is None or operator.rows.shape != mask.shape:
        return None
    return operator.build({**operator.parameters, "mask": torch.ones_like(mask)}, operator.settings)


def protected_rows(operator: LinearOperator) -> Tensor | None:
    """Rows that are kept when every row that can be lost is, like ``operator.rows``; none if it cannot be thinned."""
    try:
        return operator.thin(1.0, torch.Generator()).rows
    except DataError:
        return None


def conditional(part: NDArray[np.float64], protected: NDArray[np.bool_], thinning: float) -> NDArray[np.float64]:
    r"""Probability :math:`c_k` that a row was measured, given that the network is not shown it.

    Parameters
    ----------
    part
        Part of the scans that measured each row.
    protected
        Rows that are never lost.
    thinning
        Probability :math:`\delta` with which others are.
    """
    lost = np.where(protected, 0.0, thinning)
    hidden = 1 - (1 - lost) * part  # chance that it is not shown
    return np.where(hidden > 0, lost * part / np.where(hidden > 0, hidden, 1), 1.0)


def conditional_of_patterns(
    patterns: NDArray[np.bool_],
    counts: NDArray[np.int64],
    protected: NDArray[np.bool_],
    thinning: float,
    generator: torch.Generator,
    draws: int = 128,
) -> tuple[float, NDArray[np.float64]]:
    r"""Smallest :math:`g_k`, averaged over :math:`\tilde m`, and the average of every :math:`g_k`.

    Parameters
    ----------
    patterns, counts
        Different patterns ``(pattern, row)``, and how often each occurs.
    protected, thinning
        As for `conditional`.
    generator
        Source of the patterns :math:`\tilde m`.
    draws
        How many of them.
    """
    smallest, total = 0.0, np.zeros(patterns.shape[1])
    chosen = torch.multinomial(torch.from_numpy(counts).double(), draws, replacement=True, generator=generator)
    for pattern in patterns[chosen.numpy()]:
        kept = torch.rand(len(pattern), generator=generator).numpy() >= thinning
        shown = pattern & (kept | protected)
        possible = (patterns | ~shown).all(1) & ((patterns & protected) == (shown & protected)).all(1)
        extra = (patterns & ~shown).sum(1)
        chance = np.log(counts) + extra * np.log(max(thinning, 1e-300))
        weight = np.where(possible, np.exp(chance - chance[possible].max()), 0.0)
        g = np.maximum((weight / weight.sum()) @ patterns, shown)
        smallest += g.min() / draws
        total += g / draws
    return smallest, total


def pairs_apart(rows: Rows, weight: NDArray[np.float64], generator: torch.Generator) -> tuple[float, float]:
    """Energy of what never meets in one scan, and how often a typical pair of rows does.

    Parameters
    ----------
    rows
        Which rows were measured.
    weight
        Energy of each row.
    generator
        Chooses rows where there are too many.

    Returns
    -------
    apart
        For a row that a scan did not measure, the energy-weighted part of the scan's measured rows that no scan ever
        measured together with it, though chance would have; averaged over scans and rows with their energy.
    together
        Median over pairs of rows that vary of the part of the scans that measured both.
    """
    chosen = torch.randperm(rows.seen.shape[1], generator=generator)[:PAIRED].numpy()
    seen = rows.seen[:, chosen].astype(np.float32)
    energy = weight[chosen].astype(np.float32)
    both = seen.T @ seen
    part = seen.mean(0)
    never = (both == 0) & (len(seen) * np.outer(part, part) >= CHANCE)
    measured, missing = seen * energy, (1 - seen) * energy
    around = (measured @ never) / np.maximum(measured.sum(1, keepdims=True), 1e-30)
    apart = float((missing * around).sum() / max(float(missing.sum()), 1e-30))
    varying = (part > 0) & (part < 1)
    off = both[np.ix_(varying, varying)][~np.eye(int(varying.sum()), dtype=bool)]
    return apart, float(np.median(off)) / len(seen) if len(off) else 1.0


def lanczos(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[float, float, Tensor]:
    """Extreme eigenvalues of a Hermitian map, by the Lanczos method with full reorthogonalisation.

    Parameters
    ----------
    apply
        The map, from a tensor to one like it.
    start
        Where to start: not orthogonal to what is sought, so best random.
    steps
        Applications of the map; fewer when the space is exhausted.

    Returns
    -------
    smallest, largest
        The smallest comes out too large, the largest too small, the less so the more steps.
    direction
        Of the smallest, of unit norm.
    """
    shape, v = start.shape, start.flatten() / torch.linalg.vector_norm(start)
    basis, alphas, betas = [v], [], []
    for _ in range(min(steps, v.numel())):
        w = apply(basis[-1].reshape(shape)).flatten()
        alphas.append(float(torch.vdot(basis[-1], w).real))
        for _ in range(2):  # once is not enough
            for other in basis:
                w = w - torch.vdot(other, w) * other
        beta = float(torch.linalg.vector_norm(w))
        if beta < 1e-6 * max(max(map(abs, alphas)), 1e-30):
            break
        betas.append(beta)
        basis.append(w / beta)
    off = torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    direction = sum((float(c) * u for c, u in zip(vectors[:, 0], basis, strict=False)), torch.zeros_like(v))
    return float(values[0]), float(values[-1]), direction.reshape(shape)
