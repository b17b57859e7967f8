"""BART's arrays: written here with plain bytes as BART's README has them, k-space by sigpy's centred transforms."""

import struct

import numpy as np
import pytest
import sigpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambient_sci.datasets import import_files
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.datasets.importers.bart import read_bart, read_cfl
from ambient_sci.errors import AmbientError, ConfigError, DataError, NotFoundError
from ambient_sci.operators import Nufft, Sense, conjugate_gradient

HEIGHT, WIDTH, COILS = 20, 18, 3


def write(base, array, more="# Creator\nBART 0.9\n"):
    """Write an array whose first axis is BART's dimension 0, number by number."""
    padded = [*array.shape, *[1] * (16 - array.ndim)]
    text = "# Dimensions\n" + " ".join(map(str, padded)) + " \n" + more
    base.parent.joinpath(base.name + ".hdr").write_text(text)
    values = (number for number in np.asarray(array, complex).ravel(order="F"))
    content = b"".join(struct.pack("<ff", value.real, value.imag) for value in values)
    path = base.parent / f"{base.name}.cfl"
    path.write_bytes(content)
    return path


def random(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def one(path, **options):
    (scan,) = read_bart([path], **options)
    return scan


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    return np.exp(-6 * ((y - 0.2) ** 2 + (x / 0.7 + 0.1) ** 2)) * (1 + 0.5 * y) * np.exp(0.5j * x)


@pytest.fixture(scope="module")
def maps():
    return coil_maps(COILS, (HEIGHT, WIDTH), torch.Generator().manual_seed(0)).numpy()


def kspace(image, maps):
    """(coil, y, x), by sigpy, whose centre is BART's."""
    return sigpy.fft(maps * image, axes=(-2, -1))


def as_bart(array):
    """(coil, [z,] y, x) in BART's order x, y, z, coil."""
    array = array[:, None] if array.ndim == 3 else array
    return array.transpose(3, 2, 1, 0)


def test_arrays_are_mapped(tmp_path):
    array = random(3, 4, 5, 2)
    path = write(tmp_path / "a.b", array)
    for name in (path, tmp_path / "a.b.hdr"):
        got = read_cfl(name)
        assert got.shape == (3, 4, 5, 2, *[1] * 12)
        np.testing.assert_array_equal(got.reshape(3, 4, 5, 2), array)
    base = got
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_on_the_grid(tmp_path, image, maps):
    """The operator of this package explains BART's k-space."""
    full = kspace(image, maps)
    full[:, :, ::3] = 0
    path = write(tmp_path / "ksp", as_bart(full))
    scan = one(path, maps=write(tmp_path / "sens", as_bart(maps)))
    np.testing.assert_allclose(scan.kspace, full, atol=1e-6)
    np.testing.assert_allclose(scan.maps, maps, atol=1e-6)
    assert scan.mask is None
    assert scan.coords == {"file": "ksp", "subject": "ksp", "slice": 0}
    A = Sense(torch.from_numpy((full != 0).any(0)[None, None].astype(np.float32)), torch.from_numpy(scan.maps)[None])
    got = A(torch.from_numpy(image.astype(np.complex64))[None, None])
    np.testing.assert_allclose(got[0], scan.kspace, atol=1e-6)


def test_planes_of_any_two_axes(tmp_path):
    """A slice out of a volume has size one along its readout, as in BART's examples."""
    array = random(1, 7, 9, 2)
    np.testing.assert_array_equal(one(write(tmp_path / "a", array)).kspace, array[0].transpose(2, 1, 0))
    array = random(7, 1, 9, 2)
    np.testing.assert_array_equal(one(write(tmp_path / "b", array)).kspace, array[:, 0].transpose(2, 1, 0))
    array = random(4, 5, 6, 2)
    np.testing.assert_array_equal(one(write(tmp_path / "c", array)).kspace, array.transpose(3, 2, 1, 0))


def test_patterns_and_sets_of_maps(tmp_path):
    array, maps = random(7, 9, 1, 2), random(7, 9, 1, 2, 2)
    pattern = np.random.default_rng(0).random((7, 9)) < 0.5
    scan = one(
        write(tmp_path / "a", array), pattern=write(tmp_path / "pat", pattern), maps=write(tmp_path / "sens", maps)
    )
    np.testing.assert_array_equal(scan.mask, pattern.T)
    np.testing.assert_array_equal(scan.maps, maps[:, :, 0].transpose(3, 2, 1, 0))
    volume = random(7, 9, 4, 2)
    scan = one(write(tmp_path / "b", volume), maps=write(tmp_path / "sens3", volume[..., None]))
    np.testing.assert_array_equal(scan.maps, volume.transpose(3, 2, 1, 0))


def test_a_scan_for_each_place(tmp_path):
    """Time varies before slices; maps are one for each slice."""
    array = random(5, 6, 1, 2, 1, 1, 1, 1, 1, 1, 3, 1, 1, 2)
    maps = random(5, 6, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, seed=1)
    scans = list(read_bart([write(tmp_path / "a", array)], maps=write(tmp_path / "m", maps)))
    found = [(scan.coords["repetition"], scan.coords["slice"]) for scan in scans]
    assert found == [(t, s) for t in range(3) for s in range(2)]
    for scan, (t, s) in zip(scans, found, strict=True):
        np.testing.assert_array_equal(scan.kspace, array[:, :, 0, :, 0, 0, 0, 0, 0, 0, t, 0, 0, s].transpose(2, 1, 0))
        np.testing.assert_array_equal(scan.maps, maps[:, :, 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0, s].transpose(2, 1, 0))


def test_folders(tmp_path):
    for name in ("b", "a", "sens"):
        write(tmp_path / name, random(5, 6, 1, 2))
    found = [scan.coords["file"] for scan in read_bart([tmp_path], maps=tmp_path / "sens")]
    assert found == ["a", "b"]
    assert [scan.coords["file"] for scan in read_bart([tmp_path / "b.cfl", tmp_path / "a.hdr"])] == ["b", "a"]


def test_off_the_grid(tmp_path, image):
    """Radial k-space by sigpy's transform in BART's units gives the image back."""
    square = np.zeros((20, 20), complex)
    square[:, 1:19] = image
    angles = np.pi / 35 * np.arange(35)
    radii = np.arange(40) / 2 - 10 + 0.25  # samples half a step of 1 / FOV apart, as `traj -r` places them
    k = radii[:, None] * np.stack([np.cos(angles), np.sin(angles), 0 * angles])[:, None]  # x, y, z
    samples = sigpy.nufft(square, k[1::-1].transpose(1, 2, 0), oversamp=2, width=6)  # sigpy has y first
    coils = np.stack([samples, 2j * samples], -1)[None]
    path = write(tmp_path / "ksp", coils)
    scan = one(path, trajectory=write(tmp_path / "traj", k))
    assert scan.shape == (20, 20)
    assert scan.readout == 40
    np.testing.assert_allclose(scan.kspace[1], 2j * samples.T.ravel(), atol=1e-5)
    A = Nufft(torch.from_numpy(scan.trajectory)[None], scan.shape)
    y = torch.from_numpy(scan.kspace)[None, :1]
    x = conjugate_gradient(A.gram, A.adjoint(y), iterations=40)[0, 0].numpy()
    assert np.linalg.norm(x - square) < 0.05 * np.linalg.norm(square)
    sens = random(30, 24, 1, 2)
    scan = one(path, trajectory=tmp_path / "traj", shape=(24, 30), maps=write(tmp_path / "sens", sens))
    assert scan.shape == (24, 30)
    assert scan.maps.shape == (2, 24, 30)
    np.testing.assert_allclose(scan.trajectory[:, 1], 2 * np.pi / 30 * k[0].T.ravel(), atol=1e-6)
    frames = np.stack([coils, 2 * coils], -1).reshape(1, 40, 35, 2, *[1] * 6, 2)
    scans = list(read_bart([write(tmp_path / "frames", frames)], trajectory=tmp_path / "traj"))
    assert [scan.coords["repetition"] for scan in scans] == [0, 1]
    np.testing.assert_allclose(scans[1].kspace, 2 * scans[0].kspace)


def test_volumes_off_the_grid(tmp_path):
    k = np.random.default_rng(0).uniform(-1, 1, (3, 8, 5)) * np.array([9.5, 7.5, 3.5])[:, None, None]
    k[:, 0, 0] = 9.5, 7.5, 3.5
    scan = one(write(tmp_path / "ksp", random(1, 8, 5, 2)), trajectory=write(tmp_path / "traj", k))
    assert scan.shape == (8, 20, 20)
    np.testing.assert_allclose(scan.trajectory[:8, 0], 2 * np.pi / 8 * k[2, :, 0], rtol=1e-5)


def test_into_a_store(tmp_path, container, image, maps):
    full = kspace(image, maps) + 0.003 * random(COILS, HEIGHT, WIDTH)
    full[:, :, 1:4] = 0
    write(tmp_path / "ksp", as_bart(full))
    store = import_files("bart", tmp_path / "ksp.cfl", tmp_path / f"out.{container}", progress=False)
    got = store.read(0, raw=True)
    np.testing.assert_allclose(got.y[0], full, atol=1e-6)
    np.testing.assert_array_equal(got.operator.mask[0, 0].expand(HEIGHT, WIDTH), (full != 0).any(0))
    assert store.coords["file"].tolist() == ["ksp"]


def test_what_cannot_be(tmp_path):
    def refuses(match, path, error=DataError, **options):
        with pytest.raises(error, match=match):
            list(read_bart([path], **options))

    good = write(tmp_path / "good", random(5, 6, 1, 2))
    refuses(r"good\.npy must end in \.cfl or \.hdr", tmp_path / "good.npy")
    (tmp_path / "alone.cfl").write_bytes(b"")
    refuses(r"no BART array at .*alone: there is no file .*alone\.hdr", tmp_path / "alone.cfl", NotFoundError)
    refuses("no BART array at .*nothing", good, NotFoundError, maps=tmp_path / "nothing")
    for number, text in enumerate(
        ["", "# Dimensions", "# Dimensions\n\n", "# Dimensions\n5 x 1", "# Dimensions\n5 -6 1 2"]
    ):
        write(tmp_path / f"h{number}", random(5, 6, 1, 2))
        (tmp_path / f"h{number}.hdr").write_text(text)
        match = (
            r"is not a header of BART: it has no line '# Dimensions'" if number < 2 else "must give sizes above 0 after"
        )
        refuses(match, tmp_path / f"h{number}.cfl")
    long = write(tmp_path / "long", random(5, 6, 1, 2))
    long.write_bytes(long.read_bytes()[:-8])
    refuses(r"long\.cfl must have 480 bytes for the 5 x 6 x 1 x 2 x .* numbers of its header, it has 472", long)
    (tmp_path / "huge.cfl").write_bytes(b"12345678")
    (tmp_path / "huge.hdr").write_text("# Dimensions\n99999999999 99999999999\n")
    refuses(r"huge\.cfl must have \d+ bytes", tmp_path / "huge.cfl")
    refuses("has size 3 along dimension 4; only 0 to 3 and 5, 10", write(tmp_path / "a", random(5, 6, 1, 2, 3)))
    refuses(
        r"must have two or three sizes above 1 along dimensions 0 to 2, got \(5, 1, 1\)",
        write(tmp_path / "b", random(5, 1, 1, 2)),
    )
    refuses(r"maps must have the sizes \(5, 6, 1, 2\)", good, maps=write(tmp_path / "c", random(5, 6, 1, 3)))
    refuses("maps has size 4 along dimension 13", good, maps=write(tmp_path / "d", random(5, 6, 1, 2, *[1] * 9, 4)))
    refuses("pattern must be zeros and ones", good, pattern=write(tmp_path / "e", np.full((5, 6), 0.5)))
    refuses("leave it out where there is a trajectory", good, ConfigError, pattern=good, trajectory=good)
    refuses("shape is for k-space with a trajectory", good, ConfigError, shape=(5, 6))
    refuses(
        "with a trajectory .* must be 1 x samples x readouts x coils",
        good,
        trajectory=write(tmp_path / "f", random(3, 6, 1)),
    )
    ksp = write(tmp_path / "g", random(1, 6, 2, 2))
    refuses("must be finite", ksp, trajectory=write(tmp_path / "i", np.full((3, 6, 2), np.nan)))
    traj = write(tmp_path / "j", np.full((3, 6, 2), 9.0))
    refuses("cannot be used: .* does the field of view have only", ksp, trajectory=traj, shape=(4, 4, 4))
    refuses("cannot be used: .* third coordinate that is not zero", ksp, trajectory=traj, shape=(20, 20))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files(tmp_path, data):
    """Whatever bytes are changed or missing, there are scans or one line that says why not."""
    write(tmp_path / "a", random(3, 4, 1, 2))
    for name in ("a.hdr", "a.cfl"):
        content = bytearray((tmp_path / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, min(len(content) - 1, 60)))] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
        (tmp_path / name).write_bytes(content)
    try:
        list(read_bart([tmp_path]))
    except AmbientError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
