"""Truncation weighted by what layers see stands what they may see: next to nothing, and no numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.errors import TrainingError


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 96, 3, 2), nn.ReLU6(), nn.Conv2d(96, 200, 3, 2), nn.ReLU6(), nn.Conv2d(200, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.parametrize("scale", [1.0, 1e4, 0.0])
def test_fewer_positions_than_channels(scale: float) -> None:
    net = network()
    image = scale * torch.ones(2, 3, 8, 8) + 1e-3 * torch.randn(2, 3, 8, 8)
    small = edp_fx.compress(net, [image], epochs=0, macs=0.7)
    assert small.meta["edp_fx.run"]["macs"] <= 0.7
    assert bool(small.eval()(image).isfinite().all())


def test_the_root_of_a_matrix_that_rounding_made_indefinite() -> None:
    from edp_fx.compressor.calibrate import damped_root

    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    thin[:3] *= 1e4
    gram = thin @ thin.T
    gram -= 1e-2 * float(gram.diagonal().mean()) * torch.eye(300, dtype=torch.float64)
    lower: Tensor = damped_root(gram)
    assert bool(lower.isfinite().all())


def test_values_that_are_no_numbers_are_said() -> None:
    image = torch.full((2, 3, 8, 8), float("nan"))
    for method, where in (("one-shot", "gives"), ("truncate", "sees")):
        with pytest.raises(TrainingError, match=f"{where} values that are no numbers"):
            edp_fx.compress(
                network(), [image], method=method, epochs=0, macs=0.7, example_inputs=image.new_ones(2, 3, 8, 8)
            )
