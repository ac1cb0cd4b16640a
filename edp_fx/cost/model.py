"""``CostModel``: what a network costs under any keep-set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.counts import Keep
from edp_fx.cost.latency import MeasuredChoice, latency_terms
from edp_fx.cost.terms import (
    PairTerms,
    Term,
    Terms,
    mac_terms,
    parameter_terms,
    with_positions,
    with_traffic,
)
from edp_fx.errors import BudgetError
from edp_fx.latency import LatencyTable
from edp_fx.pairs import Pair
from edp_fx.passes.merge import Chooser, by_weights

METRICS = ("macs", "params", "latency")
TRAFFIC, POSITION = 64.0, 1000.0
"""MACs that a number counts for which a layer puts out, and that a position of its output counts whatever its channels,
where forms of layers and elements are compared.

Whoever runs the network writes and reads each number, and computes channels in blocks and layers one after the other:
few channels at many positions take about as long as many. In a training step on a processor (bfloat16: convolution,
batch norm, activation) a number takes as long as 100 to 140 MACs, a position as 600 to 1,500 (``python -m
benchmarks.widths``, six times). The more a number counts, the fewer feature maps stay, above all large ones, which
decisions early in a run would rather keep: with 100 MACs networks of 0.15 of their MACs were level or up to 0.2 points
less accurate (docs/benchmarks.md). The more a position counts, the sooner a residual branch goes as a whole instead of
staying with a few channels.
"""


class CostModel:
    """Cost of a network with explicit pairs under any keep-set, every pair counted as min(pair, merged).

    ``dense`` is the cost with nothing removed, all pairs merged: the original network's.

    Args:
        gm: a graph with explicit pairs.
        graph: its analysis.
        metric: ``"macs"`` (multiply-accumulates of one sample), ``"params"`` (parameters that are trained or merged
            from trained ones) or ``"latency"`` (milliseconds of one batch of ``table.batch``, see
            :func:`edp_fx.cost.latency.latency_terms` for how they follow the sizes).
        table: measures layers for ``"latency"``; ``LatencyTable()`` where None.
        changes: what the terms become one after the other by what may go, beside indices of axes.
        traffic: added for every number that a layer puts out (by MACs).
        position: added for every position of what a layer puts out, be its channels as few as they will; once for what
            may become two layers (by MACs).

    Raises:
        BudgetError: the metric is unknown.
        LoweringError: the table's runtime cannot run the network.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        graph: ChannelGraph,
        metric: str = "macs",
        table: LatencyTable | None = None,
        changes: Sequence[Callable[[Terms], Terms]] = (),
        traffic: float = 0.0,
        position: float = 0.0,
    ) -> None:
        if metric not in METRICS:
            raise BudgetError(f"cost metric {metric!r} is unknown: use one of {', '.join(METRICS)}")
        self.metric, self.table = metric, table
        self._scale = 1.0
        self._measured: MeasuredChoice | None = None
        if metric == "macs":
            terms = mac_terms(gm, graph)
            self._scale = 1.0 / max(1, graph.example_inputs[0].shape[0])
        elif metric == "params":
            terms = parameter_terms(gm, graph)
        else:
            self.table = table or LatencyTable()
            terms = latency_terms(gm, graph, self.table)
            self._measured = MeasuredChoice(gm, graph.analysis.node_shapes, self.table)
        terms = with_positions(terms, position)
        for change in changes:
            terms = change(terms)
        self._plain, self._pairs = with_traffic(terms, traffic)
        self.dense = self.total({})

    @property
    def terms(self) -> tuple[list[Term], list[PairTerms], float]:
        """Terms outside pairs, pairs, and the factor of their sum: for evaluation in bulk."""
        return self._plain, self._pairs, self._scale

    def total(self, keep: Keep) -> float:
        """Cost under ``keep``, every pair at the cheaper of its two forms."""
        cost = sum(term.cost(keep) for term in self._plain)
        cost += sum(pair.best(keep) for pair in self._pairs)
        return cost * self._scale

    def keep_pair(self, keep: Keep) -> Chooser:
        """Whether a pair, pruned to ``keep``, costs less as two layers than merged: for :class:`MergePairs`.

        By latency both forms are measured at the very sizes they ended with. A pair that is no node of the graph (in a
        module kept whole, or never called), or whose weights count for another's, is judged by its weights alone.
        """
        if self._measured is not None:
            return self._measured
        by_name: dict[str, list[PairTerms]] = {}
        for pair in self._pairs:
            by_name.setdefault(pair.name, []).append(pair)

        def cheaper_as_two(name: str, module: Pair) -> bool:
            found = by_name.get(name)
            if found is None:
                return by_weights(name, module)
            return sum(one.as_two(keep) for one in found) < sum(one.merged.cost(keep) for one in found)

        return cheaper_as_two
