"""Layers of a user's own class that cut their weight by themselves: how much of it is theirs to count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.channels import analyze


class Halves(nn.Conv2d):
    """Two results of one weight, by a number of its own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        half = self.out_channels // 2
        return self._conv_forward(x, self.weight[:half], self.bias[:half]), self._conv_forward(
            x, self.weight[half:], self.bias[half:]
        )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.halves = nn.Conv2d(3, 8, 1), Halves(8, 12, 1)
        self.one, self.two = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.halves(self.stem(x).relu())
        return self.one(first.relu()) + self.two(second.relu())


def test_what_a_layer_cuts_by_itself_stays() -> None:
    x = torch.randn(2, 3, 4, 4)
    graph = analyze(edp_fx.trace(Net(), x), x)
    assert not graph.prunable
    for layer in ("stem", "halves"):
        assert "not traced" in graph.explain(layer), graph.explain(layer)


class Scaled(nn.Conv2d):
    """One result of one input: its sizes are those of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * 2, self.bias)


def test_a_layer_of_ones_own_that_makes_one_tensor_of_one_may_lose_channels() -> None:
    x = torch.randn(2, 3, 4, 4)
    graph = analyze(edp_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 1), Scaled(8, 6, 1), nn.Conv2d(6, 4, 1)), x), x)
    assert {name for group in graph.prunable for name in group.producers} == {"0", "1"}
