"""What may be removed next, cheapest first: single elements, or blocks where counts are to stay multiples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def block_ends(present: int, removable: int, multiple: int) -> Indices:
    """Where the blocks of a group's ``removable`` (at least one) elements end, so that what is left of ``present`` is
    a multiple after each, or the least that stays."""
    if multiple == 1:
        return np.arange(1, removable + 1, dtype=np.int64)
    ends = np.arange(present % multiple or multiple, removable, multiple, dtype=np.int64)
    return np.append(ends, removable)


def block_sizes(ends: Indices) -> Indices:
    """Of blocks that end there; np.diff takes ten times as long for as few."""
    sizes = ends.copy()
    sizes[1:] -= ends[:-1]
    return sizes


@dataclass(frozen=True)
class Removals:
    """Blocks of elements in the order in which they would go; a block is of one group and goes as a whole.

    Attributes:
        elements: block after block.
        ends: position after the last element of each block [blocks].
        groups: position of each block's group [blocks].
        losses: summed importance of each block [blocks].
    """

    elements: Indices
    ends: Indices
    groups: Indices
    losses: Floats

    @classmethod
    def by_price(cls, blocks: Sequence[tuple[int, Indices, Indices, Floats, Floats]]) -> Removals:
        """All groups' blocks, given as (group, elements, ends, losses, prices), from the lowest price up.

        The order of equal prices is kept: each group's prices ascend, and its elements go from its least important up.
        """
        if not blocks:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        elements = np.concatenate([mine[: ends[-1]] for _, mine, ends, _, _ in blocks])
        sizes = np.concatenate([block_sizes(ends) for _, _, ends, _, _ in blocks])
        groups = np.repeat([group for group, *_ in blocks], [len(ends) for _, _, ends, _, _ in blocks])
        losses = np.concatenate([mine for *_, mine, _ in blocks])
        order = np.argsort(np.concatenate([prices for *_, prices in blocks]), kind="stable")
        return cls(elements, np.cumsum(sizes), groups, losses).taken(order)

    def __len__(self) -> int:
        return len(self.ends)

    def block(self, number: int) -> Indices:
        """Elements of one block."""
        return self.elements[self.ends[number - 1] if number else 0 : self.ends[number]]

    def first(self, count: int) -> Indices:
        """Elements of the first ``count`` blocks."""
        return self.elements[: self.ends[count - 1] if count else 0]

    def taken(self, numbers: Indices) -> Removals:
        """Only these blocks, in this order."""
        sizes = block_sizes(self.ends)[numbers]
        ends = np.cumsum(sizes)
        inside = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
        starts = np.concatenate([[0], self.ends])[numbers]
        elements = self.elements[np.repeat(starts, sizes) + inside]
        return Removals(elements, ends, self.groups[numbers], self.losses[numbers])


def hull_prices(loss: Floats, saved: Floats) -> Floats:
    """Price per step along the lower convex hull of the points (saved[k], loss[k]), both cumulative.

    Where the first removals save nothing (a rank above the break-even), they are priced together with those
    that make them pay; what never pays costs infinity. Prices ascend.
    """
    prices = np.full(len(loss), np.inf)
    x, y, at = 0.0, 0.0, 0
    while at < len(loss):
        gain = saved[at:] - x
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(gain > 0, (loss[at:] - y) / gain, np.inf)
        best = int(len(slopes) - 1 - np.argmin(slopes[::-1]))  # the longest of equal slopes
        if not np.isfinite(slopes[best]):
            break
        prices[at : at + best + 1] = slopes[best]
        x, y, at = float(saved[at + best]), float(loss[at + best]), at + best + 1
        steps = saved[at:] - saved[at - 1 : -1]
        if len(steps) and steps.min() > 0:
            each = (loss[at:] - loss[at - 1 : -1]) / steps
            if (each[1:] >= each[:-1]).all():
                prices[at:] = each  # convex from here on: every removal is its own price
                break
    return prices
