"""Operations that take some entries of a tensor: slices, splits, indices."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edp_fx.channels.atoms import Grid
from edp_fx.channels.labels import Factor, axis_argument, compress, on_axis, run_on, vector
from edp_fx.channels.rules.registry import rule
from edp_fx.channels.rules.sizes import NodeSizes

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


def part_sizes(sizes: NodeSizes) -> None:
    """split, chunk, tensor_split: unequal parts become a split with sizes."""
    axis = (sizes.now(sizes.get(2, "dim")) or 0) % len(sizes.before)
    if sizes.stays(axis) is not None:
        sizes.call(torch.split, sizes.tensor, [shape[axis] for shape in sizes.after], axis)


def side_parts(sizes: NodeSizes) -> None:
    """hsplit, vsplit, dsplit: their axis is in the name, and unequal parts become a split with sizes."""
    name = getattr(sizes.node.target, "__name__", str(sizes.node.target))
    axis = min("vhd".index(name[0]), len(sizes.before) - 1)
    if sizes.stays(axis) is not None:
        sizes.call(torch.split, sizes.tensor, [shape[axis] for shape in sizes.after], axis)


def narrowed(sizes: NodeSizes) -> None:
    """``x.narrow(1, 8, 16)``: start and length count what stays."""
    axis, start, length = (sizes.then(sizes.get(k, name)) for k, name in enumerate(("dim", "start", "length"), 1))
    axis %= len(sizes.before)
    mask = sizes.stays(axis)
    if mask is not None:
        start %= len(mask)
        sizes.call(torch.narrow, sizes.tensor, axis, int(mask[:start].sum()), int(mask[start : start + length].sum()))


def selected(sizes: NodeSizes) -> None:
    """``x.select(1, 5)``: the number moves with the indices that were removed before it."""
    axis, number = (sizes.then(sizes.get(k, name)) for k, name in enumerate(("dim", "index"), 1))
    mask = sizes.stays(axis % len(sizes.before))
    if mask is not None:
        sizes.put(2, "index", int(mask[: number % len(mask)].sum()))


def indexed(sizes: NodeSizes) -> None:
    """``x[:, 3:, 2]``, read or written: slices and indices move with the indices that were removed before them."""
    if not sizes.before or not (sizes.masks or sizes.moved):
        return
    index = sizes.node.args[1]
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(1 for item in items if item is not None and item is not Ellipsis)
    new: list[Any] = []
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += len(sizes.before) - consumed
        elif item is not None:
            then = sizes.then(item)
            mask = sizes.stays(axis) if isinstance(then, (int, slice)) else None
            if mask is not None:
                item = _moved(then, sizes.now(item), mask, item)
            axis += 1
        new.append(item)
    if any(a is not b for a, b in zip(new, items)):
        sizes.put(1, "index", tuple(new) if isinstance(index, tuple) else new[0])


def _moved(before: Any, now: Any, mask: np.ndarray, original: Any) -> Any:
    """An index or slice into the unpruned axis as one into the pruned axis; ``now``: what it has become by itself."""
    position = np.cumsum(mask) - 1
    if isinstance(before, int):
        return original if now == int(position[before]) else int(position[before])
    chosen = np.arange(mask.size)[before]
    wanted = position[chosen[mask[chosen]]]
    if np.array_equal(np.arange(int(mask.sum()))[now], wanted):
        return original
    if not wanted.size:
        return slice(0, 0)
    start, stop = int(wanted[0]), int(wanted[-1]) + 1
    if np.array_equal(np.arange(start, stop), wanted):
        return slice(start, stop)
    return wanted.tolist()


@rule(aten.slice, sizes=indexed, calls=(operator.getitem, operator.setitem, "__getitem__", "__setitem__"))
@rule(aten.select, sizes=selected)
@rule(aten.unbind)
@rule(aten.narrow, sizes=narrowed)
@rule(
    aten.split,
    aten.split_with_sizes,
    aten.split_with_sizes_copy,
    aten.unsafe_split,
    aten.chunk,
    aten.tensor_split,
    aten.unsafe_chunk,
    sizes=part_sizes,
)
@rule(aten.hsplit, aten.vsplit, aten.dsplit, sizes=side_parts)
def along_axis(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """select, slice, unbind, split: the same on the labels, where the axis is labelled.

    What unbind and select take apart must all stay.
    """
    source = args[0]
    axis = axis_argument(func, args, kwargs) % source.ndim
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    drops = outs[0].ndim < source.ndim
    per_out: list[list[Factor]] = [[] for _ in outs]
    for factor in sweep.labels(source):
        if factor.atoms.shape[axis] > 1:
            moved = run_on(func, (torch.from_numpy(factor.atoms.copy()), *args[1:]), kwargs)
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


@rule(aten.index, aten._unsafe_index)
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


@rule(aten.embedding)
def embedding(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Rows of a table by computed index: the rows are fixed, the columns follow."""
    table = args[0]
    for factor in sweep.labels(table):
        if 0 in factor.axes:
            sweep.freeze(factor, "rows looked up by index")
    columns = on_axis(sweep.labels(table), 1)
    sweep.set(out, [columns.with_atoms(vector(columns.atoms.ravel(), out.ndim - 1, out.ndim))] if columns else [])


@rule(aten.index_select)
def index_select(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """index_select: as fancy indexing on one axis."""
    source, axis, picked = args[0], args[1] % args[0].ndim, args[2]
    index(sweep, func, (source, [None] * axis + [picked]), {}, out)
