"""MACs and parameters of networks of every make: those torch counts, and what is left of them under a keep-set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import edp_fx
from edp_fx.cost import CostModel, load_device, measure
from edp_fx.errors import ModelError
from edp_fx.pairs import Pair
from edp_fx.passes.base import PassManager
from edp_fx.passes.merge import MergePairs
from edp_fx.passes.prune import Prune

IMAGE, TOKENS = torch.randn(2, 3, 16, 16), torch.randn(2, 6, 8)


class Net(nn.Module):
    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


class Moded(nn.Module):
    """Another path in train mode: kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.training else self.b(self.a(x)).relu()


def tied() -> nn.Module:
    net = Net(lambda s, x: s.b(F.relu(s.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    net.b.weight = net.a.weight  # type: ignore[union-attr]
    return net


def nets() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    twice = nn.Conv2d(8, 8, 3, padding=1)
    two = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 4, 3)}
    return {
        "called twice": (
            nn.Sequential(nn.Conv2d(3, 8, 1), twice, nn.MaxPool2d(2), twice, nn.Conv2d(8, 4, 1)),
            (IMAGE,),
        ),
        "two branches at once": (Net(_siamese, **two), (IMAGE, torch.randn(2, 3, 16, 16))),
        "tied": (tied(), (TOKENS,)),
        "never called": (Net(lambda s, x: s.a(x), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 8, 3)), (IMAGE,)),
        "transposed": (
            nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2)),
            (IMAGE,),
        ),
        "transposed, in groups": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 3, groups=4)), (IMAGE,)),
        "in groups": (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 16, 3, groups=16)),
            (IMAGE,),
        ),
        "1d": (nn.Sequential(nn.Conv1d(3, 8, 3, 2), nn.ReLU(), nn.ConvTranspose1d(8, 4, 3)), (torch.randn(2, 3, 32),)),
        "3d": (
            nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.ConvTranspose3d(8, 4, 2)),
            (torch.randn(2, 3, 6, 6, 6),),
        ),
        "recurrent": (
            Net(
                lambda s, x: s.b(s.r(s.a(x))[0]), a=nn.Linear(8, 8), r=nn.GRU(8, 5, batch_first=True), b=nn.Linear(5, 3)
            ),
            (TOKENS,),
        ),
        "embedding": (
            Net(lambda s, i: s.b(s.a(i).mean(1)), a=nn.Embedding(10, 8), b=nn.Linear(8, 4)),
            (torch.randint(0, 10, (2, 6)),),
        ),
        "scaled by a number": (Net(lambda s, x: s.a(x) * s.b.weight, a=nn.Conv2d(3, 8, 3), b=nn.PReLU()), (IMAGE,)),
        "in half": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).half(), (IMAGE.half(),)),
        "nothing to count": (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), (IMAGE,)),
        "one row": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(1, 8),)),
    }


def _siamese(net: Any, x: Tensor, y: Tensor) -> Tensor:
    u, v = net.a(x), net.a(y)
    return net.b(u) + net.b(v)


NETS = nets()


def counted(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() / 2 / inputs[0].shape[0]


def pairs(gm: fx.GraphModule) -> dict[str, Pair]:
    return {name: one for name, one in gm.named_modules(remove_duplicate=False) if isinstance(one, Pair)}


@pytest.mark.parametrize("inserted", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_nothing_removed_costs_what_torch_counts(name: str, inserted: bool) -> None:
    model, inputs = NETS[name]
    macs, params = counted(model.eval(), inputs), sum(one.numel() for one in model.parameters())
    assert measure(model, inputs).macs == macs
    assert measure(model, inputs).params == params
    gm = edp_fx.trace(model, inputs)
    gm = edp_fx.insert(gm) if inserted else gm
    graph = edp_fx.analyze(gm, inputs)
    for metric, wanted in (("macs", macs), ("params", params), ("latency", None)):
        model_of_cost = CostModel(gm, graph, metric, load_device("h200-fp16") if metric == "latency" else None)
        if wanted is not None:
            assert model_of_cost.dense == pytest.approx(wanted)
        choose = model_of_cost.keep_pair({})
        assert all(isinstance(choose(home, pair), bool) for home, pair in pairs(gm).items())


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("name", ["two branches at once", "transposed", "1d", "3d"])
def test_what_a_keep_set_leaves_is_what_the_pruned_network_costs(name: str, metric: str) -> None:
    model, inputs = NETS[name]
    gm = edp_fx.trace(model, inputs).eval()
    graph = edp_fx.analyze(gm, inputs)
    keep = {group.id: np.arange(group.size) % 4 > 0 for group in graph.groups if group.prunable and group.size > 2}
    assert keep
    left = CostModel(gm, graph, metric).total(keep)
    PassManager([Prune(graph, keep), MergePairs()])(gm)
    assert left == pytest.approx(getattr(measure(gm, inputs), metric))


@pytest.mark.parametrize("metric", ["macs", "params", "latency"])
def test_pairs_inside_a_module_kept_whole(metric: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Moded(), nn.Conv2d(8, 4, 1)).eval()
    gm = edp_fx.insert(edp_fx.trace(model, IMAGE), rank=0.25).eval()
    assert "1.a" in pairs(gm)
    wanted = gm(IMAGE)
    cost = CostModel(gm, edp_fx.analyze(gm, IMAGE), metric, load_device("h200-fp16") if metric == "latency" else None)
    MergePairs(cost.keep_pair({}))(gm)
    torch.testing.assert_close(gm(IMAGE), wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_looks_at_values_is_measured_on_them() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if float(x.sum()) < 1e9 else x

    assert measure(Looks(), IMAGE).macs == counted(Looks(), (IMAGE,))
    with pytest.raises(ModelError, match="does not run on the example inputs"):
        measure(Looks(), torch.randn(2, 4, 8, 8))
