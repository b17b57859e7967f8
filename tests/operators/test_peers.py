"""The same numbers as the libraries that do the same: deepinv, mrpro, sigpy, torchkbnufft, mri-nufft and finufft.

Those that are not installed are skipped; benchmarks/requirements-peers.txt has them all.
"""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]

SENSE = ["DeepinvSense", "MrproSense", "SigpySense"]
NUFFT = ["FinufftNufft", "MrinufftNufft", "MrproNufft", "SigpyNufft", "TorchkbnufftNufft"]
# a badly posed system would show how a library rounds, not what it computes: so no "solve"
INTERPOLATED = ["forward", "adjoint", "gram", "gradient"]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.libraries")


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.problems")


def _compare(peer, ours, problem, operations: list[str], tolerance: float) -> None:
    """Compare those of the operations that the peer has, and that are the same map's."""
    pytest.importorskip(peer.module, exc_type=ImportError)
    theirs, mine = peer(problem), ours(problem)
    for operation in operations:
        if hasattr(peer, operation) and operation not in peer.differs:
            got, want = mine.answer(operation), theirs.answer(operation)
            assert got.shape == want.shape
            assert float((got - want).norm() / want.norm()) < tolerance, operation


@pytest.mark.parametrize("name", SENSE)
@pytest.mark.parametrize("shape", [(12, 16), (9, 13)])
def test_sense(libraries: ModuleType, problems: ModuleType, name: str, shape: tuple[int, int]) -> None:
    """Other columns and other maps in each scan; even and odd sizes."""
    problem = problems.sense_problem(3, 4, shape, acceleration=3)
    assert len(problem.mask.unique(dim=0)) == 3
    operations = ["forward", "adjoint", "gram", "gradient", "solve"]
    _compare(getattr(libraries, name), libraries.AmbientSense, problem, operations, 5e-6)


@pytest.mark.parametrize("name", [*NUFFT, "DeepinvNufft"])
@pytest.mark.parametrize("shape", [(14, 18), (15, 18)])
def test_nufft_with_coils(libraries: ModuleType, problems: ModuleType, name: str, shape: tuple[int, int]) -> None:
    """One trajectory and several coils; even and odd sizes."""
    problem = problems.nufft_problem(1, 3, shape, spokes=7, samples=30)
    operations = list(INTERPOLATED)
    if name == "MrproNufft" and shape == (15, 18):
        operations.remove("gram")  # mrpro's Toeplitz kernel is shifted by half a pixel there: A.gram is not A.H @ A
    _compare(getattr(libraries, name), libraries.AmbientNufft, problem, operations, 1.5e-3)


@pytest.mark.parametrize("name", NUFFT)
@pytest.mark.parametrize("coils", [0, 2])
def test_nufft_with_a_trajectory_for_each_scan(
    libraries: ModuleType, problems: ModuleType, name: str, coils: int
) -> None:
    problem = problems.nufft_problem(3, coils, (16, 12), spokes=6, samples=24)
    assert not torch.allclose(problem.trajectory[0], problem.trajectory[1])
    _compare(getattr(libraries, name), libraries.AmbientNufft, problem, INTERPOLATED, 1.5e-3)
