r"""How many images a method may see so that its training takes a given time.

Time is processor time of one thread: what a quiet core would take, whatever else runs beside. A short run on a few
scans is timed by its log, and

.. math:: n = \frac{T - t_\text{start} - \text{laps} \times t_\text{lap}}{t_\text{image}},

where what is done for every scan, reconstructions to start from and the samples of a lap, grows with their number.
What the training then really took is in its row.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ambient_sci import TrainConfig, train

__all__ = ["planned_images"]

FIRST, ALL = 512, 1024  # the log has a line of either


def planned_images(probe: Path, share: float, options: dict[str, Any], seconds: float) -> int:
    """Images that fit into so many seconds.

    Parameters
    ----------
    probe
        A store of a few of the scans.
    share
        How many times more there are.
    options
        Those of the training, but for its store, folder and images.
    seconds
        Processor time.
    """
    laps = options.get("laps", TrainConfig.model_fields["laps"].default)
    short = {**options, "laps": min(laps, 1), "start_images": FIRST}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(store=probe, out=Path(folder) / "run", images=ALL, checkpoint=10 * ALL, **short)
        train(config, progress=False)
        lines = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    at = {line["images"]: line["seconds"] for line in lines}
    step = (at[FIRST] - at[config.batch]) / (FIRST - config.batch)
    start, lap = at[config.batch] - config.batch * step, at[ALL] - at[FIRST] - (ALL - FIRST) * step
    left = seconds - share * (start + (laps * lap if config.method == "em" else 0))
    images = int(left / step) // config.batch * config.batch
    if images < FIRST:
        raise SystemExit(f"error: {seconds:g} s are too few, {seconds - left:.0f} of them go by before the first step")
    return images
