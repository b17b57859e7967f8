"""What each process of a launch does in `test_distributed.py`: some trainings, noting its own share of the work."""

import io
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import ambient_sci.logs
import ambient_sci.methods.em
import ambient_sci.methods.starts
import ambient_sci.runs
import ambient_sci.training
from ambient_sci.config import TrainConfig
from ambient_sci.methods import AmbientLearner, EMLearner


def forbidden(*arguments: Any, **options: Any) -> Any:
    raise AssertionError(f"a process that is not the first wrote: {arguments}")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    noted: dict[str, Any] = {}

    def note_losses(learner: Any) -> None:
        original = learner.loss

        def loss(self: Any, denoiser: Any, batch: Any) -> Tensor:
            noted["trained"].append(batch.index.tolist())
            if os.environ.get("STRUCK") == str(rank) and len(noted["trained"]) == 3:
                signal.raise_signal(signal.SIGTERM)
            return original(self, denoiser, batch)

        learner.loss = loss

    def note_draws(prior: Any, m: Any, *arguments: Any, **options: Any) -> Tensor:
        noted["drawn"] += m.index.tolist()
        return draw(prior, m, *arguments, **options)

    note_losses(EMLearner)
    note_losses(AmbientLearner)
    draw = ambient_sci.methods.em.draw_posterior
    ambient_sci.methods.em.draw_posterior = note_draws
    ambient_sci.methods.starts.CHUNK = 8
    ambient_sci.methods.em.TIMES = 1  # a lap of all scans
    if rank:
        ambient_sci.runs.save_tensors = ambient_sci.runs.replacing = ambient_sci.logs.replacing = forbidden
        ambient_sci.logs.json = SimpleNamespace(dumps=forbidden)
        sys.stderr = io.StringIO()
    for name, (options, environment) in json.loads((folder / "runs.json").read_text()).items():
        noted |= {"trained": [], "drawn": [], "status": 0}
        os.environ.update(environment)
        try:
            ambient_sci.training.train(TrainConfig(**options))
        except SystemExit as end:
            noted["status"] = end.code
        for variable in environment:
            del os.environ[variable]
        (folder / f"{name}-{rank}.json").write_text(json.dumps(noted))
    if rank:
        (folder / "said.txt").write_text(sys.stderr.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
