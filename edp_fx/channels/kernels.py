"""Kernels: convolutions that could do with one kernel per input channel.

A convolution W (n x c x k x k) whose slices W[i, j] are, for each input channel j, multiples of one kernel d_j is a
depthwise convolution d (c filters) followed by a pointwise one p (n x c): W[i, j] = p[i, j]·d_j. What W has beyond that
can be made to die as a rank or a channel is. (The pair with one basis filter per input channel, instead of filters
over all input channels; at its price of c·(k² + n) a position all channels can often stay.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from edp_fx.channels.readers import read_once
from edp_fx.geometry import plain_kind
from edp_fx.pairs import Pair

_SQUARINGS = 5  # the 2^5-th power of a Gram matrix is all but its first direction


@dataclass(frozen=True, eq=False)
class Kernels:
    """What a convolution has beyond one kernel per input channel: a group of one element, kept or removed.

    Attributes:
        id: negative, unlike those of the groups of channels.
        name: the layer, plain or a pair.
        parameter: its weight, a pair's that of its basis.
        nodes: the graph nodes that call it.
        taps: numbers of one kernel.
    """

    id: int
    name: str
    parameter: str
    nodes: tuple[str, ...]
    taps: int
    kind: ClassVar[str] = "kernel"
    size: ClassVar[int] = 1
    exact: ClassVar[bool] = True


def find_kernels(gm: fx.GraphModule, first_id: int = -1, least_inputs: int = 2) -> list[Kernels]:
    """Every layer of an explicit graph that may become a depthwise and a pointwise one, ids from ``first_id`` down."""
    called: dict[str, list[str]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            called.setdefault(str(node.target), []).append(node.name)
    once = read_once(gm)
    found: list[Kernels] = []
    for target, nodes in called.items():
        layer = gm.get_submodule(target)
        if not _eligible(layer, least_inputs) or not once(target, "weight"):
            continue
        weight = layer.get_parameter("weight")
        home = target.rpartition(".")[0]
        # the coefficient of a pair is pointwise: what is eligible in one is its basis
        pair = isinstance(gm.get_submodule(home), Pair)
        name = home if pair else target
        users = (*nodes, *called.get(f"{home}.coefficient", ())) if pair else tuple(nodes)
        found.append(Kernels(first_id - len(found), name, f"{target}.weight", users, weight[0, 0].numel()))
    return found


def _eligible(layer: nn.Module, least_inputs: int) -> bool:
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or plain_kind(layer) is None:
        return False
    weight = layer.weight
    return layer.groups == 1 and weight.shape[1] >= least_inputs and weight[0, 0].numel() > 1


def _directions(weights: Sequence[Tensor]) -> list[Tensor]:
    """For each weight [n, c, k…] the unit kernels [c, k…] that explain most of each input channel's slices of it."""
    grams = []
    for weight in weights:
        # contiguous: of a weight with channels innermost the product would copy slice by slice
        slices = _working(weight.detach()).flatten(2).permute(1, 2, 0).contiguous()
        grams.append(slices @ slices.mT)
    # kernels of one size together: layer by layer, the many small operations would take longer than the network itself
    found: list[Tensor] = list(weights)
    for taps in dict.fromkeys(gram.shape[-1] for gram in grams):
        alike = [number for number, gram in enumerate(grams) if gram.shape[-1] == taps]
        kernels = _first_directions(torch.cat([grams[number] for number in alike]))
        for number, kernel in zip(alike, kernels.split([len(grams[number]) for number in alike]), strict=True):
            weight = weights[number]
            found[number] = kernel.view(weight.shape[1], *weight.shape[2:]).to(weight.dtype)
    return found


def _working(weight: Tensor) -> Tensor:
    """In the weight's own precision, but for halves."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def _first_directions(power: Tensor) -> Tensor:
    """Of Gram matrices [c, k, k] their first eigenvectors [c, k], nearly."""
    for _ in range(_SQUARINGS):
        power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)[:, None, None]
        power = power @ power
    column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)
    kernel = power[torch.arange(len(power), device=power.device), column]
    return kernel / kernel.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def kernels_of(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Depthwise kernels [c·count, 1, k…] and pointwise weight [n, c·count, 1…] whose product is nearest to ``weight``
    [n, c, k…]."""
    if count == 1:
        (kernel,) = _directions([weight])
        return kernel.unsqueeze(1), _along(weight, kernel)
    n, c, *shape = weight.shape
    slices = _working(weight.detach()).flatten(2).transpose(0, 1)  # [c, n, k²]
    left, singular, right = torch.linalg.svd(slices, full_matrices=False)
    kernels = right[:, :count].reshape(c * count, 1, *shape)
    mixing = (left * singular[:, None])[..., :count].permute(1, 0, 2).reshape(n, c * count, *[1] * len(shape))
    return kernels.to(weight.dtype), mixing.to(weight.dtype)


def beyond_one_kernel(weights: Sequence[Tensor]) -> list[Tensor]:
    """Each weight less its part of one kernel per input channel, of the same shape."""
    kernels = _directions(weights)
    return [weight.detach() - _along(weight, kernel) * kernel for weight, kernel in zip(weights, kernels, strict=True)]


def _along(weight: Tensor, kernel: Tensor) -> Tensor:
    return (weight.detach() * kernel).sum(tuple(range(2, weight.dim())), keepdim=True)
