"""What may go in a run: the kinds of groups by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edp_fx.compressor.elements import WHOLE
from edp_fx.compressor.importance import Importance
from edp_fx.compressor.method import Method
from edp_fx.errors import BudgetError

KINDS = ("rank", "channel", "head", "kernel", "branch")


@dataclass(frozen=True)
class Offer:
    """What may go in a run.

    Attributes:
        kinds: names.
        in_need: kinds that are offered, too, where those cannot reach the budget.
        left_out: kinds that may not go, as refusals: ``node`` and ``reason``.
    """

    kinds: tuple[str, ...]
    in_need: tuple[str, ...]
    left_out: tuple[dict[str, str], ...]

    def extended(self) -> Offer:
        """With those ``in_need``."""
        left_out = tuple(one for one in self.left_out if one["node"] not in self.in_need)
        return replace(self, kinds=(*self.in_need, *self.kinds), in_need=(), left_out=left_out)


def offer_kinds(method: Method, importance: Importance, total_steps: int) -> Offer:
    """What may go by a method: the kinds it names, or all that can.

    Ranks lose accuracy beside channels and kernels (docs/benchmarks.md, ResNet-20), so that by themselves they are
    offered only in need.

    Raises:
        BudgetError: a kind is named that is unknown, or that cannot go.
    """
    if method.kinds is not None:
        check_kinds(method.kinds, method, importance)
    if method.policy != "budget":
        return Offer(method.kinds or ("rank", "channel"), (), ())
    kinds = method.kinds or ("channel", "kernel", "branch")
    left_out: dict[str, str] = {}
    for kind in kinds:
        if kind not in WHOLE:
            continue
        if total_steps == 0:  # without a step no gradient weighs them
            left_out[kind] = "without a training step nothing weighs it"
        elif method.budget is None or method.budget.metric != "macs":
            left_out[kind] = "it serves a budget of MACs only"
        elif not importance.gradients:
            left_out[kind] = "it is weighed by the importance taylor only"
    in_need: tuple[str, ...] = ()
    if method.kinds is None:
        in_need = ("rank",)
        left_out["rank"] = "the other kinds can reach the budget, or no pairs are inserted"
    refusals = tuple({"node": kind, "reason": f"kind not offered: {reason}"} for kind, reason in left_out.items())
    return Offer(tuple(kind for kind in kinds if kind not in left_out), in_need, refusals)


def check_kinds(kinds: Sequence[str], method: Method, importance: Importance) -> None:
    """Raise :class:`BudgetError` where a kind is unknown, none is given, or kernels or branches are asked for
    that cannot go."""
    if not kinds or set(kinds) - set(KINDS):
        raise BudgetError(f"kinds {', '.join(kinds)}: take one or more of {', '.join(KINDS)}")
    whole = " and ".join(kind for kind in dict.fromkeys(kinds) if kind in WHOLE)
    if not whole:
        return
    if method.policy != "budget" or method.budget is None or method.budget.metric != "macs":
        raise BudgetError(f"{whole} can go to a budget of MACs only: give macs, or leave {whole} out of the kinds")
    if not importance.gradients:
        raise BudgetError(
            f"{whole} can be weighed by taylor only: take that importance, or leave {whole} out of the kinds"
        )


def check_without_training(kinds: Sequence[str]) -> None:
    """Raise :class:`BudgetError` where ranks, all that can go without training, are not among the kinds."""
    if "rank" not in kinds:
        raise BudgetError("without training only ranks can go: leave rank among the kinds")
