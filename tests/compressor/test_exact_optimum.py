"""The choice by curves and hulls against the exact optimum, an integer programme, on ten small networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.compressor.candidates import Candidates, Scope
from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.selection import Selector
from edp_fx.cost import Device
from examples import networks
from tests.helpers.exact import least_loss

IMAGE = torch.randn(2, 3, 32, 32)
GPU = Device("gpu", "none", peak=10.0, bandwidth=300.0, launch=0.5, tile_outputs=16, tile_inputs=8)
CPU = Device("cpu", "none", runtime="onnxruntime", precision="fp32", peak=0.03, bandwidth=20.0, depthwise=0.3,
             launch=10.0, tile_outputs=8, tile_inputs=1)  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=groups)
        self.c = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(self.b(self.a(x).relu()).relu())


def chain(*widths: int, stride: int = 1) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def residual(width: int, count: int, groups: int = 1) -> nn.Module:
    blocks = [Residual(width, groups) for _ in range(count)]
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, 10))  # fmt: skip


NETWORKS = {
    "chain": (chain(32, 64, 64, 128), ("channel",)),
    "narrow chain": (chain(16, 48, 24, 96, 32), ("channel",)),
    "strided chain": (chain(64, 64, 128, stride=2), ("channel",)),
    "long chain": (chain(32, 32, 48, 48, 64, 64, 96), ("channel",)),
    "residual": (residual(32, 2), ("channel",)),
    "long residual": (residual(24, 4), ("channel",)),
    "depthwise": (residual(32, 3, groups=64), ("channel",)),
    "resnet": (networks.CifarResNet(1, width=16), ("channel",)),
    "branches": (networks.CifarResNet(2, width=16), ("channel", "branch")),
    "kernels": (residual(32, 2), ("channel", "kernel", "branch")),
}


def selector_of(gm: fx.GraphModule, device: Device, kinds: tuple[str, ...]) -> Selector:
    scope = Scope("latency", tuple(KINDS[name] for name in kinds), False, 8, False, device, 8)
    found = Candidates(gm, (IMAGE,), scope)
    return found.selector(found.floors(np.ceil(0.15 * found.elements.sizes)), found.elements.sizes.astype(float))


@pytest.mark.parametrize("device", [GPU, CPU], ids=lambda one: one.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_is_within_one_percent_of_the_most_that_can_be(name: str, device: Device) -> None:
    network, kinds = NETWORKS[name]
    selector = selector_of(edp_fx.trace(network.eval(), IMAGE), device, kinds)
    elements = selector.elements
    importance = np.random.default_rng(0).lognormal(0.0, 1.0, elements.n)
    everything = np.ones(elements.n, dtype=bool)
    dense, least = selector.total(everything), selector.least()
    target = max(0.5 * dense, least + 0.25 * (dense - least))
    left = selector.choose(everything, importance, target, fill_from=everything)
    assert selector.total(left) <= target
    lost = least_loss(selector, importance, target)
    kept = importance[left].sum()
    assert kept >= 0.99 * (importance.sum() - lost)
