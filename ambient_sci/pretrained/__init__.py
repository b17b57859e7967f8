"""Networks that others trained on other images, as denoisers of this package.

`denoiser` is what they become, `files` how they are read from folders that diffusers saved.
"""

from ambient_sci.pretrained.denoiser import PretrainedAmbientDenoiser, PretrainedDenoiser, PretrainedNetwork
from ambient_sci.pretrained.files import is_pipeline, read_pipeline

__all__ = ["PretrainedAmbientDenoiser", "PretrainedDenoiser", "PretrainedNetwork", "is_pipeline", "read_pipeline"]
