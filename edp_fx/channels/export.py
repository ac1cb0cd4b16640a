"""A channel graph for other programs: networkx, GraphML, DOT, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from edp_fx.channels.describe import status, summary

if TYPE_CHECKING:
    from edp_fx.channels.graph import ChannelGraph
    from edp_fx.channels.groups import Member


def to_networkx(graph: ChannelGraph) -> nx.Graph:
    """Nodes are layers (``type="layer"``) and groups (``type="group"``, named ``group 3``); attributes are plain."""
    result = nx.Graph()
    for group in graph.groups:
        if not any(member.role in ("producer", "consumer") for member in group.members) and not group.prunable:
            continue
        name = f"group {group.id}"
        result.add_node(
            name,
            type="group",
            kind=group.kind,
            size=group.size,
            status=status(group),
            exact=group.exact,
            prunable=group.prunable,
            macs_share=group.macs_share,
            params_share=group.params_share,
            tied_by="; ".join(f"{op} at {node}" for node, op in group.ties),
        )
        for member in group.members:
            layer = member.layer or member.parameter
            result.add_node(layer, type="layer")
            edge = f"{member.parameter}[{member.axis}]"
            if result.has_edge(layer, name):
                known = result.edges[layer, name]
                known["members"] += f", {edge}"
                known["role"] = (
                    known["role"] if member.role in known["role"].split("+") else f"{known['role']}+{member.role}"
                )
            else:
                result.add_edge(layer, name, role=member.role, members=edge)
    return result


def to_json(graph: ChannelGraph) -> dict[str, Any]:
    """Summary, groups with members, the graph's nodes in order with their inputs and groups."""
    of_layer: dict[str, dict[str, list[int]]] = {}
    for group in graph.groups:
        for member in group.members:
            slot = of_layer.setdefault(member.layer, {"producer": [], "consumer": [], "affine": [], "other": []})
            if group.id not in slot[member.role]:
                slot[member.role].append(group.id)
    outputs = graph.analysis.views[0].sweep.outputs
    nodes = []
    for node in graph.gm.graph.nodes:
        layer = str(node.target) if node.op in ("call_module", "get_attr") else ""
        module = graph.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        op = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        nodes.append(
            {
                "name": node.name,
                "kind": node.op,
                "op": op,
                "layer": layer,
                "inputs": [one.name for one in node.all_input_nodes],
                "shapes": [list(shape) for shape, _ in outputs.get(node.name, [])],
                "groups": of_layer.get(layer, {}) if layer else {},
            }
        )
    return {
        "summary": summary(graph),
        "groups": [
            {
                "id": group.id,
                "name": group.name,
                "kind": group.kind,
                "size": group.size,
                "prunable": group.prunable,
                "exact": group.exact,
                "status": status(group),
                "frozen": group.frozen,
                "inexact_reasons": list(group.inexact_reasons),
                "macs_share": group.macs_share,
                "params_share": group.params_share,
                "producers": list(group.producers),
                "consumers": list(group.consumers),
                "ties": [{"node": node, "op": op} for node, op in group.ties],
                "members": [_member(member) for member in group.members],
            }
            for group in graph.groups
        ],
        "nodes": nodes,
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "parameter": member.parameter,
        "axis": member.axis,
        "role": member.role,
        "length": int(member.owner.size),
        "indices": ranges(np.flatnonzero(member.owner >= 0)),
    }


def ranges(indices: np.ndarray) -> str:
    """Sorted indices as ``0-63,128-191``."""
    if not indices.size:
        return ""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts, ends = np.r_[indices[0], indices[breaks + 1]], np.r_[indices[breaks], indices[-1]]
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in zip(starts, ends))


def write_graphml(graph: ChannelGraph, path: Path) -> None:
    """GraphML, as networkx writes it."""
    nx.write_graphml(to_networkx(graph), path)


def to_dot(graph: ChannelGraph) -> str:
    """Graphviz DOT text: boxes are layers, ellipses groups; frozen ones grey."""
    lines = ["graph channels {", "  rankdir=LR;"]
    drawn = to_networkx(graph)
    for name, data in drawn.nodes(data=True):
        if data["type"] == "layer":
            lines.append(f"  {_quote(name)} [shape=box];")
        else:
            colour = "black" if data["prunable"] else "gray60"
            label = _quote(f"{name}\\n{data['kind']} x {data['size']}")
            lines.append(
                f"  {_quote(name)} [shape=ellipse, color={colour}, label={label}, tooltip={_quote(data['status'])}];"
            )
    for left, right, data in drawn.edges(data=True):
        style = "solid" if "producer" in data["role"] else "dashed"
        lines.append(f"  {_quote(left)} -- {_quote(right)} [style={style}, tooltip={_quote(data['members'])}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quote(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
