"""What the model's Python code took from the example: the graph holds for inputs that agree on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class Guard:
    """A value the model's Python code took from the example: the graph holds for inputs that agree on it."""

    node: str
    kind: str
    value: Any
    module: str


@dataclass(frozen=True)
class Taking:
    """How a guard's value was taken: from which node, by which conversion, at which instruction of the user's code."""

    guard: Guard
    node: fx.Node
    convert: Callable[[Any], Any]
    place: tuple[int, int]


def place() -> tuple[int, int]:
    """The instruction of the code being traced that has asked this library for something."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return (id(frame), frame.f_lasti)
