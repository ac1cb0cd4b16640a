"""What is removed is made up for: exactly where it can be, and else better than not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import edp_fx
from edp_fx.compensation import Refit
from edp_fx.compensation.maps import LinearMap, watched
from edp_fx.compensation.moments import Moments, regression
from edp_fx.inputs import randomize_
from edp_fx.passes.prune import prune


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as EfficientNet-Lite's do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, stride=2)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Residual(nn.Module):
    """One group with several writers and several readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x + self.first(x)
        return self.head(x), self.second(x)


class Dense(nn.Module):
    """A concatenation: the reader's inputs are of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 5, 1)
        self.norm = nn.BatchNorm2d(13)
        self.head = nn.Conv2d(13, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.left(x), self.right(x)], 1)))


class Tokens(nn.Module):
    """Linear layers on [images, tokens, channels]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x.flatten(2).transpose(1, 2)))


def chain(*behind: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 1), *copy.deepcopy(behind))


# the removed channels are linear combinations of others, plus a constant where the last is True
EXACT: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "pointwise": (chain(nn.Conv2d(8, 4, 1)), True),
    "pointwise without a bias": (chain(nn.Conv2d(8, 4, 1, bias=False), nn.ReLU()), True),
    "bias by the norm behind": (chain(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)), True),
    "padded, no constant": (chain(nn.Conv2d(8, 4, 3, padding=1)), False),
    "strided and dilated": (chain(nn.Conv2d(8, 4, 3, stride=2, dilation=2, padding="valid")), True),
    "pads by itself": (chain(Padded(8, 4)), False),
    "pooled into a linear layer": (chain(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)), True),
    "several readers and writers": (Residual, False),
    "concatenation": (Dense, False),
    "tokens": (Tokens, True),
}


def without(gm: fx.GraphModule, inputs: Tensor, elements: list[int], producer: str) -> tuple[fx.GraphModule, dict]:
    """Elements of a layer's group removed, as they are."""
    small = copy.deepcopy(gm)
    graph = edp_fx.analyze(small, inputs[:2], check=False)
    (group,) = graph.output_groups[producer]
    keep = np.ones(group.size, dtype=bool)
    keep[elements] = False
    report = prune(small, graph, {group.id: keep}).report
    return small, report.facts["kept"]


@pytest.mark.parametrize("name", EXACT)
def test_a_linear_combination_of_what_stays_is_made_up_for_exactly(name: str) -> None:
    make, constant = EXACT[name]
    torch.manual_seed(0)
    model = make().double().eval()
    randomize_(model)
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    writers = [layer for layer in layers if layer.weight.shape[0] == 8]
    mixing = torch.randn(2, 6, dtype=torch.double)
    with torch.no_grad():
        for layer in writers:
            layer.weight[6:] = torch.einsum("ij,j...->i...", mixing, layer.weight[:6])
            assert layer.bias is not None
            if not constant:
                layer.bias.zero_()
            layer.bias[6:] = mixing @ layer.bias[:6] + (torch.tensor([1.0, -2.0]) if constant else 0.0)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and not constant:
                norm.running_mean.zero_()
                norm.bias.zero_()
    x = torch.randn(24, 3, 9, 9, dtype=torch.double)
    gm = edp_fx.trace(model, x[:2]).eval()
    first = next(name for name, layer in gm.named_modules() if layer is not None and name and _rows(layer) == 8)
    small, kept = without(gm, x, [6, 7], first)
    with torch.no_grad():
        wanted = torch.cat([one.flatten() for one in _outputs(gm, x)])
        assert (torch.cat([one.flatten() for one in _outputs(small, x)]) - wanted).norm() > 0.05 * wanted.norm()
        report = Refit(small, gm, kept, [(some,) for some in x[:16].split(4)], ridge=0.0).run()
        assert report.rewritten
        error = (torch.cat([one.flatten() for one in _outputs(small, x)]) - wanted).norm() / wanted.norm()
    assert error < 1e-6


def _rows(layer: nn.Module) -> int:
    return layer.weight.shape[0] if isinstance(layer, (nn.Conv2d, nn.Linear)) else 0


def _outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    result = model(x)
    return result if isinstance(result, tuple) else (result,)


def test_a_network_that_lost_nothing_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    randomize_(model)
    x = torch.randn(8, 3, 8, 8)
    gm = edp_fx.trace(model, x[:2])
    same = copy.deepcopy(gm)
    assert not Refit(same, gm, {}, [(x,)]).run().rewritten
    for name, value in gm.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert same.training == gm.training


def test_what_has_no_weights_of_its_own_to_change_gets_its_mean_or_is_refused() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 4, 1, bias=False)),
    )  # fmt: skip
    randomize_(model)
    x = torch.randn(16, 3, 6, 6)
    gm = edp_fx.trace(model, x[:2]).eval()
    small, kept = without(gm, x, [0, 1, 2], "0")
    report = Refit(small, gm, kept, [(some,) for some in x.split(8)]).run()
    assert report.rewritten == ["2"]
    assert {one.node: one.reason.partition(";")[0] for one in report.refused} == {
        "2": "a transposed convolution spreads its inputs",
        "4": "its weight is computed",
    }
    with torch.no_grad():
        wanted, found = _upto(gm, x), _upto(small, x)
    assert torch.allclose(wanted.mean((0, 2, 3)), found.mean((0, 2, 3)), atol=1e-5)


def _upto(gm: fx.GraphModule, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = gm.get_submodule("2").register_forward_hook(lambda *found: seen.append(found[2].clone()))
    gm(x)
    handle.remove()
    return seen[0]


def test_statistics_of_a_norm_behind_a_depthwise_layer_follow_those_of_the_whole_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.BatchNorm2d(8),
    )  # fmt: skip
    randomize_(model)
    x = torch.randn(32, 3, 8, 8)
    gm = edp_fx.trace(model, x[:2]).eval()
    small, kept = without(gm, x, [0, 1, 2, 3, 4, 5], "0")
    report = Refit(small, gm, kept, [(some,) for some in x.split(8)]).run()
    assert report.rewritten == ["2", "4"]
    with torch.no_grad():
        wanted, found = gm(x), small(x)
    assert torch.allclose(wanted.mean((0, 2, 3)), found.mean((0, 2, 3)), atol=0.02)
    assert torch.allclose(wanted.std((0, 2, 3)), found.std((0, 2, 3)), rtol=0.02)


@pytest.mark.parametrize("padding", ["same", 1, (0, 2)])
def test_patches_are_what_the_convolution_sees(padding: str | int | tuple[int, int]) -> None:
    layer = nn.Conv2d(3, 5, (3, 2), padding=padding, dilation=(1, 2))
    x = torch.randn(2, 3, 7, 6)
    outputs, found = watched(layer, lambda: layer(x))
    assert isinstance(found, LinearMap)
    lines = found.patches() @ layer.weight.flatten(1).T + layer.bias
    wanted = outputs.movedim(1, -1).reshape(-1, 5)
    assert torch.allclose(lines, wanted, atol=1e-5)
    places = torch.tensor([3, 40, 7])
    assert torch.equal(found.patches(places), found.patches()[places])


def held_out_error(count: int, ridge: float) -> float:
    """Of predictions from ``count`` positions, for others; 1.0 is that of predicting nothing."""
    dice = torch.Generator().manual_seed(0)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 30, generator=dice)
        return x, torch.randn(count, 2, generator=dice) + 0.3 * x[:, :2]

    moments = Moments()
    for x, y in (drawn(count // 8) for _ in range(8)):
        moments.add(x, y)
    slope, constant = regression(moments, ridge)
    x, y = drawn(4000)
    return float((y - x @ slope.T.float() - constant.float()).var() / y.var())


def test_few_positions_are_not_learnt_by_heart() -> None:
    assert held_out_error(40, ridge=0.0) > 1.5
    assert held_out_error(40, ridge=1e-3) < 1.2
    assert held_out_error(4000, ridge=1e-3) < 0.96


@pytest.mark.parametrize("same", [1, 25])
def test_positions_that_say_the_same_count_for_one(same: int) -> None:
    dice = torch.Generator().manual_seed(0)
    moments = Moments()
    for _ in range(200):
        x = torch.randn(8, 12, generator=dice).repeat_interleave(same, 0)
        moments.add(x, x[:, :0])
    assert moments.alike == pytest.approx(same, rel=0.1)


class Skipping(nn.Module):
    """What a bottleneck cannot pass on is added to what a layer, or a layer and what scales and shifts it, sees."""

    def __init__(self, *behind: nn.Module) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 5, 1)
        self.side = nn.Sequential(nn.Conv2d(8, 5, 1), *behind)
        self.head = nn.Conv2d(5, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.up(self.down(x)) + self.side(x))


def test_what_is_fitted_itself_before_the_sum_leaves_the_layer_to_its_own_outputs() -> None:
    model = Skipping(nn.Dropout(0.5), nn.BatchNorm2d(5)).eval()
    randomize_(model)
    x = torch.randn(16, 3, 7, 7)
    gm = edp_fx.trace(model, x[:2]).eval()
    small, kept = without(gm, x, [0, 1, 2, 3], "stem")
    before = float((small(x) - gm(x)).detach().norm())
    report = Refit(small, gm, kept, [(some,) for some in x.split(4)]).run()
    assert {"side.0", "side.2"} <= set(report.rewritten)
    assert float((small(x) - gm(x)).detach().norm()) < 0.7 * before


@pytest.mark.parametrize(
    ("behind", "made_up"),
    [([], True), ([nn.BatchNorm2d(5), nn.Dropout(0.5)], True), ([nn.BatchNorm2d(5), nn.ReLU()], False)],
)
def test_what_a_skip_connection_lost_is_made_up_for_behind_it(behind: list[nn.Module], made_up: bool) -> None:
    torch.manual_seed(0)
    model = Skipping(*behind).double().eval()
    randomize_(model)
    x = torch.randn(24, 3, 7, 7, dtype=torch.double)
    gm = edp_fx.trace(model, x[:2]).eval()
    small, kept = without(gm, x, [0, 1, 2], "down")  # one channel left of three that the images have
    with torch.no_grad():
        small.stem.weight.add_(torch.randn_like(small.stem.weight) * 1e-3)  # all behind it is seen as changed
        kept = {**kept, "stem.weight": {1: np.arange(3)}}
        report = Refit(small, gm, kept, [(some,) for some in x[:16].split(4)], ridge=0.0).run()
        wanted, found = gm(x), small(x)
    assert "side.0" in report.rewritten
    error = float((found - wanted).norm() / wanted.norm())
    assert error < 1e-5 if made_up else error > 1e-2
