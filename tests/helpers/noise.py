"""Training on noise: a network's steps where only what the compressor does is looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edp_fx.compressor import Compressor, parameter_groups


def compressor_of(gm: fx.GraphModule, x: torch.Tensor, lr: float = 0.05, **options: Any) -> Compressor:
    """A compressor with SGD over the network's parameters."""
    optimizer = torch.optim.SGD(parameter_groups(gm, 1e-4), lr=lr, momentum=0.9)
    return Compressor(gm, x, optimizer=optimizer, **options)


def check_taken_up(compressor: Compressor, fresh: Compressor, x: torch.Tensor, form: str) -> None:
    """A fresh compressor takes up another's state, whose network has layers of this form by now."""
    fresh.load_state_dict(compressor.state_dict())
    fresh.gm.load_state_dict(compressor.gm.state_dict())
    assert any(layer["form"] == form for layer in fresh.layers())
    assert fresh.layers() == compressor.layers()
    assert torch.equal(fresh.gm.eval()(x), compressor.gm.eval()(x))


def train(compressor: Compressor, steps: int, scheduler: Any = None) -> torch.optim.Optimizer:
    """So many steps on images of 16x16; returns the compressor's optimizer."""
    optimizer = compressor.optimizer
    assert optimizer is not None
    for _ in range(steps):
        loss = compressor.gm(torch.randn(8, 3, 16, 16)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compressor.step()
        if scheduler is not None:
            scheduler.step()
    return optimizer
