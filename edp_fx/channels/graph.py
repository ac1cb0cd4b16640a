"""``ChannelGraph``: the result of the analysis, to look at and to prune by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
from torch import fx

from edp_fx.channels.analysis import Analysis
from edp_fx.channels.groups import Group
from edp_fx.refusal import Reason, Refusal, by_reason


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Groups of channels that go together, found by :func:`edp_fx.analyze`.

    A *keep-set* maps group ids to boolean arrays of ``group.size`` (True = kept); groups not named stay whole.

    Attributes:
        gm: the network analysed, as a graph.
        example_inputs: what it was analysed on.
        analysis: what the passes read; nobody who only looks needs it.
        unproved: why pruning could not be compared with masked execution; None where it was, or was not to be.
    """

    gm: fx.GraphModule
    example_inputs: tuple[Any, ...]
    analysis: Analysis
    unproved: str | None = None

    @property
    def groups(self) -> list[Group]:
        """All groups, by id."""
        return self.analysis.groups

    def group(self, group_id: int) -> Group:
        """The group with this id. Raises AnalysisError where there is none."""
        return self.analysis.group(group_id)

    @property
    def prunable(self) -> list[Group]:
        """Groups of which something can be removed."""
        return [group for group in self.groups if group.prunable]

    @property
    def unknown_ops(self) -> dict[str, str]:
        """Operations without a rule (everything they touch is frozen) -> the first node that has one."""
        return {op: where.node for view in self.analysis.views for op, where in view.ledger.unknown_ops.items()}

    @cached_property
    def output_groups(self) -> dict[str, list[Group]]:
        """Layer name -> the groups its output channels belong to."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            for layer in group.producers:
                found.setdefault(layer, []).append(group)
        return found

    def explain(self, name: str) -> str:
        """A sentence on why the layer ``name`` is or is not prunable and with whom it is tied."""
        from edp_fx.channels.describe import explain

        return explain(self, name)

    def summary(self) -> dict[str, Any]:
        """Counts and shares, see :func:`edp_fx.channels.describe.summary`."""
        from edp_fx.channels.describe import summary

        return summary(self)

    def refusals(self) -> list[Reason]:
        """Why layers keep all their output channels, and which: the reason of most layers first."""
        frozen = [group for group in self.groups if group.frozen is not None]
        return by_reason(Refusal(layer, str(group.frozen)) for group in frozen for layer in group.producers)

    def table(self, tablefmt: str = "simple", width: int | None = None) -> str:
        """One row a group, as text in any of tabulate's formats; lines are cut to ``width`` columns where it is given.

        A group's share of the MACs or parameters is what goes with all of it. A weight goes with its inputs as well as
        with its outputs, so the shares add up to more than 100 %.
        """
        from edp_fx.channels.describe import table

        return table(self, tablefmt, width)

    def to_networkx(self) -> nx.Graph:
        """Layers and groups as nodes; an edge says in which role, and by which operations, they are tied."""
        from edp_fx.channels.export import to_networkx

        return to_networkx(self)

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain lists and dicts."""
        from edp_fx.channels.export import to_json

        return to_json(self)
