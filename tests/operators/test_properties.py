"""What holds for every kind whatever its size, its type and its parameters; and the parameters that none may have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import (
    Average,
    Blur,
    Compose,
    Fourier,
    Gaussian,
    Identity,
    LinearOperator,
    Mask,
    Scale,
    Sense,
    Sum,
    VStack,
    collate,
    from_spec,
    gaussian_kernel,
    motion_kernel,
)
from ambient_sci.operators.adapters import Functions, from_functions, from_scipy
from ambient_sci.operators.solve import dot

REAL, COMPLEX = (torch.float32, torch.float64), (torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Case:
    """An operator, the shape and type of the images that it measures, and where random ones come from."""

    operator: LinearOperator
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    seed: int

    def images(self, count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (len(self.operator), *self.image_shape)
        return [torch.randn(shape, dtype=self.dtype, generator=generator) for _ in range(count)]

    @property
    def precision(self) -> float:
        return 200 * torch.finfo(self.dtype).eps

    def close(self, got: Tensor, want: Tensor, size: Tensor | None = None) -> None:
        """Equal but for rounding, as a part of the values' own size."""
        assert got.shape == want.shape
        scale = want.abs().max() if size is None else size
        assert float((got - want).abs().max()) <= self.precision * max(float(scale), 1e-30)


KINDS = ["identity", "mask", "gaussian", "blur", "average", "fourier", "sense"]


@st.composite
def leaves(
    draw: st.DrawFn, kind: str, batch: int, spatial: tuple[int, ...], channel: int, dtype: torch.dtype
) -> LinearOperator:
    """One of the simple kinds for images of a shape and type, of random parameters."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kept = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))  # from nothing to everything measured

    def rows(*shape: int) -> Tensor:
        return (torch.rand(batch, *shape, generator=generator) < kept).to(dtype.to_real())

    if kind == "identity":
        return Identity((channel, *spatial), batch=batch)
    if kind == "mask":
        return Mask(rows(draw(st.sampled_from([1, channel])), *spatial))
    if kind == "gaussian":
        m = draw(st.integers(1, 6))
        seeds = torch.randint(0, 2**40, (batch,), generator=generator)
        return Gaussian(m, (channel, *spatial), seeds, rows(m))
    if kind == "average":
        block = [draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in spatial]
        blocks = [n // b for n, b in zip(spatial, block, strict=True)]
        return Average(rows(draw(st.sampled_from([1, channel])), *blocks), block)
    if kind == "blur":
        size = [draw(st.integers(1, n)) for n in spatial]
        like = draw(st.sampled_from([dtype, dtype.to_real()]))
        kernel = torch.randn(batch, *size, dtype=like, generator=generator)
        return Blur(kernel, spatial, draw(st.sampled_from(["circular", "valid"])))
    lines = [draw(st.sampled_from([1, n])) for n in spatial]  # sampled in full along axes of size one
    if kind == "fourier":
        return Fourier(rows(1, *lines), spatial)
    coils = draw(st.integers(1, 3))
    maps = torch.randn(batch, coils, *spatial, dtype=dtype, generator=generator)
    return Sense(rows(draw(st.sampled_from([1, coils])), *lines), maps)


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    """A simple kind, or what can be made of it."""
    spatial = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    batch, channel = draw(st.integers(1, 3)), 1 if kind == "sense" else draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(COMPLEX if kind in ("fourier", "sense") else REAL + COMPLEX))
    A: LinearOperator = draw(leaves(kind, batch, spatial, channel, dtype))
    factor = draw(st.sampled_from([-2.0, 0.5, 1 - 2j if dtype.is_complex else 3.0]))
    made = draw(st.sampled_from(["alone", "alone", "scaled", "square", "sum", "stack", "product"]))
    if made == "scaled":
        A = factor * A
    elif made == "square":
        A = A.H @ A
    elif made == "sum":
        A = A - factor * A.to(dtype)
    elif made == "stack":
        other = draw(st.sampled_from(KINDS[:5]))
        A = VStack(A, draw(leaves(other, batch, spatial, channel, dtype)), channels=channel)
    elif made == "product":
        pixels = torch.rand(batch, 1, *spatial, generator=torch.Generator().manual_seed(batch)) < 0.7
        A = A @ Mask(pixels)
    return Case(A.to(dtype), (channel, *spatial), dtype, draw(st.integers(0, 2**31)))


def of_every_kind(test: Callable[[str, st.DataObject], None]) -> Any:
    """Run a test with random operators of every kind."""
    return pytest.mark.parametrize("kind", KINDS)(settings(max_examples=40, deadline=None, derandomize=True)(test))


@of_every_kind
@given(data=st.data())
def test_adjoint(kind: str, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    A, (x,) = case.operator, case.images(1)
    like = A(x)
    y = torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(case.seed + 1))
    back = A.H(y)
    assert back.shape == x.shape
    back = back if case.dtype.is_complex else back.real
    size = (dot(x, x) * dot(back, back)).sqrt().max() + (dot(y, y).flatten() * dot(like, like).flatten()).sqrt().max()
    case.close(dot(like, y).flatten(), dot(x, back).flatten(), size)
    if case.dtype.is_complex:
        case.close(dot(1j * like, y).flatten(), dot(1j * x, back).flatten(), size)


@of_every_kind
@given(data=st.data())
def test_linear(kind: str, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    A, (x, z) = case.operator, case.images(2)
    a, b = (0.7 - 0.4j, -1.3 + 0.2j) if case.dtype.is_complex else (0.7, -1.3)
    Ax, Az = A(x), A(z)
    case.close(A(a * x + b * z), a * Ax + b * Az, Ax.abs().max() + Az.abs().max() + x.abs().max())
    assert bool((A(torch.zeros_like(x)) == 0).all())
    assert Ax.real.dtype == case.dtype.to_real()


@of_every_kind
@given(data=st.data())
def test_gram(kind: str, data: st.DataObject) -> None:
    """The fast path is the slow one."""
    case = data.draw(cases(kind))
    A, (x,) = case.operator, case.images(1)
    slow = A.H(A(x))
    case.close(A.gram(x), slow if case.dtype.is_complex else slow.real, slow.abs().max() + x.abs().max())


@of_every_kind
@given(data=st.data())
def test_rows(kind: str, data: st.DataObject) -> None:
    """Selecting the rows twice is selecting them once, from either side, and what is not measured is zero."""
    case = data.draw(cases(kind))
    A, (x,) = case.operator, case.images(1)
    y, rows = A(x), A.rows
    assert torch.equal(rows * rows, rows)
    assert torch.equal(rows * y, y)
    noise = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(case.seed))
    case.close(A.H(rows * noise), A.H(noise), A.H(noise).abs().max())


@of_every_kind
@given(data=st.data())
def test_slices_collate_and_specs(kind: str, data: st.DataObject) -> None:
    """Scan by scan and put together again, repeated, and from what a store writes: the same operator."""
    case = data.draw(cases(kind))
    A, (x,) = case.operator, case.images(1)
    y = A(x)
    size = y.abs().max() + x.abs().max()
    whole, stored = collate(list(A)), from_spec(A.spec())
    for B in (whole, stored):
        assert type(B) is type(A)
        assert B.settings == A.settings
        for name, value in A.parameters.items():
            assert torch.equal(B.parameters[name], value)
        case.close(B(x), y, size)
    for scan in range(len(A)):
        case.close(A[scan](x[scan : scan + 1]), y[scan : scan + 1], size)
    case.close(A.repeat(2)(x.repeat_interleave(2, 0)), y.repeat_interleave(2, 0), size)


# ---------------------------------------------------------------------------------------------- what is refused

NAN = float("nan")
ONES = torch.ones(2, 1, 4, 3)
MAPS = torch.ones(2, 3, 4, 3, dtype=torch.complex64)
KERNEL = torch.full((2, 3, 3), 1 / 9)
WIDTH = torch.ones(2)


def same(x: Tensor) -> Tensor:
    return x


# what is made, and what the message has to start with
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Identity(()), "shape"),
    (lambda: Identity((1, 0)), "shape"),
    (lambda: Identity((1, -2)), "shape"),
    (lambda: Identity((1, 2.5)), "shape"),  # type: ignore[list-item]
    (lambda: Identity(3), "shape"),  # type: ignore[arg-type]
    (lambda: Identity((1, 2), batch=0), "batch"),
    (lambda: Identity((1, 2), batch=1.5), "batch"),  # type: ignore[arg-type]
    (lambda: Identity((1, 2), torch.ones(2)), "scans"),
    (lambda: Identity((1, 2), torch.ones(2, 3)), "scans"),
    (lambda: Identity((1, 2), torch.ones(2, 1).to(torch.complex64)), "scans"),
    (lambda: Identity((1, 2), torch.ones(2, 1).long()), "scans"),
    (lambda: Mask([[1.0]]), "mask"),  # type: ignore[arg-type]
    (lambda: Mask(np.ones((1, 1, 2, 2))), "mask"),  # type: ignore[arg-type]
    (lambda: Mask(ONES / 2), "mask"),
    (lambda: Mask(2 * ONES.long()), "mask"),
    (lambda: Mask(-ONES), "mask"),
    (lambda: Mask(NAN * ONES), "mask"),
    (lambda: Mask(ONES + 0j), "mask"),
    (lambda: Mask(ONES[0, 0]), "mask"),
    (lambda: Mask(ONES[..., :0]), "mask"),
    (lambda: Mask(ONES).thin(0.5, None), "generator"),  # type: ignore[arg-type]
    (lambda: Mask(ONES).thin(NAN, torch.Generator()), "fraction"),
    (lambda: Blur(np.ones((1, 3, 3)), (4, 4)), "kernel"),  # type: ignore[arg-type]
    (lambda: Blur(KERNEL.bool(), (4, 4)), "kernel"),
    (lambda: Blur(KERNEL.long(), (4, 4)), "kernel"),
    (lambda: Blur(NAN * KERNEL, (4, 4)), "kernel"),
    (lambda: Blur(KERNEL / 0, (4, 4)), "kernel"),
    (lambda: Blur(KERNEL * complex(0, NAN), (4, 4)), "kernel"),
    (lambda: Blur(KERNEL, (2, 4)), "kernel"),
    (lambda: Blur(KERNEL, (4,)), "kernel"),
    (lambda: Blur(KERNEL[:, :0], (4, 4)), "kernel"),
    (lambda: Blur(WIDTH, (4,)), "kernel"),
    (lambda: Blur(KERNEL, (4.5, 4)), "shape"),  # type: ignore[arg-type]
    (lambda: Blur(KERNEL, (0, 4)), "shape"),
    (lambda: Blur(KERNEL, (4, 4), "zero"), "boundary"),  # type: ignore[arg-type]
    (lambda: Blur(KERNEL, (4, 4), "valid", torch.ones(2, 1, 4, 4)), "mask"),
    (lambda: Blur(KERNEL, (4, 3), mask=ONES[:1]), "mask"),
    (lambda: Blur(KERNEL, (4, 3), mask=ONES / 2), "mask"),
    (lambda: gaussian_kernel(NAN * WIDTH, (3, 3)), "width"),
    (lambda: gaussian_kernel(WIDTH / 0, (3, 3)), "width"),
    (lambda: gaussian_kernel(-WIDTH, (3, 3)), "width"),
    (lambda: gaussian_kernel(WIDTH.long(), (3, 3)), "width"),
    (lambda: gaussian_kernel(WIDTH + 0j, (3, 3)), "width"),
    (lambda: gaussian_kernel(torch.ones(2, 3), (3, 3)), "width"),
    (lambda: gaussian_kernel(WIDTH, (0, 3)), "size"),
    (lambda: gaussian_kernel(WIDTH, (2.5, 3)), "size"),  # type: ignore[arg-type]
    (lambda: motion_kernel(9 * WIDTH, WIDTH, 5), "length"),
    (lambda: motion_kernel(-WIDTH, WIDTH, 5), "length"),
    (lambda: motion_kernel(NAN * WIDTH, WIDTH, 5), "length"),
    (lambda: motion_kernel(WIDTH, WIDTH[:1], 5), "length and angle"),
    (lambda: motion_kernel(WIDTH[0], WIDTH[0], 5), "length and angle"),
    (lambda: motion_kernel(WIDTH.long(), WIDTH.long(), 5), "length and angle"),
    (lambda: motion_kernel(WIDTH, NAN * WIDTH, 5), "angle"),
    (lambda: motion_kernel(0 * WIDTH, WIDTH, 0), "size"),
    (lambda: motion_kernel(0 * WIDTH, WIDTH, 5.5), "size"),  # type: ignore[arg-type]
    (lambda: Average(ONES / 2, (2, 2)), "mask"),
    (lambda: Average(ONES[0, 0], ()), "mask"),
    (lambda: Average(ONES, (2,)), "block"),
    (lambda: Average(ONES, (2, 0)), "block"),
    (lambda: Average(ONES, (2, -1)), "block"),
    (lambda: Average(ONES, (2.5, 2)), "block"),  # type: ignore[arg-type]
    (lambda: Average(ONES, 2), "block"),  # type: ignore[arg-type]
    (lambda: Scale(Mask(ONES), NAN), "factor"),
    (lambda: Scale(Mask(ONES), "two"), "factor"),  # type: ignore[arg-type]
    (lambda: VStack(Mask(ONES), channels=0), "channels"),
    (lambda: VStack(Mask(ONES), channels=1.5), "channels"),  # type: ignore[arg-type]
    (lambda: Compose(Mask(ONES), ONES), "Compose"),  # type: ignore[arg-type]
    (lambda: Sum(Mask(ONES), Mask(ONES[:1])), "all parts of Sum"),
    (lambda: Fourier(ONES / 2), "mask"),
    (lambda: Fourier(ONES[0, 0]), "mask"),
    (lambda: Fourier(ONES.expand(2, 2, 4, 3)), "mask"),
    (lambda: Fourier(ONES, (5, 3)), "mask"),
    (lambda: Fourier(ONES, calibration=9), "calibration"),
    (lambda: Fourier(ONES, calibration=-1), "calibration"),
    (lambda: Sense(ONES / 2, MAPS), "mask"),
    (lambda: Sense(torch.ones(2, 1, 4, 4), MAPS), "mask"),
    (lambda: Sense(torch.ones(2, 2, 4, 3), MAPS), "mask"),
    (lambda: Sense(ONES, MAPS.real), "maps"),
    (lambda: Sense(ONES, MAPS[0, 0]), "maps"),
    (lambda: Sense(ONES[:1], MAPS), "maps"),
    (lambda: Gaussian(0, (1, 2, 2), 7), "n_measurements"),
    (lambda: Gaussian(2, (1, 2, 2), 7, torch.ones(1, 3)), "rows"),
    (lambda: from_functions(same, same, (1, 0), (3,)), "image_shape"),
    (lambda: from_functions(same, same, (1, 2), (-3,)), "measurement_shape"),
    (lambda: from_functions(same, same, (1, 2), (3,), 0), "batch"),
    (lambda: Functions(2 * ONES, same, same, (1, 2)), "rows"),
    (lambda: from_scipy(np.eye(3), (1, 2)), "a matrix 3 x 3"),
]


@pytest.mark.parametrize(("make", "name"), REFUSED, ids=[f"{i}-{name}" for i, (_, name) in enumerate(REFUSED)])
def test_bad_parameters_are_named(make: Callable[[], Any], name: str) -> None:
    """In one line, as an error of the data that is also a ``ValueError``."""
    with pytest.raises(DataError) as caught:
        make()
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith(name), message
    assert "\n" not in message
