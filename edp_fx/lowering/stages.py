"""Lowering as stages of a coverage sweep: each says whether it worked, why not, and how far from torch it
is.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, nn

from edp_fx.errors import LoweringError, whole_line
from edp_fx.inputs import normalize
from edp_fx.lowering.onnx_export import Exported, export_onnx
from edp_fx.lowering.precision import cast_inputs, dtype_of, prepare
from edp_fx.lowering.profile import Profile, Range
from edp_fx.lowering.targets import BuildOptions, get_target
from edp_fx.lowering.verify import verify

Stage = dict[str, Any]

_EXPORT = "edp_fx.lowering.export"


def onnx_stage(
    gm: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], shared: dict[str, Any] | None = None
) -> Stage:
    """Export in float32 and compare with torch: ``ok``, ``reason``, ``seconds``, ``max_rel_diff`` (in
    standard deviations of the output), ``batch`` (``dynamic``, or ``static`` where the model fixes its batch
    size; ``reason`` says how). The export is left in ``shared`` for :func:`engine_stage`.
    """
    start = time.perf_counter()
    stage: Stage = {"ok": False, "reason": None, "seconds": 0.0, "max_rel_diff": None}
    try:
        exported, stage["reason"] = _export(gm, example_inputs, "fp32")
        stage["batch"] = "static" if exported.profile.batch.static else "dynamic"
        reference = prepare(gm, "fp32")
        stage["max_rel_diff"] = verify(reference, reference, exported, "fp32").max_rel_diff
        stage["ok"] = True
        if shared is not None:
            shared[_EXPORT] = (gm, exported)
    except Exception as error:
        stage["reason"] = whole_line(error)
    stage["seconds"] = round(time.perf_counter() - start, 3)
    return stage


def engine_stage(
    gm: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], shared: dict[str, Any] | None = None
) -> Stage:
    """Build TensorRT-RTX engines in fp32 and fp16 with a varying batch: ``ok`` where both were built,
    ``reason`` (the exporter's, parser's or builder's own), ``seconds``, and for each precision ``bytes`` and
    ``weights_memory``. ``shared`` is that of :func:`onnx_stage` on the same network, to export once less.
    """
    start = time.perf_counter()
    stage: Stage = {"ok": True, "reason": None}
    known, single = (shared or {}).get(_EXPORT, (None, None))
    for precision in ("fp32", "fp16"):
        try:
            reused = single if known is gm and precision == "fp32" else None
            exported = reused or _export(gm, example_inputs, precision)[0]
            shapes = dict(zip(exported.input_names, exported.profile.shapes(exported.inputs)))
            build = get_target("tensorrt-rtx").build(exported.data, BuildOptions(shapes))
            assert build.plan is not None
            stage[precision] = {"bytes": len(build.data), "weights_memory": build.plan.weights_memory}
        except Exception as error:
            stage["ok"] = False
            stage["reason"] = stage["reason"] or f"{precision}: {whole_line(error)}"
    stage["seconds"] = round(time.perf_counter() - start, 3)
    return stage


def _export(gm: nn.Module, example_inputs: Any, precision: str) -> tuple[Exported, str | None]:
    """With a varying batch, else with the examples' own and the reason."""
    examples = tuple(x.detach().cpu() for x in normalize(example_inputs))
    inputs = cast_inputs(examples, dtype_of(precision))
    prepared = prepare(gm, precision, examples)
    try:
        return export_onnx(prepared, inputs, Profile(Range(1, 2, 8))), None
    except LoweringError as error:
        fixed = Profile(Range.of(inputs[0].shape[0]))
        try:
            return export_onnx(prepared, inputs, fixed), f"static batch: {whole_line(error)}"
        except LoweringError:
            raise error from None
