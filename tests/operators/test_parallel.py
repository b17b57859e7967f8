"""Scans and coils shared among threads: the same numbers, in order, whoever computed them."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_sci.errors import DataError
from ambient_sci.operators import Gaussian, LinearOperator, Normal, Nufft, Sense, conjugate_gradient, parallel, solve
from ambient_sci.operators.parallel import share


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Set torch's number of threads; pieces are shared however small they are."""
    monkeypatch.setattr(parallel, "WORTH", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def cases() -> list[tuple[LinearOperator, Tensor]]:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, 12, 10, dtype=torch.complex128, generator=g)
    mask = (torch.rand(3, 1, 1, 10, generator=g) < 0.5).double()
    points = 6 * torch.rand(3, 40, 2, generator=g, dtype=torch.float64) - 3
    x = torch.randn(3, 1, 12, 10, dtype=torch.complex128, generator=g)
    sets = torch.randn(3, 2, 5, 12, 10, dtype=torch.complex128, generator=g)
    both = torch.randn(3, 2, 12, 10, dtype=torch.complex128, generator=g)
    many = x.repeat(2, 1, 1, 1)
    return [
        (Sense(mask, maps), x),
        (Sense(mask, sets), both),
        (Sense(mask[:1], maps[:1]), many),
        (Nufft(points, (12, 10), maps), x),
        (Nufft(points, (12, 10)), both),
        (Nufft(points[:1], (12, 10), sets[:1]), both),
        (Gaussian(50, (1, 12, 10), torch.arange(3), structured=True).to(torch.float64), x),
        (Gaussian(50, (1, 12, 10), torch.tensor([4, 4, 5, 5]), structured=True).to(torch.float64), many[:4]),
    ]


@pytest.mark.parametrize("number", range(8))
def test_results_do_not_depend_on_threads(number: int, threads: Callable[[int], None]) -> None:
    """More threads than scans or fewer, and whole batches in one piece."""
    threads(1)
    A, x = cases()[number]
    y = A(x)
    back, gram = A.H(y), A.gram(x)
    for count in (2, 3, 7):
        threads(count)
        torch.testing.assert_close(A(x), y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(A.H(y), back, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(A.gram(x), gram, rtol=1e-12, atol=1e-12)
        assert torch.equal(A.H(y), A.H(y)), "sums in another order every time"
        assert torch.get_num_threads() == count


@pytest.mark.parametrize("number", range(8))
def test_derivatives_in_both_modes(number: int, threads: Callable[[int], None]) -> None:
    """Threads neither record what they do nor trip over tangents."""
    threads(2)
    A, x = cases()[number]
    _, tangent = torch.func.jvp(A, (x,), (2j * x,))
    torch.testing.assert_close(tangent, 2j * A(x), rtol=1e-12, atol=1e-12)
    x = x.clone().requires_grad_()
    y = A(x)
    (gradient,) = torch.autograd.grad(y, x, y.detach())
    torch.testing.assert_close(gradient, A.gram(x.detach()), rtol=1e-9, atol=1e-9)


def test_pieces_cover_everything_once(threads: Callable[[int], None]) -> None:
    for count in (1, 2, 5):
        threads(count)
        for scans, coils, pixels in ((1, 1, 10), (1, 12, 1 << 16), (8, 12, 1 << 16), (7, 3, 1 << 12), (3, 5, 1 << 62)):
            parts = share(lambda x, s, c: (x, s, c), torch.arange(scans), coils, pixels)
            for row in parts:
                assert [coil for _, _, block in row for coil in block] == list(range(coils))
                assert all(torch.equal(x, torch.arange(scans)[s]) for x, s, _ in row)
            assert torch.equal(torch.cat([row[0][0] for row in parts]), torch.arange(scans))


def test_threads_compute_alone(threads: Callable[[int], None]) -> None:
    threads(3)
    seen = share(lambda *_: (threading.current_thread().name, torch.get_num_threads()), torch.zeros(9), 1, 1 << 20)
    assert all(name.startswith("ambient-sci") and count == 1 for row in seen for name, count in row)
    fresh: list[int] = []
    other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert fresh == [3], "a new thread of somebody else's has the caller's setting"


def test_errors_arrive(threads: Callable[[int], None]) -> None:
    def fail(x: Tensor, scans: slice, coils: range) -> None:
        raise ZeroDivisionError

    threads(2)
    with pytest.raises(ZeroDivisionError):
        share(fail, torch.zeros(4), 1, 1 << 20)


def test_several_callers_at_once(threads: Callable[[int], None]) -> None:
    threads(2)
    A, x = cases()[3]
    want = A(x)
    results: list[Tensor] = []
    crowd = [threading.Thread(target=lambda: results.append(A(x))) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert len(results) == 4
    assert all(torch.equal(result, want) for result in results)


def test_after_a_fork(threads: Callable[[int], None]) -> None:
    """A child, such as a worker of a loader, has none of its parent's threads."""
    threads(2)
    A, x = cases()[3]
    want = A(x)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        got = pool.apply_async(_measure, (A, x.numpy())).get(timeout=60)
    assert torch.equal(torch.from_numpy(got), want)


def _measure(A: LinearOperator, x: Any) -> Any:
    torch.set_num_threads(2)
    return A(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("chunk", [1, 25, 130, 1 << 18])
@pytest.mark.parametrize("mask", [(3, 1, 1, 5), (3, 1, 6, 5), (1, 7, 1, 5), (3, 1, 1, 1)])
@pytest.mark.parametrize("sets", [(), (2,)])
@pytest.mark.parametrize("depth", [(), (4,)])
def test_gram_in_chunks(
    chunk: int, mask: tuple[int, ...], sets: tuple[int, ...], depth: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and coils a few at a time, down to one of each, against one map after the other."""
    g = torch.Generator().manual_seed(0)
    measured = (torch.rand(*mask[:2], *[1] * len(depth), *mask[2:], generator=g) < 0.6).double()
    maps = torch.randn(mask[0], *sets, 7, *depth, 6, 5, dtype=torch.complex128, generator=g)
    x = torch.randn(3, *(sets or (1,)), *depth, 6, 5, dtype=torch.complex128, generator=g)
    A = Sense(measured, maps)
    monkeypatch.setattr(parallel, "CHUNK", chunk)
    torch.testing.assert_close(A.gram(x), A.H(A(x)), rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------- scans solved on their own


@pytest.fixture
def apart(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two threads, and the sizes of the batches that are solved."""
    solved: list[int] = []
    iterate = solve._iterate

    def watch(apply: Any, rhs: Tensor, *rest: Any) -> Tensor:
        if rhs.is_complex():
            solved.append(len(rhs))
        return iterate(apply, rhs, *rest)

    monkeypatch.setattr(solve, "_iterate", watch)
    threads(2)
    return solved


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("weight", [0.2, "one", "each"])
def test_scans_are_solved_apart(number: int, weight: Any, apart: list[int]) -> None:
    A, x = cases()[number]
    A, x = (A if len(A) == 1 else A.repeat(2)), x.repeat(2, 1, 1, 1)
    if weight == "one":
        weight = torch.tensor(0.3, dtype=torch.float64)
    elif weight == "each":
        weight = torch.linspace(0.1, 1, len(x), dtype=torch.float64).reshape(-1, 1, 1, 1)
    got = conjugate_gradient(Normal(A, weight), x, start=x / 3, iterations=6, tolerance=1e-3)
    assert apart == [len(x) // 2] * 2
    want = conjugate_gradient(lambda v: A.gram(v) + weight * v, x, start=x / 3, iterations=6, tolerance=1e-3)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_few_scans_are_solved_together(apart: list[int]) -> None:
    A, x = cases()[0]
    conjugate_gradient(Normal(A, 0.1), x, iterations=3)
    assert apart == [3]


@pytest.mark.parametrize("implicit", [False, True])
def test_derivatives_of_scans_solved_apart(implicit: bool, apart: list[int]) -> None:
    """In both modes, in the right-hand side and in the weight, as of a function."""
    A, x = cases()[0]
    A, x = A.repeat(2), x.repeat(2, 1, 1, 1).requires_grad_()
    weight = torch.full((6, 1, 1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    count = 120 if implicit else 5

    def ours(b: Tensor, lam: Tensor) -> Tensor:
        return conjugate_gradient(Normal(A, lam), b, iterations=count, implicit=implicit)

    def theirs(b: Tensor, lam: Tensor) -> Tensor:
        return conjugate_gradient(lambda v: A.gram(v) + lam * v, b, iterations=count)

    got, want = (torch.autograd.grad(f(x, weight).abs().square().sum(), (x, weight)) for f in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
    b, lam, change = x.detach(), weight.detach(), torch.ones_like(x)
    for f in (ours, theirs):
        _, tangent = torch.func.jvp(lambda v, f=f: f(v, lam), (b,), (change,))
        with torch.autograd.forward_ad.dual_level():
            dual = f(torch.autograd.forward_ad.make_dual(b, change), lam)
            plain = torch.autograd.forward_ad.unpack_dual(dual).tangent
        torch.testing.assert_close(plain, tangent, rtol=1e-9, atol=1e-9)
    assert (3 in apart) is implicit


def test_what_is_solved_apart_is_checked(apart: list[int]) -> None:
    A, x = cases()[0]
    A, x = A.repeat(2), x.repeat(2, 1, 1, 1)
    with pytest.raises(DataError, match="SENSE expects"):
        conjugate_gradient(Normal(A), x[:, :, 1:])
    with pytest.raises(DataError, match="the operator holds 6 scans"):
        conjugate_gradient(Normal(A), x.repeat(2, 1, 1, 1))
    maps = A.parameters["maps"].clone().requires_grad_()
    with pytest.raises(DataError, match="maps of the operator is being differentiated"):
        conjugate_gradient(Normal(Sense(A.parameters["mask"], maps)), x)
