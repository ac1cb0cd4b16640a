"""What the weights in a graph are computed from: two are one where they come from the same tensors in the same way."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edp_fx.frontend.running import attribute, run_node

_MOVING: frozenset[Any] = frozenset(
    {
        operator.getitem, torch.split, torch.chunk, torch.tensor_split, torch.unbind, torch.narrow, torch.transpose,
        torch.t, torch.permute, torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze,
        "split", "chunk", "tensor_split", "unbind", "narrow", "transpose", "t", "permute", "reshape", "view", "flatten",
        "unflatten", "squeeze", "unsqueeze", "contiguous", "select",
    }
)  # fmt: skip


def expression(gm: nn.Module, value: Any) -> Hashable:
    """Equal for values that are computed by the same operations from the very same parameters and buffers."""
    if isinstance(value, fx.Node):
        if value.op == "get_attr":
            return ("tensor", id(attribute(gm, str(value.target))))
        return (value.op, value.target, expression(gm, value.args), expression(gm, value.kwargs))
    if isinstance(value, (tuple, list)):
        return tuple(expression(gm, one) for one in value)
    if isinstance(value, dict):
        return tuple((key, expression(gm, one)) for key, one in value.items())
    if isinstance(value, slice):
        return ("slice", *(expression(gm, one) for one in (value.start, value.stop, value.step)))
    return (type(value), value if isinstance(value, Hashable) else id(value))


def entries(gm: nn.Module, weight: fx.Node) -> dict[int, np.ndarray]:
    """Of each tensor a weight is computed from, by id, the mask of the entries it takes: all, unless it only moves
    some of one tensor."""
    sources: dict[fx.Node, Tensor] = {}
    moved, pending = True, [weight]
    while pending:
        node = pending.pop()
        if node.op == "get_attr":
            sources[node] = attribute(gm, str(node.target))
        else:
            moved &= node.target in _MOVING
            pending += node.all_input_nodes
    whole = {id(one): np.ones(one.numel(), dtype=bool) for one in sources.values()}
    if not moved or len(whole) != 1:
        return whole
    (taken,) = whole.values()
    known = {node: torch.arange(one.numel()).view(one.shape) for node, one in sources.items()}

    def value(node: fx.Node) -> Any:
        if node not in known:
            known[node] = run_node(gm, node, value)
        return known[node]

    taken[:] = False
    taken[value(weight).flatten().numpy()] = True
    return whole
