"""Reconstruction over a Dask cluster.

Workers draw, this process writes: each batch of scans is one task, whose result comes here, once, whichever worker got
it done. A worker that dies has its tasks done again by others, to the bit. Only as many tasks are under way as keep the
workers busy, so that results do not pile up anywhere.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import ConfigError
from ambient_sci.reconstruction.job import Arrays, Job, Shipment

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["compute_on"]

AHEAD = 2  # tasks for each thread of a worker


def compute_on(
    scheduler: str, device: str, job: Job, chunks: Sequence[tuple[int, NDArray[np.int64]]]
) -> Iterator[tuple[int, Arrays]]:
    """Reconstruct numbered batches of scans, in whatever order they get done.

    Parameters
    ----------
    scheduler
        Address of the scheduler, such as ``"tcp://node1:8786"``.
    device
        Where workers put the network.
    job
        What is to be done.
    chunks
        Number and scans of each batch.

    Raises
    ------
    ConfigError
        If ``distributed`` is not installed, nobody answers at the address, workers have other software, or keep dying.
    """
    with _connected(scheduler) as client:
        from distributed import KilledWorker, as_completed

        with warnings.catch_warnings():
            # the network is part of the task, so that it is not lost with the workers that have it
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            shipped = client.submit(_received, Shipment.of(job, device), pure=False)
        waiting = iter(chunks)
        scans_of: dict[Any, tuple[int, NDArray[np.int64]]] = {}
        running = as_completed(loop=client.loop)

        def refill() -> None:
            room = AHEAD * max(1, sum(client.nthreads().values())) - len(scans_of)
            for number, scans in islice(waiting, max(room, 0)):
                future = client.submit(_compute, shipped, scans, pure=False)
                scans_of[future] = number, scans
                running.add(future)

        refill()
        for future in running:
            number, scans = scans_of.pop(future)
            try:
                arrays = future.result()
            except KilledWorker:
                raise ConfigError(
                    f"the workers that took scans {scans[0]} to {scans[-1]} died, one after the other, as they do when "
                    "their memory is too small: take a smaller batch or larger workers"
                ) from None
            future.release()
            refill()
            yield number, arrays


def _received(shipment: Shipment) -> Shipment:
    return shipment


def _compute(shipment: Shipment, scans: NDArray[np.int64]) -> Arrays:
    return shipment.unpacked.compute(scans)


@contextmanager
def _connected(scheduler: str) -> "Iterator[Client]":
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "scheduler needs the package distributed: install ambient-sci[dask], here and on the workers"
        ) from None
    try:
        client = Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        yield client
