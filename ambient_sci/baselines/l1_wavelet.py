r"""Compressed sensing with a wavelet prior.

.. math:: \hat x = \arg\min_x \tfrac12 \| A x - y \|_W^2 + \lambda \| \Psi x \|_1

(Lustig, Donoho and Pauly 2007, Magn. Reson. Med. 58:1182), with the weights :math:`W` of
`ambient_sci.baselines.linear`. Two solvers of it, for measurements ``(batch, *measurement)`` by any linear operator and
images ``(batch, channel, *spatial)``:

`l1_wavelet_batch` runs FISTA (Beck and Teboulle 2009, SIAM J. Imaging Sci. 2:183) on all scans at once, with an exactly
orthonormal periodic :math:`\Psi`, so that each proximal step is exact. Thresholds on a fixed grid leave blocks;
shifting the grid at random between steps removes them (cycle spinning, Figueiredo and Nowak 2003, IEEE Trans. Image
Process. 12:906), and the average of the last steps is then the answer.

`l1_wavelet` gives one scan after the other to sigpy, which the field knows; its wavelet grid stays where it is and its
transform is orthonormal but at the border.
"""

from typing import Any

import torch
from torch import Tensor

from ambient_sci.baselines.linear import normal_equations, weights
from ambient_sci.baselines.wavelet import OrthonormalWavelet, multiple
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.measurement import Measurement
from ambient_sci.operators import Sense
from ambient_sci.operators.solve import dot

__all__ = ["l1_wavelet", "l1_wavelet_batch", "largest_eigenvalue"]


def l1_wavelet_batch(
    m: Measurement,
    lam: float,
    iterations: int = 60,
    wavelet: str = "db4",
    levels: int = 4,
    shifts: bool = True,
    progress: bool = False,
) -> Tensor:
    r"""L1-wavelet reconstructions of all scans of a batch at once.

    Parameters
    ----------
    m
        Scans.
    lam
        :math:`\lambda`, in the images' units: a tenth to one noise standard deviation, to be chosen by
        `ambient_sci.baselines.tuning`.
    iterations
        Number of steps.
    wavelet
        An orthogonal wavelet by its PyWavelets name; ``haar`` with shifts acts much like total variation.
    levels
        Number of levels; fewer where the image is too small. Sizes that do not divide are extended with zeros.
    shifts
        Shift the wavelet grid at random between steps.
    progress
        Show a progress bar.

    Returns
    -------
    Tensor
        Images, ``(batch, channel, *spatial)``; the same for the same arguments.
    """
    if lam < 0:
        raise ConfigError(f"lam must not be negative, got {lam}")
    from tqdm.auto import trange

    normal, rhs = normal_equations(m)
    spatial = tuple(rhs.shape[2:])
    while levels > 1 and min(spatial) < 2**levels:
        levels -= 1
    psi = OrthonormalWavelet(multiple(spatial, levels), wavelet, levels)
    pad = [side for size, full in zip(spatial[::-1], psi.shape[::-1], strict=True) for side in (0, full - size)]
    inside: tuple[Any, ...] = (..., *(slice(size) for size in spatial))

    def gradient(z: Tensor) -> Tensor:
        return torch.nn.functional.pad(normal(z[inside]) - rhs, pad)

    step = 1 / (1.02 * largest_eigenvalue(m))
    generator = torch.Generator().manual_seed(0)
    axes = tuple(range(2, rhs.ndim))
    x = torch.zeros_like(torch.nn.functional.pad(rhs, pad))
    ahead, momentum = x, 1.0
    averaged = max(iterations // 4, 1) if shifts else 1
    mean = torch.zeros_like(x)
    for k in trange(iterations, desc="L1-wavelet", disable=not progress, leave=False):
        offset = torch.randint(2**levels, (len(axes),), generator=generator).tolist() if shifts else [0] * len(axes)
        moved = torch.roll(ahead - step * gradient(ahead), offset, axes)
        moved = psi.inverse(_soft_threshold(psi.forward(moved), lam * step))
        renewed = torch.roll(moved, [-o for o in offset], axes)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = renewed + (momentum - 1) / following * (renewed - x)
        x, momentum = renewed, following
        if k >= iterations - averaged:
            mean += x / averaged
    return mean[inside].contiguous()


def l1_wavelet(
    m: Measurement, lam: float, iterations: int = 100, wavelet: str = "db4", progress: bool = False
) -> Tensor:
    """L1-wavelet reconstructions by sigpy, scan by scan.

    ``sigpy.mri.app.L1WaveletRecon`` for multi-coil k-space, sigpy's accelerated proximal gradient with the same wavelet
    for every other operator. Arguments and result are those of `l1_wavelet_batch`.
    """
    if lam < 0:
        raise ConfigError(f"lam must not be negative, got {lam}")
    from tqdm.auto import trange

    steps = 1 / (1.02 * largest_eigenvalue(m)).flatten()
    images = []
    for scan in trange(len(m), desc="L1-wavelet", disable=not progress, leave=False):
        options = {"alpha": float(steps[scan]), "max_iter": iterations, "show_pbar": False}
        images.append(_sigpy_scan(m[scan], lam, wavelet, options))
    return torch.cat(images)


def largest_eigenvalue(m: Measurement, iterations: int = 30) -> Tensor:
    """Largest eigenvalue of :math:`A^H W A` for every scan, ``(batch, 1, ...)``, by power iteration."""
    normal, rhs = normal_equations(m)
    # one start for every scan, so that a scan's result does not depend on the others of its batch
    x = torch.randn(rhs.shape[1:], generator=torch.Generator().manual_seed(0)).to(rhs).expand(rhs.shape)
    for _ in range(iterations):
        x = x / dot(x, x).sqrt().clamp_min(torch.finfo(rhs.real.dtype).tiny)
        image = normal(x)
        value = dot(x, image)
        x = image
    if not bool((value > 0).all()):
        raise DataError(f"scans {(value.flatten() <= 0).nonzero().flatten().tolist()[:5]} have no measured samples")
    return value


def _soft_threshold(coefficients: Tensor, threshold: Tensor) -> Tensor:
    magnitude = coefficients.abs()
    return coefficients * ((magnitude - threshold).clamp_min(0) / magnitude.clamp_min(1e-30))


def _sigpy_scan(m: Measurement, lam: float, wavelet: str, options: dict[str, Any]) -> Tensor:
    import sigpy

    weight = weights(m)
    A = m.operator
    if isinstance(A, Sense) and A.maps.ndim == A.mask.ndim and m.y.is_complex():  # sigpy knows one set of maps
        from sigpy.mri.app import L1WaveletRecon

        mask = A.rows if weight is None else weight
        recon = L1WaveletRecon(
            m.y[0].numpy(force=True),
            A.maps[0].numpy(force=True),
            lam,
            weights=mask.expand_as(m.y)[0].numpy(force=True),
            wave_name=wavelet,
            **options,
        )
        return torch.from_numpy(recon.run()).to(m.y)[None, None]
    root = None if weight is None else weight.sqrt()
    forward = _as_linop(m, root)
    y = (m.y if root is None else root * m.y).to(m.y.dtype.to_complex())  # sigpy thresholds complex numbers only
    transform = sigpy.linop.Wavelet(forward.ishape, axes=tuple(range(1, len(forward.ishape))), wave_name=wavelet)
    prox = sigpy.prox.UnitaryTransform(sigpy.prox.L1Reg(transform.oshape, lam), transform)
    app = sigpy.app.LinearLeastSquares(forward, y[0].numpy(force=True), proxg=prox, **options)
    image = torch.from_numpy(app.run())[None]
    return (image if m.y.is_complex() else image.real).to(m.y)


def _as_linop(m: Measurement, root: Tensor | None) -> Any:
    """Wrap the operator of one scan as a sigpy Linop between arrays without a batch axis."""
    import sigpy

    def forward(x: Any) -> Any:
        y = m.operator(torch.from_numpy(x).to(m.y.device)[None])
        return (y if root is None else root * y)[0].numpy(force=True)

    def adjoint(y: Any) -> Any:
        tensor = torch.from_numpy(y).to(m.y.device)[None]
        return m.operator.adjoint(tensor if root is None else root * tensor)[0].numpy(force=True)

    image_shape, data_shape = tuple(m.operator.adjoint(m.y).shape[1:]), tuple(m.y.shape[1:])

    class Forward(sigpy.linop.Linop):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(data_shape, image_shape)

        def _apply(self, input: Any) -> Any:
            return forward(input)

        def _adjoint_linop(self) -> Any:
            return Backward()

    class Backward(sigpy.linop.Linop):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(image_shape, data_shape)

        def _apply(self, input: Any) -> Any:
            return adjoint(input)

        def _adjoint_linop(self) -> Any:
            return Forward()

    return Forward()
