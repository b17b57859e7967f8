r"""Whether a prior has copied scans that it learned from.

Images that the prior draws are compared with all scans of the training, and so are scans that were held out: **the
honest zero**. If the prior draws images of the kind that scans are, and knows no scan by heart, then its images and the
held-out scans are alike in how near they are to the training data, whatever images are like. Two answers:

- the *area under the curve*, the chance that an image of the prior is nearer to one training scan than a held-out scan
  is (`ambient_sci.audit.statistics`), by the relative distance :math:`\rho` of `ambient_sci.audit.similarity`;
- *near-copies*: single images that are nearer to a training scan than chance has it, whatever they are like themselves.
  To an image that knows nothing of either, training scans and held-out ones are alike. Near it, the number of scans
  within a distance ``d`` grows as :math:`d^m`, ``m`` the dimension of images of this kind (Levina and Bickel 2004, NIPS
  17). From the distances :math:`h_1 \le \ldots \le h_k` of the nearest of ``H`` held-out scans,

  .. math:: \frac1m = \Bigl\langle \frac{1}{k-1} \sum_{j<k} \log \frac{h_k}{h_j} \Bigr\rangle, \qquad
            p = 1 - \left(1 + \frac{N}{H} \Bigl(\frac{d_1}{h_k}\Bigr)^m\right)^{-k}

  with the mean over all images, is the chance that one of ``N`` training scans is as near as :math:`d_1`: their number
  is Poisson, of a density that ``k`` scans tell (its posterior is a gamma distribution). Near-copies have so small a
  ``p`` that of all that are called so, a part of `LEVEL` at most is expected to be none (Benjamini and Hochberg 1995,
  J. R. Stat. Soc. B 57:289).

**Where images are known** (of the training scans and of the held-out ones), all of this is of pixels, and of features
of a network if one is given.

**Where only measurements exist**, a held-out scan is not an image. Then images of the prior are brought to where the
scans are: measured by the operators of held-out scans, with their noise. Both become images by the same total variation
(`ambient_sci.baselines.total_variation_batch`, its regularisation chosen on held-out scans) and are compared with
training scans on what these measured. What is lost on the way is lost on both sides, so that the zero stays honest. The
nearest scan, the chance of a near-copy and the residual in units of the noise are those of the image as the prior drew
it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.audit.comparison import FEATURES, MEASURED, PIXELS, Comparison, Features
from ambient_sci.audit.membership import infer_membership
from ambient_sci.audit.result import SHOWN, PriorAudit
from ambient_sci.audit.scans import CHUNK, MOST, Scans, split, spread
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.evaluate.predictive import LEVEL
from ambient_sci.prior import Prior, load_prior
from ambient_sci.sample import Solver
from ambient_sci.seeding import stream

__all__ = ["audit_prior"]

_DRAWN = 0x74  # purpose of a stream


def audit_prior(
    prior: Prior | Path | str,
    store: Store | Path | str,
    against: Store | Path | str | None = None,
    *,
    count: int = 128,
    spaces: Sequence[str] | None = None,
    features: Features | None = None,
    reference: Prior | Path | str | None = None,
    steps: int = 32,
    solver: Solver = "heun",
    seed: int = 0,
    progress: bool = True,
) -> PriorAudit:
    """Compare images of a prior with the scans that it learned from.

    Parameters
    ----------
    prior
        A learned prior, or the folder of a run.
    store
        The store that it learned from, or its path. Where a copy of that store has references, they can be used, though
        training has not seen them.
    against
        Store of other scans of the same kind, which no training has seen; of other subjects, if scans have subjects. By
        default the scans of ``store`` that training kept to watch itself, which are few.
    count
        How many images the prior draws.
    spaces
        How to compare: ``"pixels"``, ``"measured"``, or both. By default pixels where both stores have references, and
        else what was measured. With ``"measured"`` alone no reference is looked at.
    features
        A function from images ``(n, channel, *spatial)``, as the prior draws them, to features ``(n, d)`` of a network,
        to be compared with those of the references, too; `ambient_sci.audit.load_dino` reads one from a file.
    reference
        A prior that learned from other scans of the same kind, or the folder of its run, for membership inference.
    steps, solver, seed
        How images are drawn (`ambient_sci.prior.Prior.sample`).
    progress
        Show progress bars.

    Raises
    ------
    ConfigError, DataError
        If options do not fit, the prior learned from another store, images are of different shapes, references are
        lacking, or there are too few held-out scans.

    Examples
    --------
    >>> found = audit_prior("run", "scans.zarr", "held-out.zarr")  # doctest: +SKIP
    >>> print(found.verdict)  # doctest: +SKIP
    """
    prior = prior if isinstance(prior, Prior) else load_prior(prior)
    reference = reference if reference is None or isinstance(reference, Prior) else load_prior(reference)
    store = store if isinstance(store, Store) else open_store(store)
    training, held = split(prior, store, against)
    ways = _ways(training, held, spaces, features)
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")

    drawn = _draw(prior, training, count, steps, solver, seed, progress)
    found = Comparison(prior, training, held, ways, features, drawn, seed, progress)
    members = spread(training.scans, MOST)
    known = ways != [MEASURED]
    membership = infer_membership(
        prior,
        Scans(training.store, members).batches(known, "members" if progress else None),
        held.batches(known, "held-out scans" if progress else None),
        reference,
        seed,
    )
    attrs = {
        "title": "images of a prior beside its training data",
        "prior": prior.fingerprint(),
        "reference": "" if reference is None else reference.fingerprint(),
        "store": training.store.fingerprint,
        "against": held.store.fingerprint,
        "training_scans": len(training.scans),
        "features": "" if features is None else str(getattr(features, "source", "a function")),
        "neighbours": found.neighbours,
        "level": LEVEL,
        **{"steps": steps, "solver": solver, "seed": seed},
    }
    dataset = found.dataset(held.scans, attrs)
    order = np.argsort(dataset["p_value"].min("space").to_numpy(), kind="stable")[:SHOWN]
    best = dataset["p_value"].argmin("space").to_numpy()
    nearest = dataset["nearest"].to_numpy()[best[order], order]
    beside = [training.images(int(scan)) for scan in nearest]
    return PriorAudit(dataset, membership, np.stack([drawn[order].numpy(), torch.cat(beside).numpy()]), order)


def _ways(training: Scans, held: Scans, spaces: Sequence[str] | None, features: Features | None) -> list[str]:
    without = [str(scans.store.path) for scans in (training, held) if not scans.store.has_references]
    ways = list(spaces) if spaces else [MEASURED if without else PIXELS]
    for way in ways:
        if way not in (PIXELS, MEASURED):
            raise ConfigError(f"spaces must be {PIXELS!r} or {MEASURED!r}, got {way!r}")
    ways = list(dict.fromkeys(ways)) + ([FEATURES] if features is not None else [])
    if without and set(ways) - {MEASURED}:
        raise DataError(f"pixels and features need the images of all scans, and {without[0]} has no references")
    return ways


def _draw(prior: Prior, training: Scans, count: int, steps: int, solver: Solver, seed: int, progress: bool) -> Tensor:
    """Images of a prior, ``(count, channel, *spatial)``, on the CPU."""
    drawn = []
    with tqdm(total=count, desc="images", unit="image", disable=not progress) as bar:
        for start in range(0, count, CHUNK):
            some = min(CHUNK, count - start)
            operator = None
            if prior.config.restores:  # through the masks of scans of one size
                alike = np.intersect1d(training.store.groups[0].scans, training.scans)
                scans = alike[np.arange(start, start + some) % len(alike)]
                operator = training.store.read(scans).operator.to(prior.device)
            own = int(stream(seed, _DRAWN, start).initial_seed() & 0x7FFFFFFF)
            drawn.append(prior.sample(some, steps, solver, own, operator).cpu())
            bar.update(some)
    return torch.cat(drawn)
