r"""Conformance tests of operators.

A distribution that brings a kind of operator proves it by inheriting these tests in its own test-suite::

    import torch
    from ambient_sci.testing import OperatorTests
    from my_package import Shear

    class TestShear(OperatorTests):
        image_shape = (1, 6, 5)      # (channel, *spatial): keep it small, and one size odd

        def make(self, batch, seed):
            generator = torch.Generator().manual_seed(seed)
            return Shear(torch.rand(batch, generator=generator, dtype=torch.float64))

        def dense(self, operator):   # optional: the same maps as matrices, made in another way
            return my_matrices(operator.parameters["angle"])

What is tested: that the map is linear and equal to its matrix; that
:math:`\langle A x, y \rangle = \langle x, A^H y \rangle`; :math:`A^H A`; first and second derivatives in reverse and
forward mode; that a batch of different scans is the loop over them, and everything that a batch goes through (slices,
collation, repetition, one operator for many images, pickles, devices, precisions, stores); what it means to lose rows;
the noise of ``lift``; that wrong shapes are refused in words; and that nothing is changed in place. All of it runs in
double precision, and a kind should pass it in about a second.
"""

import json
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ambient_sci.errors import DataError
from ambient_sci.operators.base import LinearOperator, OperatorSpec, collate, from_spec

__all__ = ["OperatorTests"]

Direction = Callable[[LinearOperator], LinearOperator | Callable[[Tensor], Tensor]]

# The maps of an operator that are to be differentiated, and what their adjoints are.
DIRECTIONS: dict[str, tuple[Direction, Direction]] = {
    "forward": (lambda A: A, lambda A: A.H),
    "adjoint": (lambda A: A.H, lambda A: A),
    "gram": (lambda A: A.gram, lambda A: A.gram),
}


class OperatorTests(ABC):
    """Tests that every kind of operator has to pass; inherit, and say how to make one.

    Attributes
    ----------
    image_shape
        Shape of one image, ``(channel, *spatial)``.
    dtype
        Double precision type of the images, ``torch.complex128`` or ``torch.float64``.
    thins
        Whether the kind has ``thin``; one that has none must refuse with a `DataError`.
    lifts
        Whether the kind has ``lift``; one that has none must refuse with a `DataError`.
    tolerance
        Relative and absolute error of double precision that is allowed between the map, its adjoint and its gram, and
        against the matrix; for kinds that interpolate.
    """

    image_shape: tuple[int, ...]
    dtype: torch.dtype = torch.complex128
    thins: bool = True
    lifts: bool = False
    tolerance: float = 1e-10

    @abstractmethod
    def make(self, batch: int, seed: int) -> LinearOperator:
        """Make an operator in double precision, whose parameters differ between scans and seeds."""

    def dense(self, operator: LinearOperator) -> Tensor | None:
        """Give the same maps as matrices ``(batch, m, n)``, made without the operator; ``None`` skips that test."""
        return None

    # ------------------------------------------------------------------------------------------- material

    def image(self, batch: int, seed: int = 0) -> Tensor:
        """Draw random images, ``(batch, *image_shape)``."""
        return self._randn((batch, *self.image_shape), self.dtype, seed)

    def measurement(self, operator: LinearOperator, seed: int = 1) -> Tensor:
        """Draw random values of the shape of a measurement, also where no row was measured."""
        like = operator(self.image(len(operator)))
        return self._randn(tuple(like.shape), like.dtype, seed)

    @staticmethod
    def _randn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))

    def _close(self, got: Tensor, want: Tensor, check_dtype: bool = True) -> None:
        torch.testing.assert_close(got, want, rtol=self.tolerance, atol=self.tolerance, check_dtype=check_dtype)

    def _inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product per scan; its real part where images are real and measurements may be complex."""
        product = (a.conj() * b).flatten(1).sum(1)
        return product if self.dtype.is_complex else product.real

    def _pick(self, direction: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor, Tensor]:
        """Pick a map, its adjoint, and a random point on either side."""
        A = self.make(2, seed=3)
        pick, pick_adjoint = DIRECTIONS[direction]
        apply, adjoint = pick(A), pick_adjoint(A)
        point = self.measurement(A) if direction == "adjoint" else self.image(2)
        like = apply(point)
        return apply, adjoint, point, self._randn(tuple(like.shape), like.dtype, 2)

    # ------------------------------------------------------------------------------------------- the map

    def test_linear(self) -> None:
        """The image of a combination is the combination of the images."""
        A = self.make(2, seed=3)
        x, z = self.image(2, 0), self.image(2, 1)
        a, b = (0.7 - 0.4j, -1.3 + 0.2j) if self.dtype.is_complex else (0.7, -1.3)
        self._close(A(a * x + b * z), a * A(x) + b * A(z))

    def test_adjoint(self) -> None:
        """Inner products agree in every scan, so that no scan leaks into another."""
        A = self.make(3, seed=3)
        x, y = self.image(3), self.measurement(A)
        back = A.H(y)
        assert back.shape == x.shape
        self._close(self._inner(A(x), y), self._inner(x, back), check_dtype=False)
        self._close(A.adjoint(y), back)

    def test_adjoint_of_adjoint(self) -> None:
        """Twice the adjoint is the operator itself."""
        A = self.make(2, seed=3)
        assert A.H.H is A
        self._close(A.H.H(self.image(2)), A(self.image(2)))

    def test_gram(self) -> None:
        """The fast path of :math:`A^H A`, and :math:`A A^H`."""
        A = self.make(2, seed=3)
        x, y = self.image(2), self.measurement(A)
        # real images stay real in a fast path, though complex measurements may lie between
        self._close(A.gram(x), A.H(A(x)), check_dtype=False)
        self._close(A.H.gram(y), A(A.H(y)), check_dtype=False)

    def test_matrix(self) -> None:
        """The operator is the matrix that it is said to be."""
        A = self.make(3, seed=3)
        matrix = self.dense(A)
        if matrix is None:
            pytest.skip("no matrix to compare with")
        x, y = self.image(3), self.measurement(A)
        matrix = matrix.to(torch.promote_types(self.dtype, matrix.dtype))
        self._close(A(x).flatten(1), (matrix @ x.to(matrix.dtype).flatten(1)[..., None])[..., 0])
        for got, want in ((A.H(y), y), (A.gram(x), A(x))):
            back = (matrix.mH @ want.to(matrix.dtype).flatten(1)[..., None])[..., 0]
            # the adjoint of a map from real images is the real part
            self._close(got.flatten(1), back if got.is_complex() else back.real)

    def test_rows(self) -> None:
        """Rows are ones and zeros that broadcast to a measurement, which is zero where they are zero."""
        A = self.make(3, seed=3)
        y = A(self.image(3))
        assert not A.rows.is_complex()
        assert bool(((A.rows == 0) | (A.rows == 1)).all())
        assert (A.rows * y).shape == y.shape
        assert bool((y[(A.rows == 0).expand(y.shape)] == 0).all())

    def test_measurement_shape(self) -> None:
        """The shape is known before anything is measured."""
        A = self.make(2, seed=3)
        assert A.measurement_shape(self.image_shape[0]) == tuple(A(self.image(2)).shape[1:])

    # ------------------------------------------------------------------------------------------- derivatives

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_reverse_mode(self, direction: str) -> None:
        """The vector-Jacobian product is the adjoint, also of the adjoint."""
        apply, adjoint, x, y = self._pick(direction)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(apply(x), x, y)
        want = adjoint(y)
        self._close(gradient, want if x.is_complex() else want.real)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_forward_mode(self, direction: str) -> None:
        """The derivative along a tangent is the image of the tangent, wherever the point."""
        apply, _, x, _ = self._pick(direction)
        tangent = self._randn(tuple(x.shape), x.dtype, 7)
        result = torch.func.jvp(apply, (x,), (tangent,))
        self._close(result[0], apply(x))
        self._close(result[1], apply(tangent))

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_derivatives_are_numerical_ones(self, direction: str) -> None:
        """First and second derivatives in all modes agree with finite differences."""
        apply, _, x, _ = self._pick(direction)
        x.requires_grad_()
        with torch.random.fork_rng():  # the fast mode of both checks draws its directions from the global generator
            torch.manual_seed(0)
            assert gradcheck(apply, (x,), fast_mode=True, check_forward_ad=True)
            assert gradgradcheck(apply, (x,), fast_mode=True, check_fwd_over_rev=True)
            # the second derivative of a linear map is zero whatever its code: check that of a function of it
            assert gradgradcheck(lambda v: apply(v).abs().square().square().sum(), (x,), fast_mode=True)

    # ------------------------------------------------------------------------------------------- the batch

    def test_batch_is_loop(self) -> None:
        """Scans with different parameters, together and one by one."""
        A = self.make(3, seed=3)
        assert len(A) == A.batch == 3
        for direction, (pick, _) in DIRECTIONS.items():
            values = self.measurement(A) if direction == "adjoint" else self.image(3)
            self._close(pick(A)(values), torch.cat([pick(A[i])(values[i : i + 1]) for i in range(3)]))

    def test_slices(self) -> None:
        """Every way to select scans."""
        A = self.make(3, seed=3)
        x = self.image(3)
        y = A(x)
        self._close(A[1](x[1:2]), y[1:2])
        self._close(A[-1](x[2:]), y[2:])
        self._close(A[1:](x[1:]), y[1:])
        order = torch.tensor([2, 0])
        self._close(A[order](x[order]), y[order])
        chosen = torch.tensor([True, False, True])
        self._close(A[chosen](x[chosen]), y[chosen])
        self._close(A.H[1].H(x[1:2]), y[1:2])
        assert len(list(A)) == 3
        with pytest.raises(IndexError, match="3"):
            A[3]

    def test_collate(self) -> None:
        """Scans put together again, in another order, and with those of another operator."""
        A, B = self.make(3, seed=3), self.make(2, seed=4)
        x = self.image(3)
        order = [2, 0, 1]
        self._close(collate([A[i] for i in order])(x[order]), A(x)[order])
        both = collate([A, B])
        assert len(both) == 5
        z = self.image(5)
        self._close(both(z), torch.cat([A(z[:3]), B(z[3:])]))

    def test_repeat(self) -> None:
        """Every scan several times in a row."""
        A = self.make(2, seed=3)
        x = self.image(6)
        self._close(A.repeat(3)(x), torch.cat([A[0](x[:3]), A[1](x[3:])]))

    def test_one_operator_for_many_images(self) -> None:
        """A batch of one measures a batch of any size, with derivatives."""
        A = self.make(1, seed=3)
        x, y = self.image(3), self.measurement(A.repeat(3))
        many = A.repeat(3)
        self._close(A(x), many(x))
        self._close(A.H(y), many.H(y))
        self._close(A.gram(x), many.gram(x))
        x.requires_grad_()
        self._close(torch.autograd.grad(A(x), x, y)[0], torch.autograd.grad(many(x), x, y)[0])

    def test_wrong_batch_is_refused(self) -> None:
        """Three scans do not measure two images."""
        A = self.make(3, seed=3)
        with pytest.raises(DataError, match=r"3 scans.* 2 "):
            A(self.image(2))

    # ------------------------------------------------------------------------------------------- fewer rows

    def test_thin(self) -> None:
        """A thinned operator measures a part of what was measured, and that part is what its rows select."""
        A = self.make(3, seed=3)
        if not self.thins:
            with pytest.raises(DataError):
                A.thin(0.5, torch.Generator().manual_seed(0))
            return
        x = self.image(3)
        for fraction in (0.0, 0.4, 1.0):
            thinned = A.thin(fraction, torch.Generator().manual_seed(0))
            assert len(thinned) == 3
            assert bool((thinned.rows <= A.rows).all())
            self._close(thinned(x), thinned.rows * A(x))
            again = A.thin(fraction, torch.Generator().manual_seed(0))
            assert torch.equal(thinned.rows, again.rows)
            if fraction == 0:
                self._close(thinned(x), A(x))

    def test_thin_loses_the_fraction(self) -> None:
        """Every row that may be lost is lost with the probability given, in every scan by itself."""
        if not self.thins:
            pytest.skip("this kind does not lose rows")
        A = self.make(2, seed=3)
        full = A(self.image(2)).shape[1:]
        rest = A.thin(1.0, torch.Generator().manual_seed(0)).rows.expand(2, *full)
        loses = (A.rows.expand(2, *full) - rest) == 1
        assert bool(loses.flatten(1).any(1).all()), "nothing can be lost"
        times = 1500
        rows = A.repeat(times).thin(0.3, torch.Generator().manual_seed(1)).rows.expand(2 * times, *full)
        rows = rows.reshape(2, times, *full)
        share = rows.to(torch.float64).mean(1)
        torch.testing.assert_close(share[loses], torch.full_like(share[loses], 0.7), rtol=0, atol=0.06)  # 5 sigma
        assert bool((rows >= rest[:, None]).all()), "a row is lost that survives fraction 1"

    @pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
    def test_thin_refuses_no_fraction(self, fraction: float) -> None:
        """A fraction lies between 0 and 1."""
        with pytest.raises(DataError):
            self.make(2, seed=3).thin(fraction, torch.Generator().manual_seed(0))

    def test_lift(self) -> None:
        """Lifted noise is white on the rows, and for a given image noise ``n`` it is ``A n`` on average."""
        A = self.make(2, seed=3)[0]
        generator = torch.Generator().manual_seed(0)
        if not self.lifts:
            with pytest.raises(DataError):
                A.lift(self.image(1), generator)
            return
        times = 4000
        unit = math.sqrt(2) if self.dtype.is_complex else 1.0  # torch's complex noise has unit variance in all
        n = unit * self.image(times)
        e = A.lift(n, generator)
        assert e.shape == A(n).shape
        assert torch.equal(e, A.lift(n, torch.Generator().manual_seed(0)))
        values = e.flatten(1)
        rows = A.rows.expand(1, *e.shape[1:]).flatten().to(values.dtype)
        tolerance = 6 / math.sqrt(times)
        torch.testing.assert_close(
            values.mT @ values.conj() / times / unit**2, torch.diag(rows), rtol=0, atol=tolerance
        )
        if values.is_complex():  # real and imaginary part of equal variance, and uncorrelated
            torch.testing.assert_close(values.mT @ values / times / 2, 0 * torch.diag(rows), rtol=0, atol=tolerance)
        same = n[:1].expand_as(n)
        mean = A.lift(same, generator).mean(0)
        torch.testing.assert_close(mean, A(n[:1])[0], rtol=0, atol=unit * tolerance)

    # ------------------------------------------------------------------------------------------- a value

    def test_nothing_changes_in_place(self) -> None:
        """Neither the operator nor what it is given."""
        A = self.make(2, seed=3)
        before = {name: value.clone() for name, value in A.parameters.items()}
        x, y = self.image(2), self.measurement(A)
        x_before, y_before = x.clone(), y.clone()
        first, back = A(x), A.H(y)
        _ = A.gram(x), A.H.gram(y), A.repeat(2), A[0], A.to(torch.float32)
        if self.thins:
            A.thin(0.5, torch.Generator().manual_seed(0))
        first.mul_(2)  # what is returned must not be the operator's own
        back.mul_(2)
        assert torch.equal(x, x_before)
        assert torch.equal(y, y_before)
        assert A.parameters.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in A.parameters.items())
        self._close(A(x), first / 2)
        self._close(A.H(y), back / 2)

    def test_pickle(self) -> None:
        """A copy in another process, made before or after the first use."""
        A = self.make(2, seed=3)
        x = self.image(2)
        unused = pickle.dumps(A)
        want, gram = A(x), A.gram(x)
        for stored in (unused, pickle.dumps(A)):
            copy = pickle.loads(stored)
            self._close(copy(x), want)
            self._close(copy.gram(x), gram)

    def test_precision(self) -> None:
        """Single precision gives single precision, and about the same."""
        A = self.make(2, seed=3)
        x = self.image(2)
        single = torch.complex64 if self.dtype.is_complex else torch.float32
        for wanted in (torch.float32, torch.complex64):
            B = A.to(dtype=wanted)
            y = B(x.to(single))
            assert y.real.dtype == torch.float32
            assert B.H(y).real.dtype == torch.float32
            torch.testing.assert_close(y.to(A(x).dtype), A(x), rtol=1e-4, atol=1e-4)
            gram = B.gram(x.to(single))
            torch.testing.assert_close(gram.to(A.gram(x).dtype), A.gram(x), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_device(self, device: str) -> None:
        """The same values on every device, with thinning drawn from the same generator."""
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        A = self.make(2, seed=3)
        B = A.to(device)
        x, y = self.image(2), self.measurement(A)
        assert B.device.type == device
        assert B(x.to(device)).device.type == device
        self._close(B(x.to(device)).cpu(), A(x))
        self._close(B.H(y.to(device)).cpu(), A.H(y))
        self._close(B.gram(x.to(device)).cpu(), A.gram(x))
        if self.thins:
            thinned = B.thin(0.5, torch.Generator().manual_seed(0))
            assert thinned.rows.device.type == device
            assert torch.equal(thinned.rows.cpu(), A.thin(0.5, torch.Generator().manual_seed(0)).rows)
        if self.lifts:
            lifted = B.lift(x.to(device), torch.Generator().manual_seed(0))
            self._close(lifted.cpu(), A.lift(x, torch.Generator().manual_seed(0)))

    def test_store(self) -> None:
        """What a store writes makes the operator again: kind, tensors with the batch first, and JSON."""
        A = self.make(2, seed=3)
        spec = A.spec()
        assert spec.kind == A.kind
        assert all(value.shape[0] == 2 for value in spec.parameters.values())
        assert not any("/" in name for name in spec.parameters), "a store takes a slash for a group"
        settings = json.loads(json.dumps(spec.settings))
        B = from_spec(OperatorSpec(spec.kind, dict(spec.parameters), settings))
        assert type(B) is type(A)
        assert B.settings == A.settings
        self._close(B(self.image(2)), A(self.image(2)))
        assert type(A).__name__ in repr(A)

    # ------------------------------------------------------------------------------------------- wrong input

    def test_wrong_image_is_refused(self) -> None:
        """One pixel too many on any axis, an axis missing: the message says what was expected and what was got."""
        A = self.make(2, seed=3)
        x = self.image(2)
        for axis in range(2, x.ndim):
            longer = torch.cat([x, x.narrow(axis, 0, 1)], axis)
            self._refuses(A, longer, x.shape[axis])
            self._refuses(A.gram, longer, x.shape[axis])
        self._refuses(A, x[..., 0], x.shape[-1])

    def test_wrong_measurement_is_refused(self) -> None:
        """One value too many on any axis, an axis missing: the message says what was expected and what was got."""
        A = self.make(2, seed=3)
        y = self.measurement(A)
        # axis 1 of an image-like measurement may be a channel, which some kinds leave open
        for axis in range(1 if y.ndim == 2 else 2, y.ndim):
            self._refuses(A.H, torch.cat([y, y.narrow(axis, 0, 1)], axis), y.shape[axis])
        self._refuses(A.H, y[..., 0], y.shape[-1])

    @staticmethod
    def _refuses(apply: Callable[[Tensor], Tensor], value: Tensor, wanted: int) -> None:
        with pytest.raises(DataError) as caught:
            apply(value)
        message = str(caught.value)
        assert str(wanted) in message, f"the message does not say what was expected: {message}"
        assert str(tuple(value.shape)) in message, f"the message does not say what was got: {message}"
