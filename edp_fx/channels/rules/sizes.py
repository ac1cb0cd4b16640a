"""Numbers written into the arguments of a graph's nodes, brought after the pruned channels.

Sizes computed from ``x.shape`` follow by themselves. What is left are literals in reshapes, splits, slices and
normalisations: a rule is registered with one of the repairs here, or with its own, beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

Shape = tuple[int, ...]
Masks = dict[int, np.ndarray]
"""Axis -> which indices stay, for the axes that lose some."""


@dataclass(frozen=True, eq=False)
class NodeSizes:
    """One node of a pruned graph that is being run on meta tensors, and what the analysis has predicted.

    Attributes:
        node: the node; all before it are repaired.
        layer: the module it calls, if it calls one.
        before: the shape of its first argument before pruning; empty where that is no tensor.
        masks: what of its first argument stays.
        after: the shape of each tensor it must give.
        kept: what of each tensor it gives stays.
        values: what every node before gives now.
        numbers: the numbers, and tuples of numbers, that nodes gave before pruning.
    """

    node: fx.Node
    layer: nn.Module | None
    before: Shape
    masks: Masks
    after: list[Shape]
    kept: list[Masks]
    values: dict[fx.Node, Any]
    numbers: Mapping[str, Any]

    @property
    def tensor(self) -> Any:
        """The first argument."""
        return first_argument(self.node)

    def now(self, argument: Any) -> Any:
        """What an argument is in the pruned graph."""
        return fx.map_arg(argument, lambda node: self.values[node])

    def then(self, argument: Any) -> Any:
        """What an argument was before pruning, where it is made of numbers."""
        return fx.map_arg(argument, lambda node: self.numbers.get(node.name, self.values[node]))

    def stays(self, axis: int) -> np.ndarray | None:
        """What stays along an axis of the first argument; None where all does and no number given has changed (one may
        be of another tensor, which shrinks)."""
        mask = self.masks.get(axis)
        return np.ones(self.before[axis], dtype=bool) if mask is None and self.moved else mask

    @property
    def moved(self) -> bool:
        """Whether a number that the node is given has changed."""
        numbers = [one for one in self.node.all_input_nodes if one.name in self.numbers]
        return any(self.values[one] != self.numbers[one.name] for one in numbers)

    def get(self, place: int, *names: str) -> Any:
        """An argument by its place among all (0 is the tensor) or by its name; None where it is left out."""
        if place < len(self.node.args):
            return self.node.args[place]
        return next((self.node.kwargs[name] for name in names if name in self.node.kwargs), None)

    def put(self, place: int, name: str, value: Any) -> None:
        """Give an argument another value: in its place where it has one, else by its name."""
        if place < len(self.node.args):
            self.node.update_arg(place, value)
        else:
            self.node.update_kwarg(name, value)

    def product(self, size: Any, right: int) -> Any:
        """``right`` in the place of a wrong size. Where that is ``batch * heads``, the batch stays free."""
        if isinstance(size, fx.Node) and size.target is operator.mul:
            for factor in size.args:
                whole = self.now(factor)
                if isinstance(factor, fx.Node) and whole and whole == self.then(factor) and right % whole == 0:
                    with self.node.graph.inserting_before(self.node):
                        made = self.node.graph.call_function(operator.mul, (factor, right // whole))
                    made.meta["val"] = self.values[made] = right
                    return made
        return right

    def call(self, function: Any, *args: Any) -> None:
        """Make the node a call of another function."""
        self.node.op, self.node.target, self.node.args, self.node.kwargs = "call_function", function, args, {}


def each_of(several: fx.Node, user: fx.Node, values: dict[fx.Node, Any]) -> tuple[fx.Node, ...]:
    """The numbers of a node that gives a tuple of them, each as a node before ``user``; ``values`` learns of them."""
    with user.graph.inserting_before(user):
        made = tuple(user.graph.call_function(operator.getitem, (several, k)) for k in range(len(values[several])))
    for one, value in zip(made, values[several], strict=True):
        one.meta["val"] = values[one] = value
    return made


def pruned_shape(shape: Shape, masks: Masks) -> Shape:
    """``shape`` with the masked axes counted."""
    return tuple(int(masks[axis].sum()) if axis in masks else size for axis, size in enumerate(shape))


def first_argument(node: fx.Node) -> Any:
    """The first argument of a node, in its place or by its name; None where it has none."""
    return next(iter((*node.args, *node.kwargs.values())), None)


def right_sizes(sizes: NodeSizes, given: Any, right: Shape) -> Any:
    """``given`` with a number in the place of each size that is neither right nor left open (-1)."""
    if isinstance(given, fx.Node):  # all at once: ``y.shape``
        if tuple(sizes.now(given)) == right:
            return given
        given = each_of(given, sizes.node, sizes.values)
    new = tuple(
        size if sizes.now(size) in (wanted, -1) else sizes.product(size, wanted)
        for size, wanted in zip(given, right, strict=True)
    )
    return given if new == tuple(given) else new


def output_shape(sizes: NodeSizes) -> None:
    """The sizes of the result: ``x.view(2, -1)``, ``x.expand((2, 64))``, ``torch.reshape(x, shape=(2, -1))``."""
    given = sizes.get(1, "shape", "size")
    now = sizes.now(given)
    if isinstance(now, (tuple, list)):
        sizes.put(1, "size" if "size" in sizes.node.kwargs else "shape", right_sizes(sizes, given, sizes.after[0]))
    elif isinstance(now, int):
        sizes.node.args = (sizes.node.args[0], *right_sizes(sizes, sizes.node.args[1:], sizes.after[0]))
    # else a view as another type


def another_shape(method: str) -> Callable[[NodeSizes], None]:
    """The shape of another tensor, which may have lost what this one keeps: ``x.expand_as(y)`` becomes ``x.expand(…)``,
    by ``method`` and sizes."""

    def repair(sizes: NodeSizes) -> None:
        other, (right,) = sizes.get(1, "other"), sizes.after
        shape = tuple(sizes.now(other).shape)
        if shape == right or not isinstance(other, fx.Node):
            return
        given: list[Any] = list(right)
        with sizes.node.graph.inserting_before(sizes.node):
            for axis, size in enumerate(shape):
                if size == right[axis]:  # the batch among them
                    given[axis] = made = sizes.node.graph.call_method("size", (other, axis))
                    made.meta["val"] = sizes.values[made] = size
        sizes.node.target, sizes.node.args, sizes.node.kwargs = method, (sizes.tensor, *given), {}

    return repair


def last_axes(place: int, name: str) -> Callable[[NodeSizes], None]:
    """The sizes of the result's last axes: ``F.layer_norm(x, (64,))``."""

    def repair(sizes: NodeSizes) -> None:
        given = sizes.get(place, name)
        count, (shape, *_) = len(sizes.now(given)), sizes.after
        sizes.put(place, name, right_sizes(sizes, given, shape[len(shape) - count :]))

    return repair
