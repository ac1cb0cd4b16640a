"""Weights used in several places: one value is one pair, another value another, and a tie stays a tie."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edp_fx import insert, trace
from edp_fx.channels import analyze
from edp_fx.validation.compare import difference, run
from edp_fx.validation.masking import difference as in_sigmas
from edp_fx.validation.masking import masked_run, pruned_run, random_keep


class Attention(nn.Module):
    """q = k = x + position, v = x: three uses of a third each of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True)
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        self.stem, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q = x + self.position
        return self.head(self.attn(q, q, x, need_weights=False)[0].mean(1))


class Split(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.w, self.out = nn.Parameter(torch.randn(32, 3, 3, 3) * 0.3), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "split":
            a, b = torch.split(self.w, 16)
        elif self.how == "slice":
            a, b = self.w[:16], self.w[16:]
        elif self.how == "view":
            a, b = self.w.view(2, 16, 3, 3, 3).unbind()
        else:  # two of the halves share eight filters
            a, b = self.w[:16], self.w[8:24]
        return self.out(F.conv2d(x, a, padding=1).relu() + F.conv2d(x, b, padding=1).sigmoid())


class Twice(nn.Module):
    """One parameter, used as it is at two strides, and the layer that owns another called functionally too."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.conv = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.3), nn.Conv2d(8, 8, 3, padding=1)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x)).relu()
        x = F.conv2d(x, self.conv.weight, stride=2).relu()
        return self.head(F.conv2d(F.conv2d(x, self.w, padding=1).relu(), self.w, stride=2).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.bias = nn.Linear(48, 24), nn.Parameter(torch.randn(48))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.enc(x.flatten(2)), self.enc.weight.t(), self.bias)


class Chain(nn.Module):
    """A functional layer fed straight by another layer, with a bias that another layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.shift = nn.Linear(48, 24), nn.Linear(48, 16)
        self.w = nn.Parameter(torch.randn(16, 24))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.enc(x.flatten(2)), self.w, self.shift.weight[:, 0])
        return F.linear(y, self.w.t())


CASES = {
    "attention": (Attention, 16, {"attn.in_proj", "attn.in_proj_2", "attn.in_proj_3"}),
    "split": (lambda: Split("split"), 8, {"w", "w_2"}),
    "slice": (lambda: Split("slice"), 8, {"w", "w_2"}),
    "view": (lambda: Split("view"), 8, {"w", "w_2"}),
    "overlap": (lambda: Split("overlap"), 8, set()),
    "twice": (Twice, 16, {"w", "conv"}),
    "tied": (Tied, 4, set()),
    "chain": (Chain, 4, set()),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_function_stays(kind: str) -> None:
    make, size, pairs = CASES[kind]
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(2, 3, size, size).double() if kind not in ("tied", "chain") else torch.randn(2, 5, 6, 8).double()
    graph = insert(trace(model, x))
    for train in (False, True):
        found = difference(run(model, (x,), train=train), run(graph, (x,), train=train))
        assert max(found.values()) < 1e-10, (train, found)
    assert pairs <= set(graph.meta["edp_fx.reports"][-1].rewritten)


@pytest.mark.parametrize("kind", ["overlap", "tied"])
def test_what_overlaps_stays_and_says_so(kind: str) -> None:
    make, size, _ = CASES[kind]
    x = torch.randn(2, 3, size, size) if kind == "overlap" else torch.randn(2, 5, 6, 8)
    graph = insert(trace(make(), x))
    assert any("in another form" in one.reason for one in graph.meta["edp_fx.reports"][-1].refused)


def test_one_weight_at_two_strides_is_one_pair() -> None:
    graph = insert(trace(Twice(), torch.randn(2, 3, 16, 16)))
    pairs = [graph.get_submodule(name) for name in ("w_pair", "w_2")]
    assert pairs[0].basis.weight is pairs[1].basis.weight
    assert pairs[0].coefficient.weight is pairs[1].coefficient.weight
    assert {pair.basis.stride for pair in pairs} == {(1, 1), (2, 2)}


@pytest.mark.parametrize("kind", ["split", "slice", "view", "overlap"])
def test_channels_of_a_parameter_in_two_layers(kind: str) -> None:
    """An index into the tuple that split gives is no index into the parameter."""
    torch.manual_seed(0)
    gm = trace(Split(kind).double(), torch.randn(2, 3, 8, 8).double())
    graph = analyze(gm, torch.randn(2, 3, 8, 8).double())
    keep, x = random_keep(graph, 0), (torch.randn(3, 3, 8, 8).double(),)
    assert keep or kind in ("overlap", "view")
    before = copy.deepcopy(gm)
    assert in_sigmas(masked_run(gm, graph, keep, x), pruned_run(before, graph, keep, x)) < 1e-9
