"""What may go where a method names no kinds: all that serve its budget, and ranks only where they are needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import edp_fx
from edp_fx.compressor import Compressor, Method
from edp_fx.errors import BudgetError
from examples import networks


def made(pairs: bool = True, model: nn.Module | None = None, **options: Any) -> Compressor:
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(model or networks.CifarResNet(1, width=16), x)
    return Compressor(edp_fx.insert(gm) if pairs else gm, x, **{"total_steps": 8, **options})


def left_out(compressor: Compressor) -> dict[str, str]:
    return {one["node"].removeprefix("kind "): one["reason"] for one in compressor.refused if "kind " in one["node"]}


def test_all_kinds_go_that_serve_the_budget_and_the_others_say_why_not() -> None:
    macs = made(macs=0.3)
    assert macs.method.kinds == ("channel", "kernel", "branch")
    assert "lose accuracy" in left_out(macs)["rank"] and "name head" in left_out(macs)["head"]
    params = made(params=0.3)
    assert params.method.kinds == ("channel",)
    assert "MACs or latency only" in left_out(params)["kernel"] and "MACs or latency only" in left_out(params)["branch"]
    norm = made(macs=0.3, importance="norm")
    assert norm.method.kinds == ("channel",)
    assert "taylor" in left_out(norm)["kernel"]
    at_once = made(macs=0.3, total_steps=0)
    assert at_once.method.kinds == ("channel",)
    assert "training step" in left_out(at_once)["branch"]
    assert made(policy="lambda").method.kinds == ("rank", "channel")


class Fixed(nn.Module):
    """A wide layer between channels that stay: only ranks can go."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(x).softmax(1)).softmax(1))


def test_ranks_go_where_the_others_cannot_reach_the_budget() -> None:
    with pytest.raises(BudgetError, match="least that can"):
        made(pairs=False, model=Fixed(), macs=0.5)
    compressor = made(model=Fixed(), macs=0.5)
    assert "rank" in (compressor.method.kinds or ())
    assert "rank" not in left_out(compressor)


def test_ranks_that_are_not_needed_change_no_decision() -> None:
    """Adding a kind never loses: the default of all kinds decides as the best of its subsets."""
    results = []
    for kinds in (None, ("channel", "kernel", "branch")):
        torch.manual_seed(0)
        compressor = made(macs=0.3, kinds=kinds)
        results.append((compressor.elements.n, compressor.progress.floors.tolist(), compressor.method))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"params": 0.5, "kinds": ("kernel", "branch")},
            "kernel and branch can go to a budget of MACs or latency only",
        ),
        ({"macs": 0.5, "kinds": ("branch",), "importance": "norm"}, "branch can be weighed by taylor only"),
        ({"policy": "lambda", "kinds": ("kernel",)}, "kernel can go to a budget only"),
        ({"macs": 0.5, "kinds": ("chanel",)}, "did you mean channel"),
    ],
)
def test_a_kind_that_is_named_and_cannot_go_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        made(**options)


def test_a_kind_that_is_named_competes() -> None:
    assert made(macs=0.3, kinds=("channel", "rank")).method.kinds == ("rank", "channel")
    assert Method(kinds=("branch", "kernel")).kinds == ("branch", "kernel")
