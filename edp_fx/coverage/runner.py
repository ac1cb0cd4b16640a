"""Runs the stages of each model in a process of its own, forked from a warm one, within time and memory limits."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edp_fx.coverage.catalog import Entry
from edp_fx.errors import typed_line


@dataclass
class _Child:
    entry: Entry
    pid: int
    pipe: int
    began: float
    record: dict[str, Any]
    buffer: bytes = b""
    lines: list[str] = field(default_factory=list)


def warm_up(libraries: Iterable[str] = ()) -> None:
    """Import what every child needs, in one thread, so that a fork costs milliseconds.

    ``libraries``: of :data:`edp_fx.coverage.zoos.ZOOS`.
    """
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    from edp_fx.coverage import stages, zoos  # noqa: F401

    torch.set_num_threads(1)
    for library in libraries:
        zoos.warm_up(library)
    gc.freeze()  # a collection in a child passes over all this


def run_stages(entry: Entry, names: Iterable[str], tell: Callable[[str, dict[str, Any]], None]) -> None:
    """Build a model and run stages on it in this process; a stage after a failed trace is not reached.

    Args:
        entry: the model.
        names: of stages, in order.
        tell: called with the name and {ok, reason, seconds, …} of each stage, "build" first.
    """
    from edp_fx.coverage.failure import StageFailed
    from edp_fx.coverage.stages import STAGES
    from edp_fx.coverage.subject import prepare

    subject: Any = None

    def attempt(name: str, work: Callable[[], dict[str, Any]]) -> bool:
        began = time.perf_counter()
        try:
            result = {"ok": True, "reason": None, **work()}
        except StageFailed as error:
            result = {"ok": False, "reason": str(error), **error.figures}
        except MemoryError:
            result = {"ok": False, "reason": "out of memory"}
        except Exception as error:
            result = {"ok": False, "reason": typed_line(error)[:300]}
        result["seconds"] = round(time.perf_counter() - began, 3)
        tell(name, result)
        return bool(result["ok"])

    def build() -> dict[str, Any]:
        nonlocal subject
        subject = prepare(entry)
        return {"size": subject.size, "params": sum(p.numel() for p in subject.model.parameters())}

    alive = attempt("build", build)
    for name in names:
        if alive:
            done = attempt(name, functools.partial(STAGES[name], subject))
            alive = done or name != "trace"
        else:
            tell(name, {"ok": False, "reason": "not reached", "seconds": 0.0})


def _fork(entry: Entry, names: tuple[str, ...], memory: float) -> _Child:
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return _Child(entry, pid, read, time.monotonic(), {"model": entry.name, "family": entry.family})
    code = 1
    try:
        os.close(read)
        limit = int(memory * 2**30) + _virtual_size()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        with os.fdopen(write, "w") as pipe:

            def tell(name: str, result: dict[str, Any]) -> None:
                pipe.write(json.dumps([name, result]) + "\n")
                pipe.flush()

            run_stages(entry, names, tell)
        code = 0
    finally:
        os._exit(code)


def _virtual_size() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _take(child: _Child, data: bytes, names: tuple[str, ...]) -> None:
    child.buffer += data
    *lines, child.buffer = child.buffer.split(b"\n")
    for line in lines:
        name, result = json.loads(line)
        child.record[name] = result


def _finish(child: _Child, names: tuple[str, ...], reason: str) -> dict[str, Any]:
    """The record of a child that has ended: stages it did not report ended with ``reason``."""
    record = child.record
    stopped = True  # the first that is missing was running, or about to
    for name in ("build", *names):
        if name not in record:
            record[name] = {
                "ok": False,
                "reason": reason if stopped else "not reached",
                "seconds": round(time.monotonic() - child.began, 1) if stopped else 0.0,
            }
            stopped = False
    build = record["build"]
    ordered = {"model": record["model"], "family": record["family"], "params": build.get("params")}
    return {**ordered, **{name: record[name] for name in ("build", *names)}}


def _died(status: int) -> str:
    """How a process ended that did not report."""
    code = os.waitstatus_to_exitcode(status)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the process died {how}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def sweep(
    entries: Iterable[Entry], names: Iterable[str], *, jobs: int = 1, timeout: float = 300, memory: float = 12
) -> Iterator[dict[str, Any]]:
    """Run the stages on every entry and give one record a model, as they end.

    Args:
        entries: the models.
        names: stages to run.
        jobs: models at a time, each on one thread.
        timeout: seconds a model may take.
        memory: GiB a model may take beyond the warm process.
    """
    stages = tuple(names)
    waiting = list(entries)[::-1]
    warm_up({entry.zoo for entry in waiting if entry.zoo is not None})
    selector = selectors.DefaultSelector()
    running: dict[int, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                child = _fork(waiting.pop(), stages, memory)
                running[child.pipe] = child
                selector.register(child.pipe, selectors.EVENT_READ)
            ended: list[tuple[_Child, str]] = []
            for key, _ in selector.select(timeout=0.2):
                child = running[key.fd]
                data = os.read(key.fd, 1 << 16)
                if data:
                    _take(child, data, stages)
                else:
                    ended.append((child, ""))
            now = time.monotonic()
            done = {child.pid for child, _ in ended}
            for child in running.values():
                if child.pid not in done and now - child.began > timeout:
                    os.kill(child.pid, signal.SIGKILL)
                    ended.append((child, f"took more than {timeout:g} s"))
            for child, reason in ended:
                selector.unregister(child.pipe)
                os.close(child.pipe)
                del running[child.pipe]
                _, status = os.waitpid(child.pid, 0)
                yield _finish(child, stages, reason or _died(status))
    finally:
        for child in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
