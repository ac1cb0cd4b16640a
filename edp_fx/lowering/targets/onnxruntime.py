"""``onnxruntime``: the ONNX file after onnxruntime's own fusions."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edp_fx.errors import LoweringError, whole_line
from edp_fx.lowering.target import Build, BuildOptions, Progress
from edp_fx.lowering.targets.onnx import Onnx


class OnnxRuntime(Onnx):
    """For the CPU."""

    name = "onnxruntime"
    makes = "ONNX file after onnxruntime's own fusions"
    lacks = {  # noqa: RUF012
        "bf16": "onnxruntime has no bfloat16 kernels on the CPU: use fp32 or fp16, or --target onnx for the file"
    }

    def build(self, data: bytes, options: BuildOptions, progress: Progress | None = None) -> Build:
        """The file after onnxruntime's hardware-independent fusions, and proof that it loads again."""
        import onnxruntime as ort

        from edp_fx.lowering.onnx_engine import session

        if progress is not None:
            progress("optimising for onnxruntime", 0, 0)
        with tempfile.TemporaryDirectory(prefix="edp-fx-") as folder:
            options_of_session = ort.SessionOptions()
            options_of_session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options_of_session.optimized_model_filepath = str(Path(folder, "fused.onnx"))
            options_of_session.log_severity_level = 4
            try:
                ort.InferenceSession(data, options_of_session, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise LoweringError(f"onnxruntime refused the ONNX file: {whole_line(error)}") from error
            fused = Path(folder, "fused.onnx").read_bytes()
        session(fused)
        return Build(fused, f"onnxruntime {ort.__version__}")
