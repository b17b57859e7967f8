"""ISMRMRD files, written by the format's own package, with k-space by dense Fourier matrices."""

import hashlib
import warnings

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ismrmrd import xsd

from ambient_sci.datasets import import_files
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.datasets.importers.ismrmrd import read_ismrmrd
from ambient_sci.errors import AmbientError, ConfigError, DataError
from ambient_sci.operators import Nufft, conjugate_gradient

ROWS, COLUMNS, COILS = 22, 20, 3  # columns of the image; twice as many are read out


def dft(size):
    n = np.arange(size) - size // 2
    return np.exp(-2j * np.pi * np.outer(n, n) / size) / np.sqrt(size)


def transform(images, axes=2):
    for axis in range(-axes, 0):
        images = np.moveaxis(np.moveaxis(images, axis, -1) @ dft(images.shape[axis]).T, -1, axis)
    return images


def space(matrix, fov):
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=matrix[0], y=matrix[1], z=matrix[2]),
        fieldOfView_mm=xsd.fieldOfViewMm(x=fov[0], y=fov[1], z=fov[2]),
    )


def encoding(
    matrix=(2 * COLUMNS, ROWS, 1),
    fov=(80.0, 44.0, 6.0),
    recon=((COLUMNS, ROWS, 1), (40.0, 44.0, 5.0)),
    centres=(ROWS // 2, 0),
    trajectory="cartesian",
    calibration=None,
):
    def limit(size, centre):
        return xsd.limitType(minimum=0, maximum=max(0, size - 1), center=centre)

    limits = xsd.encodingLimitsType()
    if centres is not None:
        limits.kspace_encoding_step_1 = limit(matrix[1], centres[0])
        limits.kspace_encoding_step_2 = limit(matrix[2], centres[1])
    parallel = None
    if calibration is not None:
        factor = xsd.accelerationFactorType(kspace_encoding_step_1=2, kspace_encoding_step_2=1)
        mode = xsd.calibrationModeType(calibration)
        parallel = xsd.parallelImagingType(accelerationFactor=factor, calibrationMode=mode)
    return xsd.encodingType(
        encodedSpace=space(matrix, fov),
        reconSpace=space(*recon),
        encodingLimits=limits,
        trajectory=xsd.trajectoryType(trajectory),
        parallelImaging=parallel,
    )


def header(*encodings, patient="patient 7", bandwidth=None):
    return xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63500000),
        encoding=list(encodings) or [encoding()],
        subjectInformation=xsd.subjectInformationType(patientName="Doe, Jane", patientID=patient) if patient else None,
        measurementInformation=xsd.measurementInformationType(patientPosition="HFS", protocolName="t2 tra"),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(relativeReceiverNoiseBandwidth=bandwidth),
    )


def line(data, step=0, flags=(), trajectory=None, **more):
    """One acquisition; counters of the format's ``idx`` are given by their names."""
    counters = ("average", "slice", "contrast", "phase", "repetition", "set", "kspace_encode_step_2", "segment")
    idx = {name: more.pop(name) for name in counters if name in more}
    values = {"center_sample": data.shape[1] // 2, "sample_time_us": 5.0, **more}
    made = ismrmrd.Acquisition.from_array(data.astype(np.complex64), trajectory)
    for name, value in values.items():
        setattr(made, name, value)
    made.idx.kspace_encode_step_1 = step
    for name, value in idx.items():
        setattr(made.idx, name, value)
    for flag in flags:
        made.set_flag(flag)
    return made


def lines(kspace, **more):
    """All lines of k-space (coil, y, x)."""
    return [line(kspace[:, y], y, **more) for y in range(kspace.shape[1])]


def write(path, acquisitions, head=None):
    with ismrmrd.Dataset(str(path), mode="w") as file:
        file.write_xml_header(xsd.ToXML(head or header()))
        for one in acquisitions:
            file.append_acquisition(one)
    return path


def one(path, **options):
    (scan,) = read_ismrmrd([path], **options)
    return scan


def random(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.fixture(scope="module")
def seen():
    """What coils see of a textured ellipse, (coil, y, x)."""
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    inside = 1 / (1 + np.exp(12 * ((y / 0.8) ** 2 + (x / 0.8) ** 2 - 1)))
    maps = coil_maps(COILS, (ROWS, COLUMNS), torch.Generator().manual_seed(0)).numpy()
    return inside * (1 + 0.3 * np.cos(4 * x + y)) * maps


def twice(images):
    """K-space of twice the field of view along x."""
    wide = np.zeros((*images.shape[:-1], 2 * images.shape[-1]), complex)
    start = images.shape[-1] - images.shape[-1] // 2
    wide[..., start : start + images.shape[-1]] = images
    return transform(wide)


# ---------------------------------------------------------------------------------------------------- on the grid


def test_oversampled_slices(tmp_path, seen):
    """Interleaved slices come in order, with the readout cropped, and with where they are in the patient."""
    images = [seen, seen[::-1]]
    turned = {"read_dir": (0, 1, 0), "phase_dir": (0, 0, -1), "slice_dir": (-1, 0, 0)}
    every = [lines(twice(image), slice=n, position=(10 * n, 2, 3), **turned) for n, image in enumerate(images)]
    path = write(tmp_path / "knee.h5", [one for pair in zip(*every[::-1], strict=True) for one in pair])
    scans = list(read_ismrmrd([path]))
    assert [scan.coords["slice"] for scan in scans] == [0, 1]
    for number, (scan, image) in enumerate(zip(scans, images, strict=True)):
        np.testing.assert_allclose(scan.kspace, transform(image), atol=1e-6)
        assert scan.mask.shape == (ROWS, COLUMNS)
        assert scan.mask.all()
        assert scan.noise is None
        assert scan.calibration is None
        assert scan.coords == {
            "file": "knee", "subject": hashlib.sha256(b"patient 7").hexdigest()[:16], "acquisition": "t2 tra",
            "slice": number, "contrast": 0, "phase": 0, "repetition": 0, "set": 0,
            "pixel_x": 2.0, "pixel_y": 2.0, "pixel_z": 5.0,
            "position_x": 10.0 * number, "position_y": 2.0, "position_z": 3.0,
            "row_x": 0.0, "row_y": 1.0, "row_z": 0.0, "column_x": 0.0, "column_y": 0.0, "column_z": -1.0,
        }  # fmt: skip
    assert [scan.coords["slice"] for scan in read_ismrmrd([path], slices=(1, 5))] == [1]


def test_the_packages_other_writer(tmp_path, seen):
    with ismrmrd.File(str(tmp_path / "a.h5"), "w") as file:
        file["dataset"].header = header()
        file["dataset"].acquisitions = lines(twice(seen))
    np.testing.assert_allclose(one(tmp_path / "a.h5").kspace, transform(seen), atol=1e-6)


@pytest.mark.parametrize("storage", [{}, {"chunks": (7,)}, {"chunks": (5,), "compression": "gzip"}])
def test_however_acquisitions_are_stored(tmp_path, seen, storage):
    path = write(tmp_path / "a.h5", lines(twice(seen)))
    with h5py.File(path) as file, h5py.File(tmp_path / "b.h5", "w") as other:
        file.copy("dataset/xml", other, "dataset/xml")
        other.create_dataset("dataset/data", data=file["dataset/data"][()], **storage)
    np.testing.assert_allclose(one(tmp_path / "b.h5").kspace, transform(seen), atol=1e-6)


def test_oversampling_is_kept(tmp_path, seen):
    path = write(tmp_path / "a.h5", lines(twice(seen)))
    scan = one(path, oversampled=True)
    np.testing.assert_allclose(scan.kspace, twice(seen), atol=1e-6)
    assert scan.coords["pixel_x"] == 2.0


def test_partial_fourier(tmp_path):
    """The example of the format's documentation: lines 0 to 83 about 28 lie in 42 to 125 of 140."""
    head = header(encoding((8, 140, 1), (40, 280, 5), ((8, 116, 1), (40, 232, 5)), centres=(28, 0)))
    kspace = random(2, 84, 8)
    scan = one(write(tmp_path / "a.h5", lines(kspace), head))
    np.testing.assert_array_equal(scan.kspace[:, 42:126], kspace)
    np.testing.assert_array_equal(np.flatnonzero(scan.mask.all(1)), np.arange(42, 126))
    assert scan.mask.sum() == 84 * 8
    assert not scan.kspace[:, ~scan.mask].any()


def test_without_limits(tmp_path):
    kspace = random(2, ROWS, 2 * COLUMNS)
    head = header(encoding(centres=None), patient=None)
    scan = one(write(tmp_path / "a.h5", lines(kspace)[::3], head), oversampled=True)
    np.testing.assert_array_equal(scan.kspace[:, ::3], kspace[:, ::3])
    np.testing.assert_array_equal(np.flatnonzero(scan.mask.any(1)), np.arange(0, ROWS, 3))
    assert scan.coords["subject"] == "a"
    assert "row_x" not in scan.coords  # directions of zeros are none


def test_volumes(tmp_path):
    """Partitions are the first axis, and about their own centre."""
    head = header(encoding((6, 5, 7), (30, 20, 21), ((6, 5, 4), (30, 20, 12)), centres=(2, 1)))
    kspace = random(2, 4, 5, 6)
    every = [one for z in range(4) for one in lines(kspace[:, z], kspace_encode_step_2=z)]
    scan = one(write(tmp_path / "a.h5", every, head))
    assert scan.kspace.shape == (2, 7, 5, 6)
    np.testing.assert_array_equal(scan.kspace[:, 2:6], kspace)  # 7 // 2 - 1 = 2
    np.testing.assert_array_equal(scan.mask.all((1, 2)), [False, False, True, True, True, True, False])
    assert [scan.coords[f"pixel_{axis}"] for axis in "xyz"] == [5, 4, 3]
    flat = one(write(tmp_path / "b.h5", lines(kspace[:, 0]), head))  # no partitions: one slice of seven
    assert flat.kspace.shape == (2, 5, 6)


def test_asymmetric_echoes(tmp_path):
    """The sample of the centre goes to the centre; what is missing or discarded was not measured."""
    kspace = random(2, ROWS, 29)
    path = write(tmp_path / "a.h5", lines(kspace, center_sample=12, discard_pre=3, discard_post=1))
    scan = one(path)
    assert scan.kspace.shape == (2, ROWS, 2 * COLUMNS)  # cannot be cropped
    start = COLUMNS - 12 + 3
    np.testing.assert_array_equal(scan.kspace[:, :, start : start + 25], kspace[:, :, 3:28])
    assert scan.mask.sum() == ROWS * 25
    assert scan.mask[:, start : start + 25].all()


def test_reversed_readouts(tmp_path, seen):
    kspace = twice(seen)
    every = lines(kspace)
    every[1::2] = [line(kspace[:, y, ::-1], y, flags=[ismrmrd.ACQ_IS_REVERSE]) for y in range(1, ROWS, 2)]
    np.testing.assert_allclose(one(write(tmp_path / "a.h5", every)).kspace, transform(seen), atol=1e-6)
    short = [line(kspace[:, 0, :9:-1], 0, flags=[ismrmrd.ACQ_IS_REVERSE], center_sample=COLUMNS - 10, discard_pre=2)]
    scan = one(write(tmp_path / "b.h5", short))  # what is discarded came first, at the end of k-space
    np.testing.assert_allclose(scan.kspace[:, 0, 10:-2], kspace[:, 0, 10:-2], atol=1e-6)
    assert scan.mask.sum() == 2 * COLUMNS - 12


def test_an_image_for_each_counter(tmp_path):
    counters = [
        {"repetition": repetition, "contrast": contrast, "set": number, "phase": phase, "slice": place}
        for place in (1, 0) for phase in (0, 1) for number in (0, 2) for contrast in (0, 1) for repetition in (1, 0)
    ]  # fmt: skip
    every = [random(2, ROWS, 2 * COLUMNS, seed=n) for n in range(len(counters))]
    acquisitions = [one for kspace, given in zip(every, counters, strict=True) for one in lines(kspace, **given)[:4]]
    scans = list(read_ismrmrd([write(tmp_path / "a.h5", acquisitions)], oversampled=True))
    assert len(scans) == 32
    names = ("repetition", "phase", "set", "contrast", "slice")
    found = [tuple(scan.coords[name] for name in names) for scan in scans]
    assert found == sorted(found)
    for scan in scans:
        at = counters.index({name: scan.coords[name] for name in names})
        np.testing.assert_array_equal(scan.kspace[:, :4], every[at][:, :4])


def test_averages(tmp_path):
    """The mean of two, and noise as that of the mean; where a line has more, the first two are used."""
    kspace = [random(2, ROWS, 2 * COLUMNS, seed=n) for n in range(3)]
    noise = line(random(2, 500, seed=9), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    every = [noise, *lines(kspace[0]), *lines(kspace[1], average=1)]
    scan = one(write(tmp_path / "a.h5", every), oversampled=True)
    np.testing.assert_allclose(scan.kspace, (kspace[0] + kspace[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(scan.noise, random(2, 500, seed=9) / np.sqrt(2), atol=1e-6)
    path = write(tmp_path / "b.h5", [*every, *lines(kspace[2], average=2)[3:]])
    with pytest.warns(UserWarning, match="lines were measured 2 to 3 times; the first 2 of each are used"):
        scan = one(path, oversampled=True)
    np.testing.assert_allclose(scan.kspace, (kspace[0] + kspace[1]) / 2, atol=1e-6)
    path = write(tmp_path / "c.h5", [*lines(kspace[0]), *lines(kspace[1][:, :, 10:], center_sample=10)])
    with pytest.raises(DataError, match=r"c\.h5 repeats lines with readouts of different lengths"):
        one(path)


def test_what_is_left_out(tmp_path, seen):
    every = lines(twice(seen))
    for flag in ("NAVIGATION", "PHASECORR", "HPFEEDBACK", "DUMMYSCAN", "RTFEEDBACK", "SURFACECOILCORRECTIONSCAN"):
        every.insert(5, line(random(COILS, 8), 3, flags=[getattr(ismrmrd, f"ACQ_IS_{flag}_DATA")]))
    every.insert(5, line(random(COILS, 8), 3, flags=[ismrmrd.ACQ_IS_PHASE_STABILIZATION]))
    path = write(tmp_path / "a.h5", every)
    np.testing.assert_allclose(one(path).kspace, transform(seen), atol=1e-6)
    every.append(line(random(COILS, 8), 3, encoding_space_ref=1))
    path = write(tmp_path / "b.h5", every, header(encoding(), encoding((8, 4, 1), centres=(2, 0))))
    with pytest.warns(UserWarning, match="1 readouts of other encodings than 0 are left out"):
        np.testing.assert_allclose(one(path).kspace, transform(seen), atol=1e-6)
    with pytest.warns(UserWarning, match="22 readouts of other encodings than 1 are left out"):
        assert one(path, encoding=1).kspace.shape[1:] == (4, 4)


# ------------------------------------------------------------------------------------------- noise and calibration


def test_noise_has_the_images_bandwidth(tmp_path, seen):
    """Of twice the dwell time: half the variance in the scan, and the receiver's loss at the edge of its band."""
    samples = [random(COILS, 300, seed=n) for n in range(2)]
    noise = [line(one, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT], sample_time_us=10.0, slice=3) for one in samples]
    path = write(tmp_path / "a.h5", [*noise, *lines(twice(seen))], header(bandwidth=0.8))
    np.testing.assert_allclose(one(path).noise, np.concatenate(samples, 1) * np.sqrt(2 / 0.8), rtol=1e-5)
    kept = one(path, oversampled=True)
    np.testing.assert_allclose(kept.noise, np.concatenate(samples, 1) * np.sqrt(2), rtol=1e-5)


def test_noise_covariance_survives(tmp_path):
    """Noise alone as image and as noise scan: both have the covariance that was simulated, whatever the bandwidth."""
    root = np.linalg.cholesky(np.array([[2.0, 0.5j, 0.2], [-0.5j, 1.0, 0.3], [0.2, 0.3, 0.7]]))
    head = header(encoding((96, 90, 1), (96, 90, 5), ((48, 90, 1), (48, 90, 5)), centres=(45, 0)))
    image = np.einsum("cd,dyx->cyx", root, random(3, 90, 96))
    noise = np.einsum("cd,dn->cn", root, random(3, 9000, seed=1)) * np.sqrt(5 / 2)  # read out more quickly
    flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
    scan = one(write(tmp_path / "a.h5", [line(noise, flags=flags, sample_time_us=2.0), *lines(image)], head))
    for samples in (scan.noise, scan.kspace.reshape(3, -1)):
        np.testing.assert_allclose(np.cov(samples), 2 * root @ root.conj().T, atol=0.15)


def test_noise_of_a_file_of_its_own(tmp_path, seen):
    noise = write(tmp_path / "noise.h5", [line(random(COILS, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])])
    path = write(tmp_path / "a.h5", lines(twice(seen)))
    np.testing.assert_array_equal(one(path, noise=noise).noise, random(COILS, 64))
    with pytest.raises(DataError, match=r"a\.h5 has no readouts that are flagged as noise"):
        one(path, noise=path)
    with pytest.raises(DataError, match=r"noise\.h5 has no readouts of an image in encoding 0"):
        one(noise)
    fewer = write(tmp_path / "fewer.h5", [line(random(2, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])])
    with pytest.raises(DataError, match=r"the noise scan of .*a\.h5 has 2 coils, the image has 3"):
        one(path, noise=fewer)


def test_separate_calibration(tmp_path, seen):
    """A scan of its own with other intensity: its full centre, in the image's field of view."""
    kspace, other = twice(seen), twice(2 * seen)
    flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]
    every = [*lines(other, flags=flags)[7:18], *lines(kspace)[::2]]
    scan = one(write(tmp_path / "a.h5", every, header(encoding(calibration="separate"))))
    np.testing.assert_allclose(scan.calibration, transform(2 * seen)[:, 7:16], atol=1e-6)  # about 11
    np.testing.assert_array_equal(np.flatnonzero(scan.mask.any(1)), np.arange(0, ROWS, 2))
    np.testing.assert_allclose(scan.kspace[:, ::2], transform(seen)[:, ::2], atol=1e-6)


def test_calibration_of_another_encoding(tmp_path, seen):
    """Fewer lines of the same field of view: the centre of k-space of the same image."""
    flags = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]
    kspace = twice(seen)
    centre = kspace[:, 11 - 4 : 11 + 4, 20 - 8 : 20 + 8]
    few = encoding((16, 8, 1), recon=((8, 8, 1), (40.0, 44.0, 5.0)), centres=(4, 0))
    every = [*lines(kspace)[::2], *lines(centre, flags=flags, encoding_space_ref=1, repetition=3)]
    path = write(tmp_path / "a.h5", every, header(encoding(), few))
    scan = one(path)
    assert scan.calibration.shape == (COILS, 8, 8)
    want = dft(8) @ (dft(16).conj().T @ centre[0, 0])[4:12]
    np.testing.assert_allclose(scan.calibration[0, 0], want, atol=1e-6)
    wide = encoding((16, 8, 1), (80.0, 60.0, 6.0), ((8, 8, 1), (40.0, 60.0, 5.0)), centres=(4, 0))
    path = write(tmp_path / "b.h5", every, header(encoding(), wide))
    with pytest.warns(UserWarning, match="the calibration scan has another field of view"):
        assert one(path).calibration is None


def test_calibration_lines_that_are_data(tmp_path, seen):
    kspace = lines(twice(seen))
    both, alone = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
    for y in range(8, 14):
        kspace[y].set_flag(alone if y % 2 else both)
    kept = [one for y, one in enumerate(kspace) if y % 2 == 0 or 8 <= y < 14]
    embedded = one(write(tmp_path / "a.h5", kept, header(encoding(calibration="embedded"))))
    assert embedded.calibration is None
    np.testing.assert_array_equal(
        np.flatnonzero(embedded.mask.any(1)), [0, 2, 4, 6, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20]
    )
    interleaved = one(write(tmp_path / "b.h5", kept, header(encoding(calibration="separate"))))
    np.testing.assert_array_equal(np.flatnonzero(interleaved.mask.any(1)), np.arange(0, ROWS, 2))


# --------------------------------------------------------------------------------------------------- off the grid

SIZE = 24


def spokes(count=40, samples=2 * SIZE):
    """Radial trajectory in cycles per pixel, (spoke, sample, 2), columns x and y."""
    angles = np.pi / count * np.arange(count)
    radii = (np.arange(samples) - samples // 2) / samples
    return radii[None, :, None] * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]


def sampled(image, trajectory):
    """Dense non-uniform transform of (y, x) at cycles per pixel, columns x and y."""
    y, x = (np.arange(size) - size // 2 for size in image.shape)
    phase = trajectory[..., 0, None, None] * x + trajectory[..., 1, None, None] * y[:, None]
    return (image * np.exp(-2j * np.pi * phase)).sum((-2, -1)) / np.sqrt(image.size)


@pytest.fixture(scope="module")
def blob():
    """Brighter to one side, so that no axis may be exchanged or reversed."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    return np.exp(-8 * ((y - 0.2) ** 2 + (x / 0.7 + 0.1) ** 2)) * (1 + 0.5 * y) * np.exp(0.5j * x)


RADIAL = {"matrix": (2 * SIZE, SIZE, 1), "fov": (96.0, 48.0, 5.0), "recon": ((SIZE, SIZE, 1), (48.0, 48.0, 5.0))}


def radial(path, image, k, scale=1.0, weights=False, **more):
    data = np.stack([sampled(image, k), 2 * sampled(image, k)], 1)
    columns = np.concatenate([k * scale, np.abs(k[..., :1]) + 0.1], -1) if weights else k * scale
    every = [
        line(one, n, trajectory=t.astype(np.float32)) for n, (one, t) in enumerate(zip(data, columns, strict=True))
    ]
    return write(path, every, header(encoding(**{**RADIAL, "trajectory": "radial", **more})))


def test_radial(tmp_path, blob):
    k = spokes()
    scan = one(radial(tmp_path / "a.h5", blob, k))
    assert scan.shape == (SIZE, SIZE)
    assert scan.readout == 2 * SIZE
    assert scan.kspace.shape == (2, 40 * 2 * SIZE)
    np.testing.assert_allclose(scan.trajectory[:, ::-1], 2 * np.pi * k.reshape(-1, 2), atol=1e-6)
    A = Nufft(torch.from_numpy(scan.trajectory)[None], scan.shape)
    y = torch.from_numpy(scan.kspace)[None, :1]
    np.testing.assert_allclose(A(torch.from_numpy(blob.astype(np.complex64))[None, None]), y, atol=2e-4)
    x = conjugate_gradient(A.gram, A.adjoint(y), iterations=40)[0, 0].numpy()
    assert np.linalg.norm(x - blob) < 0.05 * np.linalg.norm(blob)
    assert scan.coords["pixel_x"] == scan.coords["pixel_y"] == 2


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("radians/pixel", 2 * np.pi), ("cycles/fov", SIZE), ("cycles/encoded-fov", (2 * SIZE, SIZE)), ("1/m", 500.0)],
)
def test_units(tmp_path, blob, unit, scale):
    k = spokes(30)
    want = one(radial(tmp_path / "a.h5", blob, k)).trajectory
    path = radial(tmp_path / "b.h5", blob, k, np.array(scale))
    np.testing.assert_allclose(one(path, unit=unit).trajectory, want, atol=1e-5)
    if unit != "1/m":
        np.testing.assert_allclose(one(path).trajectory, want, atol=1e-5)
    with pytest.raises(DataError, match=r"trajectories of .*b\.h5 do not fit the unit cycles/pixel"):
        one(path, unit="cycles/pixel")


def test_weights_and_oversampling(tmp_path, blob):
    k = spokes(30)
    scan = one(radial(tmp_path / "a.h5", blob, k, weights=True))
    np.testing.assert_allclose(scan.weights, np.abs(k[..., 0]).ravel() + 0.1, rtol=1e-5)
    wide = one(radial(tmp_path / "b.h5", blob, k), oversampled=True)
    assert wide.shape == (SIZE, 2 * SIZE)
    np.testing.assert_array_equal(wide.trajectory, scan.trajectory)


def test_stack_of_stars(tmp_path):
    """Partitions are Cartesian: the third column of the trajectory is theirs."""
    k = spokes(10)
    volume = {"matrix": (2 * SIZE, SIZE, 6), "fov": (96.0, 48.0, 18.0), "recon": ((SIZE, SIZE, 6), (48.0, 48.0, 18.0))}
    every = [
        line(random(2, 2 * SIZE, seed=10 * z + n), n, trajectory=k[n].astype(np.float32), kspace_encode_step_2=z)
        for z in range(6)
        for n in range(10)
    ]
    head = header(encoding(**volume, centres=(0, 3), trajectory="radial"))
    scan = one(write(tmp_path / "a.h5", every, head))
    assert scan.shape == (6, SIZE, SIZE)
    np.testing.assert_allclose(scan.trajectory[:, :0:-1], 2 * np.pi * np.tile(k.reshape(-1, 2), (6, 1)), atol=1e-6)
    np.testing.assert_allclose(scan.trajectory[:, 0], np.repeat(2 * np.pi * (np.arange(6) - 3) / 6, 480), atol=1e-6)


def test_kooshball(tmp_path):
    k = np.random.default_rng(0).uniform(-0.5, 0.5, (12, 16, 3)).astype(np.float32)
    volume = {"matrix": (16, 12, 10), "fov": (32.0, 24.0, 20.0), "recon": ((16, 12, 10), (32.0, 24.0, 20.0))}
    every = [line(random(2, 16, seed=n), n, trajectory=one) for n, one in enumerate(k)]
    scan = one(write(tmp_path / "a.h5", every, header(encoding(**volume, trajectory="other"))))
    assert scan.shape == (10, 12, 16)
    np.testing.assert_allclose(scan.trajectory[:, ::-1], 2 * np.pi * k.reshape(-1, 3), rtol=1e-5)


# ----------------------------------------------------------------------------------------------- whole and broken


def test_into_a_store(tmp_path, container, seen):
    every = [one for n in range(2) for one in lines(twice(seen) + 0.002 * random(COILS, ROWS, 40, seed=n), slice=n)]
    path = write(
        tmp_path / "a.h5",
        [one for one in every if one.idx.kspace_encode_step_1 % 2 or 6 <= one.idx.kspace_encode_step_1 < 16],
    )
    store = import_files("ismrmrd", path, tmp_path / f"out.{container}", progress=False)
    got = store.read(slice(None), raw=True)
    want = np.array([y % 2 or 6 <= y < 16 for y in range(ROWS)], bool)
    np.testing.assert_array_equal(got.operator.mask[0, 0, :, 0], want)
    np.testing.assert_allclose(got.y[1], transform(seen) * want[:, None], atol=0.02)
    assert store.coords["slice"].tolist() == [0, 1]
    assert "Doe" not in str(store.attrs)
    assert "patient 7" not in str(store.coords)


def test_identifiers(tmp_path, seen):
    path = write(tmp_path / "a.h5", lines(twice(seen)))
    assert one(path, identifiers=True).coords["subject"] == "patient 7"


def test_options_that_cannot_be(tmp_path, seen):
    path = write(tmp_path / "a.h5", lines(twice(seen)))
    with pytest.raises(ConfigError, match=r"encoding must be below 1, the number of encodings of .*, got 1"):
        one(path, encoding=1)
    with pytest.raises(ConfigError, match=r"unit must be one of auto, .* got 'mm'"):
        one(path, unit="mm")
    with pytest.raises(DataError, match=r"a\.h5 has no group 'other' with 'xml' and 'data'; it has dataset"):
        one(path, group="other")


def test_files_that_cannot_be(tmp_path, seen):
    kspace = twice(seen)

    def refuses(match, name, acquisitions, head=None):
        path = write(tmp_path / f"{name}.h5", acquisitions, head)
        with pytest.raises(DataError, match=match):
            one(path)
        return path

    (tmp_path / "a.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"a\.h5 is not a readable ISMRMRD file"):
        one(tmp_path / "a.h5")
    refuses(
        r"kspace_encode_step_1 of .*b\.h5 is 0 to 22 about 11, which does not fit the 22 lines",
        "b",
        [*lines(kspace), line(kspace[:, 0], 22)],
    )
    refuses(
        r"acquisition 0 of .*c\.h5 has 41 samples with its centre at 20, which do not fit the 40 columns",
        "c",
        [line(random(2, 41))],
    )
    refuses(
        "acquisition 1 of .* discards more samples than it has",
        "d",
        [line(random(2, 8)), line(random(2, 8), discard_pre=9)],
    )
    refuses(
        "readouts of one image must have one active_channels; those of .* have 2, 3",
        "e",
        [line(random(2, 40)), line(random(3, 40))],
    )
    refuses(
        r"f\.h5 is epi, but its readouts have no trajectory; correct them",
        "f",
        lines(kspace),
        header(encoding(trajectory="epi")),
    )
    huge = header(encoding((40, 60000, 60000)))
    refuses(
        "a matrix of 40 x 60000 x 60000, of which 80 samples were measured",
        "g",
        [line(random(2, 40)), line(random(2, 40), kspace_encode_step_2=1)],
        huge,
    )
    k = spokes()[0].astype(np.float32)
    short = [line(random(2, 48), 0, trajectory=k), line(random(2, 40), 1, trajectory=k[:40])]
    refuses(
        "readouts of one image must be of one length; those of .* have 40 to 48",
        "h",
        short,
        header(encoding(**RADIAL, trajectory="radial")),
    )
    bad = [line(random(2, 48), 0, trajectory=np.full_like(k, np.nan))]
    refuses(r"trajectories of .*i\.h5 must be finite", "i", bad, header(encoding(**RADIAL, trajectory="radial")))
    path = write(tmp_path / "j.h5", lines(kspace))
    with h5py.File(path, "r+") as file:
        record = file["dataset/data"][3]
        record["data"] = record["data"][:-2]
        file["dataset/data"][3] = record
    with pytest.raises(
        DataError, match=r"acquisition 3 of .*j\.h5 must have 40 complex samples of 3 coils .* 238 and 0"
    ):
        one(path)


# always the same examples, as damaged files can make HDF5 itself loop for ever
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files(tmp_path, seen, data):
    """Whatever bytes are changed or missing, there are scans or one line that says why not."""
    good = tmp_path / "good.h5"
    if not good.exists():
        write(good, lines(twice(seen))[:3])
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    bad = tmp_path / "bad.h5"
    bad.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            list(read_ismrmrd([bad]))
        except AmbientError as error:
            said = str(error)
        else:
            said = ""
    assert "\n" not in said
