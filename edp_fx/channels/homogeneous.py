"""Whether an operation passes a factor on, tried with numbers: so that layers of any origin count, by what they do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from edp_fx.channels.graph import ChannelGraph
from edp_fx.frontend.running import attribute, run_node, submodule

_FACTORS = (1.0, 0.5, 0.0)  # powers of two: products with them are exact
_CLOSE = 1e-4


class Trials:
    """Tries nodes of an analysed graph on random values.

    Parameters and buffers are random, too: what a graph is does not depend on where its training stands.
    """

    def __init__(self, gm: fx.GraphModule, graph: ChannelGraph) -> None:
        self._gm, self._analysis = gm, graph.analysis
        self._constant: set[fx.Node] = set()
        for node in gm.graph.nodes:
            before = node.all_input_nodes
            derived = node.op != "placeholder" and bool(before) and all(one in self._constant for one in before)
            if node.op == "get_attr" or derived:
                self._constant.add(node)

    @torch.no_grad()
    def homogeneous(self, node: fx.Node) -> fx.Node | None:
        """The one input of ``node`` that depends on the graph's, where ``node`` of g times it is g times ``node``, for
        0 <= g <= 1; None otherwise."""
        shapes = self._analysis.node_shapes
        sources = [one for one in node.all_input_nodes if shapes.get(one.name) and one not in self._constant]
        if len(sources) != 1 or node.op not in ("call_function", "call_method", "call_module"):
            return None
        (source,) = sources

        def at(factor: float) -> Any:
            return self._evaluated(node, {source: self._random(source) * factor})

        return source if _scaled(at) else None

    @torch.no_grad()
    def linear_in_parameters(self, node: fx.Node) -> bool:
        """Whether the output of the layer that ``node`` calls is g times as large when all its parameters are."""
        if len(node.all_input_nodes) != 1 or len(node.args) != 1:
            return False
        (source,) = node.all_input_nodes

        def at(factor: float) -> Any:
            layer = _random_copy(submodule(self._gm, str(node.target)))
            scaled = {name: one * factor for name, one in layer.named_parameters()}
            return functional_call(layer, scaled, (self._random(source),))

        return _scaled(at)

    def _random(self, node: fx.Node) -> Tensor:
        """Numbers of both signs of the shape of a node's value, large enough for what saturates."""
        first = next(self._gm.parameters())
        (shape,) = self._analysis.node_shapes[node.name]
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 8).to(first.device, first.dtype)

    def _evaluated(self, node: fx.Node, known: dict[fx.Node, Tensor]) -> Any:
        """The value of ``node`` from those given, random parameters, and sizes."""

        def value_of(one: fx.Node) -> Any:
            if one in known:
                return known[one].clone()  # what works in place spoils nothing
            if one.op == "get_attr":
                value = attribute(self._gm, str(one.target))
                return _numbers(value) if isinstance(value, Tensor) else value
            scalars = self._analysis.node_scalars
            return scalars[one.name] if one.name in scalars else self._evaluated(one, known)

        if node.op == "call_module":
            layer = _random_copy(submodule(self._gm, str(node.target)))
            args, kwargs = fx.node.map_arg(node.args, value_of), fx.node.map_arg(node.kwargs, value_of)
            return layer(*args, **kwargs)
        return run_node(self._gm, node, value_of)


def _scaled(at: Callable[[float], Any]) -> bool:
    try:
        whole, *others = (at(factor) for factor in _FACTORS)
    except Exception:  # what cannot be tried, whatever a layer raises, is not known to
        return False
    if not isinstance(whole, Tensor) or not whole.is_floating_point() or not bool(whole.any()):
        return False
    scale = float(whole.abs().max())
    return all(
        isinstance(other, Tensor) and bool((other - whole * factor).abs().max() <= _CLOSE * scale)
        for factor, other in zip(_FACTORS[1:], others, strict=True)
    )


def _numbers(like: Tensor) -> Tensor:
    """Random positive numbers of a tensor's shape, or the tensor where it holds no such: a variance has no sign."""
    if not like.is_floating_point():
        return like
    drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    return drawn.to(like.device, like.dtype)


def _random_copy(layer: nn.Module) -> nn.Module:
    copied = copy.deepcopy(layer).eval()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.copy_(_numbers(tensor))
    return copied
