"""Does the ONNX file compute what the torch model computes? Asked of onnxruntime, at several batch sizes.

Two questions, each with its own tolerance, in standard deviations of the output:

- *graph*: the file's operators and its (already rounded) weights, computed in float32, against the torch
  model with the same rounded weights in float32. This is tight in every precision: it finds what an export
  got wrong.
- *rounding*: the file as it is, against the float32 torch model: what the precision costs. onnxruntime's CPU
  kernels do this for float16 and for int8; they have no bfloat16 convolution, so for bfloat16 it is not run
  and says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edp_fx.errors import LoweringError
from edp_fx.lowering.onnx_export import Exported, quiet

GRAPH_TOLERANCE = {"fp32": 1e-3, "int8": 1e-3, "fp16": 1e-2, "bf16": 3e-2}
ROUNDING_TOLERANCE = {"fp16": 0.1, "int8": 1.0}

_CHUNK = 48  # extra outputs a run when looking for the first node that departs


@dataclass(frozen=True)
class Check:
    """One comparison. ``max_rel_diff`` is in standard deviations of the reference output."""

    question: str
    batch: int
    image: int | None
    max_abs_diff: float
    max_rel_diff: float
    tolerance: float


@dataclass(frozen=True)
class Verification:
    """What was checked, and what was not and why."""

    checks: tuple[Check, ...]
    not_run: tuple[str, ...] = ()

    @property
    def max_abs_diff(self) -> float:
        """The greatest absolute difference over all checks."""
        return max(check.max_abs_diff for check in self.checks)

    @property
    def max_rel_diff(self) -> float:
        """The greatest difference over all checks, in standard deviations of the output."""
        return max(check.max_rel_diff for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"checks": [asdict(check) for check in self.checks], "not_run": list(self.not_run)}


def verify(
    reference: nn.Module,
    prepared: nn.Module,
    exported: Exported,
    precision: str,
    *,
    count: int = 3,
    quantized: bytes | None = None,
    seed: int = 0,
) -> Verification:
    """Compare ``exported`` with torch at ``count`` batch sizes (and image sizes, where those vary).

    ``reference`` is the float32 model, ``prepared`` the model that was exported. ``quantized`` is the int8
    file made from the exported one. Raises LoweringError naming the first node that departs.
    """
    same = reference if precision in ("fp32", "int8") else _float_copy(prepared)
    graph_file = exported.data if precision in ("fp32", "int8") else upcast(exported.data)
    graph_session = session(graph_file)
    rounding_file = {"fp16": exported.data, "int8": quantized}.get(precision)
    rounding_session = session(rounding_file) if rounding_file is not None else None
    checks, not_run = [], []
    for index, (batch, image) in enumerate(_sizes(exported, count)):
        inputs = exported.profile.sample(exported.inputs, batch, image, seed + index)
        inputs32 = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        # Rounded inputs widened again: both sides see the same values.
        check = _compare(
            "graph", same, graph_session, exported, inputs32, GRAPH_TOLERANCE[precision], batch, image
        )
        if not check.max_rel_diff <= check.tolerance:
            raise LoweringError(_departure(check, exported, graph_file, inputs, inputs32))
        checks.append(check)
        if rounding_session is not None:
            given = inputs if precision == "fp16" else inputs32
            limit = ROUNDING_TOLERANCE[precision]
            check = _compare("rounding", reference, rounding_session, exported, given, limit, batch, image)
            if not check.max_rel_diff <= limit:
                raise LoweringError(_too_coarse(check, precision, exported, rounding_file, given))
            checks.append(check)
    if precision == "bf16":
        not_run.append("rounding: onnxruntime has no bfloat16 kernels on the CPU")
    return Verification(tuple(checks), tuple(not_run))


def session(data: bytes) -> Any:
    """An onnxruntime CPU session, single threaded. Raises LoweringError with onnxruntime's own reason."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoweringError(
            f"onnxruntime refused the ONNX file: {' '.join(str(error).split())[:400]}"
        ) from error


def run(
    runner: Any, names: list[str], inputs: tuple[Tensor, ...], wanted: list[str] | None = None
) -> list[np.ndarray]:
    """The outputs of an onnxruntime session; inputs which the graph does not use are left out."""
    known = {value.name for value in runner.get_inputs()}
    feed = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs) if name in known}
    try:
        return runner.run(wanted, feed)
    except Exception as error:
        raise LoweringError(
            f"onnxruntime could not run the ONNX file: {' '.join(str(error).split())[:400]}"
        ) from error


def upcast(data: bytes) -> bytes:
    """The same graph with every half or bfloat16 tensor and cast in float32: weights keep their rounded
    values.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    model = onnx.load_from_string(data)
    graph = model.graph

    def widen(tensor: Any) -> None:
        if tensor.data_type in halves:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    for tensor in graph.initializer:
        widen(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in halves:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                widen(attribute.t)
    return model.SerializeToString()


def first_departure(
    exported: Exported, data: bytes, inputs: tuple[Tensor, ...], fed: tuple[Tensor, ...], tolerance: float
) -> str | None:
    """Name of the first value of ``data`` that differs from the torch program's by more than ``tolerance``
    standard deviations, or None. ``inputs`` go to torch, ``fed`` to onnxruntime. Values are read off as
    extra outputs.
    """
    import onnx

    model = onnx.load_from_string(data)
    order = [name for node in model.graph.node for name in node.output]
    truth = _Recorder(exported.program.module())
    with torch.no_grad(), quiet():
        truth.run(*inputs)
    names = [name for name in order if name in truth.values]
    outputs = list(model.graph.output)
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chunk)
        got = run(session(model.SerializeToString()), exported.input_names, fed, chunk)
        for name, value in zip(chunk, got):
            want = truth.values[name].float().numpy()
            if want.shape != value.shape or not _difference(want, value)[1] <= tolerance:
                return name
    del outputs
    return None


class _Recorder(fx.Interpreter):
    """Runs a program and keeps every floating tensor by the name of its node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            self.values[n.name] = value.detach().clone()  # a later in-place op must not change it
        return value


def _float_copy(prepared: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(prepared).float()


def _sizes(exported: Exported, count: int) -> list[tuple[int, int | None]]:
    batches = exported.profile.batch.samples(count)
    image = exported.profile.image
    if image is None:
        return [(batch, None) for batch in batches]
    images = [image.min, image.opt, image.max]
    return [(batches[i % len(batches)], images[i]) for i in range(count)]


def _compare(
    question: str,
    reference: nn.Module,
    runner: Any,
    exported: Exported,
    inputs: tuple[Tensor, ...],
    tolerance: float,
    batch: int,
    image: int | None,
) -> Check:
    with torch.no_grad():
        wide = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        wanted = torch.utils._pytree.tree_leaves(reference(*wide))
    got = run(runner, exported.input_names, inputs, exported.output_names)
    pairs = [_difference(w.float().numpy(), g) for w, g in zip(wanted, got)]
    worst_abs, worst_rel = (max(column) for column in zip(*pairs))
    return Check(question, batch, image, worst_abs, worst_rel, tolerance)


def _difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Greatest absolute difference, alone and in standard deviations of ``want``; infinite where shapes,
    NaNs or infinities do not agree.
    """
    if want.shape != got.shape:
        return float("inf"), float("inf")
    want, got = want.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isfinite(want), np.isfinite(got)):
        return float("inf"), float("inf")
    keep = np.isfinite(want)
    if not keep.any():
        return 0.0, 0.0
    gap = float(np.abs(want[keep] - got[keep]).max())
    # A constant output has no spread: its size is the scale then.
    scale = max(float(want[keep].std()), 1e-3 * float(np.abs(want[keep]).max()), 1e-12)
    return gap, gap / scale


def _where(exported: Exported, name: str) -> str:
    module = exported.locations.get(name, "")
    return f"node {name!r}" + (f" in module {module!r}" if module else "")


def _departure(
    check: Check, exported: Exported, data: bytes, inputs: tuple[Tensor, ...], fed: tuple[Tensor, ...]
) -> str:
    # Between half and float32 arithmetic a right node differs by rounding; a wrong one by far more.
    tolerance = check.tolerance if exported.inputs[0].dtype == torch.float32 else 0.2
    name = first_departure(exported, data, inputs, fed, tolerance)
    where = (
        _where(exported, name)
        if name
        else "no node departs from torch.export's program, which itself departs from the model"
    )
    return (
        f"the ONNX file does not compute what the model computes at batch {check.batch}: outputs differ by "
        f"{check.max_rel_diff:.3g} standard deviations (at most {check.tolerance:g}); first to depart:"
        f" {where}"
    )


def _too_coarse(
    check: Check, precision: str, exported: Exported, data: bytes | None, fed: tuple[Tensor, ...]
) -> str:
    advice = (
        "use bf16 or fp32" if precision == "fp16" else "calibrate on data like the model's own, or use fp16"
    )
    name = None
    if precision == "fp16" and data is not None:
        name = first_departure(exported, data, fed, fed, check.tolerance)
    where = f"; first to depart: {_where(exported, name)}" if name else ""
    return (
        f"{precision} is too coarse for this model: outputs differ by {check.max_rel_diff:.3g} standard "
        f"deviations from float32 (at most {check.tolerance:g}){where}; {advice}"
    )
