r"""A cohort of brain images from the anatomy that nilearn ships.

The ICBM 152 template (Fonov et al. 2011, NeuroImage 54:313) comes as a brain-extracted T1 image :math:`t` and maps of
grey and white matter, :math:`p_g` and :math:`p_w`, at 1 mm; what is left of the brain mask is fluid,
:math:`p_c = [m - p_g - p_w]_+`. A subject is that anatomy with other intensities :math:`a`, and in another shape:

.. math:: v(q) = \beta(q) \, \Bigl[ \sum_k a_k p_k + \tau \, (t - \sum_k \bar a_k p_k) \Bigr](q),
          \qquad q = q_0 + R \, \mathrm{diag}(\lambda) \, r + u(r)

with :math:`\bar a` the intensities of the T1 image itself (what they leave over is texture, kept in proportion to the
contrast), :math:`\beta` a smooth bias, :math:`R` a small rotation, :math:`\lambda` sizes and :math:`u` a sum of plane
waves whose gradients are too small to fold space. A slice is a plane of points :math:`r`, axial, coronal or sagittal,
at a position, in a field of view and with a smooth phase of its own.

Only the points of the plane are deformed. They lie finer than the pixels, and the image is the centre of their
k-space with rounded edges, as a scanner would have it: band-limited, without aliasing. Images are complex, ``(n, size,
size)``, each with a largest magnitude of one.

Every number of a slice follows from ``(seed, subject, slice)``, so it does not matter which others are made with it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_sci.errors import ConfigError

__all__ = ["ORIENTATIONS", "make_cohort"]

ORIENTATIONS = ("axial", "coronal", "sagittal")

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Intensities of grey matter, white matter and fluid: T1-weighted, T2-weighted, proton density, fluid-attenuated.
_CONTRASTS = np.array([[0.62, 1.0, 0.12], [0.58, 0.4, 1.0], [1.0, 0.72, 0.85], [0.95, 0.68, 0.1]])
_CONTRAST_SHARE = (0.55, 0.2, 0.1, 0.15)
_CENTRE = np.array([0.0, -17.0, 9.0])  # of the brain, in MNI mm
_REACH = {"axial": (-32.0, 42.0), "coronal": (-55.0, 45.0), "sagittal": (-48.0, 48.0)}  # of slice positions, mm
_VIEW = {"axial": (210.0, 226.0), "coronal": (178.0, 196.0), "sagittal": (210.0, 226.0)}  # sides of the image, mm
_FINE = 192  # points along a plane's side, at least


@dataclass(frozen=True)
class _Anatomy:
    """Template maps ``(4, x, y, z)`` on a 1 mm grid: grey matter, white matter, fluid, texture."""

    maps: Floats
    origin: Doubles  # MNI coordinates of voxel (0, 0, 0)
    intensities: Doubles  # of the three tissues in the T1 image


@dataclass(frozen=True)
class _Subject:
    """One subject's volume and shape."""

    volume: Floats  # remixed intensities on the template's grid
    frame: Doubles  # rotation and sizes, (3, 3)
    waves: tuple[Doubles, Doubles, Doubles]  # frequencies, phases, displacements
    bias: tuple[Doubles, Doubles, Doubles]


def make_cohort(
    subjects: int,
    slices_per_subject: int,
    size: int = 64,
    seed: int = 0,
    first_subject: int = 0,
    progress: bool = False,
) -> tuple[NDArray[np.complex64], dict[str, NDArray[Any]]]:
    """Make brain images of many subjects.

    Parameters
    ----------
    subjects
        Number of subjects.
    slices_per_subject
        Slices of each; they cycle through the orientations.
    size
        Pixels along either side; the field of view is 180 to 225 mm.
    seed
        A cohort's number. Subject ``k`` of a cohort is the same whatever else is made.
    first_subject
        Number of the first subject, to make others than before.
    progress
        Show a progress bar.

    Returns
    -------
    images
        Complex images, ``(subjects * slices_per_subject, size, size)``, complex64, largest magnitude one.
    coords
        ``subject`` and ``slice`` numbers and ``orientation`` of each, ``(n,)``.

    Raises
    ------
    ConfigError
        If nilearn is missing, or a number is too small.
    """
    for name, value, least in (
        ("subjects", subjects, 1),
        ("slices_per_subject", slices_per_subject, 1),
        ("size", size, 16),
        ("seed", seed, 0),
        ("first_subject", first_subject, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    from tqdm.auto import tqdm

    anatomy = _load_anatomy()
    images = np.empty((subjects, slices_per_subject, size, size), np.complex64)
    numbers = np.arange(first_subject, first_subject + subjects)
    slices = np.arange(slices_per_subject)
    for images_of_subject, number in zip(
        images, tqdm(numbers, "cohort", disable=not progress, leave=False), strict=True
    ):
        subject = _make_subject(anatomy, _generator(seed, int(number)))
        for k in slices:
            rng = _generator(seed, int(number), int(k))
            images_of_subject[k] = _take_slice(anatomy, subject, ORIENTATIONS[(number + k) % 3], size, rng)
    subject_of, slice_of = (axis.ravel() for axis in np.meshgrid(numbers, slices, indexing="ij"))
    orientation = np.array(ORIENTATIONS)[(subject_of + slice_of) % 3]
    return images.reshape(-1, size, size), {"subject": subject_of, "slice": slice_of, "orientation": orientation}


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@cache
def _load_anatomy() -> _Anatomy:
    from scipy.ndimage import gaussian_filter

    try:
        from nilearn import datasets
    except ImportError as error:
        raise ConfigError(
            'the demonstration cohort needs nilearn, which ships its anatomy: pip install "ambient-sci[demo]"'
        ) from error
    image = datasets.load_mni152_template(resolution=1)
    origin = np.asarray(image.affine)[:3, 3]
    mask = np.asarray(datasets.load_mni152_brain_mask(resolution=1).dataobj) > 0
    box = tuple(slice(max(int(i.min()) - 3, 0), int(i.max()) + 4) for i in np.nonzero(mask))

    def values(volume: Any) -> Floats:
        return np.asarray(volume.dataobj, np.float32)[box]

    inside = gaussian_filter(mask[box].astype(np.float32), 0.7)  # the mask's voxel stairs are no anatomy
    t1 = values(image) * inside
    grey = values(datasets.load_mni152_gm_template(resolution=1)) * inside
    white = values(datasets.load_mni152_wm_template(resolution=1)) * inside
    tissues = np.stack([grey, white, np.maximum(inside - grey - white, 0)])
    flat = tissues.reshape(3, -1).astype(np.float64)
    intensities = np.linalg.solve(flat @ flat.T, flat @ t1.ravel())
    texture = t1 - np.tensordot(intensities.astype(np.float32), tissues, 1)
    start = np.array([side.start for side in box])
    return _Anatomy(np.concatenate([tissues, texture[None]]), origin + start, intensities)


def _make_subject(anatomy: _Anatomy, rng: np.random.Generator) -> _Subject:
    intensities = _CONTRASTS[rng.choice(len(_CONTRASTS), p=_CONTRAST_SHARE)]
    intensities = intensities * np.exp(rng.normal(0, (0.07, 0.07, 0.2)))
    grey, white, _ = anatomy.intensities
    texture = rng.uniform(0.6, 1.1) * (intensities[1] - intensities[0]) / (white - grey)
    weights = np.append(intensities, texture).astype(np.float32)
    volume = np.maximum(np.tensordot(weights, anatomy.maps, 1), 0)
    rotation = _rotation(np.radians(rng.normal(0, (5.0, 4.0, 4.0)).clip(-12, 12)))
    sizes = rng.uniform(0.96, 1.08) * rng.uniform(0.96, 1.05, 3)  # a subject's mm in template mm
    # Wavelengths from 200 mm (shape of the head) to 35 mm (shape of the gyri), displaced in proportion: a gradient of
    # at most 0.4 or so in all, so that space does not fold.
    count = 14
    wavelength = np.geomspace(200.0, 35.0, count)
    amplitude = 0.11 * wavelength / (2 * np.pi) * np.linspace(1.0, 0.8, count)
    waves = (
        _directions(rng, count) * (2 * np.pi / wavelength)[:, None],
        rng.uniform(0, 2 * np.pi, count),
        _directions(rng, count) * amplitude[:, None],
    )
    bias = (_directions(rng, 3) / 60.0, rng.uniform(0, 2 * np.pi, 3), rng.normal(0, 0.06, 3))
    return _Subject(volume, rotation * sizes, waves, bias)


def _take_slice(
    anatomy: _Anatomy, subject: _Subject, orientation: str, size: int, rng: np.random.Generator
) -> NDArray[np.complex64]:
    from scipy.ndimage import map_coordinates

    fine = size * -(-_FINE // size)  # a multiple of size
    view = rng.uniform(*_VIEW[orientation])
    ticks = (np.arange(fine) - fine // 2) * (view / fine)
    down, right = np.meshgrid(ticks + rng.uniform(-4, 4), ticks + rng.uniform(-4, 4), indexing="ij")
    depth = np.full_like(down, rng.uniform(*_REACH[orientation]))
    # seen from the patient's feet, front and left; rows start at the nose (axial) or at the crown
    axes = {"axial": (-right, -down, depth), "coronal": (-right, depth, -down), "sagittal": (depth, -right, -down)}
    points = np.stack(axes[orientation]).reshape(3, -1)
    frequencies, phases, displacements = subject.waves
    moved = points + displacements.T @ np.sin(frequencies @ points + phases[:, None])
    voxels = subject.frame @ moved + (_CENTRE - anatomy.origin)[:, None]
    values = map_coordinates(subject.volume, voxels.astype(np.float32), order=1, output=np.float32)
    frequencies, phases, gains = subject.bias
    values = values * np.exp(gains @ np.sin(frequencies @ points + phases[:, None]))
    image = values.reshape(fine, fine) * np.exp(1j * _smooth_phase(down / view, right / view, rng))
    image = _to_pixels(image.astype(np.complex64), size)
    image /= np.abs(image).max()
    return image


def _smooth_phase(down: Doubles, right: Doubles, rng: np.random.Generator) -> Doubles:
    """Phase in radians: a constant, ramps and bowls, and two waves longer than half the view."""
    c = rng.normal(0, (0.5, 0.8, 0.8, 1.0, 1.0, 1.0))
    phase: Doubles = c[0] + c[1] * down + c[2] * right + c[3] * down * right + c[4] * down**2 + c[5] * right**2
    for _ in range(2):
        along, shift, height = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
        phase += height * np.sin(2 * np.pi * 1.5 * (np.cos(along) * down + np.sin(along) * right) + shift)
    return phase


def _to_pixels(image: NDArray[np.complex64], size: int) -> NDArray[np.complex64]:
    """Keep the centre of k-space, its outer part rounded off."""
    from scipy.fft import fft2, fftshift, ifft2, ifftshift

    start = image.shape[0] // 2 - size // 2
    kspace = fftshift(fft2(ifftshift(image)))[start : start + size, start : start + size]
    radius = np.abs(np.arange(size) - size // 2) / (size / 2)
    edge = np.cos(np.pi / 2 * ((radius - 0.7) / 0.3).clip(0, 1)) ** 2
    window = (edge[:, None] * edge).astype(np.float32)
    result: NDArray[np.complex64] = fftshift(ifft2(ifftshift(kspace * window))).astype(np.complex64)
    return result


def _directions(rng: np.random.Generator, count: int) -> Doubles:
    vectors = rng.normal(size=(count, 3))
    unit: Doubles = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _rotation(angles: Doubles) -> Doubles:
    """Rotation by three angles about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: Doubles = about_z @ about_y @ about_x
    return rotation
