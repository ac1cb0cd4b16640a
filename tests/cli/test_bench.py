"""Benchmarks: fair turns, a row for everything, reasons where there is no figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edp_fx
from edp_fx.errors import LoweringError
from edp_fx.latency.benchmark import bench_engines, bench_models
from edp_fx.lowering.latency import interleaved, onnx_latency


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def test_calls_run_in_turns_and_the_order_rotates() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    result = interleaved(calls, seconds=0.0, min_runs=3, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {one.runs for one in result.values()} == {3}
    assert all(one.median_ms <= one.p95_ms for one in result.values())


def test_models_are_timed_on_each_backend_and_batch() -> None:
    x = torch.randn(2, 3, 16, 16)
    rows = bench_models(
        {"wide": (net(8), x), "thin": (net(4), x)},
        backends=("torch", "onnxruntime"),
        batches=(1, 3),
        seconds=0.0,
    )
    assert [(row.backend, row.batch, row.model) for row in rows] == [
        (backend, batch, model)
        for backend in ("torch", "onnxruntime")
        for batch in (1, 3)
        for model in ("wide", "thin")
    ]
    for row in rows:
        assert row.reason is None
        assert row.latency is not None
        assert row.latency.runs >= 10
        assert row.speedup is not None
    assert rows[0].speedup == 1.0
    json.dumps([row.to_json() for row in rows])


@pytest.mark.slow
def test_compiled_models_are_timed() -> None:
    (row,) = bench_models({"m": (net(4), torch.randn(1, 3, 16, 16))}, backends=("compile",), batches=(2,), seconds=0.0)
    assert row.latency is not None, row.reason


def test_a_backend_that_refuses_a_model_gives_the_reason() -> None:
    class Hostile(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor(x.detach().numpy().sum())

    x = torch.randn(1, 3, 16, 16)
    first, second = bench_models(
        {"fine": (net(4), x), "hostile": (Hostile(), x)}, backends=("onnxruntime",), batches=(1,), seconds=0
    )
    assert first.latency is not None
    assert second.latency is None
    assert second.reason
    assert second.to_json()["median_ms"] is None
    with pytest.raises(LoweringError, match="unknown backend 'tpu'"):
        bench_models({"fine": (net(4), x)}, backends=("tpu",))


def test_onnx_files_are_timed_against_each_other(tmp_path: Path) -> None:
    paths = []
    for width in (8, 4):
        paths.append(tmp_path / f"{width}.onnx")
        batch = (1, 2, 8) if width == 8 else 1
        edp_fx.lower(net(width), torch.randn(2, 3, 16, 16), paths[-1], target="onnx", batch=batch)
    rows = bench_engines(paths, batches=(1, 4), seconds=0.0)
    assert [(row.batch, row.latency is not None) for row in rows] == [
        (1, True),
        (1, True),
        (4, True),
        (4, False),
    ]
    assert rows[3].reason
    table = tmp_path / "b.json"
    command = [
        "bench",
        "--engine",
        paths[0],
        "--engine",
        paths[1],
        "--batch",
        1,
        "--seconds",
        0,
        "--json",
        table,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "edp_fx", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "median ms" in done.stdout
    assert [row["model"] for row in json.loads(table.read_text())] == list(map(str, paths))


def test_onnx_latency_of_several_models_in_turns() -> None:
    result = onnx_latency({"a": net(4), "b": net(8)}, torch.randn(1, 3, 16, 16), seconds=0.0)
    assert list(result) == ["a", "b"]
    assert result["a"].runs == result["b"].runs


def test_nothing_to_time_is_said(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edp_fx", "bench"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "edp-fx: nothing to time: name models, or engines with --engine"
