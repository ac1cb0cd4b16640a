"""Latency: medians and 95th percentiles of calls run in turns, so that what slows the machine slows all
alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edp_fx.inputs import normalize
from edp_fx.lowering.onnx_engine import OnnxEngine
from edp_fx.lowering.onnx_export import export_onnx
from edp_fx.lowering.precision import cast_inputs, prepare
from edp_fx.lowering.profile import Profile, Range


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call over ``runs`` calls: the median, and the 95th percentile."""

    median_ms: float
    p95_ms: float
    runs: int


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 2.0,
    min_runs: int = 10,
    max_runs: int = 1000,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each of ``calls`` in rounds of one run each [rounds], for about ``seconds`` in all but at least
    ``min_runs`` rounds.

    The order rotates from round to round, so no call always follows the same other. On a GPU each run is
    waited for. ``clock`` gives seconds.
    """
    names = list(calls)
    for _ in range(warmup):
        for name in names:
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    count = 0
    while count < min_runs or (time.perf_counter() < end and count < max_runs):
        for shift in range(len(names)):
            name = names[(count + shift) % len(names)]
            _wait()
            start = clock()
            calls[name]()
            _wait()
            times[name].append(1e3 * (clock() - start))
        count += 1
    return {name: np.array(values) for name, values in times.items()}


def interleaved(calls: Mapping[str, Callable[[], Any]], **options: Any) -> dict[str, Latency]:
    """The same, summed up; the options are those of :func:`in_turns`."""
    return {
        name: Latency(float(np.median(times)), float(np.percentile(times, 95)), len(times))
        for name, times in in_turns(calls, **options).items()
    }


def onnx_latency(
    models: Mapping[str, nn.Module],
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 2.0,
) -> dict[str, Latency]:
    """Latency of each model in float32 under onnxruntime on the CPU at a batch of ``batch``, timed in turns.

    Raises LoweringError where one cannot be exported.
    """
    inputs = cast_inputs(tuple(x.detach().cpu() for x in normalize(example_inputs)), torch.float32)
    profile = Profile(Range.of(batch))
    calls = {}
    for name, model in models.items():
        exported = export_onnx(prepare(model, "fp32"), inputs, profile)
        calls[name] = _bound(OnnxEngine(exported.data, threads), exported.inputs)
    return interleaved(calls, seconds=seconds)


def _bound(engine: OnnxEngine, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    return lambda: engine(*inputs)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
