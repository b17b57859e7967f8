"""Methods of learning, by the name that `TrainConfig.method` gives them: one file a family, each a `Learner`."""

from collections.abc import Callable

from ambient_sci.config import Method, TrainConfig
from ambient_sci.datasets.store import Store
from ambient_sci.methods.ambient import AmbientLearner
from ambient_sci.methods.base import ImageLearner, Learner
from ambient_sci.methods.baselines import OracleLearner, TotalVariationLearner, WaveletLearner
from ambient_sci.methods.em import EMLearner
from ambient_sci.methods.gan import AmbientGANLearner

__all__ = ["METHODS", "ImageLearner", "Learner"]

#: Learners by the name of their method.
METHODS: dict[Method, Callable[[TrainConfig, Store, bool], Learner]] = {
    "em": EMLearner,
    "ambient": AmbientLearner,
    "l1-edm": WaveletLearner,
    "tv-edm": TotalVariationLearner,
    "ambient-gan": AmbientGANLearner,
    "naive": AmbientLearner,
    "oracle": OracleLearner,
}
