"""``edp-fx compress`` from the command line: results, bad input, Ctrl-C, resuming."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import edp_fx
from edp_fx.cli import main
from edp_fx.errors import TrainingError
from edp_fx.train import Recipe

TINY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )

def three_classes():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

def features():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 10, 3)

    def forward(self, a, b):
        return (self.layer(a) + self.layer(b)).mean((2, 3))

def two_inputs():
    return Two(), (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16))
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "tiny_network.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "tiny_network:net"
    sys.modules.pop("tiny_network", None)


def run(*arguments: object) -> int | str:
    """The exit status of the command."""
    with pytest.raises(SystemExit) as caught:
        main(["compress", *map(str, arguments)])
    return caught.value.code or 0


def test_a_run_leaves_the_network_its_engine_and_a_report(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--data", "digits", "--img-size", 16, "--macs", 0.5, "--epochs", 4, "--lr", 0.01, "--set", "align=1")
    assert run(tiny, *options, "--out", out, "--json", tmp_path / "copy.json") == 0
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads((tmp_path / "copy.json").read_text())
    for column in ("dense", "compressed"):
        assert set(report[column]) >= {"macs", "params", "file_bytes", "metric", "latency_ms"}
        assert report[column]["metric"] > 0.5, column
    assert 0.47 <= report["compressed"]["macs"] / report["dense"]["macs"] <= 0.5
    assert report["run"]["method"]["budget"] == {"macs": 0.5}
    assert set(report["run"]["method"]) == set(edp_fx.Method.names())
    assert report["run"]["recipe"]["epochs"] == 4
    assert report["prune_merge"]["max_rel_diff"] <= 1e-5
    assert report["onnx"]["max_abs_diff"] < 1e-3
    assert "tensorrt_rtx" in report["engine"]["builder"]
    assert report["engine"]["bytes"] == (out / "model.engine").stat().st_size > 1000
    assert all(set(entry) == {"node", "reason"} for entry in report["refused"])
    printed = capsys.readouterr().out
    for text in ("epoch   4/4", "MACs", "test accuracy", "engine", "left alone", "pruning and merging changed"):
        assert text in printed
    loaded = edp_fx.load(out)
    assert edp_fx.measure(loaded, torch.randn(2, 3, 16, 16)).macs == report["compressed"]["macs"]
    kept = sorted(path.name for path in out.iterdir())
    assert run(tiny, *options, "--out", out) == 2
    assert "not empty" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == kept


def test_without_training_and_without_baseline(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--data", "digits", "--img-size", 16, "--macs", 0.8, "--epochs", 0, "--target", "onnx")
    assert run(tiny, *options, "--out", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert 0 <= report["dense"]["metric"] <= 1  # as it came
    assert report["engine"] is None
    assert report["compressed"]["macs"] <= 0.8 * report["dense"]["macs"]


def test_a_budget_of_latency_is_told_beside_what_was_measured(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    options = (
        "--data",
        "digits",
        "--img-size",
        16,
        "--latency",
        1.0,
        "--set",
        "align=8",
        "--epochs",
        0,
        "--target",
        "onnx",
    )
    assert run(tiny, *options, "--runtime", "torch", "--out", out) == 0
    told = json.loads((out / "report.json").read_text())["latency_budget"]
    assert told["runtime"] == "torch" and told["asked"] == 1.0
    assert 0 < told["predicted"] <= 1 and told["measured"] > 0
    assert "asked 1.000 of the dense network's, predicted" in capsys.readouterr().out


def test_a_budget_of_a_device_that_is_not_here_is_predicted_and_says_so(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", "digits", "--img-size", 16, "--latency", 1.0, "--epochs", 0, "--target", "onnx")
    out = tmp_path / "out"
    assert run(tiny, *options, "--device", "t4-fp16", "--batch", 8, "--out", out) == 0
    told = json.loads((out / "report.json").read_text())["latency_budget"]
    assert (told["device"], told["batch"], told["measured"]) == ("t4-fp16", 8, None)
    assert "t4-fp16 is not at hand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet81", {}, "resnet18"),
        (None, {}, "give MODEL"),
        ("resnet18", {"--data": None}, "give --data D"),
        ("resnet18", {"--data": "digit"}, "did you mean digits"),
        ("resnet18", {"--epochs": None}, "say how long to train: --epochs N"),
        ("resnet18", {"--epochs": "-1"}, "epochs=-1: give a whole number from 0 on"),
        ("resnet18", {"--epochs": "ten"}, "Invalid value for '--epochs'"),
        ("resnet18", {"--macs": "1.5"}, r"(0, 1]"),
        ("resnet18", {"--macs": "0"}, "macs=0: give a number above 0"),
        ("resnet18", {"--macs": None}, "give a budget"),
        ("resnet18", {"--params": "0.4"}, "give exactly one budget"),
        ("tiny_network:net", {"--macs": "0.0001"}, "the least that can is"),
        ("tiny_network:net", {"--pretrained": True}, "takes no argument 'pretrained'"),
        ("resnet18", {"--macs": None, "--latency": "0.5", "--runtime": "abacus"}, "onnxruntime, torch"),
        ("resnet18", {"--macs": None, "--latency": "0.5", "--device": "h300"}, "device h300: unknown"),
        ("resnet18", {"--device": "h200-fp16"}, "device serves a budget of latency only"),
        ("resnet18", {"--runtime": "torch"}, "serves a budget of latency only"),
        ("resnet18", {"--method": "scrach"}, "did you mean scratch"),
        ("resnet18", {"--method": "paper"}, "budget does not apply: the policy lambda"),
        ("resnet18", {"--method": "scratch", "--epochs": "0"}, "without training"),
        ("resnet18", {"--epochs": "0", "--teacher": "resnet18"}, "--teacher"),
        ("resnet18", {"--epochs": "0", "--lr": "0.1"}, "lr applies to training only"),
        ("resnet18", {"--epochs": "0", "--set": "end=0.5"}, "end does not apply"),
        ("resnet18", {"--set": "kinds=channel,filter"}, "filter"),
        ("resnet18", {"--set": "kinds=channel,kernel", "--macs": None, "--params": "0.4"}, "budget of MACs"),
        ("resnet18", {"--set": "importance=guess"}, "give one of taylor"),
        ("resnet18", {"--set": "aling=8"}, "did you mean align"),
        ("resnet18", {"--set": "align"}, "give NAME=VALUE"),
        ("resnet18", {"--set": "align=0"}, "align=0: give a whole number from 1 on"),
        ("resnet18", {"--set": "macs=0.3"}, "--macs"),
        ("resnet18", {"--set": "lr=0.3", "--lr": "0.1"}, "--lr is given, too"),
        ("resnet18", {"--set": "ema=2"}, "ema=2: give a number from 0 below 1"),
        ("resnet18", {"--set": "weight_decay=-3"}, "weight_decay=-3: give a number from 0 on"),
        ("resnet18", {"--set": "optimizer=lion"}, "give one of adamw, sgd"),
        ("resnet18", {"--set": "distill=0.7"}, "distill applies where there is a teacher"),
        ("tiny_network:net", {"--set": "accumulate=10000"}, "an epoch has no more than"),
        ("resnet18", {"--lr": "-1"}, "lr=-1: give a number above 0"),
        ("resnet18", {"--batch-size": "0"}, "batch_size=0: give a whole number from 1 on"),
        ("resnet18", {"--img-size": "4"}, "img_size=4: give a whole number from 8 on"),
        ("resnet18", {"--workers": "-1"}, "workers=-1"),
        ("resnet18", {"--target": "tpu"}, "onnxruntime"),
        ("resnet18", {"--target": "onnxruntime", "--precision": "bf16"}, "--target onnx"),
        ("resnet18", {"--precision": "int8"}, "calibration"),
        ("resnet18", {"--precision": "half"}, "fp16"),
        ("resnet18", {"--mixed-precision": "half"}, "mixed_precision=half: give one of fp32, bf16, fp16"),
        ("resnet18", {"--resume": True}, "nothing to go on with"),
        ("resnet18", {"--recipe": "nowhere.yaml"}, "No such file"),
        ("resnet18", {"--kinds": "channel"}, "No such option: --kinds"),
        ("tiny_network:two_inputs", {}, "takes 2 inputs"),
        ("tiny_network:features", {}, "with the command --task"),
        ("tiny_network:three_classes", {}, "3 outputs and the data 10 classes"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    chosen = {"--data": "digits", "--img-size": "16", "--macs": "0.4", "--epochs": "1", **options}
    given = [(key, value) for key, value in chosen.items() if value]
    arguments = [part for key, value in given for part in ((key,) if value is True else (key, value))]
    assert run(*([model] if model else []), *arguments, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: {aling: 4}", "did you mean align"),
        ("method: trianed", "did you mean trained"),
        ("method: [1]", "method: give names and values"),
        ("recipe: {epochs: many}", "epochs=many: give a whole number"),
        ("modle: resnet18", "run has no 'modle'; did you mean model"),
        ("model: {spec: [1, 2]}", "spec=[1, 2]: give a text"),
        ("a: [", "line 1: neither YAML"),
        ("", "give sections of model, data"),
        ("- 1", "give sections of model, data"),
    ],
)
def test_a_wrong_recipe_gets_one_line(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    options: list[Any] = ["--data", "digits", "--macs", 0.5, "--recipe", tmp_path / "run.yaml"]
    options += [] if "recipe" in text else ["--epochs", 1]
    options += [] if text.startswith("model: {") else [tiny]
    assert run(*options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0


def test_a_run_is_repeated_from_what_it_wrote(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "data: {spec: digits, img_size: 16}\nmethod: {preset: scratch, macs: 0.5, align: 4}\n"
        "recipe: {epochs: 1, lr: 1e-2, seed: 3, warmup: 0.1}\nlower: {target: onnx}\nbaseline: false\n"
    )
    first = tmp_path / "first"
    assert run(tiny, "--recipe", tmp_path / "mine.yaml", "--set", "floor=0.1", "--batch-size", 64, "--out", first) == 0
    written = yaml.safe_load((first / "run.yaml").read_text())
    report = json.loads((first / "report.json").read_text())
    assert written == report["run"]
    assert (written["method"]["align"], written["method"]["floor"], written["method"]["end"]) == (4, 0.1, 0.25)
    assert (written["recipe"]["lr"], written["data"]["batch_size"]) == (0.01, 64)
    want = edp_fx.load(first).state_dict()
    for number, source in enumerate(("run.yaml", "report.json")):
        again = tmp_path / str(number)
        assert run("--recipe", first / source, "--out", again) == 0
        assert json.loads((again / "report.json").read_text())["run"] == report["run"]
        found = edp_fx.load(again).state_dict()
        assert found.keys() == want.keys()
        assert all(torch.equal(found[name], want[name]) for name in want)


def test_the_help_names_every_field_that_can_be_set_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    words = set(re.findall(r"[a-z_]+", capsys.readouterr().out))
    assert {*edp_fx.Method.names(), *Recipe.names()} - {"budget"} <= words
    assert not set(edp_fx.Method.names()) & set(Recipe.names())  # a name means one thing


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edp_fx.train import Trainer

    options = ("--data", "digits", "--img-size", 16, "--macs", 0.5, "--epochs", 1, "--no-baseline", "--target", "onnx")

    def fail(self: Trainer) -> None:
        raise TrainingError("the loss became nan")

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "_optimizer_step", fail)
        assert run(tiny, *options, "--out", tmp_path / "out") == 2
        (tmp_path / "empty").mkdir()
        assert run(tiny, *options, "--out", tmp_path / "empty") == 2
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    assert run(tiny, *options, "--out", tmp_path / "out") == 0


def test_output_below_a_file_is_refused(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    options = ("--data", "digits", "--img-size", 16, "--macs", 0.5, "--epochs", 1, "--no-baseline")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(tiny, *options, "--out", out) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_interrupted_run_keeps_its_checkpoint_and_resumes(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edp_fx.train import Trainer

    out = tmp_path / "out"
    options: tuple[object, ...] = ("--data", "digits", "--img-size", 16, "--macs", 0.5, "--epochs", 2)
    options = (tiny, *options, "--batch-size", 128, "--no-baseline", "--target", "onnx", "--out", out)
    original = Trainer._optimizer_step

    def interrupted(self: Trainer) -> Any:
        if self.step == 12:  # in the second epoch
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Trainer, "_optimizer_step", interrupted)
    assert run(*options) == 130
    assert "--resume" in capsys.readouterr().out
    assert (out / "checkpoint.pt").exists()
    assert not (out / "report.json").exists()
    monkeypatch.setattr(Trainer, "_optimizer_step", original)
    assert run(*options, "--resume", "--batch-size", 64) == 2
    assert "has batch_size=128, not 64" in capsys.readouterr().err
    assert run(*options, "--resume", "--overwrite") == 2
    assert "give one of the two" in capsys.readouterr().err
    assert run("--resume", "--out", out) == 0
    assert "epoch   1/2" not in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["compressed"]["metric"] is not None
