"""Budgets of time: the curves, the tiles, and the choice corrected by what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.compressor.candidates import Candidates, Scope
from edp_fx.compressor.clock import Clock
from edp_fx.compressor.kinds import KINDS
from edp_fx.cost import CostModel, Device
from edp_fx.errors import BudgetError, LoweringError, UnreachableError
from edp_fx.inputs import COMPUTE_LAYERS, randomize_
from edp_fx.latency import Runtime, make_runtime
from examples import networks

IMAGE = torch.randn(2, 3, 64, 64)
TILES = Device("tiles", "none", peak=1.0, bandwidth=1e5, launch=1.0, tile_outputs=32, tile_inputs=1, precision="fp16")
LAUNCHES = TILES.changed(name="launches", launch=100.0)


def traced(name: str = "test_resnet", seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10).eval()
    randomize_(model, seed)
    return edp_fx.trace(model, IMAGE)


def clock_of(gm: fx.GraphModule, device: Device, kinds: tuple[str, ...]) -> tuple[Clock, CostModel]:
    scope = Scope("latency", tuple(KINDS[name] for name in kinds), False, 1, False, device, 4)
    found = Candidates(gm, (IMAGE,), scope)
    return Clock(found.cost, found.elements), found.cost


@pytest.mark.parametrize("kinds", [("channel",), ("rank", "channel"), ("channel", "kernel", "branch")])
def test_the_clock_agrees_with_the_cost_model_and_curves_with_the_clock(kinds: tuple[str, ...]) -> None:
    gm = edp_fx.insert(traced()) if "rank" in kinds else traced()
    clock, cost = clock_of(gm.eval(), TILES, kinds)
    elements = clock.elements
    rng = np.random.default_rng(0)
    for share in (1.0, 0.7, 0.3):
        alive = rng.random(elements.n) < share
        alive[elements.offsets[:-1]] = True
        assert clock.total(alive) == pytest.approx(cost.total(elements.split(alive)), rel=1e-12)
        curves = clock.curves(alive)
        for group, (start, stop) in enumerate(zip(elements.offsets[:-1], elements.offsets[1:])):
            present = start + np.flatnonzero(alive[start:stop])
            count = max(1, len(present) // 2)
            saved = curves.saved(group, np.arange(1, count + 1))
            left = alive.copy()
            left[present[:count]] = False
            assert saved[-1] == pytest.approx(max(0.0, clock.total(alive) - clock.total(left)), abs=1e-9)
            assert (np.diff(saved) >= 0).all()


def finished(gm: fx.GraphModule, **options: Any) -> tuple[fx.GraphModule, edp_fx.Compressor]:
    """Compressed without training."""
    options = {"importance": "norm", "kinds": ("channel",), **options}
    compressor = edp_fx.Compressor(gm, IMAGE, **options)
    return compressor.finish(), compressor


def test_whole_tiles_go_without_being_told_to() -> None:
    small, compressor = finished(traced("resnet10t"), latency=0.5, device=TILES, batch=16, align=1)
    assert 0.42 < compressor.now / compressor.dense <= 0.5
    widths = [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]
    # all but the odd one, with which the budget is filled, end with a tile
    assert sum(width % 32 == 0 for width in widths) > 0.7 * len(widths) > 0
    again = CostModel(small, edp_fx.analyze(small, IMAGE), "latency", TILES, batch=16)
    assert again.dense == pytest.approx(compressor.now, rel=1e-6)


def trained(gm: fx.GraphModule, steps: int = 6, **options: Any) -> tuple[fx.GraphModule, edp_fx.Compressor]:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(gm.train().parameters(), lr=1e-3)
    compressor = edp_fx.Compressor(
        gm, IMAGE, optimizer=optimizer, total_steps=steps, start=0.1, end=0.8, decisions=3, removals=1, **options
    )
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(gm(torch.randn(4, 3, 64, 64)), torch.randint(10, (4,))).backward()
        optimizer.step()
        compressor.step()
    return compressor.finish().eval(), compressor


def test_where_launches_are_all_there_is_whole_branches_go() -> None:
    def network() -> fx.GraphModule:
        return edp_fx.trace(networks.CifarResNet(4, width=16).eval(), IMAGE[:, :, :32, :32])

    with pytest.raises(UnreachableError):
        finished(network(), latency=0.6, device=LAUNCHES)
    gm = network()
    layers = sum(isinstance(module, nn.Conv2d) for module in gm.modules())
    small, compressor = trained(gm, latency=0.6, device=LAUNCHES, kinds=("channel", "branch"))
    left = sum(node.op == "call_module" and isinstance(small.get_submodule(str(node.target)), nn.Conv2d)
               for node in small.graph.nodes)  # fmt: skip
    assert left < 0.75 * layers
    assert compressor.now <= 0.6 * compressor.dense


def test_kernels_serve_a_budget_of_time() -> None:
    quick = TILES.changed(depthwise=0.3, tile_outputs=1, launch=0.1)
    _, compressor = trained(traced("resnet10t"), latency=0.4, device=quick, batch=16, kinds=("kernel",))
    assert compressor.now <= 0.4 * compressor.dense


class Machine:
    """Measures without a clock: ``slow`` times what convolutions of 1x1 multiply, and ``rest``."""

    def __init__(self, rate: float = 1e-6, slow: float = 1.0, rest: float = 0.0) -> None:
        self.rate, self.slow, self.rest = rate, slow, rest
        self.asked = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        self.asked += 1
        times, handles = [self.rest], []

        def count(one: nn.Module, given: Any, out: Tensor) -> None:
            weight = one.get_parameter("weight")
            macs = out.numel() / out.shape[1] * weight.numel()
            times.append(self.rate * macs * (self.slow if weight.shape[-1] == 1 else 1.0))

        for one in module.modules():
            if isinstance(one, COMPUTE_LAYERS):
                handles.append(one.register_forward_hook(count))
        with torch.no_grad():
            module(*inputs)
        for handle in handles:
            handle.remove()
        return sum(times)


@pytest.mark.parametrize("machine", [Machine(), Machine(slow=4.0), Machine(rest=20.0)])
@pytest.mark.parametrize("training", [False, True])
def test_the_budget_is_met_by_what_is_measured(machine: Machine, training: bool) -> None:
    runtime = Runtime("counted", "nowhere", 1, machine)
    options: dict[str, Any] = {"latency": 0.6, "runtime": runtime, "kinds": ("channel",), "align": 1}
    gm = traced("resnet10t")
    dense = machine(gm, (IMAGE[:1],))
    small, compressor = trained(gm, **options) if training else finished(gm, **options)
    assert compressor.timing is not None
    told = compressor.timing.plain()
    measured = machine(small, (IMAGE[:1],)) / dense
    assert told["measured"] == pytest.approx(measured, rel=1e-6)
    assert abs(measured / 0.6 - 1) < 0.05 and told["met"]
    assert told["asked"] == 0.6 and told["reason"] is None


def test_milliseconds_are_those_of_the_measured_network() -> None:
    machine = Machine(rate=1e-3)
    runtime = Runtime("counted", "nowhere", 1, machine)
    gm = traced()
    asked = 0.7 * machine(gm, (IMAGE[:1],))
    small, compressor = finished(gm, latency=asked, runtime=runtime, align=1)
    assert machine(small, (IMAGE[:1],)) == pytest.approx(asked, rel=0.05)
    assert compressor.timing is not None and compressor.timing.plain()["asked"] == pytest.approx(0.7)


def test_what_cannot_be_met_says_by_how_much_it_is_missed() -> None:
    runtime = Runtime("counted", "nowhere", 1, lambda module, inputs: 1.0)
    _, compressor = finished(traced(), latency=0.8, runtime=runtime)
    assert compressor.timing is not None
    told = compressor.timing.plain()
    assert told["missed"] == pytest.approx(0.25) and told["met"] is False


def test_a_device_without_a_budget_of_time_is_refused() -> None:
    with pytest.raises(BudgetError, match="device serves a budget of latency only"):
        edp_fx.Budget(macs=0.5, device="h200-fp16")
    with pytest.raises(BudgetError, match="unknown"):
        edp_fx.Budget(latency=0.5, device="h300-fp16")
    assert edp_fx.Budget.read(edp_fx.Budget(latency=0.5, device=TILES, batch=8).plain()).device == TILES


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_real_runtimes_give_milliseconds(runtime: str) -> None:
    gm = traced()
    ready = make_runtime(runtime, device="cpu")
    assert 0 < ready.time(gm, (IMAGE,)) < 1e6
    assert ready.ready is not None
    result = ready.ready(gm, (IMAGE,))()
    assert tuple(np.shape(result[0] if isinstance(result, (tuple, list)) else result)) == (2, 10)


def test_what_cannot_be_measured_is_one_line() -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"name": "abacus"},
        {"name": "onnxruntime", "device": "cuda"},
        {"name": "torch", "device": "tpu"},
    )
    for options in wrong:
        with pytest.raises(LoweringError) as said:
            make_runtime(**options)
        assert "\n" not in str(said.value)
    if not torch.cuda.is_available():
        for name, device in (("tensorrt", None), ("torch", "cuda")):
            with pytest.raises(LoweringError, match="GPU"):
                make_runtime(name, device=device)
