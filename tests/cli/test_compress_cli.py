"""``edp-fx compress`` from the command line: results, bad input, Ctrl-C, resuming."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import edp_fx
from edp_fx.cli import main

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
    options = ("--data", "digits", "--img-size", 16, "--macs", 0.5, "--epochs", 4, "--batch-size", 32, "--lr", 0.01)
    assert run(tiny, *options, "--out", out, "--json", tmp_path / "copy.json") == 0
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads((tmp_path / "copy.json").read_text())
    for column in ("dense", "compressed"):
        assert set(report[column]) >= {"macs", "params", "file_bytes", "accuracy", "latency_ms"}
        assert report[column]["accuracy"] > 0.5, column
    assert 0.47 <= report["compressed"]["macs"] / report["dense"]["macs"] <= 0.5
    assert report["budget"] == {"macs": 0.5}
    assert (report["epochs"], report["seed"]) == (4, 0)
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
    assert report["dense"]["accuracy"] is None
    assert report["engine"] is None
    assert report["compressed"]["macs"] <= 0.8 * report["dense"]["macs"]


def test_a_budget_of_latency_is_told_beside_what_was_measured(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    options = ("--data", "digits", "--img-size", 16, "--latency", 1.0, "--align", 8, "--epochs", 0, "--target", "onnx")
    assert run(tiny, *options, "--runtime", "torch", "--out", out) == 0
    told = json.loads((out / "report.json").read_text())["latency_budget_ms"]
    assert told["runtime"] == "torch"
    assert told["predicted"] <= told["target"] == pytest.approx(told["dense"])
    assert told["measured"] > 0
    assert "latency budget" in capsys.readouterr().out
    assert list((tmp_path / "cache" / "edp_fx" / "latency").glob("*.json"))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet81", {}, "resnet18"),
        ("resnet18", {"--data": "digit"}, "did you mean digits"),
        ("resnet18", {"--macs": "1.5"}, r"(0, 1]"),
        ("resnet18", {"--macs": "0"}, r"(0, 1]"),
        ("resnet18", {"--macs": None}, "give a budget"),
        ("tiny_network:net", {"--macs": "0.0001"}, "the least that can is"),
        ("resnet18", {"--importance": "guess"}, "taylor"),
        ("resnet18", {"--macs": None, "--latency": "0.5", "--runtime": "abacus"}, "torch, onnxruntime, tensorrt"),
        ("resnet18", {"--kinds": "channel,filter"}, "rank, channel, head, kernel"),
        ("resnet18", {"--kinds": "channel,kernel", "--macs": None, "--params": "0.4"}, "budget of MACs"),
        ("resnet18", {"--kinds": "channel,kernel", "--policy": "lambda"}, "budget of MACs"),
        ("resnet18", {"--kinds": "channel,kernel", "--importance": "norm"}, "taylor"),
        ("resnet18", {"--kinds": "channel,branch", "--macs": None, "--params": "0.4"}, "leave branch out"),
        ("resnet18", {"--kinds": "channel", "--epochs": "0"}, "only ranks"),
        ("resnet18", {"--optimizer": "lion"}, "adamw"),
        ("resnet18", {"--target": "tpu"}, "onnxruntime"),
        ("resnet18", {"--target": "onnxruntime", "--precision": "bf16"}, "--target onnx"),
        ("resnet18", {"--precision": "int8"}, "calibration"),
        ("resnet18", {"--precision": "half"}, "fp16"),
        ("resnet18", {"--mixed-precision": "half"}, "no, bf16, fp16"),
        ("resnet18", {"--resume": True}, "nothing to go on with"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    chosen = {"--data": "digits", "--img-size": "16", "--macs": "0.4", "--epochs": "1", **options}
    given = [(key, value) for key, value in chosen.items() if value]
    arguments = [part for key, value in given for part in ((key,) if value is True else (key, value))]
    assert run(model, *arguments, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert not out.exists()


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
    options = ("--data", "digits", "--img-size", 16, "--macs", 0.5, "--epochs", 2, "--batch-size", 128)
    options = (tiny, *options, "--no-baseline", "--target", "onnx", "--out", out)
    original = Trainer._optimizer_step

    def interrupted(self) -> Any:
        if self.step == 12:  # in the second epoch
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Trainer, "_optimizer_step", interrupted)
    assert run(*options) == 130
    assert "--resume" in capsys.readouterr().out
    assert (out / "checkpoint.pt").exists()
    assert not (out / "report.json").exists()
    monkeypatch.setattr(Trainer, "_optimizer_step", original)
    assert run(*options, "--resume") == 0
    assert "epoch   1/2" not in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["compressed"]["accuracy"] is not None
