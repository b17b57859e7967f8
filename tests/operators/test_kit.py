"""The conformance kit itself: it must find what is wrong with an operator."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_sci.operators import LinearOperator, Mask
from ambient_sci.operators.mask import drop
from ambient_sci.testing import OperatorTests

SHAPE = (1, 4, 5)


class WrongScale(Mask):
    """Not the adjoint."""

    def _adjoint(self, y: Tensor) -> Tensor:
        return 2 * y * self.mask


class WrongConjugate(Mask):
    """An adjoint that forgets the conjugate, and is right for real images."""

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.mask * 1j

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask * 1j

    def _gram(self, x: Tensor) -> Tensor:
        return x * self.mask


class WrongGram(Mask):
    def _gram(self, x: Tensor) -> Tensor:
        return x


class Affine(Mask):
    def _forward(self, x: Tensor) -> Tensor:
        return (x + 1) * self.mask


class FirstScanForAll(Mask):
    def _forward(self, x: Tensor) -> Tensor:
        return x * self.mask[:1]

    _adjoint = _forward
    _gram = _forward


class InPlace(Mask):
    def _forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.mask)


class ThinsFromNothing(Mask):
    """Measures again what was lost."""

    def thin(self, fraction: float, generator: torch.Generator) -> Mask:
        return Mask(drop(torch.ones_like(self.mask), fraction, generator))


class ThinsAllScansAlike(Mask):
    """Fraction of scans, instead of fraction of rows in every scan."""

    def thin(self, fraction: float, generator: torch.Generator) -> Mask:
        return Mask(self.mask * drop(torch.ones_like(self.mask[:1]), fraction, generator))


class ThinsTooMuch(Mask):
    def thin(self, fraction: float, generator: torch.Generator) -> Mask:
        return super().thin(fraction**0.5, generator)


class ThinsUnseeded(Mask):
    def thin(self, fraction: float, generator: torch.Generator) -> Mask:
        return super().thin(fraction, torch.Generator().manual_seed(torch.seed() % 1000))


class LiftsOtherNoise(Mask):
    """White, but without regard to the image noise."""

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        return self(2**0.5 * torch.randn(n.shape, dtype=n.dtype, generator=generator))


class LiftsTwice(Mask):
    """Right on average, but of twice the variance."""

    def lift(self, n: Tensor, generator: torch.Generator) -> Tensor:
        return self(n + 2**0.5 * torch.randn(n.shape, dtype=n.dtype, generator=generator))


class AcceptsAnything(Mask):
    def _check_image(self, x: Tensor) -> None:
        pass

    _check_measurement = _check_image


class ForgetsASetting(Mask):
    def __init__(self, mask: Tensor, factor: float = 1.0) -> None:
        super().__init__(mask)
        self.factor = factor

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * x * self.mask


class SinglePrecision(Mask):
    def _forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) * self.mask).to(x.dtype)


def kit_for(make: Callable[[Tensor], LinearOperator]) -> OperatorTests:
    class Tests(OperatorTests):
        image_shape = SHAPE
        lifts = True

        def make(self, batch: int, seed: int) -> LinearOperator:
            generator = torch.Generator().manual_seed(seed)
            return make((torch.rand(batch, *SHAPE, generator=generator) < 0.6).to(torch.float64))

        def dense(self, operator: LinearOperator) -> Tensor:
            return torch.stack([torch.diag(mask.flatten()) for mask in operator.parameters["mask"]])

    return Tests()


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (WrongScale, "test_adjoint", ()),
        (WrongScale, "test_matrix", ()),
        (WrongScale, "test_derivatives_are_numerical_ones", ("forward",)),
        (WrongScale, "test_derivatives_are_numerical_ones", ("adjoint",)),
        (WrongConjugate, "test_adjoint", ()),
        (WrongConjugate, "test_derivatives_are_numerical_ones", ("forward",)),
        (WrongGram, "test_gram", ()),
        (WrongGram, "test_matrix", ()),
        (Affine, "test_linear", ()),
        (Affine, "test_derivatives_are_numerical_ones", ("forward",)),
        (FirstScanForAll, "test_batch_is_loop", ()),
        (FirstScanForAll, "test_matrix", ()),
        (FirstScanForAll, "test_collate", ()),
        (FirstScanForAll, "test_slices", ()),
        (FirstScanForAll, "test_repeat", ()),
        (InPlace, "test_nothing_changes_in_place", ()),
        (ThinsFromNothing, "test_thin", ()),
        (ThinsAllScansAlike, "test_thin_loses_the_fraction", ()),
        (ThinsTooMuch, "test_thin_loses_the_fraction", ()),
        (ThinsUnseeded, "test_thin", ()),
        (LiftsOtherNoise, "test_lift", ()),
        (LiftsTwice, "test_lift", ()),
        (AcceptsAnything, "test_wrong_image_is_refused", ()),
        (AcceptsAnything, "test_wrong_measurement_is_refused", ()),
        (lambda mask: ForgetsASetting(mask, 2.0), "test_slices", ()),
        (SinglePrecision, "test_matrix", ()),
    ],
)
def test_fault_is_found(broken: Callable[[Tensor], LinearOperator], test: str, arguments: tuple[Any, ...]) -> None:
    getattr(kit_for(Mask), test)(*arguments)  # the same test passes for the kind that is right
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        getattr(kit_for(broken), test)(*arguments)


def test_package_does_not_load_pytest() -> None:
    """Nobody needs pytest but who runs the kit."""
    code = "import sys, ambient_sci, ambient_sci.operators, ambient_sci.measurement; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
