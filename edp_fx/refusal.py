"""What is left alone, and why: said in every report, never in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """A node, or a module's path, that the front end or a pass left alone, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Reason:
    """Why something was left alone, and what."""

    text: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{some(self.nodes)}: {self.text}"


_PLACE = re.compile(r" \((?:\S+ at )?[\w.]+\)")  # "(aten.add.Tensor at add_3)", "(norm1)"


def by_reason(refusals: Iterable[Refusal]) -> list[Reason]:
    """One entry a reason, that of most nodes first; the places that reasons name at their ends make no difference."""
    found: dict[str, dict[str, None]] = {}
    for one in refusals:
        what, colon, clauses = _PLACE.sub("", one.reason).rpartition(": ")
        text = what + colon + "; ".join(dict.fromkeys(clauses.split("; ")))
        found.setdefault(text, {})[one.node] = None
    reasons = [Reason(text, tuple(nodes)) for text, nodes in found.items()]
    return sorted(reasons, key=lambda one: -len(one.nodes))


def some(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 5 more``."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
