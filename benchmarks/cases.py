"""What is measured: each case is an operation on a problem, who takes part, and what is asked of them.

A target belongs to the row that it is about: a peer's says how many times our time it has to take, our own what we may
take at most. Targets are for the full size on the CPU.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor

from benchmarks import libraries, measure, problems
from benchmarks.libraries import ACCURACY, Library
from benchmarks.problems import Problem

__all__ = ["CASES", "Case", "Row", "Target", "Verdict", "problem", "run"]


@dataclass(frozen=True)
class Verdict:
    """A target, and whether it was met; ``None`` where that was not measured."""

    target: str
    met: bool | None


@dataclass(frozen=True)
class Row:
    """One library in one case; a number that was not measured is nan.

    Attributes
    ----------
    installed
        Whether the library could be imported.
    milliseconds
        Median time of a call.
    ratio
        How many times our time that is.
    loaded
        How many times longer a call takes while another process keeps one core busy.
    memory
        MiB that a call takes at most, its result included.
    error
        Relative to the exact answer.
    verdicts
        The targets that the row is about.
    """

    case: str
    library: str
    installed: bool = True
    milliseconds: float = math.nan
    ratio: float = math.nan
    loaded: float = math.nan
    memory: float = math.nan
    error: float = math.nan
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Target:
    """A bound on one number of a row."""

    text: str
    met: Callable[[Row], bool]


def _slower(times: float) -> Target:
    return Target(f"at least {times:g}", lambda row: row.ratio >= times)


def _floor(times: float) -> Target:
    return Target(f"ours within {times:g} times", lambda row: row.ratio >= 1 / times)


def _memory(mebibytes: float) -> Target:
    return Target(f"under {mebibytes:g} MiB", lambda row: row.memory < mebibytes)


def _time(milliseconds: float) -> Target:
    return Target(f"under {milliseconds:g} ms", lambda row: row.milliseconds < milliseconds)


LEVEL = Target("at least 1 (less 5 % for the clock)", lambda row: row.ratio >= 0.95)
GRACEFUL = Target("loaded at most 3", lambda row: row.loaded <= 3)  # asked of ours in every case


@dataclass(frozen=True)
class Case:
    """An operation on a problem.

    Attributes
    ----------
    family
        Name of the problem in `PROBLEMS`.
    operation
        One of `benchmarks.problems.OPERATIONS`.
    contestants
        Who takes part, the package first, and what is asked of each.
    tolerance
        Relative error above which a library computes something else.
    """

    family: str
    operation: str
    contestants: Mapping[type[Library[Any]], Target | None]
    tolerance: float

    @property
    def name(self) -> str:
        """Problem and operation."""
        return f"{self.family}-{self.operation}"


# ------------------------------------------------------------------------------------------------------- the cases

# For each family the problem, in full and at the size for tests.
PROBLEMS: dict[str, tuple[Callable[[], Problem], Callable[[], Problem]]] = {
    "sense": (
        partial(problems.sense_problem, batch=8, coils=12, shape=(256, 256)),
        partial(problems.sense_problem, batch=2, coils=3, shape=(24, 32)),
    ),
    "nufft": (
        partial(problems.nufft_problem, batch=1, coils=12, shape=(256, 256), spokes=64, samples=512),
        partial(problems.nufft_problem, batch=1, coils=3, shape=(32, 24), spokes=8, samples=64),
    ),
    "trajectories": (
        partial(problems.nufft_problem, batch=8, coils=0, shape=(128, 128), spokes=64, samples=256),
        partial(problems.nufft_problem, batch=2, coils=0, shape=(32, 24), spokes=8, samples=64),
    ),
    "gaussian": (
        partial(problems.gaussian_problem, batch=16, shape=(256, 256), measurements=8192),
        partial(problems.gaussian_problem, batch=2, shape=(32, 32), measurements=128),
    ),
}


def _sense(
    operation: str,
    peers: Target | None,
    ours: Target | None = None,
    floor: Target | None = None,
    tolerance: float = 1e-5,
) -> Case:
    contestants: dict[type[Library[Any]], Target | None] = {
        libraries.AmbientSense: ours,
        libraries.FourierAlone: floor,
        libraries.SigpySense: None,
        libraries.DeepinvSense: peers,
        libraries.MrproSense: peers,
    }
    able = {library: target for library, target in contestants.items() if hasattr(library, operation)}
    return Case("sense", operation, able, tolerance)


def _nufft(operation: str, targets: Mapping[type[Library[Any]], Target]) -> Case:
    peers: list[type[Library[Any]]] = [
        libraries.FinufftNufft,
        libraries.MrinufftNufft,
        libraries.DeepinvNufft,
        libraries.MrproCoarseNufft,
        libraries.MrproNufft,
        libraries.SigpyNufft,
        libraries.TorchkbnufftNufft,
    ]
    return Case(
        "nufft", operation, {libraries.AmbientNufft: None, **{peer: targets.get(peer) for peer in peers}}, ACCURACY
    )


def _trajectories(operation: str) -> Case:
    # deepinv has one trajectory for all scans
    contestants: dict[type[Library[Any]], Target | None] = {
        libraries.AmbientNufft: None,
        libraries.FinufftNufft: None,
        libraries.MrinufftNufft: None,
        libraries.MrproCoarseNufft: _slower(3),
        libraries.MrproNufft: _slower(3),
        libraries.SigpyNufft: None,
        libraries.TorchkbnufftNufft: None,
    }
    return Case("trajectories", operation, contestants, ACCURACY)


def _gaussian(operation: str) -> Case:
    contestants: dict[type[Library[Any]], Target | None] = {
        libraries.AmbientGaussian: _time(10),
        libraries.DeepinvGaussian: None,
        libraries.DenseGaussian: None,
    }
    return Case("gaussian", operation, contestants, 1e-5)


_INTERPOLATION = {libraries.TorchkbnufftNufft: _slower(5), libraries.FinufftNufft: LEVEL}
_TOEPLITZ = {
    libraries.FinufftNufft: LEVEL,
    libraries.MrproCoarseNufft: LEVEL,
    libraries.MrproNufft: LEVEL,
    libraries.TorchkbnufftNufft: LEVEL,
}

CASES = [
    _sense("forward", peers=_slower(3)),
    _sense("adjoint", peers=_slower(3)),
    _sense("gram", peers=_slower(10), ours=_memory(32), floor=_floor(1.5)),
    _sense("solve", peers=_slower(10), floor=_floor(1.5)),
    _sense("gradient", peers=_slower(2)),
    _nufft("forward", _INTERPOLATION),
    _nufft("adjoint", _INTERPOLATION),
    _nufft("gram", _TOEPLITZ),
    _trajectories("forward"),
    _trajectories("adjoint"),
    _gaussian("forward"),
    _gaussian("adjoint"),
]


# -------------------------------------------------------------------------------------------------------- a case run


@cache
def problem(family: str, quick: bool) -> Problem:
    """Make the problem of a family once; ``quick`` for the size of tests."""
    full, small = PROBLEMS[family]
    return small() if quick else full()


def run(
    cases: Sequence[Case],
    rounds: int,
    device: str = "cpu",
    load: bool = False,
    quick: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure cases, all of their times first and then all of their memory.

    Parameters
    ----------
    cases
        Some of `CASES`.
    rounds
        How often every library has its turn.
    device
        ``"cpu"`` or ``"cuda"``; libraries that do not run there are left out.
    load
        Measure times once more while another process keeps a core busy.
    quick
        At the size for tests, where no target is judged.
    report
        Told what is going on.

    Raises
    ------
    ArithmeticError
        If a library computes something else.
    """
    timed = []
    for case in cases:
        report(f"{case.name}: time")
        timed.append(_times(case, rounds, device, load, quick))
    rows: list[Row] = []
    for case, times in zip(cases, timed, strict=True):
        report(f"{case.name}: memory")
        rows += _memories(case, times, device, quick)
    return rows


def _times(case: Case, rounds: int, device: str, load: bool, quick: bool) -> dict[type[Library[Any]], Row]:
    exact = problem(case.family, quick).answer(case.operation)
    kinds = [kind for kind in case.contestants if device in kind.devices]
    present = {kind: kind(_moved(case, device, quick)) for kind in kinds if _imports(kind.module)}
    errors = [_error(case, library, exact) for library in present.values()]

    calls = [getattr(library, case.operation) for library in present.values()]
    times = measure.take_turns(calls, rounds, device)
    with measure.busy_core() if load else nullcontext():
        loaded = measure.take_turns(calls, rounds, device) if load else []

    rows = {kind: Row(case.name, kind.name, installed=False) for kind in kinds if kind not in present}
    for index, (kind, library) in enumerate(present.items()):
        rows[kind] = Row(
            case.name,
            library.name,
            milliseconds=1e3 * times[index].seconds,
            ratio=times[index].relative_to(times[0]),
            loaded=loaded[index].seconds / times[index].seconds if load else math.nan,
            error=errors[index],
        )
    return {kind: rows[kind] for kind in kinds}


def _memories(case: Case, rows: dict[type[Library[Any]], Row], device: str, quick: bool) -> Iterator[Row]:
    """Add what the times do without: memory, and the verdicts."""
    for kind, row in rows.items():
        if row.installed:
            call = getattr(kind(_moved(case, device, quick)), case.operation)
            row = dataclasses.replace(row, memory=measure.peak_memory(call, device))
        ours = kind is next(iter(case.contestants))
        targets = [case.contestants[kind], None if math.isnan(row.loaded) or not ours else GRACEFUL]
        judged = row.installed and device == "cpu" and not quick
        verdicts = (Verdict(target.text, target.met(row) if judged else None) for target in targets if target)
        yield dataclasses.replace(row, verdicts=tuple(verdicts))


def _moved(case: Case, device: str, quick: bool) -> Problem:
    return problem(case.family, quick).change(lambda value: value.to(device))


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError):  # the latter two where compiled parts do not fit
        return False
    return True


def _error(case: Case, library: Library[Any], exact: Tensor) -> float:
    answer = library.answer(case.operation)
    if answer is None:
        return math.nan
    if answer.shape != exact.shape:
        raise ArithmeticError(f"{case.name}: {library.name} has shape {tuple(answer.shape)}, not {tuple(exact.shape)}")
    error = float((answer.cpu() - exact).norm() / exact.norm())
    if case.operation not in library.differs and not error <= case.tolerance:
        raise ArithmeticError(f"{case.name}: {library.name} is off by {error:.1e}, more than {case.tolerance:g}")
    return error
