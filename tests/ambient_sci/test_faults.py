"""What goes wrong: one line that names it, exit status 2, and nothing half-written in place of something good."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambient_sci import cli, load_prior, reconstruct
from ambient_sci.checkpoint import load_tensors, save_tensors
from ambient_sci.datasets import simulate
from ambient_sci.errors import ConfigError, DataError
from ambient_sci.seeding import stream

resource = pytest.importorskip("resource")

TRAIN = ("--images", 32, "--batch", 16, "--checkpoint", 16, "--widths", 32, "--laps", 0, "--quiet", "--device", "cpu")
QUICK = ("--steps", 2, "--quiet", "--device", "cpu")
MEASURE = ("--coils", 3, "--acceleration", 2, "--calibration", 4, "--quiet")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """``refused("info", path)`` checks that the command ends as a user error should, and returns what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any, status: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert end.value.code == status, said
        assert said.out == "" or "--json" in arguments  # scores are shown, whether or not they can be kept
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("error: " if status == 2 else "interrupted"), said.err
        return said.err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``command("info", path)`` checks that the command ends well."""

    def run(*arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", ["ambient-sci", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code

    return run


@pytest.fixture
def store(store_path: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    shutil.copytree(store_path, tmp_path / "scans.zarr")
    return tmp_path / "scans.zarr"


@pytest.fixture
def images(tmp_path: Path, blobs: Callable[..., np.ndarray]) -> Path:
    np.save(tmp_path / "images.npy", blobs(40))
    return tmp_path / "images.npy"


@pytest.fixture(scope="module")
def shared_run(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ambient_sci import TrainConfig, train

    folder = tmp_path_factory.mktemp("runs") / "run"
    options: dict[str, Any] = {"images": 32, "batch": 16, "checkpoint": 16, "widths": (32,), "laps": 0, "device": "cpu"}
    train(TrainConfig(store=store_path, out=folder, **options), progress=False)
    return folder


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    shutil.copytree(shared_run, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with a hash of its bytes, hidden ones too."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more than so many bytes into any one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def change(path: Path, name: str, value: Any) -> None:
    """Put an array into a store in place of its own."""
    import zarr

    group: Any = zarr.open_group(str(path), use_consolidated=False)
    old = group[name]
    dims, attributes = old.metadata.dimension_names, dict(old.attrs)
    del group[name]
    new = group.create_array(name, shape=value.shape, dtype=value.dtype, dimension_names=dims, attributes=attributes)
    new[:] = value
    consolidate(path)


def consolidate(path: Path) -> None:
    """Tell readers of what was changed."""
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(path), zarr_format=3)


# ------------------------------------------------------------------------------------------------ input


def test_missing_files(refused: Callable[..., str], store: Path, run: Path) -> None:
    for arguments, said in (
        (("simulate", "no.npy", "a.zarr"), "no images at no.npy"),
        (("import", "array", "no.npy", "a.zarr"), "nothing to import at no.npy"),
        (("info", "no.zarr"), "no store at no.zarr"),
        (("train", "no.zarr", "--out", "new"), "no store at no.zarr"),
        (("train", store, "--out", "new", "--config", "no.json"), "no configuration at no.json"),
        (("sample", "no"), "no run at no; `ambient-sci train STORE --out no` makes one"),
        (("reconstruct", "no", store, "--out", "r"), "no run at no"),
        (("reconstruct", run, "no.zarr", "--out", "r"), "no store at no.zarr"),
        (("evaluate", "no.zarr", "--reference", store), "no reconstruction at no.zarr"),
    ):
        before = contents(Path())
        assert said in refused(*arguments)
        assert contents(Path()) == before
        assert not Path("new").exists()


@pytest.mark.parametrize("ending", ["zarr", "h5"])
def test_another_schema_version(ending: str, refused: Callable[..., str], blobs: Any, run: Path) -> None:
    path = Path(f"scans.{ending}")
    simulate(blobs(3), path, acceleration=2, calibration=4, coils=2)
    if ending == "zarr":
        import zarr

        zarr.open_group(str(path), use_consolidated=False).attrs["schema_version"] = 7
    else:
        import h5py

        with h5py.File(path, "a") as file:
            file.attrs["schema_version"] = 7
    for arguments in (("info", path), ("train", path, "--out", "new"), ("reconstruct", run, path, "--out", "r")):
        said = refused(*arguments)
        assert f"{path} has schema version 7, this version of ambient-sci reads 1 and 2" in said
    assert not Path("new").exists()
    assert not Path("r").exists()


def test_nan_in_kspace(refused: Callable[..., str], store: Path, run: Path) -> None:
    import zarr

    measurement: Any = zarr.open_group(str(store), use_consolidated=False)["measurement"]
    values = measurement[17]
    values[1, 3, 5] = np.nan
    measurement[17] = values
    for arguments in (
        ("train", store, "--out", "new", *TRAIN),
        ("train", store, "--out", "new-ambient", "--method", "ambient", *TRAIN),
        ("reconstruct", run, store, "--out", "r", *QUICK),
    ):
        said = refused(*arguments)
        assert f"{store}: measurement of scan 17 must be finite" in said
    assert not Path("r").exists()
    assert not Path("new/checkpoint.safetensors").exists()


def test_nan_before_a_store(refused: Callable[..., str], blobs: Any) -> None:
    values = blobs(3)
    values[2, 4, 4] = np.nan
    np.save("images.npy", values)
    assert "images.npy has NaN or infinite values in image 2" in refused("simulate", "images.npy", "a.zarr")
    kspace = np.ones((2, 3, 8, 8), np.complex64)
    kspace[0, 0, 0, 0] = np.inf
    np.save("kspace.npy", kspace)
    assert "kspace of scan 0 has 1 NaN or infinite values" in refused("import", "array", "kspace.npy", "a.zarr")
    assert not Path("a.zarr").exists()


def test_a_mask_of_the_wrong_size(refused: Callable[..., str], store: Path, run: Path) -> None:
    np.save("kspace.npy", np.ones((3, 16, 16), np.complex64))
    np.save("mask.npy", np.ones((16, 12)))
    said = refused("import", "array", "kspace.npy", "a.zarr", "--mask", "mask.npy")
    assert said.startswith("mask of scan 0 has shape (16, 12); its k-space wants (16, 16)")
    change(store, "operator_mask", np.ones((40, 12), np.float32))
    for arguments in (("info", store), ("train", store, "--out", "new"), ("reconstruct", run, store, "--out", "r")):
        said = refused(*arguments)
        assert f"{store}: operator and measurement do not fit" in said
        assert "operator_mask (40, 12)" in said
    assert not Path("new").exists()


def test_a_store_without_scans(refused: Callable[..., str], store: Path, run: Path) -> None:
    import zarr

    group: Any = zarr.open_group(str(store), use_consolidated=False)
    for name, array in group.arrays():
        change(store, name, array[:0])
    for arguments in (("info", store), ("train", store, "--out", "new"), ("reconstruct", run, store, "--out", "r")):
        assert refused(*arguments) == f"{store} holds no scans; a store needs at least one"


def test_things_that_are_not_stores(refused: Callable[..., str], tmp_path: Path, run: Path) -> None:
    Path("notes.txt").write_text("not a store")
    Path("scans.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    for path in ("notes.txt", "scans.h5", run, tmp_path):
        assert f"{path} is not a store" in refused("info", path)


def test_a_damaged_store(refused: Callable[..., str], store: Path) -> None:
    chunks = [path for path in (store / "measurement").rglob("*") if path.is_file() and path.name != "zarr.json"]
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    said = refused("info", store)
    assert f"{store} is damaged: measurement of scan 0 cannot be read" in said


def test_scans_that_there_are_not(refused: Callable[..., str], store: Path, run: Path) -> None:
    said = refused("reconstruct", run, store, "--out", "r", "--start", 40, *QUICK)
    assert "scans must name at least one of the 40 scans" in said
    assert not Path("r").exists()
    with pytest.raises(DataError, match=r"scans: .* holds 40, counted from 0"):
        reconstruct(run, store, scans=[3, 40], progress=False)


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 1}, "unknown option 'lr'; the options are store, out, method, images"),
        ({"images": 0}, "option 'images': input should be greater than or equal to 1, got 0"),
        ({"images": "many"}, "option 'images': input should be a valid integer"),
        (
            {"method": "magic"},
            "option 'method': input should be 'em', 'ambient', 'l1-edm', 'tv-edm', 'ambient-gan', 'naive' or 'oracle', "
            "got 'magic'",
        ),
        ({"thinning": 1.5}, "option 'thinning': input should be less than or equal to 1, got 1.5"),
        ({"widths": [32, 40]}, "option 'widths.1': input should be a multiple of 32, got 40"),
        ({"widths": []}, "option 'widths'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ([1, 2], "must hold an object of options, got list"),
    ],
)
def test_options_of_a_training(options: Any, said: str, refused: Callable[..., str], store: Path) -> None:
    Path("options.json").write_text(json.dumps(options))
    assert said in refused("train", store, "--out", "new", "--config", "options.json", "--quiet")
    assert not Path("new").exists()


def test_configurations_that_are_none(refused: Callable[..., str], store: Path) -> None:
    Path("options.json").write_text("{images: 3}")
    for path in ("options.json", "."):
        said = refused("train", store, "--out", "new", "--config", path)
        assert said.startswith(f"{path} is not a readable file of JSON: ")


def test_options_of_the_other_commands(refused: Callable[..., str], store: Path, run: Path, images: Path) -> None:
    recon = ("reconstruct", run, store, "--out", "r", *QUICK)
    for arguments, said in (
        ((*recon, "--samples", 1), "samples must be at least 2 for a standard deviation, got 1"),
        ((*recon, "--method", "magic"), "method 'magic' does not go with a prior of method 'em'; use 'auto' or 'mmps'"),
        ((*recon, "--method", "adps"), "method 'adps' does not go with a prior of method 'em'; use 'auto' or 'mmps'"),
        ((*recon, "--solver", "rk4"), "solver must be 'euler', 'heun' or 'multistep', got 'rk4'"),
        ((*recon, "--eta", 2), "eta must be 0 to 1, and 0 with solver 'heun', got 2.0 with 'multistep'"),
        ((*recon, "--solver", "heun"), "eta must be 0 to 1, and 0 with solver 'heun', got 1.0 with 'heun'"),
        ((*recon, "--seed", -1), "Invalid value for '--seed'"),
        ((*recon, "--device", "abacus"), "device 'abacus' cannot be used"),
        ((*recon, "--steps", 0), "Invalid value for '--steps'"),
        (("sample", run, *QUICK, "--seed", -1), "Invalid value for '--seed'"),
        (("sample", run, *QUICK, "--solver", "rk4"), "solver must be 'euler', 'heun' or 'multistep', got 'rk4'"),
        (("simulate", images, "a.zarr", "--operator", "x-ray"), "operator must be one of sense, fourier"),
        (("simulate", images, "a.zarr", "--pattern", "spots"), "pattern must be one of"),
        (("simulate", images, "a.zarr", "--noise", -1), "noise cannot be -1.0"),
        (("simulate", images, "a.zarr", "--seed", -1), "Invalid value for '--seed'"),
        (("simulate", images, "a.zarr", "--start", 90), "holds 40 images, none of which is in"),
        (("simulate", images, "a.zarr", "--size", 0), "size must be"),
        (("simulate", images, "a.zarr", "--quiet"), "acceleration 4.0 leaves 4 of 16 samples"),
        (("demo", "--quick", "--out", "d", "--seed", -1), "Invalid value for '--seed'"),
    ):
        assert said in refused(*arguments), arguments
    assert {path.name for path in Path().iterdir()} <= {"scans.zarr", "run", "images.npy", "d"}


def test_what_the_command_line_itself_refuses(refused: Callable[..., str], store: Path) -> None:
    for arguments, said in (
        (("teach",), "No such command 'teach'. (see `ambient-sci --help`)"),
        (("train",), "Missing argument 'store'. (see `ambient-sci train --help`)"),
        (("train", store), "Missing option '--out'. (see `ambient-sci train --help`)"),
        (("info", store, "--verbose"), "No such option: --verbose"),
        (("sample", "run", "--count", 0), "Invalid value for '--count'"),
        (
            ("train", store, "--out", "r", "--method", "magic"),
            "'em', 'ambient', 'l1-edm', 'tv-edm', 'ambient-gan', 'naive', 'oracle'",
        ),
        (("import", "scanner"), "No such command 'scanner'. (see `ambient-sci import --help`)"),
    ):
        assert said.lower() in refused(*arguments).lower(), arguments


# ------------------------------------------------------------------------------------------------ checkpoints


def uses_of(run: Path, store: Path) -> tuple[tuple[Any, ...], ...]:
    return ("sample", run, *QUICK), ("reconstruct", run, store, "--out", "r", *QUICK)


def test_a_checkpoint_of_another_version(refused: Callable[..., str], store: Path, run: Path) -> None:
    for name in ("prior.safetensors", "checkpoint.safetensors"):
        tensors, header = load_tensors(run / name)
        save_tensors(run / name, tensors, {**header, "version": 7})
    before = contents(run)
    for arguments in uses_of(run, store):
        said = refused(*arguments)
        assert said.startswith(f"{run / 'prior.safetensors'} has checkpoint version 7, this release reads 1: ")
        assert "train again, or use the release that wrote it" in said
    config = json.loads((run / "config.json").read_text())
    said = refused("train", config["store"], "--out", run, "--config", run / "config.json", "--images", 64, "--quiet")
    assert f"{run / 'checkpoint.safetensors'} has checkpoint version 7" in said
    changed = {name for name, digest in contents(run).items() if before[name] != digest}
    assert changed <= {"config.json"}


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint(part: float, refused: Callable[..., str], store: Path, run: Path) -> None:
    for name in ("prior.safetensors", "checkpoint.safetensors"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: int(part * len(whole))])
    for arguments in uses_of(run, store):
        assert f"{run / 'prior.safetensors'} is damaged or not a checkpoint: " in refused(*arguments)
    config = json.loads((run / "config.json").read_text())
    said = refused("train", config["store"], "--out", run, "--config", run / "config.json", "--images", 64, "--quiet")
    assert f"{run / 'checkpoint.safetensors'} is damaged or not a checkpoint: " in said


def test_weights_of_something_else(refused: Callable[..., str], store: Path, run: Path) -> None:
    from safetensors.torch import save_file

    path = run / "prior.safetensors"
    tensors, header = load_tensors(path)
    first = next(iter(tensors))
    cases: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: save_file(tensors, path), "has checkpoint version None, this release reads 1"),
        (lambda: path.write_text("weights") and None, "is damaged or not a checkpoint"),
        (lambda: save_tensors(path, {first: tensors[first]}, header), "does not fit the network"),
        (lambda: save_tensors(path, {**tensors, first: torch.zeros(2)}, header), "does not fit the network"),
        (lambda: save_tensors(path, tensors, {}), "does not fit the network that its options describe: 'config'"),
        (
            lambda: save_tensors(path, tensors, {**header, "config": {**header["config"], "patch": 0}}),
            "option 'patch': input should be greater than or equal to 1, got 0",
        ),
        (lambda: save_tensors(path, tensors, {**header, "config": None}), "does not fit the network"),
        (
            lambda: save_tensors(path, tensors, {k: v for k, v in header.items() if k != "trained_on"}),
            "does not fit the network that its options describe: 'trained_on'",
        ),
        (path.unlink, "no prior.safetensors in"),
    )
    for damage, said in cases:
        damage()
        for arguments in uses_of(run, store):
            assert said in refused(*arguments)


def test_damaged_options_of_a_run(refused: Callable[..., str], store: Path, run: Path) -> None:
    for text in ("", '{"images": 3', "[1]"):
        (run / "config.json").write_text(text)
        assert "the saved options of the run are damaged" in refused("train", store, "--out", run, "--quiet")
        assert (run / "config.json").read_text() == text


def test_a_prior_of_other_images(refused: Callable[..., str], blobs: Any, run: Path) -> None:
    simulate(blobs(3, size=24), "large.zarr", acceleration=2, calibration=4, coils=2)
    simulate(blobs(3), "real.zarr", operator="mask")
    wanted = "the prior is one of complex images of shape (1, 16, 16), the scans are of "
    for path, said in (
        ("large.zarr", "complex images of shape (1, 24, 24)"),
        ("real.zarr", "real images of shape (1, 16, 16)"),
    ):
        assert wanted + said in refused("reconstruct", run, path, "--out", "r", *QUICK)
    assert not Path("r").exists()


def test_another_number_of_coils_is_no_fault(command: Any, blobs: Any, run: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(run.parent)
    simulate(blobs(3), "five.zarr", acceleration=3, calibration=4, coils=5)
    command("reconstruct", run, "five.zarr", "--out", "r", *QUICK)


# ------------------------------------------------------------------------------------------------ evaluation


def test_evaluating_what_cannot_be(
    refused: Callable[..., str], command: Any, store: Path, run: Path, blobs: Any
) -> None:
    command("reconstruct", run, store, "--out", "r", "--stop", 2, *QUICK)
    simulate(blobs(3), "other.zarr", acceleration=2, calibration=4, coils=2)
    assert "made from another store" in refused("evaluate", "r", "--reference", "other.zarr")
    assert f"{store} is not a reconstruction" in refused("evaluate", store, "--reference", store)
    assert "run is not a reconstruction" in refused("evaluate", run, "--reference", store)
    shutil.rmtree(store / "reference")
    assert f"{store} has no references" in refused("evaluate", "r", "--reference", store, "--json", "m.json")
    shutil.rmtree("r/std")
    assert "r is not a reconstruction" in refused("evaluate", "r", "--reference", store)
    assert not Path("m.json").exists()


# ------------------------------------------------------------------------------------------------ output


def test_output_that_exists_is_kept(
    refused: Callable[..., str], command: Any, store: Path, run: Path, images: Path
) -> None:
    command("sample", run, "--count", 1, "--out", "samples", *QUICK)
    command("reconstruct", run, store, "--out", "r", "--stop", 1, *QUICK)
    np.save("kspace.npy", np.ones((3, 16, 16), np.complex64))
    before = contents(Path())
    for arguments, said in (
        (("simulate", images, store, *MEASURE), f"{store} already exists; choose another path or pass --overwrite"),
        (("import", "array", "kspace.npy", store), f"{store} already exists; choose another path or pass --overwrite"),
        (("sample", run, *QUICK), "samples already holds samples; choose another folder or pass --overwrite"),
        (
            ("reconstruct", run, store, "--out", "r", *QUICK),
            "r already exists; choose another path or pass --overwrite",
        ),
    ):
        assert said in refused(*arguments)
        assert contents(Path()) == before


def test_nothing_but_their_own_is_replaced(
    refused: Callable[..., str], command: Any, store: Path, run: Path, images: Path
) -> None:
    command("reconstruct", run, store, "--out", "r", "--stop", 1, *QUICK)
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    Path("file.h5").write_text("years of work")
    np.save("kspace.npy", np.ones((3, 16, 16), np.complex64))
    before = contents(Path())
    own = ("--overwrite",)
    for arguments, said in (
        (("simulate", images, "r", *MEASURE, *own), "r is not an ambient-sci store and is not replaced"),
        (("simulate", images, "thesis", *MEASURE, *own), "thesis is not an ambient-sci store and is not replaced"),
        (("simulate", images, "file.h5", *MEASURE, *own), "file.h5 is not an ambient-sci store and is not replaced"),
        (("import", "array", "kspace.npy", run, *own), "is not an ambient-sci store and is not replaced"),
        (("reconstruct", run, store, "--out", store, *QUICK, *own), "is not a reconstruction and is not replaced"),
        (("reconstruct", run, store, "--out", "thesis", *QUICK, *own), "is not a reconstruction and is not replaced"),
        (("reconstruct", run, store, "--out", "file.h5", *QUICK, *own), "is not a reconstruction and is not replaced"),
        (("train", store, "--out", "thesis", *TRAIN), "thesis exists and is not a run"),
        (("train", store, "--out", store, *TRAIN), "exists and is not a run"),
    ):
        assert said in refused(*arguments)
        assert contents(Path()) == before


def test_a_file_where_a_folder_should_be(
    refused: Callable[..., str], command: Any, store: Path, run: Path, images: Path
) -> None:
    command("reconstruct", run, store, "--out", "r", "--stop", 1, *QUICK)
    Path("file").write_text("years of work")
    before = contents(Path())
    for arguments in (
        ("simulate", images, "file/a.zarr", *MEASURE),
        ("sample", run, "--out", "file", *QUICK),
        ("reconstruct", run, store, "--out", "file/r", "--stop", 1, *QUICK),
        ("evaluate", "r", "--reference", store, "--json", "file/m.json"),
    ):
        assert "file" in refused(*arguments)
        assert contents(Path()) == before


@pytest.fixture(params=["limit", "forbidden"])
def unwritable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """A system that writes no more than a few bytes, or into no new folder; and what is said of it."""
    if request.param == "limit":
        return largest_file(64), "the disk is full"

    @contextlib.contextmanager
    def forbidden() -> Iterator[None]:
        def refuse(path: Any, *_: Any, **__: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "mkdir", refuse)
            yield

    return forbidden(), "no permission"


@pytest.mark.parametrize(
    "what", ["store.zarr", "store.h5", "import", "train", "sample", "reconstruct", "evaluate", "demo"]
)
def test_new_output_that_cannot_be_written(
    what: str,
    unwritable: tuple[Any, str],
    refused: Callable[..., str],
    command: Any,
    store: Path,
    run: Path,
    images: Path,
) -> None:
    command("reconstruct", run, store, "--out", "r", "--stop", 1, *QUICK)
    kspace = np.random.default_rng(0).normal(size=(3, 16, 16)) + 0j
    np.save("kspace.npy", kspace.astype(np.complex64))
    np.save("maps.npy", np.full((3, 16, 16), 3**-0.5, np.complex64))
    arguments: tuple[Any, ...] = {
        "store.zarr": ("simulate", images, "new/a.zarr", *MEASURE),
        "store.h5": ("simulate", images, "new/a.h5", *MEASURE),
        "import": ("import", "array", "kspace.npy", "new/a.zarr", "--maps", "maps.npy", "--noise-std", 1),
        "train": ("train", store, "--out", "new/run", *TRAIN),
        "sample": ("sample", run, "--out", "new/samples", "--count", 1, *QUICK),
        "reconstruct": ("reconstruct", run, store, "--out", "new/r", "--stop", 1, *QUICK),
        "evaluate": ("evaluate", "r", "--reference", store, "--json", "new/m.json"),
        "demo": ("demo", "--quick", "--quiet", "--out", "new/demo"),
    }[what]
    refuse, said = unwritable
    before = contents(Path())
    with refuse:
        message = refused(*arguments)
    assert said in message
    assert "new" in message
    assert "choose another path" in message
    assert contents(Path()) == before


def test_a_full_disk_leaves_the_old_store_and_reconstruction(
    refused: Callable[..., str], command: Any, store: Path, run: Path, images: Path
) -> None:
    command("reconstruct", run, store, "--out", "r", "--stop", 2, *QUICK)
    command("simulate", images, "a.h5", *MEASURE)
    command("sample", run, "--out", "samples", "--count", 1, *QUICK)
    before = contents(Path())
    with largest_file(3000):  # enough for the metadata
        for arguments in (
            ("simulate", images, store, *MEASURE, "--seed", 9, "--overwrite"),
            ("simulate", images, "a.h5", *MEASURE, "--seed", 9, "--overwrite"),
            ("reconstruct", run, store, "--out", "r", "--samples", 6, *QUICK, "--overwrite"),
            ("sample", run, "--out", "samples", "--count", 4, *QUICK, "--overwrite"),
        ):
            assert "the disk is full" in refused(*arguments)
            assert contents(Path()) == before


def test_a_full_disk_at_a_checkpoint(refused: Callable[..., str], command: Any, store: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(store.parent)
    command("train", store, "--out", "run", *TRAIN)
    before = contents(Path("run"))
    longer = ("train", store, "--out", "run", *TRAIN, "--images", 64)
    with largest_file(100_000):
        assert "run/checkpoint.safetensors: the disk is full" in refused(*longer)
    after = contents(Path("run"))
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in ("checkpoint.safetensors", "prior.safetensors"))
    command(*longer)
    assert load_prior("run").images == 64


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["samples/samples.npy", "samples/samples.png", "m.json", "new/config.json"])
def test_no_space_left(name: str, refused: Callable[..., str], command: Any, store: Path, run: Path) -> None:
    """The system's own word for it, whoever writes."""
    command("reconstruct", run, store, "--out", "r", "--stop", 1, *QUICK)
    arguments: tuple[Any, ...] = {
        "samples": ("sample", run, "--count", 1, *QUICK),
        "m.json": ("evaluate", "r", "--reference", store, "--json", "m.json"),
        "new": ("train", store, "--out", "new", *TRAIN),
    }[Path(name).parts[0]]
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).with_name(f".{Path(name).name}.partial").symlink_to("/dev/full")
    if arguments[0] == "train":  # a hidden file is something that is not a run
        Path("new/config.json").write_bytes((run / "config.json").read_bytes())
        config = json.loads(Path("new/config.json").read_text())
        arguments = ("train", config["store"], "--out", "new", "--config", "new/config.json", "--quiet")
    said = refused(*arguments)
    assert said == f"cannot write {name}: the disk is full; free space or choose another path"
    assert Path(name).exists() == (arguments[0] == "train")
    assert not [path for path in Path(name).parent.iterdir() if path.name.endswith(".partial")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(refused: Callable[..., str], store: Path, run: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    for arguments in (
        ("train", store, "--out", "locked/run", *TRAIN),
        ("sample", run, "--out", "locked", *QUICK),
        ("reconstruct", run, store, "--out", "locked/r", "--stop", 1, *QUICK),
    ):
        assert "no permission" in refused(*arguments)


# ------------------------------------------------------------------------------------------------ a key press


class Interrupts:
    """A function that is interrupted at one of its calls."""

    def __init__(self, function: Callable[..., Any], call: int) -> None:
        self.function, self.left = function, call

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*arguments, **options)


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    import importlib

    module, _, function = name.rpartition(".")
    home = importlib.import_module(module)
    monkeypatch.setattr(home, function, Interrupts(getattr(home, function), call))


@pytest.mark.parametrize("ending", ["zarr", "h5"])
def test_an_interrupted_simulation_leaves_nothing(
    ending: str, refused: Callable[..., str], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(Path())
    home = sys.modules["ambient_sci.datasets.simulate"]
    monkeypatch.setattr(home, "randn_like", Interrupts(home.randn_like, 25))
    refused("simulate", images, f"a.{ending}", *MEASURE, status=130)
    assert contents(Path()) == before


def test_an_interrupted_reconstruction_goes_on(
    refused: Callable[..., str], command: Any, store: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_at(scan: int, out: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            home = sys.modules["ambient_sci.reconstruction.pieces"]
            patch.setattr(home, "draw_posterior", Interrupts(home.draw_posterior, scan))
            refused("reconstruct", run, store, "--out", out, "--batch", 8, *QUICK, "--overwrite", status=130)

    command("reconstruct", run, store, "--out", "old", "--stop", 2, *QUICK)
    before = contents(Path())
    for out in ("old", "new"):
        interrupted_at(1, out)
        assert contents(Path()) == before  # nothing was finished
        interrupted_at(3, out)
        assert {path: what for path, what in contents(Path()).items() if f".{out}.partial" not in str(path)} == before
        command("reconstruct", run, store, "--out", out, "--batch", 8, *QUICK, "--overwrite")
        assert not [path for path in Path().iterdir() if path.name.startswith(".")]
        before = contents(Path())


def test_interrupted_samples_leave_nothing(refused: Callable[..., str], run: Path, monkeypatch: Any) -> None:
    interrupted(monkeypatch, "ambient_sci.plot.samples_grid", 1)
    refused("sample", run, "--count", 1, *QUICK, status=130)
    assert not [path for path in Path("samples").iterdir() if path.name.startswith(".")]


def test_an_interrupted_training_leaves_its_last_checkpoint(
    refused: Callable[..., str], command: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = ("train", store, *TRAIN, "--images", 96)
    command(*longer, "--out", "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, "ambient_sci.methods.em.denoising_loss", 4)
        said = refused(*longer, "--out", "run", status=130)
    assert said == "interrupted; the same command resumes a training, an import or a reconstruction"
    files = {"config.json", "checkpoint.safetensors", "prior.safetensors", "log.jsonl", "samples.png", "README.md"}
    assert set(os.listdir("run")) == files
    assert load_prior("run").images == 48
    command(*longer, "--out", "run")
    first, second = (load_tensors(Path(run) / "checkpoint.safetensors")[0] for run in ("whole", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------ what lies beneath


def test_streams_do_not_run_into_one_another() -> None:
    """A counter of zero at the end makes another stream, and so does a large seed."""
    names = [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 1), (1, 0), (0, 1, 0), (2**32,), (0, 0, 1), (2**32, 1)]
    seeds = {stream(*name).initial_seed() for name in names}
    assert len(seeds) == len(names)
    with pytest.raises(ConfigError, match="seed must be at least 0, got -1"):
        stream(-1, 2)
