"""Measurements: which scans an index takes, against numpy's own indexing."""

from typing import Any

import numpy as np
import pytest
import torch

from ambient_sci.measurement import Measurement
from ambient_sci.operators import Mask

EVERY = np.arange(5)


def scans() -> Measurement:
    """Five scans; every field of scan k is k, but for the mask, which lacks pixel k."""
    number = torch.arange(5.0)
    mask = 1 - torch.eye(5).reshape(5, 1, 1, 5)
    return Measurement(number.reshape(5, 1, 1, 1) * mask, Mask(mask), number, scale=number)


@pytest.mark.parametrize(
    "index",
    [
        slice(1, 4),
        slice(None, None, 2),
        [3, 1],
        np.array([4, 0, 4]),
        np.array([False, True, True, False, True]),
        torch.tensor([2, 0]),
        torch.tensor([True, False, False, False, True]),
        np.array([], int),
        [],
    ],
    ids=str,
)
def test_an_index_takes_what_it_takes_of_an_array(index: Any) -> None:
    want = EVERY[np.asarray(index, int) if isinstance(index, list) else index]
    m = scans()[index]
    for field in (m.index, m.noise_std, m.scale):
        assert field.tolist() == want.tolist()
    assert (1 - m.operator.rows).flatten(1).argmax(1).tolist() == want.tolist()
    assert len(m) == len(m.operator) == len(want)


@pytest.mark.parametrize("index", [3, -2, np.int64(3), torch.tensor(3)], ids=str)
def test_one_scan_stays_a_batch(index: Any) -> None:
    m = scans()[index]
    assert m.y.shape == (1, 1, 1, 5)
    assert m.index.tolist() == [3]


@pytest.mark.parametrize("index", [5, -6])
def test_a_scan_that_is_not_there_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"scan {index} of a batch that holds 5"):
        scans()[index]
    with pytest.raises(IndexError, match="holds 5"):
        scans().operator[index]
