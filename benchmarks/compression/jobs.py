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

Row = dict[str, Any]
Finished = Callable[[Iterable[Task]], Iterator[tuple[Task, Row]]]


@contextmanager
def runner(setting: Setting, jobs: int) -> Iterator[Finished]:
    """A function that gives each of some tasks with its row, in the order in which they end.

    Above one job each has a process with one thread, and latency is not measured. Where some fail the others are
    finished first; then the first failure is raised.
    """
    if jobs == 1:
        images = Images.load(setting)
        yield lambda tasks: ((task, run(task, setting, images)) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(setting,)) as pool:

        def finished(tasks: Iterable[Task]) -> Iterator[tuple[Task, Row]]:
            futures = {pool.submit(_one, task): task for task in tasks}
            failures = []
            for future in as_completed(futures):
                if (failure := future.exception()) is None:
                    yield futures[future], future.result()
                else:
                    print(f"{futures[future]}: {failure}", flush=True)
                    failures.append(failure)
            if failures:
                raise failures[0]

        yield finished


_of_process: dict[str, Any] = {}


def _start(setting: Setting) -> None:
    torch.set_num_threads(1)
    _of_process.update(setting=setting, images=Images.load(setting))


def _one(task: Task) -> Row:
    return run(task, _of_process["setting"], _of_process["images"]) | {"latency_ms": None}
