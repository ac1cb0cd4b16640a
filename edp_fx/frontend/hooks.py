"""Forward hooks of layers as nodes of the graph: what a hook does to inputs and outputs is the model's own code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from edp_fx.errors import EdpError
from edp_fx.frontend.assemble import add_constant
from edp_fx.frontend.propagate import propagate
from edp_fx.frontend.running import attribute

WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""torch's own hooks that compute a layer's weight before it runs; they do nothing to what goes through the layer."""

Trace = Callable[[nn.Module, tuple[Tensor, ...]], fx.GraphModule]


def follow_hooks(gm: fx.GraphModule, inputs: tuple[Tensor, ...], trace: Trace) -> None:
    """Put nodes in the place of layers' forward hooks and pre-hooks that change what goes in or comes out.

    A hook stays on its layer where it only looks on, takes keyword arguments or cannot be traced, and so do
    :data:`WEIGHT_HOOKS`.

    Args:
        gm: a graph whose layers are those of the model, with their hooks.
        inputs: example inputs.
        trace: traces a module on example inputs.
    """
    called: dict[str, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            called.setdefault(str(node.target), []).append(node)
    for path, nodes in called.items():
        layer = gm.get_submodule(path)
        for table, kind in ((layer._forward_pre_hooks, _Before), (layer._forward_hooks, _After)):
            hooks = {key: hook for key, hook in table.items() if not isinstance(hook, WEIGHT_HOOKS)}
            if not hooks:
                continue
            if layer._forward_pre_hooks_with_kwargs or layer._forward_hooks_with_kwargs:
                break
            before = dict(table)
            for key in hooks:
                del table[key]
            propagate(gm, inputs)  # until now the layer's outputs were those after its hooks
            traced = [_traced(node, kind(layer, list(hooks.values())), trace) for node in nodes]
            found = [one for one in traced if one is not None]
            if len(found) < len(nodes):
                table.update(before)
                break
            for node, graph in zip(nodes, found):
                _splice(gm, node, graph, after=kind is _After)
            gm.recompile()
            propagate(gm, inputs)


class _Before(nn.Module):
    """A layer's pre-hooks as a module: its inputs to its inputs."""

    def __init__(self, layer: nn.Module, hooks: list[Any]) -> None:
        super().__init__()
        self.layer, self.hooks = layer, (hooks,)

    def forward(self, *inputs: Any) -> Any:
        for hook in self.hooks[0]:
            result = hook(self.layer, inputs)
            if result is not None:
                inputs = result if isinstance(result, tuple) else (result,)
        return inputs


class _After(_Before):
    """A layer's forward hooks as a module: its inputs and its output to its output."""

    def forward(self, *inputs: Any) -> Any:
        *given, out = inputs
        for hook in self.hooks[0]:
            result = hook(self.layer, tuple(given), out)
            out = out if result is None else result
        return out


def _traced(node: fx.Node, hooks: _Before, trace: Trace) -> fx.GraphModule | None:
    """The graph of hooks on what goes through ``node``; None where there is none, or where it does nothing."""
    operands: list[Any] = [*node.args, node] if isinstance(hooks, _After) else list(node.args)
    if node.kwargs or not all(isinstance(one, fx.Node) and isinstance(one.meta["val"], Tensor) for one in operands):
        return None
    try:
        traced = trace(hooks, tuple(one.meta["val"] for one in operands))
    except EdpError:
        return None
    given = traced.graph.find_nodes(op="placeholder")
    result = traced.graph.output_node().args[0]
    if result in (given[-1], tuple(given)) or (isinstance(hooks, _After) and not isinstance(result, fx.Node)):
        return None
    return traced


def _splice(gm: fx.GraphModule, node: fx.Node, traced: fx.GraphModule, after: bool) -> None:
    """The nodes of hooks in the graph of ``gm``, before or after ``node``."""
    operands: list[Any] = [*node.args, node] if after else list(node.args)
    known: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), operands))
    with gm.graph.inserting_before(node.next if after else node):
        for one in traced.graph.nodes:
            if one.op in ("placeholder", "output"):
                continue
            copy = known[one] = gm.graph.node_copy(one, known.__getitem__)
            if one.op in ("get_attr", "call_module"):
                copy.target = _moved(gm, traced, str(one.target), str(node.target))
    made: Any = fx.node.map_arg(traced.graph.output_node().args[0], known.__getitem__)
    if after:
        inside = set(known.values())
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in inside)
    else:
        node.args = made if isinstance(made, tuple) else (made,)


def _moved(gm: fx.GraphModule, traced: fx.GraphModule, target: str, path: str) -> str:
    """The name in ``gm`` of what ``traced`` calls ``target``: the layer's own, or a constant, which moves over."""
    if target == "layer" or target.startswith("layer."):
        return path + target.removeprefix("layer")
    owner, _, leaf = path.rpartition(".")
    home = gm.get_submodule(owner)
    value = attribute(traced, target)
    taken = (f"{leaf}_hook_{index}" for index in itertools.count())
    name = next(one for one in taken if getattr(home, one, value) is value)
    if isinstance(value, nn.Module):
        home.add_module(name, value)
    elif name not in home._buffers:
        add_constant(gm, f"{owner}.{name}" if owner else name, value)
    return f"{owner}.{name}" if owner else name
