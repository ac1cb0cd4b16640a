"""Each rule by itself: op(select(x, kept_in)) == select(op(x), kept_out), for shapes and keep-sets hypothesis finds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edp_fx.channels import analyze
from edp_fx.frontend import trace
from edp_fx.validation.masking import difference, masked_run, pruned_run, random_keep

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).unflatten(2, (4, 4)),
    "slice": lambda x: torch.cat([x[:, :3], x[:, 3:]], 1),
    "strided slice": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "unequal split": lambda x: torch.cat(torch.split(x, [2, x.shape[1] - 2], 1)[::-1], 1),
    "chunk": lambda x: torch.mul(*x.chunk(2, 1)),
    "hsplit": lambda x: torch.cat(torch.hsplit(x, [2, 3])[::-1], 1),
    "vsplit": lambda x: torch.cat(x.transpose(0, 1).vsplit([1, 3])[::-1], 0).transpose(0, 1),
    "dsplit": lambda x: torch.mul(*torch.dsplit(x.transpose(1, 2), 2)).transpose(1, 2),
    "stack and sum": lambda x: torch.stack([x, x.flip(2)], 1).sum(1),
    "unbind": lambda x: torch.stack(x.unflatten(1, (2, -1)).unbind(1), 1).flatten(1, 2),
    "select": lambda x: x + x[:, :1] * 0 + x.select(3, 1).unsqueeze(3),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)),
    "pad channels with ones": lambda x: F.pad(x, [0, 0, 1, 1, 0, 3], value=1.0).sin(),
    "cut channels": lambda x: F.pad(x, (1, 1, 0, 0, -1, 3), "constant"),
    "pad by the size": lambda x: F.pad(x, (0, 0, 0, 0, x.shape[1] // 2, 0)),
    "pad two and split": lambda x: torch.cat(F.pad(x.unflatten(1, (2, -1)), (0, 0, 0, 0, 1, 1)).unbind(1), 1),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat_interleave(1, 1).repeat(1, 4, 1, 1), 2), 2),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1),
    "glu": lambda x: F.glu(x, 1),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": lambda x: F.instance_norm(x),
    "softmax": lambda x: x.softmax(1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "mean over channels": lambda x: x * x.mean(1, keepdim=True),
    "maximum over channels": lambda x: x * x.amax(1, keepdim=True),
    "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "adaptive pool": lambda x: x * F.adaptive_avg_pool2d(x, 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "self product": lambda x: (
        (x.flatten(2) @ x.flatten(2).transpose(1, 2)) @ x.flatten(2).unflatten(2, (4, 4)).flatten(2)
    ),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x).softmax(-1) @ x.flatten(2),
    "heads": lambda x: _heads(x),
    "rotated heads": lambda x: _rotated(x),
    "neighbours": lambda x: x * F.conv1d(x.mean((2, 3))[:, None], _FILTER, padding=1).sigmoid().mT.unsqueeze(-1),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "shuffle layer": nn.ChannelShuffle(2),
    "best of each": lambda x: x + x.topk(3, 1)[0].sum(1, keepdim=True),
    "windows": lambda x: x.unfold(2, 2, 1).flatten(2),
    "windows over channels": lambda x: x.unfold(1, 2, 1).flatten(2),
    "lower triangle": lambda x: (x.flatten(2).mT.tril() @ x.flatten(2)).softmax(-1),
    "reflection over channels": lambda x: F.pad(x.permute(0, 2, 3, 1).flatten(1, 2), (1, 1), "reflect").mT,
    "type's zeros": lambda x: x + x.new_zeros(1, 1, 4, 4),
    "one written in place": lambda x: _write(x.clone(), lambda y: y[:, 1].fill_(3.0)),
    "some written in place": lambda x: _write(x.clone(), lambda y: y[:, :3].add_(1.0)),
    "seen otherwise and written": lambda x: _write(x.clone(), lambda y: y.flatten(2).add_(1.0)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
}


_FILTER = torch.tensor([[[0.3, -1.0, 0.5]]], dtype=torch.float64)


def _rotated(x: Tensor) -> Tensor:
    """Two heads, the dimensions of each turned in pairs and by halves, as rotary embeddings are."""
    b, c, h, w = x.shape
    q = x.repeat(1, 2, 1, 1).reshape(b, 2, c, h * w).transpose(-2, -1)
    pairs = torch.stack([-q[..., 1::2], q[..., ::2]], -1).reshape(q.shape)
    halves = torch.cat([-q.chunk(2, -1)[1], q.chunk(2, -1)[0]], -1)
    return (q + pairs * 0.5 + halves * 0.25).transpose(-2, -1).reshape(b, 2 * c, h, w)


def _heads(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q = x.reshape(b, 2, c // 2, h * w).transpose(-2, -1)
    return F.scaled_dot_product_attention(q, q, q).transpose(-2, -1).reshape(b, c, h, w)


def _write(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    change(x)
    return x


class Around(nn.Module):
    """A convolution, the operation, a reader of what it gives."""

    def __init__(self, op: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.op = op
        self.make = nn.Conv2d(3, channels, 1)
        made = op(torch.zeros(2, channels, 4, 4, dtype=torch.float64))
        self.read = nn.Conv1d(made.shape[1], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.op(self.make(x)).flatten(2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(OPS)), half=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_rule(name: str, half: int, seed: int) -> None:
    check(name, half, seed)


def check(name: str, half: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Around(OPS[name], 2 * half).double().eval()
    graph = analyze(trace(model, torch.randn(2, 3, 4, 4).double()), torch.randn(2, 3, 4, 4).double())
    keep = random_keep(graph, seed)
    x = (torch.randn(3, 3, 4, 4).double(),)
    gm = graph.gm
    assert difference(masked_run(gm, graph, keep, x), pruned_run(gm, graph, keep, x)) < 1e-9


FROZEN = {"self product", "best of each", "windows over channels", "lower triangle", "reflection over channels"}


def test_every_rule_leaves_something_to_prune() -> None:
    """Freezing everything would be sound too."""
    for name in sorted(OPS):
        model = Around(OPS[name], 8).double().eval()
        graph = analyze(model, torch.randn(2, 3, 4, 4).double())
        makes = [group for group in graph.prunable if "make" in group.producers]
        check(name, 4, 0)
        assert makes or name in FROZEN, f"{name}: {graph.explain('make')}"


def test_every_planted_fault_is_caught() -> None:
    from edp_fx.validation.masking import faulty_run

    torch.manual_seed(0)
    model = Around(OPS["heads"], 8).double().eval()
    graph = analyze(model, torch.randn(2, 3, 4, 4).double())
    keep, x = random_keep(graph, 0), (torch.randn(3, 3, 4, 4).double(),)
    right, wrong = masked_run(graph.gm, graph, keep, x), faulty_run(graph.gm, graph, keep, x)
    assert difference(right, wrong) > 1e-3
    assert all(isinstance(kept, np.ndarray) for kept in keep.values())
