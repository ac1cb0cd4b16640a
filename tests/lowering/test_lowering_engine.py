"""Running what was lowered, the command line, and the API lists of both TensorRTs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import nn

import edp_fx
from edp_fx.cli import main
from edp_fx.errors import LoweringError
from edp_fx.inputs import randomize_
from edp_fx.lowering import stages
from edp_fx.lowering.plan import inspected_layers, parse_plan
from edp_fx.lowering.profile import Range
from edp_fx.lowering.sidecar import encode, sidecar_path
from edp_fx.lowering.targets.tensorrt_rtx import TensorRTRTX
from edp_fx.lowering.whole_batches import WholeBatches
from edp_fx.passes.fuse import FusePairs
from edp_fx.train import evaluate

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
NO_GPU = not torch.cuda.is_available()

# What each variable of the lowering holds, so that its attributes can be looked up.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "network_input": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "inspector": "EngineInspector",
    "failure": "ParserError",
}
RTX_ONLY = {
    "ComputeCapability",
    "num_compute_capabilities",
    "set_compute_capability",
    "CudaGraphStrategy",
    "cuda_graph_strategy",
}


def tensorrt_attributes(source: str) -> set[tuple[str, str]]:
    """(class or "module", attribute) for every use of a TensorRT object in a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        if isinstance(value, ast.Name) and value.id == "trt":
            found.add(("module", node.attr))
        elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "trt":
            found.add((value.attr, node.attr))
        else:
            name = value.attr.lstrip("_") if isinstance(value, ast.Attribute) else getattr(value, "id", "")
            if name in CLASSES:
                found.add((CLASSES[name], node.attr))
    return found


def uses() -> set[tuple[str, str]]:
    folder = ROOT / "edp_fx" / "lowering"
    files = ("tensorrt_build.py", "tensorrt_engine.py", "targets/tensorrt.py", "targets/tensorrt_rtx.py")
    return set().union(*(tensorrt_attributes((folder / file).read_text()) for file in files))


def test_every_tensorrt_attribute_exists_in_both_apis() -> None:
    lists = [
        json.loads((DATA / name).read_text()) for name in ("tensorrt-11.4-api.json", "tensorrt-rtx-1.7.1-api.json")
    ]
    python = {"__version__", "__init__", "__members__"}
    unknown = []
    for owner, name in sorted(uses()):
        for which, api in zip(("tensorrt", "rtx"), lists):
            if which == "tensorrt" and {owner, name} & RTX_ONLY:
                continue
            known = name in api if owner == "module" else name in api.get(owner, ())
            if not known and name not in python:
                unknown.append((which, owner, name))
    assert not unknown


def test_the_attribute_scan_sees_what_the_builder_uses() -> None:
    found = uses()
    for use in [
        ("module", "Builder"),
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("IBuilderConfig", "set_compute_capability"),
        ("MemoryPoolType", "WORKSPACE"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("IOptimizationProfile", "set_shape"),
    ]:
        assert use in found
    assert ("Builder", "build_cuda_engine") in tensorrt_attributes("builder.build_cuda_engine(network)")


def test_rtx_list_is_that_of_the_installed_version() -> None:
    import tensorrt_rtx

    api = json.loads((DATA / "tensorrt-rtx-1.7.1-api.json").read_text())
    for owner, name in uses():
        if owner != "module" and owner in api and name in api[owner]:
            assert hasattr(getattr(tensorrt_rtx, owner), name)


def test_plan_is_parsed_from_the_log() -> None:
    tensor = "{{ Name: {}, Dimensions: [{}], Strides: [1], StrideOrder: [0], Datatype: {}, Format: (Linear) }}"
    line = (
        f"Name: conv, LayerType: correlation, Inputs: [ {tensor.format('a', '-1,3,8,8', 'Half')}, "
        f"{tensor.format('b', '-1,4,8,8', 'Half')}], Constants: [ {tensor.format('w', '4,3,1,1', 'Half')}], "
        f"Outputs: [ {tensor.format('c', '-1,4,8,8', 'Half')}], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: node_conv][ONNX Layer: node_relu]"
    )
    plan = parse_plan(
        [
            "Total Weights Memory: 12 bytes",
            "Total Activation Memory: 7 bytes",
            f"Layers:\n{line}\n\nI/O Tensors:",
        ]
    )
    assert (plan.weights_memory, plan.activation_memory, plan.kinds()) == (12, 7, {"correlation": 1})
    (layer,) = plan.layers
    assert layer.name == "conv"
    assert layer.inputs == ("-1,3,8,8 Half", "-1,4,8,8 Half")
    assert layer.outputs == ("-1,4,8,8 Half",)
    assert layer.sources == ("node_conv", "node_relu")
    assert parse_plan(["nothing"]).weights_memory is None


def test_inspector_output_is_parsed() -> None:
    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "conv",
                    "LayerType": "CaskConvolution",
                    "Inputs": [{"Name": "x", "Dimensions": [1, 3], "Format/Datatype": "FP16 NHWC"}],
                    "Outputs": [],
                    "Metadata": "[ONNX Layer: node_conv]",
                },
                "bare name",
            ]
        }
    )
    first, second = inspected_layers(text)
    assert (first.kind, first.inputs, first.sources) == (
        "CaskConvolution",
        ("1,3 FP16 NHWC",),
        ("node_conv",),
    )
    assert second.name == "bare name"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=10).eval()
    randomize_(model)
    return model


@pytest.fixture(scope="module")
def onnx_file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    result = edp_fx.lower(net, torch.randn(2, 3, 32, 32), path, target="onnxruntime", batch=(1, 4, 64))
    assert result.builder is not None
    assert result.builder.startswith("onnxruntime ")
    return path


def test_an_onnx_file_runs_on_torch_tensors(net: nn.Module, onnx_file: Path) -> None:
    engine = edp_fx.lower.load_engine(onnx_file)
    x = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(engine(x), net(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(LoweringError, match="takes 1 inputs, 2 given"):
        engine(x, x)
    with pytest.raises(LoweringError, match="onnxruntime could not run"):
        engine(x[:, :2])


def test_evaluation_respects_the_batch_range_of_an_engine() -> None:
    sizes = []

    class SecondClass:
        batch = Range(2, 2, 4)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return torch.tensor([[0.0, 2.0, 1.0]]).expand(len(x), 3)

    loader = [
        (torch.zeros(5, 3, 2, 2), torch.tensor([1, 1, 0, 2, 1])),
        (torch.zeros(1, 3, 2, 2), torch.tensor([0])),
    ]
    engine: Any = SecondClass()
    result = evaluate(WholeBatches(engine), loader, inputs=1)
    assert sizes == [4, 2, 2]
    assert (result.images, result.accuracy, result.top5) == (6, 0.5, 1.0)


def test_stages_say_what_worked_and_why_not() -> None:
    x = torch.randn(2, 3, 32, 32)
    shared: dict[str, object] = {}
    net = timm.create_model("test_resnet").eval()
    stage = stages.onnx_stage(net, x, shared)
    assert stage["ok"]
    assert stage["max_rel_diff"] < 1e-4
    assert stage["batch"] == "dynamic"
    engines = stages.engine_stage(net, x, shared)
    assert engines["ok"], engines["reason"]
    assert engines["fp16"]["weights_memory"] < engines["fp32"]["weights_memory"]

    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)[:, :4] * 2

    static = stages.onnx_stage(Baked(), x)
    assert static["ok"]
    assert static["batch"] == "static"
    assert "batch" in static["reason"]

    class Hostile(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor(x.detach().numpy().sum())

    refused = stages.onnx_stage(Hostile(), x)
    assert not refused["ok"]
    assert refused["reason"]
    assert not stages.engine_stage(Hostile(), x)["ok"]


def engine_file(folder: Path) -> Path:
    path = folder / "m.plan"
    path.write_bytes(b"engine")
    sidecar_path(path).write_bytes(encode({"target": "tensorrt"}, b"engine"))
    return path


def test_a_damaged_engine_is_refused_before_any_runtime(tmp_path: Path) -> None:
    path = engine_file(tmp_path)
    path.write_bytes(b"engin")
    with pytest.raises(LoweringError, match="is not the file its sidecar describes"):
        edp_fx.lower.load_engine(path)
    sidecar_path(path).write_text("{")
    with pytest.raises(LoweringError, match="is damaged"):
        edp_fx.lower.load_engine(path)
    sidecar_path(path).unlink()
    with pytest.raises(LoweringError, match="is missing"):
        edp_fx.lower.load_engine(path)
    with pytest.raises(LoweringError, match="cannot read"):
        edp_fx.lower.load_engine(tmp_path / "none.plan")


@pytest.mark.parametrize("keep", [0, 1000, 100_000])
def test_a_truncated_onnx_file_is_refused_by_name(onnx_file: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(onnx_file.read_bytes()[:keep])
    with pytest.raises(LoweringError, match=r"cut\.onnx: onnxruntime refused the ONNX file") as caught:
        edp_fx.lower.load_engine(path)
    assert "\n" not in str(caught.value)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def edp(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """The command line in this process: what starts Python again costs seconds."""
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return Done(int(left.value.code or 0), captured.out, captured.err)


@pytest.mark.skipif(not NO_GPU, reason="says what happens on a machine without a GPU")
def test_without_a_gpu_tensorrt_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = engine_file(tmp_path)
    for arguments in [
        ("lower", "test_resnet", "--target", "tensorrt", "--out", tmp_path / "e.plan"),
        ("bench", "--engine", path),
        ("evaluate", "--data", "digits", "--engine", path),
    ]:
        done = edp(capsys, *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
        assert "no NVIDIA GPU" in done.stderr
    with pytest.raises(LoweringError, match="no NVIDIA GPU"):
        edp_fx.lower.load_engine(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.plan", "m.plan.json"]


@pytest.mark.skipif(not NO_GPU, reason="says what happens on a machine without a GPU")
def test_without_a_gpu_a_process_ends_in_order(tmp_path: Path) -> None:
    """TensorRT's library kills a process that uses it without a driver: here in one of its own."""
    command = [sys.executable, "-m", "edp_fx", "evaluate", "--data", "digits", "--engine", str(engine_file(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved directory: a tiny network with fused pairs of half rank."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    randomize_(model)
    x = torch.randn(2, 3, 32, 32)
    inserted = edp_fx.insert(edp_fx.trace(model.eval(), x), rank=0.5)
    directory = tmp_path_factory.mktemp("saved") / "net"
    edp_fx.save(inserted, directory, x)
    return directory


def test_fused_pairs_are_lowered_as_two_layers(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    gm = edp_fx.insert(edp_fx.trace(timm.create_model("test_resnet").eval(), x), rank=0.5)
    counts = []
    for name, graph in (("explicit", gm), ("fused", FusePairs()(gm).graph_module)):
        edp_fx.lower(graph, x, tmp_path / f"{name}.onnx", target="onnx", batch=2)
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        counts.append(sum(node.op_type == "Conv" for node in nodes))
    layers = sum(isinstance(m, nn.Conv2d) for m in gm.modules())
    assert counts == [layers, layers]


def test_a_saved_directory_through_the_command_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "m.plan", tmp_path / "m.json"
    kept = tmp_path / "m.onnx"
    done = edp(capsys, "lower", saved, "--out", out, "--precision", "fp16", "--json", table, "--layers", "--onnx", kept)
    assert done.returncode == 0, done.stderr
    assert "weights memory" in done.stdout
    assert "against torch (file)" in done.stdout
    assert "correlation" in done.stdout
    assert json.loads(table.read_text())["bytes"] == out.stat().st_size
    done = edp(capsys, "evaluate", saved, "--data", "digits", "--engine", kept, "--json", table)
    assert done.returncode == 0, done.stderr
    model, engine = json.loads(table.read_text()).values()
    assert model["images"] == engine["images"] > 100
    assert abs(model["metric"] - engine["metric"]) < 0.02
    assert abs(model["loss"] - engine["loss"]) < 0.02 * model["loss"]
    rows = [
        "bench",
        "test_resnet",
        saved,
        "--img-size",
        32,
        "--backend",
        "torch",
        "--batch",
        1,
        "--seconds",
        0.01,
        "--json",
        table,
    ]
    done = edp(capsys, *rows)
    assert done.returncode == 0, done.stderr
    assert [row["model"] for row in json.loads(table.read_text())] == ["test_resnet", str(saved)]


def test_int8_calibrates_on_a_data_set_from_the_command_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    done = edp(capsys, "lower", saved, "--target", "onnx", "--precision", "int8", "--calibrate", "digits", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((9, 0), r"does not run on some GPU \(compute capability 9\.0\); use --target tensorrt"),
        ((8, 6), "lower the model again"),
    ],
)
def test_why_rtx_refuses_an_engine(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    assert re.search(reason, TensorRTRTX().why_refused())


def rtx_runs_here() -> bool:
    """Whether TensorRT-RTX has kernels for the GPU of this machine."""
    import tensorrt_rtx

    return "SM{}{}".format(*torch.cuda.get_device_capability()) in tensorrt_rtx.ComputeCapability.__members__


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_engine_on_a_gpu_computes_what_torch_computes(
    net: nn.Module, tmp_path: Path, target: str, precision: str, cuda_graph: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    loader = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(4)] if precision == "int8" else None
    path = tmp_path / "m.plan"
    edp_fx.lower(
        net,
        torch.randn(2, 3, 32, 32),
        path,
        target=target,
        precision=precision,
        batch=(1, 4, 16),
        calibration_loader=loader,
    )
    if target == "tensorrt-rtx" and not rtx_runs_here():
        with pytest.raises(LoweringError, match=r"TensorRT-RTX does not run on .*; use --target tensorrt"):
            edp_fx.lower.load_engine(path, cuda_graph=cuda_graph)
        return
    engine = edp_fx.lower.load_engine(path, cuda_graph=cuda_graph)
    for rows in (1, 3, 16, 3):  # back to an earlier shape: a captured graph is replayed
        x = torch.randn(rows, 3, 32, 32, generator=generator)
        with torch.no_grad():
            want = net(x)
        got = engine(x.cuda()).float().cpu()
        limit = {"fp32": 2e-2, "fp16": 5e-2, "bf16": 0.3, "int8": 1.0}[precision]
        assert float((got - want).abs().max() / want.std()) < limit
    assert engine.batch == Range(1, 4, 16)
    with pytest.raises(LoweringError, match="the engine takes"):
        engine(torch.randn(17, 3, 32, 32).cuda())


@pytest.mark.gpu
def test_timing_cache_is_written_and_read_again(net: nn.Module, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    for _ in range(2):
        edp_fx.lower(net, torch.randn(2, 3, 32, 32), tmp_path / "m.plan", target="tensorrt", timing_cache=cache)
        assert cache.stat().st_size > 0
    cache.write_bytes(b"not a cache")
    with pytest.raises(LoweringError, match="timing cache"):
        edp_fx.lower(net, torch.randn(2, 3, 32, 32), tmp_path / "m.plan", target="tensorrt", timing_cache=cache)
