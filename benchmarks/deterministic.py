"""What it costs on a GPU that the same seed gives the same bits: a training step with and without.

    python -m benchmarks.deterministic [--models resnet50,…] [--out FILE.csv]

For each network at 224 pixels, bf16 autocast, channels last, SGD: steps as ``Recipe.deterministic`` makes them, and
plain ones, in turns in one process; medians, in milliseconds of the wall clock, of as many as ``--repeats`` says. Rows
in the file are kept, so the script goes on where it stopped.
"""

from __future__ import annotations

import sys

import timm
import torch
from torch.nn import functional as F

from benchmarks import rows
from edp_fx.lowering.latency import interleaved
from edp_fx.train.deterministic import deterministic

BATCHES = {"resnet50": 128, "mobilenetv2_100": 128, "convnext_tiny": 64}
COLUMNS = ("model", "batch", "plain_ms", "deterministic_ms", "ratio", "device", "torch")


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of one network."""
    batch = BATCHES.get(name, 64)
    model = timm.create_model(name, num_classes=10).cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device="cuda") % 10

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def same_bits() -> None:
        with deterministic():
            step()

    calls = {"plain": step, "deterministic": same_bits}
    times = interleaved(calls, min_runs=repeats, max_runs=repeats, warmup=4)
    median = {kind: time.median_ms for kind, time in times.items()}
    return {
        "model": name,
        "batch": batch,
        **{f"{kind}_ms": round(value, 1) for kind, value in median.items()},
        "ratio": round(median["deterministic"] / median["plain"], 3),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: needs an NVIDIA GPU; a processor's algorithms are deterministic")
    rows.main(__doc__, ",".join(BATCHES), COLUMNS, measure, "benchmarks/results/deterministic.csv", repeats=10)
