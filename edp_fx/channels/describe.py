"""A channel graph in words, tables and counts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from edp_fx.errors import AnalysisError
from edp_fx.refusal import some

if TYPE_CHECKING:
    from edp_fx.channels.graph import ChannelGraph
    from edp_fx.channels.groups import Group


_MOST = 3  # groups told of in one explanation


def summary(graph: ChannelGraph) -> dict[str, Any]:
    """Counts over a graph.

    ``channels``: output channels of all conv and linear layers but those that are outputs of the model;
    ``prunable_share``: of these, in a prunable group; ``exact_share``: of the prunable ones, in exact groups;
    ``frozen``: reason -> number of channels.
    """
    channels = prunable = exact = 0
    frozen: Counter[str] = Counter()
    for group in graph.groups:
        if group.kind == "rank" or (group.kind == "head" and group.view == 1):
            continue  # no channels of the network; the same channels as in the first view
        made = sum(int((member.owner >= 0).sum()) for member in group.members if member.role == "producer")
        if group.is_output:
            continue
        channels += made
        if group.prunable:
            prunable += made
            exact += made if group.exact else 0
        elif made:
            frozen[group.frozen or ""] += made
    return {
        "groups": len(graph.prunable),
        "frozen_groups": len(graph.groups) - len(graph.prunable),
        "channels": channels,
        "prunable": prunable,
        "prunable_share": prunable / channels if channels else 0.0,
        "exact_share": exact / prunable if prunable else 1.0,
        "frozen": dict(frozen.most_common()),
        "opaque_ops": sorted(graph.unknown_ops),
    }


def table(graph: ChannelGraph, tablefmt: str, width: int | None) -> str:
    """One row a group that has channels, and what there is to know of the columns."""
    rows = []
    for group in graph.groups:
        if not group.producers and not group.prunable:
            continue
        rows.append(
            [
                group.id,
                group.name,
                group.kind,
                group.size if group.prunable else "-",
                some(group.producers, 2),
                some(group.consumers, 2),
                f"{100 * group.macs_share:.1f}%",
                f"{100 * group.params_share:.1f}%",
                status(group),
            ]
        )
    heads = ["id", "group", "kind", "size", "producers", "consumers", "MACs", "params", "status"]
    text = tabulate(rows, headers=heads, tablefmt=tablefmt, disable_numparse=True)
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    lines = [line if len(line) <= width else line[: width - 1] + "…" for line in text.splitlines()]
    return "\n".join([*lines, f"(cut to the {width} columns of the terminal: a pipe or a file gets the whole lines)"])


def status(group: Group) -> str:
    """``exact``, ``inexact: reason`` or ``frozen: reason``."""
    if group.frozen is not None:
        return f"frozen: {group.frozen}"
    return "exact" if group.exact else f"inexact: {group.inexact_reasons[0]}"


def explain(graph: ChannelGraph, name: str) -> str:
    """Why the output channels of layer ``name`` can or cannot be removed. Raises AnalysisError for an unknown name."""
    target = name
    for node in graph.gm.graph.nodes:
        if node.name == name and node.op == "call_module":
            target = node.target
    groups = graph.output_groups.get(target) or graph.output_groups.get(f"{target}.coefficient")
    if not groups:
        members = [g for g in graph.groups if any(m.layer == target or m.parameter == target for m in g.members)]
        if not members:
            import difflib

            known = sorted({m.layer for g in graph.groups for m in g.members})
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
            raise AnalysisError(
                f"no layer {name!r} with channels" + (f": did you mean {', '.join(near)}?" if near else "")
            )
        groups = members
    layers = {node.name for node in graph.gm.graph.nodes if node.op == "call_module"}
    said = [_sentence(target, group, layers) for group in groups[:_MOST]]
    if len(groups) > _MOST:
        said.append(f"{target}: its channels are in {len(groups) - _MOST} groups more, from {groups[_MOST].id} on.")
    return " ".join(said)


def _sentence(layer: str, group: Group, layers: set[str]) -> str:
    if group.frozen is not None:
        return f"{layer}: group {group.id} cannot be pruned: {group.frozen}."
    others = [one for one in group.producers if one != layer]
    tied = f", tied to {some(others)}" if others else ", tied to no other layer"
    how = [f"{op.removeprefix('aten.').split('.')[0]} at {node}" for node, op in group.ties if node not in layers]
    by = f" (by {some(how)})" if others and how else ""
    reads = f"; read by {some(group.consumers)}" if group.consumers else ""
    exactness = "exact" if group.exact else f"inexact, because {some(group.inexact_reasons, 1)}"
    return f"{layer}: {group.size} prunable channels in group {group.id}{tied}{by}{reads}; removal is {exactness}."
