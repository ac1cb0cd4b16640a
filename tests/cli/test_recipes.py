"""The recipes of the program: each is valid, each is listed, and each makes the run it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from edp_fx.cli import main
from edp_fx.errors import EdpError
from edp_fx.job import Shipped, find_recipe, read_plan, shipped

RECIPES = {recipe.name: recipe for recipe in shipped()}
GIVEN = {"model": {"spec": "test_resnet"}, "data": {"spec": "digits"}}


def run(*argv: object) -> int | str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, argv)])
    return ended.value.code or 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_a_run_that_is_checked_whole(recipe: Shipped) -> None:
    told = yaml.safe_load(recipe.path.read_text())
    given: dict[str, dict[str, Any]] = {name: dict(values) for name, values in GIVEN.items() if name not in told}
    assert ("MODEL" in recipe.needs) == ("model" in given)
    assert ("--data" in recipe.needs) == ("data" in given)
    if "--weights" in recipe.needs:
        given["model"] = {**given["model"], "pretrained": True}
    plan = read_plan(recipe.path, given)
    plan.check()
    for section in ("recipe", "lower"):
        assert all(getattr(getattr(plan, section), name) == value for name, value in told.get(section, {}).items())
    for name, value in told["method"].items():
        budget = plan.method.budget
        if name in ("macs", "latency"):
            assert budget is not None and (budget.metric, budget.value) == (name, value)
        elif name in ("device", "batch"):
            assert getattr(budget, name) == value
        elif name != "preset":
            assert getattr(plan.method, name) == (tuple(value) if isinstance(value, list) else value)


def test_all_are_listed_with_their_use(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert run("recipes") == 0
    said = capsys.readouterr().out
    for recipe in RECIPES.values():
        assert recipe.use
        assert any(line.startswith(recipe.name) and recipe.use in line for line in said.splitlines())


def test_a_name_is_taken_where_a_file_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path("fine-tune")) == RECIPES["fine-tune"].path
    Path("fine-tune").write_text("recipe: {epochs: 3}\n")
    assert find_recipe(Path("fine-tune")) == Path("fine-tune")  # a file of one's own goes before
    assert find_recipe(Path("mine.yaml")) == Path("mine.yaml")
    with pytest.raises(EdpError, match="--recipe fine-tun: no such file, nor a recipe of the program; did you mean"):
        find_recipe(Path("fine-tun"))


def tiny(num_classes: int = 10, in_chans: int = 1) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [nn.Conv2d(in_chans, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)]
    return nn.Sequential(*layers), (torch.randn(2, in_chans, 8, 8),)


def test_one_runs_from_its_name(tmp_path: Path) -> None:
    out = tmp_path / "cut"
    options = ["--data", "digits", "--img-size", 8, "--target", "onnx"]
    assert run("compress", f"{__name__}:tiny", *options, "--recipe", "without-training", "--out", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["run"]["recipe"]["epochs"] == 0
    assert 0.7 < report["compressed"]["macs"] / report["dense"]["macs"] <= 0.8
