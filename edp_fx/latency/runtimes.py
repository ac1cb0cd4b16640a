"""What a layer or a network is timed on: torch, onnxruntime or TensorRT."""

from __future__ import annotations

import copy
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import LoweringError
from edp_fx.extras import need

Time = Callable[[nn.Module, tuple[Tensor, ...]], float]
Ready = Callable[[nn.Module, tuple[Tensor, ...]], Callable[[], Any]]


@dataclass(frozen=True)
class Runtime:
    """A place to run.

    Attributes:
        name: ``torch``, ``onnxruntime`` or ``tensorrt``.
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


def make_runtime(name: str, *, threads: int = 1, device: str | None = None) -> Runtime:
    """The runtime called ``name``.

    Args:
        name: one of ``RUNTIMES``.
        threads: of the CPU.
        device: ``cpu`` or ``cuda`` for torch; the GPU where there is one if None. The others have one device each.

    Raises:
        LoweringError: unknown, or this machine lacks what it runs on.
    """
    if name not in RUNTIMES:
        raise LoweringError(f"latency runtime {name!r} is unknown: use one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name](threads, device)


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _torch(threads: int, device: str | None) -> Runtime:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise LoweringError(f"latency on device {device!r}: use 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise LoweringError("latency on device 'cuda': torch sees no NVIDIA GPU here; use device='cpu'")

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        there = copy.deepcopy(module).eval().to(device)
        given = tuple(x.to(device) for x in inputs)

        def call() -> Any:
            with torch.inference_mode(), _threads(threads):
                return there(*given)

        return call

    return _timed("torch", torch.cuda.get_device_name() if device == "cuda" else "cpu", threads, ready)


def _onnxruntime(threads: int, device: str | None) -> Runtime:
    _only_device("onnxruntime", device, "cpu")
    need("lower", "latency under onnxruntime")

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        from edp_fx.lowering.onnx_engine import OnnxEngine
        from edp_fx.lowering.onnx_export import export_onnx
        from edp_fx.lowering.precision import cast_inputs, prepare
        from edp_fx.lowering.profile import Profile, Range

        given = cast_inputs(tuple(x.detach().cpu() for x in inputs), torch.float32)
        data = export_onnx(prepare(module, "fp32"), given, Profile(Range.of(given[0].shape[0]))).data
        engine = OnnxEngine(data, threads)
        return lambda: engine(*given)

    return _timed("onnxruntime", "cpu", threads, ready)


def _tensorrt(threads: int, device: str | None) -> Runtime:
    _only_device("tensorrt", device, "cuda")
    if not torch.cuda.is_available():
        raise LoweringError("latency under tensorrt needs an NVIDIA GPU, and there is none: use onnxruntime or torch")

    def ready(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        from edp_fx.lowering import lower
        from edp_fx.lowering.engine import load_engine

        with tempfile.TemporaryDirectory(prefix="edp-fx-") as folder:
            path = Path(folder, "model.engine")
            lower(module, inputs, path, target="tensorrt", batch=inputs[0].shape[0])
            engine = load_engine(path)
        given = tuple(x.cuda() for x in inputs)
        return lambda: engine(*given)

    return _timed("tensorrt", torch.cuda.get_device_name(), threads, ready)


def _timed(name: str, device: str, threads: int, ready: Ready) -> Runtime:
    return Runtime(name, device, threads, lambda module, inputs: _median(ready(module, inputs)), ready)


RUNTIMES: dict[str, Callable[[int, str | None], Runtime]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
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
