"""Normalisations, softmax and reductions: what they mix, and whether removing a dead channel changes the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edp_fx.channels.labels import Factor, Labels, axis_argument, on_axis, vector
from edp_fx.channels.rules.registry import rule
from edp_fx.channels.rules.sizes import NodeSizes, last_axes

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


@rule(
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
    aten._batch_norm_with_update,
)
def batch_norm(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Per-channel: exact. With batch statistics, what the statistics are taken over is mixed."""
    x, result = args[0], out[0]
    vectors = [one for one in args[1:5] if isinstance(one, Tensor)]
    training = [one for one in args[5:] if isinstance(one, bool)]
    if training and training[0]:
        _mix(
            sweep,
            sweep.labels(x),
            [axis for axis in range(x.ndim) if axis != 1],
            "batch statistics over removed indices",
        )
    channel = on_axis(sweep.labels(x), 1)
    factors: Labels = sweep.labels(x)
    if channel is not None:
        channel = sweep.collapse(channel, [axis for axis in channel.axes if axis != 1])
        factors = tuple(one for one in factors if 1 not in one.axes)
    affine = isinstance(args[1], Tensor)
    channel = _affine(sweep, channel, vectors, zero=affine)
    others = [Factor(one.atoms, False) for one in factors]
    sweep.set(result, [*others, *([channel.with_atoms(vector(channel.atoms.ravel(), 1, x.ndim))] if channel else [])])


def _affine(sweep: Sweep, channel: Factor | None, vectors: list[Tensor], zero: bool) -> Factor | None:
    """Tie a channel vector to scale, shift and statistics; ``zero``: an affine part that can be zeroed exists."""
    for one in vectors:
        found = on_axis(sweep.labels(one), 0)
        if channel is None:
            if found is not None:
                sweep.freeze(found, "normalises channels that cannot be removed")
        elif found is None:
            if one.numel() > 1:
                sweep.freeze(channel, "scaled by an operand of fixed size")
        else:
            sweep.tie(channel.atoms.ravel(), found.atoms.ravel())
    return Factor(channel.atoms, zero) if channel is not None and channel.axes else None


def _mix(sweep: Sweep, labels: Iterable[Factor], axes: list[int], reason: str) -> Labels:
    """Mark labels along ``axes`` inexact; a joint factor first chooses a side. Returns the factors afterwards."""
    kept = []
    for factor in labels:
        if any(axis in axes for axis in factor.axes):
            factor = sweep.split_joint(factor, axes)
            inside = [axis for axis in factor.axes if axis in axes]
            if inside:
                factor = sweep.collapse(factor, [axis for axis in factor.axes if axis != inside[-1]])
                sweep.ledger.mark_inexact(sweep.where, factor.atoms, reason, inside[-1])
        kept.append(factor)
    return tuple(kept)


@rule(
    aten.native_layer_norm,
    aten._fused_rms_norm,
    aten.rms_norm,
    sizes=last_axes(1, "normalized_shape"),
    calls=(F.layer_norm, F.rms_norm),
)
def layer_norm(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Layer and RMS norm over the last axes: the mean is taken over the removed channels too."""
    x, shape = args[0], args[1]
    affine = [one for one in args[2:4] if isinstance(one, Tensor)]
    result = out[0] if isinstance(out, (tuple, list)) else out
    first = x.ndim - len(shape)
    axes = list(range(first, x.ndim))
    factors = []
    for factor in _mix(sweep, sweep.labels(x), axes, "layer norm takes its mean over these channels"):
        inside = [axis for axis in factor.axes if axis in axes]
        if not inside:
            factors.append(Factor(factor.atoms, False))
            continue
        factor = sweep.collapse(factor, [axis for axis in factor.axes if axis != inside[-1]])
        found = [on_axis(sweep.labels(one), inside[-1] - first) for one in affine]
        for vector_factor in found:
            if vector_factor is None:
                sweep.freeze(factor, "scaled by an operand of fixed size")
            else:
                sweep.tie(factor.atoms.ravel(), vector_factor.atoms.ravel())
        factors.append(Factor(factor.atoms, bool(affine)))
    labelled = {axis for factor in factors for axis in factor.axes}
    for one in affine:
        for factor in sweep.labels(one):
            if not any(axis + first in labelled for axis in factor.axes):
                sweep.freeze(factor, "normalises channels that cannot be removed")
    sweep.set(result, factors)


def channel_groups(sizes: NodeSizes) -> None:
    """As many groups as channels stay so; other numbers of groups lose channels inside each."""
    groups = sizes.now(sizes.get(1, "num_groups"))
    if groups == sizes.before[1] != sizes.after[0][1]:
        sizes.put(1, "num_groups", sizes.after[0][1])


@rule(aten.native_group_norm, sizes=channel_groups, calls=(F.group_norm,))
def group_norm(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """native_group_norm(x, weight, bias, N, C, HxW, group, eps): one channel a group is exact, else it mixes."""
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    channel = on_axis(sweep.labels(x), 1)
    if channel is not None:
        channel = sweep.collapse(channel, [axis for axis in channel.axes if axis != 1])
        channels = x.shape[1]
        if groups < channels and channel.axes:
            grid = channel.atoms.reshape(groups, channels // groups)
            sweep.tie(grid, grid[:1])
            sweep.ledger.mark_inexact(sweep.where, channel.atoms, "group norm takes its mean over these channels", 1)
    vectors = [one for one in (weight, bias) if isinstance(one, Tensor)]
    channel = _affine(sweep, channel, vectors, zero=bool(vectors))
    others = [Factor(one.atoms, False) for one in sweep.labels(x) if 1 not in one.axes]
    sweep.set(out[0], [*others, *([channel.with_atoms(vector(channel.atoms.ravel(), 1, x.ndim))] if channel else [])])


@rule(aten._softmax, aten._log_softmax, aten._safe_softmax, aten.softmax, aten.log_softmax)
def softmax(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Softmax and cumulative sums along one axis: labels on it stay, and what was 0 no longer is."""
    x = args[0]
    axis = (args[1] if len(args) > 1 else kwargs["dim"]) % x.ndim
    # Branches weighed against each other, jointly labelled with their channels, are not what is to be pruned.
    joint = [sweep.collapse(one, [axis]) if len(one.axes) > 1 else one for one in sweep.labels(x)]
    factors = _mix(sweep, joint, [axis], "softmax over these channels")
    sweep.set(out, [Factor(one.atoms, False) for one in factors])


@rule(
    aten.mean,
    aten.amax,
    aten.amin,
    aten.max,
    aten.min,
    aten.var,
    aten.std,
    aten.var_mean,
    aten.std_mean,
    aten.logsumexp,
    aten.prod,
    aten.any,
    aten.all,
)
def reduction(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Means, variances, extrema over axes count or compare channels that are dead: inexact."""

    def over(factor: Factor, axis: int) -> None:
        reason = f"{func.overloadpacket.__name__} over these channels"
        sweep.ledger.mark_inexact(sweep.where, factor.atoms, reason, axis)

    _reduce(sweep, func, args, kwargs, out, over)


@rule(aten.sum, aten.linalg_vector_norm, aten.norm)
def total(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A sum of zeros is exact."""

    def over(factor: Factor, axis: int) -> None:
        if not factor.zero:
            reason = "a sum over channels that are not 0 when dead"
            sweep.ledger.mark_inexact(sweep.where, factor.atoms, reason, axis)

    _reduce(sweep, func, args, kwargs, out, over)


@rule(aten.argmax, aten.argmin)
def position(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An index is a number that removal would change."""

    def over(factor: Factor, axis: int) -> None:
        sweep.freeze(factor, "an index into these channels is computed")

    _reduce(sweep, func, args, kwargs, out, over)


def _reduce(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any, over: Callable[[Factor, int], None]) -> None:
    """Labels on the axes that stay pass; ``over`` is told of each factor on an axis that is reduced."""
    x = args[0]
    axes, keepdim = _reduced_axes(func, args, kwargs, x.ndim)
    factors = []
    for factor in sweep.labels(x):
        if any(axis in axes for axis in factor.axes):
            factor = sweep.split_joint(factor, axes)
        inside = [axis for axis in factor.axes if axis in axes]
        if inside:
            factor = sweep.collapse(factor, [axis for axis in factor.axes if axis != inside[-1]])
            over(factor, inside[-1])
            continue
        atoms = factor.atoms
        if not keepdim:
            atoms = atoms.squeeze(tuple(axes))
        factors.append(Factor(atoms, factor.zero))
    for result in tree_leaves(out):
        if isinstance(result, Tensor):
            sweep.set(result, factors)


def _reduced_axes(func: Any, args: Any, kwargs: Any, ndim: int) -> tuple[list[int], bool]:
    """The axes a reduction runs over and whether they stay with size 1, read off its schema."""
    given: dict[str, Any] = dict(kwargs)
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            given[argument.name] = args[position]
    dims = given.get("dim")
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(ndim)), bool(given.get("keepdim", False))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return sorted(axis % ndim for axis in dims), bool(given.get("keepdim", False))


@rule(aten.cumsum, aten.cumprod, aten.sort, aten.topk)
def cumulative(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """cumsum, sort, topk: entries along the axis depend on their neighbours, so the axis is fixed."""
    x = args[0]
    axis = axis_argument(func, args, kwargs) % x.ndim
    factors = [sweep.collapse(one, [axis]) for one in sweep.labels(x)]
    for result in tree_leaves(out):
        if isinstance(result, Tensor):
            sweep.set(result, factors)
