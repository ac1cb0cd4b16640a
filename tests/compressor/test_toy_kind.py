"""A kind of removal of one's own: one file and one line, and it goes through decisions, removals and a resumed run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.channels import ChannelGraph
from edp_fx.channels.counts import AxisCount
from edp_fx.compressor import Compressor, parameter_groups, register_kind
from edp_fx.compressor.kinds.base import Applied, Flags, Part, Removable, Whole
from edp_fx.cost.terms import Terms
from edp_fx.errors import BudgetError

# the kind: a depthwise convolution keeps the centre of its kernels ------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ring:
    """All of the kernels of one layer but their centre."""

    id: int
    name: str
    node: str
    kind: ClassVar[str] = "ring"
    size: ClassVar[int] = 1
    exact: ClassVar[bool] = True


def ring(weights: Sequence[Tensor]) -> list[Tensor]:
    parts = [weight.detach().clone() for weight in weights]
    for part in parts:
        part[..., 1, 1] = 0
    return parts


class Rings(Whole):
    name = "ring"
    offered = "named"
    metrics = ("macs",)

    def find(self, gm: fx.GraphModule, graph: ChannelGraph, first_id: int) -> Sequence[Removable]:
        found: list[Ring] = []
        for node in gm.graph.nodes:
            layer: Any = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.kernel_size == (3, 3):
                found.append(Ring(first_id - len(found), str(node.target), node.name))
        return found

    def weighed_by(self, group: Removable) -> Collection[str]:
        return [f"{group.name}.weight"]

    def parts(self, group: Removable, parameters: Collection[str]) -> Iterable[Part]:
        yield Part(f"{group.name}.weight", None, np.zeros(1, dtype=np.int64), self.name, selection=ring)

    def cost(self, terms: Terms, groups: Sequence[Removable], metric: str) -> Terms:
        of_node = {cast(Ring, one).node: one for one in groups}
        plain = []
        for term in terms[0]:
            one = of_node.get(term.node)
            if one is not None:
                gone = AxisCount(1.0, {one.id: -np.ones(1)})
                plain.append(replace(term, constant=term.constant / 9, gates=(*term.gates, gone)))
                term = replace(term, gates=(*term.gates, AxisCount(0.0, {one.id: np.ones(1)})))
            plain.append(term)
        return plain, terms[1]

    @staticmethod
    def rewrite(gm: fx.GraphModule, graph: ChannelGraph, removed: Mapping[Removable, Flags]) -> Applied:
        applied = Applied()
        for one in removed:
            layer: Any = gm.get_submodule(one.name)
            layer.weight = nn.Parameter(layer.weight.detach()[..., 1:2, 1:2].clone())
            layer.kernel_size, layer.padding = (1, 1), (0, 0)
            applied.kept[f"{one.name}.weight"] = {2: np.array([1]), 3: np.array([1])}
        return applied


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with register_kind(Rings()):
        yield


# ------------------------------------------------------------------------------------------------------------------


class Net(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1)]
        for _ in range(4):
            layers += [nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)]
        super().__init__(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def make(kinds: tuple[str, ...], macs: float) -> tuple[Compressor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    gm = edp_fx.trace(Net(), x).train()
    optimizer = torch.optim.SGD(parameter_groups(gm, 1e-4), lr=0.01, momentum=0.9)
    return Compressor(gm, x, macs=macs, kinds=kinds, optimizer=optimizer, total_steps=40, end=0.5, decisions=5), x


def train(compressor: Compressor, x: Tensor, steps: int) -> None:
    optimizer = compressor.optimizer
    assert optimizer is not None
    for _ in range(steps):
        optimizer.zero_grad()
        compressor.gm(x).square().mean().backward()
        optimizer.step()
        compressor.step()


def rings(gm: fx.GraphModule) -> list[int]:
    return [m.kernel_size[0] for m in gm.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


@pytest.mark.parametrize(("kinds", "macs"), [(("ring",), 0.9), (("channel", "ring"), 0.5)])
def test_a_kind_of_ones_own_goes_through_a_run_and_is_taken_up(kinds: tuple[str, ...], macs: float) -> None:
    compressor, x = make(kinds, macs)
    train(compressor, x, 16)
    if kinds == ("ring",):
        assert set(rings(compressor.gm)) == {1, 3}  # some are gone in the middle of the run
    assert any(event["event"] == "shrink" for event in compressor.events) and not compressor.done
    momenta = {id(one) for one in compressor.optimizer.state}  # type: ignore[union-attr]
    assert {id(one) for one in compressor.gm.parameters()} <= momenta
    fresh, _ = make(kinds, macs)
    fresh.load_state_dict(compressor.state_dict())
    fresh.gm.load_state_dict(compressor.gm.state_dict())
    fresh.optimizer.load_state_dict(copy.deepcopy(compressor.optimizer.state_dict()))  # type: ignore[union-attr]
    results = []
    for one in (compressor, fresh):
        train(one, x, 24)
        small = one.finish()
        assert one.max_rel_diff < 1e-5
        assert edp_fx.measure(small, x).macs == pytest.approx(one.now) and one.macs <= macs
        results.append(small.eval()(x))
    assert torch.equal(*results)


def test_a_kind_says_itself_what_it_cannot() -> None:
    x = torch.randn(2, 3, 16, 16)
    gm = edp_fx.trace(Net(), x)
    with pytest.raises(BudgetError, match="ring can go to a budget of MACs only"):
        Compressor(gm, x, params=0.5, kinds=("ring",))
    with pytest.raises(BudgetError, match="did you mean ring"):
        Compressor(gm, x, macs=0.5, kinds=("rings",))
    left = {one["node"]: one["reason"] for one in Compressor(gm, x, macs=0.8, total_steps=4).refused}
    assert "names it" in left["kind ring"]
    with pytest.raises(BudgetError, match="is there already"):
        register_kind(type("Other", (Rings,), {})())
