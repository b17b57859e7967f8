"""A run: what its prior is, how the training went, what has been checked."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ambient_sci import report
from ambient_sci.audit import PriorAudit
from ambient_sci.charts import Series, chart, side_by_side
from ambient_sci.evaluate.held_out import PriorValidation
from ambient_sci.findings import Findings
from ambient_sci.logs import read_log
from ambient_sci.model_card import checked, data_of, heading, learned, limits
from ambient_sci.prior import Prior, load_prior

__all__ = ["write_run"]

WORSE = 1.01  # an error that is so many times the best one is worse
SMOOTH = 20  # a running median is over one of so many parts of the log


def write_run(path: str | os.PathLike[str], run: Path | str, title: str | None = None) -> Path:
    """Write what is known of a training run as one HTML file.

    Validations and audits of its prior that lie in the folder of the run, or in one of its folders, are among the
    checks.

    Parameters
    ----------
    path
        File to write, replaced when it exists; never left half-written.
    run
        Folder of the run.
    title
        Heading of the page.

    Returns
    -------
    Path
        Where the file is.

    Raises
    ------
    NotFoundError, CheckpointError
        If there is no prior in the folder, or a damaged one.
    OutputError
        If it cannot be written.
    """
    run = Path(run)
    prior, log = load_prior(run, "cpu"), read_log(run)
    config = prior.config.model_dump(mode="json") | {"store": prior.config.store.name, "out": prior.config.out.name}
    data = data_of(run) or {name: value for name, value in prior.trained_on.items() if name != "store"}
    samples = run / "samples.png"
    sections = {
        "Checks": _checks(prior, log, _findings(run, prior)),
        "Training": _training(log),
        "Images drawn from the prior": _samples(samples.read_bytes() if samples.exists() else None),
        "What it is": report.pairs_table("What it is", learned(prior)),
        "Data": report.pairs_table("Data", data),
        "Limits": report.items(limits(prior)),
        "Configuration": report.details("All options", report.pairs_table("Configuration", config)),
    }
    return report.write_report(path, title or f"Run {run.resolve().name}", sections, [f"{heading(prior)}."])


def _findings(run: Path, prior: Prior) -> Iterator[Findings]:
    """Read validations and audits of a prior that lie beside it."""
    kinds: tuple[type[Findings], ...] = (PriorValidation, PriorAudit)
    for kind in kinds:
        for file in (*run.glob(f"{kind.kind}.json"), *sorted(run.glob(f"*/{kind.kind}.json"))):
            found = kind.load(file)
            if found.dataset.attrs.get("prior") == prior.fingerprint():
                yield found


def _checks(prior: Prior, log: list[dict[str, Any]], findings: Iterable[Findings]) -> str:
    shown, wanted = prior.images, prior.config.images
    early = " (it may stop early)" if prior.config.patience is not None else ""
    complete = True if shown >= wanted else None if early else False
    found: list[tuple[str, bool | None, str]] = [("Length", complete, f"{shown:,} of {wanted:,} images shown{early}")]
    losses = [line["loss"] for line in log if "loss" in line]
    if losses:
        change = f"{losses[0]:.4g} at first, {losses[-1]:.4g} at last"
        found.append(("Loss", bool(np.isfinite(losses).all()) and losses[-1] < losses[0], change))
    errors = [line["held_out"] for line in log if "held_out" in line]
    last = errors[-1] <= WORSE * min(errors) if errors else None
    found.append(
        ("Rows of scans set aside", last, checked(log) + ("" if last is not False else " It was better before."))
    )
    found += [(f"{one.kind.capitalize()}", one.passed, one.verdict) for one in findings]
    return report.checks(found)


def _training(log: list[dict[str, Any]]) -> str:
    """Curves, and the numbers of the previews."""
    if not log:
        return "<p>The run has no log.</p>"
    seen = np.array([line.get("images", np.nan) for line in log], float)
    values = {
        name: np.array([line.get(name, np.nan) for line in log], float)
        for name in ("loss", "held_out", "chi_square", "gradient", "rate", "seconds", "epsilon")
    }
    end, spent = np.nanmax(seen), values["seconds"]
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = np.diff(seen, prepend=0) / np.diff(spent, prepend=0)
    facts = {
        "images shown": f"{end:,.0f}",
        "processor time": _time(float(np.nanmax(spent))) if np.isfinite(spent).any() else None,
        "images a processor second": _total(end, spent),
    }
    x = "images shown"
    spans = values["loss"][np.isfinite(values["loss"])]
    wide = "y" if len(spans) and spans.min() > 0 and spans.max() > 4 * spans.min() else ""
    charts = [
        *_smooth_curve("Loss", "loss", seen, values["loss"], x, "mean loss", log=wide),
        *_curve("Error on rows set aside", seen, values["held_out"], x, "squared error", 1),
        *_curve("Chi-square on rows set aside", seen, values["chi_square"], x, "1 is noise alone", 1, at_y=[1.0]),
        *_smooth_curve("Norm of the gradient", "gradient", seen, values["gradient"], x, "before clipping", log="y"),
        *_curve("Learning rate", seen, values["rate"], x, "rate", 2),
        *_curve("Privacy spent", seen, values["epsilon"], x, "epsilon", 3),
        *_smooth_curve("Throughput", "images a second", seen, speed, x, "images a processor second"),
    ]
    looked = [line for line in log if "held_out" in line]
    rows = [
        {
            "images shown": f"{line['images']:,}",
            "loss": float(line["loss"]),
            "error": float(line["held_out"]),
            "chi-square": float(line.get("chi_square", np.nan)),
            "processor time": _time(line["seconds"]) if "seconds" in line else None,
        }
        for line in looked
    ]
    numbers = report.details("Numbers of the previews", report.table("Previews", rows)) if rows else ""
    return report.facts(facts) + side_by_side(*charts) + numbers


def _curve(title: str, x: Any, y: Any, name_x: str, name_y: str, colour: int, **options: Any) -> list[str]:
    """Chart of one curve, where there is any of it."""
    if not np.isfinite(y).any():
        return []
    return [chart(title, [Series("", x, y, "line", colour)], name_x, name_y, **options)]


def _smooth_curve(title: str, label: str, x: Any, y: Any, name_x: str, name_y: str, **options: Any) -> list[str]:
    """Chart of what was logged, where there is any of it, and its running median."""
    return [chart(title, [*_smooth(label, x, y)], name_x, name_y, **options)] if np.isfinite(y).any() else []


def _smooth(label: str, x: Any, y: Any) -> Iterable[Series]:
    """Give what was logged, and a running median."""
    half = len(y) // SMOOTH // 2
    yield Series("logged" if half else "", x, y, "faint" if half else "line", 0)
    if half:
        median = [np.nanmedian(part) if np.isfinite(part).any() else np.nan
                  for part in (y[max(k - half, 0) : k + half + 1] for k in range(len(y)))]  # fmt: skip
        yield Series("running median", x, median, "line", 0)


def _total(images: float, spent: Any) -> str | None:
    last = np.nanmax(spent) if np.isfinite(spent).any() else 0
    return f"{images / last:,.3g}" if last > 0 else None


def _time(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _samples(image: bytes | None) -> str:
    if image is None:
        return ""
    spoken = "Images drawn from the averaged weights"
    note = "Drawn from the averaged weights at the last preview, always with the same noise: no scan is behind them."
    return (
        f'<figure class="figure"><div class="frame pixels">{report.picture(image, spoken)}</div>'
        f"<figcaption>{note}</figcaption></figure>"
    )
