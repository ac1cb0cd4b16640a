"""Does the ONNX file compute what the torch model computes? Asked of onnxruntime, at several batch sizes.

Three questions, each with its own tolerance, in standard deviations of the output:

- *graph*: the file's operators and its (already rounded) weights, computed in float32, against the torch
  model with the same rounded weights in float32. Tight in every precision: it finds what an export got wrong.
- *rounding* (half types): torch in that type against torch in float32, at the smallest batch: what the
  precision costs. onnxruntime cannot say: its CPU kernels keep float16 graphs in float32 between nodes.
- *file* (fp16, int8): the very file under onnxruntime. It has no bfloat16 convolution on the CPU, so for
  bfloat16 this is not run, and said to be so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edp_fx.errors import LoweringError, whole_line
from edp_fx.leaves import tensors_of
from edp_fx.lowering.onnx_engine import session
from edp_fx.lowering.onnx_export import Exported
from edp_fx.lowering.program import quiet

TOLERANCE = {
    "graph": {"fp32": 1e-3, "int8": 1e-3, "fp16": 1e-2, "bf16": 3e-2},
    "rounding": {"fp16": 0.1, "bf16": 0.5},
    "file": {"fp16": 0.1, "int8": 1.0},
}

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

    @property
    def passed(self) -> bool:
        """False also where the difference is no number."""
        return self.max_rel_diff <= self.tolerance


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
    halved = precision in ("fp16", "bf16")
    same = _float_copy(prepared) if halved else reference
    graph_file = upcast(exported.data) if halved else exported.data
    graph_session = session(graph_file)
    whole_file = {"fp16": exported.data, "int8": quantized}.get(precision)
    whole_session = session(whole_file) if whole_file is not None else None
    checks: list[Check] = []
    not_run: list[str] = []
    for index, size in enumerate(_sizes(exported, count)):
        inputs = exported.profile.sample(exported.inputs, *size, seed + index)
        # Rounded inputs widened again: both sides see the same values.
        wide = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        got = run(graph_session, exported.input_names, wide, exported.output_names)
        check = _check("graph", precision, size, _torch(same, wide), got)
        if not check.passed:
            raise LoweringError(_departure(check, exported, graph_file, inputs, wide))
        checks.append(check)
        if not halved and whole_session is None:
            continue
        truth = _torch(reference, wide)
        rounded, reason = _in_half(prepared, inputs) if halved and index == 0 else (None, None)
        if reason is not None:
            not_run.append(f"rounding: torch cannot run {precision} on the CPU ({reason})")
        if rounded is not None:
            check = _check("rounding", precision, size, truth, rounded)
            if not check.passed:
                raise LoweringError(_too_coarse(check, precision, exported, graph_file, inputs, wide))
            checks.append(check)
        if whole_session is not None:
            given = inputs if halved else wide
            got = run(whole_session, exported.input_names, given, exported.output_names)
            check = _check("file", precision, size, truth, got)
            if not check.passed:
                raise LoweringError(_too_coarse(check, precision, exported, graph_file, inputs, wide))
            checks.append(check)
    if precision == "bf16":
        not_run.append("file: onnxruntime has no bfloat16 kernels on the CPU")
    return Verification(tuple(checks), tuple(not_run))


def run(runner: Any, names: list[str], inputs: tuple[Tensor, ...], wanted: list[str] | None = None) -> list[np.ndarray]:
    """The outputs of an onnxruntime session; inputs which the graph does not use are left out."""
    known = {value.name for value in runner.get_inputs()}
    feed = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs) if name in known}
    try:
        return runner.run(wanted, feed)
    except Exception as error:
        raise LoweringError(f"onnxruntime could not run the ONNX file: {whole_line(error)}") from error


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
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chunk)
        got = run(session(model.SerializeToString()), exported.input_names, fed, chunk)
        for name, value in zip(chunk, got):
            want = truth.values[name].float().numpy()
            if want.shape != value.shape or not _difference(want, value)[1] <= tolerance:
                return name
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


def _torch(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    try:
        with torch.no_grad():
            leaves = tensors_of(model(*inputs))
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise LoweringError(f"the model does not run on inputs of shape {shapes}: {whole_line(error)}") from error
    return [leaf.float().numpy() for leaf in leaves]


def _in_half(prepared: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[np.ndarray] | None, str | None]:
    """Outputs of the half model, or why torch's CPU kernels cannot give them."""
    try:
        return _torch(prepared, inputs), None
    except LoweringError as error:
        return None, whole_line(error.__cause__ or error, 150)


def _check(
    question: str,
    precision: str,
    size: tuple[int, int | None],
    wanted: list[np.ndarray],
    got: list[np.ndarray],
) -> Check:
    pairs = [_difference(w, g) for w, g in zip(wanted, got)]
    worst_abs, worst_rel = (max(column) for column in zip(*pairs))
    return Check(question, *size, worst_abs, worst_rel, TOLERANCE[question][precision])


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
    halved = any(one.dtype in (torch.float16, torch.bfloat16) for one in exported.inputs)
    tolerance = 0.2 if halved else check.tolerance
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
    check: Check,
    precision: str,
    exported: Exported,
    data: bytes,
    inputs: tuple[Tensor, ...],
    wide: tuple[Tensor, ...],
) -> str:
    advice = {
        "fp16": "use bf16 or fp32",
        "bf16": "use fp32",
        "int8": "calibrate on data like the model's own, or use fp16",
    }[precision]
    name = None if precision == "int8" else first_departure(exported, data, inputs, wide, check.tolerance)
    where = f"; first to depart: {_where(exported, name)}" if name else ""
    return (
        f"{precision} is too coarse for this model: outputs differ by {check.max_rel_diff:.3g} standard "
        f"deviations from float32 (at most {check.tolerance:g}){where}; {advice}"
    )
