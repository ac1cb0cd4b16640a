"""Faults planted in our own rules and passes: the product itself must see each, never give a wrong network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.channels.rules import pointwise
from edp_fx.channels.rules.registry import REGISTRY, Entry
from edp_fx.errors import EdpError, RemovalError
from edp_fx.frontend import effective
from edp_fx.inputs import randomize_
from edp_fx.pairs import Pair
from edp_fx.passes import constants, dead, fold, prune, sizes
from edp_fx.validation.masking import zero_members
from edp_fx.validation.samples import outputs

aten = torch.ops.aten
IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """A residual block, a split and a gate, a literal size, two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.act = nn.ReLU()
        self.wide, self.point = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.b(self.act(self.a(x)))
        left, right = self.wide(x).chunk(2, 1)
        x = self.point(left * right.sigmoid()).reshape(-1, 8, 144).mean(2)
        return self.head(self.two(self.one(x).relu()))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    randomize_(model)
    return model.eval()


def frozen_by_proof(graph: edp_fx.ChannelGraph) -> list[str]:
    """Groups the proof has frozen, by name."""
    return [g.name for g in graph.groups if g.frozen and ("masked by" in g.frozen or "cannot be removed" in g.frozen)]


def prunes_right(graph: edp_fx.ChannelGraph) -> bool:
    """What is left free is right: the proof holds."""
    from edp_fx.validation.proof import prove

    return graph.prunable == prove(graph).prunable


def test_without_a_fault_nothing_is_said() -> None:
    gm = edp_fx.trace(network(), IMAGE)
    graph = edp_fx.analyze(gm, IMAGE)
    assert graph.unproved is None
    assert not frozen_by_proof(graph)
    assert len(graph.prunable) >= 4
    report = edp_fx.insert(gm).meta["edp_fx.reports"][-1]
    assert "undone" not in report.facts
    assert report.facts["max_rel_diff"] < 1e-5


# In the analysis -----------------------------------------------------------------------------------------------


def change_rule(monkeypatch: pytest.MonkeyPatch, operation: Any, wrap: Callable[[Any], Any]) -> None:
    entry = REGISTRY.rules.get(operation, Entry(pointwise))
    monkeypatch.setitem(REGISTRY.rules, operation, Entry(wrap(entry.rule), entry.births))
    REGISTRY.met.clear()


def rolled(rule: Any) -> Any:
    """An index off by one: what a rule gives its first output is shifted by one."""

    def wrong(sweep: Any, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        rule(sweep, func, args, kwargs, out)
        first = out[0] if isinstance(out, (tuple, list)) else out
        sweep.set(first, [one.with_atoms(np.roll(one.atoms, 1, one.axes[0])) for one in sweep.labels(first)])

    return wrong


def no_tie(rule: Any) -> Any:
    """A missing member: what should be tied is not."""

    def wrong(sweep: Any, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if len([one for one in args if isinstance(one, Tensor)]) > 1:
            sweep.set(out, sweep.labels(args[0]))
        else:
            rule(sweep, func, args, kwargs, out)

    return wrong


def swapped_axis(rule: Any) -> Any:
    """The labels of the channels on the axis of the samples' neighbour: of a square weight, in for out."""

    def wrong(sweep: Any, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        weight = args[1]
        if weight.shape[0] == weight.shape[1]:
            sweep.set(weight, [one.with_atoms(one.atoms.swapaxes(0, 1)) for one in sweep.labels(weight)])
        rule(sweep, func, args, kwargs, out)

    return wrong


@pytest.mark.parametrize(
    ("operation", "wrap"),
    [(aten.split, rolled), (aten.add, no_tie), (aten.mul, no_tie), (aten.convolution, swapped_axis)],
    ids=["index off by one", "missing tie of a sum", "missing tie of a product", "swapped axis"],
)
def test_a_wrong_rule_freezes_its_group(monkeypatch: pytest.MonkeyPatch, operation: Any, wrap: Any) -> None:
    change_rule(monkeypatch, operation, wrap)
    try:
        graph = edp_fx.analyze(edp_fx.trace(network(), IMAGE), IMAGE)
        found = frozen_by_proof(graph)
        assert found
        assert any(name in " ".join(graph.explain(one) for one in found) for name in ("masked by", "cannot be removed"))
        assert prunes_right(graph)
    finally:
        REGISTRY.met.clear()


def test_a_wrong_literal_size_freezes_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes.Repairer, "_repair", lambda self, node: None)
    graph = edp_fx.analyze(edp_fx.trace(network(), IMAGE), IMAGE)
    assert "point" in frozen_by_proof(graph)
    assert "cannot be removed" in graph.explain("point")
    assert prunes_right(graph)


def test_a_number_of_the_traced_batch_freezes_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.make(x)
            return self.read(x * x.numel() / (x.shape[0] * 100.0))

    gm = edp_fx.trace(Scaled(), IMAGE)
    assert [group.name for group in edp_fx.analyze(gm, IMAGE).prunable] == ["make"]
    monkeypatch.setattr(sizes, "_of_batch", lambda size: False)
    assert frozen_by_proof(edp_fx.analyze(gm, IMAGE)) == ["make"]


def test_a_wrong_keep_index_freezes_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prune.select

    def wrong(tensor: Tensor, axes: Any) -> Tensor:
        moved = {a: (np.sort((i + 1) % tensor.shape[a]) if tensor.shape[0] == 12 else i) for a, i in axes.items()}
        return right(tensor, moved)

    monkeypatch.setattr(prune, "select", wrong)
    graph = edp_fx.analyze(edp_fx.trace(network(), IMAGE), IMAGE)
    assert set(frozen_by_proof(graph)) == {"stem", "a"}  # its outputs and its inputs


def test_an_ignored_tie_freezes_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a weight that two layers share only one is pruned."""
    right = prune.slice_state

    def wrong(module: nn.Module, kept: Any) -> Any:
        shared = module.get_submodule("two").weight
        touched = right(module, kept)
        module.get_submodule("two").weight = shared
        return touched

    monkeypatch.setattr(prune, "slice_state", wrong)
    graph = edp_fx.analyze(edp_fx.trace(network(), IMAGE), IMAGE)
    assert frozen_by_proof(graph)
    assert prunes_right(graph)


# In the passes -------------------------------------------------------------------------------------------------


def checked_insert(model: nn.Module) -> tuple[fx.GraphModule, Any]:
    want = outputs(model, (IMAGE,))
    gm = edp_fx.insert(edp_fx.trace(model, IMAGE))
    torch.testing.assert_close(outputs(gm, (IMAGE,)), want, rtol=1e-4, atol=1e-5)
    return gm, gm.meta["edp_fx.reports"][-1]


def test_a_wrong_scale_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Pair.from_weight.__func__

    def wrong(cls: Any, geometry: Any, weight: Tensor, *args: Any) -> Pair:
        pair = right(cls, geometry, weight, *args)
        if weight.shape[0] == 12:
            pair.coefficient.weight.data.mul_(1.05)
        return pair

    monkeypatch.setattr(Pair, "from_weight", classmethod(wrong))
    gm, report = checked_insert(network())
    assert list(report.facts["undone"]) == ["a"]
    assert isinstance(gm.a, nn.Conv2d)
    assert any(one.node == "a" and "changed the outputs" in one.reason for one in report.refused)


def test_a_fault_behind_a_zero_scale_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.norm.weight.data.zero_()
    right = Pair.from_weight.__func__

    def wrong(cls: Any, geometry: Any, weight: Tensor, *args: Any) -> Pair:
        pair = right(cls, geometry, weight, *args)
        if weight.shape[1] == 3:
            pair.coefficient.weight.data.mul_(1.1)
        return pair

    monkeypatch.setattr(Pair, "from_weight", classmethod(wrong))
    assert list(checked_insert(model)[1].facts["undone"]) == ["stem"]


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(16, 3, 3, 3)), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.w[:8], padding=1).relu() + F.conv2d(x, self.w[8:], padding=1).sigmoid())


def test_a_wrong_slice_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of a parameter taken for the first."""
    right = effective.functional_site
    seen: list[Any] = []

    def wrong(gm: fx.GraphModule, node: fx.Node) -> Any:
        site = right(gm, node)
        seen.append(site)
        if len(seen) % 2 == 0:
            site.weight = seen[-2].weight
        return site

    monkeypatch.setattr(effective, "functional_site", wrong)
    _, report = checked_insert(Sliced())
    assert "undone" in report.facts


def test_a_stale_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = effective.emit_pair
    given: list[Any] = []

    def wrong(graph: fx.Graph, home: str, pair: Pair, source: Any, like: fx.Node) -> fx.Node:
        given.append(source)
        return right(graph, home, pair, given[0], like)

    monkeypatch.setattr(effective, "emit_pair", wrong)
    model = network()
    gm = edp_fx.trace(model, IMAGE)
    with contextlib.suppress(EdpError):
        edp_fx.insert(gm)
    torch.testing.assert_close(outputs(gm, (IMAGE,)), outputs(model, (IMAGE,)), rtol=1e-4, atol=1e-5)


def half_zero(gm: fx.GraphModule) -> None:
    graph = edp_fx.analyze(gm, IMAGE, check=False)
    keep = {group.id: np.arange(group.size) % 2 == 0 for group in graph.prunable if group.exact}
    zero_members(gm, graph, keep, ("producer", "consumer", "affine", "other"))


def test_a_wrong_merge_order_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = edp_fx.insert(edp_fx.trace(network(), IMAGE)).eval()
    half_zero(gm)
    right = Pair.effective_weight
    monkeypatch.setattr(Pair, "effective_weight", lambda self: right(self).flip(0))
    want = outputs(gm, (IMAGE,))
    small = edp_fx.prune_and_merge(gm, IMAGE)
    torch.testing.assert_close(outputs(small, (IMAGE,)), want, rtol=1e-3, atol=1e-4)
    undone = [one for one in small.meta["edp_fx.reports"] if "undone" in one.facts]
    assert undone


def test_a_wrong_norm_fold_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold.fuse_conv_bn_eval

    def wrong(layer: Any, norm: Any, transpose: bool = False) -> Any:
        made = right(layer, norm, transpose)
        made.bias.data[0] += 0.1
        return made

    monkeypatch.setattr(fold, "fuse_conv_bn_eval", wrong)
    gm = edp_fx.trace(network(), IMAGE).eval()
    want = outputs(gm, (IMAGE,))
    small = edp_fx.prune_and_merge(gm, IMAGE, fold=True)
    torch.testing.assert_close(outputs(small, (IMAGE,)), want, rtol=1e-4, atol=1e-5)
    assert isinstance(small.norm, nn.BatchNorm2d)


def test_a_wrong_bias_of_a_constant_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = constants.weighted
    monkeypatch.setattr(constants, "weighted", lambda weight, vector: 2 * right(weight, vector))
    gm = edp_fx.trace(network(), IMAGE).eval()
    gm.a.weight.data[:6] = 0
    gm.a.bias.data[:6] = 1
    want = outputs(gm, (IMAGE,))
    small = edp_fx.prune_and_merge(gm, IMAGE)
    torch.testing.assert_close(outputs(small, (IMAGE,)), want, rtol=1e-4, atol=1e-5)
    assert any("undone" in one.facts for one in small.meta["edp_fx.reports"])


def test_a_living_channel_taken_for_dead_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dead.dead_of

    def wrong(group: Any, state: Any) -> np.ndarray:
        found = right(group, state)
        found[-1] |= group.name == "a"
        return found

    monkeypatch.setattr(dead, "dead_of", wrong)
    gm = edp_fx.trace(network(), IMAGE).eval()
    want = outputs(gm, (IMAGE,))
    small = edp_fx.prune_and_merge(gm, IMAGE)
    torch.testing.assert_close(outputs(small, (IMAGE,)), want, rtol=1e-4, atol=1e-5)
    assert small.a.out_channels == 12


def test_a_shrink_that_changes_the_outputs_raises_and_leaves_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = edp_fx.trace(network(), IMAGE).train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=1e-3)
    method = edp_fx.Method(budget=edp_fx.Budget(macs=0.5), kinds=("channel",))
    compressor = edp_fx.Compressor(gm, IMAGE, method, optimizer=optimizer, total_steps=6)
    right = prune.select

    def wrong(tensor: Tensor, axes: Any) -> Tensor:
        return right(tensor, {a: np.sort((i + 1) % tensor.shape[a]) for a, i in axes.items()})

    monkeypatch.setattr(prune, "select", wrong)
    before = gm.a.out_channels

    def train() -> None:
        for _ in range(6):
            optimizer.zero_grad()
            gm(IMAGE).square().mean().backward()
            optimizer.step()
            compressor.step()

    with pytest.raises(RemovalError, match="channels of"):
        train()
    assert gm.a.out_channels == before
    assert gm(IMAGE).shape == (2, 5)


def test_the_check_leaves_no_trace() -> None:
    model = network().train()
    model.stem.eval()
    gm = edp_fx.trace(model, IMAGE)
    gm(IMAGE).sum().backward()
    state = {name: value.clone() for name, value in gm.state_dict().items()}
    modes = {name: module.training for name, module in gm.named_modules()}
    gradients = [p.grad for p in gm.parameters()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    edp_fx.analyze(gm, IMAGE)
    edp_fx.prune_and_merge(gm, IMAGE)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in gm.state_dict().items())
    assert modes == {name: module.training for name, module in gm.named_modules()}
    assert all(a is b for a, b in zip(gradients, [p.grad for p in gm.parameters()]))
