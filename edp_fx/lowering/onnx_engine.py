"""ONNX files under onnxruntime on the CPU, on torch tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edp_fx.errors import LoweringError, whole_line
from edp_fx.extras import need
from edp_fx.lowering.calls import check_count, unwrapped
from edp_fx.lowering.profile import Range

_ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxEngine:
    """An ONNX file under onnxruntime, called like a module: CPU tensors in, a tensor (or a tuple) out."""

    def __init__(self, data: bytes, threads: int | None = None) -> None:
        need("lower", "running an ONNX file", "onnxruntime")
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise LoweringError(f"onnxruntime refused the ONNX file: {whole_line(error)}") from error
        self._inputs = [(value.name, value.type) for value in self.session.get_inputs()]
        self.device = torch.device("cpu")

    @property
    def batch(self) -> Range | None:
        """The batch sizes it takes, None for any."""
        rows = self.session.get_inputs()[0].shape[0]
        return Range.of(rows) if isinstance(rows, int) else None

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the file's shapes with one row; LoweringError for a varying image size."""
        made = []
        for value in self.session.get_inputs():
            if any(not isinstance(size, int) for size in value.shape[1:]):
                raise LoweringError(f"input {value.name!r} has a varying image size: lower with a fixed one")
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            made.append(torch.zeros(shape, dtype=_ONNX_TYPES.get(value.type, torch.float32)))
        return tuple(made)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run on ``inputs`` (cast to the file's types); raises LoweringError where their shapes do not
        fit.
        """
        check_count(len(inputs), len(self._inputs))
        feed = {}
        for (name, kind), tensor in zip(self._inputs, inputs):
            feed[name] = tensor.detach().to("cpu", _ONNX_TYPES.get(kind, tensor.dtype)).numpy()
        try:
            outputs = self.session.run(None, feed)
        except Exception as error:
            raise LoweringError(f"onnxruntime could not run: {whole_line(error)}") from error
        return unwrapped([torch.from_numpy(value) for value in outputs])


def session(data: bytes) -> Any:
    """An onnxruntime CPU session, single threaded. Raises LoweringError with onnxruntime's own reason."""
    need("lower", "running an ONNX file", "onnxruntime")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoweringError(f"onnxruntime refused the ONNX file: {whole_line(error)}") from error
