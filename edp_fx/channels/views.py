"""A finished sweep: every atom's component, and which components are frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edp_fx.channels.atoms import Ledger, Mark
from edp_fx.channels.rectangles import rectangularise
from edp_fx.channels.sweep import Sweep


@dataclass(frozen=True, eq=False)
class View:
    """One sweep after its ties were resolved: the component of every atom, and what is known of each component."""

    sweep: Sweep
    component: np.ndarray
    frozen: dict[int, Mark]

    @property
    def ledger(self) -> Ledger:
        """What the rules wrote down."""
        return self.sweep.ledger


def resolve(sweep: Sweep) -> View:
    """Make tensors rectangular and find the components of a sweep."""
    component = rectangularise(sweep.ledger)
    return View(sweep, component, sweep.ledger.frozen_components(component))
