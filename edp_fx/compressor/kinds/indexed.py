"""Groups of the channel analysis: elements that own indices along axes of parameters, and go by pruning."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from torch import fx

from edp_fx.channels import ChannelGraph, Group
from edp_fx.compressor.kinds.base import Applied, Flags, Kind, Part, Removable
from edp_fx.passes.prune import prune


def prune_groups(gm: fx.GraphModule, graph: ChannelGraph, removed: Mapping[Removable, Flags]) -> Applied:
    """Index-select all parameters by what is kept of the groups."""
    report = prune(gm, graph, {group.id: kept for group, kept in removed.items()}).report
    return Applied([report], dict(report.facts["kept"]))


class Indexed(Kind):
    """A kind of group that the analysis finds."""

    penalties = True
    rewrite = staticmethod(prune_groups)

    def find(self, gm: fx.GraphModule, graph: ChannelGraph, first_id: int) -> Sequence[Removable]:
        """The prunable ones."""
        return [group for group in graph.groups if group.prunable and group.kind == self.name]

    def weighed_by(self, group: Removable) -> Collection[str]:
        """Its consumers', or its producers' where no parameter reads it."""
        by_role: dict[str, list[str]] = {}
        for member in cast(Group, group).members:
            by_role.setdefault(member.role, []).append(member.parameter)
        return by_role.get("consumer") or by_role.get("producer", [])

    def parts(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """All that makes, scales and reads an element.

        The change of the loss when it goes is seen at its consumers' slices or, where no parameter consumes it (the
        product of queries and keys), at its producers'. All of it fades, since a layer norm on the way would feel an
        element that is only not read.
        """
        members = [member for member in cast(Group, group).members if member.parameter in parameters]
        consumed = any(member.role == "consumer" for member in members)
        for member in members:
            yield Part(
                member.parameter,
                member.axis,
                np.asarray(member.owner, dtype=np.int64),
                member.role,
                weighed=member.role == "consumer" if consumed else member.role != "other",
                penalised=member.role in ("producer", "affine"),
            )

    def readers(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """Its consumers, but transposed convolutions, whose inputs come first."""
        return (part for part in self.parts(group, parameters) if part.role == "consumer" and part.axis == 1)
