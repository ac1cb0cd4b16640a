"""Kept counts that are multiples, within the budget: vector units and tensor cores read channels in blocks."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from edp_fx.train.elements import Elements
from edp_fx.train.selection import Flags, Scores, Selector

TRIES = 20  # of lower targets before a choice is taken as it is


def aligned_floors(floors: NDArray, sizes: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    """Floors of at least 1, and in every group of more than ``multiple`` elements a multiple or the whole group."""
    least = np.maximum(1, floors).astype(np.int64)
    up = -(-least // multiple) * multiple
    return np.where(sizes > multiple, np.minimum(sizes, up), least)


def choose_aligned(
    selector: Selector, alive: Flags, importance: Scores, target: float, multiple: int, end: float
) -> Flags:
    """As :meth:`Selector.choose`, every group of more than ``multiple`` elements left at a multiple of it or untouched.

    What one choice would take of a block is given back and the choice made anew for a lower target, until what is
    left costs at most ``target`` or nothing more goes.
    """
    if multiple == 1:
        return selector.choose(alive, importance, target, end=end)
    asked = target
    for _ in range(TRIES):
        left = selector.choose(alive, importance, asked, end=end)
        left = _rounded_up(selector.elements, alive, left, importance, multiple)
        missing = selector.total(left) - target
        if missing <= 0:
            break
        asked -= missing
    return left


def _rounded_up(elements: Elements, alive: Flags, left: Flags, importance: Scores, multiple: int) -> Flags:
    """``left`` with the most important of what went given back, up to a multiple of elements or all of the group."""
    left = left.copy()
    for group in np.flatnonzero(elements.sizes > multiple).tolist():
        mine = np.arange(elements.offsets[group], elements.offsets[group + 1])
        gone = mine[alive[mine] & ~left[mine]]
        back = -int(left[mine].sum()) % multiple
        left[gone[np.argsort(-importance[gone], kind="stable")][:back]] = True
    return left


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
