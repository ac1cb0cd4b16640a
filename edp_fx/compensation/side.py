"""One of two networks that run side by side, stretch by stretch, over many small batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from edp_fx.frontend.running import run_node, submodule
from edp_fx.leaves import tensors_of

Values = dict[fx.Node, Any]


class Side:
    """A graph that is run up to a node and on from there later; of a batch only what is still needed is kept.

    Attributes:
        nodes: in the order in which they run.
        calls: name of a module -> the positions of the nodes that call it.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes = list(gm.graph.nodes)
        place = {node: number for number, node in enumerate(self.nodes)}
        self._last = Counter({one: place[node] for node in self.nodes for one in node.all_input_nodes})
        self.calls: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(number)

    def run(self, values: Values, inputs: Sequence[Tensor], start: int, stop: int) -> None:
        """Run the nodes from ``start`` to before ``stop``."""
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        for number in range(start, stop):
            node = self.nodes[number]
            if node.op == "placeholder":
                place = placeholders.index(node)
                # a copy: a network may write into what it is given
                values[node] = inputs[place].clone() if place < len(inputs) else next(iter(node.args), None)
            else:
                values[node] = run_node(self.gm, node, values.__getitem__)
            for one in node.all_input_nodes:
                if self._last[one] == number:
                    values.pop(one, None)

    def module(self, number: int) -> nn.Module:
        """What a node calls."""
        return submodule(self.gm, str(self.nodes[number].target))

    def call(self, number: int, values: Values) -> Callable[[], Any]:
        """A node as a call without arguments; nothing of it is kept."""
        return lambda: run_node(self.gm, self.nodes[number], values.__getitem__)


def held(values: Values) -> int:
    """Bytes of what is kept."""
    unique = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors_of(list(values.values()))
    }
    return sum(unique.values())
