"""The page beside a prior that says what it was learned from, what was checked, and where it ends.

It is the run's ``README.md``, in the form that model hubs read: a block of YAML, then Markdown. Nothing of it is
known only here. Where the store lies is left out, so that the page can go wherever the prior goes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ambient_sci.checkpoint import replacing
from ambient_sci.logs import read_log
from ambient_sci.prior import Prior

__all__ = ["LIMITS", "NAME", "checked", "data_of", "heading", "learned", "limits", "model_card", "write_model_card"]

NAME = "README.md"
MARK = "<!-- written in training; without this line it is left as it is -->"
DATA = "## Data"
PRIVATE = ("store", "fingerprint")  # facts of a store that say where it is, or that are said elsewhere
FRONT = """---
library_name: ambient-sci
tags:
- diffusion
- inverse-problems
- uncertainty
---
"""
COPIES = "It may remember scans that it learned from. `ambient-sci audit RUN SCANS` looks for copies."
LIMITS = (
    "It knows nothing about images of another kind, nor about scans of another instrument, noise or way of measuring. "
    "`ambient-sci validate RUN SCANS` says whether measured data agree with it, without known images.",
    "What no scan has measured, it cannot have learned. `ambient-sci check SCANS` says what that is.",
    "Errors of coil maps, calibration or noise levels are in what it learned.",
    COPIES,
    "Not a medical device.",
)


def model_card(prior: Prior, store: Mapping[str, Any], log: list[dict[str, Any]]) -> str:
    """Markdown of the page.

    Parameters
    ----------
    prior
        As it is now.
    store
        Facts about its store (`ambient_sci.datasets.describe`).
    log
        Lines of the training's log.
    """
    data = {name: value for name, value in store.items() if name not in PRIVATE}
    data["fingerprint"] = prior.trained_on.get("fingerprint")
    return "\n".join(
        [
            f"{FRONT}{MARK}",
            f"# {heading(prior)}",
            "",
            _table(learned(prior)),
            DATA,
            "",
            _table(data),
            "## Checks",
            "",
            f"{checked(log)}\n",
            "## Limits",
            "",
            *(f"- {text}" for text in limits(prior)),
            "",
            "## Use",
            "",
            '```python\nfrom ambient_sci import reconstruct\n\nposterior = reconstruct("RUN", "SCANS", samples=8)\n```',
            "",
        ]
    )


def heading(prior: Prior) -> str:
    """Say what a prior is, and what its training has seen."""
    known = "references, which only a simulation has" if prior.config.method == "oracle" else "measurements alone"
    if prior.config.clean is not None:
        known = "measurements and some clean images"
    return f"A diffusion prior learned from {known}"


def learned(prior: Prior) -> dict[str, Any]:
    """Facts about a prior; what is not known is None."""
    config, spent = prior.config, prior.trained_on.get("privacy")
    images = f"{'complex' if prior.is_complex else 'real'}, {' x '.join(map(str, prior.image_shape))}"
    return {
        "method": config.method,
        "images": f"{images} (channels first)",
        "images shown": f"{prior.images:,} of {config.images:,}",
        "begun with": config.pretrained or (config.start_from and config.start_from.name),
        "weights": f"{sum(weight.numel() for weight in prior.denoiser.parameters()):,}",
        "standard deviation of images": f"{prior.sigma_data:.4g} per real component, after scaling",
        "privacy": None if spent is None else f"epsilon {spent['epsilon']:g} at delta {spent['delta']:g} for each scan",
        "seed": config.seed,
        "fingerprint of the weights": prior.fingerprint(),
    }


def limits(prior: Prior) -> list[str]:
    """Say where a prior ends; what a private training has kept, too."""
    spent = prior.trained_on.get("privacy")
    if spent is None:
        return list(LIMITS)
    kept = (
        f"Differential privacy: with any one scan left empty, whatever could be found out from this prior has at most "
        f"exp({spent['epsilon']:g}) times the probability, up to {spent['delta']:g}, and the other way round. "
        f"Gradients of scans were clipped to {spent['clip']:g}; each of {spent['steps']:,} steps took a scan with "
        f"probability {spent['rate']:.3g} and added noise of {spent['noise']:g} times that norm. "
        f"Of k scans of one person it is k times the epsilon."
    )
    return [kept if text == COPIES else text for text in LIMITS]


def checked(log: list[dict[str, Any]]) -> str:
    """Say how well the training predicted rows of scans that it had set aside."""
    seen = [line for line in log if "chi_square" in line]
    if not seen:
        return "No scan was set aside to check it on."
    return (
        f"Rows of scans that were set aside are predicted with a chi-square of {seen[-1]['chi_square']:.4g} after "
        f"{seen[-1]['images']:,} images; noise alone would leave 1."
    )


def write_model_card(run: Path, prior: Prior, store: Mapping[str, Any]) -> None:
    """Write it into the folder of a run, unless somebody has written another one there."""
    path = run / NAME
    if path.exists() and MARK not in path.read_text(errors="replace"):
        return
    with replacing(path) as partial:
        partial.write_text(model_card(prior, store, read_log(run)))


def data_of(run: Path) -> dict[str, str]:
    """Facts about the store of a run, as its page says them; none where there is no page, or that of somebody else."""
    path = run / NAME
    text = path.read_text(errors="replace") if path.exists() else ""
    if MARK not in text:
        return {}
    lines = text.partition(f"{DATA}\n")[2].partition("\n## ")[0].splitlines()
    cells = [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines if line[:2] == "| "]
    return {cell[0]: cell[1].replace("\\|", "|") for cell in cells if len(cell) == 2}


def _table(facts: Mapping[str, Any]) -> str:
    """Two columns; what is not known is left out."""
    known = {name: str(value) for name, value in facts.items() if value is not None}
    cells = [(name, value.replace("|", "\\|").replace("\n", " ")) for name, value in known.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells), ""])
