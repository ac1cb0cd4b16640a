"""All that says how a network is compressed, in one place, with presets by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from edp_fx.compressor.budget import Budget
from edp_fx.compressor.importance import MEASURES, Importance
from edp_fx.compressor.schedule import Schedule
from edp_fx.errors import BudgetError

POLICIES = ("budget", "lambda")
METRICS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Method:
    """How to compress: what the result may cost, what may go, how it is chosen, and when.

    The defaults are the settings of the best committed rows of docs/benchmarks.md from random weights.

    Args:
        budget: what the result may cost; needed by the policy ``budget``.
        kinds: what may go, of :data:`edp_fx.compressor.KINDS`. None: all that can go to this budget; ranks only
            where the others cannot reach it, since beside the others they lose accuracy in docs/benchmarks.md.
        policy: ``budget`` meets the budget on a cubic schedule; ``lambda`` applies group-sparse penalties of fixed
            ``strength`` and removes what became zero (the paper's).
        importance: ``taylor``, ``norm``, ``singular``, or an :class:`~edp_fx.compressor.Importance`.
        warmup: share of the run before the first decision, in [0, 1).
        end: share of the run after which the budget is met, in (warmup, 1].
        decisions: how often the elements are ranked between the two.
        removals: how often the dead are removed physically; None: after every decision on a processor, four times
            on a GPU, which plans every new shape anew.
        floor: share of every group that stays in any case, in [0, 1]; lowered as far as the budget needs.
        align: keep a multiple of so many channels and ranks in every group of more.
        allow_inexact: also prune groups whose removal changes the function otherwise.
        strength: λ of the policy ``lambda``, for ranks and channels.
        teacher: ``self`` distils from the network as it was given; None: no teacher but one given as a network.
        distill: weight in [0, 1] of the teacher's part of the loss, where there is a teacher.
        temperature: of the distillation, above 0.

    Raises:
        BudgetError: a value is out of range; names the field.
    """

    budget: Budget | None = None
    kinds: tuple[str, ...] | None = None
    policy: str = "budget"
    importance: str | Importance = "taylor"
    warmup: float = 0.05
    end: float = 0.25
    decisions: int = 30
    removals: int | None = None
    floor: float = 0.15
    align: int = 8
    allow_inexact: bool = False
    strength: float = 1e-3
    teacher: str | None = None
    distill: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise BudgetError(f"policy {self.policy!r}: unknown; take one of {', '.join(POLICIES)}")
        if isinstance(self.importance, str) and self.importance not in MEASURES:
            raise BudgetError(f"importance {self.importance!r}: unknown; take one of {', '.join(MEASURES)}")
        if isinstance(self.kinds, str):
            raise BudgetError(f"kinds {self.kinds!r}: give a tuple of names, ({self.kinds!r},)")
        if self.kinds is not None:
            object.__setattr__(self, "kinds", tuple(self.kinds))
        Schedule(1, self.warmup, self.end)  # raises where the shares are not in order
        for name, least in (("decisions", 1), ("removals", 1), ("align", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise BudgetError(f"{name}={value!r}: give a whole number from {least} on")
        for name, least, most in (
            ("floor", 0.0, 1.0),
            ("distill", 0.0, 1.0),
            ("strength", 0.0, math.inf),
            ("temperature", 1e-3, math.inf),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise BudgetError(f"{name}={value!r}: give a number from {least:g} to {most:g}")
        if self.teacher not in (None, "self"):
            raise BudgetError(f"teacher {self.teacher!r}: give 'self' or None; a network is given beside the method")

    @classmethod
    def preset(cls, name: str = "scratch", **changes: Any) -> Method:
        """A preset by name with some fields changed; ``macs=``, ``params=`` and ``latency=`` make the budget.

        Raises:
            BudgetError: unknown preset or field, or a value out of range.
        """
        if name not in PRESETS:
            raise BudgetError(f"method {name!r}: unknown; take one of {', '.join(PRESETS)}")
        return PRESETS[name].changed(**changes)

    def changed(self, **changes: Any) -> Method:
        """The same method with some fields changed; see :meth:`preset`."""
        asked = {name: changes.pop(name) for name in METRICS if changes.get(name) is not None}
        for name in METRICS:
            changes.pop(name, None)
        unknown = sorted(set(changes) - {field.name for field in fields(self)})
        if unknown:
            known = ", ".join(field.name for field in fields(self))
            raise BudgetError(f"method has no {unknown[0]!r}; it has {known}")
        if asked:
            changes["budget"] = Budget(**asked)
        return replace(self, **changes)

    def schedule(self, total_steps: int, *, gpu: bool = False) -> Schedule:
        """When a run of ``total_steps`` optimiser steps decides and removes."""
        removals = self.removals or (4 if gpu else self.decisions)
        return Schedule(total_steps, self.warmup, self.end, self.decisions, removals)


# from trained weights: the network given teaches the one that becomes small (docs/benchmarks.md)
PRESETS: Mapping[str, Method] = MappingProxyType(
    {
        "scratch": Method(),
        "trained": Method(teacher="self"),
        "paper": Method(kinds=("rank", "channel"), policy="lambda", align=1),
        "truncate": Method(kinds=("rank",), importance="singular", align=1),
    }
)
