"""Wrong uses of a Compressor are one line that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import edp_fx
from edp_fx.errors import EdpError

INPUTS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def traced() -> Any:
    return edp_fx.trace(timm.create_model("test_resnet", num_classes=4), INPUTS)


def trained(steps: int, total: int, *, backward: bool = True, given: bool = True, macs: float = 0.5) -> Any:
    """A run of ``steps`` steps that was said to have ``total``."""
    gm = traced()
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(
        gm, INPUTS, macs=macs, optimizer=optimizer if given else None, total_steps=total, align=1
    )
    for _ in range(steps):
        if backward:
            optimizer.zero_grad()
            gm(INPUTS).square().sum().backward()
            optimizer.step()
        compressor.step()
    return compressor.finish()


def of_another() -> Any:
    other = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    return edp_fx.Compressor(traced(), INPUTS, macs=0.5, optimizer=other, total_steps=9)


def made_too_early() -> Any:
    gm = traced()
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
    return edp_fx.Compressor(edp_fx.insert(gm), INPUTS, macs=0.5, optimizer=optimizer, total_steps=9)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: edp_fx.Compressor(nn.Linear(3, 2), INPUTS, macs=0.5),
            "not Linear: edp_fx.trace(model",
        ),
        (lambda: edp_fx.Compressor(traced(), INPUTS, macs=0.5, total_steps=-1), "total_steps=-1"),
        (lambda: edp_fx.Compressor(traced(), INPUTS, macs=0.5).finish(), "no gradient was seen in 0 steps"),
        (lambda: trained(4, 4, backward=False), "no gradient was seen in 1 steps"),
        (lambda: trained(8, 8, given=False), "give the Compressor the optimizer"),
        (lambda: trained(1, 100), "finish() after 1 of 100 steps: the budget is met in step 25"),
        (of_another, "the optimizer has no parameter of the network"),
        (made_too_early, "make it after edp_fx.insert"),
    ],
)
def test_one_line_says_what_to_do(use: Any, message: str) -> None:
    with pytest.raises(EdpError) as caught:
        use()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_unusual_and_right_goes() -> None:
    assert trained(1, 1) is not None
    assert trained(30, 100) is not None  # the budget is met; what follows is plain training
    assert trained(0, 0, macs=1.0) is not None  # nothing is to go
