"""Runs tasks one after another, or several at a time where a GPU has room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.compression.results import run
from benchmarks.compression.trial import Images, Setting, Task

Ended = tuple[Task, dict[str, Any] | Exception]
Runner = Callable[[Iterable[Task]], Iterator[Ended]]


@contextmanager
def runner(setting: Setting, jobs: int) -> Iterator[Runner]:
    """A function that gives each of some tasks with its row, or with why it has none, in the order in which they end.

    Above one job each has a process with one thread, and latency is not measured: they share the processor.
    """
    began = datetime.now().isoformat(timespec="minutes")
    if jobs == 1:
        images = Images.load(setting)
        yield lambda tasks: ((task, _row(task, setting, images, began, alone=True)) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(setting, began)) as pool:

        def ended(tasks: Iterable[Task]) -> Iterator[Ended]:
            futures = {pool.submit(_of_process, task): task for task in tasks}
            return ((futures[future], future.exception() or future.result()) for future in as_completed(futures))

        yield ended


def _row(task: Task, setting: Setting, images: Images, began: str, *, alone: bool) -> dict[str, Any] | Exception:
    """A run that fails, on whatever library, must not take the others with it; ``began`` says which runs stood beside
    it."""
    try:
        return run(task, setting, images, alone=alone) | {"began": began}
    except Exception as error:
        return error


_shared: dict[str, Any] = {}


def _start(setting: Setting, began: str) -> None:
    torch.set_num_threads(1)
    _shared.update(setting=setting, images=Images.load(setting), began=began)


def _of_process(task: Task) -> dict[str, Any] | Exception:
    return _row(task, **_shared, alone=False)
