"""Models and engines against each other: every backend, a sweep of batch sizes, each measurement in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edp_fx.errors import LoweringError, whole_line
from edp_fx.inputs import normalize
from edp_fx.lowering.engine import load_engine
from edp_fx.lowering.latency import Latency, interleaved
from edp_fx.lowering.onnx_engine import OnnxEngine
from edp_fx.lowering.onnx_export import export_onnx
from edp_fx.lowering.precision import cast_inputs, prepare
from edp_fx.lowering.profile import Profile, Range
from edp_fx.lowering.targets import Engine

BACKENDS = ("torch", "compile", "onnxruntime")


@dataclass(frozen=True)
class Timing:
    """One model at one batch size on one backend. ``speedup`` is against the first model there; ``reason``
    says why there is no latency.
    """

    backend: str
    batch: int
    model: str
    latency: Latency | None
    speedup: float | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, one flat object."""
        figures = self.latency or Latency(float("nan"), float("nan"), 0)
        known = self.latency is not None
        return {
            "backend": self.backend,
            "batch": self.batch,
            "model": self.model,
            "median_ms": figures.median_ms if known else None,
            "p95_ms": figures.p95_ms if known else None,
            "images_per_s": 1e3 * self.batch / figures.median_ms if known else None,
            "runs": figures.runs,
            "speedup": self.speedup,
            "reason": self.reason,
        }


def bench_models(
    models: Mapping[str, tuple[nn.Module, Tensor | tuple[Tensor, ...]]],
    *,
    backends: Sequence[str] = BACKENDS,
    batches: Sequence[int] = (1, 8),
    seconds: float = 2.0,
) -> list[Timing]:
    """Time every model (with its example inputs) on every backend at every batch size, the first as the
    baseline.

    ``torch`` and ``compile`` run on the GPU where there is one, ``onnxruntime`` on the CPU. A backend that
    cannot take a model gives a row with the reason. Raises LoweringError for an unknown backend.
    """
    makers: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., Any]]] = {
        "torch": _eager,
        "compile": _compiled,
        "onnxruntime": _onnxruntime,
    }
    for backend in backends:
        if backend not in makers:
            raise LoweringError(f"unknown backend {backend!r}: one of {', '.join(makers)}; engines are given as files")
    rows: list[Timing] = []
    for backend in backends:
        made: dict[str, Callable[..., Any]] = {}
        refused: dict[str, str] = {}
        inputs: dict[str, tuple[Tensor, ...]] = {}
        for name, (model, examples) in models.items():
            inputs[name] = cast_inputs(tuple(x.detach().cpu() for x in normalize(examples)), torch.float32)
            try:
                made[name] = makers[backend](model, inputs[name])
            except Exception as error:
                refused[name] = whole_line(error)
        for batch in batches:
            rows += _row(backend, batch, list(models), made, inputs, dict(refused), seconds)
    return rows


def bench_engines(
    paths: Sequence[Path], *, batches: Sequence[int] = (1, 8), seconds: float = 2.0, cuda_graph: bool = False
) -> list[Timing]:
    """Time engines (or ONNX files) against each other, the first as the baseline, on random inputs of their
    own shapes.

    A batch size outside an engine's profile gives a row with the reason. Raises LoweringError where a file
    cannot be loaded, or an engine is given on a machine without an NVIDIA GPU.
    """
    engines = {str(path): load_engine(path, cuda_graph=cuda_graph) for path in paths}
    inputs = {name: engine.example_inputs() for name, engine in engines.items()}
    rows: list[Timing] = []
    for batch in batches:
        rows += _row("engine", batch, list(engines), _callables(engines), inputs, {}, seconds)
    return rows


def _callables(engines: Mapping[str, Engine]) -> dict[str, Callable[..., Any]]:
    return dict(engines)


def _row(
    backend: str,
    batch: int,
    names: list[str],
    made: Mapping[str, Callable[..., Any]],
    inputs: Mapping[str, tuple[Tensor, ...]],
    refused: dict[str, str],
    seconds: float,
) -> list[Timing]:
    calls: dict[str, Callable[[], Any]] = {}
    for name, function in made.items():
        given = Profile(Range.of(batch)).sample(inputs[name], batch, None, seed=0)
        device = getattr(function, "device", None)
        call = _call(function, tuple(x.to(device) for x in given) if device is not None else given)
        try:
            call()
            calls[name] = call
        except Exception as error:
            refused[name] = whole_line(error)
    measured = interleaved(calls, seconds=seconds) if calls else {}
    first = measured.get(names[0])
    rows = []
    for name in names:
        latency = measured.get(name)
        speedup = first.median_ms / latency.median_ms if first and latency else None
        rows.append(Timing(backend, batch, name, latency, speedup, refused.get(name)))
    return rows


def _call(function: Callable[..., Any], given: tuple[Tensor, ...]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return function(*given)

    return call


class _Module:
    """A module on the device it is timed on."""

    def __init__(self, module: nn.Module, compiled: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ready = module.to(self.device)
        self._function: Callable[..., Any] = torch.compile(ready) if compiled else ready

    def __call__(self, *inputs: Tensor) -> Any:
        return self._function(*inputs)


def _eager(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    return _Module(prepare(model, "fp32"), compiled=False)


def _compiled(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    return _Module(prepare(model, "fp32"), compiled=True)


def _onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    exported = export_onnx(prepare(model, "fp32"), inputs, Profile(Range(1, 2, 4096)))
    return OnnxEngine(exported.data)
