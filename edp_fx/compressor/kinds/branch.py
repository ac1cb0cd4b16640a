"""Residual branches: what a residual connection adds to its input goes as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.counts import AxisCount
from edp_fx.channels.residuals import Branch as Residual
from edp_fx.channels.residuals import find_branches
from edp_fx.compressor.kinds.base import Applied, Flags, Floats, Indices, Part, Removable, Whole, ratio
from edp_fx.compressor.savings import Savings
from edp_fx.cost.terms import PairTerms, Term, Terms
from edp_fx.passes.branches import DropBranches


class Branch(Whole):
    """The f in x + f(x)."""

    name = "branch"
    metrics = ("macs", "latency")

    def find(self, gm: fx.GraphModule, graph: ChannelGraph, first_id: int) -> Sequence[Removable]:
        """Those that a layer of their own can scale."""
        return find_branches(gm, graph, first_id)

    def weighed_by(self, group: Removable) -> Collection[str]:
        """The parameters of its last layer."""
        return cast(Residual, group).parameters

    def parts(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """All of its last layer, in which it is linear.

        It counts as all its output channels, each as one gate over the layer's parameters: as a single gate, a branch
        that makes up most of a sum would seem to matter little where a norm behind the sum undoes its scale.
        """
        residual = cast(Residual, group)
        owner = np.zeros(residual.channels, dtype=np.int64)
        for parameter in residual.parameters:
            if parameter in parameters:
                yield Part(parameter, 0, owner, self.name, each=True)

    def cost(self, terms: Terms, groups: Sequence[Removable], metric: str) -> Terms:
        """Nothing where it goes."""
        return with_branches(terms, cast(Sequence[Residual], groups))

    def prices(self, savings: Savings, group: int, losses: Floats, ends: Indices) -> Floats:
        """It goes as a whole, and so does what it costs by now."""
        return ratio(losses, savings.of_one_now(group))

    @staticmethod
    def rewrite(gm: fx.GraphModule, graph: ChannelGraph, removed: Mapping[Removable, Flags]) -> Applied:
        """Leave the sums with what stays."""
        return Applied([DropBranches(cast(Sequence[Residual], list(removed)))(gm).report])


def with_branches(terms: Terms, branches: Sequence[Residual]) -> Terms:
    """``terms`` where what stands in a branch that is left out costs nothing."""
    gates: dict[str, tuple[AxisCount, ...]] = {}
    for one in branches:
        gate = AxisCount(0.0, {one.id: np.ones(1)})
        for node in (*one.nodes, one.name):  # the sum goes with it
            gates[node] = (*gates.get(node, ()), gate)

    def gated(term: Term) -> Term:
        return replace(term, gates=(*term.gates, *gates.get(term.node, ())))

    return [gated(term) for term in terms[0]], [
        PairTerms(pair.name, gated(pair.basis), gated(pair.coefficient), gated(pair.merged)) for pair in terms[1]
    ]
