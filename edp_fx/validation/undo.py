"""Taking back what was done to a network: its graph, its modules and their attributes, as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, fx, nn

from edp_fx.inputs import snapshot


class Undo:
    """Remembers a network. Weights are remembered by reference: what changes it puts others in their places."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._graph = copy.deepcopy(gm.graph)
        self._restores = [snapshot(module) for module in gm.modules()]
        self._seen = gm.graph
        self._nodes = _nodes(gm.graph)

    def restore(self) -> None:
        """The network as it was; again and again."""
        graph = self._gm.graph
        unchanged = graph is self._seen and _same(_nodes(graph), self._nodes)
        for one in self._restores:
            one()
        if unchanged:
            self._gm._graph = graph  # compiled as it is
        else:
            self._gm.graph = copy.deepcopy(self._graph)
            self._seen, self._nodes = self._gm.graph, _nodes(self._gm.graph)


def _nodes(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """All that says what a graph does; a node's arguments are replaced, never changed."""
    return [(one, one.op, one.target, one.args, one.kwargs, dict(one.meta)) for one in graph.nodes]


def _same(now: Sequence[tuple[Any, ...]], before: Sequence[tuple[Any, ...]]) -> bool:
    return len(now) == len(before) and all(
        one[:3] == other[:3]
        and one[3] is other[3]
        and one[4] is other[4]
        and one[5].keys() == other[5].keys()
        and all(value is other[5][key] for key, value in one[5].items())
        for one, other in zip(now, before, strict=True)
    )


@contextmanager
def swapped(model: nn.Module, others: Mapping[int, Tensor]) -> Iterator[None]:
    """Within it, other tensors are in the places of parameters and buffers, given by the ids of these."""
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (table, name, value)
        for module in (model.modules() if others else ())
        for table in cast("tuple[dict[str, Any], ...]", (module._parameters, module._buffers))
        for name, value in table.items()
        if value is not None and id(value) in others
    ]
    try:
        for table, name, value in places:
            other = others[id(value)]
            table[name] = nn.Parameter(other, requires_grad=False) if isinstance(value, nn.Parameter) else other
        yield
    finally:
        for table, name, value in places:
            table[name] = value
