"""Time on a device as a function of flat masks, and the curve of what removing more and more of a group saves."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from edp_fx.compressor.elements import Elements
from edp_fx.compressor.prices import living
from edp_fx.cost.times import Times

if TYPE_CHECKING:
    from edp_fx.cost import CostModel

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
POINTS = 128  # at most so many of a curve are computed, the others are as the one before


class Clock:
    """Evaluates a ``cost`` of time on flat masks of ``elements``; groups outside of them count as whole.

    Every pair costs as much as the quicker of its two forms.
    """

    def __init__(self, cost: CostModel, elements: Elements) -> None:
        assert cost.times is not None
        self.elements = elements
        self.times: Times = cost.times
        self.plain = len(cost.terms[0])
        self.fixed, self.matrix = living(self.times.axes, elements)

    def counts(self, alive: Flags | Floats) -> Floats:
        """Living indices along every axis."""
        return np.asarray(self.fixed + self.matrix @ alive.astype(np.float64))

    def _units(self, alive: Flags) -> tuple[Floats, Floats, Floats]:
        return self.times.split(self.times.of(self.counts(alive)), self.plain)

    def as_two(self, alive: Flags) -> Flags:
        """Which pairs are quicker as two layers [pairs]."""
        _, two, merged = self._units(alive)
        return two < merged

    def total(self, alive: Flags, as_two: Flags | None = None) -> float:
        """Milliseconds of the network with only ``alive`` elements [n]."""
        plain, two, merged = self._units(alive)
        best = np.minimum(two, merged) if as_two is None else np.where(as_two, two, merged)
        return float(plain.sum() + best.sum())

    def curves(self, alive: Flags) -> Curves:
        """What removing elements saves, seen from ``alive``."""
        return Curves(self, self.counts(alive))

    @cached_property
    def touched(self) -> list[tuple[Times, int, Floats]]:
        """Per group: the terms that its elements touch, how many of them stand outside pairs, and by how much the mean
        element shortens each axis [axes + 1]."""
        elements, times = self.elements, self.times
        share = 1.0 / elements.sizes[elements.group_of]
        place = np.arange(elements.n), elements.group_of
        member = sparse.csr_matrix((share, place), shape=(elements.n, len(elements.groups)))
        mean = np.asarray((self.matrix @ member).todense())
        found = []
        for group in range(len(elements.groups)):
            mine = mean[:, group] != 0
            hit = mine[times.inner] | mine[times.outer] | mine[times.others].any(axis=1) | mine[times.gates].any(axis=1)
            hit[times.term[mine[times.sizes].any(axis=1)]] = True
            terms = np.flatnonzero(hit)
            outside = terms[terms < self.plain]
            pairs = np.unique((terms[terms >= self.plain] - self.plain) // 3)
            inside = (self.plain + 3 * pairs[:, None] + np.arange(3)).ravel()
            found.append((times.part(np.concatenate([outside, inside])), len(outside), mean[:, group]))
        return found


@dataclass(frozen=True)
class Curves:
    """What is saved, by group, seen from one mask."""

    clock: Clock
    counts: Floats
    _known: dict[int, tuple[Indices, Floats]] = field(default_factory=dict)

    def saved(self, group: int, ends: Indices) -> Floats:
        """Milliseconds saved where so many elements more of a group (by its position) go; never less for more."""
        every = -(-len(ends) // POINTS)
        points = np.arange(every - 1, len(ends), every)
        if not len(points) or points[-1] != len(ends) - 1:
            points = np.append(points, len(ends) - 1)
        times, plain, mean = self.clock.touched[group]
        left = np.maximum(0.0, self.counts - np.append(0, ends[points])[:, None] * mean)
        outside, two, merged = Times.split(times.of(left), plain)
        cost = outside.sum(axis=1) + np.minimum(two, merged).sum(axis=1)
        saved = np.append(0.0, np.maximum.accumulate(np.maximum(0.0, cost[0] - cost[1:])))
        return saved[np.searchsorted(points, np.arange(len(ends)), side="right")]
