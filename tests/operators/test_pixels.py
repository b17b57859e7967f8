"""The identity and masked pixels, against diagonal matrices."""

import pytest
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Identity, LinearOperator, Mask
from ambient_sci.testing import OperatorTests


def pixels(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, *shape, generator=generator) < 0.6).to(torch.float64)


class TestIdentity(OperatorTests):
    image_shape = (2, 3, 4)
    dtype = torch.float64
    lifts = True

    def make(self, batch: int, seed: int) -> LinearOperator:
        return Identity(self.image_shape, batch=batch).to(torch.float64)

    def dense(self, operator: LinearOperator) -> Tensor:
        return torch.eye(24, dtype=torch.float64).expand(len(operator), 24, 24)


class TestComplexIdentity(TestIdentity):
    dtype = torch.complex128


class TestMask(OperatorTests):
    """One mask for all channels of a real image."""

    image_shape = (2, 4, 5)
    dtype = torch.float64
    lifts = True
    mask_channels = 1

    def make(self, batch: int, seed: int) -> LinearOperator:
        return Mask(pixels(batch, (self.mask_channels, *self.image_shape[1:]), seed))

    def dense(self, operator: LinearOperator) -> Tensor:
        mask = operator.parameters["mask"].repeat(1, self.image_shape[0] // self.mask_channels, 1, 1)
        return torch.stack([torch.diag(one.flatten()) for one in mask])


class TestMaskOfEveryChannel(TestMask):
    mask_channels = 2


class TestComplexMask(TestMask):
    dtype = torch.complex128


class TestVolumeMask(OperatorTests):
    image_shape = (1, 3, 4, 3)
    lifts = True

    def make(self, batch: int, seed: int) -> LinearOperator:
        return Mask(pixels(batch, self.image_shape, seed))


def test_mask_accepts_bool_and_refuses_weights() -> None:
    mask = pixels(2, (1, 4, 4), 0)
    assert torch.equal(Mask(mask.bool()).rows, mask.float())
    with pytest.raises(DataError, match="zeros and ones"):
        Mask(0.5 * mask)
    with pytest.raises(DataError, match="zeros and ones"):
        Mask(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(DataError, match="complex"):
        Mask(mask.to(torch.complex64))
    with pytest.raises(DataError, match=r"\(batch, channel or 1, \*spatial\), got shape \(2, 4\)"):
        Mask(mask[:, 0, 0])


def test_thinned_identity_is_a_mask() -> None:
    thinned = Identity((1, 4, 4), batch=2).thin(0.5, torch.Generator().manual_seed(0))
    assert isinstance(thinned, Mask)
    assert 0 < thinned.rows.sum() < 32
