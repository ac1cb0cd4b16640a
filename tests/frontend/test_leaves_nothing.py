"""After a trace torch, Python's math and the user's modules are as before: also when it raises, also in two threads."""

from __future__ import annotations

import math
import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionMeta

from edp_fx import trace
from edp_fx.errors import TraceError
from tests.frontend.test_frontend import assert_same
from tests.frontend.test_untraceable_code import Block

_HOMES = (torch, torch.Tensor, torch._C, F, nn.Module, math, FunctionMeta, torch._C.ScriptFunction, torch.fx.Tracer)


class Busy(nn.Module):
    """Does to itself, and to what it holds, whatever a forward may."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.seen: list[object] = []
        self.fails, self.cache = fails, {"inner": [0]}
        self.layer = nn.Linear(6, 6)
        self.parts = [self.layer]
        self.apply_layer = lambda x: self.layer(x)
        self.register_buffer("count", torch.zeros(()))
        self.register_forward_pre_hook(lambda module, inputs: setattr(module, "hooked", inputs[0]))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.cache["inner"].append(x)
        self.cache["new"] = self.last = self.parts[0](x) + self.apply_layer(x)
        self.count = self.count + 1
        self.register_buffer("made", self.last.detach())
        self.layer.touched = True
        x = self.last * math.sqrt(x.shape[1]) + torch.arange(x.shape[1])
        if self.fails:
            return x if x.sum() > 0 else -x
        return x


def state(model: nn.Module) -> object:
    """Everything the modules hold: objects by their ids, containers by what is in them, tensors by their values."""

    def contents(value: object) -> object:
        if isinstance(value, dict):
            return {key: contents(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [contents(one) for one in value]
        return (id(value), value.detach().clone().tolist() if isinstance(value, Tensor) else None)

    return {name: contents(vars(module)) for name, module in model.named_modules()}


def namespaces() -> list[dict[str, object]]:
    return [dict(vars(home)) for home in _HOMES]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_changed(fails: bool) -> None:
    model = nn.Sequential(Busy(), nn.Sequential(Busy(fails), nn.Dropout()))
    trace(nn.Linear(6, 6), torch.randn(2, 6))  # torch looks some things up once
    before, was = namespaces(), state(model)
    random = torch.get_rng_state()
    graph = trace(model, torch.randn(2, 6, generator=torch.Generator()))
    assert bool(graph.meta["edp_fx.trace"].opaque) is fails
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(TraceError):
        trace(Busy(fails=True), torch.randn(2, 6))
    assert state(model) == was
    assert namespaces() == before
    assert torch.is_grad_enabled()


def test_two_threads_trace_the_same_model_and_others() -> None:
    shared = Block()
    image, rows = torch.randn(2, 3, 16, 16), torch.randn(2, 6)
    vit = timm.create_model("test_vit", img_size=32)
    inputs = [(shared, image), (shared, image), (vit, torch.randn(2, 3, 32, 32)), (Busy(), rows), (Busy(True), rows)]
    wanted = [str(trace(model, x).graph) if model is not inputs[-1][0] else "" for model, x in inputs]
    before, was = namespaces(), [state(model) for model, _ in inputs]
    found: dict[tuple[int, int], object] = {}
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        model, x = inputs[index]
        start.wait()
        for turn in range(4):
            try:
                graph = trace(model, x)
                found[index, turn] = str(graph.graph)
            except TraceError:
                found[index, turn] = ""
            except Exception as error:
                found[index, turn] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {(index, turn): wanted[index] for index in range(len(inputs)) for turn in range(4)}
    assert namespaces() == before
    assert [state(model) for model, _ in inputs] == was


def test_a_model_that_runs_elsewhere_meanwhile_is_not_disturbed() -> None:
    model = Block().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = model(x)
    stop, wrong = threading.Event(), []

    def serve() -> None:
        with torch.no_grad():
            while not stop.is_set():
                if not torch.equal(model(x), wanted):
                    wrong.append(1)

    server = threading.Thread(target=serve)
    server.start()
    try:
        graphs = [trace(model, x) for _ in range(5)]
    finally:
        stop.set()
        server.join()
    assert not wrong
    assert_same(model, graphs[-1], x)
