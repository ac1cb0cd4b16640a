"""Literal sizes in a graph after pruning: replace what is no longer true, pin what must stay true.

Most sizes are computed from ``x.shape`` in the graph and need nothing. What is left are numbers written into the
arguments of reshapes, splits, slices and normalisations. The graph is run once on meta tensors; wherever a node's
result is not the predicted shape its arguments are repaired from the prediction.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from edp_fx.channels import ChannelGraph
from edp_fx.errors import PassError
from edp_fx.frontend.layers import AttentionDropout
from edp_fx.frontend.normal_form import remove_dead_code
from edp_fx.frontend.running import GraphRunner, submodule
from edp_fx.frontend.shapes import ShapeMode, shapes_only
from edp_fx.inputs import eval_mode
from edp_fx.leaves import tensors_of

Masks = dict[int, np.ndarray]
ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.iadd, operator.isub,
    operator.imul, operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.pow,
    "add", "sub", "mul", "div", "pow", "add_", "sub_", "mul_", "div_",
}  # fmt: skip


def repair_sizes(gm: fx.GraphModule, graph: ChannelGraph, masks: dict[str, list[Masks]]) -> list[str]:
    """Make every node of the pruned ``gm`` give the predicted shape; returns the names of the nodes changed.

    Raises PassError naming the node where that is impossible.
    """
    repairer = _Repairer(gm, graph, masks)
    with eval_mode(gm), shapes_only(ShapeMode(graph.example_inputs[0].device)):
        repairer.run(*graph.example_inputs)
    if repairer.changes:
        remove_dead_code(gm.graph)
    return list(repairer.changes)


class _Repairer(GraphRunner):
    def __init__(self, gm: fx.GraphModule, graph: ChannelGraph, masks: dict[str, list[Masks]]) -> None:
        super().__init__(gm)
        self.shapes = graph.analysis.node_shapes
        self.scalars = graph.analysis.node_scalars
        self.masks = masks
        self.changes: dict[str, None] = {}

    def run_node(self, node: fx.Node) -> Any:
        if node.op in ("call_function", "call_method"):
            self._pin(node)
        repair = REPAIRS.get(self._kind(node))
        if repair is not None:  # also where nothing of the tensor goes: a size may come from a tensor that shrinks
            repair(self, node)
        try:
            result = super().run_node(node)
        except Exception as error:
            first = (str(error) or type(error).__name__).split("\n")[0]
            raise PassError(
                f"prune: the sizes at node {node.name!r} ({node.target}) cannot follow the pruned channels: {first}"
            ) from error
        got = [tuple(leaf.shape) for leaf in tensors_of(result)]
        want = self.predicted(node)
        if got != want:
            raise PassError(
                f"prune: node {node.name!r} ({node.target}) gives {got} after pruning where {want} was predicted"
            )
        return result

    def _kind(self, node: fx.Node) -> Any:
        """What repairs are found by: the function, the method's name or the layer's class."""
        return type(submodule(self.gm, str(node.target))) if node.op == "call_module" else node.target

    def predicted(self, node: fx.Node) -> list[tuple[int, ...]]:
        """The shape of every tensor of ``node`` after pruning."""
        return [
            tuple(int(masks[axis].sum()) if axis in masks else size for axis, size in enumerate(shape))
            for shape, masks in zip(self.shapes.get(node.name, []), self.masks.get(node.name, []))
        ]

    def before(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's first argument before pruning."""
        source = node.args[0] if node.args else next(iter(node.kwargs.values()))
        assert isinstance(source, fx.Node)
        return self.shapes[source.name][0]

    def rank(self, node: fx.Node) -> int:
        """Axes of a node's first argument."""
        return len(self.before(node))

    def mask(self, node: Any) -> Masks:
        """The masks of the one tensor ``node`` gives."""
        found = self.masks.get(node.name, []) if isinstance(node, fx.Node) else []
        return found[0] if found else {}

    def value(self, argument: Any) -> Any:
        """What an argument is at this point of the run."""
        return fx.map_arg(argument, lambda node: self.env[node])

    def value_before(self, argument: Any) -> Any:
        """What an argument was before pruning, where it is a number."""
        return fx.map_arg(argument, lambda node: self.scalars.get(node.name, self.env[node]))

    def change(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, target: Any = None
    ) -> None:
        """Give ``node`` other arguments (and another target)."""
        if target is not None:
            node.target = target
            if node.op == "call_method" and not isinstance(target, str):
                node.op = "call_function"
        node.args, node.kwargs = args, dict(node.kwargs if kwargs is None else kwargs)
        self.changes[node.name] = None

    def _pin(self, node: fx.Node) -> None:
        """A number from a size that changed, multiplied into a tensor (an attention scale), keeps its value."""
        if node.target not in ARITHMETIC or not self.shapes.get(node.name):
            return
        new = []
        for argument in node.args:
            if isinstance(argument, fx.Node) and argument.name in self.scalars:
                old = self.scalars[argument.name]
                new.append(old if self.env[argument] != old else argument)
            else:
                new.append(argument)
        if tuple(new) != tuple(node.args):
            self.change(node, tuple(new))


def _reshape(run: _Repairer, node: fx.Node) -> None:
    """view, reshape, expand: literal sizes from the prediction; sizes that are already right stay symbolic."""
    sizes = node.args[1:]
    nested = len(sizes) == 1 and isinstance(sizes[0], (tuple, list))
    sizes = tuple(sizes[0]) if nested else sizes  # type: ignore[arg-type]
    want = run.predicted(node)[0]
    new = []
    for size, right in zip(sizes, want):
        now = run.value(size)
        new.append(size if now in (right, -1) else right)
    if tuple(new) != tuple(sizes):
        run.change(node, (node.args[0], tuple(new)) if nested else (node.args[0], *new))


def _unflatten(run: _Repairer, node: fx.Node) -> None:
    dim, sizes = _arguments(node, ("dim", "sizes"))
    start = run.value(dim) % run.rank(node)
    want = run.predicted(node)[0][start : start + len(sizes)]
    new = tuple(size if run.value(size) in (right, -1) else right for size, right in zip(sizes, want))
    if new != tuple(sizes):
        run.change(node, (node.args[0], dim, new), {})


def _split(run: _Repairer, node: fx.Node) -> None:
    """split, chunk, tensor_split: unequal parts become a split with sizes."""
    names = ("chunks", "dim") if node.target in CHUNKS else ("split_size_or_sections", "dim")
    source = node.args[0]
    axis = run.value(_arguments(node, names)[1] or 0) % run.rank(node)
    if axis in run.mask(source):
        sizes = [shape[axis] for shape in run.predicted(node)]
        run.change(node, (source, sizes, axis), {}, torch.split)


def _getitem(run: _Repairer, node: fx.Node) -> None:
    """Slices and integer indices move with the indices that were removed before them."""
    source, index = node.args[0], node.args[1]
    masks = run.mask(source)
    if not masks:
        return
    rank = run.rank(node)
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(1 for item in items if item is not None and item is not Ellipsis)
    new: list[Any] = []
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += rank - consumed
            new.append(item)
            continue
        if item is None:
            new.append(item)
            continue
        now, before = run.value(item), run.value_before(item)
        if axis in masks and isinstance(before, (int, slice)):
            new.append(_moved(before, now, masks[axis], item))
        else:
            new.append(item)
        axis += 1
    if any(a is not b for a, b in zip(new, items)):
        run.change(node, (source, tuple(new) if isinstance(index, tuple) else new[0]))


def _moved(before: Any, now: Any, mask: np.ndarray, original: Any) -> Any:
    """An index or slice into the unpruned axis as one into the pruned axis; ``now``: what it has become by itself."""
    position = np.cumsum(mask) - 1
    if isinstance(before, int):
        return original if now == int(position[before]) else int(position[before])
    chosen = np.arange(mask.size)[before]
    wanted = position[chosen[mask[chosen]]]
    if np.array_equal(np.arange(int(mask.sum()))[now], wanted):
        return original
    if not wanted.size:
        return slice(0, 0)
    start, stop = int(wanted[0]), int(wanted[-1]) + 1
    if np.array_equal(np.arange(start, stop), wanted):
        return slice(start, stop)
    return wanted.tolist()


def _narrow(run: _Repairer, node: fx.Node) -> None:
    dim, start, length = (run.value(one) for one in _arguments(node, ("dim", "start", "length")))
    source = node.args[0]
    axis = dim % run.rank(node)
    mask = run.mask(source).get(axis)
    if mask is not None:
        before = int(mask[:start].sum())
        run.change(node, (source, axis, before, int(mask[start : start + length].sum())), {})


def _layer_norm(run: _Repairer, node: fx.Node) -> None:
    shape = _arguments(node, ("normalized_shape",))[0]
    want = run.predicted(node)[0]
    sizes = tuple(run.value(shape))
    if sizes != want[len(want) - len(sizes) :]:
        if len(node.args) > 1:
            run.change(node, (node.args[0], want[len(want) - len(sizes) :], *node.args[2:]))
        else:
            run.change(node, node.args, {**node.kwargs, "normalized_shape": want[len(want) - len(sizes) :]})


def _group_norm(run: _Repairer, node: fx.Node) -> None:
    groups = run.value(_arguments(node, ("num_groups",))[0])
    before = run.before(node)[1]
    after = run.predicted(node)[0][1]
    if groups == before != after:
        if len(node.args) > 1:
            run.change(node, (node.args[0], after, *node.args[2:]))
        else:
            run.change(node, node.args, {**node.kwargs, "num_groups": after})


def _attention(run: _Repairer, node: fx.Node) -> None:
    """The default scale is 1/√dims: pin it to the dims there were."""
    query = node.args[0] if node.args else node.kwargs["query"]
    shape = run.before(node)
    if node.kwargs.get("scale") is None and len(shape) - 1 in run.mask(query):
        run.change(node, node.args, {**node.kwargs, "scale": shape[-1] ** -0.5})


def _convolution(run: _Repairer, node: fx.Node) -> None:
    """Functional grouped convolutions that lost whole groups."""
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    if groups == 1:
        return
    weight, channels = run.value(node.args[1]), run.value(node.args[0]).shape[1]
    right = channels // weight.shape[1]
    if right != run.value(groups):
        if len(node.args) > 6:
            run.change(node, (*node.args[:6], right, *node.args[7:]))
        else:
            run.change(node, node.args, {**node.kwargs, "groups": right})


def _arguments(node: fx.Node, names: tuple[str, ...]) -> list[Any]:
    """The arguments after the tensor, positional or by name; None where left out."""
    given = list(node.args[1:]) + [None] * len(names)
    return [node.kwargs.get(name, given[k]) for k, name in enumerate(names)]


CHUNKS = {torch.chunk, torch.tensor_split, "chunk", "tensor_split"}
REPAIRS: dict[Any, Callable[[_Repairer, fx.Node], None]] = {
    **dict.fromkeys(("view", "reshape", "expand", torch.reshape), _reshape),
    **dict.fromkeys(("unflatten", torch.unflatten), _unflatten),
    **dict.fromkeys(("split", torch.split, "split_with_sizes", *CHUNKS), _split),
    **dict.fromkeys(("narrow", torch.narrow), _narrow),
    operator.getitem: _getitem,
    F.layer_norm: _layer_norm,
    F.rms_norm: _layer_norm,
    F.group_norm: _group_norm,
    **dict.fromkeys((F.scaled_dot_product_attention, AttentionDropout), _attention),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
}
