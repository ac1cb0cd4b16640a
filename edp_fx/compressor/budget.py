"""What the user asks for: a share, or an amount, of the dense network's cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from edp_fx.errors import BudgetError, EdpError, UnreachableError
from edp_fx.settings import Settings, bounded

METRICS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Budget(Settings):
    """Exactly one of MACs, parameters or latency: a share of the dense network in (0, 1], or an amount
    above 1.

    Args:
        macs: multiply-accumulates of one sample.
        params: weights and biases.
        latency: milliseconds, as the compressor's latency table measures layers.

    Raises:
        BudgetError: none or several are given, or the value is not a positive finite number.
    """

    error: ClassVar[type[EdpError]] = BudgetError
    what: ClassVar[str] = "budget"

    macs: float | None = bounded(None, above=0)
    params: float | None = bounded(None, above=0)
    latency: float | None = bounded(None, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in METRICS if getattr(self, name) is not None]
        if len(given) != 1:
            raise BudgetError(f"give exactly one budget of {', '.join(METRICS)}, not {len(given)}")

    def plain(self) -> dict[str, Any]:
        """The one that is given."""
        return {self.metric: self.value}

    @property
    def metric(self) -> str:
        """``macs``, ``params`` or ``latency``."""
        return "macs" if self.macs is not None else "params" if self.params is not None else "latency"

    @property
    def value(self) -> float:
        """The number given."""
        for number in (self.macs, self.params, self.latency):
            if number is not None:
                return float(number)
        return math.nan

    def target(self, dense: float) -> float:
        """The amount that must not be exceeded, for a dense network that costs ``dense``."""
        return self.value * dense if self.value <= 1 else min(self.value, dense)


def check_reachable(budget: Budget, dense: float, least: float) -> None:
    """Raise :class:`UnreachableError`, naming the least that can be, where even the smallest network costs
    more."""
    target = budget.target(dense)
    if least > target:
        share = math.ceil(1e4 * least / dense) / 1e4
        raise UnreachableError(
            f"budget {budget.metric}={budget.value:g} cannot be reached: the least that can is {share:g} of "
            f"the dense network ({least:.6g} of {dense:.6g}); layers that may not be pruned cost the rest"
        )
