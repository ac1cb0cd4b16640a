"""Which rule, and which repair of literal sizes, an operation has: one registration for both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from edp_fx.channels.rules.sizes import NodeSizes
from edp_fx.errors import AnalysisError
from edp_fx.registration import Registration

Rule = Callable[..., None]
"""``rule(sweep, func, args, kwargs, out)`` labels ``out``, the result of ``func(*args, **kwargs)`` on meta tensors."""
Repair = Callable[[NodeSizes], None]
"""Changes the numbers written into a node's arguments that pruning has made wrong."""
_AnyRule = TypeVar("_AnyRule", bound=Rule)


@dataclass(frozen=True)
class Entry:
    """The rule of an operation; ``births``: it labels results even where no operand has labels."""

    rule: Rule
    births: bool = False


@dataclass(frozen=True)
class Operation:
    """What is known of an ATen operation, whatever it is given.

    ``pointwise``: it gives one tensor, each number of which comes from the numbers at its own place. ``alias``: what it
    gives shows the numbers of its first operand.
    """

    name: str
    rule: Rule | None
    births: bool
    pointwise: bool
    mutable: bool
    alias: bool


class Registry:
    """Rules by operation, repairs by what a graph node calls, and what was found out of each operation met."""

    def __init__(self) -> None:
        self.rules: dict[Any, Entry] = {}
        self.repairs: dict[Any, Repair] = {}
        self.met: dict[Any, Operation] = {}

    def add(self, operation: Any, entry: Entry, sizes: Repair | None, calls: Iterable[Any]) -> list[Any]:
        """Register one operation. Returns what its repair is found by."""
        self.rules[operation] = entry
        self.met.clear()
        if sizes is None:
            return []
        found = [*_calls_of(operation), *calls]
        self.repairs.update(dict.fromkeys(found, sizes))
        return found

    def remove(self, operation: Any, calls: Iterable[Any]) -> None:
        """Take back what :meth:`add` registered and returned."""
        del self.rules[operation]
        for one in calls:
            self.repairs.pop(one, None)
        self.met.clear()

    def repair(self, called: Any) -> Repair | None:
        """The repair for nodes that call this function, method (its name) or class of layers."""
        return self.repairs.get(called) or self.repairs.get(getattr(called, "overloadpacket", None))


REGISTRY = Registry()


def _calls_of(operation: Any) -> list[Any]:
    """What calls an operation: it itself, the method of its name, and torch's functions of its name."""
    name = operation.__name__
    functions = [getattr(home, name) for home in (torch, F) if hasattr(home, name)]
    return [operation, *([name, *functions] if operation is getattr(torch.ops.aten, name, None) else [])]


def rule(
    *operations: Any, sizes: Repair | None = None, calls: Iterable[Any] = (), births: bool = False
) -> Callable[[_AnyRule], _AnyRule]:
    """Decorates the rule of ``operations`` (``torch.ops.aten.view``), which share a repair of ``sizes``.

    ``calls``: what else than the operation's own name leads to it in a graph: functions, names of methods, layers.
    Where no operation is given, they are what torch makes of operations that have rules, with sizes of its own.
    """

    def register(function: _AnyRule) -> _AnyRule:
        if not operations and sizes is not None:
            REGISTRY.repairs.update(dict.fromkeys(calls, sizes))
        for operation in operations:
            REGISTRY.add(operation, Entry(function, births), sizes, calls)
        return function

    return register


def register_rule(op: Any, rule: Rule, *, sizes: Repair | None = None, calls: Iterable[Any] = ()) -> Registration:
    """Tell the analysis what an operation does to channels. What has no rule freezes all that it touches.

    An activation of your own, made with ``torch.library``, is pointwise as those of torch are::

        @torch.library.custom_op("mine::leaky", mutates_args=())
        def leaky(x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0, x, x / 8)
        leaky.register_fake(torch.empty_like)
        edp_fx.register_rule(torch.ops.mine.leaky, edp_fx.channels.rules.pointwise)

    Args:
        op: ``torch.ops.LIBRARY.NAME``, or what ``torch.library.custom_op`` gives. It needs a fake implementation.
        rule: a ready one of :mod:`edp_fx.channels.rules` (``pointwise``, ``view``, ``spatial(2)`` …), or a function
            ``(sweep, func, args, kwargs, out)``. That reads the labels of operands by ``sweep.labels(tensor)``, gives
            the result its own by ``sweep.set(out, factors)``, and says by ``sweep.tie``, ``sweep.collapse`` and
            ``sweep.freeze`` which labels become one and which must stay; see :class:`edp_fx.channels.sweep.Sweep`.
        sizes: where the operation takes sizes that pruning may make wrong, what puts them right: one of
            :mod:`edp_fx.channels.rules.sizes`, or a function of a :class:`~edp_fx.channels.rules.sizes.NodeSizes`.
        calls: functions, names of methods or classes of layers whose nodes ``sizes`` repairs, beside ``op``.

    Returns:
        A handle: ``remove()`` takes the rule back, as the end of ``with register_rule(...):`` does.

    Raises:
        AnalysisError: ``op`` is no operation of torch, or has a rule.
    """
    op = getattr(op, "_opoverload", op)  # of torch.library.custom_op
    op = getattr(op, "overloadpacket", op)
    if not isinstance(op, torch._ops.OpOverloadPacket):
        raise AnalysisError(f"register_rule takes an operation such as torch.ops.mine.leaky, not {op!r}")
    if op in REGISTRY.rules:
        raise AnalysisError(f"{op} has a rule: remove() that before another is registered")
    taken = [one for one in calls if REGISTRY.repair(one) is not None]
    if taken:
        raise AnalysisError(f"{op}: the sizes of {taken[0]!r} are repaired by another rule")
    found = REGISTRY.add(op, Entry(rule), sizes, calls)
    return Registration(lambda: REGISTRY.remove(op, found))
