"""A rule from outside: for an operation of one's own, and taken back again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.channels import analyze
from edp_fx.channels.rules import pointwise, view
from edp_fx.channels.rules.sizes import NodeSizes
from edp_fx.errors import AnalysisError
from edp_fx.frontend import trace
from edp_fx.validation.masking import difference, masked_run, pruned_run, random_keep


@torch.library.custom_op("edp_fx_test::leaky", mutates_args=())
def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x / 8)


leaky.register_fake(torch.empty_like)


@torch.library.custom_op("edp_fx_test::in_groups", mutates_args=())
def in_groups(x: Tensor, groups: int, width: int) -> Tensor:
    """(batch, groups · width, …) → (batch, groups, width, …); both sizes must be told."""
    return x.reshape(x.shape[0], groups, width, *x.shape[2:]).clone()


in_groups.register_fake(lambda x, groups, width: x.new_empty(x.shape[0], groups, width, *x.shape[2:]))


class Around(nn.Module):
    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op, self.make, self.read = op, nn.Conv2d(3, 8, 1).double(), nn.Conv2d(8, 5, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.op(self.make(x)))


def difference_when_pruned(op: Any) -> float:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = analyze(trace(Around(op), x), x)
    keep = random_keep(graph, seed=0)
    assert keep, graph.explain("make")
    return difference(masked_run(graph.gm, graph, keep, (x,)), pruned_run(graph.gm, graph, keep, (x,)))


def test_what_has_no_rule_is_frozen_and_named_until_it_has_one() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = analyze(Around(leaky), x)
    assert not graph.prunable
    assert "edp_fx_test.leaky.default" in graph.unknown_ops
    with edp_fx.register_rule(leaky, pointwise):
        graph = analyze(Around(leaky), x)
        assert [group.size for group in graph.prunable] == [8]
        assert not graph.unknown_ops
        assert difference_when_pruned(leaky) < 1e-9
    assert not analyze(Around(leaky), x).prunable


def test_sizes_are_repaired_by_what_is_registered_beside_the_rule() -> None:
    def both(sizes: NodeSizes) -> None:
        sizes.put(1, "groups", sizes.after[0][1])
        sizes.put(2, "width", sizes.after[0][2])

    with edp_fx.register_rule(torch.ops.edp_fx_test.in_groups, view, sizes=both):
        assert difference_when_pruned(lambda x: in_groups(x, 2, 4).flatten(1, 2)) < 1e-9


def test_misuse_is_one_clear_error() -> None:
    with pytest.raises(AnalysisError, match="takes an operation such as"):
        edp_fx.register_rule(torch.relu, pointwise)
    with pytest.raises(AnalysisError, match=r"aten\.view has a rule"):
        edp_fx.register_rule(torch.ops.aten.view.default, pointwise)
    with (
        edp_fx.register_rule(leaky, pointwise) as handle,
        pytest.raises(AnalysisError, match="has a rule: remove"),
    ):
        edp_fx.register_rule(leaky, pointwise)
    handle.remove()
    with pytest.raises(AnalysisError, match="repaired by another rule"):
        edp_fx.register_rule(leaky, pointwise, sizes=lambda _: None, calls=("view",))
