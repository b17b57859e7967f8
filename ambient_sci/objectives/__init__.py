"""What training minimises: one file an objective, each a function from a batch to a loss per scan."""

from ambient_sci.objectives.ambient import ambient_loss
from ambient_sci.objectives.denoising import denoising_loss

__all__ = ["ambient_loss", "denoising_loss"]
