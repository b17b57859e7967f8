from itertools import islice

import numpy as np
import pytest
import torch

from ambient_sci.datasets import batches, simulate
from ambient_sci.datasets.loader import batch_indices, epoch_order
from ambient_sci.errors import ConfigError


@pytest.fixture
def store(tmp_path, container, images):
    return simulate(images, tmp_path / f"a.{container}", calibration=2, coils=2)


def take(iterator, count):
    return [batch.index.tolist() for batch in islice(iterator, count)]


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_every_scan_once_in_each_epoch(store, memory):
    drawn = np.concatenate(take(batches(store, 4, seed=3, memory=memory), 9)).reshape(6, 6)
    for epoch, order in enumerate(drawn):
        assert sorted(order) == list(range(6))
        np.testing.assert_array_equal(order, epoch_order(6, 3, epoch))
    assert len({tuple(order) for order in drawn}) > 1


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("done", [1, 4, 7])
def test_resumes_with_the_same_batches(store, memory, done):
    whole = list(islice(batches(store, 4, seed=3), done + 5))
    resumed = list(islice(batches(store, 4, seed=3, start=4 * done, memory=memory), 5))
    for a, b in zip(whole[done:], resumed, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.noise_std, b.noise_std)
        assert torch.equal(a.operator.maps, b.operator.maps)
        assert len(b) == 4


def test_the_seed_decides(store):
    assert take(batches(store, 6, seed=0), 3) == take(batches(store, 6, seed=0), 3)
    assert take(batches(store, 6, seed=0), 3) != take(batches(store, 6, seed=1), 3)


def test_batches_larger_than_the_store(store):
    first = next(batches(store, 15, seed=0))
    assert len(first) == 15
    assert first.index.bincount().tolist() == [3 if scan in epoch_order(6, 0, 2)[:3] else 2 for scan in range(6)]
    assert next(batch_indices(6, 15, 0, 0)).tolist() == first.index.tolist()


def test_wrong_numbers(store):
    with pytest.raises(ConfigError, match="batch_size must be at least 1 and start at least 0, got 0 and 0"):
        batches(store, 0, seed=0)
    with pytest.raises(ConfigError, match="got 1 and -1"):
        batches(store, 1, seed=0, start=-1)
