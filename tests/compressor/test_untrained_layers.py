"""Layers that are not trained: nothing weighs what they read, so it stays, and the run says so."""

from __future__ import annotations

import pytest
import torch

import edp_fx
from edp_fx.compressor import Budget, Compressor
from examples import networks
from tests.helpers.noise import train

FROZEN = ("blocks.3.", "blocks.4.")


@pytest.mark.parametrize("importance", ["taylor", "norm"])
def test_what_an_untrained_layer_reads_stays_where_gradients_weigh(importance: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    model = networks.resnet20()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    gm = edp_fx.trace(model, x)
    optimizer = torch.optim.SGD([one for one in gm.parameters() if one.requires_grad], lr=0.05, momentum=0.9)
    compressor = Compressor(
        gm,
        x,
        budget=Budget(macs=0.6),
        optimizer=optimizer,
        importance=importance,
        kinds=("channel", "kernel", "branch") if importance == "taylor" else ("channel",),
        total_steps=40,
        start=0.12,
        end=0.5,
        decisions=6,
        removals=3,
    )
    train(compressor, 40)
    compressor.finish()
    assert 0.55 <= compressor.macs <= 0.6
    layers = {layer["name"]: layer for layer in compressor.layers()}
    refused = {one["node"] for one in compressor.refused if "not trained" in one["reason"]}
    if importance == "norm":  # weights are there, trained or not
        assert not refused and layers["blocks.3.conv1"]["outputs"][1] < 32
        return
    assert refused
    for name, layer in layers.items():
        if name.startswith(FROZEN):
            assert layer["form"] == "plain" and layer["inputs"][0] == layer["inputs"][1], name
    assert any(layer["outputs"][1] < layer["outputs"][0] for layer in layers.values())
