"""Posterior methods: each a denoiser that wraps a denoiser and a measurement, so that any sampler runs it."""

from ambient_sci.posterior.ambient import AmbientDenoiser, FixedMask, ReconstructionGuidance, restore
from ambient_sci.posterior.guidance import ADPS, DPS
from ambient_sci.posterior.mmps import MMPS
from ambient_sci.posterior.proximal import DDS, DiffPIR

__all__ = ["ADPS", "DDS", "DPS", "MMPS", "AmbientDenoiser", "DiffPIR", "FixedMask", "ReconstructionGuidance", "restore"]
