"""Branches whose output is exactly zero: drop them from the sums they are added to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edp_fx.channels.residuals import Branch, is_sum
from edp_fx.errors import PassError
from edp_fx.frontend.aliases import Aliases
from edp_fx.frontend.normal_form import is_impure
from edp_fx.frontend.running import called_module
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.elementwise import ELEMENTWISE


@dataclass(frozen=True)
class DropBranches(Pass):
    """x + f(x) becomes x for each branch given; exact where f(x) is 0.

    Attributes:
        branches: of this very, explicit graph.
    """

    name: ClassVar[str] = "drop_branches"
    branches: Sequence[Branch] = ()

    def requires(self, gm: fx.GraphModule) -> None:
        """The branches are of this graph. Raises PassError naming the sum that is not there."""
        nodes = {node.name: node for node in gm.graph.nodes}
        for branch in self.branches:
            total = nodes.get(branch.name)
            if total is None or not is_sum(total):
                raise PassError(f"{self.name}: there is no sum {branch.name!r} of a branch and what stays")

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        nodes = {node.name: node for node in gm.graph.nodes}
        for branch in reversed(self.branches):  # what stays of one may be the sum of the one before
            total = nodes[branch.name]
            _replace(gm, total, total.args[branch.operand])
            report.rewritten.append(branch.name)
        return _swept(gm, report)

    def ensures(self, result: PassResult) -> None:
        """The sums are gone. Raises PassError naming the one that is not."""
        _check_gone(result, self.name)


@dataclass(frozen=True)
class RemoveDeadBranches(Pass):
    """x + 0 becomes x, and what made the 0 goes.

    A branch is zero where its last layer has zero weights and no bias, or its last batch norm zero scale and shift,
    with nothing behind it but elementwise modules that keep 0. Works on a graph with shapes in ``meta["val"]``.
    """

    name: ClassVar[str] = "remove_dead_branches"
    preserves: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """Sums have shapes. Raises PassError naming the one that has none."""
        for node in gm.graph.nodes:
            if is_sum(node) and "val" not in node.meta:
                raise PassError(f"{self.name}: node {node.name!r} has no shape; run propagate first")

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        zero: set[fx.Node] = set()
        for node in list(gm.graph.nodes):
            if _is_zero(gm, node, zero):
                zero.add(node)
            elif is_sum(node):
                kept = [one for one in node.args if one not in zero]
                if len(kept) == 1 and isinstance(kept[0], fx.Node) and _shape(kept[0]) == _shape(node) is not None:
                    if self.leaves(node.name, report):
                        continue
                    _replace(gm, node, kept[0])
                    report.rewritten.append(node.name)
                elif len(kept) == 1:
                    report.refuse(node.name, "its other operand is stretched to the shape of the zero")
        return _swept(gm, report)

    def ensures(self, result: PassResult) -> None:
        """The sums are gone. Raises PassError naming the one that is not."""
        _check_gone(result, self.name)


def _check_gone(result: PassResult, name: str) -> None:
    left = {node.name for node in result.graph_module.graph.nodes}
    for total in result.report.rewritten:
        if total in left:
            raise PassError(f"{name}: the sum {total!r} is there still")


def _replace(gm: fx.GraphModule, total: fx.Node, kept: fx.Node) -> None:
    """Let ``kept`` take the place of a sum, whose value was nobody else's: what changes either in place afterwards may
    not change the other."""
    aliases = Aliases(gm)
    same = total in aliases.of(kept)  # a sum in place: they were one value before, too
    if not same and (aliases.changed_after(total, total) or aliases.changed_after(total, kept)):
        user = next(iter(total.users), total)  # a sum that nothing reads has none
        calls = [one for one in gm.graph.nodes if one.op == user.op == "call_module" and one.target == user.target]
        changing = [one for one, target in aliases.writers.items() if target in aliases.of(total) and one is not total]
        if list(total.users) == calls == changing and not aliases.changed_after(total, kept):
            setattr(gm.get_submodule(str(user.target)), "inplace", False)  # noqa: B010
        else:
            with gm.graph.inserting_before(total):
                copied = gm.graph.call_method("clone", (kept,))
            copied.meta, kept = dict(total.meta), copied
    total.replace_all_uses_with(kept)
    gm.graph.erase_node(total)


def _swept(gm: fx.GraphModule, report: PassReport) -> PassResult:
    """Without what nothing needs any more."""
    if report.rewritten:
        aliases = Aliases(gm)
        for node in reversed(list(gm.graph.nodes)):
            if node.users or node.op in ("placeholder", "output"):
                continue
            if aliases.seen_after(node) if node in aliases.writers else node.op != "call_module" and is_impure(node):
                continue
            gm.graph.erase_node(node)
        gm.delete_all_unused_submodules()
        gm.recompile()
    return PassResult(gm, bool(report.rewritten), report)


def _shape(node: fx.Node) -> torch.Size | None:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


def _is_zero(gm: fx.GraphModule, node: fx.Node, zero: set[fx.Node]) -> bool:
    module = called_module(gm, node)
    if module is None:
        return False
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm)) and isinstance(weight, Tensor):
        layer = type(module).forward in (
            nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, _BatchNorm.forward
        )  # fmt: skip
        return layer and not bool((weight != 0).any()) and (bias is None or not bool((bias != 0).any()))
    if type(module) in ELEMENTWISE and node.args and node.args[0] in zero:
        with torch.no_grad():
            return not bool((module(torch.zeros(1, device="cpu")) != 0).any())
    return False
