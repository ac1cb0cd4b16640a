"""What may go in a run: the kinds of groups by name."""

from __future__ import annotations

from collections.abc import Sequence

from edp_fx.compressor.budget import Budget
from edp_fx.compressor.elements import WHOLE
from edp_fx.compressor.importance import Importance
from edp_fx.errors import BudgetError

KINDS = ("rank", "channel", "head", "kernel", "branch", "tap")
DEFAULT_KINDS = KINDS[:3]


def check_kinds(kinds: Sequence[str], budget: Budget | None, policy: str, importance: Importance) -> None:
    """Raise :class:`BudgetError` where a kind is unknown, none is given, or kernels, branches or taps are asked
    for that cannot go."""
    if not kinds or set(kinds) - set(KINDS):
        raise BudgetError(f"kinds {', '.join(kinds)}: take one or more of {', '.join(KINDS)}")
    whole = " and ".join(kind for kind in dict.fromkeys(kinds) if kind in WHOLE)
    if not whole:
        return
    if policy != "budget" or budget is None or budget.metric != "macs":
        raise BudgetError(f"{whole} can go to a budget of MACs only: give macs, or leave {whole} out of the kinds")
    if not importance.gradients:
        raise BudgetError(
            f"{whole} can be weighed by taylor only: take that importance, or leave {whole} out of the kinds"
        )


def check_without_training(kinds: Sequence[str]) -> None:
    """Raise :class:`BudgetError` where ranks, all that can go without training, are not among the kinds."""
    if "rank" not in kinds:
        raise BudgetError("without training only ranks can go: leave rank among the kinds")
