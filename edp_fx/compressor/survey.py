"""What may be removed from a network and what that saves: looked at anew whenever its shape has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edp_fx.channels import ChannelGraph, Group, analyze
from edp_fx.channels.kernels import Kernels, find_kernels
from edp_fx.channels.residuals import Branch, find_branches
from edp_fx.compressor.elements import WHOLE, Elements
from edp_fx.compressor.prices import Prices
from edp_fx.compressor.removals import aligned_floors
from edp_fx.compressor.selection import Selector
from edp_fx.cost import POSITION, TRAFFIC, CostModel
from edp_fx.latency import LatencyTable


@dataclass(frozen=True)
class Wanted:
    """What may go and what is counted; see :class:`~edp_fx.compressor.Compressor` for each.

    Attributes:
        metric: ``macs``, ``params`` or ``latency``.
        kinds: of :data:`~edp_fx.compressor.KINDS`.
        allow_inexact: also groups whose removal changes the function otherwise.
        align: counts are kept multiples of so many.
        table: measures layers for a budget of latency.
        trained: only what a layer that is trained reads: the others have no gradient to weigh it by.
    """

    metric: str
    kinds: tuple[str, ...]
    allow_inexact: bool
    align: int
    table: LatencyTable | None
    trained: bool

    @property
    def ranks(self) -> bool:
        """Whether ranks may go, which pay or not by the widths there are: then all is priced by MACs at those."""
        return "rank" in self.kinds


class Survey:
    """One look at an explicit graph.

    Attributes:
        graph: its analysis.
        kernels: layers that may become a depthwise and a pointwise one.
        branches: what residual connections add, that may go as a whole.
        cost: the network's cost in the metric under any keep-set.
        work: what forms of layers and elements are compared by; ``cost`` but where MACs are counted without ranks.
        elements: the flat index of what may go.
        untrained: groups that stay because a layer that reads them is not trained.

    Args:
        gm: the network, its pairs explicit.
        example_inputs: what it takes.
        wanted: what may go and what is counted.
    """

    def __init__(self, gm: fx.GraphModule, example_inputs: tuple[Any, ...], wanted: Wanted) -> None:
        self._wanted = wanted
        self.graph: ChannelGraph = analyze(gm, example_inputs)
        frozen = {name for name, one in gm.named_parameters() if wanted.trained and not one.requires_grad}
        kernels = find_kernels(gm) if "kernel" in wanted.kinds else []
        branches = find_branches(gm, self.graph, -1 - len(kernels)) if "branch" in wanted.kinds else []
        self.kernels: Sequence[Kernels] = [one for one in kernels if one.parameter not in frozen]
        self.branches: Sequence[Branch] = [one for one in branches if frozen.isdisjoint(one.parameters)]
        self.cost = CostModel(gm, self.graph, wanted.metric, wanted.table, self.kernels, self.branches)
        self.work = self.cost
        if wanted.metric == "macs" and not wanted.ranks:
            self.work = CostModel(
                gm,
                self.graph,
                kernels=self.kernels,
                branches=self.branches,
                traffic=TRAFFIC,
                position=POSITION,
            )
        groups = [
            group
            for group in self.graph.groups
            if group.prunable and group.kind in wanted.kinds and (group.exact or wanted.allow_inexact)
        ]
        self.untrained = [group for group in groups if not frozen.isdisjoint(_readers(group))]
        groups = [group for group in groups if group not in self.untrained]
        self.elements = Elements([*groups, *self.kernels, *self.branches], dict(gm.named_parameters()))
        self._prices = Prices(self.cost, self.elements)
        self._work_prices = self._prices if self.work is self.cost else Prices(self.work, self.elements)

    def floors(self, wanted: NDArray[Any]) -> NDArray[np.int64]:
        """The fewest elements each group keeps [groups]: ``wanted`` as ``align`` allows, none for kernels
        and branches."""
        floors = aligned_floors(wanted, self.elements.sizes, self._wanted.align)
        return np.where(np.isin(self.elements.kinds, WHOLE), 0, floors)

    def selector(self, floors: NDArray[np.int64], sizes: NDArray[np.float64]) -> Selector:
        """What chooses, given the floors and the sizes [groups] that the groups had in the network as it came."""
        elements, align = self.elements, self._wanted.align
        if self._wanted.ranks:
            return Selector(elements, self._prices, floors, align=align)
        widths = np.where(elements.kinds == "channel", sizes / elements.sizes, 0.0)[elements.group_of]
        return Selector(elements, self._prices, floors, self._work_prices, widths, align)


def _readers(group: Group) -> list[str]:
    """Parameters that a group is weighed by: its consumers', or its producers' where no parameter reads it."""
    by_role: dict[str, list[str]] = {}
    for member in group.members:
        by_role.setdefault(member.role, []).append(member.parameter)
    return by_role.get("consumer") or by_role.get("producer", [])
