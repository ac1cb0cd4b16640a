"""Separate: a convolution of one kernel per input channel becomes a depthwise and a pointwise one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from edp_fx.channels.kernels import Kernels, one_kernel
from edp_fx.errors import PassError
from edp_fx.geometry import Geometry
from edp_fx.pairs import Pair
from edp_fx.passes.base import Pass, PassReport, PassResult

_LEAST = 1e-6  # norm below which a channel's weights count as zero


@dataclass(frozen=True)
class SeparateConvs(Pass):
    """Make each layer given NAME.depthwise → NAME.pointwise, of the part of its weight that has one kernel per
    input channel; exact where there is no other part.

    Attributes:
        layers: of this very, explicit graph.
    """

    name: ClassVar[str] = "separate"
    layers: Sequence[Kernels] = ()

    def requires(self, gm: fx.GraphModule) -> None:
        """The layers are of this graph. Raises PassError naming the one that is not."""
        nodes = {node.name for node in gm.graph.nodes}
        for layer in self.layers:
            if not nodes.issuperset(layer.nodes):
                raise PassError(f"{self.name}: layer {layer.name!r} is not called by a node {layer.nodes[0]!r}")

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        nodes = {node.name: node for node in gm.graph.nodes}
        for layer in self.layers:
            calls = [nodes[name] for name in layer.nodes]
            owner, _, leaf = layer.name.rpartition(".")
            gm.get_submodule(owner)._modules[leaf] = _separated(gm.get_submodule(layer.name))
            first, last = calls[0], calls[-1]
            with gm.graph.inserting_before(last):
                depthwise = gm.graph.call_module(f"{layer.name}.depthwise", first.args, first.kwargs)
                pointwise = gm.graph.call_module(f"{layer.name}.pointwise", (depthwise,))
            last.replace_all_uses_with(pointwise)
            for node in reversed(calls):
                gm.graph.erase_node(node)
            report.rewritten.append(layer.name)
        if report.rewritten:
            gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)

    def ensures(self, result: PassResult) -> None:
        """Each layer is a depthwise and a pointwise one. Raises PassError naming the one that is not."""
        calls = [str(node.target) for node in result.graph_module.graph.nodes if node.op == "call_module"]
        for name in result.report.rewritten:
            if calls.count(f"{name}.depthwise") != 1 or calls.count(f"{name}.pointwise") != 1:
                raise PassError(f"{self.name}: layer {name!r} is not a depthwise and a pointwise one")


@torch.no_grad()
def _separated(layer: nn.Module) -> nn.Module:
    """The two layers, in a container, of a plain convolution or a pair."""
    conv: Any = layer.basis if isinstance(layer, Pair) else layer
    kernel, mixing = one_kernel(conv.weight)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if isinstance(layer, Pair):
        coefficient: Any = layer.coefficient.weight
        mixing = (coefficient.flatten(1) @ mixing.flatten(1)).view(len(coefficient), *mixing.shape[1:])
    # both factors as large, channel by channel, so that both learn as fast
    size = mixing.flatten(1).norm(dim=0).clamp_min(_LEAST).sqrt().view(-1, *[1] * (kernel.dim() - 1))
    kernel, mixing = kernel * size, mixing / size.view(1, -1, *[1] * (mixing.dim() - 2))
    geometry = Geometry.of(conv)
    made = nn.Module()
    made.depthwise = replace(geometry, groups=conv.weight.shape[1]).layer(kernel.contiguous().clone(), None)
    made.pointwise = geometry.pointwise().layer(mixing.contiguous().clone(), bias)
    for part in (made.depthwise, made.pointwise):
        part.get_parameter("weight").requires_grad_(conv.weight.requires_grad)
    return made.train(layer.training)
