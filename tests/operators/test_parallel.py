"""Scans and coils shared among threads: the same numbers, in order, whoever computed them."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_sci.operators import LinearOperator, Nufft, Sense, parallel
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
    ]


@pytest.mark.parametrize("number", range(6))
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


@pytest.mark.parametrize("number", range(6))
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
