"""The examples of CONTRIBUTING.md run as they stand, and do what the text above them says."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edp_fx

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
BLOCKS = dict(re.findall(r"### … an? (\w+).*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
X = torch.randn(2, 3, 8, 8)


class Calls(nn.Module):
    """A layer, a function, a layer."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.make, self.function, self.read = nn.Conv2d(3, 8, 1), function, nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.function(self.make(x)))


def check_rule(names: dict[str, Any]) -> None:
    graph = edp_fx.analyze(Calls(names["leaky"]), X)
    assert [group.size for group in graph.prunable] == [8]


def check_pass(names: dict[str, Any]) -> None:
    gm = edp_fx.trace(Calls(nn.Identity()).eval(), X)
    expected = gm(X)
    result = names["DropIdentities"]()(gm)
    assert result.report.rewritten == ["function"]
    assert torch.equal(result.graph_module(X), expected)
    assert not names["DropIdentities"]()(gm).modified


def check_kind(names: dict[str, Any]) -> None:
    widths = (3, 16, 16, 16, 16)
    layers = [layer for one, other in pairwise(widths) for layer in (nn.Conv2d(one, other, 3, padding=1), nn.ReLU())]
    gm = edp_fx.trace(nn.Sequential(*layers, nn.Conv2d(16, 3, 1)), X)
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.01, momentum=0.9)
    compressor = edp_fx.Compressor(gm, X, macs=0.8, kinds=("early",), optimizer=optimizer, total_steps=12)
    for _ in range(12):
        gm(X).square().mean().backward()
        optimizer.step()
        compressor.step()
    small = compressor.finish()
    found = [layer.out_channels for layer in small.modules() if isinstance(layer, nn.Conv2d)]
    assert min(found[:2]) < 16 and found[2:] == [16, 16, 3]


def check_device(names: dict[str, Any]) -> None:
    layer = nn.Linear(9, 100)
    assert names["board"].time(layer, (torch.randn(2, 9),)) == pytest.approx(1e-3)


def check_target(names: dict[str, Any]) -> None:
    layer = nn.Conv2d(3, 4, 1).eval()
    with tempfile.TemporaryDirectory() as folder:
        done = edp_fx.lower(layer, X, Path(folder, "net"), target="packed", batch=2)
        assert done.bytes == Path(folder, "net").stat().st_size
        torch.testing.assert_close(edp_fx.lower.load_engine(Path(folder, "net"))(X), layer(X), rtol=1e-4, atol=1e-5)


CHECKS = {"target": check_target, "rule": check_rule, "kind": check_kind, "pass": check_pass, "device": check_device}


def test_every_example_is_checked() -> None:
    assert BLOCKS.keys() == CHECKS.keys()


@pytest.mark.parametrize("what", BLOCKS)
def test_example(what: str) -> None:
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(compile(BLOCKS[what], f"CONTRIBUTING: {what}", "exec"), names)
    with names.get("registered", nullcontext()):
        CHECKS[what](names)
