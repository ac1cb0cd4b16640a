"""Sizes written into a graph follow the pruned channels, whatever calls them and however they are given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edp_fx
from edp_fx.channels import ChannelGraph, analyze
from edp_fx.frontend import trace
from edp_fx.validation.masking import difference, masked_run, pruned_run, random_keep


def off(graph: ChannelGraph, keep: dict[int, np.ndarray], x: Tensor) -> float:
    """How far the pruned network is from the masked one."""
    return difference(masked_run(graph.gm, graph, keep, (x,)), pruned_run(graph.gm, graph, keep, (x,)))


def _cleared(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:4] = 0
    return x


# of a tensor (batch, 8, 4, 4)
LITERALS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(-1, 2, 4, 4, 4).flatten(1, 2),
    "view by name": lambda x: x.flatten(2).view(size=(-1, 8, 4, 4)),
    "view as a shape": lambda x: x.flatten(2).view(x.shape),
    "view as a type": lambda x: x.view(torch.int64).view(torch.float64),
    "reshape by name": lambda x: torch.reshape(x, shape=(-1, 2, 4, 4, 4)).flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 4)).flatten(1, 2),
    "unflatten by name": lambda x: torch.unflatten(x, dim=1, sizes=(2, 4)).flatten(1, 2),
    "unflatten layer": nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2)),
    "view as another's shape": lambda x: x.flatten(2).mul(2).view((*x.size()[:-2], 2, 8)).flatten(2).view(x.shape),
    "view as heads": lambda x: x.permute(0, 2, 3, 1).reshape((*x.size()[:1], 16, 2, 4)).flatten(2).mT,
    "repeated": lambda x: x * x.mean((1, 2, 3), keepdim=True).repeat_interleave(8, 1),
    "repeated by name": lambda x: x * torch.repeat_interleave(x.mean((1, 2, 3), keepdim=True), repeats=8, dim=1),
    "expand": lambda x: x * x.mean((1, 2, 3), keepdim=True).expand(-1, 8, 4, 4),
    "expand by a list": lambda x: x * x.mean((1, 2, 3), keepdim=True).expand([-1, 8, 4, 4]),
    "broadcast": lambda x: x * torch.broadcast_to(x.mean((1, 2, 3), keepdim=True), (x.shape[0], 8, 4, 4)),
    "split": lambda x: torch.cat(x.split(4, 1)[::-1], 1),
    "split by name": lambda x: torch.cat(torch.split(x, split_size_or_sections=[2, 6], dim=1)[::-1], 1),
    "split in unequal parts": lambda x: torch.cat(x.split_with_sizes([2, 6], 1)[::-1], 1),
    "split at": lambda x: torch.cat(torch.tensor_split(x, indices=(3,), dim=1)[::-1], 1),
    "chunk": lambda x: torch.cat(torch.chunk(x, 2, 1)[::-1], 1),
    "one of a tuple": lambda x: x.split(4, 1)[1],
    "narrow": lambda x: torch.cat([x.narrow(1, 5, 3), torch.narrow(x, dim=1, start=0, length=5)], 1),
    "narrow from the end": lambda x: torch.cat([x.narrow(1, -3, 3), x.narrow(1, 0, 5)], 1),
    "slices": lambda x: torch.cat([x[:, 4:8], x[:, 0:4]], 1),
    "slices from the end": lambda x: torch.cat([x[:, -3:], x[:, :-3]], 1),
    "one channel": lambda x: x + x.select(1, 3).unsqueeze(1),
    "one channel from the end": lambda x: x + torch.select(x, dim=1, index=-2).unsqueeze(1),
    "one channel by index": lambda x: x + x[:, 5:6] + x[:, 4].unsqueeze(1),
    "written slice": _cleared,
    "layer norm": lambda x: F.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1),
    "layer norm by name": lambda x: F.layer_norm(input=x.movedim(1, -1), normalized_shape=[8]).movedim(-1, 1),
    "layer norm of a shape": lambda x: F.layer_norm(x.movedim(1, -1), x.movedim(1, -1).shape[-1:]).movedim(-1, 1),
    "rms norm": lambda x: F.rms_norm(x.movedim(1, -1), (8,)).movedim(-1, 1),
    "group norm": lambda x: F.group_norm(x, 8),
    "group norm by name": lambda x: F.group_norm(input=x, num_groups=4),
    "the count of all numbers": lambda x: x * x.numel() / (x.shape[0] * 100.0),
    "a count under a root": lambda x: x * (x.flatten(1).shape[1] * x.size(0)) ** -0.5,
    "attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2).mT] * 3).mT,
}


class Around(nn.Module):
    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op, self.make = op, nn.Conv2d(3, 8, 1)
        self.read = nn.Conv1d(op(torch.zeros(2, 8, 4, 4, dtype=torch.float64)).shape[1], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.op(self.make(x)).flatten(2))


@pytest.mark.parametrize("name", LITERALS)
@pytest.mark.parametrize("seed", [0, 1])
def test_literal_sizes_follow(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = analyze(trace(Around(LITERALS[name]).double().eval(), x), x)
    keep = random_keep(graph, seed)
    assert any("make" in graph.group(one).producers for one in keep), graph.explain("make")
    assert off(graph, keep, torch.randn(3, 3, 4, 4, dtype=torch.float64)) < 1e-9


# of an image (batch, 8, 4, 4), which loses nothing, and the channels of what loses some of its 8
BORROWED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "split": lambda x, c: torch.cat(x.split((c - 2, 2), 1)[::-1], 1),
    "split into parts of": lambda x, c: torch.cat(torch.split(x, c // 2, dim=1)[::-1], 1),
    "split at": lambda x, c: torch.cat(torch.tensor_split(x, (c // 4,), 1)[::-1], 1),
    "hsplit": lambda x, c: torch.cat(torch.hsplit(x, [c // 4])[::-1], 1),
    "chunk": lambda x, c: torch.cat(x.chunk(c // 2, 1)[::-1], 1),
    "narrow": lambda x, c: torch.cat([x.narrow(1, c - 3, 3), x.narrow(1, 0, c - 3)], 1),
    "slices": lambda x, c: torch.cat([x[:, c // 2 :], x[:, : c // 2]], 1),
    "one channel": lambda x, c: x + x[:, c - 1].unsqueeze(1),
    "one channel by name": lambda x, c: x + x.select(dim=1, index=c // 2).unsqueeze(1),
    "padding": lambda x, c: F.pad(x, (0, 0, 0, 0, c // 4, -c // 4)),
    "view": lambda x, c: x.view(-1, c // 2, 2, 4, 4).transpose(1, 2).flatten(1, 2),
    "expand": lambda x, c: x[:, :1].expand(-1, c, 4, 4),
    "repeat": lambda x, c: x[:, :2].repeat(1, c // 2, 1, 1),
    "repeat each": lambda x, c: x[:, :2].repeat_interleave(4, 1),
    "roll": lambda x, c: x.roll(c // 4, 1),
    "resized": lambda x, c: F.interpolate(x, size=(c // 2, c // 2)),
    "made": lambda x, c: x * torch.arange(c, dtype=x.dtype, device=x.device).view(-1, 1, 1),
    "pooled": lambda x, c: F.adaptive_avg_pool2d(x, c // 2),
}


class Borrows(nn.Module):
    def __init__(self, op: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.op, self.make = op, nn.Conv2d(8, 8, 1)
        self.read, self.beside = nn.Conv1d(8, 5, 1), nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.make(x)
        return self.read(self.op(x, made.shape[1]).flatten(2)) + self.beside(made.relu().flatten(2))


@pytest.mark.parametrize("name", BORROWED)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_loses_nothing_keeps_sizes_of_what_does(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    graph = analyze(trace(Borrows(BORROWED[name]).double().eval(), x), x)
    keep = random_keep(graph, seed)
    assert any("make" in graph.group(one).producers for one in keep), graph.explain("make")
    assert off(graph, keep, torch.randn(3, 8, 4, 4, dtype=torch.float64)) < 1e-9


def test_heads_go_and_the_batch_stays_free() -> None:
    """nn.MultiheadAttention views as [length, batch * heads, size of a head]."""
    attention = nn.MultiheadAttention(6, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attention, self.head = nn.Linear(5, 6), attention, nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).transpose(0, 1)
            return self.head(self.attention(x, x, x)[0].mean(0))

    x = torch.randn(2, 7, 5)
    gm = trace(Net(), x)
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(gm, x, kinds=("head",), macs=0.8, align=1, optimizer=optimizer, total_steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        gm(torch.randn(3, 7, 5)).square().mean().backward()
        optimizer.step()
        compressor.step()
    assert compressor.finish()(torch.randn(5, 7, 5)).shape == (5, 4)


class _AsAnother(nn.Module):
    """A scale by itself stretched to the shape of what comes in, of which other channels may go than of the result."""

    def __init__(self, stretched: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stretched = stretched
        self.first, self.second, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.read(self.second(x) * self.stretched(self.scale, x))


@pytest.mark.parametrize(
    "stretched",
    [
        lambda scale, x: scale.view(1, 8, 1, 1).expand_as(x),
        lambda scale, x: scale.view(1, 8, 1, 1).expand(x.shape[0], 8, 4, 4).reshape_as(x),
        lambda scale, x: scale.view(1, 8, 1, 1).expand(x.shape[0], 8, 4, 4).contiguous().view_as(other=x),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_shape_of_another_tensor_is_none_where_it_lost_others(
    stretched: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = analyze(trace(_AsAnother(stretched).double().eval(), x), x)
    keep = random_keep(graph, seed)
    assert len({int(kept.sum()) for kept in keep.values()}) == len(keep) == 2  # or nothing would be seen
    assert off(graph, keep, torch.randn(3, 3, 4, 4, dtype=torch.float64)) < 1e-9
