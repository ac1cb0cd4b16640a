"""torchvision's detectors, compressed in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.leaves import tensors_of
from edp_fx.parts import Parts
from edp_fx.validation.compare import relative
from tests.helpers.boxes import detector, images_with_boxes


def found(model: nn.Module, images: list[Tensor]) -> list[Tensor]:
    """Boxes, scores and labels that a detector gives for images."""
    with torch.no_grad():
        return [one.float().clone() for one in tensors_of(model.eval()(images))]


def dense_outputs(parts: Parts) -> list[Tensor]:
    with torch.no_grad():
        return [one.clone() for one in tensors_of(parts.graph.eval()(*parts.inputs))]


def check(name: str, tmp_path: Path, macs: float, pairs: bool = True) -> tuple[Parts, Compressor]:
    """A detector is traced, gets pairs, is trained to a share of its MACs, saved and loaded: the same all along."""
    model = detector(name)
    images, targets = images_with_boxes()
    before = found(model, images)
    parts = edp_fx.trace_parts(model, (images, targets))
    assert relative(before, found(model, images)) < 1e-5
    if pairs:
        dense = dense_outputs(parts)
        edp_fx.insert(parts.graph, layers=("backbone.*",), exclude=("*block.0*",))
        assert relative(dense, dense_outputs(parts)) < 1e-4

    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=1e-4)
    compressor = Compressor(parts.graph, parts.inputs, macs=macs, optimizer=optimizer, total_steps=4)
    model.train()
    changes = 0
    for _ in range(4):
        optimizer.zero_grad()
        losses: dict[str, Tensor] = model(images, targets)
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        changes += compressor.step()
    compressor.finish()
    assert changes
    assert compressor.max_rel_diff < 1e-5
    assert compressor.macs <= macs + 1e-6
    losses = model.train()(images, targets)
    sum(losses.values(), torch.zeros(())).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    small = found(model, images)

    edp_fx.save(parts.graph, tmp_path / "small", parts.inputs)
    fresh = detector(name)
    edp_fx.trace_parts(fresh, (images, targets)).put(edp_fx.load(tmp_path / "small"))
    assert relative(small, found(fresh, images)) < 1e-5
    return parts, compressor


def members(parts: Parts, parameter: str, role: str) -> Any:
    """The other end of the channels that a layer makes or reads: names of parameters."""
    graph = edp_fx.analyze(parts.graph, parts.inputs, check=False)
    (group,) = [one for one in graph.groups if any((m.parameter, m.role) == (parameter, role) for m in one.members)]
    return group


def test_faster_rcnn(tmp_path: Path) -> None:
    parts, _ = check("fasterrcnn_mobilenet_v3_large_320_fpn", tmp_path, 0.6, pairs=False)
    assert parts.names == ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor")
    said = {one.node: one.reason for one in parts.refused}
    assert said.keys() == {"rpn", "roi_heads"}
    assert "ImageList" in said["rpn"]
    pyramid = members(parts, "backbone.fpn.layer_blocks.0.0.weight", "producer")
    assert "rpn.head.conv.0.0.weight" in {m.parameter for m in pyramid.members if m.role == "consumer"}
    assert not pyramid.prunable  # regions are cut out of it by code that is no graph
    hidden = members(parts, "roi_heads.box_head.fc7.weight", "producer")
    assert hidden.prunable
    consumers = {m.parameter for m in hidden.members if m.role == "consumer"}
    assert consumers == {"roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"}


@pytest.mark.slow
def test_ssdlite(tmp_path: Path) -> None:
    parts, _ = check("ssdlite320_mobilenet_v3_large", tmp_path, 0.5)
    assert parts.names == ("backbone", "head")


@pytest.mark.slow
def test_retinanet(tmp_path: Path) -> None:
    parts, _ = check("retinanet_resnet50_fpn", tmp_path, 0.5)
    assert parts.names == ("backbone", "head")
    pyramid = members(parts, "backbone.fpn.layer_blocks.0.0.weight", "producer")
    assert pyramid.prunable
    consumers = {m.parameter for m in pyramid.members if m.role == "consumer"}
    assert {"head.classification_head.conv.0.0.weight", "head.regression_head.conv.0.0.weight"} <= consumers
