"""``CostModel``: what a network costs under any keep-set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.channels.counts import Keep
from edp_fx.cost.device import Device
from edp_fx.cost.launches import launch_terms
from edp_fx.cost.terms import (
    PairTerms,
    Term,
    Terms,
    mac_terms,
    parameter_terms,
    with_positions,
    with_traffic,
)
from edp_fx.cost.times import Times
from edp_fx.errors import BudgetError
from edp_fx.pairs import Pair
from edp_fx.passes.merge import Chooser, by_weights

Floats = NDArray[np.float64]
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
            from trained ones) or ``"latency"`` (milliseconds of one batch on ``device``).
        device: what ``"latency"`` is of.
        batch: images of a call there.
        changes: what the terms become one after the other by what may go, beside indices of axes.
        traffic: added for every number that a layer puts out (by MACs).
        position: added for every position of what a layer puts out, be its channels as few as they will; once for what
            may become two layers (by MACs).

    Raises:
        BudgetError: the metric is unknown, or latency is asked for without a device.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        graph: ChannelGraph,
        metric: str = "macs",
        device: Device | None = None,
        changes: Sequence[Callable[[Terms], Terms]] = (),
        traffic: float = 0.0,
        position: float = 0.0,
        batch: int = 1,
    ) -> None:
        if metric not in METRICS:
            raise BudgetError(f"cost metric {metric!r} is unknown: use one of {', '.join(METRICS)}")
        if (metric == "latency") != (device is not None):
            raise BudgetError("a cost of latency, and no other, is of a device: give device=load_device(NAME)")
        self.metric, self.device, self.batch = metric, device, batch
        self._scale = 1.0
        if metric == "macs":
            terms = mac_terms(gm, graph)
            self._scale = 1.0 / max(1, graph.example_inputs[0].shape[0])
        elif metric == "params":
            terms = parameter_terms(gm, graph)
        else:
            assert device is not None
            terms = launch_terms(gm, graph, device.fuses, batch, device.attention)
        terms = with_positions(terms, position)
        for change in changes:
            terms = change(terms)
        self._plain, self._pairs = with_traffic(terms, traffic)
        self.times: Times | None = None
        if device is not None:
            forms = (term for pair in self._pairs for term in (pair.basis, pair.coefficient, pair.merged))
            self.times = Times.made([*self._plain, *forms], device)
        self.dense = self.total({})

    @property
    def terms(self) -> tuple[list[Term], list[PairTerms], float]:
        """Terms outside pairs, pairs, and the factor of their sum: for evaluation in bulk."""
        return self._plain, self._pairs, self._scale

    def total(self, keep: Keep) -> float:
        """Cost under ``keep``, every pair at the cheaper of its two forms."""
        if self.times is not None:
            plain, two, merged = self._timed(keep)
            return float(plain.sum() + np.minimum(two, merged).sum())
        cost = sum(term.cost(keep) for term in self._plain)
        cost += sum(pair.best(keep) for pair in self._pairs)
        return cost * self._scale

    def keep_pair(self, keep: Keep) -> Chooser:
        """Whether a pair, pruned to ``keep``, costs less as two layers than merged: for :class:`MergePairs`.

        A pair that is no node of the graph (in a module kept whole, or never called), or whose weights count for
        another's, is judged by its weights alone.
        """
        if self.times is not None:
            _, two, merged = self._timed(keep)
        else:
            two = np.array([pair.as_two(keep) for pair in self._pairs])
            merged = np.array([pair.merged.cost(keep) for pair in self._pairs])
        forms: dict[str, tuple[float, float]] = {}
        for pair, apart, one in zip(self._pairs, two, merged, strict=True):
            before = forms.get(pair.name, (0.0, 0.0))
            forms[pair.name] = before[0] + apart, before[1] + one

        def cheaper_as_two(name: str, module: Pair) -> bool:
            if name not in forms:
                return by_weights(name, module)
            apart, one = forms[name]
            return bool(apart < one)

        return cheaper_as_two

    def _timed(self, keep: Keep) -> tuple[Floats, Floats, Floats]:
        """Milliseconds of what stands outside pairs, of the pairs as two layers, and merged."""
        assert self.times is not None
        counts = np.array([*(axis.alive(keep) for axis in self.times.axes), 1.0])
        return self.times.split(self.times.of(counts), len(self._plain))
