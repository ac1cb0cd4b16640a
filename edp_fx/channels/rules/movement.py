"""Operations that only move entries: the label arrays move the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edp_fx.channels.atoms import Grid
from edp_fx.channels.labels import FROZEN, WILDCARD, Factor, compress, on_axis, vector

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


def view(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Row-major reshapes, squeezes and unsqueezes, copies and aliases."""
    source = args[0]
    sweep.set(
        out,
        [factor.with_atoms(reshape_atoms(factor.atoms, source.shape, out.shape)) for factor in sweep.labels(source)],
    )


def reshape_atoms(atoms: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Reshape a broadcastable label array, block by block: only blocks it varies in are expanded."""
    shape: list[int] = []
    expanded: list[int] = []
    for old_block, new_block in _blocks(old, new):
        sizes = [atoms.shape[axis] for axis in old_block]
        full = any(size > 1 for size in sizes)
        expanded += [old[axis] if full else 1 for axis in old_block]
        shape += [new[axis] if full else 1 for axis in new_block]
    return compress(np.broadcast_to(atoms, expanded).reshape(shape))


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal size into the shortest runs of axes with equal products."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        size_left = old[i] if left else 1
        size_right = new[j] if right else 1
        i, j = i + len(left), j + len(right)
        if size_left != size_right:  # an axis of size 1 stands alone
            if size_left == 1 and left:
                blocks.append((left, []))
                j -= len(right)
                continue
            if size_right == 1 and right:
                blocks.append(([], right))
                i -= len(left)
                continue
        while size_left != size_right:
            if size_left < size_right:
                size_left *= old[i]
                left.append(i)
                i += 1
            else:
                size_right *= new[j]
                right.append(j)
                j += 1
        blocks.append((left, right))
    return blocks


def restride(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """as_strided: other strides for the same sizes change nothing; any other window is fixed."""
    source = args[0]
    if tuple(args[1]) == tuple(source.shape) and (len(args) < 4 or not args[3]):
        sweep.set(out, sweep.labels(source))
        return
    for factor in sweep.labels(source):
        sweep.freeze(factor, "seen through other strides")


def permute(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """permute, transpose, t: found by moving a list of axis numbers."""
    source = args[0]
    probe = torch.empty(tuple(range(2, 2 + source.ndim)), device="meta")
    order = [size - 2 for size in _call(func, (probe, *args[1:]), kwargs).shape]
    sweep.set(out, [factor.with_atoms(factor.atoms.transpose(order)) for factor in sweep.labels(source)])


def expand(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """A stretched axis gets labels of its own: its entries are all alike, so its length can follow what it meets."""
    source = args[0]
    added = out.ndim - source.ndim
    factors = [
        factor.with_atoms(factor.atoms.reshape((1,) * added + factor.atoms.shape)) for factor in sweep.labels(source)
    ]
    for axis in range(added, out.ndim):
        if source.shape[axis - added] == 1 and out.shape[axis] > 1:
            factors.append(Factor(vector(sweep.ledger.born(out.shape[axis]), axis, out.ndim), False, True))
    sweep.set(out, factors)


def along_axis(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """select, slice, unbind, split: the same on the labels, where the axis is labelled.

    What unbind and select take apart must all stay.
    """
    source = args[0]
    axis = _axis_argument(func, args, kwargs) % source.ndim
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    drops = outs[0].ndim < source.ndim
    per_out: list[list[Factor]] = [[] for _ in outs]
    for factor in sweep.labels(source):
        if factor.atoms.shape[axis] > 1:
            moved = _call(func, (torch.from_numpy(factor.atoms.copy()), *args[1:]), kwargs)
            parts = list(moved) if isinstance(moved, (tuple, list)) else [moved]
            arrays = [part.numpy() for part in parts]
            if drops and len(factor.axes) > 1:
                sweep.ledger.grids.append(Grid(sweep.where, factor.atoms, (axis,)))
            elif drops:
                for array in arrays:
                    sweep.freeze(array, "selected by its number")
        else:
            arrays = [factor.atoms.squeeze(axis) if drops else factor.atoms] * len(outs)
        for into, array in zip(per_out, arrays):
            into.append(factor.with_atoms(compress(array)))
    for tensor, factors in zip(outs, per_out):
        sweep.set(tensor, factors)


def cat(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Concatenation: labels join along the axis and are tied along all others."""
    tensors = [tensor for tensor in args[0] if tensor.numel() or tensor.ndim > 1]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    _join(sweep, tensors, [sweep.labels(tensor) for tensor in tensors], axis, out)


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
    factors: list[Factor] = []
    # Along the other axes every part must lose the same indices.
    for other in range(out.ndim):
        if other == axis or out.shape[other] == 1:
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
    found = [on_axis(one, axis) for one in labels]
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


def pad(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """constant_pad_nd: what is added along a labelled axis is fixed, elsewhere nothing changes."""
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
                around = [(0, 0)] * atoms.ndim
                around[axis] = (max(0, before), max(0, after))
                atoms = np.pad(inner, around, constant_values=FROZEN)
        grows = any(width != (0, 0) for width in widths)
        factors.append(Factor(atoms, factor.zero and (not value or not grows)))
    sweep.set(out, factors)


def repeat(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Tensor.repeat: labels repeat along the axes they vary on."""
    source, times = args[0], list(args[1])
    lead = (1,) * (out.ndim - source.ndim)
    factors = []
    for factor in sweep.labels(source):
        atoms = factor.atoms.reshape(lead + factor.atoms.shape)
        factors.append(factor.with_atoms(np.tile(atoms, [t if size > 1 else 1 for t, size in zip(times, atoms.shape)])))
    sweep.set(out, factors)


def roll(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """A cyclic shift by a fixed number of places: the shifted axes are fixed."""
    source = args[0]
    dims = args[2] if len(args) > 2 else kwargs.get("dims", ())
    moved = [axis % source.ndim for axis in ([dims] if isinstance(dims, int) else dims)] or list(range(source.ndim))
    sweep.set(out, [sweep.collapse(factor, moved) for factor in sweep.labels(source)])


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


def same_op(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """flip, pixel_unshuffle, im2col …: run the operation on the expanded labels, then compress."""
    source = args[0]
    factors = []
    for factor in sweep.labels(source):
        full = torch.from_numpy(np.broadcast_to(factor.atoms, tuple(source.shape)).astype(np.float64))
        moved = _call(func, (full, *args[1:]), kwargs).numpy().astype(np.int64)
        moved[moved == FROZEN] = WILDCARD if not (factor.atoms == FROZEN).any() else FROZEN
        factors.append(factor.with_atoms(compress(moved)))
    sweep.set(out, factors)


def pixel_shuffle(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Channels become pixels: what is left of them may go, rows and columns of pixels may not."""
    same_op(sweep, func, args, kwargs, out)
    for factor in sweep.labels(out):
        pixels = tuple(axis for axis in factor.axes if axis >= out.ndim - 2)
        if pixels:
            sweep.ledger.grids.append(Grid(sweep.where, factor.atoms, pixels))


def index(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Fancy indexing: labels on axes that are not indexed stay, indexed axes are fixed."""
    source, indices = args[0], list(args[1])
    indices += [None] * (source.ndim - len(indices))
    indexed = [axis for axis, one in enumerate(indices) if one is not None]
    known = all(indices[axis].dtype is not torch.bool for axis in indexed)
    factors = []
    for factor in sweep.labels(source):
        fixed = [axis for axis in factor.axes if axis in indexed]
        if fixed:
            factor = sweep.collapse(factor, fixed)
            if not factor.axes:
                continue
        if not known:
            sweep.freeze(factor, "selected by a computed mask")
            continue
        factors.append(factor.with_atoms(_place_indexed(factor.atoms, indices, indexed, out.ndim)))
    sweep.set(out, factors)


def _place_indexed(atoms: np.ndarray, indices: list[Any], indexed: list[int], ndim: int) -> np.ndarray:
    """Move the axes that are not indexed to where advanced indexing puts them."""
    broadcast = max(indices[axis].ndim for axis in indexed)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    rest = [axis for axis in range(atoms.ndim) if axis not in indexed]
    start = indexed[0] if adjacent else 0
    shape = [atoms.shape[axis] for axis in rest]
    shape[start:start] = [1] * broadcast
    return atoms.squeeze(tuple(indexed)).reshape(shape) if len(shape) == ndim else np.zeros((1,) * ndim, dtype=np.int64)


def embedding(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Rows of a table by computed index: the rows are fixed, the columns follow."""
    table = args[0]
    for factor in sweep.labels(table):
        if 0 in factor.axes:
            sweep.freeze(factor, "rows looked up by index")
    columns = on_axis(sweep.labels(table), 1)
    sweep.set(out, [columns.with_atoms(vector(columns.atoms.ravel(), out.ndim - 1, out.ndim))] if columns else [])


def index_select(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """index_select: as fancy indexing on one axis."""
    source, axis, picked = args[0], args[1] % args[0].ndim, args[2]
    index(sweep, func, (source, [None] * axis + [picked]), {}, out)


def like(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """zeros_like and friends: the size follows the source, so may the labels."""
    zeros = func.overloadpacket in (aten.zeros_like,)
    sweep.set(out, [Factor(factor.atoms, zeros) for factor in sweep.labels(args[0])])


def _axis_argument(func: Any, args: Any, kwargs: Any) -> int:
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dim":
            if position < len(args):
                return int(args[position])
            return int(kwargs.get("dim", argument.default_value))
    raise AssertionError(f"{func} has no dim")


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    """Run ``func`` on label arrays; the sweep is not active while it handles an operation."""
    return func(*args, **{name: value for name, value in kwargs.items() if name not in ("device", "dtype")})


MOVEMENT: dict[Any, Any] = {}
for _rule, _packets in {
    view: (
        aten.view,
        aten._unsafe_view,
        aten.reshape,
        aten.squeeze,
        aten.unsqueeze,
        aten.clone,
        aten.contiguous,
        aten._to_copy,
        aten.detach,
        aten.alias,
        aten.lift_fresh,
        aten.lift_fresh_copy,
        aten._reshape_alias,
        aten.dropout,
        aten._reshape_copy,
    ),
    restride: (aten.as_strided, aten.as_strided_),
    permute: (aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.permute_copy),
    expand: (aten.expand,),
    along_axis: (
        aten.select,
        aten.slice,
        aten.unbind,
        aten.split,
        aten.split_with_sizes,
        aten.narrow,
        aten.split_with_sizes_copy,
        aten.unsafe_split,
        aten.chunk,
        aten.tensor_split,
        aten.unsafe_chunk,
    ),
    cat: (aten.cat,),
    stack: (aten.stack,),
    roll: (aten.roll,),
    halves: (aten.glu,),
    fold: (aten.col2im,),
    pixel_shuffle: (aten.pixel_shuffle,),
    pad: (aten.constant_pad_nd,),
    repeat: (aten.repeat,),
    same_op: (
        aten.flip,
        aten.pixel_unshuffle,
        aten.channel_shuffle,
        aten.im2col,
        aten.unfold,
        aten.rot90,
        aten.reflection_pad1d,
        aten.reflection_pad2d,
        aten.reflection_pad3d,
        aten.replication_pad1d,
        aten.replication_pad2d,
        aten.replication_pad3d,
        aten.tril,
        aten.triu,
    ),
    index: (aten.index, aten._unsafe_index),
    embedding: (aten.embedding,),
    index_select: (aten.index_select,),
    like: (aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like, aten.rand_like, aten.randn_like),
}.items():
    for _packet in _packets:
        MOVEMENT[_packet] = _rule
