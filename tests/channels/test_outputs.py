"""What a model gives back keeps its size, whatever it is packed into."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edp_fx import analyze


@dataclass
class Result:
    logits: Tensor
    features: Any


class Output(OrderedDict):
    pass


PACKED = {
    "dataclass": Result,
    "dataclass in a dataclass": lambda a, b: Result(a, Result(b, None)),
    "dictionary in a dataclass": lambda a, b: Result(a, {"deep": [b]}),
    "mapping": lambda a, b: Output(logits=a, features=b),
}


class Net(nn.Module):
    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.a, self.b, self.head, self.pack = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(32, 10), pack

    def forward(self, x: Tensor) -> Any:
        features = self.b(self.a(x).relu())
        return self.pack(self.head(features.mean((2, 3))), features)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_outputs_are_frozen(kind: str) -> None:
    graph = analyze(Net(PACKED[kind]), torch.randn(2, 3, 12, 12))
    assert [group.name for group in graph.prunable] == ["a"]
    assert "an output of the model" in graph.explain("b")
