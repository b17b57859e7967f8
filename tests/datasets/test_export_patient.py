"""Where voxels are: NIfTI, ISMRMRD and DICOM files against the definitions of DICOM, worked out by hand."""

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ambient_sci.datasets.exporting import export
from ambient_sci.errors import ConfigError, StoreError

nibabel = pytest.importorskip("nibabel")
ismrmrd = pytest.importorskip("ismrmrd")
pydicom = pytest.importorskip("pydicom")

ATTRS = {
    "title": "posterior samples",
    "prior": "0123abcd",
    "store": "89ab4567",
    "operator": "sense",
    "samples": 4,
    "interval": 0.9,
    "created": "2026-01-02T03:04:05+00:00",
    "sampler_steps": 32,
}


def dataset(*shape, coords=None, scans=1, seed=0, channels=1, draws=4):
    """Random complex images with everything that a reconstruction has."""
    rng = np.random.default_rng(seed)
    sample = rng.normal(size=(scans, draws, channels, *shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
    axes = ("channel", "z", "y", "x") if len(shape) == 3 else ("channel", "y", "x")
    mean = sample.mean(1)
    std = np.abs(sample - mean[:, None]).mean(1)
    values = {"mean": mean, "std": std, "lower": np.abs(mean) / 2, "upper": np.abs(mean) + std}
    variables = {"sample": (("scan", "draw", *axes), sample)}
    variables |= {name: (("scan", *axes), value) for name, value in values.items()}
    named = {name: ("scan", np.asarray(value)) for name, value in (coords or {}).items()}
    return xarray.Dataset(variables, {"scan": np.arange(scans), **named}, ATTRS)


def directions(row, column, position, pixel):
    """Coordinates of scans; position may be of each scan."""
    position = np.atleast_2d(position)
    coords = {}
    for k, axis in enumerate("xyz"):
        coords[f"row_{axis}"] = np.full(len(position), row[k])
        coords[f"column_{axis}"] = np.full(len(position), column[k])
        coords[f"position_{axis}"] = position[:, k]
        coords[f"pixel_{axis}"] = np.full(len(position), pixel[k])
    return coords


# --------------------------------------------------------------------------------------------- one case by hand

# Slices of 4 x 6 pixels, 3 mm from row to row and 2 mm within a row, and 5 mm apart. Along a row one goes towards left
# and back, (0.8, 0.6, 0), from row to row towards the feet, (0, 0, -1): the normal is (-0.6, 0.8, 0). The first voxel
# of slice k lies at (10, -20, 30) + 5 k (-0.6, 0.8, 0), and index (3, 2) is the middle: 3 steps along, 2 steps down.
FIRST = np.array([[10.0, -20.0, 30.0], [7.0, -16.0, 30.0], [4.0, -12.0, 30.0]])
MIDDLE = FIRST + np.array([3 * 2 * 0.8, 3 * 2 * 0.6, -2 * 3])
# columns of the affine: voxel to voxel along x, y, z, and the first voxel; towards right, front and head, so that the
# signs of the first two rows are turned
AFFINE = [[-1.6, 0, 3.0, -10], [-1.2, 0, -4.0, 20], [0, -3, 0, 30], [0, 0, 0, 1]]


@pytest.fixture
def oblique():
    coords = directions((0.8, 0.6, 0), (0, 0, -1), MIDDLE, (2, 3, 4.5))
    return dataset(4, 6, scans=3, coords={**coords, "slice": [7, 8, 9], "subject": [3, 3, 3]})


def test_nifti_by_hand(oblique, tmp_path):
    files = export(oblique, tmp_path / "out", "nifti", what=["mean", "std"], progress=False)
    assert [path.name for path in files] == ["subject3_mean.nii.gz", "subject3_std.nii.gz"]
    mean = nibabel.load(files[0])
    np.testing.assert_allclose(mean.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(mean.get_qform(), AFFINE, atol=1e-5)
    assert (int(mean.header["sform_code"]), int(mean.header["qform_code"])) == (1, 1)
    assert mean.header.get_zooms() == pytest.approx((2, 3, 5))
    assert mean.header.get_xyzt_units()[0] == "mm"
    assert mean.get_data_dtype() == np.float32
    assert nibabel.aff2axcodes(mean.affine) == ("L", "I", "P")
    np.testing.assert_allclose(mean.get_fdata(), np.abs(oblique["mean"].to_numpy()[:, 0]).transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(
        nibabel.load(files[1]).get_fdata(), oblique["std"].to_numpy()[:, 0].transpose(2, 1, 0), rtol=1e-6
    )
    descrip = mean.header["descrip"].item().decode()
    assert descrip == "magnitude of the posterior mean of 4 samples; ambient-sci 0.1.0"
    (extension,) = mean.header.extensions
    said = extension.get_content()
    said = said.decode() if isinstance(said, bytes) else said
    assert all(word in said for word in ('"prior": "0123abcd"', '"store": "89ab4567"', '"sampler_steps": 32'))


def test_dicom_by_hand(oblique, tmp_path):
    files = export(oblique, tmp_path / "out", "dicom", progress=False)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in files] == [
        f"subject3_mean/000{k}.dcm" for k in (1, 2, 3)
    ]
    for file, first in zip(files, FIRST, strict=True):
        image = pydicom.dcmread(file)
        np.testing.assert_allclose(image.ImagePositionPatient, first, atol=1e-9)
        np.testing.assert_allclose(image.ImageOrientationPatient, [0.8, 0.6, 0, 0, 0, -1], atol=1e-9)
        assert image.PixelSpacing == [3, 2]
        assert image.SliceThickness == 4.5


def test_ismrmrd_by_hand(oblique, tmp_path):
    (path,) = export(oblique, tmp_path / "out", "ismrmrd", progress=False)
    with ismrmrd.Dataset(path, mode="r") as file:
        assert list(file.list()) == ["image_0"]
        assert file.number_of_images("image_0") == 3
        for k in range(3):
            image = file.read_image("image_0", k)
            np.testing.assert_allclose(image.position, MIDDLE[k], atol=1e-5)
            np.testing.assert_allclose(image.read_dir, [0.8, 0.6, 0], atol=1e-6)
            np.testing.assert_allclose(image.phase_dir, [0, 0, -1], atol=1e-6)
            np.testing.assert_allclose(image.slice_dir, [-0.6, 0.8, 0], atol=1e-6)
            np.testing.assert_allclose(image.field_of_view, [12, 12, 4.5])
            assert image.matrix_size == (6, 4, 1)
            assert (image.slice, image.image_index, image.image_series_index) == (7 + k, k + 1, 0)
            assert image.image_type == ismrmrd.IMTYPE_MAGNITUDE
            np.testing.assert_allclose(image.data[0, 0], np.abs(oblique["mean"].to_numpy()[k, 0]), rtol=1e-6)
            assert image.meta["ambient_prior"] == "0123abcd"
            assert image.meta["SeriesDescription"] == "magnitude of the posterior mean of 4 samples"


# ----------------------------------------------------------------------------------------------- any orientation

CASES = st.fixed_dictionaries(
    {
        "turn": st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1),
        "shape": st.tuples(st.integers(1, 7), st.integers(1, 7)),
        "slices": st.integers(1, 4),
        "pixel": st.tuples(*[st.floats(0.3, 9)] * 3),
        "gap": st.sampled_from([-7.0, -0.8, 0.8, 3.3]),
        "middle": st.tuples(*[st.floats(-200, 200)] * 3),
        "volume": st.booleans(),
    }
)


@given(case=CASES)
@example(
    case={
        "turn": [0.0, 0.0, 2**-14, 0.25],
        "shape": (1, 3),
        "slices": 1,
        "pixel": (3.0, 1.0, 1.0),
        "gap": -7.0,
        "middle": (0.0, 0.0, 0.0),
        "volume": False,
    }
)
@settings(max_examples=20, deadline=None)
def test_every_format_puts_voxels_where_they_are(case, tmp_path_factory):
    """Each format's own rule leads to the same place: the middle, so many pixels along row, column and normal."""
    row, column, normal = Rotation.from_quat(case["turn"]).as_matrix().T
    (height, width), slices, pixel = case["shape"], case["slices"], case["pixel"]
    middle = np.array(case["middle"])
    if case["volume"]:  # one scan with an axis z
        coords = directions(row, column, middle, pixel)
        images = dataset(slices, height, width, coords={**coords, "file": ["a"]})
        values = np.abs(images["mean"].to_numpy()[0, 0])
        places = middle + np.outer(np.arange(slices) - slices // 2, pixel[2] * normal)
    else:  # several slices, on either side of the first
        places = middle + np.outer(np.arange(slices), case["gap"] * normal)
        coords = directions(row, column, places, pixel)
        images = dataset(
            height, width, scans=slices, coords={**coords, "slice": np.arange(slices), "file": ["a"] * slices}
        )
        values = np.abs(images["mean"].to_numpy()[:, 0])

    def place(i, j, k):
        return places[k] + (i - width // 2) * pixel[0] * row + (j - height // 2) * pixel[1] * column

    rng = np.random.default_rng(0)
    picked = [(int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(slices))) for _ in range(4)]
    out = tmp_path_factory.mktemp("out")

    (path,) = export(images, out / "nifti", "nifti", progress=False)
    nifti = nibabel.load(path)
    for i, j, k in picked:
        assert nifti.get_fdata()[i, j, k] == pytest.approx(values[k, j, i], rel=1e-6)
        # of turns near half a circle the quaternion in single precision, whose real part is a root, knows the angle to
        # about 1e-3
        reach = np.linalg.norm(place(i, j, k) - places[0])
        for affine, error in ((nifti.get_sform(), 0.0), (nifti.get_qform(), 1.5e-3)):
            x, y, z = (affine @ [i, j, k, 1])[:3]
            np.testing.assert_allclose([-x, -y, z], place(i, j, k), atol=2e-3 + error * reach)

    files = export(images, out / "dicom", "dicom", progress=False)
    for i, j, k in picked:  # PS3.3 C.7.6.2.1.1
        dicom = pydicom.dcmread(files[k])
        to_right, to_below = np.reshape(dicom.ImageOrientationPatient, (2, 3)).astype(float)
        below, right = dicom.PixelSpacing
        found = np.array(dicom.ImagePositionPatient, float) + right * to_right * i + below * to_below * j
        np.testing.assert_allclose(found, place(i, j, k), atol=1e-6)

    (path,) = export(images, out / "ismrmrd", "ismrmrd", progress=False)
    with ismrmrd.Dataset(path, mode="r") as file:
        for i, j, k in picked:
            image = file.read_image("image_0", 0 if case["volume"] else k)
            size = np.array(image.field_of_view) / image.matrix_size
            steps = np.array([i - width // 2, j - height // 2, k - slices // 2 if case["volume"] else 0]) * size
            found = np.array(image.position) + steps @ np.array([image.read_dir, image.phase_dir, image.slice_dir])
            np.testing.assert_allclose(found, place(i, j, k), atol=2e-3)


def test_slices_measured_interleaved_come_in_order(tmp_path):
    height = np.array([0.0, 20.0, 40.0, 10.0, 30.0])  # of slices 0 to 4
    coords = directions((1, 0, 0), (0, 1, 0), np.stack([0 * height, 0 * height, height], 1), (1, 1, 10))
    images = dataset(2, 2, scans=5, coords={**coords, "slice": np.arange(5)})
    (path,) = export(images, tmp_path / "out", progress=False)
    nifti = nibabel.load(path)
    values = np.abs(images["mean"].to_numpy()[:, 0])
    for number in range(5):
        k = (np.linalg.inv(nifti.affine) @ [0, 0, height[number], 1])[2]
        np.testing.assert_allclose(nifti.get_fdata()[:, :, round(k)].T, values[number], rtol=1e-6)
    assert nibabel.aff2axcodes(nifti.affine) == ("L", "P", "S")


def test_slices_that_do_not_lie_straight_have_no_quaternion(tmp_path):
    places = np.array([[0, 0, 0], [1, 0, 5], [2, 0, 10.0]])
    images = dataset(
        2, 2, scans=3, coords={**directions((1, 0, 0), (0, 1, 0), places, (1, 1, 5)), "slice": np.arange(3)}
    )
    (path,) = export(images, tmp_path / "out", progress=False)
    nifti = nibabel.load(path)
    assert (int(nifti.header["sform_code"]), int(nifti.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(nifti.affine[:3, 2], [-1, 0, 5], atol=1e-6)


# ------------------------------------------------------------------------------------------- what is not known


@pytest.mark.parametrize(
    ("format", "words"),
    [("nifti", "sizes of voxels only"), ("dicom", "sizes of pixels only"), ("ismrmrd", "sizes only")],
)
@pytest.mark.parametrize("lost", ["position_y", "row_x", "column_z", "pixel_x", "skew", "nan"])
def test_without_a_place_there_is_one_warning(format, words, lost, tmp_path):
    coords = directions((1, 0, 0), (0, 1, 0), np.zeros((4, 3)), (2, 3, 4))
    coords["position_z"] = 4.0 * np.arange(4)
    if lost == "skew":
        coords["row_y"] = np.full(4, 0.3)
    elif lost == "nan":
        coords["position_y"] = np.full(4, np.nan)
    else:
        del coords[lost]
    images = dataset(4, 6, scans=4, coords={**coords, "slice": np.arange(4) % 2, "file": list("aabb")})
    with pytest.warns(UserWarning, match=f"^all volumes: their place .* {words}") as said:
        files = export(images, tmp_path / "out", format, progress=False)
    assert len(said) == 1
    size = 1 if lost == "pixel_x" else 2
    if format == "nifti":
        nifti = nibabel.load(files[0])
        assert (int(nifti.header["sform_code"]), int(nifti.header["qform_code"])) == (0, 0)
        assert nifti.header.get_zooms() == (size, 3, 4)
        assert nifti.header["descrip"].item().startswith(b"place unknown; ")
    elif format == "dicom":
        image = pydicom.dcmread(files[0])
        assert "ImagePositionPatient" not in image
        assert "FrameOfReferenceUID" not in image
        assert ("PixelSpacing" in image) == (lost != "pixel_x")
    else:
        with ismrmrd.Dataset(files[0], mode="r") as file:
            image = file.read_image("image_0", 0)
        assert list(image.field_of_view) == [6 * size, 12, 4]
        assert list(image.position) == [0, 0, 0]


def test_slices_at_uneven_distances(tmp_path):
    """NIfTI cannot say where they are, DICOM can."""
    places = np.array([[0, 0, 0], [0, 0, 5], [0, 0, 12.0]])
    coords = directions((1, 0, 0), (0, 1, 0), places, (1, 1, 5))
    images = dataset(2, 2, scans=3, coords={**coords, "slice": np.arange(3)})
    with pytest.warns(UserWarning, match="sizes of voxels only"):
        export(images, tmp_path / "nifti", "nifti", progress=False)
    files = export(images, tmp_path / "dicom", "dicom", progress=False)
    assert [pydicom.dcmread(file).ImagePositionPatient[2] for file in files] == [0, 5, 12]


# -------------------------------------------------------------------------------------------------------- values


@pytest.mark.filterwarnings("ignore:all volumes")
def test_nifti_of_samples_and_complex_numbers(tmp_path):
    images = dataset(4, 6, scans=3, coords={"slice": [0, 1, 2]}, channels=2)
    export(images, tmp_path / "out", what=["sample", "mean", "std"], part="complex", compress=False, progress=False)
    sample, mean, std = (nibabel.load(tmp_path / "out" / f"scans_{name}.nii") for name in ("sample", "mean", "std"))
    assert sample.get_data_dtype() == mean.get_data_dtype() == np.complex64
    assert std.get_data_dtype() == np.float32
    assert sample.shape == (6, 4, 3, 4, 2)  # x, y, z, draw, channel
    np.testing.assert_array_equal(np.asarray(sample.dataobj), images["sample"].to_numpy().transpose(4, 3, 0, 1, 2))
    np.testing.assert_array_equal(np.asarray(mean.dataobj)[:, :, :, 0], images["mean"].to_numpy().transpose(3, 2, 0, 1))
    export(images, tmp_path / "phase", what="mean", part="phase", progress=False)
    phase = nibabel.load(tmp_path / "phase" / "scans_mean.nii.gz")
    np.testing.assert_allclose(
        phase.get_fdata()[:, :, :, 0, 1], np.angle(images["mean"].to_numpy()[:, 1].transpose(2, 1, 0)), rtol=1e-6
    )
    assert b"phase of the posterior mean" in phase.header["descrip"].item()


@pytest.mark.filterwarnings("ignore:all volumes")
def test_ismrmrd_series(tmp_path):
    coords = {
        "slice": [0, 1, 0, 1],
        "contrast": [0, 0, 1, 1],
        "repetition": [5] * 4,
        "file": ["run"] * 4,
        "acquisition": ["T2 Ä"] * 4,
    }
    images = dataset(4, 6, scans=4, coords=coords, channels=2)
    (path,) = export(images, tmp_path / "out", "ismrmrd", what=["mean", "sample"], part="complex", progress=False)
    assert path.name == "run.h5"
    with ismrmrd.Dataset(path, mode="r") as file:
        assert sorted(file.list()) == ["image_0", "image_1"]
        found = [file.read_image("image_0", k) for k in range(4)]
        assert [(image.slice, image.contrast, image.repetition) for image in found] == [
            (0, 0, 5),
            (1, 0, 5),
            (0, 1, 5),
            (1, 1, 5),
        ]
        for image, mean in zip(found, images["mean"].to_numpy(), strict=True):
            assert image.image_type == ismrmrd.IMTYPE_COMPLEX
            assert image.channels == 2
            np.testing.assert_array_equal(image.data[:, 0], mean)
            assert image.meta["ambient_acquisition"] == "T2 Ä"
        assert file.number_of_images("image_1") == 16
        for k in range(16):
            image = file.read_image("image_1", k)
            assert image.user_int[0] == int(image.meta["Draw"]) == k % 4
            np.testing.assert_array_equal(image.data[:, 0], images["sample"].to_numpy()[k // 4, k % 4])


@pytest.fixture
def strict(monkeypatch):
    """Let pydicom refuse what the standard forbids."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.RAISE)


# Type 1 attributes of the Secondary Capture Image IOD (PS3.3 A.8.1): patient, study, series, SC equipment, image pixel,
# modality LUT and SOP common modules; type 2 ones may be empty but are there
TYPE_1 = """
    StudyInstanceUID SeriesInstanceUID Modality ConversionType SamplesPerPixel PhotometricInterpretation Rows Columns
    BitsAllocated BitsStored HighBit PixelRepresentation PixelData RescaleIntercept RescaleSlope RescaleType
    SOPClassUID SOPInstanceUID
"""
TYPE_2 = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber SeriesNumber InstanceNumber PatientOrientation
"""


@pytest.mark.filterwarnings("ignore:all volumes")
def test_dicom_objects(strict, tmp_path):
    coords = {
        "slice": [0, 1, 2],
        "subject": ["Müller"] * 3,
        "time": [60000.5] * 3,
        "pixel_x": [2.0 / 3] * 3,
        "pixel_y": [1.0] * 3,
    }
    images = dataset(5, 3, scans=3, coords=coords)
    files = export(images, tmp_path / "out", "dicom", what=["mean", "sample"], progress=False)
    assert len(files) == 3 * (1 + 4)
    read = [pydicom.dcmread(file) for file in files]
    for image in read:
        assert all(image[name].value not in (None, "") for name in TYPE_1.split()), image
        assert all(name in image for name in TYPE_2.split())
        assert image.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert image.BurnedInAnnotation == "NO"
        assert image.PatientID == "Müller"
        assert (image.StudyDate, image.StudyTime) == ("20230225", "120000")
        assert "prior 0123abcd" in image.DerivationDescription
        assert "not for diagnosis" in image.ImageComments
        for element in image.iterall():
            assert element.VR != "UI" or len(str(element.value)) <= 64
    assert len({image.SOPInstanceUID for image in read}) == 15
    assert len({image.SeriesInstanceUID for image in read}) == 5
    assert len({image.StudyInstanceUID for image in read}) == 1
    assert [image.InstanceNumber for image in read] == [1, 2, 3] * 5
    assert read[-1].SeriesDescription == "magnitude of the posterior samples 4 of 4"

    def uids(given, where, **options):
        found = export(given, tmp_path / where, "dicom", progress=False, **options)
        return [pydicom.dcmread(file).SOPInstanceUID for file in found]

    again = uids(images.assign_attrs(created="2027-01-01T00:00:00+00:00"), "again")
    assert again == [image.SOPInstanceUID for image in read[:3]]
    assert not set(again) & set(uids(images.assign_attrs(prior="another"), "b"))
    assert not set(again) & set(uids(images, "c", part="phase"))
    assert not set(again) & set(uids(dataset(5, 3, scans=3, coords=coords, seed=1), "d"))


@given(
    exponent=st.integers(-12, 12),
    offset=st.floats(-3, 3),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore:all volumes")
def test_dicom_values_come_back_within_half_a_step(exponent, offset, flat, seed, tmp_path_factory):
    values = np.random.default_rng(seed).normal(size=(3, 1, 4, 5)) + offset
    values = (np.ones_like(values) * offset if flat else values).astype(np.float32) * np.float32(10.0**exponent)
    images = xarray.Dataset({"mean": (("scan", "channel", "y", "x"), values)}, {"slice": ("scan", np.arange(3))})
    files = export(images, tmp_path_factory.mktemp("out") / "d", "dicom", progress=False)
    for file, expected in zip(files, values[:, 0].astype(np.float64), strict=True):
        image = pydicom.dcmread(file)
        found = pydicom.pixels.apply_rescale(image.pixel_array, image)
        slope = float(image.RescaleSlope)
        assert np.abs(found - expected).max() <= 0.5 * slope * (1 + 1e-6)
        assert slope <= 1.001 * max(np.ptp(values), np.abs(values).max(), 65534 * (not values.any())) / 65534


def test_what_a_format_cannot_hold(tmp_path):
    images = dataset(4, 6, channels=2)
    with pytest.raises(ConfigError, match="a DICOM image is real and of one channel"):
        export(images, tmp_path / "a", "dicom", progress=False)
    with pytest.raises(ConfigError, match="a DICOM image is real and of one channel"):
        export(dataset(4, 6), tmp_path / "a", "dicom", part="complex", progress=False)
    broken = dataset(4, 6)
    broken["std"][0, 0, 1, 1] = np.nan
    with pytest.raises(StoreError, match="std of scans has NaN"):
        export(broken, tmp_path / "a", "nifti", what="std", progress=False)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- fastMRI


def centre(array, size):
    """What the challenge's evaluation does before it compares."""
    top, left = (array.shape[-2] - size[0]) // 2, (array.shape[-1] - size[1]) // 2
    return array[..., top : top + size[0], left : left + size[1]]


def test_fastmri_evaluation_finds_the_reconstruction(tmp_path):
    coords = {
        "file": ["file1000031"] * 3 + ["file1000000.5"] * 2,
        "slice": [2, 0, 1, 1, 0],
        "acquisition": ["CORPD_FBK"] * 5,
    }
    images = dataset(13, 12, scans=5, coords=coords)
    target = centre(np.abs(images["mean"].to_numpy()[[1, 2, 0], 0]), (8, 8))
    (tmp_path / "targets").mkdir()
    with h5py.File(tmp_path / "targets" / "file1000031.h5", "w") as file:
        file["reconstruction_rss"] = target
        file.attrs["acquisition"] = "CORPD_FBK"

    out = tmp_path / "predictions"
    files = export(images, out, "fastmri", what=["mean", "std", "sample"], crop=10, progress=False)
    assert [path.name for path in files] == ["file1000000.5.h5", "file1000031.h5"]
    for path in (tmp_path / "targets").iterdir():
        with h5py.File(path) as given, h5py.File(out / path.name) as file:
            reconstruction = file["reconstruction"][()]
            assert reconstruction.dtype == np.float32
            assert reconstruction.shape == (3, 10, 10)
            width = given["reconstruction_rss"].shape[-1]
            found = centre(reconstruction, (width, width))
            np.testing.assert_allclose(found, given["reconstruction_rss"][()], rtol=1e-6)
            assert file["std"].shape == (3, 10, 10)
            assert file["sample"].shape == (4, 3, 10, 10)
            assert file.attrs["acquisition"] == given.attrs["acquisition"]
            assert file.attrs["prior"] == "0123abcd"
            assert file["std"].attrs["about"] == "posterior standard deviation of 4 samples"
    export(images, tmp_path / "wide", "fastmri", crop="8x6", progress=False)
    with h5py.File(tmp_path / "wide" / "file1000031.h5") as file:
        np.testing.assert_allclose(file["reconstruction"][()], centre(target, (8, 6)), rtol=1e-6)


def test_fastmri_says_what_it_cannot_hold(tmp_path):
    def refused(images, words, **options):
        with pytest.raises(ValueError, match=words):
            export(images, tmp_path / "out", "fastmri", progress=False, **options)

    twice = dataset(4, 6, scans=2, coords={"file": ["a", "a"], "slice": [0, 0], "contrast": [0, 1]})
    refused(twice, "a has several volumes")
    one = dataset(4, 6)
    refused(one, "sample cannot be the reconstruction", what="sample")
    refused(one, "magnitudes of one channel, got the phase of 1", part="phase")
    refused(dataset(4, 6, channels=2), "got the magnitude of 2")
    refused(one, r"crop must fit into images of \(4, 6\), got \(5, 5\)", crop=5)
    refused(one, "crop must be a size such as 320 or 320x264, got '0x3'", crop="0x3")
    with pytest.warns(UserWarning, match="not numbered from 0"):
        export(dataset(4, 6, coords={"slice": [3]}), tmp_path / "out", "fastmri", progress=False)
