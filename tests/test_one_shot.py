"""Without training: what goes is chosen and made up for by a few hundred images, on networks that learnt something."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import edp_fx
from edp_fx.compressor import Budget, Compressor
from edp_fx.compressor.reconstruction import Reader, Reconstruction
from edp_fx.data import load_data
from edp_fx.errors import BudgetError, DataError
from edp_fx.train import Recipe, Trainer, evaluate

SIDE = 16
EXAMPLE = torch.zeros(2, 3, SIDE, SIDE)


class Convolutional(nn.Module):
    """A residual group of several readers and writers, a depthwise layer, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(24, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm2d(48), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(48, 24, 1, bias=False), nn.BatchNorm2d(24))
        self.more = nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(torch.cat([x, self.more(x)], 1).mean((2, 3)))


class Attention(nn.Module):
    """Tokens of 4x4 pixels, one block of two heads; no norm mixes the hidden channels of its MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(x)).mean(1))


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_data("digits", batch_size=64, img_size=SIDE, seed=0)


@pytest.fixture(scope="module")
def trained(digits: Any) -> Callable[[type[nn.Module]], fx.GraphModule]:
    known: dict[type[nn.Module], fx.GraphModule] = {}

    def train(kind: type[nn.Module]) -> fx.GraphModule:
        if kind not in known:
            torch.manual_seed(0)
            recipe = Recipe(epochs=6, lr=0.1 if kind is Convolutional else 0.05)
            known[kind] = Trainer(edp_fx.trace(kind(), EXAMPLE), digits.train, recipe).run().model.cpu().eval()
        return copy.deepcopy(known[kind])

    return train


def error(small: nn.Module, whole: nn.Module, data: Any) -> float:
    """Relative, of the outputs for test images."""
    with torch.no_grad():
        images = torch.cat([batch for batch, _ in data.test])
        wanted = whole(images)
        return float((small.eval()(images) - wanted).norm() / (wanted - wanted.mean(0)).norm())


@pytest.mark.parametrize(("kind", "options"), [(Convolutional, {}), (Attention, {}), (Attention, {"kinds": ("head",)})])
def test_with_images_a_trained_network_loses_less(
    kind: type[nn.Module], options: dict[str, Any], trained: Any, digits: Any
) -> None:
    whole = trained(kind)
    macs = 0.9 if options else 0.6
    small = edp_fx.compress(whole, digits.train, epochs=0, macs=macs, align=1, **options)
    assert edp_fx.measure(small, EXAMPLE).macs <= macs * edp_fx.measure(whole, EXAMPLE).macs
    blind = edp_fx.compress(
        whole,
        None,
        epochs=0,
        macs=macs,
        align=1,
        method="one-shot",
        importance="norm",
        example_inputs=EXAMPLE,
        **options,
    )
    share = 0.6 if kind is Convolutional else 0.8
    assert error(small, whole, digits) < share * error(blind, whole, digits)
    dense, left = evaluate(whole, digits.test).accuracy, evaluate(small, digits.test).accuracy
    assert dense > (0.9 if kind is Convolutional else 0.4)
    assert left > dense - (0.05 if kind is Convolutional else 0.1)
    assert kind is Attention or left > evaluate(blind, digits.test).accuracy


def test_the_same_images_give_the_same_network(trained: Any, digits: Any) -> None:
    batches = [images for images, _ in digits.test]
    first, second = (
        edp_fx.compress(trained(Convolutional), batches, epochs=0, macs=0.7, example_inputs=EXAMPLE) for _ in range(2)
    )
    for one, two in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_ranks_are_weighed_beside_channels(trained: Any, digits: Any) -> None:
    whole = trained(Convolutional)
    small = edp_fx.compress(whole, digits.train, epochs=0, macs=0.5, align=1, kinds=("rank", "channel"))
    assert set(small.meta["edp_fx.run"]["kinds"]) == {"rank", "channel"}
    assert error(small, whole, digits) < 0.6


def test_a_channel_that_others_foretell_goes_before_one_that_matters_less() -> None:
    """Norms and gradients would take the small one; the layer behind can do without the copy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 8, 1), nn.Conv2d(8, 5, 1))
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7] = 2 * model[0].weight[6], 2 * model[0].bias[6]
        model[0].weight[0] *= 0.3
    x = torch.randn(64, 12, 6, 6)
    gm = edp_fx.trace(model, x[:2])
    measure = Reconstruction.of(gm, [(some,) for some in x.split(8)])
    compressor = Compressor(
        gm, x[:2], budget=Budget(macs=0.9), kinds=("channel",), importance=measure, align=1, total_steps=0
    )
    scores = measure.scores(_context(compressor)).numpy()
    assert scores.argmin() in (6, 7)
    assert scores.min() < 0.02 * np.median(scores)
    assert scores[0] < scores[[1, 2, 3, 4, 5]].max()


def test_a_classifier_is_weighed_by_its_fisher_information() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    one = torch.randn(1, 6)
    gm = edp_fx.trace(nn.Sequential(model), one)
    seen = Reconstruction.of(gm, [(one.expand(256, 6),) for _ in range(32)]).seen["0"]
    odds = model(one).softmax(1)[0].detach().double()
    assert torch.allclose(torch.as_tensor(seen.gradients), odds.diag() - torch.outer(odds, odds), atol=0.01)


def test_what_goes_one_after_the_other_costs_what_it_costs_together() -> None:
    """The closed form: tr(W (Σ_PP - Σ_PR Σ_RR⁻¹ Σ_RP) W'), whichever way round."""
    dice = torch.Generator().manual_seed(0)
    mixed = torch.randn(10, 12, generator=dice, dtype=torch.double)
    covariance = mixed @ mixed.T / 12 + 0.1 * torch.eye(10, dtype=torch.double)
    weight = torch.randn(4, 10, generator=dice, dtype=torch.double)
    owner = np.array([0, 0, 1, 2, 2, 3, -1, 4, 5, -1])

    def reader() -> Reader:
        return Reader(weight.T @ weight, torch.linalg.inv(covariance), owner)

    gone = np.isin(owner, [0, 2, 4])
    lost, left = torch.from_numpy(np.flatnonzero(gone)), torch.from_numpy(np.flatnonzero(~gone))
    across = covariance[lost][:, left]
    rest = covariance[lost][:, lost] - across @ torch.linalg.solve(covariance[left][:, left], across.T)
    wanted = float((weight[:, lost] @ rest @ weight[:, lost].T).trace())
    for order in ([[0, 2, 4]], [[0], [2], [4]], [[4], [0, 2]], [[2, 4], [], [0]]):
        mine = reader()
        assert sum(mine.without(np.array(some, dtype=np.int64)) for some in order) == pytest.approx(wanted)
        assert list(mine.owner) == [1, 3, -1, 5, -1]


def _context(compressor: Compressor) -> Any:
    from edp_fx.compressor.importance import Context

    return Context(compressor.elements, dict(compressor.gm.named_parameters()))


def test_wrong_uses_get_one_line(trained: Any) -> None:
    whole = trained(Convolutional)
    with pytest.raises(BudgetError, match="needs images: give data"):
        edp_fx.compress(whole, None, epochs=0, macs=0.6, method="one-shot", example_inputs=EXAMPLE)
    with pytest.raises(DataError, match="the data has no images"):
        edp_fx.compress(whole, [], epochs=0, macs=0.6, example_inputs=EXAMPLE)
    with pytest.raises(BudgetError, match="has not observed the network"):
        Compressor(whole, EXAMPLE, budget=Budget(macs=0.6), importance="reconstruction")
