"""Counts that are multiples of 8 at the end of a budget run, the budget spent on what matters most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import fx, nn

import edp_fx
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.kinds import KINDS
from edp_fx.compressor.selection import Selector
from edp_fx.errors import BudgetError
from edp_fx.inputs import randomize_
from edp_fx.pairs import Pair


class Basic(nn.Module):
    """A ResNet-18 block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


def small_resnet() -> nn.Module:
    widths = (20, 36, 52)  # not multiples of 8: whole groups stay odd, cut ones must not
    stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks = [Basic(a, b, 1 if a == b else 2) for a, b in zip((widths[0], *widths), widths)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def small_vit() -> nn.Module:
    return timm.create_model("test_vit", img_size=64, num_classes=10)


MAKERS = {
    "resnet": (small_resnet, 32),
    "vit": (small_vit, 64),
    "resnet10t": (lambda: timm.create_model("resnet10t"), 64),
}


def sizes(gm: fx.GraphModule, x: torch.Tensor) -> dict[tuple[str, ...], int]:
    """Prunable exact groups of more than 8 elements by the parameters they cut, with what is kept."""
    graph = edp_fx.analyze(gm, x)
    found = {}
    for group in graph.prunable:
        if group.exact:
            found[tuple(sorted(f"{m.parameter}:{m.axis}" for m in group.members if m.role == "producer"))] = group.size
    return found


def check(before: dict, gm: fx.GraphModule, x: torch.Tensor) -> int:
    """Every count a multiple of 8 or whole; returns how many were cut."""
    cut = 0
    whole = {name.rpartition(".weight")[0]: size for members, size in before.items() for name in members}
    for members, size in sizes(gm, x).items():
        for name in members:
            layer = name.rpartition(".weight")[0]
            # a merged pair's outputs are its coefficient's
            full = whole.get(layer, whole.get(f"{layer}.coefficient"))
            assert full is not None, name
            if full > 8:
                assert size == full or size % 8 == 0, (name, size, full)
                cut += size < full
    return cut


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("name", list(MAKERS))
def test_counts_are_multiples_and_the_budget_is_met(name: str, share: float) -> None:
    make, side = MAKERS[name]
    model = make()
    randomize_(model)
    x = torch.randn(2, 3, side, side)
    dense = edp_fx.measure(model, x).macs
    gm = edp_fx.insert(edp_fx.trace(model, x))
    before = sizes(gm, x)
    compressor = edp_fx.Compressor(gm, x, macs=share, kinds=("rank", "channel"), importance="norm", align=8)
    small = compressor.finish()
    assert check(before, small, x) > 1
    macs = edp_fx.measure(small, x).macs
    assert 0.85 * share * dense < macs <= share * dense * (1 + 1e-9)
    assert macs == pytest.approx(compressor.now)


def test_a_run_that_shrinks_on_the_way_ends_aligned_too() -> None:
    model = small_resnet()
    randomize_(model)
    x = torch.randn(8, 3, 32, 32)
    labels = torch.arange(8) % 10
    gm = edp_fx.insert(edp_fx.trace(model, x)).train()
    before = sizes(gm, x)
    gm = edp_fx.insert(edp_fx.trace(model, x)).train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(
        gm,
        x,
        budget=edp_fx.Budget(macs=0.4),
        optimizer=optimizer,
        kinds=("rank", "channel"),
        align=8,
        total_steps=40,
        start=0.12,
        end=0.5,
        decisions=6,
        removals=3,
    )
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(gm(x), labels).backward()
        optimizer.step()
        compressor.step()
    small = compressor.finish()
    assert sum(event["event"] == "shrink" for event in compressor.events) > 1
    assert check(before, small, x) > 1
    assert compressor.macs <= 0.4
    assert any(isinstance(module, Pair) for module in small.modules())


def test_the_block_with_the_most_important_element_comes_first() -> None:
    groups = [fake(0, 32), fake(1, 32), fake(2, 6)]
    elements = Elements(groups, [])
    selector = Selector(elements, Count(), np.array([8, 8, 3]), align=8)  # type: ignore[arg-type]
    importance = np.concatenate([np.linspace(1, 2, 32), np.linspace(3, 4, 32), np.zeros(6)])
    alive = np.zeros(70, dtype=bool)
    alive[24:32] = alive[56:67] = True
    everything = np.ones(70, dtype=bool)

    def counts(target: float, available: np.ndarray = everything, alive: np.ndarray = alive) -> list[int]:
        left = selector.choose(alive, importance, target, fill_from=available)
        assert left.sum() <= target
        assert left[24:32].all() and left[56:64].all()  # the most important stay
        return [int(left[a:b].sum()) for a, b in ((0, 32), (32, 64), (64, 70))]

    assert counts(39.0) == [8, 24, 6]  # single elements of a group of fewer than 8 fit where no block does
    assert counts(70.0) == [32, 32, 6]
    assert counts(70.0, everything & (np.arange(70) != 63 - 24)) == [32, 24, 6]
    # what goes, goes in blocks, the least important first, and no more than has to
    assert counts(50.0, everything, everything) == [8, 32, 6]
    assert counts(41.0, everything & False, everything) == [8, 24, 3]


def test_a_group_that_is_no_multiple_is_first_cut_to_one() -> None:
    elements = Elements([fake(0, 20), fake(1, 20)], [])
    selector = Selector(elements, Count(), np.array([8, 8]), align=8)  # type: ignore[arg-type]
    importance = np.concatenate([np.linspace(1, 2, 20), np.linspace(3, 4, 20)])
    everything = np.ones(40, dtype=bool)
    for target, expected in ((39, [16, 20]), (36, [16, 20]), (30, [8, 20]), (27, [8, 16])):
        left = selector.choose(everything, importance, float(target))
        assert [int(left[:20].sum()), int(left[20:].sum())] == expected
        assert left[20 - expected[0] : 20].all()  # the most important of the first group
    # a part of a block is not given back, though it would fit
    left = selector.choose(everything, importance, 39.0, fill_from=everything)
    assert left.sum() == 36


def fake(number: int, size: int) -> Any:
    return SimpleNamespace(id=number, size=size, kind="channel", members=[])


class Count:
    """Every element costs 1."""

    def total(self, alive: np.ndarray) -> float:
        return float(alive.sum())

    def savings(self, alive: np.ndarray) -> object:
        return SimpleNamespace(marginal=np.ones(3))


def test_floors_are_multiples_where_groups_are_larger() -> None:
    floor = KINDS["channel"].floor
    sizes = (64, 64, 64, 13, 8)
    assert [floor(*one, 8) for one in zip((0.0, 3.0, 9.0, 12.0, 2.0), sizes)] == [8, 8, 16, 13, 2]
    assert [floor(0.0, 64, 1), floor(3.2, 64, 1)] == [1, 3]
    assert KINDS["branch"].floor(1.0, 1, 8) == 0


def test_alignment_that_cannot_be_had_is_refused_in_one_line() -> None:
    model = small_resnet()
    x = torch.randn(2, 3, 32, 32)
    gm = edp_fx.insert(edp_fx.trace(model, x))
    with pytest.raises(BudgetError, match="least that can"):
        edp_fx.Compressor(gm, x, budget=edp_fx.Budget(macs=0.0005), align=16)
    for options in ({"align": 0, "budget": edp_fx.Budget(macs=0.5)}, {"align": 8.5, "budget": edp_fx.Budget(macs=0.5)}):
        with pytest.raises(BudgetError, match="align"):
            edp_fx.Compressor(edp_fx.insert(edp_fx.trace(model, x)), x, **options)


def test_blocks_are_halved_where_they_cannot_reach_the_budget() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    gm = edp_fx.trace(model, torch.randn(2, 3, 12, 12))
    x = torch.randn(2, 3, 12, 12)
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(gm, x, macs=0.1, kinds=("channel",), align=8, optimizer=optimizer, total_steps=8)
    assert compressor.method.align < 8
    assert [one["reason"] for one in compressor.refused if one["node"] == "align"] == [
        f"8 cannot reach the budget; multiples of {compressor.method.align} can"
    ]
