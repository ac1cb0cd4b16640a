"""Tensors are found in whatever a forward may return."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from edp_fx.leaves import leaves, map_tensors, tensors_of


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    name: str
    more: Any = None


class Plain:
    def __init__(self, a: Tensor, b: Any) -> None:
        self.a, self.b = a, b


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Tensor, b: Any) -> None:
        self.a, self.b = a, b


class Output(OrderedDict):  # as Hugging Face's
    pass


Point = namedtuple("Point", ["x", "y"])
A, B = torch.zeros(2), torch.ones(3)
CONTAINERS = [
    [A, (B, 1)],
    {"a": A, "b": [B, None]},
    Frozen(A, "name", {"deep": B}),
    Plain(A, Slotted(B, 3)),
    Slotted(A, Plain(B, "text")),
    Output(a=A, b=B),
    Point(A, Point(B, 2)),
    torch.return_types.max((A, B)),
]


@pytest.mark.parametrize("value", CONTAINERS, ids=lambda value: type(value).__name__)
def test_every_tensor_is_found_and_replaced(value: Any) -> None:
    assert [id(one) for one in tensors_of(value)] == [id(A), id(B)]
    doubled = map_tensors(lambda t: t + 1, value)
    assert type(doubled) is type(value)
    assert [one.tolist() for one in tensors_of(doubled)] == [[1.0, 1.0], [2.0, 2.0, 2.0]]
    assert [id(one) for one in tensors_of(value)] == [id(A), id(B)]  # the one given is as it was


def test_what_holds_itself_ends() -> None:
    loop: list[Any] = [A]
    loop.append(loop)
    assert tensors_of(loop) == [A]
    assert leaves(3) == [3]
    assert leaves(None) == [None]
