"""Outer taps of kernels: which may go, what they cost, how exact they go, and that a run crops them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.channels.kernels import find_kernels
from edp_fx.channels.taps import find_taps, outer_taps
from edp_fx.compressor import Budget, Compressor
from edp_fx.compressor.elements import Elements
from edp_fx.cost import CostModel, measure
from edp_fx.errors import BudgetError
from edp_fx.inputs import randomize_
from edp_fx.passes.crop import CropKernels
from examples import networks
from tests.helpers.noise import check_taken_up, compressor_of, train

KINDS = ("channel", "kernel", "tap")


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((4, 2, 3, 3), (4, 2, 1, 1)), ((4, 1, 7, 7), (4, 1, 5, 5)), ((2, 2, 1, 5), (2, 2, 1, 3)), ((2, 2, 4), (2, 2, 2))],
)
def test_the_outermost_taps_are_all_but_the_inner_ones(shape: tuple[int, ...], inner: tuple[int, ...]) -> None:
    (outer,) = outer_taps([torch.ones(shape)])
    assert outer.sum() == np.prod(shape) - np.prod(inner)
    rim = [outer.select(axis, place) for axis in (2, 3)[: len(shape) - 2] for place in (0, -1) if shape[axis] > 2]
    assert all((one == 1).all() for one in rim)


class Layers(nn.Module):
    """What may lose its outer taps, and what may not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(8, 8, 5, padding=4, dilation=2)
        self.row = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.unpadded = nn.Conv2d(8, 8, 3)  # with less to read it would put out more
        self.little = nn.Conv2d(8, 8, 3, padding=1, dilation=2)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.named = nn.Conv2d(8, 8, 3, padding="same")
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.tied, self.also_tied = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.also_tied.weight = self.tied.weight
        self.transposed = nn.ConvTranspose2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.row(self.dilated(self.plain(x)))
        x = self.pointwise(self.named(self.reflecting(self.little(self.unpadded(x)))))
        return self.transposed(self.also_tied(self.tied(self.twice(self.twice(x)))))


def test_which_layers_may_lose_their_outer_taps() -> None:
    x = torch.randn(2, 3, 32, 32)
    gm = edp_fx.trace(Layers(), x)
    found = find_taps(gm, first_id=-5)
    assert [(one.name, one.before, one.after) for one in found] == [("plain", 9, 1), ("dilated", 25, 9), ("row", 3, 1)]
    assert [one.id for one in found] == [-5, -6, -7]
    assert [one.name for one in find_taps(gm, {"plain.weight"})] == ["dilated", "row"]
    # of a pair neither layer: its ranks go
    assert not find_taps(edp_fx.insert(edp_fx.trace(networks.resnet20(), x)))


class Separate(nn.Module):
    """Depthwise layers before pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("good", "moving", "shifting", "seen", "apart", "frozen", "buffered"):
            stride = 2 if name == "moving" else 1
            setattr(self, name, nn.Conv2d(4, 4, 3, stride, 1, groups=4, bias=name == "shifting"))
            setattr(self, f"{name}_mixer", nn.Conv2d(4, 4, 1))
        self.frozen_mixer.requires_grad_(False)
        weight = self.buffered_mixer.weight.detach()
        del self.buffered_mixer.weight
        self.buffered_mixer.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good_mixer(self.good(input=x))
        x = self.buffered_mixer(self.buffered(self.frozen_mixer(self.frozen(x))))
        x = self.moving_mixer(self.moving(x))
        x = self.shifting_mixer(self.shifting(x))
        y = self.seen(x)
        x = self.seen_mixer(y) + y
        y = self.apart(x)
        z = x.relu_()  # the mixer would read what this leaves of the layer's input
        return self.apart_mixer(y) + z


def test_a_factor_goes_into_the_pointwise_layer_where_that_is_the_same() -> None:
    x = torch.randn(2, 4, 8, 8)
    gm = edp_fx.trace(Separate().eval(), x)
    taps = find_taps(gm)
    assert {one.name: one.pointwise for one in taps if one.pointwise} == {"good": "good_mixer"}
    assert len(taps) == 7
    with torch.no_grad():
        for one in taps:
            weight = gm.get_parameter(one.parameter)
            weight.sub_(outer_taps([weight])[0])
        expected = gm(x.clone())
        CropKernels(taps)(gm)
        assert (gm(x.clone()) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not hasattr(gm, "good") and gm.get_submodule("moving").kernel_size == (1, 1)


class Read(nn.Module):
    """Weights that are read beside their layer's call."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depthwise = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.pointwise = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(self.wide(x))) + self.wide.weight.sum() + self.pointwise.weight.sum()


def test_weights_that_something_else_reads_stay() -> None:
    gm = edp_fx.trace(Read().eval(), torch.randn(2, 4, 8, 8))
    assert [(one.name, one.pointwise) for one in find_taps(gm)] == [("depthwise", None)]
    assert not find_kernels(gm)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035", "convnext_atto", "vgg11_bn", "regnety_002"])
def test_cropping_is_exact_where_the_outer_taps_are_zero_and_costs_what_was_said(name: str) -> None:
    model = timm.create_model(name, num_classes=10).eval()
    randomize_(model)
    x = torch.randn(2, 3, 64, 64)
    gm = edp_fx.trace(model, x)
    taps = find_taps(gm)[::2]
    assert taps
    predicted = CostModel(gm, edp_fx.analyze(gm, x), taps=taps).total({one.id: np.zeros(1) for one in taps})
    with torch.no_grad():
        dense = gm(x)
        for one in taps:
            weight = gm.get_parameter(one.parameter)
            weight.sub_(outer_taps([weight])[0])
        expected = gm(x)
        assert (expected - dense).abs().max() > 1e-3 * dense.abs().max()
        before = measure(gm, x).macs
        assert CropKernels(taps)(gm).report.rewritten == [one.name for one in taps]
        assert (gm(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert measure(gm, x).macs == predicted < before


def test_fading_leaves_the_inner_taps_alone() -> None:
    gm = edp_fx.trace(networks.resnet20(), torch.randn(2, 3, 16, 16))
    parameters = dict(gm.named_parameters())
    taps = find_taps(gm)[1]
    elements = Elements([taps], parameters)
    (site,) = elements.fading
    weight = parameters[taps.parameter].detach()
    before, (outer,) = weight.clone(), outer_taps([weight])
    elements.scale(site, weight, torch.tensor([0.25, 1.0]))
    assert torch.allclose(before - weight, 0.75 * outer)


def run(steps: int) -> tuple[Compressor, Tensor]:
    """ResNet-20 trained on noise for so many of 60 steps, with floors so high that nearly all kernels have to go."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(networks.resnet20(), x)
    compressor = compressor_of(
        gm,
        x,
        budget=Budget(macs=0.145),
        floor=0.9,
        kinds=KINDS,
        align=1,
        total_steps=60,
        start=0.05,
        end=0.8,
        decisions=12,
        removals=12,
    )
    train(compressor, steps)
    return compressor, x


def test_a_run_crops_kernels_and_keeps_the_function() -> None:
    compressor, x = run(60)
    small = compressor.finish()
    forms = {layer["name"]: layer["form"] for layer in compressor.layers()}
    cropped = [name for name, form in forms.items() if form == "pointwise"]
    assert cropped
    for name in cropped:
        assert [one for one, _ in small.get_submodule(name).named_children()] == ["pointwise"]
    assert measure(small, x).macs / compressor.dense == pytest.approx(compressor.macs, rel=1e-9)
    assert 0.14 <= compressor.macs <= 0.145
    assert compressor.max_rel_diff < 1e-5
    assert compressor.optimizer is not None
    trained = {id(one) for group in compressor.optimizer.param_groups for one in group["params"]}
    assert trained == {id(one) for one in small.parameters()}
    for one in small.parameters():  # momentum came along, of the size that the weight has now
        state = compressor.optimizer.state[one]
        assert state["momentum_buffer"].shape == one.shape


def test_a_saved_state_with_cropped_kernels_is_taken_up() -> None:
    compressor, x = run(50)
    fresh, _ = run(0)
    check_taken_up(compressor, fresh, x, "pointwise")


class Shrunk(nn.Module):
    """Depthwise layers on maps of 16x16, and on maps of one number, where all but the middle tap meets padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.large = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3)))
        self.small = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3)))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.large(self.stem(x)), 1)
        return self.head(self.small(x).flatten(1))


def test_taps_that_meet_only_padding_go_first() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(Shrunk(), x)
    compressor = compressor_of(
        gm,
        x,
        lr=0.01,
        budget=Budget(macs=0.99),
        kinds=("tap",),
        total_steps=20,
        start=0.12,
        end=0.5,
        decisions=2,
        removals=4,
    )
    before = copy.deepcopy(compressor.gm)
    train(compressor, 1)  # with gradients that nothing was decided by yet
    context = compressor._context()
    compressor.importance.accumulate(context)
    scores = dict(zip((one.name for one in compressor.survey.taps), compressor.importance.scores(context), strict=True))
    assert all((score == 0) == name.startswith("small") for name, score in scores.items())
    cropped = CropKernels([one for one in compressor.survey.taps if one.name.startswith("small")])
    with torch.no_grad():
        expected = before.eval()(x)
        cropped(before)
        assert torch.allclose(before(x), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": Budget(params=0.5)}, "budget of MACs only"),
        ({"budget": Budget(macs=0.5), "importance": "norm"}, "taylor only"),
    ],
)
def test_taps_are_weighed_in_training_to_a_budget_of_macs(options: dict, said: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(BudgetError, match=f"tap.*{said}"):
        Compressor(edp_fx.trace(networks.resnet20(), x), x, kinds=("channel", "tap"), **options)


def test_a_layer_that_may_be_separated_keeps_its_taps_till_then() -> None:
    compressor, _ = run(0)
    assert not {one.name for one in find_kernels(compressor.gm)} & {one.name for one in compressor.survey.taps}


def test_the_ring_inside_of_one_that_went_is_decided_by_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *(nn.Conv2d(8, 8, 7, padding=3, groups=8) for _ in range(2)))
    gm = edp_fx.trace(model, x)
    compressor = compressor_of(
        gm,
        x,
        lr=0.01,
        budget=Budget(macs=0.8),  # one of two rings of 24 among 2 * 49 + 3 taps
        kinds=("tap",),
        total_steps=40,
        start=0.05,
        end=0.8,
        decisions=6,
        removals=6,
    )
    train(compressor, 40)
    compressor.finish()
    assert sum(event["removed"] for event in compressor.events if event["event"] == "decision") == 1
    sizes = sorted(layer.kernel_size[0] for layer in compressor.gm.modules() if isinstance(layer, nn.Conv2d))
    assert sizes == [1, 5, 7]
    assert 0.7 < compressor.macs <= 0.8
    assert all((layer.weight != 0).all() for layer in compressor.gm.modules() if isinstance(layer, nn.Conv2d))


def test_a_run_may_leave_nothing_more_to_remove() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(2048, 2)), x)
    compressor = compressor_of(
        gm,
        x,
        lr=0.01,
        budget=Budget(macs=0.3),
        kinds=("tap",),
        total_steps=40,
        start=0.05,
        end=0.8,
        decisions=6,
        removals=6,
    )
    train(compressor, 40)
    assert measure(compressor.finish(), x).macs / compressor.dense == pytest.approx(compressor.macs)
    assert compressor.macs <= 0.3


def test_a_kind_named_twice_is_one_kind() -> None:
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(BudgetError, match=r"^tap can go"):
        Compressor(edp_fx.trace(networks.resnet20(), x), x, kinds=("tap", "tap"), budget=Budget(params=0.5))
