"""Layers that end as a depthwise and a pointwise convolution: which, how near, how exact, and that a run makes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.channels.kernels import beyond_one_kernel, find_kernels, kernels_of
from edp_fx.compressor import Budget, Compressor
from edp_fx.compressor.kinds.kernel import with_kernels
from edp_fx.cost import CostModel, measure
from edp_fx.inputs import randomize_
from edp_fx.passes.insert import InsertPairs
from examples import networks
from tests.helpers.noise import check_taken_up, compressor_of, train


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (4, 12, 5, 5), (6, 5, 7), (8, 3, 2, 3, 3)])
def test_the_part_of_one_kernel_per_channel_is_nearly_the_nearest(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    kernel, mixing = kernels_of(weight, 1)
    assert kernel.shape == (shape[1], 1, *shape[2:]) and mixing.shape == (*shape[:2], *(1 for _ in shape[2:]))
    (rest,) = beyond_one_kernel([weight])
    assert torch.allclose(weight - rest, mixing * kernel.squeeze(1), atol=1e-6)
    singular = torch.linalg.svdvals(weight.flatten(2).transpose(0, 1))
    least = singular[:, 1:].square().sum(1)  # Eckart and Young
    found = rest.flatten(2).transpose(0, 1).square().sum((1, 2))
    assert (found >= least * (1 - 1e-4)).all() and found.sum() <= 1.02 * least.sum()


def test_the_parts_of_many_weights_are_those_of_each() -> None:
    weights = [torch.randn(shape) for shape in [(16, 8, 3, 3), (6, 5, 7), (4, 12, 5, 5), (8, 3, 3, 3), (4, 2, 9)]]
    for weight, rest in zip(weights, beyond_one_kernel(weights), strict=True):
        assert torch.allclose(rest, beyond_one_kernel([weight])[0], atol=1e-6)


def test_the_parts_are_the_same_with_channels_innermost() -> None:
    weight = torch.randn(16, 8, 3, 3)
    (rest,) = beyond_one_kernel([weight.to(memory_format=torch.channels_last)])
    assert torch.allclose(rest, beyond_one_kernel([weight])[0], atol=1e-6)


def test_a_weight_of_one_kernel_per_channel_has_nothing_beyond() -> None:
    weight = torch.randn(6, 4, 1, 1) * torch.randn(4, 3, 3)
    assert beyond_one_kernel([weight])[0].abs().max() < 1e-6
    double = torch.randn(6, 4, 1, 1).double() * torch.randn(4, 3, 3)
    assert beyond_one_kernel([double])[0].abs().max() < 1e-14  # in the weight's own precision
    assert beyond_one_kernel([torch.zeros(6, 4, 3, 3)])[0].abs().max() == 0


class Layers(nn.Module):
    """What may be separated, and what may not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.one = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.pointwise(self.plain(x)))
        x = self.twice(self.twice(x)) + self.one(x.mean(1, keepdim=True)).mean((2, 3), keepdim=True)
        return self.head(x.mean((2, 3)))


def test_which_layers_may_be_separated() -> None:
    gm = edp_fx.trace(Layers(), torch.randn(2, 3, 8, 8))
    assert [one.name for one in find_kernels(gm)] == ["plain"]
    gm = edp_fx.trace(timm.create_model("nf_regnet_b0"), torch.randn(2, 3, 32, 32))
    # a weight-standardised convolution computes its weight
    assert "stem.conv" not in [one.name for one in find_kernels(gm)]


def plain(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return gm


def pairs(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return edp_fx.insert(gm)


@pytest.mark.parametrize("form", [plain, pairs])
@pytest.mark.parametrize(("name", "size"), [("resnet10t", 64), ("vgg", 64)])
def test_separating_is_exact_where_one_kernel_is_all(
    form: Callable[..., torch.fx.GraphModule], name: str, size: int
) -> None:
    model = networks.CifarVGG([16, "pool", 32, 32, "pool", 64, 64]) if name == "vgg" else timm.create_model(name)
    randomize_(model.eval())
    x = torch.randn(2, 3, size, size)
    gm = form(edp_fx.trace(model, x)).eval()
    layers = find_kernels(gm)
    assert layers
    parameters = dict(gm.named_parameters())
    with torch.no_grad():
        dense = gm(x)
        for layer in layers:
            parameters[layer.parameter].sub_(beyond_one_kernel([parameters[layer.parameter]])[0])
        expected = gm(x)
        assert (expected - dense).std() > 0.1 * dense.std()  # else the rest would show nothing
        InsertPairs(form="kernels", rank=1, layers=tuple(one.name for one in layers))(gm)
        assert (gm(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    for layer in layers:
        made = gm.get_submodule(layer.name)
        assert made.depthwise.groups == made.depthwise.in_channels == made.pointwise.in_channels
        assert made.pointwise.kernel_size == (1,) * len(made.pointwise.kernel_size)
        kernels, columns = made.depthwise.weight.flatten(1).norm(dim=1), made.pointwise.weight.flatten(1).norm(dim=0)
        assert torch.allclose(kernels, columns, rtol=1e-4)  # both factors of a channel learn as fast
    small = edp_fx.prune_and_merge(gm, x)
    with torch.no_grad():
        assert (small(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("form", [plain, pairs])
def test_a_separated_layer_costs_what_its_two_layers_cost(form: Callable[..., torch.fx.GraphModule]) -> None:
    x = torch.randn(2, 3, 16, 16)
    gm = form(edp_fx.trace(networks.resnet20(), x))
    layers = find_kernels(gm)
    assert len(layers) == 19
    cost = CostModel(gm, edp_fx.analyze(gm, x), changes=[partial(with_kernels, kernels=layers)])
    assert cost.dense == measure(networks.resnet20(), x).macs
    chosen = layers[3:9]
    predicted = cost.total({layer.id: torch.zeros(1).numpy() for layer in chosen})
    small = copy.deepcopy(gm)
    InsertPairs(form="kernels", rank=1, layers=tuple(one.name for one in chosen))(small)
    assert predicted == measure(edp_fx.prune_and_merge(small, x), x).macs


def run(steps: int, *, floor: float = 0.9, align: int = 1) -> tuple[Compressor, Tensor]:
    """ResNet-20 trained on noise for so many of 40 steps; by default with floors so high that kernels have to go."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(networks.resnet20(), x)
    compressor = compressor_of(
        gm,
        x,
        budget=Budget(macs=0.3),
        floor=floor,
        kinds=("channel", "kernel"),
        align=align,
        total_steps=40,
        start=0.12,
        end=0.5,
        decisions=6,
        removals=3,
    )
    train(compressor, steps)
    return compressor, x


@pytest.mark.parametrize("align", [1, 4])
def test_kernels_that_overshoot_leave_no_budget_unspent(align: int) -> None:
    compressor, x = run(40, floor=0.15, align=align)
    share = measure(compressor.finish(), x).macs / compressor.dense
    assert 0.295 <= share <= 0.3  # the kernels of one layer are up to 0.05 of the MACs


def test_channels_beside_kernels_stay_aligned() -> None:
    compressor, _ = run(40, floor=0.15, align=8)
    layers = compressor.layers()
    assert {layer["outputs"][1] % 8 for layer in layers[:-1]} == {0}
    assert any(layer["outputs"][1] < layer["outputs"][0] for layer in layers[:-1])
    assert any(layer["form"] == "separate" for layer in layers)


def test_channels_between_separated_layers_keep_their_floor() -> None:
    widths = (3, 16, 16, 16, 16)
    convolutions = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(model, x)  # no norm remembers which channels there were
    compressor = compressor_of(
        gm,
        x,
        budget=Budget(macs=0.15),
        floor=0.75,
        kinds=("channel", "kernel"),
        total_steps=40,
        start=0.12,
        end=0.5,
        decisions=6,
        removals=3,
    )
    floors = []
    for _ in range(40):
        train(compressor, 1)
        channels = [group.kind == "channel" for group in compressor.elements.groups]
        floors.append(compressor.progress.floors[channels].tolist())
    assert sum(layer["form"] == "separate" for layer in compressor.layers()) >= 2
    assert floors[0] and all(step == floors[0] for step in floors)


def test_a_run_separates_layers_and_keeps_the_function() -> None:
    compressor, x = run(40)
    small = compressor.finish()
    separate = [layer for layer in compressor.layers() if layer["form"] == "separate"]
    assert len(separate) > 5
    for layer in separate:
        assert small.get_submodule(layer["name"]).pointwise.out_channels == layer["outputs"][1]
        assert small.get_submodule(layer["name"]).depthwise.in_channels == layer["inputs"][1]
    assert measure(small, x).macs / compressor.dense == pytest.approx(compressor.macs, rel=1e-9)
    assert 0.25 <= compressor.macs <= 0.3
    assert compressor.max_rel_diff < 1e-5
    assert compressor.optimizer is not None
    trained = {id(one) for group in compressor.optimizer.param_groups for one in group["params"]}
    assert trained == {id(one) for one in small.parameters()}
    decayed = {
        id(one) for group in compressor.optimizer.param_groups if group["weight_decay"] for one in group["params"]
    }
    for name, one in small.named_parameters():  # of a product only one factor decays
        assert (id(one) in decayed) == (one.dim() > 1 and not name.endswith(".depthwise.weight")), name


def test_a_saved_state_with_separated_layers_is_taken_up() -> None:
    compressor, x = run(34)
    fresh, _ = run(0)
    check_taken_up(compressor, fresh, x, "separate")


def test_spectral_norm_is_left_as_it_is() -> None:
    norm = nn.utils.parametrizations.spectral_norm
    gm = edp_fx.trace(nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3)), torch.randn(2, 3, 8, 8)).train()
    before = copy.deepcopy(gm.state_dict())
    assert [one.name for one in find_kernels(gm)] == ["1"]
    InsertPairs(form="kernels", rank=1, layers=("1",))(gm)
    for key, value in gm.state_dict().items():
        if key.startswith("0."):
            assert torch.equal(value, before[key]), key
