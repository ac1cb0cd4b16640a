"""Running a graph's nodes one by one, for little more than what they call costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn


def submodule(root: nn.Module, path: str) -> nn.Module:
    """``root.get_submodule(path)``; without the failing attribute look-ups that make up most of its time."""
    module = root
    for name in path.split("."):
        child = module._modules.get(name)
        if child is None:
            return root.get_submodule(path)  # the root itself, or a name that is wrong
        module = child
    return module


def attribute(root: nn.Module, target: str) -> Any:
    """What a get_attr node names."""
    path, _, leaf = target.rpartition(".")
    return getattr(submodule(root, path), leaf)


def called_module(root: nn.Module, node: object) -> nn.Module | None:
    """The module that a node calls; None for any other node, and for an argument that is no node."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return submodule(root, str(node.target))
    return None


def run_node(root: nn.Module, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """The value of one node, any but a placeholder, from the values of its arguments."""
    if node.op == "get_attr":
        return attribute(root, str(node.target))
    args = fx.node.map_arg(node.args, value_of)
    kwargs = fx.node.map_arg(node.kwargs, value_of) if node.kwargs else {}
    if node.op == "call_module":
        return submodule(root, str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "output":
        return args[0]
    return node.target(*args, **kwargs)  # type: ignore[operator]


class GraphRunner:
    """Runs a graph; subclasses look at each node as it runs, or change it before.

    As fx.Interpreter, whose bookkeeping takes longer than most operations do without data.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.env: dict[fx.Node, Any] = {}
        self._given: Iterator[Any] = iter(())

    def run(self, *inputs: Any) -> Any:
        """The output of the graph."""
        self._given = iter(inputs)
        result = None
        for node in list(self.gm.graph.nodes):
            result = self.env[node] = self.run_node(node)
        return result

    def run_node(self, node: fx.Node) -> Any:
        """The value of one node; those of its arguments are in ``env``."""
        if node.op == "placeholder":
            if str(node.target).startswith("*"):
                return list(self._given)
            return next(self._given, *node.args)
        return run_node(self.gm, node, self.env.__getitem__)
