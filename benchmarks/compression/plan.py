"""Which tasks, the most informative first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.compression.methods import METHODS, TORCH_PRUNING
from benchmarks.compression.trial import NETWORKS, Task

CORE = "resnet20"
TARGETS = (0.15, 0.3)
# depthwise layers have no ranks to lose: with every other layer at rank 1 MobileNetV2 still costs 0.1503 of its MACs
IMPOSSIBLE = {("mobilenetv2", "svd")}
FIRST = ("thin", "edp-budget", *TORCH_PRUNING)


def plan(rows: Mapping[Task, Mapping[str, Any]]) -> Iterator[Task]:
    """All tasks; ``rows`` holds what is finished, and is looked at again whenever a choice depends on it."""
    yield Task(CORE, "dense", 1.0, 0)
    for target in TARGETS:
        for method in FIRST:
            yield Task(CORE, method, target, 0)
    for target in TARGETS:
        for method in METHODS:
            if method not in ("dense", *FIRST):
                yield Task(CORE, method, target, 0)
        for seed in (1, 2):
            if target == TARGETS[0]:
                yield Task(CORE, "dense", 1.0, seed)
            for method in ("thin", "edp-budget", best_peer(rows, target)):
                yield Task(CORE, method, target, seed)
    for network in NETWORKS:
        if network != CORE:
            yield Task(network, "dense", 1.0, 0)
            for method in ("thin", "edp-budget", best_peer(rows, TARGETS[0]), "svd"):
                if (network, method) not in IMPOSSIBLE:
                    yield Task(network, method, TARGETS[0], 0)


def best_peer(rows: Mapping[Task, Mapping[str, Any]], target: float) -> str:
    """The method of Torch-Pruning that did best on the core network with seed 0."""

    def accuracy(method: str) -> float:
        return float(rows.get(Task(CORE, method, target, 0), {}).get("accuracy", 0.0))

    return max(TORCH_PRUNING, key=accuracy)


def quick() -> Iterator[Task]:
    """Every method once on the core network, and the two ways of pruning on the other networks."""
    for method in METHODS:
        yield Task(CORE, method, 1.0 if method == "dense" else 0.3, 0)
    for network in NETWORKS:
        if network != CORE:
            for method in ("edp-budget", TORCH_PRUNING[0]):
                yield Task(network, method, 0.3, 0)
