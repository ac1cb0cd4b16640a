"""``edp-fx report`` on a real run, finished and not, and on directories that hold none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from edp_fx.cli import main
from edp_fx.report.run_data import read_run
from edp_fx.report.run_page import run_page
from edp_fx.summary import comparison_rows
from tests.helpers.chromium import chromium


def tiny(num_classes: int = 10, in_chans: int = 1) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [nn.Conv2d(in_chans, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)]
    return nn.Sequential(*layers), (torch.randn(2, in_chans, 8, 8),)


def run(*argv: object) -> int | str:
    """Exit status of ``edp-fx ARGV``."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, argv)])
    return ended.value.code or 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--data", "digits", "--img-size", "8", "--batch-size", "128", "--target", "onnx"]
    assert run("compress", f"{__name__}:tiny", *options, "--macs", "0.5", "--epochs", "2", "--out", out) == 0
    assert run("report", out) == 0
    return out


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A run killed while it wrote a line."""
    text = (finished / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 99, "lo')
    return tmp_path


def test_page_and_plots_are_written(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    report = json.loads((finished / "report.json").read_text())
    for row in comparison_rows(report):
        for cell in row:
            assert cell in page
    for layer in report["layers"]:
        assert f">{layer['name']}<" in page
    for entry in report["refused"]:
        assert entry["reason"].partition(" (")[0] in page
    for name in ("curves.png", "layers.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert not list(finished.glob(".*.part"))


def test_macs_of_the_layers_add_up_to_those_of_the_report(finished: Path) -> None:
    data = read_run(finished)
    for place, column in enumerate(("dense", "compressed")):
        assert sum(layer["macs"][place] for layer in data["layers"]) == data["report"][column]["macs"]
    assert all(after <= before for before, after in (layer["macs"] for layer in data["layers"]))


def test_curves_are_those_of_the_run(finished: Path) -> None:
    data = read_run(finished)
    assert data["metric"] == "macs"
    assert data["target"] == 0.5
    for part in ("compressed", "dense"):
        loss = data[part]["loss"]
        assert loss["step"] == sorted(set(loss["step"]))
        assert len(loss["smooth"]) == len(loss["loss"]) == len(loss["step"])
        assert [one["epoch"] for one in data[part]["epochs"]] == [1, 2]
    assert data["compressed"]["loss"]["cost"][-1] == pytest.approx(data["report"]["macs_ratio"])


def test_long_runs_are_thinned_out(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 2.0, "macs": 1.0}) for step in range(1, 10_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    loss = read_run(tmp_path)["compressed"]["loss"]
    assert len(loss["step"]) < 4000
    assert (loss["step"][0], loss["step"][-1]) == (1, 10_000)
    assert loss["smooth"] == pytest.approx([2.0] * len(loss["step"]))


def test_a_run_that_still_goes_has_a_page(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", unfinished) == 0
    assert "not finished, 2 epochs recorded" in capsys.readouterr().out
    page = (unfinished / "report.html").read_text()
    assert "not finished" in page
    assert "What was decided when" in page


def test_json_is_what_the_page_shows(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert run("report", finished, "--json", path) == 0
    assert json.loads(path.read_text()) == json.loads(json.dumps(read_run(finished)))


def test_damage_is_one_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(directory: Path) -> str:
        assert run("report", directory) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "no such directory" in said(tmp_path / "missing")
    assert "neither report.json nor metrics.jsonl" in said(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\nrubbish\n{"step": 3, "loss": 2}\n')
    assert "line 2 is damaged" in said(tmp_path)
    shutil.copy(finished / "metrics.jsonl", tmp_path)
    (tmp_path / "report.json").write_text("{}")
    assert "report.json: cannot be read" in said(tmp_path)


def test_a_network_that_does_not_load_costs_only_its_column(finished: Path, tmp_path: Path) -> None:
    for name in ("report.json", "metrics.jsonl", "recipe.json"):
        shutil.copy(finished / name, tmp_path)
    assert {tuple(layer["macs"]) for layer in read_run(tmp_path)["layers"]} == {(None, None)}
    assert "MACs before" in run_page(read_run(tmp_path), "x")


def test_names_are_data(finished: Path) -> None:
    data = read_run(finished)
    data["report"]["model"] = "<script>alert(1)</script>"
    data["report"]["refused"] = [{"node": "<b>", "reason": "</script><i>"}]
    data["events"] = [{"event": "</script>", "step": 1}]
    page = run_page(data, "x")
    assert "<script>alert" not in page
    assert "</script><i>" not in page
    assert "<b>" not in page


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 500])
def test_page_in_a_browser(finished: Path, width: int) -> None:
    with chromium(width, 900) as driver:
        driver.get((finished / "report.html").as_uri())
        assert len(driver.find_elements("css selector", ".chart canvas")) == 3
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        layers = "table[data-sort] tbody tr td:first-child"
        before = [cell.text for cell in driver.find_elements("css selector", layers)]
        head = driver.find_element("css selector", "table[data-sort] th:nth-child(7) button")
        driver.execute_script("arguments[0].click()", head)
        after = [cell.text for cell in driver.find_elements("css selector", layers)]
        costs = {layer["name"]: layer["macs"][1] for layer in read_run(finished)["layers"]}
        assert sorted(before) == sorted(after)
        assert [costs[name] for name in after] == sorted(costs.values(), reverse=True)
        assert driver.get_log("browser") == []
