"""The optimiser follows the network: what is merged or separated stays in its group, whatever the layers are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.compressor import Budget, Compressor, parameter_groups
from examples import networks
from tests.helpers.noise import train


class Block(nn.Module):
    """A separable convolution of its author's, under the names that ours get."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=groups, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(x))).relu()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.one, self.full = Block(32, 32, 32), Block(32, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.full(self.one(self.stem(x))).mean((2, 3)))


def make(
    model: nn.Module,
    kinds: tuple[str, ...],
    macs: float,
    groups: Callable[..., Any] = lambda gm: parameter_groups(gm, 1e-4),
) -> Compressor:
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(model, x)
    if "rank" in kinds:
        gm = edp_fx.insert(gm)
    optimizer = torch.optim.SGD(groups(gm), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return Compressor(
        gm,
        x,
        budget=Budget(macs=macs),
        optimizer=optimizer,
        total_steps=20,
        kinds=kinds,
        start=0.12,
        end=0.5,
        decisions=6,
        removals=3,
        align=1,
    )


def decays(compressor: Compressor) -> dict[str, bool]:
    """Whether a parameter decays, by name; every one is trained, and once."""
    assert compressor.optimizer is not None
    of = {id(one): group for group in compressor.optimizer.param_groups for one in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in compressor.optimizer.param_groups)
    return {name: bool(of[id(one)]["weight_decay"]) for name, one in compressor.gm.named_parameters()}


@pytest.mark.parametrize("kinds", [("rank", "channel"), ("channel", "kernel")])
def test_layers_that_their_author_called_depthwise_and_pointwise_stay_trained(kinds: tuple[str, ...]) -> None:
    compressor = make(Blocks(), kinds, 0.6)
    optimizer = train(compressor, 20)
    assert compressor.done
    found = decays(compressor)
    merged = {"one.pointwise.weight", "full.depthwise.weight", "full.pointwise.weight"} & set(found)
    assert merged and all(found[name] for name in merged)  # weights as others are
    before = {name: one.detach().clone() for name, one in compressor.gm.named_parameters()}
    train(compressor, 1)
    assert optimizer is compressor.optimizer
    # a bias before a norm has no gradient
    still = [name for name, one in compressor.gm.named_parameters() if torch.equal(one, before[name])]
    assert not [name for name in still if before[name].dim() > 1]


def named(gm: nn.Module) -> list[dict[str, Any]]:
    """Groups with names for parameters, and one for the group, which torch keeps beside the options."""
    flat = [(name, one) for name, one in gm.named_parameters() if one.dim() <= 1]
    rest = [(name, one) for name, one in gm.named_parameters() if one.dim() > 1]
    return [{"params": rest, "name": "weights"}, {"params": flat, "weight_decay": 0.0, "name": "vectors"}]


def test_groups_with_names_are_alike_too_and_names_follow() -> None:
    compressor = make(networks.resnet20(), ("channel", "kernel"), 0.15, named)
    optimizer = train(compressor, 20)
    kernels = {name: decay for name, decay in decays(compressor).items() if name.endswith(".depthwise.weight")}
    assert kernels and not any(kernels.values())
    parameters = dict(compressor.gm.named_parameters())
    for group in optimizer.param_groups:
        assert [id(parameters[name]) for name in group["param_names"]] == [id(one) for one in group["params"]]


def test_a_resumed_run_groups_alike_where_rates_differ() -> None:
    def fresh() -> tuple[Compressor, Any]:
        compressor = make(networks.resnet20(), ("channel", "kernel"), 0.15)
        rates = [lambda step: 1 - step / 100, lambda step: 1 - step / 200]
        return compressor, torch.optim.lr_scheduler.LambdaLR(compressor.optimizer, rates)

    compressor, scheduler = fresh()
    optimizer = train(compressor, 17, scheduler)
    other, _ = fresh()
    other.load_state_dict(compressor.state_dict())
    other.gm.load_state_dict(compressor.gm.state_dict())
    assert other.optimizer is not None
    other.optimizer.load_state_dict(optimizer.state_dict())
    assert decays(other) == decays(compressor)
    assert any(name.endswith(".depthwise.weight") for name in decays(other))
    for one in (one for group in other.optimizer.param_groups for one in group["params"]):
        buffer = other.optimizer.state.get(one, {}).get("momentum_buffer")
        assert buffer is None or buffer.shape == one.shape
    train(other, 3)
    assert other.done
