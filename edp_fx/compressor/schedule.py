"""When a run decides what to remove, how fast the removed fades, and when the network shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edp_fx.errors import BudgetError


@dataclass(frozen=True)
class Schedule:
    """The steps of one run. Counts are optimiser steps, shares are of the run's length.

    The cost falls on a cubic curve (Zhu and Gupta, "To prune, or not to prune", 2017, eq. 1): fast while much
    is superfluous, slowly at the end.

    Args:
        total: optimiser steps of the whole run.
        warmup: share of the run before the first decision.
        end: share of the run after which the budget is met and the network is compact.
        decisions: how often the groups are ranked between the two.
        removals: how often what is zero is physically removed, the last time at the end.
    """

    total: int
    warmup: float
    end: float
    decisions: int
    removals: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.end <= 1:
            raise BudgetError(f"schedule: need 0 <= warmup < end <= 1, not {self.warmup:g} and {self.end:g}")

    @property
    def start(self) -> int:
        """Step of the first decision."""
        return max(1, math.floor(self.total * self.warmup))

    @property
    def stop(self) -> int:
        """Step by which the budget is met and all that was chosen for removal is exactly zero."""
        return max(self.start + 1, math.ceil(self.total * self.end))

    @property
    def every(self) -> int:
        """Steps between decisions."""
        return max(1, round((self.stop - self.start) / self.decisions))

    @property
    def fade(self) -> int:
        """Steps in which an element fades to zero."""
        return max(1, min(2 * self.every, (self.stop - self.start) // 2))

    @property
    def last(self) -> int:
        """Step of the last decision."""
        return self.stop - self.fade

    def decides(self, step: int) -> bool:
        """Whether groups are ranked after ``step``."""
        if step >= self.last:
            return step == self.last
        return step >= self.start and (step - self.start) % self.every == 0

    def progress(self, step: int) -> float:
        """Share of the whole reduction that is decided by ``step``: 0 before the start, 1 from the last
        on."""
        if step < self.start:
            return 0.0
        if step >= self.last:
            return 1.0
        done = (step - self.start + 1) / (self.last - self.start + 1)
        return 1.0 - (1.0 - done) ** 3

    def removes_at(self, step: int) -> bool:
        """Whether the dead are removed after ``step``."""
        if step == self.stop:
            return True
        span = self.stop - self.start
        return any(step == self.start + round(span * k / self.removals) for k in range(1, self.removals))

    def gate(self, age: int) -> float:
        """How much is left of an element ``age`` steps after it was chosen; exactly 0 from ``fade`` on."""
        return max(0.0, 1.0 - age / self.fade)
