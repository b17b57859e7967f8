r"""Every library's operator for a problem, through one interface.

Each keeps its inputs in its own layout, made before anything is timed, and is set up as its documentation says. What
can be kept from call to call (plans, tables, kernels) is made in the constructor. Where the defaults are not the
fastest settings with an error below `ACCURACY`, those are used, and a comment says so.
"""

import contextlib
import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ambient_sci.operators import LinearOperator, Normal, Nufft, Sense, conjugate_gradient
from ambient_sci.operators.parallel import share
from benchmarks.problems import ITERATIONS, GaussianProblem, NufftProblem, Problem, SenseProblem

__all__ = [
    "ACCURACY",
    "AmbientGaussian",
    "AmbientNufft",
    "AmbientSense",
    "DeepinvGaussian",
    "DeepinvNufft",
    "DeepinvSense",
    "DenseGaussian",
    "FinufftNufft",
    "FourierAlone",
    "Library",
    "MrinufftNufft",
    "MrproCoarseNufft",
    "MrproNufft",
    "MrproSense",
    "SigpyNufft",
    "SigpySense",
    "TorchkbnufftNufft",
]

ACCURACY = 1e-3  # relative error that interpolation may have

P = TypeVar("P", bound=Problem)


class Library(ABC, Generic[P]):
    """One library on one problem.

    `forward`, `adjoint`, `gram`, `gradient` and `solve` are the operations of `benchmarks.problems`; those that
    a library has no function for are left out.

    Attributes
    ----------
    name
        What the table calls it.
    module
        What has to be installed.
    devices
        Where it runs.
    differs
        Operations in which it computes, by design, other numbers.
    """

    name: str
    module: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    differs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, problem: P) -> None:
        """Set up what can be kept from call to call."""

    def answer(self, operation: str) -> Tensor | None:
        """Carry an operation out, and give its result in the layout of `Problem.answer`, if it is comparable."""
        result = getattr(self, operation)()
        answer: Tensor = self._measurement(result) if operation == "forward" else self._image(result)
        return answer

    def _image(self, result: Any) -> Any:
        """From the library's own layout."""
        return torch.as_tensor(result)

    _measurement = _image


def _squared_error_gradient(apply: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Differentiate ``||A x - y||^2`` as a training step would."""
    x = x.detach().requires_grad_()
    error = apply(x) - y
    loss = (torch.view_as_real(error) if error.is_complex() else error).square().sum()
    return torch.autograd.grad(loss, x)[0]


# ----------------------------------------------------------------------------------------------------- ambient-sci


class _Ambient(Library[P]):
    name = "ambient-sci"
    module = "ambient_sci"
    operator: LinearOperator
    x: Tensor
    y: Tensor

    def forward(self) -> Tensor:
        return self.operator(self.x)

    def adjoint(self) -> Tensor:
        return self.operator.H(self.y)

    def gram(self) -> Tensor:
        return self.operator.gram(self.x)

    def gradient(self) -> Tensor:
        return _squared_error_gradient(self.operator, self.x, self.y)

    def solve(self) -> Tensor:
        return conjugate_gradient(Normal(self.operator), self.x, iterations=ITERATIONS)


class AmbientSense(_Ambient[SenseProblem]):
    """`ambient_sci.operators.Sense`."""

    def __init__(self, problem: SenseProblem) -> None:
        self.operator = Sense(problem.mask, problem.maps)
        self.x, self.y = problem.image, problem.data


class AmbientNufft(_Ambient[NufftProblem]):
    """`ambient_sci.operators.Nufft`."""

    def __init__(self, problem: NufftProblem) -> None:
        self.operator = Nufft(problem.trajectory, problem.shape, maps=problem.maps)
        self.x, self.y = problem.image, problem.data


class AmbientGaussian(_Ambient[GaussianProblem]):
    """`ambient_sci.operators.Gaussian` of the structured kind, another one for every scan."""

    def __init__(self, problem: GaussianProblem) -> None:
        self.operator = problem.operator()
        self.x, self.y = problem.image, problem.data


# ------------------------------------------------------------------------------------------------------- the floor


class FourierAlone(Library[SenseProblem]):
    """The transforms that no implementation can do without, shared among threads as the package shares its work.

    For the gram, where the mask leaves the other axis alone, they run along the axis of the columns and back.
    """

    name = "the FFTs alone"
    module = "torch"

    def __init__(self, problem: SenseProblem) -> None:
        self.x, self.coils = problem.image, problem.maps.shape[1]

    def answer(self, operation: str) -> None:
        """Nothing to compare with the others."""

    def forward(self) -> None:
        self._for_every_coil(lambda x: torch.fft.fft2(x, norm="ortho"))

    adjoint = forward

    def gram(self) -> None:
        self._for_every_coil(lambda x: torch.fft.ifft(torch.fft.fft(x)))

    def solve(self) -> None:
        for _ in range(ITERATIONS):
            self.gram()

    def _for_every_coil(self, transform: Callable[[Tensor], Tensor]) -> None:
        def work(x: Tensor, scans: slice, coils: range) -> None:
            for _ in coils:
                transform(x)

        share(work, self.x, self.coils, self.x[0].numel())


# --------------------------------------------------------------------------------------------------------- deepinv


class _Deepinv(Library[P]):
    """Images and measurements are pairs of real channels."""

    name = "deepinv"
    module = "deepinv"
    physics: Any

    def _set_up(self, physics: Any, problem: Problem) -> None:
        self.physics = physics
        self.conjugate_gradient = importlib.import_module("deepinv.optim.linear").conjugate_gradient
        self.x = torch.view_as_real(problem.image[:, 0]).movedim(-1, 1).contiguous()
        self.y = torch.view_as_real(problem.data).movedim(-1, 1).contiguous()

    def forward(self) -> Any:
        return self.physics.A(self.x)

    def adjoint(self) -> Any:
        return self.physics.A_adjoint(self.y)

    def gram(self) -> Any:
        return self.physics.A_adjoint_A(self.x)

    def gradient(self) -> Any:
        return _squared_error_gradient(self.physics.A, self.x, self.y)

    def solve(self) -> Any:
        return self.conjugate_gradient(self.physics.A_adjoint_A, self.x, max_iter=ITERATIONS, tol=0)

    def _image(self, result: Any) -> Any:
        return torch.complex(result[:, 0], result[:, 1])[:, None]

    def _measurement(self, result: Any) -> Any:
        return torch.complex(result[:, 0], result[:, 1])


class DeepinvSense(_Deepinv[SenseProblem]):
    """`deepinv.physics.MultiCoilMRI`."""

    def __init__(self, problem: SenseProblem) -> None:
        physics = importlib.import_module("deepinv").physics
        mask = problem.mask.expand(-1, 2, *problem.shape).contiguous()
        self._set_up(physics.MultiCoilMRI(mask=mask, coil_maps=problem.maps, device=problem.image.device), problem)


class DeepinvNufft(_Deepinv[NufftProblem]):
    """`deepinv.physics.NonCartesianMRI`: mri-nufft at its own precision, one trajectory for all scans."""

    devices = ("cpu",)
    differs = ("gradient", "solve")  # of a map that is scaled in another way

    def __init__(self, problem: NufftProblem) -> None:
        physics = importlib.import_module("deepinv").physics
        operator = physics.NonCartesianMRI(
            problem.shape, problem.spokes, problem.trajectory.shape[1] // problem.spokes, coil_maps=problem.maps
        )
        operator.nufft_op.update_samples(problem.trajectory[0].double().numpy())  # its plans are in double precision
        self._set_up(operator, problem)
        self.scale = operator.nufft_op.norm_factor / math.sqrt(math.prod(problem.shape))

    def answer(self, operation: str) -> Tensor | None:
        """Undo mri-nufft's normalisation, half of which is its grid's."""
        result = super().answer(operation)
        return None if result is None else result * self.scale ** (2 if operation == "gram" else 1)


class DeepinvGaussian(_Deepinv[GaussianProblem]):
    """`deepinv.physics.StructuredRandom`: signs and a sine transform, the same for all scans.

    Its `CompressedSensing` would invert the dense matrix in the constructor, for some twenty minutes.
    """

    name = "deepinv, StructuredRandom"

    def __init__(self, problem: GaussianProblem) -> None:
        physics = importlib.import_module("deepinv").physics
        height = 2 ** (problem.data.shape[1].bit_length() // 2)
        self.output = (1, height, problem.data.shape[1] // height)
        self.physics = physics.StructuredRandom((1, *problem.shape), self.output, device=problem.image.device)
        self.x, self.y = problem.image, problem.data.reshape(-1, *self.output)

    def answer(self, operation: str) -> None:
        """Another random map: nothing to compare."""


# ----------------------------------------------------------------------------------------------------------- dense


class DenseGaussian(Library[GaussianProblem]):
    """One dense matrix for all scans: one for each would take sixteen times the memory."""

    module = "torch"

    def __init__(self, problem: GaussianProblem) -> None:
        self.x, self.y = problem.image.flatten(1), problem.data
        generator = torch.Generator(problem.image.device).manual_seed(0)
        rows, columns = self.y.shape[1], self.x.shape[1]
        self.matrix = torch.randn(rows, columns, generator=generator, device=problem.image.device) / math.sqrt(rows)
        self.name = f"a dense matrix of {self.matrix.nbytes / 2**30:.2g} GiB"

    def forward(self) -> Any:
        return self.x @ self.matrix.mT

    def adjoint(self) -> Any:
        return self.y @ self.matrix

    def answer(self, operation: str) -> None:
        """Another random map: nothing to compare."""


# ----------------------------------------------------------------------------------------------------------- mrpro


class _Mrpro(Library[P]):
    """Images ``(batch, coils, z, y, x)``, measurements ``(batch, coils, k2, k1, k0)``, results tuples of one.

    Its conjugate gradients have one step size for the whole batch, and so other iterates.
    """

    name = "mrpro"
    module = "mrpro"
    differs = ("solve",)

    def _set_up(self, operator: Any, x: Tensor, y: Tensor) -> None:
        self.operator, self.operator_adjoint = operator, operator.H
        self.operator_gram = operator.gram  # here it makes the Toeplitz kernel
        self.x, self.y = x, y

    def forward(self) -> Any:
        return self.operator(self.x)[0]

    def adjoint(self) -> Any:
        return self.operator_adjoint(self.y)[0]

    def gram(self) -> Any:
        return self.operator_gram(self.x)[0]

    def gradient(self) -> Any:
        return _squared_error_gradient(lambda x: self.operator(x)[0], self.x, self.y)

    def solve(self) -> Any:
        cg = importlib.import_module("mrpro.algorithms.optimizers").cg
        return cg(self.operator_gram, self.x, max_iterations=ITERATIONS, tolerance=0)[0]

    def _image(self, result: Any) -> Any:
        return result[:, :, 0]


class MrproSense(_Mrpro[SenseProblem]):
    """`mrpro.operators.FourierOp` after `SensitivityOp`, measuring the lines alone: nothing is masked."""

    def __init__(self, problem: SenseProblem) -> None:
        operators, data = importlib.import_module("mrpro.operators"), importlib.import_module("mrpro.data")
        height, width = problem.shape
        columns = problem.columns
        self.shape = problem.data.shape
        self.index = columns[:, None, None].expand(*self.shape[:3], -1)
        trajectory = data.KTrajectory(
            kz=columns.new_zeros(1, 1, 1, 1, 1),
            ky=torch.arange(height, device=columns.device).reshape(1, 1, 1, -1, 1) - height // 2,
            kx=columns[:, None, None, None] - width // 2,
        )
        size = data.SpatialDimension(1, height, width)
        operator = operators.FourierOp(size, size, trajectory) @ operators.SensitivityOp(problem.maps[:, :, None])
        self._set_up(operator, problem.image[:, :, None], problem.data.gather(3, self.index)[:, :, None])

    def _measurement(self, result: Any) -> Any:
        return result.new_zeros(self.shape).scatter(3, self.index, result[:, :, 0])


class MrproNufft(_Mrpro[NufftProblem]):
    """`mrpro.operators.NonUniformFastFourierOp` after `SensitivityOp`; finufft's default precision of 1e-6."""

    oversampling: ClassVar[float] = 2.0  # the default

    def __init__(self, problem: NufftProblem) -> None:
        operators, data = importlib.import_module("mrpro.operators"), importlib.import_module("mrpro.data")
        size = data.SpatialDimension(1, *problem.shape)
        k = problem.trajectory * (problem.trajectory.new_tensor(problem.shape) / (2 * math.pi))
        ky, kx = k[:, None, None, None].unbind(-1)
        trajectory = data.KTrajectory(kz=k.new_zeros(1, 1, 1, 1, 1), ky=ky, kx=kx)
        operator = operators.NonUniformFastFourierOp((-2, -1), size, size, trajectory, self.oversampling)
        if problem.maps is not None:
            operator = operator @ operators.SensitivityOp(problem.maps[:, :, None])
        self._set_up(operator, problem.image[:, :, None], problem.data[:, :, None, None])

    def _measurement(self, result: Any) -> Any:
        return result[:, :, 0, 0]


class MrproCoarseNufft(MrproNufft):
    """The same on a grid of 1.25 times the size, several times faster in single precision."""

    name = "mrpro, oversampling 1.25"
    oversampling = 1.25
    devices = ("cpu",)

    def forward(self) -> Any:
        with _silence():
            return super().forward()

    def adjoint(self) -> Any:
        with _silence():
            return super().adjoint()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep compiled code from writing to stderr: finufft's note that it lowers 1e-6 to what this grid can give."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


# ----------------------------------------------------------------------------------------------------------- sigpy


class _Sigpy(Library[P]):
    """One operator a scan, on numpy arrays."""

    name = "sigpy"
    module = "sigpy"
    devices = ("cpu",)

    def _set_up(self, operators: list[Any], problem: Problem) -> None:
        self.operators = operators
        self.adjoints, self.grams = [A.H for A in operators], [A.N for A in operators]
        self.x, self.y = problem.image[:, 0].numpy(), problem.data.numpy()

    def forward(self) -> Any:
        return np.stack([A * x for A, x in zip(self.operators, self.x, strict=True)])

    def adjoint(self) -> Any:
        return np.stack([AH * y for AH, y in zip(self.adjoints, self.y, strict=True)])

    def gram(self) -> Any:
        return np.stack([AHA * x for AHA, x in zip(self.grams, self.x, strict=True)])

    def solve(self) -> Any:
        algorithms = importlib.import_module("sigpy.alg")
        result = np.zeros_like(self.x)
        for AHA, x, z in zip(self.grams, self.x, result, strict=True):
            algorithm = algorithms.ConjugateGradient(AHA, x, z, max_iter=ITERATIONS)
            while not algorithm.done():
                algorithm.update()
        return result

    def _image(self, result: Any) -> Any:
        return torch.from_numpy(result)[:, None]


class SigpySense(_Sigpy[SenseProblem]):
    """`sigpy.mri.linop.Sense` with the mask for weights."""

    def __init__(self, problem: SenseProblem) -> None:
        sense = importlib.import_module("sigpy.mri").linop.Sense
        masks = problem.mask[:, 0].expand(-1, *problem.shape).numpy()
        # a coil at a time (coil_batch_size=1) takes less memory and as long
        self._set_up([sense(S, weights=M) for S, M in zip(problem.maps.numpy(), masks, strict=True)], problem)


class SigpyNufft(_Sigpy[NufftProblem]):
    """`sigpy.linop.NUFFT` after `Multiply`, as `sigpy.mri.linop.Sense` has it."""

    def __init__(self, problem: NufftProblem) -> None:
        linop = importlib.import_module("sigpy").linop
        k = (problem.trajectory * (torch.tensor(problem.shape) / (2 * math.pi))).numpy()
        coils = problem.data.shape[1]
        # the default (oversamp=1.25, width=4) has an error of 7e-3; toeplitz=True is no faster
        operators = [linop.NUFFT((coils, *problem.shape), coord, oversamp=1.5, width=5) for coord in k]
        if problem.maps is None:
            operators = [A * linop.Reshape(A.ishape, problem.shape) for A in operators]
        else:
            maps = problem.maps.numpy()
            operators = [A * linop.Multiply(problem.shape, S) for A, S in zip(operators, maps, strict=True)]
        self._set_up(operators, problem)


# ---------------------------------------------------------------------------------------------------- torchkbnufft


class TorchkbnufftNufft(Library[NufftProblem]):
    """`torchkbnufft.KbNufft`, `KbNufftAdjoint` and `ToepNufft` with their argument `smaps`."""

    name = "torchkbnufft"
    module = "torchkbnufft"

    def __init__(self, problem: NufftProblem) -> None:
        torchkbnufft = importlib.import_module("torchkbnufft")
        omega = problem.trajectory.mT.contiguous()
        self.omega = omega[0] if problem.batch == 1 else omega
        # of the default six neighbours, five are as accurate: the error is the table's
        self.nufft = torchkbnufft.KbNufft(problem.shape, numpoints=5, device=omega.device)
        self.nufft_adjoint = torchkbnufft.KbNufftAdjoint(problem.shape, numpoints=5, device=omega.device)
        self.toeplitz = torchkbnufft.ToepNufft()
        self.kernel = torchkbnufft.calc_toeplitz_kernel(self.omega, problem.shape, norm="ortho")
        self.x, self.y, self.maps = problem.image, problem.data, problem.maps
        if self.maps is None and problem.batch > 1:
            self.kernel = self.kernel[:, None]  # one for each scan, and not for each channel

    def forward(self) -> Any:
        return self.nufft(self.x, self.omega, smaps=self.maps, norm="ortho")

    def adjoint(self) -> Any:
        return self.nufft_adjoint(self.y, self.omega, smaps=self.maps, norm="ortho")

    def gram(self) -> Any:
        return self.toeplitz(self.x, self.kernel, smaps=self.maps, norm="ortho")

    def answer(self, operation: str) -> Tensor:
        """Undo that "ortho" means the grid, which is twice as fine along both axes."""
        result: Tensor = getattr(self, operation)()
        return result * (4 if operation == "gram" else 2)


# -------------------------------------------------------------------------------------------- finufft and mri-nufft


class FinufftNufft(Library[NufftProblem]):
    """finufft called by hand: plans kept, all coils of a scan in one call, and buffers that are there."""

    name = "finufft by hand"
    module = "finufft"
    devices = ("cpu",)

    def __init__(self, problem: NufftProblem) -> None:
        finufft = importlib.import_module("finufft")
        coils = problem.data.shape[1]
        self.plans = []
        for k in problem.trajectory.numpy():
            # the faster grid for this precision
            pair = [
                finufft.Plan(
                    kind, problem.shape, coils, 1e-4, sign, dtype="complex64", upsampfac=1.25, **_finufft_threads(coils)
                )
                for kind, sign in ((2, -1), (1, 1))
            ]
            for plan in pair:
                plan.setpts(*np.ascontiguousarray(k.T))
            self.plans.append(pair)
        self.maps = (torch.ones_like(problem.image) if problem.maps is None else problem.maps).numpy()
        self.maps_conj = self.maps.conj()
        self.x, self.y = problem.image[:, 0].numpy(), problem.data.numpy()
        self.scale = np.float32(1 / math.sqrt(math.prod(problem.shape)))
        self.images, self.samples = np.empty_like(self.maps[0]), np.empty_like(self.y[0])

    def forward(self) -> Any:
        y = np.empty_like(self.y)
        for scan, (plan, _) in enumerate(self.plans):
            np.multiply(self.maps[scan], self.x[scan], out=self.images)
            plan.execute(self.images, out=y[scan])
        y *= self.scale
        return y

    def adjoint(self) -> Any:
        x = np.empty_like(self.x)
        for scan, (_, plan) in enumerate(self.plans):
            plan.execute(self.y[scan], out=self.images)
            self._combine(scan, x)
        x *= self.scale
        return x

    def gram(self) -> Any:
        x = np.empty_like(self.x)
        for scan, (plan, plan_adjoint) in enumerate(self.plans):
            np.multiply(self.maps[scan], self.x[scan], out=self.images)
            plan.execute(self.images, out=self.samples)
            plan_adjoint.execute(self.samples, out=self.images)
            self._combine(scan, x)
        x *= self.scale**2
        return x

    def _combine(self, scan: int, x: Any) -> None:
        self.images *= self.maps_conj[scan]
        self.images.sum(0, out=x[scan])

    def _image(self, result: Any) -> Any:
        return torch.from_numpy(result)[:, None]


def _finufft_threads(transforms: int) -> dict[str, int]:
    """Threads for finufft: its own choice, except where a single transform takes longest with it.

    The threads that spread wait actively for each other, on cores that those of the FFT need.
    """
    return {"nthreads": 1} if transforms == 1 else {}


class MrinufftNufft(Library[NufftProblem]):
    """mri-nufft's finufft backend with its argument `smaps`, one operator a scan."""

    name = "mri-nufft"
    module = "mrinufft"
    devices = ("cpu",)

    def __init__(self, problem: NufftProblem) -> None:
        nufft = importlib.import_module("mrinufft").get_operator("finufft")
        maps = [None] * problem.batch if problem.maps is None else list(problem.maps.numpy())
        coils = problem.data.shape[1]
        # all coils in one call; the rest is handed on to finufft, whose eps=1e-6 by default takes five times as long
        options = {"n_coils": coils, "n_trans": coils, "eps": 1e-4, "upsampfac": 1.25, **_finufft_threads(coils)}
        self.operators = [
            nufft(k, problem.shape, smaps=S, **options) for k, S in zip(problem.trajectory.numpy(), maps, strict=True)
        ]
        self.scale = self.operators[0].norm_factor / math.sqrt(math.prod(problem.shape))
        self.x, self.y = problem.image[:, 0].numpy(), problem.data.numpy()

    def forward(self) -> Any:
        return np.stack([A.op(x) for A, x in zip(self.operators, self.x, strict=True)])

    def adjoint(self) -> Any:
        return np.stack([A.adj_op(y) for A, y in zip(self.operators, self.y, strict=True)])

    def gram(self) -> Any:
        return np.stack([A.adj_op(A.op(x)) for A, x in zip(self.operators, self.x, strict=True)])

    def answer(self, operation: str) -> Tensor:
        """Undo its normalisation, half of which is its grid's."""
        result: Tensor = torch.from_numpy(getattr(self, operation)()) * self.scale ** (2 if operation == "gram" else 1)
        return result.reshape(self.y.shape if operation == "forward" else (len(self.x), 1, *self.x.shape[1:]))
