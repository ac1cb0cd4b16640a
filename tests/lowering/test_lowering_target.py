"""A lowering target of one's own: one class and one line; the commands, lower and load_engine know it then."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edp_fx
from edp_fx.errors import LoweringError
from edp_fx.lowering import TARGETS, Target, register_target
from edp_fx.lowering.onnx_engine import OnnxEngine
from edp_fx.lowering.target import Build, BuildError, BuildOptions, Progress
from edp_fx.lowering.targets import choose_target


class Backwards(Target):
    """The ONNX file with its bytes in reverse."""

    name = "backwards"
    makes = "ONNX file, backwards"
    lacks = {"fp16": "backwards has no fp16: use fp32"}  # noqa: RUF012

    def build(self, data: bytes, options: BuildOptions, progress: Progress | None = None) -> Build:
        """Refuses a network of less than a batch of two."""
        if options.shapes["input"][0][0] < 2:
            raise BuildError("backwards is for pairs: use --batch 2")
        return Build(data[::-1], "backwards 1.0")

    def load(self, data: bytes, *, where: str, cuda_graph: bool = False) -> OnnxEngine:
        """Under onnxruntime."""
        return OnnxEngine(data[::-1])


@pytest.fixture
def backwards() -> Any:
    with register_target(Backwards()):
        yield


def test_a_target_is_one_class_and_one_line(backwards: None, tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)
    path = tmp_path / "net.back"
    done = edp_fx.lower(net, x, path, target="backwards", batch=(2, 4, 8))
    assert (done.target, done.builder, done.plan) == ("backwards", "backwards 1.0", None)
    assert json.loads((tmp_path / "net.back.json").read_text())["target"] == "backwards"
    engine = edp_fx.lower.load_engine(path)
    with torch.no_grad():
        torch.testing.assert_close(engine(x), net(x), rtol=1e-4, atol=1e-5)
    for options, message in (
        ({"precision": "fp16"}, "backwards has no fp16"),
        ({"timing_cache": tmp_path / "cache"}, "timing cache and workspace are for TensorRT, not for backwards"),
        ({"batch": 1}, "backwards is for pairs"),
        (
            {"target": "sideways"},
            "unknown target 'sideways': one of tensorrt, tensorrt-rtx, onnxruntime, onnx, backwards",
        ),
    ):
        with pytest.raises(LoweringError, match=message):
            edp_fx.lower(net, x, tmp_path / "other", **{"target": "backwards", **options})
    assert not (tmp_path / "other").exists()


def test_the_target_nobody_names_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in found or None)
    for gpu, installed, wanted in (
        (False, ["tensorrt_rtx"], "tensorrt-rtx"),
        (True, ["tensorrt", "tensorrt_rtx"], "tensorrt"),
        (True, ["tensorrt_rtx"], "tensorrt-rtx"),
        (False, ["tensorrt"], "tensorrt-rtx"),
    ):
        found[:] = installed
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert choose_target(None).name == wanted


def test_a_target_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        LoweringError, match=r"--target tensorrt-rtx: not installed .*; pip install 'edp_fx\[tensorrt-rtx"
    ):
        TARGETS["tensorrt-rtx"].check(BuildOptions())


def test_no_command_names_a_target_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from edp_fx.cli import main

    for command in ("lower", "compress"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert all(name in shown for name in TARGETS)
