"""Layers that only train mode runs: the analysis looks at eval mode, and must leave what they would read."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.passes.prune import prune
from edp_fx.validation import masking


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.a(x) + self.b(x)
        return self.a(x) * 1.5


def test_a_pruned_network_still_trains() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), TwoPaths(), nn.Conv2d(16, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.insert(edp_fx.trace(model, x))
    graph = edp_fx.analyze(gm, x)
    assert {group.id for group in graph.prunable}, "ranks and the first layer's channels can go"
    assert "train mode only" in graph.explain("2.b")
    pruned = prune(copy.deepcopy(gm), graph, masking.random_keep(graph, 0)).graph_module
    for mode in (False, True):
        assert pruned.train(mode)(x).shape == (2, 4, 6, 6)
