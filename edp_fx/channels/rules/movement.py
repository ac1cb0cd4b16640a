"""Operations that join tensors or move entries to other places: the label arrays move the same way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from edp_fx.channels.atoms import Grid
from edp_fx.channels.labels import FROZEN, WILDCARD, Factor, compress, on_axis, run_on, vector
from edp_fx.channels.rules.registry import rule
from edp_fx.channels.rules.sizes import NodeSizes

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


@rule(aten.cat)
def cat(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Concatenation: labels join along the axis and are tied along all others."""
    tensors = [tensor for tensor in args[0] if tensor.numel() or tensor.ndim > 1]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    _join(sweep, tensors, [sweep.labels(tensor) for tensor in tensors], axis, out)


@rule(aten.stack)
def stack(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """As cat of unsqueezed tensors."""
    tensors = list(args[0])
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    labels = [
        tuple(factor.with_atoms(np.expand_dims(factor.atoms, axis)) for factor in sweep.labels(tensor))
        for tensor in tensors
    ]
    _join(sweep, [tensor.unsqueeze(axis) for tensor in tensors], labels, axis, out)


def _join(sweep: Sweep, tensors: list[Tensor], labels: list[Any], axis: int, out: Tensor) -> None:
    factors, labels = _joined(sweep, labels, axis)
    done = {one for factor in factors for one in factor.axes}
    # Along the other axes every part must lose the same indices.
    for other in range(out.ndim):
        if other == axis or out.shape[other] == 1 or other in done:
            continue
        found = [on_axis(one, other) for one in labels]
        present = [factor for factor in found if factor is not None]
        if not present:
            continue
        plain = [sweep.collapse(one, [a for a in one.axes if a != other]) for one in present]
        if len(present) < len(labels):
            for one in plain:
                sweep.freeze(one, "concatenated with a tensor whose size is fixed here")
            continue
        for one in plain[1:]:
            sweep.tie(plain[0].atoms, one.atoms)
        factors.append(Factor(plain[0].atoms, all(one.zero for one in plain)))
    found = [on_axis(one, axis) for one in labels] if axis not in done else []
    if any(factor is not None for factor in found):
        parts = []
        for tensor, factor in zip(tensors, found):
            if factor is None:
                parts.append(np.full(tensor.shape[axis], FROZEN, dtype=np.int64))
            else:
                parts.append(sweep.collapse(factor, [a for a in factor.axes if a != axis]).atoms.ravel())
        joined = np.concatenate(parts)
        zero = all(factor.zero for factor in found if factor is not None)
        factors.append(Factor(vector(joined, axis, out.ndim), zero))
    sweep.set(out, factors)


def _joined(sweep: Sweep, labels: list[Any], axis: int) -> tuple[list[Factor], list[Any]]:
    """Factors over the same several axes in every part stay joint. Returns them, and the parts' other factors."""
    factors: list[Factor] = []
    for first in labels[0]:
        parts = [next((one for one in part if one.axes == first.axes), None) for part in labels]
        whole = [one for one in parts if one is not None]
        if len(first.axes) < 2 or len(whole) < len(parts):
            continue
        if axis in first.axes:
            factors.append(Factor(np.concatenate([one.atoms for one in whole], axis), all(one.zero for one in whole)))
        else:
            for one in whole[1:]:
                sweep.tie(first.atoms, one.atoms)
            factors.append(Factor(first.atoms, all(one.zero for one in whole)))
    axes = [factor.axes for factor in factors]
    return factors, [tuple(one for one in part if one.axes not in axes) for part in labels]


def pad_amounts(sizes: NodeSizes) -> None:
    """``F.pad(x, (0, 0, 0, 0, 4, 4))``: of what is added, and of what is cut off, as much as stays."""
    given = sizes.get(1, "pad")
    amounts = sizes.then(given)
    if not sizes.before or isinstance(given, fx.Node):
        return
    new = list(given)
    for k, amount in enumerate(amounts):
        axis = len(sizes.before) - 1 - k // 2
        mask = sizes.kept[0].get(axis) if amount > 0 else sizes.masks.get(axis)
        right = amount
        if mask is not None:
            ends = mask[len(mask) - abs(amount) :] if k % 2 else mask[: abs(amount)]
            right = int(ends.sum()) if amount > 0 else -int(ends.sum())
        new[k] = given[k] if sizes.now(given[k]) == right else right
    if tuple(new) != tuple(given):
        sizes.put(1, "pad", tuple(new))


@rule(aten.constant_pad_nd, sizes=pad_amounts, calls=(F.pad,))
def pad(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """constant_pad_nd: what is added along a labelled axis is born there, and may go with whatever it meets."""
    source, amounts = args[0], args[1]
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    widths = [(0, 0)] * source.ndim
    for k in range(len(amounts) // 2):
        widths[source.ndim - 1 - k] = (amounts[2 * k], amounts[2 * k + 1])
    factors = []
    for factor in sweep.labels(source):
        atoms = factor.atoms
        for axis, (before, after) in enumerate(widths):
            if atoms.shape[axis] > 1 and (before or after):
                inner = atoms[(slice(None),) * axis + (slice(max(0, -before), atoms.shape[axis] - max(0, -after)),)]
                shapes = [(*atoms.shape[:axis], max(0, width), *atoms.shape[axis + 1 :]) for width in (before, after)]
                first, last = (sweep.ledger.born(math.prod(shape)).reshape(shape) for shape in shapes)
                atoms = np.concatenate([first, inner, last], axis)
        grows = any(width != (0, 0) for width in widths)
        factors.append(Factor(atoms, factor.zero and (not value or not grows)))
    sweep.set(out, factors)


@rule(aten.repeat)
def repeat(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Tensor.repeat: labels repeat along the axes they vary on."""
    source, times = args[0], list(args[1])
    lead = (1,) * (out.ndim - source.ndim)
    factors = []
    for factor in sweep.labels(source):
        atoms = factor.atoms.reshape(lead + factor.atoms.shape)
        factors.append(factor.with_atoms(np.tile(atoms, [t if size > 1 else 1 for t, size in zip(times, atoms.shape)])))
    sweep.set(out, factors)


@rule(aten.roll)
def roll(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """A cyclic shift by a fixed number of places: the shifted axes are fixed."""
    source = args[0]
    dims = args[2] if len(args) > 2 else kwargs.get("dims", ())
    moved = [axis % source.ndim for axis in ([dims] if isinstance(dims, int) else dims)] or list(range(source.ndim))
    sweep.set(out, [sweep.collapse(factor, moved) for factor in sweep.labels(source)])


@rule(aten.glu)
def halves(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """glu: the first half times the sigmoid of the second, so both halves lose the same places."""
    source = args[0]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % source.ndim
    factors = []
    for factor in sweep.labels(source):
        atoms = factor.atoms
        if axis in factor.axes:
            atoms, second = np.split(atoms, 2, axis=axis)
            sweep.tie(atoms, second)
        factors.append(factor.with_atoms(atoms))
    sweep.set(out, factors)


@rule(aten.col2im)
def fold(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """col2im (…, channels · kernel, blocks) → (…, channels, height, width): a channel goes with its kernel places."""
    source = args[0]
    axis, channels = source.ndim - 2, out.shape[-3]
    factors = []
    for factor in sweep.labels(source):
        factor = sweep.collapse(factor, [source.ndim - 1])
        if axis in factor.axes:
            by_channel = factor.atoms.reshape(channels, -1)
            sweep.tie(by_channel, by_channel[:, :1])
            factors.append(factor.with_atoms(vector(by_channel[:, 0], out.ndim - 3, out.ndim)))
        elif factor.axes:
            sweep.freeze(factor, "the batch of a fold")
    sweep.set(out, factors)


@rule(aten.flip, aten.rot90, aten.pixel_unshuffle)
def same_op(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Run the operation on the expanded labels, then compress."""
    source = args[0]
    factors = []
    for factor in sweep.labels(source):
        full = torch.from_numpy(np.broadcast_to(factor.atoms, tuple(source.shape)).astype(np.float64))
        moved = run_on(func, (full, *args[1:]), kwargs).numpy().astype(np.int64)
        moved[moved == FROZEN] = WILDCARD if not (factor.atoms == FROZEN).any() else FROZEN
        factors.append(factor.with_atoms(compress(moved)))
    sweep.set(out, factors)


@rule(aten.im2col, aten.tril, aten.triu)
def same_op_on_maps(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Operations for which the last two axes are places: those are fixed, labels on the others move."""
    source = args[0]
    places = (source.ndim - 2, source.ndim - 1)
    sweep.set(source, [sweep.collapse(factor, places) for factor in sweep.labels(source)])
    same_op(sweep, func, args, kwargs, out)


@rule(aten.unfold)
def windows(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Tensor.unfold: the axis that windows slide along is fixed."""
    source, axis = args[0], args[1] % args[0].ndim
    fixed = [sweep.collapse(factor, [axis]) for factor in sweep.labels(source)]
    sweep.set(out, [factor.with_atoms(factor.atoms[..., None]) for factor in fixed])


@rule(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """(groups · channels) → (channels · groups): each group loses the same places."""
    source, groups = args[0], args[1]
    for factor in sweep.labels(source):
        if 1 in factor.axes:
            grid = sweep.collapse(factor, [axis for axis in factor.axes if axis != 1]).atoms.reshape(groups, -1)
            sweep.tie(grid, grid[:1])
    same_op(sweep, func, args, kwargs, out)


@rule(aten.pixel_shuffle)
def pixel_shuffle(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Channels become pixels: what is left of them may go, rows and columns of pixels may not."""
    same_op(sweep, func, args, kwargs, out)
    for factor in sweep.labels(out):
        pixels = tuple(axis for axis in factor.axes if axis >= out.ndim - 2)
        if pixels:
            sweep.ledger.grids.append(Grid(sweep.where, factor.atoms, pixels))


@rule(aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like, aten.rand_like, aten.randn_like)
def like(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """zeros_like and friends: the size follows the source, so may the labels."""
    zeros = func.overloadpacket in (aten.zeros_like,)
    sweep.set(out, [Factor(factor.atoms, zeros) for factor in sweep.labels(args[0])])


@rule(
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
    aten.new_empty_strided,
)
def fresh(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """A tensor of a given size, of which only the type is another's: a constant."""
    sweep.set(out, ())
