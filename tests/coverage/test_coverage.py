"""The coverage command, and every family of timm through the front end and the insertion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edp_fx.cli import main
from edp_fx.coverage.catalog import Entry, choose, smallest, timm_entries, torchvision_entries
from edp_fx.coverage.runner import run_stages, sweep
from edp_fx.coverage.stages import STAGES
from edp_fx.coverage.table import failures, markdown, summary
from edp_fx.errors import EdpError

# Families whose smallest model is too slow for every run of the tests; docs/coverage.md has them.
TOO_SLOW = {
    "byoanet": "local attention at 256 pixels",
    "deepseek_vit": "412 million parameters",
    "gemma4_vit": "167 million parameters",
    "nasnet": "89 million parameters in 1,500 layers",
    "pnasnet": "86 million parameters in 1,300 layers",
    "qwen3_vit": "87 million parameters",
    "vgg": "133 million parameters, most in one layer",
}
FAMILIES = [entry for entry in smallest(timm_entries()) if entry.family not in TOO_SLOW]
RECORDED = {
    row["model"]: row
    for row in map(json.loads, (Path(__file__).parents[2] / "docs" / "coverage.jsonl").read_text().splitlines())
}


def stages_of(entry: Entry, names: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"model": entry.name, "family": entry.family, "params": None}
    run_stages(entry, names, lambda name, result: record.update({name: result}))
    return record


def command(*arguments: str) -> str:
    """Run ``edp-fx coverage`` as a user does: it forks, which a process that has run autograd may not."""
    done = subprocess.run(
        [sys.executable, "-m", "edp_fx", "coverage", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_command_writes_and_resumes(tmp_path: Path) -> None:
    models = ["test_resnet", "test_convnext"]
    command(models[0], "--stages", "trace,insert", "--out", str(tmp_path))
    with (tmp_path / "coverage.jsonl").open("a") as file:
        file.write('{"model": "torn')
    said = command(*models, "--stages", "trace,insert", "--out", str(tmp_path), "--jobs", "2")
    lines = [json.loads(line) for line in (tmp_path / "coverage.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == models
    for line in lines:
        assert line["trace"]["ok"], line
        assert line["insert"]["ok"], line
        assert line["insert"]["max_rel_diff"] <= 1e-5
        assert {"family", "params", "build"} <= set(line)
    text = (tmp_path / "coverage.md").read_text() + (tmp_path / "coverage-models.md").read_text()
    assert "| test_convnext | convnext |" in text
    assert "recorded" in said
    command(models[1], "--stages", "trace,train_step,insert", "--out", str(tmp_path))  # one row grows, the other stays
    (tmp_path / "coverage.md").unlink()
    main_exits(["coverage", "--out", str(tmp_path)])  # the report alone
    rows = {r["model"]: r for r in map(json.loads, (tmp_path / "coverage.jsonl").read_text().splitlines())}
    assert [("train_step" in rows[model]) for model in models] == [False, True]
    assert "| models | 2 |" in (tmp_path / "coverage.md").read_text()


def main_exits(arguments: list[str], code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert (stop.value.code or 0) == code


def test_a_model_over_its_time_is_stopped_and_named() -> None:
    (record,) = sweep([Entry("resnet50", "resnet")], ["trace"], timeout=0.01)
    assert not record["build"]["ok"]
    assert "more than" in record["build"]["reason"]
    assert record["trace"]["reason"] == "not reached"
    assert failures([record]) == [("resnet50", "build", record["build"]["reason"])]
    assert "more than" in markdown([record])


def test_a_process_that_dies_says_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "trace", lambda subject: os.kill(os.getpid(), signal.SIGABRT))
    (record,) = sweep([Entry("test_resnet", "resnet")], ["trace", "insert"])
    assert failures([record]) == [("test_resnet", "trace", "the process died by SIGABRT")]


def test_a_stage_that_fails_is_a_record_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Any) -> dict[str, Any]:
        raise RuntimeError("nothing doing")

    monkeypatch.setitem(STAGES, "insert", broken)
    record = stages_of(Entry("test_resnet", "resnet"), ["trace", "insert"])
    assert record["trace"]["ok"]
    assert record["insert"]["reason"] == "RuntimeError: nothing doing"
    assert ("stage insert", "0 of 1 (0.0%)") in summary([record])


def test_the_catalogue() -> None:
    entries = timm_entries()
    assert len({entry.family for entry in entries}) >= 95
    assert sum(entry.params > 0 for entry in entries) > 0.95 * len(entries)
    assert len(smallest(entries)) == len({entry.family for entry in entries})
    assert {"torchvision.classification", "torchvision.segmentation", "torchvision.detection"} == {
        entry.family for entry in torchvision_entries()
    }
    assert [entry.name for entry in choose(pattern="test_vit?")] == ["test_vit2", "test_vit3", "test_vit4"]
    everything = choose(families="all")
    assert {entry.name for entry in smallest(entries)} <= {entry.name for entry in everything}
    for wrong in ({}, {"families": "some"}, {"pattern": "no such thing"}):
        with pytest.raises(EdpError):
            choose(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.family)
def test_family(entry: Any) -> None:
    record = stages_of(entry, ["trace", "insert", "analyze"])
    assert not failures([record])
    trace, insert = record["trace"], record["insert"]
    assert trace["visible"] == trace["layers"] > 0
    assert not trace["opaque"]
    assert insert["layers"] > 0
    for share in ("prunable_share", "exact_share"):
        assert record["analyze"][share] >= RECORDED[entry.name]["analyze"][share] - 1e-9, share
