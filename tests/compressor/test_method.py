"""Method: what it takes, what it refuses, what it is written down as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edp_fx.compressor import PRESETS, Budget, Method
from edp_fx.errors import BudgetError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": 2}, "end=2: give a number above 0 to 1"),
        ({"aling": 4}, "method has no 'aling'; did you mean align"),
        ({"align": 0}, "align=0: give a whole number from 1 on"),
        ({"align": 2.5}, "align=2.5: give a whole number"),
        ({"floor": float("nan")}, "floor=nan: give a number from 0 to 1"),
        ({"floor": "0.5"}, "floor=0.5: give a number"),
        ({"policy": "lamda"}, "did you mean lambda"),
        ({"importance": "tailor"}, "did you mean taylor"),
        ({"kinds": "rank"}, "kinds=rank: give names, each one of"),
        ({"kinds": ()}, "give one or more"),
        ({"kinds": ("rank", "chanel")}, "kinds=rank,chanel: give names, each one of rank, channel"),
        ({"kinds": ("rank", "chanel")}, "did you mean channel"),
        ({"macs": -1}, "macs=-1: give a number above 0"),
        ({"macs": 0.3, "params": 0.3}, "give exactly one budget of macs, params, latency, not 2"),
        ({"macs": 0.3, "budget": Budget(macs=0.3)}, "not both"),
        ({"start": 0.5}, "the end must come after the start"),
        ({"strength": 0.1}, "strength does not apply: the policy budget"),
        ({"policy": "lambda", "align": 1, "macs": 0.3}, "budget does not apply: the policy lambda"),
        ({"allow_inexact": 1}, "give true or false"),
    ],
)
def test_a_wrong_value_is_refused_by_the_method_itself(changes: Any, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Method.preset(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(BudgetError, match="did you mean scratch"):
        Method.preset("scrach")


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_down_reads_back_the_same(name: str) -> None:
    method = Method.preset(name)
    if method.policy == "budget":
        method = method.changed(latency=0.4, floor=0.1)
    assert Method.read(json.loads(json.dumps(method.plain()))) == method


def test_text_becomes_what_the_field_takes() -> None:
    for name, text, value in (
        ("end", "3e-1", 0.3),
        ("kinds", "channel, branch", ("channel", "branch")),
        ("kinds", "none", None),
        ("align", "4", 4),
        ("allow_inexact", "yes", True),
        ("budget", {"macs": "0.3"}, Budget(macs=0.3)),
    ):
        assert Method.checked(name, text) == value
