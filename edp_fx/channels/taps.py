"""Outer taps: convolutions whose kernel could do with one ring of taps less, 3x3 with 1x1, 7x7 with 5x5.

Where a map is smaller than the kernel its outer taps meet nothing but padding, and on others they may matter little. A
depthwise convolution of one tap before a pointwise one is a factor for each of its inputs, so that there a whole layer
goes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edp_fx.channels.readers import read_once
from edp_fx.geometry import plain_kind
from edp_fx.pairs import Pair

_SMALLEST = 3  # fewer taps along an axis have none outside of others


@dataclass(frozen=True, eq=False)
class Taps:
    """The outermost taps of a layer's kernels: a group of one element, kept or removed.

    Attributes:
        id: negative, apart from the ids of the groups of channels.
        name: the layer.
        node: the graph node that calls it.
        channels: its outputs.
        before: taps of one kernel.
        after: those of them that are not outermost.
        pointwise: the layer that takes over what is left of it, where that is a factor for each of its inputs.
    """

    id: int
    name: str
    node: str
    channels: int
    before: int
    after: int
    pointwise: str | None
    kind: ClassVar[str] = "tap"
    size: ClassVar[int] = 1

    @property
    def parameter(self) -> str:
        """The layer's weight."""
        return f"{self.name}.weight"

    @property
    def parameters(self) -> tuple[str]:
        """As of a branch, what it owns a part of."""
        return (self.parameter,)


def find_taps(gm: fx.GraphModule, apart_from: Collection[str] = (), first_id: int = -1) -> list[Taps]:
    """Every plain layer of an explicit graph whose outermost taps may go, but those of the weights ``apart_from``, ids
    from ``first_id`` down."""
    once = read_once(gm)
    found: list[Taps] = []
    for node in gm.graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or f"{name}.weight" in apart_from:
            continue
        layer: Any = gm.get_submodule(name)
        if not _eligible(layer) or not once(name, "weight"):
            continue
        if isinstance(gm.get_submodule(name.rpartition(".")[0]), Pair):
            continue
        size = tuple(layer.weight.shape[2:])
        before, after = math.prod(size), math.prod(map(len, inner_indices(size)))
        pointwise = _follower(gm, node, layer) if after == 1 else None
        if pointwise is not None and not once(pointwise, "weight"):
            pointwise = None
        found.append(Taps(first_id - len(found), name, node.name, len(layer.weight), before, after, pointwise))
    return found


def inner_indices(size: Sequence[int]) -> list[NDArray[np.int64]]:
    """Along each axis of a kernel of this size, the indices of the taps that are not outermost."""
    return [np.arange(1, one - 1) if one >= _SMALLEST else np.arange(one) for one in size]


def inner_taps(weight: Tensor) -> Tensor:
    """The view of a weight [n, c, k…] without the outermost taps."""
    for axis, inner in enumerate(inner_indices(weight.shape[2:]), 2):
        weight = weight.narrow(axis, int(inner[0]), len(inner))
    return weight


def outer_taps(weights: Sequence[Tensor]) -> list[Tensor]:
    """Each weight with zeros but for its outermost taps, of the same shape."""
    parts = [weight.detach().clone() for weight in weights]
    for part in parts:
        inner_taps(part).zero_()
    return parts


def _eligible(layer: Any) -> bool:
    """Whether it pads by at least what it would then read less, so that its output stays as large."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or plain_kind(layer) is None:
        return False
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    axes = list(zip(layer.weight.shape[2:], layer.padding, layer.dilation, strict=True))
    wide = [(padding, dilation) for size, padding, dilation in axes if size >= _SMALLEST]
    return bool(wide) and all(padding >= dilation for padding, dilation in wide)


def _follower(gm: fx.GraphModule, node: fx.Node, layer: Any) -> str | None:
    """The pointwise layer that alone reads a depthwise one that neither moves nor shifts anything once it has one
    tap."""
    still = all(one == 1 for one in layer.stride) and tuple(layer.padding) == tuple(
        dilation * (size > 1) for size, dilation in zip(layer.weight.shape[2:], layer.dilation, strict=True)
    )
    depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.bias is None
    # right behind it: what comes between might change in place what the pointwise layer will read
    if not still or not depthwise or list(node.users) != [user := node.next] or user.op != "call_module":
        return None
    reader: Any = gm.get_submodule(str(user.target))
    if type(reader) is not type(layer) or plain_kind(reader) is None or reader.groups != 1:
        return None
    if reader.weight.requires_grad != layer.weight.requires_grad:  # what is not trained stays as it is
        return None
    # padded, it would read zeros where the factor reads none, which is alike; but bias and stride stay its own
    return str(user.target) if set(reader.weight.shape[2:]) == {1} else None
