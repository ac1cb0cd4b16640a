"""Taking back what was done to a network: its graph, its modules and their attributes, as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
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

    def restore(self) -> None:
        """The network as it was; again and again."""
        for one in self._restores:
            one()
        self._gm.graph = copy.deepcopy(self._graph)


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
