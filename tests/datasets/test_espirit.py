import numpy as np
import pytest
import torch

from ambient_sci.datasets.coils import coil_maps, smooth_phase
from ambient_sci.datasets.espirit import eigenmaps, estimate_maps, soft_weight
from ambient_sci.errors import DataError
from ambient_sci.operators.fourier import centred_fft


def phantom(shape, coils=4, seed=1):
    """An ellipse with structure, maps of coils around it, and how far inside each pixel is."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, (0.85, 0.75, 0.8), strict=False))
    image = (
        torch.sigmoid(12 * (1 - inside)) * (1 + 0.3 * torch.cos(5 * axes[-1] + 2 * axes[0])) * smooth_phase(shape, g)
    )
    return image, coil_maps(coils, shape, g), inside


def block(image, maps, width, noise=0.0, seed=2):
    kspace = centred_fft(maps * image, image.ndim)
    g = torch.Generator().manual_seed(seed)
    kspace = kspace + noise * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=g))
    part = [slice(size // 2 - width // 2, size // 2 - width // 2 + width) for size in image.shape]
    return kspace[(slice(None), *part)]


@pytest.mark.parametrize(("shape", "width", "kernel"), [((44, 37), 16, 6), ((33, 40), 20, 5), ((18, 16, 15), 12, 4)])
def test_against_sigpy(shape, width, kernel):
    """The same eigenvectors and the same pixels, in 2-D and 3-D, for odd and even sizes."""
    from sigpy.mri.app import EspiritCalib

    image, maps, _ = phantom(shape)
    centre = block(image, maps, width, 0.004)
    kspace = torch.zeros(4, *shape, dtype=torch.complex64)
    part = tuple(slice(size // 2 - width // 2, size // 2 - width // 2 + width) for size in shape)
    kspace[(slice(None), *part)] = centre
    options = {"calib_width": width, "kernel_width": kernel, "crop": 0.95, "show_pbar": False}
    want = torch.from_numpy(EspiritCalib(kspace.numpy(), **options).run())
    vectors, values = eigenmaps(centre, shape, kernel)
    kept = values[0] > 0.95
    there = want.abs().sum(0) > 0
    assert (kept != there).float().mean() < 0.005  # eigenvalues within rounding of the threshold
    both = kept & there
    assert both.float().mean() > 0.25
    agreement = (want.conj() * vectors[0]).sum(0).abs()[both]
    assert (agreement - 1).abs().max() < 1e-4
    assert values.min() > -1e-5
    assert values.max() < 1 + 1e-5


def test_against_dense_eigenvectors():
    """Both sets, at every pixel, with nothing shared but the definition of the matrix."""
    shape = (11, 12)
    g = torch.Generator().manual_seed(3)
    centre = torch.randn(5, 9, 8, generator=g, dtype=torch.complex64)
    kernel, threshold = 3, 0.4
    vectors, values = eigenmaps(centre, shape, kernel, threshold, sets=2)
    patches = np.array([
        centre[:, i : i + kernel, j : j + kernel].reshape(-1).numpy() for i in range(7) for j in range(6)
    ])  # fmt: skip
    _, sizes, rows = np.linalg.svd(patches, full_matrices=False)
    rows = rows[sizes > threshold * sizes[0]].reshape(-1, 5, kernel, kernel)
    y, x = [np.arange(size) - size // 2 for size in shape]
    waves = [np.exp(2j * np.pi * np.outer(place, np.arange(kernel)) / size) for place, size in ((y, 11), (x, 12))]
    seen = np.einsum("kcij,yi,xj->yxck", rows, *waves) / kernel
    want, frames = np.linalg.eigh(seen @ np.conj(np.swapaxes(seen, -1, -2)))
    np.testing.assert_allclose(values[0], want[..., -1], atol=2e-3)
    apart = want[..., -1] - want[..., -2] > 0.1
    alone = np.abs((frames[..., -1] * np.moveaxis(vectors[0].numpy().conj(), 0, -1)).sum(-1))
    assert alone[apart].min() > 0.999
    two = apart & (want[..., -2] - want[..., -3] > 0.1) & (want[..., -2] > 0.75)
    assert two.sum() > 10
    other = np.abs((frames[..., -2] * np.moveaxis(vectors[1].numpy().conj(), 0, -1)).sum(-1))
    assert other[two].min() > 0.99
    np.testing.assert_allclose(values[1].numpy()[two], want[..., -2][two], atol=5e-3)


def test_maps_are_the_coils_up_to_a_common_phase():
    image, true, inside = phantom((44, 37))
    maps = estimate_maps(block(image, true, 16, 0.004).numpy(), (44, 37))
    energy = (np.abs(maps) ** 2).sum(0)
    well_inside = (inside < 0.7).numpy()
    np.testing.assert_allclose(energy[well_inside], 1, atol=1e-4)
    assert np.isin(energy.round(3), (0, 1)).all()
    common = (maps.conj() * true.numpy()).sum(0)
    assert np.abs(common)[well_inside].min() > 0.99
    turned = maps * np.exp(1j * np.angle(common))
    assert np.abs(turned - true.numpy())[:, well_inside].max() < 0.12
    # the common phase is smooth: what is left of the image's phase is, too
    steps = np.abs(np.diff(maps * well_inside, axis=1))[:, well_inside[1:] & well_inside[:-1]]
    assert steps.max() < 0.3


def test_maps_do_not_depend_on_units():
    image, true, _ = phantom((44, 37))
    centre = block(image, true, 16, 0.004).numpy()
    maps = estimate_maps(centre, (44, 37), noise_std=0.004)
    for unit in (2.0**-40, 2.0**30):
        np.testing.assert_allclose(estimate_maps(unit * centre, (44, 37), noise_std=0.004 * unit), maps, atol=1e-5)


def test_noise_that_is_known_does_no_harm():
    """Singular vectors of noise make every combination of coils possible, unless the threshold leaves them out."""
    image, true, inside = phantom((44, 37), 6)
    centre = block(image, true, 20, 0.3).numpy()
    well_inside = (inside < 0.7).numpy()

    def lost(noise_std):
        maps = estimate_maps(centre, (44, 37), crop=0.5, noise_std=noise_std)
        return 1 - np.abs((maps.conj() * true.numpy()).sum(0))[well_inside].mean()

    assert lost(0.3) < 0.05
    assert lost(0.0) > 3 * lost(0.3)


def test_soft_maps():
    image, true, _ = phantom((44, 37))
    centre = block(image, true, 16, 0.004).numpy()
    hard, soft = (estimate_maps(centre, (44, 37), crop=0.9, soft=soft) for soft in (False, True))
    energy = [np.sqrt((np.abs(maps) ** 2).sum(0)) for maps in (hard, soft)]
    assert ((energy[1] > 0.01) & (energy[1] < 0.99)).mean() > 0.05
    assert np.abs(np.diff(energy[1], axis=0)).max() < np.abs(np.diff(energy[0], axis=0)).max()
    values = torch.tensor([0.0, 0.64, 0.81, 1.0])
    torch.testing.assert_close(soft_weight(values, 0.9), torch.tensor([0.0, 0.0, 0.5, 1.0]), atol=1e-6, rtol=0)


def test_two_sets_where_an_object_folds_back():
    """An object twice as long as the field of view: two places in one pixel, and two sensitivities."""
    long = (64, 40)
    g = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 40), indexing="ij")
    image = torch.sigmoid(12 * (0.8 - (y / 0.9) ** 2 - (x / 0.7) ** 2)) * (1 + 0.4 * torch.sin(6 * x + 3 * y))
    maps = coil_maps(6, long, g)
    folded = centred_fft(maps * image)[:, ::2]  # half the field of view
    centre = folded[:, 16 - 10 : 16 + 10, 20 - 10 : 20 + 10]
    two = estimate_maps(centre.numpy(), (32, 40), sets=2, crop=0.8, noise_std=1e-4)
    assert two.shape == (2, 6, 32, 40)
    present = (np.abs(two) ** 2).sum(1) > 0.5
    assert present[1].mean() > 0.1
    assert not (present[1] & ~present[0]).any()
    overlap = (two[0].conj() * two[1]).sum(0)
    assert np.abs(overlap[present[1]]).max() < 1e-3
    # the sensitivities of both places that meet in a pixel lie in the span of its two sets
    for place in (0, 32):
        rows = place + (np.arange(32) + 16) % 32
        true = maps[:, rows].numpy()
        inside = sum(np.abs((one.conj() * true).sum(0)) ** 2 for one in two)
        assert np.quantile(inside[present[1]], 0.1) > 0.9
        alone = np.abs((two[0].conj() * true).sum(0)) ** 2
        assert np.median(alone[present[1]]) < 0.9


def test_one_coil_has_ones():
    assert (estimate_maps(np.zeros((1, 2, 2), np.complex64), (5, 6)) == np.ones((1, 5, 6))).all()


def test_input_that_cannot_be():
    image, true, _ = phantom((20, 20), 3)
    with pytest.raises(DataError, match=r"coil maps need a fully measured centre of at least 8 samples .* got 7"):
        estimate_maps(block(image, true, 7).numpy(), (20, 20))
    with pytest.raises(DataError, match="sets of maps must be between 1 and the 3 coils, got 4"):
        estimate_maps(block(image, true, 9).numpy(), (20, 20), sets=4)
    with pytest.raises(DataError, match="ESPIRiT found no coil maps"):
        estimate_maps(0 * block(image, true, 9).numpy(), (20, 20))
