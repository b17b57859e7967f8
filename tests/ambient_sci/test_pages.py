"""Pages of runs, validations and audits: what they say, that nothing leaves them, and what is recognised."""

import json
import re
import shutil
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ambient_sci import cli, load_prior
from ambient_sci.audit import PriorAudit
from ambient_sci.errors import ConfigError, NotFoundError, StoreError
from ambient_sci.evaluate.held_out import PriorValidation
from ambient_sci.viewer import view, write_audit, write_validation
from ambient_sci.viewer.recognise import kind_of


def text_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"https?:|url\(|@import| style=", text)
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).replace("nance", "")
    return unescape(re.sub(r"<[^>]+>", " ", text.partition("</style>")[2]))


def test_a_validation(validation: PriorValidation, tmp_path: Path) -> None:
    validation.save(tmp_path / "out")
    page = view(tmp_path / "out", tmp_path / "page.html")
    text = text_of(page)
    assert f"✗ Not passed:  {validation.verdict}" in text
    assert page.read_bytes() == write_validation(tmp_path / "again.html", validation).read_bytes()
    source = page.read_text()
    assert source.count('class="chart"') == 4
    scans = validation.dataset["scan"].to_numpy()
    for scan, surprise in zip(scans, validation.dataset["surprise"].sel(band="all").to_numpy(), strict=True):
        assert (
            f"<title>scan {scan}: scan {scan}, nats per value beyond the draws&#x27; {surprise:.4g}</title>" in source
        )
    assert "<i>t</i>" not in source
    flagged = source.partition('aria-label="Scans not explained"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(\d+)<', flagged) == ["12"]


def test_an_audit_beside_another(audit: PriorAudit, tmp_path: Path) -> None:
    audit.save(tmp_path / "out")
    audit.save(tmp_path / "out" / "compared")
    page = view(tmp_path / "out" / "audit.json", tmp_path / "page.html", title="My audit")
    text, source = text_of(page), page.read_text()
    assert "My audit" in text
    assert audit.verdict in text
    assert source.count('class="chart"') == 3
    assert "images of the compared prior: reference model (denoising)" in text
    assert len(re.findall('alt="Image [0-9] of the prior"', source)) == len(audit.pair_images)
    assert re.search(r"image 1 · scan 31 *similarity 0\.\d\d, p 1e-09, *near-copy", text)
    copies = source.partition('aria-label="Near-copies by scan"')[2].partition("</table>")[0]
    assert re.findall("<t[hd][^>]*>([^<]*)</t[hd]>", copies)[3:] == ["31", "2 images", "1, 3"]
    attack = audit.membership.threshold
    assert f"{attack.auc_interval[0]:.2f}–{attack.auc_interval[1]:.2f}" in text
    alone = write_audit(tmp_path / "alone.html", audit).read_text()
    assert "compared prior" not in alone


def test_a_run(run_path: Path, validation: PriorValidation, tmp_path: Path) -> None:
    run = shutil.copytree(run_path, tmp_path / "run")
    prior = load_prior(run, "cpu")
    validation.dataset.attrs["prior"] = prior.fingerprint()
    validation.save(run / "validation")
    text = text_of(view(run, tmp_path / "run.html"))
    assert f"Validation.  {validation.verdict}" in text
    assert f"Length.  {prior.images:,} of {prior.images:,} images shown" in text
    for said in (prior.fingerprint(), prior.trained_on["fingerprint"], "Not a medical device.", prior.config.method):
        assert said in text
    assert str(run_path.parent) not in text
    assert str(prior.config.store.parent) not in text
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert f"{log[0]['loss']:.4g} at first, {log[-1]['loss']:.4g} at last" in text
    validation.dataset.attrs["prior"] = "another"
    validation.save(run / "validation", overwrite=True)
    (run / "README.md").write_text("# Mine")
    (run / "log.jsonl").unlink()
    text = text_of(view(run, tmp_path / "run.html"))
    assert "Validation. " not in text  # of another prior
    assert "The run has no log." in text
    assert prior.trained_on["fingerprint"] in text


def test_what_is_recognised(validation: PriorValidation, audit: PriorAudit, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at"):
        kind_of(tmp_path / "nowhere")
    validation.save(tmp_path)
    assert kind_of(tmp_path) == "validation"
    audit.save(tmp_path)
    with pytest.raises(ConfigError, match="holds a validation and an audit: name one file"):
        kind_of(tmp_path)
    assert kind_of(tmp_path / "validation.json") == "validation"
    with pytest.raises(ConfigError, match="count can be given for a reconstruction only"):
        view(tmp_path / "audit.json", tmp_path / "page.html", count=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is not a reconstruction"):
        view(tmp_path / "empty", tmp_path / "page.html")


def test_the_command(
    validation: PriorValidation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validation.save(tmp_path / "out")

    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ambient-sci", "view", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    page = tmp_path / "page.html"
    assert run(tmp_path / "out", "--out", page) == (0, f"wrote {page}: 0.0 MB\n")
    assert "already exists" in run(tmp_path / "out", "--out", page)[1]
    status, said = run(tmp_path / "out", "--out", page, "--overwrite", "--samples", 2)
    assert (status, "samples can be given for a reconstruction only" in said) == (2, True)
