"""What the registering functions return: a handle that takes back what a user added."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Registration:
    """Something of the user's own that takes part, until :meth:`remove`, or to the end of a ``with`` block."""

    def __init__(self, take_back: Callable[[], object]) -> None:
        self._take_back: Callable[[], object] | None = take_back

    def remove(self) -> None:
        """Make it unknown again. A second call does nothing."""
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back()

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
