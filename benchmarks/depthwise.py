"""A processor's depthwise convolutions forward and backward, in bfloat16 against float32, on one thread.

    python -m benchmarks.depthwise [--models 12x28/2,…] [--out FILE.csv]

A layer is written CHANNELSxSIDE/STRIDE: 3x3, padded by 1, on 128 maps of that side, channels innermost. Both precisions
in turns; medians of as many turns as ``--repeats`` says, in milliseconds of processor time. What
``edp_fx.train.precision`` computes in float32 is where the ratio is large.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import rows
from benchmarks.rows import timed

LAYERS = "12x28/1,12x28/2,32x14/1,32x14/2,64x7/1,64x7/2,128x3/1,128x1/1"
COLUMNS = ("model", "float32_ms", "bfloat16_ms", "ratio", "capability", "torch")
BATCH = 128


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of one layer."""
    channels, rest = name.split("x")
    side, stride = (int(one) for one in rest.split("/"))
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(repeats + 1):
        for dtype, values in seconds.items():
            x = torch.randn(BATCH, int(channels), side, side).to(dtype, memory_format=torch.channels_last)
            weight = torch.randn(int(channels), 1, 3, 3).to(dtype)
            values.append(timed(_step, x.requires_grad_(), weight.requires_grad_(), stride)[1])
    float32, bfloat16 = (1e3 * statistics.median(values[1:]) for values in seconds.values())
    return {
        "model": name,
        "float32_ms": round(float32, 3),
        "bfloat16_ms": round(bfloat16, 3),
        "ratio": round(bfloat16 / float32, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _step(x: Tensor, weight: Tensor, stride: int) -> None:
    F.conv2d(x, weight, None, stride, 1, 1, len(weight)).sum().backward()


if __name__ == "__main__":
    rows.main(__doc__, LAYERS, COLUMNS, measure, "benchmarks/results/depthwise.csv", repeats=31)
