"""Contractions: matrix products, convolutions, attention. Also writes down what each costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edp_fx.channels.atoms import Site
from edp_fx.channels.labels import FROZEN, Factor, on_axis, vector
from edp_fx.channels.rules.registry import rule
from edp_fx.channels.rules.sizes import NodeSizes
from edp_fx.frontend.layers import AttentionDropout

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


def contract(sweep: Sweep, left: Factor | None, right: Factor | None, reason: str, axis: int = -1) -> None:
    """Two operands are summed over one axis, ``axis`` of the first: tie its labels; an unlabelled side fixes the
    other."""
    if left is not None and right is not None:
        sweep.tie(left.atoms.ravel(), right.atoms.ravel())
        if not left.zero and not right.zero:
            sweep.ledger.mark_inexact(sweep.where, left.atoms, "a product of two values that are not 0 when dead", axis)
        elif not left.zero or not right.zero:
            sweep.ledger.mark_unzeroed(sweep.where, left.atoms if not left.zero else right.atoms)
    elif left is not None or right is not None:
        one = left if left is not None else right
        assert one is not None
        sweep.freeze(one, reason)


def _single(sweep: Sweep, tensor: Tensor, axis: int, inner: tuple[int, ...]) -> Factor | None:
    """The factor along ``axis`` made to depend on one axis only, see :meth:`Sweep.split_joint`."""
    factor = on_axis(sweep.labels(tensor), axis)
    if factor is None:
        return None
    factor = sweep.split_joint(factor, inner)
    if factor.atoms.shape[axis] == 1:
        return None
    return sweep.collapse(factor, [other for other in factor.axes if other != axis])


def _free(factor: Factor | None, axis: int, ndim: int, zero: bool) -> list[Factor]:
    return [Factor(vector(factor.atoms.ravel(), axis, ndim), zero)] if factor is not None else []


def _site(sweep: Sweep, constant: float, sizes: list[tuple[Factor | None, int]]) -> None:
    """Write down a cost: ``constant`` times the sizes. The last two, inputs and outputs, are axes even where nothing
    of them can be removed, so that the merged layer of a pair can be priced from the two layers."""
    axes = []
    for place, (factor, size) in enumerate(sizes):
        if factor is not None:
            axes.append(factor.atoms.ravel())
        elif place >= len(sizes) - 2:
            axes.append(np.full(size, FROZEN, dtype=np.int64))
        else:
            constant *= size
    sweep.ledger.sites.append(Site(sweep.where, constant, tuple(axes)))


@rule(aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
def mm(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """(n, k) @ (k, m), with or without an added term."""
    bias, (a, b) = (args[0], args[1:3]) if func.overloadpacket in (aten.addmm, aten.baddbmm) else (None, args[:2])
    _product(sweep, a, b, bias, out, a.ndim - 2)


def _product(sweep: Sweep, a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, batch: int) -> None:
    """The last two axes are matrices, ``batch`` axes stand before them."""
    row, col = out.ndim - 2, out.ndim - 1
    inner_a = _single(sweep, a, a.ndim - 1, (a.ndim - 1,))
    inner_b = _single(sweep, b, b.ndim - 2, (b.ndim - 2,))
    rows = _single(sweep, a, a.ndim - 2, (a.ndim - 2,))
    cols = _single(sweep, b, b.ndim - 1, (b.ndim - 1,))
    if a.shape[-1] > 1:
        contract(sweep, inner_a, inner_b, "multiplied with an operand of fixed size")
    factors = _free(rows, row, out.ndim, rows is not None and rows.zero) + _free(
        cols, col, out.ndim, cols is not None and cols.zero
    )
    batches: list[tuple[Factor | None, int]] = []
    for axis in range(batch):
        if out.shape[axis] == 1:
            continue
        pair = [_single_batch(sweep, a, axis), _single_batch(sweep, b, axis)]
        present = [one for one in pair if one is not None]
        if len(present) == 2:
            sweep.tie(present[0].atoms.ravel(), present[1].atoms.ravel())
        elif present:
            sweep.freeze(present[0], "multiplied with an operand of fixed size")
            present = []
        if present:
            factors += _free(present[0], axis, out.ndim, any(one.zero for one in present))
        batches.append((present[0] if present else None, out.shape[axis]))
    _site(sweep, 1.0, [*batches, (rows, a.shape[-2]), (inner_a, a.shape[-1]), (cols, b.shape[-1])])
    if bias is not None:
        from edp_fx.channels.rules.pointwise import merge

        lead = (1,) * (out.ndim - bias.ndim)
        added = [one.with_atoms(one.atoms.reshape(lead + one.atoms.shape)) for one in sweep.labels(bias)]
        merged = merge(sweep, [(0, tuple(out.shape), factors), (1, lead + tuple(bias.shape), added)])
        factors = [Factor(atoms, all(carriers.values()) and len(carriers) == 2) for atoms, carriers in merged]
        if not any(factor.axes for factor in added):
            factors = [Factor(one.atoms, one.zero and bias.numel() == 0) for one in factors]
    sweep.set(out, factors)


def _single_batch(sweep: Sweep, tensor: Tensor, axis: int) -> Factor | None:
    """Labels along a batch axis, once the matrix axes have had their choice."""
    factor = on_axis(sweep.labels(tensor), axis)
    if factor is None:
        return None
    factor = sweep.split_joint(factor, (tensor.ndim - 2, tensor.ndim - 1))
    if factor.atoms.shape[axis] == 1:
        return None
    return sweep.collapse(factor, [other for other in factor.axes if other != axis])


def default_scale(sizes: NodeSizes) -> None:
    """The default scale is 1/√dims: pin it to the dims there were."""
    if sizes.node.kwargs.get("scale") is None and len(sizes.before) - 1 in sizes.masks:
        sizes.put(7, "scale", sizes.before[-1] ** -0.5)


@rule(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_fused_attention_overrideable,
    sizes=default_scale,
    calls=(F.scaled_dot_product_attention, AttentionDropout),
)
def attention(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Fused scaled dot product attention (batch, heads, tokens, dims): q·kᵀ, softmax over tokens, times v."""
    q, k, v = args[:3]
    result = out[0] if isinstance(out, (tuple, list)) else out
    scores = torch.empty((*q.shape[:-1], k.shape[-2]), device="meta")
    turned = k.transpose(-1, -2)
    sweep.set(turned, [one.with_atoms(np.swapaxes(one.atoms, -1, -2)) for one in sweep.labels(k)])
    _product(sweep, q, turned, None, scores, 2)
    weights = [Factor(one.atoms, False) for one in sweep.labels(scores) if scores.ndim - 1 not in one.axes]
    sweep.set(scores, weights)
    _product(sweep, scores, v, None, result, 2)


def group_count(sizes: NodeSizes) -> None:
    """Functional grouped convolutions that lost whole groups."""
    groups = sizes.get(6, "groups")
    if groups not in (None, 1):
        channels, weight = sizes.now(sizes.tensor).shape[1], sizes.now(sizes.get(1, "weight"))
        if channels // weight.shape[1] != sizes.now(groups):
            sizes.put(6, "groups", channels // weight.shape[1])


@rule(aten.convolution, sizes=group_count, calls=(F.conv1d, F.conv2d, F.conv3d))
def convolution(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    x, weight, bias = args[0], args[1], args[2]
    transposed, groups = args[6], args[8]
    spatial = tuple(range(2, x.ndim))
    beside = _beside(sweep, x, out, args[3]) if x.shape[1] == out.shape[1] == 1 else []
    for factor in sweep.labels(weight):
        kernel = [axis for axis in factor.axes if axis > 1]
        if kernel:
            sweep.collapse(factor, kernel)
    channel = on_axis(sweep.labels(x), 1)
    if channel is not None:
        channel = sweep.collapse(channel, spatial)
        if channel.axes != (1,):
            channel = sweep.collapse(sweep.split_joint(channel, (1,)), [axis for axis in channel.axes if axis != 1])
        channel = channel if channel.atoms.shape[1] > 1 else None
    for factor in sweep.labels(x):
        if 1 not in factor.axes and not beside:
            sweep.collapse(factor, spatial)
    axis_out, axis_in = (1, 0) if transposed else (0, 1)
    w_out, w_in = _weight_axis(sweep, weight, axis_out), _weight_axis(sweep, weight, axis_in)
    if groups == 1:
        if x.shape[1] > 1:
            contract(sweep, channel, w_in, "convolved with an operand of fixed size", axis=1)
        made = w_out
        ins: tuple[Factor | None, int] = (w_in if channel is not None else None, x.shape[1])
    else:
        made, ins = _grouped(sweep, channel, w_out, w_in, x.shape[1], out.shape[1], groups, transposed)
    factors = [*_bias(sweep, made, bias, out), *beside]
    batch = on_axis(sweep.labels(x), 0)
    if batch is not None and batch.axes == (0,) and out.shape[0] == x.shape[0]:
        factors = [*factors, Factor(batch.atoms.reshape((-1,) + (1,) * (out.ndim - 1)), batch.zero and bias is None)]
    sweep.set(out, factors)
    positions = x if transposed else out
    constant = float(math.prod(weight.shape[2:]) * math.prod(positions.shape[2:]) * out.shape[0])
    outs: tuple[Factor | None, int] = (made, out.shape[1])
    _site(sweep, constant / groups, [ins, outs])


def _beside(sweep: Sweep, x: Tensor, out: Tensor, stride: Any) -> list[Factor]:
    """A filter of one input and output that runs along labelled indices, one step at a time: each is mixed with those
    beside it, which removal changes."""
    found = [factor for factor in sweep.labels(x) if len(factor.axes) == 1 and factor.axes[0] > 1]
    steps = list(stride) * (x.ndim - 2) if len(stride) == 1 else list(stride)
    if len(found) != 1 or len(found) < len(sweep.labels(x)):
        return []
    (axis,) = found[0].axes
    if out.shape[axis] != x.shape[axis] or steps[axis - 2] != 1:
        return []
    sweep.ledger.mark_inexact(sweep.where, found[0].atoms, "a filter mixes channels that are neighbours", axis)
    return [Factor(found[0].atoms, False)]


def _weight_axis(sweep: Sweep, weight: Tensor, axis: int) -> Factor | None:
    factor = on_axis(sweep.labels(weight), axis)
    if factor is None:
        return None
    factor = sweep.collapse(factor, [other for other in factor.axes if other != axis])
    return factor if factor.axes else None


def _bias(sweep: Sweep, made: Factor | None, bias: Tensor | None, out: Tensor) -> list[Factor]:
    found = on_axis(sweep.labels(bias), 0) if bias is not None else None
    if made is None:
        if found is not None and out.shape[1] > 1:
            sweep.freeze(found, "added to channels that cannot be removed")
        return []
    zero = made.zero
    if bias is not None:
        if found is None:
            if bias.numel() > 1:
                sweep.freeze(made, "a bias of fixed size is added")
            zero = False
        else:
            sweep.tie(made.atoms.ravel(), found.atoms.ravel())
            zero = zero and found.zero
    return [Factor(vector(made.atoms.ravel(), 1, out.ndim), zero)]


def _grouped(
    sweep: Sweep,
    channel: Factor | None,
    w_out: Factor | None,
    w_in: Factor | None,
    in_channels: int,
    out_channels: int,
    groups: int,
    transposed: bool,
) -> tuple[Factor | None, tuple[Factor | None, int]]:
    """Channels of a grouped convolution: whole groups go where a group has one input or one output (unless outputs are
    no channels, as where each sample has a kernel of its own), else the same places in every group. Returns the
    output's factor and (factor, size) of the inputs as they count for cost.
    """
    per_in, per_out = in_channels // groups, out_channels // groups
    # The axis of the weight that runs over all groups, and the one inside a group.
    across, inside = (w_in, w_out) if transposed else (w_out, w_in)
    whole = per_in == 1 or (per_out == 1 and across is not None)
    if whole:
        if inside is not None:
            sweep.freeze(inside, "a part of every group of a grouped convolution")
        if across is None or channel is None:
            _freeze_present(sweep, across, channel)
            return None, (None, in_channels)
        by_group = channel.atoms.reshape(groups, per_in)
        weight = across.atoms.reshape(groups, per_in if transposed else per_out)
        sweep.tie(by_group, by_group[:, :1])
        sweep.tie(weight, weight[:, :1])
        sweep.tie(by_group[:, 0], weight[:, 0])
        _zero_check(sweep, channel)
        return Factor(np.repeat(weight[:, 0], per_out), across.zero), (None, per_in * groups)
    made = w_out
    if w_out is not None and w_out.atoms.size == out_channels:
        grid = w_out.atoms.reshape(groups, per_out)
        sweep.tie(grid, grid[:1])
    elif w_out is not None:
        made = Factor(np.tile(w_out.atoms.ravel(), groups), w_out.zero)
    if channel is None or w_in is None:
        _freeze_present(sweep, w_in, channel)
        return made, (None, in_channels)
    by_group = channel.atoms.reshape(groups, per_in)
    sweep.tie(by_group, by_group[:1])
    sweep.tie(by_group, w_in.atoms.reshape((groups, per_in) if w_in.atoms.size == in_channels else (1, per_in)))
    _zero_check(sweep, channel)
    return made, (Factor(by_group.ravel()), in_channels)


def _freeze_present(sweep: Sweep, *factors: Factor | None) -> None:
    for one in factors:
        if one is not None:
            sweep.freeze(one, "a grouped convolution with inputs that cannot be removed")


def _zero_check(sweep: Sweep, channel: Factor) -> None:
    if not channel.zero:
        sweep.ledger.mark_unzeroed(sweep.where, channel.atoms[channel.atoms != FROZEN])
