"""Literal sizes in a graph after pruning: replace what is no longer true, pin what must stay true.

Most sizes are computed from ``x.shape`` in the graph and need nothing. What is left are numbers written into the
arguments of reshapes, splits, slices and normalisations. The graph is run once on meta tensors, and each node whose
operation has one registered beside its rule is repaired from the predicted shapes (:mod:`edp_fx.channels.rules`).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.channels import ChannelGraph
from edp_fx.channels.rules.registry import REGISTRY
from edp_fx.channels.rules.sizes import Masks, NodeSizes, Shape, each_of, first_argument, pruned_shape
from edp_fx.errors import PassError, one_line
from edp_fx.frontend.normal_form import remove_dead_code
from edp_fx.frontend.random_run import run_on_random
from edp_fx.frontend.running import GraphRunner, submodule
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import eval_mode
from edp_fx.leaves import map_tensors, tensors_of

ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.iadd, operator.isub,
    operator.imul, operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.pow,
    "add", "sub", "mul", "div", "pow", "add_", "sub_", "mul_", "div_",
}  # fmt: skip


def repair_sizes(gm: fx.GraphModule, graph: ChannelGraph, masks: dict[str, list[Masks]]) -> list[str]:
    """Make every node of the pruned ``gm`` give the predicted shape; returns the names of the nodes changed.

    Raises PassError naming the node where that is impossible.
    """
    mode = ShapeMode(graph.example_inputs[0].device)
    inputs = graph.example_inputs
    if any(one.dtype is torch.float64 for one in gm.parameters()):  # a copy in float64 of what was analysed
        inputs = tuple(one.double() if one.is_floating_point() else one for one in inputs)
    repairer = Repairer(gm, graph, masks, mode)
    with eval_mode(gm), shapes_only(mode):
        repairer.run(*inputs)
    if repairer.changes:
        remove_dead_code(gm.graph)
    return list(repairer.changes)


class Repairer(GraphRunner):
    """Runs the pruned graph on shapes and puts new numbers for the sizes that stand in it."""

    def __init__(self, gm: fx.GraphModule, graph: ChannelGraph, masks: dict[str, list[Masks]], mode: ShapeMode) -> None:
        super().__init__(gm)
        self.mode = mode
        self.not_run = graph.analysis.not_run
        self.shapes = graph.analysis.node_shapes
        self.scalars = graph.analysis.node_scalars
        self.masks = masks
        self.changes: dict[str, None] = {}

    def run_node(self, node: fx.Node) -> Any:
        if node.op in ("call_function", "call_method", "call_module"):
            self._repair(node)
        want = self._predicted(node)
        try:
            result = super().run_node(node)
        except Exception as error:
            if node.name not in self.not_run:
                raise PassError(
                    f"prune: the sizes at node {node.name!r} ({node.target}) cannot follow the pruned channels: "
                    f"{one_line(error)}"
                ) from error
            result = map_tensors(self.mode.meta, run_on_random(self.gm, node, self.env.__getitem__, self.mode.device))
        got = [tuple(leaf.shape) for leaf in tensors_of(result)]
        if got != want:
            raise PassError(
                f"prune: node {node.name!r} ({node.target}) gives {got} after pruning where {want} was predicted"
            )
        return result

    def _repair(self, node: fx.Node) -> None:
        """Also where nothing of the tensor goes: a size may come from a tensor that shrinks."""
        before = (node.op, node.target, node.args, node.kwargs)
        self._pin(node)
        layer = submodule(self.gm, str(node.target)) if node.op == "call_module" else None
        repair = REGISTRY.repair(node.target if layer is None else type(layer))
        if repair is not None:
            repair(self._sizes(node, layer))
        if before != (node.op, node.target, node.args, node.kwargs):
            self.changes[node.name] = None

    def _sizes(self, node: fx.Node, layer: nn.Module | None) -> NodeSizes:
        source = first_argument(node)
        shape: Shape = ()
        masks: Masks = {}
        if isinstance(source, fx.Node) and isinstance(self.env[source], Tensor):  # of a tuple, no axis is indexed
            (shape,), (masks,) = self.shapes[source.name], self.masks[source.name]
        kept = self.masks.get(node.name, [])
        return NodeSizes(node, layer, shape, masks, self._predicted(node), kept, self.env, self.scalars)

    def _predicted(self, node: fx.Node) -> list[Shape]:
        """The shape of every tensor of ``node`` after pruning."""
        return [
            pruned_shape(shape, masks)
            for shape, masks in zip(self.shapes.get(node.name, []), self.masks.get(node.name, []))
        ]

    def _pin(self, node: fx.Node) -> None:
        """A number from a size that changed keeps its value where it is multiplied into a tensor (an attention scale),
        and where the operation loses nothing (another tensor rolled by that size)."""
        if self.shapes.get(node.name) and (node.target in ARITHMETIC or not self._loses(node)):
            node.args, node.kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda number: self._before_pruning(number, node)
            )

    def _loses(self, node: fx.Node) -> bool:
        """Whether a tensor that goes into a node or comes out of it loses anything."""
        return any(masks for one in (node, *node.all_input_nodes) for masks in self.masks.get(one.name, ()))

    def _before_pruning(self, number: fx.Node, user: fx.Node) -> Any:
        """What gives for ``user`` the number that ``number`` gave before pruning, at any batch size; itself where that
        did not change, and where it gives none."""
        old = self.scalars.get(number.name)
        if old is None or self.env[number] == old:
            return number
        graph = user.graph
        with graph.inserting_before(user):
            if isinstance(old, tuple):
                parts = each_of(number, user, self.env)
                return tuple(part if self.env[part] == then else then for part, then in zip(parts, old, strict=True))
            if any(isinstance(self.scalars.get(one.name), (int, float)) for one in number.all_input_nodes):
                made = graph.node_copy(number, lambda one: self._before_pruning(one, user))
                self._gives(made, old)
            elif isinstance(old, int) and _of_batch(number):
                now, common = self.env[number], math.gcd(old, self.env[number])
                times = graph.call_function(operator.mul, (number, old // common))
                self._gives(times, now * (old // common))
                made = graph.call_function(operator.floordiv, (times, now // common))
                self._gives(made, old)
            else:
                return old
        return made

    def _gives(self, made: fx.Node, number: Any) -> None:
        made.meta["val"] = self.env[made] = number


def _of_batch(size: fx.Node) -> bool:
    """Whether a size that a tensor is asked for may change with the batch: all but that of a single later axis."""
    axis = size.args[1] if len(size.args) > 1 else None
    return not isinstance(axis, int) or axis == 0
