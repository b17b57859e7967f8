"""What is to be done for some scans, by this process or by another one.

Variables are arrays by name, ``(scan, ...)``; `layout` has their dimensions.
"""

import copy
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import ambient_sci
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.evaluate.predictive import temper
from ambient_sci.prior import Prior, resolve_device
from ambient_sci.reconstruction.pieces import Pieces
from ambient_sci.reconstruction.source import Source
from ambient_sci.reconstruction.summary import quantiles_of, summarise

__all__ = ["Arrays", "Job", "Variable", "layout", "versions"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Variable:
    """Dimensions after ``scan``, their sizes, type and attributes of a variable."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, str]


def layout(
    image_shape: tuple[int, ...],
    is_complex: bool,
    samples: int,
    keep_samples: bool,
    quantiles: Sequence[float],
    units: str,
) -> dict[str, Variable]:
    """Variables of a reconstruction."""
    axes = ("channel", *("z", "y", "x")[-(len(image_shape) - 1) :])
    value = "magnitude" if is_complex else "value"
    image, real = np.dtype(np.complex64 if is_complex else np.float32), np.dtype(np.float32)
    found: dict[str, Variable] = {}

    def add(name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype[Any], about: str) -> None:
        unit = units if axes[0] in dims else "1"
        found[name] = Variable(dims, shape, dtype, {"long_name": about, "units": unit})

    if keep_samples:
        add("sample", ("draw", *axes), (samples, *image_shape), image, "posterior samples")
    add("mean", axes, image_shape, image, "posterior mean")
    add("std", axes, image_shape, real, "posterior standard deviation")
    add("lower", axes, image_shape, real, f"lower end of the credible interval of the {value}")
    add("upper", axes, image_shape, real, f"upper end of the credible interval of the {value}")
    if quantiles:
        shape = (len(quantiles), *image_shape)
        add("quantile", ("probability", *axes), shape, real, f"quantiles of the posterior samples' {value}")
    add("residual", ("draw",), (samples,), real, "misfit of each sample in units of the noise")
    add("effective_samples", (), (), real, "independent samples that the mean is worth")
    return found


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    return {
        "ambient_sci_version": ambient_sci.__version__,
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
    }


@dataclass(frozen=True)
class Job:
    """Everything that scans need to be reconstructed.

    Parameters
    ----------
    prior
        A learned prior.
    source
        The scans.
    samples, batch, keep_samples, quantiles, temperature
        See `ambient_sci.reconstruct`.
    options
        Of `ambient_sci.posterior.draw.draw_posterior`.
    """

    prior: Prior
    source: Source
    samples: int
    batch: int
    keep_samples: bool
    quantiles: tuple[float, ...]
    temperature: float
    options: dict[str, Any]

    @cached_property
    def pieces(self) -> Pieces:
        """Draws samples."""
        return Pieces(self.prior, self.batch, self.options)

    def compute(self, scans: NDArray[np.int64]) -> Arrays:
        """Reconstruct scans whose images have one shape, in the instrument's units."""
        drawn_parts, residuals, places = [], [], []
        for some, place in self.source.by_size(scans):
            measurement = self.source.read(some)
            drawn, residual = self.pieces.draw(measurement, self.samples)
            drawn_parts.append(drawn * measurement.scale.cpu().reshape(-1, *[1] * (drawn.ndim - 1)))
            residuals.append(residual)
            places.append(place)
        order = np.argsort(np.concatenate(places))
        drawn = temper(torch.cat(drawn_parts)[order], self.temperature)
        found = {"sample": drawn} if self.keep_samples else {}
        found |= summarise(drawn)
        if self.quantiles:
            found["quantile"] = quantiles_of(drawn, self.quantiles)
        found["residual"] = torch.cat(residuals)[order]
        return {name: value.numpy() for name, value in found.items()}


@dataclass(frozen=True)
class Shipment:
    """A job on its way to other processes, which take it up where they have the same software and the same scans."""

    job: Job
    device: str
    fingerprint: str
    versions: dict[str, str]

    @classmethod
    def of(cls, job: Job, device: str) -> "Shipment":
        """Pack a job; devices here mean nothing elsewhere."""
        return cls(_placed(job, "cpu"), device, job.source.fingerprint, versions())

    @cached_property
    def unpacked(self) -> Job:
        """The job on this process's device."""
        theirs = versions()
        wrong = [f"{name} {theirs[name]}, not {wanted}" for name, wanted in self.versions.items()
                 if theirs[name] != wanted]  # fmt: skip
        if wrong:
            raise ConfigError(f"a worker has {', '.join(wrong)}, with which results differ: install the same")
        if self.job.source.fingerprint != self.fingerprint:
            raise DataError("a worker finds another store at the same path; give one that all of them share")
        return _placed(self.job, resolve_device(self.device))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("job", "device", "fingerprint", "versions")}


def _placed(job: Job, device: torch.device | str) -> Job:
    """Copy a job, with its network on a device."""
    denoiser = copy.deepcopy(job.prior.denoiser).to(device)
    return replace(job, prior=replace(job.prior, denoiser=denoiser))
