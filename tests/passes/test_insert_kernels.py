"""The other form of the pair: kernels of each input channel, then a coefficient for every output."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import edp_fx
from edp_fx.errors import PassError
from edp_fx.inputs import randomize_
from edp_fx.passes.base import PassResult
from edp_fx.passes.insert import InsertPairs


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
def test_all_kernels_are_the_same_function_and_a_few_are_not(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    randomize_(model, seed=1)
    x = torch.randn(2, 3, 64, 64)
    gm = edp_fx.trace(model, x).eval()
    with torch.no_grad():
        want = gm(x)
        pairs = edp_fx.insert(edp_fx.trace(model, x), form="kernels").eval()
        got = pairs(x)
        fewer = edp_fx.insert(edp_fx.trace(model, x), form="kernels", rank=1).eval()(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert (fewer - want).abs().max() > 1e-2 * want.abs().max()
    report = pairs.meta["edp_fx.reports"][-1]
    assert len(report.rewritten) > 5
    assert not report.facts.get("undone")
    for layer in report.rewritten:
        made = pairs.get_submodule(layer)
        assert isinstance(made.depthwise, nn.Conv2d)
        assert made.depthwise.groups == made.depthwise.in_channels
        assert isinstance(made.pointwise, nn.Conv2d)
        assert made.pointwise.kernel_size == (1, 1)
    assert edp_fx.analyze(pairs, x).groups


def test_what_is_left_has_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 3))
    gm = edp_fx.insert(edp_fx.trace(model, torch.randn(2, 3, 12, 12)), form="kernels", exclude="3")
    report = gm.meta["edp_fx.reports"][-1]
    assert report.rewritten == ["0"]
    assert {one.node: one.reason for one in report.refused}.keys() == {"1", "2", "3"}
    assert {one.node: one.reason for one in report.refused}["3"] == "excluded by option"


def test_wrong_options_and_a_damaged_result_are_refused() -> None:
    x = torch.randn(2, 3, 12, 12)
    for options, message in (({"form": "taps"}, "'taps'"), ({"form": "kernels", "energy": 0.9}, "leave energy out")):
        with pytest.raises(PassError, match=message):
            edp_fx.insert(edp_fx.trace(nn.Conv2d(3, 8, 3), x), **options)  # type: ignore[arg-type]
    one = InsertPairs(form="kernels", rank=1)
    result: PassResult = one(edp_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 3)), x))
    node = next(node for node in result.graph_module.graph.nodes if node.target == "0.pointwise")
    node.target = "0.depthwise"
    with pytest.raises(PassError, match="'0'"):
        one.ensures(result)
