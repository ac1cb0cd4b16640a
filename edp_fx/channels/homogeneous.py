"""Whether an operation passes a factor on, tried with numbers: so that layers of any origin count, by what they do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from edp_fx.channels.graph import ChannelGraph
from edp_fx.frontend.running import attribute, run_node, submodule

_FACTOR = 0.5  # a power of two: products with it are exact
_CLOSE = 1e-4


@torch.no_grad()
def is_homogeneous(gm: fx.GraphModule, graph: ChannelGraph, node: fx.Node) -> fx.Node | None:
    """The one input of ``node`` that depends on the graph's, where ``node`` of g times it is g times ``node``, for
    0 <= g <= 1; None otherwise."""
    sources = [one for one in node.all_input_nodes if graph.node_shapes.get(one.name) and not _constant(one)]
    if len(sources) != 1 or node.op not in ("call_function", "call_method", "call_module"):
        return None
    (source,) = sources
    given = _random(gm, graph, source)

    def at(factor: float) -> Any:
        return _evaluated(gm, graph, node, {source: given * factor})

    return source if _scaled(at, factors=(1.0, _FACTOR, 0.0)) else None


@torch.no_grad()
def is_linear_in_parameters(gm: fx.GraphModule, graph: ChannelGraph, node: fx.Node) -> bool:
    """Whether the output of the layer that ``node`` calls is g times as large when all its parameters are."""
    if len(node.all_input_nodes) != 1 or len(node.args) != 1:
        return False
    layer = copy.deepcopy(submodule(gm, str(node.target))).eval()
    given = _random(gm, graph, node.all_input_nodes[0])
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.randn(one.shape, generator=generator).to(one.device, one.dtype)
        for name, one in layer.named_parameters()
    }

    def at(factor: float) -> Any:
        scaled = {name: one * factor for name, one in parameters.items()}
        return functional_call(layer, scaled, (given.clone(),))

    return _scaled(at, factors=(1.0, _FACTOR, 0.0))


def _scaled(at: Callable[[float], Any], factors: tuple[float, ...]) -> bool:
    try:
        whole, *others = (at(factor) for factor in factors)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # what cannot be tried is not known to
    if not isinstance(whole, Tensor) or not whole.is_floating_point() or not bool(whole.any()):
        return False
    scale = float(whole.abs().max())
    return all(
        bool((other - whole * factor).abs().max() <= _CLOSE * scale)
        for factor, other in zip(factors[1:], others, strict=True)
    )


def _constant(node: fx.Node) -> bool:
    """Whether a value depends on parameters and buffers only."""
    if node.op == "get_attr":
        return True
    return node.op != "placeholder" and bool(node.all_input_nodes) and all(map(_constant, node.all_input_nodes))


def _random(gm: fx.GraphModule, graph: ChannelGraph, node: fx.Node) -> Tensor:
    """Numbers of the shape of a node's value."""
    first = next(gm.parameters())
    (shape,) = graph.node_shapes[node.name]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)


def _evaluated(gm: fx.GraphModule, graph: ChannelGraph, node: fx.Node, known: dict[fx.Node, Tensor]) -> Any:
    """The value of ``node`` from those given, parameters and sizes."""

    def value_of(one: fx.Node) -> Any:
        if one in known:
            return known[one].clone()  # what works in place spoils nothing
        if one.op == "get_attr":
            return attribute(gm, str(one.target))
        return graph.node_scalars[one.name] if one.name in graph.node_scalars else _evaluated(gm, graph, one, known)

    if node.op != "call_module":
        return run_node(gm, node, value_of)
    layer = submodule(gm, str(node.target))
    training = layer.training
    layer.eval()
    try:
        return run_node(gm, node, value_of)
    finally:
        layer.train(training)
