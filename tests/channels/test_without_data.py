"""One module, or function, that asks for a number freezes what it touches, not the network."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from edp_fx.channels import analyze
from edp_fx.frontend import trace
from edp_fx.validation.masking import difference, masked_run, pruned_run, random_keep


class Head(nn.Module):
    """As detectors' heads do: another thing in training, and sizes from a buffer's values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv = nn.Conv2d(channels, 4, 1)
        self.register_buffer("stride", torch.tensor([8.0]))
        self.shape: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.cv(x)
        if self.training:
            return [x]
        self.shape = tuple(x.shape)
        return x * x.new_full((1,), self.stride[0])


def test_a_head_that_reads_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), Head(8)).double()
    x = (torch.randn(2, 3, 16, 16).double(),)
    gm = trace(model, x)
    before = {name: value for name, value in gm.state_dict().items()}
    graph = analyze(gm, x)
    assert [group.name for group in graph.prunable] == ["0"]
    assert "does not run without data" in graph.explain("2")
    assert all(value is before[name] or torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    assert model[3].shape is None
    keep = random_keep(graph, 0)
    assert difference(masked_run(gm, graph, keep, x), pruned_run(gm, graph, keep, x)) < 1e-9


def test_a_function_that_reads_numbers() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x * float(x.detach().abs().max())

    graph = fx.Graph()
    x = graph.placeholder("x")
    for name in ("a", "b"):
        x = graph.call_module(name, (x,))
    graph.output(graph.call_module("c", (graph.call_function(scaled, (x,)),)))
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 5, 1)}
    found = analyze(fx.GraphModule(layers, graph), torch.randn(2, 3, 4, 4))
    assert [group.name for group in found.prunable] == ["a"]
    assert "does not run without data" in found.explain("b")
