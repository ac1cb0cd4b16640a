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
from edp_fx.latency.runtimes import RUNTIMES, make_runtime
from edp_fx.lowering.engine import load_engine
from edp_fx.lowering.latency import Latency, interleaved
from edp_fx.lowering.precision import cast_inputs
from edp_fx.lowering.profile import Profile, Range

BACKENDS = ("torch", "compile", "onnxruntime")
"""Those that are timed where none is named; on a GPU also ``graph``, and TensorRT where it is installed."""


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
    precision: str = "fp32",
    threads: int | None = None,
) -> list[Timing]:
    """Time every model (with its example inputs) on every backend at every batch size, the first as the
    baseline.

    Args:
        models: name -> model and example inputs.
        backends: of :data:`edp_fx.latency.RUNTIMES`.
        batches: images a call.
        seconds: of timing for each backend and batch size.
        precision: ``fp32``, ``fp16`` or ``bf16``; batch norms are folded, and images lie channels last on a GPU.
        threads: of the processor; torch's own where None.

    A backend that cannot take a model, or that this machine lacks, gives a row with the reason. Raises LoweringError
    for an unknown backend.
    """
    for backend in backends:
        if backend not in RUNTIMES:
            raise LoweringError(
                f"unknown backend {backend!r}: one of {', '.join(RUNTIMES)}; engines are given as files"
            )
    rows: list[Timing] = []
    for backend in backends:
        for batch in batches:
            calls: dict[str, Callable[[], Any]] = {}
            refused: dict[str, str] = {}
            for name, (model, examples) in models.items():
                given = cast_inputs(tuple(x.detach().cpu() for x in normalize(examples)), torch.float32)
                given = Profile(Range.of(batch)).sample(given, batch, None, seed=0)
                try:
                    runtime = make_runtime(backend, threads=threads or torch.get_num_threads(), precision=precision)
                    assert runtime.ready is not None
                    calls[name] = runtime.ready(model, given)
                    calls[name]()
                except Exception as error:
                    calls.pop(name, None)
                    refused[name] = whole_line(error)
            rows += _row(backend, batch, list(models), calls, refused, seconds)
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
        calls: dict[str, Callable[[], Any]] = {}
        refused: dict[str, str] = {}
        for name, engine in engines.items():
            call = _call(engine, Profile(Range.of(batch)).sample(inputs[name], batch, None, seed=0))
            try:
                call()
                calls[name] = call
            except Exception as error:
                refused[name] = whole_line(error)
        rows += _row("engine", batch, list(engines), calls, refused, seconds)
    return rows


def _row(
    backend: str,
    batch: int,
    names: list[str],
    calls: Mapping[str, Callable[[], Any]],
    refused: Mapping[str, str],
    seconds: float,
) -> list[Timing]:
    measured = interleaved(calls, seconds=seconds) if calls else {}
    first = measured.get(names[0])
    rows = []
    for name in names:
        latency = measured.get(name)
        speedup = first.median_ms / latency.median_ms if first and latency else None
        rows.append(Timing(backend, batch, name, latency, speedup, refused.get(name)))
    return rows


def _call(function: Callable[..., Any], given: tuple[Tensor, ...]) -> Callable[[], Any]:
    device = getattr(function, "device", None)
    there = tuple(x.to(device) for x in given) if device is not None else given

    def call() -> Any:
        with torch.inference_mode():
            return function(*there)

    return call
