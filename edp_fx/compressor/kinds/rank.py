"""Ranks: the filters of a pair's basis, each with its column of the coefficient matrix."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from edp_fx.compressor.kinds.base import Floats, Indices, Part, Removable
from edp_fx.compressor.kinds.indexed import Indexed
from edp_fx.compressor.removals import hull_prices
from edp_fx.compressor.savings import Savings


class Rank(Indexed):
    """A rank less of a pair (:func:`edp_fx.insert`)."""

    name = "rank"
    # beside channels and kernels they lose accuracy (docs/benchmarks.md, ResNet-20)
    offered = "in need"
    why_not = "the other kinds reach the budget, and with ranks they lose accuracy; name rank to remove some"
    pays_by_width = True

    def parts(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        """Columns of the coefficient fade and are penalised; the basis is worth nothing without them."""
        for part in super().parts(group, parameters):
            column = part.role == "consumer"
            yield replace(part, faded=column, penalised=column)

    def prices(self, savings: Savings, group: int, losses: Floats, ends: Indices) -> Floats:
        """Along the convex hull: the first ranks save nothing while the pair costs more than one layer."""
        return hull_prices(np.cumsum(losses), savings.of_ranks(group, int(ends[-1]))[ends - 1])
