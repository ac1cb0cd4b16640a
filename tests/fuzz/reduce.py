"""A failing program made small: blocks are left out while it fails in the same way."""

from __future__ import annotations

from typing import Any

from tests.fuzz.pool import judged
from tests.fuzz.programs import Plan, plan
from tests.fuzz.verdict import kind_of


def task_of(made: Plan, seed: int) -> dict[str, Any]:
    """What a worker takes to judge this plan."""
    return {
        "seed": seed, "plan_seed": made.seed, "inputs": made.inputs, "ending": made.ending, "blocks": made.blocks,
    }  # fmt: skip


def reduced(seed: int, timeout: float = 300) -> tuple[Plan, dict[str, Any]]:
    """The smallest plan found that fails as the seed's does, and its verdict."""

    def verdict(one: Plan) -> dict[str, Any]:
        (found,) = judged([task_of(one, seed)], timeout=timeout)
        return found

    def kind(found: dict[str, Any]) -> tuple[str, str, str]:
        return found["verdict"], found["stage"], kind_of(found["reason"])[:60]

    best = plan(seed)
    found = verdict(best)
    wanted = kind(found)
    progress = True
    while progress:
        progress = False
        smaller = [best.without({i}) for i in range(len(best.blocks))]
        smaller += [Plan(best.seed, best.inputs, e, best.blocks) for e in ("features", "tensor") if best.ending not in
                    ("features", "tensor")]  # fmt: skip
        if best.inputs != "image":
            smaller.append(Plan(best.seed, "image", best.ending, best.blocks))
        for one in smaller:
            result = verdict(one)
            if kind(result) == wanted:
                best, found, progress = one, result, True
                break
    return best, found
