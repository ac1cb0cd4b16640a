"""Worker processes that judge one program after another, so that one that dies or hangs is counted and replaced."""

from __future__ import annotations

import functools
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.verdict import DEAD

ROOT = Path(__file__).parents[2]
RENEW = 150  # programs a process judges: what torch caches stays small


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    done: int = 0
    task: Any = None
    began: float = 0.0
    buffer: bytes = b""


def _start() -> _Worker:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return _Worker(
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
        )
    )


def judged(tasks: Iterable[Any], jobs: int = 1, timeout: float = 300) -> Iterator[dict[str, Any]]:
    """The verdict of every task, as they come.

    Args:
        tasks: what a worker's :func:`serve` takes, one JSON value each.
        jobs: processes.
        timeout: seconds a program may take before it counts as dead.
    """
    waiting = iter(tasks)
    selector = selectors.DefaultSelector()
    workers: list[_Worker] = []

    def give(worker: _Worker) -> bool:
        task = next(waiting, None)
        if task is None:
            return False
        worker.task, worker.began = task, time.monotonic()
        assert worker.process.stdin is not None
        worker.process.stdin.write(json.dumps(task).encode() + b"\n")
        worker.process.stdin.flush()
        return True

    def stop(worker: _Worker) -> None:
        selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        workers.remove(worker)
        worker.process.kill()
        worker.process.communicate()

    def begin() -> None:
        worker = _start()
        if give(worker):
            workers.append(worker)
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        else:
            worker.process.kill()
            worker.process.communicate()

    try:
        for _ in range(jobs):
            begin()
        while workers:
            for key, _ in selector.select(timeout=1.0):
                worker = key.data
                data = os.read(key.fd, 1 << 16)
                worker.buffer += data
                if not data:
                    code = worker.process.wait()
                    yield _dead(worker, f"the process ended with {code}")
                    stop(worker)
                    begin()
                elif worker.buffer.endswith(b"\n"):
                    result, worker.buffer = json.loads(worker.buffer), b""
                    worker.done += 1
                    yield result
                    if worker.done >= RENEW:
                        stop(worker)
                        begin()
                    elif not give(worker):
                        stop(worker)
            for worker in [one for one in workers if time.monotonic() - one.began > timeout]:
                yield _dead(worker, f"took more than {timeout:g} s")
                stop(worker)
                begin()
    finally:
        for worker in list(workers):
            stop(worker)


def _dead(worker: _Worker, reason: str) -> dict[str, Any]:
    seconds = round(time.monotonic() - worker.began, 2)
    seed = worker.task["seed"]
    return {"seed": seed, "verdict": DEAD, "stage": "", "reason": reason, "traceback": "", "seconds": seconds}


def serve() -> None:
    """Judge what comes on standard input, a line a program, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a program prints is nobody's answer
    import torch
    from torch.onnx._internal._lazy_import import onnxscript_apis

    from tests.fuzz.programs import Plan, plan
    from tests.fuzz.verdict import judge

    torch.set_num_threads(1)
    onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)  # made anew at each export
    for line in sys.stdin:
        task = json.loads(line)
        made = plan(task["seed"])
        if "blocks" in task:
            made = Plan(task["plan_seed"], task["inputs"], task["ending"], tuple(map(tuple, task["blocks"])))
        answers.write(json.dumps(judge(made, task["seed"])) + "\n")
        answers.flush()
