"""Models in torch's wrappers are traced under their own names; what has lost its Python code is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from edp_fx import trace
from edp_fx.errors import ModelError, TraceError
from tests.frontend.test_frontend import assert_same


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.1)), nn.BatchNorm1d(4))


def test_wrappers_are_taken_off() -> None:
    model = network()
    wrappers = (torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel)
    for wrapped in (*(wrap(model) for wrap in wrappers), torch.compile(nn.DataParallel(model))):
        graph = trace(wrapped, torch.randn(2, 6))
        assert list(graph.state_dict()) == list(model.state_dict())
        assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1.0", "1.1", "2"]


def test_a_wrapped_part_is_taken_out_and_the_model_keeps_it() -> None:
    model = network()
    plain = copy.deepcopy(model)
    model[1] = torch.compile(model[1])
    model[0].compile()
    graph = trace(model, torch.randn(2, 6))
    assert list(graph.state_dict()) == list(plain.state_dict())
    assert_same(plain, graph, torch.randn(3, 6))
    assert type(model[1]) is not nn.Sequential


def test_what_cannot_be_unwrapped_is_refused() -> None:
    class Sharded(FSDPModule, nn.Linear):  # as fully_shard makes it
        def __new__(cls, *args: Any) -> Any:
            return object.__new__(cls)

    for model, says in (
        (torch.jit.script(network()), "was scripted"),
        (torch.jit.trace(network().eval(), torch.randn(2, 6)), "was scripted"),
        (nn.Sequential(Sharded(6, 6)), "0 is sharded"),
    ):
        with pytest.raises(TraceError, match=says):
            trace(model, torch.randn(2, 6))
    with pytest.raises(ModelError, match="ExportedProgram"):
        trace(torch.export.export(network().eval(), (torch.randn(2, 6),)), torch.randn(2, 6))
