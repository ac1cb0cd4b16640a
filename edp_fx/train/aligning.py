"""Kept counts that are multiples, within the budget: vector units and tensor cores read channels in blocks."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from edp_fx.train.elements import Elements
from edp_fx.train.selection import Flags, Scores, Selector


def aligned_floors(floors: NDArray, sizes: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    """Floors of at least 1, and in every group of more than ``multiple`` elements a multiple or the whole group."""
    least = np.maximum(1, floors).astype(np.int64)
    up = -(-least // multiple) * multiple
    return np.where(sizes > multiple, np.minimum(sizes, up), least)


def align_within(
    selector: Selector,
    alive: Flags,
    available: Flags,
    importance: Scores,
    target: float,
    multiple: int,
    whole: Flags,
) -> Flags:
    """``alive`` with every group of more than ``multiple`` elements at a multiple of it, or whole.

    All such groups are first rounded down; what that leaves of the budget is spent in blocks of ``multiple``
    elements of one group (or the few that make it whole), the block with the most important element first, until no
    block fits.

    Args:
        selector: costs; its floors are multiples (:func:`aligned_floors`).
        alive: a choice that meets the target [n].
        available: elements that may be kept, a superset [n].
        importance: non-negative, comparable over groups [n].
        target: cost not to exceed.
        multiple: 1 leaves all as it is.
        whole: groups [groups] that may also stay at their present size, having lost nothing so far.
    """
    if multiple == 1:
        return alive
    elements = selector.elements
    alive = alive.copy()
    waiting: dict[int, NDArray[np.int64]] = {}
    for group in np.flatnonzero(elements.sizes > multiple).tolist():
        order = _ordered(elements, group, alive, available, importance)
        start, stop = elements.offsets[group], elements.offsets[group + 1]
        count = int(alive[start:stop].sum())
        if count == elements.sizes[group] and whole[group]:
            continue
        down = count // multiple * multiple
        alive[order[down:]] = False
        waiting[group] = order[down:]
    heap = [(-float(importance[rest[0]]), group) for group, rest in waiting.items() if len(rest)]
    heapq.heapify(heap)
    while heap:
        _, group = heapq.heappop(heap)
        rest = waiting[group]
        completes = (
            len(rest) <= multiple
            and whole[group]
            and _present(elements, group, alive) + len(rest) == int(elements.sizes[group])
        )
        if len(rest) < multiple and not completes:
            continue
        block, waiting[group] = rest[:multiple], rest[multiple:]
        alive[block] = True
        if selector.total(alive) > target:
            alive[block] = False  # nor will it fit later: the cost only grows
        elif len(waiting[group]):
            heapq.heappush(heap, (-float(importance[waiting[group][0]]), group))
    return alive


def _ordered(elements: Elements, group: int, alive: Flags, available: Flags, importance: Scores) -> NDArray[np.int64]:
    """A group's available elements, those alive first, each part from the most important down."""
    mine = np.arange(elements.offsets[group], elements.offsets[group + 1])
    mine = mine[available[mine]]
    return mine[np.lexsort((-importance[mine], ~alive[mine]))]


def _present(elements: Elements, group: int, alive: Flags) -> int:
    return int(alive[elements.offsets[group] : elements.offsets[group + 1]].sum())
