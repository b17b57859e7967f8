"""What training minimises: one file an objective, each from a batch and what was drawn for it to a loss per scan."""

from ambient_sci.objectives.ambient import ambient_loss, corruption
from ambient_sci.objectives.denoising import denoising_loss

__all__ = ["ambient_loss", "corruption", "denoising_loss"]
