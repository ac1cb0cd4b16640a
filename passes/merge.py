"""Merge: fold a pair back into one layer where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from edp_fx.errors import PassError
from edp_fx.frontend.running import called_module
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.fuse import FusePairs, UnfusePairs, require_halves

Chooser = Callable[[str, Pair], bool]


def by_weights(name: str, pair: Pair) -> bool:
    """Keep the pair where basis and coefficient have fewer weights than the merged layer.

    For convolutions and linear layers this is also the order by multiply-accumulates: r < n·m / (n + m) with n
    outputs and m inputs times kernel positions (EDP, IEEE TNNLS 2021).
    """
    return pair.pair_cost() < pair.source_cost()


@dataclass(frozen=True)
class MergePairs(Pass):
    """Make every pair either two plain layers or one, whichever ``keep_pair(name, pair)`` says is cheaper.

    The result has explicit ``NAME.basis`` → ``NAME.coefficient`` nodes for pairs that stay.
    """

    name: ClassVar[str] = "merge_pairs"
    preserves: ClassVar[bool] = True
    keep_pair: Chooser = by_weights

    def requires(self, gm: fx.GraphModule) -> None:
        """Pairs are called as a whole or in both halves. Raises PassError naming the half that is alone."""
        require_halves(gm, self.name)

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        FusePairs().call(gm)
        called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
        paths: dict[int, list[str]] = {}
        pairs: dict[int, Pair] = {}
        for path, module in gm.named_modules(remove_duplicate=False):
            if isinstance(module, Pair):
                pairs[id(module)] = module
                paths.setdefault(id(module), []).append(path)
        for key, pair in pairs.items():
            name = next((path for path in paths[key] if path in called), paths[key][0])
            if any(self.leaves(path, report) for path in paths[key]):
                continue
            if self.keep_pair(name, pair):
                report.refuse(name, f"rank {pair.rank} is cheaper as two layers")
                continue
            layer = pair.to_layer()
            for path in paths[key]:
                owner, _, leaf = path.rpartition(".")
                gm.get_submodule(owner)._modules[leaf] = layer
                report.rewritten.append(path)
        UnfusePairs().call(gm)
        gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """What is merged is one plain layer, and pairs that stay are called in halves. Raises PassError naming it."""
        gm = result.graph_module
        for path in result.report.rewritten:
            if isinstance(gm.get_submodule(path), Pair):
                raise PassError(f"{self.name}: {path!r} is a pair still")
        for node in gm.graph.nodes:
            if isinstance(called_module(gm, node), Pair):
                raise PassError(f"{self.name}: node {node.name!r} calls a pair as a whole")
