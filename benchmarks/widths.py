"""What a convolution with its batch norm and activation takes in training, by its channels, on one thread.

    python -m benchmarks.widths [--models 16x28,…] [--out FILE.csv]

A layer is written CHANNELSxSIDE: 3x3 from so many channels to as many, on 128 maps of that side, channels innermost,
forward and backward in bfloat16 where the processor multiplies in it. Medians of as many repeats as ``--repeats`` says,
in milliseconds of processor time. :func:`in_macs` says what edp_fx compares layers by, ``TRAFFIC`` and ``POSITION`` of
``edp_fx/cost/model.py``, on such a machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import rows
from benchmarks.compression.trial import precision
from benchmarks.rows import timed
from edp_fx.train.precision import mixed_precision
from edp_fx.train.recipe import PRECISIONS

# widths that fill the blocks in which a processor computes channels: those between take about as long as the next
LAYERS = "16x28,32x28,48x28,16x14,32x14,48x14,64x14,16x7,32x7,48x7,64x7,96x7,128x7"
COLUMNS = ("model", "ms", "precision", "capability", "torch")
BATCH = 128


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of one layer."""
    channels, side = (int(one) for one in name.split("x"))
    layers = (nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    dtype = PRECISIONS[precision()]
    x = torch.randn(BATCH, channels, side, side).to(dtype or torch.float32, memory_format=torch.channels_last)
    # a tensor of its own each time: gradients would add up otherwise, and that take time, too
    seconds = [timed(_step, model, x.detach().requires_grad_(), dtype)[1] for _ in range(repeats + 1)]
    return {
        "model": name,
        "ms": round(1e3 * statistics.median(seconds[1:]), 3),
        "precision": "fp32" if dtype is None else "bf16",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _step(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    with mixed_precision("cpu", dtype):
        y = model(x)
    y.backward(x.detach())


def in_macs(found: Iterable[Mapping[str, str]]) -> tuple[float, float]:
    """How many MACs a number that such a layer puts out takes as long as, and how many a position, whatever its
    channels: least squares of the relative errors."""
    counts, times = [], []
    for row in found:
        channels, side = (int(one) for one in row["model"].split("x"))
        positions = BATCH * side**2
        counts.append([9 * channels**2 * positions, channels * positions, positions])
        times.append(float(row["ms"]))
    parts = np.array(counts, dtype=float) / np.array(times)[:, None]
    scale = parts.max(axis=0)
    mac, number, position = np.linalg.lstsq(parts / scale, np.ones(len(times)), rcond=None)[0] / scale
    return float(number / mac), float(position / mac)


if __name__ == "__main__":
    print(in_macs(rows.main(__doc__, LAYERS, COLUMNS, measure, "benchmarks/results/widths.csv", repeats=21)))
