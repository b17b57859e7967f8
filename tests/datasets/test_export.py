"""Exporting: what lies together, names, all or nothing, and what can be wrong."""

import errno
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import xarray

from ambient_sci import cli
from ambient_sci.datasets import exporting
from ambient_sci.datasets.exporting import export
from ambient_sci.errors import ConfigError, DataError, NotFoundError, OutputError, StoreError


def dataset(scans, size=(4, 5), attrs=None, **coords):
    """Real images that tell their row: the first is all zeros, the second all ones."""
    values = np.zeros((scans, 1, *size), np.float32) + np.arange(scans).reshape(-1, *[1] * (len(size) + 1))
    axes = ("scan", "channel", "z", "y", "x") if len(size) == 3 else ("scan", "channel", "y", "x")
    named = {name: ("scan", np.asarray(value)) for name, value in coords.items()}
    named = {name: (axis, v.astype(object) if v.dtype.kind == "U" else v) for name, (axis, v) in named.items()}
    variables = {"mean": (axes, values), "std": (axes, values + 100)}
    return xarray.Dataset(variables, {"scan": np.arange(scans), **named}, attrs or {"title": "posterior samples"})


@pytest.fixture
def plugin(monkeypatch):
    """Announce a function as the only exporter."""

    def announce(function):
        monkeypatch.setattr(exporting, "load", lambda group, name: function)

    return announce


@pytest.fixture
def volumes(plugin, tmp_path):
    """``volumes(dataset)`` is a list of what an exporter gets."""
    seen = []

    def collect(volumes, folder):
        seen.extend(volumes)

    plugin(collect)

    def of(given, **options):
        seen.clear()
        export(given, tmp_path / "out", progress=False, overwrite=True, **options)
        return list(seen)

    return of


def rows(volume):
    return volume.images["mean"].values[0, 0, :, 0, 0].tolist()


def test_slices_that_follow_each_other_are_a_volume(volumes):
    found = volumes(
        dataset(
            7,
            file=["b", "a", "a", "b", "a", "a", "a"],
            slice=[1, 2, 1, 0, 7, 5, 6],
        )
    )
    assert {volume.name: rows(volume) for volume in found} == {"b": [3, 0], "a_slice1": [2, 1], "a_slice5": [5, 6, 4]}
    assert [volume.source for volume in found] == ["b", "a", "a"]
    assert [one["slice"] for one in found[2].coords] == [5, 6, 7]
    assert found[0].shape == (2, 4, 5)
    assert found[0].images["mean"].values.dtype == np.float32
    assert [volume.name for volume in found[2].scans()] == ["a_slice5_slice5", "a_slice5_slice6", "a_slice5_slice7"]


@pytest.mark.parametrize("coordinate", ["subject", "acquisition", "contrast", "repetition", "phase", "set"])
def test_what_is_apart_is_not_stacked(coordinate, volumes):
    found = volumes(dataset(4, file=["a"] * 4, slice=[0, 1, 2, 3], **{coordinate: [1, 1, 2, 2]}))
    assert {volume.name: rows(volume) for volume in found} == {
        f"a_{coordinate}1": [0, 1],
        f"a_{coordinate}2": [2, 3],
    }


def test_names_are_files_own(volumes):
    def names(scans, **coords):
        return [volume.name for volume in volumes(dataset(scans, **coords))]

    assert names(2) == ["scans_scan0", "scans_scan1"]
    assert names(1) == ["scans"]
    assert names(2, subject=[3, 4]) == ["subject3", "subject4"]
    assert names(2, subject=["a/../b", "a b"]) == ["a_.._b", "a_b"]
    assert names(3, file=["a b", "a/b", "A?b"]) == ["a_b", "a_b-2", "A_b-3"]
    assert names(2, file=["", "../"]) == ["scans", "unnamed"]
    assert names(2, field=["M 87", "Sgr A*"]) == ["M_87", "Sgr_A"]
    assert names(2, file=["a", "a"], slice=[0, 0]) == ["a_slice0_scan0", "a_slice0_scan1"]
    assert names(2, file=["a", "a"], acquisition=["T1", "T2 w"]) == ["a_T1", "a_T2_w"]


def test_scans_with_an_axis_z_are_volumes(volumes):
    found = volumes(dataset(2, (3, 4, 5), slice=[0, 1], file=["a", "b"]))
    assert [volume.name for volume in found] == ["a", "b"]
    assert found[1].images["mean"].values.shape == (1, 1, 3, 4, 5)
    assert len(found[1].coords) == 1


def test_statistics_say_what_they_are(volumes):
    complex_ = dataset(1, attrs={"samples": 8, "interval": 0.9})
    complex_["mean"] = complex_["mean"] * np.complex64(1j) - 2j
    complex_["upper"] = complex_["std"]
    (volume,) = volumes(complex_, what=["mean", "std", "upper"])
    said = {what: (one.part, one.about, one.units) for what, one in volume.images.items()}
    assert said == {
        "mean": ("magnitude", "magnitude of the posterior mean of 8 samples", "arbitrary"),
        "std": ("magnitude", "posterior standard deviation of 8 samples", "arbitrary"),
        "upper": ("magnitude", "upper end of the 90% credible interval of the magnitude", "arbitrary"),
    }
    assert volume.images["mean"].values.max() == 2
    (volume,) = volumes(complex_, part="phase")
    assert (volume.images["mean"].units, volume.images["mean"].values[0, 0, 0, 0, 0]) == ("rad", np.float32(-np.pi / 2))
    real = dataset(1, attrs={"operator": "interferometer"})
    real["mean"] -= 7
    (volume,) = volumes(real)
    assert (volume.images["mean"].part, volume.images["mean"].units) == ("real", "Jy/pixel")
    assert volume.images["mean"].values.max() == -7
    with pytest.raises(ConfigError, match="mean of the reconstruction is real"):
        volumes(real, part="phase")


def test_groups_of_several_sizes(volumes, tmp_path):
    parts = {"size_0": dataset(2, (4, 5), file=["a", "b"]), "size_1": dataset(1, (6, 7), file=["a"])}
    xarray.Dataset(attrs={"title": "posterior samples", "prior": "01"}).to_zarr(
        tmp_path / "r.zarr", zarr_format=3, consolidated=False
    )
    for group, part in parts.items():
        part.attrs = {"group": group}
        part.to_zarr(tmp_path / "r.zarr", group=group, zarr_format=3, consolidated=False, mode="a")
    for given in (tmp_path / "r.zarr", xarray.open_datatree(tmp_path / "r.zarr", engine="zarr", consolidated=False)):
        found = volumes(given)
        assert [(volume.name, volume.shape) for volume in found] == [
            ("a_scan0", (1, 4, 5)),
            ("b", (1, 4, 5)),
            ("a_scan0-2", (1, 6, 7)),
        ]
        assert found[2].provenance["prior"] == "01"
        assert found[2].provenance["group"] == "size_1"


# ------------------------------------------------------------------------------------------------- all or nothing


def test_volumes_are_read_one_at_a_time(plugin, tmp_path):
    given = dataset(3, file=list("abc"))
    given["mean"][2] = np.nan

    def write(volumes, folder):
        for volume in volumes:
            (folder / volume.name).write_text("")
            written.append(volume.name)

    written = []
    plugin(write)
    with pytest.raises(StoreError, match="mean of c has NaN"):
        export(given, tmp_path / "deep" / "out", progress=False)
    assert written == ["a", "b"]
    assert not list((tmp_path / "deep").iterdir())


def test_what_was_there_stays(plugin, tmp_path):
    out = tmp_path / "out"
    plugin(lambda volumes, folder: (folder / "good").write_text("1"))
    files = export(dataset(1), out, progress=False)
    assert files == [out / "good"]
    assert json.loads((out / "export.json").read_text())["files"] == ["good"]
    with pytest.raises(OutputError, match="already exists; choose another path or pass --overwrite"):
        export(dataset(1), out, progress=False)

    for error, words in (
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot write .*: the disk is full; free space",
        ),
        (PermissionError(errno.EACCES, "denied"), "no permission"),
        (KeyboardInterrupt("stop"), "stop"),
        (RuntimeError("a bug"), "a bug"),
    ):

        def fail(volumes, folder, error=error):
            (folder / "bad").write_text("2")
            raise error

        plugin(fail)
        with pytest.raises(OutputError if isinstance(error, OSError) else type(error), match=words):
            export(dataset(1), out, overwrite=True, progress=False)
        assert {path.name for path in tmp_path.rglob("*")} == {"out", "good", "export.json"}

    plugin(lambda volumes, folder: (folder / "better").write_text("3"))
    export(dataset(1), out, overwrite=True, progress=False)
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "better", "export.json"}


def test_the_old_export_comes_back_if_the_new_one_cannot_take_its_place(plugin, monkeypatch, tmp_path):
    plugin(lambda volumes, folder: (folder / "images").write_text("1"))
    export(dataset(1), tmp_path / "out", progress=False)
    rename = Path.rename

    def stubborn(self, target):
        if ".partial" in self.name:
            raise PermissionError(errno.EPERM, "denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    plugin(lambda volumes, folder: (folder / "images").write_text("2"))
    with pytest.raises(OutputError, match="no permission"):
        export(dataset(1), tmp_path / "out", overwrite=True, progress=False)
    assert (tmp_path / "out" / "images").read_text() == "1"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_the_folder_that_one_is_in(plugin, monkeypatch, tmp_path):
    plugin(lambda volumes, folder: (folder / "images").write_text(""))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(dataset(1), ".", progress=False)
    assert (tmp_path / "here" / "images").exists()


def test_only_exports_are_replaced(plugin, tmp_path):
    plugin(lambda volumes, folder: None)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("thesis", "file"):
        with pytest.raises(OutputError, match=f"{name} is not an export and is not replaced"):
            export(dataset(1), tmp_path / name, overwrite=True, progress=False)
    assert (tmp_path / "thesis" / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    export(dataset(1), tmp_path / "empty", progress=False)
    assert (tmp_path / "empty" / "export.json").exists()


# ------------------------------------------------------------------------------------------------- what is wrong


def test_options_are_those_of_the_function(plugin, tmp_path):
    seen = []

    def write(
        volumes,
        folder,
        *,
        crop: Annotated[int | None, "how much"] = None,
        compress: Annotated[bool, "whether"] = True,
        table: Annotated[Path, "where"] = Path("a"),
    ) -> None:
        seen.append((crop, compress, table))

    plugin(write)
    export(dataset(1), tmp_path / "a", progress=False, crop="320", compress="no", table="t")
    export(dataset(1), tmp_path / "b", progress=False)
    assert seen == [(320, False, Path("t")), (None, True, Path("a"))]
    with pytest.raises(ConfigError, match="has no option 'crp'; it has crop, compress, table"):
        export(dataset(1), tmp_path / "c", "own", progress=False, crp=1)
    with pytest.raises(ConfigError, match=r"option crop of format 'own': .* integer, .* got 'wide'"):
        export(dataset(1), tmp_path / "c", "own", progress=False, crop="wide")
    assert not (tmp_path / "c").exists()


def test_mistakes_are_one_line(tmp_path):
    def refused(kind, words, given=None, **options):
        with pytest.raises(kind, match=words) as caught:
            export(dataset(1) if given is None else given, tmp_path / "out", progress=False, **options)
        assert "\n" not in str(caught.value)

    refused(ConfigError, "unknown exporter 'nrrd'; installed: .*nifti", format="nrrd")
    refused(ConfigError, "what must be one or several of mean, std, .* got 'median'", what="median")
    refused(ConfigError, "what must be", what=[])
    refused(ConfigError, "what must be", what=["mean", "mean"])
    refused(ConfigError, "part must be one of magnitude, phase, complex, got 'real'", part="real")
    refused(DataError, "the reconstruction holds no upper, sample", what=["upper", "mean", "sample"])
    refused(DataError, r"mean of the reconstruction must be \(scan, channel, \[z,\] y, x\)", dataset(1).isel(channel=0))
    refused(NotFoundError, "no reconstruction at .*nowhere", tmp_path / "nowhere")
    (tmp_path / "note").write_text("")
    refused(StoreError, "note is not a reconstruction, or a damaged one", tmp_path / "note")
    assert {path.name for path in tmp_path.iterdir()} == {"note"}


@pytest.mark.parametrize(
    ("format", "library", "extra"),
    [
        ("nifti", "nibabel", "mri"),
        ("ismrmrd", "ismrmrd", "mri"),
        ("dicom", "pydicom", "mri"),
        ("fits", "astropy.io.fits", "radio"),
    ],
)
def test_a_missing_library_is_named(format, library, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf'needs {library.split(".")[0]}: pip install "ambient-sci\[{extra}\]"'):
        export(dataset(1), tmp_path / "out", format, progress=False)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- on the command line


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["ambient-sci", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert (end.value.code or 0) == status, said.err
        return said.out, said.err

    return run


def test_command(command, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    given = dataset(3, slice=[0, 1, 2], file=["a"] * 3)
    given.to_zarr("recon.zarr", zarr_format=3, consolidated=False)
    out, err = command("recon.zarr", "out", "--what", "mean", "--what", "std", "--option", "compress=no", "--quiet")
    assert out == "wrote out: 2 files\n"
    assert err.startswith("warning: all volumes: their place in the patient is not known; ")
    assert err.count("\n") == 1
    assert nibabel.load("out/a_std.nii").get_fdata()[0, 0].tolist() == [100, 101, 102]
    out, err = command("recon.zarr", "out", "--quiet", status=2)
    assert err == "error: out already exists; choose another path or pass --overwrite (overwrite=True)\n"
    out, err = command("recon.zarr", "out", "--quiet", "--format", "fastmri", "--option", "crop=3x2", "--overwrite")
    assert out == "wrote out: 1 file\n"
    assert err == ""
    assert {path.name for path in Path("out").iterdir()} == {"a.h5", "export.json"}
    _, err = command("recon.zarr", "b", "--option", "crop", status=2)
    assert err == "error: option must be NAME=VALUE, got 'crop'\n"


def test_a_whole_export_needs_no_patience_with_warnings(tmp_path):
    """With everything known there is nothing to warn of."""
    coords = {f"{name}_{axis}": [0.0] for name in ("position", "row", "column") for axis in "xyz"}
    coords |= {"row_x": [1.0], "column_y": [1.0], "pixel_x": [1.0], "pixel_y": [1.0], "pixel_z": [1.0], "slice": [0]}
    coords |= {"right_ascension": [0.0], "declination": [0.0], "pixel": [1.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for format in ("nifti", "fits", "fastmri", "ismrmrd", "dicom"):
            pytest.importorskip({"nifti": "nibabel", "fits": "astropy", "dicom": "pydicom"}.get(format, "h5py"))
            export(dataset(1, **coords), tmp_path / format, format, progress=False)
