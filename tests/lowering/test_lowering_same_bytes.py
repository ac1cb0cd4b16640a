"""The same input: the same ONNX bytes in any process, and the same engine but for the builder's inner names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import edp_fx
from edp_fx.inputs import randomize_
from edp_fx.lowering.targets import BuildOptions, get_target

ROOT = Path(__file__).parents[2]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    randomize_(model)
    directory = tmp_path_factory.mktemp("saved") / "net"
    edp_fx.save(edp_fx.trace(model.eval(), IMAGES), directory, IMAGES)
    return directory


def without_names(plan: bytes) -> list[bytes]:
    """The lines of a plan, sorted, without the counters in its inner names: what differs from build to build."""
    return sorted(re.sub(rb"(__mye|_)\d+", rb"\1#", plan).split(b"\n"))


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_another_process_makes_the_same_file_and_the_same_engine(saved: Path, tmp_path: Path, precision: str) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    edp_fx.lower(
        edp_fx.load(saved),
        IMAGES,
        mine / "m.plan",
        target="tensorrt-rtx",
        precision=precision,
        onnx_path=mine / "m.onnx",
    )
    command = [sys.executable, "-m", "edp_fx", "lower", saved, "--precision", precision]
    command += ["--out", theirs / "m.plan", "--onnx", theirs / "m.onnx"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, cwd=ROOT)

    assert (mine / "m.onnx").read_bytes() == (theirs / "m.onnx").read_bytes()
    ours, other = (json.loads((folder / "m.plan.json").read_text()) for folder in (mine, theirs))
    assert ours["onnx_sha256"] == other["onnx_sha256"]
    shapes = {one["name"]: tuple(tuple(one[key]) for key in ("min", "opt", "max")) for one in ours["inputs"]}
    again = get_target("tensorrt-rtx").build((mine / "m.onnx").read_bytes(), BuildOptions(shapes))
    plans = [(mine / "m.plan").read_bytes(), (theirs / "m.plan").read_bytes(), again.data]
    assert len({len(plan) for plan in plans}) == 1
    first, *rest = map(without_names, plans)
    assert all(lines == first for lines in rest)


def test_the_comparison_sees_one_changed_weight(saved: Path, tmp_path: Path) -> None:
    """Otherwise the test above would say nothing."""
    graph = edp_fx.load(saved)
    plans = []
    for scale in (1.0, 1.001):
        with torch.no_grad():
            next(graph.parameters()).flatten()[0] *= scale
        edp_fx.lower(graph, IMAGES, tmp_path / "m.plan", target="tensorrt-rtx")
        plans.append(without_names((tmp_path / "m.plan").read_bytes()))
    assert plans[0] != plans[1]
