"""Prune: remove the channels and ranks a keep-set leaves out, everywhere they occur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from edp_fx.channels import ChannelGraph
from edp_fx.channels.resizing import resize_module
from edp_fx.channels.rules.sizes import pruned_shape
from edp_fx.errors import PassError
from edp_fx.frontend.running import submodule
from edp_fx.passes.base import Pass, PassReport, PassResult
from edp_fx.passes.sizes import repair_sizes

Kept = dict[str, dict[int, np.ndarray]]


@dataclass(frozen=True)
class Prune(Pass):
    """Index-select every parameter and buffer, and bring module attributes and literal sizes after them.

    Attributes:
        graph: the analysis of the very module that is pruned.
        keep: group id -> boolean array of the elements that stay; groups not named stay whole.

    ``report.facts["kept"]`` maps parameter names to axis -> indices that stay, for slicing optimiser state. Raises
    AnalysisError for a keep-set that does not fit the graph and PassError naming the node where a size cannot follow.
    """

    name: ClassVar[str] = "prune"
    graph: ChannelGraph
    keep: Mapping[int, np.ndarray] = field(default_factory=dict)

    def requires(self, gm: fx.GraphModule) -> None:
        """``graph`` is of this module: the same nodes, and parameters of the same sizes. Raises PassError naming one
        that is not."""
        shapes = self.graph.analysis.node_shapes
        for node in gm.graph.nodes:
            if node.name not in shapes:
                raise PassError(f"{self.name}: node {node.name!r} was not analysed; analyze the graph as it is now")
        for name, axes in self.graph.analysis.parameter_sizes.items():
            path, _, leaf = name.rpartition(".")
            shape = getattr(submodule(gm, path), leaf).shape
            for axis, size in axes.items():
                if len(shape) <= axis or shape[axis] != size:
                    raise PassError(
                        f"{self.name}: {name!r} is {tuple(shape)}, but axis {axis} had {size} indices when it was "
                        "analysed; analyze the graph as it is now"
                    )

    def pieces(self, report: PassReport) -> list[str]:
        """Each group that loses something."""
        return [self._piece(number) for number in self.graph.analysis.check_keep(self.keep)]

    def _piece(self, number: int) -> str:
        return f"{self.graph.group(number).name} (group {number})"

    def call(self, gm: fx.GraphModule) -> PassResult:
        report = PassReport(self.name)
        keep = self.graph.analysis.check_keep(self.keep)
        keep = {number: kept for number, kept in keep.items() if not self.leaves(self._piece(number), report)}
        kept = self.graph.analysis.parameter_keep(keep)
        report.facts["kept"] = kept
        if not kept:
            return PassResult(gm, False, report)
        masks = self.graph.analysis.node_masks(keep)
        touched = slice_state(gm, kept)
        layer_inputs = _input_shapes(gm, self.graph, masks)
        for path in touched | set(layer_inputs):
            resize_module(submodule(gm, path), layer_inputs.get(path))
        repaired = repair_sizes(gm, self.graph, masks)
        report.rewritten = sorted(touched) + repaired
        if repaired:
            gm.recompile()
        return PassResult(gm, True, report)

    def ensures(self, result: PassResult) -> None:
        """Every parameter has the size of what stays (nodes are checked as they are run). Raises PassError."""
        for name, axes in result.report.facts["kept"].items():
            path, _, leaf = name.rpartition(".")
            shape = getattr(submodule(result.graph_module, path), leaf).shape
            for axis, indices in axes.items():
                if shape[axis] != len(indices):
                    raise PassError(f"{self.name}: {name!r} is {tuple(shape)}, axis {axis} should be {len(indices)}")


@dataclass(frozen=True)
class PruneDead(Prune):
    """Of elements that are exactly zero, whose removal changes nothing."""

    preserves: ClassVar[bool] = True


def slice_state(module: nn.Module, kept: Kept) -> set[str]:
    """Index-select the parameters and buffers named in ``kept``; tied ones stay tied. Returns their modules' paths."""
    replaced: dict[int, Tensor] = {}
    for name, axes in kept.items():
        path, _, leaf = name.rpartition(".")
        old = getattr(submodule(module, path), leaf)
        replaced[id(old)] = select(old, axes)
    touched = set()
    for path, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for leaf, value in table.items():
                if value is not None and id(value) in replaced:
                    table[leaf] = replaced[id(value)]
                    touched.add(path)
    return touched


def select(tensor: Tensor, axes: Mapping[int, np.ndarray]) -> Tensor:
    """``tensor`` with only the given indices along each axis; a parameter stays a parameter."""
    data = tensor.detach()
    for axis, indices in axes.items():
        data = data.index_select(axis, torch.as_tensor(indices, device=data.device))
    data = data.contiguous() if data is not tensor else data.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def _input_shapes(
    gm: fx.GraphModule, graph: ChannelGraph, masks: dict[str, list[dict[int, np.ndarray]]]
) -> dict[str, tuple[int, ...]]:
    """Module path -> the shape of its input after pruning, for layers whose input loses indices."""
    shapes = graph.analysis.node_shapes
    result: dict[str, tuple[int, ...]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module" and node.args and isinstance(node.args[0], fx.Node):
            source = node.args[0].name
            if len(shapes.get(source, ())) == 1 and masks[source][0]:
                result[str(node.target)] = pruned_shape(shapes[source][0], masks[source][0])
    return result


def prune(gm: fx.GraphModule, graph: ChannelGraph, keep: Mapping[int, np.ndarray]) -> PassResult:
    """Apply :class:`Prune` to ``gm`` in place."""
    return Prune(graph, keep)(gm)
