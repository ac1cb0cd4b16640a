"""Residual branches: the f in x + f(x), which can go as a whole."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

from edp_fx.channels.graph import ChannelGraph
from edp_fx.channels.homogeneous import Trials
from edp_fx.channels.readers import read_once

_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True, eq=False)
class Branch:
    """What a residual connection adds to its input: a group of one element, kept or removed.

    Attributes:
        id: negative, unlike those of the groups of channels.
        name: the graph node of the sum.
        operand: position of the operand of the sum that stays, 0 or 1.
        nodes: the graph nodes that nothing but the branch needs.
        parameters: those of its last layer, in which the branch is linear, all with the output channels first.
        channels: how many those are.
    """

    id: int
    name: str
    operand: int
    nodes: tuple[str, ...]
    parameters: tuple[str, ...]
    channels: int
    kind: ClassVar[str] = "branch"
    size: ClassVar[int] = 1
    exact: ClassVar[bool] = True


def find_branches(gm: fx.GraphModule, graph: ChannelGraph, first_id: int = -1) -> list[Branch]:
    """Every branch of an explicit graph, analysed, that a layer of its own can scale, ids from ``first_id`` down."""
    shapes, trials, once = graph.analysis.node_shapes, Trials(gm, graph), read_once(gm)
    found: list[Branch] = []
    for node in gm.graph.nodes:
        if not is_sum(node):
            continue
        for operand in (0, 1):
            skip, end = node.args[operand], node.args[1 - operand]
            if not isinstance(end, fx.Node) or not isinstance(skip, fx.Node):
                continue
            if not shapes.get(node.name) or shapes[node.name] != shapes.get(skip.name):  # of sizes, or broadcast
                continue
            inside = _inside(gm, end, node)
            if not any(_source(gm, skip) is _source(gm, one) for user in inside for one in user.all_input_nodes):
                continue
            layer = _last_layer(gm, trials, end, inside)
            if layer is None:
                continue
            parameters = dict(gm.get_submodule(layer).named_parameters())
            lengths = {len(one) if one.dim() else 0 for one in parameters.values()}
            if len(lengths) == 1 and 0 not in lengths and all(once(layer, name) for name in parameters):
                names = tuple(one.name for one in inside)
                found.append(
                    Branch(
                        first_id - len(found),
                        node.name,
                        operand,
                        names,
                        tuple(f"{layer}.{name}" for name in parameters),
                        lengths.pop(),
                    )
                )
                break
    return found


def is_sum(node: fx.Node) -> bool:
    """Whether a node is a + b, be it in place."""
    called = node.op in ("call_function", "call_method")
    return called and node.target in _SUMS and len(node.args) == 2 and not node.kwargs


def _source(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """``node`` before any identities."""
    while node.op == "call_module" and type(gm.get_submodule(str(node.target))) is nn.Identity:
        (node,) = node.all_input_nodes
    return node


def _inside(gm: fx.GraphModule, end: fx.Node, total: fx.Node) -> list[fx.Node]:
    """Nodes whose values go nowhere but by ``end`` into ``total``, last first."""
    inside: dict[fx.Node, None] = {}
    for node in reversed(gm.graph.nodes):
        users = list(node.users)
        only = users == [total] if node is end else bool(users) and all(user in inside for user in users)
        if only and node.op != "placeholder":
            inside[node] = None
    return list(inside)


def _last_layer(gm: fx.GraphModule, trials: Trials, end: fx.Node, inside: Collection[fx.Node]) -> str | None:
    """The layer inside whose parameters scale ``end``: behind it only what passes a factor on."""
    node: fx.Node | None = end
    while node is not None and node in inside:
        if node.op == "call_module" and any(True for _ in gm.get_submodule(str(node.target)).parameters()):
            transposed = isinstance(gm.get_submodule(str(node.target)), nn.modules.conv._ConvTransposeNd)
            return str(node.target) if not transposed and trials.linear_in_parameters(node) else None
        node = trials.homogeneous(node)
    return None
