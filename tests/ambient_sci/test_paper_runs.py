"""The runs of the paper and their Fréchet Inception distance, on tiny stand-ins of pictures and of the network."""

import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ambient_sci import TrainConfig, open_store
from ambient_sci.errors import ConfigError, DataError, NotFoundError

ROOT = Path(__file__).parents[2]
Blobs = Callable[..., np.ndarray]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT))
    names = {"paper": "benchmarks.paper", "command": "benchmarks.paper.__main__", "fid": "benchmarks.learning.fid"}
    return SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})


class StandIn(torch.nn.Module):
    """Takes and gives what the Inception graph does; its features are means over colours and over halves."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        assert return_features
        x = images.to(torch.float32) / 255
        height = images.shape[2] // 2
        return torch.cat([x[:, :, :height].mean((2, 3)), x[:, :, height:].mean((2, 3))], 1)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "inception.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


def test_fid(modules: SimpleNamespace, network: Path) -> None:
    """Of a network whose features are known, in batches of any size."""
    fid = modules.fid
    rng = torch.Generator().manual_seed(0)
    a = 0.9 * torch.rand(40, 3, 8, 8, generator=rng) - 0.5
    graph = fid.inception(network)
    assert fid.fid(graph, a.split(16), [a]) == pytest.approx(0, abs=1e-9)
    brighter = a + torch.tensor([0.2, 0.0, -0.4]).reshape(3, 1, 1)
    # features that move and do not change otherwise: the squared distance of their means
    want = 2 * (0.1**2 + 0.2**2)
    assert fid.fid(graph, brighter.split(7), a.split(16)) == pytest.approx(want, rel=0.01)


def test_bytes(modules: SimpleNamespace) -> None:
    """As pictures have them: from -1 to 1, rounded, cut off; grey in three equal channels."""
    values = torch.tensor([-3.0, -1.0, 0.0, 1 / 127.5, 1.0, 2.0]).reshape(1, 1, 2, 3)
    got = modules.fid.as_bytes(values)
    assert got.dtype == torch.uint8
    for channel in range(3):
        assert got[0, channel].flatten().tolist() == [0, 0, 128, 128, 255, 255]
    with pytest.raises(DataError, match="images must be real"):
        modules.fid.as_bytes(torch.zeros(1, 2, 4, 4))


def test_inception_files(modules: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no Inception file at"):
        modules.fid.inception(tmp_path / "none.pt")

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Trap()))
    torch.save({"a": Trap()}, tmp_path / "saved.pt")
    for name in ("pickle.pt", "saved.pt"):
        with pytest.raises(DataError, match="is not a TorchScript file"):
            modules.fid.inception(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.fixture
def folder(tmp_path: Path, blobs: Blobs) -> Path:
    """Pictures in colour and of several sizes, in folders."""
    for k, image in enumerate(blobs(12, size=20)):
        colours = np.stack([image, image**2, 1 - image], -1)
        picture = Image.fromarray((255 * colours).astype(np.uint8))
        path = tmp_path / "pictures" / f"class{k % 2}" / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (picture if k % 3 else picture.resize((30, 24))).save(path)
    return tmp_path / "pictures"


def test_runs_of_the_paper(modules: SimpleNamespace, folder: Path, network: Path, tmp_path: Path, capsys: Any) -> None:
    """All configurations can be read, and one of each data set runs from pictures to its distance."""
    names = modules.paper.CONFIGS
    assert len(names) == 9
    configs = {name: modules.paper.PaperConfig.read(name) for name in names}
    assert {name: round(100 * config.missing) for name, config in configs.items()} == {
        name: int(name.rpartition("-p")[2]) for name in names
    }
    small = ["images=8", "batch=4", "widths=[32]", "blocks=1", "patch=2", "checkpoint=8", "laps=1", "em_steps=2"]
    for name, config in configs.items():
        quick = {**vars(config), "side": 16, "drawn": 6, "steps": 2}
        (tmp_path / f"{name}.json").write_text(json.dumps(quick))
        TrainConfig(store="s", out="o", **config.train)  # none of its options is unknown
        if not name.endswith("p60"):
            continue
        out = tmp_path / name
        arguments = [str(tmp_path / f"{name}.json"), "--images", str(folder), "--out", str(out)]
        options = [text for option in small for text in ("--set", option)]
        options += ["--set", "method=em"] if name.startswith("afhq") else []
        modules.command.main([*arguments, *options, "--inception", str(network)])
        row = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert row["fid"] > 0
        assert row["scans"] == 12
        with np.load(out / "samples.npz") as file:
            assert file["samples"].shape == (6, 3, 16, 16)

    # frozen: the same pixels, of all colours together, and nothing that is learned from has the pictures
    store = open_store(tmp_path / "cifar10-p60" / "scans.zarr")
    assert not store.has_references
    m = store.read(slice(None))
    mask = m.operator.mask
    assert mask.shape == (12, 1, 16, 16)
    assert float(mask.mean()) == pytest.approx(0.4, abs=0.03)
    x = torch.cat(list(modules.paper.pictures(folder, 16)))
    torch.testing.assert_close(m.y, x * mask)
    stamp = (store.path / "zarr.json").stat().st_mtime_ns
    modules.command.main([*arguments, *options])
    assert (store.path / "zarr.json").stat().st_mtime_ns == stamp


def test_mistakes_in_runs_of_the_paper(modules: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no configuration 'cifar': give a file, or one of afhq-p20, "):
        modules.paper.PaperConfig.read("cifar")
    (tmp_path / "bad.json").write_text('{"images": "x"}')
    with pytest.raises(ConfigError, match="is not a configuration of a run"):
        modules.paper.PaperConfig.read(tmp_path / "bad.json")
    with pytest.raises(NotFoundError, match="no pictures"):
        list(modules.paper.pictures(tmp_path, 16))
