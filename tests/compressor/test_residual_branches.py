"""Residual branches that go as a whole: which there are, what they cost, how exact they go, that a run drops them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import edp_fx
from edp_fx.channels.residuals import find_branches
from edp_fx.compressor import Budget, Compressor
from edp_fx.compressor.kinds.branch import with_branches
from edp_fx.cost import CostModel, measure
from edp_fx.inputs import randomize_
from edp_fx.passes.branches import DropBranches, RemoveDeadBranches
from examples import networks
from tests.helpers.noise import check_taken_up, compressor_of, train

TIMM = {  # blocks with an identity beside them, by what stands at their end
    "torchvision:resnet18": 5,  # in place
    "efficientnet_b0": 9,  # batch norm with an activation that is none
    "resnetv2_18": 5,  # a convolution without norm
    "convnext_atto": 12,  # a product with a parameter, of permuted values
    "vit_tiny_patch16_224": 24,
    "deit3_small_patch16_224": 24,  # layer scale
    "swin_tiny_patch4_window7_224": 24,  # windows put together again, and rolled
    "mixer_s16_224": 16,  # transposed
}


def resnet20(x: Tensor) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model = networks.resnet20()
    randomize_(model, 0)
    return edp_fx.trace(model.eval(), x)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith(("swin", "mixer", "deit")) else name
        for name in TIMM
    ],
)
def test_branches_of_parameters_zero_add_nothing(name: str) -> None:
    side = 224 if name.startswith(("vit", "deit", "swin", "mixer")) else 64
    x = torch.randn(2, 3, side, side)
    source, _, plain = name.rpartition(":")
    model = torchvision.models.get_model(plain) if source else timm.create_model(name, num_classes=10)
    randomize_(model, 0)
    gm = edp_fx.trace(model.eval(), x)
    branches = find_branches(gm, edp_fx.analyze(gm, x))
    assert len(branches) == TIMM[name]
    assert len({one.id for one in branches}) == len(branches) and max(one.id for one in branches) < 0
    parameters = dict(gm.named_parameters())
    with torch.no_grad():
        whole = gm(x)
        for one in branches[::2]:
            for parameter in one.parameters:
                parameters[parameter].zero_()
        expected = gm(x)
        assert (whole - expected).abs().max() > 1e-3 * whole.abs().max()  # they did add something
        result = DropBranches(branches[::2])(gm)
        assert result.report.rewritten == [one.name for one in reversed(branches[::2])]
        assert (gm(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    left = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for one in branches[::2]:
        assert not {parameter.rpartition(".")[0] for parameter in one.parameters} & left
    assert len(find_branches(gm, edp_fx.analyze(gm, x))) == len(branches) - len(branches[::2])


def test_a_branch_that_is_left_out_costs_nothing() -> None:
    x = torch.randn(2, 3, 16, 16)
    gm = resnet20(x)
    graph = edp_fx.analyze(gm, x)
    branches = find_branches(gm, graph)
    assert len(branches) == 7  # of nine blocks two have a convolution beside them
    cost = CostModel(gm, graph, changes=[partial(with_branches, branches=branches)])
    assert cost.dense == measure(networks.resnet20(), x).macs
    chosen = branches[1::2]
    predicted = cost.total({one.id: np.zeros(1) for one in chosen})
    small = copy.deepcopy(gm)
    DropBranches(chosen)(small)
    assert predicted == measure(small, x).macs < cost.dense


class Sums(nn.Module):
    """Sums that are no residual connection whose branch a layer scales, and one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squashed, self.shared = (nn.Conv2d(3 if n == 0 else 4, 4, 3, padding=1) for n in range(3))
        self.gate, self.other, self.seen, self.plain = (nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.squashed(x).sigmoid()  # not 0 where its parameters are
        x = x + self.shared(x)
        x = x + self.shared(x)
        x = self.gate(x) + self.other(x)  # nothing stays as it is
        y = self.seen(x)[:, :, : x.shape[2] + x.shape[3]]
        x = x + y
        x = x + x.mean((2, 3), keepdim=True)  # no layer
        return torch.cat([x + self.plain(x), y], 1)


def test_what_no_layer_scales_is_no_branch() -> None:
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.trace(Sums().eval(), x)
    (only,) = find_branches(gm, edp_fx.analyze(gm, x))
    assert set(only.parameters) == {"plain.weight", "plain.bias"}


class InPlace(nn.Module):
    """Branches that change what they are added to, or what they are added in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branches[0](self.act(x))
        x = x + y  # of what the activation left
        y = self.branches[1](torch.relu(x).neg_())
        y += x
        x = y - 1
        x += self.branches[2](x)
        return x.add(self.branches[3](x.mul_(2)))


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(0, 4)])
def test_what_a_branch_does_in_place_stays(chosen: slice) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.trace(InPlace().eval(), x)
    branches = find_branches(gm, edp_fx.analyze(gm, x))[chosen]
    assert len(branches) == chosen.stop - chosen.start
    parameters = dict(gm.named_parameters())
    with torch.no_grad():
        for name in (name for one in branches for name in one.parameters):
            parameters[name].zero_()
        for drop in (DropBranches(branches), RemoveDeadBranches()):
            small = copy.deepcopy(gm)
            expected = gm(x)
            assert len(drop(small).report.rewritten) == len(branches)
            assert torch.equal(small(x), expected)


class Behind(nn.Module):
    """What changes a sum in place, behind something that the backward pass needs."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sigmoid()
        return torch.cat([self.behind(x + self.branch(x)), x], 1)


@pytest.mark.parametrize(
    "behind",
    [
        nn.ReLU6(inplace=True),
        lambda x: F.relu(x, inplace=True),
        lambda x: x.mul_(2),
        lambda x: x.add_(1),
        lambda x: x.flatten(1).mul_(2).view_as(x),
        nn.Sequential(nn.Dropout(0.0), nn.ReLU(inplace=True)),
    ],
)
def test_what_changed_the_sum_in_place_leaves_alone_what_stays(behind: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.trace(Behind(behind), x)
    branches = find_branches(gm, edp_fx.analyze(gm, x))
    for name in branches[0].parameters:
        nn.init.zeros_(gm.get_parameter(name))
    for drop in (DropBranches(branches), RemoveDeadBranches()):
        small = copy.deepcopy(gm)
        assert drop(small).report.rewritten
        assert torch.equal(small(x), gm(x))
        small(x).sum().backward()
        gm.zero_grad()
        gm(x).sum().backward()
        expected = gm.get_parameter("stem.weight").grad
        actual = small.get_parameter("stem.weight").grad
        assert expected is not None and actual is not None and torch.allclose(actual, expected, atol=1e-5)


class Nested(nn.Module):
    """A branch that ends in a sum with a branch of its own, and what both add to is changed in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sin()
        y = x + (x + self.inner(x)) * self.outer(x)
        return torch.cat([y, x.mul_(2)], 1)


def test_branches_in_branches_go_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    gm = edp_fx.trace(Nested().eval(), x)
    (inner,) = find_branches(gm, edp_fx.analyze(gm, x))
    total = next(node for node in gm.graph.nodes if node.op == "call_function" and node.name == "add_1")
    outer = replace(inner, id=-2, name=total.name, operand=inner.operand)
    for name in ("outer.weight", "outer.bias"):
        nn.init.zeros_(gm.get_parameter(name))
    small = copy.deepcopy(gm)
    DropBranches([inner, outer])(small)
    assert torch.equal(small(x), gm(x))
    assert not {"inner", "outer"} & {str(node.target) for node in small.graph.nodes}


class Shared(nn.Module):
    """One activation in place, called before a branch and behind a sum; and a skip that is changed after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branches[0](self.act(x))
        x = (x + y).sin()
        z = self.act(x + self.branches[1](x))
        y = x + self.branches[2](x)
        return torch.cat([x, z, y + 2 * self.act(x)], 1)


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_an_activation_called_in_several_places_goes_on_working_in_place(chosen: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.trace(Shared().eval(), x)
    (branch,) = find_branches(gm, edp_fx.analyze(gm, x))[chosen : chosen + 1]
    for name in branch.parameters:
        nn.init.zeros_(gm.get_parameter(name))
    small = copy.deepcopy(gm)
    DropBranches([branch])(small)
    assert torch.equal(small(x), gm(x))


class Squeezed(nn.Module):
    """What stands in a branch reads values twice, changes them in place, and starts as nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y = F.normalize(F.relu(y, inplace=True), dim=1)
        return x + self.last(y) * self.scale


def test_all_of_a_dropped_branch_goes() -> None:
    x = torch.randn(2, 4, 8, 8)
    gm = edp_fx.trace(nn.Sequential(Squeezed(), nn.Conv2d(4, 4, 1)).eval(), x)
    (branch,) = find_branches(gm, edp_fx.analyze(gm, x))
    assert set(branch.parameters) == {"0.last.weight", "0.last.bias"}
    DropBranches([branch])(gm)
    assert [node.target for node in gm.graph.nodes if node.op != "placeholder"][:-1] == ["1"]


class Odd(nn.Module):
    """Branches of several outputs, of statistics without scale, of a number, and a layer that is read beside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.seen, self.normed = (nn.Conv2d(4, n, 1) for n in (4, 8, 4, 4))
        self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.wide(x).chunk(2, 1)[0]
        x = x + self.norm(self.normed(x))
        y = self.seen(x)
        return torch.cat([x + y[:, :, : x.shape[2]], y], 1)


def test_what_is_linear_only_at_first_or_not_alone_is_no_branch() -> None:
    x = torch.randn(2, 4, 8, 8)
    gm = edp_fx.trace(Odd().eval(), x)
    assert not find_branches(gm, edp_fx.analyze(gm, x))


def run(steps: int, *, pairs: bool = False) -> tuple[Compressor, Tensor]:
    """ResNet-20 trained on noise for so many of 40 steps, with floors so high that branches have to go."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    gm = resnet20(x).train()
    if pairs:
        gm = edp_fx.insert(gm)
    compressor = compressor_of(
        gm,
        x,
        budget=Budget(macs=0.4),
        floor=0.75,
        kinds=("rank", "channel", "branch") if pairs else ("channel", "branch"),
        total_steps=40,
        start=0.12,
        end=0.5,
        decisions=6,
        removals=3,
    )
    train(compressor, steps)
    return compressor, x


@pytest.mark.parametrize("pairs", [False, True])
def test_a_run_drops_branches_and_keeps_the_function(pairs: bool) -> None:
    compressor, x = run(40, pairs=pairs)
    small = compressor.finish()
    gone = [layer["name"] for layer in compressor.layers() if layer["form"] == "gone"]
    assert len(gone) >= 2 and all(name.endswith(("conv1", "conv2")) for name in gone)
    assert {name.replace("conv1", "conv2") for name in gone} == {name for name in gone if "conv2" in name}
    assert not any(name in dict(small.named_modules()) for name in gone)
    assert 0.35 <= measure(small, x).macs / compressor.dense == pytest.approx(compressor.macs, rel=1e-9)
    assert compressor.macs <= 0.4
    assert compressor.max_rel_diff < 1e-5
    assert compressor.optimizer is not None
    trained = {id(one) for group in compressor.optimizer.param_groups for one in group["params"]}
    assert trained == {id(one) for one in small.parameters()}


@pytest.mark.parametrize("pairs", [False, True])
def test_a_saved_state_without_branches_is_taken_up(pairs: bool) -> None:
    compressor, x = run(34, pairs=pairs)
    fresh, _ = run(0, pairs=pairs)
    check_taken_up(compressor, fresh, x, "gone")


class Straight(nn.Module):
    """What a branch is added to comes straight from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.inner(x)


def test_a_branch_goes_together_with_the_kernels_in_it_and_of_what_it_is_added_to() -> None:
    x = torch.randn(2, 8, 8, 8)
    compressor = Compressor(edp_fx.trace(Straight(), x), x, macs=0.5, kinds=("kernel", "branch"), total_steps=8)
    compressor.reduce({group.id: np.zeros(1, dtype=bool) for group in compressor.elements.groups}, merged=False)
    assert {layer["name"]: layer["form"] for layer in compressor.layers()} == {"stem": "separate", "inner": "gone"}
    assert compressor.gm(x).shape == x.shape
