"""The pair on the other side of the weight: kernels of each input channel, then a coefficient for every output.

A convolution W (n x c x k x k) becomes NAME.depthwise, m kernels for each input channel, and NAME.pointwise, an
n x c·m matrix: W[i, j] = Σ_m p[i, (j, m)]·d[j, m]. It is exact where m is min(n, k²), or where the layer's slices of
each input channel have no more than m directions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.channels.kernels import Kernels, kernels_of
from edp_fx.geometry import Geometry
from edp_fx.pairs import Pair, rank_of

_LEAST = 1e-6  # norm below which a channel's weights count as zero


def insert_kernel_pair(gm: fx.GraphModule, layer: Kernels, rank: int | float | None) -> None:
    """Make one layer, plain or a pair, two; ``rank`` is the number of kernels per input channel, or a share of all."""
    nodes = {node.name: node for node in gm.graph.nodes}
    calls = [nodes[name] for name in layer.nodes]
    owner, _, leaf = layer.name.rpartition(".")
    gm.get_submodule(owner)._modules[leaf] = _two_layers(gm.get_submodule(layer.name), rank)
    first, last = calls[0], calls[-1]
    with gm.graph.inserting_before(last):
        depthwise = gm.graph.call_module(f"{layer.name}.depthwise", first.args, first.kwargs)
        pointwise = gm.graph.call_module(f"{layer.name}.pointwise", (depthwise,))
    last.replace_all_uses_with(pointwise)
    for node in reversed(calls):
        gm.graph.erase_node(node)


@torch.no_grad()
def _two_layers(layer: nn.Module, rank: int | float | None) -> nn.Module:
    """The two layers, in a container, of a plain convolution or a pair."""
    conv: Any = layer.basis if isinstance(layer, Pair) else layer
    outputs, inputs, taps = conv.weight.shape[0], conv.weight.shape[1], conv.weight[0, 0].numel()
    kernel, mixing = kernels_of(conv.weight, rank_of(rank, min(outputs, taps)))
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if isinstance(layer, Pair):
        coefficient: Any = layer.coefficient.weight
        mixing = (coefficient.flatten(1) @ mixing.flatten(1)).view(len(coefficient), *mixing.shape[1:])
    # both factors as large, channel by channel, so that both learn as fast
    size = mixing.flatten(1).norm(dim=0).clamp_min(_LEAST).sqrt().view(-1, *[1] * (kernel.dim() - 1))
    kernel, mixing = kernel * size, mixing / size.view(1, -1, *[1] * (mixing.dim() - 2))
    geometry = Geometry.of(conv)
    made = nn.Module()
    made.depthwise = replace(geometry, groups=inputs).layer(kernel.contiguous().clone(), None)
    made.pointwise = geometry.pointwise().layer(mixing.contiguous().clone(), bias)
    for part in (made.depthwise, made.pointwise):
        part.get_parameter("weight").requires_grad_(conv.weight.requires_grad)
    return made.train(layer.training)
