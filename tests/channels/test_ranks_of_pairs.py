"""Ranks of a pair are the axis between its two layers; what else touches only a pair is channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edp_fx
from edp_fx.inputs import randomize_

TOKENS = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """One head: the products of queries and keys are of outputs of one layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Recurrent(nn.Module):
    """A layer that reads what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(x).relu()
        return self.step(x)


@pytest.mark.parametrize("model", [Attention(), Recurrent()], ids=["attention", "recurrent"])
def test_only_what_is_between_the_two_layers_is_ranks(model: nn.Module) -> None:
    gm = edp_fx.insert(edp_fx.trace(model, TOKENS))
    graph = edp_fx.analyze(gm, TOKENS)
    ranks = [group for group in graph.groups if group.kind == "rank"]
    assert [{member.layer.rpartition(".")[2] for member in one.members} for one in ranks] == [
        {"basis", "coefficient"} for _ in ranks
    ]
    assert all({member.role for member in one.members} == {"producer", "consumer"} for one in ranks)
    assert ranks


def test_ranks_of_attention_go_and_leave_its_function() -> None:
    torch.manual_seed(0)
    model = Attention()
    randomize_(model)
    gm = edp_fx.insert(edp_fx.trace(model, TOKENS)).train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(
        gm, TOKENS, optimizer=optimizer, total_steps=8, macs=0.6, kinds=("rank",), decisions=2, align=1
    )
    for _ in range(8):
        optimizer.zero_grad()
        gm(TOKENS).square().mean().backward()
        optimizer.step()
        compressor.step()
    compressor.finish()
    assert compressor.macs <= 0.6
    assert compressor.max_rel_diff < 1e-4
