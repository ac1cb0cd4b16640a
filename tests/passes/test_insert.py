"""Pairs: the network with them is the network without, whatever the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from edp_fx import insert, trace
from edp_fx.errors import PassError
from edp_fx.frontend import propagate
from edp_fx.inputs import randomize_
from edp_fx.pairs import Pair
from edp_fx.passes.fuse import FusePairs, UnfusePairs
from edp_fx.split import identity_split, spectral_split
from edp_fx.validation.compare import difference, run


def inserted(model: nn.Module, x: Tensor, **options: object) -> tuple[nn.Module, object]:
    graph = insert(trace(model, x), **options)
    return graph, graph.meta["edp_fx.reports"][-1]


def assert_same(model: nn.Module, graph: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    for train in (False, True):
        found = difference(run(model, (x,), train=train), run(graph, (x,), train=train))
        assert max(found.values()) <= tolerance, (train, found)


LAYERS = [
    (nn.Linear(12, 20), (4, 5, 12)),
    (nn.Linear(40, 6), (4, 40)),
    (nn.Conv1d(6, 10, 3, padding=1), (2, 6, 9)),
    (nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="reflect"), (2, 8, 9, 9)),
    (nn.Conv2d(8, 12, 3, padding="same", dilation=2, bias=False), (2, 8, 9, 9)),
    (nn.Conv2d(12, 24, 3, groups=3), (2, 12, 7, 7)),
    (nn.Conv2d(64, 8, 1), (2, 64, 5, 5)),
    (nn.Conv3d(4, 9, 3, padding=1), (2, 4, 5, 5, 5)),
    (nn.ConvTranspose1d(6, 10, 3, stride=2), (2, 6, 7)),
    (nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 8, 5, 5)),
    (nn.ConvTranspose3d(4, 6, 2, bias=False), (2, 4, 4, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
@pytest.mark.parametrize("start", ["spectral", "identity"])
def test_every_kind_of_layer(layer: Any, shape: tuple[int, ...], start: str) -> None:
    model = nn.Sequential(copy.deepcopy(layer), nn.ReLU())
    x = torch.randn(shape)
    graph, report = inserted(model, x, start=start)
    assert report.rewritten == ["0"]
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert targets[:2] == ["0.basis", "0.coefficient"]
    pair = graph.get_submodule("0")
    assert isinstance(pair, Pair)
    assert type(pair.basis) is type(layer)
    if layer.bias is not None:
        assert pair.coefficient.bias is model[0].bias
    assert_same(model, graph, x)
    torch.testing.assert_close(pair.effective_weight(), layer.weight, rtol=1e-4, atol=1e-6)
    merged = pair.to_layer()
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-4, atol=1e-5)
    before = [node.meta["val"].shape for node in graph.graph.nodes if node.op == "call_module"]
    propagate(graph, x)
    assert before == [node.meta["val"].shape for node in graph.graph.nodes if node.op == "call_module"]
    FusePairs()(graph)
    assert next(n.target for n in graph.graph.nodes if n.op == "call_module") == "0"
    assert_same(model, graph, x)


def test_spectral_start_is_the_singular_value_decomposition() -> None:
    for shape in ((1, 20, 50), (2, 50, 20)):
        w = torch.randn(shape)
        c, b = spectral_split(w)
        torch.testing.assert_close(c @ b, w, rtol=1e-5, atol=1e-5)
        eye = torch.eye(20).expand(shape[0], -1, -1)
        torch.testing.assert_close(b @ b.mT, eye, rtol=0, atol=1e-5)
        torch.testing.assert_close(c.norm(dim=1), torch.linalg.svdvals(w), rtol=1e-4, atol=1e-4)


def test_spectral_start_of_a_weight_without_full_rank() -> None:
    w = torch.randn(1, 12, 3) @ torch.randn(1, 3, 40)
    for matrix in (w, w.mT.contiguous(), torch.zeros(1, 5, 9), w * 1e-20):
        c, b = spectral_split(matrix)
        scale = matrix.abs().max().clamp_min(1e-30)
        assert ((c @ b - matrix).abs().max() / scale) < 1e-5
        torch.testing.assert_close(b @ b.mT, torch.eye(b.shape[1])[None], rtol=0, atol=1e-4)
        assert (c.norm(dim=1)[0, 3:] <= 1e-4 * c.norm(dim=1).max()).all()


def test_identity_start() -> None:
    w = torch.randn(1, 4, 9)
    c, b = identity_split(w)
    assert torch.equal(c[0], torch.eye(4))
    assert b is w


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_byobnet", "test_nfnet", "mobilenetv3_small_050"])
def test_networks(name: str) -> None:
    model = timm.create_model(name, **({"img_size": 96} if "vit" in name else {}))
    randomize_(model)
    x = torch.randn(3, 3, 96, 96)
    graph, report = inserted(model, x)
    a, b = run(model, (x,), train=False), run(graph, (x,), train=False)
    assert difference(a, b)["output"] <= 1e-5
    for module in (model, graph):
        module.double()
    double = insert(trace(model, x.double()))
    assert_same(model, double, x.double(), 1e-10)
    assert len(report.rewritten) + len(report.refused) >= 20
    assert all(one.reason for one in report.refused)


def test_fused_form_and_back() -> None:
    model = timm.create_model("resnet18")
    randomize_(model)
    x = torch.randn(2, 3, 64, 64)
    graph, _ = inserted(model, x)
    keys, nodes = list(graph.state_dict()), [n.target for n in graph.graph.nodes]
    want = run(graph, (x,), train=False)
    assert FusePairs()(graph).modified
    assert not any(str(n.target).endswith(".basis") for n in graph.graph.nodes)
    assert list(graph.state_dict()) == keys
    assert difference(want, run(graph, (x,), train=False))["output"] <= 1e-5
    twin = copy.deepcopy(graph)
    assert isinstance(twin.get_submodule("layer1.0.conv1"), Pair)
    assert UnfusePairs()(graph).modified
    assert [n.target for n in graph.graph.nodes] == nodes


def test_a_network_with_pairs_traces_again_into_their_layers() -> None:
    model = timm.create_model("resnet18")
    randomize_(model)
    x = torch.randn(2, 3, 64, 64)
    graph, _ = inserted(model, x)
    FusePairs()(graph)
    outer = trace(nn.Sequential(graph, nn.Flatten()), x)
    assert not outer.meta["edp_fx.trace"].opaque
    assert "0.layer1.0.conv1.basis" in {node.target for node in outer.graph.nodes}
    assert difference(run(graph, (x,), train=False), run(outer, (x,), train=False))["output"] <= 1e-5


def test_depthwise_and_layers_too_small_are_refused_with_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 1, 1), nn.Conv2d(1, 9, 3))
    _, report = inserted(model, torch.randn(2, 8, 9, 9))
    reasons = {one.node: one.reason for one in report.refused}
    assert "depthwise" in reasons["0"]
    assert "no rank saves anything" in reasons["1"]
    assert report.rewritten == ["2"]


class Computed(nn.Conv2d):
    """A convolution that standardises its weight and pads its input itself."""

    def __init__(self) -> None:
        super().__init__(6, 10, 3, stride=2)
        self.gain = nn.Parameter(torch.rand(10, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        height, width = self.weight.shape[-2:]
        x = F.pad(x, (0, x.shape[-1] % 2 + width // 2, 0, x.shape[-2] % 2 + (height - 1) // 2))
        return F.conv2d(x, weight * self.gain, self.bias, self.stride)


def test_effective_weights() -> None:
    model = nn.Sequential(
        Computed(),
        parametrizations.weight_norm(nn.Conv2d(10, 12, 3)),
        nn.ReLU(),
        nn.utils.spectral_norm(nn.Conv2d(12, 8, 1)).eval(),
    )
    x = torch.randn(2, 6, 15, 14)
    graph, report = inserted(model, x)
    assert report.rewritten[:2] == ["0", "1"]
    assert "hooks" in report.refused[0].reason
    a, b = run(model, (x,), train=False), run(graph, (x,), train=False)
    assert difference(a, b)["output"] <= 1e-5
    assert not any("gain" in name for name in graph.state_dict())


class Shared(nn.Module):
    """One layer used twice, two layers with one weight, an embedding tied to the output, a bare weight."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(16, 16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.right.weight = self.left.weight
        self.embedding, self.head = nn.Embedding(24, 16), nn.Linear(16, 24, bias=False)
        self.head.weight = self.embedding.weight
        self.in_proj_weight = nn.Parameter(torch.randn(32, 16))
        self.in_proj_bias = nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.left(x) + self.right(torch.sin(x))
        table = self.embedding(torch.zeros(1, dtype=torch.long, device=x.device))
        y = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.head(x + table) + y.sum(-1, keepdim=True)


def test_sharing_stays_sharing() -> None:
    model = Shared()
    x = torch.randn(3, 16)
    graph, report = inserted(model, x)
    assert_same(model, graph, x)
    assert sorted(report.rewritten) == ["in_proj", "left", "right", "twice"]
    assert "also used by embedding" in {one.node: one.reason for one in report.refused}["head"]
    left, right = graph.get_submodule("left"), graph.get_submodule("right")
    assert left.basis.weight is right.basis.weight
    assert left.coefficient.weight is right.coefficient.weight
    assert left.coefficient.bias is not right.coefficient.bias
    assert sum(str(n.target) == "twice.basis" for n in graph.graph.nodes) == 2
    assert not any(name.startswith("in_proj_") for name in graph.state_dict())


class HalfBias(nn.Module):
    """A layer used by its weight, with a bias computed from its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias.clone()
        bias[16:32].zero_()
        return F.linear(x, self.qkv.weight, bias)


def test_a_computed_bias_stays_computed() -> None:
    model = HalfBias()
    x = torch.randn(3, 16)
    graph, report = inserted(model, x)
    assert report.rewritten == ["qkv"]
    assert set(graph.state_dict()) == {"qkv.bias", "qkv_pair.basis.weight", "qkv_pair.coefficient.weight"}
    assert_same(model, graph, x)


class Fixed(nn.Module):
    """A convolution with a constant, and one whose parameter has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.randn(9, 8, 3, 3))
        self.weights = nn.Parameter(torch.randn(12, 9, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.filters), self.weights)


def test_constants_are_left_alone() -> None:
    model = nn.Sequential(Fixed())
    x = torch.randn(3, 8, 7, 7)
    graph, report = inserted(model, x)
    assert report.rewritten == ["0.weights"]
    assert "not learned" in report.refused[0].reason
    assert_same(model, graph, x)


class Stubborn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_layers_inside_an_opaque_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Stubborn())
    x = torch.randn(3, 8)
    graph, report = inserted(model, x)
    assert report.rewritten == ["0", "1.layer"]
    assert isinstance(graph.get_submodule("1.layer"), Pair)
    assert isinstance(model[1].layer, nn.Linear)
    assert_same(model, graph, x)


def test_options() -> None:
    model, x = timm.create_model("resnet18"), torch.randn(2, 3, 64, 64)
    _, report = inserted(model, x, leave_first=True, leave_last=True, layers=("*conv*", "fc"), exclude=("layer1*",))
    reasons = {one.node: one.reason for one in report.refused}
    assert "first" in reasons["conv1"]
    assert "last" in reasons["fc"]
    assert "option" in reasons["layer1.0.conv1"]
    assert "not among" in reasons["layer2.0.downsample.0"]
    _, report = inserted(model, x, types="linear")
    assert report.rewritten == ["fc"]
    graph, _ = inserted(model, x, rank=0.25)
    assert graph.get_submodule("layer1.0.conv1").rank == 16
    graph, _ = inserted(model, x, energy=0.5)
    assert 0 < graph.get_submodule("layer1.0.conv1").rank < 64
    for wrong in ({"start": "magic"}, {"rank": 0}, {"energy": 2.0}, {"types": ("conv9d",)}, {"colour": "red"}):
        with pytest.raises(PassError):
            insert(trace(model, x), **wrong)
    with pytest.raises(PassError, match="full rank"):
        insert(trace(model, x), start="identity", rank=3)


def test_pairs_keep_dtype_mode_and_requires_grad() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.float64).eval()
    model[0].weight.requires_grad_(False)
    graph, _ = inserted(model, torch.randn(2, 8, dtype=torch.float64))
    pair = graph.get_submodule("0")
    assert pair.basis.weight.dtype == torch.float64
    assert not pair.basis.weight.requires_grad
    assert graph.get_submodule("1").basis.weight.requires_grad
    assert not pair.training
    assert not pair.basis.training


def test_meta_weights() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    graph, report = inserted(model, torch.empty(2, 3, 160, 160, device="meta"))
    assert report.rewritten
    assert all(p.is_meta for p in graph.parameters())


def test_weights_with_many_dead_rows_split_all_the_same() -> None:
    """On some of these the float32 eigenvalue solver fails, on some it gives NaN without a word."""
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        weight = 0.05 * torch.randn((1, 128, 1152), generator=generator)
        weight[:, torch.randperm(128, generator=generator)[:108]] = 0
        c, b = spectral_split(weight)
        assert (c @ b - weight).abs().max() < 1e-4 * weight.abs().max()


def test_weights_that_are_not_finite_are_refused_in_one_line() -> None:
    with pytest.raises(PassError, match="not finite"):
        spectral_split(torch.full((1, 4, 6), float("nan")))


class PaddedByAChild(nn.Conv2d):
    """As EfficientNet-PyTorch writes its convolutions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_convolution_that_pads_by_a_child_becomes_a_pair() -> None:
    model = nn.Sequential(PaddedByAChild(8, 16, 3, stride=2), nn.ReLU(), PaddedByAChild(16, 8, 3)).eval()
    x = torch.randn(2, 8, 9, 9)
    graph = insert(trace(model, x)).eval()
    assert graph.meta["edp_fx.reports"][-1].rewritten == ["0", "2"]
    assert torch.allclose(graph(x), model(x), atol=1e-5)


def test_a_weight_that_moves_in_training_stays() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 16, 3)), nn.Conv2d(16, 16, 1))
    report = insert(trace(model, torch.randn(2, 8, 6, 6))).meta["edp_fx.reports"][-1]
    assert [one.node for one in report.refused] == ["0"]
    assert "train mode" in report.refused[0].reason
