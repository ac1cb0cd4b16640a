"""What the user asks for: a share, or an amount, of the dense network's cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from edp_fx.cost.device import Device, load_device
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
        latency: milliseconds of a call on a device.
        device: which, for latency: a name (:func:`edp_fx.cost.device_names`), a file that ``edp-fx device measure``
            wrote, or a :class:`edp_fx.Device`; a processor under onnxruntime where None.
        batch: images of a call there.

    Raises:
        BudgetError: none or several are given, the value is not a positive finite number, or the device is unknown.
    """

    error: ClassVar[type[EdpError]] = BudgetError
    what: ClassVar[str] = "budget"

    macs: float | None = bounded(None, above=0)
    params: float | None = bounded(None, above=0)
    latency: float | None = bounded(None, above=0)
    device: Device | str | None = None
    batch: int = bounded(1, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("device", "batch"):
            if self.latency is None and getattr(self, name) != self.field(name).default:
                raise BudgetError(f"{name} serves a budget of latency only: give latency, or leave {name} out")
        if self.device is not None:
            load_device(self.device)
        given = [name for name in METRICS if getattr(self, name) is not None]
        if len(given) != 1:
            raise BudgetError(f"give exactly one budget of {', '.join(METRICS)}, not {len(given)}")

    def plain(self) -> dict[str, Any]:
        """What is given."""
        return {name: value for name, value in super().plain().items() if value != self.field(name).default}

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


def check_reachable(budget: Budget, dense: float, least: float, target: float) -> None:
    """Raise :class:`UnreachableError`, naming the least that can be, where even the smallest network costs more than
    ``target``."""
    if least > target:
        share = math.ceil(1e4 * least / dense) / 1e4
        raise UnreachableError(
            f"budget {budget.metric}={budget.value:g} cannot be reached: the least that can is {share:g} of "
            f"the dense network ({least:.6g} of {dense:.6g}); layers that may not be pruned cost the rest"
        )
