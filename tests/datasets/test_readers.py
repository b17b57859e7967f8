import builtins
import sys
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ambient_sci.datasets import read_images
from ambient_sci.errors import AmbientError, ConfigError, DataError, NotFoundError


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
    with pytest.raises(ConfigError, match=r"supported are \.npy, \.npz, \.png, .*, folder, .*; got \.bmp"):
        read_images(tmp_path / "a.bmp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no pictures .* and no DICOM files"):
        read_images(tmp_path / "empty")
    for name in ("b.npy", "b.npz", "b.png", "b.jpg", "b.tiff", "b.dcm", "b.nii", "b.nii.gz"):
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


def test_jpeg_and_tiff(tmp_path, images):
    bytes_ = (255 * images).round().astype(np.uint8)
    for number, image in enumerate(bytes_):
        Image.fromarray(image).save(tmp_path / f"{number}.jpg", quality=95)
        Image.fromarray(image).save(tmp_path / f"{number}.JPEG", quality=95)
    got, coords = read_images(tmp_path)
    assert coords["file"].tolist() == [str(n) for n in range(6) for _ in range(2)]
    np.testing.assert_allclose(got[::2], bytes_ / 255, atol=0.03)
    values = (3 * images).astype(np.float32)
    pages = [Image.fromarray(image) for image in values]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    got, coords = read_images(tmp_path / "pages.tif", slices=(1, 4))
    np.testing.assert_allclose(got, values[1:4] / values[1:4].max(), rtol=1e-6)
    assert coords["slice"].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"pages\.tif has 6 pages; pictures of a folder must have one"):
        read_images(tmp_path)
    Image.fromarray((60000 * images[0]).astype(np.uint16)).save(tmp_path / "deep.tiff")
    deep = (60000 * images[0]).astype(np.uint16)
    np.testing.assert_allclose(read_images(tmp_path / "deep.tiff")[0][0], deep / deep.max(), rtol=1e-6)


# An oblique series: rows go to the left and the head, columns to the back.
ROW, COLUMN = np.array([0.8, 0.0, 0.6]), np.array([0.0, 1.0, 0.0])
NORMAL = np.cross(ROW, COLUMN)
CORNER = np.array([-30.0, -20.0, 5.0])
SPACING = (2.0, 1.5)  # along y and x


def save(path, stored, number=0, series=3, **more):
    """One DICOM file of (y, x) or (frame, y, x) integers, at so many times 4 mm along the normal."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID, file.PatientName, file.SeriesDescription = "patient 7", "Doe^Jane", "t2 sag"
    file.SeriesNumber, file.SeriesInstanceUID, file.InstanceNumber = series, f"1.2.3.{series}", 100 - number
    file.ImagePositionPatient = [float(f"{value:.6f}") for value in CORNER + 4 * number * NORMAL]
    file.ImageOrientationPatient, file.PixelSpacing, file.SliceThickness = [*ROW, *COLUMN], list(SPACING), 3.5
    file.Rows, file.Columns = stored.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        file.NumberOfFrames = len(stored)
    file.PixelData = stored.astype("<i2" if stored.dtype.kind == "i" else "<u2").tobytes()
    for name, value in more.items():
        setattr(file, name, value)
    pydicom.dcmwrite(path, file, enforce_file_format=True)
    return path


def series(folder, images, **more):
    folder.mkdir(exist_ok=True)
    stored = (1000 * images).round().astype(np.uint16)
    for number in (3, 0, 5, 1, 4, 2):  # names are in no order either
        save(folder / f"{(number * 5) % 7}.dcm", stored[number], number, **more)
    return stored


def test_dicom_series(tmp_path, images):
    stored = series(tmp_path / "series", images)
    got, coords = read_images(tmp_path / "series")
    np.testing.assert_allclose(got, stored / stored.max(), rtol=1e-6)
    assert coords["slice"].tolist() == [0, 1, 2, 3, 4, 5]
    assert coords["file"].tolist() == ["0", "5", "3", "1", "6", "4"]
    assert set(coords["acquisition"]) == {"t2 sag"}
    assert len(set(coords["subject"])) == 1
    assert "patient 7" not in coords["subject"]
    for number in range(6):
        # pixel (8, 6) of 16 x 12
        want = CORNER + 4 * number * NORMAL + 8 * SPACING[0] * COLUMN + 6 * SPACING[1] * ROW
        np.testing.assert_allclose([coords[f"position_{axis}"][number] for axis in "xyz"], want, atol=1e-5)
    np.testing.assert_allclose([coords[f"row_{axis}"][0] for axis in "xyz"], ROW)
    np.testing.assert_allclose([coords[f"column_{axis}"][0] for axis in "xyz"], COLUMN)
    assert [coords[f"pixel_{axis}"][0] for axis in "xyz"] == [1.5, 2.0, 3.5]
    some, coords = read_images(tmp_path / "series", slices=slice(1, None, 2))
    np.testing.assert_allclose(some, stored[1::2] / stored[1::2].max(), rtol=1e-6)
    assert coords["slice"].tolist() == [1, 3, 5]


def test_resizing_keeps_the_place(tmp_path, images):
    """A point of the patient is at the same place of the old image and of the new one."""
    series(tmp_path / "series", images)
    _, before = read_images(tmp_path / "series")
    for size in ((16, 12), (32, 24), (8, 6), (9, 9), (21, 12)):
        _, after = read_images(tmp_path / "series", size=size)
        factor = max(16 / size[0], 12 / size[1])
        box = [round(want * factor) for want in size]
        assert after["pixel_x"][0] == pytest.approx(1.5 * box[1] / size[1])
        # the left upper corner of the new image, from its middle pixel and from the padding or cropping of the old one
        for axis in "xyz":
            new = after[f"position_{axis}"][2]
            old = before[f"position_{axis}"][2]
            for of, direction, pixel, have in ((0, "column", "pixel_y", 16), (1, "row", "pixel_x", 12)):
                new -= after[f"{direction}_{axis}"][2] * after[pixel][2] * (size[of] // 2 + 0.5)
                common = min(have, box[of])
                edge = (have - common) // 2 - (box[of] - common) // 2
                old -= before[f"{direction}_{axis}"][2] * before[pixel][2] * (have // 2 + 0.5 - edge)
            assert new == pytest.approx(old, abs=1e-9)


def test_dicom_values(tmp_path, images):
    """Slope and intercept of each file, signed numbers, and images whose smallest number is white."""
    stored = (1000 * images[0]).round().astype(np.int16) - 500
    save(tmp_path / "a.dcm", stored, RescaleSlope="2", RescaleIntercept="1000")
    got, _ = read_images(tmp_path / "a.dcm")
    np.testing.assert_allclose(got[0], (2 * stored + 1000.0) / (2 * stored.max() + 1000), rtol=1e-6)
    save(tmp_path / "b.dcm", 4095 - (stored + 500).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_images(tmp_path / "b.dcm")[0][0], (stored + 500) / (stored + 500).max(), rtol=1e-6)
    save(tmp_path / "c.dcm", -1 - stored, PhotometricInterpretation="MONOCHROME1", RescaleIntercept="500")
    np.testing.assert_allclose(read_images(tmp_path / "c.dcm")[0][0], (stored + 500) / (stored + 500).max(), rtol=1e-6)


def test_enhanced_dicom(tmp_path, images):
    """Frames in one file, each with its own place and scale; directions are those of all."""

    def item(sequence=None, **values):
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        if sequence is None:
            return made
        outer = Dataset()
        setattr(outer, sequence, [made])
        return outer

    stored = (1000 * images).round().astype(np.uint16)
    frames = []
    for number in range(6):
        position = [float(f"{value:.6f}") for value in CORNER - 4 * number * NORMAL]  # the last comes first
        frame = item("PlanePositionSequence", ImagePositionPatient=position)
        scale = item(RescaleSlope=str(1 + number), RescaleIntercept="0")
        frame.PixelValueTransformationSequence = [scale]
        frames.append(frame)
    shared = item("PlaneOrientationSequence", ImageOrientationPatient=[*ROW, *COLUMN])
    shared.PixelMeasuresSequence = [item(PixelSpacing=[3.0, 1.0], SliceThickness=7.0)]
    path = save(
        tmp_path / "a.dcm", stored, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
        ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, SliceThickness=None,
    )  # fmt: skip
    got, coords = read_images(path)
    want = (stored * np.arange(1.0, 7)[:, None, None])[::-1]
    np.testing.assert_allclose(got, want / want.max(), rtol=1e-6)
    assert coords["pixel_y"].tolist() == [3.0] * 6
    assert coords["pixel_z"].tolist() == [7.0] * 6
    corner = [coords[f"position_{axis}"][5] - 24 * COLUMN[n] - 6 * ROW[n] for n, axis in enumerate("xyz")]
    np.testing.assert_allclose(corner, CORNER, atol=1e-5)


def test_one_series_of_several(tmp_path, images):
    stored = series(tmp_path / "a", images)
    save(tmp_path / "a" / "other.dcm", stored[0], series=11)
    with pytest.raises(ConfigError, match="holds several series; name one by its number: 11, 3"):
        read_images(tmp_path / "a")
    assert len(read_images(tmp_path / "a", name="3")[0]) == 6
    assert read_images(tmp_path / "a", name="11")[1]["file"].tolist() == ["other"]
    with pytest.raises(ConfigError, match="has no series 4; it has 11, 3"):
        read_images(tmp_path / "a", name="4")
    save(tmp_path / "a" / "small.dcm", stored[0, :8])
    with pytest.raises(DataError, match=r"has shape .*; images of a series must be of one size"):
        read_images(tmp_path / "a", name="3")
    with pytest.raises(DataError, match=r"holds 1 images, none of which is in slices"):
        read_images(tmp_path / "a", name="11", slices=(4, 5))


def sample(name):
    path = get_testdata_file(name, download=False)
    assert path is not None
    return path


def test_dicom_from_scanners():
    """One image of a scanner in several encodings, against the numbers that pydicom has."""
    want = pydicom.dcmread(sample("MR_small.dcm"))
    values = want.pixel_array.astype(float)
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"):
        got, coords = read_images(sample(name))
        np.testing.assert_allclose(got[0], np.maximum(values, 0) / values.max(), rtol=1e-6)
        assert coords["pixel_x"][0] == float(want.PixelSpacing[1])
        centre = [float(value) for value in want.ImagePositionPatient]
        turned = np.reshape([float(value) for value in want.ImageOrientationPatient], (2, 3))
        centre = centre + 32 * float(want.PixelSpacing[0]) * turned.sum(0)
        np.testing.assert_allclose([coords[f"position_{axis}"][0] for axis in "xyz"], centre, atol=1e-4)
    ct, _ = read_images(sample("CT_small.dcm"))
    loaded = pydicom.dcmread(sample("CT_small.dcm"))
    units = loaded.pixel_array * float(loaded.RescaleSlope) + float(loaded.RescaleIntercept)
    np.testing.assert_allclose(ct[0], np.maximum(units, 0) / units.max(), rtol=1e-5, atol=1e-7)


def test_dicom_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be decompressed from JPEG-LS Lossless .* pip install pylibjpeg"):
        read_images(sample("MR_small_jpeg_ls_lossless.dcm"))
    with pytest.raises(DataError, match=r"MR_truncated\.dcm is not a readable DICOM image: The number of bytes"):
        read_images(sample("MR_truncated.dcm"))
    with pytest.raises(DataError, match="must be a grey image, got RGB"):
        read_images(sample("SC_rgb_rle.dcm"))
    with pytest.raises(DataError, match="holds no DICOM images"):
        read_images(sample("rtplan.dcm"))


def test_dicom_without_pydicom(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r'needs pydicom: pip install "ambient-sci\[mri\]"'):
        read_images(tmp_path / "a.dcm")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_places_of_nifti_slices(tmp_path, axis):
    """A bright voxel is, in the patient, where the affine of the file has it, whatever the order of its axes."""
    affine = np.array([[-2.0, 0.1, 0, 90], [0.1, 1.5, 0.2, -40], [0, -0.2, 3.0, 12], [0, 0, 0, 1]])
    values = np.ones((10, 12, 8), np.int16) * 200
    values[3, 4, 5] = 900
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii")
    images, coords = read_images(tmp_path / "a.nii", axis=axis)
    number, y, x = np.unravel_index(images.argmax(), images.shape)
    down, right = y - images.shape[1] // 2, x - images.shape[2] // 2
    place = [
        coords[f"position_{name}"][number]
        + right * coords["pixel_x"][number] * coords[f"row_{name}"][number]
        + down * coords["pixel_y"][number] * coords[f"column_{name}"][number]
        for name in "xyz"
    ]
    right_front_head = (affine @ [3, 4, 5, 1])[:3]
    np.testing.assert_allclose(place, right_front_head * [-1, -1, 1], atol=1e-4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_dicom(tmp_path, images, data):
    """Whatever bytes are changed or missing, there are images or one line that says why not."""
    content = bytearray(save(tmp_path / "a.dcm", (1000 * images[0]).astype(np.uint16)).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    (tmp_path / "b.dcm").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_images(tmp_path / "b.dcm")
        except AmbientError as error:
            said = str(error)
        else:
            said = ""
    assert "\n" not in said
