"""Diffusion priors learned from corrupted measurements, and posterior samples with error bars.

The names below are loaded on first use, so that ``import ambient_sci`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ambient_sci.audit import audit_prior
    from ambient_sci.config import TrainConfig
    from ambient_sci.datasets.store import open_store
    from ambient_sci.evaluate.held_out import validate_prior
    from ambient_sci.measurement import Measurement
    from ambient_sci.prior import load_prior
    from ambient_sci.reconstruction import reconstruct
    from ambient_sci.training import train

__version__ = "0.1.0"
__all__ = [
    "Measurement",
    "TrainConfig",
    "audit_prior",
    "load_prior",
    "open_store",
    "reconstruct",
    "train",
    "validate_prior",
]

_HOMES = {
    "Measurement": "ambient_sci.measurement",
    "TrainConfig": "ambient_sci.config",
    "audit_prior": "ambient_sci.audit",
    "load_prior": "ambient_sci.prior",
    "open_store": "ambient_sci.datasets.store",
    "reconstruct": "ambient_sci.reconstruction",
    "train": "ambient_sci.training",
    "validate_prior": "ambient_sci.evaluate.held_out",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ambient_sci' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
