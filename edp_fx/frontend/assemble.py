"""From a graph and the module it was traced from to a GraphModule that shares its tensors."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, fx, jit, nn

from edp_fx.frontend.references import redirected
from edp_fx.frontend.running import submodule


def share(module: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
    """A structural copy: new module objects, the same parameters and buffers.

    Rewriting the copy (pruning a layer, swapping a child) leaves the original alone, and costs no memory.
    """
    new = [one for one in module.modules() if id(one) not in memo]
    for one in new:
        # scripted modules are made of C++ objects
        memo[id(one)] = one if isinstance(one, jit.ScriptModule) else object.__new__(type(one))
    for one in new:
        if isinstance(one, jit.ScriptModule):
            continue
        state = memo[id(one)].__dict__
        for key, value in one.__dict__.items():
            if key in ("_parameters", "_buffers"):
                state[key] = value.copy()
            elif key != "_compiled_call_impl":  # the original's forward, compiled in place
                state[key] = redirected(value, memo)
    return memo[id(module)]


def _container(module: nn.Module, leaves: set[int], memo: dict[int, nn.Module]) -> nn.Module | None:
    """The part of a module that a graph needs: leaves, and the parameters and buffers in between."""
    if id(module) in leaves:
        return share(module, memo)
    if id(module) in memo:
        return memo[id(module)]
    new = nn.Module()
    new.training = module.training
    new._parameters = dict(module._parameters)
    new._buffers = dict(module._buffers)
    new._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        kept = None if child is None else _container(child, leaves, memo)
        if kept is not None:
            new._modules[name] = kept
    if not (new._parameters or new._buffers or new._modules):
        return None
    memo[id(module)] = new
    return new


def _parent(holder: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that is to hold ``name``, made where there is none, and its last atom."""
    *path, leaf = name.split(".")
    for atom in path:
        if holder._modules.get(atom) is None:
            holder._modules[atom] = nn.Module()
        child = holder._modules[atom]
        assert child is not None
        holder = child
    return holder, leaf


def _keep_non_persistent(names: tuple[str, ...], gm: Any) -> None:
    """After a deep copy: fx registers every buffer it copies as persistent; undo that."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        try:
            gm.get_submodule(path)._non_persistent_buffers_set.add(leaf)
        except AttributeError:  # a pass has removed the module since
            continue


def add_constant(gm: fx.GraphModule, name: str, value: Tensor) -> None:
    """A buffer that is in no state dict, neither of ``gm`` nor of its copies."""
    parent, leaf = _parent(gm, name)
    parent.register_buffer(leaf, value, persistent=False)
    gm._deepcopy_hooks.append(functools.partial(_keep_non_persistent, (name,)))


def assemble(
    root: nn.Module, graph: fx.Graph, extra: dict[str, nn.Module], constants: dict[str, Tensor]
) -> fx.GraphModule:
    """A GraphModule with the original's parameter names, all of them, in the original's order.

    Args:
        root: the module that was traced.
        graph: its graph.
        extra: modules the tracer made, by the name nodes call them.
        constants: tensors that are neither parameters nor buffers, by name; they become non-persistent buffers.
    """
    leaves = {
        id(submodule(root, str(node.target)))
        for node in graph.nodes
        if node.op == "call_module" and node.target not in extra
    }
    holder = _container(root, leaves, {}) or nn.Module()
    for name, module in extra.items():
        module.training = root.training
        parent, leaf = _parent(holder, name)
        parent._modules[leaf] = module
    for name, value in constants.items():
        parent, leaf = _parent(holder, name)
        parent.__dict__.pop(leaf, None)
        parent.register_buffer(leaf, value, persistent=False)
    holder.training = root.training
    graph._tracer_cls = fx.Tracer  # so that the module pickles
    gm = fx.GraphModule(holder, fx.Graph(tracer_cls=fx.Tracer), class_name=type(root).__name__)
    gm._modules = holder._modules
    gm._parameters = holder._parameters
    gm._buffers = holder._buffers
    gm._non_persistent_buffers_set = holder._non_persistent_buffers_set
    gm.graph = graph  # only now: a module given with its graph is taken apart node by node
    hidden = tuple(
        f"{path}.{name}" if path else name
        for path, module in gm.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    )
    gm._deepcopy_hooks.append(functools.partial(_keep_non_persistent, hidden))
    return gm
