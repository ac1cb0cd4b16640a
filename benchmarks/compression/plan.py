"""Which tasks, the most informative first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.compression.methods import METHODS, TORCH_PRUNING
from benchmarks.compression.trial import NETWORKS, Task

CORE = "resnet20"
TARGETS = (0.15, 0.3)
# depthwise layers have no ranks to lose: with every other layer at rank 1 MobileNetV2 still costs 0.1503 of its MACs
IMPOSSIBLE = {("mobilenetv2", "svd", 0.15)}
AIMLESS = {(CORE, "edp-lambda", 0.3)}  # asks for no MACs: the run to 0.15 is all it has
OURS = ("thin", "edp-budget")
FIRST = (*OURS, *TORCH_PRUNING)


def plan(rows: Mapping[Task, Mapping[str, Any]]) -> Iterator[list[Task]]:
    """All tasks in two parts: the second repeats the peer that did best in the first.

    ``rows`` holds what is finished, and is looked at again for the second part.
    """
    others = [method for method in METHODS if method not in ("dense", *FIRST)]
    first = [(CORE, method, target, 0) for methods in (FIRST, others) for target in TARGETS for method in methods]
    yield _possible([(CORE, "dense", 1.0, 0), *first])
    peers = {target: best_peer(rows, target) for target in TARGETS}
    second: list[tuple[str, str, float, int]] = [(CORE, "dense", 1.0, seed) for seed in (1, 2)]
    for target in TARGETS:
        second += [(CORE, method, target, seed) for seed in (1, 2) for method in (*OURS, peers[target])]
    for network in NETWORKS:
        if network != CORE:
            second.append((network, "dense", 1.0, 0))
            second += [(network, method, TARGETS[0], 0) for method in (*OURS, peers[TARGETS[0]], "svd")]
    yield _possible(second)


def _possible(tasks: Iterable[tuple[str, str, float, int]]) -> list[Task]:
    return [Task(*task) for task in tasks if task[:3] not in IMPOSSIBLE | AIMLESS]


def best_peer(rows: Mapping[Task, Mapping[str, Any]], target: float) -> str:
    """The method of Torch-Pruning that did best on the core network with seed 0."""

    def accuracy(method: str) -> float:
        return float(rows.get(Task(CORE, method, target, 0), {}).get("accuracy", 0.0))

    return max(TORCH_PRUNING, key=accuracy)


def quick() -> list[Task]:
    """Every method once on the core network, and the two ways of pruning on the other networks."""
    core = [Task(CORE, method, 1.0 if method == "dense" else 0.3, 0) for method in METHODS]
    pruners = ("edp-budget", TORCH_PRUNING[0])
    return core + [Task(one, method, 0.3, 0) for one in NETWORKS if one != CORE for method in pruners]
