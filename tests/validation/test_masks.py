"""Masks on what goes in and comes out of layers are zeros in their weights; what is undone is as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.channels import analyze
from edp_fx.inputs import randomize_
from edp_fx.validation import masking
from edp_fx.validation.layers import masked_layers
from edp_fx.validation.samples import outputs
from edp_fx.validation.undo import Undo

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """Convolutions of every shape of weight, two linear layers with one weight, one called inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depth, self.point = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, bias=False)
        self.back = nn.ConvTranspose2d(6, 8, 2)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.grouped(self.plain(x).relu()).sigmoid())
        x = self.back(self.point(x).relu()).mean((2, 3))
        return self.head(self.two(self.one(x).relu()).sigmoid())


def model_of(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "layers":
        return Layers(), IMAGE
    if name == "vit":
        return timm.create_model("test_vit", num_classes=5), torch.randn(2, 3, 160, 160)
    return timm.create_model("test_resnet", num_classes=5), torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("name", ["layers", "vit", "resnet"])
def test_masks_give_what_zeros_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(name)
    randomize_(model)
    gm, x = edp_fx.trace(model.double().eval(), x.double()), x.double()
    graph = analyze(gm, x)
    keep = masking.random_keep(graph, 0)
    masked = masking.masked_run(gm, graph, keep, (x,))
    assert masking.difference(masking.plain_run(gm, (x,)), masked) > 0.01
    monkeypatch.setattr(masking, "masked_layers", lambda gm, gone: {})
    assert masking.difference(masking.masked_run(gm, graph, keep, (x,)), masked) < 1e-10


def test_layers_whose_weights_others_read_are_left_out() -> None:
    gm = edp_fx.trace(Layers().eval(), IMAGE)
    gone = {id(one): {0: torch.tensor([1])} for one in gm.parameters()}
    named = {name for name, module in gm.named_modules() if module in masked_layers(gm, gone)}
    assert named == {"plain", "point", "head"}
    del gone[id(gm.plain.bias)]  # the mask would zero it, too
    assert gm.plain not in masked_layers(gm, gone)


def test_what_was_pruned_is_undone_again_and_again() -> None:
    model = timm.create_model("test_vit", num_classes=5)
    randomize_(model)
    x = torch.randn(2, 3, 160, 160)
    gm = edp_fx.trace(model.eval(), x)
    graph, before, undo = analyze(gm, x), outputs(gm, (x,)), Undo(gm)
    code = gm.code

    def prune(network: fx.GraphModule, seed: int) -> None:
        masking.prune(network, graph, masking.random_keep(graph, seed))

    for seed in range(3):
        prune(gm, seed)
        want = copy.deepcopy(gm)
        assert masking.plain_run(gm, (x,))[0].shape == before[0].shape
        undo.restore()
        undo.restore()
        assert gm.code == code
        assert torch.equal(outputs(gm, (x,))[0], before[0])
        prune(gm, seed)
        assert gm.code == want.code
        undo.restore()


def test_a_proof_leaves_the_network_as_it_was() -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    x = torch.randn(2, 3, 96, 96)
    gm = edp_fx.trace(model, x)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    places = {name: id(value) for name, value in gm.named_parameters()}
    code, modes = gm.code, [module.training for module in gm.modules()]
    graph = edp_fx.analyze(gm, x)
    assert graph.unproved is None
    assert graph.prunable
    assert gm.code == code
    assert [module.training for module in gm.modules()] == modes
    assert {name: id(value) for name, value in gm.named_parameters()} == places
    assert all(np.array_equal(value, before[name]) for name, value in gm.state_dict().items())


def test_sizes_that_are_tried_and_do_not_run_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(2, 3, 160, 160)
    gm = edp_fx.trace(timm.create_model("test_vit"), x)  # its embeddings of places are of one size of image
    assert edp_fx.analyze(edp_fx.insert(gm), x).unproved is None
    assert capfd.readouterr().err == ""


class Standardised(nn.Conv2d):
    """A weight whose dead slices are not zero."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


@pytest.mark.parametrize("seed", range(3))
def test_products_of_what_is_not_zero_when_dead_are_over_the_kept(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Sigmoid(), Standardised(8, 6, 3, padding=1), nn.Sigmoid(), nn.Flatten(2),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), Centred(6, 4), nn.Tanh(), nn.Linear(4, 2),
    ).double()  # fmt: skip
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = analyze(edp_fx.trace(model, x), x)
    assert {"0", "2"} <= {name for group in graph.prunable for name in group.producers}
    keep = masking.random_keep(graph, seed)
    other = (torch.randn(3, 3, 6, 6, dtype=torch.float64),)
    masked, pruned = masking.masked_run(graph.gm, graph, keep, other), masking.pruned_run(graph.gm, graph, keep, other)
    assert masking.difference(masked, pruned) < 1e-9


def test_groups_of_one_size_keep_different_numbers() -> None:
    layers = [nn.Conv2d(3 if number == 0 else 8, 8, 1) for number in range(7)]
    graph = analyze(edp_fx.trace(nn.Sequential(*layers), IMAGE), IMAGE)
    for seed in range(5):
        keep = masking.random_keep(graph, seed)
        assert len({int(kept.sum()) for kept in keep.values()}) == len(keep) == 6
