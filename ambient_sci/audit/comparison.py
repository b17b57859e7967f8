"""Images of a prior and held-out scans, each compared with every scan of the training (`ambient_sci.audit.run`)."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_sci.audit.result import QUANTILES, PriorAudit
from ambient_sci.audit.scans import CHUNK, Scans
from ambient_sci.audit.similarity import Nearest, agreement, correlation
from ambient_sci.audit.statistics import separate
from ambient_sci.baselines import total_variation_batch
from ambient_sci.errors import AmbientError, DataError
from ambient_sci.evaluate.predictive import LEVEL
from ambient_sci.measurement import Measurement, randn_like
from ambient_sci.methods.starts import REGULARISATIONS, TUNED, regularisation
from ambient_sci.prior import Prior
from ambient_sci.seeding import stream

if TYPE_CHECKING:
    import xarray

__all__ = ["FEATURES", "MEASURED", "PIXELS", "Comparison", "Features", "chance", "remeasure"]

PIXELS, MEASURED, FEATURES = "pixels", "measured", "features"
NEIGHBOURS = 50
NEAREST, NEAREST_PART = 4, 8  # so many held-out scans at least, and one of so many, are near to an image
CLOSEST = 1e-2  # distances below which images are the same
_REMEASURED = 0x75  # purpose of a stream

Float = NDArray[np.float64]
Features = Callable[[Tensor], Tensor]
Restoration = Callable[[Measurement], Tensor]


class Comparison:
    """Images of a prior and held-out scans, each compared with every scan of the training in one pass over these."""

    def __init__(
        self,
        prior: Prior,
        training: Scans,
        held: Scans,
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

    def _read(self, scans: Scans, label: str) -> Iterator[Measurement]:
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
        """Numbers of an audit (`PriorAudit`), given the numbers of the held-out scans."""
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
        variables = {name: (PriorAudit.axes[name], np.array(values)) for name, values in columns.items()}
        variables["residual"] = (PriorAudit.axes["residual"], self._residual())
        coords = {"space": self.ways, "image": np.arange(self.count), "scan": held, "quantile": list(QUANTILES)}
        coords["end"] = ["low", "high"]
        return xarray.Dataset(variables, coords, attrs)


def _features(features: Features, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = torch.cat([features(some) for some in images.split(CHUNK)])
    if found.ndim != 2 or len(found) != len(images):
        raise DataError(f"features must be (n, d) for {len(images)} images, got {tuple(found.shape)}")
    return found


def _restoration(held: Scans) -> Restoration:
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
