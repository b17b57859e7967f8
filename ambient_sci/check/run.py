"""The check of a store: the scans of each size, and what they share with each other and with another store."""

from pathlib import Path

import numpy as np

from ambient_sci.check.group import Group, spread
from ambient_sci.check.report import CheckReport, Leaks
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.errors import ConfigError, DataError

__all__ = ["check", "reason_to_refuse"]

QUICK = 64  # scans


def check(
    store: Store | str | Path,
    against: Store | str | Path | None = None,
    *,
    thinning: float = 0.3,
    scans: int = 2048,
    seed: int = 0,
    progress: bool = True,
) -> CheckReport:
    """Say whether a prior can be learned from a store, before any training.

    Parameters
    ----------
    store
        The store to learn from, or its path.
    against
        Store that results are to be tested on: what it shares with the first is reported.
    thinning
        Fraction of rows that training hides, as `ambient_sci.TrainConfig` has it.
    scans
        At most so many scans of each size are looked at (and no more than 4 GiB of them), drawn at random; duplicates
        and leaks are looked for among these.
    seed
        Of the random probes.
    progress
        Show progress bars for what takes longer than two seconds.

    Returns
    -------
    CheckReport
        Numbers, maps, verdict and advice.

    Raises
    ------
    ConfigError
        If ``thinning`` is not between 0 and 1, or ``scans`` is below 2.
    DataError
        If measurements are not finite.

    Examples
    --------
    >>> print(check("scans.zarr", against="test.zarr"))  # doctest: +SKIP
    """
    if not 0 < thinning <= 1:
        raise ConfigError(f"thinning must be above 0 and at most 1, got {thinning}")
    if scans < 2:
        raise ConfigError(f"scans must be at least 2, got {scans}")
    store = store if isinstance(store, Store) else open_store(store)
    other = against if against is None or isinstance(against, Store) else open_store(against)
    if other is not None and other.kind != store.kind:
        raise DataError(f"against must hold {store.kind!r} scans, as {store.path} does, got {other.kind!r} ones")

    reports, repeated, shared, told = [], [], [], []
    for group in store.groups:
        made = Group(store, group, scans, seed, progress)
        reports.append(made.report(thinning))
        features = made.features(store, made.sample)
        pairs, could = made.pairs(features)
        repeated += [(int(features.scans[i]), int(features.scans[j])) for i, j in pairs]
        told.append(could)
        if other is None:
            continue
        for theirs in other.groups:
            if theirs.image_shape == group.image_shape and theirs.measurement_shape == group.measurement_shape:
                foreign = made.features(other, spread(theirs.scans, scans))
                both, could = made.pairs(features.joined(foreign))
                here = len(features.scans)
                shared += [(int(features.scans[i]), int(foreign.scans[j - here])) for i, j in both if i < here <= j]
                told.append(could)
    leaks = None
    if other is not None:
        leaks = Leaks(str(other.path), _shared_subjects(store, other), sorted(shared) if any(told) else None)
    subjects = len(np.unique(store.coords["subject"])) if "subject" in store.coords else None
    duplicates = sorted(repeated) if any(told) else None
    return CheckReport(str(store.path), store.kind, reports, duplicates, subjects, leaks)


def reason_to_refuse(store: Store | str | Path) -> str | None:
    """Tell quickly why `check` would refuse a store; nothing if it probably would not, or if that takes longer.

    The verdict is that of the size which at least half of the scans have, from 64 of these. Where rows are other
    functionals in every scan (``nufft``, ``gaussian``, ...), so few do not tell what all scans measure together.

    Parameters
    ----------
    store
        The store to learn from, or its path.
    """
    store = store if isinstance(store, Store) else open_store(store)
    largest = max(store.groups, key=lambda group: len(group.scans))
    if len(largest.scans) < len(store) / 2:
        return None
    group = Group(store, largest, QUICK, 0, progress=False)
    if group.rows is None and group.patterns > 1:
        return None
    verdict, reasons, _ = group.report(0.5, quick=True).judge()
    return "; ".join(reasons) if verdict == "refused" else None


def _shared_subjects(one: Store, other: Store) -> list[str] | None:
    if "subject" not in one.coords or "subject" not in other.coords:
        return None
    return sorted(set(map(str, one.coords["subject"])) & set(map(str, other.coords["subject"])))
