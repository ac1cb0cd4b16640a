"""Seconds of two versions of edp_fx side by side: analysis, insertion and choice, with and without what checks them.

    python -m benchmarks.versions --old DIR [--new DIR] [--repeats 5] [--models NAME,…] [--out FILE.csv]

``DIR`` is a checkout of the repository. Two processes, one a version and each on one thread, take turns figure by
figure, so that what else the machine does meets both alike; new processes every time. Medians of the seconds of
processor time are given, and the median of the ratios. What is timed:

- ``analysis``, ``insertion``: neither is proved or compared (an old version does no more); pairs start from the
  identity or, which is the default, from singular vectors.
- ``checked``: both together, with what checks them where the version has that: ``edp_fx.analyze``, ``edp_fx.insert``.
- ``elements``, ``weighing``, ``choice``, ``last choice``: of a compressor with the kinds that the row names: the flat
  index of what may go, the importance of one step, what goes by one decision, and by the last one in twenty rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

MODELS = "resnet18:64,resnet50:224,mobilenetv2_100:64,vit_tiny_patch16_224:224"
KINDS = ("rank,channel", "channel", "channel,kernel,branch")
COLUMNS = ("model", "size", "what", "old", "new", "ratio", "repeats", "torch")
Timed = tuple[str, float]


def seconds(work: Callable[[], Any], prepare: Callable[[], Any] = lambda: None, times: int = 3) -> float:
    """Least seconds of processor time of several goes, each after ``prepare``."""
    best = float("inf")
    for _ in range(times):
        prepare()
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def checks(gm: Any, inputs: Any) -> Iterator[Timed]:
    """Analysis and insertion, bare and checked."""
    import edp_fx
    from edp_fx.channels import analyze
    from edp_fx.passes.insert import InsertPairs

    copies: list[Any] = []

    def fresh() -> None:
        copies[:] = [copy.deepcopy(gm)]

    def onto(change: Callable[[Any], Any]) -> None:
        change(copies[-1])

    for _ in range(9):  # it is short: several turns
        yield "analysis", seconds(lambda: analyze(gm, inputs))
    checked = seconds(lambda: edp_fx.analyze(gm, inputs), times=4)
    for start, times in (("identity", 4), ("spectral", 2)):
        bare = InsertPairs(start=start)
        yield f"insertion, {start}", seconds(partial(onto, bare), fresh, times)
        inserted = seconds(partial(onto, partial(edp_fx.insert, start=start)), fresh, times)
        yield f"checked, {start}", checked + inserted


def choices(gm: Any, inputs: Any, kinds: str) -> Iterator[Timed]:
    """What a decision costs, of one kind of removals."""
    import numpy as np
    import torch

    import edp_fx
    from edp_fx.compressor import Compressor, parameter_groups
    from edp_fx.compressor.importance import Context

    options: dict[str, Any] = {"kinds": tuple(kinds.split(",")), "floor": 0.15, "align": 1}
    if "method" in Compressor.__init__.__code__.co_varnames:
        options |= {"total_steps": 8, "start": 0.12, "end": 0.5, "decisions": 3, "removals": 2}
    else:
        from edp_fx.compressor import Schedule

        options["schedule"] = Schedule(8, 0.12, 0.5, 3, 2)
    gm = copy.deepcopy(gm)
    if "rank" in kinds:
        gm = edp_fx.insert(gm)
    gm.train()
    optimizer = torch.optim.SGD(parameter_groups(gm, 1e-4), lr=1e-3)
    compressor = Compressor(gm, inputs, optimizer=optimizer, budget=edp_fx.Budget(macs=0.5), **options)
    gm(inputs).square().mean().backward()
    elements, weights = compressor.elements, dict(gm.named_parameters())
    whole = np.ones(elements.n, dtype=bool)
    importance = np.random.default_rng(0).random(elements.n)
    get = getattr(compressor, "_selector", None) or compressor.progress.selector

    def one() -> None:
        get().choose(whole, importance, 0.9 * compressor.dense, end=compressor.target)

    def last() -> None:
        get().choose(whole, importance, compressor.target, fill_from=whole, rounds=20)

    def weigh() -> None:
        with torch.no_grad():
            compressor.importance.accumulate(Context(elements, weights))

    yield f"elements, {kinds}", seconds(lambda: type(elements)(elements.groups, list(weights)), times=15)
    yield f"weighing, {kinds}", seconds(weigh, times=5)
    yield f"choice, {kinds}", seconds(one, times=15)
    yield f"last choice, {kinds}", seconds(last, times=5)


def measured(name: str, size: int) -> Iterator[Timed]:
    """Seconds of everything, of the version that is imported."""
    import timm
    import torch

    import edp_fx
    from edp_fx.inputs import randomize_

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    randomize_(model)
    inputs = torch.randn(2, 3, size, size)
    gm = edp_fx.trace(model, inputs)
    yield from checks(gm, inputs)
    for kinds in KINDS:
        yield from choices(gm, inputs, kinds)


def serve(name: str, size: int) -> None:
    """Print one figure a line, each when asked for by a line on standard input."""
    figures = measured(name, size)
    for _ in sys.stdin:
        print(json.dumps(next(figures, None)), flush=True)


def start(version: Path, name: str, size: int) -> subprocess.Popen[str]:
    """A process that imports the version of that folder."""
    environment = os.environ | {"PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", f"{name}:{size}"]
    return subprocess.Popen(
        command, env=environment, cwd=version, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process: subprocess.Popen[str]) -> Timed | None:
    """The next figure of a process; None after the last."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a process ended with {process.wait()}: {process.args}")
    found: Timed | None = json.loads(answer)
    return found


def compare(old: Path, new: Path, name: str, size: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of one network."""
    import torch

    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        processes = [start(version, name, size) for version in (old, new)]
        while True:
            before, after = (ask(one) for one in processes)
            if before is None or after is None:
                break
            runs.setdefault(after[0], []).append((before[1], after[1]))
        for one in processes:
            one.communicate()
    rows = []
    for what, pairs in runs.items():
        before_median, after_median = (statistics.median(side) for side in zip(*pairs))
        ratio = statistics.median(after / before for before, after in pairs)
        figures = {"old": f"{before_median:.5f}", "new": f"{after_median:.5f}", "ratio": f"{ratio:.3f}"}
        rows.append(
            {"model": name, "size": size, "what": what, **figures, "repeats": repeats, "torch": torch.__version__}
        )
    return rows


def main() -> None:
    """Compare and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", metavar="NAME:SIZE", help="only measure the version that is imported")
    parser.add_argument("--old", type=Path)
    parser.add_argument("--new", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--models", default=MODELS, metavar="NAME:SIZE,…")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/versions.csv"))
    arguments = parser.parse_args()
    if arguments.measure:
        name, size = arguments.measure.split(":")
        serve(name, int(size))
        return
    if arguments.old is None:
        parser.error("--old DIR: a checkout of the version to compare with")
    from benchmarks import rows

    table: list[dict[str, Any]] = []
    for one in arguments.models.split(","):
        name, size = one.split(":")
        found = compare(arguments.old.resolve(), arguments.new.resolve(), name, int(size), arguments.repeats)
        for row in found:
            print(*row.values(), sep="\t", flush=True)
        table += found
    rows.write(arguments.out, COLUMNS, table)


if __name__ == "__main__":
    main()
