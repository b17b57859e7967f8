import numpy as np
import pytest
import torch

from ambient_sci.datasets import import_array
from ambient_sci.datasets.coils import coil_maps, smooth_phase
from ambient_sci.errors import ConfigError, DataError, NotFoundError
from ambient_sci.operators.fourier import centred_fft

SHAPE = (44, 37)
NOISE = 0.004


@pytest.fixture(scope="module")
def scan():
    """K-space of an ellipse seen by four coils, fully sampled in the central 16 and at random elsewhere."""
    g = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    inside = (y / 0.85) ** 2 + (x / 0.75) ** 2
    image = torch.sigmoid(12 * (1 - inside)) * (1 + 0.3 * torch.cos(5 * x + 2 * y)) * smooth_phase(SHAPE, g)
    maps = coil_maps(4, SHAPE, g)
    mask = torch.rand(SHAPE, generator=g) < 0.4
    mask[44 // 2 - 8 : 44 // 2 + 8, 37 // 2 - 8 : 37 // 2 + 8] = True
    noise = torch.view_as_complex(torch.randn(4, *SHAPE, 2, generator=g))
    kspace = (centred_fft(maps * image) + NOISE * noise) * mask
    return {"kspace": kspace.numpy(), "mask": mask.numpy(), "maps": maps.numpy(), "image": image.numpy(), "in": inside}


def test_what_is_not_given_is_found(tmp_path, container, scan):
    np.save(tmp_path / "kspace.npy", scan["kspace"])
    store = import_array(tmp_path / "kspace.npy", tmp_path / f"a.{container}")
    got = store.read(0, raw=True)
    np.testing.assert_array_equal(got.y[0].numpy(), scan["kspace"])
    np.testing.assert_array_equal(got.operator.mask[0, 0].numpy(), scan["mask"])
    assert got.operator.calibration == 16
    assert abs(got.noise_std.item() / NOISE - 1) < 0.1
    assert not store.has_references
    provenance = store.attrs["provenance"]
    assert provenance["maps"].startswith("ESPIRiT")
    assert "no noise scan" in provenance["prewhitening"]


def test_maps_explain_the_data(tmp_path, scan):
    """Solving with the imported operator leaves a residual of the size of the noise."""
    from ambient_sci.operators import conjugate_gradient

    got = import_array(scan["kspace"], tmp_path / "a.h5").read(0, raw=True)
    A = got.operator
    x = conjugate_gradient(lambda v: A.gram(v) + 1e-3 * v, A.adjoint(got.y), iterations=60)
    residual = (A(x) - got.y)[:, :, torch.from_numpy(scan["mask"])]
    assert residual.real.std() < 3 * NOISE


def test_lines_are_stored_as_lines(tmp_path):
    g = torch.Generator().manual_seed(0)
    lines = torch.zeros(1, 24)
    lines[:, [0, 3, 9, 10, 11, 12, 13, 14, 20]] = 1
    kspace = torch.view_as_complex(torch.randn(2, 3, 20, 24, 2, generator=g)) * lines
    maps = coil_maps(3, (20, 24), g)
    store = import_array(kspace.numpy(), tmp_path / "a.zarr", maps=maps.numpy(), coords={"slice": [4, 5]})
    assert store.read(slice(None)).operator.mask.shape == (2, 1, 1, 24)
    assert store.attrs["operator_settings"] == {"calibration": 6}
    assert store.to_xarray().operator_mask.dims == ("scan", "x")
    assert store.coords["slice"].tolist() == [4, 5]


def test_lines_beside_points(tmp_path, container):
    """Masks of lines are stored as lines, in a size of their own beside masks of points."""
    g = torch.Generator().manual_seed(0)
    mask = (torch.rand(3, 20, 24, generator=g) < 0.3).float()
    mask[1] = mask[1, :1]
    mask[2] = 1
    kspace = torch.view_as_complex(torch.randn(3, 3, 20, 24, 2, generator=g)) * mask[:, None]
    maps = coil_maps(3, (20, 24), g).numpy()
    store = import_array(kspace.numpy(), tmp_path / f"a.{container}", maps=maps, noise_std=1)
    assert len(store) == 3
    for scan in range(3):
        got = store.read(scan, raw=True)
        np.testing.assert_array_equal(got.operator.mask[0, 0].expand(20, 24), mask[scan])
        assert got.operator.mask.shape[2] == (20 if scan == 0 else 1)
        np.testing.assert_array_equal(got.y[0].numpy(), kspace[scan].numpy())
    assert store.read(2).operator.calibration == 20
    assert store.groups[0].scans.tolist() == [0]


def test_what_is_given_is_used(tmp_path, scan):
    mask = scan["mask"].copy()
    mask[3] = False
    for name in ("maps", "kspace"):
        np.save(tmp_path / f"{name}.npy", scan[name])
    np.save(tmp_path / "mask.npy", mask)
    with pytest.warns(UserWarning, match=r"noise_std of scan 0 is 0\.5 \(given\), but its samples have 0\.00"):
        store = import_array(
            tmp_path / "kspace.npy", tmp_path / "a.zarr", mask=tmp_path / "mask.npy", maps=tmp_path / "maps.npy",
            noise_std=0.5, calibration=12,
        )  # fmt: skip
    got = store.read(0, raw=True)
    assert got.noise_std.item() == 0.5
    assert got.operator.calibration == 12
    np.testing.assert_array_equal(got.operator.maps[0].numpy(), scan["maps"])
    assert not got.y[:, :, 3].any()
    assert store.attrs["provenance"]["maps"] == "given"


def test_a_smaller_matrix_is_the_same_view(tmp_path, scan):
    """The centre of k-space is the same image in larger pixels, with the noise level of all of k-space."""
    store = import_array(scan["kspace"], tmp_path / "a.zarr", matrix=(22, 19))
    got = store.read(0, raw=True)
    np.testing.assert_array_equal(got.y[0].numpy(), scan["kspace"][:, 11:33, 9:28])
    np.testing.assert_array_equal(got.operator.mask[0, 0].numpy(), scan["mask"][11:33, 9:28])
    assert got.operator.calibration == 16
    whole = import_array(scan["kspace"], tmp_path / "b.zarr").read(0, raw=True)
    assert got.noise_std.item() == whole.noise_std.item()
    assert "22 x 19" in store.attrs["provenance"]["matrix"]
    with pytest.raises(ConfigError, match=r"matrix must be between 1 and .* \(44, 37\), got \(45, 20\)"):
        import_array(scan["kspace"], tmp_path / "c.zarr", matrix=(45, 20))


def test_input_that_cannot_be(tmp_path, scan):
    kspace = scan["kspace"]
    bad = kspace.copy()
    bad[1, 2, 3] = np.nan
    out = tmp_path / "a.zarr"
    (tmp_path / "a.mat").write_bytes(b"")
    (tmp_path / "a.npy").write_bytes(b"")
    cases = [
        (NotFoundError, "no kspace at .*there is no such file", {"kspace": tmp_path / "none.npy"}),
        (ConfigError, r"kspace must be an \.npy file", {"kspace": tmp_path / "a.mat"}),
        (DataError, r"is not a readable \.npy", {"kspace": tmp_path / "a.npy"}),
        (DataError, r"kspace must be complex \(coil, y, x\) .* got float32", {"kspace": kspace.real}),
        (DataError, "kspace must be complex", {"kspace": kspace[0]}),
        (DataError, "kspace of scan 0 has 1 NaN", {"kspace": bad}),
        (DataError, "has no measured samples: all are zero", {"kspace": 0 * kspace}),
        (DataError, r"mask of scan 0 has shape \(3, 3\); .* wants \(44, 37\)", {"mask": np.ones((3, 3))}),
        (DataError, "mask of scan 0 must consist of zeros and ones", {"mask": np.full(SHAPE, 0.5)}),
        (DataError, "maps has shape", {"maps": kspace[:2]}),
        (DataError, "maps has NaN", {"maps": bad}),
        (DataError, "calibration is 30, but scan 0 is fully measured only in the central 16", {"calibration": 30}),
        (DataError, "coil maps need a fully measured centre of at least 8 samples", {"calibration": 4}),
        (ConfigError, "noise_std must be finite and not negative, got -1", {"noise_std": -1}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            import_array(**{"kspace": kspace, "path": out, **options})
        assert not out.exists()


def test_one_coil(tmp_path, scan):
    store = import_array(scan["kspace"][:1], tmp_path / "a.h5")
    assert (store.read(0).operator.maps == 1).all()
