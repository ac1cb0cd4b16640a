"""What pruning must compute, found in another way: masked execution of the unpruned network, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from edp_fx.channels import ChannelGraph
from edp_fx.frontend.running import GraphRunner, attribute, called_module
from edp_fx.inputs import eval_mode
from edp_fx.leaves import tensors_of
from edp_fx.passes.prune import prune
from edp_fx.validation.layers import LayerMask, masked_layers
from edp_fx.validation.undo import swapped

aten = torch.ops.aten
Inputs = tuple[Any, ...]


def random_keep(
    graph: ChannelGraph, seed: int, share: float = 0.5, exact_only: bool = False, groups: float = 1.0
) -> dict[int, np.ndarray]:
    """A random keep-set: about ``share`` of the elements of prunable groups, at least one, at least one gone.

    Groups of one size keep different numbers of elements as long as there are any: one that should be tied to another
    would not be seen where both keep as many.

    ``groups``: the share of the groups that lose elements; what is tied to none of them must not notice.
    """
    rng = np.random.default_rng(seed)
    keep = {}
    taken: dict[int, set[int]] = {}
    for group in graph.prunable:
        if (exact_only and not group.exact) or (groups < 1 and rng.random() >= groups):
            continue
        kept = rng.random(group.size) < share
        kept[rng.integers(group.size)] = True
        if kept.all():
            kept[(np.flatnonzero(kept)[0] + 1) % group.size] = False
        number, numbers = int(kept.sum()), taken.setdefault(group.size, set())
        free = next((one for one in _outwards(number, group.size) if one not in numbers), number)
        numbers.add(free)
        if free != number:
            changed = rng.choice(np.flatnonzero(kept == (free < number)), abs(free - number), replace=False)
            kept[changed] = free > number
        keep[group.id] = kept
    return keep


def _outwards(middle: int, end: int) -> Iterator[int]:
    """The numbers from 1 below ``end``, those nearest to ``middle`` first."""
    for distance in range(end):
        for one in dict.fromkeys((middle - distance, middle + distance)):
            if 0 < one < end:
                yield one


def zero_members(gm: fx.GraphModule, graph: ChannelGraph, keep: dict[int, np.ndarray], roles: tuple[str, ...]) -> None:
    """Zero, in place, the removed slices of every parameter that has one of ``roles`` in a group."""
    for tensor, axis, gone in _removed(gm, graph, keep, roles):
        tensor.detach().index_fill_(axis, gone, 0)


def _removed(
    gm: fx.GraphModule, graph: ChannelGraph, keep: dict[int, np.ndarray], roles: tuple[str, ...]
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Parameters and buffers, each with an axis and the indices that go; statistics are no slices to zero."""
    for group_id, kept in keep.items():
        for member in graph.group(group_id).members:
            if member.role in roles and not member.parameter.endswith(("running_mean", "running_var")):
                tensor = attribute(gm, member.parameter)
                gone = np.flatnonzero((member.owner >= 0) & ~kept[member.owner])
                yield tensor, member.axis, torch.from_numpy(gone).to(tensor.device)


class Masked(TorchDispatchMode):
    """Runs mixing operations (norms, softmax, means over a pruned axis) on the kept indices only."""

    def __init__(self, graph: ChannelGraph, keep: dict[int, np.ndarray]) -> None:
        super().__init__()
        self.node = ""
        self.plan: dict[tuple[str, str], list[dict[int, np.ndarray]]] = {}
        alive = graph.analysis.alive_components(keep)
        for view, living in zip(graph.analysis.views, alive):
            for mix in view.ledger.mixes:
                mask = living[view.component[mix.atoms]]
                if not mask.all():
                    self.plan.setdefault((mix.where.node, _family(mix.where.op)), []).append(
                        {mix.axis: np.flatnonzero(mask)}
                    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = (self.node, _family(str(func)))
        plan = self.plan.get(key)
        if plan is None:
            return func(*args, **kwargs)
        packet = func.overloadpacket
        first = 1 if packet in (aten.addmm, aten.baddbmm) else 0
        x: Tensor = args[first]
        for one in plan:
            ((axis, kept),) = one.items()
            index = torch.from_numpy(kept)
            if x.ndim <= axis or int(kept.max()) >= x.shape[axis]:
                continue
            picked = x.index_select(axis, index)
            if packet is aten.native_layer_norm:
                inner = axis - x.ndim  # of several normalised axes maybe
                last = [a.index_select(inner, index) if isinstance(a, Tensor) else a for a in args[2:4]]
                out = func(picked, list(picked.shape[-len(args[1]) :]), *last, *args[4:])
                return (scatter(x, out[0], axis, index), *out[1:])
            if packet is aten.native_group_norm:
                vectors = [a.index_select(0, index) if isinstance(a, Tensor) else a for a in args[1:3]]
                out = func(picked, *vectors, args[3], len(kept), *args[5:])
                return (scatter(x, out[0], axis, index), *out[1:])
            if packet in (aten.bmm, aten.mm, aten.addmm, aten.baddbmm):
                right = args[first + 1].index_select(-2, index)
                return func(*args[:first], picked, right, *args[first + 2 :], **kwargs)
            if packet is aten.convolution and axis == 1:
                return func(picked, args[1].index_select(0 if args[6] else 1, index), *args[2:])
            out = func(picked, *args[1:], **kwargs)
            result = tensors_of(out)[0]
            if result.shape != picked.shape:
                return out
            return scatter(x, out, axis, index) if out is result else (scatter(x, result, axis, index), *out[1:])
        return func(*args, **kwargs)


def _family(op: str) -> str:
    return op.split(".")[1] if op.startswith("aten.") else op


def scatter(like: Tensor, values: Tensor, axis: int, index: Tensor) -> Tensor:
    """Zeros like ``like`` with ``values`` at the kept indices of ``axis``."""
    out = torch.zeros_like(like)
    out.index_copy_(axis, index, values)
    return out


class _Runner(GraphRunner):
    """Runs a graph, some operations in ``mode`` and layers with masks on what goes in and comes out."""

    def __init__(self, gm: fx.GraphModule, mode: Masked, layers: Mapping[nn.Module, LayerMask]) -> None:
        super().__init__(gm)
        self.mode, self.layers = mode, layers
        self.mixing = {node for node, _ in mode.plan}
        self.users = {node: len(node.users) for node in gm.graph.nodes}

    def run_node(self, node: fx.Node) -> Any:
        if node.name in self.mixing:
            self.mode.node = node.name
            with self.mode:
                result = super().run_node(node)
        else:
            layer = called_module(self.gm, node)
            mask = self.layers.get(layer) if layer is not None else None
            if mask is None:
                result = super().run_node(node)
            else:
                assert layer is not None
                result = mask.run(layer, self.env[node.all_input_nodes[0]])
        for one in node.all_input_nodes:
            self.users[one] -= 1
            if not self.users[one]:
                del self.env[one]
        return result


def masked_run(gm: fx.GraphModule, graph: ChannelGraph, keep: dict[int, np.ndarray], inputs: Inputs) -> list[Tensor]:
    """The zeroed, unpruned network with mixing operations on kept channels. The one given stays as it is."""
    mode = Masked(graph, keep)
    with eval_mode(gm), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        gone: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
        for tensor, axis, indices in _removed(gm, graph, keep, ("producer", "consumer", "affine", "other")):
            axes = gone.setdefault(id(tensor), (tensor, {}))[1]
            axes[axis] = torch.cat([axes[axis], indices]) if axis in axes else indices
        layers = masked_layers(gm, {key: axes for key, (_, axes) in gone.items()})
        whole = {id(layer.weight) for layer in layers}
        zeroed = {key: _filled(tensor, axes) for key, (tensor, axes) in gone.items() if key not in whole}
        with swapped(gm, zeroed):
            return tensors_of(_Runner(gm, mode, layers).run(*inputs))


def _filled(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    result = tensor.detach().clone()
    for axis, indices in axes.items():
        result.index_fill_(axis, indices, 0)
    return result


def pruned_run(gm: fx.GraphModule, graph: ChannelGraph, keep: dict[int, np.ndarray], inputs: Inputs) -> list[Tensor]:
    """The output of a pruned copy."""
    pruned = prune(copy.deepcopy(gm).eval(), graph, keep).graph_module
    return plain_run(pruned, inputs)


def faulty_run(gm: fx.GraphModule, graph: ChannelGraph, keep: dict[int, np.ndarray], inputs: Inputs) -> list[Tensor]:
    """The output of a pruned copy in which one layer has kept a wrong channel: what the oracle must catch."""
    pruned = prune(copy.deepcopy(gm).eval(), graph, keep).graph_module
    kept = graph.analysis.parameter_keep(keep)
    for group_id in sorted(keep, key=lambda one: -graph.group(one).macs_share):
        for member in graph.group(group_id).members:
            indices = kept.get(member.parameter, {}).get(member.axis)
            if member.role != "producer" or indices is None:
                continue
            gone = np.setdiff1d(np.flatnonzero(member.owner >= 0), indices)
            if gone.size:
                original = gm.get_parameter(member.parameter).detach()
                others = {a: i for a, i in kept[member.parameter].items() if a != member.axis}
                wrong = original.select(member.axis, int(gone[0]))
                for axis, index in others.items():
                    wrong = wrong.index_select(axis - (axis > member.axis), torch.from_numpy(index))
                pruned.get_parameter(member.parameter).detach().select(member.axis, 0).copy_(wrong)
                return plain_run(pruned, inputs)
    raise AssertionError("the keep-set removes no output channel")


def plain_run(gm: fx.GraphModule, inputs: Inputs) -> list[Tensor]:
    """The output in eval mode."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return tensors_of(gm.eval()(*inputs))


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest absolute difference in units of the output's standard deviation."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.is_floating_point():
            worst = max(worst, float((x - y).abs().max() / x.std().clamp_min(1e-12)))
    return worst
