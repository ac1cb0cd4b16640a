"""One graph from a train-mode and an eval-mode graph that differ in a few operations, as by stochastic depth."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

from torch import Tensor, fx

from edp_fx.frontend.constants import DRAWN
from edp_fx.frontend.layers import ModeSwitch
from edp_fx.frontend.normal_form import is_impure
from edp_fx.frontend.running import submodule
from edp_fx.frontend.tracer import ModuleTracer


class _Differ(Exception):
    """The two graphs differ in more than can be switched."""


def merge(tracer: ModuleTracer, graph: fx.Graph, evaluated: fx.Graph) -> bool:
    """Make ``graph``, traced in train mode, hold in eval mode too; False, and unchanged, where that cannot be.

    Nodes of the two graphs are matched in order. Where a matched node has an operand that is another value in eval
    mode, a :class:`ModeSwitch` chooses. What one mode alone computes must have no parameters and no side effects.

    Args:
        tracer: of the train-mode graph; its ``extra_modules`` get the switches.
        graph: nodes with their examples in ``meta["val"]``.
        evaluated: the same of the eval-mode graph.
    """
    try:
        _Merger(tracer, graph, evaluated).run()
    except _Differ:
        return False
    return True


class _Merger:
    def __init__(self, tracer: ModuleTracer, graph: fx.Graph, evaluated: fx.Graph) -> None:
        self.tracer, self.graph = tracer, graph
        self.twin: dict[fx.Node, fx.Node] = {}  # of eval-mode nodes, in the train-mode graph
        ours, theirs = _operations(graph), _operations(evaluated)
        blocks = SequenceMatcher(None, [_key(n) for n in ours], [_key(n) for n in theirs], autojunk=False)
        for block in blocks.get_matching_blocks():
            self.twin.update(zip(theirs[block.b : block.b + block.size], ours[block.a : block.a + block.size]))
        self.attributes = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
        self.theirs = {twin: node for node, twin in self.twin.items()}
        while not self._all_fit():
            pass
        memory = {_memory(node) for node in graph.nodes if node.op == "get_attr" or node in self.theirs}
        for node in ours:
            if node not in self.theirs and not (_writes_own(node) and _memory(node.args[0]) not in memory):
                self._check_alone(node)
        for node in theirs:
            if node not in self.twin:
                self._check_alone(node)

    def _all_fit(self) -> bool:
        """Whether the operands of all matched nodes can be switched between; the first two of which not are parted."""
        for twin, node in self.theirs.items():
            try:
                self._compare((twin.args, twin.kwargs), (node.args, node.kwargs))
            except _Differ:
                del self.theirs[twin], self.twin[node]
                return False
        return True

    def _check_alone(self, node: fx.Node) -> None:
        if node.op != "call_module":
            if is_impure(node) and getattr(node.target, "__name__", node.target) not in DRAWN:
                raise _Differ
            return
        if node.target in self.tracer.extra_modules:
            raise _Differ
        module = submodule(self.tracer.model, str(node.target))
        if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
            raise _Differ

    def run(self) -> None:
        for node, other in list(self.theirs.items()):
            node.args = self._switched(node.args, other.args, node)
            node.kwargs = self._switched(node.kwargs, other.kwargs, node)

    def _compare(self, ours: Any, theirs: Any) -> None:
        """Raise unless the arguments are of one form, with tensors of one shape and type where nodes differ."""
        if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node):
            one, other = ours.meta["val"], theirs.meta["val"]
            if self._same(ours, theirs):
                return
            if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
                raise _Differ
            if one.shape != other.shape or one.dtype != other.dtype:
                raise _Differ
        elif type(ours) is not type(theirs):
            raise _Differ
        elif isinstance(ours, dict):
            if list(ours) != list(theirs):
                raise _Differ
            self._compare(tuple(ours.values()), tuple(theirs.values()))
        elif isinstance(ours, (tuple, list)):
            if len(ours) != len(theirs):
                raise _Differ
            for one, other in zip(ours, theirs):
                self._compare(one, other)
        elif isinstance(ours, slice):
            self._compare((ours.start, ours.stop, ours.step), (theirs.start, theirs.stop, theirs.step))
        elif ours != theirs:
            raise _Differ

    def _same(self, ours: fx.Node, theirs: fx.Node) -> bool:
        if theirs.op == "get_attr":
            return ours.op == "get_attr" and ours.target == theirs.target
        return self.twin.get(theirs) is ours

    def _switched(self, ours: Any, theirs: Any, before: fx.Node) -> Any:
        if isinstance(ours, fx.Node):
            return ours if self._same(ours, theirs) else self._switch(ours, theirs, before)
        if isinstance(ours, dict):
            return {key: self._switched(ours[key], theirs[key], before) for key in ours}
        if isinstance(ours, (tuple, list)):
            return type(ours)(self._switched(one, other, before) for one, other in zip(ours, theirs))
        return ours

    def _switch(self, ours: fx.Node, theirs: fx.Node, before: fx.Node) -> fx.Node:
        for user in ours.users:
            if user.args == (ours, self.twin.get(theirs)) and isinstance(
                self.tracer.extra_modules.get(str(user.target)), ModeSwitch
            ):
                return user
        with self.graph.inserting_before(before):
            other = self._copied(theirs)
            made = self.graph.create_node("call_module", self._name(), (ours, other))
        made.meta["val"] = self.tracer.evaluate(made)
        return made

    def _copied(self, node: fx.Node) -> fx.Node:
        """A node of the eval-mode graph in the merged one, at the insertion point where it is not there yet."""
        if node.op == "get_attr" and str(node.target) in self.attributes:
            return self.attributes[str(node.target)]
        if node not in self.twin:
            for one in node.all_input_nodes:
                self._copied(one)
            self.twin[node] = self.graph.node_copy(node, self._copied)
        return self.twin[node]

    def _name(self) -> str:
        index = 0
        while hasattr(self.tracer.model, f"switch_{index}") or f"switch_{index}" in self.tracer.extra_modules:
            index += 1
        self.tracer.extra_modules[f"switch_{index}"] = ModeSwitch()
        return f"switch_{index}"


def _writes_own(node: fx.Node) -> bool:
    """Whether a node changes its first argument in place."""
    return node.op == "call_method" and is_impure(node) and isinstance(node.args[0], fx.Node)


def _memory(node: Any) -> Any:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _operations(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op != "get_attr"]


def _key(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return (node.op, node.target, tuple(value.shape) if isinstance(value, Tensor) else type(value))
