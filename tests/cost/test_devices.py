"""Time on a device as a cost: what the launches of a network are, and what is left of their time when it is pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import fx, nn

import edp_fx
from edp_fx.channels import analyze
from edp_fx.cost import CostModel, Device, device_names, load_device
from edp_fx.cost.fitting import FITTED, measure_device
from edp_fx.cost.launches import FUSIONS, launch_terms
from edp_fx.errors import BudgetError
from edp_fx.inputs import randomize_
from edp_fx.latency import Runtime
from edp_fx.pairs import Pair
from edp_fx.passes.base import PassManager
from edp_fx.passes.merge import MergePairs
from edp_fx.passes.prune import Prune
from edp_fx.prune_merge import prune_and_merge

IMAGE = torch.randn(2, 3, 64, 64)
# no tiles: time is then a sum of products of sizes
H200 = load_device("h200-fp16")
SMOOTH = Device("smooth", "none", peak=1.0, bandwidth=100.0, launch=1.0, tile_outputs=1, tile_inputs=1)


def traced(name: str, **options: Any) -> fx.GraphModule:
    model = timm.create_model(name, num_classes=10, **options).eval()
    randomize_(model)
    return edp_fx.trace(model, IMAGE)


def small_vit() -> fx.GraphModule:
    return traced("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=64, num_heads=4)


def launches(gm: fx.GraphModule, x: torch.Tensor, fuses: str) -> int:
    plain, pairs = launch_terms(gm, edp_fx.analyze(gm, x), fuses, 1)
    return sum(int(term.work.launches) for term in plain if term.work) + 2 * len(pairs)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        y = (self.norm(self.b(y)) + y).relu()
        return self.last(y.mean((2, 3)))


def test_what_a_runtime_fuses_is_one_launch() -> None:
    gm = edp_fx.trace(Net().eval(), IMAGE)
    # two convolutions, two activations, an addition, a mean, a linear layer; the norm is always folded, and of the
    # convolutions each has a bias
    assert {fuses: launches(gm, IMAGE, fuses) for fuses in FUSIONS} == {
        "nothing": 9, "pointwise": 6, "layers": 7, "products": 4, "all": 4
    }  # fmt: skip


def test_compiled_torch_adds_a_shortcut_and_its_layer_in_one_launch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.norms[0](self.first(x)) + self.norms[1](self.second(x))).relu()

    gm = edp_fx.trace(Block().eval(), IMAGE)
    assert launches(gm, IMAGE, "pointwise") == 3  # two convolutions; their shifts, the addition and the activation
    assert launches(gm, IMAGE, "nothing") == 6
    plain, _ = launch_terms(gm, edp_fx.analyze(gm, IMAGE), "pointwise", 1)
    image, made = 3 * 64 * 64, 8 * 64 * 64
    moved = sum(size.constant * np.prod([axis.whole for axis in size.axes]) for term in plain if term.work
                for size in (*term.work.given, *term.work.made, *term.work.beside))  # fmt: skip
    norms = 8 * 8  # four numbers a channel, twice
    assert norms >= moved - (2 * (image + made) + 3 * made) >= 0


def test_rows_of_channels_that_end_within_a_sector_are_slow() -> None:
    def ms(inputs: int, outputs: int, uneven: float = 0.5) -> float:
        x = torch.randn(1, inputs, 8, 8)
        gm = edp_fx.trace(nn.Conv2d(inputs, outputs, 1).eval(), x)
        return CostModel(gm, analyze(gm, x), "latency", SMOOTH.changed(launch=0.0, uneven=uneven)).dense

    # 32 bytes are 16 numbers of half precision
    assert ms(40, 56) == pytest.approx(2 * ms(40, 56, uneven=1.0))
    for inputs, outputs in ((32, 48), (40, 48), (32, 56), (3, 56)):
        assert ms(inputs, outputs) == ms(inputs, outputs, uneven=1.0)


def test_attention_weighs_its_scores_however_narrow_its_heads_are() -> None:
    def ms(width: int, softmax: float) -> float:
        class Attention(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k, v = x.reshape(2, 64, 3, 4, width).permute(2, 0, 3, 1, 4).unbind(0)
                return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 64, -1)

        inner = nn.Sequential(nn.Linear(32, 12 * width), Attention())
        gm = edp_fx.trace(inner.eval(), (x := torch.randn(2, 64, 32)))
        fast = SMOOTH.changed(launch=0.0, peak=1e6, bandwidth=1e9, softmax=softmax)
        return CostModel(gm, analyze(gm, x), "latency", fast, batch=2).dense

    scores = 2 * 4 * 64 * 64 / 1e9  # milliseconds, of 10^12 a second
    assert ms(16, 1.0) == pytest.approx(scores, rel=0.05) and ms(8, 1.0) == pytest.approx(scores, rel=0.05)
    assert ms(16, 0.0) < 0.05 * scores


def test_attention_is_one_launch_where_the_runtime_has_it_as_one() -> None:
    gm = small_vit()
    graph = edp_fx.analyze(gm, IMAGE)
    counts = []
    for attention in (True, False):
        plain, _ = launch_terms(gm, graph, "nothing", 1, attention)
        counts.append(sum(int(term.work.launches) for term in plain if term.work))
        products = [term for term in plain if "attention" in term.node and term.constant]
        assert len(products) == 4  # q·k and ·v of two blocks are counted either way
    assert counts[0] < counts[1] - 2


def test_every_multiply_accumulate_is_in_a_launch_and_a_batch_is_so_many_times_more() -> None:
    for gm in (traced("test_resnet"), small_vit()):
        graph = edp_fx.analyze(gm, IMAGE)
        wanted = CostModel(gm, graph, "macs").dense
        for fuses in FUSIONS:
            for batch in (1, 5):
                plain, pairs = launch_terms(gm, graph, fuses, batch)
                assert not pairs
                assert sum(term.cost({}) for term in plain) == pytest.approx(batch * wanted)


@pytest.mark.parametrize("device", ["h200-fp16", H200.under("graph"), H200.under("compile"), "cpu-onnxruntime", SMOOTH])
@pytest.mark.parametrize("name", ["test_resnet", "vit", "densenet", "grouped"])
def test_what_a_keep_set_leaves_is_what_the_pruned_network_costs(name: str, device: Any) -> None:
    if name == "vit":
        gm = small_vit()
    elif name == "densenet":
        from examples import networks

        gm = edp_fx.trace(networks.CifarDenseNet(depth=13, growth=12).eval(), IMAGE)
    elif name == "grouped":  # and depthwise
        layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1), nn.Hardswish()]
        last = [nn.Conv2d(32, 32, 3, groups=4), nn.ConvTranspose2d(32, 8, 2, stride=2), nn.Conv2d(8, 4, 1)]
        gm = edp_fx.trace(nn.Sequential(*layers, *last).eval(), IMAGE)
    else:
        gm = traced(name)
    one = load_device(device)
    graph = edp_fx.analyze(gm, IMAGE)
    keep = {group.id: np.arange(group.size) % 4 > 0 for group in graph.groups if group.prunable and group.size > 2}
    assert keep
    cost = CostModel(gm, graph, "latency", one, batch=8)
    left = cost.total(keep)
    PassManager([Prune(graph, keep), MergePairs()])(gm)
    after = CostModel(gm, edp_fx.analyze(gm, IMAGE), "latency", one, batch=8)
    assert left != pytest.approx(cost.dense, rel=1e-3)  # uneven widths can take longer
    assert left == pytest.approx(after.dense, rel=1e-9)


def cut(gm: fx.GraphModule, share: float) -> None:
    """Zero ranks so that every pair keeps ``share`` of them."""
    for module in gm.modules():
        if isinstance(module, Pair):
            with torch.no_grad():
                module.coefficient.weight[:, max(1, int(share * module.rank)) :] = 0


def test_a_pair_of_fewer_macs_that_takes_longer_is_merged_and_the_reverse() -> None:
    def pairs_left(device: Any, share: float) -> int:
        gm = edp_fx.insert(traced("resnet10t"), start="identity").eval()
        cut(gm, share)
        small = prune_and_merge(gm, IMAGE, cost=device)
        with torch.no_grad():
            assert (small(IMAGE) - gm(IMAGE)).abs().max() < 1e-4 * gm(IMAGE).abs().max()
        return sum(isinstance(module, Pair) for module in small.modules())

    assert pairs_left("macs", 0.3) > 5
    assert pairs_left(SMOOTH.changed(launch=1000.0), 0.3) == 0
    assert pairs_left(SMOOTH.changed(launch=0.0, bandwidth=1e6), 0.3) > 5
    assert pairs_left("latency", 0.95) == 0


def test_devices_come_with_the_library_and_are_read_back_as_written(tmp_path: Path) -> None:
    names = device_names()
    assert {"h100-fp16", "h200-fp16", "a100-fp16", "t4-fp16", "orin-int8", "cpu-onnxruntime"} <= set(names)
    for name in names:
        device = load_device(name)
        assert device.name == name and device.source
        device.write(tmp_path / "d.json")
        assert load_device(str(tmp_path / "d.json")) == device
    assert load_device("h100-fp16").bandwidth < load_device("h200-fp16").bandwidth
    assert load_device("cpu-onnxruntime").at_hand


def test_the_commands_offer_the_runtimes_that_there_are() -> None:
    from edp_fx.cli import options
    from edp_fx.cost import device
    from edp_fx.latency import RUNTIMES

    assert set(options.RUNTIMES) == set(RUNTIMES) == set(device.RUNTIMES)


def test_a_wrong_device_is_one_line(tmp_path: Path) -> None:
    damaged, other = tmp_path / "a.json", tmp_path / "b.json"
    damaged.write_text("{")
    other.write_text("[]")
    for device, told in (
        ("h200", "did you mean h200-fp16"),
        (str(tmp_path / "none.json"), "No such file"),
        (str(damaged), "damaged"),
        (str(other), "no device"),
    ):
        with pytest.raises(BudgetError, match=told) as caught:
            load_device(device)
        assert "\n" not in str(caught.value)
    gm = traced("test_resnet")
    with pytest.raises(BudgetError, match="of a device"):
        CostModel(gm, edp_fx.analyze(gm, IMAGE), "latency")


def test_what_is_fitted_to_a_device_is_that_device() -> None:
    known = Device("known", "cpu", "onnxruntime", "fp32", peak=0.05, bandwidth=20.0, convolution=0.6, matrices=0.4,
                   depthwise=0.2, memory=0.5, launch=8.0, tile_outputs=8, tile_inputs=1)  # fmt: skip

    def time(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
        assert isinstance(module, fx.GraphModule)
        return CostModel(module, analyze(module, inputs), "latency", known).dense

    measured, probes = measure_device("mine", Runtime("onnxruntime", "cpu", 1, time))
    assert max(abs(probe.residual) for probe in probes) < 0.02
    for name in ("convolution", "matrices", "depthwise"):
        wanted = getattr(known, name) * known.peak
        assert getattr(measured, name) * measured.peak == pytest.approx(wanted, rel=0.05)
    assert measured.memory * measured.bandwidth == pytest.approx(known.memory * known.bandwidth, rel=0.05)
    assert measured.launch == pytest.approx(known.launch, rel=0.1)
    assert measured.at_hand and measured.fitted == FITTED
