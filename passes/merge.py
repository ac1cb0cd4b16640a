"""Merge: fold a pair back into one layer where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.fuse import FusePairs, UnfusePairs

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
    keep_pair: Chooser = by_weights

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        FusePairs().call(gm)
        merged: dict[int, Any] = {}
        for path, module in list(gm.named_modules(remove_duplicate=False)):
            if not isinstance(module, Pair):
                continue
            if self.keep_pair(path, module):
                report.refuse(path, f"rank {module.rank} is cheaper as two layers")
                continue
            layer = merged.setdefault(id(module), module.to_layer())
            owner, _, leaf = path.rpartition(".")
            gm.get_submodule(owner)._modules[leaf] = layer
            report.rewritten.append(path)
        UnfusePairs().call(gm)
        gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)
