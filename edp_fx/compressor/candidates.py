"""What may be removed from a network and what that saves: found anew whenever its shape has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.compressor.clock import Clock
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.kinds.base import Kind, Removable
from edp_fx.compressor.prices import Prices
from edp_fx.compressor.selection import Selector
from edp_fx.cost import POSITION, TRAFFIC, CostModel, Device
from edp_fx.validation.checked import analyze


@dataclass(frozen=True)
class Scope:
    """What may go and what is counted; see :class:`~edp_fx.Method` for each.

    Attributes:
        metric: ``macs``, ``params`` or ``latency``.
        kinds: of groups that may go.
        allow_inexact: also groups whose removal changes the function otherwise.
        align: counts are kept multiples of so many.
        device: what a budget of latency is of.
        batch: images of a call there.
        trained: only what trained parameters weigh: the others have no gradient.
    """

    metric: str
    kinds: tuple[Kind, ...]
    allow_inexact: bool
    align: int
    trained: bool
    device: Device | None = None
    batch: int = 1


class Candidates:
    """What may go from an explicit graph.

    Attributes:
        graph: its analysis.
        cost: the network's cost in the metric under any keep-set.
        work: what forms of layers and elements are compared by; ``cost`` but where MACs are counted at the widths the
            network had as it came.
        elements: the flat index of what may go.
        untrained: groups that stay because no gradient weighs them.

    Args:
        gm: the network, its pairs explicit.
        example_inputs: what it takes.
        scope: what may go and what is counted.
        check: prove the analysis.
    """

    def __init__(self, gm: fx.GraphModule, example_inputs: tuple[Any, ...], scope: Scope, check: bool = False) -> None:
        self._scope = scope
        heads = next((kind.heads for kind in scope.kinds if kind.heads != Kind.heads), Kind.heads)
        self.graph: ChannelGraph = analyze(gm, example_inputs, heads, check)
        self.untrained: list[Removable] = []
        groups = self._find(gm)
        changes = [
            partial(kind.cost, groups=mine, metric=scope.metric)
            for kind in scope.kinds
            if (mine := [group for group in groups if group.kind == kind.name])
        ]
        self.cost = CostModel(gm, self.graph, scope.metric, scope.device, changes, batch=scope.batch)
        self.work = self.cost
        self._at_present = any(kind.pays_by_width for kind in scope.kinds)
        if scope.metric == "macs" and not self._at_present:
            self.work = CostModel(gm, self.graph, changes=changes, traffic=TRAFFIC, position=POSITION)
        self.elements = Elements(groups, dict(gm.named_parameters()))
        self._prices: Prices | Clock
        if scope.device is not None:
            self._prices = Clock(self.cost, self.elements)
            return
        self._prices = Prices(self.cost, self.elements)
        self._work_prices = self._prices if self.work is self.cost else Prices(self.work, self.elements)

    def _find(self, gm: fx.GraphModule) -> list[Removable]:
        """The groups of all kinds, those of the analysis first, in its order."""
        frozen = {name for name, one in gm.named_parameters() if self._scope.trained and not one.requires_grad}
        found: list[Removable] = []
        own: list[Removable] = []
        first_id = -1
        for kind in self._scope.kinds:
            mine = kind.find(gm, self.graph, first_id)
            first_id = min([first_id, *(group.id - 1 for group in mine)])
            for group in mine:
                if not group.exact and not self._scope.allow_inexact:
                    continue
                if not frozen.isdisjoint(kind.weighed_by(group)):
                    self.untrained.append(group)
                else:
                    (own if group.id < 0 else found).append(group)
        return [*sorted(found, key=lambda group: group.id), *own]

    def floors(self, least: Sequence[float] | NDArray[Any]) -> NDArray[np.int64]:
        """The fewest elements each group keeps [groups]: ``least`` as its kind and ``align`` allow."""
        elements, align = self.elements, self._scope.align
        return np.array(
            [
                kind.floor(float(few), int(size), align)
                for kind, few, size in zip(elements.kinds, least, elements.sizes, strict=True)
            ],
            dtype=np.int64,
        )

    def selector(self, floors: NDArray[np.int64], sizes: NDArray[np.float64]) -> Selector:
        """What chooses, given the floors and the sizes [groups] that the groups had in the network as it came."""
        elements, align = self.elements, self._scope.align
        if self._at_present or self._scope.device is not None:
            return Selector(elements, self._prices, floors, align=align)
        thins = np.array([kind.thins for kind in elements.kinds], dtype=bool)
        widths = np.where(thins, sizes / elements.sizes, 0.0)[elements.group_of]
        return Selector(elements, self._prices, floors, self._work_prices, widths, align)
