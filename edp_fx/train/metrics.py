"""What a run leaves behind to look at: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edp_fx.errors import TrainingError


class MetricsLog:
    """One JSON object a line, and the same numbers as TensorBoard scalars where it is installed.

    A resumed run drops the lines it is about to write again.
    """

    def __init__(self, directory: Path, *, resume_step: int = 0) -> None:
        self.path = directory / "metrics.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if resume_step and self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    if json.loads(line).get("step", 0) <= resume_step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # the line a killed run was writing
        self.path.write_text("".join(f"{line}\n" for line in kept))
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 - open as long as the run
        self._board = self._open_board(directory, resume_step)

    @staticmethod
    def _open_board(directory: Path, resume_step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None  # an extra of development; metrics.jsonl has everything
        return SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step or None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line with ``step`` and ``values``.

        Raises:
            TrainingError: the disk is full.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    if isinstance(value, (int, float)) and not isinstance(value, bool):
                        self._board.add_scalar(name, value, step)
        except OSError as error:
            raise TrainingError(f"{self.path}: {error}; the last checkpoint is intact") from error

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()
