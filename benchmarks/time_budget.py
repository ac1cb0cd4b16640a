"""Budgets of time: what was asked, predicted and measured.

    python -m benchmarks.time_budget measured --out benchmarks/results/time_budget.csv
    python -m benchmarks.time_budget predicted --out benchmarks/results/time_budget_devices.csv

``measured``: networks at 224 pixels, one image, one thread of this machine's processor under onnxruntime, compressed to
half of their time without training (channels by norm; random weights, which do not matter to time), ``--runs`` times
each. Each end network is timed anew against the dense one in turns. ``by_macs`` is the share of time that a budget of
as many MACs takes. ``predicted``: what half of the time on a device that is not here leaves, for devices and batches;
at batch 1 with whole branches, chosen by gradients of a few steps on random images.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import fx, nn

import edp_fx
from edp_fx.cost import load_device
from edp_fx.inputs import randomize_
from edp_fx.latency import Meter, make_runtime
from edp_fx.latency.runtimes import cpu_name

MEASURED = ("resnet18", "mobilenetv2_100", "vit_tiny_patch16_224", "resnet50")
PREDICTED = ("resnet50", "mobilenetv2_100", "convnext_tiny", "regnetx_032", "vit_small_patch16_224")
COLUMNS = {
    "measured": (
        "network", "run", "asked", "predicted", "measured", "again", "missed", "dense_ms", "compressed_ms", "macs",
        "params", "by_macs", "seconds", "cpu", "torch",
    ),
    "predicted": (
        "network", "device", "runtime", "batch", "kinds", "asked", "predicted", "speedup", "macs", "params", "dense_ms",
        "compressed_ms", "branches", "seconds",
    ),
}  # fmt: skip
IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def made(name: str, seed: int) -> fx.GraphModule:
    """A network of random weights, as a graph."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    randomize_(model, seed)
    return edp_fx.trace(model, IMAGES)


def kinds_of(name: str) -> tuple[str, ...]:
    """What may go of it without training."""
    return ("channel", "head") if "vit" in name else ("channel",)


def measured_row(name: str, run: int, asked: float) -> dict[str, Any]:
    """Compress to a share of the time, and measure."""
    started = time.perf_counter()
    gm = made(name, run)
    dense = copy.deepcopy(gm)
    before = edp_fx.measure(dense, IMAGES)
    inexact = "vit" in name  # without the width of the stream half of the time is out of reach
    options: dict[str, Any] = {"importance": "norm", "kinds": kinds_of(name), "allow_inexact": inexact}
    compressor = edp_fx.Compressor(gm, IMAGES, latency=asked, **options)
    small = compressor.finish()
    after = edp_fx.measure(small, IMAGES)
    timing = compressor.timing
    assert timing is not None
    told = timing.plain()
    meter = Meter(make_runtime("onnxruntime"), 1, dense, IMAGES)
    again = meter.compare(small)
    by_macs = None
    if not run:
        other = edp_fx.Compressor(copy.deepcopy(dense), IMAGES, macs=after.macs / before.macs, **options).finish()
        by_macs = round(meter.compare(other).share, 4)
    return {
        "network": name,
        "run": run,
        "asked": asked,
        "predicted": round(told["predicted"], 4),
        "measured": round(told["measured"], 4),
        "again": round(again.share, 4),
        "missed": round(again.share / asked - 1, 4),
        "dense_ms": round(again.dense_ms, 3),
        "compressed_ms": round(again.small_ms, 3),
        "macs": round(after.macs / before.macs, 4),
        "params": round(after.params / before.params, 4),
        "by_macs": by_macs,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }


def predicted_row(name: str, device: str, runtime: str, batch: int, asked: float) -> dict[str, Any]:
    """Compress to a share of the time on a device that is not here."""
    started = time.perf_counter()
    gm = made(name, 0)
    before = edp_fx.measure(gm, IMAGES)
    one = load_device(device).under(runtime)
    small, compressor = (_trained if batch == 1 else _untrained)(gm, name, one, batch, asked)
    after = edp_fx.measure(small, IMAGES)
    gone = [report for report in small.meta["edp_fx.reports"] if report.name == "drop_branches"]
    return {
        "network": name,
        "device": device,
        "runtime": runtime,
        "batch": batch,
        "kinds": ",".join(compressor.method.kinds or ()),
        "asked": asked,
        "predicted": round(compressor.now / compressor.dense, 4),
        "speedup": round(compressor.dense / compressor.now, 3),
        "macs": round(after.macs / before.macs, 4),
        "params": round(after.params / before.params, 4),
        "dense_ms": round(compressor.dense, 4),
        "compressed_ms": round(compressor.now, 4),
        "branches": sum(len(report.rewritten) for report in gone),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _untrained(
    gm: fx.GraphModule, name: str, device: Any, batch: int, asked: float
) -> tuple[fx.GraphModule, edp_fx.Compressor]:
    inexact = "vit" in name or "convnext" in name
    compressor = edp_fx.Compressor(
        gm,
        IMAGES,
        budget=edp_fx.Budget(latency=asked, device=device, batch=batch),
        importance="norm",
        kinds=kinds_of(name),
        allow_inexact=inexact,
    )
    return compressor.finish(), compressor


def _trained(
    gm: fx.GraphModule, name: str, device: Any, batch: int, asked: float, steps: int = 4
) -> tuple[fx.GraphModule, edp_fx.Compressor]:
    """Whole branches are weighed by gradients."""
    optimizer = torch.optim.SGD(gm.train().parameters(), lr=1e-4)
    budget = edp_fx.Budget(latency=asked, device=device, batch=batch)
    options: dict[str, Any] = {"start": 0.3, "end": 0.9, "decisions": 2, "removals": 1, "kinds": ("channel", "branch")}
    compressor = edp_fx.Compressor(gm, IMAGES, budget=budget, optimizer=optimizer, total_steps=steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(gm(torch.randn(2, 3, 224, 224)), torch.randint(1000, (2,))).backward()
        optimizer.step()
        compressor.step()
    return compressor.finish().eval(), compressor


def main() -> None:
    """Append a row for each network to the file, as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=list(COLUMNS))
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--asked", type=float, default=0.5)
    parser.add_argument("--device", default="h200-fp16")
    parser.add_argument("--runtimes", nargs="*", default=["graph", "tensorrt"])
    parser.add_argument("--batches", nargs="*", type=int, default=[64, 1])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[options.section], lineterminator="\n")
        if new:
            writer.writeheader()
        if options.section == "measured":
            for run in range(options.runs):
                for name in options.networks or MEASURED:
                    _add(writer, file, measured_row(name, run, options.asked))
        else:
            for batch in options.batches:
                for name in options.networks or PREDICTED:
                    for runtime in options.runtimes:
                        _add(writer, file, predicted_row(name, options.device, runtime, batch, options.asked))


def _add(writer: Any, file: Any, row: dict[str, Any]) -> None:
    writer.writerow(row)
    file.flush()
    print(row, flush=True)


if __name__ == "__main__":
    main()
