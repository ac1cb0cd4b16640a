"""Live progress of a run in the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol


class Watcher(Protocol):
    """Told what a run does. Every number is a plain float."""

    def look(self, what: str, done: int, total: int) -> None:
        """Images are looked at without training: ``done`` of ``total`` rounds of ``what``."""

    def begin(self, title: str, epochs: int, steps: int, target: float | None) -> None:
        """A stage of ``epochs`` epochs and ``steps`` optimiser steps starts; ``target``: share of the
        cost."""

    def step(self, epoch: int, step: int, loss: float, cost: float | None) -> None:
        """An optimiser step was made."""

    def epoch(self, epoch: int, loss: float, metric: float | None, cost: float | None) -> None:
        """An epoch ended; ``metric``: of the task, on the validation images."""

    def end(self) -> None:
        """The stage is over."""


class Silent:
    """Shows nothing."""

    def look(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def begin(self, title: str, epochs: int, steps: int, target: float | None) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int, loss: float, cost: float | None) -> None:
        """Nothing."""

    def epoch(self, epoch: int, loss: float, metric: float | None, cost: float | None) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class RichWatcher:
    """A progress bar with epoch, loss, cost now / target and the time left; one line stays per epoch."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console

        self.console = console or Console()
        self._progress: Any = None
        self._task: Any = None
        self._target: float | None = None
        self._epochs = 0

    def __enter__(self) -> RichWatcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def look(self, what: str, done: int, total: int) -> None:
        """Print what begins, and move a bar."""
        if done == 0:
            self.console.print(what, highlight=False)
            self._start(what.partition(" ")[0], total)
        elif self._progress is not None:
            self._progress.update(self._task, completed=done)
        if done == total:
            self.end()

    def begin(self, title: str, epochs: int, steps: int, target: float | None) -> None:
        """Start a bar."""
        self._target, self._epochs, self._title = target, epochs, title
        self._start(title, steps)

    def _start(self, title: str, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.end()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=steps, state="")
        self._progress.start()

    def step(self, epoch: int, step: int, loss: float, cost: float | None) -> None:
        """Move the bar."""
        if self._progress is not None:
            state = f"epoch {epoch + 1}/{self._epochs}  loss {loss:.3f}{self._cost(cost)}"
            self._progress.update(self._task, completed=step, state=state)

    def epoch(self, epoch: int, loss: float, metric: float | None, cost: float | None) -> None:
        """Print the epoch's line."""
        judged = "" if metric is None else f"  validation {metric:.4f}"
        number = f"epoch {epoch + 1:>3}/{self._epochs}"
        line = f"{self._title:<11} {number}  loss {loss:.4f}{judged}{self._cost(cost)}"
        self.console.print(line, highlight=False)

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _cost(self, cost: float | None) -> str:
        if cost is None:
            return ""
        goal = "" if self._target is None else f" / {self._target:.3f}"
        return f"  MACs {cost:.3f}{goal}"
