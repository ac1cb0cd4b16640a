"""Crop: convolutions without the outermost taps of their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx, nn

from edp_fx.channels.taps import Taps, inner_indices, inner_taps
from edp_fx.geometry import Geometry
from edp_fx.passes.base import Pass, PassReport, PassResult


@dataclass(frozen=True)
class CropKernels(Pass):
    """Each layer given loses the outermost taps of its kernels, or, where one factor an input would be left, goes into
    the pointwise layer behind it; exact where those taps are zero.

    Attributes:
        layers: of this very, explicit graph.

    ``report.facts["kept"]`` maps the weights that stay to axis -> indices that stay, for slicing optimiser state.
    """

    name: ClassVar[str] = "crop"
    layers: Sequence[Taps] = ()

    @torch.no_grad()
    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        kept: dict[str, dict[int, np.ndarray]] = {}
        report.facts["kept"] = kept
        nodes = {node.name: node for node in gm.graph.nodes}
        for one in self.layers:
            layer: Any = gm.get_submodule(one.name)
            owner, _, leaf = one.name.rpartition(".")
            if one.pointwise is None:
                gm.get_submodule(owner)._modules[leaf] = _cropped(layer)
                kept[one.parameter] = dict(enumerate(inner_indices(layer.weight.shape[2:]), 2))
            else:
                weight: Any = gm.get_submodule(one.pointwise).weight
                weight.mul_(inner_taps(layer.weight).reshape(1, -1, *[1] * (weight.dim() - 2)))
                nodes[one.node].replace_all_uses_with(nodes[one.node].all_input_nodes[0])
                gm.graph.erase_node(nodes[one.node])
                gm.delete_submodule(one.name)
            report.rewritten.append(one.name)
        if report.rewritten:
            gm.recompile()
        return PassResult(gm, bool(report.rewritten), report)


def _cropped(layer: Any) -> nn.Module:
    inner = inner_taps(layer.weight)
    cropped = (before > after for before, after in zip(layer.weight.shape[2:], inner.shape[2:], strict=True))
    padding = tuple(pad - step * less for pad, step, less in zip(layer.padding, layer.dilation, cropped, strict=True))
    made = replace(Geometry.of(layer), padding=padding).layer(inner.clone(), layer.bias)
    made.get_parameter("weight").requires_grad_(layer.weight.requires_grad)
    return made.train(layer.training)
