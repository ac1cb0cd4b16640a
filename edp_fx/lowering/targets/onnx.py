"""``onnx``: the exported file as it is."""

from __future__ import annotations

from edp_fx.errors import LoweringError
from edp_fx.lowering.target import Build, BuildOptions, Engine, Progress, Target


class Onnx(Target):
    """The ONNX file that every target starts from; it runs under onnxruntime on the CPU."""

    name = "onnx"
    makes = "ONNX file, opset 20"
    is_engine = False

    def build(self, data: bytes, options: BuildOptions, progress: Progress | None = None) -> Build:
        """The file itself."""
        return Build(data)

    def load(self, data: bytes, *, where: str, cuda_graph: bool = False) -> Engine:
        """Under onnxruntime; nothing is captured there, so ``cuda_graph`` changes nothing."""
        from edp_fx.lowering.onnx_engine import OnnxEngine

        try:
            return OnnxEngine(data)
        except LoweringError as error:
            raise LoweringError(f"{where}: {error}") from error
