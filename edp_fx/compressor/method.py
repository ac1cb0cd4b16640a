"""All that says how a network is compressed, in one place, with presets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from edp_fx.compressor.budget import Budget
from edp_fx.compressor.importance import Importance
from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.measures import MEASURES, make_importance
from edp_fx.compressor.schedule import Schedule
from edp_fx.errors import BudgetError, EdpError
from edp_fx.settings import Settings, bounded, near

POLICIES = ("budget", "lambda")
STARTS = ("identity", "spectral")
FEW = 4  # removals of a run where every new shape has a price
SCHEDULED = ("start", "end", "decisions", "removals")
WITHOUT_TRAINING = ("budget", "kinds", "importance", "pairs", "floor", "align", "teacher")


@dataclass(frozen=True)
class Method(Settings):
    """How to compress: what the result may cost, what may go, how it is chosen, and when.

    The defaults are the settings of the best committed rows of docs/benchmarks.md from random weights.

    Args:
        budget: what the result may cost; needed by the policy ``budget``.
        kinds: what may go, of :data:`edp_fx.compressor.KINDS`. None: all that can go to this budget; ranks only
            where the others cannot reach it, since beside the others they lose accuracy in docs/benchmarks.md.
        policy: ``budget`` meets the budget on a cubic schedule; ``lambda`` applies group-sparse penalties of fixed
            ``strength`` and removes what became zero (the paper's).
        importance: ``taylor``, ``norm``, ``singular``, or an :class:`~edp_fx.compressor.Importance`.
            ``reconstruction``: all goes at once, before the first step, by a few hundred images; what stays is refitted
            to what the network put out, and then trained.
        start: share of the run before the first decision, in [0, 1).
        end: share of the run after which the budget is met, in (start, 1].
        decisions: how often the elements are ranked between the two.
        removals: how often what is zero is removed physically; None: after every decision on a processor, four times
            on a GPU, which plans every new shape anew, and where steps are compiled.
        floor: share of every group that stays in any case, in [0, 1]; lowered as far as the budget needs.
        align: keep a multiple of so many channels and ranks in every group of more; halved as far as the budget needs.
        pairs: how the two layers of a pair start where ranks may go: ``identity`` for random weights, ``spectral``
            (singular vectors) for trained ones.
        allow_inexact: also prune groups whose removal changes the function otherwise.
        strength: λ of the policy ``lambda``, for ranks and channels.
        teacher: ``self`` distils from the network as it was given; None: no teacher but one given as a network.
        distill: weight in [0, 1] of the teacher's part of the loss, where there is a teacher.
        temperature: of the distillation, above 0.

    Raises:
        BudgetError: a value is out of range; names the field.
    """

    error: ClassVar[type[EdpError]] = BudgetError
    what: ClassVar[str] = "method"

    budget: Budget | None = None
    kinds: tuple[str, ...] | None = bounded(None, choices=KINDS)
    policy: str = bounded("budget", choices=POLICIES)
    importance: str | Importance = bounded("taylor", choices=MEASURES)
    start: float = bounded(0.05, least=0, below=1)
    end: float = bounded(0.25, above=0, most=1)
    decisions: int = bounded(30, least=1)
    removals: int | None = bounded(None, least=1)
    floor: float = bounded(0.15, least=0, most=1)
    align: int = bounded(8, least=1)
    pairs: str = bounded("identity", choices=STARTS)
    allow_inexact: bool = False
    strength: float = bounded(1e-3, above=0)
    teacher: str | None = bounded(None, choices=("self",))
    distill: float = bounded(0.9, above=0, most=1)
    temperature: float = bounded(4.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start >= self.end:
            raise BudgetError(f"start={self.start:g}, end={self.end:g}: the end must come after the start")
        if self.kinds == ():
            raise BudgetError("kinds: give one or more, or None for all that can go")
        idle = {"strength": "the policy budget meets its budget by whatever strength that takes"}
        if self.policy != "budget":
            why = f"the policy {self.policy} removes what its strength shrinks to zero, whatever that costs"
            idle = dict.fromkeys(("budget", "importance"), why)
        elif self.at_once:
            idle |= dict.fromkeys(SCHEDULED, "the importance reconstruction removes all before the first step")
        for name, why in idle.items():
            if getattr(self, name) != self.field(name).default:
                raise BudgetError(f"{name} does not apply: {why}; leave {name} out")

    @classmethod
    def preset(cls, name: str = "scratch", **changes: Any) -> Method:
        """A preset by name with some fields changed; ``macs=``, ``params=`` or ``latency=`` (with ``device=`` and
        ``batch=``) make the budget.

        Raises:
            BudgetError: unknown preset or field, or a value out of range.
        """
        if name not in PRESETS:
            hint = near(name, PRESETS) or f"; take one of {', '.join(PRESETS)}"
            raise BudgetError(f"method {name!r}: unknown{hint}")
        return PRESETS[name].changed(**changes)

    @classmethod
    def of(cls, method: Method | str | None, **changes: Any) -> Method:
        """A method as the API is given it: one, the name of a preset or None for the default; some fields changed.

        Raises:
            BudgetError: unknown preset or field, or a value out of range.
        """
        if isinstance(method, Method):
            return method.changed(**changes)
        return cls.preset(**changes) if method is None else cls.preset(method, **changes)

    def changed(self, **changes: Any) -> Method:
        """The same method with some fields changed; see :meth:`preset`."""
        asked = {name: changes.pop(name) for name in Budget.names() if name in changes}
        asked = {name: value for name, value in asked.items() if value is not None}
        if asked and "budget" in changes:
            raise BudgetError(f"give a budget or {', '.join(asked)}, not both")
        if asked:
            changes["budget"] = Budget(**asked)
        return super().changed(**changes)

    @property
    def at_once(self) -> bool:
        """Whether all goes before the first step."""
        return self.importance == "reconstruction"

    @property
    def from_trained(self) -> bool:
        """Whether it is for a network with trained weights."""
        return self.at_once or self.teacher == "self"

    @property
    def pace(self) -> float:
        """The share of the default learning rate at which the network learns: half of it from trained weights, which
        have much to learn again where much goes (benchmarks/trained.py), a tenth where images are few."""
        return 0.1 if self.at_once else 0.5 if self.from_trained else 1.0

    @property
    def statistics(self) -> str:
        """What batch norms normalise by, as of :class:`~edp_fx.train.Trainer`."""
        return "held" if self.at_once else "anew" if self.from_trained else "moving"

    def schedule(self, total_steps: int, *, gpu: bool = False) -> Schedule:
        """When a run of ``total_steps`` optimiser steps decides and removes."""
        removals = self.removals or (FEW if gpu else self.decisions)
        return Schedule(total_steps, self.start, self.end, self.decisions, removals)

    @property
    def untaught(self) -> Method:
        """The same without what says how a teacher teaches: of no use without training."""
        return self.changed(**{name: self.field(name).default for name in ("distill", "temperature")})

    def check_without_training(self) -> None:
        """Raise :class:`BudgetError` where a field needs training: all but those of the preset ``one-shot``."""
        if self.budget is None:
            raise BudgetError("without training a budget is needed: macs=, params= or latency=")
        start = PRESETS["one-shot"]
        for name in start.differing(self):
            if name not in WITHOUT_TRAINING:
                raise BudgetError(f"{name} needs training: without it take the method one-shot and leave {name} out")
        weighed = [name for name in self.kinds or () if KINDS[name].by_gradients]
        if weighed:
            these = " and ".join(weighed)
            raise BudgetError(f"where all goes at once nothing weighs {these}: leave {these} out of the kinds")
        if make_importance(self.importance).gradients:
            others = ", ".join(name for name, one in MEASURES.items() if not one().gradients)
            raise BudgetError(f"without training there are no gradients to weigh by: take the importance {others}")
        if self.pairs != start.pairs:
            raise BudgetError(f"where all goes at once pairs must start {start.pairs}: leave pairs={self.pairs} out")


# from trained weights the network given teaches the one that becomes small
PRESETS: Mapping[str, Method] = MappingProxyType(
    {
        "scratch": Method(),
        "trained": Method(pairs="spectral", teacher="self"),
        "paper": Method(kinds=("rank", "channel"), policy="lambda", start=0.12, end=0.5, removals=4, align=1),
        "one-shot": Method(importance="reconstruction", pairs="spectral", teacher="self"),
        "truncate": Method(kinds=("rank",), importance="singular", align=1, pairs="spectral"),
    }
)
