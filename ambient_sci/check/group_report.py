"""What was found for the scans of one size, and what that means."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["HARDLY_ANY", "LEAST_SCANS", "ORDER", "GroupReport", "Verdict", "worse"]

Verdict = Literal["good", "marginal", "refused"]
LEAST_SCANS = 10.0
"""Scans that have to tell of a frequency: a variance is known from ``n`` samples to one part in the root of ``n``, so
that ten know it to a third."""
HARDLY_ANY = 3.0
"""Scans of which a frequency needs as many to count as measured at all."""
REFUSED_SHARE = 0.5
"""Starved part of the missing energy from which a prior would mostly invent."""
MARGINAL_SHARE = 0.05
MARGINAL_DIRECTIONS = 0.01
ORDER: tuple[Verdict, ...] = ("good", "marginal", "refused")


@dataclass(frozen=True)
class GroupReport:
    r"""What was found for the scans of one size.

    Attributes
    ----------
    image_shape
        ``(channel, *spatial)``.
    domain
        ``"frequencies"`` or ``"pixels"``: what maps and bands are of.
    scans, looked_at, patterns
        Scans there are, scans that were looked at, and different sampling patterns among these.
    ever_measured
        Part of the frequencies or pixels that scans measure at all.
    measured
        Part of them that a scan measures: least, median and most over scans.
    effective_scans
        Sum over scans of the share of each frequency's power that the scan determines, ``(*spatial,)``.
    starved
        Part of each frequency's power that all scans together leave unknown, ``(*spatial,)``.
    unmeasured
        The same if there were no noise.
    power
        Power of the images per real component, ``(*spatial,)``.
    bands
        Rings of frequencies from the centre out: ``radius`` (1 is the edge of an axis), ``snr``, ``effective_scans``.
    missing
        Part of the images' energy that a scan leaves unknown to a linear estimate.
    starved_share
        Starved part of that missing energy.
    rare_share
        Part of it in frequencies or pixels that fewer than ten scans measured.
    eigenvalue, eigenvalue_error
        Smallest eigenvalue of :math:`E[A^H A \mid \tilde A]`, averaged over :math:`\tilde A`, and its error.
    eigenvalue_how
        How it was found.
    apart
        Energy share of what never meets in one scan; none where rows have no meaning of their own.
    together
        In how many scans a typical pair of rows was measured together.
    thinning, suggested_thinning
        Fraction of rows that was taken to be lost in training, and the one to use.
    acceleration, supported
        Inverse of the part that scans measure outside of the calibration; and the accelerations at which random
        patterns of so many scans measure a pair of rows together in ten scans (comfortable) and in one (the most).
    """

    image_shape: tuple[int, ...]
    domain: str
    scans: int
    looked_at: int
    patterns: int
    ever_measured: float
    measured: tuple[float, float, float]
    effective_scans: NDArray[np.float64]
    starved: NDArray[np.float64]
    unmeasured: NDArray[np.float64]
    power: NDArray[np.float64]
    bands: dict[str, list[float]]
    missing: float
    starved_share: float
    rare_share: float
    eigenvalue: float
    eigenvalue_error: float
    eigenvalue_how: str
    apart: float | None
    together: float | None
    unitary: bool
    thinning: float
    suggested_thinning: float
    acceleration: float
    supported: tuple[float, float]

    @property
    def directions(self) -> dict[str, float]:
        """Parts of the frequencies, and of the energy, that are not measured, and that are but drown in noise."""
        without = self.unmeasured > 0.5
        noisy = (self.starved > 0.5) & ~without
        total = max(float(self.power.sum()), 1e-30)
        return {
            "unmeasured": float(without.mean()),
            "unmeasured_energy": float(self.power[without].sum() / total),
            "noisy": float(noisy.mean()),
            "noisy_energy": float(self.power[noisy].sum() / total),
        }

    def judge(self) -> tuple[Verdict, list[str], list[str]]:
        """Verdict, reasons, and what to do about them."""
        verdict: Verdict = "good"
        reasons, advice = [], []
        part = self.directions
        invented = f"{self.starved_share:.0%} of the energy that a scan leaves unknown is starved"
        if self.scans <= LEAST_SCANS:
            verdict = "refused"
            count = "one scan is" if self.scans == 1 else f"{self.scans} scans are"
            reasons.append(f"{count} too few to tell even the power of each frequency or pixel")
            advice.append("measure more scans, or use a prior that was learned from others")
        elif self.starved_share >= REFUSED_SHARE:
            verdict = "refused"
            if part["unmeasured_energy"] >= part["noisy_energy"]:
                same = "all scans have one pattern: the mean of A^H A is singular, and no thinning helps"
                reasons.append(f"{invented}: {same if self.patterns == 1 else self._unmeasured_text()}")
                advice += [
                    "vary the pattern between scans: other lines, another offset, another angle in each",
                    "add lines outside of the calibration, or coils: they measure what the pattern leaves out",
                    "without new scans: l1-wavelet reconstructions, a prior learned elsewhere, or EM with a structured "
                    "prior; a network learned from these scans would invent what is missing",
                ]
            else:
                reasons.append(f"{invented}: it drowns in the noise of all {self.scans} scans")
                advice.append("average more, or measure more scans")
        elif self.starved_share >= MARGINAL_SHARE or part["unmeasured"] >= MARGINAL_DIRECTIONS:
            verdict = "marginal"
            if part["unmeasured"] >= MARGINAL_DIRECTIONS:
                reasons.append(f"{self._unmeasured_text()}; {invented} and stays what the start of training makes it")
                advice.append("let some scans measure there, or take for invented what results show there")
            else:
                reasons.append(f"{invented}: mostly, it drowns in the noise of all {self.scans} scans")
                advice.append("average more, measure more scans, or do not trust the finest details")
        if self.rare_share >= MARGINAL_SHARE and verdict != "refused":
            verdict = "marginal"
            reasons.append(
                f"{self.rare_share:.0%} of the energy that a scan leaves unknown is where fewer than "
                f"{LEAST_SCANS:.0f} scans measured"
            )
            advice.append("measure more scans, or less undersampled ones")
        if self.apart is not None and self.apart >= MARGINAL_SHARE:
            refused = self.apart >= REFUSED_SHARE and self.unitary
            verdict = worse(verdict, "refused" if refused else "marginal")
            reasons.append(
                f"of what was measured, {self.apart:.0%} (by energy) is never in one scan with what was not: no scan "
                "tells how the two go together"
            )
            advice.append("draw patterns independently instead of from a few interleaved ones, or add calibration")
        elif self.together is not None and self.together < 1:
            verdict = worse(verdict, "marginal")
            reasons.append(f"most pairs of rows were never measured together ({self.together:.2f} scans on average)")
            advice.append(f"measure more scans, or less undersampled ones (acceleration up to {self.supported[1]:.2g})")
        return verdict, reasons, advice

    def _unmeasured_text(self) -> str:
        part = self.directions
        return (
            f"{part['unmeasured']:.0%} of the {self.domain} ({self.where()}) are not measured, with about "
            f"{part['unmeasured_energy']:.2%} of the energy"
        )

    def where(self) -> str:
        """Place of what is not measured, in words."""
        where = self.unmeasured > 0.5
        if not where.any():
            return "none"
        constant = [axis for axis in range(where.ndim) if (where == where.take([0], axis)).all()]
        if where.ndim > 1 and len(constant) == where.ndim - 1:
            (axis,) = set(range(where.ndim)) - set(constant)
            lines = np.flatnonzero(where.any(tuple(constant)))
            return f"lines {_ranges(lines)} of {where.shape[axis]}"
        if self.domain == "pixels":
            return f"{int(where.sum())} pixels"
        radius = _radius(where.shape)
        start = np.quantile(radius[where], 0.05)
        if (~where & (radius >= start)).sum() < 0.1 * where.sum():
            return f"beyond {start:.2f} of the highest frequency"
        return f"between {radius[where].min():.2f} and {radius[where].max():.2f} of the highest frequency"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, as JSON can hold it."""
        verdict, reasons, advice = self.judge()
        counts = np.quantile(self.effective_scans, (0, 0.5, 1)).tolist()
        names = (
            "domain",
            "scans",
            "looked_at",
            "patterns",
            "ever_measured",
            "bands",
            "missing",
            "starved_share",
            "rare_share",
        )
        more = ("directions", "eigenvalue", "eigenvalue_error", "eigenvalue_how", "apart")
        last = ("together", "thinning", "suggested_thinning", "acceleration", "supported")
        return {
            "verdict": verdict,
            "reasons": reasons,
            "advice": advice,
            "image_shape": list(self.image_shape),
            "measured": dict(zip(("least", "median", "most"), self.measured, strict=True)),
            "effective_scans": dict(zip(("least", "median", "most"), counts, strict=True)),
            "unmeasured_where": self.where(),
            **{name: getattr(self, name) for name in (*names, *more, *last)},
        }

    def facts(self) -> dict[str, str]:
        """Lines of the table."""
        low, middle, high = np.quantile(self.effective_scans, (0, 0.5, 1))
        size, part = " × ".join(map(str, self.image_shape)), self.directions
        least, median, most = (f"{100 * value:.3g}" for value in self.measured)
        span = f"{median} %" if least == most else f"{median} % ({least} to {most})"
        facts = {
            "scans": f"{self.scans} of {size}; {self.looked_at} looked at, {self.patterns} different patterns",
            "measured": f"{span} by a scan, {100 * self.ever_measured:.3g} % of {self.domain} by any",
            "effective scans": f"{low:.3g} / {middle:.3g} / {high:.3g} (least / median / most of {self.domain})",
            "signal to noise": self._rings(),
            "left unknown": f"{self.missing:.2%} of a scan's energy, {self.starved_share:.1%} of that starved",
            "unmeasured": f"{part['unmeasured']:.1%} of {self.domain} ({self.where()}), with about "
            f"{part['unmeasured_energy']:.2%} of the energy",
            "lost in noise": f"{part['noisy']:.1%} of {self.domain}, with about {part['noisy_energy']:.2%}",
            "eigenvalue": f"{self.eigenvalue:.3g} ± {self.eigenvalue_error:.1g} ({self.eigenvalue_how}), "
            f"thinning {self.thinning:g}",
        }
        if self.apart is not None and self.together is not None:
            facts["pairs"] = f"{self.apart:.1%} kept apart, {self.together:.3g} scans for a typical pair"
        facts["thinning"] = f"{self.suggested_thinning:.2g} suggested"
        facts["acceleration"] = (
            f"{self.acceleration:.3g}; so many scans support {self.supported[0]:.2g}, at most {self.supported[1]:.2g}"
        )
        return facts

    def _rings(self) -> str:
        if self.domain == "pixels":
            return f"{self.bands['snr'][0]:.2g} on average"
        edges = np.array(self.bands["radius"])
        rings = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)]
        snr = np.array(self.bands["snr"])
        values = [snr[(edges >= low) & (edges < high)] for low, high in rings]
        shown = " / ".join(f"{np.exp(np.log(v.clip(1e-12)).mean()):.2g}" for v in values if len(v))
        return f"{shown} (frequencies to 0.25 / 0.5 / 0.75 / 1 of the highest)"


def worse(one: Verdict, other: Verdict) -> Verdict:
    """Give the worse of two verdicts."""
    return max(one, other, key=ORDER.index)


def _radius(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance from the centre, 1 at the edge of an axis."""
    squares = np.zeros(())
    for size in shape:
        squares = squares[..., None] + ((np.arange(size) - size // 2) / max(size / 2, 1)) ** 2
    return np.asarray(np.sqrt(squares))


def _ranges(numbers: NDArray[np.int64]) -> str:
    """Numbers as ranges: ``3-5, 9``."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(shown) if len(shown) <= 6 else f"{', '.join(shown[:5])}, ... ({len(numbers)} in all)"
