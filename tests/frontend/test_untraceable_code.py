"""Code that does not go by torch's function overrides: it is traced, kept whole or refused, and no process dies."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import edp_fx
from edp_fx import analyze, insert, trace
from edp_fx.errors import TraceError
from edp_fx.frontend.layers import CustomFunction
from tests.frontend.test_frontend import assert_same


class Swish(torch.autograd.Function):
    """With a backward that is plainly not the derivative of its forward."""

    @staticmethod
    def forward(ctx: torch.Tensor, x: torch.Tensor, slope: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(slope * x) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * 7, gradient.sum(), None


class Reversal(torch.autograd.Function):
    """The identity, its gradient turned around; the newer style, without a context in forward."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return -gradient


class Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.Tensor, x: torch.Tensor) -> Any:
        ctx.channels = x.shape[1]
        return x[:, : x.shape[1] // 2].clone(), x[:, x.shape[1] // 2 :].clone()

    @staticmethod
    def backward(ctx: Any, one: Any, other: Any) -> Any:
        return torch.cat([one, 2 * other], 1)


reverse = Reversal.apply  # as modules keep it


class Block(nn.Module):
    """Applies functions in a forward that owns layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 5, 1)
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = Swish.apply(self.first(x), self.slope, 0.5)
        one, other = Halves.apply(reverse(x))
        return self.second(one + other)


def test_autograd_functions_keep_their_backward() -> None:
    model = Block()
    x = torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert not graph.meta["edp_fx.trace"].opaque
    functions = [module.function for module in graph.modules() if isinstance(module, CustomFunction)]
    assert functions == [Swish, Reversal, Halves]
    assert list(graph.state_dict()) == list(model.state_dict())
    for twin in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert_same(model, twin, torch.randn(5, 3, 6, 6))
    with torch.no_grad():
        torch.testing.assert_close(insert(graph).eval()(x), model.eval()(x))
    assert analyze(graph, x).groups


def test_a_function_of_layers_is_kept_whole() -> None:
    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.Tensor, x: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
            return layer(x)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient, None

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Through.apply(x, self.layer)

    model = nn.Sequential(nn.Linear(4, 4), Part())
    graph = trace(model, torch.randn(2, 4))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["1"]
    assert_same(model, graph, torch.randn(3, 4))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant) + checkpoint(
            lambda y: self.body(y).sin(), x, use_reentrant=self.reentrant
        )


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_traced_through(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    graph = trace(model, torch.randn(2, 6))
    assert {node.target for node in graph.graph.nodes if node.op == "call_module"} >= {"body.0", "body.1"}
    x = torch.randn(5, 6)
    model.eval(), graph.eval()
    torch.testing.assert_close(graph(x), model(x))


@torch.jit.script
def scripted_swish(x: Tensor, scale: float) -> Tensor:
    return x * torch.sigmoid(x) * scale


@torch.library.custom_op("edp_fx_tests::twice", mutates_args=())
def twice(x: Tensor, times: int) -> Tensor:
    return x * times


@twice.register_fake
def _(x: torch.Tensor, times: Any) -> Any:
    return torch.empty_like(x)


twice.register_autograd(lambda ctx, gradient: (gradient * ctx.times, None), setup_context=lambda ctx, inputs, output:
    setattr(ctx, "times", inputs[1]))  # fmt: skip


class Odd(nn.Module):
    """Tensors that C++ takes without telling, sizes in places where C++ refuses all but numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("table", torch.randn(6))
        self.register_buffer("stride", torch.tensor([8.0, 4.0]))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape
        x = self.layer(x)
        x = x + torch.autograd.Variable(x) * torch.autograd.Variable(self.table)
        x = scripted_swish(x, 0.5) + torch.ops.edp_fx_tests.twice(x, c)
        x = x + torch.full_like(x, c) + x.new_full((c,), self.stride[0]) * self.stride[1].item()
        x = x + torch._C._nn.gelu(x) + torch.Tensor.mul(x, c) + torch.clamp(x, max=c)
        return torch.where(x > 0, x, n * 0 + 1.0)


def test_code_that_goes_past_the_overrides() -> None:
    model = Odd()
    graph = trace(model, torch.randn(2, 6))
    assert_same(model, graph, torch.randn(5, 6), tolerance=1e-5)
    assert [guard.value for guard in graph.meta["edp_fx.trace"].guards] == [8.0, 4.0]


def test_a_scripted_part_is_a_leaf() -> None:
    part = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    model = nn.Sequential(nn.Linear(6, 6), part)
    graph = trace(model, torch.randn(2, 6))
    assert_same(model, graph, torch.randn(3, 6))
    assert_same(model, copy.deepcopy(graph), torch.randn(3, 6))


class Leaks(nn.Module):
    """Computes from a tensor's memory, which no override sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            hidden = torch.sin(x)
        return self.layer(x) + hidden


def test_what_is_computed_unseen_is_never_taken_for_a_constant() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Leaks())
    graph = trace(model, torch.randn(2, 6))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["1"]
    assert_same(model, graph, torch.randn(3, 6))
    with pytest.raises(TraceError, match=r"in Leaks\.forward"):
        trace(Leaks(), torch.randn(2, 6))


_UNUSUAL = [
    "torch.autograd.Variable(x.untyped_storage())",
    "torch.Tensor(x.shape).sum() + x",
    "torch.Tensor._make_subclass(torch.Tensor, x) * 2",
    "torch.nn.Parameter(x) * 2",
    "torch.rand(2, generator=x.shape) + x",
    "torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x))",
    "torch.from_numpy(x.numpy()) + x",
    "torch._C._functorch._wrap_for_grad(x, 1)",
    "torch.autograd.grad(x.sum(), x)[0]",
    "x.backward()",
    "torch.cuda.current_stream(x.device)",
    "torch.jit.trace(lambda y: y * 2, x)(x)",
    "torch.func.vmap(torch.sin)(x)",
]
_CHILD = f"""
import torch, edp_fx
from torch import nn
class Part(nn.Module):
    def forward(self, x):
        return eval(expression)
for expression in {_UNUSUAL}:
    print(expression, flush=True)
    try:
        edp_fx.trace(nn.Sequential(nn.Conv2d(3, 4, 3), Part()), torch.randn(2, 3, 8, 8))
    except edp_fx.EdpError:
        pass
"""


def test_no_process_dies() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])


def test_functional_dropout_and_flags_still_follow_the_mode() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.layer(x), 0.5, self.training)

    graph = trace(Part(), torch.ones(2, 6)).eval()
    torch.testing.assert_close(graph(torch.ones(2, 6)), graph(torch.ones(2, 6)), rtol=0, atol=0)


NAMED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "topk": lambda y: y.topk(2, dim=1).values + y.topk(2, dim=1).indices,
    "sort": lambda y: y.sort(dim=1).values,
    "max": lambda y: y.max(dim=1).values + y.max(dim=1).indices,
    "min": lambda y: torch.min(y, dim=1).values,
    "median": lambda y: y.median(dim=1).values,
    "kthvalue": lambda y: y.kthvalue(2, dim=1).values,
    "mode": lambda y: y.mode(dim=1).indices.float(),
    "cummax": lambda y: y.cummax(dim=1).values,
    "aminmax": lambda y: y.aminmax(dim=1).max - torch.aminmax(y, dim=1).min,
    "frexp": lambda y: torch.frexp(y).mantissa,
    "svd": lambda y: torch.linalg.svd(y.mean((2, 3))).S,
    "fft": lambda y: torch.fft.rfft2(y).abs(),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_results_have_their_values(name: str, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return NAMED[name](self.conv(x)).sum()

    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    gm = trace(model, x).eval()
    assert torch.allclose(gm(x[:1]), model(x[:1]))
    edp_fx.save(gm, tmp_path / "saved")
    assert torch.allclose(edp_fx.load(tmp_path / "saved")(x[:1]), model(x[:1]))
