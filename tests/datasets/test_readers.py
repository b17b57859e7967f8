import builtins

import nibabel
import numpy as np
import pytest
from PIL import Image

from ambient_sci.datasets import read_images
from ambient_sci.errors import ConfigError, DataError, NotFoundError


def test_npy(tmp_path, images):
    np.save(tmp_path / "a.npy", images)
    got, coords = read_images(tmp_path / "a.npy", slices=(1, 4))
    np.testing.assert_array_equal(got, images[1:4].astype(np.float32))
    assert coords["slice"].tolist() == [1, 2, 3]
    assert got.dtype == np.float32


def test_one_image(tmp_path, images):
    np.save(tmp_path / "a.npy", images[0])
    assert read_images(tmp_path / "a.npy")[0].shape == (1, 16, 12)


@pytest.mark.parametrize(
    ("scale", "dtype", "top"),
    [(255, np.uint8, 255), (3000, np.int16, None), (700.0, np.float64, None), (0.5, np.float32, 1), (1, bool, 1)],
)
def test_unit_range(tmp_path, images, scale, dtype, top):
    values = (scale * images).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    got, _ = read_images(tmp_path / "a.npy")
    np.testing.assert_allclose(got, values.astype(float) / (top or values.max()), rtol=1e-6)


def test_negative_magnitudes_are_zero(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[-0.5, 0.5]]]))
    assert read_images(tmp_path / "a.npy")[0].tolist() == [[[0, 0.5]]]


def test_complex(tmp_path, images):
    values = images * np.exp(2j * images) * 7
    np.save(tmp_path / "a.npy", values)
    got, _ = read_images(tmp_path / "a.npy")
    assert got.dtype == np.complex64
    np.testing.assert_allclose(got, values / np.abs(values).max(), atol=1e-6)


def test_npz(tmp_path, images):
    np.savez(tmp_path / "a.npz", number=np.arange(6), first=images, second=images[:2] / 2)
    np.testing.assert_array_equal(read_images(tmp_path / "a.npz")[0], images.astype(np.float32))
    np.testing.assert_array_equal(read_images(tmp_path / "a.npz", name="second")[0], images[:2].astype(np.float32) / 2)
    with pytest.raises(ConfigError, match="has no array 'third'; it has number, first, second"):
        read_images(tmp_path / "a.npz", name="third")
    np.savez(tmp_path / "b.npz", number=np.arange(6))
    with pytest.raises(DataError, match="holds no images: number"):
        read_images(tmp_path / "b.npz")


def test_png(tmp_path, images):
    folder = tmp_path / "folder"
    folder.mkdir()
    bytes_ = (255 * images).round().astype(np.uint8)
    for number, image in enumerate(bytes_):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    (folder / "notes.txt").write_text("not an image")
    got, coords = read_images(folder)
    np.testing.assert_allclose(got, bytes_ / 255, rtol=1e-6)
    assert coords["file"].tolist() == ["00", "01", "02", "03", "04", "05"]
    assert read_images(folder / "03.png")[0].shape == (1, 16, 12)
    assert read_images(folder, slices=slice(0, None, 2))[1]["file"].tolist() == ["00", "02", "04"]
    deep = (60000 * images[0]).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_images(tmp_path / "deep.png")[0][0], deep / deep.max(), rtol=1e-6)
    Image.fromarray(bytes_[0].T).save(folder / "99.png")
    with pytest.raises(DataError, match=r"99\.png has shape \(12, 16\), 00\.png has \(16, 12\)"):
        read_images(folder)


def volume():
    """A bright box, brighter towards the front, the top and the right; nothing in the outer slices."""
    x, y, z = np.mgrid[:10, :12, :8].astype(float)
    box = (x > 1) & (x < 8) & (y > 1) & (y < 10) & (z > 1) & (z < 6)
    return box * (500 + 20 * x + 30 * y + 40 * z)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nifti(tmp_path, ending):
    nibabel.save(nibabel.Nifti1Image(volume().astype(np.int16), np.eye(4)), tmp_path / f"a.{ending}")
    got, coords = read_images(tmp_path / f"a.{ending}")
    want = volume().astype(np.int16)
    assert coords["slice"].tolist() == [2, 3, 4, 5]
    np.testing.assert_allclose(got, want[:, ::-1, 2:6].transpose(2, 1, 0) / want.max(), rtol=1e-6)
    sagittal, coords = read_images(tmp_path / f"a.{ending}", axis=0, slices=(0, 4))
    assert coords["slice"].tolist() == [2, 3]
    top = want[2:4].max()
    np.testing.assert_allclose(sagittal, want[2:4, :, ::-1].transpose(0, 2, 1) / top, rtol=1e-6)
    with pytest.raises(DataError, match="no slice that shows anything along axis 2"):
        read_images(tmp_path / f"a.{ending}", slices=(0, 2))


def test_nifti_however_it_is_stored(tmp_path):
    upright = nibabel.Nifti1Image(volume(), np.eye(4))
    turned = upright.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.save(upright, tmp_path / "a.nii")
    nibabel.save(turned, tmp_path / "b.nii")
    np.testing.assert_array_equal(read_images(tmp_path / "a.nii")[0], read_images(tmp_path / "b.nii")[0])


def test_nifti_without_nibabel(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(b"")
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "nibabel":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r'needs nibabel: pip install "ambient-sci\[mri\]"'):
        read_images(tmp_path / "a.nii")


def test_size(tmp_path):
    y, x = np.mgrid[-1:1:40j, -1:1:60j]
    smooth = np.exp(-4 * (x**2 + y**2))[None]
    np.save(tmp_path / "a.npy", smooth)
    got, _ = read_images(tmp_path / "a.npy", size=30)
    assert got.shape == (1, 30, 30)
    assert not got[0, :4].any()  # 40 × 60 lies in 60 × 60, halved
    np.testing.assert_allclose(got[0, 6:24], smooth[0].reshape(20, 2, 30, 2).mean((1, 3))[1:-1], atol=0.02)
    np.testing.assert_array_equal(read_images(tmp_path / "a.npy", size=(40, 60))[0], smooth.astype(np.float32))
    np.save(tmp_path / "b.npy", smooth * np.exp(1j))
    np.testing.assert_allclose(np.abs(read_images(tmp_path / "b.npy", size=30)[0]), got / smooth.max(), atol=1e-5)
    with pytest.raises(ConfigError, match="size must be one number, or one per spatial axis"):
        read_images(tmp_path / "a.npy", size=(3, 3, 3))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(NotFoundError, match=r"no images at .*a\.npy"):
        read_images(tmp_path / "a.npy")
    (tmp_path / "a.bmp").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"supported are \.npy, \.npz, \.png, folder, \.nii, \.nii\.gz; got \.bmp"):
        read_images(tmp_path / "a.bmp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.png files"):
        read_images(tmp_path / "empty")
    for name in ("b.npy", "b.npz", "b.png", "b.nii", "b.nii.gz"):
        for content in (b"", b"not what it says" * 40):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match="is not a readable"):
                read_images(tmp_path / name)


def test_arrays_that_are_no_images(tmp_path, images):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is not a readable"):
        read_images(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.arange(3))
    with pytest.raises(DataError, match=r"must hold numbers \(n, height, width\) .* got int64 of shape \(3,\)"):
        read_images(tmp_path / "b.npy")
    bad = images.copy()
    bad[4, 0, 0] = np.nan
    np.save(tmp_path / "c.npy", bad)
    with pytest.raises(DataError, match="has NaN or infinite values in image 4"):
        read_images(tmp_path / "c.npy")
    with pytest.raises(DataError, match="holds 6 images, none of which is in slices"):
        read_images(tmp_path / "c.npy", slices=(7, 9))
