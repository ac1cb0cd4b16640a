"""The generator itself: what it writes is valid, the same for the same seed, and fails visibly where it should."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings

from edp_fx.leaves import tensors_of
from tests.fuzz.blocks import BLOCKS
from tests.fuzz.pool import judged
from tests.fuzz.programs import Plan, plan, programs, write
from tests.fuzz.verdict import DEAD, RIGHT, kind_of


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_what_is_written_runs_at_every_batch_size(made: Plan) -> None:
    program = write(made)
    model = program.build()
    for batch in (2, 3):
        for mode in (True, False):
            outputs = tensors_of(model.train(mode)(*[torch.randn(batch, *shape) for shape in program.shapes]))
            assert outputs and all(len(one) == batch and one.isfinite().all() for one in outputs)


def test_a_seed_is_one_program() -> None:
    assert write(plan(3)).source == write(plan(3)).source
    assert len({write(plan(seed)).source for seed in range(100)}) == 100
    assert len({name for seed in range(400) for name, _ in plan(seed).blocks}) == len(BLOCKS)


def test_a_plan_stays_meaningful_without_a_block() -> None:
    made = Plan(0, "image", "tensor", (("plain_conv", 1), ("residual", 2), ("fused_qkv", 3)))
    assert "BatchNorm2d" not in write(made.without({1})).source
    assert "qkv" in write(made.without({1})).source


def test_a_process_that_dies_or_hangs_is_counted_and_the_rest_goes_on() -> None:
    tasks: list[dict[str, Any]] = [
        {"seed": seed, "plan_seed": 1, "inputs": "image", "ending": "tensor", "blocks": []} for seed in (1, 2, 3)
    ]
    tasks[0]["blocks"] = [["no such block", 0]]  # ends the worker
    found = {one["seed"]: one["verdict"] for one in judged(tasks)}
    assert found == {1: DEAD, 2: RIGHT, 3: RIGHT}


def test_reasons_are_counted_by_kind() -> None:
    one = "prune: the sizes at node 'view_3' (view) cannot follow: shape [2, 3] is invalid"
    other = "prune: the sizes at node 'reshape' (reshape) cannot follow: shape [4] is invalid"
    assert kind_of(one) == kind_of(other)
