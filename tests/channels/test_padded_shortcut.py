"""Shortcuts without parameters (He et al., option A): zero channels are padded, and go with what they are added to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edp_fx.channels import analyze
from edp_fx.frontend import trace
from edp_fx.inputs import randomize_
from edp_fx.passes.prune import prune
from edp_fx.validation.masking import difference, masked_run, plain_run, pruned_run, random_keep


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.added, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.added:
            before = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return F.relu(x + y)


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(8, 8, 1), Block(8, 15, 2), Block(15, 15, 1), Block(15, 32, 2)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    randomize_(model)
    return model.double().eval()


def test_every_channel_of_every_stage_can_go() -> None:
    graph = analyze(network(), torch.randn(2, 3, 16, 16).double())
    free: dict[str, int] = {}
    for group in graph.prunable:
        assert group.exact
        for member in group.members:
            if member.role == "producer":
                free[member.parameter] = free.get(member.parameter, 0) + int((member.owner >= 0).sum())
    assert [free[f"{k}.conv2.weight"] for k in (1, 2, 3, 4)] == [8, 15, 15, 32]


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_pruned_twice_it_computes_what_it_did(share: float) -> None:
    x, other = (torch.randn(2, 3, 16, 16).double(),), (torch.randn(3, 3, 16, 16).double(),)
    gm = trace(network(), x)
    for seed in range(2):
        graph = analyze(gm, x)
        keep = random_keep(graph, seed, share)
        masked = masked_run(gm, graph, keep, other)
        assert difference(masked, pruned_run(gm, graph, keep, other)) < 1e-9
        assert difference(masked, plain_run(gm, other)) > 0.1
        gm = prune(copy.deepcopy(gm), graph, keep).graph_module


def test_all_that_was_padded_can_go() -> None:
    x = (torch.randn(2, 3, 16, 16).double(),)
    gm = trace(network(), x)
    graph = analyze(gm, x)
    keep = {}
    for group in graph.prunable:
        parameters = {member.parameter for member in group.members}
        if "4.conv2.weight" in parameters and "3.conv2.weight" not in parameters:
            keep[group.id] = np.arange(group.size) == 0
    assert keep
    assert difference(masked_run(gm, graph, keep, x), pruned_run(gm, graph, keep, x)) < 1e-9
