"""A channel graph as a picture's data: which nodes are drawn, what is folded into them, which groups they carry."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

if TYPE_CHECKING:
    from edp_fx.channels import ChannelGraph

_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_MOST_SEGMENTS = 40  # of a node's colour bar


def drawing(graph: ChannelGraph) -> dict[str, Any]:
    """:meth:`ChannelGraph.to_json` plus what a picture of it needs.

    Each node gets the places of its inputs that are tensors (``in``), the node it is folded into where only layers
    and joins are drawn (``into``: itself where it is drawn, -1 for size arithmetic), the groups on its channels with
    the number of indices of each (``carries``), the roles its parameters play (``roles``: group -> roles) and its
    share of the multiply-accumulates (``macs_share``). ``frozen_reasons`` is :func:`frozen_reasons`.
    """
    data = graph.to_json()
    data["frozen_reasons"] = frozen_reasons(graph)
    nodes: list[dict[str, Any]] = data["nodes"]
    index = {node["name"]: k for k, node in enumerate(nodes)}
    sources = _sources(graph.gm, nodes, index)
    roles = _roles(data["groups"], nodes)
    macs = _macs(graph)
    into = _folded(nodes, sources, roles, macs)
    carries = _carried(graph)
    for k, node in enumerate(nodes):
        del node["groups"], node["inputs"]
        node["in"] = sources[k]
        node["into"] = into[k]
        node["carries"] = carries.get(node["name"], [])
        node["roles"] = {str(group): sorted(found) for group, found in sorted(roles[k].items())}
        node["macs_share"] = macs.get(node["name"], 0.0)
    return data


def frozen_reasons(graph: ChannelGraph) -> list[tuple[str, int]]:
    """Why output channels are frozen and how many, most first; a reason found at several places counts once."""
    counts: dict[str, int] = {}
    places: dict[str, list[str]] = {}
    for text, count in graph.summary()["frozen"].items():
        reason, found, place = text.removesuffix(")").rpartition(" (")
        reason, place = (reason, place) if found and " at " in place else (text, "")
        counts[reason] = counts.get(reason, 0) + count
        places.setdefault(reason, []).append(place.rpartition(" at ")[2])
    result = []
    for reason, count in sorted(counts.items(), key=lambda one: -one[1]):
        first, *others = places[reason]
        more = f" and {len(others)} more" if others else ""
        result.append((f"{reason}, at {first}{more}" if first else reason, count))
    return result


def _sources(gm: fx.GraphModule, nodes: list[dict[str, Any]], index: dict[str, int]) -> list[list[int]]:
    """Per node, its inputs that are tensors. A concatenation that extends an earlier one reads that one: dense
    blocks are a chain of joins, not a web."""
    sources = [[index[name] for name in node["inputs"] if nodes[index[name]]["shapes"]] for node in nodes]
    joined: dict[tuple[Any, ...], int] = {}
    for k, node in enumerate(gm.graph.nodes):
        if node.op != "call_function" or node.target not in _CONCATENATIONS or not node.args:
            continue
        pieces = node.args[0]
        if not isinstance(pieces, (list, tuple)) or not all(isinstance(one, fx.Node) for one in pieces):
            continue
        rest = (repr(node.args[1:]), repr(node.kwargs))
        names = tuple(index[one.name] for one in pieces)
        for count in range(len(names) - 1, 1, -1):
            earlier = joined.get((names[:count], rest))
            if earlier is not None:
                sources[k] = [earlier, *names[count:]]
                break
        joined.setdefault((names, rest), k)
    return sources


def _roles(groups: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> list[dict[int, set[str]]]:
    """Per node, the groups its parameters take part in. A parameter belongs to the nodes of the innermost module
    (or attribute) around it that the graph shows."""
    at: dict[str, list[int]] = defaultdict(list)
    for k, node in enumerate(nodes):
        if node["layer"]:
            at[node["layer"]].append(k)
    result: list[dict[int, set[str]]] = [{} for _ in nodes]
    for group in groups:
        for member in group["members"]:
            path = member["parameter"]
            while path and path not in at:
                path = path.rpartition(".")[0]
            for k in at.get(path, ()):
                result[k].setdefault(group["id"], set()).add(member["role"])
    return result


def _macs(graph: ChannelGraph) -> dict[str, float]:
    found: dict[str, float] = {}
    for site in graph.analysis.sites:
        found[site.node] = found.get(site.node, 0.0) + site.macs({})
    total = sum(found.values())
    return {node: cost / total for node, cost in found.items()} if total else {}


def _folded(
    nodes: list[dict[str, Any]], sources: list[list[int]], roles: list[dict[int, set[str]]], macs: dict[str, float]
) -> list[int]:
    """Per node, the node it is drawn as part of. Drawn are inputs, outputs, what multiplies (layers, attention)
    and what joins several tensors; a norm, an activation or a reshape goes with the tensor it changes, a bare
    parameter with the operation that reads it."""
    into = [-1] * len(nodes)
    live = [False] * len(nodes)  # depends on the input, or on a layer
    waiting: dict[int, list[int]] = {}  # computed from parameters alone, not drawn yet
    for k, node in enumerate(nodes):
        layer = node["name"] in macs or any(role in ("producer", "consumer") for r in roles[k].values() for role in r)
        drawn = node["kind"] in ("placeholder", "output") or (layer and node["kind"] != "get_attr")
        read = [one for one in sources[k] if live[one]]
        live[k] = drawn or bool(read)
        if not node["shapes"] and not drawn:
            live[k] = False
            continue
        bare = [k] + [one for source in sources[k] if not live[source] for one in waiting.get(source, [source])]
        if not live[k]:
            waiting[k] = bare
            continue
        into[k] = into[read[0]] if len(set(read)) == 1 and not drawn else k
        for one in bare:
            into[one] = into[k] if into[one] < 0 else into[one]
    return into


def _carried(graph: ChannelGraph) -> dict[str, list[list[int]]]:
    """Node name -> [group, number of indices] in the order of its channels."""
    view = graph.analysis.views[0]
    group_of = np.full(int(view.component.max()) + 1, -1, dtype=np.int64)
    for group in graph.groups:
        if group.view == 0:
            group_of[group.components] = group.id
    result: dict[str, list[list[int]]] = {}
    for name, tensors in view.sweep.outputs.items():
        counts: dict[int, int] = {}
        for _, labels in tensors:
            for factor in labels:
                atoms = factor.atoms.ravel()
                for found, count in _runs(np.where(atoms > 0, group_of[view.component[atoms]], -1)):
                    counts[found] = counts.get(found, 0) + count
        known = [[found, count] for found, count in counts.items() if found >= 0][:_MOST_SEGMENTS]
        if known:
            result[name] = known
    return result


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    if not values.size:
        return []
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, values.size])
    return list(zip(values[starts].tolist(), lengths.tolist()))
