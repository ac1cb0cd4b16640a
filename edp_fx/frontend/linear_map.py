"""The linear map inside a layer of another class: padding, a computed weight, or what else its forward does around it.

A subclass of a convolution or linear layer that pads its input, standardises or scales its weight reduces to one
functional convolution or linear map whose weight depends on parameters only: the weight is evaluated, and what happens
before and after stays in the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.frontend.normal_form import remove_dead_code
from edp_fx.frontend.tracer import ModuleTracer
from edp_fx.geometry import FUNCTIONS, Geometry, layer_arguments
from edp_fx.inputs import eval_mode


@dataclass(frozen=True)
class LinearMap:
    """What the forward of a layer is.

    Attributes:
        graph: of the forward.
        inner: the node of it that is the map.
        geometry: of the map.
        weight: its weight, in eval mode.
        bias: likewise; None for none.
        constants: the nodes whose values depend on parameters and buffers only.
        literals: sizes of parameters that the code around the map reads, by value.
    """

    graph: fx.Graph
    inner: fx.Node
    geometry: Geometry
    weight: Tensor
    bias: Tensor | None
    constants: set[fx.Node]
    literals: dict[fx.Node, Any]

    def replace(
        self, gm: fx.GraphModule, node: fx.Node, home: str, module: nn.Module, make: Callable[[Any, fx.Node], fx.Node]
    ) -> None:
        """Put what is around the map into ``gm`` in the place of ``node``, and what ``make`` gives for the map.

        Args:
            gm: where ``node`` calls ``module``.
            node: replaced; its arguments are the inputs of the layer.
            home: modules inside the layer move beside it.
            module: the layer.
            make: (input of the map, the map's node) -> a node at the insertion point.
        """
        copies: dict[fx.Node, Any] = dict(self.literals)
        arguments = list(node.args) + list(node.kwargs.values())
        with gm.graph.inserting_before(node):
            for one in self.graph.nodes:
                if one in self.constants:
                    continue
                if one.op == "placeholder":
                    copies[one] = arguments.pop(0)
                elif one is self.inner:
                    copies[one] = make(fx.node.map_arg(layer_arguments(one)["input"], lambda n: copies[n]), one)
                elif one.op == "output":
                    node.replace_all_uses_with(fx.node.map_arg(one.args[0], lambda n: copies[n]))
                else:
                    copies[one] = gm.graph.node_copy(one, lambda n: copies[n])
                    if one.op == "call_module":  # a module inside the layer, which goes: it moves beside it
                        copies[one].target = beside(gm, home, str(one.target), module)
        gm.graph.erase_node(node)


def beside(gm: fx.GraphModule, home: str, name: str, layer: nn.Module) -> str:
    """Put a module that ``layer`` owns next to ``home``; its new name."""
    owner, _, leaf = f"{home}_{name.replace('.', '_')}".rpartition(".")
    module, place = layer.get_submodule(name), gm.get_submodule(owner)
    names = (f"{leaf}_{index}" if index else leaf for index in itertools.count())
    leaf = next(one for one in names if getattr(place, one, module) is module)
    place._modules[leaf] = module
    return f"{owner}.{leaf}" if owner else leaf


def linear_map(node: fx.Node, module: nn.Module) -> LinearMap | str:
    """The graph of a layer's forward and what its linear map is; a string says why there is none."""
    what = type(module).__name__
    values = [a.meta["val"] for a in node.args if isinstance(a, fx.Node)]
    if len(values) != len(node.args) or node.kwargs or not all(isinstance(v, Tensor) for v in values):
        return f"{what} is called with more than one tensor"
    try:
        tracer = ModuleTracer(tuple(values), training=module.training)
        graph = tracer.trace(module)
    except Exception as error:
        return f"{what} computes in a way that cannot be traced: {error}"
    remove_dead_code(graph)
    for one in graph.nodes:
        if one.op != "output":
            one.meta["val"] = tracer.mode.fake(one.meta["val"])
    layers = [one for one in graph.nodes if one.op == "call_function" and one.target in FUNCTIONS]
    if len(layers) != 1 or tracer.extra_modules or tracer.constant_values:
        return f"{what} is not one linear map"
    inner = layers[0]
    constants = _constants(graph)
    found = evaluated(module, inner, layer_arguments(inner), constants)
    if isinstance(found, str):
        return f"{what}: {found}"
    literals = _literals(module, graph, inner, constants)
    if literals is None:
        return f"{what} uses parameters apart from its linear map"
    geometry, weight, bias = found
    return LinearMap(graph, inner, geometry, weight, bias, constants, literals)


def _literals(module: nn.Module, graph: fx.Graph, inner: fx.Node, constants: set[fx.Node]) -> dict[fx.Node, Any] | None:
    """Sizes of parameters that the code around the linear map reads, by value; None where it reads more than sizes."""
    memo: dict[fx.Node, Any] = {}
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in constants or node is inner:
            continue
        for one in node.all_input_nodes:
            if one in constants:
                with eval_mode(module), torch.no_grad():
                    found[one] = _value(module, one, memo)
                if isinstance(found[one], Tensor):
                    return None
    return found


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value depends on parameters and buffers only."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op in ("call_function", "call_method", "call_module")
            and node.all_input_nodes
            and all(one in found for one in node.all_input_nodes)
        ):
            found.add(node)
    return found


def evaluated(root: nn.Module, inner: fx.Node, found: dict[str, Any], constants: set[fx.Node]) -> Any:
    """Geometry, effective weight and bias of a functional layer; a string when they are not constant."""
    weight, bias = found["weight"], found.get("bias")
    settings = {k: v for k, v in found.items() if k not in ("input", "weight", "bias")}
    if any(isinstance(n, fx.Node) for n in _leaves(settings)):
        return "its stride, padding or groups are computed in the graph"
    if weight not in constants or (bias is not None and bias not in constants):
        return "its weight is computed from the input"
    with eval_mode(root), torch.no_grad():
        memo: dict[fx.Node, Any] = {}
        return (
            Geometry.of_call(FUNCTIONS[inner.target], settings),
            _value(root, weight, memo),
            None if bias is None else _value(root, bias, memo),
        )


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, (tuple, list)):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value]


def _value(root: nn.Module, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
    if node not in memo:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _value(root, n, memo))
        if node.op == "get_attr":
            value: Any = root
            for atom in str(node.target).split("."):
                value = getattr(value, atom)
        elif node.op == "call_module":
            value = root.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        memo[node] = value
    return memo[node]
