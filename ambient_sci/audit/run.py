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

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ambient_sci.audit.membership import Membership, infer_membership
from ambient_sci.audit.similarity import Nearest, agreement, correlation
from ambient_sci.audit.statistics import Separation, rate_interval, separate
from ambient_sci.baselines import cg_sense, total_variation_batch
from ambient_sci.checkpoint import replacing
from ambient_sci.datasets.store import Store, open_store
from ambient_sci.errors import AmbientError, ConfigError, DataError, OutputError
from ambient_sci.evaluate.held_out import plain_numbers
from ambient_sci.evaluate.predictive import LEVEL
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.methods.starts import REGULARISATIONS, TUNED, regularisation
from ambient_sci.prior import Prior, load_prior
from ambient_sci.sample import Solver
from ambient_sci.seeding import stream

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

__all__ = ["FILES", "PriorAudit", "audit_prior", "refuse_to_replace"]

PIXELS, MEASURED, FEATURES = "pixels", "measured", "features"
NEIGHBOURS = 50
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MOST = 512  # held-out scans, and members, that are looked at
LEAST = 8  # held-out scans without which nothing is claimed
NEAREST, NEAREST_PART = 4, 8  # so many held-out scans at least, and one of so many, are near to an image
CLOSEST = 1e-2  # distances below which images are the same
SHOWN = 10  # pairs in the figure
CHUNK = 32  # scans in memory at once, and images in the network
FILES = "audit.json", "audit.png", "pairs.png"
_DRAWN, _REMEASURED = 0x74, 0x75  # purposes of streams

Float = NDArray[np.float64]
Features = Callable[[Tensor], Tensor]
Restoration = Callable[[Measurement], Tensor]


@dataclass(frozen=True)
class PriorAudit:
    """What `audit_prior` found; ``str()`` is a table and the verdict.

    Attributes
    ----------
    dataset
        Along ``space`` are the ways of comparing: ``pixels``, ``features``, ``measured``.

        ==================== ================= ===================================================================
        ``similarity``       (space, image)    of each image that the prior drew to the nearest training scan
        ``distance``         (space, image)    relative distance of that scan, 0 for a copy
        ``nearest``          (space, image)    its number
        ``p_value``          (space, image)    chance of being as near, if the prior knows nothing of it
        ``copy``             (space, image)    whether it is a near-copy
        ``residual``         (image)           misfit to its nearest scan in units of the noise, where ``measured``
        ``held_similarity``  (space, scan)     the same of held-out scans
        ``held_distance``    (space, scan)
        ``held_nearest``     (space, scan)
        ``quantiles``        (space, quantile) of ``similarity``
        ``held_quantiles``   (space, quantile) of ``held_similarity``
        ``auc``              (space)           chance that an image is nearer than a held-out scan, by distance
        ``auc_interval``     (space, end)      its 95% interval
        ``auc_similarity``   (space)           the same by similarity
        ``auc_p_value``      (space)           chance of as large an area (``auc``) if they are alike
        ==================== ================= ===================================================================
    membership
        What losses tell of who was trained on.
    pairs
        The nearest pairs: images of the prior, and those of their nearest scans (regularised least squares where they
        are not known), ``(2, pair, channel, *spatial)``.
    pair_images
        Which images of the prior they are, ``(pair,)``.
    """

    dataset: "xarray.Dataset"
    membership: Membership
    pairs: NDArray[Any]
    pair_images: NDArray[np.int64]

    @property
    def copied(self) -> dict[int, list[int]]:
        """Scans that were copied, by number, and the images that are near-copies of each."""
        found: dict[int, list[int]] = {}
        for space in range(self.dataset.sizes["space"]):
            one = self.dataset.isel(space=space)
            for image in np.flatnonzero(one["copy"]):
                images = found.setdefault(int(one["nearest"][image]), [])
                if int(image) not in images:
                    images.append(int(image))
        return dict(sorted(found.items()))

    @property
    def copies(self) -> int:
        """How many images are near-copies."""
        return int(self.dataset["copy"].any("space").sum())

    @property
    def passed(self) -> bool:
        """Whether no image is a near-copy, and images are no nearer to the training data than held-out scans."""
        return self.copies == 0 and bool((self.dataset["auc_p_value"] >= LEVEL / self.dataset.sizes["space"]).all())

    @property
    def verdict(self) -> str:
        """One line: whether training scans were copied, and by which test."""
        data = self.dataset
        images, scans = data.sizes["image"], data.sizes["scan"]
        worst = data.isel(space=int(data["auc_p_value"].to_numpy().argmin()))
        auc, p = float(worst["auc"]), float(worst["auc_p_value"])
        low, high = worst["auc_interval"].to_numpy()
        test = (
            f"nearer to a training scan than {scans} held-out scans are with AUC {auc:.2f} ({low:.2f}-{high:.2f}), "
            f"p = {p:.1g} ({worst['space'].item()})"
        )
        if self.copies:
            some = ", ".join(map(str, list(self.copied)[:5])) + (", …" if len(self.copied) > 5 else "")
            return f"COPIES {len(self.copied)} training scans ({some}) in {self.copies} of {images} images; {test}"
        most = rate_interval(0, images)[1]
        none = f"no near-copy among {images} images (of all, at most {most:.1%})"
        if self.passed:
            return f"no copies found: {none}; {test}"
        return f"is TOO NEAR to training scans: {none}; {test}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images as JSON can hold it; NaN is None."""
        numbers = plain_numbers(self.dataset)
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "copied": {str(scan): images for scan, images in self.copied.items()},
            "membership": self.membership.to_dict(),
            "options": self.dataset.attrs,
            "numbers": numbers,
        }

    def nearer_than(self, other: "PriorAudit") -> Separation:
        """By how much images of this prior are nearer to training scans than those of another, in the first space."""
        return separate(*(-found.dataset["distance"].to_numpy()[0] for found in (self, other)))

    def plot(self) -> "Figure":
        """Draw similarities and distances of images and of held-out scans."""
        from ambient_sci.audit.figure import audit_figure

        return audit_figure({"the prior": self})

    def plot_pairs(self) -> "Figure":
        """Draw the ten nearest pairs."""
        from ambient_sci.audit.figure import pairs_figure

        return pairs_figure(self)

    def save(self, out: Path | str, overwrite: bool = False) -> None:
        """Write ``audit.json``, ``audit.png`` and ``pairs.png`` into a folder.

        Raises
        ------
        OutputError
            If they are there, unless ``overwrite``, or cannot be written.
        """
        refuse_to_replace(out, overwrite)
        numbers, figure, pairs = (Path(out) / name for name in FILES)
        with replacing(numbers) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        for path, drawn in ((figure, self.plot()), (pairs, self.plot_pairs())):
            with replacing(path) as partial:
                drawn.savefig(partial, format="png")

    def __str__(self) -> str:
        data = self.dataset
        head = "".join(f"{f'{quantile:.0%}':>7}" for quantile in QUANTILES)
        lines = [f"{'quantiles of similarity':<30}{head}{'distance':>10}{'near-copies':>13}"]
        for space in data["space"].to_numpy():
            one = data.sel(space=space)
            for who, name, count in (("images", "", int(one["copy"].sum())), ("held-out scans", "held_", "")):
                values = "".join(f"{float(value):>7.3f}" for value in one[f"{name}quantiles"])
                distance = float(one[f"{name}distance"].median())
                lines.append(f"{f'{space}: {who}':<30}{values}{distance:>10.3f}{count:>13}")
        if bool(data["residual"].notnull().all()):
            apart = ", ".join(f"{float(value):.1f}" for value in data["residual"].quantile((0.05, 0.5, 0.95)))
            lines.append(f"misfit of images to what their nearest scans measured: {apart} times the noise (5, 50, 95%)")
        for scan, images in list(self.copied.items())[:SHOWN]:
            some = ", ".join(map(str, images[:5])) + (", …" if len(images) > 5 else "")
            lines.append(f"scan {scan} is copied by {len(images)} images ({some})")
        return "\n".join([*lines, str(self.membership), self.verdict])


def refuse_to_replace(out: Path | str, overwrite: bool) -> None:
    """Raise `OutputError` if a folder holds an audit already that is not to be replaced."""
    if not overwrite and any((Path(out) / name).exists() for name in FILES):
        raise OutputError(f"{out} already holds an audit; choose another folder or pass --overwrite")


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
        to be compared with those of the references, too.
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
    training, held = _split(prior, store, against)
    ways = _ways(training, held, spaces, features)
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")

    drawn = _draw(prior, training, count, steps, solver, seed, progress)
    found = _Comparison(prior, training, held, ways, features, drawn, seed, progress)
    members = _spread(training.scans, MOST)
    known = ways != [MEASURED]
    membership = infer_membership(
        prior,
        _Scans(training.store, members).batches(known, "members" if progress else None),
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


# ----------------------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class _Scans:
    """Some scans of a store, read a few at a time."""

    store: Store
    scans: NDArray[np.int64]

    def read(self, label: str | None = None) -> Iterator[Measurement]:
        with tqdm(total=len(self.scans), desc=label, unit="scan", disable=label is None) as bar:
            for some, _ in self.store.by_size(self.scans):
                for start in range(0, len(some), CHUNK):
                    m = self.store.read(some[start : start + CHUNK])
                    yield m
                    bar.update(len(m))

    def references(self, m: Measurement) -> Tensor:
        """Images of scans, in normalised units."""
        images = self.store.references(m.index)
        dtype = m.y.real.dtype
        images = images.to(dtype.to_complex() if images.is_complex() else dtype)
        return images / m.scale.reshape(-1, *[1] * (images.ndim - 1))

    def batches(self, known: bool, label: str | None) -> Iterator[tuple[Measurement, Tensor | None]]:
        return ((m, self.references(m) if known else None) for m in self.read(label))

    def images(self, scan: int) -> Tensor:
        """Image of one scan: the reference, or regularised least squares."""
        m = self.store.read(scan)
        return self.references(m) if self.store.has_references else cg_sense(m)


def _split(prior: Prior, store: Store, against: Store | Path | str | None) -> tuple[_Scans, _Scans]:
    """Tell scans that a prior has learned from, and scans that it has not."""
    learned_from = prior.trained_on.get("fingerprint")
    if learned_from not in (None, store.fingerprint):
        raise DataError(
            f"the prior learned from another store than {store.path} (fingerprint {learned_from}, not "
            f"{store.fingerprint}): give that of its training"
        )
    learned = min(int(prior.trained_on.get("scans", len(store))), len(store))
    training = _Scans(store, np.arange(learned))
    if against is None:
        held = _Scans(store, np.arange(learned, len(store))[:MOST])
    else:
        against = against if isinstance(against, Store) else open_store(against)
        if against.fingerprint == store.fingerprint:
            raise DataError(f"against must hold scans that were not trained on, and {against.path} is the same store")
        held = _Scans(against, np.arange(min(MOST, len(against))))
    if len(held.scans) < LEAST:
        raise DataError(
            f"needs at least {LEAST} scans that were not trained on to compare with, got {len(held.scans)}: give a "
            "store of them (--against)"
        )
    if learned < 2:
        raise DataError(f"needs at least 2 scans that were trained on, got {learned}")
    for one in (store, held.store):
        if one.image_shape != prior.image_shape or one.is_complex != prior.is_complex:
            raise DataError(
                f"{one.path} holds images of another kind than the prior: {one.image_shape}, "
                f"{'complex' if one.is_complex else 'real'}, not {prior.image_shape}, "
                f"{'complex' if prior.is_complex else 'real'}"
            )
    return training, held


def _ways(training: _Scans, held: _Scans, spaces: Sequence[str] | None, features: Features | None) -> list[str]:
    without = [str(scans.store.path) for scans in (training, held) if not scans.store.has_references]
    ways = list(spaces) if spaces else [MEASURED if without else PIXELS]
    for way in ways:
        if way not in (PIXELS, MEASURED):
            raise ConfigError(f"spaces must be {PIXELS!r} or {MEASURED!r}, got {way!r}")
    ways = list(dict.fromkeys(ways)) + ([FEATURES] if features is not None else [])
    if without and set(ways) - {MEASURED}:
        raise DataError(f"pixels and features need the images of all scans, and {without[0]} has no references")
    return ways


def _draw(prior: Prior, training: _Scans, count: int, steps: int, solver: Solver, seed: int, progress: bool) -> Tensor:
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


def _spread(scans: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the scans, from all of them."""
    spread: NDArray[np.int64] = scans[np.linspace(0, len(scans) - 1, min(most, len(scans))).round().astype(int)]
    return spread


# --------------------------------------------------------------------------------------------------------- comparison


class _Comparison:
    """Images of a prior and held-out scans, each compared with every scan of the training in one pass over these."""

    def __init__(
        self,
        prior: Prior,
        training: _Scans,
        held: _Scans,
        ways: list[str],
        features: Features | None,
        drawn: Tensor,
        seed: int,
        progress: bool,
    ) -> None:
        self.device, self.training, self.held, self.progress = prior.device, training, held, progress
        self.ways, self.features = ways, features
        self.count, self.neighbours = len(drawn), min(NEIGHBOURS, len(training.scans))
        drawn = drawn.to(prior.device)
        self.images: dict[str, Tensor] = {}
        if set(ways) - {MEASURED}:
            known = torch.cat([held.references(m) for m in self._read(held, "held-out images")]).to(drawn)
            self.images |= {way: torch.cat([drawn, known]) for way in ways if way != MEASURED}
        if features is not None:
            self.images[FEATURES] = _features(features, self.images[FEATURES])
        if MEASURED in ways:
            restore = _restoration(held)
            seen = torch.cat([restore(m.to(prior.device)) for m in self._read(held, "held-out scans")])
            again = remeasure(drawn, lambda: self._read(held, "images as scans"), restore, seed)
            self.images[MEASURED] = torch.cat([again, seen, drawn])
        self.near = {way: Nearest(len(images), self.neighbours) for way, images in self.images.items()}
        self._compare()

    def _read(self, scans: _Scans, label: str) -> Iterator[Measurement]:
        return scans.read(label if self.progress else None)

    def _compare(self) -> None:
        known_too = self.images.keys() - {MEASURED}
        for m in self._read(self.training, "training scans"):
            if known_too:
                known = self.training.references(m).to(self.device)
                for way in known_too:
                    theirs = known if self.features is None or way != FEATURES else _features(self.features, known)
                    self.near[way].add(correlation(self.images[way], theirs, centred=way == PIXELS), m.index)
            if MEASURED in self.images:
                images, scans = self.images[MEASURED], m.to(self.device)
                found = [agreement(images, scans[k])[0] for k in range(len(m))]
                self.near[MEASURED].add(torch.stack(found, 1), m.index)

    def _to_held(self, way: str) -> Float:
        """Similarity of each image to each held-out scan, ``(image, scan)``."""
        images = self.images[way]
        if way != MEASURED:
            return correlation(images[: self.count], images[self.count :], way == PIXELS).double().cpu().numpy()
        found = []
        for m in self._read(self.held, "held-out scans"):
            scans = m.to(self.device)
            found += [agreement(images[-self.count :], scans[k])[0] for k in range(len(m))]
        return torch.stack(found, 1).double().cpu().numpy()

    def _residual(self) -> Float:
        """Misfit of each image to what its nearest scan measured, in units of the noise; NaN if that was not asked."""
        residual = np.full(self.count, np.nan)
        if MEASURED in self.images:
            drawn, nearest = self.images[MEASURED][-self.count :], self.near[MEASURED].scan[-self.count :, 0].numpy()
            for scan in np.unique(nearest):
                some = np.flatnonzero(nearest == scan)
                found = agreement(drawn[some], self.training.store.read(int(scan)).to(self.device))[1]
                residual[some] = found.double().cpu().numpy()
        return residual

    def dataset(self, held: NDArray[np.int64], attrs: dict[str, Any]) -> "xarray.Dataset":
        import xarray
        from scipy.stats import false_discovery_control

        ours, theirs = slice(0, self.count), slice(self.count, self.count + len(held))
        columns: dict[str, list[Any]] = {}

        def put(**values: Any) -> None:
            for name, value in values.items():
                columns.setdefault(name, []).append(value)

        for way in self.ways:
            near = self.near[way]
            similarity, distance = near.similarity[:, 0].double().numpy(), near.relative_distance.numpy()
            scan = near.scan[:, 0].numpy()
            as_drawn = slice(-self.count, None) if way == MEASURED else ours
            p = chance(similarity[as_drawn], self._to_held(way), len(self.training.scans))
            closer = separate(-distance[ours], -distance[theirs])
            put(similarity=similarity[ours], held_similarity=similarity[theirs])
            put(distance=distance[ours], held_distance=distance[theirs])
            put(nearest=scan[as_drawn], held_nearest=scan[theirs], p_value=p)
            put(copy=false_discovery_control(p) < LEVEL / len(self.ways))
            put(quantiles=np.quantile(similarity[ours], QUANTILES))
            put(held_quantiles=np.quantile(similarity[theirs], QUANTILES))
            put(auc=closer.auc, auc_interval=closer.auc_interval, auc_p_value=closer.p_value)
            put(auc_similarity=separate(similarity[ours], similarity[theirs]).auc)
        along: dict[str, tuple[str, ...]] = {name: () for name in columns if name.startswith("auc")}
        along |= {"quantiles": ("quantile",), "held_quantiles": ("quantile",), "auc_interval": ("end",)}
        variables: dict[str, Any] = {
            name: (("space", *along.get(name, ("scan",) if name.startswith("held") else ("image",))), np.array(values))
            for name, values in columns.items()
        }
        variables["residual"] = ("image", self._residual())
        coords = {"space": self.ways, "image": np.arange(self.count), "scan": held, "quantile": list(QUANTILES)}
        coords["end"] = ["low", "high"]
        return xarray.Dataset(variables, coords, attrs)


def _features(features: Features, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = torch.cat([features(some) for some in images.split(CHUNK)])
    if found.ndim != 2 or len(found) != len(images):
        raise DataError(f"features must be (n, d) for {len(images)} images, got {tuple(found.shape)}")
    return found


def _restoration(held: _Scans) -> Restoration:
    """Total variation, with what predicts hidden rows of held-out scans best, where rows can be hidden."""
    some = held.store.read(next(held.store.by_size(held.scans))[0][:TUNED])
    lam = REGULARISATIONS[len(REGULARISATIONS) // 2]
    with suppress(AmbientError):
        lam = regularisation(total_variation_batch, some)
    return partial(total_variation_batch, lam=lam)


def remeasure(images: Tensor, held: Callable[[], Iterator[Measurement]], restore: Restoration, seed: int) -> Tensor:
    """Images as they would be known from a scan: measured as held-out scans were, and reconstructed as these are.

    Parameters
    ----------
    images
        ``(n, channel, *spatial)``.
    held
        Reads held-out scans, from the first on; when there are no more, it is called again.
    restore
        Makes images of scans.
    seed
        Seed of the noise.

    Returns
    -------
    Tensor
        What is restored of them, like ``images``.
    """
    done: list[Tensor] = []
    start = 0
    while start < len(images):
        for m in held():
            m = m[: len(images) - start].to(images.device)
            if not len(m):
                break
            y = m.operator(images[start : start + len(m)])
            y = (y + m.noise * randn_like(y, stream(seed, _REMEASURED, start))) * m.operator.rows
            done.append(restore(Measurement(y, m.operator, m.noise_std)))
            start += len(m)
    return torch.cat(done)


def chance(similarity: Float, held: Float, scans: int) -> Float:
    """Chance that one of some scans is as near to an image as its nearest, if they are like held-out ones.

    Parameters
    ----------
    similarity
        Of images to the nearest training scan, ``(n,)``.
    held
        Of images to each held-out scan, ``(n, H)``.
    scans
        How many training scans there are.

    Returns
    -------
    array
        ``p`` of each image (see the module), ``(n,)``.
    """
    count = held.shape[1]
    k = max(NEAREST, count // NEAREST_PART)
    own, theirs = (np.sqrt(2 - 2 * np.minimum(values, 1)).clip(CLOSEST) for values in (similarity, held))
    theirs = np.sort(theirs, 1)[:, :k]
    dimension = 1 / max(float(np.log(theirs[:, -1:] / theirs[:, :-1]).mean()), CLOSEST)
    expected = scans / count * (own / theirs[:, -1]) ** dimension
    p: Float = -np.expm1(-k * np.log1p(expected))
    return p
