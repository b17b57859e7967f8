r"""Radio galaxies as a snapshot of the VLA sees them.

.. math:: V_j = w \sum_n x_n e^{-2 \pi i (u_j l_n + v_j m_n)} + \sigma_j e_j, \qquad
          \sigma_j = w \, \sigma \sqrt{T_a T_b}

Every scan is one integration of 27 antennas in configuration B at 1.4 GHz, which is what the survey FIRST was observed
with (Becker, White and Helfand 1995, ApJ 450:559): 351 visibilities, fewer where an antenna is missing, of a source at
a declination and an hour angle of its own. Pixels are FIRST's, 1.8 arcsec. System temperatures :math:`T` of antennas
:math:`a, b` differ by a quarter, so that each visibility has a noise of its own. :math:`w` is one over the square root
of the number of pixels: rows of the operator then have unit norm, as those of the other operators here.

The brightest pixel of an image is one, and :math:`\sigma` such that sources stand some 100 to 250 times above the noise
of their dirty images, as bright ones of the survey do.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_sci import Measurement, open_store
from ambient_sci.datasets import Store, StoreWriter
from ambient_sci.measurement import collate_measurements, randn_like
from ambient_sci.operators import Interferometer, arrays, conjugate_gradient
from ambient_sci.operators.interferometer import ARCSEC
from ambient_sci.seeding import stream

__all__ = ["snapshot", "snapshots"]

NOISE, SPREAD, LOST = 1.0, 0.25, 0.05  # of a visibility in Jy; of ln T; antennas that are missing
PIXEL, FREQUENCY = 1.8 * ARCSEC, 1.4e9
DECLINATIONS, HOURS = (-10.0, 60.0), (-2.0, 2.0)
BATCH = 32


def snapshot(image: NDArray[np.float32], generator: torch.Generator) -> Measurement:
    """Measure one image ``(height, width)`` in Jy per pixel."""
    array = arrays.array("vla-b")
    seen = arrays.random_tracks(1, array, DECLINATIONS, HOURS, 0.0, 1, FREQUENCY, generator, lost=LOST)
    unit = image.size**-0.5
    A = Interferometer(seen.uv.float(), image.shape, PIXEL, weights=unit * seen.weights.float())
    temperature = torch.exp(SPREAD * torch.randn(len(array), generator=generator))
    noise = unit * NOISE * temperature[seen.pairs].prod(2).sqrt()
    y = A(torch.from_numpy(image)[None, None])
    y = y + noise * randn_like(y, generator) * A.rows
    # how bright the source is, from what was measured of it
    scale = conjugate_gradient(A.gram, A.adjoint(y), iterations=5).amax((1, 2, 3))
    return Measurement(y, A, noise, scale=scale)


def snapshots(images: NDArray[np.float32], path: Path, references: bool, seed: int) -> Store:
    """Measure every image once and write the scans to a store; see `ambient_sci.datasets.simulate`."""
    origin = {"source": "simulation", "arguments": {"operator": "interferometer", "noise": NOISE, "seed": seed}}
    with StoreWriter(path, origin) as writer:
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            scans = [snapshot(image, stream(seed, first + k)) for k, image in enumerate(part)]
            writer.append(collate_measurements(scans), torch.from_numpy(part)[:, None] if references else None)
    return open_store(path)
