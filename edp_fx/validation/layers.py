"""Layers with channels masked at their inputs and outputs: what zeroed slices of their weights give, at the cost of the
activations instead of a copy of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.frontend.running import called_module

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Axes = Mapping[int, Tensor]


@dataclass(frozen=True)
class LayerMask:
    """Indices of what goes in and of what comes out that count as zero; none where None."""

    inputs: Tensor | None
    outputs: Tensor | None

    def run(self, layer: Any, x: Tensor) -> Tensor:
        """What the layer gives with these slices of its weight, and those outputs' biases, zero."""
        before = 1 if isinstance(layer, nn.Linear) else layer.weight.ndim - 1  # axis of the channels, from the last
        if self.inputs is not None:
            x = x.index_fill(-before, self.inputs, 0)
        result: Tensor = layer(x)
        return result if self.outputs is None else result.index_fill_(-before, self.outputs, 0)


def masked_layers(gm: fx.GraphModule, gone: Mapping[int, Axes]) -> dict[Any, LayerMask]:
    """The layers for which masks stand for zeros in the weight: plain ones whose weight nothing else reads.

    Args:
        gm: the network.
        gone: by id of a parameter: axis -> the indices that are to be zero.
    """
    found: dict[Any, LayerMask] = {}
    for node in gm.graph.nodes:
        layer = called_module(gm, node)
        if layer is not None and len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs:
            mask = _mask(layer, gone)
            if mask is not None:
                found[layer] = mask
    readers: dict[int, int] = {}
    for module in gm.modules():
        for value in module._parameters.values():
            readers[id(value)] = readers.get(id(value), 0) + 1
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    read_too = {id(value) for name, value in gm.named_parameters(remove_duplicate=False) if name in read}
    within = _inside_others(gm, found)
    return {
        layer: mask
        for layer, mask in found.items()
        if readers[id(layer.weight)] == 1 and id(layer.weight) not in read_too and layer not in within
    }


def _inside_others(gm: fx.GraphModule, layers: Mapping[Any, Any]) -> set[nn.Module]:
    """Those that modules called by the graph contain: they run them by themselves."""
    called = {module for node in gm.graph.nodes if (module := called_module(gm, node)) is not None}
    return {one for module in called if module not in layers for one in module.modules() if one in layers}


def _mask(layer: nn.Module, gone: Mapping[int, Axes]) -> LayerMask | None:
    if type(layer) is not nn.Linear and (type(layer) not in _CONVOLUTIONS or layer.groups != 1):
        return None
    if layer._forward_pre_hooks or layer._forward_hooks:
        return None
    assert isinstance(layer.weight, Tensor)
    axes = gone.get(id(layer.weight))
    if axes is None or not axes.keys() <= {0, 1}:
        return None
    if isinstance(layer.bias, Tensor):
        bias = gone.get(id(layer.bias), {}).get(0, torch.zeros(0, dtype=torch.int64))
        if not torch.equal(bias.unique(), axes.get(0, bias[:0]).unique()):
            return None  # masks of the output would zero another part of the bias
    return LayerMask(axes.get(1), axes.get(0))
