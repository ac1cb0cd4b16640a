"""The normal form of a traced graph: layers are module calls, dead code is gone."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edp_fx.geometry import FUNCTIONS, layer_arguments, plain_kind


def is_impure(node: fx.Node) -> bool:
    """Whether removing an unused node could change what the graph computes."""
    if node.op in ("placeholder", "output", "call_module"):
        return True
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        in_place |= getattr(operator, name, None) is node.target and name.startswith("i") and _mutates(node)
        in_place |= node.target is F.batch_norm and _moves_statistics(node)
        return in_place or node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None or node.is_impure()
    return False


def _moves_statistics(node: fx.Node) -> bool:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return given.get("running_mean") is not None and bool(given.get("training"))


def _mutates(node: fx.Node) -> bool:
    target = node.args[0] if node.args else None
    return isinstance(target, fx.Node) and isinstance(target.meta.get("val"), torch.Tensor)


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove nodes nothing uses, except those that change their arguments in place."""
    for node in reversed(list(graph.nodes)):
        if not node.users and not is_impure(node):
            graph.erase_node(node)


def use_modules(graph: fx.Graph, root: nn.Module) -> None:
    """Turn functional calls on a plain layer's own parameters into calls of that layer.

    ``F.linear(x, m.weight, m.bias)`` is the module ``m``; with another bias it is ``m``, which has none, plus it.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in FUNCTIONS:
            continue
        found = layer_arguments(node)
        weight, bias = found.get("weight"), found.get("bias")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        path, _, leaf = str(weight.target).rpartition(".")
        module = root.get_submodule(path)
        if (
            leaf != "weight"
            or FUNCTIONS[node.target] != plain_kind(module)
            or _has_hooks(module)
            or not _same_geometry(module, found)
        ):
            continue
        own = bias is None if module.bias is None else _is_attribute(bias, f"{path}.bias")
        foreign = isinstance(bias, fx.Node) and module.bias is None and node.target is F.linear
        if not own and not foreign:
            continue
        with graph.inserting_before(node):
            call = graph.call_module(path, (found["input"],))
            call.meta = dict(node.meta)
            result = call
            if foreign:
                result = graph.call_function(operator.add, (call, bias))
                result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _is_attribute(value: Any, name: str) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr" and value.target == name


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _same_geometry(module: nn.Module, found: dict[str, Any]) -> bool:
    """Whether stride, padding, dilation and groups given to the function are those of the module."""
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, nn.modules.conv._ConvNd) or module.padding_mode != "zeros":
        return False
    dims = len(module.kernel_size)

    def spread(value: Any) -> Any:
        return (value,) * dims if isinstance(value, int) else value if isinstance(value, str) else tuple(value)

    given = [spread(found.get(key, default)) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    own = [spread(module.stride), spread(module.padding), spread(module.dilation)]
    return given == own and found.get("groups", 1) == module.groups
