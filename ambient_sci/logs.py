"""How a run goes: a progress bar, ``log.jsonl``, samples of the prior, its error on held-out rows, TensorBoard.

A line of ``log.jsonl`` is an object: ``images`` seen, mean ``loss`` since the line before, norm of the last
``gradient`` before it is clipped, learning ``rate``, processor ``seconds`` without the preview that may follow, and at
previews ``held_out`` and ``chi_square`` (`ambient_sci.validation`). ``samples.png`` shows images drawn from the
averaged weights, always with the same noise. None of this changes what is learned.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ambient_sci.checkpoint import replacing
from ambient_sci.config import TrainConfig
from ambient_sci.datasets.store import Store
from ambient_sci.distributed import main
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.plot import tiles
from ambient_sci.posterior.ambient import AmbientDenoiser
from ambient_sci.prior import Prior
from ambient_sci.validation import held_out_error

__all__ = ["Log", "read_log"]

SAMPLES, STEPS = 8, 12


class Log:
    """Context that tells how a run goes; of several processes the first one tells.

    Parameters
    ----------
    config
        Options of the run.
    store
        Scans that the prior is learned from; their operators are what an ambient prior samples through.
    validation
        Scans set aside, of one size each.
    seen
        Images seen so far.
    progress
        Show a progress bar.
    """

    def __init__(
        self, config: TrainConfig, store: Store, validation: Sequence[Measurement], seen: int, progress: bool
    ) -> None:
        self.run, self.store, self.validation = config.out, store, validation
        self._board = _tensorboard(config.out, seen) if config.tensorboard and main() else None
        label = f"training ({config.method})"
        hidden = not (progress and main())
        self._held_out = [line["held_out"] for line in read_log(config.out) if "held_out" in line] if main() else []
        total = -(-config.images // config.batch) * config.batch  # steps are whole
        self._bar = tqdm(total=total, initial=seen, unit="image", desc=label, disable=hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    @property
    def stalled(self) -> int:
        """Previews since the one that predicted held-out rows best; 0 in processes that do not look."""
        return len(self._held_out) - 1 - int(np.argmin(self._held_out)) if self._held_out else 0

    def advance(self, images: int) -> None:
        """Count images on the bar."""
        self._bar.update(images)

    def write(self, record: dict[str, Any], prior: Prior | None = None) -> None:
        """Append a line; with a prior, look at it too.

        A log or a picture that cannot be written is not worth stopping for.
        """
        if not main():
            return
        if prior is not None:
            record = record | self._look(prior, record["images"])
            self._held_out += [record["held_out"]] if "held_out" in record else []
        with contextlib.suppress(OSError), (self.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        shown = {name: f"{record[name]:.4f}" for name in ("loss", "held_out") if name in record}
        self._bar.set_postfix(shown, refresh=False)
        if self._board is not None:
            for name, value in record.items():
                if name != "images":
                    self._board.add_scalar(name, value, record["images"])
            self._board.flush()

    def _look(self, prior: Prior, seen: int) -> dict[str, float]:
        from PIL import Image

        # an ambient prior of projections restores, but has no samples: noise of images is no noise of theirs
        with contextlib.suppress(DataError):
            picture = tiles(self._samples(prior))
            with contextlib.suppress(OSError), replacing(self.run / "samples.png") as partial:
                Image.fromarray(picture).save(partial, format="png")
            if self._board is not None:
                self._board.add_image("samples", picture, seen, dataformats="HW")
        if not self.validation:
            return {}
        found = held_out_error(prior, self.validation)
        values = {"held_out": found.error, "chi_square": found.chi_square}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _samples(self, prior: Prior) -> NDArray[Any]:
        operator = None
        if isinstance(prior.denoiser, AmbientDenoiser):
            scans = self.store.groups[0].scans
            operator = self.store.read(scans[np.arange(SAMPLES) % len(scans)]).operator.to(prior.device)
        drawn = prior.sample(SAMPLES, STEPS, "multistep", operator=operator)
        images: NDArray[Any] = drawn.abs().numpy(force=True)
        # of volumes the middle slice
        return images[:, 0] if images.ndim == 4 else images[:, 0, images.shape[2] // 2]


def read_log(run: Path) -> list[dict[str, Any]]:
    """Lines of the log of a run; none where there is no log, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return []


def _tensorboard(run: Path, seen: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tensorboard needs the package of that name: pip install tensorboard") from None
    # what was written after the checkpoint is about to happen again
    return SummaryWriter(run / "tensorboard", purge_step=seen + 1)
