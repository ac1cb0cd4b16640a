"""Layers of other classes as what they are: plain layers, and the operations around them.

The tracer keeps a layer whole where it is a subclass of a convolution, linear or norm layer, or where train and eval
mode differ inside. A file holds no code, so there what such a class computes has to stand in the graph; here its
forward is traced, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from edp_fx.errors import TraceError
from edp_fx.frontend.assemble import add_constant, assemble, share
from edp_fx.frontend.linear_map import LinearMap, beside, linear_map
from edp_fx.frontend.propagate import propagate
from edp_fx.frontend.running import attribute, submodule
from edp_fx.frontend.trace import trace
from edp_fx.inputs import COMPUTE_LAYERS, device_of, normalize


def unfold(gm: fx.GraphModule, example_inputs: Any, chosen: Callable[[type[nn.Module]], bool]) -> fx.GraphModule:
    """``gm`` itself where no node calls a layer of a chosen class, else a graph that shares its tensors and has the
    forward of each such layer in place of the call.

    A layer that is one convolution or linear map becomes the plain layer of the weight it computes with in eval mode,
    under its own name. A subclass of a batch norm becomes the plain norm where it calls ``super().forward``. Other
    layers become the operations of their forward, which read the layer's parameters under their old names.

    Args:
        gm: a traced network.
        example_inputs: a tensor or a tuple; None where the nodes know their shapes.
        chosen: whether layers of a class are to be written out.

    Raises:
        TraceError: a layer's forward cannot be traced; names it.
    """
    if not _chosen(gm, chosen):
        return gm
    known: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph(tracer_cls=fx.Tracer)
    for node in gm.graph.nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    made = assemble(gm, graph, {}, {})
    if example_inputs is not None:
        propagate(made, normalize(example_inputs, made))
    while found := _chosen(made, chosen):  # one may call another
        for path, layer in found.items():
            _write_out(made, path, layer)
    made.graph.lint()
    made.recompile()
    return made


def _chosen(gm: fx.GraphModule, chosen: Callable[[type[nn.Module]], bool]) -> dict[str, nn.Module]:
    """The layers of chosen classes that nodes call, by name."""
    names = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    called = {name: submodule(gm, name) for name in names}
    return {name: layer for name, layer in called.items() if chosen(_kind(layer))}


def _kind(layer: nn.Module) -> type[nn.Module]:
    """Its class; torch makes one of its own for every layer with parametrisations."""
    return type(layer).__bases__[0] if is_parametrized(layer) else type(layer)


def _write_out(gm: fx.GraphModule, path: str, layer: nn.Module) -> None:
    """Put what ``layer`` computes in the place of every node that calls it."""
    nodes = [node for node in gm.graph.nodes if node.op == "call_module" and node.target == path]
    for node in nodes:
        values = [one.meta.get("val") if isinstance(one, fx.Node) else None for one in node.args]
        if node.kwargs or not values or not all(isinstance(one, Tensor) for one in values):
            _refuse(path, layer, "it is not called with tensors alone, or they have no known shapes")
    maps = [linear_map(node, layer) for node in nodes] if isinstance(layer, COMPUTE_LAYERS) else []
    if maps and not layer._forward_hooks and not layer._forward_pre_hooks:
        found = [one for one in maps if isinstance(one, LinearMap)]
        if len(found) == len(nodes):
            plain = found[0].geometry.layer(found[0].weight, found[0].bias)
            plain.training = layer.training

            def call(source: Any, like: fx.Node) -> fx.Node:
                made = gm.graph.call_module(path, (source,))
                made.meta = dict(like.meta)
                return made

            for node, one in zip(nodes, found):
                one.replace(gm, node, path, layer, call)
            _put(gm, path, plain)
            return
    for node in nodes:
        _inline(gm, node, path, layer)
    _put(gm, path, _holder(layer))


def _inline(gm: fx.GraphModule, node: fx.Node, path: str, layer: nn.Module) -> None:
    """The nodes of the layer's forward in the place of ``node``."""
    inputs = tuple(_example(one.meta["val"], layer) for one in node.args)  # type: ignore[union-attr]
    try:
        traced = trace(_calling_its_norm(layer), inputs)
    except TraceError as error:
        _refuse(path, layer, str(error))
    known: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), node.args))
    with gm.graph.inserting_before(node):
        for one in traced.graph.nodes:
            if one.op in ("placeholder", "output"):
                continue
            copy = known[one] = gm.graph.node_copy(one, known.__getitem__)
            if one.op in ("get_attr", "call_module"):
                copy.target = _moved(gm, traced, str(one.target), path, layer)
    result: Any = fx.node.map_arg(traced.graph.output_node().args[0], known.__getitem__)
    node.replace_all_uses_with(result)
    gm.graph.erase_node(node)


def _moved(gm: fx.GraphModule, traced: fx.GraphModule, target: str, path: str, layer: nn.Module) -> str:
    """The name in ``gm`` of what ``traced`` calls ``target``: the layer's own, or what the trace made, beside it."""
    if target == _NORM:
        return path
    try:
        own = attribute(layer, target)
    except AttributeError:
        own = None
    value = attribute(traced, target)
    if own is value or isinstance(own, nn.Module):
        return f"{path}.{target}"
    if isinstance(value, nn.Module):
        return beside(gm, path, target, traced)
    name = f"{path}_{target.replace('.', '_')}"
    add_constant(gm, name, value)
    return name


def _example(value: Tensor, layer: nn.Module) -> Tensor:
    home = device_of(layer) or value.device
    if value.is_floating_point():
        return torch.randn(value.shape, dtype=value.dtype, device=home)
    return torch.zeros(value.shape, dtype=value.dtype, device=home)


# Norms: their statistics go on moving in train mode -----------------------------------------------------------

_NORM = "edp_fx_norm"


def _norm_class(kind: type[nn.Module]) -> Any:
    """torch's own class of a norm with statistics that ``kind`` is a subclass of; None for others."""
    if not issubclass(kind, _NormBase):
        return None
    return next(one for one in kind.__mro__ if one.__module__.startswith("torch.nn.") and one.__name__[0] != "_")


def _calling_its_norm(layer: nn.Module) -> nn.Module:
    """``layer``, or for a subclass of a norm a copy whose ``super().forward`` calls the plain norm as a module."""
    base = _norm_class(type(layer))
    if base is None:
        return layer

    class Norm(base):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any) -> Any:
            return self._modules[_NORM](*args)

    copy = share(layer, {})
    copy.__class__ = type(type(layer).__name__, (type(layer), Norm), {})
    copy._modules[_NORM] = _holder(layer)
    return copy


def _holder(layer: nn.Module) -> nn.Module:
    """What holds the layer's tensors and modules without its code: the plain norm for a subclass of one."""
    base = _norm_class(type(layer))
    if base is not None:
        made = share(layer, {})
        made.__class__ = base
        return made
    made = nn.Module()
    made.training = layer.training
    made._parameters, made._buffers, made._modules = layer._parameters, layer._buffers, layer._modules
    made._non_persistent_buffers_set = layer._non_persistent_buffers_set
    return made


def _put(gm: fx.GraphModule, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    gm.get_submodule(owner)._modules[leaf] = module


def _refuse(path: str, layer: nn.Module, reason: str) -> Any:
    raise TraceError(f"the layer {path!r} of your own class {type(layer).__name__}: {reason.rstrip('.')}")
