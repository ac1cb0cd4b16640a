"""Who reads a layer's parameters: what is changed with the layer may be nobody else's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import attrgetter

from torch import fx


def read_once(gm: fx.GraphModule) -> Callable[[str, str], bool]:
    """Tells of a layer and the name of a parameter in it whether one call of the layer, and nothing else, reads it."""
    calls = Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    fetched = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    owners = Counter(id(one) for _, one in gm.named_parameters(remove_duplicate=False))

    def once(layer: str, parameter: str) -> bool:
        value = attrgetter(parameter)(gm.get_submodule(layer))
        return calls[layer] == owners[id(value)] == 1 and f"{layer}.{parameter}" not in fetched

    return once
