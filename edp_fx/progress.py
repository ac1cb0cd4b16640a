"""Telling how far something is that takes minutes and has no epochs."""

from __future__ import annotations

import os
from collections.abc import Callable

Look = Callable[[str, int, int], None]  # what is done, rounds of it made, rounds in all


def nothing(what: str, done: int, total: int) -> None:
    """Tell no one."""


def speaks() -> bool:
    """Whether this process is the one of a distributed run that tells and writes."""
    return int(os.environ.get("RANK", "0")) == 0
