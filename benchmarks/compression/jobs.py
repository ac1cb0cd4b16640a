"""Runs tasks one after another, or several at a time where a GPU has room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
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
    if jobs == 1:
        images = Images.load(setting)
        yield lambda tasks: ((task, _row(task, setting, images, alone=True)) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(setting,)) as pool:

        def ended(tasks: Iterable[Task]) -> Iterator[Ended]:
            futures = {pool.submit(_of_process, task): task for task in tasks}
            return ((futures[future], future.exception() or future.result()) for future in as_completed(futures))

        yield ended


def _row(task: Task, setting: Setting, images: Images, *, alone: bool) -> dict[str, Any] | Exception:
    """A run that fails, on whatever library, must not take the others with it."""
    try:
        return run(task, setting, images, alone=alone)
    except Exception as error:
        return error


_shared: dict[str, Any] = {}


def _start(setting: Setting) -> None:
    torch.set_num_threads(1)
    _shared.update(setting=setting, images=Images.load(setting))


def _of_process(task: Task) -> dict[str, Any] | Exception:
    return _row(task, **_shared, alone=False)
