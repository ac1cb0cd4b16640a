"""Engines of TensorRT and TensorRT-RTX on a GPU, on torch tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edp_fx.errors import LoweringError
from edp_fx.lowering.calls import check_count, unwrapped
from edp_fx.lowering.profile import Range
from edp_fx.lowering.tensorrt_build import TensorRTLike


class TensorRTEngine:
    """An engine of TensorRT or TensorRT-RTX, called like a module on CUDA tensors.

    With ``cuda_graph=True`` the launches are captured once for each input shape and replayed after: inputs
    are copied into the captured buffers, and the result is a copy, so a caller may keep it. TensorRT-RTX
    captures by itself (CudaGraphStrategy), since it goes on compiling kernels for a shape after its first
    run.
    """

    def __init__(self, target: TensorRTLike, data: bytes, *, cuda_graph: bool = False) -> None:
        trt = target.module()
        self._runtime = trt.Runtime(target.logger)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise LoweringError(f"{target.name} cannot load the engine: {target.why_refused()}")
        self._engine = engine
        self._config = target.capture_config(engine) if cuda_graph else None
        self._context = self._new_context()
        self.device = torch.device("cuda", torch.cuda.current_device())
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.input_names = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.output_names = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        self._dtypes = {name: _torch_dtype(trt, engine.get_tensor_dtype(name)) for name in names}
        self._stream = torch.cuda.Stream()
        self._graphs: dict[tuple[Any, ...], _Captured] | None = {} if cuda_graph else None

    def __call__(self, *inputs: Tensor) -> Any:
        """Run on ``inputs`` (moved to the GPU and cast to the engine's types) and return CUDA tensors, ready
        on the current stream. Raises LoweringError where the shapes are outside the engine's profile.
        """
        check_count(len(inputs), len(self.input_names))
        given = [
            tensor.detach().to(self.device, self._dtypes[name]).contiguous()
            for name, tensor in zip(self.input_names, inputs)
        ]
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            results = self._replay(given) if self._graphs is not None else self._enqueue(given)
        caller.wait_stream(self._stream)
        for tensor in (*given, *results):
            tensor.record_stream(caller)
        return unwrapped(results)

    @property
    def batch(self) -> Range | None:
        """The batch sizes it takes."""
        low, usual, high = (int(shape[0]) for shape in self._profile(self.input_names[0]))
        return Range(low, usual, high)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the usual shapes with as few rows as the profile allows, on the GPU."""
        made = []
        for name in self.input_names:
            low, usual, _ = self._profile(name)
            made.append(torch.zeros((low[0], *usual[1:]), dtype=self._dtypes[name], device=self.device))
        return tuple(made)

    def _profile(self, name: str) -> list[tuple[int, ...]]:
        shape = tuple(self._engine.get_tensor_shape(name))
        if all(size >= 0 for size in shape):
            return [shape] * 3
        return [tuple(one) for one in self._engine.get_tensor_profile_shape(name, 0)]

    def _new_context(self) -> Any:
        engine = self._engine
        context = engine.create_execution_context(*([self._config] if self._config is not None else []))
        if context is None:
            raise LoweringError("not enough GPU memory to run the engine")
        return context

    def _enqueue(self, given: list[Tensor]) -> list[Tensor]:
        outputs = self._bind(self._context, given)
        self._launch(self._context)
        return outputs

    def _bind(self, context: Any, given: list[Tensor]) -> list[Tensor]:
        for name, tensor in zip(self.input_names, given):
            if not context.set_input_shape(name, tuple(tensor.shape)):
                low, _, high = self._profile(name)
                raise LoweringError(f"input {name!r} has shape {tuple(tensor.shape)}; the engine takes {low} to {high}")
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self.output_names:
            shape = tuple(context.get_tensor_shape(name))
            result = torch.empty(shape, dtype=self._dtypes[name], device=self.device)
            context.set_tensor_address(name, result.data_ptr())
            outputs.append(result)
        return outputs

    def _launch(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise LoweringError("the engine failed to run: the GPU is out of memory or the engine is damaged")

    def _replay(self, given: list[Tensor]) -> list[Tensor]:
        assert self._graphs is not None
        key = tuple(tuple(tensor.shape) for tensor in given)
        if key not in self._graphs:
            # A captured run keeps its context's memory, so each has its own (TensorRT developer guide).
            context = self._new_context()
            buffers = [tensor.clone() for tensor in given]
            outputs = self._bind(context, buffers)
            # The first run compiles and allocates, which must not happen inside a capture.
            self._launch(context)
            self._stream.synchronize()
            graph = None
            if self._config is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self._stream):
                    self._launch(context)
            self._graphs[key] = _Captured(graph, context, buffers, outputs)
        captured = self._graphs[key]
        for buffer, tensor in zip(captured.inputs, given):
            buffer.copy_(tensor)
        if captured.graph is not None:
            captured.graph.replay()
        else:
            self._launch(captured.context)
        return [tensor.clone() for tensor in captured.outputs]


class _Captured:
    """A captured run with its context and the buffers it reads and writes, which must live as long as it; no
    ``graph`` where the context captures by itself.
    """

    def __init__(self, graph: Any, context: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.graph, self.context, self.inputs, self.outputs = graph, context, inputs, outputs


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    known = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT8: torch.int8,
        trt.DataType.UINT8: torch.uint8,
        trt.DataType.BOOL: torch.bool,
    }
    if dtype not in known:
        raise LoweringError(f"the engine has an input or output of type {dtype}, which has no torch type here")
    return known[dtype]
