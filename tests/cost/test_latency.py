"""Latency as a cost, by a runtime whose every number is known: nothing here is timed but the last tests' existence."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, fx, nn

import edp_fx
from edp_fx.compressor.elements import Elements
from edp_fx.compressor.prices import Prices
from edp_fx.cost import CostModel
from edp_fx.cost.latency import affine
from edp_fx.errors import BudgetError, LoweringError
from edp_fx.geometry import Geometry
from edp_fx.inputs import COMPUTE_LAYERS, randomize_
from edp_fx.latency import LatencyTable, Runtime, Signature, make_runtime
from edp_fx.pairs import Pair
from edp_fx.prune_merge import prune_and_merge


class Machine:
    """Runs nothing: a layer takes ``overhead`` and ``rate`` a MAC, ``slow`` times that for kernels of one position."""

    def __init__(self, overhead: float = 0.0, rate: float = 1e-6, slow: float = 1.0, rest: float = 0.0) -> None:
        self.overhead, self.rate, self.slow, self.rest = overhead, rate, slow, rest
        self.asked = 0

    def layer(self, module: nn.Module, example: Tensor) -> float:
        weight = module.weight
        out = module(example)
        channel = 1 if weight.dim() > 2 else -1
        macs = out.numel() / out.shape[channel] * weight.numel()
        return self.overhead + self.rate * macs * (self.slow if weight[0, 0].numel() == 1 else 1.0)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        self.asked += 1
        if isinstance(module, COMPUTE_LAYERS):
            return self.layer(module, inputs[0])
        total, handles = [self.rest], []
        for one in module.modules():
            if isinstance(one, COMPUTE_LAYERS):
                handles.append(one.register_forward_pre_hook(lambda m, given: total.append(self.alone(m, given[0]))))
        with torch.no_grad():
            module(*inputs)
        for handle in handles:
            handle.remove()
        return sum(total)

    def alone(self, module: nn.Module, given: Tensor) -> float:
        return self.layer(Signature.of(module, tuple(given.shape)).layer(), given)


def table(path: Path, machine: Machine, **options: Any) -> LatencyTable:
    return LatencyTable(Runtime("counted", "nowhere", 1, machine), directory=path, **options)


def pairs_of(name: str = "resnet10t", size: int = 64, start: str = "identity") -> tuple[fx.GraphModule, torch.Tensor]:
    model = timm.create_model(name).eval()
    randomize_(model)
    x = torch.randn(2, 3, size, size)
    return edp_fx.insert(edp_fx.trace(model, x), start=start).eval(), x


def cut(gm: fx.GraphModule, x: torch.Tensor, share: float) -> None:
    """Zero ranks so that every pair keeps ``share`` of them."""
    for module in gm.modules():
        if isinstance(module, Pair):
            with torch.no_grad():
                module.coefficient.weight[:, max(1, int(share * module.rank)) :] = 0


def forms(gm: fx.GraphModule) -> int:
    return sum(isinstance(module, Pair) for module in gm.modules())


def test_a_pair_of_fewer_macs_that_measures_slower_is_merged_and_the_reverse(tmp_path: Path) -> None:
    gm, x = pairs_of()
    cut(gm, x, 0.3)
    by_macs = prune_and_merge(gm, x, cost="macs")
    assert forms(by_macs) > 5
    slow = prune_and_merge(gm, x, cost=table(tmp_path / "a", Machine(overhead=100.0)))
    assert forms(slow) == 0
    gm, x = pairs_of()
    cut(gm, x, 0.95)
    assert forms(prune_and_merge(gm, x, cost="macs")) == 0
    # one-position kernels almost free: a 3x3 pair of nearly full rank is worth keeping
    fast = prune_and_merge(gm, x, cost=table(tmp_path / "b", Machine(slow=1e-3)))
    assert forms(fast) > 5
    with torch.no_grad():
        for one in (by_macs, slow, fast):
            assert torch.isfinite(one(x)).all()
        assert (fast(x) - gm(x)).abs().max() < 1e-4 * gm(x).abs().max()


def test_cost_by_latency_is_what_the_network_measures_and_prices_agree(tmp_path: Path) -> None:
    gm, x = pairs_of()
    machine = Machine(overhead=0.01, rest=3.0)
    cost = CostModel(gm, edp_fx.analyze(gm, x), "latency", table(tmp_path, machine))
    dense = edp_fx.trace(timm.create_model("resnet10t").eval(), x)
    assert cost.dense == pytest.approx(machine(dense, (x[:1],)), rel=1e-6)
    elements = Elements([one for one in cost_groups(gm, x)], dict(gm.named_parameters()))
    prices = Prices(cost, elements)
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        alive = rng.random(elements.n) < share
        alive[elements.offsets[:-1]] = True
        assert prices.total(alive) == pytest.approx(cost.total(elements.split(alive)), rel=1e-12)
    marginal = prices.savings(alive).marginal
    assert (marginal >= 0).all() and marginal.max() > 0


def cost_groups(gm: fx.GraphModule, x: torch.Tensor) -> Any:
    return edp_fx.analyze(gm, x).prunable


@pytest.mark.parametrize("machine", [Machine(overhead=0.02, rest=1.0), Machine(slow=4.0), Machine(rest=-1.0)])
@pytest.mark.parametrize("asked", [0.5, "ms"])
def test_a_budget_of_latency_is_met_in_the_tables_terms(tmp_path: Path, machine: Machine, asked: float | str) -> None:
    gm, x = pairs_of()
    lookup = table(tmp_path, machine)
    dense = 1000 * CostModel(gm, edp_fx.analyze(gm, x), "latency", lookup).dense
    scaled = table(tmp_path / "scaled", Machine(1000 * machine.overhead, 1e-3, machine.slow, 1000 * machine.rest))
    value = 0.5 if asked == 0.5 else 0.5 * dense  # milliseconds, above 1
    compressor = edp_fx.Compressor(
        gm,
        x,
        budget=edp_fx.Budget(latency=value),
        kinds=("rank", "channel"),
        align=1,
        importance="norm",
        latency_table=scaled,
    )
    small = compressor.finish()
    assert compressor.target == pytest.approx(0.5 * dense)
    assert 0.45 * dense < compressor.now <= compressor.target
    measured = scaled.network(small, x)
    assert measured == pytest.approx(compressor.now, rel=0.1)
    assert edp_fx.measure(small, x).macs < edp_fx.measure(timm.create_model("resnet10t"), x).macs


def test_compress_reports_what_the_end_network_measures(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    randomize_(model)
    x = torch.randn(2, 3, 64, 64)
    lookup = table(tmp_path, Machine(overhead=1.0, rest=2.0), batch=4)
    small = edp_fx.compress(model, None, epochs=0, latency=0.8, example_inputs=x, latency_table=lookup)
    told = small.meta["edp_fx.run"]["latency_ms"]
    assert told["measured"] == lookup.network(small, x)
    assert told["predicted"] <= told["target"] == pytest.approx(0.8 * told["dense"])
    assert told["batch"] == 4


def test_measurements_are_read_back_and_a_damaged_file_is_one_warning(tmp_path: Path) -> None:
    layer = Signature.of(nn.Conv2d(8, 16, 3, padding=1), (1, 8, 8, 8))
    machine = Machine()
    first = table(tmp_path, machine)
    value = first.layer(layer)
    assert first.layer(layer) == value
    assert machine.asked == 1
    again = table(tmp_path, machine)
    assert again.layer(layer) == value
    assert machine.asked == 1
    assert not [path for path in tmp_path.iterdir() if path != first.file]
    content = json.loads(first.file.read_text())
    key = next(iter(content["milliseconds"]))
    damaged = [
        "{",
        "[]",
        "9" * 5000,
        json.dumps({**content, "format": 99}),
        json.dumps({**content, "environment": {}}),
        json.dumps({**content, "milliseconds": {key: "fast"}}),
        json.dumps({**content, "milliseconds": {key: -1.0}}),
    ]
    for text in damaged:
        first.file.write_text(text)
        before = machine.asked
        with pytest.warns(UserWarning, match="measuring anew") as said:
            anew = table(tmp_path, machine)
        assert len(said) == 1 and "\n" not in str(said[0].message)
        assert anew.layer(layer) == value
        assert machine.asked == before + 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert table(tmp_path, machine).layer(layer) == value


def test_every_part_of_a_signature_makes_another_key() -> None:
    base = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    shape = (1, 8, 12, 12)
    others = [
        (base, shape),
        (nn.Conv2d(8, 16, 3, padding=1, bias=True), shape),
        (nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False), shape),
        (nn.Conv2d(8, 16, 3, padding=0, bias=False), shape),
        (nn.Conv2d(8, 16, 3, padding=1, dilation=2, bias=False), shape),
        (nn.Conv2d(8, 16, 3, padding=1, groups=2, bias=False), shape),
        (nn.Conv2d(8, 16, 5, padding=1, bias=False), shape),
        (nn.Conv2d(8, 17, 3, padding=1, bias=False), shape),
        (nn.Conv2d(9, 16, 3, padding=1, bias=False), shape),
        (nn.Conv2d(8, 16, 3, padding=1, bias=False).half(), shape),
        (nn.ConvTranspose2d(8, 16, 3, padding=1, bias=False), shape),
        (nn.ConvTranspose2d(8, 16, 3, padding=1, stride=2, output_padding=1, bias=False), shape),
        (base, (2, 8, 12, 12)),
        (base, (1, 8, 12, 13)),
        (nn.Linear(8, 16, bias=False), (1, 8)),
        (nn.Linear(8, 16, bias=False), (1, 5, 8)),
    ]
    assert len({Signature.of(layer, given).key for layer, given in others}) == len(others)


def test_runtime_device_and_threads_make_other_entries(tmp_path: Path) -> None:
    layer = Signature.of(nn.Linear(8, 8), (1, 8))
    for number, runtime in enumerate(
        (("a", "cpu", 1), ("b", "cpu", 1), ("a", "gpu", 1), ("a", "cpu", 2)),
    ):
        lookup = LatencyTable(Runtime(*runtime, lambda m, x, n=number: n + 1.0), directory=tmp_path)
        assert lookup.layer(layer) == number + 1.0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(12, 20, 3, padding=1), (1, 12, 9, 9)),
        (nn.Conv2d(12, 24, 3, groups=12), (1, 12, 9, 9)),
        (nn.Conv2d(12, 24, 3, groups=4, stride=2), (1, 12, 9, 9)),
        (nn.ConvTranspose2d(12, 24, 2, groups=4, stride=2), (1, 12, 9, 9)),
        (nn.Conv1d(12, 24, 3, padding="same"), (1, 12, 9)),
        (nn.Linear(12, 20), (1, 7, 12)),
    ],
)
def test_signatures_make_the_layer_and_narrower_ones(layer: nn.Module, shape: tuple[int, ...]) -> None:
    signature = Signature.of(layer, shape)
    made = signature.layer()
    assert Geometry.of(made) == Geometry.of(layer)
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in layer.named_parameters()}
    whole = made(signature.example())
    for share in (0.5, 0.01):
        narrow = signature.narrowed(share)
        out = narrow.layer()(narrow.example())
        assert out.dim() == whole.dim()
        assert narrow.macs < signature.macs


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_real_runtimes_give_milliseconds(tmp_path: Path, runtime: str) -> None:
    lookup = LatencyTable(runtime, directory=tmp_path, device="cpu")
    for layer, shape in (
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False), (1, 4, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (1, 4, 8, 8)),
        (nn.Linear(4, 6), (1, 5, 4)),
    ):
        assert 0 < lookup.layer(Signature.of(layer, shape)) < math.inf
    gm = edp_fx.trace(timm.create_model("test_resnet"), torch.randn(2, 3, 32, 32))
    assert lookup.network(gm, torch.randn(2, 3, 32, 32)) > 0


def test_a_layer_written_for_onnxruntime_computes_what_torch_does() -> None:
    from edp_fx.latency.onnx_layer import layer_model
    from edp_fx.lowering.onnx_engine import OnnxEngine

    for layer, shape in (
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 8, 3, padding="same", groups=2, dilation=2), (2, 4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
        (nn.Linear(4, 6), (2, 5, 4)),
    ):
        x = torch.randn(shape)
        data = layer_model(layer, x)
        assert data is not None
        with torch.no_grad():
            assert (OnnxEngine(data, 1)(x) - layer(x)).abs().max() < 1e-5
    assert layer_model(nn.ReLU(), torch.randn(1, 3)) is None


def test_an_affine_cost_is_found_and_never_negative() -> None:
    shares = np.array([1.0, 0.25, 0.0625])
    assert affine(shares, 2.0 + 5.0 * shares) == pytest.approx((2.0, 5.0))
    for times in (np.array([1.0, 1.0, 1.5]), np.array([1.0, 0.1, 0.01])):
        overhead, slope = affine(shares, times)
        assert overhead >= 0 and slope >= 0


def test_what_cannot_be_measured_is_one_line() -> None:
    for options in ({"name": "abacus"}, {"name": "onnxruntime", "device": "cuda"}, {"name": "torch", "device": "tpu"}):
        with pytest.raises(LoweringError) as said:
            make_runtime(**options)
        assert "\n" not in str(said.value)
    if not torch.cuda.is_available():
        with pytest.raises(LoweringError, match="NVIDIA GPU"):
            LatencyTable("tensorrt")
        with pytest.raises(LoweringError, match="GPU"):
            LatencyTable("torch", device="cuda")
    with pytest.raises(LoweringError, match="at least 1"):
        LatencyTable(batch=0)
    gm, x = pairs_of("test_resnet")
    with pytest.raises(BudgetError, match="joules"):
        prune_and_merge(gm, x, cost="joules")
