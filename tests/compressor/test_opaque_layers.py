"""Networks with layers that the graph does not show."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import edp_fx


class LooksAtValues(nn.Module):
    """Kept whole by the trace; its layer becomes a pair all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.sum() > 0 else y * 0.5


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.name = self.alias = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(x)


def test_a_pair_in_an_opaque_module_and_one_with_two_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Twice(), LooksAtValues(), nn.Conv2d(16, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.insert(edp_fx.trace(model, x)).train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(gm, x, optimizer=optimizer, total_steps=4, align=1, params=0.6)
    for _ in range(4):
        optimizer.zero_grad()
        gm(x).square().mean().backward()
        optimizer.step()
        compressor.step()
    compressor.finish()
    assert compressor.max_rel_diff < 1e-4
