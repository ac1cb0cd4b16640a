"""Operations that see the same entries in another shape: reshapes, permutations, stretched axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edp_fx.channels.labels import Factor, compress, run_on, vector, without_wildcards
from edp_fx.channels.rules.registry import rule
from edp_fx.channels.rules.sizes import NodeSizes, another_shape, output_shape, right_sizes

if TYPE_CHECKING:
    from edp_fx.channels.sweep import Sweep

aten = torch.ops.aten


def unflattened(sizes: NodeSizes) -> None:
    """``x.unflatten(1, (32, 2))``: the sizes of some of the result's axes; of a layer they are attributes, and where
    those are wrong a function takes its place."""
    layer = sizes.layer
    dim, given = (layer.dim, layer.unflattened_size) if layer else (sizes.get(1, "dim"), sizes.get(2, "sizes"))
    axis = sizes.now(dim) % len(sizes.before)
    right = right_sizes(sizes, given, sizes.after[0][axis : axis + len(sizes.now(given))])
    if layer is None:
        sizes.put(2, "sizes", right)
    elif right is not given:
        sizes.call(torch.unflatten, sizes.tensor, axis, right)


@rule(aten.view, aten._unsafe_view, aten.reshape, sizes=output_shape)
@rule(aten.view_as, sizes=another_shape("view"))
@rule(aten.reshape_as, sizes=another_shape("reshape"))
@rule(aten.unflatten, sizes=unflattened, calls=(nn.Unflatten,))
@rule(
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
)
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
    moved = True  # every axis it varies along is one axis of the new shape
    for old_block, new_block in _blocks(old, new):
        full = any(atoms.shape[axis] > 1 for axis in old_block)
        expanded += [old[axis] if full else 1 for axis in old_block]
        shape += [new[axis] if full else 1 for axis in new_block]
        moved = moved and not (full and len(old_block) + len(new_block) > 2)
    if moved:
        return without_wildcards(atoms.reshape(shape))
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


@rule(aten.as_strided, aten.as_strided_)
def restride(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """as_strided: other strides for the same sizes change nothing; any other window is fixed."""
    source = args[0]
    if tuple(args[1]) == tuple(source.shape) and (len(args) < 4 or not args[3]):
        sweep.set(out, sweep.labels(source))
        return
    for factor in sweep.labels(source):
        sweep.freeze(factor, "seen through other strides")


@rule(aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.permute_copy)
def permute(sweep: Sweep, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """permute, transpose, t: found by moving a list of axis numbers."""
    source = args[0]
    if func is aten.permute.default:
        order = [axis % source.ndim for axis in args[1]]
    else:
        probe = torch.empty(tuple(range(2, 2 + source.ndim)), device="meta")
        order = [size - 2 for size in run_on(func, (probe, *args[1:]), kwargs).shape]
    sweep.set(out, [factor.with_atoms(factor.atoms.transpose(order)) for factor in sweep.labels(source)])


def repeats(sizes: NodeSizes) -> None:
    """``x.repeat_interleave(4, 1)``: as many times as entries stay of each."""
    given, axis = sizes.get(1, "repeats"), sizes.now(sizes.get(2, "dim"))
    if isinstance(sizes.now(given), int) and axis is not None:
        right = sizes.after[0][axis] // sizes.now(sizes.tensor).shape[axis]
        if sizes.now(given) != right:
            sizes.put(1, "repeats", right)


@rule(sizes=repeats, calls=("repeat_interleave", torch.repeat_interleave))
@rule(aten.expand_as, sizes=another_shape("expand"), births=True)
@rule(aten.expand, sizes=output_shape, calls=("broadcast_to", torch.broadcast_to), births=True)
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
