"""Tracing: the graph is the model in both modes, trains, copies, saves, and knows its shapes."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

from edp_fx import trace
from edp_fx.errors import ModelError, PassError, TraceError
from edp_fx.frontend import propagate
from edp_fx.frontend.aliases import Aliases
from edp_fx.frontend.running import GraphRunner
from edp_fx.inputs import randomize_
from edp_fx.leaves import tensors_of
from edp_fx.validation.compare import difference, run

MODELS = [
    ("resnet18", {}),
    ("mobilenetv3_small_050", {"drop_rate": 0.2, "drop_path_rate": 0.2}),
    ("test_vit", {"img_size": 96, "drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1}),
    ("test_byobnet", {}),
]


def images(batch: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def assert_same(model: nn.Module, graph: nn.Module, *inputs: Tensor, tolerance: float = 1e-6) -> None:
    for train in (False, True):
        found = difference(run(model, inputs, train=train), run(graph, inputs, train=train))
        assert max(found.values()) <= tolerance, (train, found)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_graph_is_the_model_in_both_modes_at_another_batch_size(name: str, options: Any) -> None:
    model = timm.create_model(name, **options)
    randomize_(model)
    size = options.get("img_size", 64)
    graph = trace(model, images(2, size))
    assert_same(model, graph, images(3, size))
    assert list(graph.state_dict()) == list(model.state_dict())
    assert not graph.meta["edp_fx.trace"].opaque


def test_dropout_and_stochastic_depth_follow_train_and_eval() -> None:
    model = timm.create_model("test_vit", drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, img_size=96)
    randomize_(model)
    graph = trace(model, images(2, 96))
    x = images(2, 96)
    graph.train()
    torch.manual_seed(0)
    first = graph(x)
    torch.manual_seed(1)
    assert (graph(x) - first).abs().max() > 1e-3
    graph.eval()
    torch.testing.assert_close(graph(x), graph(x), rtol=0, atol=0)


class Functional(nn.Module):
    """Dropout by function, attention with a dropout, a literal dropout, and layers used by their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48, bias=False)
        self.bias = nn.Parameter(torch.randn(48))
        self.out = nn.Linear(16, 8)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("cache", torch.randn(3), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        qkv = F.linear(x, self.qkv.weight, self.bias).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.3 if self.training else 0.0)
        x = F.dropout(x.transpose(1, 2).reshape(b, n, c), 0.2, self.training)
        position = torch.arange(n, device=x.device, dtype=x.dtype) / max(n, 1)
        x = x + position.unsqueeze(-1) * self.scale + torch.zeros(b, 1, c, device=x.device)
        if n > 3:
            x = x + self.cache.sum()
        return F.linear(x, self.out.weight, self.out.bias)


def test_functional_layers_become_modules_and_the_mode_lives_on() -> None:
    model = Functional()
    graph = trace(model, torch.randn(2, 5, 16))
    assert_same(model, graph, torch.randn(4, 5, 16), tolerance=1e-5)
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert {"qkv", "out"} <= called
    assert list(graph.state_dict()) == list(model.state_dict())


def test_batch_size_is_free_even_where_factories_use_it() -> None:
    graph = trace(Functional(), torch.randn(2, 5, 16))
    assert graph(torch.randn(7, 5, 16)).shape == (7, 5, 8)


def test_copies_and_pickles() -> None:
    model = timm.create_model("test_vit", img_size=96)
    randomize_(model)
    graph = trace(model, images(2, 96)).eval()
    x = images(2, 96)
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.testing.assert_close(twin(x), graph(x))
        assert set(twin.state_dict()) == set(graph.state_dict())
    functional = trace(Functional(), torch.randn(2, 5, 16))
    assert "cache" not in copy.deepcopy(functional).state_dict()


def test_tracing_leaves_the_model_as_it_was_and_shares_only_tensors() -> None:
    model = timm.create_model("resnet18")
    model.layer1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    graph = trace(model, images(2))
    assert modes == {name: module.training for name, module in model.named_modules()}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert graph.get_submodule("conv1") is not model.conv1
    assert graph.conv1.weight is model.conv1.weight
    assert not graph.get_submodule("layer1.0.bn1").training


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_giant_patch14_224")  # a billion parameters, no memory
    graph = trace(model, torch.empty(2, 3, 224, 224, device="meta"))
    assert all(p.is_meta for p in graph.parameters())
    assert next(iter(reversed(graph.graph.nodes))).meta["val"].shape == (2, 1000)


def test_every_node_knows_its_shape() -> None:
    model = timm.create_model("resnet18").eval()
    x = images(2)
    graph = trace(model, x)

    class Check(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                assert node.meta["val"].shape == value.shape
                assert node.meta["val"].dtype == value.dtype
                assert node.meta["val"].device == value.device
            return value

    Check(graph).run(x)
    propagate(graph, images(5, 96))
    Check(graph).run(images(5, 96))


def test_a_graph_runs_as_under_the_interpreter() -> None:
    def many(x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        return torch.cat(more).relu() + x

    def default(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale

    for function, shapes in ((many, [(4, 3), (2, 3), (2, 3)]), (default, [(2, 3)])):
        gm = fx.symbolic_trace(function)
        inputs = [torch.randn(shape) for shape in shapes]
        wanted = fx.Interpreter(gm).run(*inputs)
        assert torch.equal(GraphRunner(gm).run(*inputs), wanted)
        assert torch.equal(wanted, function(*inputs))


def test_what_a_module_did_before_it_proved_untraceable_is_undone() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)
            self.seen: list[Any] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x)
            self.last = self.layer(x)
            return self.last if x.mean() > -9 else x

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Stubborn()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part(self.part(x))

    model = Twice().eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    graph = trace(model, images(2, 8))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["part", "part"]
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["part", "part"]
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert model.part.seen == []
    with torch.no_grad():
        torch.testing.assert_close(graph(images(3, 8)), model(images(3, 8)))


def test_propagate_names_the_node_that_does_not_fit() -> None:
    graph = trace(timm.create_model("resnet18"), images(2))
    graph.get_submodule("layer2.0.conv1").weight = nn.Parameter(torch.randn(128, 60, 3, 3))
    with pytest.raises(PassError, match="layer2_0_conv1"):
        propagate(graph, images(2))


def test_multihead_attention_is_traced_through() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1)
    randomize_(model)
    graph = trace(model, images(2, 32))
    assert_same(model, graph, images(3, 32), tolerance=1e-5)
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert "encoder.layers.encoder_layer_0.self_attention.out_proj" in called


class Stubborn(nn.Module):
    """A module whose control flow depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_what_cannot_be_traced_becomes_an_opaque_leaf_with_a_reason() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Stubborn(), nn.Linear(8, 8))
    graph = trace(model, torch.randn(2, 8))
    report = graph.meta["edp_fx.trace"]
    assert [one.node for one in report.opaque] == ["1"]
    assert "control flow" in report.opaque[0].reason
    assert_same(model, graph, torch.randn(3, 8))
    assert set(graph.state_dict()) == set(model.state_dict())


class TwoWays(nn.Module):
    """Another path in eval mode than in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.training else self.two(x)


def test_a_module_with_two_ways_is_kept_whole() -> None:
    model = nn.Sequential(TwoWays(), nn.Linear(8, 8))
    graph = trace(model, torch.randn(2, 8))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["0"]
    assert_same(model, graph, torch.randn(3, 8))


class Around(TwoWays):
    """Two ways around a module that has two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoWays()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(super().forward(x))


def test_two_ways_around_a_module_with_two_ways_are_seen() -> None:
    with pytest.raises(TraceError, match="train and in eval mode"):
        trace(Around(), torch.randn(2, 8))
    model = nn.Sequential(Around(), nn.Linear(8, 8))
    graph = trace(model, torch.randn(2, 8))
    assert "0" in [one.node for one in graph.meta["edp_fx.trace"].opaque]
    assert_same(model, graph, torch.randn(3, 8))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TraceError, match="example inputs"):
        trace(timm.create_model("resnet18"), torch.randn(2, 4, 64, 64))
    with pytest.raises(TraceError, match="train"):
        trace(TwoWays(), torch.randn(2, 8))
    with pytest.raises(ModelError, match="tensor"):
        trace(nn.Linear(2, 2), {"x": torch.randn(2, 2)})


class Baked(nn.Module):
    """Takes the batch size as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(int(x.shape[0]), 2, 4).flatten(1)


def test_a_batch_size_taken_as_a_number_is_seen() -> None:
    model = nn.Sequential(Baked(), nn.Linear(8, 8))
    graph = trace(model, torch.randn(2, 8))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["0"]
    assert "batch size" in graph.meta["edp_fx.trace"].opaque[0].reason
    assert_same(model, graph, torch.randn(5, 8))
    with pytest.raises(TraceError, match="batch size"):
        trace(Baked(), torch.randn(2, 8))


class Halves(nn.Module):
    """Takes the number of its parts, which is no batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = list(self.layer(x).chunk(2, 1))
        return first * second


class MoreInEval(nn.Module):
    """Gives logits in train mode, probabilities beside them in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.layer(x.mean((2, 3)))
        return x if self.training else (x.softmax(1), x)


def test_a_head_that_gives_more_in_eval_mode_says_nothing_of_the_batch_size() -> None:
    graph = trace(nn.Sequential(Halves(), MoreInEval()), torch.randn(2, 3, 4, 4))
    assert [one.node for one in graph.meta["edp_fx.trace"].opaque] == ["1"]
    assert "train mode" in graph.meta["edp_fx.trace"].opaque[0].reason


class Plain(nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer, and makes one from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.table = torch.randn(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.table + torch.tensor([2.0]) * torch.ones(8)


def test_plain_tensors_come_along_but_are_not_saved() -> None:
    model = nn.Sequential(Plain(), nn.Sequential(Plain()))
    graph = trace(model, torch.randn(2, 8))
    assert_same(model, graph, torch.randn(3, 8))
    assert list(graph.state_dict()) == list(model.state_dict())
    assert not any(b.is_cpu for b in copy.deepcopy(graph).to("meta").buffers())
    assert list(copy.deepcopy(graph).state_dict()) == list(model.state_dict())


class Result(NamedTuple):
    scores: Tensor
    parts: list[Tensor]


class InPlace(nn.Module):
    """Changes tensors through views, counts in buffers, and returns a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.shifts = nn.ParameterList(nn.Parameter(torch.randn(8)) for _ in range(2))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor, extra: Tensor | None = None, *, scale: float = 2.0) -> dict[str, object]:
        x = self.layer(x) * scale
        x.add_(1)
        view = x[:, 2:4]
        view += 1
        x[:, 0] = 0
        x[:, 5:] *= 3
        for shift in self.shifts:
            x = x + shift
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if extra is not None:
            x = x + extra
        return {"result": Result(x.sin(), list(x.chunk(2, 1))), "first": x[0]}


def test_changes_in_place_buffers_and_structures() -> None:
    model = InPlace()
    graph = trace(model, torch.randn(2, 8))
    assert_same(model, graph, torch.randn(3, 8))
    before = model.count.clone(), model.mean.clone()
    out = graph(torch.randn(3, 8))
    assert isinstance(out["result"], Result)
    assert graph.count == before[0] + 1
    assert not torch.equal(graph.mean, before[1])
    x = torch.randn(3, 8)
    torch.testing.assert_close(pickle.loads(pickle.dumps(graph))(x), model(x))


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.layer(x).abs().mean()
        noise = torch.rand(8)
        return self.layer(x) * scale + noise


def test_no_grad_and_random_numbers_survive() -> None:
    model = NoGrad()
    graph = trace(model, torch.randn(2, 8))
    assert_same(model, graph, torch.randn(3, 8))
    torch.manual_seed(0)
    first = graph(torch.ones(1, 8))
    assert (graph(torch.ones(1, 8)) - first).abs().max() > 1e-3


class WritesIntoViews(nn.Module):
    """Two views alike, each of other memory, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two):
            x = layer(x)
            x.flatten(2).relu_()
            x.chunk(2, 1)[1].mul_(0.5)
        return x


def test_views_alike_show_each_its_own_memory() -> None:
    graph = trace(WritesIntoViews(), torch.randn(2, 3, 4, 4))
    memory = {
        node.name: tensors_of(node.meta["val"])[-1].untyped_storage()._cdata
        for node in graph.graph.nodes
        if tensors_of(node.meta["val"])
    }
    assert memory["flatten"] == memory["chunk"] == memory["one"]
    assert memory["flatten_1"] == memory["chunk_1"] == memory["two"] != memory["one"]
    views = [node for node in graph.graph.nodes if node.target == "chunk"]
    offsets = [[part.storage_offset() for part in node.meta["val"]] for node in views]
    assert offsets == [[0, 48], [0, 48]]
    assert Aliases(graph).seen_after(next(node for node in graph.graph.nodes if node.name == "relu__1"))
