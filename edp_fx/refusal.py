"""What is left alone, and why: said in every report, never in silence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """A node, or a module's path, that the front end or a pass left alone, and why."""

    node: str
    reason: str
