"""Lowering on real networks with randomised statistics: files, checks, engines, refusals."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

import edp_fx
from edp_fx.errors import LoweringError
from edp_fx.inputs import randomize_
from edp_fx.lowering.alignment import alignment
from edp_fx.lowering.onnx_export import Exported, export_onnx
from edp_fx.lowering.precision import absorb_norms, prepare
from edp_fx.lowering.profile import Profile, Range
from edp_fx.lowering.quantize import quantize
from edp_fx.lowering.targets import Build, BuildOptions, get_target
from edp_fx.lowering.targets.tensorrt_rtx import TensorRTRTX
from edp_fx.lowering.verify import upcast, verify

SIZE = 64


def resnet(channels: tuple[int, ...] = (64, 128, 256, 512)) -> fx.GraphModule:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10, channels=channels)
    randomize_(model)
    return fx.symbolic_trace(model.eval())


@pytest.fixture(scope="module")
def model() -> fx.GraphModule:
    return resnet()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


PROFILE = Profile(Range(1, 4, 16))


@pytest.fixture(scope="module")
def exported(model: fx.GraphModule, images: torch.Tensor) -> Exported:
    return export_onnx(prepare(model, "fp32"), (images,), PROFILE)


@pytest.fixture(scope="module")
def halved(model: fx.GraphModule, images: torch.Tensor) -> tuple[nn.Module, Exported]:
    prepared = prepare(model, "fp16")
    return prepared, export_onnx(prepared, (images.half(),), PROFILE)


def options(exported: Exported) -> BuildOptions:
    return BuildOptions(dict(zip(exported.input_names, exported.profile.shapes(exported.inputs))))


def build(exported: Exported, data: bytes | None = None) -> Build:
    return get_target("tensorrt-rtx").build(data or exported.data, options(exported))


@pytest.fixture(scope="module")
def built(exported: Exported) -> Build:
    return build(exported)


def test_export_has_a_named_dynamic_batch_and_no_batch_norm_left(exported: Exported) -> None:
    graph = onnx.load_from_string(exported.data).graph
    assert [value.name for value in graph.input] == ["x"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in graph.output] == ["output"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_verification_agrees_at_three_batch_sizes(model: fx.GraphModule, exported: Exported) -> None:
    result = verify(prepare(model, "fp32"), prepare(model, "fp32"), exported, "fp32")
    assert [check.batch for check in result.checks] == [1, 2, 5]
    assert result.max_rel_diff < 1e-4
    assert not result.not_run


def test_a_planted_fault_is_caught_and_its_module_named(model: fx.GraphModule, exported: Exported) -> None:
    proto = onnx.load_from_string(exported.data)
    weight = next(t for t in proto.graph.initializer if t.name == "layer2.1.conv1.weight")
    array = numpy_helper.to_array(weight).copy()
    array[5] = 0.0  # one output channel of one layer
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    broken = Exported(**{**vars(exported), "data": proto.SerializeToString()})
    with pytest.raises(LoweringError, match=r"first to depart: node '\w+' in module 'layer2\.1\."):
        verify(prepare(model, "fp32"), prepare(model, "fp32"), broken, "fp32")


def test_a_fault_smaller_than_half_precision_is_still_caught_in_the_half_file(
    model: fx.GraphModule, halved: tuple[nn.Module, Exported]
) -> None:
    prepared, exported = halved
    result = verify(model, prepared, exported, "fp16", count=1)
    assert {check.question for check in result.checks} == {"graph", "rounding", "file"}
    proto = onnx.load_from_string(exported.data)
    bias = next(t for t in proto.graph.initializer if t.name == "fc.bias")
    array = numpy_helper.to_array(bias).copy()
    array += 0.03 * result.checks[0].max_abs_diff / result.checks[0].max_rel_diff  # 0.03 standard deviations
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    broken = Exported(**{**vars(exported), "data": proto.SerializeToString()})
    with pytest.raises(LoweringError, match="does not compute what the model computes"):
        verify(model, prepared, broken, "fp16", count=1)


def test_half_range_exceeded_says_which_node_and_what_to_do(images: torch.Tensor) -> None:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.second = nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x) * 60000.0).mean((2, 3)) * 1e-5

    torch.manual_seed(0)
    loud = Loud().eval()
    prepared = prepare(loud, "fp16")
    exported = export_onnx(prepared, (images.half(),), PROFILE)
    with pytest.raises(LoweringError, match=r"fp16 is too coarse.*first to depart: node.*use bf16 or fp32"):
        verify(loud, prepared, exported, "fp16", count=1)


def test_norms_move_into_convolutions_exactly(images: torch.Tensor) -> None:
    graph = resnet().double()
    before = graph(images.double())
    names = absorb_norms(graph)
    assert len(names) == 20
    assert torch.allclose(before, graph(images.double()), rtol=1e-12, atol=1e-12)
    assert all(torch.all(graph.get_submodule(name).running_var == 1) for name in names)


def test_norms_move_into_grouped_transposed_convolutions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=True), nn.BatchNorm2d(6)).double()
    randomize_(net)
    graph = fx.symbolic_trace(net.eval())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = graph(x)
    assert absorb_norms(graph) == ["1"]
    assert torch.allclose(before, graph(x), rtol=1e-12, atol=1e-12)


def test_norms_stay_where_a_layer_computes_its_weight_or_feeds_two() -> None:
    standardised = nn.Sequential(timm.layers.ScaledStdConv2d(3, 8, 3), nn.BatchNorm2d(8))
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda m, name: not isinstance(m, nn.Sequential)  # type: ignore[method-assign]
    assert absorb_norms(fx.GraphModule(standardised, tracer.trace(standardised))) == []

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    assert absorb_norms(fx.symbolic_trace(Twice().eval())) == []


def test_rtx_engine_builds_with_layers_and_memory(exported: Exported, built: Build) -> None:
    weights = sum(numpy_helper.to_array(t).nbytes for t in onnx.load_from_string(exported.data).graph.initializer)
    assert built.builder.startswith("tensorrt_rtx 1.")
    assert built.plan.weights_memory is not None
    assert abs(built.plan.weights_memory / weights - 1) < 0.05
    assert built.plan.activation_memory is not None
    assert built.plan.activation_memory > 0
    convolutions = [layer for layer in built.plan.layers if layer.kind == "correlation"]
    assert len(convolutions) == 20
    assert all(layer.inputs and layer.outputs and layer.sources for layer in convolutions)
    assert convolutions[0].outputs == ("-1,64,32,32 Float",)


def test_half_engine_holds_half_the_weights(halved: tuple[nn.Module, Exported], built: Build) -> None:
    plan = build(halved[1]).plan
    assert plan.weights_memory is not None
    assert built.plan.weights_memory is not None
    assert 0.45 < plan.weights_memory / built.plan.weights_memory < 0.55
    assert {"Half"} == {t.split()[-1] for layer in plan.layers if layer.kind == "correlation" for t in layer.outputs}


def test_aligned_widths_need_no_more_generated_kernels_and_weights_fall(
    images: torch.Tensor, halved: tuple[nn.Module, Exported]
) -> None:
    def plan(channels: tuple[int, ...]) -> tuple[Build, int]:
        net = resnet(channels)
        report = alignment(net, (images,), "fp16")
        half = export_onnx(prepare(net, "fp16"), (images.half(),), PROFILE)
        return build(half), len(report.misaligned)

    dense = build(halved[1]).plan
    aligned, none = plan((24, 56, 120, 248))
    odd, many = plan((29, 61, 125, 253))
    assert none == 0
    assert many == 21
    assert aligned.plan.generated_kernels <= dense.generated_kernels
    assert odd.plan.generated_kernels > aligned.plan.generated_kernels
    assert aligned.plan.weights_memory is not None
    assert dense.weights_memory is not None
    assert aligned.plan.weights_memory < 0.3 * dense.weights_memory


def test_alignment_says_what_rounding_up_costs(images: torch.Tensor) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(6, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    report = alignment(net, (images,), "fp16")
    assert [(m.layer, m.inputs, m.outputs, m.aligned_inputs, m.aligned_outputs) for m in report.misaligned] == [
        ("0", 3, 6, 3, 8),
        ("1", 6, 16, 8, 16),
    ]
    pixels = SIZE * SIZE
    assert report.macs == pixels * (3 * 6 * 9 + 6 * 16) + 160
    assert report.aligned_macs == pixels * (3 * 8 * 9 + 8 * 16) + 160
    assert "2 of 3 layers" in report.summary()
    assert alignment(net, (images,), "fp32").misaligned[0].aligned_outputs == 8


def test_lower_writes_engine_and_sidecar_and_nothing_else(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    randomize_(model)
    seen: list[str] = []
    result = edp_fx.lower(
        model,
        images,
        tmp_path / "m.plan",
        target="tensorrt-rtx",
        precision="bf16",
        compute_capabilities=("sm86", "SM120"),
        onnx_path=tmp_path / "m.onnx",
        source="here",
        progress=lambda what, done, steps: seen.append(what),
    )
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.plan", "m.plan.json"]
    facts = json.loads((tmp_path / "m.plan.json").read_text())
    assert facts["target"] == "tensorrt-rtx"
    assert facts["precision"] == "bf16"
    assert facts["source"] == "here"
    assert facts["compute_capabilities"] == ["sm86", "SM120"]
    assert facts["inputs"][0] == {
        "name": "x",
        "dtype": "bfloat16",
        "min": [1, 3, SIZE, SIZE],
        "opt": [8, 3, SIZE, SIZE],
        "max": [32, 3, SIZE, SIZE],
    }
    assert facts["sha256"] == hashlib.sha256((tmp_path / "m.plan").read_bytes()).hexdigest()
    assert len(facts["plan"]["layers"]) > 10
    assert len(facts["weights_sha256"]) == 64
    # onnxruntime has no bfloat16 kernels on a CPU: said, not glossed over
    assert "bfloat16" in facts["verification"]["not_run"][0]
    assert {check["question"] for check in facts["verification"]["checks"]} == {"graph", "rounding"}
    assert result.weights_memory == facts["plan"]["weights_memory"]
    assert "exporting to ONNX" in seen
    assert "Building engine" in seen
    json.dumps(result.to_json())


def test_bfloat16_file_is_bfloat16_throughout_and_upcasts(model: fx.GraphModule, images: torch.Tensor) -> None:
    prepared = prepare(model, "bf16")
    exported = export_onnx(prepared, (images.bfloat16(),), PROFILE)
    kinds = {t.data_type for t in onnx.load_from_string(exported.data).graph.initializer}
    assert TensorProto.BFLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    wide = {t.data_type for t in onnx.load_from_string(upcast(exported.data)).graph.initializer}
    assert TensorProto.BFLOAT16 not in wide


def test_int8_from_a_loader_builds_and_is_near(model: fx.GraphModule, images: torch.Tensor, exported: Exported) -> None:
    generator = torch.Generator().manual_seed(2)
    loader = [(torch.randn(8, 3, SIZE, SIZE, generator=generator), torch.zeros(8)) for _ in range(2)]
    data = quantize(exported, loader)
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert kinds.count("QuantizeLinear") >= 20
    result = verify(prepare(model, "fp32"), prepare(model, "fp32"), exported, "int8", quantized=data, count=1)
    rounding = next(check for check in result.checks if check.question == "file")
    assert 1e-3 < rounding.max_rel_diff < 0.3
    plan = build(exported, data).plan
    assert plan.weights_memory is not None
    floats = 4 * sum(p.numel() for p in model.parameters())
    assert plan.weights_memory < 0.35 * floats
    assert any("Int8" in text for layer in plan.layers for text in layer.inputs)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "calibration loader is empty"),
        ([torch.zeros(2, 3, 32, 32)], r"calibration batch for input 'x' has shape \(2, 3, 32, 32\)"),
    ],
)
def test_bad_calibration_is_refused(exported: Exported, loader: list[torch.Tensor], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        quantize(exported, loader)


def test_dynamic_image_size_and_static_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=7)
    randomize_(net)
    x = torch.randn(1, 3, 64, 64)
    result = edp_fx.lower(net.eval(), x, tmp_path / "m.plan", target="tensorrt-rtx", batch=2, image=(64, 96, 128))
    assert [(c.batch, c.image) for c in result.verification.checks] == [(2, 64), (2, 96), (2, 128)]
    facts = json.loads((tmp_path / "m.plan.json").read_text())
    assert facts["inputs"][0]["min"] == [2, 3, 64, 64]
    assert facts["inputs"][0]["max"] == [2, 3, 128, 128]


def test_a_vision_transformer_lowers_but_not_at_another_image_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5).eval()
    randomize_(net)
    x = torch.randn(2, 3, 64, 64)
    result = edp_fx.lower(net, x, tmp_path / "v.plan", target="tensorrt-rtx", precision="fp16")
    assert result.plan is not None
    assert result.plan.layers
    with pytest.raises(LoweringError, match=r"image|height|size"):
        edp_fx.lower(net, x, tmp_path / "w.plan", target="tensorrt-rtx", image=(32, 64, 96))
    assert sorted(os.listdir(tmp_path)) == ["v.plan", "v.plan.json"]


def test_a_model_with_its_batch_baked_in_says_so(tmp_path: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1).sum(1)

    with pytest.raises(LoweringError, match="batch"):
        edp_fx.lower(Baked(), torch.randn(2, 3, 8, 8), tmp_path / "b.onnx", target="onnx")
    assert os.listdir(tmp_path) == []


def test_groups_that_are_the_batch_are_named_with_what_to_do(tmp_path: Path) -> None:
    class Own(nn.Module):
        def forward(self, kernels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x.reshape(1, -1, 8, 8), kernels, groups=x.shape[0])

    inputs, file = (torch.randn(2, 3, 3, 3), torch.randn(2, 3, 8, 8)), tmp_path / "b.onnx"
    with pytest.raises(LoweringError, match=r"node 'conv2d': ONNX wants a constant .* use --batch N"):
        edp_fx.lower(Own(), inputs, file, target="onnx")
    assert os.listdir(tmp_path) == []
    assert edp_fx.lower(Own(), inputs, file, target="onnx", batch=2).verification.max_rel_diff < 1e-4


def node_file(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], batch: str | int = 2) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


CONV = [helper.make_node("Conv", ["x", "w"], ["y"], name="the_conv")]
BROKEN = {
    "truncated": (lambda data: data[: len(data) // 2], "cannot read the ONNX file"),
    "channels": (lambda _: node_file(CONV, {"w": np.ones((4, 3, 1, 1), np.float32)}), r"the_conv"),
    "types": (lambda _: node_file(CONV, {"w": np.ones((4, 4, 1, 1), np.float16)}), r"the_conv.*type"),
    "operator": (
        lambda _: node_file([helper.make_node("Nonesuch", ["x"], ["y"], name="the_op")], {}),
        "the_op|Nonesuch",
    ),
    "profile": (
        lambda _: node_file(CONV, {"w": np.ones((4, 4, 1, 1), np.float32)}, "n"),
        "varies without a profile",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_the_builder_refuses_is_one_clear_line(case: str, exported: Exported) -> None:
    make, message = BROKEN[case]
    with pytest.raises(LoweringError, match=message) as caught:
        get_target("tensorrt-rtx").build(make(exported.data), BuildOptions({}))
    assert "\n" not in str(caught.value)
    assert "Cuda Runtime" not in str(caught.value)


class Gated(nn.Module):
    """A gated layer whose gate is a pair: TensorRT-RTX 1.7 has no kernel for it in widths of 2 modulo 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(384)
        self.gate = nn.Sequential(nn.Linear(384, 176, bias=False), nn.Linear(176, width), nn.GELU())
        self.value, self.out = nn.Linear(384, width), nn.Linear(width, 384)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.out(self.gate(y) * self.value(y))


def test_a_build_that_fails_for_its_widths_says_how_to_align_them(tmp_path: Path) -> None:
    tokens = torch.randn(2, 36, 384)
    with pytest.raises(LoweringError, match=r"could not build.*3 of 4 layers.*multiples of 4.*prune with align=4"):
        edp_fx.lower(Gated(398).eval(), tokens, tmp_path / "m.plan", target="tensorrt-rtx", batch=(1, 2, 8))
    assert os.listdir(tmp_path) == []
    edp_fx.lower(Gated(400).eval(), tokens, tmp_path / "m.plan", target="tensorrt-rtx", batch=(1, 2, 8))


def test_a_failed_build_leaves_no_file(images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise LoweringError("refused")

    (tmp_path / "m.plan").write_bytes(b"the engine of yesterday")
    monkeypatch.setattr(TensorRTRTX, "build", refuse)
    with pytest.raises(LoweringError, match="refused"):
        edp_fx.lower(nn.Conv2d(3, 8, 3), images, tmp_path / "m.plan", target="tensorrt-rtx")
    assert os.listdir(tmp_path) == ["m.plan"]
    assert (tmp_path / "m.plan").read_bytes() == b"the engine of yesterday"


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edp_fx.files import write

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoweringError, match="No space left"):
        write({tmp_path / "a": b"1", tmp_path / "b": b"2"}, LoweringError)
    assert os.listdir(tmp_path) == []


def test_unwritable_paths_are_refused_before_the_work(
    model: fx.GraphModule, images: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for path, message in [
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "m.plan", "does not exist"),
        (tmp_path / "file" / "m.plan", "is no directory"),
    ]:
        with pytest.raises(LoweringError, match=message):
            edp_fx.lower(model, images, path, target="onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tpu"}, "unknown target 'tpu'"),
        ({"target": "onnx", "precision": "fp8"}, "unknown precision 'fp8'"),
        ({"target": "onnx", "precision": "int8"}, "int8 needs a calibration loader"),
        ({"target": "onnx", "calibration_loader": [1]}, "calibration loader is for int8"),
        ({"target": "onnx", "batch": "1:x"}, "no size range"),
        ({"target": "onnx", "batch": (4, 2, 1)}, "min <= opt <= max"),
        ({"target": "onnx", "workspace": 1}, "are for TensorRT"),
        ({"target": "tensorrt-rtx", "workspace": 0}, "workspace of 0 bytes"),
        ({"target": "tensorrt-rtx", "workspace": 2**63}, "workspace of"),
        ({"target": "onnxruntime", "precision": "bf16"}, "no bfloat16 kernels"),
        ({"target": "tensorrt-rtx", "compute_capabilities": ("sm90",)}, "does not build for 'sm90'"),
        ({"target": "tensorrt-rtx", "timing_cache": "cache"}, "timing cache is for --target tensorrt"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    model: fx.GraphModule, images: torch.Tensor, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(LoweringError, match=message):
        edp_fx.lower(model, images, tmp_path / "m", **options)
    assert os.listdir(tmp_path) == []
