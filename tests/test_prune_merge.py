"""Pruning and merging leaves the function as it was, on real networks with nothing left at its initial constant."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import edp_fx
from edp_fx.channels import ChannelGraph, analyze
from edp_fx.channels.kernels import find_kernels
from edp_fx.channels.residuals import find_branches
from edp_fx.compressor.kinds.branch import with_branches
from edp_fx.compressor.kinds.kernel import with_kernels
from edp_fx.cost import CostModel, measure
from edp_fx.errors import AnalysisError, BudgetError
from edp_fx.inputs import randomize_
from edp_fx.passes.branches import DropBranches
from edp_fx.passes.insert import InsertPairs
from edp_fx.passes.prune import Prune
from edp_fx.prune_merge import prune_and_merge
from edp_fx.validation import masking


def pairs_of(name: str, size: int, **options: Any) -> tuple[torch.fx.GraphModule, Tensor]:
    model = timm.create_model(name, **options).eval()
    randomize_(model)
    x = torch.randn(2, 3, size, size)
    return edp_fx.insert(edp_fx.trace(model, x), start="identity").eval(), x


def zeroed(gm: torch.fx.GraphModule, x: Tensor, seed: int = 0) -> dict[int, np.ndarray]:
    graph = analyze(gm, x)
    keep = masking.random_keep(graph, seed, exact_only=True)
    masking.zero_members(gm, graph, keep, ("producer", "consumer", "affine", "other"))
    return keep


def output(gm: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return gm.eval()(x)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(("name", "size"), [("resnet10t", 64), ("test_vit", 160), ("mobilenetv3_small_050", 64)])
def test_dead_channels_go_and_the_function_stays(name: str, size: int) -> None:
    gm, x = pairs_of(name, size)
    zeroed(gm, x)
    small = prune_and_merge(gm, x)
    other = torch.randn(3, 3, size, size)
    assert relative(output(gm, other), output(small, other)) < 1e-5
    assert measure(small, x).macs < 0.6 * measure(gm, x).macs
    assert measure(small, x).params < 0.8 * measure(gm, x).params


def test_other_image_size_second_prune_and_training_on() -> None:
    gm, x = pairs_of("resnet10t", 64)
    zeroed(gm, x)
    small = prune_and_merge(gm, x)
    larger = torch.randn(1, 3, 96, 96)
    assert relative(output(gm, larger), output(small, larger)) < 1e-5
    zeroed(small, x, seed=1)
    smaller = prune_and_merge(small, x)
    assert relative(output(small, x), output(smaller, x)) < 1e-5
    assert measure(smaller, x).macs < measure(small, x).macs
    smaller.train()
    loss = smaller(x).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())


def test_one_planted_fault_is_seen() -> None:
    """A kept channel too few changes the function by more than the tolerance: the comparison is not vacuous."""
    gm, x = pairs_of("resnet10t", 64)
    graph = analyze(gm, x)
    group = max(graph.prunable, key=lambda one: one.macs_share)
    kept = np.ones(group.size, dtype=bool)
    kept[0] = False
    pruned = Prune(graph, {group.id: kept})(copy.deepcopy(gm)).graph_module
    assert relative(output(gm, x), output(pruned, x)) > 1e-3


def test_kept_indices_are_reported_for_optimiser_state() -> None:
    gm, x = pairs_of("resnet10t", 64)
    zeroed(gm, x)
    before = dict(gm.named_parameters())
    small = prune_and_merge(gm, x, cost=lambda name, pair: True)
    report = next(one for one in small.meta["edp_fx.reports"] if one.name == "prune")
    after = dict(small.named_parameters())
    for name, axes in report.facts["kept"].items():
        if name in after:
            expected = before[name].detach()
            for axis, indices in axes.items():
                expected = expected.index_select(axis, torch.from_numpy(indices))
            assert torch.equal(expected, after[name])


def test_alignment_keeps_multiples_and_the_function() -> None:
    gm, x = pairs_of("resnet10t", 64)
    zeroed(gm, x)
    small = prune_and_merge(gm, x, align=8, cost=lambda name, pair: True)
    assert relative(output(gm, x), output(small, x)) < 1e-5
    convs = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) > 20
    assert all(conv.out_channels % 8 == 0 for conv in convs)


class Constant(nn.Module):
    """A channel that is dead but for its shift, behind an activation that does not keep 0."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.a, self.norm, self.act = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Hardswish()
        self.b = nn.Conv2d(6, 4, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.norm(self.a(x))))


def test_constant_channels_fold_into_the_reader_where_that_is_exact() -> None:
    x = torch.randn(2, 3, 8, 8)
    for padding, channels in ((0, 4), (1, 6)):
        model = Constant(padding).eval()
        randomize_(model)
        with torch.no_grad():
            model.a.weight[:2] = 0
        gm = edp_fx.trace(model, x)
        small = prune_and_merge(gm, x)
        assert relative(output(gm, x), output(small, x)) < 1e-5
        assert small.get_submodule("a").out_channels == channels


def test_dead_branches_go() -> None:
    model = timm.create_model("resnet10t").eval()
    randomize_(model)
    with torch.no_grad():
        model.layer2[0].bn2.weight.zero_()
        model.layer2[0].bn2.bias.zero_()
    x = torch.randn(2, 3, 64, 64)
    gm = edp_fx.trace(model, x)
    small = prune_and_merge(gm, x)
    assert relative(output(gm, x), output(small, x)) < 1e-5
    assert "layer2.0.conv1" not in dict(small.named_modules())


def in_double(model: nn.Module) -> tuple[torch.fx.GraphModule, ChannelGraph, Tensor]:
    """Traced, nothing left constant, with its analysis and tokens [3, 5, 6] of another batch size."""
    randomize_(model.eval())
    x, other = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    gm = edp_fx.trace(model.double(), x)
    return gm, analyze(gm, x), other


class Written(nn.Module):
    """Sizes taken from a tensor of other channels, and a table filled in place, as some attention modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qk, self.place = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, count, channels = x.shape
        q, k = self.qk(x).reshape(batch, count, 2, 4, channels // 4).permute(2, 0, 3, 1, 4).unbind(0)
        table = torch.zeros(count, count, 1, dtype=x.dtype)
        table[..., 0] = torch.arange(count)
        return (q @ k.transpose(-2, -1)).softmax(-1) + self.place(table).permute(2, 0, 1)


def test_each_group_alone_goes_where_sizes_come_from_other_channels() -> None:
    gm, graph, other = in_double(Written())
    assert len(graph.prunable) == 2
    for group in graph.prunable:
        keep = {group.id: np.arange(group.size) % 2 == 0}
        masked = masking.masked_run(gm, graph, keep, (other,))
        assert masking.difference(masked, masking.pruned_run(gm, graph, keep, (other,))) < 1e-9, group.name


class Thirds(nn.Module):
    """A third of a bias by its own length, as torchvision's Swin V2 leaves out the bias of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias.clone()
        third = bias.numel() // 3
        bias[third : 2 * third].zero_()
        q, k, v = nn.functional.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.out((q @ k.transpose(-2, -1)).softmax(-1) @ v)


def test_slices_by_a_length_that_shrinks_unevenly() -> None:
    gm, graph, other = in_double(Thirds())
    keep = {group.id: np.arange(group.size) < 5 for group in graph.prunable}  # of v only: a third of 21 is not 8
    assert len(keep) == 1
    masked = masking.masked_run(gm, graph, keep, (other,))
    assert masking.difference(masked, masking.pruned_run(gm, graph, keep, (other,))) < 1e-9


def test_folded_batch_norm() -> None:
    gm, x = pairs_of("resnet10t", 64)
    small = prune_and_merge(gm, x, fold=True)
    assert relative(output(gm, x), output(small, x)) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.modules())


def test_heads_whole_and_both_are_sound() -> None:
    model = timm.create_model("test_vit").eval()
    randomize_(model)
    model.double()
    x = torch.randn(2, 3, 160, 160).double()
    gm = edp_fx.trace(model, x)
    for heads in ("whole", "both"):
        graph = analyze(gm, x, heads=heads)
        assert any(group.kind == "head" for group in graph.prunable)
        keep = masking.random_keep(graph, 0)
        masked, pruned = masking.masked_run(gm, graph, keep, (x,)), masking.pruned_run(gm, graph, keep, (x,))
        assert masking.difference(masked, pruned) < 1e-9
        assert masking.difference(masking.plain_run(gm, (x,)), masked) > 0.1


def test_cost_model_counts_what_is_there() -> None:
    from fvcore.nn import FlopCountAnalysis

    model = timm.create_model("resnet10t").eval()
    x = torch.randn(1, 3, 64, 64)
    measured = measure(model, x)
    count = FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
    assert abs(measured.macs - sum(v for k, v in count.by_operator().items() if k in ("conv", "linear"))) < 1
    assert measured.params == sum(p.numel() for p in model.parameters())
    gm = edp_fx.insert(edp_fx.trace(model, x), start="identity")
    graph = analyze(gm, x)
    for metric, dense in (("macs", measured.macs), ("params", measured.params)):
        assert CostModel(gm, graph, metric).dense == pytest.approx(dense)
    keep = masking.random_keep(graph, 3)
    predicted = CostModel(gm, graph).total(keep)
    small = Prune(graph, keep)(copy.deepcopy(gm)).graph_module
    from edp_fx.passes.merge import MergePairs

    assert measure(MergePairs()(small).graph_module, x).macs == pytest.approx(predicted)
    with pytest.raises(BudgetError, match="joules"):
        CostModel(gm, graph, "joules")


def _put_out(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Numbers that the convolutions and linear layers put out of one sample, and positions, but of depthwise ones."""
    shapes: list[tuple[torch.Size, bool]] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            module.register_forward_hook(lambda _, __, out, depthwise=depthwise: shapes.append((out.shape, depthwise)))
    model(x)
    numbers = sum(shape.numel() for shape, _ in shapes) / len(x)
    return numbers, sum(shape.numel() / shape[1] for shape, depthwise in shapes if not depthwise) / len(x)


def test_what_layers_put_out_counts_by_number_and_by_position() -> None:
    x = torch.randn(2, 3, 64, 64)
    gm = edp_fx.trace(timm.create_model("resnet10t").eval(), x)
    graph = analyze(gm, x)
    kernels = find_kernels(gm)
    branches = find_branches(gm, graph, -1 - len(kernels))
    assert kernels and branches
    changes = [partial(with_kernels, kernels=kernels), partial(with_branches, branches=branches)]
    cost = CostModel(gm, graph, changes=changes, traffic=3.0, position=50.0)
    numbers, positions = _put_out(copy.deepcopy(gm), x)
    assert cost.dense == pytest.approx(measure(gm, x).macs + 3 * numbers + 50 * positions)
    keep = masking.random_keep(graph, 3)
    separated = [one for one in kernels if not set(one.nodes) & set(branches[0].nodes)][:3]
    assert separated
    small = DropBranches(branches[:1])(Prune(graph, keep)(copy.deepcopy(gm)).graph_module).graph_module
    small = InsertPairs(form="kernels", rank=1, layers=tuple(one.name for one in separated))(small).graph_module
    fewer, places = _put_out(copy.deepcopy(small), x)
    assert fewer < numbers and places < positions
    gone = {one.id: np.zeros(1) for one in (branches[0], *separated)}
    assert cost.total({**keep, **gone}) == pytest.approx(measure(small, x).macs + 3 * fewer + 50 * places)


def test_activation_memory_is_the_largest_sum_alive() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1))
    assert measure(chain, torch.randn(2, 3, 10, 10)).activation_bytes == (8 + 16) * 100 * 4


def test_wrong_keep_sets_are_named() -> None:
    gm, x = pairs_of("resnet10t", 64)
    graph = analyze(gm, x)
    group, fixed = graph.prunable[0], next(one for one in graph.groups if not one.prunable)
    with pytest.raises(AnalysisError, match=f"group {group.id} .*keep at least one"):
        Prune(graph, {group.id: np.zeros(group.size, dtype=bool)})(gm)
    with pytest.raises(AnalysisError, match="elements, the keep-set"):
        Prune(graph, {group.id: np.zeros(group.size + 1, dtype=bool)})(gm)
    with pytest.raises(AnalysisError, match="cannot be pruned"):
        Prune(graph, {fixed.id: np.zeros(fixed.size, dtype=bool)})(gm)
    with pytest.raises(AnalysisError, match="no group 9999"):
        Prune(graph, {9999: np.zeros(1, dtype=bool)})(gm)


def test_a_pair_of_rank_one_is_priced_as_merged_like_any_other() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
    inputs = torch.randn(2, 3, 8, 8)
    gm = edp_fx.insert(edp_fx.trace(net, inputs))
    graph = edp_fx.analyze(gm, inputs)
    Prune(graph, {group.id: np.arange(group.size) < 1 for group in graph.prunable if group.kind == "rank"})(gm)
    _, pairs, scale = CostModel(gm, analyze(gm, inputs)).terms
    merged = {pair.name: pair.merged.cost({}) * scale for pair in pairs}
    assert merged == {"0": 6 * 27 * 36, "2": 5 * 54 * 16, "5": 80 * 4}
