"""How a stage says that something is wrong."""

from __future__ import annotations

from typing import Any

from edp_fx.errors import EdpError

Figures = dict[str, Any]


class StageFailed(EdpError):
    """A stage found something wrong; ``figures`` is what it measured until then."""

    def __init__(self, reason: str, figures: Figures) -> None:
        super().__init__(reason)
        self.figures = figures
