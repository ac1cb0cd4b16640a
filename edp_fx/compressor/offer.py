"""Which kinds may go by a method: those it names, or all that serve its budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edp_fx.compressor.importance import Importance
from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.kinds.base import Kind
from edp_fx.compressor.method import Method
from edp_fx.errors import BudgetError


@dataclass(frozen=True)
class Offer:
    """What may go in a run.

    Attributes:
        kinds: in the order of :data:`~edp_fx.compressor.KINDS`.
        in_need: those to add where these cannot reach the budget.
        left_out: name of each other kind -> why it may not go.
    """

    kinds: tuple[Kind, ...]
    in_need: tuple[Kind, ...]
    left_out: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the kinds."""
        return tuple(kind.name for kind in self.kinds)

    @property
    def refusals(self) -> list[dict[str, str]]:
        """Kinds left out as ``node`` and ``reason``."""
        return [{"node": f"kind {name}", "reason": reason} for name, reason in self.left_out.items()]

    def extended(self) -> Offer:
        """With those ``in_need``."""
        kinds = {*self.kinds, *self.in_need}
        left_out = {name: why for name, why in self.left_out.items() if KINDS[name] not in kinds}
        return replace(self, kinds=_ordered(kinds), in_need=(), left_out=left_out)


def offer_kinds(method: Method, importance: Importance, total_steps: int) -> Offer:
    """What may go by a method in a run of so many optimiser steps.

    Raises:
        BudgetError: the method names a kind that cannot go.
    """
    if method.kinds is not None:
        check_kinds(method, importance)
        named = [KINDS[name] for name in dict.fromkeys(method.kinds)]
        idle = {kind.name: "without a training step nothing weighs it" for kind in named if _idle(kind, total_steps)}
        return Offer(_ordered({kind for kind in named if kind.name not in idle}), (), idle)
    kinds, in_need, left_out = [], [], {}
    for name, kind in KINDS.items():
        reason = _unfit(kind, method, importance)
        if reason is None and _idle(kind, total_steps):
            reason = "without a training step nothing weighs it"
        if reason is not None:
            left_out[name] = f"it {reason}" if not reason.startswith("without") else reason
        elif kind.offered == "always" or (kind.offered == "in need" and method.policy != "budget"):
            kinds.append(kind)
        else:
            left_out[name] = kind.why_not
            if kind.offered == "in need":
                in_need.append(kind)
    return Offer(tuple(kinds), tuple(in_need), left_out)


def check_kinds(method: Method, importance: Importance) -> None:
    """Raise :class:`BudgetError` where a method names a kind that cannot go."""
    unfit: dict[str, list[str]] = {}
    for name in dict.fromkeys(method.kinds or ()):
        reason = _unfit(KINDS[name], method, importance)
        if reason is not None:
            unfit.setdefault(reason, []).append(name)
    for reason, names in unfit.items():
        these = " and ".join(names)
        raise BudgetError(f"{these} {reason}: change that, or leave {these} out of the kinds")


def _unfit(kind: Kind, method: Method, importance: Importance) -> str | None:
    """Why a kind cannot go by a method, whatever the network."""
    if method.policy != "budget":
        return None if kind.penalties else "can go to a budget only, not by the policy lambda"
    if method.budget is not None and method.budget.metric not in kind.metrics:
        metrics = " or ".join({"macs": "MACs", "params": "parameters"}.get(one, one) for one in kind.metrics)
        return f"can go to a budget of {metrics} only"
    if kind.by_gradients and not importance.gradients:
        return "can be weighed by taylor only, or another importance that sees gradients"
    return None


def _idle(kind: Kind, total_steps: int) -> bool:
    return kind.by_gradients and total_steps == 0


def _ordered(kinds: set[Kind]) -> tuple[Kind, ...]:
    return tuple(kind for kind in KINDS.values() if kind in kinds)
