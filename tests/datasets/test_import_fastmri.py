"""FastMRI's files: written here as its description says, with k-space by a dense Fourier matrix."""

import warnings

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambient_sci.datasets import import_files
from ambient_sci.datasets.coils import coil_maps
from ambient_sci.datasets.importers.fastmri import read_fastmri
from ambient_sci.datasets.importers.mri import crop_readout
from ambient_sci.errors import AmbientError, ConfigError, DataError
from ambient_sci.operators.patterns import PATTERNS

ROWS, COLUMNS, COILS, SLICES = 24, 22, 3, 3

HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <studyInformation><studyTime>18:28:16</studyTime></studyInformation>
  <measurementInformation><protocolName>AXT2</protocolName></measurementInformation>
  <encoding>
    <encodedSpace>
      <matrixSize><x>48</x><y>22</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>96</x><y>44</y><z>7.5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>24</x><y>24</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>48</x><y>48</y><z>5</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>21</maximum><center>11</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>"""


def dft(size):
    n = np.arange(size) - size // 2
    return np.exp(-2j * np.pi * np.outer(n, n) / size) / np.sqrt(size)


def transform(images):
    return dft(images.shape[-2]) @ images @ dft(images.shape[-1]).T


@pytest.fixture(scope="module")
def seen():
    """What the coils see, (slice, coil, y, x): a textured ellipse."""
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    inside = 1 / (1 + np.exp(12 * ((y / 0.8) ** 2 + (x / 0.8) ** 2 - 1)))
    images = np.stack([inside * (1 + 0.3 * np.cos(4 * x + n * y)) for n in range(SLICES)])
    maps = coil_maps(COILS, (ROWS, COLUMNS), torch.Generator().manual_seed(0)).numpy()
    return images[:, None] * maps


def oversampled(seen):
    """The same in k-space of twice the field of view along the readout, y."""
    twice = np.zeros((*seen.shape[:-2], 2 * ROWS, COLUMNS), complex)
    twice[..., ROWS // 2 : ROWS // 2 + ROWS, :] = seen
    return transform(twice).astype(np.complex64)


def write(path, kspace, header=HEADER, **more):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if header is not None:
            file["ismrmrd_header"] = header
        file["reconstruction_rss"] = np.full((len(kspace), ROWS, ROWS), np.nan, np.float32)
        for name in ("mask",):
            if name in more:
                file[name] = more.pop(name)
        file.attrs.update({"acquisition": "AXT2", "patient_id": "abc", "max": np.nan, "norm": np.nan, **more})
    return path


def test_multi_coil(tmp_path, seen):
    path = write(tmp_path / "file1.h5", oversampled(seen))
    scans = list(read_fastmri([path]))
    assert len(scans) == SLICES
    for number, scan in enumerate(scans):
        np.testing.assert_allclose(scan.kspace, transform(seen[number]), atol=2e-6)
        assert scan.kspace.dtype == np.complex64
        assert scan.mask.all()
        assert scan.maps is None
        assert scan.coords == {
            "file": "file1", "subject": "abc", "acquisition": "AXT2", "slice": number,
            "pixel_y": 2.0, "pixel_x": 2.0, "pixel_z": 5.0,
        }  # fmt: skip


def test_single_coil(tmp_path, seen):
    path = write(tmp_path / "a.h5", oversampled(seen)[:, 0])
    scans = list(read_fastmri([path]))
    assert scans[1].kspace.shape == (1, ROWS, COLUMNS)
    np.testing.assert_allclose(scans[1].kspace, transform(seen[1, :1]), atol=2e-6)


@pytest.mark.parametrize(("full", "size"), [(48, 24), (47, 24), (48, 23), (9, 5), (8, 8)])
def test_cropping_is_an_isometry(full, size):
    """Rows of the crop are orthonormal, so that white noise stays white; images keep their values."""
    matrix = crop_readout(np.eye(full, dtype=complex), size, 0)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(size), atol=1e-6)
    start = full // 2 - size // 2
    image = np.zeros(full)
    image[start : start + size] = np.random.default_rng(0).random(size)
    np.testing.assert_allclose(
        crop_readout(dft(full) @ image, size), dft(size) @ image[start : start + size], atol=1e-6
    )


def test_oversampling_is_kept(tmp_path, seen):
    kspace = oversampled(seen)
    path = write(tmp_path / "a.h5", kspace)
    scan = next(iter(read_fastmri([path], oversampled=True)))
    np.testing.assert_array_equal(scan.kspace, kspace[0])
    assert scan.coords["pixel_y"] == 2.0
    scan = next(iter(read_fastmri([write(tmp_path / "b.h5", kspace, header=None)])))
    assert scan.kspace.shape == kspace.shape[1:]
    assert "pixel_y" not in scan.coords


def test_padding_and_masks(tmp_path, seen):
    kspace = oversampled(seen)
    kspace[..., :2] = 0
    kspace[..., -1:] = 0
    want = np.ones(COLUMNS, bool)
    want[[0, 1, -1]] = False
    scan = next(iter(read_fastmri([write(tmp_path / "a.h5", kspace)])))
    np.testing.assert_array_equal(scan.mask, np.broadcast_to(want, (ROWS, COLUMNS)))
    mask = np.arange(COLUMNS) % 3 == 0
    for ending, dtype in enumerate((np.float32, bool, np.int64)):
        path = write(tmp_path / f"b{ending}.h5", kspace, mask=mask.astype(dtype))
        scan = next(iter(read_fastmri([path])))
        np.testing.assert_array_equal(scan.mask, np.broadcast_to(want & mask, (ROWS, COLUMNS)))
        assert not scan.kspace[:, ~scan.mask].any()
        np.testing.assert_allclose(scan.kspace, transform(seen[0]) * (want & mask), atol=2e-6)


def test_masks_of_points(tmp_path, seen):
    kspace = oversampled(seen)
    mask = np.random.default_rng(0).random((2 * ROWS, COLUMNS)) < 0.4
    path = write(tmp_path / "a.h5", kspace * mask, mask=mask)
    scan = next(iter(read_fastmri([path], oversampled=True)))
    np.testing.assert_array_equal(scan.mask, mask)
    with pytest.raises(DataError, match=r"a\.h5 has columns that are not measured in full.*pass oversampled"):
        list(read_fastmri([path]))


def test_which_files_and_slices(tmp_path, seen):
    kspace = oversampled(seen)
    for name in ("b", "a"):
        write(tmp_path / f"{name}.h5", kspace)
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "c.h5", kspace[..., :20])
    (tmp_path / "notes.txt").write_text("")
    found = [(scan.coords["file"], scan.coords["slice"]) for scan in read_fastmri([tmp_path], slices=(1, -1))]
    assert found == [("a", 1), ("b", 1), ("c", 1)]
    found = [scan.coords["file"] for scan in read_fastmri([tmp_path], slices=(0, 1), size=(ROWS, 20))]
    assert found == ["c"]
    assert not list(read_fastmri([tmp_path], slices=(7, 9)))


def test_undersampling_is_frozen(tmp_path, seen):
    kspace = oversampled(seen)
    kspace[..., :1] = 0
    paths = [write(tmp_path / f"{name}.h5", kspace) for name in "ab"]
    options = {"pattern": "random-lines", "acceleration": 2, "calibration": 4}
    scans = list(read_fastmri(paths, **options))
    for scan in scans:
        lines = scan.mask[0]
        assert (scan.mask == lines).all()
        assert lines[11 - 2 : 11 + 2].all()
        assert 10 <= lines.sum() <= 11  # the padded column may be one of them
        assert scan.calibration_width == 4
        np.testing.assert_allclose(scan.kspace, transform(seen[scan.coords["slice"]]) * scan.mask, atol=0.5)
        assert not scan.kspace[:, ~scan.mask].any()
        np.testing.assert_array_equal(scan.mask, scans[0 if scan.coords["file"] == "a" else SLICES].mask)
    assert (scans[0].mask != scans[SLICES].mask).any()
    again = list(read_fastmri(paths[1:], **options))
    np.testing.assert_array_equal(again[0].mask, scans[SLICES].mask)  # whatever was read before
    other = next(iter(read_fastmri(paths, **options, seed=1)))
    assert (other.mask != scans[0].mask).any()


def test_undersampling_that_cannot_be(tmp_path, seen):
    path = write(tmp_path / "a.h5", oversampled(seen))
    with pytest.raises(ConfigError, match=r"pattern must be one of random-lines, .* got 'lines'"):
        list(read_fastmri([path], pattern="lines"))
    with pytest.raises(DataError, match=r"a\.h5 cannot be undersampled: .*calibration"):
        list(read_fastmri([path], pattern="random-lines"))
    masked = write(tmp_path / "b.h5", oversampled(seen), mask=np.ones(COLUMNS))
    with pytest.raises(DataError, match=r"b\.h5 is undersampled already"):
        list(read_fastmri([masked], pattern="random-lines", calibration=4))


def test_every_pattern(tmp_path, seen):
    path = write(tmp_path / "a.h5", oversampled(seen))
    for name in set(PATTERNS) - {"poisson-disc"}:  # which takes seconds
        few = {"calibration": 4 if "lines" in name or "points" in name else 0, "acceleration": 1.8}
        scan = next(iter(read_fastmri([path], pattern=name, **few)))
        assert 0.4 < scan.mask.mean() < 0.7
        assert scan.calibration_width == (few["calibration"] or None)


def test_reconstructions_are_not_read(tmp_path, seen, monkeypatch):
    """Neither images nor numbers from them are touched, whatever is read of a file."""
    path = write(tmp_path / "a.h5", oversampled(seen))
    touched = []
    for kind in (h5py.Group, h5py.AttributeManager):
        for method in ("__getitem__", "get"):
            original = getattr(kind, method)

            def spy(self, name, *args, _original=original, **kwargs):
                touched.append(name)
                return _original(self, name, *args, **kwargs)

            monkeypatch.setattr(kind, method, spy)
    assert len(list(read_fastmri([path]))) == SLICES
    assert {"kspace", "patient_id"} <= set(touched)
    assert not {"reconstruction_rss", "reconstruction_esc", "max", "norm"} & set(touched)


def test_into_a_store(tmp_path, container, seen):
    rng = np.random.default_rng(0)
    kspace = oversampled(seen)
    noise = 0.002 * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))
    write(tmp_path / "a.h5", (kspace + noise).astype(np.complex64))
    out = tmp_path / f"out.{container}"
    options = {"pattern": "equispaced-lines", "acceleration": 1.5, "calibration": 10}
    store = import_files("fastmri", tmp_path / "a.h5", out, progress=False, **options)
    got = store.read(slice(None), raw=True)
    assert got.y.shape == (SLICES, COILS, ROWS, COLUMNS)
    mask = got.operator.mask.expand(-1, 1, ROWS, -1)
    np.testing.assert_allclose(got.y, transform(seen) * mask.numpy(), atol=0.02)
    assert got.operator.calibration == 10
    assert store.coords["subject"].tolist() == ["abc"] * 3
    assert store.coords["slice"].tolist() == [0, 1, 2]
    assert not store.has_references
    assert store.attrs["provenance"]["options"]["pattern"] == "equispaced-lines"


def test_files_that_are_not_fastmri(tmp_path, seen):
    def refuses(match, path):
        with pytest.raises(DataError, match=match):
            list(read_fastmri([path]))

    kspace = oversampled(seen)
    (tmp_path / "a.h5").write_bytes(b"not HDF5 at all")
    refuses(r"a\.h5 is not a readable fastMRI file \(HDF5\)", tmp_path / "a.h5")
    (tmp_path / "a.npy").write_bytes(b"")
    refuses(r"a\.npy must end in \.h5 or \.hdf5", tmp_path / "a.npy")
    (tmp_path / "empty").mkdir()
    refuses(r"the folder .*empty holds no files that end in \.h5 or \.hdf5", tmp_path / "empty")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["dataset"] = 1
    refuses(r"b\.h5 has no dataset 'kspace'; it has dataset", tmp_path / "b.h5")
    refuses(r"kspace of .*c\.h5 must be complex .* got float32", write(tmp_path / "c.h5", kspace.real))
    refuses(r"kspace of .*d\.h5 must be complex .*\(48, 22\)", write(tmp_path / "d.h5", kspace[0, 0]))
    refuses(
        r"mask of .*e\.h5 must be zeros and ones of shape \(22,\) or \(48, 22\), got float64 of shape \(5,\)",
        write(tmp_path / "e.h5", kspace, mask=np.ones(5)),
    )
    refuses(r"mask of .*f\.h5 must be", write(tmp_path / "f.h5", kspace, mask=np.full(COLUMNS, 0.5)))
    refuses(r"the header of .*g\.h5 is not readable XML", write(tmp_path / "g.h5", kspace, header="<a>"))
    refuses(r"the header of .*h\.h5 has no encoding", write(tmp_path / "h.h5", kspace, header="<a/>"))
    bad = HEADER.replace("<x>96</x>", "<x>wide</x>")
    refuses(
        r"i\.h5 must have a number for encodedSpace/fieldOfView_mm/x, got 'wide'", write(tmp_path / "i.h5", kspace, bad)
    )
    bad = HEADER.replace("<x>96</x>", "<x>0</x>")
    refuses(r"j\.h5 must have encodedSpace with matrixSize and", write(tmp_path / "j.h5", kspace, bad))
    with h5py.File(tmp_path / "k.h5", "w") as file:  # nothing is written of it
        file.create_dataset("kspace", (10, 50, 20000, 20000), np.complex64, chunks=(1, 1, 100, 100))
    refuses(r"kspace of .*k\.h5 has shape .* more than the file can hold", tmp_path / "k.h5")


# always the same examples: about one damaged file in 20 000 makes HDF5 itself loop for ever
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files(tmp_path, seen, data):
    """Whatever bytes are changed or missing, there are scans or one line that says why not."""
    good = tmp_path / "good.h5"
    if not good.exists():
        write(good, oversampled(seen)[:1, :1], mask=np.ones(COLUMNS))
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    bad = tmp_path / "bad.h5"
    bad.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            list(read_fastmri([bad]))
        except AmbientError as error:
            said = str(error)
        else:
            said = ""
    assert "\n" not in said
