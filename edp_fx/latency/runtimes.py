"""What a network is timed on: torch, onnxruntime or TensorRT."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from edp_fx.errors import LoweringError
from edp_fx.extras import need
from edp_fx.lowering.precision import cast_inputs, dtype_of, prepare
from edp_fx.lowering.profile import Profile, Range
from edp_fx.passes.fold import FoldBatchNorm

Time = Callable[[nn.Module, tuple[Tensor, ...]], float]
Ready = Callable[[nn.Module, tuple[Tensor, ...]], Callable[[], Any]]


@dataclass(frozen=True)
class Runtime:
    """A place to run.

    Attributes:
        name: of :data:`RUNTIMES`, or another.
        device: its name in words: numbers of another device are other numbers.
        threads: of the CPU.
        time: (module, inputs) -> median milliseconds of one call in eval mode; the module stays as it is.
        ready: (module, inputs) -> what runs it once when called, to time several in turns; None where only ``time``
            can.
    """

    name: str
    device: str
    threads: int
    time: Time
    ready: Ready | None = None

    @property
    def clock(self) -> Callable[[], float]:
        """What times its calls, in seconds: one thread of a processor by what it computes, whatever else the machine
        does meanwhile."""
        return time.thread_time if self.device == "cpu" and self.threads == 1 else time.perf_counter


def make_runtime(name: str, *, threads: int = 1, device: str | None = None, precision: str = "fp32") -> Runtime:
    """The runtime called ``name``.

    Args:
        name: one of ``RUNTIMES``.
        threads: of the CPU.
        device: ``cpu`` or ``cuda`` for torch; the GPU where there is one if None. The others have one device each.
        precision: that networks are cast to, batch norms folded: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        LoweringError: unknown, or this machine lacks what it runs on.
    """
    if name not in RUNTIMES:
        raise LoweringError(f"latency runtime {name!r} is unknown: use one of {', '.join(RUNTIMES)}")
    dtype_of(precision)
    if precision == "int8":
        raise LoweringError("latency in int8: a network has to be calibrated for that; measure it in fp16")
    return RUNTIMES[name](name, threads, device, precision)


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _torch(name: str, threads: int, device: str | None, precision: str) -> Runtime:
    device = _torch_device(device)

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        there, given = _there(module, inputs, device, precision)
        if name == "compile":
            there = torch.compile(there, mode="reduce-overhead" if device == "cuda" else "default")

        def call() -> Any:
            with torch.inference_mode(), _threads(threads):
                return there(*given)

        return call

    return _timed(name, torch.cuda.get_device_name() if device == "cuda" else "cpu", threads, ready)


def _graph(name: str, threads: int, device: str | None, precision: str) -> Runtime:
    """Torch's launches captured once and replayed."""
    _only_device(name, device, "cuda")
    if not torch.cuda.is_available():
        raise LoweringError("latency under graph needs an NVIDIA GPU, and there is none: use torch or onnxruntime")

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        there, given = _there(module, inputs, "cuda", precision)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    there(*given)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                kept = there(*given)

        def call(alive: Any = (there, given, kept)) -> None:
            graph.replay()

        return call

    return _timed(name, torch.cuda.get_device_name(), threads, ready)


def _torch_device(device: str | None) -> str:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise LoweringError(f"latency on device {device!r}: use 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise LoweringError("latency on device 'cuda': torch sees no NVIDIA GPU here; use device='cpu'")
    return device


def _there(
    module: nn.Module, inputs: tuple[Tensor, ...], device: str, precision: str
) -> tuple[Any, tuple[Tensor, ...]]:
    """A network and its inputs where they run, as they would for inference."""
    ready = prepare(module, precision, inputs)
    if isinstance(ready, fx.GraphModule):
        FoldBatchNorm()(ready)
    given = cast_inputs(inputs, dtype_of(precision))
    if device == "cuda":
        ready = ready.to(memory_format=torch.channels_last)
        given = tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in given)
    return ready.to(device), tuple(x.to(device) for x in given)


def _onnxruntime(name: str, threads: int, device: str | None, precision: str) -> Runtime:
    _only_device("onnxruntime", device, "cpu")
    need("lower", "latency under onnxruntime")

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        from edp_fx.lowering.onnx_engine import OnnxEngine
        from edp_fx.lowering.onnx_export import export_onnx

        given = cast_inputs(tuple(x.detach().cpu() for x in inputs), dtype_of(precision))
        exported = export_onnx(prepare(module, precision, given), given, Profile(Range.of(given[0].shape[0])))
        engine = OnnxEngine(exported.data, threads)
        return lambda: engine(*given)

    return _timed("onnxruntime", "cpu", threads, ready)


def _tensorrt(name: str, threads: int, device: str | None, precision: str) -> Runtime:
    _only_device(name, device, "cuda")
    if not torch.cuda.is_available():
        raise LoweringError(f"latency under {name} needs an NVIDIA GPU, and there is none: use onnxruntime or torch")

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        from edp_fx.lowering import lower
        from edp_fx.lowering.engine import load_engine

        with tempfile.TemporaryDirectory(prefix="edp-fx-") as folder:
            path = Path(folder, "model.engine")
            lower(module, inputs, path, target=name, precision=precision, batch=inputs[0].shape[0])
            engine = load_engine(path, cuda_graph=True)
        given = tuple(x.cuda() for x in inputs)
        return lambda: engine(*given)

    return _timed(name, torch.cuda.get_device_name(), threads, ready)


def _timed(name: str, device: str, threads: int, ready: Ready) -> Runtime:
    return Runtime(name, device, threads, lambda module, inputs: _median(ready(module, inputs)), ready)


RUNTIMES: dict[str, Callable[[str, int, str | None, str], Runtime]] = {
    "torch": _torch,
    "graph": _graph,
    "compile": _torch,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
}


def _only_device(name: str, given: str | None, only: str) -> None:
    if given not in (None, only):
        raise LoweringError(f"latency under {name} on device {given!r}: it is measured on {only!r} only")


def _median(call: Callable[[], Any]) -> float:
    """Median of at least 7 runs and of as many as fit into 30 ms, up to 50."""
    from edp_fx.lowering.latency import interleaved

    return interleaved({"it": call}, seconds=0.03, min_runs=7, max_runs=50, warmup=2)["it"].median_ms


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
