"""Between the explicit form of a pair (two nodes) and the form that trains as one layer (one node)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from edp_fx.errors import PassError
from edp_fx.frontend.running import called_module
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult


def _pair_of(gm: fx.GraphModule, node: fx.Node) -> Pair | None:
    """The pair whose basis a node calls, when its only use is the pair's coefficient."""
    if node.op != "call_module" or not str(node.target).endswith(".basis") or len(node.users) != 1:
        return None
    home = str(node.target).removesuffix(".basis")
    user = next(iter(node.users))
    if user.op != "call_module" or user.target != f"{home}.coefficient":
        return None
    container: Any = gm.get_submodule(home)
    if isinstance(container, Pair):
        return container
    # Graph modules made from others may hold the two layers in a bare container.
    pair = Pair(container.basis, container.coefficient).train(container.training)
    owner, _, leaf = home.rpartition(".")
    parent: nn.Module = gm.get_submodule(owner)
    parent._modules[leaf] = pair
    return pair


def _apart(gm: fx.GraphModule) -> list[tuple[fx.Node, str]]:
    """Calls of a basis that cannot be fused, and why."""
    found = []
    for node in gm.graph.nodes:
        home, _, leaf = str(node.target).rpartition(".")
        if node.op == "call_module" and leaf == "basis" and isinstance(gm.get_submodule(home), Pair):
            if len(node.users) != 1:
                found.append((node, f"its result has {len(node.users)} readers, not the coefficient alone"))
            elif next(iter(node.users)).target != f"{home}.coefficient":
                found.append((node, "its result is not read by the coefficient"))
    return found


def _calls(gm: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}


def require_halves(gm: fx.GraphModule, name: str) -> None:
    """Raise PassError where a graph calls the coefficient of a pair but not its basis."""
    called = _calls(gm)
    for target in called:
        home, _, leaf = target.rpartition(".")
        if leaf == "coefficient" and f"{home}.basis" not in called and isinstance(gm.get_submodule(home), Pair):
            raise PassError(f"{name}: {target!r} is called without its basis")


@dataclass(frozen=True)
class FusePairs(Pass):
    """Make each explicit pair one node, which computes W = C·B and runs one layer: for training."""

    name: ClassVar[str] = "fuse_pairs"
    preserves: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """The halves of a pair are called one after the other, or not at all. Raises PassError naming the half."""
        require_halves(gm, self.name)

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Fuse the pairs of ``gm``."""
        report = PassReport(self.name)
        for node, reason in _apart(gm):
            report.refuse(str(node.target), reason)
        for node in list(gm.graph.nodes):
            if _pair_of(gm, node) is None:
                continue
            home = str(node.target).removesuffix(".basis")
            if self.leaves(home, report):
                continue
            coefficient = next(iter(node.users))
            with gm.graph.inserting_before(coefficient):
                call = gm.graph.call_module(home, node.args, node.kwargs)
            call.meta = dict(coefficient.meta)
            coefficient.replace_all_uses_with(call)
            gm.graph.erase_node(coefficient)
            gm.graph.erase_node(node)
            report.rewritten.append(home)
        if report.rewritten:
            gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """Every pair fused is one call of a pair. Raises PassError naming the pair."""
        called, refused = _calls(result.graph_module), {one.node for one in result.report.refused}
        for home in result.report.rewritten:
            if home not in called or f"{home}.basis" in called - refused:
                raise PassError(f"{self.name}: pair {home!r} is not one call")


@dataclass(frozen=True)
class UnfusePairs(Pass):
    """Make each pair that is one node two again, ``NAME.basis`` and ``NAME.coefficient``: for analysis."""

    name: ClassVar[str] = "unfuse_pairs"
    preserves: ClassVar[bool] = True

    def requires(self, gm: fx.GraphModule) -> None:
        """A pair takes one tensor. Raises PassError naming the node that gives it something else."""
        for node in gm.graph.nodes:
            if isinstance(called_module(gm, node), Pair) and len([*node.args, *node.kwargs]) != 1:
                raise PassError(f"{self.name}: node {node.name!r} does not call a pair with one tensor")

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Unfuse the pairs of ``gm``."""
        report = PassReport(self.name)
        for node in list(gm.graph.nodes):
            if node.op != "call_module":
                continue
            home = str(node.target)
            pair = gm.get_submodule(home)
            if not isinstance(pair, Pair) or self.leaves(home, report):
                continue
            with gm.graph.inserting_before(node):
                basis = gm.graph.call_module(f"{home}.basis", node.args, node.kwargs)
                coefficient = gm.graph.call_module(f"{home}.coefficient", (basis,))
            basis.meta, coefficient.meta = dict(node.meta), dict(node.meta)
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                shape = list(value.shape)
                shape[-1 - pair.geometry.dims] = pair.rank * pair.groups
                basis.meta["val"] = value.new_empty(shape)
            node.replace_all_uses_with(coefficient)
            gm.graph.erase_node(node)
            report.rewritten.append(home)
        if report.rewritten:
            gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """Every pair is called in two halves. Raises PassError naming the pair."""
        called = _calls(result.graph_module)
        for home in result.report.rewritten:
            if home in called or not {f"{home}.basis", f"{home}.coefficient"} <= called:
                raise PassError(f"{self.name}: pair {home!r} is not two calls")
