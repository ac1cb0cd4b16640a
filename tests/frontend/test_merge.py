"""Blocks that compute more in train mode are traced through, and the graph is the model in both modes."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from edp_fx import analyze, insert, load, save, trace
from edp_fx.frontend.layers import ModeSwitch
from edp_fx.inputs import randomize_
from tests.frontend.test_frontend import assert_same


def drop(inputs: Tensor, p: float, training: bool) -> Tensor:
    if not training:
        return inputs
    keep = 1 - p
    mask = keep
    mask += torch.rand([inputs.shape[0], 1, 1, 1], dtype=inputs.dtype, device=inputs.device)
    return inputs / keep * torch.floor(mask)


class Block(nn.Module):
    """Drops its own residual branch, by a function, in a module that owns layers."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(width, 3 * width, 1), nn.BatchNorm2d(3 * width)
        self.project, self.rate = nn.Conv2d(3 * width, width, 3, padding=1), rate

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(torch.relu(self.norm(self.expand(x))))
        if self.rate:
            y = drop(y, self.rate, self.training)
        return y + x


class Scaled(nn.Module):
    """Noise in train mode, a scale in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) * self.scale
        x = (
            x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.7).div_(0.7)
            if self.training
            else (x * 0.5).clamp(-1, 1)
        )
        return x.sin() + x


def network() -> nn.Sequential:
    blocks = [Block(8, rate) for rate in (0.0, 0.2, 0.4)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, Scaled(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_what_train_mode_adds_is_switched(tmp_path: Path) -> None:
    model = network()
    randomize_(model)
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert not graph.meta["edp_fx.trace"].opaque
    assert sum(isinstance(module, ModeSwitch) for module in graph.modules()) == 3
    for one in (graph, copy.deepcopy(graph)):
        assert_same(model, one, torch.randn(5, 3, 8, 8))
    assert list(graph.state_dict()) == list(model.state_dict())
    channels = analyze(graph, x)
    assert sum(len(group.members) for group in channels.prunable) >= 10
    with torch.no_grad():
        torch.testing.assert_close(insert(graph).eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load(save(graph.eval(), tmp_path / "net", x))(x), model.eval()(x))


def test_train_mode_of_a_switched_graph_draws_as_the_model() -> None:
    model = network()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    x = torch.randn(6, 3, 8, 8)
    outputs = []
    for one in (copy.deepcopy(model).train(), copy.deepcopy(graph).train()):
        torch.manual_seed(3)
        outputs.append(one(x))
    torch.testing.assert_close(*outputs)


class Heads(nn.Module):
    """Two layers, one for each mode: not switched, kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.one if self.training else self.two)(x).relu()


def test_layers_of_one_mode_are_not_switched() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Heads())
    graph = trace(model, torch.randn(2, 8))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["1"]
    assert_same(model, graph, torch.randn(3, 8))
