"""Posterior methods: each a denoiser that wraps a denoiser and a measurement, so that any sampler runs it."""

from ambient_sci.posterior.adps import ADPS
from ambient_sci.posterior.ambient import AmbientDenoiser, FixedMask, restore
from ambient_sci.posterior.mmps import MMPS

__all__ = ["ADPS", "MMPS", "AmbientDenoiser", "FixedMask", "restore"]
