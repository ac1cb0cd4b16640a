"""Elements chosen for removal are faded to exactly zero on schedule, and held there until they are removed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edp_fx.compressor.elements import Elements, Site
from edp_fx.compressor.schedule import Schedule
from edp_fx.compressor.selection import Flags

NEVER = -1


class Fading:
    """Since when each element fades.

    Args:
        elements: the flat index.
        schedule: how fast elements fade.
        since: step at which each element was chosen for removal [n], :data:`NEVER` for the others.
    """

    def __init__(self, elements: Elements, schedule: Schedule, since: NDArray[np.int64] | None = None) -> None:
        self.elements = elements
        self.schedule = schedule
        self.since = np.full(elements.n, NEVER, dtype=np.int64) if since is None else since.copy()
        self.sites: list[Site] = []
        self._mark()

    @property
    def kept(self) -> Flags:
        """Elements that do not fade."""
        return self.since == NEVER

    def living(self, step: int) -> Flags:
        """Elements that are not exactly zero after ``step``."""
        return self.kept | (step - self.since < self.schedule.fade)

    def remove(self, chosen: Flags, step: int) -> None:
        """Let ``chosen`` fade from ``step`` on."""
        self.since[chosen] = step
        self._mark()

    def keep(self, chosen: Flags) -> None:
        """Let ``chosen`` stay after all."""
        self.since[chosen] = NEVER
        self._mark()

    def _mark(self) -> None:
        """The sites that have an element that fades: only those are scaled."""
        fades = np.append(~self.kept, False)
        self.sites = [site for site in self.elements.fading if fades[site.index.numpy()].any()]

    def apply(self, parameters: Mapping[str, nn.Parameter], step: int, *, at_once: bool = False) -> bool:
        """Scale what fades by what the schedule leaves after ``step``; returns whether an element just became zero.

        Factors of successive steps telescope, so what the gradient restores meanwhile fades, too.
        """
        if not self.sites:
            return False
        fade = self.schedule.fade
        left = np.array([self.schedule.gate(age) for age in range(fade + 1)])
        age = step - self.since
        now, before = left[np.clip(age, 0, fade)], left[np.clip(age - 1, 0, fade)]
        factor = np.ones(self.elements.n + 1, dtype=np.float32)
        fades = ~self.kept
        if at_once:
            factor[:-1][fades] = 0.0
        else:
            factor[:-1][fades] = np.where(before > 0, now / np.maximum(before, 1e-12), 0.0)[fades]
        device = parameters[self.sites[0].parameter].device
        moved = torch.from_numpy(factor).to(device)
        for site in self.sites:
            self.elements.scale(site, parameters[site.parameter], moved)
        return bool((fades & (age == fade)).any())
