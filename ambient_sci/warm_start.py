"""Beginning with the weights of an earlier run, of the same or another acceleration, noise, or method.

Averaged weights are taken where the networks do the same: denoise images, or restore measurements. Expectation-
maximisation can also begin after a run that restores, whose restorations are its first images; its weights are then
new ones.
"""

from pathlib import Path

from torch import nn

from ambient_sci.config import TrainConfig
from ambient_sci.errors import ConfigError
from ambient_sci.prior import saved_prior

__all__ = ["earlier_options", "warm_start"]


def earlier_options(run: Path) -> TrainConfig:
    """Read the options that an earlier run's prior was learned with."""
    return saved_prior(run)[-1]


def warm_start(denoiser: nn.Module, config: TrainConfig) -> None:
    """Take over the averaged weights of ``config.start_from``, where they are of a network that does the same.

    Raises
    ------
    ConfigError
        If that run's network does something else, or is of another size.
    """
    assert config.start_from is not None
    _, tensors, _, earlier = saved_prior(config.start_from)
    if earlier.restores != config.restores:
        if config.method == "em":
            return  # what is taken over is images
        raise ConfigError(
            f"method {config.method!r} cannot start from a run of method {earlier.method!r}, whose network does "
            "something else; em can"
        )
    own = {name: value.shape for name, value in denoiser.state_dict().items()}
    if own != {name: value.shape for name, value in tensors.items()}:
        raise ConfigError(
            f"the network of {config.start_from} is another one: give the same widths, blocks and patch as there "
            f"({earlier.widths}, {earlier.blocks}, {earlier.patch}), and images of as many channels"
        )
    denoiser.load_state_dict(tensors)
