r"""Storage, time and cost from a thousand to a billion scans: ``python -m benchmarks.scale``.

Nothing is measured here. What was measured elsewhere in these benchmarks, on one core, is multiplied by how many scans
there are and divided by what hardware is assumed to be worth:

.. math:: t_\text{read} = \frac{N b}{r}, \qquad
          t_\text{train} = \frac{\max(I, e N)}{u \, v_\text{image}} + \frac{l N}{u \, v_\text{sample}}, \qquad
          t_\text{posterior} = \frac{K N}{u \, v_\text{sample}}

for ``N`` scans of ``b`` bytes read at ``r`` bytes a second, ``I`` training images at least and ``e`` for each scan,
``l`` posterior samples of every scan while training, ``K`` at the end, rates ``v`` of a core, and ``u`` cores' worth of
hardware. No work is faster than reading what it is about. Every input is an option, so that the table can be made again
with figures of your own.

Example: ``python -m benchmarks.scale --gpu 500 --price 3``
"""

import argparse
from collections.abc import Sequence

__all__ = ["main", "table"]

SCANS = (10**3, 10**5, 10**7, 10**9)
MEASURED = {
    "bytes": (524e3, "bytes of a scan in memory: 64 x 64, 8 coils, with its maps (20 GB in 38147 scans)"),
    "disk": (0.585, "part of that on the disk, compressed (11.7 of 20 GB)"),
    "read": (397e6, "bytes a second, shuffled, checked and scaled, on two cores"),
    "train": (86.0, "training images a second of a core (oracle of mri-r4: 240,000 in 2805 s)"),
    "sample": (3.7, "posterior samples a second of a core (benchmarks.pipeline: 4 in 1.08 s)"),
}
ASSUMED = {
    "least": (240e3, "training images at least"),
    "epochs": (2.0, "training images for each scan of large stores"),
    "laps": (1.0, "posterior samples of every scan while training (em)"),
    "samples": (8.0, "posterior samples of every scan at the end"),
    "gpu": (300.0, "cores that one GPU is worth"),
    "scaling": (0.9, "part of that which is left when several share the work"),
    "price": (2.5, "of a GPU for an hour, of 32 cores as much"),
    "bandwidth": (2e9, "bytes a second that a node reads at most"),
}
# cores and GPUs of a node, nodes
HARDWARE = {"one machine, 32 cores": (32, 0, 1), "one node, 8 GPUs": (0, 8, 1), "64 nodes of 8 GPUs": (0, 8, 64)}


def duration(seconds: float) -> str:
    """Write seconds in the largest unit of which there are two; below a minute starting up takes longer."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return "1 min" if seconds >= 60 else "below 1 min"


def amount(size: float) -> str:
    """Write bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def table(given: dict[str, float]) -> str:
    """Storage, times and cost by hardware and number of scans, as Markdown."""
    lines = [
        "| hardware | scans | on the disk | read once | train | posteriors of all | cost |",
        "|---|--:" + "|--:" * 5 + "|",
    ]
    for name, (cores, gpus, nodes) in HARDWARE.items():
        together = given["scaling"] if nodes * max(cores, gpus) > 1 else 1.0
        worth = nodes * (cores + gpus * given["gpu"]) * together
        speed = nodes * min(given["bandwidth"], given["read"] * max(cores, 16 * gpus) / 2)
        for scans in SCANS:
            read = scans * given["bytes"] / speed
            images = max(given["least"], given["epochs"] * scans)
            drawn = given["laps"] * scans
            train = max(images / (worth * given["train"]) + drawn / (worth * given["sample"]), read)
            posteriors = max(scans * given["samples"] / (worth * given["sample"]), read)
            cost = (train + posteriors) / 3600 * given["price"] * nodes * (gpus or cores / 32)
            cells = (
                f"10^{len(str(scans)) - 1}",
                amount(scans * given["bytes"] * given["disk"]),
                duration(read),
                duration(train),
                duration(posteriors),
                f"{cost:,.0f}" if cost >= 1 else "below 1",
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the inputs and the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    for kind, inputs in (("measured", MEASURED), ("assumed", ASSUMED)):
        for name, (value, about) in inputs.items():
            parser.add_argument(f"--{name}", type=float, default=value, help=f"{kind}: {about} [{value:g}]")
    given = vars(parser.parse_args(arguments))
    for kind, inputs in (("measured", MEASURED), ("assumed", ASSUMED)):
        print("\n".join(f"- {kind}: {given[name]:g} {about}" for name, (_, about) in inputs.items()))
    print(f"\n{table(given)}")


if __name__ == "__main__":
    main()
