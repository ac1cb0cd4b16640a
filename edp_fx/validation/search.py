"""Which pieces of a change are to blame, found by halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Piece = TypeVar("Piece")


def to_blame(
    pieces: Sequence[Piece], difference: Callable[[Sequence[Piece]], float], tolerance: float
) -> dict[Piece, float]:
    """The fewest pieces without which the rest makes no difference, and what each makes by itself.

    Pieces that differ only together all are to blame. What does not even compare (not a number) differs.
    """
    found: dict[Piece, float] = {}

    def search(part: Sequence[Piece], by: float | None = None) -> None:
        by = difference(part) if by is None else by
        if by <= tolerance:
            return
        before = len(found)
        if len(part) > 1:
            search(part[: len(part) // 2])
            search(part[len(part) // 2 :])
        if len(found) == before:
            found.update(dict.fromkeys(part, by))

    left = list(pieces)
    while left:
        by = difference(left)
        if by <= tolerance:
            break
        search(left, by)
        left = [one for one in left if one not in found]
    return found
