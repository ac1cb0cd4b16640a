"""Which values of a graph are the same memory, and who changes it in place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from edp_fx.frontend.layers import ModeSwitch
from edp_fx.frontend.normal_form import is_impure
from edp_fx.frontend.running import submodule
from edp_fx.leaves import tensors_of

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def writes(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The argument that a node changes in place."""
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node):
        return None
    if node.op == "call_module":
        return target if getattr(submodule(gm, str(node.target)), "inplace", False) is True else None
    return target if node.op in ("call_function", "call_method") and is_impure(node) else None


def _may_pass_on(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node returns its very input in some mode or for some option: dropout."""
    if node.op == "call_module":
        return isinstance(submodule(gm, str(node.target)), (nn.Identity, nn.modules.dropout._DropoutNd, ModeSwitch))
    return node.op == "call_function" and node.target in _DROPOUTS


class Aliases:
    """The nodes of a graph by the memory that their values lie in, from the fake tensors in ``meta["val"]``.

    What has none is taken for new where its module has parameters, and else for a view of what it is made from.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.place = {node: number for number, node in enumerate(gm.graph.nodes)}
        self.writers = {node: target for node in self.place if (target := writes(gm, node)) is not None}
        self._memory: dict[fx.Node, set[object]] = {}
        self._nodes: dict[object, list[fx.Node]] = {}
        for node in self.place:
            memory = self._memory_of(gm, node)
            if node in self.writers:
                memory |= self._memory[self.writers[node]]
            elif _may_pass_on(gm, node):
                memory = memory.union(*(self._memory[one] for one in node.all_input_nodes))
            self._memory[node] = memory
            for one in memory:
                self._nodes.setdefault(one, []).append(node)

    def _memory_of(self, gm: fx.GraphModule, node: fx.Node) -> set[object]:
        if "val" in node.meta:
            return {value.untyped_storage()._cdata for value in tensors_of(node.meta["val"])}
        new = node.op in ("placeholder", "get_attr") or (
            node.op == "call_module" and any(True for _ in submodule(gm, str(node.target)).parameters())
        )
        return {node} if new else set().union(*(self._memory[one] for one in node.all_input_nodes))

    def of(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values lie, partly, where that of ``node`` does, itself included, as far as they still are
        in the graph."""
        found = dict.fromkeys(other for one in self._memory[node] for other in self._nodes[one])
        return [other for other in found if not other._erased]

    def seen_after(self, node: fx.Node) -> bool:
        """Whether anything reads, after ``node``, the memory that it changes in place, or is given it from outside."""
        aliases = self.of(self.writers[node])
        outside = any(one.op in ("placeholder", "get_attr") for one in aliases)
        return outside or any(self.place[user] > self.place[node] for one in aliases for user in one.users)

    def changed_after(self, node: fx.Node, value: fx.Node) -> bool:
        """Whether anything after ``node`` changes the memory of ``value`` in place."""
        aliases = set(self.of(value))
        return any(self.place[one] > self.place[node] and target in aliases for one, target in self.writers.items())
