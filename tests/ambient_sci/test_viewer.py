"""The viewer's file: that it holds the images, that nothing gets in or out, and when it is refused."""

import base64
import hashlib
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from ambient_sci import cli, open_store
from ambient_sci.datasets import simulate
from ambient_sci.errors import ConfigError, DataError, OutputError
from ambient_sci.reconstruction.output import TITLE
from ambient_sci.viewer import write_viewer

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


class Page(HTMLParser):
    """Tag, attributes and text of every element in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[list[Any]] = []
        self.inside = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append([tag, dict(attrs), ""])
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][2] += data

    def all(self, tag: str) -> list[tuple[dict[str, str], str]]:
        return [(attrs, text) for name, attrs, text in self.found if name == tag]

    def json(self, name: str) -> Any:
        (text,) = (text for attrs, text in self.all("script") if attrs.get("id") == name)
        return json.loads(text)


def decoded(packed: dict[str, Any], shape: list[int]) -> np.ndarray:
    """Values of an array, as the page takes them: 16 bits, least byte first, 65535 for none."""
    codes = np.frombuffer(base64.b64decode(packed["codes"]), "<u2").reshape(-1, *shape)
    return np.where(codes == 65535, np.nan, packed["offset"] + packed["scale"] * codes.astype(np.float64))


def volumes(**changes: Any) -> xarray.Dataset:
    """Two real scans with an axis z and no samples, in Jy/pixel."""
    rng = np.random.default_rng(1)
    mean = rng.standard_normal((2, 2, 3, 5, 8)).astype(np.float32)
    dims = ("scan", "channel", "z", "y", "x")
    return xarray.Dataset(
        {
            "mean": (dims, mean, {"units": "Jy/pixel"}),
            "std": (dims, np.abs(rng.standard_normal(mean.shape)).astype(np.float32)),
        }
        | changes,
        {"scan": [4, 7]},
        {"title": TITLE},
    )


def test_holds_the_images(posterior: xarray.Dataset, store_path: Path, tmp_path: Path) -> None:
    page = Page(write_viewer(tmp_path / "view.html", posterior, open_store(store_path), count=4))
    assert "4 of 9 scans, chosen evenly · 6 posterior samples each" in page.source
    assert [scan["label"] for scan in page.json("about")["scans"]] == [
        f"Scan {n} · subject {n // 3}" for n in (0, 3, 5, 8)
    ]
    truth = open_store(store_path).references(np.arange(9)).numpy()
    for number, scan in enumerate((0, 3, 5, 8)):
        block = page.json(f"scan-{number}")
        assert block["shape"] == [1, 1, 16, 16]
        one = {str(name): value.to_numpy() for name, value in posterior.isel(scan=scan).items()}
        wanted = {name: one[name][None] for name in ("std", "lower", "upper")} | {"quantile": one["quantile"]}
        for name, values in (("mean", one["mean"][None]), ("sample", one["sample"]), ("truth", truth[scan][None])):
            wanted |= {name: np.abs(values), f"{name}_phase": np.angle(values)}
        wanted["error"] = np.abs(one["mean"] - truth[scan])[None]
        wanted["z"] = (np.abs(one["mean"]) - np.abs(truth[scan]))[None] / (one["std"] / np.sqrt(2))
        if not np.iscomplexobj(truth):
            del wanted["truth_phase"]
        assert set(block["arrays"]) == set(wanted)
        for name, values in wanted.items():
            found = decoded(block["arrays"][name], block["shape"])
            values = values.astype(np.float64)[:, :, None]
            # what the page says of itself: within 0.0008% of the range; the last term is float32's
            allowed = 0.000008 * np.ptp(values) + 1e-6 * np.abs(values).max()
            assert np.abs(found - values).max() <= allowed, name


def test_codes_are_as_near_as_they_can_be(tmp_path: Path) -> None:
    values = volumes()
    values["mean"][0, 1, 2, 3, 4:] = [np.nan, np.inf, -np.inf, 1e6]
    values["std"][1] = 0.25
    page = Page(write_viewer(tmp_path / "view.html", values))
    assert "samples were not kept" in page.source
    for number in range(2):
        block = page.json(f"scan-{number}")
        assert block["shape"] == [2, 3, 5, 8]
        assert set(block["arrays"]) == {"mean", "std"}
        for name, packed in block["arrays"].items():
            known = values[name][number].to_numpy().astype(np.float64)
            known = np.where(np.isfinite(known), known, np.nan)
            found = decoded(packed, block["shape"])[0]
            np.testing.assert_array_equal(np.isnan(found), np.isnan(known))
            step = (np.nanmax(known) - np.nanmin(known)) / 65534
            assert packed["scale"] == pytest.approx(step)
            assert np.nanmax(np.abs(found - known)) <= step / 2 * (1 + 1e-9)
            assert np.nanmin(found) == np.nanmin(known)
    assert page.json("about")["units"] == "Jy/pixel"


def test_scales_suit_the_images(posterior: xarray.Dataset, store_path: Path, tmp_path: Path) -> None:
    page = Page(write_viewer(tmp_path / "view.html", posterior, open_store(store_path), count=1))
    windows, scan = page.json("scan-0")["windows"], posterior.isel(scan=0)
    low, high = windows["image"]
    assert low == 0
    assert 0.8 * float(np.abs(scan["mean"]).max()) < high <= 1.1 * float(np.abs(scan["mean"]).max())
    assert windows["spread"][1] > np.percentile(scan["std"], 99)
    assert windows["z"] == [-3, 3]
    assert windows["interval"][1] == pytest.approx(np.percentile(scan["upper"] - scan["lower"], 99.8))
    write_viewer(tmp_path / "view.html", volumes())
    low, high = Page(tmp_path / "view.html").json("scan-0")["windows"]["image"]
    assert low < -1
    assert high > 1


def test_nothing_is_loaded_and_only_its_own_script_runs(posterior: xarray.Dataset, tmp_path: Path) -> None:
    path = write_viewer(tmp_path / "view.html", posterior, count=2)
    page = Page(path)
    assert [other.name for other in tmp_path.iterdir()] == ["view.html"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    assert not re.search(r"http(?!-equiv)|url\(|@import|//[a-z]+\.", page.source)
    used = [attrs[name] for _, attrs, _ in page.found for name in ("src", "href") if name in attrs]
    assert used == ["data:,"]
    assert not [attrs for _, attrs, _ in page.found if any(name.startswith("on") or name == "style" for name in attrs)]
    (policy,) = (attrs["content"] for attrs, _ in page.all("meta") if "http-equiv" in attrs)
    (script,) = (text for attrs, text in page.all("script") if "type" not in attrs)
    ((_, style),) = page.all("style")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{hashes[0]}'",
        f"style-src 'sha256-{hashes[1]}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_text_stays_text(posterior: xarray.Dataset, tmp_path: Path) -> None:
    evil = posterior.assign_coords(subject=("scan", [f"{EVIL}{n}" for n in range(9)])).assign_attrs({EVIL: EVIL})
    evil["mean"].attrs["units"] = EVIL
    page = Page(write_viewer(tmp_path / "view.html", evil, count=2, title=EVIL))
    plain = Page(write_viewer(tmp_path / "plain.html", posterior, count=2))
    # the same elements, and a row of provenance more
    assert len(page.found) == len(plain.found) + 3
    assert not page.all("img")
    assert page.all("title")[0][1] == page.all("h1")[0][1] == EVIL
    about = page.json("about")
    assert about["units"] == EVIL
    assert about["scans"][1]["label"] == f"Scan 8 · subject {EVIL}8"
    posterior["mean"].attrs["units"] = "arbitrary"


def test_the_same_gives_the_same_bytes(posterior: xarray.Dataset, store_path: Path, tmp_path: Path) -> None:
    store = open_store(store_path)
    one, other = (write_viewer(tmp_path / name, posterior, store, count=2).read_bytes() for name in ("a", "b"))
    assert one == other
    assert write_viewer(tmp_path / "b", posterior, store, count=3).read_bytes() != one


def test_as_many_scans_as_fit(posterior: xarray.Dataset, store_path: Path, tmp_path: Path) -> None:
    store = open_store(store_path)
    page = Page(write_viewer(tmp_path / "view.html", posterior, store, count=2, samples=4))
    block = page.json("scan-0")
    size = sum(len(packed["codes"]) for packed in block["arrays"].values()) / 1e6
    assert "4 of 6 posterior samples each" in page.source
    page = Page(write_viewer(tmp_path / "view.html", posterior, store, samples=4, limit=3.01 * size))
    assert f"3 of 9 scans, chosen evenly (more would exceed {3.01 * size:g} MB)" in page.source
    assert [scan["label"][:6] for scan in page.json("about")["scans"]] == ["Scan 0", "Scan 4", "Scan 8"]
    with pytest.raises(DataError, match=r"one scan take 0\.0\d+ MB, over the limit .* fewer than 4 samples"):
        write_viewer(tmp_path / "view.html", posterior, store, samples=4, limit=0.95 * size)
    page = Page(write_viewer(tmp_path / "view.html", posterior, samples=0))
    assert not [panel for panel in page.json("about")["panels"] if panel["array"] == "sample"]


def test_scans_of_several_sizes(tmp_path: Path) -> None:
    small = volumes().isel(x=slice(4)).assign_coords(scan=[1, 2])
    tree = xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=small.attrs), "size_0": volumes(), "size_1": small})
    page = Page(write_viewer(tmp_path / "view.html", tree, count=3))
    assert "3 of 4 scans" in page.source
    assert [page.json(f"scan-{k}")["shape"][-1] for k in range(3)] == [8, 4, 4]
    assert [scan["label"] for scan in page.json("about")["scans"]] == ["Scan 4", "Scan 1", "Scan 2"]


def test_mistakes_are_named(posterior: xarray.Dataset, blobs: Any, tmp_path: Path) -> None:
    path = tmp_path / "view.html"
    for wrong in ({"count": 0}, {"limit": 0}, {"samples": -1}):
        with pytest.raises(ConfigError, match="must be above 0"):
            write_viewer(path, posterior, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds no std"):
        write_viewer(path, posterior.drop_vars("std"))
    with pytest.raises(DataError, match=r"mean must be \(scan, channel, \[z,\] y, x\)"):
        write_viewer(path, posterior.isel(channel=0))
    other = simulate(blobs(3), tmp_path / "other.zarr", operator="mask", progress=False)
    with pytest.raises(DataError, match="another store"):
        write_viewer(path, posterior, other)
    cut = posterior.isel(x=slice(8)).assign_attrs(store=other.fingerprint)
    with pytest.raises(DataError, match="must have it too"):
        write_viewer(path, cut.isel(scan=slice(2)), other)
    assert not path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_viewer(tmp_path / "file" / "view.html", posterior)


def test_a_failed_write_leaves_the_old_page(
    posterior: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_viewer(tmp_path / "view.html", posterior, count=1)
    before = path.read_bytes()

    def full(*args: Any, **more: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_viewer(path, posterior, count=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_command(
    posterior: xarray.Dataset,
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    posterior.to_zarr(tmp_path / "recon.zarr", zarr_format=3, consolidated=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["ambient-sci", "view", "recon.zarr", *arguments, "--quiet"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    status, said = run("--reference", str(store_path), "--count", "2", "--title", "Phantoms")
    assert status == 0
    assert re.fullmatch(r"wrote view\.html: 0\.\d MB\n", said)
    assert (tmp_path / "view.html").read_bytes() == write_viewer(
        tmp_path / "again.html", posterior, open_store(store_path), count=2, title="Phantoms"
    ).read_bytes()
    assert run() == (2, "error: view.html already exists; choose another path or pass --overwrite\n")
    assert run("--overwrite", "--limit", "0.001")[0] == 2
