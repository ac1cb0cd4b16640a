"""Where a run stands: what may still go, what fades, and what must stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edp_fx.compressor.candidates import Candidates
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.fading import NEVER, Fading
from edp_fx.compressor.kinds.base import Applied
from edp_fx.compressor.schedule import Schedule
from edp_fx.compressor.selection import Selector


@dataclass
class Progress:
    """The elements of the network as it is, and what was decided of them.

    Attributes:
        candidates: what may go.
        fading: what is going.
        floors: the fewest elements each group keeps [groups].
        sizes: elements that each group had in the network as it came [groups].
    """

    candidates: Candidates
    fading: Fading
    floors: NDArray[np.int64]
    sizes: NDArray[np.float64]

    @classmethod
    def start(cls, candidates: Candidates, schedule: Schedule, floor: float) -> Progress:
        """Nothing goes yet; every group keeps a share ``floor``."""
        elements = candidates.elements
        floors = candidates.floors(np.ceil(floor * elements.sizes))
        return cls(candidates, Fading(elements, schedule), floors, elements.sizes.astype(float))

    @property
    def elements(self) -> Elements:
        """The flat index of what may go."""
        return self.candidates.elements

    def selector(self) -> Selector:
        """What chooses."""
        return self.candidates.selector(self.floors, self.sizes)

    def cost(self, step: int) -> float:
        """Of the network without what is exactly zero after ``step``."""
        return self.selector().total(self.fading.living(step))

    def lower_floors(self, target: float) -> float:
        """Halve the floors as often as ``target`` needs, down to one; returns the least cost that they allow."""
        while (least := self.selector().least()) > target:
            lower = self.candidates.floors(self.floors // 2)
            if (lower == self.floors).all():
                break
            self.floors = lower
        return least

    def carried(self, candidates: Candidates, applied: Applied) -> tuple[Progress, NDArray[np.int64]]:
        """The same of the network after a removal, and for each of its elements the index here, -1 for none [n]."""
        old, elements = self.elements, candidates.elements
        origin = old.carried(elements, applied)
        since = np.where(origin >= 0, np.append(self.fading.since, NEVER)[origin], NEVER)
        first = np.append(old.group_of, -1)[origin[elements.offsets[:-1]]]
        floors = np.where(
            first >= 0,
            np.minimum(elements.sizes, np.append(self.floors, 1)[first]),
            candidates.floors(np.zeros(len(first))),
        )
        sizes = np.where(first >= 0, np.append(self.sizes, 0)[first], elements.sizes)
        return Progress(candidates, Fading(elements, self.fading.schedule, since), floors, sizes), origin
