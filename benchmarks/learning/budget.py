r"""How many images a method may see, so that all methods train for the same time.

The time is that in which the oracle sees a given number of images, the budget :math:`N`. Short runs of the oracle and
of the method, one after the other and twice, are timed by their logs in processor time, and :math:`n` is the largest
number with

.. math:: t_\text{earlier} + t_\text{start} + \sum_{\text{laps}(n)} t_\text{lap} + n \, t_\text{image}
          \le N \, t_\text{oracle},

where :math:`t_\text{earlier}` is the time of the run that it begins with, if it does. Samples of a lap take time for
every scan; so do the images to start from, after their regularisation was chosen, which takes the same time whatever
the number of scans. Short runs on few scans and on some more tell the two apart. Only ratios of times count, which
other programs on the machine change little. What the training really took is in its row.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ambient_sci import TrainConfig, train
from ambient_sci.methods.em import lap_count, lap_scans

__all__ = ["planned_images"]

FIRST, ALL, REPEATS = 512, 1024, 2  # the log has a line of the first step to reach either number of images


class Cost(NamedTuple):
    """Seconds of an image, of the start, and of a lap, on the few scans."""

    image: float
    start: float
    lap: float


def planned_images(
    probes: dict[int, Path], scans: int, options: dict[str, Any], budget: int, earlier: float = 0.0
) -> int:
    """Images that a method may see.

    Parameters
    ----------
    probes
        Stores of few of the scans and of some more, with references, by their numbers of scans.
    scans
        The number of all.
    options
        Those of the training, but for its store, folder and images.
    budget
        Images that the oracle may see.
    earlier
        Seconds of the processor that the run took whose weights or images this one begins with.
    """
    if options.get("method") == "oracle":
        return budget
    bare = {name: value for name, value in options.items() if name not in ("start_from", "clean")}
    few, more = sorted(probes)
    runs = [
        (_cost(probes[more], {**bare, "method": "oracle"}), _cost(probes[more], options), _cost(probes[few], options))
        for _ in range(REPEATS)
    ]
    oracle, own, least = (Cost(*map(min, zip(*costs, strict=True))) for costs in zip(*runs, strict=True))
    each = max(own.start - least.start, 0.0) / (more - few)
    before = earlier + max(own.start - more * each, 0.0) + scans * each

    def seconds(images: int) -> float:
        config = TrainConfig(store=probes[more], out=probes[more], **{**options, "images": images})
        laps = sum(len(lap_scans(config, scans, lap)) for lap in range(lap_count(config)) if config.method == "em")
        return before + laps * own.lap / more + images * own.image

    batch = TrainConfig(store=probes[more], out=probes[more], **options).batch
    fits, beyond = 0, 1 + int(budget * oracle.image / own.image / batch)  # steps
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if seconds(middle * batch) <= budget * oracle.image else (fits, middle)
    if fits * batch < FIRST:
        raise SystemExit(
            f"error: a budget of {budget} is too little: what goes before takes the time of {before / oracle.image:.0f}"
        )
    return fits * batch


def _cost(probe: Path, options: dict[str, Any]) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(store=probe, out=Path(folder) / "run", **options)
        first, every = (-(-count // config.batch) * config.batch for count in (FIRST, ALL))
        laps = min(1, options.get("laps", 1))
        short = {"laps": laps, "start_images": first, "images": every, "checkpoint": 10 * every}
        train(config.model_copy(update=short), progress=False)
        lines = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    at = {line["images"]: line["seconds"] for line in lines}
    image = (at[first] - at[config.batch]) / (first - config.batch)
    return Cost(
        image, at[config.batch] - config.batch * image, max(at[every] - at[first] - (every - first) * image, 0.0)
    )
