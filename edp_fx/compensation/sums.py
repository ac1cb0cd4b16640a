"""Where a layer's outputs are added to what was there before them: a skip connection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edp_fx.channels.residuals import is_sum
from edp_fx.compensation.side import Side
from edp_fx.frontend.running import called_module, run_node
from edp_fx.inputs import COMPUTE_LAYERS

EXACT = 1e-4  # share of the largest value by which what lies between may differ from a scale and a shift


@dataclass(frozen=True)
class Branch:
    """A layer of a graph whose outputs end in one sum.

    Attributes:
        layer: position of its node.
        end: position of the sum's.
        other: the sum's other operand, which comes before the layer.
        last: its operand that comes from the layer.
    """

    layer: int
    end: int
    other: fx.Node
    last: fx.Node


def branch_of(side: Side, layer: int) -> Branch | None:
    """The sum that a layer's outputs go into, where nothing else reads them, no other layer lies between and the other
    operand is there before; None elsewhere."""
    inside = {side.nodes[layer]}
    for number in range(layer + 1, len(side.nodes)):
        node = side.nodes[number]
        earlier = [one for one in node.all_input_nodes if one not in inside]
        if not earlier:
            if isinstance(called_module(side.gm, node), COMPUTE_LAYERS):
                return None
            inside.add(node)
            continue
        later = [one for one in node.all_input_nodes if one in inside]
        readers = {reader for one in inside for reader in one.users}
        if not is_sum(node) or node.kwargs or len(earlier) != 1 or len(later) != 1 or not readers <= inside | {node}:
            return None
        return Branch(layer, number, earlier[0], later[0])
    return None


def scale_and_shift(side: Side, branch: Branch, outputs: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """How the layer's outputs come to the sum in evaluation mode, per channel, in double precision: batch norms, layer
    scales, dropout. None where that is not all that happens to them: what lies between is run on numbers of both signs.

    Args:
        side: of the branch, in evaluation mode.
        branch: of a layer in it.
        outputs: of the layer, for their shape.
        axis: of the channels.
    """
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    values = {side.nodes[branch.layer]: noise}
    for node in side.nodes[branch.layer + 1 : branch.end]:
        values[node] = run_node(side.gm, node, values.__getitem__)
    found = values[branch.last]
    if not isinstance(found, Tensor) or found.shape != noise.shape:
        return None
    before, after = (one.movedim(axis, -1).reshape(-1, one.shape[axis]).double() for one in (noise, found))
    centred = before - before.mean(0)
    scale = (centred * after).sum(0) / centred.square().sum(0)
    shift = after.mean(0) - scale * before.mean(0)
    exact = bool((after - scale * before - shift).abs().max() <= EXACT * after.abs().max())
    return (scale, shift) if exact and bool((scale != 0).all()) else None
