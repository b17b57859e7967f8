"""Samples of a few scans, as many images at a time as the device's memory holds.

What does not fit is done in two halves: of the scans, or of the samples of one scan. Samples depend on their own number
and their scan's (`ambient_sci.posterior.draw`), so that halves join to what the whole would have been.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from ambient_sci.errors import ConfigError
from ambient_sci.measurement import Measurement
from ambient_sci.posterior.draw import draw_posterior
from ambient_sci.prior import Prior
from ambient_sci.reconstruction.summary import misfit

__all__ = ["Pieces"]


class Pieces:
    """Draws samples, and remembers how many images fit.

    Parameters
    ----------
    prior
        A learned prior.
    limit
        Images in the network at once, at most.
    options
        Of `ambient_sci.posterior.draw.draw_posterior`.
    """

    def __init__(self, prior: Prior, limit: int, options: dict[str, Any]) -> None:
        self.prior, self.limit, self.options = prior, limit, options
        self._limits: dict[tuple[int, ...], int] = {}  # of scans of each size
        self._said = False

    def draw(self, measurement: Measurement, samples: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Draw samples ``(scan, draw, channel, *spatial)`` in normalised units and their residuals ``(scan, draw)``.

        Raises
        ------
        ConfigError
            If not even one image fits into the memory.
        """
        size, images = tuple(measurement.y.shape[1:]), len(measurement) * samples
        if images <= self._limits.get(size, self.limit):
            try:
                return self._at_once(measurement, samples, first)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
            if self.prior.device.type == "cuda":  # here, where the error no longer holds what was allocated
                torch.cuda.empty_cache()
            self._make_smaller(size, images, int(measurement.index[0]))
        if len(measurement) > 1:
            half = len(measurement) // 2
            parts = [self.draw(part, samples, first) for part in (measurement[:half], measurement[half:])]
            axis = 0
        else:
            half = samples // 2
            parts = [self.draw(measurement, half, first), self.draw(measurement, samples - half, first + half)]
            axis = 1
        drawn, residuals = zip(*parts, strict=True)
        return torch.cat(drawn, axis), torch.cat(residuals, axis)

    def _at_once(self, measurement: Measurement, samples: int, first: int) -> tuple[Tensor, Tensor]:
        measurement = measurement.to(self.prior.device)
        drawn = draw_posterior(self.prior, measurement, samples, first=first, **self.options)
        residuals = misfit(drawn.flatten(0, 1), measurement.repeat(samples))
        return drawn.cpu(), residuals.reshape(len(measurement), samples).cpu()

    def _make_smaller(self, size: tuple[int, ...], images: int, scan: int) -> None:
        if images == 1:
            raise ConfigError(
                f"scan {scan} does not fit into the memory of {self.prior.device}, not even one sample of it; "
                "take another device"
            )
        self._limits[size] = images // 2
        if not self._said:
            warnings.warn(
                f"{images} images at once do not fit into the memory of {self.prior.device}: scans are done in smaller "
                f"pieces; batch={images // 2} or less would do so from the start",
                stacklevel=2,
            )
            self._said = True


def _out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory was too small; the CPU's allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
