"""Goldens of named micro-graphs, word for word: an analysis that freezes everything fails here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edp_fx.channels import ChannelGraph, analyze
from edp_fx.errors import AnalysisError


def conv(i: int, o: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **options)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 4), conv(4, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.relu(x + self.c(F.relu(self.b(x)))))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 4), conv(3, 6), conv(10, 5), nn.Linear(5 * 4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1)).flatten(1))


class Shuffle(nn.Module):
    """Split, a depthwise branch, concat, channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw, self.pw, self.head = conv(3, 8), conv(4, 4, groups=4), nn.Conv2d(4, 4, 1), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.pw(self.dw(right))], 1)
        b, c, h, w = x.shape
        return self.head(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.head = conv(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid())


class Attention(nn.Module):
    """Fused qkv, two heads of three dimensions, a class token and a position embedding."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.norm, self.qkv, self.proj, self.head = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(-1) @ v
        return self.head((x + self.proj(out.transpose(1, 2).reshape(b, n, c)))[:, 0])


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 12), conv(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_shuffle(self.a(x), 2))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(12, 8), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, g = self.fc1(x.flatten(1)[:, :12]).chunk(2, -1)
        return self.head(self.fc2(a * F.silu(g)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.head = conv(3, 8), conv(8, 12, groups=2), conv(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.g(self.a(x)))


class Tied(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.same, self.head = conv(3, 4), conv(4, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.same(F.relu(self.same(self.a(x)))))


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 in each filter, over inputs and kernel positions alike."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class Standard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = Standardised(3, 8, 3), Standardised(8, 4, 3), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


def words(graph: ChannelGraph) -> list[str]:
    """``producers -> consumers x size exactness`` of every prunable group."""
    return sorted(
        f"{'+'.join(group.producers)} -> {'+'.join(group.consumers)} x{group.size}{'' if group.exact else ' inexact'}"
        for group in graph.prunable
    )


IMAGE = (2, 3, 8, 8)
GOLDENS: list[tuple[type[nn.Module], tuple[int, ...], list[str]]] = [
    (Residual, IMAGE, ["a+c -> b+head x8", "b -> c x4"]),
    (Concat, (2, 3, 4, 4), ["a -> c x4", "b -> c x6", "c -> head x5"]),
    (Shuffle, IMAGE, ["stem+dw -> pw x4", "stem+pw -> head x4"]),
    (SqueezeExcite, IMAGE, ["a+up -> down+head x8", "down -> up x2"]),
    (PixelShuffle, IMAGE, ["a -> head x3"]),
    (Gated, IMAGE, ["fc1 -> fc2 x4", "fc2 -> head x5"]),
    (Grouped, IMAGE, ["a -> g x4", "g -> head x6"]),
    (Standard, IMAGE, ["a -> b x8 inexact", "b -> head x4"]),
    (Tied, IMAGE, ["a+same -> same+head x4"]),
    (Attention, IMAGE, ["embed+proj -> qkv+head x6 inexact", "qkv -> proj x3"]),
]


@pytest.mark.parametrize(("kind", "shape", "expected"), GOLDENS, ids=[kind.__name__ for kind, _, _ in GOLDENS])
def test_groups_of_micro_graphs(kind: type[nn.Module], shape: tuple[int, ...], expected: list[str]) -> None:
    assert words(analyze(kind(), torch.randn(shape))) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_attention_heads_as_a_whole_and_both(fused: bool) -> None:
    x = torch.randn(IMAGE)
    assert "qkv -> proj x2" in words(analyze(Attention(fused), x, heads="whole"))
    both = analyze(Attention(fused), x, heads="both")
    assert {(g.kind, g.size) for g in both.prunable if "qkv" in g.producers} == {("channel", 3), ("head", 2)}


def test_explain_says_with_whom_and_why() -> None:
    graph = analyze(Residual(), torch.randn(IMAGE))
    said = graph.explain("a")
    assert "tied to c" in said
    assert "add" in said
    assert "read by b, head" in said
    assert "an output of the model" in graph.explain("head")


def test_unknown_operation_freezes_and_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = conv(3, 8), conv(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(x + torch.linalg.matrix_exp(x))

    graph = analyze(Odd(), torch.randn(IMAGE))
    assert not graph.prunable
    assert any("matrix_exp" in op for op in graph.unknown_ops)
    assert "no rule" in graph.explain("a")


def test_macs_of_sites_are_those_of_the_flop_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for kind, shape, _ in GOLDENS:
        model, x = kind().eval(), torch.randn(shape)
        # The counter has no formula for the fused kernel of the CPU.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(x)
        assert sum(site.macs({}) for site in analyze(model, x).analysis.sites) == counter.get_total_flops() / 2, kind


def test_misuse_is_one_clear_error() -> None:
    model = Residual()
    from edp_fx.frontend import trace

    gm = trace(model, torch.randn(IMAGE))
    with pytest.raises(AnalysisError, match="node 'a'"):
        analyze(gm, torch.randn(2, 5, 8, 8))
    with pytest.raises(AnalysisError, match="heads='half'"):
        analyze(gm, torch.randn(IMAGE), heads="half")
    with pytest.raises(AnalysisError, match=r"did you mean head|no layer"):
        analyze(gm, torch.randn(IMAGE)).explain("heat")


def test_tensors_made_on_the_way_are_no_channels_and_need_no_device() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:  # a leaf, so that what it makes is made while the sweep runs
                return x
            return x * torch.tensor([2.0]) + torch.arange(x.shape[-1]) + torch.zeros(1, device="cpu")

    graph = analyze(nn.Sequential(conv(3, 8), Shifted(), conv(8, 2)), torch.randn(2, 3, 8, 8))
    assert [(group.name, group.size, group.prunable) for group in graph.groups if group.producers] == [
        ("0", 8, True),
        ("2", 2, False),
    ]
