"""What removing elements saves: as the network is now, and as decisions compare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LAST = 1e-6  # share of its cost that an element is taken to save where it saves no work


@dataclass(frozen=True)
class MaskSavings:
    """What removing elements saves, seen from one mask.

    Attributes:
        marginal: cost saved by removing one more element of each group [groups].
        scale: factor of the costs below.
        groups: position of a group that touches a pair [incidences], each with
        two: the pair's cost as two layers,
        merged: its cost as one, and
        slope: what one element less saves of the two.
    """

    marginal: Floats
    scale: float
    groups: NDArray[np.int64]
    two: Floats
    merged: Floats
    slope: Floats

    def of_ranks(self, group: int, count: int) -> Floats:
        """Cost saved by removing 1 … ``count`` of the ranks present of a group (by its position).

        A pair costs in proportion to its rank and at most what the merged layer costs: the first removals may
        save nothing.
        """
        mine = self.groups == group
        two, merged = self.two[mine], self.merged[mine]
        removed = np.arange(1, count + 1, dtype=np.float64)[:, None]
        later = np.minimum(two - removed * self.slope[mine], merged)
        return (np.minimum(two, merged) - later).sum(axis=1) * self.scale


@dataclass(frozen=True)
class Savings:
    """What a decision compares elements by.

    Attributes:
        reference: at the widths that decisions compare at.
        at_present: makes the same of the network as it is now.
        least: what each group's elements count as saving at least [groups].
    """

    reference: MaskSavings
    at_present: Callable[[], MaskSavings]
    least: Floats

    @cached_property
    def _present(self) -> MaskSavings:
        return self.at_present()

    def of_one(self, group: int) -> float:
        """Cost saved by one more element of a group (by its position)."""
        return max(float(self.reference.marginal[group]), float(self.least[group]))

    def of_one_now(self, group: int) -> float:
        """The same at the widths that the network has now."""
        return max(float(self._present.marginal[group]), float(self.least[group]))

    def of_ranks(self, group: int, count: int) -> Floats:
        """Cost saved by removing 1 … ``count`` of the ranks present of a group, see :class:`MaskSavings`."""
        return self.reference.of_ranks(group, count)
