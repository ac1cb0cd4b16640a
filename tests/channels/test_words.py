"""What a person is told of a channel graph: one short sentence a layer, reasons once, narrow tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edp_fx.channels import ChannelGraph, analyze
from edp_fx.refusal import Refusal, by_reason, some


class Tower(nn.Module):
    """Ten residual blocks over one stream, whose sums of positions fix the channels of ``sorted``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.inner = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)) for _ in range(10))
        self.sorted = nn.ModuleList(nn.Linear(8, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.inner:
            x = x + block(x)
        return self.head(x) + sum(layer(x).cumsum(-1).sum() for layer in self.sorted)


@pytest.fixture(scope="module")
def tower() -> ChannelGraph:
    return analyze(Tower(), torch.randn(2, 8))


def test_a_layer_is_explained_by_three_names_and_a_count(tower: ChannelGraph) -> None:
    said = tower.explain("stem")
    assert said.startswith(
        "stem: 8 prunable channels in group 0, tied to inner.0.2, inner.1.2, inner.2.2 and 7 more "
        "(by add at add, add at add_1, add at add_2 and 7 more); read by head, inner.0.1, inner.1.1 and 12 more; "
    )
    assert "; removal is inexact, because layer norm" in said
    assert said.endswith(" and 9 more.")
    assert said.count(",") < 12


def test_reasons_are_told_once(tower: ChannelGraph) -> None:
    reason, *others = tower.refusals()
    assert str(reason) == "sorted.0, sorted.1, sorted.2 and 1 more: an axis of fixed size"
    assert [one.nodes for one in others] == [("head",)]


def test_places_make_no_difference() -> None:
    refusals = [
        Refusal("a", "removal is not exact: " + "; ".join(f"layer norm takes its mean (norm_{k})" for k in range(13))),
        Refusal("b", "removal is not exact: layer norm takes its mean (blocks.1.norm)"),
        Refusal("c", "an axis of fixed size (aten.add.Tensor at add_3)"),
    ]
    assert [str(one) for one in by_reason(refusals)] == [
        "a, b: removal is not exact: layer norm takes its mean",
        "c: an axis of fixed size",
    ]
    assert some([]) == ""


def test_a_table_is_as_wide_as_it_may_be(tower: ChannelGraph) -> None:
    lines = tower.table(width=60).splitlines()
    assert max(map(len, lines[:-1])) == 60
    assert "60 columns" in lines[-1]
    assert "…" not in tower.table()
    assert sum(group.params_share for group in tower.groups) > 1  # a weight goes with either of its sides
