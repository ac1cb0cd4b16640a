"""Mixed precision on a processor: what computes in bfloat16, and what stays float32 because that is faster."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import edp_fx
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.train import Recipe, Trainer
from edp_fx.train.precision import mixed_precision

CASES = {
    "strided": (nn.Conv2d(8, 8, 3, 2, 1, groups=8), (2, 8, 9, 9), True),
    "strided along one axis": (nn.Conv2d(8, 8, 3, (1, 2), 1, groups=8), (2, 8, 9, 9), True),
    "one number a channel": (nn.Conv2d(8, 16, 3, padding=1, groups=8), (2, 8, 1, 1), True),
    "of sequences": (nn.Conv1d(8, 8, 3, 2, groups=8), (2, 8, 9), True),
    "not strided": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 9, 9), False),
    "in groups": (nn.Conv2d(8, 8, 3, 2, 1, groups=4), (2, 8, 9, 9), False),
    "of one channel": (nn.Conv2d(1, 8, 3, 2, 1), (2, 1, 9, 9), False),
}


@pytest.mark.parametrize("case", CASES)
def test_depthwise_layers_that_are_slow_in_bfloat16_compute_in_float32(case: str) -> None:
    layer, shape, float32 = CASES[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    with mixed_precision("cpu", torch.bfloat16):
        given = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(x)
    whole = layer(x.float())
    assert given.dtype == torch.bfloat16
    assert torch.equal(given, whole.bfloat16() if float32 else plain)
    whole.sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    given.sum().backward()
    assert torch.equal(layer.weight.grad, expected) == float32


def test_inputs_of_float32_come_out_in_bfloat16_and_others_as_they_are() -> None:
    layer, shape, _ = CASES["strided"]
    x = torch.randn(shape)
    with mixed_precision("cpu", torch.bfloat16):
        assert torch.equal(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias, 2, 1, 1, 8))
        assert layer(x).dtype == torch.bfloat16
        assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32


def test_a_training_run_in_bfloat16_does_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = ArrayDataset(torch.rand(8, 1, 8, 8), torch.arange(8) % 4, mean=(0.5,), std=(0.5,))
    gm = edp_fx.trace(model, torch.rand(2, 3, 8, 8))
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def see(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        with torch.autocast("cpu", enabled=False):
            seen.append((given[0], made.detach(), layer.forward(given[0].float()).detach()))

    gm.get_submodule("1").register_forward_hook(see)
    Trainer(gm, make_loader(images, 8, train=True, seed=0), Recipe(epochs=1, mixed_precision="bf16")).run()
    given, made, expected = seen[0]
    assert given.dtype == made.dtype == torch.bfloat16 and torch.equal(made, expected.bfloat16())


def test_float32_is_left_as_it_is() -> None:
    layer, shape, _ = CASES["strided"]
    x = torch.randn(shape)
    with mixed_precision("cpu", torch.float32):
        assert torch.equal(layer(x), layer(x.clone())) and layer(x).dtype == torch.float32
