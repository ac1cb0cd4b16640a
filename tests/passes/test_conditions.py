"""Every pass says what it needs and what it promises, and both can fail: a damaged graph raises, naming the node."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import edp_fx.passes
from edp_fx.channels import analyze
from edp_fx.channels.residuals import find_branches
from edp_fx.errors import PassError
from edp_fx.frontend import propagate, trace
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.branches import DropBranches, RemoveDeadBranches
from edp_fx.passes.constants import FoldConstants
from edp_fx.passes.fold import FoldBatchNorm
from edp_fx.passes.fuse import FusePairs, UnfusePairs
from edp_fx.passes.insert import InsertPairs
from edp_fx.passes.merge import MergePairs
from edp_fx.passes.prune import Prune

INPUT = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.head(self.c(x + self.b(x)))


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return trace(Net().eval(), INPUT)


def inserted() -> fx.GraphModule:
    return InsertPairs(layers=("b",))(traced()).graph_module


def fused() -> fx.GraphModule:
    return FusePairs()(inserted()).graph_module


def dead_branch() -> fx.GraphModule:
    gm = traced()
    nn.init.zeros_(gm.b.weight)
    nn.init.zeros_(gm.b.bias)
    return gm


def constant_channel() -> fx.GraphModule:
    gm = traced()
    nn.init.zeros_(gm.c.weight)
    return gm


def node(gm: fx.GraphModule, target: str) -> fx.Node:
    return next(one for one in gm.graph.nodes if one.target == target)


def call_whole(gm: fx.GraphModule) -> None:
    """Call a pair as a whole, although that is for training only."""
    gm.b = Pair.from_layer(gm.b)


def without_values(gm: fx.GraphModule) -> None:
    for one in gm.graph.nodes:
        one.meta.pop("val", None)


def with_two_tensors(gm: fx.GraphModule) -> None:
    node(gm, "b").args *= 2


def without_basis(gm: fx.GraphModule) -> None:
    basis = node(gm, "b.basis")
    basis.replace_all_uses_with(basis.args[0])
    gm.graph.erase_node(basis)


def without_node(gm: fx.GraphModule, name: str) -> None:
    last = next(one for one in gm.graph.nodes if one.op == "output")
    for one in reversed(list(gm.graph.nodes)):
        if one.name == name:
            one.replace_all_uses_with(one.all_input_nodes[0])
            gm.graph.erase_node(one)
    assert last.args


@dataclass
class Case:
    """A pass for a graph, what spoils the graph before it, and what spoils its result."""

    graph: Callable[[], fx.GraphModule]
    make: Callable[[fx.GraphModule], Pass]
    before: Callable[[fx.GraphModule], Any]
    after: Callable[[PassResult], Any]


def half_of_a(gm: fx.GraphModule) -> Pass:
    graph = analyze(gm, INPUT)
    group = next(one for one in graph.prunable if "a" in one.producers)
    return Prune(graph, {group.id: np.arange(group.size) % 2 == 0})


CASES = {
    InsertPairs: Case(
        traced,
        lambda gm: InsertPairs(layers=("b",)),
        without_values,
        lambda r: setattr(r.graph_module, "b", nn.Identity()),
    ),
    FusePairs: Case(
        inserted, lambda gm: FusePairs(), without_basis, lambda r: setattr(node(r.graph_module, "b"), "target", "a")
    ),
    UnfusePairs: Case(
        fused,
        lambda gm: UnfusePairs(),
        with_two_tensors,
        lambda r: setattr(node(r.graph_module, "b.basis"), "target", "b"),
    ),
    MergePairs: Case(
        inserted,
        lambda gm: MergePairs(lambda name, pair: False),
        without_basis,
        lambda r: setattr(r.graph_module, "b", Pair.from_layer(r.graph_module.b)),
    ),
    DropBranches: Case(
        traced,
        lambda gm: DropBranches(find_branches(traced(), analyze(traced(), INPUT))),
        lambda gm: without_node(gm, "add"),
        lambda r: setattr(node(r.graph_module, "c"), "name", "add"),
    ),
    RemoveDeadBranches: Case(
        dead_branch,
        lambda gm: RemoveDeadBranches(),
        without_values,
        lambda r: setattr(node(r.graph_module, "c"), "name", "add"),
    ),
    FoldConstants: Case(
        constant_channel,
        lambda gm: FoldConstants(),
        call_whole,
        lambda r: nn.init.ones_(r.graph_module.c.bias),
    ),
    FoldBatchNorm: Case(
        traced,
        lambda gm: FoldBatchNorm(),
        call_whole,
        lambda r: setattr(r.graph_module, "b", nn.BatchNorm2d(8)),
    ),
    Prune: Case(
        traced,
        half_of_a,
        lambda gm: setattr(gm.c, "weight", nn.Parameter(torch.zeros(5, 8, 1, 1))),
        lambda r: setattr(r.graph_module.a, "weight", nn.Parameter(torch.zeros(7, 3, 3, 3))),
    ),
}


def passes() -> Iterator[type[Pass]]:
    for module in pkgutil.iter_modules(edp_fx.passes.__path__):
        importlib.import_module(f"edp_fx.passes.{module.name}")
    waiting = Pass.__subclasses__()
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__.startswith("edp_fx."):
            yield one


def test_every_pass_is_a_frozen_dataclass_with_conditions_of_its_own() -> None:
    found = list(passes())
    assert set(CASES) <= set(found)
    for one in found:
        assert is_dataclass(one), one
        assert one.__dataclass_params__.frozen, one
        assert "__doc__" in vars(one) and not inspect.getdoc(one).startswith(f"{one.__name__}("), one
        assert one.requires is not Pass.requires, one
        assert one.ensures is not Pass.ensures, one
        assert any(kind in CASES for kind in one.__mro__), f"no case for {one.__name__}"


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_what_a_pass_needs_is_checked(kind: type[Pass]) -> None:
    case = CASES[kind]
    gm = case.graph()
    one = case.make(gm)
    case.before(gm)
    with pytest.raises(PassError, match=rf"{one.name}: .*'\w+"):
        one(gm)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_what_a_pass_promises_is_checked(kind: type[Pass]) -> None:
    case = CASES[kind]
    gm = case.graph()
    one = case.make(gm)
    result = one(gm)
    assert result.report.rewritten
    case.after(result)
    with pytest.raises(PassError, match=rf"{one.name}: .*'\w+"):
        one.ensures(result)


def test_a_graph_that_calls_what_is_not_there_is_no_result() -> None:
    @dataclass(frozen=True)
    class Loses(Pass):
        """Forgets a module."""

        name = "loses"

        def requires(self, gm: fx.GraphModule) -> None:
            """Nothing."""

        def call(self, gm: fx.GraphModule) -> PassResult:
            del gm.b
            return PassResult(gm, True, PassReport(self.name, ["b"]))

        def ensures(self, result: PassResult) -> None:
            """Nothing."""

    with pytest.raises(PassError, match=r"loses: .*b"):
        Loses()(traced())


def test_refusals_of_fusing_are_in_the_report() -> None:
    gm = inserted()
    basis = node(gm, "b.basis")
    with gm.graph.inserting_after(basis):
        gm.graph.call_method("relu", (basis,))
    report = FusePairs()(gm).report
    assert [one.node for one in report.refused] == ["b.basis"]
    propagate(gm, INPUT)
