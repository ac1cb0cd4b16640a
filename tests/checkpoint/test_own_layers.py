"""Layers of a user's own class are saved as plain layers and operations, and load without the class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edp_fx
from edp_fx.checkpoint import check_saveable
from edp_fx.errors import CheckpointError
from edp_fx.inputs import randomize_


class StaticSame(nn.Conv2d):
    """Padding as a child, the convolution as a function."""

    def __init__(self, *sizes: int, **options: int) -> None:
        super().__init__(*sizes, **options)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class DynamicSame(nn.Conv2d):
    """Padding by the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.size()[-2:]
        low = max((-(-height // 2) - 1) * 2 + 3 - height, 0)
        across = max((-(-width // 2) - 1) * 2 + 3 - width, 0)
        if low > 0 or across > 0:
            x = F.pad(x, [across // 2, across - across // 2, low // 2, low - low // 2])
        return super().forward(x)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class Gained(Standardised):
    """A gain of its own after the convolution: not one linear map."""

    def __init__(self, *sizes: int, **options: int) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class Equalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (2.0 / self.in_features) ** 0.5, self.bias)


class NormAct(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class NormByFunction(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.rand(x.shape[0], 1, 1, 1, device=x.device).round()


class ChannelsLast(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


MADE: dict[str, Callable[[], nn.Module]] = {
    "padding in a child": lambda: StaticSame(8, 8, 3, stride=2),
    "padding by the size": lambda: DynamicSame(8, 8, 3, stride=2),
    "depthwise": lambda: StaticSame(8, 8, 3, groups=8),
    "a standardised weight": lambda: Standardised(8, 8, 3),
    "a parameter apart": lambda: Gained(8, 8, 3, padding=1),
    "a scaled weight": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Equalised(8, 8)),
    "a norm and an activation": lambda: NormAct(8),
    "a norm by its function": lambda: NormByFunction(8),
    "stochastic depth": DropPath,
    "a norm of channels last": lambda: ChannelsLast(8),
}


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.layer = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.norm(self.stem(x))))


@pytest.mark.parametrize("name", MADE)
def test_a_layer_of_ones_own_comes_back_plain(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(MADE[name]())
    randomize_(model)
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(model, x)
    before = {key: value.clone() for key, value in gm.state_dict().items()}
    check_saveable(gm, x)
    back = edp_fx.load(edp_fx.save(gm, tmp_path, x))
    assert all(not type(one).__module__.startswith("tests.") for one in back.modules())
    assert gm.code == edp_fx.trace(model, x).code, "the network itself was rewritten"
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())
    larger = torch.randn(3, 3, 23, 21)
    for images in (x, larger):
        torch.testing.assert_close(back.eval()(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    assert {key for key, _ in gm.named_parameters()} <= set(back.state_dict()), "a weight has another name"
    again = edp_fx.insert(edp_fx.trace(back, x))
    torch.testing.assert_close(again.eval()(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["a norm and an activation", "a norm by its function"])
def test_a_norm_of_ones_own_goes_on_training(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(MADE[name]())
    randomize_(model)
    x = torch.randn(4, 3, 8, 8)
    back = edp_fx.load(edp_fx.save(edp_fx.trace(model, x), tmp_path, x))
    for network in (model.train(), back.train()):
        network(x)
    moved = model.layer.running_mean
    torch.testing.assert_close(back.state_dict()["layer.running_mean"], moved)
    torch.testing.assert_close(back.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_stochastic_depth_still_drops_in_training(tmp_path: Path) -> None:
    model = Net(DropPath())
    x = torch.randn(64, 3, 4, 4)
    back = edp_fx.load(edp_fx.save(edp_fx.trace(model, x), tmp_path, x)).train()
    dropped = back(x).flatten(1).abs().sum(1) == 0
    assert 0 < int(dropped.sum()) < 64


def test_a_compressed_network_of_such_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(StaticSame(8, 12, 3, stride=2), NormAct(12), Standardised(12, 6, 3))
    model = nn.Sequential(Net(body), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    randomize_(model)
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 4) for _ in range(4)]
    small = edp_fx.compress(model, batches, epochs=1, macs=0.6)
    x = torch.randn(2, 3, 16, 16)
    back = edp_fx.load(edp_fx.save(small, tmp_path, x))
    torch.testing.assert_close(back(x), small.eval()(x), rtol=1e-4, atol=1e-5)
    assert sum(one.numel() for one in back.parameters()) < sum(one.numel() for one in model.parameters())


def test_one_that_cannot_be_traced_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Noted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            x.data = x
            return super().forward(x)

    x = torch.randn(2, 3, 8, 8)
    gm = edp_fx.trace(nn.Sequential(Noted(3, 4, 1)), x)
    with pytest.raises(
        CheckpointError, match=r"the layer '0' of your own class Noted: .*'data' of a tensor is assigned"
    ):
        edp_fx.save(gm, tmp_path / "out", x)
    assert not (tmp_path / "out").exists()
